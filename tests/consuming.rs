//! Receives messages, and acknowledges, rejects and requeues them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use leveret::broker::Broker;
use leveret::{
    AckMode, ClosedBy, Connection, ConsumeOptions, DeathReason, Delivery, ErrorKind, Message,
    NackOptions, QosOptions, QueueDeclareOptions, ReplyCode, Requeue, StreamOffset,
};

use crate::support::{
    channel, connect, eventually, exclusive_queue, options, queue_that_times_out,
    queue_with_dead_letters, ready, unique, Node, SOON,
};

#[test]
fn deliveries_carry_all_their_fields() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    queue
        .bind(
            channel.exchange("amq.topic"),
            &format!("{}.*", queue.name()),
        )
        .unwrap();
    channel.basic_qos(10).unwrap();
    let options = ConsumeOptions::default()
        .consumer_tag("mine")
        .argument("x-priority", 5);
    let consumer = queue.consume_with(options).unwrap();
    let key = format!("{}.key", queue.name());
    channel.basic_publish("amq.topic", &key, "one").unwrap();
    queue.publish("two").unwrap();
    let one = consumer.recv().unwrap().unwrap();
    assert_eq!((one.consumer_tag(), one.delivery_tag()), ("mine", 1));
    assert_eq!(
        (one.exchange(), one.routing_key()),
        ("amq.topic", key.as_str())
    );
    assert_eq!((one.body(), one.redelivered()), (&b"one"[..], false));
    one.ack().unwrap();
    let two = consumer.recv_timeout(SOON).unwrap().unwrap();
    assert_eq!(
        (two.exchange(), two.routing_key(), two.delivery_tag()),
        ("", queue.name(), 2)
    );
    two.ack().unwrap();
    assert!(consumer.try_recv().unwrap().is_none());
    assert!(consumer
        .recv_timeout(Duration::from_millis(10))
        .unwrap()
        .is_none());
}

#[test]
fn generated_tags_differ_and_a_tag_in_use_is_refused_locally() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let first = queue.consume().unwrap();
    let second = queue.consume().unwrap();
    assert_ne!(first.consumer_tag(), second.consumer_tag());
    let again = ConsumeOptions::default().consumer_tag(first.consumer_tag());
    let error = queue.consume_with(again.clone()).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::InvalidArgument(_)),
        "{error}"
    );
    assert!(channel.is_open());
    first.cancel().unwrap();
    // The tag is free after the cancel.
    queue.consume_with(again).unwrap();
}

#[test]
fn cancelling_keeps_received_messages_and_ends_the_iteration() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    for body in ["1", "2", "3"] {
        queue.publish(body).unwrap();
    }
    let consumer = queue.consume().unwrap();
    eventually("the consumer has all messages", || consumer.unread() == 3);
    channel.basic_cancel(consumer.consumer_tag()).unwrap();
    assert!(!consumer.has_ended(), "three messages are unread");
    queue.publish("4").unwrap();
    let mut bodies = Vec::new();
    for delivery in &consumer {
        let delivery = delivery.unwrap();
        delivery.ack().unwrap();
        bodies.push(delivery.into_body());
    }
    assert_eq!(bodies, [b"1", b"2", b"3"]);
    assert!(consumer.recv().unwrap().is_none());
    assert!(consumer.has_ended());
    // Cancelling an unknown tag is no error.
    channel.basic_cancel(consumer.consumer_tag()).unwrap();
    channel.basic_cancel_no_wait("never heard of").unwrap();
    eventually("the fourth message is still in the queue", || {
        ready(&channel, queue.name()) == 1
    });
}

#[test]
fn a_dropped_consumer_requeues_unread_messages() {
    let connection = connect();
    let channel = connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    for number in 0..500 {
        queue.publish(number.to_string()).unwrap();
    }
    let consumer = queue.consume().unwrap();
    let first = consumer.recv().unwrap().unwrap();
    drop(consumer);
    eventually("all messages but the first are requeued", || {
        ready(&channel, queue.name()) == 499
    });
    first.ack().unwrap();
    // They are in their old order, since no other consumer has had them.
    let again = queue.get_with(AckMode::Automatic).unwrap().unwrap();
    assert_eq!((again.body(), again.redelivered()), (&b"1"[..], true));
    assert_eq!(again.message_count(), Some(498));
}

