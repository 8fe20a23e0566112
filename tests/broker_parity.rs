//! Details of queues, exchanges and errors that RabbitMQ and the in-memory broker share. Where
//! RabbitMQ's versions differ, each test says what each version does; the in-memory broker does
//! what 3.10 does.

use std::time::Duration;

use leveret::{
    AckMode, Channel, Connection, ConsumeOptions, Consumer, Delivery, ExchangeDeclareOptions,
    ExchangeKind, FieldTable, FieldValue, Message, NackOptions, Overflow, QosOptions, Queue,
    QueueDeclareOptions, QueueDeleteOptions, RecoveryOptions, ReplyCode, Requeue,
};

use crate::support::interceptor::{Interceptor, Verdict};
use crate::support::{
    channel, connect, eventually, exclusive_queue, options, ready, unique, version, SOON,
};

const REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// Publishes a message and waits until the broker has routed it to its queues.
#[track_caller]
fn put<'m>(channel: &Channel, exchange: &str, key: &str, message: impl Into<Message<'m>>) {
    let publisher = channel.publisher().unwrap();
    let confirm = publisher.publish(exchange, key, message).unwrap();
    confirm.wait().unwrap();
}

fn fill(queue: &Queue, bodies: &[&str]) {
    let in_order = |body: &&str| put(queue.channel(), "", queue.name(), *body);
    bodies.iter().for_each(in_order);
}

/// Fetches the next message without acknowledging it.
#[track_caller]
fn next(queue: &Queue) -> Delivery {
    let mut message = None;
    eventually("the queue has a message", || {
        message = queue.get().unwrap();
        message.is_some()
    });
    message.unwrap()
}

fn body(delivery: &Delivery) -> &str {
    std::str::from_utf8(delivery.body()).unwrap()
}

fn bodies(queue: &Queue) -> Vec<String> {
    std::iter::from_fn(|| queue.get_with(AckMode::Automatic).unwrap())
        .map(|message| String::from_utf8(message.into_body()).unwrap())
        .collect()
}

/// Declares a queue that dead-letters to another queue.
fn with_dead_letters(dead: &Queue, options: QueueDeclareOptions) -> Queue {
    let options = options
        .exclusive(true)
        .dead_letter_exchange("")
        .dead_letter_routing_key(dead.name());
    dead.channel().queue_declare("", options).unwrap()
}

fn temporary(channel: &Channel, kind: ExchangeKind) -> String {
    let (name, options) = (
        unique("x"),
        ExchangeDeclareOptions::default().auto_delete(true),
    );
    channel.exchange_declare(&name, kind, options).unwrap();
    name
}

fn texts(texts: &[&str]) -> FieldValue {
    texts.into()
}

fn headers(delivery: &Delivery) -> FieldTable {
    delivery.headers().unwrap().clone()
}

/// The `x-death` header without its times.
#[track_caller]
fn deaths(delivery: &Delivery) -> Vec<FieldTable> {
    let headers = headers(delivery);
    let deaths = headers.get("x-death").unwrap().as_array().unwrap();
    let without_time = |death: &FieldValue| {
        let mut death = death.as_table().unwrap().clone();
        let time = death.remove("time").unwrap().as_timestamp();
        assert!(time.unwrap() > 1_700_000_000, "{time:?}");
        death
    };
    deaths.iter().map(without_time).collect()
}

fn death(count: i64, reason: &str, queue: &Queue, exchange: &str, keys: &[&str]) -> FieldTable {
    FieldTable::new()
        .with("count", count)
        .with("reason", reason)
        .with("queue", queue.name())
        .with("exchange", exchange)
        .with("routing-keys", texts(keys))
}

#[test]
fn a_dead_letter_lists_every_death_and_counts_repeated_ones() {
    let channel = channel();
    let (last, name) = (exclusive_queue(&channel), unique("first"));
    let second = QueueDeclareOptions::temporary()
        .dead_letter_exchange("")
        .dead_letter_routing_key(&name);
    let second = channel.queue_declare("", second).unwrap();
    let first = QueueDeclareOptions::temporary()
        .dead_letter_exchange("")
        .dead_letter_routing_key(second.name());
    let first = channel.queue_declare(&name, first).unwrap();
    let exchange = temporary(&channel, ExchangeKind::Direct);
    first.bind(channel.exchange(&exchange), "k").unwrap();

    let message = Message::new("m").expiration("600000").priority(3);
    let message = message.header("CC", texts(&["copy", last.name()]));
    let message = message.header("BCC", texts(&["hidden"]));
    put(&channel, &exchange, "k", message.header("mine", 1));
    next(&first).reject(Requeue::No).unwrap();
    let letter = next(&second);
    let keys = ["k", "copy", last.name()];
    let of_first = |count| {
        let death = death(count, "rejected", &first, &exchange, &keys);
        death.with("original-expiration", "600000")
    };
    assert_eq!(deaths(&letter), [of_first(1)]);
    let origin = |letter: &Delivery| {
        (
            letter.exchange().to_owned(),
            letter.routing_key().to_owned(),
        )
    };
    assert_eq!(origin(&letter), (String::new(), second.name().to_owned()));
    // Since RabbitMQ 4.3, a dead letter keeps the `redelivered` flag of the rejected message.
    assert_eq!(letter.redelivered(), version() >= (4, 3));
    assert_eq!((letter.expiration(), letter.priority()), (None, Some(3)));
    let told = |letter: &Delivery| {
        let headers = headers(letter);
        let text = |name: &str| Some(headers.get(name)?.as_str()?.to_owned());
        let first = ["reason", "queue", "exchange"].map(|it| text(&format!("x-first-death-{it}")));
        let others = ["CC", "BCC", "mine"].map(|it| headers.get(it).is_some());
        (first.map(Option::unwrap), others)
    };
    let of_the_first = ["rejected", first.name(), &exchange].map(str::to_owned);
    // RabbitMQ 3 removes CC from a dead letter, RabbitMQ 4 keeps CC.
    let keeps_cc = version() >= (4, 0);
    let of_the_first = (of_the_first, [keeps_cc, false, true]);
    assert_eq!(told(&letter), of_the_first);

    letter.reject(Requeue::No).unwrap();
    let letter = next(&first);
    let of_second = death(1, "rejected", &second, "", &[second.name()]);
    assert_eq!(deaths(&letter), [of_second.clone(), of_first(1)]);
    letter.reject(Requeue::No).unwrap();
    let letter = next(&second);
    assert_eq!(deaths(&letter), [of_first(2), of_second]);
    assert_eq!(told(&letter), of_the_first);
}

