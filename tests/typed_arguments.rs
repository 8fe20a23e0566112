//! Typed options for the arguments of queues, exchanges and consumers.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use leveret::{
    AckMode, Channel, ConsumeOptions, DelayedRetry, ErrorKind, Exchange, ExchangeDeclareOptions,
    ExchangeKind, HashProperty, LeaderLocator, Message, NackOptions, Overflow, Queue,
    QueueDeclareOptions, QueueType, ReplyCode, Requeue, StreamOffset,
};

use crate::support::version;
use crate::support::{
    channel, connect, eventually, exclusive_queue, queue_with_dead_letters, ready, unique, Node,
    SOON,
};

/// Fetches the next message of the queue, acknowledges it, and returns its body.
#[track_caller]
fn next(queue: &Queue) -> String {
    let mut body = None;
    eventually("the queue has a message", || {
        let message = queue.get_with(AckMode::Automatic).unwrap();
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
fn expired_and_excess_messages_are_dead_lettered() {
    let channel = channel();
    let dead = exclusive_queue(&channel);
    let options = QueueDeclareOptions::temporary()
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
    // The full queue nacks the message, and dead-letters it as well.
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
fn an_unused_queue_expires() {
    let channel = channel();
    let options = QueueDeclareOptions::default().expires(Duration::from_millis(300));
    let name = unique("expires");
    channel.queue_declare(&name, options).unwrap();
    // Asking whether the queue exists counts as use, so ask at longer intervals.
    eventually("the queue is gone", || {
        std::thread::sleep(Duration::from_secs(1));
        !channel.connection().queue_exists(&name).unwrap()
    });
}

#[test]
fn messages_with_a_higher_priority_come_first() {
    let channel = channel();
    let options = QueueDeclareOptions::temporary().max_priority(5);
    let queue = channel.queue_declare("", options).unwrap();
    for priority in [1, 5, 3] {
        let message = Message::new(priority.to_string()).priority(priority);
        queue.publish(message).unwrap();
    }
    eventually("all messages are in the queue", || {
        ready(&channel, queue.name()) == 3
    });
    assert_eq!([next(&queue), next(&queue), next(&queue)], ["5", "3", "1"]);
}

#[test]
fn only_the_single_active_or_highest_priority_consumer_gets_messages() {
    let channel = channel();
    let options = QueueDeclareOptions::temporary().single_active_consumer(true);
    let queue = channel.queue_declare("", options).unwrap();
    let consume = || ConsumeOptions::default().no_ack(true);
    let (first, second) = (
        queue.consume_with(consume()).unwrap(),
        queue.consume_with(consume()).unwrap(),
    );
    publish(&channel, &queue, &["1", "2", "3", "4"]);
    for _ in 0..4 {
        let delivery = first.recv_timeout(SOON).unwrap();
        assert!(delivery.is_some(), "all messages go to the first consumer");
    }
    first.cancel().unwrap();
    queue.publish("5").unwrap();
    let delivery = second.recv_timeout(SOON).unwrap();
    assert!(delivery.is_some(), "the second consumer is active now");

    let queue = exclusive_queue(&channel);
    let low = queue.consume_with(consume().priority(-1)).unwrap();
    let high = queue.consume_with(consume().priority(10)).unwrap();
    publish(&channel, &queue, &["1", "2", "3", "4"]);
    for _ in 0..4 {
        let delivery = high.recv_timeout(SOON).unwrap();
        assert!(
            delivery.is_some(),
            "all messages go to the consumer with the higher priority"
        );
    }
    assert!(low.try_recv().unwrap().is_none());
}

#[test]
fn a_quorum_queue_counts_deliveries_up_to_its_limit() {
    let channel = channel();
    let options = QueueDeclareOptions::quorum().delivery_limit(2);
    let (queue, dead) = queue_with_dead_letters(&channel, &unique("quorum"), options);
    publish(&channel, &queue, &["poison"]);
    let consumer = queue.consume().unwrap();
    for count in [None, Some(1), Some(2)] {
        let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
        assert_eq!(delivery.delivery_count().filter(|count| *count > 0), count);
        delivery.reject(Requeue::Yes).unwrap();
    }
    assert_eq!(next(&dead), "poison");
    queue.delete().unwrap();
}

#[test]
fn a_message_carries_its_acquired_and_delivery_counts() {
    let channel = channel();
    let queue = channel
        .queue_declare(&unique("counted"), QueueDeclareOptions::quorum())
        .unwrap();
    publish(&channel, &queue, &["again"]);
    let consumer = queue.consume().unwrap();
    let next = || consumer.recv_timeout(SOON).unwrap().unwrap();
    let first = next();
    assert_eq!(first.acquired_count(), None);
    first.nack(NackOptions::requeue()).unwrap();
    next().reject(Requeue::Yes).unwrap();
    let third = next();
    let counts = (third.acquired_count(), third.delivery_count());
    match version() >= (4, 3) {
        true => assert_eq!(
            counts,
            (Some(2), Some(1)),
            "only the reject counts as a failure"
        ),
        false => assert_eq!(counts, (None, Some(2)), "nack and reject count the same"),
    }
    third.ack().unwrap();
    queue.delete().unwrap();
}

#[test]
fn unroutable_messages_go_to_the_alternate_exchange() {
    let channel = channel();
    let names = [unique("alternate"), unique("main")];
    let temporary = || ExchangeDeclareOptions::default().auto_delete(true);
    let alternate = channel
        .exchange_declare(&names[0], ExchangeKind::Fanout, temporary())
        .unwrap();
    let options = temporary().alternate_exchange(alternate.name());
    let main = channel
        .exchange_declare(&names[1], ExchangeKind::Direct, options)
        .unwrap();
    let queue = exclusive_queue(&channel);
    queue.bind(&alternate, "").unwrap();
    main.publish("nowhere", "unrouted").unwrap();
    assert_eq!(next(&queue), "unrouted");
}

#[test]
fn asking_for_existence_closes_no_channel() {
    let connection = connect();
    let channel = connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    assert!(connection.queue_exists(queue.name()).unwrap());
    // Another connection can ask, too, although it may not use the exclusive queue.
    assert!(connect().queue_exists(queue.name()).unwrap());
    assert!(!connection.queue_exists("no such queue").unwrap());
    assert!(connection.exchange_exists("amq.topic").unwrap());
    assert!(!connection.exchange_exists("no such exchange").unwrap());
    assert!(channel.is_open());
}

/// Declares a queue with a new name and deletes it. Returns the error's text if the broker refuses.
fn declare(options: QueueDeclareOptions) -> Result<(), String> {
    let connection = connect();
    let channel = connection.open_channel().unwrap();
    match channel.queue_declare(&unique("declared"), options) {
        Ok(queue) => {
            queue.delete().unwrap();
            Ok(())
        }
        Err(error) => {
            let code = error.reply_code();
            assert_eq!(code, Some(ReplyCode::PRECONDITION_FAILED), "{error}");
            Err(error.to_string())
        }
    }
}

fn classic() -> QueueDeclareOptions {
    QueueDeclareOptions::default().queue_type(QueueType::Classic)
}

/// Whether the tests run with the in-memory broker.
fn is_in_the_box() -> bool {
    let properties = connect().server_properties();
    properties.get("product").and_then(|it| it.as_str()) == Some("leveret")
}

/// Checks that classic queues refuse an argument for other queue types, from this version on.
#[track_caller]
fn classic_queues_refuse(options: QueueDeclareOptions, argument: &str, since: (u32, u32)) {
    let declared = declare(options);
    match version() >= since {
        true => assert!(declared.unwrap_err().contains(argument)),
        false => assert_eq!(declared, Ok(())),
    }
}

#[test]
fn a_quorum_queue_times_out_its_consumers() {
    let timeout = Duration::from_millis(300);
    let of_queue = |options: QueueDeclareOptions| options.consumer_timeout(timeout);
    classic_queues_refuse(of_queue(classic()), "x-consumer-timeout", (4, 3));
    let disconnected = classic().consumer_disconnected_timeout(timeout);
    classic_queues_refuse(disconnected, "x-consumer-disconnected-timeout", (4, 3));
    let disconnected = QueueDeclareOptions::quorum().consumer_disconnected_timeout(timeout);
    declare(disconnected).unwrap();

    let quorum = QueueDeclareOptions::quorum;
    let of_consumer = ConsumeOptions::default().consumer_timeout(timeout);
    let cases = [
        (of_queue(quorum()), ConsumeOptions::default()),
        (quorum(), of_consumer),
    ];
    for (options, consume) in cases {
        let channel = channel();
        let queue = channel.queue_declare(&unique("slow"), options).unwrap();
        publish(&channel, &queue, &["slow"]);
        let consumer = queue.consume_with(consume).unwrap();
        let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
        // Before 4.3, nothing happens within the minute after which the broker first looks.
        if version() >= (4, 3) {
            let error = consumer.recv_timeout(SOON).unwrap_err();
            let kind = error.kind();
            assert!(
                matches!(kind, ErrorKind::ConsumerCancelled { .. }),
                "{error}"
            );
            eventually("the message is requeued", || {
                ready(&channel, queue.name()) == 1
            });
        } else {
            assert!(consumer.try_recv().unwrap().is_none());
        }
        delivery.ack().unwrap();
        queue.delete().unwrap();
    }
}

#[test]
fn classic_queues_have_no_consumer_timeout_argument() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let consume = ConsumeOptions::default().consumer_timeout(SOON);
    match queue.consume_with(consume) {
        Ok(_) => assert!(version() < (4, 3)),
        Err(error) => {
            assert!(version() >= (4, 3), "{error}");
            assert_eq!(error.reply_code(), Some(ReplyCode::PRECONDITION_FAILED));
        }
    }
}

#[test]
fn a_quorum_queue_delays_requeued_messages() {
    let delayed =
        |which, min| QueueDeclareOptions::quorum().delayed_retry(which, min, min.saturating_mul(2));
    let long = delayed(DelayedRetry::Failed, 100 * SOON);
    let on_classic = long.queue_type(QueueType::Classic);
    classic_queues_refuse(on_classic, "x-delayed-retry-", (4, 3));

    let channel = channel();
    let begin = |options| {
        let queue = channel.queue_declare(&unique("retry"), options).unwrap();
        publish(&channel, &queue, &["first", "second"]);
        let consumer = queue.consume().unwrap();
        (queue, consumer)
    };
    let has_delay = version() >= (4, 3);
    // The kinds of failure that are delayed, and the message that comes back at once.
    let cases = [
        (DelayedRetry::Failed, "second"),
        (DelayedRetry::Returned, "first"),
    ];
    for (which, at_once) in cases {
        let (queue, consumer) = begin(delayed(which, 100 * SOON));
        let [failed, returned] = [(), ()].map(|()| consumer.recv_timeout(SOON).unwrap().unwrap());
        failed.reject(Requeue::Yes).unwrap();
        returned.nack(NackOptions::requeue()).unwrap();
        let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
        let expected = if has_delay { at_once } else { "first" };
        assert_eq!(delivery.body(), expected.as_bytes(), "{which:?}");
        queue.delete().unwrap();
    }
    // The delay grows with the failures, up to its maximum.
    let min = Duration::from_millis(100);
    let (queue, consumer) = begin(delayed(DelayedRetry::All, min));
    let mut returned = [Instant::now(); 2];
    for round in 0..4 {
        for _ in 0..2 {
            let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
            let at = &mut returned[usize::from(delivery.body() == b"second")];
            if has_delay {
                assert!(at.elapsed() >= min * round.min(2), "round {round}");
            }
            *at = Instant::now();
            delivery.reject(Requeue::Yes).unwrap();
        }
    }
    queue.delete().unwrap();
}

#[test]
fn at_least_once_dead_letters_are_kept_until_another_queue_has_them() {
    let channel = channel();
    let temporary = ExchangeDeclareOptions::default().auto_delete(true);
    let failed = channel
        .exchange_declare(&unique("failed"), ExchangeKind::Fanout, temporary)
        .unwrap();
    let options = QueueDeclareOptions::quorum().dead_letter_at_least_once(failed.name());
    let publisher = channel.publisher().unwrap();
    let publish = |queue: &Queue| {
        let confirm = publisher.publish("", queue.name(), "dead").unwrap();
        confirm.wait()
    };

    // No queue takes the dead letters, so they stay and fill the queue.
    let full = options.clone().max_length(2);
    let queue = channel.queue_declare(&unique("kept"), full).unwrap();
    let mut accepted = 0;
    eventually("the queue is full of dead letters", || {
        accepted += 1;
        if is_in_the_box() && accepted == 5 {
            // The in-memory broker drops dead letters that it cannot route.
            return true;
        }
        if publish(&queue).is_err() {
            return true;
        }
        let mut fetched = None;
        eventually("the queue has the message", || {
            fetched = queue.get().unwrap();
            fetched.is_some()
        });
        fetched.unwrap().reject(Requeue::No).unwrap();
        false
    });
    queue.delete().unwrap();

    let dead = exclusive_queue(&channel);
    dead.bind(&failed, "").unwrap();
    let queue = channel.queue_declare(&unique("kept"), options).unwrap();
    publish(&queue).unwrap();
    eventually("the queue has the message", || {
        let fetched = queue.get().unwrap();
        fetched.is_some_and(|it| it.reject(Requeue::No).is_ok())
    });
    assert_eq!(next(&dead), "dead");
    queue.delete().unwrap();

    let error = declare(classic().dead_letter_at_least_once("failed")).unwrap_err();
    assert!(error.contains("x-dead-letter-strategy"), "{error}");
}

#[test]
fn a_quorum_queue_can_deliver_without_a_limit() {
    let channel = channel();
    let options = QueueDeclareOptions::quorum().no_delivery_limit();
    let (queue, dead) = queue_with_dead_letters(&channel, &unique("limit"), options);
    publish(&channel, &queue, &["again"]);
    let consumer = queue.consume().unwrap();
    if !is_in_the_box() && version() < (4, 0) {
        // RabbitMQ 3 takes the value for a limit that is exceeded at once.
        let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
        delivery.reject(Requeue::Yes).unwrap();
        assert_eq!(next(&dead), "again");
    } else {
        // More often than the default limit of RabbitMQ 4 allows.
        for _ in 0..25 {
            let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
            delivery.reject(Requeue::Yes).unwrap();
        }
    }
    queue.delete().unwrap();
}

#[test]
fn placement_arguments_of_quorum_queues_are_accepted() {
    // A single node only shows that the broker reads the arguments; their effect needs a cluster.
    let quorum = QueueDeclareOptions::quorum;
    declare(quorum().quorum_initial_group_size(1)).unwrap();
    let error = declare(quorum().quorum_initial_group_size(0)).unwrap_err();
    assert!(error.contains("x-quorum-initial-group-size"), "{error}");
    for locator in [LeaderLocator::ClientLocal, LeaderLocator::Balanced] {
        declare(quorum().leader_locator(locator)).unwrap();
        let on_classic = declare(classic().leader_locator(locator));
        assert_eq!(on_classic.is_ok(), version() >= (4, 0), "{on_classic:?}");
    }
}

#[test]
fn placement_and_storage_arguments_of_streams_are_accepted() {
    let stream = QueueDeclareOptions::stream;
    declare(stream().leader_locator(LeaderLocator::Balanced)).unwrap();
    declare(stream().stream_initial_cluster_size(1)).unwrap();
    let error = declare(stream().stream_initial_cluster_size(0)).unwrap_err();
    assert!(error.contains("x-initial-cluster-size"), "{error}");
    declare(stream().stream_filter_size_bytes(255)).unwrap();
    let too_small = declare(stream().stream_filter_size_bytes(15));
    assert_eq!(too_small.is_err(), version() >= (3, 13), "{too_small:?}");
    let filter_size = classic().stream_filter_size_bytes(32);
    classic_queues_refuse(filter_size, "x-stream-filter-size-bytes", (4, 3));
}

#[test]
fn a_stream_with_small_segments_drops_its_oldest_messages() {
    let channel = channel();
    let options = QueueDeclareOptions::stream()
        .max_length_bytes(5_000)
        .stream_max_segment_size_bytes(1_000);
    let queue = channel.queue_declare(&unique("small"), options).unwrap();
    eventually("the first message is gone", || {
        publish(&channel, &queue, &[&*"x".repeat(500); 20]);
        let reading = channel.connection().open_channel().unwrap();
        reading.basic_qos(1).unwrap();
        let consume = ConsumeOptions::default().stream_offset(StreamOffset::First);
        let consumer = reading.basic_consume(queue.name(), consume).unwrap();
        // While old files are deleted, 3.10 can leave a new reader without messages.
        let delivery = consumer.recv_timeout(Duration::from_secs(1)).unwrap();
        delivery.and_then(|it| it.stream_offset()) > Some(0)
    });
    queue.delete().unwrap();
}

fn exchange(channel: &Channel, kind: ExchangeKind, options: ExchangeDeclareOptions) -> Exchange {
    let name = unique(kind.as_str());
    channel
        .exchange_declare(&name, kind, options.auto_delete(true))
        .unwrap()
}

/// Declares queues and binds each of them with this key.
fn bound<const N: usize>(exchange: &Exchange, key: &str) -> [Queue; N] {
    std::array::from_fn(|_| {
        let queue = exclusive_queue(exchange.channel());
        queue.bind(exchange, key).unwrap();
        queue
    })
}

/// Publishes messages, and returns the bodies in each queue.
fn spread(exchange: &Exchange, queues: &[Queue], messages: &[(&str, Message<'_>)]) -> Vec<Bodies> {
    let publisher = exchange.channel().publisher().unwrap();
    for (key, message) in messages {
        publisher.publish(exchange.name(), key, message).unwrap();
    }
    // The confirms show that each message is in a queue, since a publisher's messages are
    // mandatory.
    publisher.wait_for_confirms().unwrap();
    let bodies = |queue: &Queue| {
        let fetch = || queue.get_with(AckMode::Automatic).unwrap();
        let texts = std::iter::from_fn(fetch).map(|it| String::from_utf8(it.into_body()).unwrap());
        texts.collect::<Bodies>()
    };
    queues.iter().map(bodies).collect()
}

type Bodies = BTreeSet<String>;

/// 100 messages with the bodies "0" to "99", which are also their routing keys.
fn hundred<'m>(change: impl Fn(Message<'m>, &str) -> Message<'m>) -> Vec<(String, Message<'m>)> {
    let numbers = (0..100).map(|it| it.to_string());
    let messages = numbers.map(|it| (it.clone(), change(Message::new(it.clone()), &it)));
    messages.collect()
}

fn keyed<'m>(
    messages: &'m [(String, Message<'m>)],
    key: Option<&'m str>,
) -> Vec<(&'m str, Message<'m>)> {
    let keyed = messages
        .iter()
        .map(|(own, message)| (key.unwrap_or(own), message.into()));
    keyed.collect()
}

