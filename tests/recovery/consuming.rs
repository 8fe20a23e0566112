//! Consumers across losses of the connection.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{mpsc, Arc};
use std::thread;
use std::time::Duration;

use leveret::{
    Consumer, Delivery, Message, Metrics, NackOptions, QosOptions, QueueDeclareOptions, QueueType,
    Requeue, StreamOffset,
};

use super::{lasting_queue, recovered, Lossy};
use crate::support::{channel, eventually, logged, ready, unique, version, SOON};

#[track_caller]
fn next(consumer: &Consumer) -> Delivery {
    let delivery = consumer.recv_timeout(SOON).unwrap();
    delivery.expect("a message comes")
}

#[track_caller]
fn body(delivery: &Delivery) -> u32 {
    let body = std::str::from_utf8(delivery.body()).unwrap();
    body.parse().unwrap()
}

#[test]
fn iteration_continues_and_unacknowledged_messages_are_redelivered() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let queue = lasting_queue(&channel);
    let consumer = queue.consume().unwrap();
    let (tell, told) = mpsc::channel();
    let iterating = thread::spawn(move || {
        let mut seen = Vec::new();
        for delivery in &consumer {
            let delivery = delivery.unwrap();
            seen.push((
                body(&delivery),
                delivery.redelivered(),
                consumer.recovery_count(),
            ));
            match body(&delivery) {
                // Message 3 is not acknowledged on the first connection.
                3 if !delivery.redelivered() => tell.send(()).unwrap(),
                99 => break,
                _ => delivery.ack().unwrap(),
            }
        }
        seen
    });
    for number in 1..=3 {
        queue.publish(number.to_string()).unwrap();
    }
    told.recv_timeout(SOON).unwrap();
    // The reply shows that the broker has read the acknowledgements.
    channel.basic_qos(0).unwrap();
    lossy.lose();
    queue.publish("4").unwrap();
    queue.publish("99").unwrap();
    let seen = iterating.join().unwrap();
    let expected = [
        (1, false, 0),
        (2, false, 0),
        (3, false, 0),
        (3, true, 1),
        (4, false, 1),
        (99, false, 1),
    ];
    assert_eq!(seen, expected);
}

#[derive(Default)]
struct NotSent(AtomicU64);

