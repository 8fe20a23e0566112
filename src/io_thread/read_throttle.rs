//! When a connection reads its socket, and when it leaves the broker's messages there.

use std::time::{Duration, Instant};

use crate::log_line::{log_line, Label};

/// How often a connection that does not read looks whether it may; beyond its limit it reads once each time.
const LOOK: Duration = Duration::from_millis(20);

/// Whether a connection reads its socket, or leaves the broker's messages there.
///
/// Up to half of its limit it reads freely. The other half is for the messages that lie before an answer which someone
/// waits for. Beyond the limit it reads so little for him that memory grows slowly, and yet the answer comes: a thread
/// that takes no messages because it waits must not wait in vain.
#[derive(Debug)]
pub(crate) struct ReadThrottle {
    limit: u64,
    /// At least as much as is unread.
    unread: u64,
    /// Not before this time; none while it reads.
    pauses_until: Option<Instant>,
    told: Told,
    /// Names the connection in the log.
    label: Label,
}

/// What the log has been told, once each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Nothing,
    Pauses,
    BeyondLimit,
}

impl ReadThrottle {
    pub(crate) fn new(limit: u64, label: Label) -> Self {
        Self {
            limit,
            unread: 0,
            pauses_until: None,
            told: Told::Nothing,
            label,
        }
    }

    /// So many bytes were put into a consumer's channel.
    pub(crate) fn delivered(&mut self, bytes: u64) {
        self.unread = self.unread.saturating_add(bytes);
    }

    /// The common case, which needs no clock.
    #[inline]
    pub(crate) fn is_free(&self) -> bool {
        self.unread <= self.limit / 2
    }

    pub(crate) fn pauses_until(&self) -> Option<Instant> {
        self.pauses_until
    }

    pub(crate) fn may_read(
        &mut self,
        now: Instant,
        count_unread: impl FnOnce() -> u64,
        someone_waits: impl Fn() -> bool,
    ) -> bool {
        if self.is_free() {
            return true;
        }
        let pauses = self.pauses_until.is_some_and(|until| now < until);
        if pauses && (self.unread > self.limit || !someone_waits()) {
            return false;
        }
        self.unread = count_unread();
        let may_read = self.is_free() || someone_waits();
        let pauses = !may_read || self.unread > self.limit;
        self.pauses_until = pauses.then(|| now + LOOK);
        if pauses {
            self.tell();
        }
        may_read
    }

    fn tell(&mut self) {
        let Self {
            limit,
            unread,
            label,
            ..
        } = self;
        if unread > limit && self.told < Told::BeyondLimit {
            self.told = Told::BeyondLimit;
            log_line!(
                Warn,
                label,
                "{unread} bytes of messages wait for consumers, more than max_unread_bytes ({limit}): answers of the \
                 broker come slowly until they have caught up. With acknowledgements and basic_qos it would not send \
                 so many"
            );
        } else if self.told < Told::Pauses {
            self.told = Told::Pauses;
            log_line!(
                Info,
                label,
                "{unread} bytes of messages wait for consumers: the connection reads on when they have caught up"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods)] // A beginning; all else is counted from it.
    fn half_of_the_limit_is_for_those_who_wait_and_beyond_it_reading_is_slow() {
        let now = Instant::now();
        let mut read_throttle = ReadThrottle::new(100, Label::new("test", "nowhere"));
        let nobody = || false;
        read_throttle.delivered(50);
        assert!(read_throttle.may_read(now, || unreachable!(), nobody));
        // It counts only when it has to.
        read_throttle.delivered(1);
        assert!(read_throttle.may_read(now, || 40, nobody));
        read_throttle.delivered(11);
        assert!(!read_throttle.may_read(now, || 51, nobody));
        let later = read_throttle.pauses_until().unwrap();
        assert!(
            !read_throttle.may_read(now, || 0, nobody),
            "it looks now and then"
        );
        assert!(
            read_throttle.may_read(now, || 51, || true),
            "for callers at once"
        );
        assert!(read_throttle.may_read(later, || 51, || true));
        assert!(
            read_throttle.may_read(later, || 100, || true),
            "nothing pauses"
        );
        // Once, then again after a while.
        assert!(read_throttle.may_read(later, || 101, || true));
        assert!(!read_throttle.may_read(later, || 101, || true));
        let latest = read_throttle.pauses_until().unwrap();
        assert!(read_throttle.may_read(latest, || 101, || true));
        assert!(read_throttle.may_read(latest + LOOK, || 50, nobody));
        assert_eq!(read_throttle.pauses_until(), None);
    }
}
