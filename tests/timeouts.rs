//! Every call ends by its timeout, and a call that timed out does not harm the next one.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use leveret::{
    AckMode, ClosedBy, Connection, ConnectionEvent, ConsumeOptions, ErrorKind, PublisherOptions,
    QueueDeclareOptions,
};

use crate::support::{
    at, eventually, exclusive_queue, logged, ready, scripted_server, short, shortest_of_ten, Node,
    SOON,
};

/// A timeout that the test waits for.
const SHORT: Duration = Duration::from_millis(300);
/// A timeout that some calls wait for; others must be answered within it, even on a busy machine.
const MODERATE: Duration = Duration::from_secs(2);

/// Opens a connection to a scripted server, with a moderate request timeout.
fn connect_to(address: SocketAddr) -> Connection {
    let options = at(address).request_timeout(MODERATE);
    Connection::open_with(&options).unwrap()
}

#[test]
fn a_late_reply_is_dropped_and_the_next_call_gets_its_own() {
    let (address, server) = scripted_server(|server| {
        server.handshake(0);
        server.open_channel();
        server.expect(50, 10);
        // The client gives up on the first declare and sends another. Then the server answers both.
        server.expect(50, 10);
        for name in ["first", "second"] {
            let arguments = [short(name), vec![0; 8]].concat();
            server.send_method(1, 50, 11, &arguments);
        }
        server.wait_for_end();
    });
    let connection = connect_to(address);
    let channel = connection.open_channel().unwrap();
    let error = channel
        .queue_declare("first", QueueDeclareOptions::default())
        .unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::TimedOut { after: MODERATE });
    assert_eq!(
        error.to_string(),
        "queue.declare \"first\": timed out after 2s"
    );
    let second = channel
        .queue_declare("second", QueueDeclareOptions::default())
        .unwrap();
    assert_eq!(second.name(), "second");
    drop((second, channel, connection));
    server.join().unwrap();
}

#[test]
fn a_timed_out_consume_is_cancelled_only_after_consume_ok() {
    let (address, server) = scripted_server(|server| {
        server.handshake(0);
        server.open_channel();
        server.expect(60, 20);
        // A cancel here would crash a RabbitMQ channel that is still busy with the consume.
        server.expect(60, 10);
        server.send_method(1, 60, 11, b"");
        server.expect(60, 10);
        server.send_method(1, 60, 21, &short("c"));
        server.expect(60, 30);
        server.send_method(1, 60, 11, b"");
        server.send_method(1, 60, 31, &short("c"));
        server.wait_for_end();
    });
    let connection = connect_to(address);
    let channel = connection.open_channel().unwrap();
    let consume = ConsumeOptions::default().consumer_tag("c");
    assert!(channel
        .basic_consume("q", consume)
        .unwrap_err()
        .is_timeout());
    channel.basic_qos(1).unwrap();
    channel.basic_qos(2).unwrap();
    drop((channel, connection));
    server.join().unwrap();
}

#[test]
fn a_cancel_by_tag_is_sent_after_consume_ok() {
    let (go, went) = std::sync::mpsc::channel();
    let (tell, told) = std::sync::mpsc::channel();
    let (address, server) = scripted_server(move |server| {
        server.handshake(0);
        server.open_channel();
        server.expect(60, 20);
        tell.send(()).unwrap();
        went.recv().unwrap();
        // The program asked for the cancel before this call, but the client has not sent it yet.
        server.expect(60, 10);
        server.send_method(1, 60, 11, b"");
        server.send_method(1, 60, 21, &short("c"));
        server.expect(60, 30);
        server.send_method(1, 60, 31, &short("c"));
    });
    let options = at(address).request_timeout(SOON);
    let connection = Connection::open_with(&options).unwrap();
    let channel = connection.open_channel().unwrap();
    let consuming = std::thread::spawn({
        let channel = channel.clone();
        move || {
            let consume = ConsumeOptions::default().consumer_tag("c");
            let consumer = channel.basic_consume("q", consume).unwrap();
            assert!(consumer.recv().unwrap().is_none());
        }
    });
    told.recv().unwrap();
    channel.basic_cancel_no_wait("c").unwrap();
    go.send(()).unwrap();
    channel.basic_qos(1).unwrap();
    consuming.join().unwrap();
    drop((channel, connection));
    server.join().unwrap();
}

