// A broker for tests, independent of the client in this crate. It knows `wire` and `error`, and
// must not know `proto`, `io_thread`, `session` or the handles. `core` holds all state and has no
// socket, thread or clock: `Core::receive` takes bytes, `Core::handle_time` takes the time, and
// bytes come out in each session's `output`. The thread in `server` drives the core: it owns the
// sockets and the clock. A `Broker` locks the core, reads or changes it, and wakes that thread.

//! An in-memory AMQP broker for experiments and for tests of applications. Not for production.
//!
//! The broker runs in the program's process. [`Broker::start`] takes less than a millisecond and
//! needs no installation. The broker listens on a port of the loopback interface, serves any AMQP
//! 0-9-1 client, and behaves like RabbitMQ, with the same codes and texts. It loses everything when
//! the [`Broker`] is dropped. It needs the feature `broker`:
//!
//! ```toml
//! [dev-dependencies]
//! leveret = { version = "0.1", features = ["broker"] }
//! ```
//!
//! ```
//! use leveret::broker::Broker;
//! use leveret::{Connection, QueueDeclareOptions};
//!
//! let broker = Broker::start()?;
//! let channel = Connection::open(&broker.uri())?.open_channel()?;
//! channel.queue_declare("tasks", QueueDeclareOptions::default())?;
//! channel.publisher()?.publish("", "tasks", "work")?.wait()?;
//! assert_eq!(broker.queue("tasks").unwrap().ready, 1);
//! assert_eq!(broker.published()[0].body, b"work");
//! # Ok::<(), leveret::Error>(())
//! ```
//!
//! # Testing your application
//!
//! Start a broker in each test: the tests then run in parallel and share no state. Pass the
//! broker's URI to the application from outside, as in production. Wait for conditions with
//! [`wait_until`](Broker::wait_until) instead of sleeping.
//!
//! In this example a worker must charge every customer, even if the broker restarts midway. The
//! broker then redelivers the messages that the worker was handling, so the worker checks whether
//! it has already charged the customer:
//!
//! ```
//! use leveret::broker::Broker;
//! use leveret::{Connection, Message, QueueDeclareOptions, Result};
//! use leveret::{Settlement, WorkerOptions, Workers};
//! use std::collections::BTreeMap;
//! use std::sync::{Arc, Mutex};
//! use std::time::Duration;
//!
//! const A_WHILE: Duration = Duration::from_secs(10);
//!
//! // ---- the application ----
//!
//! /// How many times each customer was charged.
//! type Charges = Arc<Mutex<BTreeMap<String, u32>>>;
//!
//! fn start_worker(uri: &str, charges: Charges) -> Result<Workers> {
//!     let connection = Connection::open(uri)?;
//!     connection.open_channel()?.queue_declare("charges", QueueDeclareOptions::default())?;
//!     let workers = Workers::new(&connection);
//!     workers.consume_with("charges", WorkerOptions::default().threads(2), move |delivery| {
//!         let customer = String::from_utf8_lossy(delivery.body()).into_owned();
//!         let mut charges = charges.lock().unwrap();
//!         if !delivery.redelivered() || !charges.contains_key(&customer) {
//!             *charges.entry(customer).or_default() += 1;
//!         }
//!         Settlement::Ack
//!     })?;
//!     Ok(workers)
//! }
//!
//! // ---- its test ----
//!
//! let broker = Broker::start()?;
//! let charges = Charges::default();
//! let workers = start_worker(&broker.uri(), Arc::clone(&charges))?;
//! let publisher = Connection::open(&broker.uri())?.open_channel()?.publisher()?;
//! for number in 0..100 {
//!     let message = Message::new(format!("customer {number}")).persistent(true);
//!     publisher.publish("", "charges", message)?.wait()?;
//!     if number == 50 {
//!         broker.restart();
//!     }
//! }
//!
//! let is_done = |broker: &Broker| {
//!     let queue = broker.queue("charges").unwrap();
//!     queue.ready == 0 && queue.unacknowledged == 0 && charges.lock().unwrap().len() == 100
//! };
//! assert!(broker.wait_until(A_WHILE, is_done), "{:?}", broker.queues());
//! workers.shutdown(A_WHILE)?;
//! # Ok::<(), leveret::Error>(())
//! ```
//!
//! Each fault has a method: [`drop_connections`](Broker::drop_connections),
//! [`refuse_connections`](Broker::refuse_connections), [`stop_answering`](Broker::stop_answering),
//! [`stop_heartbeats`](Broker::stop_heartbeats), [`block`](Broker::block),
//! [`nack_next`](Broker::nack_next), [`close_channels`](Broker::close_channels),
//! [`close_connections`](Broker::close_connections), [`delay`](Broker::delay),
//! [`cancel_consumers`](Broker::cancel_consumers),
//! [`time_out_consumers`](Broker::time_out_consumers), [`restart`](Broker::restart).
//!
//! When the broker closes a channel, its consumers can still get messages after the close, as with
//! RabbitMQ. To test this, [stop the broker](Broker::stop_answering), let the client acknowledge a
//! message and cause a channel error on the same channel, then let the broker answer again. The
//! next message then follows the close.
//!
//! # What is different from RabbitMQ
//!
//! This crate's own tests run with both brokers and expect the same results. These differences are
//! intended:
//!
//! | | RabbitMQ | here |
//! | --- | --- | --- |
//! | durable queues, persistent messages | are on disk | survive [`Broker::restart`] |
//! | quorum queues | are replicated | are like classic queues, with `x-delivery-count` and `x-delivery-limit` |
//! | streams | yes | refused: `PRECONDITION_FAILED` |
//! | TLS, clusters, plugins, policies, permissions | yes | no; every user may do everything |
//! | product and version in the server properties | `RabbitMQ` and its version | `leveret` and this crate's version |
//! | largest message | 128 MiB, 16 MiB since 4.0 | 16 MiB |
//! | memory and disk alarms | are raised automatically and sent to publishing connections | are raised only by [`Broker::block`] and sent to all connections |
//! | auto-delete queues whose consumers the broker cancels | are deleted | stay |
//! | deliveries after the broker's `channel.close` | classic queues: up to 200; quorum queues: until close-ok; lost with `no_ack` | until close-ok, up to 200 for each consumer; lost with `no_ack` |
//! | unacknowledged messages of a channel that the broker closes | classic queues: requeued at once; quorum queues: requeued at close-ok | requeued at close-ok |
//! | unknown methods | the socket is closed | 503 `COMMAND_INVALID` |
//! | malformed frames | 501 with an Erlang term as text | 501 with a different text |
//! | a failed login | the socket is closed after some seconds | the socket is closed at once |
//! | confirms | are sent when the message is safe on disk | are sent when the message is in its queues |
//! | consumers that acknowledge too late (`consumer_timeout`) | time out: since 4.3 only on quorum queues; before 4.3 RabbitMQ closes the channel | time out only by [`Broker::time_out_consumers`] |
//! | `basic.cancel-ok` for an unknown consumer | 541 `INTERNAL_ERROR` | is ignored |
//! | transactions | route each message when it is published | route all messages on commit |
//! | replies to direct reply-to | all have the same delivery tag | have increasing delivery tags |
//! | the queue `amq.rabbitmq.reply-to.…` | names an Erlang process | is random |
//! | `x-death` with several older entries | reverses their order each time | keeps their order |
//! | line breaks in names | are removed | are kept |
//! | `x-delivery-limit` below 0 | no limit since 4.0; 3.10 drops requeued messages | no limit |
//! | `x-dead-letter-strategy`, `x-queue-leader-locator`, `x-quorum-initial-group-size` | have an effect | are only checked |
//! | `x-consumer-timeout`, `x-consumer-disconnected-timeout`, `x-delayed-retry-…` | work on quorum queues since 4.3 | are ignored, as before 4.3 |
//! | `x-queue-mode`, `x-queue-version`, `x-stream-offset`, `x-cancel-on-ha-failover` | are checked | are ignored |

