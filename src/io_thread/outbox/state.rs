//! What the outbox's lock guards.

use std::convert::Infallible;

use bytes::BytesMut;
use crossbeam_channel::Sender;

use super::send_queue::SendQueue;
use crate::error::Error;
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::Command;
use crate::log_line::Label;
use crate::wire::method::{BasicAck, BasicNack, BasicReject, Encode, MethodId};

/// Whether frames can be sent.
#[derive(Debug)]
pub(super) enum Phase {
    Open,
    /// The connection was lost for this reason, and is being recovered: callers wait.
    Lost {
        cause: Error,
        /// The next one is there, but not all that was on the lost one.
        connected: bool,
        since: Deadline,
        /// The lost connection was open to callers: all that belongs to it was there.
        was_open: bool,
    },
    /// For the first cause.
    Ended(Error),
}

pub(super) struct State {
    pub(super) phase: Phase,
    /// Dropped when the connection ends for good.
    pub(super) has_not_ended: Option<Sender<Infallible>>,
    /// How often the connection was lost.
    pub(super) epoch: u64,
    /// The largest payload of a frame on this connection, in bytes.
    pub(super) payload_limit: usize,
    /// Names this connection in the log.
    pub(super) label: Label,
    pub(super) send_queue: SendQueue,
    /// Copies of messages that may have to be published again are taken from here.
    pub(super) keeping: BytesMut,
    /// What the core has to know of the frames that the IO thread has not taken, in their order.
    pub(super) commands: Vec<Command>,
    /// All messages that were appended, in any mode.
    pub(super) messages: u64,
    /// All answers to deliveries that were appended.
    pub(super) acks: u64,
    pub(super) nacks: u64,
    pub(super) rejects: u64,
    /// The IO thread has nothing to do and sleeps, or is about to.
    pub(super) asleep: bool,
    pub(super) blocked: Option<Blocked>,
}

/// `connection.blocked`.
pub(super) struct Blocked {
    /// The broker's.
    pub(super) reason: String,
    pub(super) since: Deadline,
}

impl State {
    /// A method was appended.
    #[inline]
    pub(super) fn count(&mut self, id: MethodId) {
        // Known when this is compiled: it costs one addition, or nothing.
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
    }
}
