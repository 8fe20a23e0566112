//! How to declare and delete exchanges.

use crate::wire::value::{FieldTable, FieldValue};

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
