//! Waits for two queues, a timer and a stop signal in one thread, with
//! `crossbeam_channel::select!`.
//!
//!     tests/with-rabbitmq cargo run --example select [QUEUE QUEUE]
//!
//! Prints the messages of two queues (default: `first` and `second`), and each second how many
//! there were. Stops at Ctrl+C. Uses the broker at `AMQP_URL`, or RabbitMQ on this machine with its
//! defaults.

use std::time::Duration;

use leveret::crossbeam_channel::{bounded, select, tick};
use leveret::{Connection, QueueDeclareOptions, Result};

fn main() -> Result<()> {
    let mut names = std::env::args().skip(1);
    let mut name = |default: &str| names.next().unwrap_or_else(|| default.to_owned());
    let (first, second) = (name("first"), name("second"));
    let (stop, stopped) = bounded::<()>(1);
    let handler = move || stop.try_send(()).unwrap_or_default();
    if let Err(error) = ctrlc::set_handler(handler) {
        eprintln!("cannot handle signals: {error}");
        std::process::exit(1);
    }

    let uri = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".to_owned());
    let connection = Connection::open(&uri)?;
    let channel = connection.open_channel()?;
    channel.basic_qos(10)?;
    let consume = |name: &str| {
        let queue = channel.queue_declare(name, QueueDeclareOptions::default())?;
        queue.consume()
    };
    let (first, second) = (consume(&first)?, consume(&second)?);
    let ticks = tick(Duration::from_secs(1));
    let mut count = 0;
    println!("waiting for messages; to exit press Ctrl+C");
    loop {
        let delivery = select! {
            recv(first.receiver()) -> delivery => delivery,
            recv(second.receiver()) -> delivery => delivery,
            recv(ticks) -> _ => {
                println!("{count} messages so far");
                continue;
            }
            recv(stopped) -> _ => break,
        };
        // Disconnected: the consumer has ended, after it yielded its error, if any.
        let Ok(delivery) = delivery else { break };
        let delivery = delivery?;
        count += 1;
        let text = String::from_utf8_lossy(delivery.body());
        println!("{}: {text}", delivery.routing_key());
        delivery.ack()?;
    }
    // Unread messages go back to their queues.
    drop((first, second));
    println!("{count} messages in all");
    connection.close()
}
