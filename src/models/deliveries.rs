//! The IO thread hands messages to the readers of a consumer. The channel of
//! [`Consumer::receiver`](crate::Consumer::receiver) is not modelled: it is crossbeam's.

use std::sync::{Arc, Weak};

use loom::thread;

use super::{at_any_moment, check};
use crate::consumer::deliveries::{Deliveries, Source};
use crate::error::{Error, Result};
use crate::io_thread::deadline::Deadline;
use crate::proto::Delivered;
use crate::wire::content::Content;

/// What the program reads is just the delivery tag.
struct Tags;

impl Source for Tags {
    type Delivery = u64;

    fn delivery(self: &Arc<Self>, message: Delivered) -> u64 {
        message.delivery_tag
    }

    fn delivery_tag(delivery: &u64) -> u64 {
        *delivery
    }
}

type Consumer = Arc<Deliveries<Tags>>;

fn consumer() -> Consumer {
    Arc::new(Deliveries::new(Weak::new()))
}

fn push(consumer: &Consumer, delivery_tags: &[u64]) {
    let messages = delivery_tags.iter().map(|&delivery_tag| Delivered {
        delivery_tag,
        redelivered: false,
        content: Content::default(),
    });
    consumer.push(messages);
    consumer.wake();
}

/// Reads until the end. An error is 0.
fn read_all(consumer: &Consumer) -> Vec<u64> {
    let next = || consumer.recv(&Arc::new(Tags), None);
    std::iter::from_fn(next).map(tag).collect()
}

fn tag(delivery: Result<u64>) -> u64 {
    delivery.unwrap_or(0)
}

fn reader(consumer: &Consumer) -> thread::JoinHandle<Vec<u64>> {
    let consumer = Arc::clone(consumer);
    thread::spawn(move || read_all(&consumer))
}

fn lost() -> Error {
    Error::invalid("lost")
}

/// Each was read once, and each reader has read in order.
fn assert_read(read: &[Vec<u64>], expected: &[u64]) {
    let mut all = read.concat();
    all.sort_unstable();
    assert_eq!(all, expected);
    for read in read {
        let is_in_order = |pair: &[u64]| pair[0] < pair[1] || pair[1] == 0;
        assert!(read.windows(2).all(is_in_order), "{read:?}");
    }
}

#[test]
fn two_readers_read_each_message_once_and_both_see_the_end() {
    check(3, || {
        let consumer = consumer();
        let readers = [(); 2].map(|()| reader(&consumer));
        push(&consumer, &[1, 2]);
        consumer.end(None);
        assert_read(&readers.map(|it| it.join().unwrap()), &[1, 2]);
    });
}

#[test]
fn the_error_at_the_end_is_read_once() {
    check(3, || {
        let consumer = consumer();
        let readers = [(); 2].map(|()| reader(&consumer));
        push(&consumer, &[1]);
        consumer.end(Some(lost()));
        assert_read(&readers.map(|it| it.join().unwrap()), &[0, 1]);
    });
}

#[test]
fn of_two_ends_at_once_one_counts() {
    check(3, || {
        let consumer = consumer();
        let reader = reader(&consumer);
        let other = Arc::clone(&consumer);
        let end = thread::spawn(move || other.end(Some(lost())));
        consumer.end(Some(lost()));
        assert_read(&[reader.join().unwrap()], &[0]);
        end.join().unwrap();
    });
}

/// Nothing but the notice of the messages wakes the readers here: the end comes only when all
/// messages are read.
#[test]
fn one_notice_for_many_messages_wakes_all_readers_that_it_must() {
    check(3, || {
        let consumer = consumer();
        let read_one = || {
            let consumer = Arc::clone(&consumer);
            thread::spawn(move || vec![tag(consumer.recv(&Arc::new(Tags), None).unwrap())])
        };
        let readers = [read_one(), read_one()];
        push(&consumer, &[1, 2]);
        assert_read(&readers.map(|it| it.join().unwrap()), &[1, 2]);
        assert_eq!((consumer.len(), consumer.unread()), (0, 0));
    });
}

#[test]
fn a_reader_that_gives_up_takes_no_notice_from_another() {
    check(3, || {
        let consumer = consumer();
        let read = |deadline: Option<Deadline>| {
            let consumer = Arc::clone(&consumer);
            thread::spawn(move || {
                let read = consumer.recv(&Arc::new(Tags), deadline.as_ref());
                read.map_or_else(Vec::new, |it| vec![tag(it)])
            })
        };
        let (hasty, patient) = (read(Some(at_any_moment())), read(None));
        push(&consumer, &[1]);
        // The first message may go to the reader that has a deadline.
        let hasty = hasty.join().unwrap();
        if !hasty.is_empty() {
            push(&consumer, &[2]);
        }
        let expected = if hasty.is_empty() { &[1][..] } else { &[1, 2] };
        assert_read(&[hasty, patient.join().unwrap()], expected);
    });
}

#[test]
fn unread_messages_are_read_or_discarded() {
    check(3, || {
        let consumer = consumer();
        let reader = reader(&consumer);
        push(&consumer, &[1, 2]);
        let mut discarded = Vec::new();
        consumer.discard(|delivery_tag| discarded.push(delivery_tag));
        consumer.end(None);
        assert_read(&[reader.join().unwrap(), discarded], &[1, 2]);
        assert!(consumer.is_over() && consumer.unread() == 0);
    });
}
