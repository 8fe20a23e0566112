//! What depends on the order of a channel's frames. It lives in the state that the outbox's lock
//! guards, so only a holder of the lock can see or change it.
//!
//! - this file: `Channel`: its phase, who needs its number, and when a caller may append
//! - `mode`: confirms and transactions; `sequence_numbers`: the messages it publishes; `unflushed`:
//!   those without confirms
//! - `delivery_tags`: the messages it gets; `qos`: its prefetch

pub(crate) mod delivery_tags;
mod mode;
mod qos;
mod sequence_numbers;
#[cfg(test)]
mod tests;
mod unflushed;

use super::admission::Admission;
use crate::error::{CloseReason, Error, ErrorKind, Result};
use crate::proto::Leftover;
use crate::wire::method::{ConfirmSelect, Encode, Method};
use delivery_tags::DeliveryTags;
pub(crate) use mode::Mode;
pub(crate) use qos::Qos;
use sequence_numbers::SequenceNumbers;
use unflushed::Unflushed;

/// Whether the broker has the channel open.
#[derive(Debug)]
enum Phase {
    /// It does not: the channel is new, or lost with its connection, or the broker refused a
    /// request of the recovery. The recovery opens it.
    Detached,
    /// `channel.open` was sent on the connection of this epoch.
    Open { epoch: u64 },
    /// We have sent `channel.close` on the connection of this epoch. The core will report the end.
    Closing { epoch: u64, cause: Error },
    /// Nothing more can be sent.
    Ended {
        cause: Error,
        /// The connection on which it was open last.
        opened_in: Option<u64>,
    },
}

/// Who needs the channel's number. It is free when no one does.
#[derive(Debug)]
struct NeededBy {
    /// The broker has the channel open, or owes a frame on it.
    broker: bool,
    /// The handles may open the channel again.
    handles: bool,
}

/// Why a channel never admits a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Ended,
    /// The message came on a lost connection.
    Stale {
        delivery_tag: u64,
    },
    /// The channel is not open on the connection of the recovery.
    NotReopened,
    /// Its number may be in use, so it cannot be opened again.
    ClosedByProgram,
}

/// Channel 0 stands for the connection itself. It is open on each connection, and never ends.
#[derive(Debug)]
pub(crate) struct Channel {
    number: u16,
    phase: Phase,
    needed_by: NeededBy,
    /// See [`is_recovering`](Self::is_recovering).
    is_recovering: bool,
    /// The broker asked to stop publishing with `channel.flow`.
    pub(crate) is_flow_stopped: bool,
    mode: Mode,
    pub(crate) sequence_numbers: SequenceNumbers,
    pub(crate) unflushed: Unflushed,
    pub(crate) delivery_tags: DeliveryTags,
    qos: Qos,
    /// The warning about a prefetch for the whole channel was logged.
    has_warned: bool,
    /// The last loss of the connection, or the last end of the channel.
    last_loss: Option<Error>,
}

impl Channel {
    pub(super) fn new(number: u16) -> Self {
        Self {
            number,
            phase: Phase::Detached,
            needed_by: NeededBy {
                broker: false,
                handles: true,
            },
            is_recovering: false,
            is_flow_stopped: false,
            mode: Mode::default(),
            sequence_numbers: SequenceNumbers::default(),
            unflushed: Unflushed::default(),
            delivery_tags: DeliveryTags::default(),
            qos: Qos::default(),
            has_warned: false,
            last_loss: None,
        }
    }

    // ---- when a caller may append ----

    /// Whether the channel's state lets a caller append. If not, the caller must wait and look
    /// again.
    #[inline(always)] // Not inlined, this costs 5 % of a publish.
    pub(super) fn admits(&self, admission: Admission) -> Result<bool, Refusal> {
        if self.end_cause().is_some() {
            return self.admits_after_end(admission);
        }
        match admission {
            Admission::Always | Admission::Room | Admission::Attached | Admission::Reopen => {
                Ok(true)
            }
            Admission::Publish | Admission::PublishLarge => Ok(!self.is_flow_stopped),
            Admission::Answer { delivery_tag } => {
                match self.delivery_tags.broker_tag(delivery_tag) {
                    Some(_) => Ok(!matches!(self.phase, Phase::Detached)),
                    None => Err(Refusal::Stale { delivery_tag }),
                }
            }
            Admission::Recovery { epoch } if self.is_open_in(epoch) => Ok(true),
            Admission::Recovery { .. } => Err(Refusal::NotReopened),
            Admission::RecoveryOpen { .. } => Ok(self.may_open()),
        }
    }

