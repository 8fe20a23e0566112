//! What happens to a connection without anyone having asked.

use crate::error::Error;

/// What [`Connection::events`](crate::Connection::events) tells.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ConnectionEvent {
    /// The broker takes no messages for now (`connection.blocked`): it lacks memory or disk. Publishing waits, all
    /// else goes on.
    Blocked {
        /// The broker's reason.
        reason: String,
    },
    /// The broker takes messages again.
    Unblocked,
    /// The connection has ended; the last event.
    Closed {
        /// By whom and why: what everyone who waits is told.
        cause: Error,
    },
}
