//! Exchanges, queues and bindings that are declared again after a loss.

use std::time::Duration;

use leveret::{
    AckMode, Channel, ConnectionEvent, ConsumeOptions, Entity, ErrorKind, Exchange,
    ExchangeDeclareOptions, ExchangeKind, FieldTable, QueueDeclareOptions, QueueDeleteOptions,
    RecoveryOptions, ReplyCode,
};

use super::{recovered, Lossy};
use crate::support::proxy::quick;
use crate::support::{channel, connect, eventually, exclusive_queue, ready, unique, version, SOON};

fn auto_delete_exchange(channel: &Channel, kind: ExchangeKind) -> Exchange {
    let options = ExchangeDeclareOptions::default().auto_delete(true);
    channel
        .exchange_declare(&unique("x"), kind, options)
        .unwrap()
}

/// Waits until this many messages are in a queue.
#[track_caller]
fn arrives(channel: &Channel, queue: &str, count: u32) {
    eventually("the messages arrive", || ready(channel, queue) == count);
}

#[test]
fn exchanges_queues_and_bindings_are_restored() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let source = auto_delete_exchange(&channel, ExchangeKind::Topic);
    let headers = auto_delete_exchange(&channel, ExchangeKind::Headers);
    let options = QueueDeclareOptions::temporary().max_length(2);
    let named = channel.queue_declare(&unique("q"), options).unwrap();
    let unnamed = exclusive_queue(&channel);
    headers.bind(&source, "to.headers").unwrap();
    named.bind(&source, "one.*").unwrap();
    named.bind(&source, "two.*").unwrap();
    let matching = FieldTable::new()
        .with("x-match", "all")
        .with("colour", "red");
    unnamed.bind_with(&headers, "", matching).unwrap();
    channel
        .queue_bind_no_wait(unnamed.name(), source.name(), "no.wait", FieldTable::new())
        .unwrap();

    let old = unnamed.name().to_owned();
    for _ in 0..2 {
        let told = lossy.lose();
        let renamed = told.iter().any(|event| {
            matches!(event, ConnectionEvent::QueueRenamed { new, .. } if new == unnamed.name())
        });
        assert!(renamed && unnamed.name() != old, "{told:?}");
        assert_eq!(told.len(), 3, "{told:?}");
        for key in ["one.1", "two.2", "one.3", "three.4", "no.wait"] {
            source.publish(key, "m").unwrap();
        }
        let red = leveret::Message::new("m").header("colour", "red");
        source.publish("to.headers", red).unwrap();
        source.publish("to.headers", "colourless").unwrap();
        // The binding has its arguments again: it takes one of two messages, and "no.wait" takes
        // one.
        arrives(&channel, unnamed.name(), 2);
        arrives(&channel, named.name(), 2);
    }
}

#[test]
fn a_consumer_follows_a_queue_to_its_new_name() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    let same = channel.queue(queue.name());
    let consumer = queue.consume().unwrap();
    // The empty name stands for the queue declared last.
    let second = lossy.connection.open_channel().unwrap();
    let last = exclusive_queue(&second);
    for _ in 0..3 {
        let before = queue.name().to_owned();
        lossy.lose();
        assert_ne!(queue.name(), before);
        assert_eq!(same.name(), queue.name());
        same.publish("m").unwrap();
        let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
        delivery.ack().unwrap();
        second
            .queue_bind("", "amq.fanout", "", FieldTable::new())
            .unwrap();
        last.publish("m").unwrap();
        let fetched = second.basic_get("", AckMode::Automatic).unwrap();
        assert_eq!(fetched.unwrap().body(), b"m");
    }
}

#[test]
fn a_server_named_queue_that_survived_keeps_its_name() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let options = QueueDeclareOptions::default().expires(Duration::from_secs(60));
    let queue = channel.queue_declare("", options).unwrap();
    queue.publish("m").unwrap();
    arrives(&channel, queue.name(), 1);
    let before = queue.name().to_owned();
    lossy.lose();
    assert_eq!(queue.name(), before);
    assert_eq!(ready(&channel, queue.name()), 1);
    // Another program deletes the queue during the next outage, so it is declared anew.
    lossy.proxy.refuse(true);
    lossy.proxy.cut();
    super::lost(&lossy.events);
    self::channel()
        .queue_delete(&before, Default::default())
        .unwrap();
    lossy.proxy.refuse(false);
    recovered(&lossy.events);
    assert_ne!(queue.name(), before);
    assert_eq!(ready(&channel, queue.name()), 0);
    queue.delete().unwrap();
}

