//! RabbitMQ's tutorial 3: receives all log lines from now on, until Ctrl+C.
//!
//!     cargo run --example tutorial_3_receive_logs
//!     cargo run --example tutorial_3_receive_logs > logs_from_rabbit.log
//!
//! Uses the broker at `AMQP_URL`, or RabbitMQ on this machine with its defaults.
//!
//! See <https://www.rabbitmq.com/tutorials/tutorial-three-python>.

use leveret::{
    Connection, ConsumeOptions, ExchangeDeclareOptions, ExchangeKind, QueueDeclareOptions, Result,
};

fn main() -> Result<()> {
    let uri = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".to_owned());
    let connection = Connection::open(&uri)?;
    let channel = connection.open_channel()?;
    let options = ExchangeDeclareOptions::default();
    let logs = channel.exchange_declare("logs", ExchangeKind::Fanout, options)?;
    let queue = channel.queue_declare("", QueueDeclareOptions::temporary())?;
    queue.bind(&logs, "")?;
    let consumer = queue.consume_with(ConsumeOptions::default().no_ack(true))?;
    println!(" [*] Waiting for logs. To exit press CTRL+C");
    for delivery in consumer {
        println!(" [x] {}", String::from_utf8_lossy(delivery?.body()));
    }
    Ok(())
}
