//! Connections: a handle for a socket and for the IO thread that owns it.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::Duration;

use crossbeam_channel::Receiver;

use crate::error::{Error, ErrorKind, OneLine, ReplyCode, Result};
use crate::events::ConnectionEvent;
use crate::io_thread::counters::Gauge;
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::Mailboxes;
use crate::io_thread::outbox::{Admission, CONNECTION};
use crate::io_thread::socket::connect::connect_patiently;
use crate::io_thread::{self, Peer, Shared};
use crate::log_line::log_line;
use crate::options::ConnectionOptions;
use crate::session::call::{self, Operation};
use crate::session::recovery::Recovery;
use crate::stats::ConnectionStats;
use crate::wire::method::{ConnectionClose, ConnectionUpdateSecret, Encode, LongString};
use crate::wire::value::FieldTable;

/// How long dropping the last handle waits for a clean close.
const DROP_PATIENCE: Duration = Duration::from_secs(5);

/// A connection to a broker.
///
/// An IO thread reads and writes the socket and sends heartbeats, so the connection survives a
/// message that takes an hour to handle. Handles are cheap to clone, and any number of threads can
/// use them. Most work goes through a [`Channel`](crate::Channel).
///
/// A lost connection recovers automatically: this crate connects again, and restores what was
/// declared, the channels, the consumers and the unconfirmed messages. See
/// [`RecoveryOptions`](crate::RecoveryOptions). A call that is waiting for its reply when the
/// connection is lost fails; [`Error::may_have_been_sent`] tells whether it is safe to repeat the
/// call. Calls that begin while the connection is lost wait for recovery, up to their timeouts.
///
/// Dropping the last handle (of the connection, its channels, consumers and deliveries) closes the
/// connection gracefully and waits up to 5 seconds. [`close`](Self::close) closes the connection at
/// once for all handles, and reports the result.
///
/// ```no_run
/// use leveret::{Connection, QueueDeclareOptions};
///
/// let connection = Connection::open("amqp://guest:guest@localhost:5672/%2f")?;
/// let channel = connection.open_channel()?;
/// let queue = channel.queue_declare("tasks", QueueDeclareOptions::default())?;
/// queue.publish("hello")?;
/// connection.close()?;
/// # Ok::<(), leveret::Error>(())
/// ```
///
/// A `fork` of the process must open its own connection. The IO thread exists only in the parent,
/// so the child's calls fail with [`ErrorKind::Forked`]. A publish fails, too, but not always: if
/// the parent was sending when it forked, the child's publishes can go into an outbox that is never
/// sent, or wait forever for a lock. Consumers of the child receive nothing.
///
/// See <https://www.rabbitmq.com/docs/connections>.
#[derive(Clone)]
pub struct Connection {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    io_thread: ThreadId,
    options: ConnectionOptions,
    recovery: Arc<Recovery>,
}

impl Connection {
    /// Connects to the broker at a URI such as `amqp://user:password@host:5672/vhost`.
    ///
    /// Waits up to [`connect_timeout`](ConnectionOptions::connect_timeout), by default 30 seconds.
    /// Makes one attempt, unless [`retry_open_for`](ConnectionOptions::retry_open_for) is set.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidUri`], [`ErrorKind::ConnectFailed`], [`ErrorKind::LoginRefused`],
    /// [`ErrorKind::VhostRefused`] and the other failures of a handshake; a timeout.
    pub fn open(uri: impl AsRef<str>) -> Result<Self> {
        Self::open_with(ConnectionOptions::from_uri(uri.as_ref())?)
    }

    /// Connects to RabbitMQ on this machine with RabbitMQ's defaults:
    /// `amqp://guest:guest@localhost:5672/%2f`.
    ///
    /// # Errors
    /// Same as [`open`](Self::open).
    pub fn open_default() -> Result<Self> {
        Self::open_with(ConnectionOptions::default())
    }

    /// Connects to the broker with these options, or a reference to them.
    ///
    /// # Errors
    /// Same as [`open`](Self::open); [`ErrorKind::InvalidArgument`] for options that no broker
    /// accepts.
    pub fn open_with(options: impl Borrow<ConnectionOptions>) -> Result<Self> {
        Self::open_borrowed(options.borrow())
    }