#[test]
fn deleted_and_unbound_entities_are_not_restored() {
    let lossy = Lossy::new();
    let connection = &lossy.connection;
    let channel = connection.open_channel().unwrap();
    let deleted = channel
        .queue_declare(&unique("deleted"), QueueDeclareOptions::temporary())
        .unwrap();
    let auto_deleted = channel
        .queue_declare(
            &unique("auto"),
            QueueDeclareOptions::default().auto_delete(true),
        )
        .unwrap();
    let kept = exclusive_queue(&channel);
    let exchange = auto_delete_exchange(&channel, ExchangeKind::Direct);
    let gone = auto_delete_exchange(&channel, ExchangeKind::Direct);
    kept.bind(&exchange, "bound").unwrap();
    kept.bind(&exchange, "unbound").unwrap();
    kept.unbind(&exchange, "unbound").unwrap();
    let source = auto_delete_exchange(&channel, ExchangeKind::Direct);
    for key in ["bound", "unbound"] {
        exchange.bind(&source, key).unwrap();
    }
    // Unbind the key that leads on to the queue.
    exchange.unbind(&source, "bound").unwrap();
    deleted.bind(&gone, "").unwrap();
    deleted.delete().unwrap();
    let consumer = auto_deleted.consume().unwrap();
    consumer.cancel().unwrap();
    let cancelled = kept.consume().unwrap();
    cancelled.cancel().unwrap();
    assert!(!connection.queue_exists(auto_deleted.name()).unwrap());

    let told = lossy.lose();
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(!connection.queue_exists(deleted.name()).unwrap());
    assert!(!connection.queue_exists(auto_deleted.name()).unwrap());
    assert!(!connection.exchange_exists(gone.name()).unwrap());
    assert!(connection.exchange_exists(exchange.name()).unwrap());
    exchange.publish("unbound", "m").unwrap();
    source.publish("bound", "m").unwrap();
    exchange.publish("bound", "m").unwrap();
    arrives(&channel, kept.name(), 1);
    // Messages come in order, so no other one is in flight.
    assert_eq!(ready(&channel, kept.name()), 1);
    assert_eq!(cancelled.recv().unwrap().map(drop), None);
}

#[test]
fn entities_that_cannot_be_declared_are_reported_and_retried() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let short_lived = QueueDeclareOptions::default().auto_delete(true);
    let changed = channel
        .queue_declare(&unique("changed"), short_lived)
        .unwrap();
    let other = exclusive_queue(&channel);
    let exchange = auto_delete_exchange(&channel, ExchangeKind::Fanout);
    changed.bind(&exchange, "").unwrap();
    other.bind(&exchange, "").unwrap();
    let second = lossy.connection.open_channel().unwrap();
    second.basic_qos(7).unwrap();
    let consumer = second
        .basic_consume(changed.name(), Default::default())
        .unwrap();
    let on_other = second
        .basic_consume(other.name(), Default::default())
        .unwrap();

    // The queue is deleted with the connection, and another program declares an exclusive one.
    lossy.proxy.refuse(true);
    lossy.proxy.cut();
    super::lost(&lossy.events);
    let intruder = connect();
    let theirs = intruder.open_channel().unwrap();
    eventually("the queue is gone", || {
        !intruder.queue_exists(changed.name()).unwrap()
    });
    theirs
        .queue_declare(
            changed.name(),
            QueueDeclareOptions::temporary().max_length(1),
        )
        .unwrap();
    lossy.proxy.refuse(false);
    let told = recovered(&lossy.events);
    let missing: Vec<_> = told
        .iter()
        .filter_map(|event| match event {
            ConnectionEvent::NotRecovered { entity, error } => {
                Some((entity.clone(), error.clone()))
            }
            _ => None,
        })
        .collect();
    let name = || changed.name().to_owned();
    let entities: Vec<_> = missing.iter().map(|(entity, _)| entity.clone()).collect();
    let lacking = [
        Entity::Queue { name: name() },
        Entity::Consumer {
            queue: name(),
            consumer_tag: consumer.consumer_tag().to_owned(),
        },
        Entity::Binding {
            source: exchange.name().to_owned(),
            destination: name(),
            routing_key: String::new(),
        },
    ];
    assert_eq!(entities, lacking, "{told:?}");
    for (_, error) in &missing {
        assert_eq!(
            error.reply_code(),
            Some(ReplyCode::RESOURCE_LOCKED),
            "{error}"
        );
    }
    // Everything else works.
    exchange.publish("", "m").unwrap();
    let delivery = on_other.recv_timeout(SOON).unwrap().unwrap();
    delivery.ack().unwrap();
    assert!(consumer.try_recv().unwrap().is_none() && !consumer.has_ended());

    // The other program ends.
    intruder.close().unwrap();
    let mut left = Vec::from(lacking);
    while !left.is_empty() {
        match lossy.events.recv_timeout(SOON).unwrap() {
            ConnectionEvent::RecoveredLater { entity: found } => left.retain(|it| *it != found),
            other => panic!("{other:?}, {left:?} are missing"),
        }
    }
    exchange.publish("", "again").unwrap();
    let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
    assert_eq!(delivery.body(), b"again");
    assert!(second.is_open());
}