mod arguments;
mod channel;
mod connection;
mod core;
mod exchange;
mod message;
mod methods;
mod options;
mod publishing;
mod queue;
mod refusal;
mod server;
mod session;
mod state;
#[cfg(all(test, not(loom)))]
pub(crate) mod stepped;
mod vhost;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, ReplyCode, Result};

pub use options::BrokerOptions;
pub use state::{ConnectionState, PublishedMessage, QueueState};

use self::core::Core;
use server::{Control, Server, Shared};
use session::Slot;

/// Identifies a connection. Ids are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct SessionId(u64);

/// The limit for [`Broker::delay`], so that adding the delay to an `Instant` cannot overflow.
const LONGEST_DELAY: Duration = Duration::from_secs(24 * 60 * 60);

fn cannot_listen(address: SocketAddr, error: io::Error) -> Error {
    Error::new(ErrorKind::ListenFailed {
        address: address.to_string(),
        kind: error.kind(),
        text: error.to_string(),
    })
}

/// A running in-memory broker. Dropping it stops the broker.
pub struct Broker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    address: SocketAddr,
}

impl Broker {
    /// Starts a broker on a free port of the loopback interface.
    ///
    /// # Errors
    /// [`ErrorKind::ListenFailed`] if no port is free, [`ErrorKind::ThreadNotStarted`] if the
    /// system cannot start a thread.
    pub fn start() -> Result<Self> {
        Self::start_with(BrokerOptions::default())
    }

