//! The in-memory broker: its faults, and what its inspection methods show. Most other tests also
//! run with the in-memory broker, and so show that it otherwise behaves like RabbitMQ.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use leveret::broker::{Broker, BrokerOptions};
use leveret::crossbeam_channel::bounded;
use leveret::{
    AckMode, Channel, Connection, ConnectionEvent, ConnectionOptions, ConsumeOptions, ErrorKind,
    FieldTable, Message, Queue, QueueDeclareOptions, RecoveryOptions, ReplyCode, Requeue,
    StreamOffset,
};

use crate::recovery::recovered;
use crate::support::proxy::{Direction, Proxy};
use crate::support::{eventually, SOON};

fn options(broker: &Broker) -> ConnectionOptions {
    ConnectionOptions::from_uri(&broker.uri()).unwrap()
}

/// The heartbeat of an [`impatient`] client and of its broker.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Longer than a client or a broker waits for a heartbeat, which is two intervals.
const LONG: Duration = HEARTBEAT.saturating_mul(3);

/// Options of a client that notices silence soon and does not reconnect.
fn impatient(broker: &Broker) -> ConnectionOptions {
    options(broker)
        .heartbeat(HEARTBEAT)
        .recovery(RecoveryOptions::none())
}

fn declare(channel: &Channel) -> Queue {
    channel
        .queue_declare("q", QueueDeclareOptions::default())
        .unwrap()
}

fn start() -> (Broker, Channel) {
    let broker = Broker::start().unwrap();
    let connection = Connection::open(broker.uri()).unwrap();
    let channel = connection.open_channel().unwrap();
    (broker, channel)
}

