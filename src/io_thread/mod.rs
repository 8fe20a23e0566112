//! The one thread that owns the socket: it moves bytes between the socket, the core and the outbox, and puts what
//! the core says into the mailboxes. Only here the clock is read for the core.

pub(crate) mod buffer_pool;
pub(crate) mod channel_numbers;
pub(crate) mod counters;
pub(crate) mod deadline;
pub(crate) mod lost_publishes;
pub(crate) mod mailbox;
pub(crate) mod notifier;
pub(crate) mod outbox;
pub(crate) mod panics;
pub(crate) mod read_throttle;
pub(crate) mod socket;
pub(crate) mod unread_bytes;

use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use mio::{Events, Interest, Poll, Token, Waker};
use parking_lot::{Condvar, Mutex};

use crate::error::{CloseReason, ClosedBy, Error, ErrorKind as Kind, OneLine, ReplyCode, Result};
use crate::events::ConnectionEvent;
use crate::log_line::{log_line, Label};
use crate::options::{ConnectionOptions, Endpoint};
use crate::proto::{self, Event, Outcome, Server, Topology, Tuning};
use crate::wire::method::ConnectionClose;
use buffer_pool::Buffers;
use channel_numbers::ChannelNumbers;
use counters::Counters;
use deadline::Deadline;
use lost_publishes::Unanswered;
use mailbox::{Command, Mailboxes, Reply, Unclaimed};
use notifier::Feed;
use outbox::write_buffer::Outgoing;
use outbox::{Admission, Gate, Loss, Outbox};
use read_throttle::{Reading, Waiting};
use socket::connect::{Connected, Last};
use socket::read_buffer::Inbox;
use socket::transport::Stream;

const SOCKET: Token = Token(0);
const WAKER: Token = Token(1);

/// How many reads are made before writing gets its turn.
const READS_IN_A_ROW: usize = 16;
/// How many writes are made before reading gets its turn: publishers who never stop must not keep confirms and
/// heartbeats from being read.
const WRITES_IN_A_ROW: usize = 16;
/// How many answers wait for a peer that does not read them, before no more of what it sends is read.
const ANSWERS_LIMIT: usize = 4096;
/// How many events are kept for a program that does not read them.
const EVENTS_LIMIT: usize = 64;
/// After its end a connection waits so long for its last words to go out, and for the peer to hear them.
const LINGER: Duration = Duration::from_secs(1);
/// After its time to close a connection, a caller waits this long for the IO thread to cut the socket.
const ABORT_PATIENCE: Duration = Duration::from_secs(5);

/// Who is at the other end, and what was agreed on with it.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) server: Server,
    pub(crate) tuning: Tuning,
    pub(crate) address: SocketAddr,
    endpoint: Endpoint,
    label: Label,
}

impl Peer {
    fn of(connected: &Connected<Mailboxes>) -> Arc<Self> {
        Arc::new(Self {
            server: connected.core.server().clone(),
            tuning: connected.core.tuning().clone(),
            address: connected.peer,
            endpoint: connected.endpoint.clone(),
            label: connected.core.label().clone(),
        })
    }
}

/// What follows a connection that was lost.
pub(crate) enum Next {
    Connected(Box<Connected<Mailboxes>>),
    /// Nothing: it has ended for this reason.
    GivenUp(Error),
}

/// What the IO thread and the handles of one connection share. It outlasts the socket.
pub(crate) struct Link {
    pub(crate) outbox: Outbox,
    pub(crate) channel_numbers: ChannelNumbers,
    pub(crate) events: Feed<ConnectionEvent>,
    /// Threads that wait for confirms.
    pub(crate) waiting: Waiting,
    pub(crate) counters: Counters,
    pub(crate) buffers: Buffers,
    pub(crate) topology: Mutex<Topology>,
    /// In the order in which each channel has published them.
    pub(crate) unanswered: Mutex<Vec<Unanswered>>,
    /// Where connections come in that follow a lost one.
    pub(crate) next: Sender<Next>,
    peer: Mutex<Arc<Peer>>,
    finished: Mutex<bool>,
    on_finished: Condvar,
}

