//! Frames in flight while something ends cost no connection, no confirm and no message: crossing
//! closes, deliveries to ended consumers, late replies.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{mpsc, Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use leveret::{
    AckMode, Channel, Connection, ConsumeOptions, ErrorKind, Metrics, NackOptions, Overflow,
    PublisherOptions, QosOptions, Queue, QueueDeclareOptions, ReplyCode,
};

use crate::support::{
    at, connect, content_frames, eventually, exclusive_queue, method_frame, options,
    scripted_server, short, Frame, Program, Script, SOON,
};

const CHANNEL_OPEN: (u16, u16) = (20, 10);
const CHANNEL_CLOSE: (u16, u16) = (20, 40);
const CHANNEL_CLOSE_OK: (u16, u16) = (20, 41);
const QOS: (u16, u16) = (60, 10);
const CONSUME: (u16, u16) = (60, 20);
const CANCEL: (u16, u16) = (60, 30);
const ACK: (u16, u16) = (60, 80);
const NACK: (u16, u16) = (60, 120);

// ---- a scripted broker ----

/// Reads the next frame, which must be this method.
#[track_caller]
fn expect(server: &mut Script, method: (u16, u16)) -> Frame {
    let frame = server.next_frame();
    assert_eq!(frame.method(), Some(method));
    frame
}

/// The short string at this offset of a method's arguments.
fn text_at(frame: &Frame, at: usize) -> String {
    let text = &frame.payload[4 + at..];
    String::from_utf8(text[1..=usize::from(text[0])].to_vec()).unwrap()
}

/// Reads `basic.consume` and returns its consumer tag.
#[track_caller]
fn consumer_tag(server: &mut Script) -> String {
    let consume = expect(server, CONSUME);
    let queue = text_at(&consume, 2);
    text_at(&consume, 2 + 1 + queue.len())
}

#[track_caller]
fn agree_to_consumer(server: &mut Script, channel: u16) -> String {
    let tag = consumer_tag(server);
    server.send_method(channel, 60, 21, &short(&tag));
    tag
}

fn delivery(channel: u16, consumer_tag: &str, delivery_tag: u8, body: &[u8]) -> Vec<u8> {
    let numbers = [0, 0, 0, 0, 0, 0, 0, delivery_tag, 0];
    let deliver = [
        &short(consumer_tag)[..],
        &numbers,
        &short("x"),
        &short("key"),
    ]
    .concat();
    [
        method_frame(channel, 60, 60, &deliver),
        content_frames(channel, body),
    ]
    .concat()
}

fn not_found(channel: u16) -> Vec<u8> {
    let close = [&404_u16.to_be_bytes()[..], &short("NOT_FOUND"), &[0; 4]].concat();
    method_frame(channel, 20, 40, &close)
}

/// Checks that the connection was never lost and that a new channel works.
#[track_caller]
fn works(connection: &Connection) {
    assert_eq!(connection.loss_count(), 0);
    connection.open_channel().unwrap().close().unwrap();
}

/// Replies to the client until it closes the connection. Returns the client's frames.
fn serve_the_rest(server: &mut Script) -> Vec<Frame> {
    let mut seen = Vec::new();
    loop {
        let frame = server.next_frame();
        match frame.method() {
            Some((10, 50)) => {
                server.send_method(0, 10, 51, b"");
                return seen;
            }
            Some(CHANNEL_OPEN) => server.send_method(frame.channel, 20, 11, &[0; 4]),
            Some(CHANNEL_CLOSE) => server.send_method(frame.channel, 20, 41, b""),
            Some(QOS) => server.send_method(frame.channel, 60, 11, b""),
            _ => {}
        }
        seen.push(frame);
    }
}

// ---- ends of channels ----

