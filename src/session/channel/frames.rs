//! Appends a channel's frames to the outbox: open, reopen, publish, cancel and close.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::ChannelState;
use crate::error::{CloseReason, Error, ErrorKind, Result};
use crate::io_thread::mailbox::{Call, Command, ConfirmMailbox, Published, Reply};
use crate::io_thread::outbox::channel::Mode;
use crate::io_thread::outbox::{Admission, Frames};
use crate::proto::{Expected, Fingerprint, SendHistory};
use crate::session::subscription::Subscription;
use crate::wire::method::{
    BasicCancel, BasicCancelOk, ChannelClose, ChannelCloseOk, ChannelOpen, ChannelOpenOk,
    ConfirmSelect, Encode, Method, TxSelect,
};

/// Whether to keep a copy of the message until the broker answers it.
pub(crate) fn is_kept<C: ConfirmMailbox>(confirm: Option<&Arc<C>>) -> bool {
    confirm.is_some_and(|it| it.is_published_again())
}

/// What a close has done.
pub(crate) enum Closed {
    /// `channel.close` was appended on the connection of this epoch.
    Sent { epoch: u64 },
    /// The connection was lost. The core will report the channel's end.
    WithConnection,
    /// The channel was open on no connection. It has ended, and the caller must report that.
    Now(Error),
}

impl ChannelState {
    /// Notes that a message was appended. Returns its sequence number in confirm mode.
    #[inline]
    pub(crate) fn published<C: ConfirmMailbox + 'static>(
        &self,
        frames: &mut Frames<'_>,
        fingerprint: Option<Fingerprint>,
        confirm: Option<&Arc<C>>,
        keep: impl FnOnce(&mut Frames<'_>) -> Bytes,
    ) -> Option<u64> {
        let sequence_number = frames.published(confirm.is_some())?;
        let kept = is_kept(confirm).then(|| keep(frames));
        frames.command(Command::Publish(Published {
            channel: self.number,
            sequence_number,
            confirm: confirm.map(|it| Arc::<C>::clone(it) as Arc<dyn ConfirmMailbox>),
            fingerprint,
            send_history: SendHistory::Nothing,
            kept,
        }));
        Some(sequence_number)
    }

    /// Opens the channel at the broker, and restores its mode and prefetch.
    pub(crate) fn append_open(self: &Arc<Self>, frames: &mut Frames<'_>, call: Call) -> Result<()> {
        let channel = self.number;
        // A recovery may have lowered `channel_max` since the channel got its number.
        let channel_max = frames.channel_numbers().highest();
        if channel > channel_max {
            return Err(Error::new(ErrorKind::ChannelsExhausted { channel_max }));
        }
        frames.method(&ChannelOpen::default())?;
        let epoch = frames.epoch();
        frames.channel().opened(epoch);
        let last_tag = frames.channel().delivery_tags.stale_to();
        frames.command(Command::OpenChannel {
            channel,
            mailbox: Arc::<Self>::clone(self),
            last_tag,
            call,
        });
        match frames.channel().mode() {
            Mode::Plain => {}
            Mode::Confirm => frames.method(&ConfirmSelect { no_wait: true })?,
            Mode::Transaction(_) => frames.call(&TxSelect {}, Call::unawaited())?,
        }
        let qos = frames.channel().qos().clone();
        for method in qos.methods() {
            frames.call(method, Call::unawaited())?;
        }
        Ok(())
    }

    pub(crate) fn append_reopen(
        self: &Arc<Self>,
        frames: &mut Frames<'_>,
        call: Call,
    ) -> Result<()> {
        let Some(cause) = frames.channel().end_cause().cloned() else {
            call.answer(Ok(Reply::Method(ChannelOpenOk::default().into())));
            return Ok(());
        };
        self.append_open(frames, call)?;
        // The channel may have ended while it was recovered. A later error must end it again.
        frames.channel().set_recovering(false);
        let sequence_numbers = &mut frames.channel().sequence_numbers;
        let unawaited = sequence_numbers.take_last_unawaited();
        let published = sequence_numbers.last();
        self.confirms.reopen(&cause, published, unawaited);
        self.returned.reopen();
        self.confirmations.reopen();
        Ok(())
    }

    /// Sends an answer to one delivery, or to all deliveries up to it. Fails with
    /// [`Error::stale`] if the delivery came on a lost connection: the broker has requeued that
    /// message, and would apply the answer to another one. Returns the connection's epoch.
    pub(crate) fn answer<M: Encode>(
        &self,
        delivery_tag: u64,
        multiple: bool,
        timeout: Duration,
        answer: impl FnOnce(u64) -> M,
    ) -> Result<u64> {
        let admission = Admission::Answer { delivery_tag };
        let outbox = &self.shared.outbox;
        outbox.write(self.id(), admission, timeout, |frames| {
            // The connection can be lost before the channel learns of it.
            let is_open = frames.is_open();
            let tag = frames.channel().delivery_tags.broker_tag(delivery_tag);
            let tag = tag.filter(|_| is_open);
            let stale = || Error::stale(delivery_tag);
            frames.method(&answer(tag.ok_or_else(stale)?))?;
            let multiple = multiple.then(|| (delivery_tag, frames.last_call()));
            frames.channel().answered(multiple);
            Ok(frames.epoch())
        })
    }