#[test]
fn a_consumer_dropped_while_messages_arrive_requeues_all_of_them() {
    const MESSAGES: u32 = 200;
    let channel = channel();
    let queue = exclusive_queue(&channel);
    for _ in 0..MESSAGES {
        queue.publish("m").unwrap();
    }
    for round in 0..300 {
        let consumer = queue.consume().unwrap();
        if round % 2 == 0 {
            let _ = consumer.receiver();
        }
        // Drop the consumer at another moment each time.
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_micros(round % 50 * 20) {
            std::hint::spin_loop();
        }
        drop(consumer);
        eventually("all messages are requeued", || {
            ready(&channel, queue.name()) == MESSAGES
        });
    }
}

#[test]
fn a_copied_offset_header_does_not_make_a_queue_a_stream() {
    let channel = channel();
    let options = QueueDeclareOptions::temporary();
    let (queue, dead) = queue_with_dead_letters(&channel, "", options);
    let publish = |body: &str| {
        let message = Message::new(body).header("x-stream-offset", i64::MAX);
        queue.publish(message).unwrap();
    };
    let consuming = channel.connection().open_channel().unwrap();
    let options = ConsumeOptions::default();
    let consumer = consuming.basic_consume(queue.name(), options).unwrap();
    let next = || consumer.recv_timeout(SOON).unwrap().unwrap();
    publish("1");
    next().nack(NackOptions::requeue()).unwrap();
    next().reject(Requeue::Yes).unwrap();
    next().reject(Requeue::No).unwrap();
    publish("2");
    next().nack(NackOptions::discard()).unwrap();
    eventually("both messages are dead-lettered", || {
        ready(&channel, dead.name()) == 2
    });
    for number in 0..3 {
        publish(&number.to_string());
    }
    eventually("the consumer has three messages", || consumer.unread() == 3);
    drop(consumer);
    eventually("all messages are requeued", || {
        ready(&channel, queue.name()) == 3
    });
    let fetched = queue.get().unwrap().unwrap();
    fetched.reject(Requeue::No).unwrap();
    eventually("three messages are dead-lettered", || {
        ready(&channel, dead.name()) == 3
    });
    assert!(consuming.is_open());
}

#[test]
fn nack_and_reject_are_refused_for_messages_of_a_stream() {
    let channel = channel();
    let options = QueueDeclareOptions::stream();
    let stream = channel.queue_declare(&unique("stream"), options).unwrap();
    let publisher = channel.publisher().unwrap();
    let publish = |number: u64| {
        // The broker sets the offset; a header of the publisher does not.
        let message = Message::new(number.to_string()).header("x-stream-offset", 77_i64);
        let confirm = publisher.publish("", stream.name(), message).unwrap();
        confirm.wait().unwrap();
    };
    channel.basic_qos(10).unwrap();
    let other = connect().open_channel().unwrap();
    other.basic_qos(10).unwrap();
    let next = ConsumeOptions::default().stream_offset(StreamOffset::Next);
    let consumers = [
        channel
            .basic_consume(stream.name(), ConsumeOptions::default())
            .unwrap(),
        // The empty name means the queue declared last.
        channel
            .basic_consume("", ConsumeOptions::default())
            .unwrap(),
        other.basic_consume(stream.name(), next).unwrap(),
    ];
    for number in 0..2 {
        publish(number);
    }
    for consumer in consumers {
        let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
        for error in [
            delivery.nack(NackOptions::requeue()).unwrap_err(),
            delivery.reject(Requeue::No).unwrap_err(),
        ] {
            assert!(
                error.to_string().contains("a stream keeps its messages"),
                "{error}"
            );
        }
        delivery.ack().unwrap();
        eventually("the consumer has another message", || {
            consumer.unread() == 1
        });
        // Dropping the consumer must not nack its unread message: that would cost the connection.
        drop(consumer);
    }
    for channel in [&channel, &other] {
        channel.basic_qos(1).unwrap();
        assert_eq!(channel.connection().loss_count(), 0);
    }
    stream.delete().unwrap();
}

