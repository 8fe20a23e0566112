//! The mode of a channel: plain, with confirms, or with transactions.

use crate::error::Error;

/// What the broker does with the channel's messages. RabbitMQ refuses to change from one of the
/// last two to the other, and closes the channel.
#[derive(Debug, Default)]
pub(crate) enum Mode {
    #[default]
    Plain,
    /// `confirm.select` was sent and not refused.
    Confirm,
    /// The broker has answered `tx.select`.
    Transaction(Transaction),
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
        if let Self::Plain = self {
            *self = Self::Confirm;
        }
    }

    pub(super) fn confirms_refused(&mut self) {
        if let Self::Confirm = self {
            *self = Self::Plain;
        }
    }

    pub(super) fn select_transactions(&mut self) {
        if let Self::Plain = self {
            *self = Self::Transaction(Transaction::Empty);
        }
    }

    /// A message is published or acknowledged.
    #[inline]
    pub(super) fn used(&mut self) {
        if let Self::Transaction(transaction @ Transaction::Empty) = self {
            *transaction = Transaction::Begun;
        }
    }

    /// Whatever the transaction has so far is lost.
    pub(super) fn lost(&mut self, cause: &Error) {
        if let Self::Transaction(transaction @ Transaction::Begun) = self {
            *transaction = Transaction::Torn(cause.clone());
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
        let mut mode = Mode::Plain;
        mode.tear(&Error::invalid("not yet"));
        mode.select_transactions();
        mode.lost(&Error::invalid("it was empty"));
        assert!(mode.end_transaction().is_none());
        mode.used();
        mode.lost(&Error::invalid("first"));
        mode.tear(&Error::invalid("second"));
        mode.used();
        // The broker says yes to a second tx.select, too.
        mode.select_transactions();
        let cause = mode.end_transaction().map(|it| it.to_string());
        assert!(cause.is_some_and(|it| it.contains("first")));
        mode.tear(&Error::invalid("a part of an empty one is lost, too"));
        assert!(mode.end_transaction().is_some());
        mode.used();
        assert!(mode.end_transaction().is_none());
    }

    #[test]
    fn only_a_plain_channel_gets_another_mode() {
        let mut mode = Mode::Plain;
        mode.select_confirms();
        assert!(matches!(mode, Mode::Confirm));
        // Its messages have numbers, and each waits for an answer.
        mode.select_transactions();
        assert!(matches!(mode, Mode::Confirm));
        mode.confirms_refused();
        assert!(matches!(mode, Mode::Plain));
        mode.select_transactions();
        mode.select_confirms();
        mode.confirms_refused();
        assert!(matches!(mode, Mode::Transaction(Transaction::Empty)));
    }
}
