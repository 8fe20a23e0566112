//! Transactions.

use super::Channel;
use crate::error::Result;
use crate::session::call::Operation;
use crate::wire::method::{Encode, TxCommit, TxRollback, TxSelect};

impl Channel {
    /// Puts the channel into transaction mode: publishes and acknowledgements take effect at
    /// [`tx_commit`](Self::tx_commit). Further calls change nothing. Confirms are faster.
    ///
    /// ```no_run
    /// # let channel = leveret::Connection::open_default()?.open_channel()?;
    /// channel.tx_select()?;
    /// channel.basic_publish("", "tasks", "both")?;
    /// channel.basic_publish("", "tasks", "or none")?;
    /// channel.tx_commit()?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// 406 on a channel in confirm mode.
    ///
    /// See <https://www.rabbitmq.com/docs/semantics#tx>.
    pub fn tx_select(&self) -> Result<()> {
        self.call_recorded(false, "", || TxSelect {})?;
        Ok(())
    }

    /// Commits the transaction: everything since the last commit or rollback takes effect.
    ///
    /// # Errors
    /// 406 on a channel without [`tx_select`](Self::tx_select).
    ///
    /// The cause, if a part of the transaction was lost with its connection, or is an
    /// acknowledgement of a message that the broker redelivers because the connection was lost or
    /// the broker cancelled the consumer. The rest of the transaction is rolled back, so it is safe
    /// to repeat the whole transaction.
    pub fn tx_commit(&self) -> Result<()> {
        let mut lost_with = None;
        self.call_with(Operation::about(TxCommit::ID, ""), |frames, call| {
            lost_with = frames.channel().end_transaction();
            match lost_with {
                Some(_) => frames.call(&TxRollback {}, call),
                None => frames.call(&TxCommit {}, call),
            }
        })?;
        match lost_with {
            Some(cause) => Err(cause
                .doing("tx.commit: a part of the transaction was lost")
                .unsent()),
            None => Ok(()),
        }
    }

    /// Rolls back the transaction: undoes everything since the last commit or rollback.
    ///
    /// # Errors
    /// 406 on a channel without [`tx_select`](Self::tx_select).
    pub fn tx_rollback(&self) -> Result<()> {
        self.call_with(Operation::about(TxRollback::ID, ""), |frames, call| {
            frames.channel().end_transaction();
            frames.call(&TxRollback {}, call)
        })?;
        Ok(())
    }
}
