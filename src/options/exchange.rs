//! Options for declaring and deleting exchanges.

use crate::wire::value::{FieldTable, FieldValue};

/// The message property that a consistent-hash exchange hashes.
///
/// See [`ExchangeKind::ConsistentHash`](crate::ExchangeKind::ConsistentHash).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HashProperty {
    /// `message_id`.
    MessageId,
    /// `correlation_id`.
    CorrelationId,
    /// `timestamp`, in seconds.
    Timestamp,
}

impl From<HashProperty> for FieldValue {
    fn from(property: HashProperty) -> Self {
        Self::from(match property {
            HashProperty::MessageId => "message_id",
            HashProperty::CorrelationId => "correlation_id",
            HashProperty::Timestamp => "timestamp",
        })
    }
}

/// How to declare an exchange.
///
/// The default is a transient exchange, which does not survive a restart of the broker.
///
/// See <https://www.rabbitmq.com/docs/exchanges>.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ExchangeDeclareOptions {
    pub(crate) passive: bool,
    pub(crate) durable: bool,
    pub(crate) auto_delete: bool,
    pub(crate) internal: bool,
    pub(crate) no_wait: bool,
    pub(crate) arguments: FieldTable,
}

impl ExchangeDeclareOptions {
    /// Declares an exchange that survives a restart of the broker.
    pub fn durable() -> Self {
        Self {
            durable: true,
            ..Self::default()
        }
    }

    /// Checks that an exchange exists, and declares nothing. If the exchange does not exist, the
    /// call fails, and the broker closes the channel (404).
    pub fn passive() -> Self {
        Self {
            passive: true,
            ..Self::default()
        }
    }

    flags! {
        /// Lets the broker delete the exchange after its last binding is removed.
        auto_delete;
        /// Accepts messages only from exchanges that it is bound to, not from publishers.
        internal;
        /// Returns without waiting for the broker's reply. If the broker refuses, it closes the
        /// channel, and the next call on the channel fails.
        no_wait;
    }

    typed_arguments! {
        /// Exchange for messages that this exchange cannot route (`alternate-exchange`).
        alternate_exchange(exchange: &str) => "alternate-exchange": exchange;
        /// Message header to hash instead of the routing key (`hash-header`). For
        /// [`ExchangeKind::ConsistentHash`](crate::ExchangeKind::ConsistentHash); other kinds
        /// ignore it.
        hash_header(header: &str) => "hash-header": header;
        /// Message property to hash instead of the routing key (`hash-property`). The broker
        /// refuses this together with [`hash_header`](Self::hash_header) (406). For
        /// [`ExchangeKind::ConsistentHash`](crate::ExchangeKind::ConsistentHash); other kinds
        /// ignore it.
        hash_property(property: HashProperty) => "hash-property": property;
        /// Number of messages that the exchange keeps for queues that are bound later
        /// (`x-recent-history-length`), at least one. Default: 20. For
        /// [`ExchangeKind::RecentHistory`](crate::ExchangeKind::RecentHistory); other kinds ignore
        /// it.
        recent_history_length(messages: u32) => "x-recent-history-length": i64::from(messages);
    }

    arguments! {
        /// Sets all arguments. Replaces arguments that were set before.
    }
}

/// How to delete an exchange. By default, all its bindings are deleted with it.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ExchangeDeleteOptions {
    pub(crate) if_unused: bool,
    pub(crate) no_wait: bool,
}

impl ExchangeDeleteOptions {
    flags! {
        /// Deletes the exchange only if nothing is bound to it; otherwise the broker refuses (406).
        if_unused;
        /// Returns without waiting for the broker's reply.
        no_wait;
    }
}
