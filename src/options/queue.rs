//! How to declare and delete queues.

use std::time::Duration;

use super::{milliseconds, number, seconds};
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
    ///
    /// [`max_length_bytes`](QueueDeclareOptions::max_length_bytes) and
    /// [`max_age`](QueueDeclareOptions::max_age) limit it. The other limits are refused (406), and so
    /// are dead-lettering, priorities and a single active consumer.
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

/// How a quorum queue hands its dead letters on.
///
/// See <https://www.rabbitmq.com/docs/quorum-queues#dead-lettering>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeadLetterStrategy {
    /// Drops a dead letter that reaches no queue. The broker's default.
    AtMostOnce,
    /// Keeps each dead letter until the queues it goes to have confirmed it.
    ///
    /// Works only together with [`Overflow::RejectPublish`] and a dead-letter exchange:
    /// [`dead_letter_at_least_once`](QueueDeclareOptions::dead_letter_at_least_once) sets all three.
    /// Without them the broker accepts the queue, writes a line to its log, and falls back to
    /// [`AtMostOnce`](Self::AtMostOnce).
    AtLeastOnce,
}

impl From<DeadLetterStrategy> for FieldValue {
    fn from(strategy: DeadLetterStrategy) -> Self {
        Self::from(match strategy {
            DeadLetterStrategy::AtMostOnce => "at-most-once",
            DeadLetterStrategy::AtLeastOnce => "at-least-once",
        })
    }
}

/// Which returned messages a quorum queue delays before it delivers them again.
///
/// A message is returned as failed by [`reject`](crate::Delivery::reject) with `requeue`, by a
/// [`Workers`](crate::Workers) handler's [`Settlement::Requeue`](crate::Settlement::Requeue), and
/// when its channel or connection ends; these returns count towards the delivery limit. It is
/// returned without a failure by [`nack`](crate::Delivery::nack).
///
/// See <https://www.rabbitmq.com/docs/quorum-queues#delayed-retry>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DelayedRetry {
    /// All returned messages.
    All,
    /// Only those that count as failed.
    Failed,
    /// Only those that do not count as failed.
    Returned,
}

impl From<DelayedRetry> for FieldValue {
    fn from(retry: DelayedRetry) -> Self {
        Self::from(match retry {
            DelayedRetry::All => "all",
            DelayedRetry::Failed => "failed",
            DelayedRetry::Returned => "returned",
        })
    }
}

/// On which node of a cluster the leader of a new queue is placed.
///
/// See <https://www.rabbitmq.com/docs/clustering#replica-placement>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LeaderLocator {
    /// The node to which this connection goes. The broker's default.
    ClientLocal,
    /// The node with the fewest leaders; with 1,000 queues or more, a random node.
    Balanced,
}