#[test]
fn a_dead_letter_without_a_new_key_keeps_all_its_routing_keys() {
    let channel = channel();
    let dlx = temporary(&channel, ExchangeKind::Direct);
    let options = QueueDeclareOptions::temporary().dead_letter_exchange(&dlx);
    let queue = channel.queue_declare("", options.max_length(0)).unwrap();
    let keys = [queue.name(), "copy", "hidden"];
    let dead = keys.map(|key| {
        let dead = exclusive_queue(&channel);
        dead.bind(channel.exchange(&dlx), key).unwrap();
        dead
    });
    let message = Message::new("m").header("CC", texts(&["copy"]));
    let message = message.header("BCC", texts(&["hidden"]));
    put(&channel, "", queue.name(), message);
    for dead in &dead {
        let letter = next(dead);
        assert_eq!(
            (letter.exchange(), letter.routing_key()),
            (dlx.as_str(), queue.name())
        );
        let keys = &[queue.name(), "copy"];
        assert_eq!(deaths(&letter), [death(1, "maxlen", &queue, "", keys)]);
        assert_eq!(headers(&letter).get("CC"), Some(&texts(&["copy"])));
    }
    // A message that would circle by expiring alone is dropped at once.
    let name = unique("loop");
    let options = QueueDeclareOptions::temporary().dead_letter_exchange("");
    let queue = channel
        .queue_declare(&name, options.message_ttl(Duration::ZERO))
        .unwrap();
    put(&channel, "", &name, "m");
    assert_eq!(
        queue
            .get_with(AckMode::Automatic)
            .unwrap()
            .map(|it| it.into_body()),
        None
    );
}

#[test]
fn a_message_expires_after_the_shorter_time_at_the_head_of_its_queue() {
    let channel = channel();
    let dead = exclusive_queue(&channel);
    let minute = Duration::from_secs(60);
    for (ttl, expiration) in [(Duration::ZERO, "60000"), (minute, "0"), (minute, "20")] {
        let queue = QueueDeclareOptions::default().message_ttl(ttl);
        let queue = with_dead_letters(&dead, queue);
        let message = Message::new("m").expiration(expiration);
        put(&channel, "", queue.name(), message);
        let expired = death(1, "expired", &queue, "", &[queue.name()]);
        let expired = expired.with("original-expiration", expiration);
        assert_eq!(deaths(&next(&dead)), [expired]);
    }
    let queue = with_dead_letters(&dead, QueueDeclareOptions::default());
    let marker = with_dead_letters(&dead, QueueDeclareOptions::default());
    fill(&queue, &["lasting"]);
    for (queue, body) in [(&queue, "brief"), (&marker, "as brief")] {
        put(
            &channel,
            "",
            queue.name(),
            Message::new(body).expiration("50"),
        );
    }
    assert_eq!(body(&next(&dead)), "as brief");
    assert_eq!(
        ready(&channel, queue.name()),
        2,
        "an expired message counts while another is ahead of it"
    );
    assert_eq!(body(&next(&queue)), "lasting");
    assert_eq!(body(&next(&dead)), "brief");
    // A consumer that waits gets even a message that expires at once.
    let consumer = queue.consume().unwrap();
    put(
        &channel,
        "",
        queue.name(),
        Message::new("at once").expiration("0"),
    );
    let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
    assert_eq!(body(&delivery), "at once");
    // A message that has expired meanwhile does not return to the queue.
    consumer.cancel().unwrap();
    delivery.reject(Requeue::Yes).unwrap();
    assert_eq!(body(&next(&dead)), "at once");
}