#[test]
fn frames_after_the_brokers_close_are_dropped_and_the_channel_can_be_reopened() {
    let (address, server) = scripted_server(|server| {
        server.handshake(0);
        server.open_channel();
        let tag = agree_to_consumer(server, 1);
        // Frames in flight, before and after the close.
        let late = [
            delivery(1, &tag, 1, b"in time"),
            not_found(1),
            delivery(1, &tag, 2, &[7; 300_000]),
            delivery(1, &tag, 3, b""),
            method_frame(1, 60, 80, &[0, 0, 0, 0, 0, 0, 0, 1, 0]),
        ];
        server.send(&late.concat());
        expect(server, CHANNEL_CLOSE_OK);
        expect(server, CHANNEL_OPEN);
        let opened = method_frame(1, 20, 11, &[0; 4]);
        server.send(&[delivery(1, &tag, 4, b"of the old life"), opened].concat());
        let tag = consumer_tag(server);
        server.send(&delivery(1, &tag, 5, b"of the old life"));
        server.send_method(1, 60, 21, &short(&tag));
        server.send(&delivery(1, &tag, 1, b"of the new life"));
        expect(server, ACK);
        serve_the_rest(server);
    });
    let connection = Connection::open_with(at(address)).unwrap();
    let channel = connection.open_channel().unwrap();
    let options = ConsumeOptions::default().consumer_tag("worker");
    let consumer = channel.basic_consume("q", options.clone()).unwrap();
    assert_eq!(consumer.recv().unwrap().unwrap().body(), b"in time");
    let error = consumer.recv().unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND), "{error}");
    channel.reopen().unwrap();
    let consumer = channel.basic_consume("q", options).unwrap();
    let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
    assert_eq!(delivery.body(), b"of the new life");
    delivery.ack().unwrap();
    works(&connection);
    connection.close().unwrap();
    server.join().unwrap();
}

#[test]
fn no_frame_follows_close_ok_when_two_channels_close_at_once() {
    const ROUNDS: usize = 600;
    let (address, server) = scripted_server(|server| {
        server.handshake(0);
        for _ in 0..ROUNDS {
            let channels = [server.open_channel(), server.open_channel()];
            // Both channels are publishing already.
            for _ in 0..4 {
                server.next_frame();
            }
            server.send(&channels.map(not_found).concat());
            let mut closed = Vec::new();
            while closed.len() < 2 {
                let frame = server.next_frame();
                assert!(
                    !closed.contains(&frame.channel),
                    "a frame follows channel.close-ok"
                );
                if frame.method() == Some(CHANNEL_CLOSE_OK) {
                    closed.push(frame.channel);
                }
            }
        }
        serve_the_rest(server);
    });
    let connection = Connection::open_with(at(address)).unwrap();
    for _ in 0..ROUNDS {
        let channels = [(); 2].map(|()| connection.open_channel().unwrap());
        thread::scope(|scope| {
            for channel in &channels {
                scope.spawn(|| while channel.basic_publish("no such exchange", "", "").is_ok() {});
            }
        });
    }
    works(&connection);
    connection.close().unwrap();
    server.join().unwrap();
}

#[test]
fn no_reply_to_the_broker_follows_our_close() {
    let (go_on, goes_on) = mpsc::channel();
    let (address, server) = scripted_server(move |server| {
        server.handshake(0);
        server.open_channel();
        let tag = agree_to_consumer(server, 1);
        goes_on.recv().unwrap();
        let cancel = [&short(&tag)[..], &[0]].concat();
        let asked = [
            method_frame(1, 20, 20, &[0]),
            method_frame(1, 60, 30, &cancel),
            delivery(1, &tag, 1, b"late"),
        ];
        server.send(&asked.concat());
        serve_the_rest(server)
    });
    let gate = Arc::new(Gate::default());
    let metrics = Arc::<Gate>::clone(&gate);
    let connection = Connection::open_with(at(address).metrics(metrics)).unwrap();
    let channel = connection.open_channel().unwrap();
    let consumer = channel
        .basic_consume("q", ConsumeOptions::default())
        .unwrap();
    gate.shut(Moment::Read);
    go_on.send(()).unwrap();
    gate.wait_held();
    // The IO thread has read the broker's frames, but not processed them.
    thread::scope(|scope| {
        scope.spawn(|| channel.close().unwrap());
        eventually("the channel is closing", || !channel.is_open());
        gate.open();
    });
    assert!(consumer.recv().is_err());
    works(&connection);
    connection.close().unwrap();
    let seen = server.join().unwrap();
    let on_channel: Vec<_> = seen.iter().filter(|it| it.channel == 1).collect();
    // The test then reuses the channel number.
    assert_eq!(on_channel[0].method(), Some(CHANNEL_CLOSE));
    assert_eq!(on_channel[1].method(), Some(CHANNEL_OPEN));
}

/// Makes the broker close the channel.
fn make_a_mistake(channel: &Channel) {
    let error = channel.queue_declare_passive("no such queue").unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND), "{error}");
}

