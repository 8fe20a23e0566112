//! Streams: where reading starts, what a filter lets through, and how reading continues after a
//! loss.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::{Duration, SystemTime};

use crossbeam_channel::unbounded;
use leveret::{
    Channel, Connection, ConnectionEvent, ConsumeOptions, Consumer, Delivery, Message, Queue,
    QueueDeclareOptions, Settlement, StreamOffset, WorkerOptions, Workers,
};

use crate::recovery::{recovered, Lossy};
use crate::support::proxy::{quick, Proxy};
use crate::support::{channel, connect, eventually, unique, url, version, Node, Program, SOON};

/// RabbitMQ can filter streams since 3.13.
fn has_filters() -> bool {
    version() >= (3, 13)
}

/// A stream that is deleted on drop.
struct Stream(Queue);

impl Stream {
    fn declare() -> Self {
        let options = QueueDeclareOptions::stream();
        let queue = channel().queue_declare(&unique("stream"), options);
        Self(queue.unwrap())
    }

    fn name(&self) -> &str {
        self.0.name()
    }

    /// Publishes messages, each as its own chunk.
    fn publish_one_by_one<'m>(&self, messages: impl IntoIterator<Item = Message<'m>>) {
        let publisher = self.0.channel().publisher().unwrap();
        for message in messages {
            let confirm = publisher.publish("", self.name(), message).unwrap();
            confirm.wait().unwrap();
        }
    }

    fn publish_numbers(&self, numbers: Range<u64>) {
        self.publish_one_by_one(numbers.map(|number| Message::new(number.to_string())));
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let channel = connect().open_channel().unwrap();
        let _ = channel.queue_delete(self.name(), Default::default());
    }
}

fn consume(channel: &Channel, stream: &str, options: ConsumeOptions) -> Consumer {
    channel.basic_qos(100).unwrap();
    channel.basic_consume(stream, options).unwrap()
}

fn from(offset: StreamOffset) -> ConsumeOptions {
    ConsumeOptions::default().stream_offset(offset)
}

#[track_caller]
fn next(consumer: &Consumer) -> Delivery {
    let delivery = consumer.recv_timeout(SOON).unwrap();
    let delivery = delivery.expect("a message comes");
    delivery.ack().unwrap();
    delivery
}

#[track_caller]
fn next_body(consumer: &Consumer) -> String {
    String::from_utf8(next(consumer).body().to_vec()).unwrap()
}

/// Reads up to the message with this body, and returns all bodies.
#[track_caller]
fn bodies_up_to(consumer: &Consumer, last: &str) -> Vec<String> {
    let mut bodies = Vec::new();
    while bodies.last().map(String::as_str) != Some(last) {
        bodies.push(next_body(consumer));
    }
    bodies
}

#[test]
fn a_stream_can_be_read_from_any_offset_repeatedly() {
    let stream = Stream::declare();
    let hour = Duration::from_secs(3600);
    let before = SystemTime::now() - hour;
    stream.publish_numbers(0..4);
    let cases = [
        (StreamOffset::First, "0"),
        (StreamOffset::Offset(2), "2"),
        (StreamOffset::Last, "3"),
        (StreamOffset::Time(before), "0"),
        (StreamOffset::Interval(hour), "0"),
        (StreamOffset::Interval(Duration::MAX), "0"),
    ];
    for (offset, expected) in cases {
        let consumer = consume(&channel(), stream.name(), from(offset));
        let delivery = next(&consumer);
        assert_eq!(delivery.body(), expected.as_bytes(), "{offset:?}");
        let number: u64 = expected.parse().unwrap();
        assert_eq!(delivery.stream_offset(), Some(number), "{offset:?}");
    }
    let channel = channel();
    let consumer = consume(&channel, stream.name(), from(StreamOffset::Next));
    stream.publish_numbers(4..5);
    assert_eq!(next_body(&consumer), "4");
}

#[test]
fn a_stream_can_be_read_from_an_interval_ago() {
    let stream = Stream::declare();
    stream.publish_numbers(0..1);
    let mut newest = 0;
    eventually("the first message is too old", || {
        let second = from(StreamOffset::Interval(Duration::from_millis(1)));
        let consumer = consume(&channel(), stream.name(), second);
        newest += 1;
        stream.publish_numbers(newest..newest + 1);
        next_body(&consumer) != "0"
    });
}

