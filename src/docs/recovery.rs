//! How a lost connection recovers, what is reported, and which options to set.
//!
//! A connection is lost when its socket breaks, when heartbeats are missing, or when the broker
//! closes it, but not when the program calls [`close`](crate::Connection::close). This crate then
//! connects again. Every handle stays valid, and calls wait up to their timeouts until the
//! connection is back.
//!
//! # What recovers, and in which order
//!
//! 1. **The socket.** The first attempt follows after
//!    [`first_delay`](crate::RecoveryOptions::first_delay), later attempts after growing delays. An
//!    attempt begins with the endpoint that worked last, then tries the others. It calls the
//!    program's [`credentials`](crate::ConnectionOptions::credentials) function, if there is one.
//! 2. **Exchanges and queues** that this connection has declared and not deleted. If a queue that
//!    the broker named is gone, its replacement gets a new name, which all handles, bindings and
//!    consumers then use. Recovery waits up to a second for an exclusive queue that the broker
//!    still holds for the lost connection.
//! 3. **Channels**, with their number, prefetch and mode, **and consumers**. If a declaration of
//!    step 2 has no reply after 300 ms, consumers that do not depend on it start in the meantime.
//!    The broker redelivers unacknowledged messages, with
//!    [`redelivered`](crate::Delivery::redelivered) set.
//! 4. **Bindings.** They follow the consumers because RabbitMQ 4.3 does not answer a binding while
//!    a majority of its nodes is down, even if the binding exists.
//! 5. **Unconfirmed messages** of each [`Publisher`](crate::Publisher) are republished, in order
//!    and before newer messages.
//!
//! Then calls and publishes continue, and the connection reports [`Recovered`].
//!
//! A channel that the broker closes because of an error is not a loss of the connection. It stays
//! closed: see [`Channel::reopen`](crate::Channel::reopen). [`Workers`](crate::Workers) open
//! another channel themselves.
//!
//! # What is reported
//!
//! [`Connection::events`](crate::Connection::events) and the log report each step. Each log line
//! begins with the connection's name.
//!
//! | event | meaning |
//! | --- | --- |
//! | [`Lost`] | Once for each outage, with the cause. |
//! | [`RecoveryFailed`] | An attempt failed; the next one follows after `next`. |
//! | [`NotRecovered`] | An exchange, queue, binding or consumer is missing. Everything else continues. |
//! | [`QueueRenamed`] | A queue that the broker named has a new name. |
//! | [`Recovered`] | The end of the outage: calls continue. |
//! | [`RecoveredLater`] | Something that was `NotRecovered` is back. |
//! | [`Closed`] | The end of the connection, with the cause. |
//!
//! A call that is waiting for its reply when the connection is lost fails.
//! [`Error::may_have_been_sent`](crate::Error::may_have_been_sent) tells whether the broker may
//! have read the request. [`ConnectionStats`](crate::ConnectionStats) counts recoveries, attempts
//! and acknowledgements that were not sent, and says how long the connection has been lost.
//!
//! # What is skipped and retried
//!
//! One bad entity does not block the others:
//!
//! - **The broker refuses it**, for example because another program has declared the queue with
//!   other options. The refusal closes none of the program's channels.
//! - **The broker does not reply** within
//!   [`entity_timeout`](crate::RecoveryOptions::entity_timeout), for example for a queue on a node
//!   that is down. Everything else continues without it.
//! - **The broker closes the connection because of it**, for example for a queue type that a new
//!   version denies. Recovery finds the entity by declaring the suspects one at a time, which takes
//!   one or two more attempts.
//!
//! Recovery reports each such entity once as `NotRecovered`, and retries it in the background. If
//! the broker did not reply or closed the connection, the retries use a separate connection, whose
//! name ends with `(recovery)`. Their delays grow from 1 second to 5 minutes, and later recoveries
//! skip the entity until a retry succeeds. If the broker refuses a consumer for a permanent reason,
//! such as a missing permission, the consumer ends with that error.
//!
//! A **message** can also make the broker close the connection. When that has happened twice with
//! the same messages unconfirmed, recovery publishes these messages one at a time until it finds
//! the culprit. That message's [`Confirm`](crate::Confirm) fails with the broker's text. The others
//! are published in order; consumers see some of them more than once. The search takes at most 15
//! seconds of each outage.
//!
//! # What is given up
//!
//! - The connection, after [`max_attempts`](crate::RecoveryOptions::max_attempts) or
//!   [`max_time`](crate::RecoveryOptions::max_time) (default: never), or when the broker refuses
//!   the login and [`give_up_on_refused_login`](crate::RecoveryOptions::give_up_on_refused_login)
//!   is set. The error is [`RecoveryGivenUp`](crate::ErrorKind::RecoveryGivenUp).
//! - Messages of [`basic_publish`](crate::Channel::basic_publish): they are not republished. In
//!   confirm mode, the unconfirmed ones are reported as lost.
//! - Acknowledgements in flight: the broker redelivers those messages.
//! - Open transactions: the next commit fails.
//! - Channels whose numbers exceed a lower `channel_max` of the next broker.
//!
//! # What to set
//!
//! **A worker** runs for months and can wait, so the defaults fit. Let it wait for a broker that
//! starts later, and give its connection a name that an operator recognizes:
//!
//! ```no_run
//! use leveret::{Connection, ConnectionOptions};
//! use std::time::Duration;
//!
//! let options = ConnectionOptions::from_uri("amqp://rabbit-1,rabbit-2")?
//!     .connection_name("billing worker")
//!     .retry_open_for(Duration::from_secs(300));
//! let connection = Connection::open_with(&options)?;
//! # Ok::<(), leveret::Error>(())
//! ```
//!
//! **A script** should fail soon after it has lost its broker:
//!
//! ```no_run
//! use leveret::{Connection, ConnectionOptions, RecoveryOptions};
//! use std::time::Duration;
//!
//! let recovery = RecoveryOptions::default()
//!     .max_time(Duration::from_secs(30))
//!     .give_up_on_refused_login(true);
//! let options = ConnectionOptions::default()
//!     .connect_timeout(Duration::from_secs(5))
//!     .recovery(recovery);
//! let connection = Connection::open_with(&options)?;
//! # Ok::<(), leveret::Error>(())
//! ```
//!
//! **A request handler** must answer its own client in time. Let calls fail at once while the
//! connection is lost, and keep their timeouts short:
//!
//! ```no_run
//! use leveret::{Connection, ConnectionOptions, RecoveryOptions};
//! use std::time::Duration;
//!
//! let options = ConnectionOptions::default()
//!     .request_timeout(Duration::from_secs(2))
//!     .publish_timeout(Duration::from_secs(2))
//!     .recovery(RecoveryOptions::default().fail_fast(true));
//! let connection = Connection::open_with(&options)?;
//! # Ok::<(), leveret::Error>(())
//! ```
//!
//! See <https://www.rabbitmq.com/docs/reliability>.
//!
//! [`Closed`]: crate::ConnectionEvent::Closed
//! [`Lost`]: crate::ConnectionEvent::Lost
//! [`NotRecovered`]: crate::ConnectionEvent::NotRecovered
//! [`QueueRenamed`]: crate::ConnectionEvent::QueueRenamed
//! [`Recovered`]: crate::ConnectionEvent::Recovered
//! [`RecoveredLater`]: crate::ConnectionEvent::RecoveredLater
//! [`RecoveryFailed`]: crate::ConnectionEvent::RecoveryFailed
