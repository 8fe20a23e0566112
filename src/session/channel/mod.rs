//! What all handles of a channel share with the IO thread.

pub(crate) mod confirms;
pub(crate) mod consumers;
pub(crate) mod delivery_tags;
pub(crate) mod frames;
mod mailbox;
pub(crate) mod settings;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicU8, Ordering};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::error::ReturnedMessage;
use crate::error::{CloseReason, ClosedBy, Error, ErrorKind, OneLine, ReplyCode, Result};
use crate::events::Confirmation;
use crate::io_thread::mailbox::{Call, ChannelMailbox};
use crate::io_thread::notifier::Notifier;
use crate::io_thread::outbox::{Admission, Frames, Gate};
use crate::io_thread::Shared;
use crate::log_line::log_line;
use crate::proto::{Leftover, Settling};
use crate::session::subscription::Subscription;
use crate::wire::method::{
    BasicConsume, Encode, ExchangeBind, ExchangeDeclare, MethodId, QueueBind, QueueDeclare,
};
use confirms::Confirms;
use consumers::Consumers;
use delivery_tags::DeliveryTags;
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
    pub(crate) shared: Arc<Shared>,
    pub(crate) end: End,
    /// The broker asked to stop publishing with `channel.flow`.
    flow_stopped: AtomicBool,
    pub(crate) confirms: Confirms,
    pub(crate) returned: Notifier<ReturnedMessage>,
    pub(crate) confirmations: Notifier<Confirmation>,
    pub(crate) delivery_tags: DeliveryTags,
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

impl ChannelState {
    pub(crate) fn new(number: u16, shared: Arc<Shared>) -> Self {
        Self {
            number,
            needed_by: AtomicU8::new(HANDLES),
            shared,
            end: End::default(),
            flow_stopped: AtomicBool::new(false),
            confirms: Confirms::default(),
            returned: Notifier::of_bytes(RETURNED_LIMIT, RETURNED_BYTES, ReturnedMessage::size),
            confirmations: Notifier::new(CONFIRMATIONS_LIMIT),
            delivery_tags: DeliveryTags::default(),
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

    fn let_go_of_number(&self, who: u8) {
        if self.needed_by.fetch_and(!who, Ordering::AcqRel) == who {
            self.shared.channel_numbers.release(self.number);
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
        let recorded = self.consumers.lock().get(consumer_tag);
        if let Some(recorded) = recorded {
            let topology = &mut self.shared.topology.lock();
            topology.consumer_started(&recorded.consume.queue);
        }
    }

    /// The tag is free from now on, since nothing can come for it any more.
    pub(crate) fn consumer_ended(&self, consumer_tag: &str, was_live: bool) {
        let recorded = self.consumers.lock().remove(consumer_tag);
        if let Some(recorded) = recorded.filter(|_| was_live) {
            let topology = &mut self.shared.topology.lock();
            topology.consumer_ended(&recorded.consume.queue);
        }
    }

    /// Whether the broker knows the channel on this connection.
    pub(crate) fn is_open_in(&self, epoch: u64) -> bool {
        self.opened_in.load(Ordering::Acquire) == epoch
    }

    /// Warns once if the program relies on a limit for the whole channel that this broker does not
    /// have. The next connection can be to a broker of another version, so this is asked again then.
    pub(crate) fn warn_of_global_qos(&self) {
        let Some(global) = self.settings.qos().global else {
            return;
        };
        let peer = self.shared.peer();
        if peer.server.limits_channels() || !self.settings.is_to_warn() {
            return;
        }
        let (channel, count) = (self.number, global.prefetch_count);
        log_line!(
            Warn,
            self.shared.label(),
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
        self.shared.counters.ack_not_sent();
        self.shared.outbox.change(|| self.settings.answer_lost());
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

    /// Tells what was lost of the messages that nobody waits for by itself. Under the outbox's lock.
    fn lose_unawaited(&self, cause: &Error, left: Leftover) {
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
        self.delivery_tags.interrupted();
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
        let outbox = &self.shared.outbox;
        outbox.write(
            self.number,
            Admission::Always,
            Duration::ZERO,
            || self.gate(),
            append,
        )
    }

    /// Answers a message that the program will not read: a queue takes it back.
    pub(crate) fn give_back_unread(&self, consumer: &Subscription, delivery_tag: u64) {
        let settling = consumer.settling();
        if settling != Settling::NoAck {
            self.give_back(delivery_tag, settling);
        }
    }

    pub(crate) fn cancel_in_background(&self, consumer: &Subscription) {
        self.cancel_for(consumer, Call::of_nobody());
    }

    /// Cancels for a caller that already waits.
    pub(crate) fn cancel_for(&self, consumer: &Subscription, call: Call) {
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
}
