//! Deadlines of blocking calls.

use std::time::{Duration, Instant};

/// A point in time, shared by all the waits of one call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    begun: Instant,
    at: Instant,
    after: Duration,
}

impl Deadline {
    #[allow(clippy::disallowed_methods)] // A blocking call has to know when it began.
    pub(crate) fn after(after: Duration) -> Self {
        // A longer duration means "forever", and could overflow the clock.
        const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
        let begun = Instant::now();
        let at = begun + after.min(FOREVER);
        Self { begun, at, after }
    }

    /// A deadline for the first of `among` attempts that share the remaining time equally.
    pub(crate) fn share(&self, among: usize) -> Self {
        match u32::try_from(among) {
            Ok(among @ 2..) => Self::after(self.remaining() / among),
            // A single attempt keeps `duration` as well, which a timeout's error shows.
            _ => *self,
        }
    }

    pub(crate) fn at(&self) -> Instant {
        self.at
    }

    /// The duration that this deadline was made from.
    pub(crate) fn duration(&self) -> Duration {
        self.after
    }

    /// The time since this deadline was set.
    #[allow(clippy::disallowed_methods)]
    pub(crate) fn elapsed(&self) -> Duration {
        Instant::now().saturating_duration_since(self.begun)
    }

    /// The time left; zero if the deadline has passed.
    #[allow(clippy::disallowed_methods)]
    pub(crate) fn remaining(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }
}