impl Link {
    pub(crate) fn peer(&self) -> Arc<Peer> {
        Arc::clone(&self.peer.lock())
    }

    /// Names the connection in the log, as it is connected now.
    pub(crate) fn label(&self) -> Label {
        self.peer.lock().label.clone()
    }

    /// Where the connection is.
    pub(crate) fn here(&self) -> Last {
        let peer = self.peer();
        Last {
            endpoint: peer.endpoint.clone(),
            address: peer.address,
            is_silent: false,
        }
    }

    /// Where the lost connection was, if that tells where to look for the next one: first where it
    /// worked, last where the broker fell silent.
    pub(crate) fn last(&self) -> Option<Last> {
        let (cause, was_open) = self.outbox.last_loss()?;
        let is_silent = matches!(
            cause.kind(),
            Kind::HeartbeatMissed { .. }
                | Kind::SocketClosed {
                    kind: ErrorKind::TimedOut
                }
        );
        (is_silent || was_open).then(|| Last {
            is_silent,
            ..self.here()
        })
    }

    pub(crate) fn tell(&self, event: ConnectionEvent) {
        // What the program does not read has been logged.
        self.events.send(event, drop);
    }

    /// This is the end, for good.
    fn end(&self, error: &Error) {
        self.outbox.set_end(error.clone());
        self.tell(ConnectionEvent::Closed {
            cause: error.clone(),
        });
        self.events.end();
        self.channel_numbers.end();
        // The last, since the program's logger can panic.
        match error.kind() {
            Kind::ConnectionClosed(reason) if reason.by == ClosedBy::Program => {
                log_line!(Info, self.label(), "{error}");
            }
            _ => log_line!(Warn, self.label(), "{error}"),
        }
    }

    /// The program has closed the connection for this reason. Should it be lost just now, nothing else would wake the IO
    /// thread.
    pub(crate) fn closed(&self, error: Error) {
        let _ = self.next.send(Next::GivenUp(error));
    }

    /// Closes the connection, and waits until that is done.
    pub(crate) fn close(&self, code: ReplyCode, text: &str, timeout: Duration) -> Result<()> {
        let deadline = Deadline::after(timeout);
        self.begin_close(code, text)?;
        if self.wait_finished(deadline.remaining()) {
            return Ok(());
        }
        let error = self.outbox.explained(Error::timed_out(timeout));
        self.outbox.abort();
        self.wait_finished(ABORT_PATIENCE);
        Err(error)
    }

    pub(crate) fn begin_close(&self, code: ReplyCode, text: &str) -> Result<()> {
        let close = ConnectionClose {
            reply_code: code.0,
            reply_text: text.into(),
            ..ConnectionClose::default()
        };
        let reason = CloseReason {
            code,
            ..CloseReason::program(text)
        };
        let closed = Error::new(Kind::ConnectionClosed(reason.clone()));
        let gate = || Ok(Gate::Open);
        self.outbox
            .write(0, Admission::Always, Duration::ZERO, gate, |frames| {
                frames.last_method(&close)?;
                frames.command(Command::CloseConnection { reason });
                frames.end(closed.clone());
                Ok(())
            })?;
        self.closed(closed);
        Ok(())
    }

    /// Tells those who wait for messages that were to be published again that this does not happen.
    pub(crate) fn lose_unanswered(&self) {
        let unanswered = std::mem::take(&mut *self.unanswered.lock());
        unanswered.into_iter().for_each(Unanswered::lose);
    }

    /// Waits until the socket is closed and the thread has nothing left to do. False if that takes longer.
    pub(crate) fn wait_finished(&self, timeout: Duration) -> bool {
        let deadline = Deadline::after(timeout);
        let mut finished = self.finished.lock();
        while !*finished {
            let result = self.on_finished.wait_until(&mut finished, deadline.at());
            if result.timed_out() {
                return *finished;
            }
        }
        true
    }
}

