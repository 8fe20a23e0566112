//! Options for declaring and deleting queues.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::{milliseconds, number, seconds, unknown_word};
use crate::error::{Error, Result};
use crate::wire::short_string::ShortString;
use crate::wire::value::{FieldTable, FieldValue};

/// The type of a queue.
///
/// See <https://www.rabbitmq.com/docs/queues#optional-arguments>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QueueType {
    /// A queue on one node. The only type that can be
    /// [`exclusive`](QueueDeclareOptions::exclusive), transient
    /// ([`durable`](QueueDeclareOptions::durable)) or
    /// [`auto_delete`](QueueDeclareOptions::auto_delete), and the only type with
    /// [`max_priority`](QueueDeclareOptions::max_priority).
    Classic,
    /// A replicated queue, for data that must not be lost. The only type with
    /// [`delivery_limit`](QueueDeclareOptions::delivery_limit). Since RabbitMQ 4.0 it supports
    /// priorities without declaring them: see [`Message::priority`](crate::Message::priority).
    Quorum,
    /// A replicated log: reading removes nothing. A consumer needs a prefetch
    /// ([`basic_qos`](crate::Channel::basic_qos)) and acknowledgements, and cannot requeue
    /// messages. `basic_get` and `queue_purge` close the connection (540).
    ///
    /// [`max_length_bytes`](QueueDeclareOptions::max_length_bytes) and
    /// [`max_age`](QueueDeclareOptions::max_age) limit it. RabbitMQ refuses other limits,
    /// dead-lettering, priorities and a single active consumer (406).
    Stream,
}

words! {
    QueueType, "a type of queue";
    Classic => "classic";
    Quorum => "quorum";
    Stream => "stream";
}

/// What happens to messages when a queue is full.
///
/// See <https://www.rabbitmq.com/docs/maxlength#overflow-behaviour>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Overflow {
    /// Drops or dead-letters the oldest messages. The broker's default.
    DropHead,
    /// Rejects new messages: their publisher gets a nack.
    RejectPublish,
    /// Rejects new messages with a nack, and dead-letters them. A quorum queue accepts this value,
    /// but then drops or dead-letters its oldest messages, as with [`DropHead`](Self::DropHead).
    RejectPublishDlx,
}

words! {
    Overflow, "an overflow behaviour";
    DropHead => "drop-head";
    RejectPublish => "reject-publish";
    RejectPublishDlx => "reject-publish-dlx";
}

/// How a quorum queue forwards dead-lettered messages.
///
/// See <https://www.rabbitmq.com/docs/quorum-queues#dead-lettering>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeadLetterStrategy {
    /// Drops a dead-lettered message that reaches no queue. The broker's default.
    AtMostOnce,
    /// Keeps each dead-lettered message until its target queues have confirmed it.
    ///
    /// Requires [`Overflow::RejectPublish`] and a dead-letter exchange:
    /// [`dead_letter_at_least_once`](QueueDeclareOptions::dead_letter_at_least_once) sets all
    /// three. Without them the broker accepts the declaration, writes a line to its log, and falls
    /// back to [`AtMostOnce`](Self::AtMostOnce).
    AtLeastOnce,
}

words! {
    DeadLetterStrategy, "a dead-letter strategy";
    AtMostOnce => "at-most-once";
    AtLeastOnce => "at-least-once";
}

/// Which requeued messages a quorum queue delays before it redelivers them.
///
/// A requeue counts as a failure, and towards the delivery limit, if its cause is a
/// [`reject`](crate::Delivery::reject) with `requeue`, a
/// [`Settlement::Requeue`](crate::Settlement::Requeue) of a [`Workers`](crate::Workers) handler, or
/// the end of the channel or connection. A [`nack`](crate::Delivery::nack) requeues a message
/// without a failure.
///
/// See <https://www.rabbitmq.com/docs/quorum-queues#delayed-retry>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DelayedRetry {
    /// Delays all requeued messages.
    All,
    /// Delays only messages whose requeue counts as a failure.
    Failed,
    /// Delays only messages whose requeue does not count as a failure.
    Returned,
}

words! {
    DelayedRetry, "a type of delayed retry";
    All => "all";
    Failed => "failed";
    Returned => "returned";
}

/// The node of a cluster on which the leader of a new queue is placed.
///
/// See <https://www.rabbitmq.com/docs/clustering#replica-placement>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LeaderLocator {
    /// The node that this connection goes to. The broker's default.
    ClientLocal,
    /// The node with the fewest leaders; a random node if the cluster has 1,000 queues or more.
    Balanced,
}

words! {
    LeaderLocator, "a leader locator";
    ClientLocal => "client-local";
    Balanced => "balanced";
}

