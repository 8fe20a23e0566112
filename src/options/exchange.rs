//! How to declare and delete exchanges.

use crate::wire::value::{FieldTable, FieldValue};

/// Which property of a message a consistent-hash exchange hashes.
///
/// See [`ExchangeKind::ConsistentHash`](crate::ExchangeKind::ConsistentHash).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HashProperty {
    /// The message's name.
    MessageId,
    /// The request that the message answers.
    CorrelationId,
    /// When the message was sent, in seconds.
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
/// The default is an exchange that is gone after a restart of the broker.
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
    /// An exchange that survives a restart of the broker.
    pub fn durable() -> Self {
        Self {
            durable: true,
            ..Self::default()
        }
    }

    /// Declares nothing: the call fails if there is no such exchange.
    pub fn passive() -> Self {
        Self {
            passive: true,
            ..Self::default()
        }
    }

    flags! {
        /// The exchange is deleted when its last binding is gone.
        auto_delete;
        /// Nobody can publish to it but other exchanges that are bound to it.
        internal;
        /// Does not wait for the broker. If it refuses, the channel is closed, as the next call on it says.
        no_wait;
    }

    typed_arguments! {
        /// Where messages go for which this exchange has no route (`alternate-exchange`).
        alternate_exchange(exchange: &str) => "alternate-exchange": exchange;
        /// Hashes this header of each message (`hash-header`). Default: the routing key. For
        /// [`ExchangeKind::ConsistentHash`](crate::ExchangeKind::ConsistentHash); other kinds ignore it.
        hash_header(header: &str) => "hash-header": header;
        /// Hashes this property of each message (`hash-property`). Default: the routing key. An
        /// exchange with a [`hash_header`](Self::hash_header), too, is refused (406). For
        /// [`ExchangeKind::ConsistentHash`](crate::ExchangeKind::ConsistentHash); other kinds ignore it.
        hash_property(property: HashProperty) => "hash-property": property;
        /// How many messages the exchange keeps for queues to come (`x-recent-history-length`), at
        /// least one. Default: 20. For
        /// [`ExchangeKind::RecentHistory`](crate::ExchangeKind::RecentHistory); other kinds ignore it.
        recent_history_length(messages: u32) => "x-recent-history-length": i64::from(messages);
    }

    arguments! {
        /// All arguments at once, instead of those that were set before.
    }
}

/// How to delete an exchange. The default deletes it with all its bindings.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ExchangeDeleteOptions {
    pub(crate) if_unused: bool,
    pub(crate) no_wait: bool,
}

impl ExchangeDeleteOptions {
    flags! {
        /// Refused (406) while something is bound to the exchange.
        if_unused;
        /// Does not wait for the broker.
        no_wait;
    }
}
