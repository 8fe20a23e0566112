//! Nodes that are killed, stopped, or close connections.

use std::collections::hash_map::RandomState;
use std::collections::HashSet;
use std::hash::{BuildHasher, Hasher};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use leveret::{
    Connection, ConnectionEvent, ConnectionOptions, Consumer, ErrorKind, Message, Publisher,
    PublisherOptions, QueueDeclareOptions, ReplyCode,
};

use super::{lost, recovered, Lossy};
use crate::support::proxy::quick;
use crate::support::{address_of, eventually, exclusive_queue, logged, url, Node, SOON};
#[cfg(target_os = "linux")]
use crate::support::{resident_kib, version};

const PUBLISHERS: u32 = 4;
const MESSAGES: u32 = 50_000;
const KILLS: u32 = 5;

/// Publishes all messages, and waits until each is confirmed.
fn publish_all(publisher: &Publisher, queue: &str, published: &AtomicU32) {
    let mut confirms = Vec::new();
    for number in 0..MESSAGES {
        let body = number.to_be_bytes();
        let message = Message::new(body).persistent(true);
        confirms.push(publisher.publish("", queue, message).unwrap());
        published.fetch_add(1, Ordering::Relaxed);
    }
    for confirm in confirms {
        confirm.wait_timeout(5 * SOON).unwrap();
    }
    assert_eq!(publisher.unconfirmed(), 0);
}

/// Consumes until all messages have come. Returns the number of repetitions.
fn consume_all(consumer: &Consumer) -> u32 {
    let (mut seen, mut last, mut again) = (HashSet::new(), None, 0);
    while seen.len() < MESSAGES as usize {
        let delivery = consumer.recv_timeout(5 * SOON).unwrap();
        let missing = MESSAGES as usize - seen.len();
        let delivery = delivery.unwrap_or_else(|| panic!("{missing} messages are missing"));
        let number = u32::from_be_bytes(delivery.body().try_into().unwrap());
        if !seen.insert(number) {
            again += 1;
        } else if !delivery.redelivered() {
            assert!(last < Some(number), "{number} came after {last:?}");
            last = Some(number);
        }
        delivery.ack().unwrap();
    }
    again
}

#[test]
fn no_message_is_lost_when_the_broker_is_killed_repeatedly_under_load() {
    let mut node = Node::start();
    let options = node
        .options()
        .publish_timeout(5 * SOON)
        .request_timeout(5 * SOON)
        .recovery(quick().max_delay(Duration::from_millis(500)));
    let connection = Connection::open_with(&options).unwrap();
    let events = connection.events();
    let channel = connection.open_channel().unwrap();
    let queues: Vec<_> = (0..PUBLISHERS)
        .map(|number| format!("load {number}"))
        .collect();
    for queue in &queues {
        let durable = QueueDeclareOptions::default();
        channel.queue_declare(queue, durable).unwrap();
    }
    node.sync_declarations();
    let published = AtomicU32::new(0);
    // Set up before the first kill: a call that waits at that moment fails.
    let workers: Vec<_> = queues
        .iter()
        .map(|queue| {
            let options = PublisherOptions::default()
                .window(500)
                .confirm_timeout(5 * SOON);
            let publishing = connection.open_channel().unwrap();
            let publisher = publishing.publisher_with(options).unwrap();
            let consuming = connection.open_channel().unwrap();
            consuming.basic_qos(200).unwrap();
            let consumer = consuming.basic_consume(queue, Default::default());
            (queue, publisher, consumer.unwrap())
        })
        .collect();
    let again = thread::scope(|scope| {
        let published = &published;
        let mut consumers = Vec::new();
        for (queue, publisher, consumer) in &workers {
            scope.spawn(move || publish_all(publisher, queue, published));
            consumers.push(scope.spawn(move || consume_all(consumer)));
        }
        // Kill at a random moment in each part of the run.
        let part = PUBLISHERS * MESSAGES / (KILLS + 1);
        for kill in 0..KILLS {
            let random = RandomState::new().build_hasher().finish();
            let moment = part * kill + 1 + (random % u64::from(part)) as u32;
            eventually("messages are published", || {
                published.load(Ordering::Relaxed) >= moment
            });
            node.signal("KILL");
            lost(&events);
            node.restart();
            recovered(&events);
        }
        let again = consumers.into_iter().map(|it| it.join().unwrap());
        again.sum::<u32>()
    });
    assert_eq!(published.into_inner(), PUBLISHERS * MESSAGES);
    assert_eq!(connection.stats().recoveries, u64::from(KILLS));
    // With a window of 500, some messages were always in flight.
    assert!(again > 0, "no kill met messages in flight");
    println!("{again} messages came more than once");
    connection.close().unwrap();
}

