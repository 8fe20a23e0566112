//! How long a caller still waits.

use std::time::{Duration, Instant};

/// A point in time that several waits of one call share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    begun: Instant,
    at: Instant,
    after: Duration,
}

impl Deadline {
    #[allow(clippy::disallowed_methods)] // A blocking call has to know when it began.
    pub(crate) fn after(after: Duration) -> Self {
        // A duration that leads beyond the clock's end means "for ever"; a hundred years are enough.
        const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
        let begun = Instant::now();
        let at = begun + after.min(FOREVER);
        Self { begun, at, after }
    }

    /// What each of so many gets of the time that is left.
    pub(crate) fn share(&self, among: usize) -> Self {
        match u32::try_from(among) {
            Ok(among @ 2..) => Self::after(self.remaining() / among),
            // Alone it has all, and is said to have had all.
            _ => *self,
        }
    }

    pub(crate) fn at(&self) -> Instant {
        self.at
    }

    /// The duration it was made of.
    pub(crate) fn duration(&self) -> Duration {
        self.after
    }

    /// How much has passed since it was set.
    #[allow(clippy::disallowed_methods)]
    pub(crate) fn elapsed(&self) -> Duration {
        Instant::now().saturating_duration_since(self.begun)
    }

    /// What is left; zero if it has passed.
    #[allow(clippy::disallowed_methods)]
    pub(crate) fn remaining(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }
}