    fn open_borrowed(options: &ConnectionOptions) -> Result<Self> {
        let doing = || format!("opening {options}");
        options.check().map_err(|error| error.doing(doing()))?;
        let connected =
            connect_patiently::<Mailboxes>(options).map_err(|error| error.doing(doing()))?;
        let (address, secret_valid_for) = (connected.address, connected.secret_valid_for);
        // Linux shows 15 bytes of a thread's name.
        let name = format!("leveret:{}", address.port());
        let recovery = Arc::new(Recovery::new(options));
        let recover = Arc::<Recovery>::clone(&recovery);
        let (shared, io_thread) =
            io_thread::spawn(connected, options, recover, &name).map_err(|error| {
                let kind = ErrorKind::ConnectFailed {
                    address: address.to_string(),
                    kind: error.kind(),
                    text: error.to_string(),
                };
                Error::new(kind).doing(doing())
            })?;
        recovery.renew_after(&shared, secret_valid_for);
        let (uri, tuning) = (OneLine(options), &shared.peer().tuning);
        log_line!(Info, shared.label(), "connected to {uri}: {tuning:?}");
        Ok(Self {
            inner: Arc::new(Inner {
                shared,
                io_thread,
                options: options.clone(),
                recovery,
            }),
        })
    }

    /// Closes the connection for all handles. Waits up to `request_timeout` until the broker has
    /// agreed.
    ///
    /// The IO thread first sends the messages that were published before. Calls that are still
    /// waiting fail with an error that says that this program closed the connection.
    ///
    /// # Errors
    /// If the connection is already closed: which side closed it, and why. A timeout: the
    /// connection is then closed without the broker's agreement.
    pub fn close(&self) -> Result<()> {
        self.close_with(ReplyCode::SUCCESS, "")
    }

    /// [`close`](Self::close), but waits up to `timeout`.
    ///
    /// # Errors
    /// Same as [`close`](Self::close).
    pub fn close_timeout(&self, timeout: Duration) -> Result<()> {
        self.close_within(ReplyCode::SUCCESS, "", timeout)
    }

    /// [`close`](Self::close) with a reply code and text, which RabbitMQ writes to its log.
    ///
    /// # Errors
    /// Same as [`close`](Self::close).
    pub fn close_with(&self, code: impl Into<ReplyCode>, text: &str) -> Result<()> {
        let code = code.into();
        self.close_within(code, text, self.request_timeout())
    }

    fn close_within(&self, code: ReplyCode, text: &str, timeout: Duration) -> Result<()> {
        let closed = self.inner.shared.close(code, text, timeout);
        closed.map_err(|error| Operation::about(ConnectionClose::ID, "").failed(error))
    }

    /// Waits up to `timeout` until everything that was sent so far, on all channels, is written to
    /// the socket, and until the broker has confirmed or nacked all messages of channels in confirm
    /// mode.
    ///
    /// A program that ends without [`close`](Self::close) and without dropping its last handle,
    /// because its handles are in a `static`, or because it calls `std::process::exit`, loses what
    /// still waits in the outbox. And RabbitMQ drops a part of what it has read if a connection
    /// ends without a close. So use confirm mode, or close the connection. Of 1,000 messages that a
    /// program published before `std::process::exit`, so many arrived in 6 runs each:
    ///
    /// | the program | RabbitMQ 3.10 | RabbitMQ 4.3 |
    /// | --- | --- | --- |
    /// | just ends | 585 to 996 | 466 to 875 |
    /// | calls `flush`, without confirm mode | 847 to 1,000 | 880 to 1,000 |
    /// | calls `flush`, in confirm mode | 1,000 | 1,000 |
    /// | calls `close` | 1,000 | 1,000 |
    ///
    /// ```no_run
    /// use leveret::Connection;
    /// use std::sync::OnceLock;
    /// use std::time::Duration;
    ///
    /// static CONNECTION: OnceLock<Connection> = OnceLock::new();
    ///
    /// let connection = CONNECTION.get_or_init(|| Connection::open_default().expect("a broker"));
    /// let publisher = connection.open_channel()?.publisher()?;
    /// publisher.publish("", "tasks", "work")?;
    /// connection.flush(Duration::from_secs(5))?;
    /// std::process::exit(0);
    /// # #[allow(unreachable_code)]
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// Same as [`Channel::flush`](crate::Channel::flush), but the end of one channel is no error.
    pub fn flush(&self, timeout: Duration) -> Result<()> {
        let deadline = Deadline::after(timeout);
        let shared = &self.inner.shared;
        let _waits = shared.waiters.begin();
        let flushed = self.flush_until(deadline);
        flushed.map_err(|error| shared.outbox.explained(error).doing("flush"))
    }

