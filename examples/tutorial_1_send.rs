//! RabbitMQ's tutorial 1: sends a message.
//!
//!     cargo run --example tutorial_1_send
//!
//! Uses the broker at `AMQP_URL`, or RabbitMQ on this machine with its defaults.
//!
//! See <https://www.rabbitmq.com/tutorials/tutorial-one-python>.

use leveret::{Connection, QueueDeclareOptions, Result};

fn main() -> Result<()> {
    let uri = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".to_owned());
    let connection = Connection::open(&uri)?;
    let channel = connection.open_channel()?;
    let queue = channel.queue_declare("hello", QueueDeclareOptions::default())?;
    queue.publish("Hello World!")?;
    println!(" [x] Sent 'Hello World!'");
    connection.close()
}