#[test]
fn an_error_of_a_consuming_channel_does_not_affect_the_connection() {
    let connection = connect();
    let feeding = connection.open_channel().unwrap();
    let queue = exclusive_queue(&feeding);
    let publisher = feeding.publisher().unwrap();
    for _ in 0..30 {
        for _ in 0..300 {
            publisher.publish("", queue.name(), "work").unwrap();
        }
        let channel = connection.open_channel().unwrap();
        channel.basic_qos(200).unwrap();
        let consumer = channel
            .basic_consume(queue.name(), ConsumeOptions::default())
            .unwrap();
        for _ in 0..20 {
            consumer.recv_timeout(SOON).unwrap().unwrap().ack().unwrap();
        }
        make_a_mistake(&channel);
    }
    publisher.wait_for_confirms().unwrap();
    works(&connection);
    // Each channel has acknowledged only its own 20 messages: the rest is still in the queue.
    let mut left = 0;
    while feeding
        .basic_get(queue.name(), AckMode::Automatic)
        .unwrap()
        .is_some()
    {
        left += 1;
    }
    assert_eq!(left, 30 * 280);
}

#[test]
fn messages_of_a_reopened_channel_can_be_acknowledged() {
    let connection = connect();
    let feeding = connection.open_channel().unwrap();
    let queue = exclusive_queue(&feeding);
    let publisher = feeding.publisher().unwrap();
    let channel = connection.open_channel().unwrap();
    channel.basic_qos(50).unwrap();
    for _ in 0..20 {
        for _ in 0..100 {
            publisher.publish("", queue.name(), "work").unwrap();
        }
        let options = ConsumeOptions::default().consumer_tag("the same");
        let consumer = channel.basic_consume(queue.name(), options).unwrap();
        let mut last = 0;
        for _ in 0..20 {
            let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
            assert!(delivery.delivery_tag() > last, "{delivery:?} after {last}");
            last = delivery.delivery_tag();
            delivery.ack().unwrap();
        }
        make_a_mistake(&channel);
        channel.reopen().unwrap();
    }
    works(&connection);
    assert!(channel.is_open());
}

// ---- confirms ----

/// Holds the IO thread at the moment when it has written or read bytes.
#[derive(Default)]
struct Gate {
    shut: Mutex<Option<Moment>>,
    opened: Condvar,
    is_held: AtomicBool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    Written,
    Read,
}

impl Gate {
    fn shut(&self, at: Moment) {
        *self.shut.lock().unwrap() = Some(at);
    }

    fn open(&self) {
        *self.shut.lock().unwrap() = None;
        self.opened.notify_all();
    }

    fn wait_held(&self) {
        eventually("the IO thread is held", || {
            self.is_held.load(Ordering::SeqCst)
        });
    }

    fn pass(&self, at: Moment) {
        let mut shut = self.shut.lock().unwrap();
        while *shut == Some(at) {
            self.is_held.store(true, Ordering::SeqCst);
            shut = self.opened.wait(shut).unwrap();
        }
    }
}

impl Metrics for Gate {
    fn bytes_sent(&self, _: usize) {
        self.pass(Moment::Written);
    }

    fn bytes_received(&self, _: usize) {
        self.pass(Moment::Read);
    }
}

fn full_queue(channel: &Channel) -> Queue {
    let options = QueueDeclareOptions::temporary()
        .max_length(1)
        .overflow(Overflow::RejectPublish);
    let queue = channel.queue_declare("", options).unwrap();
    queue.publish("fills it").unwrap();
    queue
}

/// The broker has requeued such a message, whatever happens to the channel meanwhile.
#[test]
fn an_ack_of_a_former_message_never_fails_as_a_second_ack() {
    let connection = connect();
    let channel = connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    queue.publish("former").unwrap();
    let mut got = None;
    eventually("the message arrives", || {
        got = queue.get().unwrap();
        got.is_some()
    });
    let tag = got.unwrap().delivery_tag();
    make_a_mistake(&channel);
    channel.reopen().unwrap();
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let acks = scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                let Err(error) = channel.basic_ack(tag) else {
                    continue;
                };
                let is_end = matches!(error.kind(), ErrorKind::ChannelClosed { .. });
                assert!(is_end, "{error}");
            }
        });
        for _ in 0..200 {
            make_a_mistake(&channel);
            channel.reopen().unwrap();
        }
        is_done.store(true, Ordering::Relaxed);
        acks.join().unwrap();
    });
}

