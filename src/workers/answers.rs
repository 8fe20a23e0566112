//! Whether the broker has what a thread has acknowledged.

use crate::channel::Answered;

/// What became of the acknowledgements of one thread. Those of an earlier connection do not matter
/// once the consumer has gone on: the broker has delivered their messages again.
pub(super) struct Answers {
    prefetch: u64,
    /// The connection on which the last ones were sent.
    pub(super) epoch: u64,
    sent: u64,
    /// The last one was not sent.
    is_last_lost: bool,
}

impl Answers {
    pub(super) fn new(prefetch: u16) -> Self {
        Self {
            prefetch: prefetch.into(),
            epoch: 0,
            sent: 0,
            is_last_lost: false,
        }
    }

    pub(super) fn forget(&mut self) {
        self.sent = 0;
        self.is_last_lost = false;
    }

    pub(super) fn note(&mut self, answered: Answered) {
        match answered {
            Answered::Sent { epoch } => {
                if self.is_last_lost || self.epoch != epoch {
                    self.forget();
                }
                self.epoch = epoch;
                self.sent += 1;
            }
            Answered::NotSent => {
                if self.is_last_lost {
                    self.forget();
                }
                self.is_last_lost = true;
            }
        }
    }

    /// How many the broker does not have, and how many more it may not have, when all that was sent
    /// on the connection of this epoch has reached it.
    pub(super) fn lost(&self, confirmed_in: Option<u64>) -> (u64, u64) {
        let not_sent = u64::from(self.is_last_lost);
        if confirmed_in == Some(self.epoch) {
            return (not_sent, 0);
        }
        // It has read all others, or it would not have delivered the last message.
        let unread = self.sent.min(self.prefetch.saturating_sub(not_sent));
        (not_sent, unread)
    }
}
