//! Acknowledging, nacking and rejecting messages.

use std::cell::Cell;

use super::Channel;
use crate::error::{Error, ErrorKind, Result};
use crate::io_thread::outbox::{Admission, Gate};
use crate::log_line::log_line;
use crate::options::NackOptions;
use crate::session::call::Operation;
use crate::wire::method::{
    BasicAck, BasicNack, BasicRecover, BasicRecoverAsync, BasicReject, Encode,
};

/// The outcome of an ack, nack or reject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answered {
    /// Sent on the connection of this epoch.
    Sent { epoch: u64 },
    /// Not sent: the message's connection was lost, or the broker has cancelled its consumer.
    NotSent,
}

impl Channel {
    /// Acknowledges one message by its delivery tag: the broker removes it from its queue.
    /// [`Delivery::ack`](crate::Delivery::ack) needs no tag.
    ///
    /// # Errors
    /// An unknown tag, or a tag that was already acknowledged, makes the broker close the channel
    /// (406). The next call reports that.
    pub fn basic_ack(&self, delivery_tag: u64) -> Result<()> {
        self.ack(delivery_tag, false).map(drop)
    }

    /// Acknowledges a message and all earlier messages of the channel. Tag 0 means all messages.
    ///
    /// # Errors
    /// Same as [`basic_ack`](Self::basic_ack). With tag 0, the call waits up to `publish_timeout`
    /// for a lost connection to recover, and can fail with [`ErrorKind::Recovering`].
    pub fn basic_ack_multiple(&self, delivery_tag: u64) -> Result<()> {
        self.ack(delivery_tag, true).map(drop)
    }

    pub(crate) fn ack(&self, delivery_tag: u64, multiple: bool) -> Result<Answered> {
        self.answer(delivery_tag, multiple, |delivery_tag| BasicAck {
            delivery_tag,
            multiple,
        })
    }

    /// Sends an answer to one delivery, or to all deliveries up to it. Sends nothing if the
    /// delivery came on a lost connection: the broker has requeued that message, and would apply
    /// the answer to another one.
    fn answer<M: Encode>(
        &self,
        delivery_tag: u64,
        multiple: bool,
        answer: impl FnOnce(u64) -> M,
    ) -> Result<Answered> {
        let state = self.state();
        let delivery_tags = &state.delivery_tags;
        let stale = || Error::stale(delivery_tag);
        let opened_in = Cell::new(None);
        let gate = || {
            let gate = state.gate()?;
            if delivery_tags.broker_tag(delivery_tag).is_none() {
                return Err(stale());
            }
            opened_in.set(state.opened_in());
            Ok(opened_in.get().map_or(Gate::Shut, |_| gate))
        };
        let admission = match delivery_tag {
            // Tag 0 waits for a recovery; then it means all messages of the next connection.
            0 => Admission::Room,
            _ => Admission::Attached,
        };
        let patience = self.connection().publish_timeout();
        let outbox = &state.shared.outbox;
        let written = outbox.write(state.number, admission, patience, gate, |frames| {
            let epoch = frames.epoch();
            // The connection can be lost before the channel learns of it.
            let tag = delivery_tags.broker_tag(delivery_tag);
            let tag = tag.filter(|_| opened_in.get() == Some(epoch));
            frames.method(&answer(tag.ok_or_else(stale)?))?;
            state.settings.used();
            if multiple {
                delivery_tags.up_to(delivery_tag, frames.last_call());
                if delivery_tags.take_stale_open() {
                    state.settings.answer_lost(None);
                }
            }
            Ok(Answered::Sent { epoch })
        });
        match written {
            Err(error) if self.is_stale(delivery_tag, &error) => {
                log_line!(
                    Debug,
                    state.shared.label(),
                    "{} {delivery_tag} is not sent: the message was requeued when its connection was lost",
                    M::ID
                );
                state.answer_not_sent(None);
                Ok(Answered::NotSent)
            }
            written => written.map_err(|error| Operation::about(M::ID, "").failed(error)),
        }
    }

