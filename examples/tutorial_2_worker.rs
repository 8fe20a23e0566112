//! RabbitMQ's tutorial 2: a worker. Start several of them; at Ctrl+C a worker leaves its task to
//! the others.
//!
//!     cargo run --example tutorial_2_worker
//!
//! Uses the broker at `AMQP_URL`, or RabbitMQ on this machine with its defaults.
//!
//! See <https://www.rabbitmq.com/tutorials/tutorial-two-python>.

use std::thread;
use std::time::Duration;

use leveret::{Connection, QueueDeclareOptions, Result};

fn main() -> Result<()> {
    let uri = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".to_owned());
    let connection = Connection::open(&uri)?;
    let channel = connection.open_channel()?;
    let queue = channel.queue_declare("task_queue", QueueDeclareOptions::default())?;
    // With a larger prefetch, tasks would wait for a busy worker while another one is idle.
    channel.basic_qos(1)?;
    let consumer = queue.consume()?;
    println!(" [*] Waiting for messages. To exit press CTRL+C");
    for delivery in consumer {
        let delivery = delivery?;
        println!(
            " [x] Received '{}'",
            String::from_utf8_lossy(delivery.body())
        );
        let dots = delivery.body().iter().filter(|&&byte| byte == b'.').count();
        work(Duration::from_secs(dots as u64));
        println!(" [x] Done");
        delivery.ack()?;
    }
    Ok(())
}

#[allow(clippy::disallowed_methods)] // The sleep stands for work.
fn work(time: Duration) {
    thread::sleep(time);
}