/// Starts the thread for a connection whose handshake is over.
pub(crate) fn spawn(
    connected: Connected<Mailboxes>,
    options: &ConnectionOptions,
    recovery: Arc<dyn Recover>,
    name: &str,
) -> io::Result<(Arc<Link>, thread::ThreadId)> {
    let poll = Poll::new()?;
    let waker = Waker::new(poll.registry(), WAKER)?;
    let (next, connections) = crossbeam_channel::unbounded();
    let tuning = connected.core.tuning();
    let fails_fast = options.recovery.fail_fast;
    let label = connected.core.label().clone();
    let link = Arc::new(Link {
        outbox: Outbox::new(waker, tuning.payload_limit(), fails_fast, label),
        channel_numbers: ChannelNumbers::new(tuning.highest_channel()),
        events: Feed::new(EVENTS_LIMIT),
        waiting: Waiting::default(),
        buffers: Buffers::default(),
        counters: Counters::new(options.metrics.clone()),
        topology: Mutex::new(Topology::default()),
        unanswered: Mutex::new(Vec::new()),
        next,
        peer: Mutex::new(Peer::of(&connected)),
        finished: Mutex::new(false),
        on_finished: Condvar::new(),
    });
    let io_thread = IoThread {
        poll,
        connections,
        link: Arc::clone(&link),
        recovery,
        max_unread_bytes: options.max_unread_bytes,
    };
    let handle = thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || io_thread.run(connected))?;
    Ok((link, handle.thread().id()))
}

/// What outlasts a socket.
struct IoThread {
    poll: Poll,
    connections: Receiver<Next>,
    link: Arc<Link>,
    recovery: Arc<dyn Recover>,
    max_unread_bytes: u64,
}

/// Tells everyone that the thread is gone, whatever happens.
struct Finish(Arc<Link>);

impl Drop for Finish {
    fn drop(&mut self) {
        *self.0.finished.lock() = true;
        self.0.on_finished.notify_all();
    }
}

impl IoThread {
    fn run(mut self, first: Connected<Mailboxes>) {
        let finish = Finish(Arc::clone(&self.link));
        let cause = self.drive_all(first);
        self.recovery.ended(&cause);
        self.link.lose_unanswered();
        drop(self);
        drop(finish);
    }

    /// Drives one socket after the other, and returns why there is no other.
    fn drive_all(&mut self, first: Connected<Mailboxes>) -> Error {
        let mut connected = first;
        loop {
            let cause = match self.drive(connected) {
                End::Final(cause) => return cause,
                End::Lost(cause) => cause,
            };
            connected = match self.next(cause) {
                Ok(connected) => connected,
                Err(cause) => {
                    self.link.end(&cause);
                    return cause;
                }
            }
        }
    }

    /// Drives a socket until it is closed.
    fn drive(&mut self, connected: Connected<Mailboxes>) -> End {
        let mut driver = Driver::new(self, connected);
        let mut driven = panics::catch(|| driver.drive());
        // A fault of this crate, or of the program's logger or metrics, which run here, too. No
        // thread may wait for ever: what is told next may panic again, so this goes on to the last
        // event.
        while let Err(message) = driven {
            driver.recovers = false;
            let thread = "IO thread";
            let error = Error::new(Kind::Panicked { thread, message });
            driven = panics::catch(|| driver.end_with(error.clone()));
            if !driver.core.has_events() {
                break;
            }
        }
        // What was not written is dropped.
        driver.link.counters.writing(0);
        let unanswered = std::mem::take(&mut driver.unanswered);
        let end = driver.end.take().unwrap_or_else(|| {
            let error = Error::new(Kind::SocketClosed {
                kind: ErrorKind::Other,
            });
            self.link.end(&error);
            End::Final(error)
        });
        unanswered.iter().for_each(Unanswered::keep);
        self.link.unanswered.lock().extend(unanswered);
        end
    }