#[test]
fn a_queue_redeclared_with_other_arguments_is_reported_and_used() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let options = QueueDeclareOptions::default().expires(Duration::from_secs(60));
    let queue = channel.queue_declare(&unique("q"), options).unwrap();
    let consumer = queue.consume().unwrap();
    lossy.proxy.refuse(true);
    lossy.proxy.cut();
    super::lost(&lossy.events);
    let other = self::channel();
    other
        .queue_delete(queue.name(), Default::default())
        .unwrap();
    let otherwise = QueueDeclareOptions::default().expires(Duration::from_secs(30));
    other.queue_declare(queue.name(), otherwise).unwrap();
    lossy.proxy.refuse(false);
    let told = recovered(&lossy.events);
    let refused = told.iter().any(|event| {
        matches!(event, ConnectionEvent::NotRecovered { error, .. }
            if error.reply_code() == Some(ReplyCode::PRECONDITION_FAILED))
    });
    assert!(refused, "{told:?}");
    queue.publish("m").unwrap();
    let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
    assert_eq!(delivery.body(), b"m");
    other
        .queue_delete(queue.name(), Default::default())
        .unwrap();
    let later = lossy.events.recv_timeout(SOON).unwrap();
    let entity = Entity::Queue {
        name: queue.name().to_owned(),
    };
    assert!(
        matches!(&later, ConnectionEvent::RecoveredLater { entity: it } if *it == entity),
        "{later:?}"
    );
    queue.delete().unwrap();
}

#[test]
fn a_consumer_of_a_taken_queue_waits_until_the_other_one_ends() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let options = QueueDeclareOptions::default().expires(Duration::from_secs(60));
    let queue = channel.queue_declare(&unique("q"), options).unwrap();
    let exclusive = ConsumeOptions::default().exclusive(true);
    let consumer = queue.consume_with(exclusive).unwrap();
    let on_other = exclusive_queue(&channel).consume().unwrap();
    // Another program takes the queue meanwhile.
    lossy.proxy.refuse(true);
    lossy.proxy.cut();
    super::lost(&lossy.events);
    let intruder = self::channel();
    eventually("the queue has no consumer", || {
        let queue = intruder.queue_declare_passive(queue.name()).unwrap();
        queue.consumer_count() == Some(0)
    });
    let theirs = intruder
        .basic_consume(queue.name(), Default::default())
        .unwrap();
    lossy.proxy.refuse(false);
    let told = recovered(&lossy.events);
    let refused = told.iter().any(|event| {
        matches!(event, ConnectionEvent::NotRecovered { error, .. }
            if error.reply_code() == Some(ReplyCode::ACCESS_REFUSED))
    });
    assert!(refused, "{told:?}");
    assert!(channel.is_open() && !on_other.has_ended());
    // The consumer waits until the other one ends.
    std::thread::sleep(Duration::from_millis(300));
    assert!(!consumer.has_ended());
    theirs.cancel().unwrap();
    queue.publish("m").unwrap();
    let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
    assert_eq!(delivery.body(), b"m");
    queue.delete().unwrap();
}

