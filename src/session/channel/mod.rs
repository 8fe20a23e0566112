//! The state of one channel, which its handles share with the IO thread and the recovery thread.
//!
//! The state outlives connections; it knows no handle. Handles append frames through it, the IO
//! thread reports through `ChannelMailbox`, and the recovery opens the channel again. What depends
//! on the order of frames changes only under the outbox's lock.
//!
//! - this file: `ChannelState`, its end, and the gates that hold calls back
//! - `frames.rs`: appends open, reopen, publish, cancel and close
//! - `mailbox.rs`: what the IO thread reports to the channel
//! - `consumers.rs`: the consumers by tag, and what each was begun with; one consumer's life is in
//!   `session/subscription.rs`
//! - `confirms.rs`: publisher confirms; `delivery_tags.rs`: tags over all connections;
//!   `settings.rs`: prefetch, transactions, last queue

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

use crate::error::{
    CloseReason, ClosedBy, Error, ErrorKind, OneLine, ReplyCode, Result, ReturnedMessage,
};
use crate::events::Confirmation;
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::{Call, ChannelMailbox, Reply};
use crate::io_thread::notifier::Notifier;
use crate::io_thread::outbox::{Admission, Frames, Gate};
use crate::io_thread::Shared;
use crate::log_line::log_line;
use crate::proto::{Leftover, Settling};
use crate::session::call;
use crate::session::subscription::Subscription;
use crate::wire::method::{
    BasicConsume, Encode, ExchangeBind, ExchangeDeclare, MethodId, QueueBind, QueueDeclare,
};
use confirms::Confirms;
use consumers::Consumers;
use delivery_tags::DeliveryTags;
use settings::Settings;

/// Number of returned messages to keep for `Channel::returned_messages`.
const RETURNED_LIMIT: usize = 1024;
/// Bytes of returned messages to keep.
const RETURNED_BYTES: u64 = 16 << 20;
/// Number of confirms and nacks to keep for `Channel::confirmations`.
const CONFIRMATIONS_LIMIT: usize = 65_536;

/// The epoch of a channel that is open on no connection.
const NEVER: u64 = u64::MAX;

/// Flag in `needed_by`: the broker has the channel open.
const BROKER: u8 = 1;
/// Flag in `needed_by`: the handles may open the channel again.
const HANDLES: u8 = 2;

/// One channel, as its handles and the IO thread share it.
pub(crate) struct ChannelState {
    pub(crate) number: u16,
    /// `BROKER` and `HANDLES`. The number is released when neither is set.
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
    /// The epoch (number of losses) in which the channel was last opened. If the outbox has another
    /// epoch, the broker does not know the channel. Changes under the outbox's lock.
    opened_in: AtomicU64,
    /// A recovery opens the channel again. A refused request of the recovery does not end it.
    is_recovering: AtomicBool,
    /// The channel only checks whether something exists. The broker closes it to say no, which is
    /// no fault.
    is_existence_check: AtomicBool,
}

