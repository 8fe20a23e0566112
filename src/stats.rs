//! What a connection has done so far, in numbers.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
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

/// The counters behind [`ConnectionStats`]. (Published messages are counted in the outbox, under its lock.)
#[derive(Debug)]
pub(crate) struct Counters {
    metrics: Option<Arc<dyn Metrics>>,
    bytes_received: AtomicU64,
    bytes_sent: AtomicU64,
    messages_delivered: AtomicU64,
    messages_returned: AtomicU64,
    messages_confirmed: AtomicU64,
    messages_nacked: AtomicU64,
    redeliveries: AtomicU64,
    acks_not_sent: AtomicU64,
    channels_closed_by_broker: AtomicU64,
    /// What the IO thread has taken out of the outbox and not written, in bytes.
    writing: AtomicU64,
    calls: AtomicU64,
    call_nanoseconds: AtomicU64,
    recovery_attempts: AtomicU64,
    recoveries: AtomicU64,
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn new(metrics: Option<Arc<dyn Metrics>>) -> Self {
        Self {
            metrics,
            bytes_received: AtomicU64::new(0),
            bytes_sent: AtomicU64::new(0),
            messages_delivered: AtomicU64::new(0),
            messages_returned: AtomicU64::new(0),
            messages_confirmed: AtomicU64::new(0),
            messages_nacked: AtomicU64::new(0),
            redeliveries: AtomicU64::new(0),
            acks_not_sent: AtomicU64::new(0),
            channels_closed_by_broker: AtomicU64::new(0),
            writing: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            call_nanoseconds: AtomicU64::new(0),
            recovery_attempts: AtomicU64::new(0),
            recoveries: AtomicU64::new(0),
        }
    }

    fn tell(&self, tell: impl FnOnce(&dyn Metrics)) {
        if let Some(metrics) = &self.metrics {
            tell(&**metrics);
        }
    }

    pub(crate) fn received(&self, count: usize) {
        add(&self.bytes_received, count as u64);
        self.tell(|metrics| metrics.bytes_received(count));
    }

    pub(crate) fn sent(&self, count: usize) {
        add(&self.bytes_sent, count as u64);
        self.tell(|metrics| metrics.bytes_sent(count));
    }

    pub(crate) fn writing(&self, bytes: usize) {
        self.writing.store(bytes as u64, Ordering::Relaxed);
    }

    /// A channel was closed because of an error.
    pub(crate) fn channel_closed_by_broker(&self) {
        add(&self.channels_closed_by_broker, 1);
    }

    // Counted before the program can see it. The program's own metrics are told afterwards, since
    // they can panic.

    pub(crate) fn delivered<T>(&self, messages: usize, deliver: impl FnOnce() -> T) -> T {
        add(&self.messages_delivered, messages as u64);
        let delivered = deliver();
        self.tell(|metrics| (0..messages).for_each(|_| metrics.message_delivered()));
        delivered
    }

    /// So many of the messages that are about to be delivered were delivered before.
    pub(crate) fn redelivered(&self, messages: usize) {
        if messages > 0 {
            add(&self.redeliveries, messages as u64);
        }
    }

    pub(crate) fn returned(&self, give_back: impl FnOnce()) {
        add(&self.messages_returned, 1);
        give_back();
        self.tell(|metrics| metrics.message_returned());
    }

    pub(crate) fn confirmed(&self, count: u64, nacked: bool, confirm: impl FnOnce()) {
        let counter = match nacked {
            true => &self.messages_nacked,
            false => &self.messages_confirmed,
        };
        add(counter, count);
        confirm();
        self.tell(|metrics| metrics.messages_confirmed(count, nacked));
    }

    /// It was counted before.
    pub(crate) fn published(&self) {
        self.tell(|metrics| metrics.message_published());
    }

    pub(crate) fn recovery_attempt(&self) {
        add(&self.recovery_attempts, 1);
    }

    pub(crate) fn recovered(&self) {
        add(&self.recoveries, 1);
    }

    pub(crate) fn tell_recovered(&self, after: Duration) {
        self.tell(|metrics| metrics.recovered(after));
    }

    pub(crate) fn ack_not_sent(&self) {
        add(&self.acks_not_sent, 1);
        self.tell(|metrics| metrics.ack_not_sent());
    }

    pub(crate) fn call_answered(&self, time: Duration) {
        add(&self.calls, 1);
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        add(&self.call_nanoseconds, nanoseconds);
        self.tell(|metrics| metrics.call_answered(time));
    }

    /// What is counted here; the rest is zero.
    pub(crate) fn snapshot(&self) -> ConnectionStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ConnectionStats {
            bytes_received: get(&self.bytes_received),
            bytes_sent: get(&self.bytes_sent),
            messages_delivered: get(&self.messages_delivered),
            messages_returned: get(&self.messages_returned),
            messages_confirmed: get(&self.messages_confirmed),
            messages_nacked: get(&self.messages_nacked),
            redeliveries: get(&self.redeliveries),
            outbox_bytes: get(&self.writing),
            acks_not_sent: get(&self.acks_not_sent),
            calls: get(&self.calls),
            call_time: Duration::from_nanos(get(&self.call_nanoseconds)),
            channels_closed_by_broker: get(&self.channels_closed_by_broker),
            recovery_attempts: get(&self.recovery_attempts),
            recoveries: get(&self.recoveries),
            ..ConnectionStats::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_to_recover_are_counted() {
        let counters = Counters::new(None);
        counters.recovery_attempt();
        counters.recovery_attempt();
        assert_eq!(counters.snapshot().recovery_attempts, 2);
    }
}
