//! The AMQP connection as a state machine without IO. It knows the protocol and RabbitMQ's habits.
//! It must not know sockets, threads, locks or clocks. The driver, the IO thread, drives it:
//!
//! 1. Send the bytes of [`Connection::take_output`], and call [`Connection::wrote`] after a write.
//! 2. Pass each [`Command`] to [`Connection::handle`], in order, before its frame is written.
//! 3. Pass input to [`Connection::receive`]. Keep what it does not consume. Large bodies can be
//!    read into their message's memory instead: [`Connection::body_room`].
//! 4. Take every [`Event`] and answer the mailboxes in it.
//! 5. Call [`Connection::handle_timeout`] at [`Connection::deadline`]. It returns which heartbeat
//!    was due. [`Connection::shrink`] frees memory when the driver wants.
//! 6. Call [`Connection::socket_closed`] when the socket ends. After [`Event::Ended`], only answers
//!    to waiting callers follow.

mod buffers;
mod channel;
mod channels;
mod config;
mod confirms;
mod connection;
mod consumers;
mod content;
mod effects;
mod event;
mod fingerprint;
mod handshake;
mod heartbeat;
mod login;
mod topology;
mod violation;

#[cfg(test)]
mod tests;

pub(crate) use buffers::Buffers;
pub(crate) use config::{Config, Tuning};
pub(crate) use connection::{Connection, Server};
pub(crate) use event::{
    Answer, Command, Delivered, Event, Expected, Fetched, Leftover, Mailboxes, Outcome, Published,
    Returned, SendHistory, Settling,
};
pub(crate) use fingerprint::Fingerprint;
pub(crate) use heartbeat::HeartbeatDue;
pub(crate) use login::Login;
pub(crate) use topology::{encoded, is_stream, RecordedEntity, Topology};
