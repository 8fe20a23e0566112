//! Options for declaring and deleting exchanges.

use std::fmt;
use std::str::FromStr;

use super::unknown_word;
use crate::error::{Error, Result};
use crate::wire::short_string::ShortString;
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

words! {
    HashProperty, "a hash property";
    MessageId => "message_id";
    CorrelationId => "correlation_id";
    Timestamp => "timestamp";
}

/// How to declare an exchange.
///
/// The default is a durable exchange, which survives a restart of the broker.
///
/// ```
/// use leveret::ExchangeDeclareOptions;
///
/// let options = ExchangeDeclareOptions::default().durable(false).auto_delete(true);
/// ```
///
/// See <https://www.rabbitmq.com/docs/exchanges>.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ExchangeDeclareOptions {
    pub(crate) passive: bool,
    pub(crate) durable: bool,
    pub(crate) auto_delete: bool,
    pub(crate) internal: bool,
    pub(crate) arguments: FieldTable,
}

impl Default for ExchangeDeclareOptions {
    fn default() -> Self {
        Self {
            passive: false,
            durable: true,
            auto_delete: false,
            internal: false,
            arguments: FieldTable::new(),
        }
    }
}

impl ExchangeDeclareOptions {
    setters! {
        /// Whether to check that the exchange exists, and declare nothing. The broker ignores the
        /// other options. If the exchange does not exist, the call fails, and the broker closes the
        /// channel (404). Default: false.
        passive: bool;
        /// Whether the exchange survives a restart of the broker. Default: true.
        durable: bool;
        /// Whether the broker deletes the exchange after its last binding is removed. Default:
        /// false.
        auto_delete: bool;
        /// Whether to accept messages only from exchanges that it is bound to, and not from
        /// publishers. Default: false.
        internal: bool;
    }

    typed_arguments! {
        /// Exchange for messages that this exchange cannot route (`alternate-exchange`).
        alternate_exchange(exchange: impl Into<String>) => "alternate-exchange": exchange.into();
        /// Message header to hash instead of the routing key (`hash-header`). For
        /// [`ExchangeKind::ConsistentHash`](crate::ExchangeKind::ConsistentHash); other kinds
        /// ignore it.
        hash_header(header: impl Into<String>) => "hash-header": header.into();
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExchangeDeleteOptions {
    pub(crate) if_unused: bool,
}

impl ExchangeDeleteOptions {
    setters! {
        /// Whether to delete the exchange only if nothing is bound to it; otherwise the broker
        /// refuses (406). Default: false.
        if_unused: bool;
    }
}