#[test]
fn a_filtered_stream_sends_the_chunks_that_match() {
    let stream = Stream::declare();
    let filtered = |body, value| Message::new(body).stream_filter_value(value);
    stream.publish_one_by_one([
        filtered("fr 1", "fr"),
        filtered("de 1", "de"),
        Message::new("unfiltered"),
        filtered("be 1", "be"),
        filtered("fr 2", "fr"),
        filtered("end", "end"),
    ]);
    let read = |values: &[&str]| {
        let values = values.iter().copied().chain(["end"]);
        from(StreamOffset::First).stream_filter(values)
    };
    let cases: [(ConsumeOptions, &[&str]); 3] = [
        (read(&["fr"]), &["fr 1", "fr 2", "end"]),
        (read(&["fr", "de"]), &["fr 1", "de 1", "fr 2", "end"]),
        (
            read(&["be"]).stream_match_unfiltered(true),
            &["unfiltered", "be 1", "end"],
        ),
    ];
    let all: &[&str] = &["fr 1", "de 1", "unfiltered", "be 1", "fr 2", "end"];
    for (options, matching) in cases {
        let expected = match has_filters() {
            true => matching,
            // The filter is ignored.
            false => all,
        };
        let consumer = consume(&channel(), stream.name(), options);
        assert_eq!(bodies_up_to(&consumer, "end"), expected);
    }
}

#[test]
fn chunks_that_match_a_filter_contain_other_messages() {
    let stream = Stream::declare();
    let publisher = stream.0.channel().publisher().unwrap();
    let values = ["fr", "de", "be"];
    let messages = |count: usize| (0..count).map(|number| (number, values[number % 3]));
    // Published without a pause, many messages share a chunk.
    for (number, value) in messages(300) {
        let message = Message::new(number.to_string()).stream_filter_value(value);
        publisher.publish("", stream.name(), message).unwrap();
    }
    publisher.wait_for_confirms().unwrap();
    let options = from(StreamOffset::First).stream_filter(["fr"]);
    let consumer = consume(&channel(), stream.name(), options);
    let (mut others, mut french) = (0, Vec::new());
    while french.len() < 100 {
        let delivery = next(&consumer);
        match delivery.stream_filter_value() {
            Some("fr") => french.push(String::from_utf8(delivery.body().to_vec()).unwrap()),
            _ => others += 1,
        }
    }
    let expected = messages(300).filter(|(_, value)| *value == "fr");
    let expected: Vec<_> = expected.map(|(number, _)| number.to_string()).collect();
    assert_eq!(french, expected);
    assert!(
        others > 0,
        "the broker also sends the other messages of a chunk"
    );
}

#[test]
fn the_example_resumes_a_stream_where_it_stopped() {
    let name = unique("orders");
    let run = |offset: &str| {
        let printed = Program::run("stream", &["fr", offset, &name], &url());
        let lines: Vec<_> = printed.lines().map(str::to_owned).collect();
        let (last, orders) = lines.split_last().unwrap();
        let next = last.strip_prefix("the next run starts at offset ");
        (next.unwrap().to_owned(), orders.to_vec())
    };
    let (next, orders) = run("0");
    assert_eq!(orders, ["0: order 1 from fr", "3: order 2 from fr"]);
    let (_, orders) = run(&next);
    assert_eq!(orders, ["6: order 1 from fr", "9: order 2 from fr"]);
    let channel = channel();
    channel.queue_delete(&name, Default::default()).unwrap();
}

/// Reads a stream while the connection is cut again and again. Returns the offsets of the wanted
/// messages.
fn read_with_cuts(options: ConsumeOptions, is_wanted: impl Fn(&Delivery) -> bool) -> Vec<u64> {
    const MESSAGES: u64 = 3_000;
    let stream = Stream::declare();
    let publishing = std::thread::spawn({
        let channel = connect().open_channel().unwrap();
        let name = stream.name().to_owned();
        move || {
            let publisher = channel.publisher().unwrap();
            for number in 0..MESSAGES {
                let value = ["even", "odd"][usize::from(number % 2 == 1)];
                let message = Message::new(number.to_string()).stream_filter_value(value);
                publisher.publish("", &name, message).unwrap();
                if number % 100 == 0 {
                    publisher.wait_for_confirms().unwrap();
                }
            }
            publisher.wait_for_confirms().unwrap();
        }
    });
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let consumer = consume(&channel, stream.name(), options);
    let (mut offsets, mut cuts) = (Vec::new(), 0);
    loop {
        let delivery = consumer.recv_timeout(SOON).unwrap();
        let delivery = delivery.expect("all messages come");
        if is_wanted(&delivery) {
            let offset = delivery.stream_offset().unwrap();
            assert_eq!(delivery.body(), offset.to_string().as_bytes());
            offsets.push(offset);
        }
        let _ = delivery.ack();
        // The last odd message may not come, so stop at the last even one.
        if delivery.stream_offset() >= Some(MESSAGES - 2) {
            break;
        }
        if offsets.len() as u64 >= (cuts + 1) * MESSAGES / 14 && cuts < 6 {
            cuts += 1;
            lossy.lose();
        }
    }
    assert_eq!((cuts, consumer.recovery_count()), (6, 6));
    publishing.join().unwrap();
    offsets
}

