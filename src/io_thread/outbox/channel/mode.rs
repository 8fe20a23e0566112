//! The mode of a channel: plain, with confirms, or with transactions.

use crate::error::Error;

/// What the broker does with the channel's messages. RabbitMQ refuses to change from one of the
/// last two to the other, and closes the channel.
#[derive(Debug)]
pub(crate) enum Mode {
    Plain(Plain),
    /// `confirm.select` was sent and not refused.
    Confirm,
    /// The broker has answered `tx.select`.
    Transaction(Transaction),
}

/// What was published since the last flush.
#[derive(Debug)]
pub(crate) enum Plain {
    Nothing,
    Unflushed,
    /// Some of it may be lost, for this reason.
    Lost(Error),
}

impl Default for Mode {
    fn default() -> Self {
        Self::Plain(Plain::Nothing)
    }
}

/// The current transaction of a channel.
#[derive(Debug)]
pub(crate) enum Transaction {
    Empty,
    /// It has publishes or acknowledgements.
    Begun,
    /// A part of it is lost, for this reason.
    Torn(Error),
}

impl Mode {
    pub(super) fn select_confirms(&mut self) {
        if let Self::Plain(_) = self {
            *self = Self::Confirm;
        }
    }

    pub(super) fn confirms_refused(&mut self) {
        if let Self::Confirm = self {
            *self = Self::default();
        }
    }

    pub(super) fn select_transactions(&mut self) {
        if let Self::Plain(_) = self {
            *self = Self::Transaction(Transaction::Empty);
        }
    }

    /// A message is published without a number.
    #[inline]
    pub(super) fn published(&mut self) {
        match self {
            Self::Plain(plain @ Plain::Nothing) => *plain = Plain::Unflushed,
            _ => self.acknowledged(),
        }
    }

    /// A message is acknowledged.
    #[inline]
    pub(super) fn acknowledged(&mut self) {
        if let Self::Transaction(transaction @ Transaction::Empty) = self {
            *transaction = Transaction::Begun;
        }
    }

    /// Whatever was published without an answer, or the transaction has so far, is lost.
    pub(super) fn lost(&mut self, cause: &Error) {
        match self {
            Self::Plain(plain @ Plain::Unflushed) => *plain = Plain::Lost(cause.clone()),
            Self::Transaction(transaction @ Transaction::Begun) => {
                *transaction = Transaction::Torn(cause.clone());
            }
            _ => {}
        }
    }

    /// A flush has timed out, so a later one is for the same messages.
    pub(super) fn flush_timed_out(&mut self) {
        if let Self::Plain(plain @ Plain::Nothing) = self {
            *plain = Plain::Unflushed;
        }
    }

    /// A flush begins. Returns what it is for.
    pub(super) fn take_unflushed(&mut self) -> Plain {
        match self {
            Self::Plain(plain) => std::mem::replace(plain, Plain::Nothing),
            Self::Confirm | Self::Transaction(_) => Plain::Nothing,
        }
    }

    /// A part of the transaction is not sent.
    pub(super) fn tear(&mut self, reason: &Error) {
        if let Self::Transaction(transaction @ (Transaction::Empty | Transaction::Begun)) = self {
            *transaction = Transaction::Torn(reason.clone());
        }
    }

    /// Ends the transaction. If a part of it was lost, returns the cause.
    pub(super) fn end_transaction(&mut self) -> Option<Error> {
        let Self::Transaction(transaction) = self else {
            return None;
        };
        match std::mem::replace(transaction, Transaction::Empty) {
            Transaction::Torn(cause) => Some(cause),
            Transaction::Empty | Transaction::Begun => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_torn_once_and_only_by_what_it_has() {
        let mut mode = Mode::default();
        mode.tear(&Error::invalid("not yet"));
        mode.select_transactions();
        mode.lost(&Error::invalid("it was empty"));
        assert!(mode.end_transaction().is_none());
        mode.acknowledged();
        mode.lost(&Error::invalid("first"));
        mode.tear(&Error::invalid("second"));
        mode.acknowledged();
        // The broker says yes to a second tx.select, too.
        mode.select_transactions();
        let cause = mode.end_transaction().map(|it| it.to_string());
        assert!(cause.is_some_and(|it| it.contains("first")));
        mode.tear(&Error::invalid("a part of an empty one is lost, too"));
        assert!(mode.end_transaction().is_some());
        mode.acknowledged();
        assert!(mode.end_transaction().is_none());
    }

    #[test]
    fn only_a_plain_channel_gets_another_mode() {
        let mut mode = Mode::default();
        mode.select_confirms();
        assert!(matches!(mode, Mode::Confirm));
        // Its messages have numbers, and each waits for an answer.
        mode.select_transactions();
        assert!(matches!(mode, Mode::Confirm));
        mode.confirms_refused();
        assert!(matches!(mode, Mode::Plain(_)));
        mode.select_transactions();
        mode.select_confirms();
        mode.confirms_refused();
        assert!(matches!(mode, Mode::Transaction(Transaction::Empty)));
    }

    #[test]
    fn a_flush_reports_a_loss_of_what_was_published_before_it_once() {
        let mut mode = Mode::default();
        mode.acknowledged();
        mode.lost(&Error::invalid("nothing was published"));
        assert!(matches!(mode.take_unflushed(), Plain::Nothing));
        mode.published();
        assert!(matches!(mode.take_unflushed(), Plain::Unflushed));
        mode.lost(&Error::invalid("it was flushed"));
        assert!(matches!(mode.take_unflushed(), Plain::Nothing));
        mode.published();
        mode.lost(&Error::invalid("first"));
        mode.published();
        mode.lost(&Error::invalid("second"));
        let Plain::Lost(cause) = mode.take_unflushed() else {
            panic!("{mode:?}");
        };
        assert!(cause.to_string().contains("first"), "{cause}");
        assert!(matches!(mode.take_unflushed(), Plain::Nothing));
    }
}
