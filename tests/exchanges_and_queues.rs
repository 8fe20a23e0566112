//! Declares, binds and deletes exchanges and queues.

use leveret::{
    AckMode, Channel, ErrorKind, ExchangeDeclareOptions, ExchangeDeleteOptions, ExchangeKind,
    FieldTable, QueueDeclareOptions, QueueDeleteOptions, ReplyCode,
};

use crate::support::{channel, connect, eventually, exclusive_queue, ready, unique};

fn temporary() -> ExchangeDeclareOptions {
    ExchangeDeclareOptions::default().auto_delete(true)
}

/// Fetches all messages of a queue and returns their bodies.
fn bodies(channel: &Channel, queue: &str) -> Vec<String> {
    std::iter::from_fn(|| channel.basic_get(queue, AckMode::Automatic).unwrap())
        .map(|message| String::from_utf8(message.body().to_vec()).unwrap())
        .collect()
}

#[test]
fn every_kind_of_exchange_routes_as_specified() {
    let channel = channel();
    let options = |key: &str, value: i32| FieldTable::new().with("x-match", "all").with(key, value);
    let table = [
        (ExchangeKind::Direct, "a.b", FieldTable::new(), vec!["a.b"]),
        (
            ExchangeKind::Fanout,
            "",
            FieldTable::new(),
            vec!["a.b", "a.c", "d"],
        ),
        (
            ExchangeKind::Topic,
            "a.*",
            FieldTable::new(),
            vec!["a.b", "a.c"],
        ),
        (ExchangeKind::Headers, "", options("n", 3), vec!["d"]),
    ];
    for (kind, key, bind, expected) in table {
        let exchange = channel
            .exchange_declare(&unique("x"), kind, temporary())
            .unwrap();
        let queue = exclusive_queue(&channel);
        queue.bind_with(&exchange, key, bind.clone()).unwrap();
        for (number, key) in ["a.b", "a.c", "d"].into_iter().enumerate() {
            let message = leveret::Message::new(key).header("n", number as i32 + 1);
            exchange.publish(key, message).unwrap();
        }
        assert_eq!(bodies(&channel, queue.name()), expected);
        queue.unbind_with(&exchange, key, bind).unwrap();
    }
}

#[test]
fn exchanges_can_be_declared_passively_and_without_waiting_and_deleted() {
    let channel = channel();
    let name = unique("x");
    let options = ExchangeDeclareOptions::default();
    channel
        .exchange_declare_no_wait(&name, ExchangeKind::Topic, options)
        .unwrap();
    channel.exchange_declare_passive(&name).unwrap();
    channel.exchange(&name).delete().unwrap();
    // Declaring the exchange again is no error.
    channel
        .exchange_delete(&name, ExchangeDeleteOptions::default())
        .unwrap();
    channel
        .exchange_delete_no_wait(&name, ExchangeDeleteOptions::default())
        .unwrap();
    let error = channel.exchange_declare_passive(&name).unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND));
    let text = error.to_string();
    let begin = format!(
        "exchange.declare {name:?}: channel 1 was closed by the broker because of exchange.declare: 404 NOT_FOUND - no exchange"
    );
    assert!(text.starts_with(&begin), "{text}");
}

#[test]
fn if_unused_keeps_an_exchange_that_is_in_use() {
    let connection = connect();
    let channel = connection.open_channel().unwrap();
    let exchange = channel
        .exchange_declare(&unique("x"), ExchangeKind::Direct, temporary())
        .unwrap();
    exclusive_queue(&channel).bind(&exchange, "k").unwrap();
    let error = exchange
        .delete_with(ExchangeDeleteOptions::default().if_unused(true))
        .unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::PRECONDITION_FAILED));
}

#[test]
fn exchanges_can_be_bound_to_exchanges() {
    let channel = channel();
    let source = channel
        .exchange_declare(&unique("x"), ExchangeKind::Direct, temporary())
        .unwrap();
    let internal = temporary().internal(true);
    let inner = channel
        .exchange_declare(&unique("x"), ExchangeKind::Fanout, internal)
        .unwrap();
    let queue = exclusive_queue(&channel);
    queue.bind(&inner, "").unwrap();
    inner.bind(&source, "key").unwrap();
    let spare = channel
        .exchange_declare(&unique("x"), ExchangeKind::Fanout, temporary())
        .unwrap();
    channel
        .exchange_bind_no_wait(spare.name(), source.name(), "spare", FieldTable::new())
        .unwrap();
    source.publish("key", "through two exchanges").unwrap();
    assert_eq!(bodies(&channel, queue.name()), ["through two exchanges"]);
    inner.unbind(&source, "key").unwrap();
    source.publish("key", "nowhere").unwrap();
    assert_eq!(bodies(&channel, queue.name()), [""; 0]);
    channel
        .exchange_unbind_no_wait(spare.name(), source.name(), "spare", FieldTable::new())
        .unwrap();
    // Only exchanges can publish to an internal exchange.
    inner.publish("", "no").unwrap();
    eventually("the channel is closed", || !channel.is_open());
    assert_eq!(
        channel.close_cause().unwrap().reply_code(),
        Some(ReplyCode::ACCESS_REFUSED)
    );
}

