//! Counts what all threads do, and formats the rates.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;
use std::time::Duration;

use crate::bench::Latencies;

/// Counters that all threads increment, and the reporting thread reads.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) published: AtomicU64,
    pub(crate) confirmed: AtomicU64,
    pub(crate) nacked: AtomicU64,
    pub(crate) returned: AtomicU64,
    pub(crate) received: AtomicU64,
    latencies: Mutex<Pair>,
}

/// Latencies since the last report, and since the beginning.
#[derive(Default)]
struct Pair {
    recent: Latencies,
    all: Latencies,
}

/// A snapshot of the counters.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) published: u64,
    pub(crate) confirmed: u64,
    pub(crate) nacked: u64,
    pub(crate) returned: u64,
    pub(crate) received: u64,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Tally {
    pub(crate) fn counts(&self) -> Counts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            published: get(&self.published),
            confirmed: get(&self.confirmed),
            nacked: get(&self.nacked),
            returned: get(&self.returned),
            received: get(&self.received),
        }
    }

    /// Adds a thread's latencies. Threads call this rarely, because a lock for each message would
    /// distort the latencies.
    pub(crate) fn add(&self, latencies: &mut Latencies) {
        let mut pair = self.latencies.lock().unwrap();
        pair.recent.0.add(&latencies.0).unwrap();
        latencies.0.reset();
    }

    /// The percentiles since the last call.
    pub(crate) fn recent_latency(&self) -> Option<String> {
        let mut pair = self.latencies.lock().unwrap();
        let Pair { recent, all } = &mut *pair;
        all.0.add(&recent.0).unwrap();
        let text = percentiles(recent);
        recent.0.reset();
        text
    }

    /// All latencies, at the end.
    pub(crate) fn take_latencies(&self) -> Latencies {
        self.recent_latency();
        std::mem::take(&mut self.latencies.lock().unwrap().all)
    }
}

pub(crate) fn percentiles(latencies: &Latencies) -> Option<String> {
    if latencies.0.is_empty() {
        return None;
    }
    let [least, p50, p75, p95, p99] =
        [0.0, 0.5, 0.75, 0.95, 0.99].map(|it| latencies.microseconds(it));
    Some(format!(
        "min/median/75th/95th/99th latency: {least:.0}/{p50:.0}/{p75:.0}/{p95:.0}/{p99:.0} µs"
    ))
}

impl Counts {
    pub(crate) fn unconfirmed(&self) -> u64 {
        self.published - self.confirmed.min(self.published) - self.nacked - self.returned
    }

    /// Formats the rates per second since `before`.
    pub(crate) fn rates(&self, before: &Self, took: Duration, confirms: bool) -> String {
        let rate = |now: u64, before: u64| (now - before) as f64 / took.as_secs_f64();
        let mut text = format!("sent: {:.0} msg/s", rate(self.published, before.published));
        if confirms {
            let confirmed = rate(self.confirmed, before.confirmed);
            text += &format!(
                ", confirmed: {confirmed:.0} msg/s, unconfirmed: {}",
                self.unconfirmed()
            );
        }
        for (what, now) in [("nacked", self.nacked), ("returned", self.returned)] {
            if now > 0 {
                text += &format!(", {what}: {now}");
            }
        }
        let received = rate(self.received, before.received);
        text + &format!(", received: {received:.0} msg/s")
    }
}
