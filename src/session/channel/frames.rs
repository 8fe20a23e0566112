//! Appends a channel's frames to the outbox: open, reopen, publish, cancel and close.

use std::borrow::Cow;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use bytes::Bytes;

use super::{ChannelState, BROKER, HANDLES};
use crate::error::{CloseReason, Error, ErrorKind, Result};
use crate::io_thread::mailbox::{Call, Command, ConfirmMailbox, Published, Reply};
use crate::io_thread::outbox::Frames;
use crate::proto::{Expected, Fingerprint, SendHistory};
use crate::session::subscription::Subscription;
use crate::wire::method::{
    BasicCancel, BasicCancelOk, ChannelClose, ChannelCloseOk, ChannelOpen, ChannelOpenOk,
    ConfirmSelect, Method, TxSelect,
};

/// Whether to keep a copy of the message until the broker answers it.
pub(crate) fn is_kept<C: ConfirmMailbox>(confirm: Option<&Arc<C>>) -> bool {
    confirm.is_some_and(|it| it.is_published_again())
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
        let Some(sequence_number) = self.confirms.next(confirm.is_some()) else {
            self.settings.used();
            return None;
        };
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
        frames.method(&ChannelOpen::default())?;
        self.opened_in.store(frames.epoch(), Ordering::Release);
        self.needed_by.fetch_or(BROKER, Ordering::AcqRel);
        frames.command(Command::OpenChannel {
            channel,
            mailbox: Arc::<Self>::clone(self),
            last_tag: self.delivery_tags.stale_to(),
            call,
        });
        if self.settings.has_transactions() {
            frames.call(&TxSelect {}, Call::unawaited())?;
        } else if self.confirms.is_selected() {
            frames.method(&ConfirmSelect { no_wait: true })?;
        }
        for qos in self.settings.qos().methods() {
            frames.call(qos, Call::unawaited())?;
        }
        Ok(())
    }

    pub(crate) fn append_reopen(
        self: &Arc<Self>,
        frames: &mut Frames<'_>,
        call: Call,
    ) -> Result<()> {
        let Some(cause) = self.end.cause() else {
            call.answer(Ok(Reply::Method(ChannelOpenOk::default().into())));
            return Ok(());
        };
        self.reset(&cause);
        self.append_open(frames, call)?;
        // The channel may have ended after a failed recovery attempt, which leaves this flag set. A
        // later error would then not end the channel.
        self.set_recovering(false);
        self.confirms.reopen(&cause);
        self.returned.reopen();
        self.confirmations.reopen();
        self.end.clear();
        Ok(())
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
        if !self.is_open_in(frames.epoch()) {
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
    ) -> Result<()> {
        let close = ChannelClose {
            reply_code: reason.code.0,
            reply_text: reason.text.as_str().into(),
            ..ChannelClose::default()
        };
        let channel = self.number;
        let is_open = self.is_open_in(frames.epoch());
        if is_open {
            frames.method(&close)?;
        }
        let kind = ErrorKind::ChannelClosed {
            channel,
            reason: reason.clone(),
        };
        self.end.set(Error::new(kind));
        // Publishers that wait for room get the error now.
        frames.wake_all();
        if !is_open {
            // The channel was lost with the connection.
            self.release_number(frames, HANDLES);
            if let Some(call) = call {
                call.answer(Ok(Reply::Method(Method::ChannelCloseOk(ChannelCloseOk {}))));
            }
            return Ok(());
        }
        frames.channel_numbers().closing(channel);
        self.release_number(frames, HANDLES);
        frames.command(Command::CloseChannel {
            channel,
            reason,
            call,
        });
        Ok(())
    }

    /// Answers the broker's `channel.close`. No frame follows this one.
    pub(super) fn append_close_ok(&self, frames: &mut Frames<'_>) {
        frames.answer(&ChannelCloseOk {});
        if self.end.cause().is_some() {
            // Both sides closed. RabbitMQ answers our close if it reads it after it has sent its
            // own, and never if it read ours just before.
            frames.channel_numbers().closed_by_both(self.number);
        }
    }
}