impl Metrics for NotSent {
    fn ack_not_sent(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn acknowledgements_for_a_lost_connection_are_dropped_without_an_error() {
    logged::begin();
    let told = Arc::new(NotSent::default());
    let lossy = Lossy::with(|options| options.metrics(Arc::<NotSent>::clone(&told)));
    let channel = lossy.connection.open_channel().unwrap();
    let queue = lasting_queue(&channel);
    for number in 1..=6 {
        queue.publish(number.to_string()).unwrap();
    }
    let consumer = queue.consume().unwrap();
    let old: Vec<_> = (0..4).map(|_| next(&consumer)).collect();
    let fetched_unread = 2;
    lossy.lose();
    old[0].ack().unwrap();
    old[1].nack(NackOptions::discard()).unwrap();
    old[2].reject(Requeue::Yes).unwrap();
    old[3].ack_multiple().unwrap();
    channel
        .basic_nack(old[0].delivery_tag(), NackOptions::discard())
        .unwrap();
    let quietly = |line: &str| line.contains("is not sent: the message was requeued");
    assert!(logged::has(quietly));
    assert_eq!(lossy.connection.stats().acks_not_sent, 5);
    assert_eq!(told.0.load(Ordering::SeqCst), 5);
    // All six messages are redelivered once, and their acknowledgements match them.
    let again: Vec<_> = (0..4 + fetched_unread).map(|_| next(&consumer)).collect();
    assert_eq!(
        again.iter().map(body).collect::<Vec<_>>(),
        [1, 2, 3, 4, 5, 6]
    );
    assert!(again.iter().all(Delivery::redelivered));
    assert!(consumer
        .recv_timeout(Duration::from_millis(50))
        .unwrap()
        .is_none());
    // For the program, delivery tags keep increasing.
    assert!(again[0].delivery_tag() > old[3].delivery_tag());
    again[0].ack().unwrap();
    again[4].ack_multiple().unwrap();
    channel.basic_qos(0).unwrap();
    lossy.lose();
    assert_eq!(body(&next(&consumer)), 6);
    let rest = consumer.recv_timeout(Duration::from_millis(50)).unwrap();
    assert!(rest.is_none());
}

#[test]
fn fetched_messages_and_multiple_acks_work_after_a_loss() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let queue = lasting_queue(&channel);
    queue.publish("1").unwrap();
    let old = eventually_get(&queue);
    lossy.lose();
    old.ack().unwrap();
    let again = eventually_get(&queue);
    assert!(again.redelivered());
    // "All" means all messages of this connection.
    channel.basic_ack_multiple(0).unwrap();
    channel.basic_recover(Requeue::Yes).unwrap();
    assert_eq!(ready(&channel, queue.name()), 0);
}

fn eventually_get(queue: &leveret::Queue) -> Delivery {
    let mut got = None;
    eventually("the queue has a message", || {
        got = queue.get().unwrap();
        got.is_some()
    });
    got.unwrap()
}

#[test]
fn consumers_are_restored_with_their_prefetch_and_cancelled_ones_are_not() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let (one, three) = (lasting_queue(&channel), lasting_queue(&channel));
    channel.basic_qos(1).unwrap();
    let by_one = one.consume().unwrap();
    channel.basic_qos(3).unwrap();
    let by_three = three.consume().unwrap();
    let cancelled = one.consume().unwrap();
    cancelled.cancel().unwrap();
    drop(three.consume().unwrap());
    for _ in 0..10 {
        one.publish("1").unwrap();
        three.publish("3").unwrap();
    }
    let watching = self::channel();
    let taken = || (ready(&watching, one.name()), ready(&watching, three.name()));
    eventually(
        "the consumers have as many messages as their prefetch allows",
        || taken() == (9, 7),
    );
    for _ in 0..2 {
        lossy.lose();
        eventually("the consumers have as many messages as before", || {
            taken() == (9, 7)
        });
    }
    // A new consumer gets the latest prefetch.
    let late = one.consume().unwrap();
    eventually("the new consumer has three messages", || taken().0 == 6);
    drop(late);
    by_one.cancel().unwrap();
    by_three.cancel().unwrap();
    assert!(cancelled.recv().unwrap().is_none());
}

#[test]
fn a_global_prefetch_is_restored() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let queue = lasting_queue(&channel);
    for _ in 0..10 {
        queue.publish("m").unwrap();
    }
    let together = QosOptions::default().prefetch_count(3).global(true);
    channel.basic_qos_with(together).unwrap();
    let _consumer = queue.consume().unwrap();
    let watching = self::channel();
    for _ in 0..3 {
        eventually("the consumer has three messages", || {
            ready(&watching, queue.name()) == 7
        });
        lossy.lose();
    }
}

#[test]
fn restoring_an_older_consumer_keeps_the_global_prefetch() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let queue = lasting_queue(&channel);
    for _ in 0..20 {
        queue.publish("m").unwrap();
    }
    channel.basic_qos(1).unwrap();
    let one = queue.consume().unwrap();
    eventually("the first consumer has its message", || one.unread() == 1);
    channel.basic_qos(9).unwrap();
    let together = QosOptions::default().prefetch_count(3).global(true);
    channel.basic_qos_with(together).unwrap();
    let _two = queue.consume().unwrap();
    // RabbitMQ 4.3 has no limit for a channel: the second consumer gets its own limit of 3.
    let taken = match version() < (4, 3) {
        true => 3,
        false => 4,
    };
    let watching = self::channel();
    let left = || ready(&watching, queue.name());
    eventually(
        "the broker has sent as many messages as the limits allow",
        || left() == 20 - taken,
    );
    for _ in 0..3 {
        lossy.lose();
        eventually("the consumers have as many messages as before", || {
            left() <= 20 - taken
        });
        // A message in flight while the limit is set again does not count.
        let others = left();
        assert!(others >= 16, "{others}");
    }
}

