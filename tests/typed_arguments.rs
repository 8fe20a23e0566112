//! Queues, exchanges and consumers with arguments that nobody has to spell.

use std::time::{Duration, SystemTime};

use leveret::{
    Channel, ConsumeOptions, ExchangeDeclareOptions, ExchangeKind, Message, NackOptions, Overflow,
    Queue, QueueDeclareOptions, QueueType, StreamOffset,
};

use crate::support::{channel, connect, eventually, exclusive_queue, ready, unique, SOON};

/// The body of the next message of the queue, which is acknowledged.
#[track_caller]
fn next(queue: &Queue) -> String {
    let mut body = None;
    eventually("a message is there", || {
        let message = queue.get(true).unwrap();
        body = message.map(|it| String::from_utf8(it.into_body()).unwrap());
        body.is_some()
    });
    body.unwrap()
}

fn publish(channel: &Channel, queue: &Queue, bodies: &[&str]) {
    let publisher = channel.publisher().unwrap();
    for body in bodies {
        publisher.publish("", queue.name(), *body).unwrap();
    }
    publisher.wait_for_confirms().unwrap();
}

#[test]
fn messages_that_a_queue_does_not_keep_are_dead_lettered() {
    let channel = channel();
    let dead = exclusive_queue(&channel);
    let options = QueueDeclareOptions::exclusive()
        .queue_type(QueueType::Classic)
        .dead_letter_exchange("")
        .dead_letter_routing_key(dead.name());
    let cases = [
        (
            options.clone().message_ttl(Duration::from_millis(50)),
            &["old"][..],
            "old",
        ),
        (options.clone().max_length(1), &["first", "second"], "first"),
        (
            options.clone().max_length_bytes(10),
            &["one of ten", "more"],
            "one of ten",
        ),
    ];
    for (options, bodies, expected) in cases {
        let queue = channel.queue_declare("", options).unwrap();
        publish(&channel, &queue, bodies);
        assert_eq!(next(&dead), expected);
    }
    // Refused, and dead-lettered all the same.
    let full = options.max_length(1).overflow(Overflow::RejectPublishDlx);
    let queue = channel.queue_declare("", full).unwrap();
    let publisher = channel.publisher().unwrap();
    publisher
        .publish("", queue.name(), "kept")
        .unwrap()
        .wait()
        .unwrap();
    publisher
        .publish("", queue.name(), "refused")
        .unwrap()
        .wait()
        .unwrap_err();
    assert_eq!(next(&dead), "refused");
}

#[test]
fn a_queue_that_nobody_uses_expires() {
    let channel = channel();
    let options = QueueDeclareOptions::durable().expires(Duration::from_millis(300));
    let name = unique("expires");
    channel.queue_declare(&name, options).unwrap();
    // A question counts as use: it has to be asked at longer intervals.
    eventually("it is gone", || {
        std::thread::sleep(Duration::from_secs(1));
        !channel.connection().queue_exists(&name).unwrap()
    });
}

#[test]
fn messages_of_a_higher_priority_come_first() {
    let channel = channel();
    let options = QueueDeclareOptions::exclusive().max_priority(5);
    let queue = channel.queue_declare("", options).unwrap();
    for priority in [1, 5, 3] {
        let message = Message::new(priority.to_string()).priority(priority);
        queue.publish(message).unwrap();
    }
    eventually("they are there", || ready(&channel, queue.name()) == 3);
    assert_eq!([next(&queue), next(&queue), next(&queue)], ["5", "3", "1"]);
}

#[test]
fn one_consumer_at_a_time_or_the_one_of_the_highest_priority() {
    let channel = channel();
    let options = QueueDeclareOptions::exclusive().single_active_consumer();
    let queue = channel.queue_declare("", options).unwrap();
    let consume = || ConsumeOptions::default().no_ack();
    let (first, second) = (
        queue.consume(consume()).unwrap(),
        queue.consume(consume()).unwrap(),
    );
    publish(&channel, &queue, &["1", "2", "3", "4"]);
    for _ in 0..4 {
        let delivery = first.recv_timeout(SOON).unwrap();
        assert!(delivery.is_some(), "all go to the first");
    }
    first.cancel().unwrap();
    queue.publish("5").unwrap();
    let delivery = second.recv_timeout(SOON).unwrap();
    assert!(delivery.is_some(), "now the second gets them");

    let queue = exclusive_queue(&channel);
    let low = queue.consume(consume().priority(-1)).unwrap();
    let high = queue.consume(consume().priority(10)).unwrap();
    publish(&channel, &queue, &["1", "2", "3", "4"]);
    for _ in 0..4 {
        let delivery = high.recv_timeout(SOON).unwrap();
        assert!(delivery.is_some(), "all go to the higher one");
    }
    assert!(low.try_recv().unwrap().is_none());
}

