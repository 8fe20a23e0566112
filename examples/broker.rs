//! Runs an in-memory broker for the other examples, or for any AMQP client.
//!
//!     cargo run --example broker [PORT]
//!
//! The broker listens on the loopback interface, on port 5672 by default. It stops at the end of
//! standard input or at Ctrl+C.

use leveret::broker::{Broker, BrokerOptions};
use leveret::Result;

fn main() -> Result<()> {
    env_logger::init();
    let port = std::env::args().nth(1).map_or(5672, |argument| {
        argument.parse().unwrap_or_else(|_| {
            eprintln!("usage: broker [PORT]");
            std::process::exit(2)
        })
    });
    let broker = Broker::start_with(BrokerOptions::default().port(port))?;
    println!("{}", broker.uri());
    if let Err(error) = std::io::copy(&mut std::io::stdin(), &mut std::io::sink()) {
        eprintln!("{error}");
    }
    Ok(())
}
