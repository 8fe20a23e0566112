//! Reads a stream with a filter, from a given offset.
//!
//!     tests/with-rabbitmq cargo run --example stream [COUNTRY [OFFSET [STREAM]]]
//!
//! Publishes orders from three countries to a stream (default: `orders`). Then prints the orders
//! from one country (default: `fr`), from an offset on (default: 0), and prints the offset for the
//! next run. Uses RabbitMQ at `AMQP_URL`, or on this machine with its defaults.

use std::time::Duration;

use leveret::{
    Channel, Connection, ConsumeOptions, Message, Queue, QueueDeclareOptions, Result, StreamOffset,
};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut argument = |default: &str| arguments.next().unwrap_or_else(|| default.to_owned());
    let (country, offset, stream) = (argument("fr"), argument("0"), argument("orders"));
    let Ok(offset) = offset.parse() else {
        eprintln!("usage: stream [COUNTRY [OFFSET [STREAM]]]");
        std::process::exit(1);
    };

    let uri = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".to_owned());
    let connection = Connection::open(&uri)?;
    let channel = connection.open_channel()?;
    let options = QueueDeclareOptions::stream().max_length_bytes(100_000_000);
    let orders = channel.queue_declare(&stream, options)?;
    publish(&channel, &orders)?;
    let next = read(&orders, &country, offset)?;
    println!("the next run starts at offset {next}");
    connection.close()
}

fn publish(channel: &Channel, orders: &Queue) -> Result<()> {
    let publisher = channel.publisher()?;
    for number in 1..=2 {
        for country in ["fr", "de", "be"] {
            let text = format!("order {number} from {country}");
            // The broker filters by this value.
            let message = Message::new(text).stream_filter_value(country);
            publisher.publish("", orders.name(), message)?;
        }
    }
    publisher.wait_for_confirms()
}

/// Reads until no more orders arrive. Returns the offset after the last message.
fn read(orders: &Queue, country: &str, offset: u64) -> Result<u64> {
    // A stream requires a prefetch.
    orders.channel().basic_qos(100)?;
    let options = ConsumeOptions::default()
        .stream_offset(StreamOffset::Offset(offset))
        .stream_filter([country]);
    let consumer = orders.consume_with(options)?;
    let mut next = offset;
    while let Some(delivery) = consumer.recv_timeout(Duration::from_secs(2))? {
        // The broker filters whole chunks, so other messages of a matching chunk arrive, too.
        if delivery.stream_filter_value() == Some(country) {
            let text = String::from_utf8_lossy(delivery.body());
            println!("{}: {text}", delivery.stream_offset().unwrap_or_default());
        }
        next = delivery.stream_offset().map_or(next, |it| it + 1);
        delivery.ack()?;
    }
    Ok(next)
}