/// Checks that the offsets start at 0 and grow by `step`.
#[track_caller]
fn assert_no_gap(offsets: &[u64], step: u64) {
    let mut expected = (0..).map(|it| it * step);
    let wrong = offsets.iter().copied().find_map(|it| {
        let expected = expected.next().unwrap();
        (it != expected).then_some((it, expected))
    });
    assert_eq!(wrong, None, "an offset, and the expected one");
}

#[test]
fn a_stream_is_read_without_gaps_or_repetitions_across_losses() {
    let offsets = read_with_cuts(from(StreamOffset::First), |_| true);
    assert_no_gap(&offsets, 1);
}

#[test]
fn a_filtered_stream_is_read_without_gaps_or_repetitions_across_losses() {
    let options = from(StreamOffset::First).stream_filter(["even"]);
    let is_even = |it: &Delivery| it.stream_filter_value() == Some("even");
    let offsets = read_with_cuts(options, is_even);
    assert_no_gap(&offsets, 2);
}

#[test]
fn a_receiver_keeps_the_order_of_a_stream_across_losses() {
    const MESSAGES: u64 = 5_000;
    let stream = Stream::declare();
    let publisher = stream.0.channel().publisher().unwrap();
    for number in 0..MESSAGES {
        let message = Message::new(number.to_string());
        publisher.publish("", stream.name(), message).unwrap();
    }
    publisher.wait_for_confirms().unwrap();
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let consumer = consume(&channel, stream.name(), from(StreamOffset::First));
    // The reader and the cuts must not wait for each other.
    std::thread::scope(|scope| {
        let cuts = scope.spawn(|| (0..10).for_each(|_| drop(lossy.lose())));
        for offset in 0..MESSAGES {
            let delivery = consumer.receiver().recv_timeout(SOON).unwrap().unwrap();
            assert_eq!(delivery.stream_offset(), Some(offset));
            let _ = delivery.ack();
            if !cuts.is_finished() {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        cuts.join().unwrap();
    });
}

/// While a node starts, RabbitMQ 3.10 and 4.0 answer 404 for streams that exist.
#[test]
fn a_node_restart_repeats_no_message_of_a_stream() {
    const CONSUMERS: usize = 10;
    let node = Node::start();
    let options = node.options().recovery(quick());
    let declaring = Connection::open_with(&options).unwrap();
    let channel = declaring.open_channel().unwrap();
    let stream = channel
        .queue_declare("stream", QueueDeclareOptions::stream())
        .unwrap();
    let publisher = channel.publisher().unwrap();
    let publish = |number: u64| {
        let message = Message::new(number.to_string()).persistent(true);
        let confirm = publisher.publish("", stream.name(), message).unwrap();
        confirm.wait_timeout(SOON).unwrap();
    };
    (0..10).for_each(publish);
    let connections = [(); CONSUMERS].map(|()| Connection::open_with(&options).unwrap());
    let consumers = connections.each_ref().map(|connection| {
        let channel = connection.open_channel().unwrap();
        consume(&channel, stream.name(), from(StreamOffset::First))
    });
    for consumer in &consumers {
        assert_eq!(bodies_up_to(consumer, "9").len(), 10);
    }
    let events = connections.each_ref().map(Connection::events);
    node.ctl(&["stop_app"]);
    node.ctl(&["start_app"]);
    events.iter().for_each(|it| drop(recovered(it)));
    // The stream may be available later than its node.
    eventually("the stream takes messages again", || {
        let confirm = publisher.publish("", stream.name(), "10");
        confirm.is_ok_and(|it| it.wait_timeout(SOON).is_ok())
    });
    for consumer in &consumers {
        assert_eq!(next_body(consumer), "10");
    }

    // The rest stays unread. Unacknowledged messages would close the channel after
    // `consumer_timeout`.
    let last = consume(&channel, stream.name(), from(StreamOffset::First));
    let _ = next(&last);
    eventually("the consumer has unread messages", || last.unread() > 0);
    drop(last);
    eventually("the broker waits for no acknowledgement", || {
        let counts = node.ctl(&["list_channels", "messages_unacknowledged"]);
        counts.lines().skip(1).all(|it| it == "0")
    });
}

/// A consumer whose connection can be lost while the test publishes.
struct Interrupted {
    proxy: Proxy,
    connection: Connection,
    events: crossbeam_channel::Receiver<ConnectionEvent>,
}

impl Interrupted {
    fn new() -> Self {
        let proxy = Proxy::start(&url());
        let connection = Connection::open_with(proxy.options()).unwrap();
        let events = connection.events();
        Self {
            proxy,
            connection,
            events,
        }
    }

    fn consume(&self, stream: &str, options: ConsumeOptions) -> Consumer {
        consume(&self.connection.open_channel().unwrap(), stream, options)
    }

    fn meanwhile(&self, what: impl FnOnce()) {
        self.proxy.refuse(true);
        self.proxy.cut();
        what();
        self.proxy.refuse(false);
        recovered(&self.events);
    }
}

#[test]
fn a_loss_before_the_first_message_leaves_no_gap_in_a_stream() {
    let cases = [
        from(StreamOffset::Next),
        from(StreamOffset::Next).stream_filter(["wanted"]),
        from(StreamOffset::Last).stream_filter(["wanted"]),
        from(StreamOffset::Interval(Duration::from_secs(1))).stream_filter(["wanted"]),
        ConsumeOptions::default().stream_filter(["wanted"]),
    ];
    for options in cases {
        let stream = Stream::declare();
        let interrupted = Interrupted::new();
        let consumer = interrupted.consume(stream.name(), options.clone());
        for number in 0..2 {
            interrupted.meanwhile(|| {
                let message = Message::new(number.to_string()).stream_filter_value("wanted");
                let other = Message::new("other").stream_filter_value("other");
                let messages = match number {
                    // First a message that the filter excludes, and then another loss.
                    0 => vec![other],
                    _ => vec![other.clone(), message, other],
                };
                let is_filtered = format!("{options:?}").contains("x-stream-filter");
                let messages = messages
                    .into_iter()
                    .filter(|it| is_filtered && has_filters() || it.body() != b"other");
                stream.publish_one_by_one(messages);
            });
        }
        assert_eq!(next_body(&consumer), "1", "{options:?}");
        stream.publish_one_by_one([Message::new("2").stream_filter_value("wanted")]);
        assert_eq!(next_body(&consumer), "2", "{options:?}");
        assert_eq!(consumer.recovery_count(), 2);
    }
}

#[test]
fn a_redeclared_stream_is_read_from_its_start() {
    let declare = |channel: &Channel, name: &str| {
        let options = QueueDeclareOptions::stream();
        channel.queue_declare(name, options).unwrap();
    };
    // The recovery declares the stream, or another program does so later.
    for is_recovered in [true, false] {
        let stream = Stream::declare();
        let interrupted = Interrupted::new();
        if is_recovered {
            let channel = interrupted.connection.open_channel().unwrap();
            declare(&channel, stream.name());
        }
        let consumer = interrupted.consume(stream.name(), from(StreamOffset::First));
        stream.publish_numbers(0..5);
        assert_eq!(bodies_up_to(&consumer, "4").len(), 5);
        interrupted.meanwhile(|| {
            let channel = connect().open_channel().unwrap();
            let deleted = channel.queue_delete(stream.name(), Default::default());
            deleted.unwrap();
        });
        if !is_recovered {
            declare(&channel(), stream.name());
        }
        stream.publish_numbers(10..13);
        assert_eq!(bodies_up_to(&consumer, "12"), ["10", "11", "12"]);
    }
}

#[test]
fn workers_read_a_redeclared_stream_from_its_start() {
    let stream = Stream::declare();
    let connection = connect();
    let workers = Workers::new(&connection);
    let (handled, is_handled) = unbounded();
    let options = WorkerOptions::default()
        .restart_delay(Duration::from_millis(10))
        .max_restart_delay(Duration::from_millis(200))
        .prefetch(10)
        .consume(from(StreamOffset::Next));
    let events = connection.events();
    workers
        .consume_with(stream.name(), options, move |delivery| {
            handled.send(delivery.body().to_vec()).unwrap();
            Settlement::Ack
        })
        .unwrap();
    let channel = channel();
    channel
        .queue_delete(stream.name(), Default::default())
        .unwrap();
    let is_refused = |it: &ConnectionEvent| matches!(it, ConnectionEvent::WorkerInterrupted { error, .. } if error.reply_code().is_some());
    eventually("the worker misses its stream", || {
        events.try_iter().any(|it| is_refused(&it))
    });
    let options = QueueDeclareOptions::stream();
    channel.queue_declare(stream.name(), options).unwrap();
    stream.publish_numbers(0..3);
    let bodies: BTreeSet<_> = (0..3)
        .map(|_| is_handled.recv_timeout(SOON).unwrap())
        .collect();
    let expected = ["0", "1", "2"].map(|it| it.as_bytes().to_vec());
    assert_eq!(bodies, expected.into());
    workers.shutdown(SOON).unwrap();
}