#[test]
fn try_recv_returns_the_error_before_has_ended_is_true() {
    let channel = channel();
    for _ in 0..100 {
        let queue = exclusive_queue(&channel);
        let consumer = queue.consume().unwrap();
        let looking = thread::spawn(move || loop {
            match consumer.try_recv() {
                Err(error) => return error,
                Ok(None) if consumer.has_ended() => {
                    panic!("the consumer has ended without an error")
                }
                Ok(_) => {}
            }
        });
        queue.delete().unwrap();
        let error = looking.join().unwrap();
        let is_cancelled = matches!(error.kind(), ErrorKind::ConsumerCancelled { .. });
        assert!(is_cancelled, "{error}");
    }
}

#[test]
fn threads_that_share_a_consumer_get_each_message_once() {
    const MESSAGES: usize = 20_000;
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let consumer = queue
        .consume_with(ConsumeOptions::default().no_ack(true))
        .unwrap();
    let read = AtomicUsize::new(0);
    let mut seen: Vec<usize> = thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut seen: Vec<usize> = Vec::new();
                    for delivery in &consumer {
                        let body = delivery.unwrap().into_body();
                        let number = String::from_utf8(body).unwrap().parse().unwrap();
                        assert!(
                            seen.last() < Some(&number),
                            "each thread gets messages in order"
                        );
                        seen.push(number);
                        read.fetch_add(1, Ordering::Relaxed);
                    }
                    seen
                })
            })
            .collect();
        for number in 0..MESSAGES {
            queue.publish(number.to_string()).unwrap();
        }
        eventually("all messages are read", || {
            read.load(Ordering::Relaxed) == MESSAGES
        });
        // All four threads wait, and all four learn that the consumer has ended.
        consumer.cancel().unwrap();
        let seen = readers.into_iter().map(|it| it.join().unwrap());
        seen.flatten().collect()
    });
    seen.sort_unstable();
    assert_eq!(seen, (0..MESSAGES).collect::<Vec<_>>());
    assert!(consumer.has_ended());
}

#[test]
fn a_waiting_recv_survives_a_request_for_the_receiver() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    for number in 0..4 {
        queue.publish(number.to_string()).unwrap();
    }
    let consumer = queue.consume().unwrap();
    let body = |delivery: Delivery| {
        delivery.ack().unwrap();
        String::from_utf8(delivery.into_body()).unwrap()
    };
    eventually("the consumer has four messages", || consumer.unread() == 4);
    let next = || consumer.recv_timeout(SOON).unwrap().map(body);
    assert_eq!(next().unwrap(), "0");
    thread::scope(|scope| {
        // The messages so far move to the receiver in order.
        let receiver = consumer.receiver();
        assert_eq!(consumer.unread(), 3);
        assert_eq!(body(receiver.recv_timeout(SOON).unwrap().unwrap()), "1");
        assert_eq!(consumer.try_recv().unwrap().map(body).unwrap(), "2");
        assert_eq!(next().unwrap(), "3");
        let waiting = scope.spawn(next);
        queue.publish("4").unwrap();
        assert_eq!(waiting.join().unwrap().unwrap(), "4");
        let another = queue.consume().unwrap();
        consumer.cancel().unwrap();
        assert!(receiver.recv_timeout(SOON).is_err(), "disconnected");
        let waiting = scope.spawn(move || {
            let first = another.recv_timeout(SOON).unwrap().map(body);
            (first, another)
        });
        queue.publish("5").unwrap();
        let (first, another) = waiting.join().unwrap();
        assert_eq!(first.unwrap(), "5");
        // A consumer that has ended still has a receiver.
        queue.publish("6").unwrap();
        eventually("the consumer has the message", || another.unread() == 1);
        another.cancel().unwrap();
        let receiver = another.receiver();
        assert_eq!(body(receiver.recv().unwrap().unwrap()), "6");
        assert!(receiver.recv().is_err() && another.has_ended());
    });
    // The reader may or may not be waiting when the receiver is requested.
    for _ in 0..20 {
        let consumer = queue.consume().unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| consumer.recv().unwrap().map(body));
            thread::yield_now();
            let _ = consumer.receiver();
            queue.publish("7").unwrap();
            assert_eq!(waiting.join().unwrap().unwrap(), "7");
        });
    }
}

#[test]
fn a_consumer_keeps_its_channel_and_connection_open() {
    let consumer = {
        let channel = channel();
        let queue = exclusive_queue(&channel);
        queue.publish("still here").unwrap();
        queue.consume().unwrap()
    };
    let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
    drop(consumer);
    assert_eq!(delivery.body(), b"still here");
    delivery.ack().unwrap();
    assert!(delivery.channel().is_open());
}