    fn admits_after_end(&self, admission: Admission) -> Result<bool, Refusal> {
        match admission {
            Admission::Reopen if self.needed_by.handles => Ok(self.may_open()),
            Admission::Reopen => Err(Refusal::ClosedByProgram),
            _ => Err(Refusal::Ended),
        }
    }

    /// Whether `channel.open` can be sent: the broker has closed the channel, and the close
    /// handshake is over. What the end still changes would otherwise change the channel's new life.
    fn may_open(&self) -> bool {
        !self.needed_by.broker
    }

    /// The error for a caller that the channel refuses.
    #[cold]
    pub(super) fn refused(&self, refusal: Refusal) -> Error {
        match (refusal, self.end_cause()) {
            (Refusal::Ended, Some(cause)) => cause.clone(),
            (Refusal::Stale { delivery_tag }, _) => Error::stale(delivery_tag),
            (Refusal::ClosedByProgram, _) => Error::invalid(
                "this program has closed the channel, and its number may be in use: open another",
            ),
            (Refusal::NotReopened | Refusal::Ended, _) => not_reopened(self.number),
        }
    }

    // ---- its life ----

    /// Why nothing more can be sent on the channel.
    #[inline]
    pub(crate) fn end_cause(&self) -> Option<&Error> {
        match &self.phase {
            Phase::Detached | Phase::Open { .. } => None,
            Phase::Closing { cause, .. } | Phase::Ended { cause, .. } => Some(cause),
        }
    }

    /// Whether frames can be sent on the connection of this epoch.
    #[inline]
    pub(crate) fn is_open_in(&self, epoch: u64) -> bool {
        match self.phase {
            Phase::Open { epoch: opened_in } => opened_in == epoch,
            Phase::Detached => self.number == 0,
            Phase::Closing { .. } | Phase::Ended { .. } => false,
        }
    }

    /// The epoch of the connection on which the channel is open, or was open when it ended.
    pub(crate) fn opened_in(&self) -> Option<u64> {
        match self.phase {
            Phase::Detached => None,
            Phase::Open { epoch } | Phase::Closing { epoch, .. } => Some(epoch),
            Phase::Ended { opened_in, .. } => opened_in,
        }
    }

    /// Whether a recovery opens the channel again. A refused request of the recovery does not end
    /// it then.
    pub(crate) fn is_recovering(&self) -> bool {
        self.is_recovering && self.end_cause().is_none()
    }

    pub(crate) fn set_recovering(&mut self, is_recovering: bool) {
        self.is_recovering = is_recovering;
    }

    /// `channel.open` was appended.
    pub(crate) fn opened(&mut self, epoch: u64) {
        self.phase = Phase::Open { epoch };
        self.needed_by.broker = true;
    }

    /// The program closes the channel. Returns false if the channel has ended with that: the core
    /// does not know it, and so will not report its end.
    pub(crate) fn close(&mut self, cause: Error) -> bool {
        let opened_in = self.opened_in();
        self.phase = match opened_in {
            Some(epoch) => Phase::Closing { epoch, cause },
            None => Phase::Ended { cause, opened_in },
        };
        opened_in.is_some()
    }

    /// The channel has ended. If closes cross, the broker's cause replaces our own.
    pub(crate) fn end(&mut self, cause: &Error, leftover: Leftover) {
        let reason = cause.close_reason();
        if reason.is_some_and(|it| it.method == ConfirmSelect::ID.name()) {
            self.mode.confirms_refused();
        }
        self.forget_connection(cause, leftover);
        self.unflushed.ended();
        self.phase = Phase::Ended {
            cause: cause.clone(),
            opened_in: self.opened_in(),
        };
    }

