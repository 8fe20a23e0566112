//! The two modes of a channel in which publishing is answered for: confirms and transactions.

use std::time::Duration;

use crossbeam_channel::Receiver;

use super::Channel;
use crate::error::{Error, Result};
use crate::events::Confirmation;
use crate::io_thread::deadline::Deadline;
use crate::session::call::{self, Operation};
use crate::wire::method::{ConfirmSelect, Encode};

impl Channel {
    /// Puts the channel into confirm mode: from now on the broker answers for every message. Doing it again changes
    /// nothing.
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
        let state = self.state();
        let select = ConfirmSelect { no_wait: false };
        let asked = Operation::about(ConfirmSelect::ID, "");
        self.call_with(asked, |frames, call| {
            call::append(frames, state.number, &select, call)?;
            // The broker counts what it reads behind this frame.
            state.confirms.select();
            Ok(())
        })?;
        Ok(())
    }

    /// [`confirm_select`](Self::confirm_select) without waiting for the broker.
    pub fn confirm_select_no_wait(&self) -> Result<()> {
        let state = self.state();
        self.write(Operation::about(ConfirmSelect::ID, ""), |frames| {
            frames.method(&ConfirmSelect { no_wait: true })?;
            state.confirms.select();
            Ok(())
        })
    }

    /// Waits until the broker has answered for all messages published on this channel so far, at most the
    /// connection's `request_timeout`. A timeout changes nothing: it can be called again.
    ///
    /// # Errors
    /// [`ErrorKind::Nacked`](crate::ErrorKind::Nacked) with the sequence numbers that the broker refused since the last report (the newest
    /// 65,536; threads that wait at the same time are all told); the loss of the connection, once, if messages were lost with
    /// it (which of them, nobody knows); the channel's or the connection's end, if answers are missing; [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) without
    /// [`confirm_select`](Self::confirm_select).
    pub fn wait_for_confirms(&self) -> Result<()> {
        self.wait_for_confirms_timeout(self.connection().request_timeout())
    }

    /// [`wait_for_confirms`](Self::wait_for_confirms), at most so long.
    ///
    /// # Errors
    /// As [`wait_for_confirms`](Self::wait_for_confirms).
    pub fn wait_for_confirms_timeout(&self, timeout: Duration) -> Result<()> {
        let confirms = &self.state().confirms;
        let _waits = self.connection().shared().waiters.begin();
        let answered = match confirms.is_selected() {
            true => confirms.wait_and_report(Deadline::after(timeout)),
            false => Err(Error::invalid(
                "the channel is not in confirm mode (confirm_select)",
            )),
        };
        let outbox = &self.connection().shared().outbox;
        answered.map_err(|error| outbox.explained(error).doing("waiting for confirms"))
    }

    /// Waits until the broker has answered for all messages published on this channel so far.
    pub(crate) fn wait_until_answered(&self, deadline: Deadline) -> Result<()> {
        let outbox = &self.connection().shared().outbox;
        let answered = self.state().confirms.wait(deadline);
        answered.map_err(|error| outbox.explained(error))
    }

    /// The broker's answers to the messages of this channel in confirm mode, from now on, for a program that keeps its
    /// own accounts of sequence numbers. The receiver keeps the newest 65,536; all receivers of a channel share them.
    /// It is disconnected when the channel ends. When the connection is lost, messages without an answer get one that says so
    /// ([`Confirmation::lost`]). A [`Publisher`](crate::Publisher) does all this by itself.
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
    ///             println!("{task} was {}", if answer.lost { "lost, perhaps" } else { "refused" });
    ///         }
    ///         !answered
    ///     });
    /// }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn confirmations(&self) -> Receiver<Confirmation> {
        self.state().confirmations.receiver()
    }
}
