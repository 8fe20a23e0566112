//! What is asked on one connection to bring something back, and the channels for that.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Select};

use crate::error::{CloseReason, ClosedBy, Error, ErrorKind, Result};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::{Call, Reply};
use crate::io_thread::outbox::{Admission, Frames, Gate};
use crate::io_thread::Shared;
use crate::proto::{is_stream, RecordedEntity};
use crate::session::call;
use crate::session::channel::ChannelState;
use crate::wire::method::{QueueDeclare, Request};

/// The answer to a call that was sent, or why the call was not sent.
pub(super) type PendingReply = Result<Receiver<Result<Reply>>>;

/// Why something that was asked was not done.
pub(super) enum Failure {
    /// The broker refused it; its channel is closed, if it was sent at all.
    Refused(Error),
    /// There is no answer yet, and the channel is stuck until there is one.
    NoAnswer(Error),
    /// The channel ended for another reason.
    ChannelGone,
    /// It was not asked: an earlier request cost the channel.
    NotAsked,
    /// The connection ended.
    Connection(Error),
}

/// One connection, as the code that brings things back uses it.
pub(super) struct Requester {
    pub(super) shared: Arc<Shared>,
    pub(super) epoch: u64,
    /// How long opening a channel may take.
    request_timeout: Duration,
    /// When all has to be done.
    until: Deadline,
    /// Channels of its own, for what can cost a channel.
    own: Vec<Arc<ChannelState>>,
}

impl Drop for Requester {
    fn drop(&mut self) {
        for channel in self.own.drain(..) {
            channel.dropped();
        }
    }
}

