//! The events of a connection, and the confirmations of a channel.

use std::fmt;
use std::time::Duration;

use crate::error::Error;

/// An event of a connection, received from [`Connection::events`](crate::Connection::events).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionEvent {
    /// The broker blocks the connection (`connection.blocked`) because it is low on memory or disk.
    /// Publishing waits; everything else continues.
    Blocked {
        /// The broker's reason.
        reason: String,
    },
    /// The broker accepts messages again.
    Unblocked,
    /// The connection was lost, and recovery has begun.
    Lost {
        /// Why it was lost.
        cause: Error,
    },
    /// An attempt to recover the connection failed. Another attempt follows.
    RecoveryFailed {
        /// Number of the attempt, counted from 1.
        attempt: u32,
        /// Why it failed.
        error: Error,
        /// Delay until the next attempt.
        next: Duration,
    },
    /// A queue that the broker named has a new name. Handles, bindings and consumers already use
    /// the new name.
    QueueRenamed {
        /// The name on the lost connection.
        old: String,
        /// The new name.
        new: String,
    },
    /// Recovery could not restore an entity. Everything else continues. Recovery retries the entity
    /// in the background, unless it is a consumer that ends with this error.
    NotRecovered {
        /// The entity that is missing.
        entity: Entity,
        /// Why it could not be recovered.
        error: Error,
    },
    /// An entity that was `NotRecovered` is back.
    RecoveredLater {
        /// The recovered entity.
        entity: Entity,
    },
    /// The connection is back, with everything that recovery could restore.
    Recovered {
        /// Number of attempts.
        attempts: u32,
        /// How long the connection was lost.
        after: Duration,
    },
    /// A thread of [`Workers`](crate::Workers) lost its consumer, or could not start a new one. The
    /// thread retries.
    WorkerInterrupted {
        /// The thread's queue.
        queue: String,
        /// Why.
        error: Error,
        /// Delay until the thread tries to consume again.
        next: Duration,
    },
    /// An interrupted thread of [`Workers`](crate::Workers) consumes again.
    WorkerResumed {
        /// The thread's queue.
        queue: String,
        /// How long the thread had no consumer.
        after: Duration,
    },
    /// The broker closed a channel, usually because of an error. The connection stays open.
    ChannelClosed {
        /// The channel's number: see [`Channel::number`](crate::Channel::number).
        channel: u16,
        /// Why. Every waiting call of the channel gets this error.
        cause: Error,
    },
    /// The connection is closed for good. This is the last event.
    Closed {
        /// Why, and by which side. Every waiting call gets this error.
        cause: Error,
    },
}

/// An entity that recovery declares again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Entity {
    /// An exchange.
    Exchange {
        /// Name of the exchange.
        name: String,
    },
    /// A queue.
    Queue {
        /// Name of the queue. For a queue that the broker named, the old name.
        name: String,
    },
    /// A binding of a queue, or of an exchange.
    Binding {
        /// The exchange that messages come from.
        source: String,
        /// The queue or exchange that messages go to.
        destination: String,
        /// Routing key.
        routing_key: String,
    },
    /// A consumer.
    Consumer {
        /// The queue that the consumer reads.
        queue: String,
        /// Consumer tag.
        consumer_tag: String,
    },
}

impl Entity {
    /// The same entity after this queue was renamed.
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

/// The broker's answer to published messages, received from
/// [`Channel::confirmations`](crate::Channel::confirmations), or a report that no answer will come.
///
/// For programs that track unconfirmed messages themselves.
///
/// See <https://www.rabbitmq.com/docs/confirms#publisher-confirms>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Confirmation {
    /// Sequence number of the message. Sequence numbers start at 1 and keep increasing across
    /// recoveries.
    pub sequence_number: u64,
    /// Whether the answer also covers all earlier unanswered messages.
    pub multiple: bool,
    /// Whether the broker refused the message (`basic.nack`) instead of confirming it.
    pub nack: bool,
    /// Whether the connection was lost, so that no answer will come.
    ///
    /// The broker may or may not have received the unanswered messages up to this one. The report
    /// comes once for each loss, with `multiple` and `nack` set, before any answer to a newer
    /// message. It does not cover messages of a [`Publisher`](crate::Publisher), which recovery
    /// republishes.
    pub lost: bool,
}