#[test]
fn deleting_a_queue_ends_its_consumers_with_an_error() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    queue.publish("last words").unwrap();
    let consumer = queue
        .consume_with(ConsumeOptions::default().no_ack(true))
        .unwrap();
    eventually("the consumer has the message", || consumer.unread() == 1);
    queue.delete().unwrap();
    let mut deliveries = consumer.iter();
    assert_eq!(deliveries.next().unwrap().unwrap().body(), b"last words");
    let error = deliveries.next().unwrap().unwrap_err();
    let consumer_tag = consumer.consumer_tag().to_owned();
    let by = ClosedBy::Broker;
    assert_eq!(
        *error.kind(),
        ErrorKind::ConsumerCancelled { consumer_tag, by }
    );
    assert!(deliveries.next().is_none(), "the error is reported once");
    assert!(channel.is_open());
}

#[test]
fn a_consumer_that_the_broker_cancels_discards_its_unread_messages() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    for body in ["taken", "unread", "unread, too"] {
        queue.publish(body).unwrap();
    }
    let consumer = queue.consume().unwrap();
    eventually("the consumer has all messages", || consumer.unread() == 3);
    let taken = consumer.recv().unwrap().unwrap();
    queue.delete().unwrap();
    eventually("only the error is unread", || consumer.unread() == 1);
    // The unread messages are discarded: had the queue not been deleted, the broker would redeliver
    // them.
    let error = consumer.recv().unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::ConsumerCancelled { .. }),
        "{error}"
    );
    assert!(consumer.has_ended());
    taken.ack().unwrap();
    // The tag is free at once, and the channel stays open.
    let again = ConsumeOptions::default().consumer_tag(consumer.consumer_tag());
    let queue = exclusive_queue(&channel);
    queue.publish("more").unwrap();
    let consumer = queue.consume_with(again).unwrap();
    let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
    assert_eq!(delivery.body(), b"more");
    delivery.ack().unwrap();
    assert_eq!(queue.purge().unwrap(), 0);
}

#[test]
fn closing_a_channel_ends_its_consumers_with_the_error() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let consumer = queue.consume().unwrap();
    channel.basic_ack(7).unwrap();
    let error = consumer.recv().unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::PRECONDITION_FAILED));
    assert!(consumer.recv().unwrap().is_none());
}

#[test]
fn no_ack_messages_cannot_be_acknowledged() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    queue.publish("take it").unwrap();
    let consumer = queue
        .consume_with(ConsumeOptions::default().no_ack(true))
        .unwrap();
    let delivery = consumer.recv().unwrap().unwrap();
    let error = delivery.ack().unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::InvalidArgument(_)),
        "{error}"
    );
    channel.basic_qos(1).unwrap();
    assert!(channel.is_open());
}

#[test]
fn settling_a_message_twice_is_refused_locally() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    queue.publish("once").unwrap();
    let consumer = queue.consume().unwrap();
    let delivery = consumer.recv().unwrap().unwrap();
    delivery.ack().unwrap();
    for error in [
        delivery.ack().unwrap_err(),
        delivery.nack(NackOptions::requeue()).unwrap_err(),
        delivery.reject(Requeue::Yes).unwrap_err(),
        delivery.ack_multiple().unwrap_err(),
    ] {
        assert_eq!(*error.kind(), ErrorKind::AlreadySettled { delivery_tag: 1 });
    }
    channel.basic_qos(1).unwrap();
}

#[test]
fn an_exclusive_consumer_excludes_others() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let _alone = queue
        .consume_with(ConsumeOptions::default().exclusive(true))
        .unwrap();
    let error = queue.consume().unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::ACCESS_REFUSED));
}

#[test]
fn with_no_wait_the_consumer_returns_the_error() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let consumer = channel
        .basic_consume_no_wait(queue.name(), ConsumeOptions::default())
        .unwrap();
    queue.publish("at once").unwrap();
    consumer.recv().unwrap().unwrap().ack().unwrap();
    let none = channel
        .basic_consume_no_wait("no such queue", ConsumeOptions::default())
        .unwrap();
    let error = none.recv().unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND));
    assert_eq!(consumer.recv().unwrap_err().kind(), error.kind());
}

