//! What happens to a connection without anyone having asked.

use std::fmt;
use std::time::Duration;

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
    /// The connection was lost, and is being recovered.
    Lost {
        /// Why.
        cause: Error,
    },
    /// An attempt to recover the connection has failed; there will be another.
    RecoveryFailed {
        /// Which attempt, counted from 1.
        attempt: u32,
        /// Why.
        error: Error,
        /// When the next one is made: so long from now.
        next: Duration,
    },
    /// The broker has given a queue that it had named another name. Handles, bindings and consumers have it already.
    QueueRenamed {
        /// Its name on the connection that was lost.
        old: String,
        /// Its name now.
        new: String,
    },
    /// Something could not be brought back. Everything else goes on, and this is tried again in the
    /// background, unless it is a consumer that ends with this error.
    NotRecovered {
        /// What.
        entity: Entity,
        /// What the broker says.
        error: Error,
    },
    /// What could not be declared before is there again.
    RecoveredLater {
        /// What.
        entity: Entity,
    },
    /// The connection is back, with all that could be recovered.
    Recovered {
        /// How many attempts were made.
        attempts: u32,
        /// How long it was away.
        after: Duration,
    },
    /// A thread of [`Workers`](crate::Workers) has lost its consumer, or could not begin another one. It tries again.
    WorkerInterrupted {
        /// The thread's queue.
        queue: String,
        /// Why.
        error: Error,
        /// How long until the thread tries to consume again.
        next: Duration,
    },
    /// A thread of [`Workers`](crate::Workers) that was interrupted consumes again.
    WorkerResumed {
        /// The thread's queue.
        queue: String,
        /// How long the thread had no consumer.
        after: Duration,
    },
    /// The connection has ended for good; the last event.
    Closed {
        /// By whom and why: what everyone who waits is told.
        cause: Error,
    },
}

/// What is declared again when a connection is recovered.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Entity {
    /// An exchange.
    Exchange {
        /// Its name.
        name: String,
    },
    /// A queue.
    Queue {
        /// Its name; for one that the broker names, the old one.
        name: String,
    },
    /// A binding of a queue, or of an exchange.
    Binding {
        /// The exchange that the messages come from.
        source: String,
        /// The queue or exchange that they go to.
        destination: String,
        /// The routing key.
        routing_key: String,
    },
    /// A consumer.
    Consumer {
        /// The queue it consumes from.
        queue: String,
        /// Its tag.
        consumer_tag: String,
    },
}

impl Entity {
    /// What it is when this queue has another name.
    pub(crate) fn queue_renamed(mut self, old: &str, new: &str) -> Self {
        let queue = match &mut self {
            Self::Queue { name } => name,
            Self::Binding { destination, .. } => destination,
            Self::Consumer { queue, .. } => queue,
            Self::Exchange { .. } => return self,
        };
        if queue == old {
            new.clone_into(queue);
        }
        self
    }
}

impl fmt::Display for Entity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exchange { name } => write!(f, "exchange {name:?}"),
            Self::Queue { name } => write!(f, "queue {name:?}"),
            Self::Binding {
                source,
                destination,
                routing_key,
            } => write!(
                f,
                "binding of {destination:?} to {source:?} with {routing_key:?}"
            ),
            Self::Consumer {
                queue,
                consumer_tag,
            } => write!(f, "consumer {consumer_tag:?} of queue {queue:?}"),
        }
    }
}

/// An answer of the broker to messages of a channel in confirm mode, just as it came, or the news that none
/// will come: for programs that keep their own accounts.
///
/// See <https://www.rabbitmq.com/docs/confirms#publisher-confirms>.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Confirmation {
    /// Which message it is for, counted from 1, also over several connections.
    pub sequence_number: u64,
    /// It is also for all earlier messages that were not answered.
    pub multiple: bool,
    /// Refused (`basic.nack`), not confirmed.
    pub nack: bool,
    /// Not an answer of the broker, but the news that none will come: the connection was lost, and all messages up to this one
    /// that were not answered may have reached the broker or not. Comes with `multiple` and `nack`, once for each loss, before
    /// any answer to a newer message. It is not for those of a [`Publisher`](crate::Publisher), which are published again.
    pub lost: bool,
}
