//! What all handles of a channel share with the IO thread.

pub(crate) mod confirms;
pub(crate) mod consumers;
pub(crate) mod delivery_tags;
pub(crate) mod settings;

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicU8, Ordering};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::call;
use crate::error::returned::ReturnedMessage;
use crate::error::{CloseReason, ClosedBy, Error, ErrorKind, OneLine, ReplyCode, Result};
use crate::io_thread::mailbox::{Call, ChannelMailbox, Command, Reply};
use crate::io_thread::notifier::Feed;
use crate::io_thread::outbox::{Admission, Frames, Gate};
use crate::io_thread::Link;
use crate::log_line::log_line;
use crate::proto::{Answer, Expected, Left, Returned, Settling};
use crate::session::subscription::Registration;
use crate::wire::method::{
    BasicAck, BasicCancel, BasicCancelOk, BasicConsume, BasicNack, ChannelClose, ChannelCloseOk,
    ChannelFlowOk, ChannelOpen, ChannelOpenOk, ConfirmSelect, Encode, ExchangeBind,
    ExchangeDeclare, Method, MethodId, QueueBind, QueueDeclare, TxSelect,
};
use confirms::{Confirmation, Confirms};
use consumers::Consumers;
use delivery_tags::Settled;
use settings::Settings;

/// How many returned messages are kept for `Channel::returned_messages`.
const RETURNED_LIMIT: usize = 1024;
/// How many bytes of them.
const RETURNED_BYTES: u64 = 16 << 20;
/// How many answers are kept for `Channel::confirmations`.
const CONFIRMATIONS_LIMIT: usize = 65_536;

/// No connection.
const NEVER: u64 = u64::MAX;

/// Who needs a channel's number; it is released when nobody does. The broker, as long as it has the channel open:
const BROKER: u8 = 1;
/// The handles, which may open the channel again.
const HANDLES: u8 = 2;

/// What the handles share with the IO thread.
pub(crate) struct ChannelState {
    pub(crate) number: u16,
    /// Who needs the number.
    needed_by: AtomicU8,
    pub(crate) link: Arc<Link>,
    pub(crate) end: End,
    /// The broker asked to stop publishing with `channel.flow`.
    flow_stopped: AtomicBool,
    pub(crate) confirms: Confirms,
    pub(crate) returned: Feed<ReturnedMessage>,
    pub(crate) confirmations: Feed<Confirmation>,
    pub(crate) settled: Settled,
    pub(crate) consumers: Mutex<Consumers>,
    pub(crate) settings: Settings,
    /// How often the connection was lost when this channel was last opened at the broker; with another number of the
    /// outbox it is not open there. Changes under the outbox's lock.
    opened_in: AtomicU64,
    /// It is being opened again on a new connection: what goes wrong there does not end it.
    is_recovering: AtomicBool,
    /// It asks whether something exists: "no" closes it, and is no fault.
    is_question: AtomicBool,
}

/// Why nothing can be sent any more. Set under the outbox's lock, like everything that decides what may follow what on
/// the channel.
#[derive(Default)]
pub(crate) struct End {
    is_set: AtomicBool,
    cause: Mutex<Option<Error>>,
}

impl End {
    #[inline]
    pub(crate) fn cause(&self) -> Option<Error> {
        if !self.is_set.load(Ordering::Acquire) {
            return None;
        }
        self.cause.lock().clone()
    }

    fn set(&self, cause: Error) {
        *self.cause.lock() = Some(cause);
        self.is_set.store(true, Ordering::Release);
    }

    pub(crate) fn clear(&self) {
        self.is_set.store(false, Ordering::Release);
        *self.cause.lock() = None;
    }
}

impl ChannelMailbox for ChannelState {
    fn ended(&self, error: &Error, owes_close_ok: bool) {
        // All under one lock: whoever brings the channel back finds it open, interrupted, or ended.
        let outlives = self.link.outbox.answer(self.number, |frames| {
            if owes_close_ok {
                self.append_close_ok(frames);
            }
            let outlives = self.outlives(error);
            match outlives {
                // Nothing was published on it since the last loss.
                true => self.interrupt(error),
                // When closes cross, this is what those who wait are told; so everyone is told it from now on.
                false => {
                    self.end.set(error.clone());
                    self.confirms.closed(error);
                }
            }
            outlives
        });
        if outlives {
            return;
        }
        if self.is_closed_by_broker(error) {
            self.link.counters.channel_closed_by_broker();
        }
        self.confirms.end(error);
        self.returned.end();
        self.confirmations.end();
        // Those that the core knows have ended; left are those that were waiting for the next connection.
        let left = self.consumers.lock().wanted();
        for consumer in left {
            consumer.mailbox.ended(Some(error.clone()));
        }
        // The last, since the program's logger can panic.
        let (label, channel) = (self.link.label(), self.number);
        match self.is_closed_by_broker(error) {
            true => log_line!(Warn, label, "{error}"),
            false => log_line!(Debug, label, "channel {channel} has ended: {error}"),
        }
    }

