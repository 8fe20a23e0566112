//! `Workers` whose handlers get several messages at once.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded, Receiver};
use leveret::{
    AckMode, Delivery, OnFailure, QueueDeclareOptions, Settlement, WorkerOptions, Workers,
};

use crate::support::{channel, eventually, logged, ready, unique, Queues, SOON};

const SHORT: Duration = Duration::from_millis(50);

impl Queues {
    fn publish(&self, bodies: &[&str]) {
        for body in bodies {
            self.queue.publish(*body).unwrap();
        }
    }

    /// The dead-lettered bodies.
    fn dead(&self) -> Vec<String> {
        let get = || self.dead.get_with(AckMode::Automatic).unwrap();
        std::iter::from_fn(get).map(|it| text(&it)).collect()
    }

    fn is_empty(&self) -> bool {
        ready(&self.channel, self.queue.name()) == 0
    }
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.body().to_vec()).unwrap()
}

fn texts(batch: &[Delivery]) -> Vec<String> {
    batch.iter().map(text).collect()
}

fn options(size: u16) -> WorkerOptions {
    WorkerOptions::default()
        .batch_size(size)
        .batch_timeout(SOON)
}

fn next(told: &Receiver<Vec<String>>) -> Vec<String> {
    told.recv_timeout(SOON).unwrap()
}

#[test]
fn a_batch_is_full_or_what_came_in_time() {
    let queues = Queues::declare();
    let (tell, told) = unbounded();
    let workers = queues.workers();
    let tells = move |batch: &[Delivery]| tell.send(texts(batch)).unwrap();
    workers
        .consume_batches(queues.queue.name(), options(3), tells.clone())
        .unwrap();
    queues.publish(&["a", "b", "c", "d", "e", "f"]);
    assert_eq!(next(&told), ["a", "b", "c"]);
    assert_eq!(next(&told), ["d", "e", "f"]);
    // An incomplete batch waits, and a shutdown does not lose it.
    queues.publish(&["g"]);
    eventually("the message is delivered", || queues.is_empty());
    assert!(told.try_recv().is_err());
    workers.shutdown(SOON).unwrap();
    let is_handled = told.try_recv().is_ok();
    assert_eq!(queues.is_empty(), is_handled);

    let workers = queues.workers();
    let options = options(100).batch_timeout(SHORT);
    let begin = Instant::now();
    workers
        .consume_batches(queues.queue.name(), options, tells)
        .unwrap();
    queues.publish(&["h"]);
    eventually("the incomplete batch is handled", || {
        told.try_iter().flatten().any(|it| it == "h")
    });
    assert!(begin.elapsed() >= SHORT);
    workers.shutdown(SOON).unwrap();
    assert!(queues.is_empty() && queues.dead().is_empty());
}

#[test]
fn a_batch_is_settled_as_a_whole_or_message_by_message() {
    let queues = Queues::declare();
    let workers = queues.workers();
    let handler = |batch: &[Delivery]| match texts(batch).join("").as_str() {
        "abc" => vec![Settlement::Ack, Settlement::Reject, Settlement::Ack],
        "def" => vec![Settlement::Reject; 3],
        _ => vec![Settlement::Ack; batch.len()],
    };
    workers
        .consume_batches(queues.queue.name(), options(3), handler)
        .unwrap();
    queues.publish(&["a", "b", "c", "d", "e", "f"]);
    eventually("four messages are dead-lettered", || {
        ready(&queues.channel, queues.dead.name()) == 4
    });
    workers.shutdown(SOON).unwrap();
    assert_eq!(queues.dead(), ["b", "d", "e", "f"]);

    let workers = queues.workers();
    workers
        .consume_batches(queues.queue.name(), options(2), |_: &[Delivery]| {
            Settlement::Reject
        })
        .unwrap();
    queues.publish(&["g", "h"]);
    eventually("the batch is dead-lettered", || {
        ready(&queues.channel, queues.dead.name()) == 2
    });
    workers.shutdown(SOON).unwrap();
    assert!(queues.is_empty());
}