#[test]
fn prefetch_limits_unacknowledged_messages() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    for body in ["1", "2", "3", "4", "5"] {
        queue.publish(body).unwrap();
    }
    channel.basic_qos(2).unwrap();
    let consumer = queue.consume().unwrap();
    eventually("the consumer has two messages", || consumer.unread() == 2);
    assert_eq!(ready(&channel, queue.name()), 3);
    let two = consumer
        .iter()
        .take(2)
        .map(|it| it.unwrap())
        .last()
        .unwrap();
    two.ack_multiple().unwrap();
    eventually("the consumer has two more messages", || {
        consumer.unread() == 2
    });

    // A limit for all consumers of a channel together exists for classic queues only.
    let channel = channel.connection().open_channel().unwrap();
    channel
        .basic_qos_with(QosOptions::default().prefetch_count(1).global(true))
        .unwrap();
    let error = channel
        .basic_qos_with(QosOptions::default().prefetch_size(1))
        .unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_IMPLEMENTED));
}

#[test]
fn messages_are_fetched_one_by_one() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    assert!(queue.get().unwrap().is_none());
    queue.publish("1").unwrap();
    queue.publish("2").unwrap();
    eventually("both messages are in the queue", || {
        ready(&channel, queue.name()) == 2
    });
    let first = queue.get().unwrap().unwrap();
    assert_eq!((first.body(), first.message_count()), (&b"1"[..], Some(1)));
    assert_eq!(
        (first.consumer_tag(), first.routing_key()),
        ("", queue.name())
    );
    let second = queue.get_with(AckMode::Automatic).unwrap().unwrap();
    assert_eq!(
        (second.body(), second.message_count()),
        (&b"2"[..], Some(0))
    );
    first.ack().unwrap();
    assert!(queue.get().unwrap().is_none());
}

#[test]
fn messages_can_be_requeued_and_discarded_in_every_way() {
    let channel = channel();
    let dead = exclusive_queue(&channel);
    let options = QueueDeclareOptions::temporary()
        .argument("x-dead-letter-exchange", "")
        .argument("x-dead-letter-routing-key", dead.name());
    let queue = channel.queue_declare(&unique("q"), options).unwrap();
    let consumer = queue.consume().unwrap();
    let next = || consumer.recv_timeout(SOON).unwrap().unwrap();

    queue.publish("m").unwrap();
    next().reject(Requeue::Yes).unwrap();
    let again = next();
    assert!(again.redelivered());
    again.nack(NackOptions::requeue()).unwrap();
    let _kept = next();
    channel.basic_recover(Requeue::Yes).unwrap();
    let _kept = next();
    channel.basic_recover_async(Requeue::Yes).unwrap();
    next().reject(Requeue::No).unwrap();
    eventually("the rejected message is dead-lettered", || {
        ready(&channel, dead.name()) == 1
    });

    queue.publish("m").unwrap();
    next().nack(NackOptions::discard()).unwrap();
    eventually("the discarded message is dead-lettered", || {
        ready(&channel, dead.name()) == 2
    });
    let letter = dead.get_with(AckMode::Automatic).unwrap().unwrap();
    let [death] = &letter.deaths()[..] else {
        panic!("{:?}", letter.properties());
    };
    assert_eq!((&death.reason, death.count), (&DeathReason::Rejected, 1));
    assert_eq!(death.queue, queue.name());

    for _ in 0..3 {
        queue.publish("m").unwrap();
    }
    let tags: Vec<_> = (0..3).map(|_| next().delivery_tag()).collect();
    channel
        .basic_nack(tags[1], NackOptions::discard().multiple(true))
        .unwrap();
    eventually("two more messages are dead-lettered", || {
        ready(&channel, dead.name()) == 3
    });
    channel.basic_reject(tags[2], Requeue::No).unwrap();
    eventually("the last message is dead-lettered", || {
        ready(&channel, dead.name()) == 4
    });

    let error = channel.basic_recover(Requeue::No).unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_IMPLEMENTED));
}

#[test]
fn deliveries_can_be_acknowledged_from_any_thread() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    for _ in 0..100 {
        queue.publish("m").unwrap();
    }
    let consumer = queue.consume().unwrap();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let receiver = consumer.receiver().clone();
            thread::spawn(move || {
                let acked = receiver
                    .into_iter()
                    .take(25)
                    .map(|it| it.unwrap().ack().unwrap());
                acked.count()
            })
        })
        .collect();
    let acked: usize = threads.into_iter().map(|it| it.join().unwrap()).sum();
    assert_eq!(acked, 100);
    channel.close().unwrap();
    let channel = channel.connection().open_channel().unwrap();
    assert_eq!(ready(&channel, queue.name()), 0);
}