#[test]
fn a_message_published_during_a_reopen_gets_its_own_confirm() {
    let gate = Arc::new(Gate::default());
    let metrics = Arc::<Gate>::clone(&gate);
    let connection = Connection::open_with(options().metrics(metrics)).unwrap();
    let side = connection.open_channel().unwrap();
    let (good, full) = (exclusive_queue(&side), full_queue(&side));
    let channel = connection.open_channel().unwrap();
    let publisher = channel.publisher_with(PublisherOptions::default()).unwrap();
    make_a_mistake(&channel);
    // While the IO thread is held, one thread reopens the channel and another publishes.
    gate.shut(Moment::Written);
    side.basic_publish("", good.name(), "aside").unwrap();
    gate.wait_held();
    let first = thread::scope(|scope| {
        scope.spawn(|| channel.reopen().unwrap());
        let first = loop {
            if let Ok(confirm) = publisher.publish("", good.name(), "first") {
                break confirm;
            }
            thread::yield_now();
        };
        gate.open();
        first
    });
    let publish = |queue: &Queue| publisher.publish("", queue.name(), "next").unwrap();
    let confirms = [&good, &full, &good, &full].map(publish);
    first.wait().unwrap();
    let nacked = confirms.map(|it| match it.wait() {
        Ok(()) => false,
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::Nacked { .. }), "{error}");
            true
        }
    });
    assert_eq!(nacked, [false, true, false, true]);
}

#[test]
fn messages_lost_with_a_channel_are_reported_once_after_a_reopen() {
    let connection = connect();
    let channel = connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel.confirm_select().unwrap();
    for _ in 0..100 {
        // Publishing fails once the error arrives.
        let _ = channel.basic_publish("no such exchange", "", "m");
    }
    eventually("the channel is closed", || !channel.is_open());
    channel.reopen().unwrap();
    let error = channel.wait_for_confirms().unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND), "{error}");
    channel.wait_for_confirms().unwrap();
    channel.basic_publish("", queue.name(), "m").unwrap();
    channel.wait_for_confirms().unwrap();
    // Messages confirmed before the second error are not reported as lost.
    make_a_mistake(&channel);
    channel.reopen().unwrap();
    channel.wait_for_confirms().unwrap();
}

// ---- ends of consumers ----

#[test]
fn repeated_cancels_of_a_consumer_send_one_frame() {
    let (asked, is_asked) = mpsc::channel();
    let (address, server) = scripted_server(move |server| {
        server.handshake(0);
        server.open_channel();
        let tag = agree_to_consumer(server, 1);
        expect(server, CANCEL);
        asked.send(()).unwrap();
        // Later cancels wait for the first, so the client's next frame is basic.qos.
        expect(server, QOS);
        server.send(&delivery(1, &tag, 1, b"late"));
        server.send_method(1, 60, 11, b"");
        server.send_method(1, 60, 31, &short(&tag));
        serve_the_rest(server);
    });
    let connection = Connection::open_with(at(address)).unwrap();
    let channel = connection.open_channel().unwrap();
    let consumer = channel
        .basic_consume("q", ConsumeOptions::default())
        .unwrap();
    let tag = consumer.consumer_tag();
    channel.basic_cancel_no_wait(tag).unwrap();
    is_asked.recv_timeout(SOON).unwrap();
    thread::scope(|scope| {
        let others = [(); 3].map(|()| scope.spawn(|| channel.basic_cancel(tag)));
        channel.basic_qos(1).unwrap();
        for other in others {
            other.join().unwrap().unwrap();
        }
    });
    assert_eq!(consumer.recv().unwrap().unwrap().body(), b"late");
    assert!(consumer.recv().unwrap().is_none());
    works(&connection);
    connection.close().unwrap();
    server.join().unwrap();
}

