//! Finds or starts a broker for the examples.

use leveret::broker::Broker;
use leveret::Result;

/// Returns the URI of the broker at `AMQP_URL`. Without that variable, starts a broker in this
/// process; it stops when the second value is dropped.
pub(crate) fn broker() -> Result<(String, Option<Broker>)> {
    if let Ok(uri) = std::env::var("AMQP_URL") {
        return Ok((uri, None));
    }
    println!("AMQP_URL is not set: using a broker in this process");
    let broker = Broker::start()?;
    Ok((broker.uri(), Some(broker)))
}
