//! Where the examples find a broker.

use leveret::broker::Broker;
use leveret::Result;

/// The URI of the broker at `AMQP_URL`; without that, of one in this process, which ends with the second value.
pub(crate) fn broker() -> Result<(String, Option<Broker>)> {
    if let Ok(uri) = std::env::var("AMQP_URL") {
        return Ok((uri, None));
    }
    println!("AMQP_URL is not set: this is the broker in the box");
    let broker = Broker::start()?;
    Ok((broker.uri(), Some(broker)))
}
