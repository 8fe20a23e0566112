//! What all handles of a channel share with the IO thread.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::confirms::{Confirmation, Confirms};
use super::settled::Settled;
use crate::consumer::Registration;
use crate::delivery::Delivery;
use crate::error::{CloseReason, ClosedBy, Error, ErrorKind, ReplyCode, Result};
use crate::feed::Feed;
use crate::io_thread::Link;
use crate::mailbox::{Call, ChannelMailbox, Command};
use crate::outbox::{Admission, Frames, Gate};
use crate::proto::{Answer, Expected, Returned};
use crate::returned::ReturnedMessage;
use crate::wire::method::{BasicCancel, BasicNack, ChannelClose};

/// How many returned messages are kept for `Channel::returned_messages`.
const RETURNED_LIMIT: usize = 1024;
/// How many answers are kept for `Channel::confirmations`.
const CONFIRMATIONS_LIMIT: usize = 65_536;

/// What the handles share with the IO thread.
pub(crate) struct ChannelState {
    pub(super) number: u16,
    pub(super) link: Arc<Link>,
    pub(super) end: End,
    /// The broker asked to stop publishing with `channel.flow`.
    flow_stopped: AtomicBool,
    pub(super) confirms: Confirms,
    pub(super) returned: Feed<ReturnedMessage>,
    pub(super) confirmations: Feed<Confirmation>,
    pub(crate) settled: Settled,
    /// The tags that are in use, and by whom.
    pub(crate) consumer_tags: Mutex<HashMap<Arc<str>, Weak<Registration>>>,
    /// For making up consumer tags.
    pub(super) consumers: AtomicU64,
}

/// Why nothing can be sent any more. Set under the outbox's lock, like everything that decides what may follow what on
/// the channel.
#[derive(Default)]
pub(super) struct End {
    is_set: AtomicBool,
    cause: Mutex<Option<Error>>,
}

impl End {
    #[inline]
    pub(super) fn cause(&self) -> Option<Error> {
        if !self.is_set.load(Ordering::Acquire) {
            return None;
        }
        self.cause.lock().clone()
    }

    fn set(&self, cause: Error) {
        *self.cause.lock() = Some(cause);
        self.is_set.store(true, Ordering::Release);
    }
}

impl ChannelMailbox for ChannelState {
    fn ended(&self, error: &Error) {
        match error.close_reason() {
            Some(reason) if reason.by == ClosedBy::Broker => log::warn!("{error}"),
            _ => log::debug!("{error}"),
        }
        // When closes cross, this is what those who wait are told; so everyone is told it from now on.
        self.link.outbox.change(|| self.end.set(error.clone()));
        self.confirms.end(error);
        self.returned.end();
        self.confirmations.end();
    }

    fn freed(&self) {
        self.link.channel_numbers.release(self.number);
    }

    fn flow(&self, active: bool) {
        self.link
            .outbox
            .change(|| self.flow_stopped.store(!active, Ordering::Release));
    }

    fn confirm(&self, answer: Answer, sequence_number: u64, answered_to: u64) {
        let Answer { multiple, nack, .. } = answer;
        let confirmation = Confirmation {
            sequence_number,
            multiple,
            nack,
        };
        // Most programs do not read these.
        let _ = self.confirmations.send(confirmation);
        self.confirms.answered_to(answered_to);
    }

    fn nacked(&self, sequence_number: u64) {
        self.confirms.nacked(sequence_number);
    }

    fn returned(&self, returned: Returned, sequence_number: Option<u64>) {
        let Returned {
            code,
            text,
            content,
        } = returned;
        let message = ReturnedMessage::new(code, text, sequence_number, content);
        if let Some(unread) = self.returned.send(message) {
            log::warn!("channel {}: nobody reads {unread:?}", self.number);
        }
    }

    fn message_too_large(&self, size: u64) {
        let text = format!("a message of {size} bytes is more than max_message_size");
        let reason = CloseReason {
            code: ReplyCode::CONTENT_TOO_LARGE,
            ..CloseReason::program(&text)
        };
        // It fails only if the channel has ended.
        let _ = self.write_now(|frames| self.append_close(frames, reason, None));
    }