#[test]
fn a_message_above_max_message_size_closes_only_its_channel() {
    let publishing = channel();
    let name = unique("q");
    let queue = publishing
        .queue_declare(&name, QueueDeclareOptions::default())
        .unwrap();
    queue.publish(vec![0; 300_000]).unwrap();
    queue.publish("small").unwrap();
    eventually("both messages are in the queue", || {
        ready(&publishing, &name) == 2
    });

    let connection = Connection::open_with(options().max_message_size(200_000)).unwrap();
    let other = connection.open_channel().unwrap();
    let consuming = connection.open_channel().unwrap();
    let consumer = consuming
        .basic_consume(&name, ConsumeOptions::default())
        .unwrap();
    let error = consumer.iter().find_map(|it| it.err()).unwrap();
    assert_eq!(error.reply_code(), Some(ReplyCode::CONTENT_TOO_LARGE));
    assert!(
        error.to_string().contains("a message of 300000 bytes"),
        "{error}"
    );
    let fetching = connection.open_channel().unwrap();
    eventually("both messages are requeued", || ready(&other, &name) == 2);
    let error = fetching.basic_get(&name, AckMode::Manual).unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::CONTENT_TOO_LARGE));
    other.basic_qos(1).unwrap();
    queue.delete().unwrap();
}

#[test]
fn dropping_a_consumer_requeues_only_unsettled_messages() {
    let connection = connect();
    let watching = connection.open_channel().unwrap();
    let queue = exclusive_queue(&watching);
    type Answer = fn(&leveret::Channel, u64);
    let answers: [(Answer, u32); 4] = [
        (|channel, _| channel.basic_ack_multiple(0).unwrap(), 0),
        (
            |channel, last| channel.basic_ack_multiple(last - 1).unwrap(),
            1,
        ),
        (|channel, _| channel.basic_recover(Requeue::Yes).unwrap(), 3),
        (
            |channel, last| {
                let options = NackOptions::requeue().multiple(true);
                channel.basic_nack(last, options).unwrap();
            },
            3,
        ),
    ];
    for (answer, left) in answers {
        let channel = connection.open_channel().unwrap();
        channel.basic_qos(3).unwrap();
        let consumer = channel
            .basic_consume(queue.name(), ConsumeOptions::default())
            .unwrap();
        for _ in 0..3 {
            queue.publish("m").unwrap();
        }
        eventually("the consumer has three messages", || consumer.unread() == 3);
        answer(&channel, 3);
        drop(consumer);
        eventually("the unsettled messages are requeued", || {
            ready(&watching, queue.name()) == left
        });
        channel.basic_qos(1).unwrap();
        queue.purge().unwrap();
    }
}

#[test]
fn a_consumer_can_be_cancelled_by_its_tag_at_any_time() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    for round in 0..200_u64 {
        let tag = format!("w{round}");
        let consuming = thread::spawn({
            let (queue, tag) = (queue.clone(), tag.clone());
            move || {
                let consume = ConsumeOptions::default().consumer_tag(tag);
                let consumer = queue.consume_with(consume).unwrap();
                consumer.recv_timeout(Duration::from_millis(20)).unwrap();
            }
        });
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_micros(round * 13 % 400) {
            std::hint::spin_loop();
        }
        channel.basic_cancel(&tag).unwrap();
        consuming.join().unwrap();
    }
    // A free tag belongs to the next consumer that uses it, even while older cancels are in flight.
    for _ in 0..50 {
        channel.basic_cancel_no_wait("w").unwrap();
        let consume = ConsumeOptions::default().consumer_tag("w");
        let Ok(consumer) = queue.consume_with(consume) else {
            // The cancel of the last consumer is not answered yet.
            channel.basic_qos(0).unwrap();
            continue;
        };
        queue.publish("m").unwrap();
        consumer
            .recv_timeout(Duration::from_secs(20))
            .unwrap()
            .expect("a message comes")
            .ack()
            .unwrap();
    }
}