#[test]
fn a_quorum_queue_counts_deliveries_and_gives_up_at_its_limit() {
    let channel = channel();
    let dead = exclusive_queue(&channel);
    let options = QueueDeclareOptions::quorum()
        .delivery_limit(2)
        .dead_letter_exchange("")
        .dead_letter_routing_key(dead.name());
    let queue = channel.queue_declare(&unique("quorum"), options).unwrap();
    publish(&channel, &queue, &["poison"]);
    let consumer = queue.consume(ConsumeOptions::default()).unwrap();
    for count in [None, Some(1), Some(2)] {
        let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
        assert_eq!(delivery.delivery_count().filter(|count| *count > 0), count);
        delivery.reject(true).unwrap();
    }
    assert_eq!(next(&dead), "poison");
    queue.delete(Default::default()).unwrap();
}

#[test]
fn a_message_tells_how_often_it_was_delivered_and_how_often_that_failed() {
    let channel = channel();
    let queue = channel
        .queue_declare(&unique("counted"), QueueDeclareOptions::quorum())
        .unwrap();
    publish(&channel, &queue, &["again"]);
    let consumer = queue.consume(ConsumeOptions::default()).unwrap();
    let next = || consumer.recv_timeout(SOON).unwrap().unwrap();
    let first = next();
    assert_eq!(first.acquired_count(), None);
    first.nack(NackOptions::requeue()).unwrap();
    next().reject(true).unwrap();
    let third = next();
    let counts = (third.acquired_count(), third.delivery_count());
    match tells_failures_apart(&channel) {
        true => assert_eq!(counts, (Some(2), Some(1)), "only the reject is a failure"),
        false => assert_eq!(counts, (None, Some(2)), "both are counted alike"),
    }
    third.ack().unwrap();
    queue.delete(Default::default()).unwrap();
}

/// RabbitMQ does so since 4.3; the broker in the box does not.
fn tells_failures_apart(channel: &Channel) -> bool {
    let properties = channel.connection().server_properties();
    let text = |key| properties.get(key).and_then(|value| value.as_str());
    let version = text("version").unwrap_or_default();
    let mut numbers = version.split('.').map_while(|it| it.parse::<u32>().ok());
    let version = (numbers.next(), numbers.next());
    text("product") == Some("RabbitMQ") && version >= (Some(4), Some(3))
}

#[test]
fn a_stream_is_read_from_anywhere_as_often_as_one_likes() {
    let channel = channel();
    let before = SystemTime::now() - Duration::from_secs(3600);
    let options = QueueDeclareOptions::stream()
        .max_length_bytes(10_000_000)
        .max_age(Duration::from_secs(3600));
    let queue = channel.queue_declare(&unique("stream"), options).unwrap();
    publish(&channel, &queue, &["0", "1", "2"]);
    let cases = [
        (StreamOffset::First, "0"),
        (StreamOffset::Offset(2), "2"),
        (StreamOffset::Time(before), "0"),
    ];
    for (offset, expected) in cases {
        let reading = channel.connection().open_channel().unwrap();
        reading.basic_qos(10).unwrap();
        let consume = ConsumeOptions::default().stream_offset(offset);
        let consumer = reading.basic_consume(queue.name(), consume).unwrap();
        let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
        assert_eq!(delivery.body(), expected.as_bytes(), "{offset:?}");
        delivery.ack().unwrap();
    }
    channel.basic_qos(10).unwrap();
    let consume = ConsumeOptions::default().stream_offset(StreamOffset::Next);
    let consumer = queue.consume(consume).unwrap();
    publish(&channel, &queue, &["3"]);
    assert_eq!(consumer.recv_timeout(SOON).unwrap().unwrap().body(), b"3");
    queue.delete(Default::default()).unwrap();
}

#[test]
fn what_an_exchange_cannot_route_goes_to_its_alternate() {
    let channel = channel();
    let names = [unique("alternate"), unique("main")];
    let temporary = || ExchangeDeclareOptions::default().auto_delete();
    let alternate = channel
        .exchange_declare(&names[0], ExchangeKind::Fanout, temporary())
        .unwrap();
    let options = temporary().alternate_exchange(alternate.name());
    let main = channel
        .exchange_declare(&names[1], ExchangeKind::Direct, options)
        .unwrap();
    let queue = exclusive_queue(&channel);
    queue.bind(&alternate, "").unwrap();
    main.publish("nobody", "unrouted").unwrap();
    assert_eq!(next(&queue), "unrouted");
}

#[test]
fn existence_is_asked_without_costing_a_channel() {
    let connection = connect();
    let channel = connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    assert!(connection.queue_exists(queue.name()).unwrap());
    // Also for one who may not use it.
    assert!(connect().queue_exists(queue.name()).unwrap());
    assert!(!connection.queue_exists("no such queue").unwrap());
    assert!(connection.exchange_exists("amq.topic").unwrap());
    assert!(!connection.exchange_exists("no such exchange").unwrap());
    assert!(channel.is_open());
}
