//! Publishes a message that the broker cannot route, and gets it back.
//!
//!     cargo run --example send_with_return
//!
//! Uses the broker at `AMQP_URL`. Without that variable, it starts a broker in this process.

mod common;

use leveret::{Connection, Message, Result};

fn main() -> Result<()> {
    let (uri, _broker) = common::broker()?;
    let connection = Connection::open(&uri)?;
    let publisher = connection.open_channel()?.publisher()?;
    let message = Message::new("hello").content_type("text/plain");
    match publisher.publish("", "no such queue", message)?.wait() {
        Ok(()) => println!("a queue has the message"),
        Err(error) => {
            let Some(returned) = error.returned_message() else {
                return Err(error);
            };
            let body = String::from_utf8_lossy(returned.body());
            println!(
                "{body:?} came back: {} for {:?}",
                returned.reply_text(),
                returned.routing_key()
            );
        }
    }
    connection.close()
}