    /// Starts a broker with these options.
    ///
    /// # Errors
    /// [`ErrorKind::ListenFailed`] if the port is in use, [`ErrorKind::ThreadNotStarted`] if the
    /// system cannot start a thread.
    pub fn start_with(options: BrokerOptions) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, options.port));
        let core = Core::new(options.possible(), server::now());
        let bound = Server::bind(core, address);
        let (server, address) = bound.map_err(|error| cannot_listen(address, error))?;
        let shared = server.shared();
        let thread = thread::Builder::new().name("leveret broker".to_owned());
        let thread = thread.spawn(move || server.run()).map_err(|error| {
            let kind = error.kind();
            Error::new(ErrorKind::ThreadNotStarted { kind })
                .caused_by(error)
                .doing("starting a broker")
        })?;
        Ok(Self {
            shared,
            thread: Some(thread),
            address,
        })
    }

    /// Returns the URI with which clients connect as `guest` to the virtual host `/`.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("amqp://guest:guest@{}/%2f", self.address)
    }

    /// Returns the address on which the broker listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn look<T>(&self, look: impl FnOnce(&Core) -> T) -> T {
        look(&self.shared.control.lock().core)
    }

    /// Applies a change, and wakes the broker's thread to act on it.
    fn change<T>(&self, change: impl FnOnce(&mut Control) -> T) -> T {
        let mut control = self.shared.control.lock();
        control.core.now = server::now();
        let changed = change(&mut control);
        drop(control);
        if let Err(error) = self.shared.waker.wake() {
            log::error!("the broker's thread cannot be woken: {error}");
        }
        changed
    }
}

/// # Inspecting the broker
impl Broker {
    /// Returns the state of a queue in the virtual host `/`, or `None` if the queue does not exist.
    #[must_use]
    pub fn queue(&self, name: &str) -> Option<QueueState> {
        self.queue_in("/", name)
    }

    /// Returns the state of a queue, or `None` if the queue does not exist.
    #[must_use]
    pub fn queue_in(&self, vhost: &str, name: &str) -> Option<QueueState> {
        self.look(|core| {
            let (_, queue) = core.vhosts.get(vhost)?.find_queue(name)?;
            Some(queue.state())
        })
    }

    /// Returns the states of all queues in the virtual host `/`, in order of declaration.
    #[must_use]
    pub fn queues(&self) -> Vec<QueueState> {
        self.look(|core| {
            let vhost = core.vhosts.get("/");
            let queues = vhost.into_iter().flat_map(|it| it.queues());
            queues.map(|queue| queue.state()).collect()
        })
    }

    /// Returns the states of all connections, oldest first.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionState> {
        let state = |session: &session::Session| {
            let slots = session.channels.values();
            let is_open = |slot: &&Slot| matches!(slot, Slot::Open(_));
            ConnectionState {
                peer: session.peer,
                name: session.name().map(str::to_owned),
                user: session.user.clone(),
                vhost: session.vhost.clone(),
                channels: slots.clone().filter(is_open).count(),
                unacknowledged: slots.map(|it| it.channel().unacknowledged()).sum(),
            }
        };
        self.look(|core| core.sessions.values().map(|it| state(it)).collect())
    }

    /// Returns the newest published messages of all virtual hosts, newest last.
    ///
    /// Returns at most [`published_limit`](BrokerOptions::published_limit) messages. Dead letters
    /// are not included.
    #[must_use]
    pub fn published(&self) -> Vec<PublishedMessage> {
        self.look(|core| core.published.iter().map(|it| it.state()).collect())
    }

    /// Waits up to `timeout` for `condition` to become true. Returns false on timeout.
    ///
    /// Checks the condition after each change in the broker.
    ///
    /// ```
    /// # use leveret::{broker::Broker, Connection};
    /// use std::time::Duration;
    ///
    /// let broker = Broker::start()?;
    /// let connection = Connection::open(&broker.uri())?;
    /// connection.close()?;
    /// assert!(broker.wait_until(Duration::from_secs(5), |it| it.connections().is_empty()));
    /// # Ok::<(), leveret::Error>(())
    /// ```
    #[allow(clippy::disallowed_methods)] // This is real time for the program.
    pub fn wait_until(&self, timeout: Duration, condition: impl Fn(&Self) -> bool) -> bool {
        let begun = Instant::now();
        loop {
            if condition(self) {
                return true;
            }
            let remaining = timeout.saturating_sub(begun.elapsed());
            if remaining.is_zero() {
                return false;
            }
            // A change between the check and the wait is not notified, so wait only briefly.
            let mut control = self.shared.control.lock();
            let soon = remaining.min(Duration::from_millis(5));
            self.shared.changed.wait_for(&mut control, soon);
        }
    }
}