#[test]
fn an_alternate_exchange_gets_unroutable_messages() {
    let channel = channel();
    let rest = channel
        .exchange_declare(&unique("x"), ExchangeKind::Fanout, temporary())
        .unwrap();
    let queue = exclusive_queue(&channel);
    queue.bind(&rest, "").unwrap();
    let options = temporary().argument("alternate-exchange", rest.name());
    let main = channel
        .exchange_declare(&unique("x"), ExchangeKind::Direct, options)
        .unwrap();
    main.publish("unknown", "not lost").unwrap();
    assert_eq!(bodies(&channel, queue.name()), ["not lost"]);
    main.delete().unwrap();
}

#[test]
fn queues_can_be_named_by_program_or_broker_and_report_counts() {
    let channel = channel();
    let made_up = exclusive_queue(&channel);
    assert!(made_up.name().starts_with("amq.gen-"), "{}", made_up.name());
    let name = unique("q");
    let queue = channel
        .queue_declare(&name, QueueDeclareOptions::temporary())
        .unwrap();
    assert_eq!(
        (queue.name(), queue.message_count(), queue.consumer_count()),
        (name.as_str(), Some(0), Some(0))
    );
    for body in ["one", "two", "three"] {
        queue.publish(body).unwrap();
    }
    eventually("the messages are there", || ready(&channel, &name) == 3);
    assert_eq!(queue.purge().unwrap(), 3);
    queue.publish("four").unwrap();
    channel.queue_purge_no_wait(&name).unwrap();
    assert_eq!(ready(&channel, &name), 0);
    queue.publish("five").unwrap();
    assert_eq!(queue.delete().unwrap(), 1);
    // Declaring the queue again is no error.
    assert_eq!(
        channel
            .queue_delete(&name, QueueDeleteOptions::default())
            .unwrap(),
        0
    );
}

#[test]
fn queues_can_be_declared_bound_and_deleted_without_waiting() {
    let channel = channel();
    let name = unique("q");
    let options = QueueDeclareOptions::default().argument("x-expires", 60_000);
    channel.queue_declare_no_wait(&name, options).unwrap();
    channel
        .queue_bind_no_wait(&name, "amq.direct", &name, FieldTable::new())
        .unwrap();
    channel
        .exchange("amq.direct")
        .publish(&name, "routed")
        .unwrap();
    assert_eq!(bodies(&channel, &name), ["routed"]);
    channel
        .queue_unbind(&name, "amq.direct", &name, FieldTable::new())
        .unwrap();
    channel
        .exchange("amq.direct")
        .publish(&name, "not any more")
        .unwrap();
    assert_eq!(bodies(&channel, &name), [""; 0]);
    channel
        .queue_delete_no_wait(&name, QueueDeleteOptions::default())
        .unwrap();
    let error = channel.queue_declare_passive(&name).unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND));
}

#[test]
fn declaring_an_unnamed_queue_without_waiting_is_refused() {
    let channel = channel();
    let options = QueueDeclareOptions::temporary();
    let error = channel.queue_declare_no_wait("", options).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::InvalidArgument(_)),
        "{error}"
    );
    assert!(channel.is_open());
}

#[test]
fn arguments_keep_their_integer_width() {
    // 128 does not fit a signed octet: a client that narrows it declares -128, which the broker
    // refuses.
    let channel = channel();
    for ttl in [128, 40_000, 3_000_000] {
        let arguments = FieldTable::new().with("x-message-ttl", ttl);
        let options = QueueDeclareOptions::temporary().arguments(arguments);
        let name = unique("q");
        channel.queue_declare(&name, options.clone()).unwrap();
        channel.queue_declare(&name, options).unwrap();
    }
    let queue = channel
        .queue_declare(
            "",
            QueueDeclareOptions::temporary().argument("x-max-length", 2),
        )
        .unwrap();
    for body in ["1", "2", "3"] {
        queue.publish(body).unwrap();
    }
    assert_eq!(bodies(&channel, queue.name()), ["2", "3"]);
}

#[test]
fn if_unused_and_if_empty_keep_a_used_or_filled_queue() {
    for (options, consume) in [
        (QueueDeleteOptions::default().if_unused(true), true),
        (QueueDeleteOptions::default().if_empty(true), false),
    ] {
        let channel = channel();
        let queue = exclusive_queue(&channel);
        queue.publish("here").unwrap();
        let _consumer = consume.then(|| queue.consume().unwrap());
        eventually("the message is in the queue", || {
            consume || ready(&channel, queue.name()) == 1
        });
        let error = queue.delete_with(options).unwrap_err();
        assert_eq!(
            error.reply_code(),
            Some(ReplyCode::PRECONDITION_FAILED),
            "{error}"
        );
    }
}

#[test]
fn an_auto_delete_queue_is_deleted_with_its_last_consumer() {
    let channel = channel();
    let name = unique("q");
    let queue = channel
        .queue_declare(&name, QueueDeclareOptions::default().auto_delete(true))
        .unwrap();
    drop(queue.consume().unwrap());
    let probe = crate::support::channel();
    eventually("the queue is gone", || {
        let probe = probe.connection().open_channel().unwrap();
        probe.queue_declare_passive(&name).is_err()
    });
}

#[test]
fn quorum_queues_and_streams_can_be_declared_and_used() {
    let channel = channel();
    for options in [QueueDeclareOptions::quorum(), QueueDeclareOptions::stream()] {
        let queue = channel.queue_declare(&unique("q"), options).unwrap();
        channel.confirm_select().unwrap();
        queue
            .publish(leveret::Message::new("kept").persistent(true))
            .unwrap();
        channel.wait_for_confirms().unwrap();
        queue.delete().unwrap();
    }
}