/// Why nothing more can be sent on the channel. Set under the outbox's lock, like all state that
/// depends on the order of frames.
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
        let consumers = Consumers::new(shared.outbox.channel_numbers_taken());
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
            consumers: Mutex::new(consumers),
            settings: Settings::default(),
            opened_in: AtomicU64::new(NEVER),
            is_recovering: AtomicBool::new(false),
            is_existence_check: AtomicBool::new(false),
        }
    }

    /// From now on, a close with "not found" or "locked" does not count as a fault.
    pub(crate) fn ask_existence(&self) {
        self.is_existence_check.store(true, Ordering::Relaxed);
    }

    /// Whether the broker closed this channel because of a fault.
    fn is_closed_by_broker(&self, error: &Error) -> bool {
        let ErrorKind::ChannelClosed { reason, .. } = error.kind() else {
            return false;
        };
        let answers = [ReplyCode::NOT_FOUND, ReplyCode::RESOURCE_LOCKED];
        let is_check = self.is_existence_check.load(Ordering::Relaxed);
        reason.by == ClosedBy::Broker && !(is_check && answers.contains(&reason.code))
    }

    /// Whether frames may still answer the broker. No frame may follow our close, which the core
    /// may not know of yet. Called under the outbox's lock.
    fn may_answer(&self) -> bool {
        self.end.cause().is_none()
    }

    /// Changes the state of the channel under the outbox's lock.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Frames<'_>) -> T) -> T {
        self.shared.outbox.change(self.number, change)
    }

    fn release_number(&self, frames: &mut Frames<'_>, flag: u8) {
        if self.needed_by.fetch_and(!flag, Ordering::AcqRel) == flag {
            frames.channel_numbers().release(self.number);
            frames.wake_all();
        }
    }

    /// Closes the channel after its last handle was dropped.
    pub(crate) fn dropped(&self) {
        let reason = CloseReason::program("its last handle was dropped");
        // This fails only if the channel has ended.
        let _ = self.write_now(|frames| self.append_close(frames, reason, None));
        self.end_if_detached();
        self.change(|frames| self.release_number(frames, HANDLES));
    }

    pub(crate) fn set_recovering(&self, is_recovering: bool) {
        self.is_recovering.store(is_recovering, Ordering::Release);
    }

    pub(crate) fn is_recovering(&self) -> bool {
        self.is_recovering.load(Ordering::Acquire)
    }

    /// Whether the channel survives this close: the broker closed it because of a request of the
    /// recovery, which opens it once more.
    fn outlives(&self, error: &Error) -> bool {
        const REPLAYED: [MethodId; 5] = [
            ExchangeDeclare::ID,
            ExchangeBind::ID,
            QueueDeclare::ID,
            QueueBind::ID,
            BasicConsume::ID,
        ];
        let ErrorKind::ChannelClosed { reason, .. } = error.kind() else {
            return false;
        };
        // The program can send acks meanwhile. If one of them costs the channel, the channel ends.
        let is_replayed = REPLAYED.iter().any(|id| reason.method == id.name());
        is_replayed && self.is_recovering() && self.end.cause().is_none()
    }

    /// Whether the channel has survived this close.
    pub(crate) fn has_outlived(&self, error: &Error) -> bool {
        let is_closed = matches!(error.kind(), ErrorKind::ChannelClosed { .. });
        is_closed && self.end.cause().is_none()
    }

    /// The broker no longer has the channel open; the recovery opens it again. Called under the
    /// outbox's lock.
    fn interrupt(&self, error: &Error) {
        self.reset(error);
        self.opened_in.store(NEVER, Ordering::Release);
    }

    pub(crate) fn consumer_started(&self, consumer_tag: &str) {
        let recorded = self.consumers.lock().get(consumer_tag);
        if let Some(recorded) = recorded {
            let topology = &mut self.shared.to_replay.lock().topology;
            topology.consumer_started(&recorded.consume.queue);
        }
    }

    /// Frees the tag: no message can arrive for it any more.
    pub(crate) fn consumer_ended(&self, consumer_tag: &str, was_live: bool) {
        let recorded = self.consumers.lock().remove(consumer_tag);
        if let Some(recorded) = recorded.filter(|_| was_live) {
            let topology = &mut self.shared.to_replay.lock().topology;
            topology.consumer_ended(&recorded.consume.queue);
        }
    }

    /// Whether the broker has the channel open on the connection of this epoch.
    pub(crate) fn is_open_in(&self, epoch: u64) -> bool {
        self.opened_in.load(Ordering::Acquire) == epoch
    }

    /// Warns once if the program set a prefetch for the whole channel and this broker does not
    /// support that. Called on each new connection, since the next broker can have another version.
    pub(crate) fn warn_of_global_qos(&self) {
        let Some(global) = self.settings.qos().global else {
            return;
        };
        let peer = self.shared.peer();
        if peer.server.limits_channels() || !self.settings.take_warning() {
            return;
        }
        let (channel, count) = (self.number, global.prefetch_count);
        log_line!(
            Warn,
            self.shared.label(),
            "channel {channel}: basic.qos set a prefetch of {count} for the whole channel, but {} applies it \
             to each new consumer (unless its configuration permits global_qos): divide the prefetch among \
             the consumers and do not set global",
            OneLine(peer.server.name())
        );
    }

    pub(crate) fn is_detached(&self) -> bool {
        self.is_open_in(NEVER)
    }

    /// The epoch of the connection on which the broker has the channel open. `None` if the channel
    /// is not open.
    pub(crate) fn opened_in(&self) -> Option<u64> {
        let epoch = self.opened_in.load(Ordering::Acquire);
        (epoch != NEVER).then_some(epoch)
    }

    /// Ends a channel that was closed while there was no connection. Nothing else would tell the
    /// waiting callers.
    pub(crate) fn end_if_detached(&self) {
        if let Some(cause) = self.end.cause().filter(|_| self.is_detached()) {
            self.ended(&cause, Leftover::default(), false);
        }
    }

    /// An acknowledgement is not sent, since the broker redelivers its message. If it was a part of
    /// a transaction, the transaction is torn.
    pub(crate) fn answer_not_sent(&self, reason: Option<Error>) {
        self.shared.counters.ack_not_sent();
        self.change(|_| self.settings.answer_lost(reason));
    }

    pub(crate) fn gate(&self) -> Result<Gate> {
        match self.end.cause() {
            Some(error) => Err(error),
            None => Ok(Gate::Open),
        }
    }

    /// Opens when `channel.open` can be sent: the broker has closed the channel, and the close
    /// handshake is over. What the end still changes would otherwise change the channel's new life.
    pub(crate) fn opening_gate(&self) -> Gate {
        match self.needed_by.load(Ordering::Acquire) & BROKER {
            BROKER => Gate::Shut,
            _ => Gate::Open,
        }
    }

    /// The gate for opening the channel after its end. Also open if the channel is open again
    /// already.
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

    /// Reports the loss of messages that were published without a `Confirm`. Called under the
    /// outbox's lock.
    fn lose_unawaited(&self, cause: &Error, leftover: Leftover) {
        let Some(sequence_number) = self.confirms.take_unawaited(leftover) else {
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

    /// Forgets what only the lost channel at the broker knew. Called under the outbox's lock.
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

    /// Sends what `append` writes once the call is admitted and `gate` is open, and waits until the
    /// deadline for the reply.
    pub(crate) fn call(
        &self,
        admission: Admission,
        deadline: Deadline,
        gate: impl Fn() -> Result<Gate>,
        append: impl FnOnce(&mut Frames<'_>, Call) -> Result<()>,
    ) -> Result<Reply> {
        call::send(&self.shared, self.number, admission, deadline, gate, append)
    }

    /// Sends without waiting for room in the outbox. Only for small frames, from places that must
    /// not block.
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

    /// Gives back a message that the program will not read, unless the consumer uses `no_ack`. A
    /// queue requeues it.
    pub(crate) fn give_back_unread(&self, consumer: &Subscription, delivery_tag: u64) {
        let settling = consumer.settling();
        if settling != Settling::NoAck {
            self.give_back(delivery_tag, settling);
        }
    }

    pub(crate) fn cancel_in_background(&self, consumer: &Subscription) {
        self.cancel_for(consumer, Call::unawaited());
    }

    /// Cancels the consumer on behalf of a caller that already waits.
    pub(crate) fn cancel_for(&self, consumer: &Subscription, call: Call) {
        let mut call = Some(call);
        let cancelled = self.write_now(|frames| match call.take() {
            Some(call) => self.append_cancel(frames, &consumer.consumer_tag, Some(consumer), call),
            None => Ok(()),
        });
        // This fails only if the channel, and so the consumer, has ended.
        if let (Err(error), Some(call)) = (cancelled, call) {
            call.answer(Err(error));
        }
    }
}
