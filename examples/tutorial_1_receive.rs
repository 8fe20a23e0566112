//! RabbitMQ's tutorial 1: receives messages until Ctrl+C.
//!
//!     cargo run --example tutorial_1_receive
//!
//! Uses the broker at `AMQP_URL`, or RabbitMQ on this machine with its defaults.
//!
//! See <https://www.rabbitmq.com/tutorials/tutorial-one-python>.

use leveret::{Connection, ConsumeOptions, QueueDeclareOptions, Result};

fn main() -> Result<()> {
    let uri = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".to_owned());
    let connection = Connection::open(&uri)?;
    let channel = connection.open_channel()?;
    let queue = channel.queue_declare("hello", QueueDeclareOptions::default())?;
    let consumer = queue.consume_with(ConsumeOptions::default().no_ack(true))?;
    println!(" [*] Waiting for messages. To exit press CTRL+C");
    for delivery in consumer {
        let delivery = delivery?;
        println!(
            " [x] Received '{}'",
            String::from_utf8_lossy(delivery.body())
        );
    }
    Ok(())
}