    fn append_basic_cancel(
        &self,
        frames: &mut Frames<'_>,
        consumer_tag: Arc<str>,
        call: Call,
    ) -> Result<()> {
        frames.method(&BasicCancel {
            consumer_tag: Cow::Borrowed(&consumer_tag),
            no_wait: false,
        })?;
        frames.expect(Expected::CancelOk(consumer_tag), call);
        Ok(())
    }

    /// Cancels a consumer that the broker has already cancelled. A quorum queue of RabbitMQ 4.3
    /// keeps a consumer that it cancelled because an acknowledgement was late, and resumes it when
    /// the acknowledgement arrives. Only `basic.cancel` ends that consumer. RabbitMQ 3.10, 4.0 and
    /// 4.3 answer a cancel for an unknown tag, too. A cancel-ok for one costs the connection (503,
    /// or 541 on 4.3).
    pub(super) fn append_cancel_after_broker(&self, frames: &mut Frames<'_>, consumer_tag: &str) {
        let sent = self.append_basic_cancel(frames, consumer_tag.into(), Call::unawaited());
        debug_assert!(sent.is_ok(), "{sent:?}");
    }

    /// Cancels a consumer. Always asks for a reply, so that the IO thread knows when the last
    /// message has arrived. With `only`, does nothing if another consumer has the tag by now.
    pub(crate) fn append_cancel(
        &self,
        frames: &mut Frames<'_>,
        consumer_tag: &Arc<str>,
        only: Option<&Subscription>,
        call: Call,
    ) -> Result<()> {
        let consumer = self.consumers.lock().subscription(consumer_tag);
        if let Some(only) = only {
            if !consumer.as_deref().is_some_and(|it| std::ptr::eq(it, only)) {
                // The consumer has ended, and another one may have its tag.
                call.answer(Ok(only.cancelled()));
                return Ok(());
            }
        }
        let call = match consumer {
            Some(consumer) if consumer.is_interrupted() => {
                // Nothing is sent: the consumer went with the lost connection.
                let recorded = self.consumers.lock().get(consumer_tag);
                if let Some(recorded) = recorded {
                    recorded.mailbox.ended(None);
                }
                call.answer(Ok(consumer.cancelled()));
                return Ok(());
            }
            Some(consumer) => match consumer.cancel(call) {
                None => return Ok(()),
                Some(call) => call,
            },
            None => call,
        };
        // The consumer was lost with the connection.
        if !frames.is_open() {
            let consumer_tag = consumer_tag.to_string().into();
            call.answer(Ok(Reply::Method(BasicCancelOk { consumer_tag }.into())));
            return Ok(());
        }
        self.append_basic_cancel(frames, Arc::clone(consumer_tag), call)
    }

    /// Appends `channel.close`, the last frame on the channel.
    pub(crate) fn append_close(
        &self,
        frames: &mut Frames<'_>,
        reason: CloseReason,
        call: Option<Call>,
    ) -> Result<Closed> {
        let close = ChannelClose {
            reply_code: reason.code.0,
            reply_text: reason.text.as_str().into(),
            ..ChannelClose::default()
        };
        let channel = self.number;
        let is_open = frames.is_open();
        if is_open {
            frames.method(&close)?;
        }
        let cause = Error::new(ErrorKind::ChannelClosed {
            channel,
            reason: reason.clone(),
        });
        let is_reported = frames.channel().close(cause.clone());
        // Publishers that wait for room get the error now.
        frames.wake_all();
        if is_open {
            frames.channel_numbers().closing(channel);
            frames.command(Command::CloseChannel {
                channel,
                reason,
                call,
            });
        } else if let Some(call) = call {
            call.answer(Ok(Reply::Method(Method::ChannelCloseOk(ChannelCloseOk {}))));
        }
        frames.handles_are_done();
        Ok(match is_reported {
            _ if is_open => Closed::Sent {
                epoch: frames.epoch(),
            },
            true => Closed::WithConnection,
            false => Closed::Now(cause),
        })
    }

    /// Answers the broker's `channel.close`. No frame follows this one.
    pub(super) fn append_close_ok(&self, frames: &mut Frames<'_>) {
        frames.answer(&ChannelCloseOk {});
        if frames.channel().end_cause().is_some() {
            // Both sides closed. RabbitMQ answers our close if it reads it after it has sent its
            // own, and never if it read ours just before.
            frames.channel_numbers().closed_by_both(self.number);
        }
    }
}