#[test]
fn the_next_node_of_a_list_takes_over() {
    let mut nodes: Vec<_> = thread::scope(|scope| {
        let starting = (0..3).map(|_| scope.spawn(Node::start));
        let starting: Vec<_> = starting.collect();
        starting.into_iter().map(|it| it.join().unwrap()).collect()
    });
    let ports: Vec<_> = nodes
        .iter()
        .map(|node| address_of(&node.uri()).port())
        .collect();
    let options = ConnectionOptions::default()
        .host("127.0.0.1")
        .port(ports[0])
        .endpoint("127.0.0.1", ports[1])
        .endpoint("127.0.0.1", ports[2])
        .recovery(quick());
    let connection = Connection::open_with(&options).unwrap();
    let events = connection.events();
    let channel = connection.open_channel().unwrap();
    let queue = channel
        .queue_declare("failover", QueueDeclareOptions::default())
        .unwrap();
    queue.bind(channel.exchange("amq.topic"), "to.#").unwrap();
    let consumer = queue.consume().unwrap();
    let publisher = connection.open_channel().unwrap().publisher().unwrap();
    // The first node is back when the last one is killed.
    for (round, at) in [0, 1, 2, 0].into_iter().enumerate() {
        assert_eq!(connection.peer_addr().port(), ports[at]);
        let body = round.to_string();
        let confirm = publisher.publish("amq.topic", "to.queue", &body).unwrap();
        confirm.wait().unwrap();
        let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
        assert_eq!(delivery.body(), body.as_bytes());
        delivery.ack().unwrap();
        match round {
            3 => break,
            2 => nodes[0].restart(),
            _ => {}
        }
        nodes[at].signal("KILL");
        recovered(&events);
    }
}

#[test]
fn a_connection_closed_by_an_operator_recovers_until_its_login_is_refused() {
    logged::begin();
    let node = Node::start();
    let connection = Connection::open_with(
        node.options()
            .recovery(quick().give_up_on_refused_login(true)),
    )
    .unwrap();
    let events = connection.events();
    let channel = connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    let consumer = queue.consume().unwrap();
    node.ctl(&["close_all_connections", "maintenance"]);
    let told = recovered(&events);
    let Some(ConnectionEvent::Lost { cause }) = told.first() else {
        panic!("{told:?}");
    };
    assert_eq!(cause.reply_code(), Some(ReplyCode::CONNECTION_FORCED));
    assert!(cause.to_string().contains("maintenance"), "{cause}");
    queue.publish("m").unwrap();
    assert_eq!(consumer.recv_timeout(SOON).unwrap().unwrap().body(), b"m");
    // The log tells an operator what happened.
    assert!(logged::has(
        |line| line.contains("maintenance") && line.contains("reconnecting")
    ));
    assert!(logged::has(
        |line| line.contains("connected again to 127.0.0.1:")
    ));

    node.ctl(&["change_password", "guest", "another"]);
    node.ctl(&["close_all_connections", "new password"]);
    connection.wait_closed(SOON).unwrap();
    let cause = connection.close_cause().unwrap();
    let ErrorKind::RecoveryGivenUp { last, attempts, .. } = cause.kind() else {
        panic!("{cause}");
    };
    assert!(matches!(**last, ErrorKind::LoginRefused { .. }), "{cause}");
    assert_eq!(*attempts, 1);
    assert_eq!(consumer.recv().unwrap_err().kind(), cause.kind());
    assert_eq!(channel.basic_qos(1).unwrap_err().kind(), cause.kind());
}