/// Checks that the queues share all 100 messages.
#[track_caller]
fn assert_spread(spread: &[Bodies]) {
    let counts: Vec<_> = spread.iter().map(BTreeSet::len).collect();
    assert_eq!(counts.iter().sum::<usize>(), 100, "{counts:?}");
    assert!(counts.iter().all(|it| *it < 100), "{counts:?}");
}

#[test]
fn exchange_kinds_depend_on_the_brokers_version() {
    for (kind, since) in [
        (ExchangeKind::LocalRandom, (4, 0)),
        (ExchangeKind::ModulusHash, (4, 3)),
    ] {
        assert_eq!(ExchangeKind::from(kind.as_str()), kind);
        let connection = connect();
        let channel = connection.open_channel().unwrap();
        if version() < since {
            let options = ExchangeDeclareOptions::default();
            let declared = channel.exchange_declare(&unique("kind"), kind, options);
            let error = declared.unwrap_err().to_string();
            assert!(error.contains("exchange type 'x-"), "{error}");
            continue;
        }
        let exchange = exchange(&channel, kind.clone(), Default::default());
        let queues: [_; 3] = bound(&exchange, "");
        let messages = hundred(|message, _| message);
        assert_spread(&spread(&exchange, &queues, &keyed(&messages, None)));
        if kind == ExchangeKind::LocalRandom {
            let error = queues[0].bind(&exchange, "key").unwrap_err();
            assert_eq!(
                error.reply_code(),
                Some(ReplyCode::PRECONDITION_FAILED),
                "{error}"
            );
        }
    }
}

