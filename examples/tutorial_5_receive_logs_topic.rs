//! RabbitMQ's tutorial 5: receives log lines that match the given binding keys, until Ctrl+C.
//!
//!     cargo run --example tutorial_5_receive_logs_topic BINDING_KEY ...
//!     cargo run --example tutorial_5_receive_logs_topic "#"
//!     cargo run --example tutorial_5_receive_logs_topic "kern.*" "*.critical"
//!
//! Uses the broker at `AMQP_URL`, or RabbitMQ on this machine with its defaults.
//!
//! See <https://www.rabbitmq.com/tutorials/tutorial-five-python>.

use leveret::{
    Connection, ConsumeOptions, ExchangeDeclareOptions, ExchangeKind, QueueDeclareOptions, Result,
};

fn main() -> Result<()> {
    let keys: Vec<_> = std::env::args().skip(1).collect();
    if keys.is_empty() {
        eprintln!("usage: tutorial_5_receive_logs_topic BINDING_KEY ...");
        std::process::exit(1);
    }
    let uri = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".to_owned());
    let connection = Connection::open(&uri)?;
    let channel = connection.open_channel()?;
    let options = ExchangeDeclareOptions::default();
    let logs = channel.exchange_declare("topic_logs", ExchangeKind::Topic, options)?;
    let queue = channel.queue_declare("", QueueDeclareOptions::temporary())?;
    for key in &keys {
        queue.bind(&logs, key)?;
    }
    let consumer = queue.consume_with(ConsumeOptions::default().no_ack(true))?;
    println!(" [*] Waiting for logs. To exit press CTRL+C");
    for delivery in consumer {
        let delivery = delivery?;
        let text = String::from_utf8_lossy(delivery.body());
        println!(" [x] {}:{text}", delivery.routing_key());
    }
    Ok(())
}
