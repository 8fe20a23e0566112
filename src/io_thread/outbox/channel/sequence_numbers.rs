//! The sequence numbers of the messages that a channel publishes in confirm mode.

use crate::proto::Leftover;

/// Numbers start at 1 on each channel, and keep increasing across reconnects.
#[derive(Debug, Default)]
pub(crate) struct SequenceNumbers {
    /// The last message.
    last: u64,
    /// The last message that was published without a `Confirm`; 0 if that was lost.
    unawaited: u64,
}

impl SequenceNumbers {
    /// The number of the last message.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// Takes the number for a message. `has_confirm` tells whether the message has a `Confirm`.
    #[inline]
    pub(super) fn next(&mut self, has_confirm: bool) -> u64 {
        self.last += 1;
        if !has_confirm {
            self.unawaited = self.last;
        }
        self.last
    }

    /// The connection was lost. Returns the last unanswered message that was published without a
    /// `Confirm`. Messages with a `Confirm` are reported through it.
    pub(crate) fn take_unawaited(&mut self, leftover: Leftover) -> Option<u64> {
        let never_sent = Some(self.take_last_unawaited()).filter(|it| *it > leftover.last_known);
        never_sent.or(leftover.unanswered)
    }

    /// The last message without a `Confirm`, answered or not. Each loss is reported once.
    pub(crate) fn take_last_unawaited(&mut self) -> u64 {
        std::mem::take(&mut self.unawaited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_reports_the_last_message_without_a_confirm_once() {
        let mut numbers = SequenceNumbers::default();
        let taken = [false, true, false, true].map(|has_confirm| numbers.next(has_confirm));
        assert_eq!((taken, numbers.last()), ([1, 2, 3, 4], 4));
        let leftover = |last_known, unanswered| Leftover {
            last_known,
            unanswered,
            last_tag: 0,
        };
        // The core has not heard of the third message, which was never sent.
        assert_eq!(numbers.take_unawaited(leftover(2, Some(1))), Some(3));
        assert_eq!(numbers.take_unawaited(leftover(2, None)), None);
        assert_eq!(numbers.next(false), 5);
        assert_eq!(numbers.take_unawaited(leftover(5, None)), None);
        assert_eq!(numbers.next(true), 6);
        assert_eq!(numbers.take_unawaited(leftover(6, Some(5))), Some(5));
    }
}
