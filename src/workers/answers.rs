//! Tracks whether the broker has the acknowledgements of a thread.

use crate::channel::Answered;
use crate::error::ErrorKind;

/// The acknowledgements that a thread has sent on one channel. Those of an earlier connection do
/// not matter once the consumer continues: the broker has redelivered their messages.
pub(super) struct Answers {
    prefetch: u64,
    /// The connection on which the last acknowledgements were sent.
    pub(super) epoch: u64,
    sent: u64,
    /// Whether the last acknowledgement was not sent.
    is_last_lost: bool,
}

/// How many acknowledgements were not sent, and how many more the broker may not have.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct LostAnswers {
    not_sent: u64,
    unconfirmed: u64,
}

impl LostAnswers {
    pub(super) fn is_none(self) -> bool {
        self == Self::default()
    }

    pub(super) fn add(&mut self, others: Self) {
        self.not_sent += others.not_sent;
        self.unconfirmed += others.unconfirmed;
    }

    pub(super) fn kind(self) -> ErrorKind {
        ErrorKind::AcksLost {
            not_sent: self.not_sent,
            unconfirmed: self.unconfirmed,
        }
    }
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

    /// What the broker lacks if it has read everything that was sent on the connection of this
    /// epoch.
    pub(super) fn lost(&self, confirmed_in: Option<u64>) -> LostAnswers {
        let not_sent = u64::from(self.is_last_lost);
        let unconfirmed = match confirmed_in {
            Some(epoch) if epoch == self.epoch => 0,
            // The broker has read all earlier ones, or it would not have delivered the last
            // message.
            _ => self.sent.min(self.prefetch.saturating_sub(not_sent)),
        };
        LostAnswers {
            not_sent,
            unconfirmed,
        }
    }
}
