//! RabbitMQ's tutorial 6: the RPC client. Asks the server for a Fibonacci number.
//!
//!     cargo run --example tutorial_6_rpc_client [NUMBER]
//!
//! Uses the broker at `AMQP_URL`, or RabbitMQ on this machine with its defaults.
//!
//! See <https://www.rabbitmq.com/tutorials/tutorial-six-python>.

use std::time::Duration;

use leveret::{Connection, Result, RpcClient};

fn main() -> Result<()> {
    let number = std::env::args().nth(1).unwrap_or_else(|| "30".to_owned());
    let uri = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".to_owned());
    let connection = Connection::open(&uri)?;
    let client = RpcClient::new(&connection)?;
    println!(" [x] Requesting fib({number})");
    let answer = client.call("", "rpc_queue", &number, Duration::from_secs(30))?;
    println!(" [.] Got {}", String::from_utf8_lossy(answer.body()));
    connection.close()
}
