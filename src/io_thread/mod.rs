//! The IO thread, which owns the socket, and what it shares with the handles of its connection.
//!
//! This layer drives the state machine in `proto` over one socket after another. It knows `proto`,
//! `wire`, the options, the socket and the clock. It must not know `session`, a handle or the
//! in-memory broker: it reaches their code only through the traits in `mailbox` and
//! `shared::Recover`, whose methods must not block.
//!
//! Handles append frames and commands to the [`outbox`] and wake the thread. `driver` polls the
//! socket, writes what the outbox holds, and feeds the core what it reads. Where to look:
//!
//! - `thread` goes from a lost socket to the next one; `driver` is the loop over one socket;
//!   `engine` is the same connection without the socket and the clock.
//! - `dispatch` hands the core's events to mailboxes. A delivery goes to a consumer there, through
//!   `ConsumerMailbox::deliver` (implemented in `consumer/mailbox.rs`).
//! - Callers wait in `outbox/back_pressure.rs`. Reading pauses in `read_throttle`.

pub(crate) mod buffer_pool;
pub(crate) mod counters;
pub(crate) mod deadline;
mod dispatch;
mod driver;
pub(crate) mod engine;
pub(crate) mod lost_publishes;
pub(crate) mod mailbox;
pub(crate) mod notifier;
pub(crate) mod outbox;
pub(crate) mod panics;
mod peer;
pub(crate) mod read_throttle;
mod shared;
pub(crate) mod socket;
mod thread;
pub(crate) mod to_replay;
pub(crate) mod unread_bytes;
pub(crate) mod waiters;

pub(crate) use peer::Peer;
pub(crate) use shared::{Next, Recover, Shared};
pub(crate) use thread::spawn;