    /// The connection was lost, or the broker refused a request of the recovery: the recovery opens
    /// the channel again. If the program has closed it, that close is complete instead, and its
    /// cause is returned.
    pub(crate) fn interrupt(&mut self, cause: &Error, leftover: Leftover) -> Option<Error> {
        self.forget_connection(cause, leftover);
        match std::mem::replace(&mut self.phase, Phase::Detached) {
            Phase::Detached | Phase::Open { .. } => None,
            Phase::Closing { cause, .. } | Phase::Ended { cause, .. } => {
                self.phase = Phase::Ended {
                    cause: cause.clone(),
                    opened_in: None,
                };
                Some(cause)
            }
        }
    }

    /// Forgets what only the broker's channel knew.
    fn forget_connection(&mut self, cause: &Error, leftover: Leftover) {
        self.is_flow_stopped = false;
        self.delivery_tags.interrupted(leftover.last_tag);
        self.last_loss = Some(cause.clone());
        self.mode.lost(cause);
    }

    /// The broker is done with the number. Returns whether the number is free now.
    pub(super) fn broker_is_done(&mut self) -> bool {
        let was_needed = std::mem::take(&mut self.needed_by.broker);
        was_needed && !self.needed_by.handles
    }

    /// The handles are done with the number. Returns whether the number is free now.
    pub(super) fn handles_are_done(&mut self) -> bool {
        let was_needed = std::mem::take(&mut self.needed_by.handles);
        was_needed && !self.needed_by.broker
    }

    // ---- what is sent on it ----

    pub(crate) fn mode(&self) -> &Mode {
        &self.mode
    }

    pub(crate) fn qos(&self) -> &Qos {
        &self.qos
    }

    /// Returns once the prefetch that is set for the whole channel: the caller then logs a warning.
    pub(crate) fn take_global_qos_warning(&mut self) -> Option<u16> {
        let global = self.qos.global.as_ref().filter(|_| !self.has_warned)?;
        self.has_warned = true;
        Some(global.prefetch_count)
    }

    /// `confirm.select` was appended. The broker counts the messages that follow.
    pub(crate) fn select_confirms(&mut self) {
        self.mode.select_confirms();
    }

    /// The broker has carried out this method.
    pub(crate) fn done(&mut self, method: &Method<'_>) {
        match method {
            Method::BasicQos(qos) => self.qos.set(qos.clone()),
            Method::TxSelect(_) => self.mode.select_transactions(),
            _ => {}
        }
    }

    /// A message was appended, the connection's message of this number. Returns its sequence number
    /// in confirm mode. `has_confirm` tells whether it has a `Confirm`.
    #[inline]
    pub(crate) fn published(&mut self, has_confirm: bool, number: u64) -> Option<u64> {
        match self.mode {
            Mode::Confirm => Some(self.sequence_numbers.next(has_confirm)),
            Mode::Plain => {
                self.unflushed.published(number);
                None
            }
            Mode::Transaction(_) => {
                self.mode.used();
                None
            }
        }
    }

    /// An acknowledgement was appended. `multiple` holds its delivery tag, and the last call before
    /// it, if it settles all earlier messages, too.
    #[inline]
    pub(crate) fn answered(&mut self, multiple: Option<(u64, u64)>) {
        self.mode.used();
        let Some((delivery_tag, last_call)) = multiple else {
            return;
        };
        self.delivery_tags.up_to(delivery_tag, last_call);
        if self.delivery_tags.take_stale_unsettled() {
            self.answer_not_sent(None);
        }
    }

    /// An acknowledgement is not sent: for this reason, or because of the last loss.
    pub(super) fn answer_not_sent(&mut self, reason: Option<&Error>) {
        if let Some(reason) = reason.or(self.last_loss.as_ref()) {
            self.mode.tear(reason);
        }
    }

    /// Ends the transaction. If a part of it was lost, returns the cause.
    pub(crate) fn end_transaction(&mut self) -> Option<Error> {
        self.mode.end_transaction()
    }
}

/// A request of the recovery finds its channel closed.
pub(crate) fn not_reopened(channel: u16) -> Error {
    Error::new(ErrorKind::ChannelClosed {
        channel,
        reason: CloseReason::program("closed while it was being reopened"),
    })
}