#[test]
fn recovery_waits_for_a_node_with_growing_delays() {
    let mut node = Node::start();
    let options = node
        .options()
        .request_timeout(Duration::from_secs(4))
        .publish_timeout(Duration::from_secs(4));
    let connection = Connection::open_with(&options).unwrap();
    let events = connection.events();
    let channel = connection.open_channel().unwrap();
    let queue = channel
        .queue_declare("away", QueueDeclareOptions::default())
        .unwrap();
    node.sync_declarations();
    let publisher = channel.publisher().unwrap();
    let consuming = connection.open_channel().unwrap();
    let consumer = consuming
        .basic_consume(queue.name(), Default::default())
        .unwrap();
    node.signal("KILL");
    lost(&events);
    let recovering = |error: &leveret::Error| matches!(error.kind(), ErrorKind::Recovering { .. });
    // About six seconds with the default delays.
    let mut delays = Vec::new();
    while delays.len() < 5 {
        delays.extend(events.try_iter().filter_map(|event| match event {
            ConnectionEvent::RecoveryFailed { next, .. } => Some(next),
            _ => None,
        }));
        let error = channel.basic_qos(1).unwrap_err();
        assert!(recovering(&error), "{error}");
        let error = publisher
            .publish("", queue.name(), "never sent")
            .unwrap_err();
        assert!(recovering(&error), "{error}");
    }
    let publishing = thread::spawn({
        let (publisher, queue) = (publisher, queue.name().to_owned());
        move || loop {
            match publisher.publish("", &queue, "sent") {
                Err(error) => assert!(!error.may_have_been_sent(), "{error}"),
                Ok(confirm) => return confirm.wait_timeout(SOON).unwrap(),
            }
        }
    });
    node.restart();
    let told = recovered(&events);
    publishing.join().unwrap();
    assert_eq!(
        consumer.recv_timeout(SOON).unwrap().unwrap().body(),
        b"sent"
    );
    let Some(ConnectionEvent::Recovered { attempts, after }) = told.last() else {
        panic!("{told:?}");
    };
    assert!(*attempts > 5, "{attempts}");
    assert!(
        delays.windows(2).all(|it| it[0] <= it[1]) && *after > delays.iter().sum(),
        "{delays:?}, {after:?}"
    );
}

/// The number of threads and descriptors, and the memory in KiB, of this process.
#[cfg(target_os = "linux")]
fn in_use() -> (usize, usize, usize) {
    let count = |path| std::fs::read_dir(path).unwrap().count();
    let kib = resident_kib("self").unwrap();
    (count("/proc/self/task"), count("/proc/self/fd"), kib)
}

/// Runs in its own process, without other threads and sockets.
#[cfg(target_os = "linux")]
#[test]
fn a_thousand_recoveries_leak_no_threads_descriptors_or_memory() {
    let run = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "recovery::nodes::a_thousand_recoveries",
            "--ignored",
        ])
        .env("AMQP_URL", url())
        .output()
        .unwrap();
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stdout)
    );
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "run by the test above, in its own process"]
fn a_thousand_recoveries() {
    let lossy = Lossy::with(|options| options.recovery(quick().first_delay(Duration::ZERO)));
    let channel = lossy.connection.open_channel().unwrap();
    let publisher = lossy
        .connection
        .open_channel()
        .unwrap()
        .publisher()
        .unwrap();
    let queue = exclusive_queue(&channel);
    let consumer = queue.consume().unwrap();
    let recover = |times| {
        for _ in 0..times {
            let confirm = publisher.publish("", queue.name(), "m").unwrap();
            lossy.lose();
            // The message was confirmed before the loss, or it was republished after its queue got
            // another name. If the old queue is being deleted at that moment, RabbitMQ 4 can nack
            // the message, and older versions confirm it.
            if let Err(error) = confirm.wait_timeout(SOON) {
                let is_expected = match error.kind() {
                    ErrorKind::Nacked { .. } => version() >= (4, 0),
                    kind => matches!(kind, ErrorKind::Returned(_)),
                };
                assert!(is_expected, "{error}");
            }
            while consumer.try_recv().unwrap().is_some() {}
        }
    };
    recover(100);
    let before = in_use();
    recover(1000);
    // The last thread and socket may need a moment to end.
    eventually("no thread and no descriptor is left", || {
        let now = in_use();
        now.0 <= before.0 && now.1 <= before.1
    });
    let after = in_use();
    // The handle keeps one queue name for each recovery; nothing else may grow.
    assert!(
        after.2 < before.2 + 1024,
        "{before:?} became {after:?} (KiB)"
    );
}
