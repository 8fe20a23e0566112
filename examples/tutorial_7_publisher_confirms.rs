//! RabbitMQ's tutorial 7: three ways to wait for publisher confirms, and how long each takes.
//!
//!     cargo run --release --example tutorial_7_publisher_confirms [MESSAGES]
//!
//! Publishes 50,000 messages in each way by default. Uses the broker at `AMQP_URL`. Without that
//! variable, it starts a broker in this process.
//!
//! See <https://www.rabbitmq.com/tutorials/tutorial-seven-java>.

mod common;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use leveret::{Confirm, Connection, ErrorKind, Publisher, QueueDeclareOptions, Result};

fn main() -> Result<()> {
    let count = std::env::args().nth(1).map_or(50_000, |argument| {
        argument.parse().unwrap_or_else(|_| {
            eprintln!("usage: tutorial_7_publisher_confirms [MESSAGES]");
            std::process::exit(2)
        })
    });
    let (uri, _broker) = common::broker()?;
    let connection = Connection::open(&uri)?;
    for (how, publish) in [
        ("individually", publish_individually as Way),
        ("in batches", publish_in_batches),
        (
            "with a window, handling confirms as they come",
            publish_with_a_window,
        ),
    ] {
        let channel = connection.open_channel()?;
        let queue = channel.queue_declare("", QueueDeclareOptions::temporary())?;
        let publisher = channel.publisher()?;
        let begin = begin();
        publish(&publisher, queue.name(), count)?;
        println!(
            "published {count} messages {how} in {} ms",
            begin.elapsed().as_millis()
        );

        let arrived = channel.queue_declare_passive(queue.name())?;
        assert_eq!(arrived.message_count(), Some(count));
        channel.close()?;
    }
    connection.close()
}

type Way = fn(&Publisher, &str, u32) -> Result<()>;

/// Waits for each confirm before it publishes the next message: simple, but each message costs a
/// round trip to the broker's disk.
fn publish_individually(publisher: &Publisher, queue: &str, count: u32) -> Result<()> {
    for number in 0..count {
        publisher.publish("", queue, number.to_string())?.wait()?;
    }
    Ok(())
}

/// Waits after every 100 messages: much faster, but a failure shows only at the end of its batch.
fn publish_in_batches(publisher: &Publisher, queue: &str, count: u32) -> Result<()> {
    const BATCH: u32 = 100;
    for number in 0..count {
        publisher.publish("", queue, number.to_string())?;
        if number % BATCH == BATCH - 1 {
            publisher.wait_for_confirms_timeout(Duration::from_secs(5))?;
        }
    }
    publisher.wait_for_confirms_timeout(Duration::from_secs(5))
}

/// Waits only while the window is full, and handles confirms as they arrive: the fastest way, and
/// it knows the outcome of each message.
fn publish_with_a_window(publisher: &Publisher, queue: &str, count: u32) -> Result<()> {
    let mut open = VecDeque::new();
    for number in 0..count {
        let body = number.to_string();
        open.push_back((publisher.publish("", queue, &body)?, body));
        while let Some(outcome) = open.front().and_then(|it| it.0.try_wait().transpose()) {
            let answered = open.pop_front();
            open.extend(again(publisher, queue, outcome, answered)?);
        }
    }
    while let Some((confirm, body)) = open.pop_front() {
        let outcome = confirm.wait();
        open.extend(again(publisher, queue, outcome, Some((confirm, body)))?);
    }
    Ok(())
}

/// Publishes a message again if the broker nacked it.
fn again(
    publisher: &Publisher,
    queue: &str,
    outcome: Result<()>,
    answered: Option<(Confirm, String)>,
) -> Result<Option<(Confirm, String)>> {
    match (outcome, answered) {
        (Err(error), Some((_, body))) if matches!(error.kind(), ErrorKind::Nacked { .. }) => {
            eprintln!("{error}; publishing it again");
            Ok(Some((publisher.publish("", queue, &body)?, body)))
        }
        (outcome, _) => outcome.map(|()| None),
    }
}

#[allow(clippy::disallowed_methods)] // Measures time.
fn begin() -> Instant {
    Instant::now()
}