    /// Waits for the connection that follows a lost one, or for the reason why there will be none.
    fn next(&self, cause: Error) -> Result<Connected<Mailboxes>> {
        if !Arc::clone(&self.recovery).lost(&self.link, &cause) {
            // Who would recover it may have said why not.
            return Err(match self.connections.try_recv() {
                Ok(Next::GivenUp(error)) => error,
                Ok(Next::Connected(_)) | Err(_) => cause,
            });
        }
        match self.connections.recv() {
            Ok(Next::Connected(connected)) => {
                // Before the replay is let in: it has to know how many channels there can be.
                let peer = Peer::of(&connected);
                let highest = peer.tuning.highest_channel();
                let label = peer.label.clone();
                self.link.channel_numbers.begin(highest);
                *self.link.peer.lock() = peer;
                let payload_limit = connected.core.tuning().payload_limit();
                let begun = self.link.outbox.begin(payload_limit, label);
                begun.map(|()| *connected)
            }
            Ok(Next::GivenUp(error)) => Err(error),
            Err(_) => Err(cause),
        }
    }
}

/// How it ended with a socket.
#[derive(Debug)]
enum End {
    /// The connection is closed, for good.
    Final(Error),
    /// It was lost.
    Lost(Error),
}

/// How far the connection's end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closing {
    No,
    /// The last words go out, until this time.
    Flushing(Instant),
    /// They are out; the peer has until this time to close.
    Draining(Instant),
    Done,
}

/// One socket, from the end of its handshake to its end.
struct Driver<'a> {
    poll: &'a mut Poll,
    link: &'a Arc<Link>,
    stream: Stream,
    core: proto::Connection<Mailboxes>,
    inbox: Inbox,
    outgoing: Outgoing,
    /// Empty but for a moment; kept for its memory.
    commands: Vec<Command>,
    /// What the socket last allowed; edge-triggered, so it holds until a call would block.
    readable: bool,
    writable: bool,
    /// How many answers to the peer were put into the outbox since it was last emptied.
    answers: usize,
    /// There may be more to write, and the socket would take it.
    write_again: bool,
    /// The socket is broken: what is left in it ends with the reason.
    failed: bool,
    reading: Reading,
    closing: Closing,
    /// Whether another connection follows when this one is lost.
    recovers: bool,
    /// What was published on this socket and got no answer before it was lost.
    unanswered: Vec<Unanswered>,
    end: Option<End>,
}

impl<'a> Driver<'a> {
    fn new(io_thread: &'a mut IoThread, connected: Connected<Mailboxes>) -> Self {
        let Connected {
            stream,
            core,
            inbox,
            ..
        } = connected;
        let link = &io_thread.link;
        let label = core.label().clone();
        Self {
            poll: &mut io_thread.poll,
            link,
            stream,
            core,
            inbox,
            outgoing: Outgoing::default(),
            commands: Vec::new(),
            readable: true,
            writable: true,
            answers: 0,
            write_again: false,
            failed: false,
            reading: Reading::new(io_thread.max_unread_bytes, label),
            closing: Closing::No,
            recovers: io_thread.recovery.is_on(),
            unanswered: Vec::new(),
            end: None,
        }
    }

    fn drive(&mut self) {
        let mut events = Events::with_capacity(8);
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registry = self.poll.registry();
        if let Err(error) = registry.register(&mut self.stream, SOCKET, interest) {
            return self.lose(error.kind());
        }
        // Input that came right behind the handshake waits in the inbox.
        self.receive(now());
        while self.closing != Closing::Done {
            self.write();
            self.wait(&mut events);
            if self.link.outbox.is_aborted() {
                self.core.abort();
            }
            // What is given up behind the end of this connection is the next one.
            if self.closing == Closing::No && self.link.outbox.take_given_up() {
                self.core.socket_closed(ErrorKind::TimedOut);
            }
            self.answer();
            self.read();
            self.handle_time(&mut events);
        }
    }

