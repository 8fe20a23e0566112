//! Drives one socket from the end of its handshake until it is closed.

use std::io::{self, ErrorKind, Write};
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

use super::engine::Engine;
use super::outbox::write_buffer::WriteBuffer;
use super::socket::read_buffer::{Came, ReadBuffer, CHUNK};
use super::socket::transport::Transport;
use crate::log_line::log_line;
use crate::proto::HeartbeatDue;

const SOCKET: Token = Token(0);
/// Reads in a row before writing gets its turn.
const READS_IN_A_ROW: usize = 16;
/// Reads in a row, if there is so much, before readers of new messages are woken.
const READS_BEFORE_WAKING: usize = 4;
/// Writes in a row before reading gets its turn. Publishers that never pause must not keep the IO
/// thread from reading confirms and heartbeats.
const WRITES_IN_A_ROW: usize = 16;
/// Once this many answers wait for a peer that does not read them, the IO thread stops reading.
const ANSWERS_LIMIT: usize = 4096;
/// How long a connection that has ended waits to send its last frames, and for the peer to close.
const LINGER: Duration = Duration::from_secs(1);

/// The steps of closing a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closing {
    No,
    /// The last frames are being written, until this time at most.
    Flushing(Instant),
    /// The last frames are written; the peer has until this time to close.
    Draining(Instant),
    Done,
}

/// One socket and its core. Each new socket gets a new driver.
pub(super) struct Driver<'a> {
    poll: &'a mut Poll,
    pub(super) engine: Engine<'a>,
    transport: Transport,
    read_buffer: ReadBuffer,
    write_buffer: WriteBuffer,
    /// Polling is edge-triggered, so this and `writable` stay set until a call would block.
    readable: bool,
    /// Whether a read that brings less than there is room for means that nothing is left, and that
    /// an event will tell of more. See "Questions and answers" in `man 7 epoll`. Other systems
    /// promise the event only after a read that would block. No event follows the peer's end.
    trusts_short_reads: bool,
    writable: bool,
    /// More may be left to write, and the socket may take it.
    write_again: bool,
    /// The socket has failed. Reading yields the input that is left, then the reason.
    failed: bool,
    closing: Closing,
}

impl<'a> Driver<'a> {
    pub(super) fn new(
        poll: &'a mut Poll,
        engine: Engine<'a>,
        transport: Transport,
        read_buffer: ReadBuffer,
    ) -> Self {
        let is_epoll = cfg!(any(target_os = "linux", target_os = "android"));
        Self {
            trusts_short_reads: is_epoll && !transport.is_tls(),
            poll,
            engine,
            transport,
            read_buffer,
            write_buffer: WriteBuffer::default(),
            readable: true,
            writable: true,
            write_again: false,
            failed: false,
            closing: Closing::No,
        }
    }

    pub(super) fn drive(&mut self) {
        let mut events = Events::with_capacity(8);
        let interest = Interest::READABLE | Interest::WRITABLE;
        // A read ends before urgent data, which no broker sends.
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let interest = interest | Interest::PRIORITY;
        let registry = self.poll.registry();
        if let Err(error) = registry.register(&mut self.transport, SOCKET, interest) {
            return self.lose(error.kind());
        }
        // Input that came together with the end of the handshake is in the read buffer already.
        self.receive(now());
        while self.closing != Closing::Done {
            self.engine.wake_readers();
            self.write();
            self.wait(&mut events);
            self.engine.handle_requests();
            self.look_for_the_end();
            self.read();
            self.handle_time(&mut events);
        }
        self.engine.wake_readers();
    }

    /// Sleeps until the socket or the outbox has work, or a deadline passes.
    fn wait(&mut self, events: &mut Events) {
        let timeout = self.timeout();
        self.poll(events, timeout);
    }

    fn poll(&mut self, events: &mut Events, timeout: Option<Duration>) {
        if let Err(error) = self.poll.poll(events, timeout) {
            if error.kind() != ErrorKind::Interrupted {
                return self.socket_failed(&error);
            }
        }
        for event in events.iter().filter(|event| event.token() == SOCKET) {
            // A closed or broken socket counts as readable: a read tells which it is.
            // With TLS, a read can wait for a write, and a write for a read.
            let both = self.transport.is_tls() && (event.is_readable() || event.is_writable());
            self.readable |= both
                || event.is_readable()
                || event.is_priority()
                || event.is_read_closed()
                || event.is_error();
            let is_last = event.is_read_closed() || event.is_error();
            self.trusts_short_reads &= !is_last && !event.is_priority();
            self.failed |= event.is_error();
            self.writable |= both || event.is_writable();
        }
    }

    /// How long to sleep. `None`: until the socket or the outbox has work.
    fn timeout(&self) -> Option<Duration> {
        let pauses_until = self.engine.read_throttle.pauses_until();
        let pauses_until = pauses_until.filter(|_| self.may_pause());
        let busy = self.write_again || self.engine.core.has_events();
        let readable = self.readable && !self.is_full_of_answers();
        if busy || (readable && pauses_until.is_none()) {
            return Some(Duration::ZERO);
        }
        let look = pauses_until.filter(|_| readable);
        let wake_up_at = self.deadline().into_iter().chain(look).min()?;
        Some(wake_up_at.saturating_duration_since(now()))
    }

    fn deadline(&self) -> Option<Instant> {
        match self.closing {
            Closing::No => self.engine.core.deadline(),
            Closing::Flushing(until) | Closing::Draining(until) => Some(until),
            Closing::Done => None,
        }
    }

