//! RabbitMQ's tutorial 4: sends a log line with a severity.
//!
//!     cargo run --example tutorial_4_emit_log_direct [SEVERITY [TEXT ...]]
//!     cargo run --example tutorial_4_emit_log_direct error "Run. Run. Or it will explode."
//!
//! Uses the broker at `AMQP_URL`, or RabbitMQ on this machine with its defaults.
//!
//! See <https://www.rabbitmq.com/tutorials/tutorial-four-python>.

use leveret::{Connection, ExchangeDeclareOptions, ExchangeKind, Result};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let routing_key = arguments.next().unwrap_or_else(|| "info".to_owned());
    let words: Vec<_> = arguments.collect();
    let text = match words.is_empty() {
        true => "Hello World!".to_owned(),
        false => words.join(" "),
    };
    let uri = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".to_owned());
    let connection = Connection::open(&uri)?;
    let channel = connection.open_channel()?;
    let options = ExchangeDeclareOptions::default();
    let logs = channel.exchange_declare("direct_logs", ExchangeKind::Direct, options)?;
    logs.publish(&routing_key, &text)?;
    println!(" [x] Sent '{routing_key}':'{text}'");
    connection.close()
}