#[test]
fn the_broker_counts_only_read_messages_as_unacknowledged() {
    let node = Node::start();
    let connection = Connection::open_with(node.options()).unwrap();
    let channel = connection.open_channel().unwrap();
    let queue = channel
        .queue_declare("tasks", QueueDeclareOptions::default())
        .unwrap();
    for number in 0..500 {
        queue.publish(number.to_string()).unwrap();
    }
    channel.basic_qos(100).unwrap();
    let consumer = queue.consume().unwrap();
    let read = [(); 3].map(|()| consumer.recv_timeout(SOON).unwrap().unwrap());
    read[0].ack().unwrap();
    eventually("a hundred messages are sent ahead", || {
        node.counts() == (399, 100)
    });
    drop(consumer);
    eventually("the unread messages are requeued", || {
        node.counts() == (497, 2)
    });
    read[1].ack().unwrap();
    // A delivery dropped without being settled stays unacknowledged until the channel closes.
    drop(read);
    eventually("one message is unacknowledged", || {
        node.counts() == (497, 1)
    });
    channel.close().unwrap();
    eventually("all messages are requeued", || node.counts() == (498, 0));
}

#[test]
fn fetching_counts_down_and_gives_each_message_to_one_thread() {
    const COUNT: u32 = 400;
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let fill = || {
        for number in 0..COUNT {
            queue.publish(number.to_string()).unwrap();
        }
        eventually("all messages are in the queue", || {
            ready(&channel, queue.name()) == COUNT
        });
    };
    fill();
    let mut left = COUNT;
    while let Some(message) = queue.get().unwrap() {
        assert_eq!(message.body(), (COUNT - left).to_string().as_bytes());
        left -= 1;
        assert_eq!(message.message_count(), Some(left));
        message.ack().unwrap();
    }
    assert_eq!(left, 0);
    fill();
    // Two threads share a channel, two have their own.
    let connection = channel.connection();
    let shared = connection.open_channel().unwrap();
    let own = [(); 2].map(|()| connection.open_channel().unwrap());
    let threads: Vec<_> = [shared.clone(), shared]
        .into_iter()
        .chain(own)
        .map(|channel| {
            let name = queue.name().to_owned();
            thread::spawn(move || {
                let mut bodies = Vec::new();
                while let Some(message) = channel.basic_get(&name, AckMode::Manual).unwrap() {
                    message.ack().unwrap();
                    bodies.push(String::from_utf8(message.into_body()).unwrap());
                }
                bodies
            })
        })
        .collect();
    let mut numbers: Vec<u32> = threads
        .into_iter()
        .flat_map(|thread| thread.join().unwrap())
        .map(|body| body.parse().unwrap())
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..COUNT).collect::<Vec<_>>());
}

#[test]
fn exceeding_consumer_timeout_ends_the_consumer_with_the_brokers_error() {
    let node = Node::start_impatient();
    let connection = Connection::open_with(node.options()).unwrap();
    let channel = connection.open_channel().unwrap();
    let (queue, cancels) = queue_that_times_out(&channel);
    let consumer = queue.consume().unwrap();
    queue.publish("kept").unwrap();
    let kept = consumer.recv_timeout(SOON).unwrap().unwrap();
    let error = consumer.recv_timeout(SOON).unwrap_err();
    assert!(
        consumer.recv().unwrap().is_none(),
        "the error is reported once"
    );
    assert!(connection.is_open());
    if cancels {
        assert!(
            matches!(error.kind(), ErrorKind::ConsumerCancelled { .. }),
            "{error}"
        );
        // The message is requeued already, so this ack has no effect.
        kept.ack().unwrap();
        eventually("the message is redelivered", || {
            let message = queue.get_with(AckMode::Automatic).unwrap();
            message.is_some_and(|it| it.body() == b"kept")
        });
        return;
    }
    assert_eq!(error.reply_code(), Some(ReplyCode::PRECONDITION_FAILED));
    assert!(
        error
            .to_string()
            .contains("delivery acknowledgement on channel 1 timed out"),
        "{error}"
    );
    assert!(error.to_string().contains("1000 ms"), "{error}");
    assert_eq!(kept.ack().unwrap_err().kind(), error.kind());
}