/// How to declare a queue.
///
/// The default is a durable queue, which survives a restart of the broker. See
/// [`quorum`](Self::quorum) and [`temporary`](Self::temporary) for the other common choices.
///
/// ```
/// use leveret::QueueDeclareOptions;
///
/// let options = QueueDeclareOptions::quorum().delivery_limit(5).dead_letter_exchange("failed");
/// ```
///
/// Every declaration of a queue must set the same properties and arguments, or the broker refuses
/// it (406). Most arguments that the first declaration leaves out can be set by a policy of the
/// broker instead.
///
/// See <https://www.rabbitmq.com/docs/queues#properties>.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct QueueDeclareOptions {
    pub(crate) passive: bool,
    pub(crate) durable: bool,
    pub(crate) exclusive: bool,
    pub(crate) auto_delete: bool,
    pub(crate) arguments: FieldTable,
}

impl Default for QueueDeclareOptions {
    fn default() -> Self {
        Self {
            passive: false,
            durable: true,
            exclusive: false,
            auto_delete: false,
            arguments: FieldTable::new(),
        }
    }
}

impl QueueDeclareOptions {
    /// Declares a replicated, durable queue (`x-queue-type: quorum`).
    #[must_use]
    pub fn quorum() -> Self {
        Self::default().queue_type(QueueType::Quorum)
    }

    /// Declares a replicated, durable log that can be read many times (`x-queue-type: stream`).
    #[must_use]
    pub fn stream() -> Self {
        Self::default().queue_type(QueueType::Stream)
    }

    /// Declares a queue that only this connection can use: exclusive and not durable. The broker
    /// deletes the queue with the connection.
    #[must_use]
    pub fn temporary() -> Self {
        Self::default().durable(false).exclusive(true)
    }

    setters! {
        /// Whether to check that the queue exists and return its counts, and declare nothing. The
        /// broker ignores the other options. If the queue does not exist, the call fails, and the
        /// broker closes the channel (404). Default: false.
        passive: bool;
        /// Whether the queue survives a restart of the broker. Only classic queues can be
        /// transient. Default: true.
        ///
        /// Transient queues that are not exclusive are deprecated. A broker that denies them
        /// (`deprecated_features.permit.transient_nonexcl_queues = false`) closes the connection
        /// (541). The release notes of RabbitMQ 4.3 make that the default; RabbitMQ 4.3.6 still
        /// permits such queues. Use [`temporary`](Self::temporary), which is never refused, or a
        /// durable queue that [`expires`](Self::expires).
        durable: bool;
        /// Whether only this connection can use the queue. The broker deletes an exclusive queue
        /// with its connection. Default: false.
        exclusive: bool;
        /// Whether the broker deletes the queue after its last consumer ends. Default: false.
        auto_delete: bool;
    }

