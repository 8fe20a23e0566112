//! Converts the connection's options into the core's configuration.

use crate::options::{ConnectionOptions, LoginMethod};
use crate::proto::{Config, Login};
use crate::wire::value::FieldTable;

/// A quarter of what one read takes: smaller frames are seldom cut, and a copy of them is cheap.
const PIECEMEAL: usize = 16 << 10;

pub(crate) fn config_of(options: &ConnectionOptions) -> Config {
    let login = match &options.login_method {
        LoginMethod::Plain => Login::plain(&options.username, &options.password),
        LoginMethod::AmqPlain => Login::amqplain(&options.username, &options.password),
        LoginMethod::External => Login::external(&options.username),
        LoginMethod::Sasl(mechanism) => {
            let mut conversation = mechanism.begin();
            let respond = Box::new(move |challenge: &[u8]| {
                let response = conversation.respond(challenge);
                response.map_err(|error| error.to_string())
            });
            Login::new(mechanism.name(), &options.username, respond)
        }
    };
    // Round up to whole seconds: rounding down could turn a short interval into no heartbeats.
    let partial = u64::from(options.heartbeat.subsec_nanos() > 0);
    let heartbeat = options.heartbeat.as_secs().saturating_add(partial);
    Config {
        login,
        vhost: options.vhost.clone(),
        client_properties: client_properties(options),
        channel_max: options.channel_max,
        frame_max: options.frame_max,
        heartbeat: heartbeat.try_into().unwrap_or(u16::MAX),
        max_message_size: options.max_message_size,
        piecemeal: PIECEMEAL,
    }
}

fn client_properties(options: &ConnectionOptions) -> FieldTable {
    let capabilities = [
        // RabbitMQ then answers a refused login with 403 instead of closing the socket.
        "authentication_failure_close",
        "basic.nack",
        "connection.blocked",
        "consumer_cancel_notify",
        "exchange_exchange_bindings",
        "publisher_confirms",
    ];
    let mut properties = FieldTable::new()
        .with("product", "leveret")
        .with("version", env!("CARGO_PKG_VERSION"))
        .with("platform", "Rust")
        .with("information", "https://docs.rs/leveret")
        .with("connection_name", options.connection_name.as_str())
        .with(
            "capabilities",
            FieldTable::from_iter(capabilities.map(|it| (it, true))),
        );
    for (name, value) in options.client_properties.clone() {
        properties.insert(name, value);
    }
    properties
}