#[test]
fn a_full_queue_drops_its_head_or_refuses() {
    let channel = channel();
    let dead = exclusive_queue(&channel);
    let queue = QueueDeclareOptions::default().max_length(1);
    let queue = with_dead_letters(&dead, queue);
    fill(&queue, &["1"]);
    let first = next(&queue);
    // An unacknowledged message does not count until it is requeued.
    fill(&queue, &["2"]);
    assert_eq!(ready(&channel, dead.name()), 0);
    first.reject(Requeue::Yes).unwrap();
    let letter = next(&dead);
    assert_eq!(body(&letter), "1");
    assert_eq!(
        deaths(&letter),
        [death(1, "maxlen", &queue, "", &[queue.name()])]
    );
    assert_eq!(bodies(&queue), ["2"]);

    // The queue drops the message that it would deliver next.
    let options = QueueDeclareOptions::temporary().max_length(2);
    let queue = channel.queue_declare("", options.max_priority(5)).unwrap();
    for priority in [5, 1, 3] {
        let message = Message::new(priority.to_string()).priority(priority);
        put(&channel, "", queue.name(), message);
    }
    assert_eq!(bodies(&queue), ["3", "1"]);

    // The full queue nacks a message that does not fit; the other queues still get the message.
    let options = QueueDeclareOptions::temporary().max_length_bytes(10);
    let options = options.overflow(Overflow::RejectPublish);
    let (full, other) = (
        channel.queue_declare("", options).unwrap(),
        exclusive_queue(&channel),
    );
    let exchange = temporary(&channel, ExchangeKind::Fanout);
    for queue in [&full, &other] {
        queue.bind(channel.exchange(&exchange), "").unwrap();
    }
    let publisher = channel.publisher().unwrap();
    let publish = |body: &str| publisher.publish(&exchange, "", body).unwrap().wait();
    publish("sixsix").unwrap();
    publish("seven").unwrap_err();
    publish("four").unwrap();
    assert_eq!(bodies(&full), ["sixsix", "four"]);
    assert_eq!(bodies(&other), ["sixsix", "seven", "four"]);
}

#[test]
fn a_requeued_message_keeps_its_place_within_its_priority() {
    let channel = channel();
    let options = QueueDeclareOptions::temporary().max_priority(5);
    let queue = channel.queue_declare("", options).unwrap();
    for (body, priority) in [("a", None), ("b", Some(5)), ("c", Some(5)), ("d", Some(9))] {
        let message = Message::new(body);
        let message = priority.into_iter().fold(message, Message::priority);
        put(&channel, "", queue.name(), message);
    }
    let (b, c) = (next(&queue), next(&queue));
    c.nack(NackOptions::requeue()).unwrap();
    b.reject(Requeue::Yes).unwrap();
    eventually("both messages are requeued", || {
        ready(&channel, queue.name()) == 4
    });
    let all = [(); 4].map(|()| next(&queue));
    let seen = all.each_ref().map(|it| (body(it), it.redelivered()));
    assert_eq!(seen, [("b", true), ("c", true), ("d", false), ("a", false)]);
    let priority = all[2].priority();
    assert_eq!(priority, Some(9), "the priority property is unchanged");
}

#[test]
fn a_transaction_commits_publishes_and_acknowledgements_together() {
    let channel = channel();
    let other = channel.connection().open_channel().unwrap();
    let (queue, dead) = (exclusive_queue(&channel), exclusive_queue(&other));
    let source = with_dead_letters(&dead, QueueDeclareOptions::default());
    for body in ["1", "2", "3"] {
        put(&other, "", source.name(), body);
    }
    channel.tx_select().unwrap();
    let returned = channel.returned_messages();
    let get = || {
        channel
            .basic_get(source.name(), AckMode::Manual)
            .unwrap()
            .unwrap()
    };
    let (one, two, _three) = (get(), get(), get());
    one.reject(Requeue::No).unwrap();
    two.reject(Requeue::Yes).unwrap();
    queue.publish("published").unwrap();
    let lost = Message::new("lost").mandatory(true);
    channel.basic_publish("", "nowhere", lost).unwrap();
    let counts = || [&queue, &source, &dead].map(|it| ready(&other, it.name()));
    // The replies show that the broker has read everything sent so far.
    assert_eq!(ready(&channel, queue.name()), 0);
    assert_eq!((counts(), returned.len()), ([0, 0, 0], 0));
    channel.tx_commit().unwrap();
    assert_eq!(returned.len(), 1, "the message returns before tx.commit-ok");
    eventually("the transaction has taken effect", || counts() == [1, 1, 1]);

    // A message acknowledged in a transaction cannot be acknowledged again, even before the commit.
    let again = get();
    channel.basic_ack(again.delivery_tag()).unwrap();
    channel.tx_rollback().unwrap();
    channel.basic_ack(again.delivery_tag()).unwrap();
    channel.tx_commit().unwrap();
    assert_eq!(counts(), [1, 0, 1]);
}

#[test]
fn a_transaction_for_a_deleted_queue_fails_since_rabbitmq_4() {
    let options = options().recovery(RecoveryOptions::none());
    let connection = Connection::open_with(&options).unwrap();
    let [channel, other] = [(); 2].map(|()| connection.open_channel().unwrap());
    let queue = exclusive_queue(&other);
    channel.tx_select().unwrap();
    channel.basic_publish("", queue.name(), "m").unwrap();
    // The reply shows that the message is routed.
    channel.basic_qos(1).unwrap();
    queue.delete().unwrap();
    let committed = channel.tx_commit();
    let code = committed.map_err(|error| error.reply_code().unwrap()).err();
    let (expected, costs_the_connection) = match version() {
        (..=3, _) => (None, false),
        (4, ..=2) => (Some(ReplyCode::PRECONDITION_FAILED), false),
        _ => (Some(ReplyCode::RESOURCE_ERROR), true),
    };
    assert_eq!(code, expected);
    assert_eq!(channel.is_open(), expected.is_none());
    assert_eq!(connection.is_open(), !costs_the_connection);
}