    typed_arguments! {
        /// Type of the queue (`x-queue-type`). Default: the virtual host's default, usually
        /// classic.
        queue_type(queue_type: QueueType) => "x-queue-type": queue_type;
        /// Age at which a message is dropped or dead-lettered (`x-message-ttl`), in whole
        /// milliseconds, rounded up.
        message_ttl(ttl: Duration) => "x-message-ttl": milliseconds(ttl);
        /// How long the queue may be unused before the broker deletes it (`x-expires`), in whole
        /// milliseconds, rounded up, at least one.
        expires(after: Duration) => "x-expires": milliseconds(after);
        /// Maximum number of ready messages (`x-max-length`).
        max_length(messages: u64) => "x-max-length": number(messages);
        /// Maximum total size in bytes of the bodies of ready messages, or of a stream
        /// (`x-max-length-bytes`).
        max_length_bytes(bytes: u64) => "x-max-length-bytes": number(bytes);
        /// What happens when the queue reaches its length limit (`x-overflow`).
        overflow(overflow: Overflow) => "x-overflow": overflow;
        /// Exchange for messages that expire, overflow or are rejected (`x-dead-letter-exchange`).
        /// Empty: the default exchange.
        dead_letter_exchange(exchange: impl Into<String>)
            => "x-dead-letter-exchange": exchange.into();
        /// Routing key of dead-lettered messages (`x-dead-letter-routing-key`). Default: the
        /// routing key that they were published with.
        dead_letter_routing_key(routing_key: impl Into<String>)
            => "x-dead-letter-routing-key": routing_key.into();
        /// Highest priority that a classic queue distinguishes, up to 255 (`x-max-priority`). Use
        /// at most 10. A message with a higher [`priority`](crate::Message::priority) gets this
        /// priority. Quorum queues and streams refuse this argument (406); quorum queues support
        /// priorities without it.
        max_priority(priority: u8) => "x-max-priority": priority;
        /// How often a quorum queue redelivers a message before it drops or dead-letters it
        /// (`x-delivery-limit`): with 20, the broker delivers a message 21 times. Default: 20 since
        /// RabbitMQ 4.0; no limit before. The broker refuses this argument for other types of queue
        /// (406).
        ///
        /// Before RabbitMQ 4.3, every redelivery counts. Since then, only failures count:
        /// [`docs::rabbitmq`](crate::docs::rabbitmq#what-counts-towards-the-delivery-limit) has the
        /// list. A message that was only prefetched and never handled can also reach the limit, so
        /// give the queue a [`dead_letter_exchange`](Self::dead_letter_exchange).
        delivery_limit(times: u32) => "x-delivery-limit": i64::from(times);
        /// How long a stream keeps messages (`x-max-age`), in whole seconds, rounded up, at least
        /// one.
        max_age(age: Duration) => "x-max-age": format!("{}s", seconds(age).max(1));
        /// How long a consumer of this queue may take to acknowledge a message
        /// (`x-consumer-timeout`), in whole milliseconds, rounded up. Default: the node's
        /// `consumer_timeout`, 30 minutes.
        ///
        /// What happens after that depends on the broker's version:
        ///
        /// - 4.3: quorum queues only; the broker refuses this argument for other types of queue
        ///   (406). The broker cancels the consumer
        ///   ([`ErrorKind::ConsumerCancelled`](crate::ErrorKind)), and requeues its messages. Zero
        ///   cancels the consumer as soon as it has a message.
        /// - 3.12 to 4.2: classic and quorum queues. The broker checks once a minute, and closes
        ///   the channel (406). Zero has no effect.
        /// - Before 3.12: no effect.
        ///
        /// See <https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout>.
        consumer_timeout(timeout: Duration) => "x-consumer-timeout": milliseconds(timeout);
        /// How long a quorum queue waits for a consumer on a node that it cannot reach before it
        /// requeues the consumer's messages (`x-consumer-disconnected-timeout`), in whole
        /// milliseconds, rounded up. Default: 60 seconds.
        ///
        /// For quorum queues of RabbitMQ 4.3 and later, which refuse this argument for other types
        /// of queue (406). Earlier versions ignore it.
        ///
        /// See <https://www.rabbitmq.com/docs/quorum-queues#consumer-timeout>.
        consumer_disconnected_timeout(timeout: Duration)
            => "x-consumer-disconnected-timeout": milliseconds(timeout);
        /// How a quorum queue forwards dead-lettered messages (`x-dead-letter-strategy`). The
        /// broker refuses this argument for other types of queue (406).
        ///
        /// [`dead_letter_at_least_once`](Self::dead_letter_at_least_once) also sets what
        /// [`DeadLetterStrategy::AtLeastOnce`] needs.
        dead_letter_strategy(strategy: DeadLetterStrategy) => "x-dead-letter-strategy": strategy;
        /// The node of a cluster on which the queue's leader is placed (`x-queue-leader-locator`).
        ///
        /// For quorum queues and streams, and since RabbitMQ 4.0 also for classic queues; 3.x
        /// refuses this argument for classic queues (406).
        leader_locator(locator: LeaderLocator) => "x-queue-leader-locator": locator;
        /// Initial number of replicas of a quorum queue (`x-quorum-initial-group-size`), at least
        /// one. Default: 3, or all nodes of a smaller cluster. The broker refuses this argument for
        /// other types of queue (406).
        ///
        /// See <https://www.rabbitmq.com/docs/quorum-queues#replication-factor>.
        quorum_initial_group_size(nodes: u32) => "x-quorum-initial-group-size": i64::from(nodes);
        /// Initial number of replicas of a stream (`x-initial-cluster-size`), at least one.
        /// Default: one on each node of the cluster. The broker refuses this argument for other
        /// types of queue (406).
        ///
        /// See <https://www.rabbitmq.com/docs/streams#replication-factor>.
        stream_initial_cluster_size(nodes: u32) => "x-initial-cluster-size": i64::from(nodes);
        /// Maximum size in bytes of each file of a stream (`x-stream-max-segment-size-bytes`), at
        /// most 3,000,000,000. Default: 500,000,000. With zero the broker accepts the declaration,
        /// but no messages. The broker refuses this argument for other types of queue (406).
        ///
        /// A stream drops old messages one whole file at a time, and always keeps the last file. So
        /// [`max_length_bytes`](Self::max_length_bytes) and [`max_age`](Self::max_age) have no
        /// effect within a single file.
        ///
        /// See <https://www.rabbitmq.com/docs/streams#retention>.
        stream_max_segment_size_bytes(bytes: u64)
            => "x-stream-max-segment-size-bytes": number(bytes);
        /// Size in bytes of the filter of each chunk of a stream (`x-stream-filter-size-bytes`), 16
        /// to 255. Default: 16. With more bytes, fewer chunks without a matching message are sent.
        ///
        /// For streams since RabbitMQ 3.13; earlier versions ignore it. RabbitMQ 4.3 refuses this
        /// argument for other types of queue (406); earlier versions ignore it for them, too.
        ///
        /// See [`ConsumeOptions::stream_filter`](crate::ConsumeOptions::stream_filter) and
        /// <https://www.rabbitmq.com/docs/stream-filtering>.
        stream_filter_size_bytes(bytes: u8) => "x-stream-filter-size-bytes": i64::from(bytes);
    }

