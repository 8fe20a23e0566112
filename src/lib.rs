//! A blocking AMQP 0-9-1 client for RabbitMQ and other brokers, for synchronous programs, scripts,
//! and worker processes with one consumer thread per queue.
//!
//! An IO thread owns each connection's socket and sends its heartbeats. The program's threads call
//! blocking methods on handles. Every call ends: with the broker's reply, with an error that names
//! the cause, or with a timeout. The crate needs no async runtime and no callbacks, and handles
//! have no lifetimes. A lost connection recovers automatically, and all handles stay valid.
//!
//! ```no_run
//! use leveret::{Connection, ExchangeDeclareOptions, ExchangeKind, Message};
//! use leveret::{QueueDeclareOptions, Result};
//! use std::time::Duration;
//!
//! fn main() -> Result<()> {
//!     let connection = Connection::open("amqp://guest:guest@localhost:5672/%2f")?;
//!     let channel = connection.open_channel()?;
//!
//!     let options = ExchangeDeclareOptions::default();
//!     let logs = channel.exchange_declare("logs", ExchangeKind::Fanout, options)?;
//!     let queue = channel.queue_declare("tasks", QueueDeclareOptions::default())?;
//!     queue.bind(&logs, "")?;
//!
//!     queue.publish("through the default exchange, routed by the queue's name")?;
//!     logs.publish("", Message::new(b"bytes").persistent(true).content_type("text/plain"))?;
//!
//!     let publisher = channel.publisher()?; // confirm mode, with a window of unconfirmed messages
//!     let confirm = publisher.publish("logs", "", "tracked")?; // waits only if the window is full
//!     confirm.wait()?; // the broker has the message, or the error says what happened to it
//!
//!     channel.basic_qos(200)?;
//!     let consumer = queue.consume()?;
//!     while let Some(delivery) = consumer.recv_timeout(Duration::from_secs(1))? {
//!         println!("{} {:?}", delivery.routing_key(), delivery.body());
//!         delivery.ack()?;
//!     }
//!     connection.close()
//! }
//! ```
//!
//! # Where to look
//!
//! - [`Connection`] and [`ConnectionOptions`]: connecting, timeouts, closing.
//! - [`Channel`]: every method of AMQP, under AMQP's own name. An [`Exchange`] or [`Queue`] is a
//!   handle for one name.
//! - [`Message`] and [`Properties`]: what a program publishes. [`Publisher`] and [`Confirm`]: the
//!   outcome of each message.
//! - [`Consumer`] and [`Delivery`]: messages from a queue, and their acknowledgement.
//! - [`Workers`]: threads that handle messages, retry failed ones, and shut down gracefully.
//!   [`docs::workers`] is a guide.
//! - [`RpcClient`] and [`RpcServer`]: requests and replies.
//! - [`Error`]: what went wrong, who said so, and whether a retry is safe.
//! - [`docs::recovery`] and [`RecoveryOptions`]: what happens when a connection is lost.
//! - [`docs::rabbitmq`]: what differs between RabbitMQ 3.10, 4.0 and 4.3.
//! - [`docs::aioamqp`]: a guide for porting programs from Python's aioamqp.
//!
//! Receivers come from `crossbeam-channel`, which this crate re-exports for its `select!` macro.
//!
//! # How methods are named
//!
//! - A method with an AMQP name, such as [`Channel::queue_declare`], takes all that AMQP's method
//!   takes. Options are structs with defaults and chained setters; every switch takes a `bool`.
//! - `x_with` is `x` with options or arguments instead of the defaults: [`Queue::consume_with`].
//! - `x_no_wait` is `x` without waiting for the broker's reply. If the broker refuses, it closes
//!   the channel.
//! - `x_timeout` is `x` with another timeout. `try_x` never waits.
//! - Values that [`ConnectionOptions`] sets are read with `get_`, such as
//!   [`get_host`](ConnectionOptions::get_host).
//!
//! # Features
//!
//! - `native-tls` (default): TLS with the system's library.
//! - `rustls`: TLS with rustls, even if `native-tls` is on. [`TlsOptions`] says what differs.
//! - `json`: `Message::json` and `Delivery::json`. Includes `serde`.
//! - `serde`: [`FieldTable`], [`FieldValue`] and [`Properties`] in the formats of `serde`.
//! - `broker`: an in-memory broker for tests.
//!
//! # Logging
//!
//! This crate logs through the `log` crate: failures that need attention at `error` and `warn`, the
//! progress of connections at `info`, details at `debug`, and each frame's method at `trace`. It
//! never logs bodies or passwords. Every line begins with the name and the peer of its connection:
//! `[billing worker at 10.0.0.1:5672] the broker has unblocked the connection`.

