//! RabbitMQ's tutorial 6: the RPC server. Answers requests until Ctrl+C.
//!
//!     cargo run --example tutorial_6_rpc_server
//!
//! Uses the broker at `AMQP_URL`, or RabbitMQ on this machine with its defaults.
//!
//! See <https://www.rabbitmq.com/tutorials/tutorial-six-python>.

use leveret::{Connection, Delivery, QueueDeclareOptions, Result, RpcServer};

fn main() -> Result<()> {
    let uri = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".to_owned());
    let connection = Connection::open(&uri)?;
    let channel = connection.open_channel()?;
    channel.queue_declare("rpc_queue", QueueDeclareOptions::default())?;
    let server = RpcServer::new(&connection);
    server.serve("rpc_queue", answer)?;
    println!(" [x] Awaiting RPC requests");
    server.join()
}

/// The client gets the text of an error.
fn answer(request: &Delivery) -> Result<String, String> {
    let number = String::from_utf8_lossy(request.body());
    println!(" [.] fib({number})");
    match number.parse() {
        Ok(number @ 0..=40) => Ok(fib(number).to_string()),
        _ => Err(format!("expected a number from 0 to 40, got {number:?}")),
    }
}

/// Slow on purpose: the client has to wait for its answer.
fn fib(number: u32) -> u64 {
    match number {
        0 | 1 => number.into(),
        _ => fib(number - 1) + fib(number - 2),
    }
}
