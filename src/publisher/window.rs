//! Limits the number and the bytes of unconfirmed messages.

use std::cell::Cell;
use std::sync::atomic::Ordering;

use crate::io_thread::deadline::Deadline;
use crate::sync::{AtomicU64, AtomicUsize, Condvar, Mutex};

/// Messages are counted from this bit up, bytes below it. Both are in one word, so the common case
/// needs no lock.
const MESSAGE: u64 = 1 << 44;
const BYTES: u64 = MESSAGE - 1;

/// The room that one message takes in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Weight(u64);

impl Weight {
    pub(crate) fn of(bytes: usize) -> Self {
        // A message can exceed the window's limit, but must not overflow into the count of
        // messages.
        Self(MESSAGE | (bytes as u64).min(BYTES / 2))
    }

    pub(crate) fn bytes(self) -> u64 {
        self.0 & BYTES
    }
}

/// Why a message got no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoRoom {
    InTime,
    UselessToWait,
}

#[derive(Debug)]
pub(crate) struct Window {
    messages: u64,
    bytes: u64,
    taken: AtomicU64,
    /// Number of threads that wait for a change of `taken`.
    waiting: AtomicUsize,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Window {
    pub(crate) fn new(messages: u32, bytes: u64) -> Self {
        Self {
            messages: messages.into(),
            bytes: bytes.min(BYTES / 2),
            taken: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            lock: Mutex::new(()),
            changed: Condvar::new(),
        }
    }

    /// Number of messages in the window.
    pub(crate) fn len(&self) -> u64 {
        self.taken().0
    }

    /// Number of messages in the window, and of their bytes.
    pub(crate) fn taken(&self) -> (u64, u64) {
        let taken = self.taken.load(Ordering::SeqCst);
        (taken / MESSAGE, taken & BYTES)
    }

    /// Takes room for a message if there is any. An empty window takes a message of any size.
    #[inline]
    pub(crate) fn try_take(&self, weight: Weight) -> bool {
        let fits = |taken: u64| {
            let bytes = (taken & BYTES) + weight.bytes();
            let fits = taken == 0 || (taken / MESSAGE < self.messages && bytes <= self.bytes);
            fits.then_some(taken + weight.0)
        };
        let order = Ordering::SeqCst;
        self.taken.fetch_update(order, order, fits).is_ok()
    }

    /// Waits for room and takes it. Fails at the deadline, or if waiting is useless.
    pub(crate) fn take(
        &self,
        weight: Weight,
        deadline: Deadline,
        is_useless: impl Fn() -> bool,
    ) -> Result<(), NoRoom> {
        let taken = Cell::new(Err(NoRoom::InTime));
        let take = || {
            taken.set(match self.try_take(weight) {
                true => Ok(()),
                false if is_useless() => Err(NoRoom::UselessToWait),
                false => Err(NoRoom::InTime),
            });
            taken.get() != Err(NoRoom::InTime)
        };
        self.wait_until(take, deadline);
        taken.get()
    }

    /// Waits until the window is empty. Returns false if it is not empty at the deadline.
    pub(crate) fn wait_empty(&self, deadline: Deadline) -> bool {
        self.wait_until(|| self.len() == 0, deadline)
    }

    fn wait_until(&self, ready: impl Fn() -> bool, deadline: Deadline) -> bool {
        let mut guard = self.lock.lock();
        // Counted before the check: a thread that gives room back after the check sees this one
        // waiting.
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut is_ready = ready();
        while !is_ready {
            let timed_out = self
                .changed
                .wait_until(&mut guard, deadline.at())
                .timed_out();
            is_ready = ready();
            if timed_out {
                break;
            }
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        is_ready
    }

    /// Gives room back.
    #[inline]
    pub(crate) fn give_back(&self, weight: Weight) {
        self.taken.fetch_sub(weight.0, Ordering::SeqCst);
        self.look_again();
    }

    /// Lets waiting threads check again.
    #[inline]
    pub(crate) fn look_again(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            // A thread between its check and its wait holds the lock.
            drop(self.lock.lock());
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn is_full_by_messages_or_by_bytes_but_takes_one_message_of_any_size() {
        let window = Window::new(2, 100);
        let one = Weight::of(1);
        assert!(window.try_take(one) && window.try_take(one) && !window.try_take(one));
        window.give_back(one);
        assert!(!window.try_take(Weight::of(100)) && window.try_take(Weight::of(99)));
        window.give_back(Weight::of(99));
        window.give_back(one);
        let huge = Weight::of(usize::MAX);
        assert!(window.try_take(huge) && !window.try_take(Weight::of(0)));
        assert_eq!(window.taken(), (1, huge.bytes()));
        window.give_back(huge);
        assert_eq!(window.len(), 0);
        assert!(!Window::new(1, u64::MAX).try_take(huge) || window.try_take(huge));
    }

    #[test]
    fn no_thread_waits_for_room_that_exists() {
        const WINDOW: u32 = 3;
        let window = Arc::new(Window::new(WINDOW, u64::MAX));
        let inside = Arc::new(AtomicU32::new(0));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (window, inside) = (Arc::clone(&window), Arc::clone(&inside));
                thread::spawn(move || {
                    for size in 0..2_000 {
                        let weight = Weight::of(size);
                        let soon = Deadline::after(Duration::from_secs(60));
                        assert_eq!(window.take(weight, soon, || false), Ok(()));
                        assert!(inside.fetch_add(1, Ordering::SeqCst) < WINDOW);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        window.give_back(weight);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(window.wait_empty(Deadline::after(Duration::ZERO)));
    }
}