#[test]
fn a_consumer_busy_for_several_heartbeats_keeps_its_connection() {
    let heartbeat = Duration::from_secs(2);
    let options = options().heartbeat(heartbeat);
    let connection = Connection::open_with(&options).unwrap();
    let channel = connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    queue.publish("hard work").unwrap();
    let consumer = queue.consume().unwrap();
    let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
    thread::sleep(3 * heartbeat);
    delivery.ack().unwrap();
    channel.basic_qos(1).unwrap();
    assert_eq!(connection.heartbeat(), heartbeat);
}

#[test]
fn a_transaction_that_acks_a_message_of_a_cancelled_consumer_is_not_committed() {
    let channel = channel();
    let (tasks, results) = (exclusive_queue(&channel), exclusive_queue(&channel));
    let consumer = tasks.consume().unwrap();
    tasks.publish("task").unwrap();
    let task = consumer.recv_timeout(SOON).unwrap().unwrap();
    channel.tx_select().unwrap();
    tasks.delete().unwrap();
    let cancelled = consumer.recv_timeout(SOON).unwrap_err();
    results.publish("result").unwrap();
    task.ack().unwrap();
    let error = channel.tx_commit().unwrap_err();
    assert_eq!(error.kind(), cancelled.kind(), "{error}");
    assert!(!error.may_have_been_sent(), "{error}");
    assert_eq!(ready(&channel, results.name()), 0);
    results.publish("result").unwrap();
    channel.tx_commit().unwrap();
    assert_eq!(ready(&channel, results.name()), 1);
}

#[test]
fn a_batch_is_full_or_what_came_in_time_and_an_error_follows_its_messages() {
    const SHORT: Duration = Duration::from_millis(50);
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let consumer = queue.consume().unwrap();
    assert!(consumer.recv_batch(3, SHORT).unwrap().is_empty());
    for number in 0..5 {
        queue.publish(number.to_string()).unwrap();
    }
    let full = consumer.recv_batch(3, SOON).unwrap();
    let bodies: Vec<_> = full.iter().map(Delivery::body).collect();
    assert_eq!(bodies, [b"0", b"1", b"2"]);
    full[2].ack_multiple().unwrap();
    let mut rest = Vec::new();
    while rest.len() < 2 {
        rest.extend(consumer.recv_batch(3, SHORT).unwrap());
    }
    rest[1].ack_multiple().unwrap();
    assert!(consumer.recv_batch(0, SOON).unwrap().is_empty());

    let last = thread::scope(|scope| {
        let waiting = scope.spawn(|| consumer.recv_batch(3, SOON));
        queue.publish("last").unwrap();
        let read =
            || channel.connection().stats().messages_delivered == 6 && consumer.unread() == 0;
        eventually("the message is read", read);
        queue.delete().unwrap();
        waiting.join().unwrap().unwrap()
    });
    assert_eq!(last.len(), 1);
    assert!(!consumer.has_ended());
    let error = consumer.recv_batch(3, SOON).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::ConsumerCancelled { .. }),
        "{error}"
    );
    assert!(consumer.has_ended());
    assert!(consumer.recv_batch(3, SOON).unwrap().is_empty());
}

#[test]
fn a_batch_has_no_message_of_a_lost_connection() {
    let broker = Broker::start().unwrap();
    let connection = Connection::open(broker.uri()).unwrap();
    let channel = connection.open_channel().unwrap();
    let queue = channel.queue_declare("q", Default::default()).unwrap();
    let consumer = queue.consume().unwrap();
    for number in 0..5 {
        queue.publish(number.to_string()).unwrap();
    }
    let batch = thread::scope(|scope| {
        let waiting = scope.spawn(|| consumer.recv_batch(10, SOON));
        let stats = || connection.stats();
        eventually("five messages are read", || {
            stats().messages_delivered == 5 && consumer.unread() == 0
        });
        broker.drop_connections();
        eventually("the connection is back", || consumer.recovery_count() == 1);
        for number in 5..10 {
            channel.basic_publish("", "q", number.to_string()).unwrap();
        }
        waiting.join().unwrap().unwrap()
    });
    let mut bodies: Vec<_> = batch.iter().map(|it| it.body()[0]).collect();
    bodies.sort_unstable();
    bodies.dedup();
    assert_eq!(bodies.len(), batch.len(), "each message once: {batch:?}");
    assert!(batch.iter().all(|it| it.ack().is_ok()));
    assert_eq!(connection.stats().acks_not_sent, 0);
}
