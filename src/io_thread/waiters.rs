//! Counts the threads that wait for input from the socket, so that reading goes on for them.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the threads that wait for input from the socket, such as confirms. Callers that wait for
/// a reply are not counted here: the core knows them.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    threads: AtomicUsize,
}

/// Counts one thread until dropped.
pub(crate) struct WaitGuard<'a>(&'a Waiters);

impl Waiters {
    pub(crate) fn begin(&self) -> WaitGuard<'_> {
        self.threads.fetch_add(1, Ordering::Relaxed);
        WaitGuard(self)
    }

    pub(crate) fn any(&self) -> bool {
        self.threads.load(Ordering::Relaxed) > 0
    }
}

impl Drop for WaitGuard<'_> {
    fn drop(&mut self) {
        self.0.threads.fetch_sub(1, Ordering::Relaxed);
    }
}