    fn interrupted(&self, error: &Error, left: Left) {
        self.link.outbox.change(|| {
            self.lose_unawaited(error, left);
            self.interrupt(error);
            self.let_go_of_number(BROKER);
        });
        // The program has closed it, and now it is closed.
        self.end_if_detached();
    }

    fn freed(&self) {
        // Now it can be opened again.
        self.link.outbox.change(|| self.let_go_of_number(BROKER));
    }

    fn flow(&self, active: bool) {
        self.link.outbox.answer(self.number, |frames| {
            self.flow_stopped.store(!active, Ordering::Release);
            if self.may_answer() {
                frames.answer(&ChannelFlowOk { active });
            }
        });
    }

    fn consumer_cancelled(&self, consumer_tag: &str, is_known: bool, no_wait: bool) {
        self.link.outbox.answer(self.number, |frames| {
            if !self.may_answer() {
                return;
            }
            if !no_wait {
                let consumer_tag = consumer_tag.into();
                frames.answer(&BasicCancelOk { consumer_tag });
            }
            if is_known {
                self.append_cancel_after_broker(frames, consumer_tag);
            }
        });
    }

    fn unwanted(&self, delivery_tag: u64, settling: Settling) {
        let delivery_tag = self.settled.received(delivery_tag);
        self.give_back(delivery_tag, settling);
    }

    fn confirm(&self, answer: Answer, sequence_number: u64, answered_to: u64) {
        let Answer { multiple, nack, .. } = answer;
        let confirmation = Confirmation {
            sequence_number,
            multiple,
            nack,
            lost: false,
        };
        // Most programs do not read these.
        self.confirmations.send(confirmation, drop);
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
        self.returned.send(message, |unread| {
            let (label, channel) = (self.link.label(), self.number);
            log_line!(
                Warn,
                label,
                "channel {channel}: {unread:?} was dropped unread"
            );
        });
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

    fn give_back(&self, delivery_tag: u64, settling: Settling) {
        // It fails only if the channel has ended: then the broker requeues by itself.
        let _ = self.write_now(|frames| {
            let broker_tag = self.settled.broker_tag(delivery_tag);
            let is_open = self.is_open_in(frames.epoch());
            let unanswered = broker_tag.filter(|_| is_open && !self.settled.contains(delivery_tag));
            let Some(delivery_tag) = unanswered else {
                return Ok(());
            };
            let multiple = false;
            match settling {
                Settling::NoAck => Ok(()),
                // A stream takes nothing back. Without an answer the broker closes the channel in the end.
                Settling::Stream => frames.method(&BasicAck {
                    delivery_tag,
                    multiple,
                }),
                // Not a reject: no handler has failed, so it must not count as a failed delivery.
                Settling::Requeue => frames.method(&BasicNack {
                    delivery_tag,
                    multiple,
                    requeue: true,
                }),
            }
        });
    }

    fn broker_replied(&self, asked: Option<&Method<'_>>) {
        self.settled.broker_replied();
        if let Some(asked @ (Method::TxSelect(_) | Method::BasicQos(_))) = asked {
            self.link.outbox.change(|| self.settings.done(asked));
        }
    }

    fn received(&self, broker_tag: u64) -> u64 {
        self.settled.received(broker_tag)
    }
}

impl ChannelState {
    pub(crate) fn new(number: u16, link: Arc<Link>) -> Self {
        Self {
            number,
            needed_by: AtomicU8::new(HANDLES),
            link,
            end: End::default(),
            flow_stopped: AtomicBool::new(false),
            confirms: Confirms::default(),
            returned: Feed::of_bytes(RETURNED_LIMIT, RETURNED_BYTES, ReturnedMessage::size),
            confirmations: Feed::new(CONFIRMATIONS_LIMIT),
            settled: Settled::default(),
            consumers: Mutex::new(Consumers::default()),
            settings: Settings::default(),
            opened_in: AtomicU64::new(NEVER),
            is_recovering: AtomicBool::new(false),
            is_question: AtomicBool::new(false),
        }
    }

    /// From now on "not found" and "locked" are answers.
    pub(crate) fn ask_existence(&self) {
        self.is_question.store(true, Ordering::Relaxed);
    }

    /// Whether the broker has closed this channel because of a fault.
    fn is_closed_by_broker(&self, error: &Error) -> bool {
        let ErrorKind::ChannelClosed { reason, .. } = error.kind() else {
            return false;
        };
        let answers = [ReplyCode::NOT_FOUND, ReplyCode::RESOURCE_LOCKED];
        let is_question = self.is_question.load(Ordering::Relaxed);
        reason.by == ClosedBy::Broker && !(is_question && answers.contains(&reason.code))
    }