#[test]
fn brokers_are_independent_and_stop_when_dropped() {
    let brokers: Vec<_> = (0..50).map(|_| start()).collect();
    for (number, (broker, channel)) in brokers.iter().enumerate() {
        let name = format!("q{number}");
        let queue = channel
            .queue_declare(&name, QueueDeclareOptions::default())
            .unwrap();
        queue.publish("only here").unwrap();
        assert!(broker.wait_until(SOON, |it| it.queues().len() == 1
            && it.published().len() == 1));
        assert_eq!(broker.queues()[0].name, name);
    }
    let (broker, _channel) = brokers.into_iter().next().unwrap();
    let address = broker.address();
    drop(broker);
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn a_port_that_is_in_use_is_named_in_the_error() {
    let broker = Broker::start().unwrap();
    let address = broker.address();
    let options = BrokerOptions::default().port(address.port());
    let error = Broker::start_with(options).unwrap_err();
    let ErrorKind::ListenFailed {
        address: at,
        kind,
        text,
    } = error.kind()
    else {
        panic!("{error}");
    };
    assert_eq!(*at, address.to_string());
    assert_eq!(*kind, io::ErrorKind::AddrInUse);
    assert_eq!(error.to_string(), format!("cannot listen at {at}: {text}"));
    assert!(!error.is_connection_end() && !error.may_have_been_sent());
}

#[test]
fn inspection_shows_queues_connections_and_published_messages() {
    let (broker, channel) = start();
    assert_eq!(broker.queue("q"), None);
    let queue = declare(&channel);
    let message = Message::new("routed").header("n", 1);
    channel.basic_publish("", "q", message).unwrap();
    channel.basic_publish("amq.topic", "a.b", "lost").unwrap();
    queue.publish("second").unwrap();
    channel.basic_qos(1).unwrap();
    let consumer = queue.consume().unwrap();
    let delivery = consumer.recv().unwrap().unwrap();

    let state = broker.queue("q").unwrap();
    let counts = (state.ready, state.unacknowledged, state.consumers);
    assert_eq!(counts, (1, 1, 1));
    let connections = broker.connections();
    let [connection] = &connections[..] else {
        panic!("{connections:?}");
    };
    assert_eq!(connection.user, "guest");
    assert_eq!((connection.channels, connection.unacknowledged), (1, 1));
    let published = broker.published();
    let told: Vec<_> = published
        .iter()
        .map(|it| (it.exchange.as_str(), it.routing_key.as_str(), it.queues))
        .collect();
    assert_eq!(told, [("", "q", 1), ("amq.topic", "a.b", 0), ("", "q", 1)]);
    let headers = published[0].properties.headers.as_ref().unwrap();
    assert_eq!(headers.get("n").unwrap().as_i64(), Some(1));

    delivery.ack().unwrap();
    consumer.recv().unwrap().unwrap().ack().unwrap();
    let is_empty = |it: &Broker| it.queue("q").is_some_and(|it| it.unacknowledged == 0);
    assert!(broker.wait_until(SOON, is_empty));
    drop((delivery, consumer, queue, channel));
    assert!(broker.wait_until(SOON, |it| it.connections().is_empty()));
    assert!(!broker.wait_until(Duration::from_millis(20), |it| it.queue("q").is_none()));
}

#[test]
fn only_configured_users_and_vhosts_can_connect() {
    let settings = BrokerOptions::default()
        .user("bob", "secret")
        .vhost("orders");
    let shown = format!("{settings:?}");
    assert!(
        shown.contains("bob") && !shown.contains("secret"),
        "{shown}"
    );
    let broker = Broker::start_with(settings.published_limit(1)).unwrap();
    let bob = options(&broker).username("bob").password("secret");
    let connection = Connection::open_with(bob.clone().vhost("orders")).unwrap();
    let channel = connection.open_channel().unwrap();
    declare(&channel);
    for body in ["1", "2"] {
        channel.basic_publish("", "q", body).unwrap();
    }
    let came = |it: &Broker| it.queue_in("orders", "q").is_some_and(|it| it.ready == 2);
    assert!(broker.wait_until(SOON, came));
    assert_eq!(broker.queue("q"), None, "the queue is in another vhost");
    let published = broker.published();
    assert_eq!((published.len(), &published[0].body[..]), (1, &b"2"[..]));

    let refused = Connection::open_with(bob.clone().vhost("nope")).unwrap_err();
    assert_eq!(refused.reply_code(), Some(ReplyCode::NOT_ALLOWED));
    let refused = Connection::open_with(bob.password("wrong")).unwrap_err();
    assert_eq!(refused.reply_code(), Some(ReplyCode::ACCESS_REFUSED));
}

#[test]
fn connections_can_be_dropped_refused_and_accepted_again() {
    let (broker, channel) = start();
    let connection = channel.connection();
    let events = connection.events();
    broker.refuse_connections(true);
    broker.drop_connections();
    loop {
        if let ConnectionEvent::RecoveryFailed { .. } = events.recv_timeout(SOON).unwrap() {
            break;
        }
    }
    assert!(broker.connections().is_empty());
    broker.refuse_connections(false);
    recovered(&events);
    channel.basic_qos(1).unwrap();
}

#[test]
fn a_broker_that_stopped_answering_answers_pending_calls_later() {
    let (broker, channel) = start();
    broker.stop_answering(true);
    let short = Duration::from_millis(100);
    let hasty = options(&broker).connect_timeout(short);
    assert!(Connection::open_with(&hasty).unwrap_err().is_timeout());
    let declares = move || {
        channel
            .queue_declare("q", QueueDeclareOptions::default())
            .map(drop)
    };
    let asked = thread::spawn(declares);
    assert!(!broker.wait_until(short, |it| it.queue("q").is_some()));
    broker.stop_answering(false);
    asked.join().unwrap().unwrap();
    assert!(broker.queue("q").is_some());
}

#[test]
fn a_client_notices_when_heartbeats_stop() {
    let broker = Broker::start().unwrap();
    let options = impatient(&broker);
    let connection = Connection::open_with(&options).unwrap();
    // The connection stays open while heartbeats come.
    thread::sleep(LONG);
    assert!(connection.is_open());
    broker.stop_heartbeats(true);
    connection.wait_closed(SOON).unwrap();
    let cause = connection.close_cause().unwrap();
    assert!(
        matches!(cause.kind(), ErrorKind::HeartbeatMissed { .. }),
        "{cause}"
    );
}

#[test]
fn a_client_gets_heartbeats_from_a_broker_that_proposes_none() {
    let proposes_none = BrokerOptions::default().heartbeat(Duration::ZERO);
    let broker = Broker::start_with(proposes_none).unwrap();
    let connection = Connection::open_with(impatient(&broker)).unwrap();
    assert_eq!(connection.server_heartbeat(), Duration::ZERO);
    assert_eq!(connection.heartbeat(), HEARTBEAT);
    // Both sides send heartbeats, so neither takes the other for dead.
    thread::sleep(LONG);
    assert!(connection.is_open());
    broker.stop_heartbeats(true);
    connection.wait_closed(SOON).unwrap();

    let without = impatient(&broker).heartbeat(Duration::ZERO);
    let connection = Connection::open_with(&without).unwrap();
    assert_eq!(connection.heartbeat(), Duration::ZERO);
}

#[test]
fn a_silent_client_is_dropped_and_its_messages_are_requeued() {
    let broker = Broker::start().unwrap();
    let proxy = Proxy::start(&broker.uri());
    let options = proxy.options().heartbeat(HEARTBEAT);
    let channel = Connection::open_with(&options)
        .unwrap()
        .open_channel()
        .unwrap();
    let queue = declare(&channel);
    queue.publish("unacknowledged").unwrap();
    let consumer = queue.consume().unwrap();
    let _delivery = consumer.recv().unwrap().unwrap();
    // The client cannot reconnect either.
    proxy.refuse(true);
    proxy.drop_all(Direction::ToBroker);
    let is_back =
        |it: &Broker| it.connections().is_empty() && it.queue("q").is_some_and(|it| it.ready == 1);
    assert!(broker.wait_until(SOON, is_back), "{:?}", broker.queues());
}

#[test]
fn publishers_can_be_blocked_with_a_reason_and_unblocked() {
    let (broker, channel) = start();
    let connection = channel.connection();
    let events = connection.events();
    declare(&channel);
    broker.block("low on memory");
    let event = events.recv_timeout(SOON).unwrap();
    assert!(
        matches!(&event, ConnectionEvent::Blocked { reason } if reason == "low on memory"),
        "{event:?}"
    );
    // A connection that opens now learns the reason, too.
    let late = Connection::open(broker.uri()).unwrap();
    eventually("the new connection is blocked", || {
        late.blocked_reason().is_some()
    });
    let publishing = thread::spawn({
        let channel = channel.clone();
        move || channel.publisher()?.publish("", "q", "held up")?.wait()
    });
    assert!(!broker.wait_until(Duration::from_millis(50), |it| !it.published().is_empty()));
    broker.unblock();
    publishing.join().unwrap().unwrap();
}

#[test]
fn the_next_messages_can_be_nacked() {
    let (broker, channel) = start();
    declare(&channel);
    let publisher = channel.publisher().unwrap();
    publisher
        .publish("", "q", "before")
        .unwrap()
        .wait()
        .unwrap();
    broker.nack_next(2);
    let outcomes: Vec<_> = (0..4)
        .map(|_| publisher.publish("", "q", "body").unwrap())
        .collect();
    let outcomes: Vec<_> = outcomes.iter().map(|it| it.wait().is_ok()).collect();
    assert_eq!(outcomes, [false, false, true, true]);
    assert_eq!(
        broker.queue("q").unwrap().ready,
        3,
        "no refused message is in the queue"
    );
}

#[test]
fn channels_and_connections_can_be_closed_with_a_code_and_a_text() {
    let (broker, channel) = start();
    broker.close_channels(ReplyCode::RESOURCE_ERROR, "no more");
    eventually("the channel is closed", || !channel.is_open());
    let cause = channel.close_cause().unwrap();
    assert_eq!(cause.reply_code(), Some(ReplyCode::RESOURCE_ERROR));
    assert!(
        cause.to_string().contains("RESOURCE_ERROR - no more"),
        "{cause}"
    );

    let options = options(&broker).recovery(RecoveryOptions::none());
    let connection = Connection::open_with(&options).unwrap();
    broker.close_connections(ReplyCode::CONNECTION_FORCED, "maintenance");
    connection.wait_closed(SOON).unwrap();
    let cause = connection.close_cause().unwrap();
    assert!(
        cause
            .to_string()
            .contains("320 CONNECTION_FORCED - maintenance"),
        "{cause}"
    );
}

#[test]
fn replies_can_be_delayed() {
    let (broker, channel) = start();
    let delay = Duration::from_millis(150);
    broker.delay(delay);
    let begin = Instant::now();
    channel.basic_qos(1).unwrap();
    assert!(begin.elapsed() >= delay);
    broker.delay(Duration::ZERO);
    channel.basic_qos(2).unwrap();
}

#[test]
fn a_consumer_can_be_timed_out_and_its_messages_are_redelivered() {
    let (broker, channel) = start();
    let queue = declare(&channel);
    for body in ["in hand", "unread", "never sent"] {
        queue.publish(body).unwrap();
    }
    channel.basic_qos(2).unwrap();
    let options = ConsumeOptions::default().consumer_tag("slow");
    let consumer = queue.consume_with(options.clone()).unwrap();
    eventually("the consumer has two messages", || consumer.unread() == 2);
    let in_hand = consumer.recv().unwrap().unwrap();
    assert_eq!(broker.time_out_consumers("q"), 1);
    eventually("the client has cancelled the consumer", || {
        broker.queue("q").unwrap().consumers == 0
    });
    let error = consumer.recv().unwrap_err();
    assert_eq!(
        error.to_string(),
        "consumer \"slow\" was cancelled by the broker"
    );
    in_hand.ack().unwrap();
    let consumer = queue.consume_with(options).unwrap();
    for body in ["in hand", "unread", "never sent"] {
        let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
        assert_eq!(delivery.body(), body.as_bytes());
        delivery.ack().unwrap();
    }
    assert!(broker.wait_until(SOON, |it| {
        let queue = it.queue("q").unwrap();
        queue.ready == 0 && queue.unacknowledged == 0 && queue.consumers == 1
    }));
    assert_eq!(channel.connection().loss_count(), 0);
}

#[test]
fn consumers_can_be_cancelled_by_the_broker() {
    let (broker, channel) = start();
    let queue = declare(&channel);
    let consumer = queue.consume().unwrap();
    assert_eq!(broker.cancel_consumers("none"), 0);
    assert_eq!(broker.cancel_consumers("q"), 1);
    let error = consumer.recv().unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::ConsumerCancelled { .. }),
        "{error}"
    );
    assert_eq!(broker.queue("q").unwrap().consumers, 0);
}

