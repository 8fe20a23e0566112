//! The socket: from the connection's options to an open connection, and the bytes on it.
//!
//! `connect` runs on the thread that opens or recovers the connection. It looks up the name, opens
//! TCP, does the TLS and AMQP handshakes, and returns a `Connected`, which the IO thread polls from
//! then on. This folder knows the options, `proto`'s handshake and the operating system. It must
//! not know the outbox, mailboxes or callers.
//!
//! `transport` is the byte stream over TCP (`tcp`) or TLS (`tls`), `read_buffer` the bytes read and
//! not yet decoded, `config` the options as the core takes them.

mod config;
pub(crate) mod connect;
pub(crate) mod read_buffer;
mod tcp;
pub(crate) mod tls;
pub(crate) mod transport;
