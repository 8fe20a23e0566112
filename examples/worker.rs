//! A worker process: handles the messages of each queue with two threads, and shuts down gracefully
//! at SIGINT (Ctrl+C) and SIGTERM. Each dot in a message is one second of work.
//!
//!     tests/with-rabbitmq cargo run --example worker [QUEUE ...]
//!
//! Consumes from `task_queue` by default, which the example `tutorial_2_new_task` fills. Uses the
//! broker at `AMQP_URL`, or RabbitMQ on this machine with its defaults.

use std::str::{self, Utf8Error};
use std::thread;
use std::time::Duration;

use leveret::{Connection, Delivery, OnFailure, QueueDeclareOptions, WorkerOptions, Workers};

/// How long running handlers have to finish.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> leveret::Result<()> {
    env_logger::init();
    let mut queues: Vec<String> = std::env::args().skip(1).collect();
    if queues.is_empty() {
        queues.push("task_queue".to_owned());
    }
    let connection = match std::env::var("AMQP_URL") {
        Ok(uri) => Connection::open(&uri)?,
        Err(_) => Connection::open_default()?,
    };
    let channel = connection.open_channel()?;
    let workers = Workers::new(&connection);
    let stopping = workers.clone();
    let stop = move || {
        eprintln!("stopping");
        if let Err(error) = stopping.shutdown(PATIENCE) {
            eprintln!("{error}");
            std::process::exit(1);
        }
    };
    if let Err(error) = ctrlc::set_handler(stop) {
        eprintln!("cannot handle signals: {error}");
        std::process::exit(1);
    }
    let options = WorkerOptions::default()
        .threads(2)
        .on_error(OnFailure::Reject);
    for name in &queues {
        channel.queue_declare(name, QueueDeclareOptions::default())?;
        workers.consume_with(name, options.clone(), handle)?;
    }
    println!("waiting for messages; to exit press Ctrl+C");
    workers.join()?;
    connection.close()
}

/// A message that is not text is logged and rejected, a handled message is acknowledged.
fn handle(delivery: &Delivery) -> Result<(), Utf8Error> {
    let text = str::from_utf8(delivery.body())?;
    println!("received {text:?}");
    work(Duration::from_secs(text.matches('.').count() as u64));
    println!("done {text:?}");
    Ok(())
}

#[allow(clippy::disallowed_methods)] // The sleep stands for work.
fn work(time: Duration) {
    thread::sleep(time);
}
