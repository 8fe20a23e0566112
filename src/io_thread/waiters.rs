//! Counts threads that wait for what only the socket can bring.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Threads that wait for what only the socket can bring. (Those who wait for a reply the core knows itself.)
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    threads: AtomicUsize,
}

/// One who waits, until this goes.
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
