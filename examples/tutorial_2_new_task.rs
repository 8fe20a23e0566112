//! RabbitMQ's tutorial 2: sends a task to the workers. Each dot is one second of work.
//!
//!     cargo run --example tutorial_2_new_task [TEXT ...]
//!     cargo run --example tutorial_2_new_task First message.
//!     cargo run --example tutorial_2_new_task Second message..
//!
//! Uses the broker at `AMQP_URL`, or RabbitMQ on this machine with its defaults.
//!
//! See <https://www.rabbitmq.com/tutorials/tutorial-two-python>.

use leveret::{Connection, Message, QueueDeclareOptions, Result};

fn main() -> Result<()> {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let text = match words.is_empty() {
        true => "Hello World!".to_owned(),
        false => words.join(" "),
    };
    let uri = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".to_owned());
    let connection = Connection::open(&uri)?;
    let channel = connection.open_channel()?;
    let queue = channel.queue_declare("task_queue", QueueDeclareOptions::default())?;
    let publisher = channel.publisher()?;
    let task = Message::new(&text).persistent(true);
    // Only the confirm says that the broker has the task on disk.
    publisher.publish("", queue.name(), task)?.wait()?;
    println!(" [x] Sent '{text}'");
    connection.close()
}