#[test]
fn a_restart_keeps_durable_entities_and_persistent_messages() {
    let (broker, channel) = start();
    let durable = QueueDeclareOptions::default;
    channel.queue_declare("kept", durable()).unwrap();
    channel
        .queue_declare("gone", QueueDeclareOptions::temporary())
        .unwrap();
    channel
        .queue_bind("kept", "amq.direct", "k", FieldTable::new())
        .unwrap();
    let publisher = channel.publisher().unwrap();
    for message in [
        Message::new("persistent").persistent(true),
        Message::new("not"),
    ] {
        publisher
            .publish("amq.direct", "k", message)
            .unwrap()
            .wait()
            .unwrap();
    }
    let address = broker.address();
    channel.connection().close().unwrap();
    broker.restart();
    assert_eq!(broker.address(), address);
    let names: Vec<_> = broker.queues().into_iter().map(|it| it.name).collect();
    assert_eq!(names, ["kept"]);
    let channel = Connection::open(broker.uri())
        .unwrap()
        .open_channel()
        .unwrap();
    channel
        .basic_publish("amq.direct", "k", "still bound")
        .unwrap();
    let bodies: Vec<_> =
        std::iter::from_fn(|| channel.basic_get("kept", AckMode::Automatic).unwrap())
            .map(|it| String::from_utf8(it.body().to_vec()).unwrap())
            .collect();
    assert_eq!(bodies, ["persistent", "still bound"]);
}