impl From<LeaderLocator> for FieldValue {
    fn from(locator: LeaderLocator) -> Self {
        Self::from(match locator {
            LeaderLocator::ClientLocal => "client-local",
            LeaderLocator::Balanced => "balanced",
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
        /// Messages older than this are dropped or dead-lettered (`x-message-ttl`), in whole milliseconds,
        /// rounded up.
        message_ttl(ttl: Duration) => "x-message-ttl": milliseconds(ttl);
        /// The queue is deleted when nobody has used it for so long (`x-expires`), in whole milliseconds,
        /// rounded up, at least one.
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
        /// RabbitMQ 4.0, before no limit. Other queues with this argument are refused (406).
        ///
        /// Before RabbitMQ 4.3 every redelivery counts. Since then only failures count:
        /// [`docs::rabbitmq`](crate::docs::rabbitmq#what-counts-towards-the-delivery-limit) has the
        /// list. A message that was only sent ahead to a consumer can reach the limit, too, so give
        /// the queue a [`dead_letter_exchange`](Self::dead_letter_exchange).
        delivery_limit(times: u32) => "x-delivery-limit": i64::from(times);
        /// How long a stream keeps messages (`x-max-age`), in whole seconds, rounded up, at least one.
        max_age(age: Duration) => "x-max-age": format!("{}s", seconds(age).max(1));
        /// How long a consumer of this queue may take to acknowledge a message
        /// (`x-consumer-timeout`), in whole milliseconds, rounded up. Default: the node's
        /// `consumer_timeout`, 30 minutes.
        ///
        /// What happens after that depends on the broker's version:
        ///
        /// - 4.3: quorum queues only; other queues with this argument are refused (406). The
        ///   consumer is cancelled ([`ErrorKind::ConsumerCancelled`](crate::ErrorKind)), and its
        ///   messages go back to the queue. Zero cancels it as soon as it has a message.
        /// - 3.12 to 4.2: classic and quorum queues. The broker looks once a minute, and closes the
        ///   channel (406). Zero has no effect.
        /// - Before 3.12 the argument is ignored.
        ///
        /// See <https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout>.
        consumer_timeout(timeout: Duration) => "x-consumer-timeout": milliseconds(timeout);
        /// How long a quorum queue waits for the node of a consumer that it cannot reach before it
        /// gives the consumer's messages to others (`x-consumer-disconnected-timeout`), in whole
        /// milliseconds. Default: 60 seconds.
        ///
        /// For quorum queues of RabbitMQ 4.3 and later; other queues with this argument are refused
        /// there (406). Earlier versions ignore it.
        ///
        /// See <https://www.rabbitmq.com/docs/quorum-queues#consumer-timeout>.
        consumer_disconnected_timeout(timeout: Duration)
            => "x-consumer-disconnected-timeout": milliseconds(timeout);
        /// How a quorum queue hands its dead letters on (`x-dead-letter-strategy`). Other queues
        /// with this argument are refused (406).
        ///
        /// [`dead_letter_at_least_once`](Self::dead_letter_at_least_once) also sets what
        /// [`DeadLetterStrategy::AtLeastOnce`] needs.
        dead_letter_strategy(strategy: DeadLetterStrategy) => "x-dead-letter-strategy": strategy;
        /// On which node of a cluster the queue's leader is placed (`x-queue-leader-locator`).
        ///
        /// For quorum queues and streams, and since RabbitMQ 4.0 also for classic queues; 3.x
        /// refuses classic queues with this argument (406).
        leader_locator(locator: LeaderLocator) => "x-queue-leader-locator": locator;
        /// On how many nodes of a cluster a quorum queue has a replica at first
        /// (`x-quorum-initial-group-size`), at least one. Default: 3, or all nodes of a smaller
        /// cluster. Other queues with this argument are refused (406).
        ///
        /// See <https://www.rabbitmq.com/docs/quorum-queues#replication-factor>.
        quorum_initial_group_size(nodes: u32) => "x-quorum-initial-group-size": i64::from(nodes);
        /// On how many nodes of a cluster a stream has a replica at first
        /// (`x-initial-cluster-size`), at least one. Default: all nodes. Other queues with this
        /// argument are refused (406).
        ///
        /// See <https://www.rabbitmq.com/docs/streams#replication-factor>.
        stream_initial_cluster_size(nodes: u32) => "x-initial-cluster-size": i64::from(nodes);
        /// How large each of a stream's files becomes (`x-stream-max-segment-size-bytes`). Default:
        /// 500,000,000; at most 3,000,000,000. With zero the broker accepts the declaration, but no
        /// message. Other queues with this argument are refused (406).
        ///
        /// A stream drops old messages by whole files, and always keeps the last file. So
        /// [`max_length_bytes`](Self::max_length_bytes) and [`max_age`](Self::max_age) have no effect
        /// within a single file.
        ///
        /// See <https://www.rabbitmq.com/docs/streams#retention>.
        stream_max_segment_size_bytes(bytes: u64)
            => "x-stream-max-segment-size-bytes": number(bytes);
        /// How many bytes each chunk of a stream has for its filter (`x-stream-filter-size-bytes`),
        /// 16 to 255. Default: 16. More bytes let fewer chunks through that have no matching message.
        ///
        /// For streams since RabbitMQ 3.13; earlier versions ignore it. 4.3 refuses other queues with
        /// this argument (406), earlier versions ignore it there, too.
        ///
        /// See [`ConsumeOptions::stream_filter`](crate::ConsumeOptions::stream_filter) and
        /// <https://www.rabbitmq.com/docs/stream-filtering>.
        stream_filter_size_bytes(bytes: u8) => "x-stream-filter-size-bytes": i64::from(bytes);
    }

    /// Lets a quorum queue deliver a message again without limit (`x-delivery-limit: -1`).
    ///
    /// For RabbitMQ 4.0 and later, whose default is 20. Do not use it with earlier versions: they
    /// have no limit by default, and take `-1` for a limit that every message exceeds. 3.10 drops or
    /// dead-letters a message when it is given back for the first time.
    ///
    /// See <https://www.rabbitmq.com/docs/quorum-queues#repeated-requeues>.
    #[must_use]
    pub fn no_delivery_limit(self) -> Self {
        self.argument("x-delivery-limit", -1)
    }

    /// Lets a quorum queue hand dead letters to this exchange without losing any.
    ///
    /// Sets [`dead_letter_exchange`](Self::dead_letter_exchange),
    /// [`DeadLetterStrategy::AtLeastOnce`] and what it needs, [`Overflow::RejectPublish`]. The queue
    /// keeps each dead letter until every queue that it is routed to has confirmed it, and the dead
    /// letter counts towards the length limits until then. So an exchange that is missing, or that
    /// routes to no queue, fills this queue. Set [`max_length`](Self::max_length) or
    /// [`max_length_bytes`](Self::max_length_bytes) to bound it; publishers then get nacks.
    ///
    /// Dead letters can be duplicated. They keep their delivery mode: publish messages as
    /// [`persistent`](crate::Message::persistent) if they must survive in the other queue.
    ///
    /// ```
    /// use leveret::QueueDeclareOptions;
    ///
    /// let options = QueueDeclareOptions::quorum().dead_letter_at_least_once("failed").max_length(100_000);
    /// ```
    ///
    /// See <https://www.rabbitmq.com/docs/quorum-queues#activating-at-least-once-dead-lettering>.
    #[must_use]
    pub fn dead_letter_at_least_once(self, exchange: &str) -> Self {
        self.dead_letter_exchange(exchange)
            .dead_letter_strategy(DeadLetterStrategy::AtLeastOnce)
            .overflow(Overflow::RejectPublish)
    }

    /// Lets a quorum queue wait before it delivers a returned message again
    /// (`x-delayed-retry-type`, `x-delayed-retry-min`, `x-delayed-retry-max`), in whole milliseconds,
    /// rounded up.
    ///
    /// The delay is `min` for each failed delivery of the message so far, and at most `max`. A
    /// message that never failed waits for `min`. Choose `min` of at least one millisecond: the
    /// broker ignores all three arguments otherwise.
    ///
    /// For quorum queues of RabbitMQ 4.3 and later; other queues with these arguments are refused
    /// there (406). Earlier versions ignore them and deliver at once.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use leveret::{DelayedRetry, QueueDeclareOptions};
    ///
    /// let (min, max) = (Duration::from_secs(1), Duration::from_secs(60));
    /// let options = QueueDeclareOptions::quorum().delayed_retry(DelayedRetry::Failed, min, max);
    /// ```
    ///
    /// See <https://www.rabbitmq.com/docs/quorum-queues#delayed-retry>.
    #[must_use]
    pub fn delayed_retry(self, which: DelayedRetry, min: Duration, max: Duration) -> Self {
        self.argument("x-delayed-retry-type", which)
            .argument("x-delayed-retry-min", milliseconds(min))
            .argument("x-delayed-retry-max", milliseconds(max))
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
