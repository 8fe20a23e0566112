//! The state of one channel, which its handles share with the IO thread and the recovery thread.
//!
//! The state outlives connections; it knows no handle. Handles append frames through it, the IO
//! thread reports through `ChannelMailbox`, and the recovery opens the channel again. What depends
//! on the order of frames is in `io_thread/outbox/channel`.
//!
//! - this file: `ChannelState`: its calls, its end and its last queue
//! - `frames.rs`: appends open, reopen, publish, cancel and close
//! - `mailbox.rs`: what the IO thread reports to the channel
//! - `consumers.rs`: the consumers by tag, and what each was begun with; one consumer's life is in
//!   `session/subscription.rs`
//! - `confirms.rs`: waits for publisher confirms

pub(crate) mod confirms;
pub(crate) mod consumers;
pub(crate) mod frames;
mod mailbox;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::error::{
    CloseReason, ClosedBy, Error, ErrorKind, OneLine, ReplyCode, Result, ReturnedMessage,
};
use crate::events::{Confirmation, ConnectionEvent};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::{Call, ChannelMailbox, Reply};
use crate::io_thread::notifier::Notifier;
use crate::io_thread::outbox::channel::{Channel, Mode};
use crate::io_thread::outbox::channels::{ChannelId, OwnedChannel};
use crate::io_thread::outbox::{Admission, Frames};
use crate::io_thread::Shared;
use crate::log_line::log_line;
use crate::proto::{Leftover, Settling};
use crate::session::call;
use crate::session::queue_names::{Name, QueueName};
use crate::session::subscription::Subscription;
use confirms::Confirms;
use consumers::Consumers;
use frames::Closed;

/// Number of returned messages to keep for `Channel::returned_messages`.
const RETURNED_LIMIT: usize = 1024;
/// Bytes of returned messages to keep.
const RETURNED_BYTES: u64 = 16 << 20;
/// Number of confirms and nacks to keep for `Channel::confirmations`.
const CONFIRMATIONS_LIMIT: usize = 65_536;

/// What a channel is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Any,
    /// It only checks whether something exists. The broker closes it to say no, which is no fault.
    ExistenceCheck,
}

/// One channel, as its handles and the IO thread share it.
pub(crate) struct ChannelState {
    pub(crate) number: u16,
    owned: OwnedChannel,
    purpose: Purpose,
    pub(crate) shared: Arc<Shared>,
    pub(crate) confirms: Confirms,
    pub(crate) returned: Notifier<ReturnedMessage>,
    pub(crate) confirmations: Notifier<Confirmation>,
    pub(crate) consumers: Mutex<Consumers>,
    /// The queue that the channel declared last, which the empty name means.
    last_queue: Mutex<Option<Arc<Name>>>,
}

impl ChannelState {
    pub(crate) fn new(owned: OwnedChannel, purpose: Purpose, shared: Arc<Shared>) -> Self {
        Self {
            number: owned.id.number,
            purpose,
            shared,
            confirms: Confirms::default(),
            returned: Notifier::of_bytes(RETURNED_LIMIT, RETURNED_BYTES, ReturnedMessage::size),
            confirmations: Notifier::new(CONFIRMATIONS_LIMIT),
            consumers: Mutex::new(Consumers::new(owned.life)),
            last_queue: Mutex::default(),
            owned,
        }
    }

    // ---- its state in the outbox ----

    pub(crate) fn id(&self) -> ChannelId {
        self.owned.id
    }

