//! Ten thousand messages, some of which fail, with `Workers` that retry and park them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use leveret::broker::Broker;
use leveret::{
    Connection, Message, QueueDeclareOptions, QueueDeleteOptions, Retry, WorkerOptions, Workers,
};

use crate::support::{connect, eventually, ready, unique, Node, SOON};

/// Of these messages, 5 % fail twice and 1 % always.
struct Load {
    messages: u32,
}

impl Load {
    fn fails_twice(number: u32) -> bool {
        number % 20 == 7
    }

    fn fails_always(number: u32) -> bool {
        number % 100 == 13
    }

    fn parked(&self) -> usize {
        (0..self.messages)
            .filter(|it| Self::fails_always(*it))
            .count()
    }

    fn retry() -> Retry {
        Retry::after([50, 100, 200].map(Duration::from_millis))
    }

    /// Declares the queue and those of the retries.
    fn declare(connection: &Connection, queue: &str) {
        let channel = connection.open_channel().unwrap();
        channel
            .queue_declare(queue, QueueDeclareOptions::quorum())
            .unwrap();
        let workers = Workers::new(connection);
        let options = WorkerOptions::default().retry(Self::retry());
        workers.consume_with(queue, options, |_| ()).unwrap();
        workers.shutdown(SOON).unwrap();
    }

    fn publish(&self, connection: &Connection, queue: &str) {
        let publisher = connection.open_channel().unwrap().publisher().unwrap();
        for number in 0..self.messages {
            let message = Message::new(number.to_string()).persistent(true);
            publisher.publish("", queue, message).unwrap();
        }
        publisher.wait_for_confirms().unwrap();
    }

    /// Handles all messages. Calls `halfway` after half of them.
    fn run(&self, connection: &Connection, queue: &str, halfway: impl FnOnce()) -> Handled {
        Self::declare(connection, queue);
        self.publish(connection, queue);
        let (parked, _) = Self::retry().parked_queue(queue);
        let workers = Workers::new(connection);
        let options = WorkerOptions::default()
            .threads(4)
            .prefetch(50)
            .retry(Self::retry());
        let attempts = Arc::new(Mutex::new(HashMap::<u32, u32>::new()));
        let done = Arc::new(Mutex::new(HashMap::<u32, u32>::new()));
        let (counted, handled) = (Arc::clone(&attempts), Arc::clone(&done));
        workers
            .consume_with(queue, options, move |delivery| {
                let number: u32 = std::str::from_utf8(delivery.body())?.parse()?;
                *counted.lock().unwrap().entry(number).or_default() += 1;
                let fails = match delivery.attempts() {
                    1 | 2 => Self::fails_twice(number) || Self::fails_always(number),
                    _ => Self::fails_always(number),
                };
                if fails {
                    return Err(format!("message {number} fails").into());
                }
                *handled.lock().unwrap().entry(number).or_default() += 1;
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
            })
            .unwrap();
        eventually("half of the messages are handled", || {
            done.lock().unwrap().len() >= self.messages as usize / 2
        });
        let expected = self.messages as usize - self.parked();
        assert!(done.lock().unwrap().len() < expected, "under load");
        halfway();
        let begin = Instant::now();
        let is_done = || done.lock().unwrap().len() == expected;
        while !is_done() || !self.all_parked(connection, &parked) {
            if begin.elapsed() > 3 * SOON {
                let channel = connection.open_channel().unwrap();
                for suffix in ["", ".retry.50", ".retry.100", ".retry.200", ".parked"] {
                    let name = format!("{queue}{suffix}");
                    eprintln!("{name}: {}", ready(&channel, &name));
                }
                eprintln!("{:?}", workers.status());
                panic!("{} of {expected}", done.lock().unwrap().len());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // A copy is in its queue before it is counted.
        workers.shutdown(SOON).unwrap();
        let status = workers.status().queues[0].clone();
        let repeated = done.lock().unwrap().values().filter(|it| **it > 1).count();
        let attempts = attempts.lock().unwrap().values().sum();
        Handled {
            attempts,
            repeated,
            retried: status.retried,
            parked: status.parked,
        }
    }

    fn all_parked(&self, connection: &Connection, parked: &str) -> bool {
        let asked = connection.open_channel();
        let count = asked.and_then(|it| it.queue_declare_passive(parked));
        count.is_ok_and(|it| it.message_count().unwrap() as usize >= self.parked())
    }
}

/// What became of a load.
#[derive(Debug)]
struct Handled {
    attempts: u32,
    repeated: usize,
    retried: u64,
    parked: u64,
}

fn delete_queues(connection: &Connection, queue: &str) {
    let channel = connection.open_channel().unwrap();
    for suffix in ["", ".retry.50", ".retry.100", ".retry.200", ".parked"] {
        let name = format!("{queue}{suffix}");
        channel
            .queue_delete(&name, QueueDeleteOptions::default())
            .unwrap();
    }
}

#[test]
fn ten_thousand_messages_are_handled_or_parked() {
    let load = Load { messages: 10_000 };
    let (connection, queue) = (connect(), unique("load"));
    let handled = load.run(&connection, &queue, || {});
    let parked = load.parked() as u64;
    let twice = (0..load.messages)
        .filter(|it| Load::fails_twice(*it))
        .count() as u64;
    assert_eq!((handled.repeated, handled.parked), (0, parked));
    assert_eq!(handled.retried, 2 * twice + 3 * parked);
    assert_eq!(
        u64::from(handled.attempts),
        u64::from(load.messages) + 2 * twice + 3 * parked
    );
    delete_queues(&connection, &queue);
}

#[test]
fn a_restart_of_the_broker_halfway_loses_no_failed_message() {
    let broker = Broker::start().unwrap();
    let connection = Connection::open(broker.uri()).unwrap();
    let load = Load { messages: 10_000 };
    load.run(&connection, "load", || broker.restart());
}

#[test]
fn a_killed_broker_loses_no_failed_message() {
    let mut node = Node::start();
    let connection = Connection::open_with(node.options()).unwrap();
    let load = Load { messages: 10_000 };
    Load::declare(&connection, "load");
    node.sync_declarations();
    let handled = load.run(&connection, "load", || {
        node.signal("KILL");
        node.restart();
    });
    assert!(handled.parked >= load.parked() as u64, "{handled:?}");
}
