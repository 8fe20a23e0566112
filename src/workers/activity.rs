//! What one worker thread does now, and what it has done.

use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{RwLock, RwLockUpgradableReadGuard, RwLockWriteGuard};

use super::status::{LateHandler, QueueWorkers};
use crate::delivery::Delivery;
use crate::io_thread::deadline::Deadline;

/// What one thread does now, and what it has done. Only that thread changes it, and it holds no
/// other lock when it does.
#[derive(Default)]
pub(super) struct Activity {
    handling: RwLock<Handling>,
    counts: Counts,
}

/// The messages that the handler has now.
#[derive(Default)]
struct Handling {
    batch: Vec<Delivery>,
    /// `None` if no handler runs.
    since: Option<Deadline>,
    /// Whether the log has the warning that this handler takes long.
    has_warned: AtomicBool,
}

/// Numbers of messages.
#[derive(Default)]
struct Counts {
    handled: AtomicU64,
    failed: AtomicU64,
    panicked: AtomicU64,
    retried: AtomicU64,
    parked: AtomicU64,
    handler_nanoseconds: AtomicU64,
}

/// What can happen to a message, for the counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    Handled,
    Failed,
    Panicked,
    Retried,
    Parked,
}

fn end(mut handling: RwLockWriteGuard<'_, Handling>, batch: &mut Vec<Delivery>) {
    mem::swap(&mut handling.batch, batch);
    handling.since = None;
    drop(handling);
    // Dropping a delivery can take other locks.
    batch.clear();
}

/// Only one thread changes these counts.
fn add(count: &AtomicU64, more: u64) {
    let sum = count.load(Ordering::Relaxed).wrapping_add(more);
    count.store(sum, Ordering::Relaxed);
}

impl Activity {
    /// Shows the batch to other threads while `run` works with it. Leaves the batch empty.
    pub(super) fn handle<T>(
        &self,
        batch: &mut Vec<Delivery>,
        run: impl FnOnce(&[Delivery], Deadline) -> T,
    ) -> T {
        let begun = Deadline::after(Duration::MAX);
        let mut handling = self.handling.write();
        mem::swap(&mut handling.batch, batch);
        handling.since = Some(begun);
        *handling.has_warned.get_mut() = false;
        let handling = RwLockWriteGuard::downgrade_to_upgradable(handling);
        let result = run(&handling.batch, begun);
        end(RwLockUpgradableReadGuard::upgrade(handling), batch);
        result
    }

    /// Ends what [`handle`](Self::handle) began, after a panic.
    pub(super) fn rest(&self, batch: &mut Vec<Delivery>) {
        end(self.handling.write(), batch);
    }

    pub(super) fn note(&self, event: Event, messages: usize) {
        let count = match event {
            Event::Handled => &self.counts.handled,
            Event::Failed => &self.counts.failed,
            Event::Panicked => &self.counts.panicked,
            Event::Retried => &self.counts.retried,
            Event::Parked => &self.counts.parked,
        };
        add(count, messages as u64);
    }

    pub(super) fn note_handler_time(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        add(&self.counts.handler_nanoseconds, nanoseconds);
    }

    pub(super) fn is_busy(&self) -> bool {
        self.handling.read_recursive().since.is_some()
    }

    /// The handler that runs, if it has run for at least this time.
    pub(super) fn late(&self, limit: Duration) -> Option<LateHandler> {
        let handling = self.handling.read_recursive();
        let running_for = handling.since?.elapsed();
        let first = handling.batch.first()?;
        (running_for >= limit).then(|| LateHandler {
            delivery_tag: first.delivery_tag(),
            message_id: first.message_id().map(str::to_owned),
            messages: handling.batch.len(),
            running_for,
        })
    }

    /// When a warning is due: of the handler that runs, or of one that begins now.
    pub(super) fn warns_in(&self, limit: Duration) -> Duration {
        let handling = self.handling.read_recursive();
        match handling.since {
            Some(since) if !handling.has_warned.load(Ordering::Relaxed) => {
                limit.saturating_sub(since.elapsed())
            }
            _ => limit,
        }
    }

    /// [`late`](Self::late), once for each handler.
    pub(super) fn newly_late(&self, limit: Duration) -> Option<LateHandler> {
        let late = self.late(limit)?;
        let handling = self.handling.read_recursive();
        let had_warned = handling.has_warned.swap(true, Ordering::Relaxed);
        (!had_warned).then_some(late)
    }

    pub(super) fn add_to(&self, status: &mut QueueWorkers) {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = &self.counts;
        status.busy += usize::from(self.is_busy());
        status.handled += read(&counts.handled);
        status.failed += read(&counts.failed);
        status.panicked += read(&counts.panicked);
        status.retried += read(&counts.retried);
        status.parked += read(&counts.parked);
        status.handler_time += Duration::from_nanos(read(&counts.handler_nanoseconds));
    }
}
