//! The counters of a connection.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use crate::stats::{ConnectionStats, Metrics};

/// Counts for [`ConnectionStats`] and [`Metrics`]. Published messages are counted in the outbox,
/// under its lock.
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
    /// Bytes that the IO thread has taken out of the outbox and not written yet.
    writing: AtomicU64,
    calls: AtomicU64,
    call_nanoseconds: AtomicU64,
    recovery_attempts: AtomicU64,
    recoveries: AtomicU64,
    gauges: Mutex<Vec<Weak<dyn Gauge>>>,
}

/// A value that is read only when the program asks for its statistics.
pub(crate) trait Gauge: Send + Sync {
    fn add_to(&self, stats: &mut ConnectionStats);
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
            gauges: Mutex::default(),
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

    /// The broker has closed a channel because of an error.
    pub(crate) fn channel_closed_by_broker(&self) {
        add(&self.channels_closed_by_broker, 1);
    }

    // Each of these counts before the program can see what is counted. The program's own metrics
    // come last, since they can panic.

    pub(crate) fn delivered<T>(&self, messages: usize, deliver: impl FnOnce() -> T) -> T {
        add(&self.messages_delivered, messages as u64);
        let delivered = deliver();
        self.tell(|metrics| (0..messages).for_each(|_| metrics.message_delivered()));
        delivered
    }

    /// How many of the messages that are about to be delivered are redeliveries.
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

    /// Notifies the program's metrics; the outbox has counted the message.
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

    /// Adds a gauge, which is read until it is dropped.
    pub(crate) fn add_gauge(&self, gauge: Weak<dyn Gauge>) {
        let mut gauges = self.gauges.lock();
        if gauges.len() == gauges.capacity() {
            gauges.retain(|it| it.strong_count() > 0);
        }
        gauges.push(gauge);
    }

    /// The values counted here; the other fields are zero.
    pub(crate) fn snapshot(&self) -> ConnectionStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut stats = ConnectionStats {
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
        };
        // Not under the lock: this can drop the last reference to a gauge.
        let gauges: Vec<_> = self
            .gauges
            .lock()
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        for gauge in gauges {
            gauge.add_to(&mut stats);
        }
        stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovery_attempts_are_counted() {
        let counters = Counters::new(None);
        counters.recovery_attempt();
        counters.recovery_attempt();
        assert_eq!(counters.snapshot().recovery_attempts, 2);
    }

    struct Unread(u64);

    impl Gauge for Unread {
        fn add_to(&self, stats: &mut ConnectionStats) {
            stats.unread_bytes += self.0;
        }
    }

    #[test]
    fn a_gauge_is_read_until_it_is_dropped() {
        let counters = Counters::new(None);
        let stays = Arc::new(Unread(7));
        let gauge = |gauge: &Arc<Unread>| -> Weak<dyn Gauge> { Arc::<Unread>::downgrade(gauge) };
        counters.add_gauge(gauge(&stays));
        for _ in 0..10_000 {
            counters.add_gauge(gauge(&Arc::new(Unread(1))));
        }
        assert!(counters.gauges.lock().capacity() < 16);
        assert_eq!(counters.snapshot().unread_bytes, 7);
    }
}