#[test]
fn a_message_after_cancel_ok_is_requeued() {
    for no_ack in [false, true] {
        let (address, server) = scripted_server(|server| {
            server.handshake(0);
            server.open_channel();
            let tag = agree_to_consumer(server, 1);
            expect(server, CANCEL);
            server.send_method(1, 60, 31, &short(&tag));
            server.send(&delivery(1, &tag, 7, &[0; 200_000]));
            serve_the_rest(server)
        });
        let connection = Connection::open_with(at(address)).unwrap();
        let channel = connection.open_channel().unwrap();
        let mut options = ConsumeOptions::default();
        if no_ack {
            options = options.no_ack(true);
        }
        drop(channel.basic_consume("q", options).unwrap());
        channel.basic_qos(1).unwrap();
        works(&connection);
        connection.close().unwrap();
        let mut seen = server.join().unwrap();
        seen.retain(|frame| frame.method() == Some(NACK));
        let nacked: Vec<_> = seen.iter().map(|frame| &frame.payload[4..]).collect();
        // The message that needs an acknowledgement is requeued, alone; the no-ack message is not.
        let expected: &[&[u8]] = &[&[0, 0, 0, 0, 0, 0, 0, 7, 2]];
        assert_eq!(nacked, expected[usize::from(no_ack)..]);
    }
}

#[test]
fn late_messages_of_a_consumer_that_the_broker_cancels_are_nacked() {
    let (address, server) = scripted_server(|server| {
        server.handshake(0);
        server.open_channel();
        let tag = agree_to_consumer(server, 1);
        let messages = [1, 2, 3].map(|number| delivery(1, &tag, number, b"m"));
        server.send(&messages.concat());
        expect(server, QOS);
        // RabbitMQ 4.3 cancels a consumer like this when an acknowledgement is late.
        let cancel = method_frame(1, 60, 30, &[&short(&tag)[..], &[1]].concat());
        server.send(&cancel);
        server.send_method(1, 60, 11, b"");
        let ours = expect(server, CANCEL);
        assert_eq!(text_at(&ours, 0), tag);
        // The client nacks the unread message, then the message acknowledged late, then the nacked
        // one.
        for number in [3, 1, 2] {
            let nack = expect(server, NACK);
            assert_eq!(nack.payload[4..], [0, 0, 0, 0, 0, 0, 0, number, 2]);
        }
        // The client reuses the tag before it reads a second cancel and the cancel-ok.
        assert_eq!(consumer_tag(server), tag);
        server.send(&cancel);
        server.send_method(1, 60, 31, &short(&tag));
        server.send_method(1, 60, 21, &short(&tag));
        server.send(&delivery(1, &tag, 4, b"again"));
        let ack = expect(server, ACK);
        assert_eq!(ack.payload[4..], [0, 0, 0, 0, 0, 0, 0, 4, 0]);
        serve_the_rest(server);
    });
    let connection = Connection::open_with(at(address)).unwrap();
    let channel = connection.open_channel().unwrap();
    let options = ConsumeOptions::default().consumer_tag("slow");
    let consumer = channel.basic_consume("q", options.clone()).unwrap();
    let late = [(); 2].map(|()| consumer.recv().unwrap().unwrap());
    channel.basic_qos(1).unwrap();
    let error = consumer.recv().unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::ConsumerCancelled { .. }),
        "{error}"
    );
    assert!(consumer.has_ended());
    late[0].ack().unwrap();
    late[1].nack(NackOptions::requeue()).unwrap();
    assert!(late[0].ack().is_err(), "once");
    let consumer = channel.basic_consume("q", options).unwrap();
    let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
    assert_eq!(delivery.body(), b"again");
    delivery.ack().unwrap();
    works(&connection);
    connection.close().unwrap();
    server.join().unwrap();
}

#[test]
fn cancelling_an_ended_consumer_leaves_its_successor_alone() {
    let connection = connect();
    let channel = connection.open_channel().unwrap();
    let options = ConsumeOptions::default().consumer_tag("t");
    let queue = exclusive_queue(&channel);
    let first = queue.consume_with(options.clone()).unwrap();
    queue.delete().unwrap();
    first.recv().unwrap_err();
    let queue = exclusive_queue(&channel);
    let second = queue.consume_with(options).unwrap();
    first.cancel().unwrap();
    drop(first);
    queue.publish("for the second").unwrap();
    let delivery = second.recv_timeout(SOON).unwrap().unwrap();
    delivery.ack().unwrap();
}