    /// Lets a quorum queue redeliver messages without limit (`x-delivery-limit: -1`).
    ///
    /// For RabbitMQ 4.0 and later, whose default limit is 20. Do not use this with earlier
    /// versions: they have no limit by default, and treat `-1` as a limit that every message
    /// exceeds. 3.10 drops or dead-letters a message when it is first requeued.
    ///
    /// See <https://www.rabbitmq.com/docs/quorum-queues#repeated-requeues>.
    #[must_use]
    pub fn no_delivery_limit(self) -> Self {
        self.argument("x-delivery-limit", -1)
    }

    /// Lets a quorum queue dead-letter messages to `exchange` without losing any.
    ///
    /// Sets [`dead_letter_exchange`](Self::dead_letter_exchange),
    /// [`DeadLetterStrategy::AtLeastOnce`] and the [`Overflow::RejectPublish`] that it requires.
    /// The queue keeps each dead-lettered message until every target queue has confirmed it. Until
    /// then the message counts towards the length limits. So if the dead-letter exchange is missing
    /// or routes to no queue, this queue fills up. Set [`max_length`](Self::max_length) or
    /// [`max_length_bytes`](Self::max_length_bytes) to bound it; publishers then get nacks.
    ///
    /// Dead-lettered messages can be duplicated. They keep their delivery mode: publish messages as
    /// [`persistent`](crate::Message::persistent) if they must survive in the target queue.
    ///
    /// ```
    /// use leveret::QueueDeclareOptions;
    ///
    /// let options = QueueDeclareOptions::quorum()
    ///     .dead_letter_at_least_once("failed")
    ///     .max_length(100_000);
    /// ```
    ///
    /// See <https://www.rabbitmq.com/docs/quorum-queues#activating-at-least-once-dead-lettering>.
    #[must_use]
    pub fn dead_letter_at_least_once(self, exchange: impl Into<String>) -> Self {
        self.dead_letter_exchange(exchange)
            .dead_letter_strategy(DeadLetterStrategy::AtLeastOnce)
            .overflow(Overflow::RejectPublish)
    }

    /// Delays the redelivery of requeued messages of a quorum queue (`x-delayed-retry-type`,
    /// `x-delayed-retry-min`, `x-delayed-retry-max`), in whole milliseconds, rounded up.
    ///
    /// The delay is `min` multiplied by the number of failed deliveries of the message, and at most
    /// `max`. A message that never failed is delayed by `min`. `min` must be at least one
    /// millisecond: otherwise the broker ignores all three arguments.
    ///
    /// For quorum queues of RabbitMQ 4.3 and later, which refuse these arguments for other types of
    /// queue (406). Earlier versions ignore them and redeliver at once.
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

    argument_switches! {
        /// Whether to deliver to one consumer at a time. When that consumer ends, the next one
        /// takes over (`x-single-active-consumer`). Default: false.
        single_active_consumer => "x-single-active-consumer";
    }

    /// Sets whether to keep most messages on disk instead of in memory (`x-queue-mode: lazy`). For
    /// classic queues before RabbitMQ 3.12; since then, all classic queues do so.
    ///
    /// The argument has no effect on later versions, and the release notes of RabbitMQ 4.3 say that
    /// such a declaration fails. RabbitMQ 4.3.6 still accepts it. Quorum queues and streams refuse
    /// it (406).
    #[must_use]
    pub fn lazy(mut self, lazy: bool) -> Self {
        if lazy {
            return self.argument("x-queue-mode", "lazy");
        }
        self.arguments.remove("x-queue-mode");
        self
    }

    arguments! {
        /// Sets all arguments. Replaces arguments that were set before, including the type that
        /// [`quorum`](Self::quorum) and [`stream`](Self::stream) set.
    }
}

/// How to delete a queue. By default, its messages and consumers are deleted with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueDeleteOptions {
    pub(crate) if_unused: bool,
    pub(crate) if_empty: bool,
}

impl QueueDeleteOptions {
    setters! {
        /// Whether to delete the queue only if it has no consumers; otherwise the broker refuses
        /// (406). Default: false.
        if_unused: bool;
        /// Whether to delete the queue only if it has no messages; otherwise the broker refuses
        /// (406). Default: false.
        if_empty: bool;
    }
}
