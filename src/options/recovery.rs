//! Options for recovery.

use std::sync::Arc;
use std::time::Duration;

use super::backoff;
use super::by_identity::ByIdentity;
use crate::events::Entity;

type Filter = ByIdentity<dyn Fn(&Entity) -> bool + Send + Sync>;

/// How a lost connection recovers.
///
/// A connection is lost when it ends for any reason but the program's own
/// [`close`](crate::Connection::close). Recovery connects again, trying all endpoints, with growing
/// delays between the attempts. Then it declares again what this connection had declared. Channels
/// keep their number, prefetch and mode, consumers continue, and unconfirmed messages of each
/// [`Publisher`](crate::Publisher) are republished. All handles stay valid.
/// [`Connection::events`](crate::Connection::events) and the log report each step.
///
/// A channel that the broker has closed because of an error stays closed: see
/// [`Channel::reopen`](crate::Channel::reopen).
///
/// Recovery leaves out what this connection has deleted or unbound, and what the broker deletes
/// automatically, such as an auto-delete queue after its last consumer. If a queue that the broker
/// named is gone, its replacement gets a new name. If something cannot be declared again, such as a
/// queue that another connection now has exclusively, recovery reports
/// [`ConnectionEvent::NotRecovered`](crate::ConnectionEvent::NotRecovered), retries it in the
/// background, and continues with the rest.
///
/// ```
/// use leveret::{ConnectionOptions, RecoveryOptions};
/// use std::time::Duration;
///
/// let recovery = RecoveryOptions::default()
///     .max_delay(Duration::from_secs(5))
///     .max_time(Duration::from_secs(600));
/// let options = ConnectionOptions::default().recovery(recovery);
/// ```
///
/// [`docs::recovery`](crate::docs::recovery) says what recovers in which order, what is reported,
/// and which options to set.
///
/// See <https://www.rabbitmq.com/docs/api-guide#recovery>.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RecoveryOptions {
    pub(crate) enabled: bool,
    pub(crate) max_attempts: u32,
    pub(crate) max_time: Duration,
    pub(crate) first_delay: Duration,
    pub(crate) max_delay: Duration,
    pub(crate) entity_timeout: Duration,
    pub(crate) fail_fast: bool,
    pub(crate) give_up_on_refused_login: bool,
    pub(crate) exchanges: bool,
    pub(crate) queues: bool,
    pub(crate) bindings: bool,
    pub(crate) consumers: bool,
    filter: Option<Filter>,
}

impl Default for RecoveryOptions {
    fn default() -> Self {
        Self {
            enabled: true,
            max_attempts: u32::MAX,
            max_time: Duration::MAX,
            first_delay: Duration::from_millis(200),
            max_delay: Duration::from_secs(15),
            entity_timeout: Duration::from_secs(5),
            fail_fast: false,
            give_up_on_refused_login: false,
            exchanges: true,
            queues: true,
            bindings: true,
            consumers: true,
            filter: None,
        }
    }
}

impl RecoveryOptions {
    /// Turns recovery off: a lost connection is closed, and calls on all its handles fail.
    #[must_use]
    pub fn none() -> Self {
        Self::default().enabled(false)
    }

    setters! {
        /// Whether a lost connection recovers. If not, it is closed, and calls on all its handles
        /// fail. Default: true.
        enabled: bool;
        /// Maximum number of failed attempts in a row, after which the connection closes. Default:
        /// no limit.
        max_attempts: u32;
        /// Maximum time that recovery may take, after which the connection closes. The last attempt
        /// may take two more seconds: one to connect, and one to declare. Default: no limit.
        max_time: Duration;
        /// Delay before the first attempt. Each later delay is twice as long. Each delay is
        /// shortened by a random amount of up to a half, so that many programs do not all reconnect
        /// at once. Default: 200 milliseconds.
        first_delay: Duration;
        /// Longest delay between two attempts. Default: 15 seconds.
        max_delay: Duration;
        /// How long recovery waits for the broker's reply to each exchange, queue, binding and
        /// consumer. Default: 5 seconds.
        ///
        /// After that, recovery reports the entity as
        /// [`NotRecovered`](crate::ConnectionEvent::NotRecovered), retries it in the background on
        /// a separate connection, and continues with the rest. Use less than 30 seconds: RabbitMQ
        /// does not reply for a queue on a node that is down, and since 4.3 it ends the connection
        /// after 30 seconds without a majority of nodes.
        entity_timeout: Duration;
        /// Whether calls and publishes fail at once during recovery, with
        /// [`ErrorKind::Recovering`](crate::ErrorKind::Recovering). Otherwise they wait for
        /// recovery, up to their timeouts. Default: false.
        fail_fast: bool;
        /// Whether recovery ends when the broker refuses the login. Otherwise a refused login is
        /// just another failed attempt, since brokers refuse every login while their LDAP, HTTP or
        /// OAuth 2 server is down. Default: false.
        give_up_on_refused_login: bool;
        /// Whether to declare exchanges again. Default: true.
        exchanges: bool;
        /// Whether to declare queues again. Default: true.
        queues: bool;
        /// Whether to make bindings again. Default: true.
        bindings: bool;
        /// Whether to resume consumers. Otherwise they end when the connection is lost, and
        /// [`Workers`](crate::Workers) start new ones. Default: true.
        consumers: bool;
    }

    /// Recovers only the entities for which `filter` returns true. The filter runs on a thread of
    /// this crate and may block. Two options with a filter are equal only if one is a clone of the
    /// other.
    #[must_use]
    pub fn filter(mut self, filter: impl Fn(&Entity) -> bool + Send + Sync + 'static) -> Self {
        self.filter = Some(ByIdentity(Arc::new(filter)));
        self
    }

    pub(crate) fn recovers_consumers(&self) -> bool {
        self.enabled && self.consumers
    }

    /// Whether recovery declares this entity again.
    pub(crate) fn wants(&self, entity: &Entity) -> bool {
        let is_wanted = match entity {
            Entity::Exchange { .. } => self.exchanges,
            Entity::Queue { .. } => self.queues,
            Entity::Binding { .. } => self.bindings,
            Entity::Consumer { .. } => self.consumers,
        };
        is_wanted
            && self
                .filter
                .as_ref()
                .map_or(true, |filter| (filter.0)(entity))
    }

    /// The delay before this attempt, counted from 1. `random` is any number.
    pub(crate) fn delay(&self, attempt: u32, random: u64) -> Duration {
        backoff::delay(self.first_delay, self.max_delay, attempt, random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_their_limit_and_keep_at_least_a_half() {
        let options = RecoveryOptions::default();
        for (attempt, most) in [(1, 200), (2, 400), (3, 800), (7, 12_800), (8, 15_000)] {
            let most = Duration::from_millis(most);
            assert_eq!(options.delay(attempt, 0), most / 2);
            let long = options.delay(attempt, u64::MAX);
            assert!(long > most * 9 / 10 && long < most, "{long:?}");
        }
        for attempt in [31, 32, 33, 1000, u32::MAX] {
            assert_eq!(options.delay(attempt, 0), options.max_delay / 2);
            let at_once = RecoveryOptions::default().first_delay(Duration::ZERO);
            assert_eq!(at_once.delay(attempt, u64::MAX), Duration::ZERO);
        }
    }
}