#[test]
fn deliveries_wait_in_the_queue_while_the_client_does_not_read() {
    let (broker, channel) = start();
    declare(&channel);
    let publisher = channel.publisher().unwrap();
    for _ in 0..64 {
        publisher.publish("", "q", vec![0; 1 << 20]).unwrap();
    }
    publisher.wait_for_confirms().unwrap();
    // The client stops reading its socket at this many unread bytes.
    let slow = options(&broker).max_unread_bytes(1 << 20);
    let slow = Connection::open_with(&slow)
        .unwrap()
        .open_channel()
        .unwrap();
    let options = ConsumeOptions::default().no_ack(true);
    let consumer = slow.basic_consume("q", options).unwrap();
    assert!(broker.wait_until(SOON, |it| it.queue("q").is_some_and(|it| it.ready < 64)));
    let comes_to_rest = |it: &Broker| it.queue("q").is_some_and(|it| it.ready < 32);
    assert!(!broker.wait_until(Duration::from_millis(200), comes_to_rest));
    for _ in 0..64 {
        assert_eq!(consumer.recv().unwrap().unwrap().body().len(), 1 << 20);
    }
}

/// What the broker answers to these bytes until it closes the connection.
fn answer_to(broker: &Broker, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(broker.address()).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    // The read may end with a reset, since the broker leaves bytes unread.
    let _ = socket.read_to_end(&mut answer);
    answer
}

