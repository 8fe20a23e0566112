//! The log lines that an operator reads.

use std::process::Command;

use leveret::broker::Broker;
use leveret::{Connection, ConnectionOptions, QosOptions, QueueDeclareOptions};
use log::{Level, LevelFilter};

use crate::recovery::recovered;
use crate::support::logged::Line;
use crate::support::proxy::quick;
use crate::support::{
    at, eventually, exclusive_queue, logged, options, ready, scripted_connections, unique, version,
};

/// The in-memory broker logs under this target, and names no connection.
const OTHER: &str = "leveret::broker";

/// The texts of the crate's lines, each of which must name this connection and broker.
#[track_caller]
fn texts(lines: &[Line], name: &str, broker: &Broker) -> Vec<String> {
    let beginning = format!("[{name} at {}] ", broker.address());
    let is_other = |line: &Line| line.target.starts_with(OTHER);
    let of_crate = |line: &&Line| line.target.starts_with("leveret") && !is_other(line);
    let text = |line: &Line| match line.text.strip_prefix(&beginning) {
        Some(text) => text.to_owned(),
        None => panic!("no {beginning:?}: {line:?}"),
    };
    lines.iter().filter(of_crate).map(text).collect()
}

#[track_caller]
fn assert_some(lines: &[String], part: &str) {
    assert!(
        lines.iter().any(|it| it.contains(part)),
        "{part}: {lines:#?}"
    );
}

/// Runs in its own process, without other connections, so that every frame can be logged.
#[test]
fn each_line_of_the_log_names_its_connection() {
    let run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "logging::each_line", "--ignored"])
        .output()
        .unwrap();
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stdout)
    );
}

#[test]
#[ignore = "run by the test above, in its own process"]
fn each_line() {
    logged::begin_at(LevelFilter::Trace);
    let name = "billing 7";
    let brokers = [(); 2].map(|()| Broker::start().unwrap());
    let [first, second] = &brokers;
    let options = ConnectionOptions::from_uri(&first.uri()).unwrap();
    let address = second.address();
    let options = options
        .endpoint(address.ip().to_string(), address.port())
        .connection_name(name);
    let connection = Connection::open_with(&options).unwrap();
    let events = connection.events();
    let channel = connection.open_channel().unwrap();
    let queue = QueueDeclareOptions::default();
    let queue = channel.queue_declare("tasks", queue).unwrap();
    let consumer = queue.consume().unwrap();
    let publisher = channel.publisher().unwrap();
    publisher.publish("", "tasks", "m").unwrap().wait().unwrap();
    let delivery = consumer.recv().unwrap().unwrap();
    first.block("disk alarm");
    eventually("the connection is blocked", || {
        connection.blocked_reason().is_some()
    });
    first.unblock();
    eventually("the connection is unblocked", || {
        connection.blocked_reason().is_none()
    });
    let refused = connection.open_channel().unwrap();
    refused
        .queue_declare("tasks", QueueDeclareOptions::temporary())
        .unwrap_err();

    // The connection comes back to a node with another address.
    first.refuse_connections(true);
    first.drop_connections();
    recovered(&events);
    delivery.ack().unwrap();
    connection.close().unwrap();
    check_lines(name, first, second);
}

/// Lines up to the loss name the first broker, and all later lines the second.
fn check_lines(name: &str, first: &Broker, second: &Broker) {
    let lines = logged::lines();
    let is_lost = |line: &Line| line.text.contains("attempt 1 to recover");
    let (before, after) = lines.split_at(1 + lines.iter().position(is_lost).unwrap());
    let before = texts(before, name, first);
    for part in [
        "connected to amqp://guest@",
        "channel 1 → queue.declare",
        "channel 1 → basic.publish",
        "channel 1 ← basic.deliver",
        "the broker has blocked the connection: disk alarm",
        "channel 2 was closed by the broker because of queue.declare: 405",
    ] {
        assert_some(&before, part);
    }
    let after = texts(after, name, second);
    for part in [
        "→ queue.declare",
        "channel 1 → basic.consume",
        "is not sent",
        "the connection was closed by this program",
    ] {
        assert_some(&after, part);
    }
}

