//! The socket: connecting, TLS, and the bytes that come in.

mod config;
pub(crate) mod connect;
pub(crate) mod read_buffer;
pub(crate) mod tls;
pub(crate) mod transport;
