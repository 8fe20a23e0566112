//! One connection between its socket and its mailboxes: the core, the outbox, and the dispatch of
//! events.
//!
//! The engine knows no socket and no clock. A driver gives it the bytes that it has read and the
//! time, and writes what [`Engine::refill`] returns.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Instant;

use super::lost_publishes::LostPublish;
use super::mailbox::{Command, ConsumerMailbox, Mailboxes};
use super::outbox::write_buffer::WriteBuffer;
use super::outbox::Loss;
use super::read_throttle::ReadThrottle;
use super::shared::Shared;
use crate::error::{ClosedBy, Error};
use crate::events::ConnectionEvent;
use crate::log_line::log_line;
use crate::proto::{self, HeartbeatDue};

/// How a connection ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The connection has ended for good.
    Final(Error),
    /// The connection was lost and is to be recovered.
    Lost(Error),
}

/// One core, and what it shares with the handles. Each new socket gets a new engine.
pub(crate) struct Engine<'a> {
    pub(crate) shared: &'a Arc<Shared>,
    pub(crate) core: proto::Connection<Mailboxes>,
    /// Empty outside of [`refill`](Self::refill); kept to reuse its memory.
    commands: Vec<Command>,
    /// Answers to the peer that were put into the outbox since it was last taken.
    pub(crate) answers: usize,
    pub(crate) read_throttle: ReadThrottle,
    /// Consumers with new messages, whose readers may sleep.
    pub(super) asleep: Vec<Arc<dyn ConsumerMailbox>>,
    /// Whether the connection is to be recovered when it is lost.
    pub(crate) recovers: bool,
    /// Messages to be published again: they had no answer when this socket was lost.
    pub(crate) lost_publishes: Vec<LostPublish>,
    pub(crate) end: Option<End>,
}

impl<'a> Engine<'a> {
    pub(crate) fn new(
        shared: &'a Arc<Shared>,
        core: proto::Connection<Mailboxes>,
        recovers: bool,
        max_unread_bytes: u64,
    ) -> Self {
        let label = core.label().clone();
        Self {
            shared,
            core,
            commands: Vec::new(),
            answers: 0,
            read_throttle: ReadThrottle::new(max_unread_bytes, label),
            asleep: Vec::new(),
            recovers,
            lost_publishes: Vec::new(),
            end: None,
        }
    }

    /// Takes input, and returns how much of it. What is left needs more bytes, or another call once
    /// there is an [`end`](Self::end).
    pub(crate) fn receive(&mut self, input: &[u8], now: Instant) -> usize {
        let mut consumed = 0;
        loop {
            if self.core.buffers().are_wanted() {
                self.shared.buffer_pool.take(self.core.buffers());
            }
            let left = input.get(consumed..).unwrap_or_default();
            consumed += self.core.receive(left, now);
            // The core leaves whole frames in the input only when many events wait.
            if !self.core.has_events() {
                return consumed;
            }
            self.dispatch();
        }
    }

    /// Wakes the readers of new messages. While more input is there, a reader that is woken for
    /// each piece of it would fall asleep in between.
    pub(crate) fn wake_readers(&mut self) {
        for consumer in self.asleep.drain(..) {
            consumer.wake();
        }
    }

    /// Takes all that waits in the outbox. Returns false if there is nothing to write: then the IO
    /// thread may sleep.
    pub(crate) fn refill(&mut self, write_buffer: &mut WriteBuffer) -> bool {
        if self.end.is_some() {
            // Only the core's last frame follows: the lanes get no more turns, and what the program
            // appends now, such as its own connection.close, is not for this socket.
            let mut last = Vec::new();
            self.core.take_output(&mut last);
            write_buffer.append(&mut last);
            return !write_buffer.is_empty();
        }
        if self.core.has_output() {
            let core = &mut self.core;
            self.shared.outbox.append(|buffer| core.take_output(buffer));
        }
        self.shared.outbox.take(write_buffer, &mut self.commands);
        self.answers = 0;
        for command in self.commands.drain(..) {
            self.core.handle(command);
        }
        !write_buffer.is_empty()
    }

    /// Does what callers have asked of the connection as a whole.
    pub(crate) fn handle_requests(&mut self) {
        if self.shared.outbox.is_aborted() {
            self.core.abort();
        }
        // Once this connection has ended, a request to abandon is meant for the next one.
        if self.end.is_none() && self.shared.outbox.take_abandoned() {
            self.core.socket_closed(ErrorKind::TimedOut);
        }
        self.dispatch();
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) -> HeartbeatDue {
        let due = self.core.handle_timeout(now);
        self.dispatch();
        due
    }

    pub(crate) fn socket_closed(&mut self, kind: ErrorKind) {
        self.core.socket_closed(kind);
        self.dispatch();
    }

    pub(crate) fn end_with(&mut self, error: Error) {
        self.core.end_with(error);
        self.dispatch();
    }

    /// Whether to read more, given how much the program has not taken yet.
    pub(crate) fn may_read(&mut self, now: impl FnOnce() -> Instant) -> bool {
        if self.read_throttle.is_free() {
            return true;
        }
        let Self {
            read_throttle,
            core,
            shared,
            ..
        } = self;
        let count_unread = || core.consumers().map(|consumer| consumer.unread()).sum();
        let answer_awaited = || {
            core.awaits_reply()
                || shared.outbox.has_calls()
                || shared.waiters.any()
                || shared.outbox.stops_publishers()
        };
        read_throttle.may_read(now(), count_unread, answer_awaited)
    }

    /// Frees the memory that a burst has left.
    pub(crate) fn shrink(&mut self) {
        self.core.shrink();
        self.commands = Vec::new();
        self.asleep.shrink_to_fit();
        self.shared.outbox.shrink();
        self.shared.buffer_pool.shrink();
    }

    pub(crate) fn is_lost(&self) -> bool {
        matches!(self.end, Some(End::Lost(_)))
    }

    pub(crate) fn ended(&mut self, error: Error) {
        let by_us = error.closed_by() == Some(ClosedBy::Program);
        let loss = match self.recovers && !by_us {
            true => self.shared.outbox.set_lost(error.clone()),
            false => Loss::None,
        };
        self.end = Some(match loss {
            Loss::New | Loss::Again => End::Lost(error.clone()),
            Loss::None => {
                // Before the outbox is emptied, so that nothing is appended afterwards.
                self.shared.outbox.set_end(error.clone());
                End::Final(error.clone())
            }
        });
        // Commands still in the outbox fail with the same cause: their frames were never sent.
        for command in self.shared.outbox.discard() {
            self.core.handle(command);
        }
        match loss {
            Loss::New => {
                self.shared.tell(ConnectionEvent::Lost {
                    cause: error.clone(),
                });
                log_line!(Warn, self.shared.label(), "{error}; reconnecting");
            }
            // The recovery thread reports the failed attempt.
            Loss::Again => {}
            Loss::None => self.shared.end(&error),
        }
    }
}
