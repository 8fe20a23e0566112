//! Messages without confirms that no flush has waited for.

use crate::error::Error;

/// Messages have the numbers of [`State::messages`](super::super::state::State::messages), which
/// count on through all channels.
#[derive(Debug, Default)]
pub(crate) struct Unflushed {
    /// The last message.
    last: u64,
    /// All messages up to this one were flushed, or are lost.
    done_to: u64,
    /// Messages that were not flushed may be lost, for this reason.
    lost_with: Option<Error>,
}

impl Unflushed {
    #[inline]
    pub(super) fn published(&mut self, number: u64) {
        self.last = number;
    }

    /// The connection is lost.
    pub(crate) fn lost(&mut self, cause: &Error) {
        if self.last > self.done_to {
            self.done_to = self.last;
            self.lose(cause);
        }
    }

    /// The next flush reports this loss, unless it reports an earlier one.
    pub(crate) fn lose(&mut self, cause: &Error) {
        self.lost_with.get_or_insert_with(|| cause.clone());
    }

    /// All messages up to this one are flushed. If others may be lost, returns the cause, once.
    pub(crate) fn flushed(&mut self, number: u64) -> Option<Error> {
        self.done_to = self.done_to.max(number);
        self.lost_with.take()
    }

    /// The channel has ended, which its calls report.
    pub(super) fn ended(&mut self) {
        self.done_to = self.last;
        self.lost_with = None;
    }

    /// Another channel gets the place of this one, whose handles are gone: the connection's next
    /// flush covers what is left.
    pub(crate) fn inherit(&mut self, from: Self) {
        if let Some(cause) = &from.lost_with {
            self.lose(cause);
        }
        if from.last > from.done_to {
            self.last = self.last.max(from.last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(text: &str) -> Error {
        Error::invalid(text)
    }

    #[test]
    fn a_flush_reports_a_loss_of_what_was_published_before_it_once() {
        let mut unflushed = Unflushed::default();
        unflushed.lost(&cause("nothing was published"));
        unflushed.published(3);
        assert_eq!(unflushed.flushed(3), None);
        unflushed.lost(&cause("it was flushed"));
        assert_eq!(unflushed.flushed(4), None);
        unflushed.published(5);
        unflushed.published(7);
        assert_eq!(unflushed.flushed(6), None);
        unflushed.lost(&cause("first"));
        unflushed.published(8);
        assert_eq!(unflushed.flushed(7), Some(cause("first")));
        // It does not cover the message after the loss.
        unflushed.lost(&cause("second"));
        unflushed.published(9);
        unflushed.lost(&cause("third"));
        assert_eq!(unflushed.flushed(9), Some(cause("second")));
        assert_eq!(unflushed.flushed(9), None);
        unflushed.published(10);
        unflushed.lost(&cause("before the end"));
        unflushed.ended();
        assert_eq!(unflushed.flushed(10), None);
    }

    #[test]
    fn what_a_dropped_channel_leaves_is_inherited() {
        let dropped = |last, loss: Option<&str>| {
            let mut unflushed = Unflushed::default();
            unflushed.published(last);
            if let Some(loss) = loss {
                unflushed.lost(&cause(loss));
            }
            unflushed
        };
        let mut heir = Unflushed::default();
        heir.inherit(dropped(5, None));
        heir.lost(&cause("later"));
        assert_eq!(heir.flushed(5), Some(cause("later")));
        heir.inherit(dropped(6, Some("earlier")));
        heir.lost(&cause("later"));
        assert_eq!(heir.flushed(6), Some(cause("earlier")));
        let mut flushed = dropped(7, None);
        flushed.flushed(7);
        heir.inherit(flushed);
        heir.lost(&cause("later"));
        assert_eq!(heir.flushed(7), None);
    }
}
