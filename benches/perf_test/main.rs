//! Measures a broker with the options of RabbitMQ's PerfTest, and this crate against other clients.
//!
//!     cargo run --release -p leveret-benches -- --uri amqp://localhost -x 2 -y 2 -s 1000 -c 200

// Reads the clock, and stops at the first error.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod bench;
mod client;
mod clients;
mod cliffs;
mod compare;
#[path = "../support/frames.rs"]
mod frames;
mod hand_over;
mod limit;
mod load;
mod options;
mod process;
mod rows;
#[path = "../support/sink.rs"]
mod sink;
mod table;
mod tally;
#[cfg(feature = "native-tls")]
mod tls;
mod usage;

use std::error::Error;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use bench::{Client, Run};
use sink::Sink;

#[derive(Debug, Parser)]
#[command(about, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: options::Options,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure one figure of this crate and print a line of JSON
    Bench(Run),
    /// Measure the same with one thread that writes and reads prepared frames: the limit for any
    /// client
    Limit(Run),
    /// Start a server that is faster than the clients it measures. Prints its URI, and stops at the
    /// end of its input
    Sink {
        /// Use TLS, with a certificate and its key (PEM, the key in PKCS#8)
        #[arg(long, num_args = 2, value_names = ["CERTIFICATE", "KEY"])]
        tls: Option<Vec<PathBuf>>,
    },
    /// Measure all rows and print a Markdown table, from one run in which the clients take turns
    Compare(compare::Options),
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { command, options } = Arguments::parse();
    match command {
        Some(Command::Bench(run)) => println!("{}", Client::Leveret.measure(&run)?),
        Some(Command::Limit(run)) => println!("{}", Client::Limit.measure(&run)?),
        Some(Command::Compare(options)) => compare::run(&options)?,
        Some(Command::Sink { tls }) => {
            let sink = match tls.as_deref() {
                #[cfg(feature = "native-tls")]
                Some([certificate, key]) => tls::start(certificate, key)?,
                #[cfg(not(feature = "native-tls"))]
                Some(_) => return Err("--tls needs the feature native-tls".into()),
                _ => Sink::start()?,
            };
            println!("{}", sink.uri());
            std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
        }
        None => load::run(&options)?,
    }
    Ok(())
}