#[test]
fn asking_for_a_missing_queue_logs_no_warning() {
    logged::begin();
    let name = unique("questions");
    let connection = Connection::open_with(options().connection_name(&name)).unwrap();
    let closed = |level| {
        let lines = logged::lines().into_iter();
        let is_it = |it: &Line| it.text.contains(&name) && it.text.contains("404");
        lines.filter(|it| is_it(it) && it.level == level).count()
    };
    assert!(!connection.queue_exists("no such queue").unwrap());
    assert!(!connection.exchange_exists("no such exchange").unwrap());
    let channel = connection.open_channel().unwrap();
    channel.queue_declare_passive("no such queue").unwrap_err();
    connection.close().unwrap();
    assert_eq!((closed(Level::Debug), closed(Level::Warn)), (2, 1));
}

/// How many warnings this connection logged about a global prefetch.
fn warnings_of_global_qos(name: &str) -> usize {
    let beginning = format!("[{name} at ");
    logged::count(|it| it.starts_with(&beginning) && it.contains("for the whole channel"))
}

#[test]
fn a_global_prefetch_holds_or_the_log_warns_that_it_does_not() {
    logged::begin();
    let name = unique("shared prefetch");
    let connection = Connection::open_with(options().connection_name(&name)).unwrap();
    let channel = connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    for _ in 0..20 {
        queue.publish("m").unwrap();
    }
    let together = || QosOptions::default().prefetch_count(5).global(true);
    channel.basic_qos_with(together()).unwrap();
    channel.basic_qos_with(together()).unwrap();
    let consumers = [(); 3].map(|()| queue.consume().unwrap());
    let (unread, warnings) = match version() < (4, 3) {
        true => ([5, 0, 0], 0),
        false => ([5, 5, 5], 1),
    };
    let left = 20 - unread.iter().sum::<usize>() as u32;
    eventually(
        "the broker has sent as many messages as the prefetch allows",
        || consumers.each_ref().map(|it| it.unread()) == unread,
    );
    assert_eq!(ready(&channel, queue.name()), left);
    assert_eq!(warnings_of_global_qos(&name), warnings);
}

#[test]
fn a_recovery_warns_if_the_new_version_ignores_a_global_prefetch() {
    logged::begin();
    let (cut, is_cut) = std::sync::mpsc::channel();
    let (address, server) = scripted_connections(3, move |connection, server| {
        server.handshake_of_rabbitmq(["4.2.5", "4.3.0-rc.1", "10.0.0"][connection]);
        server.open_channel();
        // The first comes from the program or from the recovery, the second from the program.
        for _ in 0..2 {
            let qos = server.next_frame();
            assert_eq!(qos.method(), Some((60, 10)));
            assert_eq!(qos.payload[4..], [0, 0, 0, 0, 0, 5, 1]);
            server.send_method(qos.channel, 60, 11, &[]);
        }
        is_cut.recv().unwrap();
    });
    let name = unique("upgraded");
    let options = at(address).recovery(quick()).connection_name(&name);
    let connection = Connection::open_with(&options).unwrap();
    let events = connection.events();
    let channel = connection.open_channel().unwrap();
    let ask = || {
        let together = QosOptions::default().prefetch_count(5).global(true);
        channel.basic_qos_with(together).unwrap();
    };
    ask();
    for warnings in [0, 1, 1] {
        ask();
        assert_eq!(warnings_of_global_qos(&name), warnings);
        cut.send(()).unwrap();
        if connection.loss_count() < 2 {
            recovered(&events);
        }
    }
    let said = |part: &str| logged::has(|it| it.contains(&name) && it.contains(part));
    assert!(said(
        "prefetch of 5 for the whole channel, but RabbitMQ 4.3.0-rc.1 applies it to each"
    ));
    drop(connection);
    server.join().unwrap();
}