    /// Reads what depends on the order of frames, or changes what no caller waits for. Takes the
    /// outbox's lock.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&mut Channel) -> T) -> T {
        self.shared.outbox.channel(self.id(), look)
    }

    /// Changes what depends on the order of frames, and wakes the callers that wait for that. Takes
    /// the outbox's lock.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Frames<'_>) -> T) -> T {
        self.shared.outbox.change(self.id(), change)
    }

    /// Why nothing more can be sent on the channel.
    pub(crate) fn end_cause(&self) -> Option<Error> {
        self.look(|channel| channel.end_cause().cloned())
    }

    /// Whether frames can be sent on the connection of this epoch.
    pub(crate) fn is_open_in(&self, epoch: u64) -> bool {
        self.look(|channel| channel.is_open_in(epoch))
    }

    pub(crate) fn set_recovering(&self, is_recovering: bool) {
        self.look(|channel| channel.set_recovering(is_recovering));
    }

    /// The number of the last message in confirm mode. `None` outside confirm mode.
    pub(crate) fn last_published(&self) -> Option<u64> {
        self.look(|channel| match channel.mode() {
            Mode::Confirm => Some(channel.sequence_numbers.last()),
            Mode::Plain | Mode::Transaction(_) => None,
        })
    }

    /// Waits until the deadline until all frames of the channel are written to the socket, and
    /// until the broker has answered all messages in confirm mode.
    pub(crate) fn flush(&self, deadline: Deadline) -> Result<()> {
        let published = self.last_published();
        let outbox = &self.shared.outbox;
        let flush = outbox.begin_flush(self.id())?;
        if let Some(published) = published {
            self.confirms.wait(published, deadline)?;
        }
        outbox.flush(&flush, deadline)
    }

    /// Continues after a loss. `republished` holds the first and the last message that are
    /// published again; all others are answered or lost.
    pub(crate) fn resume_confirms(&self, republished: Option<(u64, u64)>) {
        self.look(|channel| {
            let published = channel.sequence_numbers.last();
            self.confirms.resume(published, republished);
        });
    }

    // ---- calls ----

    /// Sends what `append` writes once the call is admitted, and waits until the deadline for the
    /// reply.
    pub(crate) fn call(
        &self,
        admission: Admission,
        deadline: Deadline,
        append: impl FnOnce(&mut Frames<'_>, Call) -> Result<()>,
    ) -> Result<Reply> {
        call::send(&self.shared, self.id(), admission, deadline, append)
    }

    /// Sends without waiting for room in the outbox. Only for small frames, from places that must
    /// not block.
    pub(crate) fn write_now<T>(
        &self,
        append: impl FnOnce(&mut Frames<'_>) -> Result<T>,
    ) -> Result<T> {
        let outbox = &self.shared.outbox;
        outbox.write(self.id(), Admission::Always, Duration::ZERO, append)
    }

    // ---- its end ----

    /// Closes the channel, and waits until the deadline for the reply. Returns the epoch of the
    /// connection on which the close was sent. Returns `None` if the channel was lost with its
    /// connection.
    pub(crate) fn close(&self, reason: CloseReason, deadline: Deadline) -> Result<Option<u64>> {
        let mut closed = None;
        let reply = self.call(Admission::Always, deadline, |frames, call| {
            closed = Some(self.append_close(frames, reason, Some(call))?);
            Ok(())
        });
        let sent_in = closed.and_then(|closed| self.closed(closed));
        reply.map(|_| sent_in)
    }

    pub(crate) fn close_in_background(&self, reason: CloseReason) {
        // This fails only if the channel has ended.
        if let Ok(closed) = self.write_now(|frames| self.append_close(frames, reason, None)) {
            self.closed(closed);
        }
    }

    /// Returns the epoch of the connection on which the close was sent.
    pub(crate) fn closed(&self, closed: Closed) -> Option<u64> {
        match closed {
            Closed::Sent { epoch } => Some(epoch),
            Closed::WithConnection => None,
            Closed::Now(cause) => {
                self.report_end(&cause);
                None
            }
        }
    }

    /// Closes the channel after its last handle was dropped.
    pub(crate) fn dropped(&self) {
        self.close_in_background(CloseReason::program("its last handle was dropped"));
        self.change(|frames| frames.handles_are_done());
    }

    /// Ends a channel that the recovery does not open again.
    pub(crate) fn end(&self, cause: &Error) {
        self.ended(cause, Leftover::default(), false);
    }

    /// Whether the channel has survived this close: the broker closed it because of a request of
    /// the recovery, which opens it once more.
    pub(crate) fn has_outlived(&self, error: &Error) -> bool {
        let is_closed = matches!(error.kind(), ErrorKind::ChannelClosed { .. });
        is_closed && self.end_cause().is_none()
    }

    /// Tells all who wait on the channel that it has ended.
    fn report_end(&self, cause: &Error) {
        let is_fault = self.is_closed_for_fault(cause);
        if is_fault {
            self.shared.counters.channel_closed_by_broker();
        }
        self.confirms.end(cause);
        self.returned.end();
        self.confirmations.end();
        // Consumers that the core knows have ended already. These waited for the next connection.
        let left = self.consumers.lock().recorded();
        for consumer in left {
            consumer.mailbox.ended(Some(cause.clone()));
        }
        let channel = self.number;
        if is_fault && self.purpose == Purpose::Any {
            let cause = cause.clone();
            self.shared
                .tell(ConnectionEvent::ChannelClosed { channel, cause });
        }
        // This comes last, since the program's logger can panic.
        let label = self.shared.label();
        match is_fault {
            true => log_line!(Warn, label, "{cause}"),
            false => log_line!(Debug, label, "channel {channel} ended: {cause}"),
        }
    }

    /// Whether the broker closed this channel because of a fault.
    fn is_closed_for_fault(&self, error: &Error) -> bool {
        let ErrorKind::ChannelClosed { reason, .. } = error.kind() else {
            return false;
        };
        let answers = [ReplyCode::NOT_FOUND, ReplyCode::RESOURCE_LOCKED];
        let is_answer = self.purpose == Purpose::ExistenceCheck && answers.contains(&reason.code);
        reason.by == ClosedBy::Broker && !is_answer
    }

    /// Reports the loss of messages that were published without a `Confirm`, up to this one.
    fn lose_unawaited(&self, sequence_number: u64, cause: &Error) {
        let lost = Confirmation {
            sequence_number,
            multiple: true,
            nack: true,
            lost: true,
        };
        self.confirmations.send(lost, drop);
        self.confirms.lost(cause);
    }

    // ---- its consumers ----

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

    /// An acknowledgement is not sent, since the broker redelivers its message. If it was a part of
    /// a transaction, the transaction is torn.
    pub(crate) fn answer_not_sent(&self, reason: Option<&Error>) {
        self.shared.counters.ack_not_sent();
        self.change(|frames| frames.answer_not_sent(reason));
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

    // ---- its settings ----

    pub(crate) fn set_last_queue(&self, name: Arc<Name>) {
        *self.last_queue.lock() = Some(name);
    }

    /// The name to send. Called under the outbox's lock.
    pub(crate) fn resolve<'a>(&self, queue: QueueName<'a>) -> Cow<'a, str> {
        if let Some(name) = queue.known() {
            return name.into();
        }
        let last = self.last_queue.lock();
        last.as_ref()
            .map_or(String::new(), |it| it.current().to_owned())
            .into()
    }

    /// Warns once if the program set a prefetch for the whole channel and this broker does not
    /// support that. Called on each new connection, since the next broker can have another version.
    pub(crate) fn warn_of_global_qos(&self) {
        let peer = self.shared.peer();
        if peer.server.limits_channels() {
            return;
        }
        let Some(count) = self.look(Channel::take_global_qos_warning) else {
            return;
        };
        let channel = self.number;
        log_line!(
            Warn,
            self.shared.label(),
            "channel {channel}: basic.qos set a prefetch of {count} for the whole channel, but {} applies it \
             to each new consumer (unless its configuration permits global_qos): divide the prefetch among \
             the consumers and do not set global",
            OneLine(peer.server.name())
        );
    }
}