#[test]
fn closing_the_channel_wakes_a_waiting_publisher() {
    let (tell, told) = std::sync::mpsc::channel();
    let (address, server) = scripted_server(move |server| {
        server.handshake(0);
        server.open_channel();
        server.send_method(0, 10, 60, &short("no memory"));
        tell.send(()).unwrap();
        server.expect(20, 40);
        server.wait_for_end();
    });
    let options = at(address)
        .request_timeout(MODERATE)
        .publish_timeout(10 * SOON);
    let connection = Connection::open_with(&options).unwrap();
    let channel = connection.open_channel().unwrap();
    told.recv().unwrap();
    eventually("the connection is blocked", || {
        connection.blocked_reason().is_some()
    });
    let publisher = std::thread::spawn({
        let channel = channel.clone();
        move || channel.basic_publish("", "q", "m").unwrap_err()
    });
    // The broker does not answer the close, but the publisher need not wait for that.
    assert!(channel.close().unwrap_err().is_timeout());
    eventually("the publisher has returned", || publisher.is_finished());
    let error = publisher.join().unwrap();
    assert_eq!(error.closed_by(), Some(ClosedBy::Program), "{error}");
    drop((channel, connection));
    server.join().unwrap();
}

#[test]
fn timeouts_on_a_blocked_connection_say_that_it_is_blocked() {
    let (address, server) = scripted_server(|server| {
        server.handshake(0);
        server.open_channel();
        server.expect(85, 10);
        server.send_method(1, 85, 11, &[]);
        server.expect(60, 40);
        server.send_method(0, 10, 60, &short("low on memory"));
        server.wait_for_end();
    });
    let options = at(address).request_timeout(MODERATE);
    let options = options.publish_timeout(SHORT);
    let connection = Connection::open_with(&options).unwrap();
    let publisher = connection.open_channel().unwrap().publisher().unwrap();
    let confirm = publisher.publish("", "q", "m").unwrap();
    eventually("the connection is blocked", || {
        connection.blocked_reason().is_some()
    });
    let channel = publisher.channel();
    let errors = [
        channel.queue_purge("q").unwrap_err(),
        connection.open_channel().unwrap_err(),
        confirm.wait_timeout(SHORT).unwrap_err(),
        channel.wait_for_confirms().unwrap_err(),
        publisher.wait_for_confirms_timeout(SHORT).unwrap_err(),
        publisher.publish("", "q", "m").map(drop).unwrap_err(),
        channel.close().unwrap_err(),
        connection.close_timeout(SHORT).unwrap_err(),
    ];
    for error in errors {
        assert!(error.is_timeout(), "{error}");
        let reason = "the broker has blocked the connection (low on memory)";
        assert_eq!(error.to_string().matches(reason).count(), 1, "{error}");
    }
    server.join().unwrap();
}

#[test]
fn a_panic_of_the_logger_ends_every_wait() {
    logged::begin();
    let (address, server) = scripted_server(|server| {
        server.handshake(0);
        server.open_channel();
        server.expect(60, 20);
        server.send_method(1, 60, 21, &short("c"));
        server.expect(60, 10);
        server.send_method(0, 10, 60, &short(logged::PANIC));
        server.wait_for_end();
    });
    let options = at(address).request_timeout(10 * SOON);
    let connection = Connection::open_with(&options).unwrap();
    let channel = connection.open_channel().unwrap();
    let consume = ConsumeOptions::default().consumer_tag("c");
    let consumer = channel.basic_consume("q", consume).unwrap();
    let errors = [
        channel.basic_qos(1).unwrap_err(),
        consumer.recv().unwrap_err(),
        connection.open_channel().unwrap_err(),
        connection.close_cause().unwrap(),
    ];
    for error in errors {
        let ErrorKind::Panicked { thread, message } = error.kind() else {
            panic!("{error}");
        };
        assert_eq!(*thread, "IO thread");
        assert_eq!(message, "the test logger panics");
        assert!(error.is_connection_end());
    }
    connection.wait_closed(SOON).unwrap();
    server.join().unwrap();
}