#[test]
fn a_quorum_queue_counts_requeues_and_since_rabbitmq_4_3_only_rejects() {
    let channel = channel();
    let name = unique("counting");
    let queue = channel.queue_declare(&name, QueueDeclareOptions::quorum());
    let queue = queue.unwrap();
    put(&channel, "", &name, "m");
    let counts_all = version() < (4, 3);
    let back = |after: &str, of_all: u64, of_rejected: u64| {
        let delivery = next(&queue);
        let count = if counts_all { of_all } else { of_rejected };
        // RabbitMQ 4 sends no count with the first delivery.
        assert_eq!(delivery.delivery_count().unwrap_or(0), count, "{after}");
        assert_eq!(delivery.redelivered(), of_all > 0, "{after}");
        delivery
    };
    let delivery = back("the first delivery", 0, 0);
    delivery.nack(NackOptions::requeue()).unwrap();
    back("a nack", 1, 0).reject(Requeue::Yes).unwrap();
    drop(back("a rejection", 2, 1));
    channel.basic_recover(Requeue::Yes).unwrap();
    drop(back("a recover", 3, 1));
    // Every version counts the end of a channel as a failed delivery.
    let other = channel.connection().open_channel().unwrap();
    channel.basic_recover(Requeue::Yes).unwrap();
    eventually("the other channel fetches the message", || {
        other.basic_get(&name, AckMode::Manual).unwrap().is_some()
    });
    other.close().unwrap();
    drop(back("the end of its channel", 5, 2));
    queue.delete().unwrap();
}

#[test]
fn the_consumer_with_the_highest_priority_becomes_active_next() {
    let connection = connect();
    let channel = connection.open_channel().unwrap();
    let options = QueueDeclareOptions::temporary().single_active_consumer(true);
    let queue = channel.queue_declare("", options).unwrap();
    let consume = |priority| {
        let channel = connection.open_channel().unwrap();
        channel.basic_qos(1).unwrap();
        let options = ConsumeOptions::default().priority(priority);
        channel.basic_consume(queue.name(), options).unwrap()
    };
    let [first, low, high] = [0, 1, 7].map(consume);
    fill(&queue, &["1", "2"]);
    let _one = first.recv_timeout(SOON).unwrap().unwrap();
    // A waiting consumer does not take a message that the active one has no prefetch for.
    assert_eq!((ready(&channel, queue.name()), high.unread()), (1, 0));
    // Close the channel: a cancel while a message is ready would cost RabbitMQ the whole queue.
    first.channel().close().unwrap();
    let one = high.recv_timeout(SOON).unwrap().unwrap();
    assert_eq!((body(&one), one.redelivered()), ("1", true));
    one.ack().unwrap();
    let _two = high.recv_timeout(SOON).unwrap().unwrap();
    high.channel().close().unwrap();
    let two = low.recv_timeout(SOON).unwrap().unwrap();
    assert_eq!((body(&two), two.redelivered()), ("2", true));
}

#[test]
fn consumers_take_turns_within_their_prefetch() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let consume = |priority| {
        queue
            .consume_with(ConsumeOptions::default().priority(priority))
            .unwrap()
    };
    let take = |consumer: &Consumer, count| {
        let next = |_| consumer.recv_timeout(SOON).unwrap().unwrap();
        let all: Vec<_> = (0..count).map(next).collect();
        assert_eq!(consumer.unread(), 0);
        all.iter().map(body).collect::<Vec<_>>().join(" ")
    };
    let (one, other) = (consume(0), consume(0));
    fill(&queue, &["1", "2", "3", "4"]);
    assert_eq!(
        (take(&one, 2), take(&other, 2)),
        ("1 3".into(), "2 4".into())
    );

    // A consumer keeps the prefetch that was set when it began.
    channel.basic_qos(2).unwrap();
    let high = consume(1);
    channel.basic_qos(1).unwrap();
    let higher = consume(2);
    fill(&queue, &["a", "b", "c", "d"]);
    assert_eq!(ready(&channel, queue.name()), 0);
    assert_eq!(
        (take(&higher, 1), take(&high, 2)),
        ("a".into(), "b c".into())
    );
    assert_eq!(one.unread() + other.unread(), 1);
}

#[test]
fn up_to_rabbitmq_4_0_consumers_share_a_global_prefetch() {
    let is_shared = version() < (4, 3);
    let channel = channel();
    let queue = exclusive_queue(&channel);
    fill(&queue, &["1", "2", "3", "4", "5", "6", "7", "8", "9"]);
    let limit = |count| {
        let options = QosOptions::default().prefetch_count(count).global(true);
        channel.basic_qos_with(options).unwrap();
    };
    let left = |count| {
        eventually("the consumers have all that their limits allow", || {
            ready(&channel, queue.name()) == count
        });
    };
    let has = |consumer: &Consumer, count| {
        eventually("the consumer has its messages", || {
            consumer.unread() == count
        });
    };
    let consume = |options| queue.consume_with(options).unwrap();
    limit(2);
    // Fetched messages do not count towards the limit.
    let _fetched = next(&queue);
    let [one, two] = [(); 2].map(|()| consume(ConsumeOptions::default()));
    let take_one = || one.recv().unwrap().unwrap().ack().unwrap();
    if is_shared {
        left(6);
        has(&one, 2);
        assert_eq!(two.unread(), 0);
        take_one();
        left(5);
        limit(3);
        left(4);
        // The limit also holds up consumers that acknowledge nothing.
        let third = consume(ConsumeOptions::default().no_ack(true));
        assert_eq!((ready(&channel, queue.name()), third.unread()), (4, 0));
        // A prefetch for each consumer removes the limit for the channel.
        channel.basic_qos(1).unwrap();
        left(0);
    } else {
        // The limit applies to each later consumer.
        left(4);
        has(&one, 2);
        has(&two, 2);
        take_one();
        left(3);
        limit(1);
        let third = consume(ConsumeOptions::default());
        left(2);
        has(&third, 1);
        let fourth = consume(ConsumeOptions::default().no_ack(true));
        left(0);
        has(&fourth, 2);
    }
}

