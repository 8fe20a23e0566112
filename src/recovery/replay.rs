//! What is done on a new connection, so that it is as the lost one was.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::missing::Missing;
use super::Recovery;
use crate::channel::ChannelState;
use crate::deadline::Deadline;
use crate::error::{CloseReason, ClosedBy, Error, ErrorKind, Result};
use crate::events::Entity;
use crate::io_thread::Link;
use crate::mailbox::{Call, Reply};
use crate::outbox::{Admission, Frames, Gate};

/// The answer to a call that was sent, or why it was not.
pub(super) type Asked = Result<Receiver<Result<Reply>>>;

/// Whom a failure concerns.
pub(super) enum Failure {
    /// What was asked for; its channel is closed, if it was sent at all.
    Refused(Error),
    /// The channel, which has ended for another reason.
    ChannelGone,
    /// It was not asked: what was asked before has cost the channel.
    NotAsked,
    /// All.
    Connection(Error),
}

pub(super) struct Replay<'a> {
    pub(super) recovery: &'a Recovery,
    pub(super) link: &'a Arc<Link>,
    pub(super) epoch: u64,
    /// By then all is done, or it has failed.
    until: Deadline,
    pub(super) missing: &'a mut Missing,
    /// A channel of our own, for what can cost a channel.
    pub(super) own: Option<Arc<ChannelState>>,
    /// What was declared once more, since it had gone in between.
    pub(super) again: HashSet<Entity>,
}

impl Drop for Replay<'_> {
    fn drop(&mut self) {
        if let Some(own) = self.own.take() {
            own.dropped();
        }
    }
}

impl<'a> Replay<'a> {
    pub(super) fn new(
        recovery: &'a Recovery,
        link: &'a Arc<Link>,
        epoch: u64,
        until: Deadline,
        missing: &'a mut Missing,
    ) -> Self {
        Self {
            recovery,
            link,
            epoch,
            until,
            missing,
            own: None,
            again: HashSet::new(),
        }
    }

    pub(super) fn run(mut self) -> Result<()> {
        self.missing.begin(self.epoch);
        let channels = self.recovery.channels();
        for channel in &channels {
            channel.set_recovering(true);
        }
        self.wait_connected()?;
        let channels = self.within_the_limit(channels);
        self.declare_all()?;
        self.open_all(&channels)?;
        for channel in &channels {
            self.publish_again(channel)?;
        }
        self.lose_those_of_others(&channels);
        Ok(())
    }

    /// Sends what `append` writes on a channel, when `gate` is open and this connection is there.
    pub(super) fn write<T>(
        &self,
        channel: u16,
        gate: impl Fn() -> Result<Gate>,
        append: impl FnOnce(&mut Frames<'_>) -> Result<T>,
    ) -> Result<T> {
        let admission = Admission::Recovery { epoch: self.epoch };
        let outbox = &self.link.outbox;
        outbox.write(channel, admission, self.patience(), gate, append)
    }

    /// How long to wait for room, or for an answer.
    fn patience(&self) -> Duration {
        let request_timeout = self.recovery.options.request_timeout;
        request_timeout.min(self.until.remaining())
    }

    /// Why the connection was lost.
    pub(super) fn cause(&self) -> Error {
        let cause = self.link.outbox.cause();
        cause.unwrap_or_else(|| closed(0))
    }

    fn wait_connected(&self) -> Result<()> {
        self.write(0, || Ok(Gate::Open), |_| Ok(()))
    }

    /// Sends on a channel that is open on this connection.
    pub(super) fn ask(
        &self,
        channel: &ChannelState,
        append: impl FnOnce(&mut Frames<'_>, Call) -> Result<()>,
    ) -> Asked {
        let (call, answer) = Call::new();
        let gate = || match channel.gate()? {
            Gate::Open if !channel.is_open_in(self.epoch) => Err(closed(channel.number)),
            gate => Ok(gate),
        };
        self.write(channel.number, gate, |frames| append(frames, call))?;
        Ok(answer)
    }

    pub(super) fn open(&self, channel: &Arc<ChannelState>) -> Asked {
        let (call, answer) = Call::new();
        let gate = || channel.gate().map(|_| channel.opening_gate());
        self.write(channel.number, gate, |frames| {
            channel.append_open(frames, call)
        })?;
        Ok(answer)
    }

    pub(super) fn answer(&self, channel: &ChannelState, asked: Asked) -> Result<Reply, Failure> {
        let timeout = self.patience();
        let reply = asked.and_then(|answer| match answer.recv_timeout(timeout) {
            Ok(reply) => reply,
            Err(RecvTimeoutError::Timeout) => Err(Error::timed_out(timeout)),
            Err(RecvTimeoutError::Disconnected) => Err(self.cause()),
        });
        reply.map_err(|error| match error.kind() {
            // For another reason, such as an ack that the program has sent.
            ErrorKind::ChannelClosed { .. } if channel.end.cause().is_some() => {
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

    /// A channel that may be closed by what it is used for: one of the program's, since they are opened again; else one of
    /// our own.
    pub(super) fn scratch(&mut self) -> Result<Arc<ChannelState>> {
        let channels = self.recovery.channels();
        let recovering = channels.into_iter().find(|it| it.is_recovering());
        let channel = match recovering.or_else(|| self.own.clone()) {
            Some(channel) => channel,
            None => self.take_own()?,
        };
        if channel.is_open_in(self.epoch) {
            return Ok(channel);
        }
        match self.answer(&channel, self.open(&channel)) {
            Ok(_) => Ok(channel),
            Err(Failure::ChannelGone | Failure::NotAsked) => self.scratch(),
            Err(Failure::Refused(error) | Failure::Connection(error)) => Err(error),
        }
    }

    fn take_own(&mut self) -> Result<Arc<ChannelState>> {
        let numbers = &self.link.channel_numbers;
        // Without waiting: nobody else releases one meanwhile.
        let number = numbers
            .take(Deadline::after(Duration::ZERO))
            .ok_or_else(|| {
                let channel_max = numbers.highest();
                Error::new(ErrorKind::ChannelsExhausted { channel_max })
            })?;
        let channel = Arc::new(ChannelState::new(number, Arc::clone(self.link)));
        channel.set_recovering(true);
        self.own = Some(Arc::clone(&channel));
        Ok(channel)
    }
}

pub(super) fn closed(channel: u16) -> Error {
    Error::new(ErrorKind::ChannelClosed {
        channel,
        reason: CloseReason::program("it was closed while it was being opened again"),
    })
}

pub(super) fn is_named(error: &Error, name: &str) -> bool {
    let reason = error.close_reason();
    reason.is_some_and(|reason| reason.text.contains(&format!("'{name}'")))
}
