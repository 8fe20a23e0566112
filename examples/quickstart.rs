//! Publishes 1,000 messages with confirms, then consumes and acknowledges them.
//!
//!     cargo run --example quickstart
//!
//! Uses the broker at `AMQP_URL`. Without that variable, it starts a broker in this process.

mod common;

use std::time::Duration;

use leveret::{Connection, Message, QueueDeclareOptions, Result};

const COUNT: u32 = 1000;

fn main() -> Result<()> {
    let (uri, _broker) = common::broker()?;
    let connection = Connection::open(&uri)?;
    let channel = connection.open_channel()?;
    let queue = channel.queue_declare("", QueueDeclareOptions::temporary())?;

    let publisher = channel.publisher()?;
    let mut confirms = Vec::new();
    for number in 0..COUNT {
        let task = Message::new(format!("task {number}")).persistent(true);
        confirms.push(publisher.publish("", queue.name(), task)?);
    }
    let published = confirms.len();
    let mut confirmed = 0;
    for confirm in confirms {
        confirm.wait()?;
        confirmed += 1;
    }

    channel.basic_qos(200)?;
    let consumer = queue.consume()?;
    let (mut consumed, mut acknowledged) = (0, 0);
    while consumed < COUNT {
        let Some(delivery) = consumer.recv_timeout(Duration::from_secs(10))? else {
            break;
        };
        consumed += 1;
        delivery.ack()?;
        acknowledged += 1;
    }
    consumer.cancel()?;
    connection.close()?;

    if consumed < COUNT {
        eprintln!("only {consumed} of {COUNT} messages arrived");
        std::process::exit(1);
    }
    println!("ok: {published} published, {confirmed} confirmed, {consumed} consumed, {acknowledged} acknowledged");
    Ok(())
}
