//! Delivery tags: which were settled by a `multiple` acknowledgement, and which belong to a lost
//! connection.

/// The broker counts the deliveries of a channel from 1 on each connection. The tags that the
/// program sees keep increasing, so that a message of a lost connection is never confused with
/// another.
#[derive(Debug, Default)]
pub(crate) struct DeliveryTags {
    settled: Settled,
    /// The highest tag of earlier connections. The broker has requeued those messages, unless they
    /// were settled.
    stale_to: u64,
    /// Some messages of earlier connections may have been unsettled at the loss, and no `multiple`
    /// acknowledgement was sent since.
    stale_unsettled: bool,
}

/// What `multiple` acknowledgements may have settled. This matters for giving back unread messages:
/// settling a message twice costs the channel (406).
#[derive(Debug)]
enum Settled {
    /// All messages up to this tag.
    To(u64),
    /// All messages that the broker had sent when it read an acknowledgement of all messages, which
    /// followed this call. How far that reaches is unknown: more may have been on their way.
    AllAfter { last_call: u64 },
}

impl Default for Settled {
    fn default() -> Self {
        Self::To(0)
    }
}

impl DeliveryTags {
    /// The highest tag of earlier connections.
    pub(crate) fn stale_to(&self) -> u64 {
        self.stale_to
    }

    /// The broker's tag for a message. Returns `None` if the message is from an earlier connection.
    /// 0 means all messages.
    #[inline]
    pub(crate) fn broker_tag(&self, delivery_tag: u64) -> Option<u64> {
        if delivery_tag == 0 {
            return Some(0);
        }
        let tag = delivery_tag.checked_sub(self.stale_to);
        tag.filter(|tag| *tag > 0)
    }

    /// The broker's channel is lost. `last_tag` was its last one.
    pub(super) fn interrupted(&mut self, last_tag: u64) {
        let last_tag = last_tag.max(self.stale_to);
        self.stale_unsettled |= !self.is_settled(last_tag);
        self.stale_to = last_tag;
        self.settled = Settled::To(last_tag);
    }

    /// Whether a `multiple` acknowledgement may also mean messages of an earlier connection, which
    /// it does not reach. True once for each loss.
    pub(super) fn take_stale_unsettled(&mut self) -> bool {
        std::mem::take(&mut self.stale_unsettled)
    }

    /// A `multiple` acknowledgement settles all messages up to this tag; 0 means all that the
    /// broker has sent. `last_call` is the number of the last call before it.
    pub(crate) fn up_to(&mut self, delivery_tag: u64, last_call: u64) {
        match (&mut self.settled, delivery_tag) {
            (settled, 0) => *settled = Settled::AllAfter { last_call },
            (Settled::To(last), _) => *last = delivery_tag.max(*last),
            (Settled::AllAfter { .. }, _) => {}
        }
    }

    /// The broker replied to this call, so it has read everything that was sent before the call.
    /// Messages after `last_tag` followed the reply, and are unsettled.
    pub(crate) fn broker_replied(&mut self, call_number: u64, last_tag: u64) {
        match self.settled {
            Settled::AllAfter { last_call } if last_call < call_number => {
                self.settled = Settled::To(last_tag);
            }
            Settled::AllAfter { .. } | Settled::To(_) => {}
        }
    }

    /// The broker's tag for a message that it has not requeued, and that no `multiple`
    /// acknowledgement has settled.
    pub(crate) fn unsettled(&self, delivery_tag: u64) -> Option<u64> {
        let broker_tag = self.broker_tag(delivery_tag);
        broker_tag.filter(|_| !self.is_settled(delivery_tag))
    }

    pub(crate) fn is_settled(&self, delivery_tag: u64) -> bool {
        match self.settled {
            Settled::To(last) => delivery_tag <= last,
            Settled::AllAfter { .. } => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ack_all_is_uncertain_until_the_broker_has_read_it() {
        let mut tags = DeliveryTags::default();
        assert!(!tags.is_settled(1));
        tags.up_to(3, 0);
        assert!(tags.is_settled(3) && !tags.is_settled(4));
        tags.up_to(2, 0);
        assert!(tags.is_settled(3));
        tags.up_to(0, 4);
        tags.up_to(5, 4);
        assert!(tags.is_settled(7) && tags.is_settled(8));
        // This call came first, so the broker may send more before it reads the acknowledgement.
        tags.broker_replied(4, 7);
        assert!(tags.is_settled(7) && tags.is_settled(8));
        tags.broker_replied(5, 7);
        assert!(tags.is_settled(7) && !tags.is_settled(8));
        tags.broker_replied(6, 9);
        assert!(!tags.is_settled(8));
    }

    #[test]
    fn tags_keep_increasing_after_a_loss() {
        let mut tags = DeliveryTags::default();
        assert_eq!((tags.stale_to(), tags.broker_tag(3)), (0, Some(3)));
        tags.up_to(0, 0);
        tags.interrupted(3);
        assert_eq!((tags.broker_tag(3), tags.broker_tag(0)), (None, Some(0)));
        assert!(!tags.take_stale_unsettled());
        assert_eq!((tags.stale_to(), tags.broker_tag(4)), (3, Some(1)));
        let unsettled = [3, 4, 5].map(|tag| tags.unsettled(tag));
        assert_eq!(unsettled, [None, Some(1), Some(2)]);
        tags.up_to(4, 0);
        assert_eq!(tags.unsettled(4), None);
        tags.interrupted(5);
        // A channel that the core never knew has no last tag.
        tags.interrupted(0);
        assert!(tags.take_stale_unsettled() && !tags.take_stale_unsettled());
        assert_eq!((tags.stale_to(), tags.broker_tag(5)), (5, None));
        assert_eq!(tags.broker_tag(7), Some(2));
    }
}