#[test]
fn bytes_that_are_not_amqp_are_answered_and_leave_others_alone() {
    let (broker, channel) = start();
    assert_eq!(
        answer_to(&broker, b"GET / HTTP/1.1\r\n\r\n"),
        b"AMQP\x00\x00\x09\x01"
    );
    let answer = answer_to(&broker, b"AMQP\x00\x00\x09\x01\x07no frame at all");
    let text = String::from_utf8_lossy(&answer);
    assert!(text.contains("FRAME_ERROR - "), "{text}");
    channel.basic_qos(1).unwrap();
}

#[test]
fn a_connection_blocked_for_longer_than_its_heartbeats_stays_open() {
    let broker = Broker::start().unwrap();
    let options = impatient(&broker);
    let connection = Connection::open_with(&options).unwrap();
    let channel = connection.open_channel().unwrap();
    declare(&channel);
    let publisher = channel.publisher().unwrap();
    // The broker is blocked, but the client does not know yet.
    broker.delay(Duration::from_millis(100));
    broker.block("low on disk");
    let confirm = publisher.publish("", "q", "held up").unwrap();
    thread::sleep(LONG);
    broker.delay(Duration::ZERO);
    broker.unblock();
    confirm.wait().unwrap();
    assert!(connection.is_open());
}

#[test]
fn messages_requeued_by_a_restart_go_to_no_connection_that_is_cut_too() {
    let broker = Broker::start().unwrap();
    let options = options(&broker).recovery(RecoveryOptions::none());
    let connect = || {
        Connection::open_with(&options)
            .unwrap()
            .open_channel()
            .unwrap()
    };
    let (first, second) = (connect(), connect());
    let queue = first
        .queue_declare("q", QueueDeclareOptions::default())
        .unwrap();
    let keeping = queue.consume().unwrap();
    queue
        .publish(Message::new("kept").persistent(true))
        .unwrap();
    let _delivery = keeping.recv().unwrap().unwrap();
    let no_ack = ConsumeOptions::default().no_ack(true);
    let _losing = second.basic_consume("q", no_ack).unwrap();
    broker.restart();
    assert_eq!(broker.queue("q").unwrap().ready, 1);
}

#[test]
fn a_dead_letter_with_a_routing_key_that_no_frame_can_carry_costs_no_connection() {
    let (_broker, channel) = start();
    let dead = channel
        .queue_declare("dead", QueueDeclareOptions::default())
        .unwrap();
    channel
        .queue_bind("dead", "amq.fanout", "", FieldTable::new())
        .unwrap();
    let options = QueueDeclareOptions::default()
        .dead_letter_exchange("amq.fanout")
        .dead_letter_routing_key("k".repeat(256));
    let queue = channel.queue_declare("q", options).unwrap();
    queue.publish("dead letter").unwrap();
    let consumer = dead.consume().unwrap();
    queue.get().unwrap().unwrap().reject(Requeue::No).unwrap();
    dead.publish("next").unwrap();
    let next = consumer.recv_timeout(SOON).unwrap().unwrap();
    assert_eq!(next.body(), b"next");
}

#[test]
fn a_stream_consumer_can_be_dropped_unread_while_its_connection_is_recovered() {
    let (broker, channel) = start();
    let queue = declare(&channel);
    channel.basic_qos(10).unwrap();
    // The options make it a consumer of a stream, which keeps unread messages when the connection
    // is lost.
    let options = ConsumeOptions::default().stream_offset(StreamOffset::First);
    let consumer = queue.consume_with(options).unwrap();
    queue.publish("unread").unwrap();
    eventually("the message is unread", || consumer.unread() == 1);
    let connection = channel.connection().clone();
    let events = connection.events();
    broker.refuse_connections(true);
    broker.drop_connections();
    eventually("the loss is known", || connection.loss_cause().is_some());
    let (dropped, is_dropped) = bounded(1);
    let dropping = thread::spawn(move || {
        drop(consumer);
        dropped.send(()).unwrap();
    });
    is_dropped.recv_timeout(SOON).expect("the drop returns");
    dropping.join().unwrap();
    broker.refuse_connections(false);
    recovered(&events);
    assert_eq!(
        queue.get_with(AckMode::Automatic).unwrap().unwrap().body(),
        b"unread"
    );
}
