//! The one thread that owns the socket.

pub(crate) mod buffer_pool;
pub(crate) mod channel_numbers;
pub(crate) mod counters;
pub(crate) mod deadline;
mod dispatch;
mod driver;
pub(crate) mod lost_publishes;
pub(crate) mod mailbox;
pub(crate) mod notifier;
pub(crate) mod outbox;
pub(crate) mod panics;
pub(crate) mod read_throttle;
mod shared;
pub(crate) mod socket;
mod thread;
pub(crate) mod unread_bytes;
pub(crate) mod waiters;

pub(crate) use shared::{Next, Peer, Recover, Shared};
pub(crate) use thread::spawn;
