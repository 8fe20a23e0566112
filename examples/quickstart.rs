//! Publishes 1,000 messages with confirms, then consumes and acknowledges them.
//!
//!     tests/with-rabbitmq cargo run --example quickstart
//!
//! Uses the broker at `AMQP_URL`, or RabbitMQ on this machine with its defaults.

use std::time::Duration;

use leveret::{Connection, ConsumeOptions, Message, QueueDeclareOptions, Result};

const COUNT: u32 = 1000;

fn main() -> Result<()> {
    let connection = match std::env::var("AMQP_URL") {
        Ok(uri) => Connection::open(&uri)?,
        Err(_) => Connection::open_default()?,
    };
    let channel = connection.open_channel()?;
    let queue = channel.queue_declare("", QueueDeclareOptions::exclusive())?;

    channel.confirm_select()?;
    let mut published = 0;
    for number in 0..COUNT {
        queue.publish(Message::new(format!("task {number}")).persistent())?;
        published += 1;
    }
    channel.wait_for_confirms()?;
    // It returns without an error only when the broker has confirmed them all.
    let confirmed = published;

    channel.basic_qos(200)?;
    let consumer = queue.consume(ConsumeOptions::default())?;
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
        eprintln!("only {consumed} of {COUNT} messages came");
        std::process::exit(1);
    }
    println!("ok: {published} published, {confirmed} confirmed, {consumed} consumed, {acknowledged} acknowledged");
    Ok(())
}