    /// Whether the broker gets answers on the channel: no frame may follow our close, of which the
    /// core need not know yet. Under the outbox's lock.
    fn may_answer(&self) -> bool {
        self.end.cause().is_none()
    }

    /// The broker has closed the channel: no frame follows this one.
    fn append_close_ok(&self, frames: &mut Frames<'_>) {
        frames.answer(&ChannelCloseOk {});
        if self.end.cause().is_some() {
            // Our own close is on its way. The broker may answer it, or not.
            self.link.channel_numbers.closed_by_both(self.number);
        }
    }

    /// The broker has cancelled a consumer. A quorum queue of RabbitMQ 4.3 keeps one that was
    /// cancelled because an acknowledgement came too late, and goes on with it when that
    /// acknowledgement comes, until it hears that the consumer has ended.
    fn append_cancel_after_broker(&self, frames: &mut Frames<'_>, consumer_tag: &str) {
        let sent = self.append_basic_cancel(frames, consumer_tag.into(), Call::of_nobody());
        debug_assert!(sent.is_ok(), "{sent:?}");
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

    fn let_go_of_number(&self, who: u8) {
        if self.needed_by.fetch_and(!who, Ordering::AcqRel) == who {
            self.link.channel_numbers.release(self.number);
        }
    }

    /// The last handle is gone.
    pub(crate) fn dropped(&self) {
        let reason = CloseReason::program("its last handle was dropped");
        // It fails only if the channel has ended.
        let _ = self.write_now(|frames| self.append_close(frames, reason, None));
        self.end_if_detached();
        self.let_go_of_number(HANDLES);
    }

    pub(crate) fn set_recovering(&self, is_recovering: bool) {
        self.is_recovering.store(is_recovering, Ordering::Release);
    }

    pub(crate) fn is_recovering(&self) -> bool {
        self.is_recovering.load(Ordering::Acquire)
    }

    /// Whether the channel goes on all the same: the broker has closed it because of what was asked to bring it back, and
    /// then it is opened once more.
    fn outlives(&self, error: &Error) -> bool {
        const ASKED: [MethodId; 5] = [
            ExchangeDeclare::ID,
            ExchangeBind::ID,
            QueueDeclare::ID,
            QueueBind::ID,
            BasicConsume::ID,
        ];
        let ErrorKind::ChannelClosed { reason, .. } = error.kind() else {
            return false;
        };
        // Acks go out meanwhile, and the program answers for those.
        let was_asked = ASKED.iter().any(|id| reason.method == id.name());
        was_asked && self.is_recovering() && self.end.cause().is_none()
    }

    /// Whether that was so.
    pub(crate) fn has_outlived(&self, error: &Error) -> bool {
        let is_closed = matches!(error.kind(), ErrorKind::ChannelClosed { .. });
        is_closed && self.end.cause().is_none()
    }

    /// It is not open at the broker any more, and shall be again. Under the outbox's lock.
    fn interrupt(&self, error: &Error) {
        self.reset(error);
        self.opened_in.store(NEVER, Ordering::Release);
    }

    pub(crate) fn consumer_started(&self, consumer_tag: &str) {
        let wanted = self.consumers.lock().get(consumer_tag);
        if let Some(wanted) = wanted {
            let topology = &mut self.link.topology.lock();
            topology.consumer_started(&wanted.consume.queue);
        }
    }

    /// The tag is free from now on, since nothing can come for it any more.
    pub(crate) fn consumer_ended(&self, consumer_tag: &str, was_live: bool) {
        let wanted = self.consumers.lock().remove(consumer_tag);
        if let Some(wanted) = wanted.filter(|_| was_live) {
            let topology = &mut self.link.topology.lock();
            topology.consumer_ended(&wanted.consume.queue);
        }
    }

    /// Whether the broker knows the channel on this connection.
    pub(crate) fn is_open_in(&self, epoch: u64) -> bool {
        self.opened_in.load(Ordering::Acquire) == epoch
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

    /// Warns once if the program relies on a limit for the whole channel that this broker does not
    /// have. The next connection can be to a broker of another version, so this is asked again then.
    pub(crate) fn warn_of_global_qos(&self) {
        let Some(global) = self.settings.qos().global else {
            return;
        };
        let peer = self.link.peer();
        if peer.server.limits_channels() || !self.settings.is_to_warn() {
            return;
        }
        let (channel, count) = (self.number, global.prefetch_count);
        log_line!(
            Warn,
            self.link.label(),
            "channel {channel}: basic.qos asked for a prefetch of {count} for the whole channel, but {} applies it to \
             each consumer that begins from now on (unless its configuration permits global_qos): divide the \
             prefetch among the consumers, and leave out global",
            OneLine(peer.server.name())
        );
    }

    pub(crate) fn is_detached(&self) -> bool {
        self.is_open_in(NEVER)
    }

    /// The epoch of the connection on which the broker has the channel open. `None`: it has not.
    pub(crate) fn opened_in(&self) -> Option<u64> {
        let epoch = self.opened_in.load(Ordering::Acquire);
        (epoch != NEVER).then_some(epoch)
    }

    /// If the channel was closed while there was no connection, nobody else tells those who wait.
    pub(crate) fn end_if_detached(&self) {
        if let Some(cause) = self.end.cause().filter(|_| self.is_detached()) {
            self.ended(&cause, false);
        }
    }

    /// A message is not answered for, since the broker delivers it again. It may be half of a
    /// transaction.
    pub(crate) fn answer_not_sent(&self) {
        self.link.counters.ack_not_sent();
        self.link.outbox.change(|| self.settings.answer_lost());
    }

    pub(crate) fn gate(&self) -> Result<Gate> {
        match self.end.cause() {
            Some(error) => Err(error),
            None => Ok(Gate::Open),
        }
    }

    /// Whether `channel.open` can be sent: the broker has not the channel open, and has heard that we know.
    pub(crate) fn opening_gate(&self) -> Gate {
        match self.needed_by.load(Ordering::Acquire) & BROKER {
            BROKER => Gate::Shut,
            _ => Gate::Open,
        }
    }

    /// Whether to open the channel after its end; or not, since somebody has.
    pub(crate) fn reopening_gate(&self) -> Result<Gate> {
        if self.end.cause().is_none() {
            return Ok(Gate::Open);
        }
        if self.needed_by.load(Ordering::Acquire) & HANDLES == 0 {
            let text =
                "this program has closed the channel, and its number may be in use: open another";
            return Err(Error::invalid(text));
        }
        Ok(self.opening_gate())
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

    /// Tells what was lost of the messages that nobody waits for by itself. Under the outbox's lock.
    fn lose_unawaited(&self, cause: &Error, left: Left) {
        let Some(sequence_number) = self.confirms.take_unawaited(left) else {
            return;
        };
        let lost = Confirmation {
            sequence_number,
            multiple: true,
            nack: true,
            lost: true,
        };
        self.confirmations.send(lost, drop);
        self.confirms.lost(cause);
    }

    /// What the broker knew of the channel is gone. Under the outbox's lock.
    fn reset(&self, cause: &Error) {
        self.flow_stopped.store(false, Ordering::Release);
        self.settled.interrupted();
        self.settings.interrupted(cause);
    }

    pub(crate) fn publish_gate(&self) -> Result<Gate> {
        match self.gate()? {
            Gate::Open if self.flow_stopped.load(Ordering::Acquire) => Ok(Gate::Shut),
            gate => Ok(gate),
        }
    }

    /// Sends without waiting for room: little, and from places that must not wait.
    pub(crate) fn write_now(
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

    /// Answers a message that the program will not read: a queue takes it back.
    pub(crate) fn give_back_unread(&self, consumer: &Registration, delivery_tag: u64) {
        let settling = consumer.settling();
        if settling != Settling::NoAck {
            self.give_back(delivery_tag, settling);
        }
    }

    pub(crate) fn cancel_in_background(&self, consumer: &Registration) {
        self.cancel_for(consumer, Call::of_nobody());
    }

    /// Cancels for a caller that already waits.
    pub(crate) fn cancel_for(&self, consumer: &Registration, call: Call) {
        let mut call = Some(call);
        let cancelled = self.write_now(|frames| match call.take() {
            Some(call) => self.append_cancel(frames, &consumer.consumer_tag, Some(consumer), call),
            None => Ok(()),
        });
        // It fails only if the channel has ended, and with it the consumer.
        if let (Err(error), Some(call)) = (cancelled, call) {
            call.answer(Err(error));
        }
    }

    /// Always with a reply, so that the IO thread knows when the last message has come. With `only`
    /// nothing is done if the tag is not that consumer's any more.
    pub(crate) fn append_cancel(
        &self,
        frames: &mut Frames<'_>,
        consumer_tag: &Arc<str>,
        only: Option<&Registration>,
        call: Call,
    ) -> Result<()> {
        let consumer = self.consumers.lock().registration(consumer_tag);
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
                let wanted = self.consumers.lock().get(consumer_tag);
                if let Some(wanted) = wanted {
                    wanted.mailbox.ended(None);
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
        self.link.channel_numbers.closing(channel);
        self.let_go_of_number(HANDLES);
        frames.command(Command::CloseChannel {
            channel,
            reason,
            call,
        });
        Ok(())
    }
}
