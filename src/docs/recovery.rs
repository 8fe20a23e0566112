//! How a lost connection comes back, what is reported, and what to set.
//!
//! A connection is lost when its socket breaks, when heartbeats are missing, or when the broker
//! closes it. Only the program's own [`close`](crate::Connection::close) is not a loss. The
//! connection then opens again: every handle stays valid, and calls wait until the
//! connection is back, up to their timeouts.
//!
//! # What comes back, and in which order
//!
//! 1. **The socket.** The first attempt follows after
//!    [`first_delay`](crate::RecoveryOptions::first_delay), later ones after growing delays. An
//!    attempt begins with the endpoint that worked last, then tries the others. It asks the function
//!    of [`credentials`](crate::ConnectionOptions::credentials), if there is one.
//! 2. **Exchanges and queues** that this connection has declared and not deleted. A queue that the
//!    broker has named gets a new name if the old queue is gone; handles, bindings and consumers
//!    learn it. For an exclusive queue that the broker still holds for the lost connection, recovery
//!    waits up to a second.
//! 3. **Channels**, with their number, prefetch and mode, **and consumers**. If a declaration of
//!    step 2 has no answer after 300 ms, the consumers that do not need it begin meanwhile. Messages
//!    that were not acknowledged are delivered again, with
//!    [`redelivered`](crate::Delivery::redelivered) set.
//! 4. **Bindings.** They come after the consumers, because RabbitMQ 4.3 does not answer a binding
//!    while a majority of its nodes is away, even if the binding exists.
//! 5. **Messages** of a [`Publisher`](crate::Publisher) that have no confirm are published again, in
//!    their order and before anything newer.
//!
//! Then calls and publishes go on, and [`Recovered`](crate::ConnectionEvent::Recovered) is told.
//!
//! A channel that the broker closes because of an error is not a loss of the connection, and stays
//! closed: see [`Channel::reopen`](crate::Channel::reopen). [`Workers`](crate::Workers) open another
//! one themselves.
//!
//! # What is reported
//!
//! [`Connection::events`](crate::Connection::events), and the log with the name of the connection in
//! each line:
//!
//! | event | meaning |
//! | --- | --- |
//! | [`Lost`](crate::ConnectionEvent::Lost) | Once for each outage, with the cause. |
//! | [`RecoveryFailed`](crate::ConnectionEvent::RecoveryFailed) | An attempt failed; the next one follows after `next`. |
//! | [`NotRecovered`](crate::ConnectionEvent::NotRecovered) | One exchange, queue, binding or consumer could not be brought back. Everything else goes on. |
//! | [`QueueRenamed`](crate::ConnectionEvent::QueueRenamed) | The broker gave a queue that it names a new name. |
//! | [`Recovered`](crate::ConnectionEvent::Recovered) | The end of the outage: calls go on. |
//! | [`RecoveredLater`](crate::ConnectionEvent::RecoveredLater) | Something that was `NotRecovered` is there now. |
//! | [`Closed`](crate::ConnectionEvent::Closed) | The end of the connection, with the cause. |
//!
//! A call that was waiting for its answer at the moment of the loss gets an error;
//! [`Error::may_have_been_sent`](crate::Error::may_have_been_sent) tells whether the broker may have
//! read the request. [`ConnectionStats`](crate::ConnectionStats) counts recoveries, attempts and
//! acknowledgements that were not sent, and tells for how long the connection has been lost.
//!
//! # What is left out, and tried again
//!
//! One bad entity does not take the others with it:
//!
//! - **Refused**, for example because another program has declared the queue otherwise: the channel
//!   that it costs is not one of the program's.
//! - **No answer** within [`entity_timeout`](crate::RecoveryOptions::entity_timeout), for example a
//!   queue on a node that is away: everything else goes on without it.
//! - **The broker closes the connection for it**, for example for a queue type that a new version
//!   denies: recovery finds it by asking for the suspects one at a time. That takes one or two more
//!   attempts.
//!
//! Each is reported as `NotRecovered`, once, and tried again in the background. What has no answer
//! or costs the connection is tried on a connection of its own, whose name ends with `(recovery)`,
//! after delays that grow from 1 second to 5 minutes, and later recoveries leave it out until then.
//! A consumer that the broker refuses for a reason that does not pass, such as a missing permission,
//! ends with that error.
//!
//! A **message** can cost the connection, too. When the broker has closed the connection twice with
//! the same unconfirmed messages, they are published one at a time until the one is found. Its
//! [`Confirm`](crate::Confirm) fails with the broker's words. The others are published in their
//! order; consumers see some of them more than once. The search takes at most 15 seconds of each
//! outage.
//!
//! # What is given up
//!
//! - The connection, after [`max_attempts`](crate::RecoveryOptions::max_attempts) or
//!   [`max_time`](crate::RecoveryOptions::max_time) (default: never), or when a login is refused, if
//!   [`give_up_on_refused_login`](crate::RecoveryOptions::give_up_on_refused_login) is set. The error
//!   is [`RecoveryGivenUp`](crate::ErrorKind::RecoveryGivenUp).
//! - Messages of [`basic_publish`](crate::Channel::basic_publish) without a confirm: they are
//!   reported as lost, not published again.
//! - Acknowledgements that were on their way: the broker delivers those messages again.
//! - Open transactions: the next commit fails.
//! - Channels beyond a lower `channel_max` of the next broker.
//!
//! # What to set
//!
//! **A worker** runs for months and has nothing better to do than wait. The defaults fit. Let it wait
//! for a broker that starts later, and use a name that an operator recognises:
//!
//! ```no_run
//! use leveret::{Connection, ConnectionOptions};
//! use std::time::Duration;
//!
//! let options = ConnectionOptions::from_uri("amqp://rabbit-1,rabbit-2/")?
//!     .connection_name("billing worker")
//!     .retry_open_for(Duration::from_secs(300));
//! let connection = Connection::open_with(&options)?;
//! # Ok::<(), leveret::Error>(())
//! ```
//!
//! **A script** should end with an error soon after its broker is gone:
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
//! **A request handler** must answer its own client in time: let calls fail at once while the
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
