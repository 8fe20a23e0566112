//! Sends requests on one connection to bring something back, and waits for the replies.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Select};

use crate::error::{ClosedBy, Error, ErrorKind, Result};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::{Call, Reply};
use crate::io_thread::outbox::channel::not_reopened;
use crate::io_thread::outbox::channels::ChannelId;
use crate::io_thread::outbox::{Admission, Frames, CONNECTION};
use crate::io_thread::Shared;
use crate::proto::{is_stream, RecordedEntity};
use crate::session::channel::{ChannelState, Purpose};
use crate::wire::method::{QueueDeclare, Request};

/// The reply to a request that was sent, or why the request was not sent.
pub(super) type PendingReply = Result<Receiver<Result<Reply>>>;

/// Why a request failed.
pub(super) enum Failure {
    /// The broker refused it and closed its channel. Or it could not be encoded and was not sent.
    Refused(Error),
    /// No reply yet. The channel is stuck until the reply arrives.
    NoAnswer(Error),
    /// The channel ended for another reason.
    ChannelGone,
    /// The broker did not process it: an earlier request cost the channel.
    NotAsked,
    /// The connection ended.
    Connection(Error),
}

/// One connection, for the code that brings things back.
pub(super) struct Requester {
    pub(super) shared: Arc<Shared>,
    pub(super) epoch: u64,
    /// How long opening a channel may take.
    request_timeout: Duration,
    /// When the whole replay must be done.
    until: Deadline,
    /// Channels for requests that can cost a channel. The program does not use them.
    scratch_channels: Vec<Arc<ChannelState>>,
}

impl Drop for Requester {
    fn drop(&mut self) {
        for channel in self.scratch_channels.drain(..) {
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
            scratch_channels: Vec::new(),
        }
    }

