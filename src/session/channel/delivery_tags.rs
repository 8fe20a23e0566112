//! Delivery tags: which were settled by a `multiple` acknowledgement, and which belong to a lost
//! connection.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The broker counts the deliveries of a channel from 1 on each connection. The tags that the
/// program sees keep increasing, so that a message of a lost connection is never confused with
/// another.
///
/// A `multiple` acknowledgement may have settled all tags up to `settled_to`. This matters for
/// giving back unread messages: settling a message twice costs the channel (406).
#[derive(Debug, Default)]
pub(crate) struct DeliveryTags {
    settled_to: AtomicU64,
    /// The last call before the last acknowledgement of all messages.
    uncertain_since: AtomicU64,
    /// The highest tag that came before the channel was last interrupted or ended.
    last: AtomicU64,
    /// The highest tag of earlier connections. The broker has requeued those messages, unless they
    /// were settled.
    stale_to: AtomicU64,
    /// Some messages of earlier connections may have been unsettled at the loss, and no `multiple`
    /// acknowledgement was sent since.
    stale_unsettled: AtomicBool,
}

/// Stands for an acknowledgement of "all messages". How far it reaches is unknown, since the broker
/// may have sent more meanwhile.
const UNCERTAIN: u64 = u64::MAX;

impl DeliveryTags {
    /// The channel was interrupted or has ended after this tag.
    pub(crate) fn set_last(&self, last_tag: u64) {
        self.last.fetch_max(last_tag, Ordering::AcqRel);
    }

    /// The highest tag of earlier connections.
    pub(crate) fn stale_to(&self) -> u64 {
        self.stale_to.load(Ordering::Acquire)
    }

    /// The broker's tag for a message. Returns `None` if the message is from an earlier connection.
    /// 0 means all messages.
    #[inline]
    pub(crate) fn broker_tag(&self, delivery_tag: u64) -> Option<u64> {
        if delivery_tag == 0 {
            return Some(0);
        }
        let stale_to = self.stale_to.load(Ordering::Acquire);
        delivery_tag.checked_sub(stale_to).filter(|tag| *tag > 0)
    }

    /// The connection was lost. Called under the outbox's lock.
    pub(crate) fn interrupted(&self) {
        let last = self.last.load(Ordering::Acquire);
        if !self.is_settled(last) {
            self.stale_unsettled.store(true, Ordering::Release);
        }
        self.stale_to.store(last, Ordering::Release);
        self.settled_to.store(last, Ordering::Release);
    }

    /// Whether a `multiple` acknowledgement may also mean messages of an earlier connection, which
    /// it does not reach. True once for each loss. Called under the outbox's lock.
    pub(crate) fn take_stale_open(&self) -> bool {
        self.stale_unsettled.swap(false, Ordering::AcqRel)
    }

    /// A `multiple` acknowledgement settles all messages up to this tag; 0 means all that the
    /// broker has sent. `last_call` is the number of the last call before it. Called under the
    /// outbox's lock, like every acknowledgement.
    pub(crate) fn up_to(&self, delivery_tag: u64, last_call: u64) {
        let settled_to = if delivery_tag == 0 {
            self.uncertain_since.store(last_call, Ordering::Release);
            UNCERTAIN
        } else {
            delivery_tag
        };
        self.settled_to.fetch_max(settled_to, Ordering::AcqRel);
    }

    /// Whether it is uncertain how far an acknowledgement of all messages reaches, and the reply to
    /// this call ends that: the broker has read everything that was sent before the call.
    #[inline]
    pub(crate) fn is_made_certain_by(&self, call_number: u64) -> bool {
        self.settled_to.load(Ordering::Acquire) == UNCERTAIN
            && self.uncertain_since.load(Ordering::Acquire) < call_number
    }

    /// The broker replied to this call after it had sent `last_tag`. Later messages are unsettled.
    /// Called under the outbox's lock, like every acknowledgement.
    pub(crate) fn broker_replied(&self, call_number: u64, last_tag: u64) {
        if self.is_made_certain_by(call_number) {
            self.settled_to.store(last_tag, Ordering::Release);
        }
    }

    pub(crate) fn is_settled(&self, delivery_tag: u64) -> bool {
        delivery_tag <= self.settled_to.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ack_all_is_uncertain_until_the_broker_has_read_it() {
        let tags = DeliveryTags::default();
        assert!(!tags.is_settled(1));
        tags.up_to(3, 0);
        assert!(tags.is_settled(3) && !tags.is_settled(4));
        tags.up_to(2, 0);
        assert!(tags.is_settled(3));
        tags.up_to(0, 4);
        assert!(tags.is_settled(7) && tags.is_settled(8));
        // This call came first, so the broker may send more before it reads the acknowledgement.
        tags.broker_replied(4, 7);
        assert!(tags.is_settled(7) && tags.is_settled(8));
        tags.broker_replied(5, 7);
        assert!(tags.is_settled(7) && !tags.is_settled(8));
    }

    #[test]
    fn tags_keep_increasing_after_a_loss() {
        let tags = DeliveryTags::default();
        assert_eq!((tags.stale_to(), tags.broker_tag(3)), (0, Some(3)));
        tags.up_to(0, 0);
        tags.set_last(3);
        tags.interrupted();
        assert_eq!((tags.broker_tag(3), tags.broker_tag(0)), (None, Some(0)));
        assert!(!tags.take_stale_open());
        assert_eq!((tags.stale_to(), tags.broker_tag(4)), (3, Some(1)));
        assert!(tags.is_settled(3) && !tags.is_settled(4));
        tags.set_last(4);
        tags.interrupted();
        assert!(tags.take_stale_open() && !tags.take_stale_open());
        assert_eq!((tags.stale_to(), tags.broker_tag(4)), (4, None));
        assert_eq!(tags.broker_tag(6), Some(2));
    }
}
