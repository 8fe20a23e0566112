//! Tests of the public API against a broker: `tests/with-rabbitmq cargo test` runs them with
//! RabbitMQ, `tests/in-the-box` with the in-memory broker.

// Tests read the clock and fail by panicking.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod aioamqp_guide;
mod batches;
mod broker;
mod broker_errors;
mod broker_parity;
mod broker_wire;
mod channels;
mod cluster_chaos;
mod connecting;
mod consuming;
mod credentials;
mod endpoints;
mod exchanges_and_queues;
mod flush;
mod guesses;
mod handlers;
mod handshake;
mod large_messages;
mod late_frames;
mod layers;
mod logging;
mod lost_for_good;
mod memory_use;
mod mover;
mod orders;
mod pausing;
mod perf_test;
mod publisher;
mod publishing;
mod recovery;
mod retry;
mod retry_load;
mod rpc;
mod stats;
mod streams;
mod stress;
mod support;
mod thread_safety;
mod timeouts;
#[cfg(feature = "native-tls")]
mod tls;
mod tutorials;
mod typed_arguments;
mod without_deprecated_features;
mod workers;
