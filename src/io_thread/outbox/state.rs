//! The state that the outbox's lock guards.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::BytesMut;
use crossbeam_channel::Sender;

use super::channel_numbers::ChannelNumbers;
use super::channels::Channels;
use super::send_queue::SendQueue;
use crate::error::Error;
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::Command;
use crate::io_thread::peer::Peer;
use crate::wire::method::{BasicAck, BasicNack, BasicReject, Encode, MethodId};

/// Whether frames can be sent.
#[derive(Debug)]
pub(super) enum Phase {
    Open,
    /// The connection was lost and is being recovered: callers wait.
    Lost {
        cause: Error,
        /// The next connection is there, and the replay runs on it.
        connected: bool,
        since: Deadline,
        /// The lost connection was open to callers: it was not lost during its replay.
        was_open: bool,
    },
    /// The connection has ended for good.
    Ended(Error),
}

pub(super) struct State {
    pub(super) phase: Phase,
    /// Dropped when the connection ends for good.
    pub(super) has_not_ended: Option<Sender<Infallible>>,
    /// How many times the connection was lost.
    pub(super) epoch: u64,
    pub(super) peer: Arc<Peer>,
    /// The largest payload of a frame on this connection, in bytes.
    pub(super) payload_limit: usize,
    pub(super) channels: Channels,
    pub(super) channel_numbers: ChannelNumbers,
    pub(super) send_queue: SendQueue,
    /// A block of memory for the copies of messages that may have to be published again.
    pub(super) keeping: BytesMut,
    /// The commands for the frames that the IO thread has not taken, in their order.
    pub(super) commands: Vec<Command>,
    /// The number of calls appended so far.
    pub(super) calls: u64,
    /// The number of messages appended so far, in any mode.
    pub(super) messages: u64,
    /// The number of acks appended so far; the next two count the other answers to deliveries.
    pub(super) acks: u64,
    pub(super) nacks: u64,
    pub(super) rejects: u64,
    /// The IO thread has nothing to write and sleeps, or is about to.
    pub(super) asleep: bool,
    pub(super) blocked: Option<Blocked>,
    /// The socket is closed and the IO thread is done.
    pub(super) finished: bool,
}

/// `connection.blocked` with the broker's reason.
pub(super) struct Blocked {
    pub(super) reason: String,
    pub(super) since: Deadline,
}

impl State {
    /// Counts a method that was appended.
    #[inline]
    pub(super) fn count(&mut self, id: MethodId) {
        // `id` is a constant at each call, so this costs one addition or nothing.
        match id {
            BasicAck::ID => self.acks += 1,
            BasicNack::ID => self.nacks += 1,
            BasicReject::ID => self.rejects += 1,
            _ => {}
        }
    }

    pub(super) fn end(&mut self, error: Error) {
        self.phase = Phase::Ended(error);
        self.has_not_ended = None;
        self.channel_numbers.end();
    }
}
