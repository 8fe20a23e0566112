//! One logical connection over many sockets: the state that outlives a lost connection.
//!
//! This layer uses `io_thread`, `proto` and `wire`. It knows no handle: `Connection`, `Channel`,
//! `Consumer` and the others hold its types and call them on the program's threads. The IO thread
//! calls it through the mailbox traits. After a loss, the recovery thread drives it.
//!
//! - `call.rs`: sends one request, waits for the reply, adds context to the error
//! - `channel/`: the state of one channel, which all its handles share
//! - `subscription.rs`: the life of one consumer over all connections; `stream_position.rs`: the
//!   offset at which a consumer of a stream continues
//! - `recovery/`: reconnects and replays what was lost
//! - `queue_names.rs`: handles follow a queue that the broker renames; `failures.rs`: reports each
//!   failed publish once

pub(crate) mod call;
pub(crate) mod channel;
pub(crate) mod failures;
pub(crate) mod queue_names;
pub(crate) mod recovery;
pub(crate) mod stream_position;
pub(crate) mod subscription;
