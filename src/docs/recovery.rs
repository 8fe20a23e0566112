//! How a lost connection comes back, what is reported, and what to set.
//!
//! A connection is lost when its socket breaks, when heartbeats are missing, or when the broker
//! closes it. Only the program's own [`close`](crate::Connection::close) is not a loss. This crate
//! then opens the connection again. Every handle stays valid, and calls wait until the connection
//! is back, up to their timeouts.
//!
//! # What comes back, and in which order
//!
//! 1. **The socket.** The first attempt follows after
//!    [`first_delay`](crate::RecoveryOptions::first_delay), later attempts after growing delays. An
//!    attempt begins with the endpoint that worked last, then tries the others. It calls the
//!    program's [`credentials`](crate::ConnectionOptions::credentials) function, if there is one.
//! 2. **Exchanges and queues** that this connection has declared and not deleted. If the broker had
//!    named a queue and that queue is gone, the new queue gets a new name; handles, bindings and
//!    consumers learn it. Recovery waits up to a second for an exclusive queue that the broker
//!    still holds for the lost connection.
//! 3. **Channels**, with their number, prefetch and mode, **and consumers**. If a declaration of
//!    step 2 has no reply after 300 ms, the consumers that do not need it begin meanwhile. The
//!    broker delivers unacknowledged messages again, with
//!    [`redelivered`](crate::Delivery::redelivered) set.
//! 4. **Bindings.** They follow the consumers because RabbitMQ 4.3 does not answer a binding while
//!    a majority of its nodes is away, even if the binding exists.
//! 5. **Unconfirmed messages** of each [`Publisher`](crate::Publisher) are published again, in
//!    their order and before newer messages.
//!
//! Then calls and publishes go on, and the connection reports [`Recovered`].
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
//! | [`NotRecovered`] | An exchange, queue, binding or consumer is missing. All else goes on. |
//! | [`QueueRenamed`] | The broker gave a new name to a queue that it names. |
//! | [`Recovered`] | The end of the outage: calls go on. |
//! | [`RecoveredLater`] | Something that was `NotRecovered` is back. |
//! | [`Closed`] | The end of the connection, with the cause. |
//!
//! A call that waits for its reply at the moment of the loss gets an error.
//! [`Error::may_have_been_sent`](crate::Error::may_have_been_sent) tells whether the broker may
//! have read the request. [`ConnectionStats`](crate::ConnectionStats) counts recoveries, attempts
//! and acknowledgements that were not sent, and tells for how long the connection has been lost.
//!
//! # What is skipped and retried
//!
//! One bad entity does not block the others:
//!
//! - **The broker refuses it**, for example because another program has declared the queue with
//!   other options. The refusal closes a channel, but none of the program's.
//! - **The broker does not reply** within
//!   [`entity_timeout`](crate::RecoveryOptions::entity_timeout), for example for a queue on a node
//!   that is away. Everything else goes on without it.
//! - **The broker closes the connection for it**, for example for a queue type that a new version
//!   denies. Recovery finds the entity by declaring the suspects one at a time. That takes one or
//!   two more attempts.
//!
//! Each one is reported as `NotRecovered`, once, and retried in the background. If the broker did
//! not reply or closed the connection, the retries use a separate connection, whose name ends with
//! `(recovery)`. Their delays grow from 1 second to 5 minutes, and later recoveries skip the entity
//! until a retry succeeds. If the broker refuses a consumer for a permanent reason, such as a
//! missing permission, the consumer ends with that error.
//!
//! A **message** can cost the connection, too. When the broker has closed the connection twice with
//! the same messages unconfirmed, recovery publishes them one at a time until it finds the culprit.
//! That message's [`Confirm`](crate::Confirm) fails with the broker's words. The others are
//! published in their order; consumers see some of them more than once. The search takes at most 15
//! seconds of each outage.
//!
//! # What is given up
//!
//! - The connection, after [`max_attempts`](crate::RecoveryOptions::max_attempts) or
//!   [`max_time`](crate::RecoveryOptions::max_time) (default: never), or when the broker refuses
//!   the login and [`give_up_on_refused_login`](crate::RecoveryOptions::give_up_on_refused_login)
//!   is set. The error is [`RecoveryGivenUp`](crate::ErrorKind::RecoveryGivenUp).
//! - Messages of [`basic_publish`](crate::Channel::basic_publish): they are not published again. In
//!   confirm mode, the unconfirmed ones are reported as lost.
//! - Acknowledgements in flight: the broker delivers those messages again.
//! - Open transactions: the next commit fails.
//! - Channels beyond a lower `channel_max` of the next broker.
//!
//! # What to set
//!
//! **A worker** runs for months and can wait. The defaults fit. Let it wait for a broker that
//! starts later, and give it a name that an operator recognizes:
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
//! **A script** should end with an error soon after it has lost its broker:
//!
//! ```no_run
//! use leveret::{Connection, ConnectionOptions, RecoveryOptions};
//! use std::time::Duration;
//!
//! let recovery = RecoveryOptions::default()
//!     .max_time(Duration::from_secs(30))
//!     .give_up_on_refused_login();
//! let options = ConnectionOptions::default()
//!     .connect_timeout(Duration::from_secs(5))
//!     .recovery(recovery);
//! let connection = Connection::open_with(&options)?;
//! # Ok::<(), leveret::Error>(())
//! ```
//!
//! **A request handler** must answer its own client in time. Let calls fail at once while the
//! connection is away, and keep their timeouts short:
//!
//! ```no_run
//! use leveret::{Connection, ConnectionOptions, RecoveryOptions};
//! use std::time::Duration;
//!
//! let options = ConnectionOptions::default()
//!     .request_timeout(Duration::from_secs(2))
//!     .publish_timeout(Duration::from_secs(2))
//!     .recovery(RecoveryOptions::default().fail_fast());
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
