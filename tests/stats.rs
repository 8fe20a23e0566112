//! What a connection has done, in numbers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use leveret::{Connection, ConnectionEvent, ConsumeOptions, Metrics, PublisherOptions};

use crate::support::{eventually, exclusive_queue, options, SOON};

/// Counts what it is told.
#[derive(Default)]
struct Own {
    bytes: [AtomicU64; 2],
    delivered: AtomicU64,
    published: AtomicU64,
    returned: AtomicU64,
    answered: [AtomicU64; 2],
    calls: AtomicU64,
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::SeqCst);
}

impl Metrics for Own {
    fn bytes_received(&self, count: usize) {
        add(&self.bytes[0], count as u64);
    }
    fn bytes_sent(&self, count: usize) {
        add(&self.bytes[1], count as u64);
    }
    fn message_delivered(&self) {
        add(&self.delivered, 1);
    }
    fn message_published(&self) {
        add(&self.published, 1);
    }
    fn message_returned(&self) {
        add(&self.returned, 1);
    }
    fn messages_confirmed(&self, count: u64, nacked: bool) {
        add(&self.answered[usize::from(nacked)], count);
    }
    fn call_answered(&self, time: Duration) {
        assert!(time > Duration::ZERO && time < SOON);
        add(&self.calls, 1);
    }
}

#[test]
fn what_has_been_done_is_counted_and_told() {
    let own = Arc::new(Own::default());
    let options = options().metrics(Arc::<Own>::clone(&own));
    let connection = Connection::open_with(&options).unwrap();
    assert_eq!(
        (connection.stats().channels, connection.stats().calls),
        (0, 0)
    );
    let channel = connection.open_channel().unwrap();
    connection.open_channel().unwrap().close().unwrap();
    let queue = exclusive_queue(&channel);
    // A queue of ten that refuses more.
    let few = leveret::QueueDeclareOptions::exclusive()
        .max_length(10)
        .overflow(leveret::Overflow::RejectPublish);
    let few = channel.queue_declare("", few).unwrap();
    for _ in 0..5 {
        queue.publish("unconfirmed").unwrap();
    }
    let publisher = channel.publisher_with(PublisherOptions::default()).unwrap();
    for _ in 0..95 {
        publisher.publish("", queue.name(), vec![7; 1000]).unwrap();
    }
    publisher
        .publish("", queue.name(), vec![7; 1 << 20])
        .unwrap();
    for _ in 0..3 {
        publisher.publish("", "nowhere", "").unwrap();
    }
    for _ in 0..12 {
        publisher.publish("", few.name(), "").unwrap();
    }
    publisher.wait_for_confirms().unwrap_err();
    assert!(queue.get(true).unwrap().is_some());
    let consumer = queue.consume(ConsumeOptions::default().no_ack()).unwrap();
    for _ in 0..100 {
        assert!(consumer.recv_timeout(SOON).unwrap().is_some());
    }
    let stats = connection.stats();
    assert_eq!(stats.messages_published, 5 + 95 + 1 + 3 + 12);
    assert_eq!(stats.messages_delivered, 101);
    assert_eq!(stats.messages_returned, 3);
    // A returned message is confirmed, too.
    assert_eq!(stats.messages_confirmed + stats.messages_nacked, 111);
    assert!(stats.messages_nacked >= 1, "{stats:?}");
    assert_eq!(stats.channels, 1);
    // Two opened, one closed, two declared, confirm mode, one fetched, one consumer.
    assert_eq!(stats.calls, 8);
    assert!(stats.call_time > Duration::ZERO && stats.call_time < SOON);
    assert!(stats.bytes_sent > (1 << 20) + 95_000, "{stats:?}");
    assert!(stats.bytes_received > (1 << 20) + 95_000, "{stats:?}");
    connection.close().unwrap();
    eventually("the hook was told the same", || {
        let stats = connection.stats();
        let told = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        [
            (told(&own.bytes[0]), stats.bytes_received),
            (told(&own.bytes[1]), stats.bytes_sent),
            (told(&own.delivered), stats.messages_delivered),
            (told(&own.published), stats.messages_published),
            (told(&own.returned), stats.messages_returned),
            (told(&own.answered[0]), stats.messages_confirmed),
            (told(&own.answered[1]), stats.messages_nacked),
            (told(&own.calls), stats.calls),
        ]
        .iter()
        .all(|(told, counted)| told == counted)
    });
    assert_eq!(connection.stats().channels, 0);
}

/// A bug in a program's metrics, which shows with each event that was taken in together.
#[derive(Default)]
struct Poisoned(AtomicBool);

impl Poisoned {
    fn panic(&self) {
        assert!(
            !self.0.load(Ordering::SeqCst),
            "a bug in the program's metrics"
        );
    }
}

impl Metrics for Poisoned {
    fn message_delivered(&self) {
        self.panic();
    }

    fn message_returned(&self) {
        self.panic();
    }

    fn messages_confirmed(&self, _: u64, _: bool) {
        self.panic();
    }
}

#[test]
fn metrics_that_panic_again_and_again_end_the_connection_for_everyone() {
    let poisoned = Arc::new(Poisoned::default());
    let options = options().metrics(Arc::<Poisoned>::clone(&poisoned));
    let connection = Connection::open_with(&options).unwrap();
    let events = connection.events();
    let channel = connection.open_channel().unwrap();
    let (one, other) = (exclusive_queue(&channel), exclusive_queue(&channel));
    for queue in [&one, &other] {
        let exchange = channel.exchange("amq.fanout");
        queue.bind(&exchange, "").unwrap();
    }
    let consumers = [&one, &other].map(|it| it.consume(ConsumeOptions::default()).unwrap());
    let publisher = connection.open_channel().unwrap().publisher().unwrap();
    poisoned.0.store(true, Ordering::SeqCst);
    let confirms: Vec<_> = (0..50)
        .filter_map(|_| publisher.publish("amq.fanout", "", "m").ok())
        .collect();
    assert!(connection.wait_closed(SOON).is_ok());
    assert!(!connection.is_open());
    let cause = connection.close_cause().unwrap();
    // Nobody waits for ever, and everyone is told the same.
    for confirm in confirms {
        let told = confirm.wait_timeout(SOON);
        assert!(told.is_ok() || told.unwrap_err().is_connection_end());
    }
    for consumer in consumers {
        let end = consumer.iter().find_map(Result::err).unwrap();
        assert_eq!(end.kind(), cause.kind());
    }
    assert!(channel.basic_qos(1).unwrap_err().is_connection_end());
    let last = events.iter().last().unwrap();
    assert!(matches!(last, ConnectionEvent::Closed { .. }), "{last:?}");
}
