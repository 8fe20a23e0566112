//! How a lost connection comes back.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::backoff;
use crate::events::Entity;

type Filter = Arc<dyn Fn(&Entity) -> bool + Send + Sync>;

/// How a connection that was lost comes back.
///
/// A connection that was open and is lost, for whatever reason but its own [`close`](crate::Connection::close), is opened
/// again: all endpoints are tried, with growing pauses between the attempts. Then everything that was declared through it is
/// declared again, channels get back their number, prefetch and mode, consumers consume on, and what a
/// [`Publisher`](crate::Publisher) had published without an answer is published again. All handles stay valid.
/// [`Connection::events`](crate::Connection::events) and the log tell what happens.
///
/// A channel that the broker has closed because of an error stays closed: see
/// [`Channel::reopen`](crate::Channel::reopen).
///
/// What was declared is what this connection has declared and not deleted or unbound, and what did not go by itself as
/// an auto-delete queue goes with its last consumer. A queue that the broker has named gets another name if it is gone. What
/// cannot be declared again, such as a queue that another connection has for itself by now, is told
/// ([`ConnectionEvent::NotRecovered`](crate::ConnectionEvent::NotRecovered)) and tried again in the background, while all else
/// goes on.
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
/// What comes back in which order, what is reported, and what to set: [`docs::recovery`](crate::docs::recovery).
///
/// See <https://www.rabbitmq.com/docs/api-guide#recovery>.
#[derive(Clone)]
#[non_exhaustive]
pub struct RecoveryOptions {
    pub(crate) is_on: bool,
    pub(crate) max_attempts: u32,
    pub(crate) max_time: Duration,
    pub(crate) first_delay: Duration,
    pub(crate) max_delay: Duration,
    pub(crate) entity_timeout: Duration,
    pub(crate) fail_fast: bool,
    pub(crate) give_up_on_refused_login: bool,
    pub(crate) without_exchanges: bool,
    pub(crate) without_queues: bool,
    pub(crate) without_bindings: bool,
    pub(crate) without_consumers: bool,
    filter: Option<Filter>,
}

impl Default for RecoveryOptions {
    fn default() -> Self {
        Self {
            is_on: true,
            max_attempts: u32::MAX,
            max_time: Duration::MAX,
            first_delay: Duration::from_millis(200),
            max_delay: Duration::from_secs(15),
            entity_timeout: Duration::from_secs(5),
            fail_fast: false,
            give_up_on_refused_login: false,
            without_exchanges: false,
            without_queues: false,
            without_bindings: false,
            without_consumers: false,
            filter: None,
        }
    }
}

impl RecoveryOptions {
    /// No recovery: a lost connection has ended, and all its handles with it.
    pub fn none() -> Self {
        Self {
            is_on: false,
            ..Self::default()
        }
    }

    setters! {
        /// After so many attempts in a row that failed, the connection has ended. Default: no limit.
        max_attempts: u32;
        /// When the connection was away for so long, it has ended. The last attempt may take two seconds beyond it: one to
        /// connect, one for what is declared again. Default: no limit.
        max_time: Duration;
        /// How long to wait before the first attempt. Each further one waits twice as long. From each delay up to a half
        /// is taken at random, so that many programs do not all come back at once. Default: 200 milliseconds.
        first_delay: Duration;
        /// The longest delay between two attempts. Default: 15 seconds.
        max_delay: Duration;
        /// How long recovery waits for the broker's answer to each exchange, queue, binding and
        /// consumer. Without an answer, it is reported as
        /// [`NotRecovered`](crate::ConnectionEvent::NotRecovered) and tried again in the background
        /// on a connection of its own, and everything else goes on. RabbitMQ does not answer for a
        /// queue on a node that is away, and since 4.3 it ends the connection after 30 seconds
        /// without a majority of nodes: use less. Default: 5 seconds.
        entity_timeout: Duration;
    }

    flags! {
        /// Calls and publishes that are made while the connection is being recovered fail at once, with
        /// [`ErrorKind::Recovering`](crate::ErrorKind::Recovering). Otherwise they wait for it, up to their timeouts.
        fail_fast;
        /// A login that is refused ends the recovery. Otherwise it counts as one more failed
        /// attempt, since brokers refuse every login while their LDAP, HTTP or OAuth 2 server is
        /// down.
        give_up_on_refused_login;
        /// Exchanges are not declared again.
        without_exchanges;
        /// Queues are not declared again.
        without_queues;
        /// Bindings are not made again.
        without_bindings;
        /// Consumers do not consume on: they end when the connection is lost. [`Workers`](crate::Workers) begin others.
        without_consumers;
    }

    /// Only what this says yes to is declared again. It is called on a thread of this crate, and may take its time.
    #[must_use]
    pub fn filter(mut self, filter: impl Fn(&Entity) -> bool + Send + Sync + 'static) -> Self {
        self.filter = Some(Arc::new(filter));
        self
    }

    pub(crate) fn recovers_consumers(&self) -> bool {
        self.is_on && !self.without_consumers
    }

    /// Whether this is to be declared again.
    pub(crate) fn wants(&self, entity: &Entity) -> bool {
        let left_out = match entity {
            Entity::Exchange { .. } => self.without_exchanges,
            Entity::Queue { .. } => self.without_queues,
            Entity::Binding { .. } => self.without_bindings,
            Entity::Consumer { .. } => self.without_consumers,
        };
        !left_out && self.filter.as_ref().map_or(true, |filter| filter(entity))
    }

    /// How long to wait before this attempt, counted from 1. `random` is anything.
    pub(crate) fn delay(&self, attempt: u32, random: u64) -> Duration {
        backoff::delay(self.first_delay, self.max_delay, attempt, random)
    }
}

impl fmt::Debug for RecoveryOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecoveryOptions")
            .field("is_on", &self.is_on)
            .field("max_attempts", &self.max_attempts)
            .field("max_time", &self.max_time)
            .field("first_delay", &self.first_delay)
            .field("max_delay", &self.max_delay)
            .field("entity_timeout", &self.entity_timeout)
            .field("fail_fast", &self.fail_fast)
            .field("give_up_on_refused_login", &self.give_up_on_refused_login)
            .field("without_exchanges", &self.without_exchanges)
            .field("without_queues", &self.without_queues)
            .field("without_bindings", &self.without_bindings)
            .field("without_consumers", &self.without_consumers)
            .field("filter", &self.filter.as_ref().map(|_| "…"))
            .finish()
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
