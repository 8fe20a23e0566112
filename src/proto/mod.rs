//! The connection as a state machine without IO: bytes, commands and times go in; bytes, events and a deadline come
//! out. Nothing here knows a socket, a thread, a clock, a lock or a channel between threads.
//!
//! How to drive it:
//! 1. append [`Connection::take_output`] to what is to be written, and tell [`Connection::wrote`] when some was;
//! 2. hand over every [`Command`] before the input that came after it;
//! 3. hand over input with [`Connection::receive`], keep what it does not consume;
//! 4. take every [`Event`] and answer the mailboxes in it;
//! 5. call [`Connection::handle_timeout`] when [`Connection::deadline`] has come;
//! 6. tell [`Connection::socket_closed`] when the socket has ended. [`Event::Ended`] is followed only by the answers
//!    to everyone who waits.

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
