//! The in-memory broker, frame by frame: what it sends after it closes a channel, and how it times
//! out consumers.

use std::net::TcpStream;

use leveret::broker::Broker;
use leveret::{AckMode, Channel, Connection, Publisher, QueueDeclareOptions, ReplyCode, Requeue};

use crate::support::{content_frames, frame, method_frame, short, Script, SOON};

/// What a client receives on its channels, with content in one piece.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Method(u16, (u16, u16)),
    /// `basic.deliver` to a consumer: its tag, the delivery tag, whether it was redelivered, the
    /// body.
    Message(String, u64, bool, String),
    /// `basic.cancel` for this consumer, with no-wait set.
    Cancelled(String),
    /// `channel.close` with this code.
    Closed(u16),
}

/// A client that writes its frames by hand, with channels 1 and 2 open.
struct Client(Script);

fn connect(broker: &Broker) -> Client {
    let capability = [&short("consumer_cancel_notify")[..], b"t\x01"].concat();
    connect_with(broker, &capability)
}

fn connect_with(broker: &Broker, capabilities: &[u8]) -> Client {
    let socket = TcpStream::connect(broker.address()).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let mut client = Script::over(socket);
    client.send(b"AMQP\0\0\x09\x01");
    client.expect(10, 10);
    let properties = [&short("capabilities")[..], b"F", &long(capabilities)].concat();
    let start_ok = [
        &long(&properties)[..],
        &short("PLAIN"),
        &long(b"\0guest\0guest"),
        &short("en_US"),
    ];
    client.send_method(0, 10, 11, &start_ok.concat());
    client.expect(10, 30);
    // Accept the broker's channel_max and frame_max, without heartbeats.
    client.send_method(0, 10, 31, &[0x07, 0xff, 0, 2, 0, 0, 0, 0]);
    client.send_method(0, 10, 40, &[&short("/")[..], b"\0\0"].concat());
    client.expect(10, 41);
    for channel in 1..=2 {
        client.send_method(channel, 20, 10, b"\0");
        client.expect(20, 11);
    }
    Client(client)
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

// ---- frames on channel 1 ----

fn qos(prefetch: u16) -> Vec<u8> {
    let prefetch = prefetch.to_be_bytes();
    method_frame(1, 60, 10, &[&[0; 4], &prefetch[..], &[0]].concat())
}

const NO_ACK: u8 = 2;

fn consume(queue: &str, consumer_tag: &str, flags: u8) -> Vec<u8> {
    let names = [short(queue), short(consumer_tag)].concat();
    method_frame(
        1,
        60,
        20,
        &[&[0; 2], &names[..], &[flags], &[0; 4]].concat(),
    )
}

fn cancel(consumer_tag: &str) -> Vec<u8> {
    method_frame(1, 60, 30, &[&short(consumer_tag)[..], b"\0"].concat())
}

fn cancel_ok(consumer_tag: &str) -> Vec<u8> {
    method_frame(1, 60, 31, &short(consumer_tag))
}

fn settle(method: u16, delivery_tag: u64, flags: u8) -> Vec<u8> {
    let arguments = [&delivery_tag.to_be_bytes()[..], &[flags]].concat();
    method_frame(1, 60, method, &arguments)
}

fn ack(delivery_tag: u64) -> Vec<u8> {
    settle(80, delivery_tag, 0)
}

fn ack_all() -> Vec<u8> {
    settle(80, 0, 1)
}

fn reject(delivery_tag: u64, requeue: bool) -> Vec<u8> {
    settle(90, delivery_tag, requeue.into())
}

fn nack(delivery_tag: u64, requeue: bool) -> Vec<u8> {
    settle(120, delivery_tag, u8::from(requeue) << 1)
}

/// Costs the channel: a passive declaration of a queue that does not exist.
fn mistake() -> Vec<u8> {
    let arguments = [&[0; 2], &short("missing")[..], &[1], &[0; 4]].concat();
    method_frame(1, 50, 10, &arguments)
}

fn publish(queue: &str, body: &str) -> Vec<u8> {
    let names = [short(""), short(queue)].concat();
    let method = method_frame(1, 60, 40, &[&[0; 2], &names[..], &[0]].concat());
    [method, content_frames(1, body.as_bytes())].concat()
}

fn open() -> Vec<u8> {
    method_frame(1, 20, 10, b"\0")
}

fn close() -> Vec<u8> {
    method_frame(1, 20, 40, &[0; 7])
}

fn close_ok() -> Vec<u8> {
    method_frame(1, 20, 41, &[])
}

const OPEN_OK: Heard = Heard::Method(1, (20, 11));
const CLOSE_OK: Heard = Heard::Method(1, (20, 41));
const QOS_OK: Heard = Heard::Method(1, (60, 11));
const CONSUME_OK: Heard = Heard::Method(1, (60, 21));
const CANCEL_OK: Heard = Heard::Method(1, (60, 31));
const NOT_FOUND: Heard = Heard::Closed(404);

fn message(consumer_tag: &str, delivery_tag: u64, redelivered: bool, body: &str) -> Heard {
    Heard::Message(
        consumer_tag.to_owned(),
        delivery_tag,
        redelivered,
        body.to_owned(),
    )
}

fn cancelled(consumer_tag: &str) -> Heard {
    Heard::Cancelled(consumer_tag.to_owned())
}

impl Client {
    /// Sends the frames in one write, so that the broker reads them at once.
    fn send(&mut self, frames: &[Vec<u8>]) {
        self.0.send(&frames.concat());
    }

    fn next(&mut self) -> Heard {
        let frame = self.0.next_frame();
        let number = |at: usize| u16::from_be_bytes([frame.payload[at], frame.payload[at + 1]]);
        match frame.method().unwrap() {
            (60, 60) => {
                let (_, rest) = frame.payload.split_at(4);
                let (consumer_tag, rest) = rest[1..].split_at(rest[0].into());
                let delivery_tag = u64::from_be_bytes(rest[..8].try_into().unwrap());
                let consumer_tag = String::from_utf8(consumer_tag.to_vec()).unwrap();
                let body = self.body(frame.channel);
                Heard::Message(consumer_tag, delivery_tag, rest[8] == 1, body)
            }
            (60, 30) => {
                let (consumer_tag, rest) = frame.payload[5..].split_at(frame.payload[4].into());
                assert_eq!(rest, [1], "no-wait is set");
                Heard::Cancelled(String::from_utf8(consumer_tag.to_vec()).unwrap())
            }
            (20, 40) => Heard::Closed(number(4)),
            method => Heard::Method(frame.channel, method),
        }
    }

    fn body(&mut self, channel: u16) -> String {
        let header = self.0.next_frame();
        assert_eq!((header.kind, header.channel), (2, channel));
        let size = u64::from_be_bytes(header.payload[4..12].try_into().unwrap());
        let body = self.0.next_frame();
        assert_eq!((body.kind, body.channel), (3, channel));
        assert_eq!(body.payload.len() as u64, size);
        String::from_utf8(body.payload).unwrap()
    }

    #[track_caller]
    fn expect<const N: usize>(&mut self, heard: [Heard; N]) {
        assert_eq!([(); N].map(|()| self.next()), heard);
    }

    /// Nothing else comes: the broker has read everything sent so far, and its next frame is the
    /// reply on the other channel.
    #[track_caller]
    fn expect_nothing(&mut self) {
        self.0.send_method(2, 60, 10, &[0; 7]);
        self.expect([Heard::Method(2, (60, 11))]);
    }
}

/// A broker with the queue `q`, and a channel and a publisher for that queue.
fn start() -> (Broker, Channel, Publisher) {
    let broker = Broker::start().unwrap();
    let connection = Connection::open(broker.uri()).unwrap();
    let channel = connection.open_channel().unwrap();
    let options = QueueDeclareOptions::default();
    channel.queue_declare("q", options).unwrap();
    let publisher = channel.publisher().unwrap();
    (broker, channel, publisher)
}

/// Publishes messages with these bodies to the queue `q`, and waits until it or a consumer has
/// them.
fn put(publisher: &Publisher, bodies: &[&str]) {
    for body in bodies {
        publisher.publish("", "q", *body).unwrap().wait().unwrap();
    }
}

/// Waits for these numbers of ready messages, unacknowledged messages and consumers.
#[track_caller]
fn wait_for(broker: &Broker, counts: (usize, usize, usize)) {
    let counts_of = |broker: &Broker| {
        let queue = broker.queue("q").unwrap();
        (queue.ready, queue.unacknowledged, queue.consumers)
    };
    let is_so = broker.wait_until(SOON, |it| counts_of(it) == counts);
    assert!(is_so, "{:?} is not {counts:?}", counts_of(broker));
}

#[test]
fn deliveries_follow_the_close_of_their_channel_and_are_requeued_when_it_is_answered() {
    let (broker, _channel, publisher) = start();
    put(&publisher, &["1", "2", "3"]);
    let mut client = connect(&broker);
    client.send(&[qos(2), consume("q", "t", 0), mistake()]);
    client.expect([QOS_OK, CONSUME_OK, NOT_FOUND]);
    client.expect([message("t", 1, false, "1"), message("t", 2, false, "2")]);
    wait_for(&broker, (1, 2, 1));
    let connections = broker.connections();
    let of_client = connections.last().unwrap();
    assert_eq!((of_client.channels, of_client.unacknowledged), (1, 2));

    // On the closed channel, the broker ignores everything but a close.
    let published = broker.published().len();
    client.send(&[ack(1), ack(99), mistake(), publish("q", "lost")]);
    client.send(&[consume("q", "other", 0), cancel("t")]);
    client.expect_nothing();
    wait_for(&broker, (1, 2, 1));
    assert_eq!(broker.published().len(), published);
    client.send(&[close()]);
    client.expect([CLOSE_OK]);
    client.expect_nothing();
    wait_for(&broker, (1, 2, 1));

    client.send(&[close_ok()]);
    wait_for(&broker, (3, 0, 0));
    client.send(&[open(), qos(0), consume("q", "t", 0)]);
    client.expect([OPEN_OK, QOS_OK, CONSUME_OK]);
    client.expect([
        message("t", 1, true, "1"),
        message("t", 2, true, "2"),
        message("t", 3, false, "3"),
    ]);
}

#[test]
fn deliveries_that_an_ack_allows_follow_the_close_but_not_a_cancel_ok() {
    let (broker, _channel, publisher) = start();
    put(&publisher, &["1", "2", "3"]);
    let mut client = connect(&broker);
    client.send(&[qos(1), consume("q", "t", 0)]);
    client.expect([QOS_OK, CONSUME_OK, message("t", 1, false, "1")]);
    client.send(&[ack(1), mistake()]);
    client.expect([NOT_FOUND, message("t", 2, false, "2")]);
    client.send(&[close_ok(), open(), qos(1), consume("q", "t", 0)]);
    client.expect([OPEN_OK, QOS_OK, CONSUME_OK, message("t", 1, true, "2")]);
    // A consumer gets no delivery after its basic.cancel-ok.
    client.send(&[ack(1), cancel("t"), mistake()]);
    client.expect([message("t", 2, false, "3"), CANCEL_OK, NOT_FOUND]);
    client.expect_nothing();
}

#[test]
fn a_channel_closed_on_demand_gets_deliveries_until_its_close_ok() {
    let (broker, channel, publisher) = start();
    let mut client = connect(&broker);
    client.send(&[qos(2), consume("q", "t", 0)]);
    client.expect([QOS_OK, CONSUME_OK]);
    // Otherwise close_channels would close the publisher's channel, too.
    channel.close().unwrap();
    broker.close_channels(ReplyCode::RESOURCE_ERROR, "no more");
    client.expect([Heard::Closed(506), Heard::Closed(506)]);
    let connection = publisher.channel().connection();
    let publisher = connection.open_channel().unwrap().publisher().unwrap();
    put(&publisher, &["1", "2", "3"]);
    client.expect([message("t", 1, false, "1"), message("t", 2, false, "2")]);
    wait_for(&broker, (1, 2, 1));
    client.send(&[close_ok()]);
    wait_for(&broker, (3, 0, 0));
}

#[test]
fn a_closed_channel_loses_at_most_200_no_ack_messages() {
    let (broker, _channel, publisher) = start();
    let mut client = connect(&broker);
    client.send(&[consume("q", "t", NO_ACK), mistake()]);
    client.expect([CONSUME_OK, NOT_FOUND]);
    let confirms: Vec<_> = (0..205)
        .map(|_| publisher.publish("", "q", "lost").unwrap())
        .collect();
    confirms.iter().for_each(|it| it.wait().unwrap());
    for delivery_tag in 1..=200 {
        client.expect([message("t", delivery_tag, false, "lost")]);
    }
    client.expect_nothing();
    wait_for(&broker, (5, 0, 1));
    client.send(&[close_ok()]);
    wait_for(&broker, (5, 0, 0));
}

#[test]
fn a_queue_deleted_while_its_channel_closes_cancels_nothing() {
    let (broker, channel, publisher) = start();
    put(&publisher, &["1"]);
    let mut client = connect(&broker);
    client.send(&[consume("q", "t", 0), mistake()]);
    client.expect([CONSUME_OK, NOT_FOUND, message("t", 1, false, "1")]);
    channel.queue_delete("q", Default::default()).unwrap();
    client.expect_nothing();
    client.send(&[close_ok(), open()]);
    client.expect([OPEN_OK]);
}

#[test]
fn a_connection_that_ends_before_close_ok_requeues_all_messages() {
    let (broker, _channel, publisher) = start();
    put(&publisher, &["1", "2"]);
    let mut client = connect(&broker);
    client.send(&[qos(1), consume("q", "t", 0), mistake()]);
    client.expect([QOS_OK, CONSUME_OK, NOT_FOUND, message("t", 1, false, "1")]);
    drop(client);
    wait_for(&broker, (2, 0, 0));
}

#[test]
fn a_transaction_ends_with_the_close_of_its_channel() {
    let (broker, _channel, publisher) = start();
    put(&publisher, &["1"]);
    let mut client = connect(&broker);
    client.send(&[method_frame(1, 90, 10, &[]), consume("q", "t", 0)]);
    client.expect([Heard::Method(1, (90, 11)), CONSUME_OK]);
    client.expect([message("t", 1, false, "1")]);
    client.send(&[
        ack(1),
        publish("q", "2"),
        mistake(),
        method_frame(1, 90, 20, &[]),
    ]);
    client.expect([NOT_FOUND]);
    client.expect_nothing();
    client.send(&[close_ok()]);
    wait_for(&broker, (1, 0, 0));
}

/// A client whose consumer `t` got these messages and then timed out.
fn time_out(broker: &Broker, publisher: &Publisher, bodies: &[&str]) -> Client {
    put(publisher, bodies);
    let mut client = connect(broker);
    client.send(&[qos(bodies.len() as u16), consume("q", "t", 0)]);
    client.expect([QOS_OK, CONSUME_OK]);
    for (body, delivery_tag) in bodies.iter().zip(1..) {
        client.expect([message("t", delivery_tag, false, body)]);
    }
    wait_for(broker, (0, bodies.len(), 1));
    assert_eq!(broker.time_out_consumers("q"), 1);
    client.expect([cancelled("t")]);
    client.expect_nothing();
    wait_for(broker, (bodies.len(), 0, 1));
    client
}

#[test]
fn a_timed_out_consumer_gets_nothing_and_ends_when_the_client_cancels() {
    for is_answer in [false, true] {
        let (broker, _channel, publisher) = start();
        let mut client = time_out(&broker, &publisher, &["1"]);
        put(&publisher, &["2"]);
        client.expect_nothing();
        assert_eq!(
            broker.time_out_consumers("q"),
            0,
            "the consumer has no messages"
        );
        if is_answer {
            client.send(&[cancel_ok("t")]);
        } else {
            client.send(&[cancel("t")]);
            client.expect([CANCEL_OK]);
        }
        client.expect_nothing();
        wait_for(&broker, (2, 0, 0));
        // The broker accepts one late acknowledgement of the delivery tag.
        client.send(&[ack(1)]);
        client.expect_nothing();
        wait_for(&broker, (2, 0, 0));
        client.send(&[consume("q", "t", 0)]);
        client.expect([CONSUME_OK, message("t", 2, true, "1")]);
        wait_for(&broker, (1, 1, 1));
        client.send(&[ack(1)]);
        client.expect([Heard::Closed(406)]);
    }
}

#[test]
fn a_timed_out_consumer_continues_after_it_has_settled_all_it_lost() {
    type Settle = fn(u64) -> Vec<u8>;
    let late: [Settle; 4] = [
        ack,
        |_| ack_all(),
        |delivery_tag| nack(delivery_tag, false),
        |delivery_tag| reject(delivery_tag, false),
    ];
    for late in late {
        let (broker, _channel, publisher) = start();
        let mut client = time_out(&broker, &publisher, &["1", "2"]);
        client.send(&[ack(1)]);
        client.expect_nothing();
        wait_for(&broker, (2, 0, 1));
        client.send(&[late(2)]);
        client.expect([message("t", 3, true, "1"), message("t", 4, true, "2")]);
        client.expect_nothing();
        wait_for(&broker, (0, 2, 1));
        client.send(&[ack(3)]);
        put(&publisher, &["3"]);
        client.expect([message("t", 5, false, "3")]);
        wait_for(&broker, (0, 2, 1));
    }
}

#[test]
fn a_late_requeue_is_accepted_and_the_consumer_gets_nothing() {
    for late in [nack(1, true), reject(1, true)] {
        let (broker, _channel, publisher) = start();
        let mut client = time_out(&broker, &publisher, &["1"]);
        client.send(&[late]);
        put(&publisher, &["2"]);
        client.expect_nothing();
        wait_for(&broker, (2, 0, 1));
        client.send(&[cancel("t"), consume("q", "t", 0)]);
        client.expect([CANCEL_OK, CONSUME_OK, message("t", 2, true, "1")]);
    }
}

#[test]
fn closing_a_channel_requeues_nothing_that_a_timeout_has_requeued() {
    let (broker, _channel, publisher) = start();
    let mut client = time_out(&broker, &publisher, &["1"]);
    client.send(&[close()]);
    client.expect([CLOSE_OK]);
    wait_for(&broker, (1, 0, 0));
    // A consumer on a channel that the broker has closed is not told that it timed out.
    client.send(&[open(), consume("q", "t", 0), mistake()]);
    client.expect([OPEN_OK, CONSUME_OK, NOT_FOUND, message("t", 1, true, "1")]);
    assert_eq!(broker.time_out_consumers("q"), 1);
    client.expect_nothing();
    wait_for(&broker, (1, 0, 1));
    client.send(&[close_ok()]);
    wait_for(&broker, (1, 0, 0));
}

#[test]
fn other_consumers_get_the_messages_of_a_timed_out_consumer() {
    let (broker, _channel, publisher) = start();
    put(&publisher, &["1"]);
    let [mut slow, mut idle] = [connect(&broker), connect(&broker)];
    slow.send(&[qos(1), consume("q", "slow", 0)]);
    slow.expect([QOS_OK, CONSUME_OK, message("slow", 1, false, "1")]);
    idle.send(&[consume("q", "idle", 0)]);
    idle.expect([CONSUME_OK]);
    assert_eq!(broker.time_out_consumers("missing"), 0);
    assert_eq!(broker.time_out_consumers("q"), 1);
    slow.expect([cancelled("slow")]);
    idle.expect([message("idle", 1, true, "1")]);
    wait_for(&broker, (0, 1, 2));
    drop((slow, idle));
    wait_for(&broker, (1, 0, 0));
}

#[test]
fn another_consumer_becomes_active_after_a_timeout() {
    let (broker, channel, publisher) = start();
    channel.queue_delete("q", Default::default()).unwrap();
    let options = QueueDeclareOptions::default().single_active_consumer(true);
    channel.queue_declare("q", options).unwrap();
    let mut first = time_out(&broker, &publisher, &["1"]);
    let mut second = connect(&broker);
    second.send(&[qos(1), consume("q", "second", 0)]);
    second.expect([QOS_OK, CONSUME_OK, message("second", 1, true, "1")]);
    // The first consumer may get messages again, but has to wait for its turn.
    first.send(&[ack(1)]);
    put(&publisher, &["2"]);
    first.expect_nothing();
    assert_eq!(broker.time_out_consumers("q"), 1);
    second.expect([cancelled("second")]);
    first.expect([message("t", 2, true, "1")]);
}

#[test]
fn a_timeout_closes_the_channel_without_consumer_cancel_notify() {
    let (broker, _channel, publisher) = start();
    put(&publisher, &["1"]);
    let mut client = connect_with(&broker, b"");
    client.send(&[consume("q", "t", 0)]);
    client.expect([CONSUME_OK, message("t", 1, false, "1")]);
    assert_eq!(broker.time_out_consumers("q"), 1);
    client.expect([Heard::Closed(406)]);
    client.expect_nothing();
    wait_for(&broker, (1, 0, 1));
    client.send(&[close_ok()]);
    wait_for(&broker, (1, 0, 0));
}

#[test]
fn a_timeout_counts_as_one_requeue() {
    let (broker, channel, publisher) = start();
    channel.queue_delete("q", Default::default()).unwrap();
    let options = QueueDeclareOptions::quorum();
    channel.queue_declare("q", options).unwrap();
    let mut client = time_out(&broker, &publisher, &["1"]);
    let get = || {
        let message = channel.basic_get("q", AckMode::Manual).unwrap();
        message.unwrap()
    };
    let delivery = get();
    assert_eq!(delivery.delivery_count(), Some(1));
    client.send(&[nack(1, true)]);
    client.expect_nothing();
    delivery.reject(Requeue::Yes).unwrap();
    wait_for(&broker, (1, 0, 1));
    assert_eq!(
        get().delivery_count(),
        Some(2),
        "a late nack is not counted"
    );
}

#[test]
fn a_late_acknowledgement_in_a_transaction_takes_effect_on_commit() {
    let (broker, _channel, publisher) = start();
    put(&publisher, &["1"]);
    let mut client = connect(&broker);
    let [select, commit, roll_back] = [10, 20, 30].map(|method| method_frame(1, 90, method, &[]));
    let [selected, committed, rolled_back] = [11, 21, 31].map(|it| Heard::Method(1, (90, it)));
    client.send(&[select, qos(1), consume("q", "t", 0)]);
    client.expect([selected, QOS_OK, CONSUME_OK, message("t", 1, false, "1")]);
    assert_eq!(broker.time_out_consumers("q"), 1);
    client.expect([cancelled("t")]);
    client.send(&[ack(1), roll_back, ack(1)]);
    client.expect([rolled_back]);
    client.expect_nothing();
    client.send(&[commit]);
    client.expect([committed, message("t", 2, true, "1")]);
}

#[test]
fn a_client_can_cancel_unknown_consumers() {
    let (broker, _channel, _publisher) = start();
    let mut client = connect(&broker);
    client.send(&[cancel("unknown")]);
    client.expect([CANCEL_OK]);
    client.send(&[cancel_ok("unknown")]);
    client.expect_nothing();
}

#[test]
fn a_non_finite_float_closes_the_connection() {
    const CLOSE: Heard = Heard::Method(0, (10, 50));
    let nan = [&short("x")[..], b"d", &f64::NAN.to_be_bytes()].concat();
    let broker = Broker::start().unwrap();

    let mut publisher = connect(&broker);
    let properties = [&[0x20, 0][..], &long(&nan)].concat();
    let header = [&[0, 60, 0, 0][..], &[0; 8], &properties].concat();
    publisher.send(&[publish("q", "")]);
    publisher.send(&[method_frame(1, 60, 40, &[0; 5]), frame(2, 1, &header)]);
    publisher.expect([CLOSE]);

    let mut declarer = connect(&broker);
    let declare = [&[0; 2], &short("q")[..], &[0], &long(&nan)].concat();
    declarer.send(&[method_frame(1, 50, 10, &declare)]);
    declarer.expect([CLOSE]);
    assert!(broker.queue("q").is_none());

    // The broker still serves other connections.
    connect(&broker).expect_nothing();
}
