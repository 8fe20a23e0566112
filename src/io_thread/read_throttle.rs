//! Decides when the IO thread reads the socket, and when reading pauses.

use std::time::{Duration, Instant};

use crate::log_line::{log_line, Label};

/// While reading pauses, how often to look whether it may go on. Above the limit, the IO thread
/// reads at most once in this time.
const LOOK: Duration = Duration::from_millis(20);

/// Pauses reading while the program has too many unread messages, which then stay in the socket.
///
/// Up to half of the limit, the connection reads freely. Between half and all of it, the connection
/// reads only while a thread waits for an answer of the broker, which comes after the messages that
/// were sent before. Above the limit it still reads for such a thread, but slowly, so that memory
/// grows slowly and yet the answer comes: a thread that consumes nothing while it waits for a reply
/// must not wait in vain.
#[derive(Debug)]
pub(crate) struct ReadThrottle {
    limit: u64,
    /// An upper bound on the unread bytes, exact when they were last counted.
    unread: u64,
    /// When to look again whether reading may go on; `None` while it does not pause.
    pauses_until: Option<Instant>,
    told: Told,
    label: Label,
}

/// What the log already says. Each line is written once a connection.
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

    /// Adds the bytes that a consumer was given.
    pub(crate) fn delivered(&mut self, bytes: u64) {
        self.unread = self.unread.saturating_add(bytes);
    }

    /// Whether the connection reads freely: the common case, which needs no clock.
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
        answer_awaited: impl Fn() -> bool,
    ) -> bool {
        if self.is_free() {
            return true;
        }
        let pauses = self.pauses_until.is_some_and(|until| now < until);
        if pauses && (self.unread > self.limit || !answer_awaited()) {
            return false;
        }
        self.unread = count_unread();
        let may_read = self.is_free() || answer_awaited();
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
                "{unread} bytes are waiting for consumers (max_unread_bytes is {limit}): replies \
                 are delayed until they catch up; use acknowledgements with basic_qos"
            );
        } else if self.told < Told::Pauses {
            self.told = Told::Pauses;
            log_line!(
                Info,
                label,
                "{unread} bytes are waiting for consumers (max_unread_bytes is {limit}): reading \
                 pauses until they catch up"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods)] // Any start will do; all other times are relative to it.
    fn reads_for_waiting_threads_above_half_of_the_limit_and_slowly_above_all_of_it() {
        let now = Instant::now();
        let mut read_throttle = ReadThrottle::new(100, Label::new("test", "nowhere"));
        let not_awaited = || false;
        read_throttle.delivered(50);
        assert!(read_throttle.may_read(now, || unreachable!(), not_awaited));
        // It counts only above half of the limit.
        read_throttle.delivered(1);
        assert!(read_throttle.may_read(now, || 40, not_awaited));
        read_throttle.delivered(11);
        assert!(!read_throttle.may_read(now, || 51, not_awaited));
        let later = read_throttle.pauses_until().unwrap();
        assert!(
            !read_throttle.may_read(now, || 0, not_awaited),
            "not before the pause is over"
        );
        assert!(
            read_throttle.may_read(now, || 51, || true),
            "at once for a caller"
        );
        assert!(read_throttle.may_read(later, || 51, || true));
        assert!(
            read_throttle.may_read(later, || 100, || true),
            "no pause up to the limit"
        );
        // One read, then a pause.
        assert!(read_throttle.may_read(later, || 101, || true));
        assert!(!read_throttle.may_read(later, || 101, || true));
        let latest = read_throttle.pauses_until().unwrap();
        assert!(read_throttle.may_read(latest, || 101, || true));
        assert!(read_throttle.may_read(latest + LOOK, || 50, not_awaited));
        assert_eq!(read_throttle.pauses_until(), None);
    }
}
