//! A broker in the program itself: to try things out, and for the tests of applications. No production broker.
//!
//! [`Broker::start`] takes less than a millisecond and needs nothing to be installed. It speaks AMQP 0-9-1 on a port of the loopback
//! interface, to any client, and does what RabbitMQ does, with the same codes and texts. All is kept in memory, and is gone
//! with the value. It is behind the feature `broker`:
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
//! channel.queue_declare("tasks", QueueDeclareOptions::durable())?;
//! channel.publisher()?.publish("", "tasks", "work")?.wait()?;
//! assert_eq!(broker.queue("tasks").unwrap().ready, 1);
//! assert_eq!(broker.published()[0].body, b"work");
//! # Ok::<(), leveret::Error>(())
//! ```
//!
//! # Testing your application
//!
//! Give each test a broker of its own: then tests run beside each other, and none finds what another one has left. Let the
//! application have its URI from outside, as it has in production. To wait for something, use
//! [`wait_until`](Broker::wait_until) instead of sleeping.
//!
//! Here a worker has to charge each customer, also when the broker goes away in the middle. A message that was being worked on
//! then comes again, so the worker looks whether it has done it already:
//!
//! ```
//! use leveret::broker::Broker;
//! use leveret::{Connection, Message, QueueDeclareOptions, Result, Settlement, WorkerOptions, Workers};
//! use std::collections::BTreeMap;
//! use std::sync::{Arc, Mutex};
//! use std::time::Duration;
//!
//! const A_WHILE: Duration = Duration::from_secs(10);
//!
//! // ---- the application ----
//!
//! /// Which customer was charged how often.
//! type Charges = Arc<Mutex<BTreeMap<String, u32>>>;
//!
//! fn start_worker(uri: &str, charges: Charges) -> Result<Workers> {
//!     let connection = Connection::open(uri)?;
//!     connection.open_channel()?.queue_declare("charges", QueueDeclareOptions::durable())?;
//!     let workers = Workers::new(&connection);
//!     workers.consume("charges", WorkerOptions::default().threads(2), move |delivery| {
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
//!     let message = Message::new(format!("customer {number}")).persistent();
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
//! Other faults, one method each: [`drop_connections`](Broker::drop_connections),
//! [`refuse_connections`](Broker::refuse_connections), [`stop_answering`](Broker::stop_answering),
//! [`stop_heartbeats`](Broker::stop_heartbeats), [`block`](Broker::block), [`nack_next`](Broker::nack_next),
//! [`close_channels`](Broker::close_channels), [`close_connections`](Broker::close_connections), [`delay`](Broker::delay),
//! [`cancel_consumers`](Broker::cancel_consumers), [`time_out_consumers`](Broker::time_out_consumers),
//! [`restart`](Broker::restart).
//!
//! When the broker closes a channel, its consumers can still get messages after the close, as with
//! RabbitMQ. To test that: [stop the broker](Broker::stop_answering), let the client acknowledge a
//! message and make a mistake on the same channel, and let the broker answer again. The next message
//! then follows the close.
//!
//! # What is different from RabbitMQ
//!
//! This crate's own tests run with both and expect the same. But on purpose:
//!
//! | | RabbitMQ | here |
//! | --- | --- | --- |
//! | durable, persistent | on disk | for [`Broker::restart`] |
//! | quorum queues | replicated | as classic ones, with `x-delivery-count` and `x-delivery-limit` |
//! | streams | yes | refused: `PRECONDITION_FAILED` |
//! | TLS, clusters, plugins, policies, permissions | yes | no; every user may do everything |
//! | product and version it names | `RabbitMQ`, its own | `leveret`, this crate's |
//! | largest message | 128 MiB, 16 MiB since 4.0 | 16 MiB |
//! | memory and disk alarms | by themselves, told to those who publish | only by [`Broker::block`], told to all |
//! | auto-delete queues whose consumers the broker cancels | go | stay |
//! | deliveries after its `channel.close` | classic queues: up to 200; quorum queues: until close-ok; lost with `no_ack` | until close-ok, up to 200 for each consumer; lost with `no_ack` |
//! | unacknowledged messages of a channel that it closes | classic queues: requeued at once; quorum queues: at close-ok | requeued at close-ok |
//! | unknown methods | the socket is closed | 503 `COMMAND_INVALID` |
//! | malformed frames | 501, in Erlang's words | 501, in words of its own |
//! | a failed login | the socket is closed after some seconds | at once |
//! | confirms | when it is safe on disk | when it is in its queues |
//! | consumers that acknowledge too late (`consumer_timeout`) | time out: since 4.3 only those of quorum queues, before at the cost of the channel | time out only by [`Broker::time_out_consumers`] |
//! | `basic.cancel-ok` for an unknown consumer | 541 `INTERNAL_ERROR` | is ignored |
//! | transactions | route when a message is published | when they are committed |
//! | answers to direct reply-to | all have the same delivery tag | are counted |
//! | the queue `amq.rabbitmq.reply-to.…` | names an Erlang process | is random |
//! | `x-death` with several older entries | turns their order round each time | keeps it |
//! | names with line breaks | lose them | keep them |
//! | `x-delivery-limit` below 0 | no limit since 4.0; 3.10 drops what is returned | no limit |
//! | `x-dead-letter-strategy`, `x-queue-leader-locator`, `x-quorum-initial-group-size` | have an effect | values are checked |
//! | `x-consumer-timeout`, `x-consumer-disconnected-timeout`, `x-delayed-retry-…` | quorum queues have them since 4.3 | are ignored, as before 4.3 |
//! | `x-queue-mode`, `x-queue-version`, `x-stream-offset`, `x-cancel-on-ha-failover` | values are checked | are ignored |

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