#[test]
fn a_message_reaches_each_queue_once_on_any_number_of_routes() {
    let channel = channel();
    let returned = channel.returned_messages();
    let [a, b, c] = [(); 3].map(|()| temporary(&channel, ExchangeKind::Fanout));
    let queues = [(); 2].map(|()| exclusive_queue(&channel));
    for (destination, source) in [(&b, &a), (&c, &b), (&a, &c), (&a, &a)] {
        let options = FieldTable::new();
        channel
            .exchange_bind(destination, source, "", options)
            .unwrap();
    }
    for (queue, exchange) in [(0, &a), (0, &b), (0, &c), (1, &c)] {
        queues[queue].bind(channel.exchange(exchange), "").unwrap();
    }
    put(&channel, &a, "", "round");
    // Three routing keys: one of them hidden, two of them equal.
    let copies = Message::new("copies")
        .header("CC", texts(&[queues[1].name(), queues[0].name()]))
        .header("BCC", texts(&[queues[1].name()]));
    put(&channel, "", queues[0].name(), copies.clone());
    for queue in &queues {
        assert_eq!(body(&next(queue)), "round");
        let copy = next(queue);
        assert_eq!(copy.routing_key(), queues[0].name());
        assert!(headers(&copy).get("CC").is_some());
        assert!(
            headers(&copy).get("BCC").is_none(),
            "the broker removes BCC"
        );
        assert!(
            queue.get_with(AckMode::Automatic).unwrap().is_none(),
            "each queue gets the message once"
        );
    }
    // Alternate exchanges are tried in turn, until one is missing or was tried already.
    let alternate = |name: &str, alternate: &str| {
        let options = ExchangeDeclareOptions::default().alternate_exchange(alternate);
        channel
            .exchange_declare(name, ExchangeKind::Direct, options)
            .unwrap()
    };
    let [x, y, z] = ["x", "y", "z"].map(unique);
    let chain = [alternate(&x, &y), alternate(&y, &z), alternate(&z, &x)];
    queues[0].bind(&chain[2], "third").unwrap();
    put(&channel, &x, "third", "along the chain");
    assert_eq!(bodies(&queues[0]), ["along the chain"]);
    let publisher = channel.publisher().unwrap();
    let lost = Message::new("lost").header("BCC", texts(&["nowhere"]));
    let error = publisher.publish(&x, "nowhere", lost).unwrap().wait();
    let error = error.unwrap_err();
    let back = error.returned_message().unwrap();
    assert_eq!(
        (back.exchange(), back.reply_text()),
        (x.as_str(), "NO_ROUTE")
    );
    assert!(back
        .properties()
        .unwrap()
        .headers
        .is_none_or(|it| it.is_empty()));
    assert!(
        returned.is_empty(),
        "the publisher's confirm has the returned message"
    );
    for exchange in chain {
        exchange.delete().unwrap();
    }
}