#[test]
fn filter_and_switches_select_what_is_restored() {
    type Limit = fn(RecoveryOptions) -> RecoveryOptions;
    let cases: [(&str, Limit); 6] = [
        ("nothing", |it| it),
        ("exchange", |it| it.exchanges(false)),
        ("queue", |it| it.queues(false)),
        ("binding", |it| it.bindings(false)),
        ("consumer", |it| it.consumers(false)),
        ("filtered", |it| {
            it.filter(|entity| !matches!(entity, Entity::Consumer { .. }))
        }),
    ];
    for (left_out, limit) in cases {
        let lossy = Lossy::with(|options| options.recovery(limit(quick())));
        let channel = lossy.connection.open_channel().unwrap();
        let exchange = auto_delete_exchange(&channel, ExchangeKind::Fanout);
        let queue = channel
            .queue_declare(&unique("q"), QueueDeclareOptions::temporary())
            .unwrap();
        queue.bind(&exchange, "").unwrap();
        let consuming = lossy.connection.open_channel().unwrap();
        let consumer = consuming
            .basic_consume(queue.name(), Default::default())
            .unwrap();
        lossy.lose();
        let connection = &lossy.connection;
        assert_eq!(
            connection.exchange_exists(exchange.name()).unwrap(),
            left_out != "exchange"
        );
        assert_eq!(
            connection.queue_exists(queue.name()).unwrap(),
            left_out != "queue"
        );
        if !matches!(left_out, "exchange" | "queue") {
            exchange.publish("", "m").unwrap();
            queue.publish("last").unwrap();
        }
        match left_out {
            "nothing" => {
                let body = consumer.recv_timeout(SOON).unwrap().unwrap();
                assert_eq!(body.body(), b"m");
            }
            "binding" => {
                let body = consumer.recv_timeout(SOON).unwrap().unwrap();
                assert_eq!(body.body(), b"last");
            }
            "consumer" | "filtered" => {
                let error = consumer.recv().unwrap_err();
                assert!(
                    matches!(error.kind(), ErrorKind::SocketClosed { .. }),
                    "{error}"
                );
                assert!(consumer.recv().unwrap().is_none());
                arrives(&channel, queue.name(), 2);
            }
            _ => {}
        }
    }
}

#[test]
fn an_entity_that_closes_the_connection_each_time_is_left_out() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    let name = unique("poison");
    let mut consuming = None;
    let entity = if version() < (4, 0) {
        // An exchange type of a missing plugin: 503.
        let options = ExchangeDeclareOptions::default().auto_delete(true);
        let kind = ExchangeKind::Other("x-no-such".into());
        channel
            .exchange_declare_no_wait(&name, kind, options)
            .unwrap();
        Entity::Exchange { name }
    } else {
        // A consumer with an offset of the wrong type: 541.
        let stream = channel.queue_declare(&name, QueueDeclareOptions::stream());
        let stream = stream.unwrap();
        let channel = lossy.connection.open_channel().unwrap();
        channel.basic_qos(1).unwrap();
        let options = ConsumeOptions::default().argument("x-stream-offset", true);
        let consumer = channel.basic_consume_no_wait(&name, options).unwrap();
        let consumer_tag = consumer.consumer_tag().to_owned();
        consuming = Some((stream, consumer));
        Entity::Consumer {
            queue: name,
            consumer_tag,
        }
    };
    let told = recovered(&lossy.events);
    let blamed = told.iter().filter(
        |event| matches!(event, ConnectionEvent::NotRecovered { entity: it, .. } if *it == entity),
    );
    assert_eq!(blamed.count(), 1, "{told:?}");
    queue.publish("m").unwrap();
    arrives(&channel, queue.name(), 1);
    if let Some((stream, _consumer)) = consuming {
        stream.delete().unwrap();
    }
}

#[test]
fn a_refused_no_wait_consumer_does_not_forget_its_auto_delete_queue() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let options = QueueDeclareOptions::default().auto_delete(true);
    let queue = channel.queue_declare(&unique("auto"), options).unwrap();
    let refused = lossy.connection.open_channel().unwrap();
    // The priority must be a number.
    let options = ConsumeOptions::default().argument("x-priority", "high");
    let consumer = refused.basic_consume_no_wait(queue.name(), options);
    let error = consumer.unwrap().recv().unwrap_err();
    assert_eq!(error.close_reason().unwrap().method, Some("basic.consume"));
    // The recovery declares the queue only if the client still knows of it.
    connect()
        .open_channel()
        .unwrap()
        .queue_delete(queue.name(), QueueDeleteOptions::default())
        .unwrap();
    lossy.lose();
    assert!(lossy.connection.queue_exists(queue.name()).unwrap());
    queue.delete().unwrap();
}
