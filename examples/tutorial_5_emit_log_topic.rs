//! RabbitMQ's tutorial 5: sends a log line with a routing key.
//!
//!     cargo run --example tutorial_5_emit_log_topic [ROUTING_KEY [TEXT ...]]
//!     cargo run --example tutorial_5_emit_log_topic "kern.critical" "A critical kernel error"
//!
//! Uses the broker at `AMQP_URL`, or RabbitMQ on this machine with its defaults.
//!
//! See <https://www.rabbitmq.com/tutorials/tutorial-five-python>.

use leveret::{Connection, ExchangeDeclareOptions, ExchangeKind, Result};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let routing_key = arguments
        .next()
        .unwrap_or_else(|| "anonymous.info".to_owned());
    let words: Vec<_> = arguments.collect();
    let text = match words.is_empty() {
        true => "Hello World!".to_owned(),
        false => words.join(" "),
    };
    let uri = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".to_owned());
    let connection = Connection::open(&uri)?;
    let channel = connection.open_channel()?;
    let options = ExchangeDeclareOptions::default();
    let logs = channel.exchange_declare("topic_logs", ExchangeKind::Topic, options)?;
    logs.publish(&routing_key, &text)?;
    println!(" [x] Sent '{routing_key}':'{text}'");
    connection.close()
}