    /// Sleeps until the socket, the outbox or the time has something to do.
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
            // A closed or broken socket is found by reading it.
            // In TLS either way can wait for the other.
            let both = self.stream.is_tls() && (event.is_readable() || event.is_writable());
            self.readable |=
                both || event.is_readable() || event.is_read_closed() || event.is_error();
            self.failed |= event.is_error();
            self.writable |= both || event.is_writable();
        }
    }

    /// How long to sleep. `None`: until the socket or the outbox has something.
    fn timeout(&self) -> Option<Duration> {
        let pauses_until = self.reading.pauses_until().filter(|_| self.may_pause());
        let busy = self.write_again || self.core.has_events();
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
            Closing::No => self.core.deadline(),
            Closing::Flushing(until) | Closing::Draining(until) => Some(until),
            Closing::Done => None,
        }
    }

    fn read(&mut self) {
        for _ in 0..READS_IN_A_ROW {
            if !self.readable || self.closing == Closing::Done || !self.may_read() {
                return;
            }
            match self.inbox.read_from(&mut self.stream) {
                Ok(0) => return self.socket_failed(&ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.link.counters.received(count);
                    self.receive(now());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return self.socket_failed(&error),
            }
        }
    }

    /// At the end all is read, so that it comes.
    fn may_pause(&self) -> bool {
        !self.failed && self.closing == Closing::No
    }

    /// Whether the peer asks for more than it reads: every answer to it would take memory here.
    fn is_full_of_answers(&self) -> bool {
        self.answers >= ANSWERS_LIMIT && self.may_pause()
    }

    /// Whether to go on, with as much as the program has not taken yet.
    fn may_read(&mut self) -> bool {
        if self.is_full_of_answers() {
            return false;
        }
        if self.reading.is_free() || !self.may_pause() {
            return true;
        }
        let Self {
            reading,
            core,
            link,
            ..
        } = self;
        let count_unread = || core.consumers().map(|consumer| consumer.unread()).sum();
        let someone_waits = || {
            core.awaits_reply()
                || link.outbox.has_calls()
                || link.waiting.any()
                || link.outbox.stops_publishers()
        };
        reading.may_read(now(), count_unread, someone_waits)
    }

    fn receive(&mut self, now: Instant) {
        loop {
            if self.core.buffers().is_empty() {
                self.link.buffers.take(self.core.buffers());
            }
            let consumed = self.core.receive(self.inbox.bytes(), now);
            self.inbox.consume(consumed);
            // Only for their sake the core stops before it has taken in all.
            if !self.core.has_events() {
                return;
            }
            self.answer();
        }
    }

    fn handle_time(&mut self, events: &mut Events) {
        match self.closing {
            Closing::No => {
                let mut now = now();
                if self.core.deadline().is_some_and(|deadline| deadline <= now) {
                    now = self.catch_up(events);
                }
                if self.readable {
                    self.core.input_waits(now);
                }
                if self.core.handle_timeout(now) {
                    self.give_memory_back();
                }
                self.answer();
            }
            Closing::Flushing(until) | Closing::Draining(until) if now() >= until => {
                self.closing = Closing::Done;
            }
            Closing::Flushing(_) | Closing::Draining(_) | Closing::Done => {}
        }
    }

    /// Reads what has come before the time is told to the core: the process can have been stopped
    /// meanwhile (SIGSTOP), or the machine asleep, and the peer is not dead if its heartbeats lie in
    /// the socket.
    #[cold]
    fn catch_up(&mut self, events: &mut Events) -> Instant {
        self.poll(events, Some(Duration::ZERO));
        self.read();
        now()
    }

    /// What a burst has needed is not kept for the next one, if that does not come soon.
    fn give_memory_back(&mut self) {
        self.commands = Vec::new();
        self.inbox.give_memory_back();
        self.outgoing.give_memory_back();
        self.link.outbox.give_memory_back();
        self.link.buffers.take(&mut Vec::new());
    }

    /// Writes what there is until the socket takes no more.
    fn write(&mut self) {
        let mut wrote = false;
        self.write_again = true;
        for _ in 0..WRITES_IN_A_ROW {
            if !self.writable {
                self.write_again = false;
                break;
            }
            if self.outgoing.is_empty() && !self.refill() {
                self.all_written();
                self.write_again = false;
                break;
            }
            match self.stream.write(self.outgoing.front()) {
                Ok(count) => {
                    self.link.counters.sent(count);
                    self.outgoing.wrote(count);
                    wrote = true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // What the peer said before it went away is still to be read: it tells why.
                Err(error) => {
                    log_line!(Debug, self.link.label(), "write failed: {error}");
                    self.writable = false;
                    self.readable = true;
                    self.failed = true;
                }
            }
        }
        self.link.counters.writing(self.outgoing.len());
        if wrote {
            self.core.wrote(now());
        }
    }

    /// Takes what has come together in the outbox. False if that is nothing; then the IO thread may sleep.
    fn refill(&mut self) -> bool {
        self.take_core_output();
        let outbox = &self.link.outbox;
        outbox.take(&mut self.outgoing, &mut self.commands);
        self.answers = 0;
        for command in self.commands.drain(..) {
            self.core.handle(command);
        }
        !self.outgoing.is_empty()
    }

    fn take_core_output(&mut self) {
        if self.core.has_output() {
            let core = &mut self.core;
            self.link.outbox.append(|buffer| core.take_output(buffer));
        }
    }

    fn all_written(&mut self) {
        if let Closing::Flushing(until) = self.closing {
            // A peer that is still sending would otherwise get a reset, and lose what we said last.
            let _ = self.stream.shutdown_write();
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

    fn end_with(&mut self, error: Error) {
        self.core.end_with(error);
        self.answer();
        self.closing = Closing::Done;
    }

    fn lose(&mut self, kind: ErrorKind) {
        self.core.socket_closed(kind);
        self.answer();
        self.closing = Closing::Done;
    }

    /// Puts what the core has to say into the mailboxes.
    fn answer(&mut self) {
        while let Some(event) = self.core.next_event() {
            self.answers += usize::from(event.is_answered());
            match event {
                Event::Opened => {}
                // Whoever has given up waiting has dropped the receiver; a late reply is for nobody.
                Event::Reply {
                    channel,
                    mut call,
                    reply,
                } => {
                    let asked = call.take_record();
                    if let Some(channel) = channel {
                        // Now, since the connection can be lost before the caller hears of it.
                        channel.broker_replied(asked.as_ref());
                    }
                    if let Some(asked) = asked {
                        self.link.topology.lock().done(asked, Some(&reply));
                    }
                    call.answer(Ok(Reply::Method(*reply)));
                }
                Event::Fetched {
                    call,
                    channel,
                    no_ack,
                    mut message,
                } => {
                    channel.broker_replied(None);
                    message.delivery_tag = channel.received(message.delivery_tag);
                    let redelivered = usize::from(message.redelivered);
                    let message = Unclaimed::new(message, no_ack, channel);
                    self.link.counters.redelivered(redelivered);
                    let answer = || call.answer(Ok(Reply::Message(message)));
                    self.link.counters.delivered(1, answer);
                }
                Event::Failed { call, error } => call.answer(Err(error)),
                Event::Deliveries { consumer, count } => {
                    let messages = self.core.take_messages(count);
                    let redelivered = messages.as_slice().iter().filter(|it| it.redelivered);
                    self.link.counters.redelivered(redelivered.count());
                    let deliver = || consumer.deliver(messages);
                    let bytes = self.link.counters.delivered(count, deliver);
                    self.reading.delivered(bytes);
                }
                Event::ConsumerStarted { consumer } => consumer.started(),
                Event::ConsumerCancelled {
                    channel,
                    consumer_tag,
                    consumer,
                    no_wait,
                } => channel.consumer_cancelled(&consumer_tag, consumer.is_some(), no_wait),
                Event::Unwanted {
                    channel,
                    delivery_tag,
                    settling,
                } => channel.unwanted(delivery_tag, settling),
                Event::ConsumerEnded { consumer, error } => match error {
                    Some(error) if self.is_lost() || consumer.outlives(&error) => {
                        consumer.interrupted(&error);
                    }
                    error => consumer.ended(error),
                },
                Event::Returned {
                    channel,
                    sequence_number,
                    message,
                } => {
                    let give_back = || channel.returned(message, sequence_number);
                    self.link.counters.returned(give_back);
                }
                Event::Answered {
                    confirm,
                    sequence_number,
                    outcome,
                } => {
                    let is_returned = matches!(outcome, Outcome::Returned(_));
                    let answer = || confirm.answered(sequence_number, outcome);
                    match is_returned {
                        true => self.link.counters.returned(answer),
                        false => answer(),
                    }
                }
                Event::Lost {
                    published,
                    cause,
                    may_have_been_sent,
                } => {
                    let lost = Unanswered::new(published, cause, may_have_been_sent);
                    match self.is_lost() && lost.can_be_kept() {
                        true => self.unanswered.push(lost),
                        false => lost.lose(),
                    }
                }
                Event::Nacked {
                    channel,
                    sequence_number,
                } => channel.nacked(sequence_number),
                Event::Confirm {
                    channel,
                    answer,
                    sequence_number,
                    answered,
                    answered_to,
                } => {
                    let confirm = || channel.confirm(answer, sequence_number, answered_to);
                    let counters = &self.link.counters;
                    counters.confirmed(answered, answer.nack, confirm);
                }
                Event::MessageTooLarge { channel, size } => channel.message_too_large(size),
                Event::Flow { channel, active } => channel.flow(active),
                Event::ChannelEnded {
                    channel,
                    error,
                    left,
                    owes_close_ok,
                } => match self.is_lost() {
                    true => channel.interrupted(&error, left),
                    false => channel.ended(&error, owes_close_ok),
                },
                Event::ChannelFreed { channel, number } => {
                    // Answered now, though the socket may not take what they belong to for long.
                    for command in self.link.outbox.take_commands_of(number) {
                        self.core.handle(command);
                    }
                    channel.freed();
                }
                Event::Blocked { reason } => {
                    self.link.outbox.set_blocked(Some(reason.clone()));
                    self.link.tell(ConnectionEvent::Blocked {
                        reason: reason.clone(),
                    });
                    let (label, reason) = (self.link.label(), OneLine(reason));
                    log_line!(
                        Warn,
                        label,
                        "the broker has blocked the connection: {reason}"
                    );
                }
                Event::Unblocked => {
                    self.link.outbox.set_blocked(None);
                    self.link.tell(ConnectionEvent::Unblocked);
                    let label = self.link.label();
                    log_line!(Info, label, "the broker has unblocked the connection");
                }
                Event::Ended { error } => self.ended(error),
            }
        }
    }

    fn is_lost(&self) -> bool {
        matches!(self.end, Some(End::Lost(_)))
    }

    fn ended(&mut self, error: Error) {
        let by_us = error.closed_by() == Some(ClosedBy::Program);
        let loss = match self.recovers && !by_us {
            true => self.link.outbox.set_lost(error.clone()),
            false => Loss::None,
        };
        self.end = Some(match loss {
            Loss::New | Loss::Again => End::Lost(error.clone()),
            Loss::None => {
                // Before the outbox is emptied: nothing can be appended from now on.
                self.link.outbox.set_end(error.clone());
                End::Final(error.clone())
            }
        });
        // What was appended just before is answered now, with the same cause: nothing of it was sent.
        for command in self.link.outbox.discard() {
            self.core.handle(command);
        }
        self.closing = if self.core.has_output() {
            Closing::Flushing(now() + LINGER)
        } else {
            Closing::Done
        };
        match loss {
            Loss::New => {
                self.link.tell(ConnectionEvent::Lost {
                    cause: error.clone(),
                });
                log_line!(Warn, self.link.label(), "{error}; it is opened again");
            }
            // The failed attempt is told.
            Loss::Again => {}
            Loss::None => self.link.end(&error),
        }
    }
}

#[allow(clippy::disallowed_methods)] // The core's only source of time.
fn now() -> Instant {
    Instant::now()
}

/// What the IO thread tells the one who brings connections back.
pub(crate) trait Recover: Send + Sync {
    /// Whether connections are brought back at all.
    fn is_on(&self) -> bool;
    /// The connection was lost. False if nobody brings it back.
    fn lost(self: Arc<Self>, link: &Arc<Link>, cause: &Error) -> bool;
    /// It has ended for good.
    fn ended(&self, cause: &Error);
}