#[test]
fn a_message_fetched_too_late_is_requeued() {
    let (address, server) = scripted_server(|server| {
        server.handshake(0);
        server.open_channel();
        server.expect(60, 70);
        server.expect(60, 10);
        let get_ok = [
            b"\0\0\0\0\0\0\0\x09\0".to_vec(),
            short("x"),
            short("k"),
            vec![0; 4],
        ]
        .concat();
        server.send_method(1, 60, 71, &get_ok);
        server.send_content(1, b"too late");
        server.send_method(1, 60, 11, b"");
        server.expect(60, 120);
        server.wait_for_end();
    });
    let connection = connect_to(address);
    let channel = connection.open_channel().unwrap();
    assert!(channel
        .basic_get("q", AckMode::Manual)
        .unwrap_err()
        .is_timeout());
    channel.basic_qos(1).unwrap();
    drop((channel, connection));
    server.join().unwrap();
}

#[test]
fn after_a_broker_pause_all_handles_work_again() {
    let node = Node::start();
    let options = node
        .options()
        .request_timeout(MODERATE)
        .publish_timeout(SHORT)
        .heartbeat(Duration::ZERO);
    let connection = Connection::open_with(&options).unwrap();
    let channel = connection.open_channel().unwrap();
    let fetcher = connection.open_channel().unwrap();
    let consuming = connection.open_channel().unwrap();
    let publisher = Connection::open_with(&options)
        .unwrap()
        .open_channel()
        .unwrap();
    let queue = exclusive_queue(&channel);
    queue.publish("fetched late").unwrap();
    eventually("the message is in the queue", || {
        ready(&channel, queue.name()) == 1
    });

    node.signal("STOP");
    let timed_out = ErrorKind::TimedOut { after: MODERATE };
    assert_eq!(*channel.basic_qos(5).unwrap_err().kind(), timed_out);
    assert_eq!(
        *fetcher
            .basic_get(queue.name(), AckMode::Manual)
            .unwrap_err()
            .kind(),
        timed_out
    );
    let refused = consuming.basic_consume(queue.name(), ConsumeOptions::default());
    assert_eq!(*refused.unwrap_err().kind(), timed_out);
    assert_eq!(*connection.open_channel().unwrap_err().kind(), timed_out);
    // Publishing continues until the socket and the outbox are full.
    let body = vec![0; 100_000];
    let begin = Instant::now();
    let error = (0..10_000)
        .find_map(|_| publisher.basic_publish("", "nowhere", &body).err())
        .expect("the outbox is full in the end");
    assert_eq!(*error.kind(), ErrorKind::OutboxFull { after: SHORT });
    assert!(begin.elapsed() < SOON);
    let connecting = options.connect_timeout(SHORT);
    let error = Connection::open_with(&connecting).unwrap_err();
    let timed_out = ErrorKind::TimedOut { after: SHORT };
    assert_eq!(*error.kind(), timed_out, "{error}");
    assert!(
        error.to_string().contains("waiting for connection.start"),
        "{error}"
    );

    node.signal("CONT");
    // Messages fetched or delivered for calls that gave up are requeued, and all handles work.
    // RabbitMQ has a process for each channel: one can answer before another has started.
    for channel in [&channel, &fetcher, &consuming] {
        eventually("the broker is back", || channel.basic_qos(5).is_ok());
    }
    eventually("the message is requeued", || {
        matches!(channel.queue_declare_passive(queue.name()), Ok(queue)
            if queue.message_count() == Some(1) && queue.consumer_count() == Some(0))
    });
    let message = queue.get_with(AckMode::Automatic).unwrap().unwrap();
    assert_eq!(
        (message.body(), message.redelivered()),
        (&b"fetched late"[..], true)
    );
    eventually("publishing works again", || {
        publisher.basic_publish("", "nowhere", &body).is_ok()
    });
    publisher.close().unwrap();
    assert_eq!(
        connection.open_channel().unwrap().number(),
        4,
        "the channel that opened late was closed"
    );
}