/// Of a connection, and of no other later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct SessionId(u64);

/// Longer than any test.
const LONGEST_DELAY: Duration = Duration::from_secs(24 * 60 * 60);

fn cannot_listen(address: SocketAddr, error: io::Error) -> Error {
    Error::new(ErrorKind::ListenFailed {
        address: address.to_string(),
        kind: error.kind(),
        text: error.to_string(),
    })
}

/// A broker that ends with this value.
pub struct Broker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    address: SocketAddr,
}

impl Broker {
    /// Starts one, with a port of its own.
    ///
    /// # Errors
    /// [`ErrorKind::ListenFailed`] if no port is free, [`ErrorKind::ThreadNotStarted`] if the system
    /// starts no thread.
    pub fn start() -> Result<Self> {
        Self::start_with(BrokerOptions::default())
    }

    /// Starts one that is as the options say.
    ///
    /// # Errors
    /// [`ErrorKind::ListenFailed`] if the port is in use, [`ErrorKind::ThreadNotStarted`] if the system
    /// starts no thread.
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

    /// Where clients connect: as `guest`, to the virtual host `/`.
    pub fn uri(&self) -> String {
        format!("amqp://guest:guest@{}/%2f", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn look<T>(&self, look: impl FnOnce(&Core) -> T) -> T {
        look(&self.shared.control.lock().core)
    }

    /// Changes something, and lets the thread see to it.
    fn change<T>(&self, change: impl FnOnce(&mut Control) -> T) -> T {
        let mut control = self.shared.control.lock();
        control.core.now = server::now();
        let changed = change(&mut control);
        drop(control);
        if let Err(error) = self.shared.waker.wake() {
            log::error!("the broker cannot be woken: {error}");
        }
        changed
    }
}

/// # Looking inside
impl Broker {
    /// The queue of that name in the virtual host `/`, if it is there.
    pub fn queue(&self, name: &str) -> Option<QueueState> {
        self.queue_in("/", name)
    }

    /// The queue of that name in that virtual host, if it is there.
    pub fn queue_in(&self, vhost: &str, name: &str) -> Option<QueueState> {
        self.look(|core| {
            let (_, queue) = core.vhosts.get(vhost)?.find_queue(name)?;
            Some(queue.state())
        })
    }

    /// All queues of the virtual host `/`, in the order in which they were declared.
    pub fn queues(&self) -> Vec<QueueState> {
        self.look(|core| {
            let vhost = core.vhosts.get("/");
            let queues = vhost.into_iter().flat_map(|it| it.queues());
            queues.map(|queue| queue.state()).collect()
        })
    }

    /// All connections, the oldest first.
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

    /// What was published, the newest last; of all virtual hosts, and as many as
    /// [`published_limit`](BrokerOptions::published_limit) says. Dead letters are not among them.
    pub fn published(&self) -> Vec<PublishedMessage> {
        self.look(|core| core.published.iter().map(|it| it.state()).collect())
    }

    /// Waits until the broker is as it shall be, and looks after everything that happens. False if that takes longer than
    /// `timeout`.
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
            // Something can happen between the look and the wait: so not for long.
            let mut control = self.shared.control.lock();
            let soon = remaining.min(Duration::from_millis(5));
            self.shared.changed.wait_for(&mut control, soon);
        }
    }
}

