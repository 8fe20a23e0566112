//! RabbitMQ's tutorial 3: sends a log line to all receivers.
//!
//!     cargo run --example tutorial_3_emit_log [TEXT ...]
//!
//! Uses the broker at `AMQP_URL`, or RabbitMQ on this machine with its defaults.
//!
//! See <https://www.rabbitmq.com/tutorials/tutorial-three-python>.

use leveret::{Connection, ExchangeDeclareOptions, ExchangeKind, Result};

fn main() -> Result<()> {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let text = match words.is_empty() {
        true => "info: Hello World!".to_owned(),
        false => words.join(" "),
    };
    let uri = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".to_owned());
    let connection = Connection::open(&uri)?;
    let channel = connection.open_channel()?;
    let options = ExchangeDeclareOptions::default();
    let logs = channel.exchange_declare("logs", ExchangeKind::Fanout, options)?;
    logs.publish("", &text)?;
    println!(" [x] Sent '{text}'");
    connection.close()
}
