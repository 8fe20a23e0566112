//! What a user sees, on a real RabbitMQ: `tests/with-rabbitmq cargo test`.

// Tests read the clock and fail by panicking.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod alike;
mod broker;
mod broker_wire;
mod channels;
mod cluster_chaos;
mod connecting;
mod consuming;
mod credentials;
mod deprecated;
mod endpoints;
mod exchanges_and_queues;
mod guide;
mod handshake;
mod in_flight;
mod large_messages;
mod logging;
mod losing;
mod memory;
mod perf_test;
mod publisher;
mod publishing;
mod recovery;
mod refusals;
mod rpc;
mod stats;
mod streams;
mod stress;
mod support;
mod threads;
#[cfg(feature = "native-tls")]
mod tls;
mod tutorials;
mod typed_arguments;
mod waiting;
mod workers;