/// Indexes of the bindings that take a message.
fn takers(
    channel: &Channel,
    kind: ExchangeKind,
    bindings: &[(&str, FieldTable)],
    message: (&str, Message<'_>),
) -> Vec<usize> {
    let exchange = channel.exchange(&temporary(channel, kind));
    let bind = |(key, arguments): &(&str, FieldTable)| {
        let queue = exclusive_queue(channel);
        queue.bind_with(&exchange, key, arguments.clone()).unwrap();
        queue
    };
    let queues: Vec<_> = bindings.iter().map(bind).collect();
    put(channel, exchange.name(), message.0, message.1);
    let takes =
        |(number, queue): (usize, &Queue)| Some(number).filter(|_| !bodies(queue).is_empty());
    queues.iter().enumerate().filter_map(takes).collect()
}

#[test]
fn topic_patterns_and_headers_match_in_every_edge_case() {
    let channel = channel();
    let patterns = [
        "#", "", "*", "#.#", "a", "a.*", "a.#", "*.#", "a*", "#.b.#", "*.*.*",
    ];
    let bindings = patterns.map(|it| (it, FieldTable::new()));
    for (key, expected) in [
        ("", &["#", "", "#.#"][..]),
        ("a", &["#", "*", "#.#", "a", "a.#", "*.#"]),
        ("a.", &["#", "#.#", "a.*", "a.#", "*.#"]),
        ("a.b.b", &["#", "#.#", "a.#", "*.#", "#.b.#", "*.*.*"]),
        ("a*", &["#", "*", "#.#", "*.#", "a*"]),
        ("..", &["#", "#.#", "*.#", "*.*.*"]),
    ] {
        let message = (key, Message::new(key));
        let takers = takers(&channel, ExchangeKind::Topic, &bindings, message);
        let takers: Vec<_> = takers.into_iter().map(|it| patterns[it]).collect();
        assert_eq!(takers, expected, "{key:?}");
    }
    let of = |how: &str| FieldTable::new().with("x-match", how);
    let cases = [
        (true, FieldTable::new()),
        (false, of("any")),
        (true, of("any").with("n", 1_u8).with("s", "other")),
        (true, of("all").with("n", 1_i64).with("s", "text")),
        // Up to RabbitMQ 3, an integer equals a float.
        (version() < (4, 0), of("all").with("n", 1.0)),
        (false, of("all").with("n", "1")),
        (
            true,
            of("all").with("s", FieldValue::ByteArray(b"text".to_vec())),
        ),
        (
            true,
            of("all").with("n", FieldValue::Void).with("x-mine", 7),
        ),
        (false, of("all").with("missing", FieldValue::Void)),
        (false, of("any").with("x-mine", 1)),
        (true, of("any-with-x").with("x-mine", 1)),
        (false, of("all-with-x").with("x-mine", 7)),
    ];
    let bindings = cases.clone().map(|(_, wanted)| ("", wanted));
    let message = Message::new("m")
        .header("n", 1)
        .header("s", "text")
        .header("x-mine", 1);
    let takers = takers(&channel, ExchangeKind::Headers, &bindings, ("", message));
    for (number, (expected, wanted)) in cases.iter().enumerate() {
        assert_eq!(takers.contains(&number), *expected, "{wanted:?}");
    }
}

#[test]
fn deleting_an_exchange_deletes_auto_delete_exchanges_that_led_only_there() {
    let channel = channel();
    let [first, second, third] = [(); 3].map(|()| temporary(&channel, ExchangeKind::Fanout));
    let exists = || {
        [&first, &second, &third].map(|name| channel.connection().exchange_exists(name).unwrap())
    };
    for (destination, source) in [(&second, &first), (&third, &second)] {
        channel
            .exchange_bind(destination, source, "", FieldTable::new())
            .unwrap();
    }
    let queue = exclusive_queue(&channel);
    queue.bind(channel.exchange(&third), "").unwrap();
    queue.bind(channel.exchange(&second), "").unwrap();
    queue.unbind(channel.exchange(&second), "").unwrap();
    assert_eq!(exists(), [true; 3]);
    queue.delete().unwrap();
    assert_eq!(exists(), [false; 3]);
}

#[test]
fn an_empty_name_means_the_queue_declared_last() {
    let channel = channel();
    let exchange = temporary(&channel, ExchangeKind::Direct);
    let queue = exclusive_queue(&channel);
    channel
        .queue_bind("", &exchange, "", FieldTable::new())
        .unwrap();
    channel
        .queue_bind("", &exchange, "k", FieldTable::new())
        .unwrap();
    put(&channel, &exchange, queue.name(), "by its name");
    put(&channel, &exchange, "k", "by a key");
    let message = channel.basic_get("", AckMode::Automatic).unwrap().unwrap();
    assert_eq!(message.body(), b"by its name");
    let consumer = channel
        .basic_consume("", ConsumeOptions::default())
        .unwrap();
    assert_eq!(body(&consumer.recv().unwrap().unwrap()), "by a key");
    assert_eq!(channel.queue_purge("").unwrap(), 0);
    assert_eq!(
        channel
            .queue_delete("", QueueDeleteOptions::default())
            .unwrap(),
        0
    );
    let known = channel.connection().queue_exists(queue.name());
    assert!(!known.unwrap());
}

#[test]
fn a_direct_reply_goes_to_the_channel_that_asked() {
    let connection = connect();
    let [asking, answering] = [(); 2].map(|()| connection.open_channel().unwrap());
    let queue = exclusive_queue(&answering);
    let replies = asking
        .basic_consume(REPLY_TO, ConsumeOptions::default().no_ack(true))
        .unwrap();
    let mut names = Vec::new();
    for _ in 0..2 {
        put(
            &asking,
            "",
            queue.name(),
            Message::new("?").reply_to(REPLY_TO),
        );
        names.push(next(&queue).reply_to().unwrap().to_owned());
    }
    let name = &names[0];
    assert_eq!(
        (&names[1], name.starts_with("amq.rabbitmq.reply-to.")),
        (name, true)
    );
    let declared = answering.queue_declare_passive(name).unwrap();
    assert_eq!(
        (declared.message_count(), declared.consumer_count()),
        (Some(0), Some(1))
    );
    // RabbitMQ up to 4.0 delivers the reply, but also returns it as unroutable.
    let publisher = answering.publisher().unwrap();
    let outcome = publisher.publish("", name, "!").unwrap().wait();
    match outcome {
        Ok(()) => assert!(version() >= (4, 3)),
        Err(error) => assert!(
            version() < (4, 3) && error.returned_message().is_some(),
            "{error}"
        ),
    }
    let reply = replies.recv_timeout(SOON).unwrap().unwrap();
    assert_eq!(
        (reply.exchange(), reply.routing_key(), body(&reply)),
        ("", name.as_str(), "!")
    );
    replies.cancel().unwrap();
    assert!(!connection.queue_exists(name).unwrap());
    // Since RabbitMQ 4.3, a reply that comes too late is confirmed, too.
    let outcome = publisher.publish("", name, "!").unwrap().wait();
    assert_eq!(outcome.is_ok(), version() >= (4, 3));
}

/// This crate does not send such an expiration. Another client may.
#[test]
fn an_invalid_expiration_of_another_client_costs_the_channel() {
    for (valid, expiration, wrong) in [
        ("1000", "soon", "no_integer"),
        ("100", "10s", "{leftover_string,\"s\"}"),
        ("10", "-1", "{value_negative,-1}"),
    ] {
        let proxy = Interceptor::start(move |_, frame| match frame.kind {
            2 => Verdict::Alter(valid, expiration),
            _ => Verdict::Pass,
        });
        let channel = Connection::open_with(proxy.options()).unwrap();
        let channel = channel.open_channel().unwrap();
        let message = Message::new("m").expiration(valid);
        channel.basic_publish("", "q", message).unwrap();
        eventually("the channel is closed", || !channel.is_open());
        let cause = channel.close_cause().unwrap().to_string();
        let text = format!("invalid expiration '{expiration}': {wrong}");
        assert!(cause.contains(&text), "{cause}");
    }
}

/// Expects the broker to close the channel with this text.
#[track_caller]
fn refused<T>(text: &str, ask: impl FnOnce(&Channel) -> T) {
    let channel = channel();
    let _result = ask(&channel);
    eventually("the channel is closed", || !channel.is_open());
    let cause = channel.close_cause().unwrap();
    assert_eq!(
        cause.close_reason().map(|it| it.text.as_str()),
        Some(text),
        "{cause}"
    );
}

#[track_caller]
fn failed<T>(text: &str, ask: impl FnOnce(&Channel) -> T) {
    refused(&format!("PRECONDITION_FAILED - {text}"), ask);
}

#[track_caller]
fn denied<T>(text: &str, ask: impl FnOnce(&Channel) -> T) {
    refused(&format!("ACCESS_REFUSED - {text}"), ask);
}

#[test]
fn errors_say_what_is_wrong_with_a_message_or_an_acknowledgement() {
    let user = "user_id property set to 'other' but authenticated user was 'guest'";
    let copy = "invalid message: {unacceptable_type_in_header,\"CC\",longstr}";
    let m = || Message::new("m");
    for (text, message) in [
        (user, m().user_id("other")),
        (copy, m().header("CC", "q")),
        ("fast reply consumer does not exist", m().reply_to(REPLY_TO)),
    ] {
        failed(text, |it| it.basic_publish("", "q", message));
    }
    for mode in [0, 3] {
        let message = m().delivery_mode(mode);
        if version() < (4, 0) {
            let text = format!("invalid message: {{delivery_mode_unknown,{mode}}}");
            failed(&text, |it| it.basic_publish("", "q", message));
            continue;
        }
        // RabbitMQ 4 accepts any delivery mode.
        let channel = channel();
        let queue = exclusive_queue(&channel);
        put(&channel, "", queue.name(), message);
        let delivery = next(&queue);
        assert_eq!(delivery.delivery_mode(), Some(mode));
    }
    for tag in [0, 3] {
        let text = format!("unknown delivery tag {tag}");
        failed(&text, |it| it.basic_ack(tag));
        failed(&text, |it| it.basic_nack(tag, NackOptions::requeue()));
        failed(&text, |it| it.basic_reject(tag, Requeue::No));
    }
    failed("cannot switch from tx to confirm mode", |it| {
        it.tx_select().and_then(|()| it.confirm_select())
    });
    failed("cannot switch from confirm to tx mode", |it| {
        it.confirm_select().and_then(|()| it.tx_select())
    });
    failed("channel is not transactional", Channel::tx_rollback);
    failed("partial tx completion", |it| {
        let full = QueueDeclareOptions::temporary().max_length(0);
        let full = full.overflow(Overflow::RejectPublish);
        let full = it.queue_declare("", full).unwrap();
        it.tx_select().unwrap();
        full.publish("m").unwrap();
        it.tx_commit()
    });
    let none = "NOT_FOUND - no previously declared queue";
    refused(none, |it| it.basic_get("", AckMode::Automatic));
    failed("reply consumer cannot acknowledge", |it| {
        it.basic_consume(REPLY_TO, ConsumeOptions::default())
    });
}

#[test]
fn errors_name_the_queue_or_the_exchange() {
    let topic = |channel: &Channel, name: &str, options: ExchangeDeclareOptions| {
        channel.exchange_declare(name, ExchangeKind::Topic, options)
    };
    let bind = |channel: &Channel, from: &str, how: FieldValue| {
        let options = FieldTable::new().with("x-match", how);
        exclusive_queue(channel).bind_with(channel.exchange(from), "", options)
    };
    let default = ExchangeDeclareOptions::default;
    let text = "deletion of system exchange 'amq.nope' in vhost '/' not allowed";
    denied(text, |it| {
        it.exchange_delete("amq.nope", Default::default())
    });
    let text = "exchange name 'amq.nope' contains reserved prefix 'amq.*'";
    denied(text, |it| topic(it, "amq.nope", default()).map(drop));
    let text = "queue name 'amq.nope' contains reserved prefix 'amq.*'";
    let options = QueueDeclareOptions::temporary();
    denied(text, |it| it.queue_declare("amq.nope", options).map(drop));
    let text = "operation not permitted on the default exchange";
    denied(text, |it| bind(it, "", "all".into()));
    let text = "cannot publish to internal exchange 'amq.rabbitmq.trace' in vhost '/'";
    denied(text, |it| it.basic_publish("amq.rabbitmq.trace", "", "m"));
    let text =
        "Invalid x-match field value <<\"some\">>; expected all, any, all-with-x, or any-with-x";
    failed(text, |it| bind(it, "amq.headers", "some".into()));
    let text = "Invalid x-match field type bool (value true); expected longstr";
    failed(text, |it| bind(it, "amq.headers", true.into()));

    let x = unique("x");
    let text = format!(
        "invalid type 'signedint' for arg 'alternate-exchange' in exchange '{x}' in vhost '/'"
    );
    let options = default().argument("alternate-exchange", 1);
    failed(&text, |it| topic(it, &x, options).map(drop));
    let differs = "for exchange 'amq.topic' in vhost '/': received";
    let text = format!("inequivalent arg 'durable' {differs} 'false' but current is 'true'");
    let transient = default().durable(false);
    failed(&text, |it| topic(it, "amq.topic", transient).map(drop));
    let text = format!(
        "inequivalent arg 'alternate-exchange' {differs} the value 'x' of type 'longstr' but current is none"
    );
    let options = ExchangeDeclareOptions::default().alternate_exchange("x");
    failed(&text, |it| topic(it, "amq.topic", options).map(drop));

    let any = ConsumeOptions::default;
    for (first, second) in [
        (any(), any().exclusive(true)),
        (any().exclusive(true), any()),
    ] {
        let name = unique("q");
        denied(
            &format!("queue '{name}' in vhost '/' in exclusive use"),
            |it| {
                let options = QueueDeclareOptions::temporary();
                let queue = it.queue_declare(&name, options).unwrap();
                let _first = queue.consume_with(first).unwrap();
                queue.consume_with(second).map(drop)
            },
        );
    }
    for (text, messages) in [("in use", &[][..]), ("not empty", &["m"])] {
        let name = unique("q");
        failed(&format!("queue '{name}' in vhost '/' {text}"), |it| {
            let options = QueueDeclareOptions::temporary();
            let queue = it.queue_declare(&name, options).unwrap();
            fill(&queue, messages);
            let _consumer = messages
                .is_empty()
                .then(|| queue.consume_with(any()).unwrap());
            let options = QueueDeleteOptions::default().if_empty(true).if_unused(true);
            queue.delete_with(options)
        });
    }
}

#[test]
fn declarations_are_compared_by_value() {
    let channel = channel();
    let name = unique("q");
    let with = |arguments: &[(&str, FieldValue)]| {
        let arguments: FieldTable = arguments.iter().cloned().collect();
        QueueDeclareOptions::default()
            .auto_delete(true)
            .arguments(arguments)
    };
    let length = |value: FieldValue| ("x-max-length", value);
    let declare = |options| channel.queue_declare(&name, options).unwrap();
    declare(with(&[length(100.into())]));
    declare(with(&[length(100_i8.into())]));
    declare(with(&[length(FieldValue::Timestamp(100))]));
    let classic = ("x-queue-type", "classic".into());
    declare(with(&[
        length(100_i64.into()),
        classic,
        ("unknown", true.into()),
    ]));

    let differs = |argument: &str, how: &str, options: QueueDeclareOptions| {
        let text = format!("inequivalent arg '{argument}' for queue '{name}' in vhost '/': {how}");
        failed(&text, |it| it.queue_declare(&name, options));
    };
    let of_length =
        |how: &str, value: FieldValue| differs("x-max-length", how, with(&[length(value)]));
    of_length("received '101' but current is '100'", 101.into());
    of_length("received '100' but current is '100'", "100".into());
    of_length("received '100.0' but current is '100'", 100.0.into());
    let none = "received none but current is the value '100' of type 'signedint'";
    differs("x-max-length", none, with(&[]));
    let more = "received the value 'lazy' of type 'longstr' but current is none";
    let lazy = with(&[length(100.into())]).lazy(true);
    differs("x-queue-mode", more, lazy);
    differs(
        "durable",
        "received 'false' but current is 'true'",
        with(&[]).durable(false),
    );
    let lasting = QueueDeclareOptions::default();
    differs(
        "auto_delete",
        "received 'false' but current is 'true'",
        lasting,
    );
    channel
        .queue_delete(&name, QueueDeleteOptions::default())
        .unwrap();

    let (name, both) = (unique("q"), QueueDeclareOptions::temporary);
    let invalid = |what: &str, options: QueueDeclareOptions| {
        let text = format!(
            "invalid {}",
            what.replace('Q', &format!("queue '{name}' in vhost '/'"))
        );
        failed(&text, |it| it.queue_declare(&name, options));
    };
    invalid(
        "arg 'x-expires' for Q: {value_zero,0}",
        both().argument("x-expires", 0),
    );
    invalid(
        "arg 'x-max-priority' for Q: {max_value_exceeded,256}",
        both().argument("x-max-priority", 256),
    );
    invalid(
        "arg 'x-message-ttl' for Q: \"expected integer, got longstr\"",
        both().argument("x-message-ttl", "1"),
    );
    invalid(
        "arg 'x-dead-letter-routing-key' for Q: routing_key_but_no_dlx_defined",
        both().dead_letter_routing_key("k"),
    );
    invalid(
        "arg 'x-delivery-limit' for Q of queue type rabbit_classic_queue",
        both().delivery_limit(1),
    );
    invalid(
        "type 'bool' for arg 'x-dead-letter-exchange' in Q",
        both().argument("x-dead-letter-exchange", true),
    );
    invalid(
        "property 'auto-delete' for Q",
        QueueDeclareOptions::quorum().auto_delete(true),
    );
    invalid(
        "property 'exclusive-owner' for Q",
        QueueDeclareOptions::quorum().exclusive(true),
    );
    invalid(
        "property 'non-durable' for Q",
        QueueDeclareOptions::quorum().durable(false),
    );
}

#[test]
fn a_consumer_that_reuses_a_cancelled_tag_has_its_own_prefetch() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.basic_qos(1).unwrap();
    let options = || ConsumeOptions::default().consumer_tag("again");
    for body in ["1", "2", "3"] {
        queue.publish(body).unwrap();
    }
    let before = queue.consume_with(options()).unwrap();
    let first = before.recv().unwrap().unwrap();
    before.cancel().unwrap();
    let after = queue.consume_with(options()).unwrap();
    let second = after.recv().unwrap().unwrap();
    first.ack().unwrap();
    second.ack().unwrap();
    assert_eq!(after.recv().unwrap().unwrap().body(), b"3");
}