    fn requeue(&self, delivery_tag: u64) {
        let nack = BasicNack {
            delivery_tag,
            multiple: false,
            requeue: true,
        };
        // It fails only if the channel has ended: then the broker requeues by itself.
        let _ = self.write_now(|frames| {
            if self.settled.contains(delivery_tag) {
                return Ok(());
            }
            frames.method(&nack)
        });
    }

    fn broker_replied(&self) {
        self.settled.broker_replied();
    }

    fn received(&self, delivery_tag: u64) {
        self.settled.received(delivery_tag);
    }
}

impl ChannelState {
    pub(super) fn new(number: u16, link: Arc<Link>) -> Self {
        Self {
            number,
            link,
            end: End::default(),
            flow_stopped: AtomicBool::new(false),
            confirms: Confirms::default(),
            returned: Feed::new(RETURNED_LIMIT),
            confirmations: Feed::new(CONFIRMATIONS_LIMIT),
            settled: Settled::default(),
            consumer_tags: Mutex::new(HashMap::new()),
            consumers: AtomicU64::new(0),
        }
    }

    pub(super) fn gate(&self) -> Result<Gate> {
        match self.end.cause() {
            Some(error) => Err(error),
            None => Ok(Gate::Open),
        }
    }

    pub(super) fn publish_gate(&self) -> Result<Gate> {
        match self.gate()? {
            Gate::Open if self.flow_stopped.load(Ordering::Acquire) => Ok(Gate::Shut),
            gate => Ok(gate),
        }
    }

    /// Sends without waiting for room: little, and from places that must not wait.
    pub(super) fn write_now(
        &self,
        append: impl FnOnce(&mut Frames<'_>) -> Result<()>,
    ) -> Result<()> {
        let outbox = &self.link.outbox;
        outbox.write(
            self.number,
            Admission::Always,
            Duration::ZERO,
            || self.gate(),
            append,
        )
    }

    pub(crate) fn requeue_unread(&self, delivery: &Delivery) {
        if delivery.can_be_requeued() {
            self.requeue(delivery.delivery_tag());
        }
    }

    pub(crate) fn cancel_in_background(&self, consumer_tag: &Arc<str>) {
        let (call, _nobody) = crossbeam_channel::bounded(1);
        self.cancel_for(consumer_tag, call);
    }

    /// Cancels for one who already waits.
    pub(crate) fn cancel_for(&self, consumer_tag: &Arc<str>, call: Call) {
        let caller = call.clone();
        // It fails only if the channel has ended, and with it the consumer.
        if let Err(error) = self.write_now(|frames| self.append_cancel(frames, consumer_tag, call))
        {
            let _ = caller.send(Err(error));
        }
    }

    /// Always with a reply, so that the IO thread knows when the last message has come.
    pub(super) fn append_cancel(
        &self,
        frames: &mut Frames<'_>,
        consumer_tag: &Arc<str>,
        call: Call,
    ) -> Result<()> {
        let consumer = self
            .consumer_tags
            .lock()
            .get(consumer_tag)
            .and_then(Weak::upgrade);
        let call = match consumer {
            Some(consumer) => match consumer.cancel_when_started(call) {
                None => return Ok(()),
                Some(call) => call,
            },
            None => call,
        };
        let cancel = BasicCancel {
            consumer_tag: Cow::Borrowed(consumer_tag),
            no_wait: false,
        };
        frames.method(&cancel)?;
        frames.command(Command::Call {
            channel: self.number,
            expected: Expected::CancelOk(Arc::clone(consumer_tag)),
            call,
        });
        Ok(())
    }

    /// The last thing that is sent on the channel.
    pub(super) fn append_close(
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
        frames.method(&close)?;
        let channel = self.number;
        let kind = ErrorKind::ChannelClosed {
            channel,
            reason: reason.clone(),
        };
        self.end.set(Error::new(kind));
        // Publishers who wait for room have nothing to wait for any more.
        frames.wake_all();
        self.link.channel_numbers.closing(channel);
        frames.command(Command::CloseChannel {
            channel,
            reason,
            call,
        });
        Ok(())
    }
}
