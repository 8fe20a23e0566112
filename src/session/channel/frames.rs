//! What is appended to the outbox for a channel: opening, publishing, cancelling, closing.

use std::borrow::Cow;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use bytes::Bytes;

use super::{ChannelState, BROKER, HANDLES};
use crate::error::{CloseReason, Error, ErrorKind, Result};
use crate::io_thread::mailbox::{Call, Command, ConfirmMailbox, Published, Reply};
use crate::io_thread::outbox::Frames;
use crate::proto::{Expected, Fingerprint, SendHistory};
use crate::session::call;
use crate::session::subscription::Subscription;
use crate::wire::method::{
    BasicCancel, BasicCancelOk, ChannelClose, ChannelCloseOk, ChannelOpen, ChannelOpenOk,
    ConfirmSelect, Method, TxSelect,
};

/// Whether a copy of the message is kept until it is answered.
pub(crate) fn is_kept<C: ConfirmMailbox>(confirm: Option<&Arc<C>>) -> bool {
    confirm.is_some_and(|it| it.is_published_again())
}

impl ChannelState {
    /// A message was appended: its number, in confirm mode.
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
            earlier: SendHistory::Nothing,
            kept,
        }));
        Some(sequence_number)
    }

    /// Opens the channel at the broker, with the mode and the prefetch that it had before, if it had.
    pub(crate) fn append_open(self: &Arc<Self>, frames: &mut Frames<'_>, call: Call) -> Result<()> {
        let channel = self.number;
        frames.method(&ChannelOpen::default())?;
        self.opened_in.store(frames.epoch(), Ordering::Release);
        self.needed_by.fetch_or(BROKER, Ordering::AcqRel);
        frames.command(Command::OpenChannel {
            channel,
            mailbox: Arc::<Self>::clone(self),
            call,
        });
        if self.settings.has_transactions() {
            call::append(frames, channel, &TxSelect {}, Call::of_nobody())?;
        } else if self.confirms.is_selected() {
            frames.method(&ConfirmSelect { no_wait: true })?;
        }
        for qos in self.settings.qos().methods() {
            call::append(frames, channel, qos, Call::of_nobody())?;
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
        self.append_open(frames, call)?;
        // An attempt to recover it may have failed before it ended: then nothing has said so since,
        // and an error of the new life would not end it.
        self.set_recovering(false);
        self.reset(&cause);
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
        frames.command(Command::Call {
            channel: self.number,
            expected: Expected::CancelOk(consumer_tag),
            call,
        });
        Ok(())
    }

    /// The broker has cancelled a consumer. A quorum queue of RabbitMQ 4.3 keeps one that was
    /// cancelled because an acknowledgement came too late, and goes on with it when that
    /// acknowledgement comes, until it hears that the consumer has ended.
    pub(super) fn append_cancel_after_broker(&self, frames: &mut Frames<'_>, consumer_tag: &str) {
        let sent = self.append_basic_cancel(frames, consumer_tag.into(), Call::of_nobody());
        debug_assert!(sent.is_ok(), "{sent:?}");
    }

    /// Always with a reply, so that the IO thread knows when the last message has come. With `only`
    /// nothing is done if the tag is not that consumer's any more.
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
                // It has ended, and another one may have its tag.
                call.answer(Ok(only.cancelled()));
                return Ok(());
            }
        }
        let call = match consumer {
            Some(consumer) if consumer.is_interrupted() => {
                // It has no unread messages, which would have to be given back.
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
        // The connection was lost, and the consumer with it.
        if !self.is_open_in(frames.epoch()) {
            let consumer_tag = consumer_tag.to_string().into();
            call.answer(Ok(Reply::Method(BasicCancelOk { consumer_tag }.into())));
            return Ok(());
        }
        self.append_basic_cancel(frames, Arc::clone(consumer_tag), call)
    }

    /// The last thing that is sent on the channel.
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
        // Publishers who wait for room have nothing to wait for any more.
        frames.wake_all();
        if !is_open {
            // It went with the connection.
            self.let_go_of_number(HANDLES);
            if let Some(call) = call {
                call.answer(Ok(Reply::Method(Method::ChannelCloseOk(ChannelCloseOk {}))));
            }
            return Ok(());
        }
        self.shared.channel_numbers.closing(channel);
        self.let_go_of_number(HANDLES);
        frames.command(Command::CloseChannel {
            channel,
            reason,
            call,
        });
        Ok(())
    }

    /// The broker has closed the channel: no frame follows this one.
    pub(super) fn append_close_ok(&self, frames: &mut Frames<'_>) {
        frames.answer(&ChannelCloseOk {});
        if self.end.cause().is_some() {
            // Our own close is on its way. The broker may answer it, or not.
            self.shared.channel_numbers.closed_by_both(self.number);
        }
    }
}