#[test]
fn a_replaced_global_prefetch_is_not_restored() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let queue = lasting_queue(&channel);
    for _ in 0..10 {
        queue.publish("m").unwrap();
    }
    let together = QosOptions::default().prefetch_count(2).global(true);
    channel.basic_qos_with(together).unwrap();
    channel.basic_qos(4).unwrap();
    let _consumer = queue.consume().unwrap();
    let watching = self::channel();
    for _ in 0..3 {
        eventually("the consumer has four messages", || {
            ready(&watching, queue.name()) == 6
        });
        lossy.lose();
    }
}

#[test]
fn a_consumer_can_be_cancelled_and_dropped_while_the_connection_is_lost() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let queue = lasting_queue(&channel);
    let cancelled = queue.consume().unwrap();
    let dropped = queue.consume().unwrap();
    let kept = queue.consume().unwrap();
    lossy.proxy.refuse(true);
    lossy.proxy.cut();
    super::lost(&lossy.events);
    cancelled.cancel().unwrap();
    drop(dropped);
    lossy.proxy.refuse(false);
    recovered(&lossy.events);
    assert!(cancelled.recv().unwrap().is_none());
    let queue = channel.queue_declare_passive(queue.name()).unwrap();
    assert_eq!(queue.consumer_count(), Some(1));
    queue.publish("1").unwrap();
    assert_eq!(body(&next(&kept)), 1);
}

#[test]
fn a_copied_offset_header_does_not_affect_the_recovery_of_a_consumer() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let queue = lasting_queue(&channel);
    let consumer = queue.consume().unwrap();
    for number in 1..=2 {
        let message = Message::new(number.to_string()).header("x-stream-offset", 7_i64);
        queue.publish(message).unwrap();
    }
    next(&consumer).ack().unwrap();
    eventually("the consumer has another message", || {
        consumer.unread() == 1
    });
    // The reply shows that the broker has read the acknowledgement.
    channel.basic_qos(0).unwrap();
    lossy.lose();
    assert_eq!(body(&next(&consumer)), 2);
    assert_eq!(consumer.recovery_count(), 1);
}

#[test]
fn a_declared_stream_is_resumed_although_its_consumer_has_no_offset() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let options = QueueDeclareOptions::stream();
    let queue = channel.queue_declare(&unique("stream"), options).unwrap();
    channel.basic_qos(100).unwrap();
    let consumer = queue.consume().unwrap();
    let publisher = channel.publisher().unwrap();
    for number in 1..=2 {
        let number = number.to_string();
        let confirm = publisher.publish("", queue.name(), number).unwrap();
        confirm.wait().unwrap();
    }
    let delivery = next(&consumer);
    assert_eq!(body(&delivery), 1);
    delivery.ack().unwrap();
    eventually("the consumer has another message", || {
        consumer.unread() == 1
    });
    lossy.lose();
    assert_eq!(body(&next(&consumer)), 2);
    queue.delete().unwrap();
}

#[test]
fn a_stream_is_resumed_after_the_last_message_read() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let options = QueueDeclareOptions::default().queue_type(QueueType::Stream);
    let queue = channel.queue_declare(&unique("stream"), options).unwrap();
    let publisher = channel.publisher().unwrap();
    let publish = |from: u32, to: u32| {
        for number in from..=to {
            publisher
                .publish("", queue.name(), number.to_string())
                .unwrap();
        }
        publisher.wait_for_confirms().unwrap();
    };
    publish(1, 6);
    channel.basic_qos(100).unwrap();
    let options = leveret::ConsumeOptions::default().stream_offset(StreamOffset::First);
    let consumer = queue.consume_with(options).unwrap();
    for number in 1..=4 {
        let delivery = next(&consumer);
        assert_eq!(body(&delivery), number);
        delivery.ack().unwrap();
    }
    // Two messages stay unread.
    eventually("two messages are unread", || consumer.unread() == 2);
    lossy.lose();
    for number in 5..=6 {
        let delivery = next(&consumer);
        assert_eq!(body(&delivery), number);
        delivery.ack().unwrap();
    }
    lossy.lose();
    publish(7, 7);
    let delivery = next(&consumer);
    assert_eq!(body(&delivery), 7);
    assert_eq!(consumer.recovery_count(), 2);
    queue.delete().unwrap();
}
