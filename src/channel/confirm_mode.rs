//! Confirm mode: the broker confirms or nacks each message of the channel.

use std::time::Duration;

use crossbeam_channel::Receiver;

use super::Channel;
use crate::error::{Error, Result};
use crate::events::Confirmation;
use crate::io_thread::deadline::Deadline;
use crate::session::call::Operation;
use crate::wire::method::{ConfirmSelect, Encode};

impl Channel {
    /// Puts the channel into confirm mode: the broker confirms or nacks every later message.
    /// Further calls change nothing.
    ///
    /// ```no_run
    /// # let channel = leveret::Connection::open_default()?.open_channel()?;
    /// channel.confirm_select()?;
    /// for number in 0..100 {
    ///     channel.basic_publish("", "tasks", format!("task {number}"))?;
    /// }
    /// channel.wait_for_confirms()?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// 406 on a channel with transactions.
    ///
    /// See <https://www.rabbitmq.com/docs/confirms#publisher-confirms>.
    pub fn confirm_select(&self) -> Result<()> {
        self.select_confirms(Deadline::after(self.connection().request_timeout()))
    }

    pub(crate) fn select_confirms(&self, deadline: Deadline) -> Result<()> {
        let select = ConfirmSelect { no_wait: false };
        let asked = Operation::about(ConfirmSelect::ID, "");
        self.call_until(deadline, asked, |frames, call| {
            frames.call(&select, call)?;
            // The broker counts the messages that follow this frame.
            frames.channel().select_confirms();
            Ok(())
        })?;
        Ok(())
    }

    /// [`confirm_select`](Self::confirm_select) without waiting for the broker.
    ///
    /// # Errors
    /// If the broker refuses, it closes the channel, and the next call on the channel fails.
    pub fn confirm_select_no_wait(&self) -> Result<()> {
        self.write(Operation::about(ConfirmSelect::ID, ""), |frames| {
            frames.method(&ConfirmSelect { no_wait: true })?;
            frames.channel().select_confirms();
            Ok(())
        })
    }

    /// Waits up to `request_timeout` until the broker has confirmed or nacked all messages
    /// published on this channel so far. After a timeout, the program can wait again.
    ///
    /// # Errors
    /// - [`ErrorKind::Nacked`](crate::ErrorKind::Nacked), with the sequence numbers that the broker
    ///   has nacked since the last report (the newest 65,536). All threads that are waiting at the
    ///   same time get the report.
    /// - The cause of the loss, once, if messages were lost with the connection. The broker may or
    ///   may not have them.
    /// - The end of the channel or the connection, if confirms are missing.
    /// - [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) without
    ///   [`confirm_select`](Self::confirm_select).
    /// - A timeout.
    pub fn wait_for_confirms(&self) -> Result<()> {
        self.wait_for_confirms_timeout(self.connection().request_timeout())
    }

    /// [`wait_for_confirms`](Self::wait_for_confirms), but waits up to `timeout`.
    ///
    /// # Errors
    /// Same as [`wait_for_confirms`](Self::wait_for_confirms).
    pub fn wait_for_confirms_timeout(&self, timeout: Duration) -> Result<()> {
        let confirms = &self.state().confirms;
        let _waits = self.connection().shared().waiters.begin();
        let answered = match self.state().last_published() {
            Some(published) => confirms.wait_and_report(published, Deadline::after(timeout)),
            None => Err(Error::invalid(
                "the channel is not in confirm mode (confirm_select)",
            )),
        };
        let outbox = &self.connection().shared().outbox;
        answered.map_err(|error| outbox.explained(error).doing("waiting for confirms"))
    }

    /// Waits until the broker has confirmed or nacked all messages published on this channel so
    /// far.
    pub(crate) fn wait_until_answered(&self, deadline: Deadline) -> Result<()> {
        let outbox = &self.connection().shared().outbox;
        let state = self.state();
        let published = state.look(|it| it.sequence_numbers.last());
        let answered = state.confirms.wait(published, deadline);
        answered.map_err(|error| outbox.explained(error))
    }

    /// Returns a receiver of the broker's confirms and nacks for this channel from now on. For
    /// programs that track sequence numbers themselves; a [`Publisher`](crate::Publisher) tracks
    /// those of its own messages.
    ///
    /// The receiver keeps the newest 65,536 entries. All receivers of a channel share them: each
    /// entry goes to one receiver. The receiver is disconnected when the channel ends. When the
    /// connection is lost, one entry with [`lost`](Confirmation::lost) set covers all messages
    /// without an answer.
    ///
    /// ```no_run
    /// use leveret::Connection;
    /// use std::collections::BTreeMap;
    ///
    /// let channel = Connection::open_default()?.open_channel()?;
    /// channel.confirm_select()?;
    /// let confirmations = channel.confirmations();
    /// let mut open = BTreeMap::new();
    /// for number in 0..100 {
    ///     let task = format!("task {number}");
    ///     if let Some(sequence_number) = channel.basic_publish("", "tasks", &task)? {
    ///         open.insert(sequence_number, task);
    ///     }
    /// }
    /// while let (false, Ok(answer)) = (open.is_empty(), confirmations.recv()) {
    ///     let last = answer.sequence_number;
    ///     let first = if answer.multiple { 0 } else { last };
    ///     open.retain(|number, task| {
    ///         let answered = (first..=last).contains(number);
    ///         if answered && answer.nack {
    ///             let outcome = if answer.lost { "may be lost" } else { "was nacked" };
    ///             println!("{task} {outcome}");
    ///         }
    ///         !answered
    ///     });
    /// }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    #[must_use]
    pub fn confirmations(&self) -> Receiver<Confirmation> {
        self.state().confirmations.receiver()
    }
}