// The layers, from the lowest to the highest; tests/layers.rs holds who may use what.

// What threads synchronize with.
mod sync;

mod wire;

// Plain data.
mod error;
mod events;
mod log_line;
mod message;
mod options;
mod sasl;
mod stats;

// The connection without a socket, the thread with the socket, one connection over many sockets.
mod proto;

mod io_thread;

mod session;

// What programs hold.
mod channel;
mod connection;
pub mod consumer;
mod delivery;
mod exchange;
mod publisher;
mod queue;
mod rpc;
mod workers;

#[cfg(feature = "broker")]
// Its lines belong to no connection of a program.
#[allow(clippy::disallowed_macros)]
pub mod broker;
pub mod docs;

#[cfg(all(loom, test))]
mod models;
#[cfg(test)]
mod tests;

pub use channel::Channel;
pub use connection::Connection;
#[doc(inline)]
pub use consumer::Consumer;
pub use crossbeam_channel;
pub use delivery::{Death, DeathReason, Delivery};
pub use error::{
    CloseReason, ClosedBy, Error, ErrorKind, FailedEndpoint, FailedPublish, ReplyCode, Result,
    ReturnedMessage,
};
pub use events::{Confirmation, ConnectionEvent, Entity};
pub use exchange::{Exchange, ExchangeKind};
pub use message::{Body, Message};
pub use options::{
    AckMode, ConnectionOptions, ConsumeOptions, Credentials, DeadLetterStrategy, DelayedRetry,
    ExchangeDeclareOptions, ExchangeDeleteOptions, HashProperty, LeaderLocator, LoginMethod,
    NackOptions, OnConsumerEnd, OnFailure, Overflow, PublisherOptions, QosOptions,
    QueueDeclareOptions, QueueDeleteOptions, QueueType, RecoveryOptions, Requeue, Retry,
    StreamOffset, TlsOptions, WorkerOptions,
};
pub use publisher::confirm::{Confirm, PublishOutcome};
pub use publisher::Publisher;
pub use queue::Queue;
pub use rpc::{RpcClient, RpcOutput, RpcServer};
pub use sasl::{SaslConversation, SaslMechanism};
pub use stats::{ConnectionStats, Metrics};
pub use wire::expiration::Expiration;
pub use wire::properties::Properties;
pub use wire::short_string::ShortString;
pub use wire::value::{FieldTable, FieldValue};
pub use workers::{
    BatchOutput, HandlerOutput, LastError, LateHandler, Pause, QueueWorkers, Settlement,
    Settlements, Workers, WorkersStatus,
};

/// A panic of the program leaves no handle half-changed: this crate calls the program's functions
/// (metrics, filters, credentials, the logger) only where its own state is complete.
macro_rules! survive_panics {
    ($($type:ty),*) => {
        $(
            impl std::panic::UnwindSafe for $type {}
            impl std::panic::RefUnwindSafe for $type {}
        )*
    };
}

survive_panics!(
    Channel,
    Confirm,
    Connection,
    ConnectionOptions,
    Consumer,
    Delivery,
    Error,
    LoginMethod,
    Publisher,
    Queue,
    RecoveryOptions,
    RpcClient,
    Workers
);
#[cfg(feature = "broker")]
survive_panics!(broker::Broker);
