//! How to declare and delete queues.

use crate::wire::value::{FieldTable, FieldValue};

/// How to declare a queue.
///
/// The default is [`durable`](Self::durable): a queue that survives a restart of the broker.
/// [`quorum`](Self::quorum) and [`exclusive`](Self::exclusive) are what programs want else.
///
/// ```
/// use leveret::QueueDeclareOptions;
///
/// let options = QueueDeclareOptions::durable().argument("x-message-ttl", 60_000);
/// ```
///
/// See <https://www.rabbitmq.com/docs/queues#properties>.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct QueueDeclareOptions {
    pub(crate) passive: bool,
    pub(crate) durable: bool,
    pub(crate) exclusive: bool,
    pub(crate) auto_delete: bool,
    pub(crate) no_wait: bool,
    pub(crate) arguments: FieldTable,
}

impl Default for QueueDeclareOptions {
    fn default() -> Self {
        Self::durable()
    }
}

impl QueueDeclareOptions {
    /// A classic queue that survives a restart of the broker.
    pub fn durable() -> Self {
        Self {
            passive: false,
            durable: true,
            exclusive: false,
            auto_delete: false,
            no_wait: false,
            arguments: FieldTable::new(),
        }
    }

    /// A replicated, durable queue (`x-queue-type: quorum`).
    pub fn quorum() -> Self {
        Self::durable().argument("x-queue-type", "quorum")
    }

    /// A replicated, durable log that can be read many times (`x-queue-type: stream`).
    pub fn stream() -> Self {
        Self::durable().argument("x-queue-type", "stream")
    }

    /// A queue for this connection alone; it is deleted with the connection.
    pub fn exclusive() -> Self {
        Self::durable().transient().and_exclusive()
    }

    /// Declares nothing: the call fails, and the channel is closed, if there is no such queue. If there is, it tells
    /// the counts.
    pub fn passive() -> Self {
        Self {
            passive: true,
            ..Self::default()
        }
    }

    /// Gone after a restart of the broker. RabbitMQ 4 advises against queues that are neither durable nor exclusive.
    #[must_use]
    pub fn transient(mut self) -> Self {
        self.durable = false;
        self
    }

    /// For this connection alone, on top of what else it is.
    #[must_use]
    pub fn and_exclusive(mut self) -> Self {
        self.exclusive = true;
        self
    }

    flags! {
        /// The queue is deleted when its last consumer is gone.
        auto_delete;
        /// Does not wait for the broker. If it refuses, the channel is closed, as the next call on it says; the
        /// counts are not known.
        no_wait;
    }

    arguments! {
        /// All arguments at once, such as `x-message-ttl`.
    }
}

/// How to delete a queue. The default deletes it with all its messages and consumers.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct QueueDeleteOptions {
    pub(crate) if_unused: bool,
    pub(crate) if_empty: bool,
    pub(crate) no_wait: bool,
}

impl QueueDeleteOptions {
    flags! {
        /// Refused (406) while the queue has consumers.
        if_unused;
        /// Refused (406) while the queue has messages.
        if_empty;
        /// Does not wait for the broker; the count is then 0.
        no_wait;
    }
}