    /// Reads until nothing is left.
    fn read(&mut self) {
        for turn in 1..=READS_IN_A_ROW {
            if turn % READS_BEFORE_WAKING == 0 {
                self.engine.wake_readers();
            }
            if !self.readable || self.closing == Closing::Done || !self.may_read() {
                return;
            }
            match self.read_once() {
                Ok(Came { count: 0, .. }) => {
                    return self.socket_failed(&ErrorKind::UnexpectedEof.into());
                }
                Ok(Came { count, fills_room }) => {
                    self.readable = fills_room || !self.trusts_short_reads;
                    self.engine.shared.counters.received(count);
                    self.receive(now());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return self.socket_failed(&error),
            }
        }
    }

    fn read_once(&mut self) -> io::Result<Came> {
        let Self {
            engine,
            read_buffer,
            transport,
            ..
        } = self;
        if read_buffer.bytes().is_empty() {
            if let Some(room) = engine.core.body_room(CHUNK) {
                let (of_body, came) = read_buffer.read_after(room, transport)?;
                engine.core.body_came(of_body);
                return Ok(came);
            }
        }
        read_buffer.read_from(transport)
    }

    /// Whether reading may pause. A connection that is about to end must be read to its end.
    fn may_pause(&self) -> bool {
        !self.failed && self.closing == Closing::No
    }

    /// Whether the peer does not read its answers, which fill the memory here.
    fn is_full_of_answers(&self) -> bool {
        self.engine.answers >= ANSWERS_LIMIT && self.may_pause()
    }

    /// Whether to read more, given how much the program has not taken yet.
    fn may_read(&mut self) -> bool {
        !self.is_full_of_answers() && (!self.may_pause() || self.engine.may_read(now))
    }

    fn receive(&mut self, now: Instant) {
        let consumed = self.engine.receive(self.read_buffer.bytes(), now);
        self.read_buffer.consume(consumed);
        self.look_for_the_end();
    }

    /// Begins to close the socket when the connection has ended.
    fn look_for_the_end(&mut self) {
        if self.closing == Closing::No && self.engine.end.is_some() {
            self.closing = match self.engine.core.has_output() {
                true => Closing::Flushing(now() + LINGER),
                false => Closing::Done,
            };
        }
    }

    fn handle_time(&mut self, events: &mut Events) {
        match self.closing {
            Closing::No => {
                let mut now = now();
                if self.deadline().is_some_and(|deadline| deadline <= now) {
                    now = self.catch_up(events);
                }
                if self.readable {
                    self.engine.core.input_waits(now);
                }
                // Nothing was sent for half a heartbeat interval: the connection is idle.
                if self.engine.handle_timeout(now) == HeartbeatDue::Send {
                    self.shrink();
                }
                self.look_for_the_end();
            }
            Closing::Flushing(until) | Closing::Draining(until) if now() >= until => {
                self.closing = Closing::Done;
            }
            Closing::Flushing(_) | Closing::Draining(_) | Closing::Done => {}
        }
    }

    /// Reads what has come before the core is told the time. The process may have been stopped
    /// (SIGSTOP) or the machine asleep; the peer is not dead if its heartbeats lie in the socket.
    #[cold]
    fn catch_up(&mut self, events: &mut Events) -> Instant {
        self.poll(events, Some(Duration::ZERO));
        self.read();
        now()
    }

    /// Frees the memory that a burst has left. With heartbeats off, that memory stays.
    fn shrink(&mut self) {
        self.engine.shrink();
        self.read_buffer.shrink();
        self.write_buffer.shrink();
        self.transport.shrink();
    }

    /// Writes until nothing is left, the socket takes no more, or reading gets its turn.
    fn write(&mut self) {
        let mut wrote = false;
        self.write_again = true;
        for _ in 0..WRITES_IN_A_ROW {
            if !self.writable {
                self.write_again = false;
                break;
            }
            let is_sent = self.write_buffer.is_empty() && self.transport.unsent() == 0;
            if is_sent && !self.engine.refill(&mut self.write_buffer) {
                self.all_written();
                self.write_again = false;
                break;
            }
            match self.transport.write(self.write_buffer.front()) {
                Ok(count) => {
                    self.engine.shared.counters.sent(count);
                    self.write_buffer.wrote(count);
                    wrote = true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Read what the peer sent before it went away: that says why.
                Err(error) => {
                    log_line!(Debug, self.engine.shared.label(), "write failed: {error}");
                    self.writable = false;
                    self.readable = true;
                    self.failed = true;
                }
            }
        }
        let unsent = self.write_buffer.len() + self.transport.unsent();
        self.engine.shared.counters.writing(unsent);
        if wrote {
            self.engine.core.wrote(now());
        }
    }

    fn all_written(&mut self) {
        if let Closing::Flushing(until) = self.closing {
            // Closing the socket at once would reset a peer that is still sending, and the peer
            // could lose our last frames.
            let _ = self.transport.shutdown_write();
            self.closing = Closing::Draining(until);
        }
    }

    fn socket_failed(&mut self, error: &io::Error) {
        self.readable = false;
        if self.closing != Closing::No {
            self.closing = Closing::Done;
            return;
        }
        self.lose(error.kind());
    }

    fn lose(&mut self, kind: ErrorKind) {
        self.engine.socket_closed(kind);
        self.closing = Closing::Done;
    }
}

#[allow(clippy::disallowed_methods)] // The core's only source of time.
fn now() -> Instant {
    Instant::now()
}