#[test]
fn a_consume_that_cannot_be_sent_sends_no_cancel() {
    let (address, server) = scripted_server(|server| {
        server.handshake(0);
        server.open_channel();
        expect(server, QOS);
        server.send_method(1, 60, 11, b"");
        serve_the_rest(server);
    });
    let connection = Connection::open_with(at(address)).unwrap();
    let channel = connection.open_channel().unwrap();
    let too_large = "x".repeat(200_000);
    let options = ConsumeOptions::default().argument("x-note", too_large);
    for consumer in [
        channel.basic_consume("q", options.clone()),
        channel.basic_consume_no_wait("q", options),
    ] {
        let error = consumer.unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::InvalidArgument(_)),
            "{error}"
        );
    }
    // The next frame is this basic.qos, not a cancel.
    let qos = QosOptions::default().prefetch_count(1);
    channel.basic_qos_with(qos).unwrap();
    connection.close().unwrap();
    server.join().unwrap();
}

// ---- messages that cannot be read ----

#[test]
fn malformed_properties_fail_only_when_read_and_keep_the_body() {
    let (address, server) = scripted_server(|server| {
        server.handshake(0);
        server.open_channel();
        let tag = agree_to_consumer(server, 1);
        let mut message = delivery(1, &tag, 1, b"body");
        // One bit of the two bytes of property flags promises headers that are not there.
        let flags = message.len() - 12 - 2 - 1;
        message[flags] = 0x20;
        server.send(&message);
        serve_the_rest(server)
    });
    let connection = Connection::open_with(at(address)).unwrap();
    let channel = connection.open_channel().unwrap();
    let consumer = channel
        .basic_consume("q", ConsumeOptions::default())
        .unwrap();
    let delivery = consumer.recv().unwrap().unwrap();
    let error = delivery.properties().unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::MalformedProperties { .. }),
        "{error}"
    );
    assert_eq!(delivery.body(), b"body");
    delivery.ack().unwrap();
    works(&connection);
    connection.close().unwrap();
    server.join().unwrap();
}

// ---- floods ----

#[test]
fn a_client_stops_reading_from_a_peer_that_reads_no_replies() {
    const FLOOD: usize = 64 << 20;
    let (go_on, goes_on) = mpsc::channel();
    let (address, server) = scripted_server(move |server| {
        server.handshake(0);
        server.open_channel();
        let unknown = "t".repeat(250);
        let cancels = [&short(&unknown)[..], &[0]].concat();
        let cancels = method_frame(1, 60, 30, &cancels).repeat(1 << 10);
        let sent = server.send_until_stuck(&cancels, FLOOD, Duration::from_secs(2));
        assert!(sent < FLOOD, "all of {FLOOD} bytes were taken");
        // The peer reads now, so the client takes the rest.
        let mut reading = server.another();
        let reader = thread::spawn(move || serve_the_rest(&mut reading));
        server.send(&cancels[sent % cancels.len()..]);
        go_on.send(()).unwrap();
        reader.join().unwrap();
    });
    let connection = Connection::open_with(at(address)).unwrap();
    let channel = connection.open_channel().unwrap();
    goes_on.recv_timeout(3 * SOON).unwrap();
    channel.basic_qos(1).unwrap();
    works(&connection);
    connection.close().unwrap();
    server.join().unwrap();
}

// ---- a process that was stopped ----

#[test]
fn a_process_stopped_for_several_heartbeats_keeps_its_connection() {
    const HEARTBEAT: u8 = 1;
    let (go_on, goes_on) = mpsc::channel();
    let (address, server) = scripted_server(move |server| {
        server.handshake(HEARTBEAT);
        server.open_channel();
        expect(server, (50, 10));
        let declared = [&short("hello")[..], &[0; 8]].concat();
        server.send_method(1, 50, 11, &declared);
        let tag = agree_to_consumer(server, 1);
        // The broker's heartbeats continue, whether the client reads them or not.
        while goes_on.try_recv().is_err() {
            server.send(&[8, 0, 0, 0, 0, 0, 0, 0xce]);
            thread::sleep(Duration::from_millis(100));
        }
        server.send(&delivery(1, &tag, 1, b"still here"));
        server.wait_for_end();
    });
    let uri = format!("amqp://{address}");
    let program = Program::start("tutorial_1_receive", &[], &uri);
    program.expect(" [*] Waiting for messages. To exit press CTRL+C");
    program.signal("STOP");
    // Stop the process for longer than two heartbeat intervals.
    thread::sleep(Duration::from_secs(3 * u64::from(HEARTBEAT)));
    program.signal("CONT");
    // If the client did not read the heartbeats first, it would judge the broker dead within this
    // time.
    thread::sleep(Duration::from_millis(200));
    go_on.send(()).unwrap();
    program.expect(" [x] Received 'still here'");
    drop(program);
    server.join().unwrap();
}
