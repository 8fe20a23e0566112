//! Acknowledging, nacking and rejecting messages.

use super::Channel;
use crate::error::{Error, ErrorKind, Result};
use crate::log_line::log_line;
use crate::options::{NackOptions, Requeue};
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
    /// With tag 0, the broker settles what it has sent, which can be more than what has arrived. So
    /// until it has answered another call on the channel, no message is given back: unread messages
    /// of a consumer that is dropped meanwhile stay unacknowledged until the channel closes. The
    /// tag of the last message that was read has no such effect.
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
        let timeout = self.connection().publish_timeout();
        match state.answer(delivery_tag, multiple, timeout, answer) {
            Ok(epoch) => Ok(Answered::Sent { epoch }),
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
            Err(error) => Err(Operation::about(M::ID, "").failed(error)),
        }
    }

    /// Whether an answer failed because its message came on a lost connection.
    fn is_stale(&self, delivery_tag: u64, error: &Error) -> bool {
        // Refused as stale: what has happened to the channel since then does not matter.
        if matches!(error.kind(), ErrorKind::AlreadySettled { .. }) {
            return true;
        }
        self.state().look(|channel| {
            let is_stale = channel.delivery_tags.broker_tag(delivery_tag).is_none();
            is_stale && channel.end_cause().is_none()
        })
    }

    /// The outcome of an answer that the program sent itself.
    pub(crate) fn answered(&self, delivery_tag: u64) -> Answered {
        let state = self.state();
        // While the tag is known, the channel is open on the message's connection. If the channel
        // has ended, no tag is known any more.
        let opened_in = state.look(|channel| {
            let tag = channel.delivery_tags.broker_tag(delivery_tag);
            let is_known = tag.is_some() || channel.end_cause().is_some();
            channel.opened_in().filter(|_| is_known)
        });
        // Otherwise the connection was lost, and the answer may have been sent before or after the
        // loss.
        let lost = || state.shared.outbox.epoch().saturating_sub(1);
        Answered::Sent {
            epoch: opened_in.unwrap_or_else(lost),
        }
    }

    /// Nacks one or more messages: the broker requeues, drops or dead-letters them. A RabbitMQ
    /// extension.
    ///
    /// Since RabbitMQ 4.3, a nack does not count towards the delivery limit of a quorum queue;
    /// [`basic_reject`](Self::basic_reject) does. Use a nack for messages that were not handled.
    ///
    /// # Errors
    /// Same as [`basic_ack`](Self::basic_ack).
    pub fn basic_nack(&self, delivery_tag: u64, options: impl Into<NackOptions>) -> Result<()> {
        self.nack(delivery_tag, options.into()).map(drop)
    }

    pub(crate) fn nack(&self, delivery_tag: u64, options: NackOptions) -> Result<Answered> {
        self.answer(delivery_tag, options.multiple, |delivery_tag| BasicNack {
            delivery_tag,
            multiple: options.multiple,
            requeue: options.requeue.is_yes(),
        })
    }

    /// Rejects one message: the broker requeues it, drops it or dead-letters it.
    ///
    /// With [`Requeue::Yes`], the reject counts as a failed delivery towards the delivery limit of
    /// a quorum queue.
    ///
    /// # Errors
    /// Same as [`basic_ack`](Self::basic_ack).
    pub fn basic_reject(&self, delivery_tag: u64, requeue: Requeue) -> Result<()> {
        self.reject(delivery_tag, requeue).map(drop)
    }

    pub(crate) fn reject(&self, delivery_tag: u64, requeue: Requeue) -> Result<Answered> {
        self.answer(delivery_tag, false, |delivery_tag| BasicReject {
            delivery_tag,
            requeue: requeue.is_yes(),
        })
    }

    /// Requeues all unacknowledged messages of the channel, and waits until the broker has done so.
    /// RabbitMQ implements only [`Requeue::Yes`]. Like [`basic_nack`](Self::basic_nack), this does
    /// not count towards the delivery limit since RabbitMQ 4.3.
    ///
    /// # Errors
    /// With [`Requeue::No`], RabbitMQ closes the connection (540).
    pub fn basic_recover(&self, requeue: Requeue) -> Result<()> {
        let requeue = requeue.is_yes();
        self.call_with(Operation::about(BasicRecover::ID, ""), |frames, call| {
            let last_call = frames.last_call();
            frames.call(&BasicRecover { requeue }, call)?;
            frames.channel().delivery_tags.up_to(0, last_call);
            Ok(())
        })?;
        Ok(())
    }

    /// [`basic_recover`](Self::basic_recover) without a reply. Deprecated in AMQP.
    ///
    /// # Errors
    /// Same as [`basic_ack_multiple`](Self::basic_ack_multiple) with tag 0. With
    /// [`Requeue::No`], RabbitMQ closes the connection (540).
    pub fn basic_recover_async(&self, requeue: Requeue) -> Result<()> {
        let requeue = requeue.is_yes();
        let answered = self.answer(0, true, |_| BasicRecoverAsync { requeue });
        answered.map(drop)
    }
}