#[test]
fn a_failed_batch_is_a_failure_of_each_message() {
    logged::begin();
    let queues = Queues::declare();
    let workers = queues.workers();
    let options = options(2)
        .on_error(OnFailure::Reject)
        .on_panic(OnFailure::Reject);
    workers
        .consume_batches(queues.queue.name(), options, |batch: &[Delivery]| {
            match texts(batch).join("").as_str() {
                "ab" => Err("an error"),
                "cd" => panic!("a panic"),
                // Too few.
                _ => Ok(vec![Settlement::Ack]),
            }
        })
        .unwrap();
    queues.publish(&["a", "b", "c", "d", "e", "f"]);
    eventually("all messages are dead-lettered", || {
        ready(&queues.channel, queues.dead.name()) == 6
    });
    workers.shutdown(SOON).unwrap();
    let status = &workers.status().queues[0];
    assert_eq!((status.handled, status.failed, status.panicked), (0, 4, 2));
    let name = queues.queue.name().to_owned();
    for text in ["an error", "a panic", "1 settlements for 2 messages"] {
        let lines = logged::count(|it| it.contains(&name) && it.contains(text));
        assert_eq!(lines, 2, "{text}");
    }
}

#[test]
fn each_thread_has_its_own_buffer_for_batches() {
    let queues = Queues::declare();
    let workers = queues.workers();
    let (tell, told) = unbounded();
    let make = move || {
        let (mut sum, tell) = (0, tell.clone());
        Ok::<_, fmt::Error>(move |batch: &[Delivery]| {
            sum += batch.len();
            tell.send(sum).unwrap();
        })
    };
    workers
        .consume_batches_per_thread(queues.queue.name(), options(2), make)
        .unwrap();
    queues.publish(&["a", "b", "c", "d"]);
    assert_eq!(told.recv_timeout(SOON), Ok(2));
    assert_eq!(told.recv_timeout(SOON), Ok(4));
    workers.shutdown(SOON).unwrap();
    assert!(queues.is_empty());
}

#[test]
fn the_status_counts_messages_and_the_handlers_time() {
    let queues = Queues::declare();
    let workers = queues.workers();
    let (go_on, may_go_on) = bounded(0);
    workers
        .consume_batches(queues.queue.name(), options(2), move |_: &[Delivery]| {
            may_go_on.recv().unwrap();
        })
        .unwrap();
    queues.publish(&["a", "b"]);
    eventually("the handler runs", || workers.status().queues[0].busy == 1);
    assert_eq!(workers.status().queues[0].handler_time, Duration::ZERO);
    std::thread::sleep(SHORT);
    go_on.send(()).unwrap();
    eventually("the messages are handled", || {
        workers.status().queues[0].handled == 2
    });
    assert!(workers.status().queues[0].handler_time >= SHORT);
    workers.shutdown(SOON).unwrap();
}

/// RabbitMQ forgets acknowledgements that its channel keeps for a quorum queue when the channel
/// closes.
#[test]
fn after_a_shutdown_or_a_pause_no_handled_message_comes_back() {
    const MESSAGES: usize = 20_000;
    let channel = channel();
    let queue = channel
        .queue_declare(&unique("acks"), QueueDeclareOptions::quorum())
        .unwrap();
    let publisher = channel.publisher().unwrap();
    for number in 0..MESSAGES {
        publisher
            .publish("", queue.name(), number.to_string())
            .unwrap();
    }
    publisher.wait_for_confirms().unwrap();
    let handled = Arc::new(Mutex::new(Vec::new()));
    let left = || ready(&channel, queue.name()) as usize;
    for round in 0..6 {
        let workers = Workers::new(channel.connection());
        let options = WorkerOptions::default().threads(2).prefetch(100);
        let done = Arc::clone(&handled);
        let note = move |batch: &[Delivery]| done.lock().unwrap().extend(texts(batch));
        let before = left();
        match round % 2 {
            0 => {
                let note = move |it: &Delivery| note(std::slice::from_ref(it));
                workers.consume_with(queue.name(), options, note).unwrap();
            }
            _ => {
                let options = options.batch_size(50);
                workers
                    .consume_batches(queue.name(), options, note)
                    .unwrap();
            }
        }
        eventually("some messages are handled", || {
            handled.lock().unwrap().len() > MESSAGES - before + 50
        });
        if round < 3 {
            workers.pause(queue.name()).unwrap();
            eventually("the threads pause", || {
                let status = &workers.status().queues[0];
                status.busy == 0 && status.consuming == 0
            });
        }
        workers.shutdown(SOON).unwrap();
        eventually("the other messages are ready", || {
            left() + handled.lock().unwrap().len() == MESSAGES
        });
    }
    let handled = handled.lock().unwrap();
    let once: HashSet<_> = handled.iter().collect();
    assert_eq!(once.len(), handled.len());
    queue.delete().unwrap();
}