    fn flush_until(&self, deadline: Deadline) -> Result<()> {
        let outbox = &self.inner.shared.outbox;
        let channels = self.inner.recovery.channels().into_iter();
        let published = channels.filter_map(|it| Some((it.last_published()?, it)));
        let published: Vec<_> = published.collect();
        let flush = outbox.begin_flush(CONNECTION)?;
        for (published, channel) in published {
            match channel.confirms.wait(published, deadline) {
                Err(error) if error.is_timeout() => return Err(error),
                // The channel has ended, which its own calls report.
                _ => {}
            }
        }
        outbox.flush(&flush, deadline)
    }

    /// Waits up to `timeout` until the connection has ended for any reason: the socket is closed,
    /// and the IO thread has ended. [`close_cause`](Self::close_cause) tells why.
    ///
    /// # Errors
    /// A timeout.
    pub fn wait_closed(&self, timeout: Duration) -> Result<()> {
        if self.inner.shared.outbox.wait_finished(timeout) {
            return Ok(());
        }
        Err(Error::timed_out(timeout).doing("waiting until the connection is closed"))
    }

    /// Returns true unless the connection is closed or lost for good. Also returns true during
    /// recovery, when calls wait: see [`loss_cause`](Self::loss_cause).
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.close_cause().is_none()
    }

    /// Returns why the connection was lost, or `None` unless it is recovering now.
    #[must_use]
    pub fn loss_cause(&self) -> Option<Error> {
        self.inner.shared.outbox.loss_cause()
    }

    /// Returns how many times the connection has been lost so far.
    #[must_use]
    pub fn loss_count(&self) -> u64 {
        self.inner.shared.outbox.epoch()
    }

    /// Returns why the connection is closed, or `None` if it is open or recovering. Every call of
    /// every handle fails with this first cause.
    #[must_use]
    pub fn close_cause(&self) -> Option<Error> {
        self.inner.shared.outbox.end_cause()
    }

    /// Returns why the broker blocks the connection (`connection.blocked`) and accepts no messages
    /// now, or `None` if the connection is not blocked.
    ///
    /// See <https://www.rabbitmq.com/docs/connection-blocked>.
    #[must_use]
    pub fn blocked_reason(&self) -> Option<String> {
        self.inner.shared.outbox.blocked_reason()
    }

    /// Returns a receiver of the connection's events from now on: blocked, unblocked, lost,
    /// recovered, closed, the channels that the broker closes, and the interruptions of its
    /// [`Workers`](crate::Workers).
    ///
    /// The receiver keeps the newest 256 events. All receivers of a connection share them: each
    /// event goes to one receiver. The receiver is disconnected when the connection has ended.
    ///
    /// ```no_run
    /// use leveret::{Connection, ConnectionEvent};
    ///
    /// let connection = Connection::open_default()?;
    /// let events = connection.events();
    /// std::thread::spawn(move || {
    ///     for event in events {
    ///         match event {
    ///             ConnectionEvent::Blocked { reason } => println!("publishing waits: {reason}"),
    ///             ConnectionEvent::Unblocked => println!("publishing continues"),
    ///             ConnectionEvent::Lost { cause } => println!("{cause}"),
    ///             ConnectionEvent::Recovered { attempts, after } => {
    ///                 println!("back after {after:?} and {attempts} attempts")
    ///             }
    ///             other => println!("{other:?}"),
    ///         }
    ///     }
    /// });
    /// # Ok::<(), leveret::Error>(())
    /// ```
    #[must_use]
    pub fn events(&self) -> Receiver<ConnectionEvent> {
        self.inner.shared.events.receiver()
    }

    /// Returns statistics of the connection: bytes, messages, confirms, calls, what is waiting to
    /// be sent, confirmed or read, and how long the connection has been blocked or lost.
    #[must_use]
    pub fn stats(&self) -> ConnectionStats {
        let shared = &self.inner.shared;
        let mut stats = shared.counters.snapshot();
        shared.outbox.add_to(&mut stats);
        stats
    }

    /// Returns the broker's properties: product, version, capabilities, …
    #[must_use]
    pub fn server_properties(&self) -> FieldTable {
        self.peer().server.properties.clone()
    }

    /// Returns the login mechanisms that the broker offers.
    #[must_use]
    pub fn server_mechanisms(&self) -> Vec<String> {
        words(&self.peer().server.mechanisms)
    }

    /// Returns the locales that the broker offers for its texts.
    #[must_use]
    pub fn server_locales(&self) -> Vec<String> {
        words(&self.peer().server.locales)
    }

    /// Returns how many channels can be open at once: the lower of the two sides' limits.
    #[must_use]
    pub fn channel_max(&self) -> u16 {
        self.peer().tuning.highest_channel()
    }

    /// Returns the maximum frame size in bytes: the lower of the two sides' limits, or 0 if neither
    /// side has one.
    #[must_use]
    pub fn frame_max(&self) -> u32 {
        self.peer().tuning.frame_max
    }

    /// Returns the agreed heartbeat interval. Zero means no heartbeats.
    #[must_use]
    pub fn heartbeat(&self) -> Duration {
        self.peer().tuning.heartbeat
    }

    /// Returns the heartbeat interval that the broker proposed.
    #[must_use]
    pub fn server_heartbeat(&self) -> Duration {
        Duration::from_secs(self.peer().server.tune.heartbeat.into())
    }

    /// Returns the options that the connection was opened with.
    #[must_use]
    pub fn options(&self) -> &ConnectionOptions {
        &self.inner.options
    }

    /// Returns the broker's address. It can change in a recovery.
    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer().address
    }

    /// Gives the broker a new secret, such as a fresh OAuth 2 token, before the old one expires.
    /// Waits up to `request_timeout`.
    ///
    /// Later recoveries log in with the new secret instead of the password. With a custom
    /// [`SaslMechanism`](crate::SaslMechanism), the program must pass the new secret to the
    /// mechanism.
    ///
    /// While the connection is lost, the next recovery attempt logs in with the new secret, whether
    /// this call waits for the recovery or fails.
    ///
    /// With [`credentials`](ConnectionOptions::credentials), the connection renews its secret
    /// automatically, and recovery calls that function.
    ///
    /// RabbitMQ 4.3 checks permissions again with each new secret. It cancels the consumers of
    /// queues that the user may no longer read ([`ErrorKind::ConsumerCancelled`]).
    ///
    /// # Errors
    /// If the broker does not accept the secret, it closes the connection.
    ///
    /// See <https://www.rabbitmq.com/docs/oauth2>.
    pub fn update_secret(&self, new_secret: &str, reason: &str) -> Result<()> {
        let update = ConnectionUpdateSecret {
            new_secret: LongString(Cow::Borrowed(new_secret.as_bytes())),
            reason: reason.into(),
        };
        let asked = Operation::about(ConnectionUpdateSecret::ID, "");
        // On an open connection the broker may refuse the new secret, which must not replace a
        // valid one.
        if self.loss_cause().is_some() {
            self.inner.recovery.set_secret(new_secret);
        }
        let shared = &self.inner.shared;
        let deadline = Deadline::after(self.request_timeout());
        let reply = call::on_connection(shared, Admission::Room, deadline, &update);
        reply.map_err(|error| asked.failed(error))?;
        self.inner.recovery.set_secret(new_secret);
        Ok(())
    }

    fn peer(&self) -> Arc<Peer> {
        self.inner.shared.peer()
    }

    pub(crate) fn recovery(&self) -> &Arc<Recovery> {
        &self.inner.recovery
    }

    /// Includes this gauge in [`stats`](Self::stats) until it is dropped.
    pub(crate) fn add_gauge<G: Gauge + 'static>(&self, gauge: &Arc<G>) {
        let gauge = Arc::<G>::downgrade(gauge);
        self.inner.shared.counters.add_gauge(gauge);
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        self.inner.options.request_timeout
    }

    pub(crate) fn publish_timeout(&self) -> Duration {
        self.inner.options.publish_timeout
    }

    pub(crate) fn max_message_size(&self) -> u64 {
        self.inner.options.max_message_size
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.shared.outbox.check_process().is_err() {
            return;
        }
        let code = ReplyCode::SUCCESS;
        let text = "its last handle was dropped";
        // An unread delivery can be the last handle and be dropped with its consumer on the IO
        // thread, which cannot wait for itself.
        let closed = if thread::current().id() == self.io_thread {
            self.shared.begin_close(code, text)
        } else {
            let patience = DROP_PATIENCE.min(self.options.request_timeout);
            self.shared.close(code, text, patience)
        };
        match closed {
            Err(error) if error.is_timeout() => {
                log_line!(Warn, self.shared.label(), "closing the connection: {error}");
            }
            _ => {}
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("options", &self.inner.options)
            .field("peer", &self.peer_addr())
            .field("tuning", &self.peer().tuning)
            .field("open", &self.is_open())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_tls_the_missing_feature_is_named() {
        let error = Connection::open("amqps://localhost:1").unwrap_err();
        let names_feature = error.to_string().contains("native-tls");
        assert_eq!(names_feature, !cfg!(feature = "native-tls"), "{error}");
    }
}