/// # Faults on demand
impl Broker {
    /// Cuts all connections, as if the network had.
    pub fn drop_connections(&self) {
        self.change(|control| control.core.disconnect_all());
    }

    /// Closes all connections in good order, with a code and a text: `connection.close`. An operator's code is
    /// [`CONNECTION_FORCED`](ReplyCode::CONNECTION_FORCED).
    pub fn close_connections(&self, code: ReplyCode, text: &str) {
        self.change(|control| control.core.close_connections(code, text));
    }

    /// Closes all channels, with a code and a text: `channel.close`.
    ///
    /// Consumers still get messages until the client answers with `channel.close-ok`, as with RabbitMQ.
    pub fn close_channels(&self, code: ReplyCode, text: &str) {
        self.change(|control| control.core.close_channels(code, text));
    }

    /// Whether new connections are closed at once. Those that are there stay.
    pub fn refuse_connections(&self, refuse: bool) {
        self.change(|control| control.refuses = refuse);
    }

    /// Whether nothing is read, written or accepted any more, as if the broker hung. What was sent to it meanwhile is worked on
    /// afterwards.
    pub fn stop_answering(&self, stop: bool) {
        self.change(|control| {
            control.is_stopped = stop;
            control.core.heard_of_all();
        });
    }

    /// Whether no heartbeats are sent any more. All else goes on.
    pub fn stop_heartbeats(&self, stop: bool) {
        self.change(|control| control.core.faults.no_heartbeats = stop);
    }

    /// Blocks all connections that publish, and tells all clients why; RabbitMQ's reasons are `low on memory` and `low on disk`.
    pub fn block(&self, reason: &str) {
        self.change(|control| control.core.block(Some(reason.to_owned())));
    }

    /// The end of [`block`](Self::block).
    pub fn unblock(&self) {
        self.change(|control| control.core.block(None));
    }

    /// Refuses so many of the next messages that are published in confirm mode: `basic.nack`. They go into no
    /// queue, and are not among [`published`](Self::published).
    pub fn nack_next(&self, count: u64) {
        self.change(|control| control.core.faults.nacks = count);
    }

    /// From now on, everything that the broker says takes so much longer. Zero is the end of it, for what
    /// is said then; what is delayed already still goes first. Queues are emptied into what is delayed, whoever reads it.
    pub fn delay(&self, delay: Duration) {
        self.change(|control| control.delay = delay.min(LONGEST_DELAY));
    }

    /// Cancels all consumers of a queue in the virtual host `/`, as RabbitMQ does when the queue moves, and returns how many those
    /// were.
    pub fn cancel_consumers(&self, queue: &str) -> usize {
        self.change(|control| control.core.cancel_consumers("/", queue))
    }

    /// Times out the consumers of a queue in the virtual host `/` that hold unacknowledged messages,
    /// and returns their number. The queue can be of any kind.
    ///
    /// This is what RabbitMQ 4.3 does with consumers of quorum queues after `consumer_timeout`. The
    /// broker requeues the messages at once, sends `basic.cancel`, and delivers nothing more to the
    /// consumer, whose tag stays in use. What happens then depends on the client:
    ///
    /// - It sends `basic.cancel` or `basic.cancel-ok` with the tag: the consumer ends, and the tag is
    ///   free.
    /// - It acknowledges or rejects all the requeued messages late: the broker accepts that, although
    ///   the messages stay in the queue, and the consumer gets messages again. A late request to
    ///   requeue the last of them is accepted, too, but the consumer gets nothing until it is cancelled.
    /// - It has not declared the capability `consumer_cancel_notify`: instead of `basic.cancel`, the
    ///   broker sends `channel.close` with 406 `PRECONDITION_FAILED`.
    pub fn time_out_consumers(&self, queue: &str) -> usize {
        self.change(|control| control.core.time_out_consumers("/", queue))
    }

    /// Ends and begins again, on the same port: all connections are cut, and only what is durable is still there, with the
    /// messages that are persistent. Faults are over; but for [`refuse_connections`](Self::refuse_connections),
    /// [`stop_answering`](Self::stop_answering) and [`delay`](Self::delay).
    pub fn restart(&self) {
        self.change(|control| control.core.restart());
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.change(|control| control.is_over = true);
        if let Some(thread) = self.thread.take() {
            // It has panicked, and said so.
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
