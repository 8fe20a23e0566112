//! How to declare and delete queues.

use std::time::Duration;

use super::{milliseconds, number};
use crate::wire::value::{FieldTable, FieldValue};

/// What a queue is made for.
///
/// See <https://www.rabbitmq.com/docs/queues#optional-arguments>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QueueType {
    /// On one node. The only type that can be [`exclusive`](QueueDeclareOptions::exclusive),
    /// [`transient`](QueueDeclareOptions::transient) or
    /// [`auto_delete`](QueueDeclareOptions::auto_delete), and the only type with
    /// [`max_priority`](QueueDeclareOptions::max_priority).
    Classic,
    /// Replicated, for data that must not be lost. The only type with
    /// [`delivery_limit`](QueueDeclareOptions::delivery_limit). Since RabbitMQ 4.0 it has priorities
    /// without being declared with them: see [`Message::priority`](crate::Message::priority).
    Quorum,
    /// A replicated log: reading takes nothing out of it. A consumer needs a prefetch
    /// ([`basic_qos`](crate::Channel::basic_qos)) and acknowledgements, and cannot give a message
    /// back. `basic_get` and `queue_purge` close the connection (540).
    Stream,
}

impl From<QueueType> for FieldValue {
    fn from(queue_type: QueueType) -> Self {
        Self::from(match queue_type {
            QueueType::Classic => "classic",
            QueueType::Quorum => "quorum",
            QueueType::Stream => "stream",
        })
    }
}

/// What a full queue does.
///
/// See <https://www.rabbitmq.com/docs/maxlength#overflow-behaviour>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Overflow {
    /// Drops (or dead-letters) the oldest messages. The broker's default.
    DropHead,
    /// Refuses new ones: their publisher gets a nack.
    RejectPublish,
    /// The same, and dead-letters the refused ones. A quorum queue can be declared with this, but
    /// then drops (or dead-letters) its oldest messages, as with [`DropHead`](Self::DropHead).
    RejectPublishDlx,
}

impl From<Overflow> for FieldValue {
    fn from(overflow: Overflow) -> Self {
        Self::from(match overflow {
            Overflow::DropHead => "drop-head",
            Overflow::RejectPublish => "reject-publish",
            Overflow::RejectPublishDlx => "reject-publish-dlx",
        })
    }
}

/// How to declare a queue.
///
/// The default is [`durable`](Self::durable): a queue that survives a restart of the broker.
/// [`quorum`](Self::quorum) and [`exclusive`](Self::exclusive) are what programs want else.
///
/// ```
/// use leveret::QueueDeclareOptions;
///
/// let options = QueueDeclareOptions::quorum().delivery_limit(5).dead_letter_exchange("failed");
/// ```
///
/// What the broker is not told when a queue is first declared can be set by its policies instead; what it is told has to
/// be the same at every declaration (406).
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
        Self::durable().queue_type(QueueType::Quorum)
    }

    /// A replicated, durable log that can be read many times (`x-queue-type: stream`).
    pub fn stream() -> Self {
        Self::durable().queue_type(QueueType::Stream)
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

    /// Gone after a restart of the broker. For classic queues.
    ///
    /// A transient queue that is not exclusive is deprecated. A broker that denies it
    /// (`deprecated_features.permit.transient_nonexcl_queues = false`) closes the connection (541).
    /// The release notes of RabbitMQ 4.3 make that the default; RabbitMQ 4.3.6 still permits such
    /// queues. Use [`exclusive`](Self::exclusive), which is never refused, or a durable queue that
    /// [`expires`](Self::expires).
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

    typed_arguments! {
        /// What kind of queue (`x-queue-type`). Default: the virtual host's, mostly classic.
        queue_type(queue_type: QueueType) => "x-queue-type": queue_type;
        /// Messages older than this are dropped or dead-lettered (`x-message-ttl`), in whole milliseconds.
        message_ttl(ttl: Duration) => "x-message-ttl": milliseconds(ttl);
        /// The queue is deleted when nobody has used it for so long (`x-expires`), in whole milliseconds, at least one.
        expires(after: Duration) => "x-expires": milliseconds(after);
        /// How many messages can be ready (`x-max-length`).
        max_length(messages: u64) => "x-max-length": number(messages);
        /// How many bytes of bodies can be ready (`x-max-length-bytes`); the size of a stream.
        max_length_bytes(bytes: u64) => "x-max-length-bytes": number(bytes);
        /// What happens when one of these is reached (`x-overflow`).
        overflow(overflow: Overflow) => "x-overflow": overflow;
        /// Where messages go that expire, overflow or are rejected (`x-dead-letter-exchange`); empty: the default
        /// exchange.
        dead_letter_exchange(exchange: &str) => "x-dead-letter-exchange": exchange;
        /// With which routing key they go there (`x-dead-letter-routing-key`). Default: the one they came with.
        dead_letter_routing_key(routing_key: &str) => "x-dead-letter-routing-key": routing_key;
        /// The highest priority that a classic queue tells apart, up to 255 (`x-max-priority`); up to
        /// 10 are advised. A message of a higher [`priority`](crate::Message::priority) gets this
        /// one. Quorum queues and streams refuse this argument (406); quorum queues have their
        /// priorities without it.
        max_priority(priority: u8) => "x-max-priority": priority;
        /// How often a quorum queue delivers a message again before it drops or dead-letters it
        /// (`x-delivery-limit`): with 20, the broker delivers a message 21 times. Default: 20 since
        /// RabbitMQ 4.0, before no limit.
        ///
        /// Before RabbitMQ 4.3 every redelivery counts. Since then only failures count:
        /// [`docs::rabbitmq`](crate::docs::rabbitmq#what-counts-towards-the-delivery-limit) has the
        /// list. A message that was only sent ahead to a consumer can reach the limit, too, so give
        /// the queue a [`dead_letter_exchange`](Self::dead_letter_exchange).
        delivery_limit(times: u32) => "x-delivery-limit": i64::from(times);
        /// How long a stream keeps messages (`x-max-age`), in whole seconds.
        max_age(age: Duration) => "x-max-age": format!("{}s", age.as_secs());
    }

    /// One consumer at a time gets messages; when it goes, the next one does (`x-single-active-consumer`).
    #[must_use]
    pub fn single_active_consumer(self) -> Self {
        self.argument("x-single-active-consumer", true)
    }

    /// Keeps messages on disk and few in memory (`x-queue-mode`). For classic queues up to RabbitMQ
    /// 3.11; since 3.12 all classic queues do so.
    ///
    /// The argument has no effect on later versions, and the release notes of RabbitMQ 4.3 say that
    /// such a declaration fails. RabbitMQ 4.3.6 still accepts it. Quorum queues and streams refuse
    /// it (406).
    #[must_use]
    pub fn lazy(self) -> Self {
        self.argument("x-queue-mode", "lazy")
    }

    arguments! {
        /// All arguments at once, instead of those that were set before.
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