    /// Sends what `append` writes on a channel. Fails if this connection is lost, or if the channel
    /// is not open on it.
    pub(super) fn write<T>(
        &self,
        channel: &ChannelState,
        append: impl FnOnce(&mut Frames<'_>) -> Result<T>,
    ) -> Result<T> {
        let epoch = self.epoch;
        self.write_when(Admission::Recovery { epoch }, channel.id(), append)
    }

    fn write_when<T>(
        &self,
        admission: Admission,
        channel: ChannelId,
        append: impl FnOnce(&mut Frames<'_>) -> Result<T>,
    ) -> Result<T> {
        let deadline = self.within(self.request_timeout);
        let outbox = &self.shared.outbox;
        outbox.write(channel, admission, deadline, append)
    }

    /// Waits until the IO thread has this connection. Fails if it is lost.
    pub(super) fn wait_connected(&self) -> Result<()> {
        let epoch = self.epoch;
        self.write_when(Admission::Recovery { epoch }, CONNECTION, |_| Ok(()))
    }

    /// A deadline after `timeout`, but not after the end of the replay.
    pub(super) fn within(&self, timeout: Duration) -> Deadline {
        Deadline::after(timeout.min(self.until.remaining()))
    }

    pub(super) fn is_over(&self) -> bool {
        self.left().is_zero()
    }

    /// The time that is left for the replay.
    pub(super) fn left(&self) -> Duration {
        self.until.remaining()
    }

    /// Why the connection was lost.
    pub(super) fn cause(&self) -> Error {
        let cause = self.shared.outbox.cause();
        cause.unwrap_or_else(|| not_reopened(0))
    }

    /// Sends a request on a channel that is open on this connection.
    pub(super) fn send(
        &self,
        channel: &ChannelState,
        append: impl FnOnce(&mut Frames<'_>, Call) -> Result<()>,
    ) -> PendingReply {
        let (call, reply) = Call::new();
        self.write(channel, |frames| append(frames, call))?;
        Ok(reply)
    }

    pub(super) fn send_method<R: Request>(
        &self,
        channel: &ChannelState,
        method: &R,
    ) -> PendingReply {
        self.send(channel, |frames, call| frames.call(method, call))
    }

    pub(super) fn open(&self, channel: &Arc<ChannelState>) -> PendingReply {
        let (call, reply) = Call::new();
        let epoch = self.epoch;
        let admission = Admission::RecoveryOpen { epoch };
        self.write_when(admission, channel.id(), |frames| {
            channel.append_open(frames, call)
        })?;
        Ok(reply)
    }

    /// Waits up to `timeout` for a reply, and returns whether one is there. Does not take the
    /// reply.
    pub(super) fn has_reply(&self, pending: &PendingReply, timeout: Duration) -> bool {
        let Ok(reply) = pending else { return true };
        let mut select = Select::new();
        select.recv(reply);
        select.ready_deadline(self.within(timeout).at()).is_ok()
    }

    /// Waits for the reply until `deadline`.
    pub(super) fn wait_reply(
        &self,
        channel: &ChannelState,
        pending: &PendingReply,
        deadline: Deadline,
    ) -> Result<Reply, Failure> {
        let reply = match pending {
            Ok(reply) => match reply.recv_deadline(deadline.at()) {
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
            // Closed for another reason, such as an ack that the program sent.
            ErrorKind::ChannelClosed { .. }
                if channel.end_cause().is_some() && !self.is_scratch(channel) =>
            {
                Failure::ChannelGone
            }
            ErrorKind::ChannelClosed { reason, .. } => match reason.by {
                ClosedBy::Broker => Failure::Refused(error),
                ClosedBy::Program => Failure::NotAsked,
            },
            // The request does not fit into this broker's `frame_max`.
            ErrorKind::InvalidArgument(_) => Failure::Refused(error),
            _ => Failure::Connection(error),
        })
    }

    /// Returns the scratch channel with this index, counted from 0. Opens it if necessary.
    pub(super) fn scratch_channel(&mut self, index: usize) -> Result<Arc<ChannelState>> {
        let ended = self
            .scratch_channels
            .iter()
            .find(|it| it.end_cause().is_some());
        if let Some(ended) = ended.cloned() {
            self.abandon(&ended);
        }
        let channel = match self.scratch_channels.get(index) {
            Some(channel) => Arc::clone(channel),
            None => self.take_number()?,
        };
        match self.make_open(&channel) {
            Ok(()) => Ok(channel),
            Err(Failure::ChannelGone | Failure::NotAsked) => {
                self.abandon(&channel);
                self.scratch_channel(index)
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
        self.wait_reply(channel, &self.open(channel), deadline)
            .map(drop)
    }

    /// Gives up a scratch channel. If the broker does not answer a request on it, the channel
    /// closes once the broker does.
    pub(super) fn abandon(&mut self, channel: &Arc<ChannelState>) {
        self.scratch_channels.retain(|it| {
            let is_abandoned = Arc::ptr_eq(it, channel);
            if is_abandoned {
                it.dropped();
            }
            !is_abandoned
        });
    }

    /// Whether the channel is open on this connection.
    pub(super) fn is_open(&self, channel: &ChannelState) -> bool {
        channel.is_open_in(self.epoch)
    }

    fn is_scratch(&self, channel: &ChannelState) -> bool {
        self.scratch_channels
            .iter()
            .any(|it| it.number == channel.number)
    }

    fn take_number(&mut self) -> Result<Arc<ChannelState>> {
        let outbox = &self.shared.outbox;
        // Do not wait: no other thread releases a number during a recovery.
        let owned = outbox.add_channel(Deadline::after(Duration::ZERO));
        let owned = owned.ok_or_else(|| {
            let channel_max = outbox.highest_channel();
            Error::new(ErrorKind::ChannelsExhausted { channel_max })
        })?;
        let channel = Arc::new(ChannelState::new(
            owned,
            Purpose::Any,
            Arc::clone(&self.shared),
        ));
        channel.set_recovering(true);
        self.scratch_channels.push(Arc::clone(&channel));
        Ok(channel)
    }

    /// Waits like [`wait_reply`](Self::wait_reply). Abandons the channel if no reply arrives in
    /// time.
    pub(super) fn reply_or_abandon(
        &mut self,
        channel: &Arc<ChannelState>,
        pending: &PendingReply,
        timeout: Duration,
    ) -> Result<Reply, Failure> {
        let reply = self.wait_reply(channel, pending, self.within(timeout));
        if let Err(Failure::NoAnswer(_)) = reply {
            self.abandon(channel);
        }
        reply
    }
}

/// Returns the name of a queue that the broker named and that can have survived the lost
/// connection.
pub(super) fn named_by_broker(entity: &RecordedEntity) -> Option<&str> {
    match entity {
        RecordedEntity::Queue {
            declare,
            named_by_server: true,
        } if !declare.exclusive => Some(&declare.queue),
        _ => None,
    }
}

/// Sends the declaration. For a queue that the broker named and for a stream, only asks passively
/// whether the old one still exists, unless it `is_gone`. The message count in `queue.declare-ok`
/// cannot tell a new stream from the old one: it is a metric that lags.
pub(super) fn send_declaration(
    requester: &Requester,
    channel: &ChannelState,
    entity: &RecordedEntity,
    is_gone: bool,
) -> PendingReply {
    match entity {
        RecordedEntity::Exchange(declare) => requester.send_method(channel, declare),
        RecordedEntity::BindExchange(bind) => requester.send_method(channel, bind),
        RecordedEntity::BindQueue(bind) => requester.send_method(channel, bind),
        RecordedEntity::Queue {
            declare,
            named_by_server: false,
        } if is_gone || !is_stream(declare) => requester.send_method(channel, declare),
        RecordedEntity::Queue {
            declare,
            named_by_server: true,
        } if declare.exclusive || is_gone => {
            let declare = QueueDeclare {
                queue: "".into(),
                ..declare.clone()
            };
            requester.send_method(channel, &declare)
        }
        RecordedEntity::Queue { declare, .. } => {
            let declare = QueueDeclare {
                queue: declare.queue.clone(),
                passive: true,
                ..QueueDeclare::default()
            };
            requester.send_method(channel, &declare)
        }
    }
}