mod nodes {
    use super::*;

    #[test]
    fn exchange_kinds_of_plugins_route_as_documented() {
        let plugins = "rabbitmq_consistent_hash_exchange,rabbitmq_random_exchange,\
                       rabbitmq_recent_history_exchange,rabbitmq_sharding";
        let node = Node::start_with("", plugins);
        routes_as_they_say(&node.uri());
    }

    fn routes_as_they_say(uri: &str) {
        let connection = leveret::Connection::open(uri).unwrap();
        let channel = connection.open_channel().unwrap();
        let none = ExchangeDeclareOptions::default;

        // These exchanges hash the routing key, or the option's value: equal values go to one
        // queue.
        let hashing = [
            (ExchangeKind::ModulusHash, none(), true),
            (ExchangeKind::ConsistentHash, none(), true),
            (
                ExchangeKind::ConsistentHash,
                none().hash_header("customer"),
                false,
            ),
            (
                ExchangeKind::ConsistentHash,
                none().hash_property(HashProperty::MessageId),
                false,
            ),
            (
                ExchangeKind::ConsistentHash,
                none().hash_property(HashProperty::CorrelationId),
                false,
            ),
            (
                ExchangeKind::ConsistentHash,
                none().hash_property(HashProperty::Timestamp),
                false,
            ),
        ];
        for (kind, options, by_key) in hashing {
            let context = format!("{kind} {options:?}");
            let exchange = exchange(&channel, kind, options);
            let queues: [_; 3] = bound(&exchange, "1");
            let marked = hundred(|message, number| {
                message
                    .header("customer", number)
                    .message_id(number)
                    .correlation_id(number)
                    .timestamp(number.parse().unwrap())
            });
            let alike = hundred(|message, _| {
                message
                    .header("customer", "one")
                    .message_id("one")
                    .correlation_id("one")
                    .timestamp(1)
            });
            let (different, same) = match by_key {
                true => (keyed(&alike, None), keyed(&marked, Some("one"))),
                false => (keyed(&marked, Some("one")), keyed(&alike, None)),
            };
            let first = spread(&exchange, &queues, &different);
            assert_spread(&first);
            assert_eq!(spread(&exchange, &queues, &different), first, "{context}");
            let to_one = spread(&exchange, &queues, &same);
            let most = to_one.iter().map(BTreeSet::len).max();
            assert_eq!(most, Some(100), "{context}");
        }

        let random = exchange(&channel, ExchangeKind::Random, none());
        let queues: [_; 3] = bound(&random, "");
        let messages = hundred(|message, _| message);
        assert_spread(&spread(&random, &queues, &keyed(&messages, Some("one"))));

        let history = none().recent_history_length(3);
        let history = exchange(&channel, ExchangeKind::RecentHistory, history);
        let [early]: [_; 1] = bound(&history, "");
        let unkept = Message::new("unkept").header("x-recent-history-no-store", true);
        let texts = ["0", "1", "2", "3"].map(|it| ("", Message::new(it)));
        let messages: Vec<_> = texts.into_iter().chain([("", unkept)]).collect();
        let all = spread(&history, &[early], &messages);
        assert_eq!(all[0].len(), 5);
        let [late]: [_; 1] = bound(&history, "");
        assert_eq!([next(&late), next(&late), next(&late)], ["1", "2", "3"]);

        // The broker refuses both options at once.
        let both = none()
            .hash_header("customer")
            .hash_property(HashProperty::MessageId);
        let kind = ExchangeKind::ConsistentHash;
        let refused = channel.exchange_declare(&unique("both"), kind, both);
        let error = refused.unwrap_err();
        assert!(error.to_string().contains("mutually exclusive"), "{error}");
        // The binding key is a weight, so it must be a number.
        let channel = connection.open_channel().unwrap();
        let exchange = exchange(&channel, ExchangeKind::ConsistentHash, none());
        let refused = exclusive_queue(&channel).bind(&exchange, "key");
        let error = refused.unwrap_err();
        assert_eq!(
            error.reply_code(),
            Some(ReplyCode::PRECONDITION_FAILED),
            "{error}"
        );
    }
}
