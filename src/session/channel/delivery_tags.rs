//! Delivery tags: which of them have been answered for together with others, and which are of a lost connection.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The broker counts the deliveries of a channel from 1 on each connection. To the program they are counted on, so that
/// a message of a lost connection is never taken for another.
///
/// Delivery tags up to `to` may be settled, by an answer that was for many. Whoever gives an unread message back
/// has to know: answering twice costs the channel (406).
#[derive(Debug, Default)]
pub(crate) struct DeliveryTags {
    to: AtomicU64,
    /// The highest tag that has come.
    received: AtomicU64,
    /// The highest tag that came on an earlier connection: there the broker has requeued what was not settled.
    stale_to: AtomicU64,
    /// Some of those may have been without an answer, and no answer for many has come since.
    stale_open: AtomicBool,
}

/// An answer for "all", of which nobody here knows how far it reaches: the broker can have sent more meanwhile.
const UNCERTAIN: u64 = u64::MAX;

impl DeliveryTags {
    /// Returns the tag by which the program knows a message.
    #[inline]
    pub(crate) fn received(&self, broker_tag: u64) -> u64 {
        let stale_to = self.stale_to.load(Ordering::Relaxed);
        let delivery_tag = broker_tag.saturating_add(stale_to);
        self.received.store(delivery_tag, Ordering::Release);
        delivery_tag
    }

    /// The broker's tag for a message; none if that was delivered on an earlier connection. 0 stands for all.
    #[inline]
    pub(crate) fn broker_tag(&self, delivery_tag: u64) -> Option<u64> {
        if delivery_tag == 0 {
            return Some(0);
        }
        let stale_to = self.stale_to.load(Ordering::Acquire);
        delivery_tag.checked_sub(stale_to).filter(|tag| *tag > 0)
    }

    /// The connection was lost. Under the outbox's lock.
    pub(crate) fn interrupted(&self) {
        let received = self.received.load(Ordering::Acquire);
        if !self.contains(received) {
            self.stale_open.store(true, Ordering::Release);
        }
        self.stale_to.store(received, Ordering::Release);
        self.to.store(received, Ordering::Release);
    }

    /// Whether an answer for many may also be for messages of an earlier connection, which do not get it. True once for
    /// each loss. Under the outbox's lock.
    pub(crate) fn take_stale_open(&self) -> bool {
        self.stale_open.swap(false, Ordering::AcqRel)
    }

    /// All up to this tag are answered for; 0 means all that the broker has sent. Under the outbox's lock, like every
    /// answer.
    pub(crate) fn up_to(&self, delivery_tag: u64) {
        let to = if delivery_tag == 0 {
            UNCERTAIN
        } else {
            delivery_tag
        };
        self.to.fetch_max(to, Ordering::AcqRel);
    }

    /// The broker has replied to a call, and so has read all that was sent before it. On the IO thread, since what comes
    /// behind the reply is not settled.
    #[inline]
    pub(crate) fn broker_replied(&self) {
        if self.to.load(Ordering::Acquire) == UNCERTAIN {
            let received = self.received.load(Ordering::Acquire);
            self.to.store(received, Ordering::Release);
        }
    }

    pub(crate) fn contains(&self, delivery_tag: u64) -> bool {
        delivery_tag <= self.to.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_for_all_is_uncertain_until_the_broker_has_read_it() {
        let settled = DeliveryTags::default();
        assert_eq!(settled.received(5), 5);
        assert!(!settled.contains(1));
        settled.up_to(3);
        assert!(settled.contains(3) && !settled.contains(4));
        settled.up_to(2);
        assert!(settled.contains(3));
        settled.up_to(0);
        settled.received(7);
        assert!(settled.contains(7) && settled.contains(8));
        settled.broker_replied();
        assert!(settled.contains(7) && !settled.contains(8));
    }

    #[test]
    fn tags_are_counted_on_when_the_connection_was_lost() {
        let settled = DeliveryTags::default();
        assert_eq!((settled.received(3), settled.broker_tag(3)), (3, Some(3)));
        settled.up_to(0);
        settled.interrupted();
        assert_eq!(
            (settled.broker_tag(3), settled.broker_tag(0)),
            (None, Some(0))
        );
        assert!(!settled.take_stale_open());
        assert_eq!((settled.received(1), settled.broker_tag(4)), (4, Some(1)));
        assert!(settled.contains(3) && !settled.contains(4));
        settled.interrupted();
        assert!(settled.take_stale_open() && !settled.take_stale_open());
        assert_eq!((settled.received(2), settled.broker_tag(4)), (6, None));
        assert_eq!(settled.broker_tag(6), Some(2));
    }
}
