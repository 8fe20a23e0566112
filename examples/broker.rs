//! A broker for first tries, with all in memory: for the other examples, and for any AMQP client.
//!
//!     cargo run --example broker [PORT]
//!
//! Without an argument it listens on port 5672 of the loopback interface, where clients look for a broker. It ends with its input or with
//! Ctrl+C.

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
