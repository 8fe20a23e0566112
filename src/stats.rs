//! What a connection has done so far, in numbers.

use std::fmt;
use std::time::Duration;

/// What a connection has done so far, and its state: [`Connection::stats`](crate::Connection::stats).
///
/// The numbers are taken one after the other, while the connection goes on. Counts only grow, also over
/// several connections that follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ConnectionStats {
    /// Bytes that were read from the stream, since the connection is open.
    pub bytes_received: u64,
    /// Bytes that were written to the stream.
    pub bytes_sent: u64,
    /// Messages that came for consumers, or were fetched.
    pub messages_delivered: u64,
    /// Messages that were handed over to be published.
    pub messages_published: u64,
    /// Messages that came back as unroutable.
    pub messages_returned: u64,
    /// Messages that the broker has confirmed.
    pub messages_confirmed: u64,
    /// Messages that the broker has refused (`basic.nack`).
    pub messages_nacked: u64,
    /// Messages among [`messages_delivered`](Self::messages_delivered) that the broker had delivered
    /// before (`redelivered`).
    pub redeliveries: u64,
    /// Messages of [`Publisher`](crate::Publisher)s that the broker has not answered for: those that are just being
    /// handed over, wait to be sent, or are published again after a loss. Messages that
    /// [`Channel::basic_publish`](crate::Channel::basic_publish) publishes in confirm mode are not among them.
    pub unconfirmed_messages: u64,
    /// The sum of the bodies of the [`unconfirmed_messages`](Self::unconfirmed_messages).
    pub unconfirmed_bytes: u64,
    /// Bytes of frames that wait in this program to be written to the socket.
    pub outbox_bytes: u64,
    /// Bytes of messages that have come and that no consumer of the program has taken, counted as
    /// [`max_unread_bytes`](crate::ConnectionOptions::max_unread_bytes) counts them: with what they take in memory beside their bodies.
    pub unread_bytes: u64,
    /// Acks (`basic.ack`) that were handed over to be sent. One for several messages counts once.
    pub acks: u64,
    /// Nacks (`basic.nack`) that were handed over to be sent, also those with which this crate gives unread messages back to
    /// their queue. One for several messages counts once.
    pub nacks: u64,
    /// Rejects (`basic.reject`) that were handed over to be sent.
    pub rejects: u64,
    /// Acks, nacks and rejects that were not sent, because the connection on which their message came
    /// was lost, or the broker has cancelled the consumer. The broker delivers these messages again.
    pub acks_not_sent: u64,
    /// Calls that the broker has answered.
    pub calls: u64,
    /// How long these calls have taken together, from the call to its return.
    pub call_time: Duration,
    /// How many channels are open.
    pub channels: u16,
    /// Channels that the broker has closed because of an error. A channel of
    /// [`queue_exists`](crate::Connection::queue_exists) or [`exchange_exists`](crate::Connection::exchange_exists) that is closed to say "no" is not counted.
    pub channels_closed_by_broker: u64,
    /// How long the broker has blocked the connection (`connection.blocked`). `None`: it is not blocked.
    pub blocked_for: Option<Duration>,
    /// How long the connection has been lost: since the loss, until all that was lost with it is there again.
    /// `None`: it is open, or closed for good.
    pub lost_for: Option<Duration>,
    /// Attempts to recover the connection, of all losses together, failed or not.
    pub recovery_attempts: u64,
    /// How often the connection was lost and came back.
    pub recoveries: u64,
}

/// Told what a connection does while it does it, for a program's own metrics. Whatever is not implemented does nothing.
/// [`Connection::stats`](crate::Connection::stats) needs none of this.
///
/// What comes in is told on the connection's IO thread, and what goes out partly on the thread that publishes or calls. So a
/// method must be quick: count, and return. One that blocks stops the connection, its heartbeats too; one that panics on
/// the IO thread ends it.
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
    /// So many bytes were read.
    fn bytes_received(&self, _count: usize) {}
    /// So many bytes were written.
    fn bytes_sent(&self, _count: usize) {}
    /// A message came for a consumer, or was fetched.
    fn message_delivered(&self) {}
    /// A message was handed over to be published.
    fn message_published(&self) {}
    /// A message came back as unroutable.
    fn message_returned(&self) {}
    /// The broker has answered for so many messages.
    fn messages_confirmed(&self, _count: u64, _nacked: bool) {}
    /// An ack, nack or reject was not sent, because the connection on which its message came was lost,
    /// or the broker has cancelled the consumer. The broker delivers the message again.
    fn ack_not_sent(&self) {}
    /// The broker has answered a call, after so long.
    fn call_answered(&self, _time: Duration) {}
    /// The connection is back, so long after it was lost.
    fn recovered(&self, _after: Duration) {}
}

impl fmt::Debug for dyn Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}