/// # Injecting faults
impl Broker {
    /// Drops all connections without a close, as if the network had failed.
    pub fn drop_connections(&self) {
        self.change(|control| control.core.disconnect_all());
    }

    /// Closes all connections with `connection.close` and this code and text.
    ///
    /// When an operator closes a connection, the code is
    /// [`CONNECTION_FORCED`](ReplyCode::CONNECTION_FORCED).
    pub fn close_connections(&self, code: ReplyCode, text: &str) {
        self.change(|control| control.core.close_connections(code, text));
    }

    /// Closes all channels with `channel.close` and this code and text.
    ///
    /// Consumers still get messages until the client answers with `channel.close-ok`, as with
    /// RabbitMQ.
    pub fn close_channels(&self, code: ReplyCode, text: &str) {
        self.change(|control| control.core.close_channels(code, text));
    }

    /// Sets whether the broker closes new connections at once. Existing connections stay open.
    pub fn refuse_connections(&self, refuse: bool) {
        self.change(|control| control.refuses = refuse);
    }

    /// Sets whether the broker stops reading, writing and accepting connections, as if it hung.
    ///
    /// When the broker answers again, it first handles what clients sent in the meantime.
    pub fn stop_answering(&self, stop: bool) {
        self.change(|control| {
            control.is_stopped = stop;
            control.core.heard_of_all();
        });
    }

    /// Sets whether the broker stops sending heartbeats. Everything else continues.
    pub fn stop_heartbeats(&self, stop: bool) {
        self.change(|control| control.core.faults.no_heartbeats = stop);
    }

    /// Blocks all connections that publish (`connection.blocked`), and sends the reason to all
    /// clients.
    ///
    /// RabbitMQ's reasons are `low on memory` and `low on disk`.
    pub fn block(&self, reason: &str) {
        self.change(|control| control.core.block(Some(reason.to_owned())));
    }

    /// Ends [`block`](Self::block).
    pub fn unblock(&self) {
        self.change(|control| control.core.block(None));
    }

    /// Nacks the next `count` messages that are published in confirm mode.
    ///
    /// These messages enter no queue, and [`published`](Self::published) does not return them.
    pub fn nack_next(&self, count: u64) {
        self.change(|control| control.core.faults.nacks = count);
    }

    /// Delays everything that the broker sends from now on. Zero ends the delay.
    ///
    /// Output that is already delayed is still sent first. During a delay, clients that do not read
    /// cause no back-pressure: the broker delivers messages into the delayed output.
    pub fn delay(&self, delay: Duration) {
        self.change(|control| control.delay = delay.min(LONGEST_DELAY));
    }

    /// Cancels all consumers of a queue in the virtual host `/`, and returns the number of
    /// consumers.
    ///
    /// RabbitMQ does this when the queue moves to another node.
    #[allow(clippy::must_use_candidate)] // It acts, whatever its count is for.
    pub fn cancel_consumers(&self, queue: &str) -> usize {
        self.change(|control| control.core.cancel_consumers("/", queue))
    }

    /// Times out the consumers of a queue in the virtual host `/` that hold unacknowledged
    /// messages, and returns the number of consumers. The queue can be of any type.
    ///
    /// This is what RabbitMQ 4.3 does with consumers of quorum queues after `consumer_timeout`. The
    /// broker requeues the messages at once, sends `basic.cancel`, and delivers nothing more to the
    /// consumer, whose tag stays in use. What happens then depends on the client:
    ///
    /// - The client sends `basic.cancel` or `basic.cancel-ok` with the tag: the consumer ends, and
    ///   the tag is free.
    /// - The client acknowledges or rejects all the requeued messages late: the broker accepts
    ///   that, although the messages stay in the queue, and the consumer gets messages again. The
    ///   broker also accepts a late request to requeue the last of them, but then the consumer gets
    ///   nothing until the client cancels it.
    /// - The client has not declared the capability `consumer_cancel_notify`: instead of
    ///   `basic.cancel`, the broker sends `channel.close` with 406 `PRECONDITION_FAILED`.
    #[allow(clippy::must_use_candidate)] // It acts, whatever its count is for.
    pub fn time_out_consumers(&self, queue: &str) -> usize {
        self.change(|control| control.core.time_out_consumers("/", queue))
    }

    /// Restarts the broker on the same port.
    ///
    /// Drops all connections. Durable exchanges and queues survive, with the persistent messages in
    /// these queues. Ends all faults, except [`refuse_connections`](Self::refuse_connections),
    /// [`stop_answering`](Self::stop_answering) and [`delay`](Self::delay).
    pub fn restart(&self) {
        self.change(|control| control.core.restart());
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.change(|control| control.is_over = true);
        if let Some(thread) = self.thread.take() {
            // An error means that the thread has panicked, which it has already reported.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Broker");
        shown
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}
