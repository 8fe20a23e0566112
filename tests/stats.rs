//! `ConnectionStats` and the metrics hook.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use leveret::broker::Broker;
use leveret::{
    AckMode, Connection, ConnectionEvent, ConsumeOptions, ErrorKind, Metrics, NackOptions,
    PublisherOptions, QueueDeclareOptions, Requeue,
};

use crate::support::{eventually, exclusive_queue, options, SOON};

/// Counts the events that the hook receives.
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
fn stats_and_metrics_count_the_same_events() {
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
    // A queue of ten messages that nacks more.
    let few = QueueDeclareOptions::temporary()
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
    assert!(queue.get_with(AckMode::Automatic).unwrap().is_some());
    let consumer = queue
        .consume_with(ConsumeOptions::default().no_ack(true))
        .unwrap();
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
    // Two channels opened and one closed, two queues declared, confirm mode, one fetch, one
    // consumer.
    assert_eq!(stats.calls, 8);
    assert!(stats.call_time > Duration::ZERO && stats.call_time < SOON);
    assert!(stats.bytes_sent > (1 << 20) + 95_000, "{stats:?}");
    assert!(stats.bytes_received > (1 << 20) + 95_000, "{stats:?}");
    connection.close().unwrap();
    eventually("the hook has counted the same", || {
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

/// A bug in a program's metrics that panics on every message event.
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
fn metrics_that_keep_panicking_close_the_connection() {
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
    let consumers = [&one, &other].map(|it| it.consume().unwrap());
    let publisher = connection.open_channel().unwrap().publisher().unwrap();
    poisoned.0.store(true, Ordering::SeqCst);
    let confirms: Vec<_> = (0..50)
        .filter_map(|_| publisher.publish("amq.fanout", "", "m").ok())
        .collect();
    assert!(connection.wait_closed(SOON).is_ok());
    assert!(!connection.is_open());
    let cause = connection.close_cause().unwrap();
    // No wait hangs, and every handle gets the same cause.
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

#[test]
fn acknowledgements_redeliveries_and_closed_channels_are_counted() {
    let connection = Connection::open_with(options()).unwrap();
    let channel = connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    for _ in 0..5 {
        queue.publish("m").unwrap();
    }
    let consumer = queue.consume().unwrap();
    let next = || consumer.recv_timeout(SOON).unwrap().unwrap();
    let deliveries: Vec<_> = (0..5).map(|_| next()).collect();
    deliveries[1].ack_multiple().unwrap();
    deliveries[2].reject(Requeue::Yes).unwrap();
    deliveries[3].nack(NackOptions::requeue()).unwrap();
    deliveries[4].ack().unwrap();
    for _ in 0..2 {
        next().ack().unwrap();
    }
    // The last message is fetched, twice.
    drop(consumer);
    queue.publish("m").unwrap();
    queue.get().unwrap().unwrap().reject(Requeue::Yes).unwrap();
    queue.get().unwrap().unwrap().ack().unwrap();
    let stats = connection.stats();
    assert_eq!((stats.acks, stats.nacks, stats.rejects), (5, 1, 2));
    assert_eq!((stats.messages_delivered, stats.redeliveries), (9, 3));
    assert_eq!(stats.unread_bytes, 0);

    assert!(!connection.queue_exists("no such queue").unwrap());
    assert_eq!(connection.stats().channels_closed_by_broker, 0);
    channel.queue_declare_passive("no such queue").unwrap_err();
    connection.open_channel().unwrap().close().unwrap();
    assert_eq!(connection.stats().channels_closed_by_broker, 1);
}

#[test]
fn unread_unconfirmed_and_unsent_amounts_are_known_at_any_time() {
    let broker = Broker::start().unwrap();
    let connection = Connection::open(broker.uri()).unwrap();
    let channel = connection.open_channel().unwrap();
    let (queue, sink) = (exclusive_queue(&channel), exclusive_queue(&channel));
    let consumer = queue
        .consume_with(ConsumeOptions::default().no_ack(true))
        .unwrap();
    let idle = |stats: leveret::ConnectionStats| {
        let unconfirmed = (stats.unconfirmed_messages, stats.unconfirmed_bytes);
        (unconfirmed, stats.unread_bytes, stats.outbox_bytes) == ((0, 0), 0, 0)
    };
    assert!(idle(connection.stats()));
    queue.publish(vec![7; 1000]).unwrap();
    eventually("the consumer has the message", || consumer.unread() == 1);
    let unread = connection.stats().unread_bytes;
    assert!((1000..2000).contains(&unread), "{unread}");
    drop(consumer.recv().unwrap().unwrap());

    let channels = [(); 3].map(|()| connection.open_channel().unwrap());
    let publishers = [0, 1].map(|at: usize| channels[at].publisher().unwrap());
    broker.stop_answering(true);
    for (publisher, size) in publishers.iter().zip([100, 1 << 20]) {
        publisher.publish("", sink.name(), vec![7; size]).unwrap();
    }
    // Publish until neither the socket nor the outbox takes more.
    let error = loop {
        let published = channels[2].try_basic_publish("", sink.name(), vec![7; 64 << 10]);
        if let Err(error) = published {
            break error;
        }
    };
    assert!(
        matches!(error.kind(), ErrorKind::OutboxFull { .. }),
        "{error}"
    );
    eventually("the socket takes no more", || {
        let before = connection.stats();
        std::thread::sleep(Duration::from_millis(50));
        let stats = connection.stats();
        stats.bytes_sent == before.bytes_sent && stats.outbox_bytes >= 512 << 10
    });
    let stats = connection.stats();
    let unconfirmed = (stats.unconfirmed_messages, stats.unconfirmed_bytes);
    assert_eq!(unconfirmed, (2, 100 + (1 << 20)));
    broker.stop_answering(false);
    for publisher in &publishers {
        publisher.wait_for_confirms().unwrap();
    }
    eventually("the connection is idle", || idle(connection.stats()));
}

#[test]
fn the_time_for_which_a_connection_is_blocked_or_lost_is_known() {
    let broker = Broker::start().unwrap();
    let connection = Connection::open(broker.uri()).unwrap();
    let since = || (connection.stats().blocked_for, connection.stats().lost_for);
    assert_eq!(since(), (None, None));
    broker.block("a test");
    eventually("the connection is blocked", || since().0.is_some());
    let blocked_for = since().0.unwrap();
    broker.block("a test again");
    eventually("the blocked time increases", || {
        since().0.unwrap() > blocked_for
    });
    assert!(blocked_for < SOON);
    broker.unblock();
    eventually("the connection is not blocked", || since() == (None, None));

    broker.refuse_connections(true);
    broker.drop_connections();
    eventually("the connection is lost", || since().1.is_some());
    let lost_for = since().1.unwrap();
    eventually("the lost time increases", || since().1.unwrap() > lost_for);
    broker.refuse_connections(false);
    eventually("the connection is back", || since() == (None, None));
    assert_eq!(connection.stats().recoveries, 1);
    broker.refuse_connections(true);
    broker.drop_connections();
    eventually("the connection is lost again", || since().1.is_some());
    connection.close().unwrap();
    assert_eq!(since(), (None, None));
}
