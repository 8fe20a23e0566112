//! Options of connections, declarations and calls: structs with defaults and chained setters.

use std::time::Duration;

use crate::error::Error;

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $type:ty;)*) => {
        $(
            $(#[$doc])*
            #[must_use]
            pub fn $name(mut self, $name: $type) -> Self {
                self.$name = $name.into();
                self
            }
        )*
    };
}

macro_rules! arguments {
    ($(#[$doc:meta])*) => {
        $(#[$doc])*
        #[must_use]
        pub fn arguments(mut self, arguments: impl Into<FieldTable>) -> Self {
            self.arguments = arguments.into();
            self
        }

        /// Adds one argument.
        #[must_use]
        pub fn argument(
            mut self,
            name: impl Into<ShortString>,
            value: impl Into<FieldValue>,
        ) -> Self {
            self.arguments.insert(name, value);
            self
        }
    };
}

/// Typed setters for RabbitMQ's arguments, so that programs need neither the `x-…` names nor the
/// types of the values.
macro_rules! typed_arguments {
    ($($(#[$doc:meta])* $name:ident($value:ident: $type:ty) => $argument:literal: $sent:expr;)*) => {
        $(
            $(#[$doc])*
            #[must_use]
            pub fn $name(self, $value: $type) -> Self {
                self.argument($argument, $sent)
            }
        )*
    };
}

/// RabbitMQ's words for the values of an argument.
macro_rules! words {
    ($type:ident, $what:literal; $($variant:ident => $word:literal;)*) => {
        impl $type {
            /// Returns RabbitMQ's word for this value, as in an argument or a policy.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        /// Reads RabbitMQ's word, for example from a configuration file.
        impl FromStr for $type {
            type Err = Error;

            fn from_str(word: &str) -> Result<Self> {
                match word {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(unknown_word($what, word, &[$($word),*])),
                }
            }
        }

        impl From<$type> for FieldValue {
            fn from(value: $type) -> Self {
                Self::from(value.as_str())
            }
        }
    };
}

fn unknown_word(what: &str, word: &str, words: &[&str]) -> Error {
    Error::invalid(format!("{word:?} is not {what}: use one of {words:?}"))
}

/// Typed setters for arguments that are either `true` or not set.
macro_rules! argument_switches {
    ($($(#[$doc:meta])* $name:ident => $argument:literal;)*) => {
        $(
            $(#[$doc])*
            #[must_use]
            pub fn $name(mut self, $name: bool) -> Self {
                if $name {
                    return self.argument($argument, true);
                }
                // The broker can refuse an argument that another declaration leaves out (406).
                self.arguments.remove($argument);
                self
            }
        )*
    };
}

/// RabbitMQ's numbers are signed. Larger values cannot be reached, or are refused (406).
fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Whole milliseconds, rounded up, since zero often has a special meaning.
fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX)
}

/// Whole seconds, rounded up.
fn seconds(duration: Duration) -> u64 {
    let part = u64::from(duration.subsec_nanos() > 0);
    duration.as_secs().saturating_add(part)
}

pub(crate) mod backoff;
mod by_identity;
mod connection;
mod consume;
mod credentials;
mod exchange;
mod publisher;
mod queue;
mod recovery;
pub(crate) mod retry;
mod tls;
mod uri;
mod worker;

pub(crate) use connection::Endpoint;
pub use connection::{ConnectionOptions, LoginMethod};
pub(crate) use consume::before_now;
pub use consume::{AckMode, ConsumeOptions, NackOptions, QosOptions, Requeue, StreamOffset};
pub use credentials::Credentials;
pub use exchange::{ExchangeDeclareOptions, ExchangeDeleteOptions, HashProperty};
pub use publisher::PublisherOptions;
pub use queue::{
    DeadLetterStrategy, DelayedRetry, LeaderLocator, Overflow, QueueDeclareOptions,
    QueueDeleteOptions, QueueType,
};
pub use recovery::RecoveryOptions;
pub use retry::Retry;
pub(crate) use retry::RetryDelay;
#[cfg(not(any(feature = "native-tls", feature = "rustls")))]
pub(crate) use tls::no_tls;
pub use tls::TlsOptions;
pub(crate) use tls::{Identity, Source};
pub(crate) use worker::CircuitBreaker;
pub use worker::{OnConsumerEnd, OnFailure, WorkerOptions};
