//! Which deliveries have been answered for together with others.

use std::sync::atomic::{AtomicU64, Ordering};

/// Delivery tags up to this one may be settled, by an answer that was for many. Whoever gives an unread message back
/// has to know: answering twice costs the channel (406).
#[derive(Debug, Default)]
pub(crate) struct Settled {
    to: AtomicU64,
    /// The highest tag that has come.
    received: AtomicU64,
}

/// An answer for "all", of which nobody here knows how far it reaches: the broker can have sent more meanwhile.
const UNCERTAIN: u64 = u64::MAX;

impl Settled {
    #[inline]
    pub(crate) fn received(&self, delivery_tag: u64) {
        self.received.store(delivery_tag, Ordering::Release);
    }

    /// All up to this tag are answered for; 0 means all that the broker has sent. Under the outbox's lock, like every
    /// answer.
    pub(super) fn up_to(&self, delivery_tag: u64) {
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
    pub(super) fn broker_replied(&self) {
        if self.to.load(Ordering::Acquire) == UNCERTAIN {
            let received = self.received.load(Ordering::Acquire);
            self.to.store(received, Ordering::Release);
        }
    }

    pub(super) fn contains(&self, delivery_tag: u64) -> bool {
        delivery_tag <= self.to.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_for_all_is_uncertain_until_the_broker_has_read_it() {
        let settled = Settled::default();
        settled.received(5);
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
}