#[test]
fn a_blocked_connection_reports_the_reason_and_continues_when_unblocked() {
    let node = Node::start();
    let options = node
        .options()
        .publish_timeout(SHORT)
        .request_timeout(MODERATE);
    let connection = Connection::open_with(&options).unwrap();
    let channel = connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    let consumer = queue.consume().unwrap();
    assert_eq!(connection.blocked_reason(), None);
    let events = connection.events();
    let publisher = channel
        .publisher_with(PublisherOptions::default().window(1).confirm_timeout(SHORT))
        .unwrap();

    queue.publish("acknowledged in between").unwrap();
    let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();

    node.ctl(&["set_vm_memory_high_watermark", "0.00001"]);
    // The broker blocks connections that publish.
    queue.publish("the last one").unwrap();
    eventually("the connection is blocked", || {
        connection.blocked_reason().is_some()
    });
    let error = queue.publish("one more").unwrap_err();
    let ErrorKind::ConnectionBlocked { reason, after } = error.kind() else {
        panic!("{error}");
    };
    assert_eq!((reason.as_str(), *after), ("low on memory", SHORT));
    assert!(error.is_timeout() && !error.may_have_been_sent());
    let event = events.recv_timeout(SOON).unwrap();
    assert!(
        matches!(&event, ConnectionEvent::Blocked { reason } if reason == "low on memory"),
        "{event:?}"
    );
    // Calls that do not wait fail at once.
    let took = shortest_of_ten(|| {
        let errors = [
            channel
                .try_basic_publish("", queue.name(), "m")
                .unwrap_err(),
            publisher.try_publish("", queue.name(), "m").unwrap_err(),
        ];
        for error in errors {
            let text = error.to_string();
            let end = "the broker has blocked the connection (low on memory)";
            assert!(text.ends_with(end), "{text}");
        }
    });
    assert!(took < SHORT, "{took:?}");
    let error = publisher.publish("", queue.name(), "m").unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::ConnectionBlocked { .. }),
        "{error}"
    );
    // Other methods are sent: the broker does not read from a blocked connection, and answers
    // later.
    let calling = connection.open_channel();
    assert!(calling.unwrap_err().is_timeout());
    delivery.ack().unwrap();

    // A publisher with a longer timeout succeeds.
    let waiting = std::thread::spawn({
        let patient = Connection::open_with(node.options())
            .unwrap()
            .open_channel()
            .unwrap();
        let name = queue.name().to_owned();
        move || {
            patient.basic_publish("", &name, "first").unwrap();
            let connection = patient.connection();
            eventually("the second connection is blocked", || {
                connection.blocked_reason().is_some()
            });
            patient.basic_publish("", &name, "patient").unwrap();
            patient.close().unwrap();
        }
    });
    eventually("both connections are blocked", || {
        node.ctl(&["list_connections", "state"])
            .matches("blocked")
            .count()
            == 2
    });
    node.ctl(&["set_vm_memory_high_watermark", "0.4"]);
    waiting.join().unwrap();
    eventually("the connection is unblocked", || {
        connection.blocked_reason().is_none()
    });
    let event = events.recv_timeout(SOON).unwrap();
    assert!(matches!(event, ConnectionEvent::Unblocked), "{event:?}");
    assert!(channel.channel_flow(true).unwrap());
    publisher
        .publish("", queue.name(), "goes on")
        .unwrap()
        .wait_timeout(SOON)
        .unwrap();
    for _ in 0..4 {
        consumer.recv_timeout(SOON).unwrap().unwrap().ack().unwrap();
    }
    connection.close().unwrap();
    let event = events.recv_timeout(SOON).unwrap();
    assert!(
        matches!(&event, ConnectionEvent::Closed { cause } if cause.closed_by() == Some(ClosedBy::Program)),
        "{event:?}"
    );
    assert!(events.recv().is_err());
}