    /// Whether an answer failed because its message came on a lost connection.
    fn is_stale(&self, delivery_tag: u64, error: &Error) -> bool {
        let state = self.state();
        let is_stale = state.delivery_tags.broker_tag(delivery_tag).is_none()
            || matches!(error.kind(), ErrorKind::AlreadySettled { .. });
        is_stale && state.end.cause().is_none()
    }

    /// The outcome of an answer that the program sent itself.
    pub(crate) fn answered(&self, delivery_tag: u64) -> Answered {
        let state = self.state();
        // Read in this order: while the tag is known, the channel is open on the message's
        // connection.
        let opened_in = state.opened_in();
        let is_known = state.delivery_tags.broker_tag(delivery_tag).is_some();
        // Otherwise the connection was lost, and the answer may have been sent before or after the
        // loss.
        let lost = || state.shared.outbox.epoch().saturating_sub(1);
        let epoch = opened_in.filter(|_| is_known).unwrap_or_else(lost);
        Answered::Sent { epoch }
    }

    /// Nacks one or more messages: the broker requeues, drops or dead-letters them. A RabbitMQ
    /// extension.
    ///
    /// Since RabbitMQ 4.3, a nack does not count towards the delivery limit of a quorum queue;
    /// [`basic_reject`](Self::basic_reject) does. Use a nack for messages that were not handled.
    ///
    /// # Errors
    /// Same as [`basic_ack`](Self::basic_ack).
    pub fn basic_nack(&self, delivery_tag: u64, options: NackOptions) -> Result<()> {
        self.nack(delivery_tag, options).map(drop)
    }

    pub(crate) fn nack(&self, delivery_tag: u64, options: NackOptions) -> Result<Answered> {
        self.answer(delivery_tag, options.multiple, |delivery_tag| BasicNack {
            delivery_tag,
            multiple: options.multiple,
            requeue: options.requeue,
        })
    }

    /// Rejects one message: the broker requeues it if `requeue` is true, otherwise drops or
    /// dead-letters it.
    ///
    /// With `requeue`, the reject counts as a failed delivery towards the delivery limit of a
    /// quorum queue.
    ///
    /// # Errors
    /// Same as [`basic_ack`](Self::basic_ack).
    pub fn basic_reject(&self, delivery_tag: u64, requeue: bool) -> Result<()> {
        self.reject(delivery_tag, requeue).map(drop)
    }

    pub(crate) fn reject(&self, delivery_tag: u64, requeue: bool) -> Result<Answered> {
        self.answer(delivery_tag, false, |delivery_tag| BasicReject {
            delivery_tag,
            requeue,
        })
    }

    /// Requeues all unacknowledged messages of the channel, and waits until the broker has done so.
    /// Like [`basic_nack`](Self::basic_nack), this does not count towards the delivery limit since
    /// RabbitMQ 4.3.
    ///
    /// # Errors
    /// Without `requeue`, RabbitMQ closes the connection (540): it does not implement that.
    pub fn basic_recover(&self, requeue: bool) -> Result<()> {
        self.call_with(Operation::about(BasicRecover::ID, ""), |frames, call| {
            let last_call = frames.last_call();
            frames.call(&BasicRecover { requeue }, call)?;
            self.state().delivery_tags.up_to(0, last_call);
            Ok(())
        })?;
        Ok(())
    }

    /// [`basic_recover`](Self::basic_recover) without a reply. Deprecated in AMQP.
    ///
    /// # Errors
    /// Same as [`basic_ack_multiple`](Self::basic_ack_multiple) with tag 0. Without `requeue`,
    /// RabbitMQ closes the connection (540).
    pub fn basic_recover_async(&self, requeue: bool) -> Result<()> {
        let answered = self.answer(0, true, |_| BasicRecoverAsync { requeue });
        answered.map(drop)
    }
}