impl Requester {
    pub(super) fn new(
        shared: &Arc<Shared>,
        epoch: u64,
        request_timeout: Duration,
        until: Deadline,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            epoch,
            request_timeout,
            until,
            own: Vec::new(),
        }
    }

    /// Sends what `append` writes on a channel, when `gate` is open and this connection is there.
    pub(super) fn write<T>(
        &self,
        channel: u16,
        gate: impl Fn() -> Result<Gate>,
        append: impl FnOnce(&mut Frames<'_>) -> Result<T>,
    ) -> Result<T> {
        let admission = Admission::Recovery { epoch: self.epoch };
        let patience = self.within(self.request_timeout);
        let outbox = &self.shared.outbox;
        outbox.write(channel, admission, patience, gate, append)
    }

    /// Waits up to `timeout`, but not beyond the end of all.
    pub(super) fn within(&self, timeout: Duration) -> Deadline {
        Deadline::after(timeout.min(self.until.remaining()))
    }

    pub(super) fn is_over(&self) -> bool {
        self.left().is_zero()
    }

    /// The time that is left for all.
    pub(super) fn left(&self) -> Duration {
        self.until.remaining()
    }

    /// Why the connection was lost.
    pub(super) fn cause(&self) -> Error {
        let cause = self.shared.outbox.cause();
        cause.unwrap_or_else(|| closed(0))
    }

    /// Sends on a channel that is open on this connection.
    pub(super) fn ask(
        &self,
        channel: &ChannelState,
        append: impl FnOnce(&mut Frames<'_>, Call) -> Result<()>,
    ) -> PendingReply {
        let (call, answer) = Call::new();
        let gate = || self.gate(channel);
        self.write(channel.number, gate, |frames| append(frames, call))?;
        Ok(answer)
    }

    /// Passes when the channel is open on this connection.
    pub(super) fn gate(&self, channel: &ChannelState) -> Result<Gate> {
        match channel.gate()? {
            Gate::Open if !channel.is_open_in(self.epoch) => Err(closed(channel.number)),
            gate => Ok(gate),
        }
    }

    pub(super) fn ask_method<R: Request>(
        &self,
        channel: &ChannelState,
        method: &R,
    ) -> PendingReply {
        self.ask(channel, |frames, call| {
            call::append(frames, channel.number, method, call)
        })
    }

    pub(super) fn open(&self, channel: &Arc<ChannelState>) -> PendingReply {
        let (call, answer) = Call::new();
        let gate = || channel.gate().map(|_| channel.opening_gate());
        self.write(channel.number, gate, |frames| {
            channel.append_open(frames, call)
        })?;
        Ok(answer)
    }

    /// Whether there is an answer within `patience`.
    pub(super) fn has_answer(&self, asked: &PendingReply, patience: Duration) -> bool {
        let Ok(answer) = asked else { return true };
        let mut select = Select::new();
        select.recv(answer);
        select.ready_deadline(self.within(patience).at()).is_ok()
    }

    /// Waits for an answer until `deadline`.
    pub(super) fn answer(
        &self,
        channel: &ChannelState,
        asked: &PendingReply,
        deadline: Deadline,
    ) -> Result<Reply, Failure> {
        let reply = match asked {
            Ok(answer) => match answer.recv_deadline(deadline.at()) {
                Ok(reply) => reply,
                Err(RecvTimeoutError::Timeout) => {
                    let error = Error::timed_out(deadline.duration());
                    return Err(Failure::NoAnswer(error));
                }
                Err(RecvTimeoutError::Disconnected) => Err(self.cause()),
            },
            Err(error) => Err(error.clone()),
        };
        reply.map_err(|error| match error.kind() {
            // For another reason, such as an ack that the program has sent.
            ErrorKind::ChannelClosed { .. }
                if channel.end.cause().is_some() && !self.is_own(channel) =>
            {
                Failure::ChannelGone
            }
            ErrorKind::ChannelClosed { reason, .. } => match reason.by {
                ClosedBy::Broker => Failure::Refused(error),
                ClosedBy::Program => Failure::NotAsked,
            },
            // It does not fit into the frames of this broker.
            ErrorKind::InvalidArgument(_) => Failure::Refused(error),
            _ => Failure::Connection(error),
        })
    }

    /// A channel of this desk that is open, counted from 0.
    pub(super) fn channel(&mut self, place: usize) -> Result<Arc<ChannelState>> {
        let ended = self.own.iter().find(|it| it.end.cause().is_some());
        if let Some(ended) = ended.cloned() {
            self.abandon(&ended);
        }
        let channel = match self.own.get(place) {
            Some(own) => Arc::clone(own),
            None => self.take_number()?,
        };
        match self.make_open(&channel) {
            Ok(()) => Ok(channel),
            Err(Failure::ChannelGone | Failure::NotAsked) => {
                self.abandon(&channel);
                self.channel(place)
            }
            Err(
                Failure::Refused(error) | Failure::NoAnswer(error) | Failure::Connection(error),
            ) => Err(error),
        }
    }

    /// Opens the channel, unless it is open on this connection.
    pub(super) fn make_open(&self, channel: &Arc<ChannelState>) -> Result<(), Failure> {
        if self.is_open(channel) {
            return Ok(());
        }
        let deadline = self.within(self.request_timeout);
        self.answer(channel, &self.open(channel), deadline)
            .map(drop)
    }

    /// The channel is stuck with something that the broker does not answer: it is closed when that ends.
    pub(super) fn abandon(&mut self, channel: &Arc<ChannelState>) {
        self.own.retain(|it| {
            let is_it = Arc::ptr_eq(it, channel);
            if is_it {
                it.dropped();
            }
            !is_it
        });
    }

    /// Whether the channel is open on this connection.
    pub(super) fn is_open(&self, channel: &ChannelState) -> bool {
        channel.is_open_in(self.epoch) && channel.end.cause().is_none()
    }

    fn is_own(&self, channel: &ChannelState) -> bool {
        self.own.iter().any(|it| it.number == channel.number)
    }

    fn take_number(&mut self) -> Result<Arc<ChannelState>> {
        let numbers = &self.shared.channel_numbers;
        // Without waiting: no other thread releases one meanwhile.
        let number = numbers
            .take(Deadline::after(Duration::ZERO))
            .ok_or_else(|| {
                let channel_max = numbers.highest();
                Error::new(ErrorKind::ChannelsExhausted { channel_max })
            })?;
        let channel = Arc::new(ChannelState::new(number, Arc::clone(&self.shared)));
        channel.set_recovering(true);
        self.own.push(Arc::clone(&channel));
        Ok(channel)
    }

    /// Waits for an answer as [`answer`](Self::answer) does. Without one the channel is abandoned.
    pub(super) fn answer_or_abandon(
        &mut self,
        channel: &Arc<ChannelState>,
        asked: &PendingReply,
        timeout: Duration,
    ) -> Result<Reply, Failure> {
        let answer = self.answer(channel, asked, self.within(timeout));
        if let Err(Failure::NoAnswer(_)) = answer {
            self.abandon(channel);
        }
        answer
    }
}

fn closed(channel: u16) -> Error {
    Error::new(ErrorKind::ChannelClosed {
        channel,
        reason: CloseReason::program("it was closed while it was being opened again"),
    })
}

/// A queue whose name only the broker can give, and that can have outlived the connection.
pub(super) fn named_by_broker(redeclare: &RecordedEntity) -> Option<&str> {
    match redeclare {
        RecordedEntity::Queue {
            declare,
            named_by_server: true,
        } if !declare.exclusive => Some(&declare.queue),
        _ => None,
    }
}

/// Asks for it. For a queue that the broker has named, and for a stream, it asks whether the old one
/// is still there, unless it `is_gone`.
pub(super) fn ask(
    requester: &Requester,
    channel: &ChannelState,
    redeclare: &RecordedEntity,
    is_gone: bool,
) -> PendingReply {
    match redeclare {
        RecordedEntity::Exchange(declare) => requester.ask_method(channel, declare),
        RecordedEntity::BindExchange(bind) => requester.ask_method(channel, bind),
        RecordedEntity::BindQueue(bind) => requester.ask_method(channel, bind),
        RecordedEntity::Queue {
            declare,
            named_by_server: false,
        } if is_gone || !is_stream(declare) => requester.ask_method(channel, declare),
        RecordedEntity::Queue {
            declare,
            named_by_server: true,
        } if declare.exclusive || is_gone => {
            let declare = QueueDeclare {
                queue: "".into(),
                ..declare.clone()
            };
            requester.ask_method(channel, &declare)
        }
        RecordedEntity::Queue { declare, .. } => {
            let declare = QueueDeclare {
                queue: declare.queue.clone(),
                passive: true,
                ..QueueDeclare::default()
            };
            requester.ask_method(channel, &declare)
        }
    }
}
