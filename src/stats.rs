//! Statistics and metrics of a connection.

use std::fmt;
use std::time::Duration;

/// Statistics of a connection: [`Connection::stats`](crate::Connection::stats).
///
/// The values are read one after the other while the connection runs, so they may not match
/// exactly. Counts only grow, and continue across recoveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ConnectionStats {
    /// Bytes received from the broker after the login, without TLS's overhead.
    pub bytes_received: u64,
    /// Bytes sent to the broker after the login, without TLS's overhead.
    pub bytes_sent: u64,
    /// Messages delivered to consumers or fetched with `basic.get`.
    pub messages_delivered: u64,
    /// Messages handed over for publishing.
    pub messages_published: u64,
    /// Messages that the broker returned as unroutable.
    pub messages_returned: u64,
    /// Messages that the broker confirmed.
    pub messages_confirmed: u64,
    /// Messages that the broker nacked (`basic.nack`).
    pub messages_nacked: u64,
    /// Messages among [`messages_delivered`](Self::messages_delivered) that the broker had
    /// delivered before (`redelivered`).
    pub redeliveries: u64,
    /// Messages of [`Publisher`](crate::Publisher)s that the broker has not confirmed. Includes
    /// messages that are being handed over, are waiting to be sent, or are republished after a
    /// loss. Excludes messages that [`Channel::basic_publish`](crate::Channel::basic_publish)
    /// publishes in confirm mode.
    pub unconfirmed_messages: u64,
    /// Total size of the bodies of the [`unconfirmed_messages`](Self::unconfirmed_messages), in
    /// bytes.
    pub unconfirmed_bytes: u64,
    /// Bytes of frames in this program that are waiting to be written to the socket.
    pub outbox_bytes: u64,
    /// Bytes of received messages that the program has not yet read from its consumers. Each
    /// message counts with its overhead in memory, as for
    /// [`max_unread_bytes`](crate::ConnectionOptions::max_unread_bytes).
    pub unread_bytes: u64,
    /// Acks (`basic.ack`) handed over for sending. An ack for several messages counts once.
    pub acks: u64,
    /// Nacks (`basic.nack`) handed over for sending, including the nacks with which this crate
    /// requeues unread messages. A nack for several messages counts once.
    pub nacks: u64,
    /// Rejects (`basic.reject`) handed over for sending.
    pub rejects: u64,
    /// Acks, nacks and rejects that were not sent, because their message arrived on a connection
    /// that was lost, or the broker has cancelled the consumer. The broker redelivers these
    /// messages.
    pub acks_not_sent: u64,
    /// Calls that the broker answered.
    pub calls: u64,
    /// Total duration of these calls, from the call to its return.
    pub call_time: Duration,
    /// Number of open channels.
    pub channels: u16,
    /// Channels that the broker closed because of an error. Excludes the channels on which
    /// [`queue_exists`](crate::Connection::queue_exists) and
    /// [`exchange_exists`](crate::Connection::exchange_exists) learn that something does not exist.
    pub channels_closed_by_broker: u64,
    /// How long the broker has been blocking the connection (`connection.blocked`), or `None` if
    /// the connection is not blocked.
    pub blocked_for: Option<Duration>,
    /// How long the connection has been lost, until recovery is complete, or `None` if the
    /// connection is open or closed for good.
    pub lost_for: Option<Duration>,
    /// Attempts to recover the connection, over all losses, failed or not.
    pub recovery_attempts: u64,
    /// Number of times the connection was lost and recovered.
    pub recoveries: u64,
}

/// Receives a connection's metrics as they happen, and passes them to the program's own metrics
/// system.
///
/// All methods do nothing by default. [`Connection::stats`](crate::Connection::stats) works without
/// an implementation.
///
/// The methods for incoming data run on the connection's IO thread, and some of those for outgoing
/// data on the thread that publishes or calls. So a method must be quick: count, and return. A
/// method that blocks on the IO thread stops the connection, including its heartbeats. A method
/// that panics on the IO thread closes the connection.
///
/// ```no_run
/// use leveret::{Connection, ConnectionOptions, Metrics};
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use std::sync::Arc;
///
/// #[derive(Default)]
/// struct Delivered(AtomicU64);
///
/// impl Metrics for Delivered {
///     fn message_delivered(&self) {
///         self.0.fetch_add(1, Ordering::Relaxed);
///     }
/// }
///
/// let delivered = Arc::new(Delivered::default());
/// let options = ConnectionOptions::default().metrics(Arc::<Delivered>::clone(&delivered));
/// let connection = Connection::open_with(&options)?;
/// # Ok::<(), leveret::Error>(())
/// ```
pub trait Metrics: Send + Sync {
    /// This many bytes were read.
    fn bytes_received(&self, _count: usize) {}
    /// This many bytes were written.
    fn bytes_sent(&self, _count: usize) {}
    /// A message was delivered to a consumer, or fetched.
    fn message_delivered(&self) {}
    /// A message was handed over for publishing.
    fn message_published(&self) {}
    /// The broker returned a message as unroutable.
    fn message_returned(&self) {}
    /// The broker confirmed or nacked this many messages.
    fn messages_confirmed(&self, _count: u64, _nacked: bool) {}
    /// An ack, nack or reject was not sent, because its message arrived on a connection that was
    /// lost, or the broker has cancelled the consumer. The broker redelivers the message.
    fn ack_not_sent(&self) {}
    /// The broker answered a call after this time.
    fn call_answered(&self, _time: Duration) {}
    /// The connection recovered, this long after it was lost.
    fn recovered(&self, _after: Duration) {}
}

impl fmt::Debug for dyn Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}
