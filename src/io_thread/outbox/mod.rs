//! Where all threads put their frames, and the IO thread takes them.
//!
//! Encoded bytes under one lock: what is appended in one go leaves in one go, so messages of several
//! threads never mix. What depends on the order of frames (sequence numbers, the end of a channel, the commands that
//! announce replies) changes under the same lock.
//!
//! A large message gets a lane of its own beside all others, and so does what follows it on its channel: the IO thread
//! sends it a few frames at a time, so that it does not hold up heartbeats and other channels.

pub(crate) mod send_queue;
pub(crate) mod write_buffer;

use std::convert::Infallible;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use crossbeam_channel::{Receiver, Sender};
use mio::Waker;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::deadline::Deadline;
use super::mailbox::Command;
use super::read_throttle::Waiting;
use crate::error::{blocked, Error, ErrorKind, Result};
use crate::log_line::{log_line, Label};
use crate::stats::ConnectionStats;
use crate::wire::codec::{WireError, WireResult};
use crate::wire::fast_publish::write_plain;
use crate::wire::frame;
use crate::wire::method::{BasicAck, BasicNack, BasicPublish, BasicReject, Encode, MethodId};
use crate::wire::properties::Properties;
use send_queue::Backlog;
use write_buffer::Outgoing;

/// A message whose body is larger goes in a lane, in bytes.
pub(crate) const LARGE: usize = 256 << 10;

/// Copies of messages share a block of this size, in bytes.
const KEPT_TOGETHER: usize = 32 << 10;

/// No epoch.
const NONE: u64 = u64::MAX;

/// Who may append when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// At once: what must not wait, and is little.
    Always,
    /// When there is room.
    Room,
    /// When there is room and the broker takes messages.
    Publish { large: bool },
    /// When there is room, also on a connection that is being recovered: the caller knows what is open there.
    Attached,
    /// At once, and before others may, since it brings back what they need; on this connection and no later one.
    Recovery { epoch: u64 },
}

/// Whether a caller may go on, as far as it knows itself.
pub(crate) enum Gate {
    Open,
    /// Wait until the outbox is notified.
    Shut,
}

/// Whether frames can be sent.
#[derive(Debug)]
enum Phase {
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

/// What the end of a socket means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The connection is lost.
    New,
    /// It was lost before, and an attempt to recover it has failed.
    Again,
    /// It has ended for good.
    None,
}

struct State {
    phase: Phase,
    /// Dropped when the connection ends for good.
    has_not_ended: Option<Sender<Infallible>>,
    /// How often the connection was lost.
    epoch: u64,
    /// The largest payload of a frame on this connection, in bytes.
    payload_limit: usize,
    /// Names this connection in the log.
    label: Label,
    backlog: Backlog,
    /// Copies of messages that may have to be published again are taken from here.
    keeping: BytesMut,
    /// What the core has to know of the frames that the IO thread has not taken, in their order.
    commands: Vec<Command>,
    /// All messages that were appended, in any mode.
    messages: u64,
    /// All answers to deliveries that were appended.
    acks: u64,
    nacks: u64,
    rejects: u64,
    /// The IO thread has nothing to do and sleeps, or is about to.
    asleep: bool,
    blocked: Option<Blocked>,
}

/// `connection.blocked`.
struct Blocked {
    /// The broker's.
    reason: String,
    since: Deadline,
}

impl State {
    /// A method was appended.
    #[inline]
    fn count(&mut self, id: MethodId) {
        // Known when this is compiled: it costs one addition, or nothing.
        match id {
            BasicAck::ID => self.acks += 1,
            BasicNack::ID => self.nacks += 1,
            BasicReject::ID => self.rejects += 1,
            _ => {}
        }
    }
}

impl State {
    fn end(&mut self, error: Error) {
        self.phase = Phase::Ended(error);
        self.has_not_ended = None;
    }
}

pub(crate) struct Outbox {
    state: Mutex<State>,
    /// Notified when there may be room, or nothing to wait for any more.
    changed: Condvar,
    /// Disconnected when the connection has ended for good.
    ended: Receiver<Infallible>,
    /// Publishers who wait for the broker to say that it takes messages again.
    stopped: Waiting,
    waker: Waker,
    /// Whoever closes has waited long enough.
    aborted: AtomicBool,
    /// The epoch whose connection is to be ended: whoever recovers has waited long enough.
    given_up: AtomicU64,
    /// Callers do not wait for a recovery.
    fails_fast: bool,
}

/// A large message as it is sent.
pub(crate) struct Large {
    frames: Vec<u8>,
    properties: Range<usize>,
    /// What it was made for.
    payload_limit: usize,
}

impl Large {
    pub(crate) fn properties(&self) -> &[u8] {
        self.frames.get(self.properties.clone()).unwrap_or_default()
    }

    /// A copy of it.
    pub(crate) fn keep(&self) -> Bytes {
        Bytes::copy_from_slice(&self.frames)
    }
}

/// What a caller can put into the outbox while it holds the lock. All of it is about one channel.
pub(crate) struct Frames<'a> {
    state: &'a mut State,
    channel: u16,
    wake_all: bool,
    /// Where the last message begins.
    start: usize,
}

impl Frames<'_> {
    #[inline]
    fn trace(&self, id: MethodId) {
        log_line!(Trace, self.state.label, "channel {} → {id}", self.channel);
    }

    #[inline]
    pub(crate) fn method<M: Encode>(&mut self, method: &M) -> Result<()> {
        self.trace(M::ID);
        let limit = self.state.payload_limit;
        let target = self.state.backlog.target(self.channel);
        let written = frame::write_method(target, self.channel, method, limit);
        written.map_err(unsendable)?;
        self.state.count(M::ID);
        Ok(())
    }

    /// An answer to the broker, which is so small that it fits into any frame.
    pub(crate) fn answer(&mut self, method: &impl Encode) {
        let written = self.method(method);
        debug_assert!(written.is_ok(), "{written:?}");
    }

    /// A message. Returns its properties as they are sent.
    #[inline]
    pub(crate) fn message(
        &mut self,
        publish: &BasicPublish<'_>,
        properties: Option<&Properties>,
        body: &[u8],
    ) -> Result<&[u8]> {
        self.trace(BasicPublish::ID);
        let limit = self.state.payload_limit;
        let target = self.state.backlog.target(self.channel);
        self.start = target.len();
        let written = write_message(target, self.channel, publish, properties, body, limit);
        let properties = written.map_err(unsendable)?;
        self.state.messages += 1;
        Ok(target.get(properties).unwrap_or_default())
    }

    /// A copy of the message that was appended last.
    pub(crate) fn keep(&mut self) -> Bytes {
        let State {
            backlog, keeping, ..
        } = &mut *self.state;
        let appended = backlog.target(self.channel).get(self.start..);
        let appended = appended.unwrap_or_default();
        if keeping.capacity() < appended.len() {
            // It would grow by just this message, and each would have a block of its own.
            *keeping = BytesMut::with_capacity(KEPT_TOGETHER.max(appended.len()));
        }
        keeping.extend_from_slice(appended);
        keeping.split().freeze()
    }

    /// A message that was encoded before. It goes in a lane.
    pub(crate) fn large(&mut self, large: Large) -> Result<()> {
        self.trace(BasicPublish::ID);
        let limit = self.state.payload_limit;
        let frames = if limit < large.payload_limit {
            frame::cut_smaller(&large.frames, limit).map_err(unsendable)?
        } else {
            large.frames
        };
        self.state.messages += 1;
        self.state.backlog.push_large(self.channel, frames);
        Ok(())
    }

    /// A message that was sent on an earlier connection.
    pub(crate) fn again(&mut self, kept: &[u8]) -> Result<()> {
        self.trace(BasicPublish::ID);
        let limit = self.state.payload_limit;
        let target = self.state.backlog.target(self.channel);
        if frame::fits(kept, limit) {
            target.extend_from_slice(kept);
        } else {
            target.extend(frame::cut_smaller(kept, limit).map_err(unsendable)?);
        }
        Ok(())
    }

    /// How often the connection was lost.
    #[inline]
    pub(crate) fn epoch(&self) -> u64 {
        self.state.epoch
    }

    /// The last method of the connection: behind all that was appended before.
    pub(crate) fn last_method<M: Encode>(&mut self, method: &M) -> Result<()> {
        self.trace(M::ID);
        let limit = self.state.payload_limit;
        let target = self.state.backlog.last_target();
        let written = frame::write_method(target, self.channel, method, limit);
        written.map_err(unsendable)
    }

    /// Tells the core, as soon as what belongs to it is taken: before the reply can come, and in the
    /// order in which the frames were appended.
    #[inline]
    pub(crate) fn command(&mut self, command: Command) {
        self.state.commands.push(command);
    }

    /// Nothing can be appended from now on.
    pub(crate) fn end(&mut self, error: Error) {
        if !matches!(self.state.phase, Phase::Ended(_)) {
            self.state.end(error);
        }
        self.wake_all();
    }

    /// Whoever waits shall look again.
    pub(crate) fn wake_all(&mut self) {
        self.wake_all = true;
    }
}

/// Appends a message or nothing, and returns where its properties stand.
#[inline]
fn write_message(
    buffer: &mut Vec<u8>,
    channel: u16,
    publish: &BasicPublish<'_>,
    properties: Option<&Properties>,
    body: &[u8],
    limit: usize,
) -> WireResult<Range<usize>> {
    if properties.is_none() {
        if let Some(properties) = write_plain(buffer, channel, publish, body, limit) {
            return Ok(properties);
        }
    }
    frame::write_method(buffer, channel, publish, limit)?;
    frame::write_content(buffer, channel, properties, body, limit)
}

/// To count from.
fn now() -> Deadline {
    Deadline::after(Duration::MAX)
}

fn recovering(cause: &Error, after: Duration) -> Error {
    let cause = Box::new(cause.kind().clone());
    Error::new(ErrorKind::Recovering { cause, after })
}

fn unsendable(error: WireError) -> Error {
    let text = match &error {
        WireError::FrameTooLarge { size, limit } => format!(
            "{size} bytes of arguments or headers do not fit into one frame of at most {limit} (frame_max)"
        ),
        other => other.to_string(),
    };
    Error::invalid(text)
}

impl Outbox {
    pub(crate) fn new(waker: Waker, payload_limit: usize, fails_fast: bool, label: Label) -> Self {
        let (has_not_ended, ended) = crossbeam_channel::bounded(0);
        Self {
            state: Mutex::new(State {
                phase: Phase::Open,
                has_not_ended: Some(has_not_ended),
                epoch: 0,
                payload_limit,
                label,
                keeping: BytesMut::new(),
                backlog: Backlog::default(),
                commands: Vec::new(),
                messages: 0,
                acks: 0,
                nacks: 0,
                rejects: 0,
                asleep: false,
                blocked: None,
            }),
            changed: Condvar::new(),
            ended,
            stopped: Waiting::default(),
            waker,
            aborted: AtomicBool::new(false),
            given_up: AtomicU64::new(NONE),
            fails_fast,
        }
    }

    /// Encodes a large message that is to be appended later: doing so under the lock would hold up all others.
    #[cold]
    pub(crate) fn encode_large(
        &self,
        channel: u16,
        publish: &BasicPublish<'_>,
        properties: Option<&Properties>,
        body: &[u8],
    ) -> Result<Large> {
        let mut state = self.state.lock();
        let mut frames = state.backlog.take_spare();
        let limit = state.payload_limit;
        drop(state);
        // Around each piece of the body, a piece being 4 KiB at least; and names and properties.
        frames.reserve(body.len() + body.len() / 256 + 1024);
        let written = write_message(&mut frames, channel, publish, properties, body, limit);
        let properties = written.map_err(unsendable)?;
        Ok(Large {
            frames,
            properties,
            payload_limit: limit,
        })
    }

    /// Appends what `append` writes on a channel, all or nothing, when the caller is admitted and `gate` is open.
    /// Wakes the IO thread only if it sleeps.
    #[inline]
    pub(crate) fn write<T>(
        &self,
        channel: u16,
        admission: Admission,
        patience: impl Into<Patience>,
        gate: impl Fn() -> Result<Gate>,
        append: impl FnOnce(&mut Frames<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut state = self.state.lock();
        self.admit(&mut state, channel, admission, patience, &gate)
            .map_err(Error::unsent)?;
        let start = state.backlog.target(channel).len();
        let first_command = state.commands.len();
        let mut frames = Frames {
            state: &mut state,
            channel,
            wake_all: false,
            start,
        };
        let appended = append(&mut frames);
        let wake_all = frames.wake_all;
        if appended.is_err() {
            Self::undo(state, channel, start, first_command);
            return appended.map_err(Error::unsent);
        }
        let wake = std::mem::take(&mut state.asleep);
        drop(state);
        if wake {
            self.wake();
        }
        if wake_all {
            self.changed.notify_all();
        }
        appended
    }

    /// Drops what was appended before it failed.
    #[cold]
    fn undo(mut state: MutexGuard<'_, State>, channel: u16, start: usize, first_command: usize) {
        state.backlog.target(channel).truncate(start);
        let commands = state.commands.split_off(first_command);
        // Not under the lock: a mailbox can be the last that knows of its channel.
        drop(state);
        drop(commands);
    }

    #[inline]
    fn admit(
        &self,
        state: &mut MutexGuard<'_, State>,
        channel: u16,
        admission: Admission,
        patience: impl Into<Patience>,
        gate: &impl Fn() -> Result<Gate>,
    ) -> Result<()> {
        if self.admits(state, channel, admission, gate)? {
            return Ok(());
        }
        self.wait(state, channel, admission, gate, patience.into().deadline())
    }

    #[inline(always)]
    fn admits(
        &self,
        state: &State,
        channel: u16,
        admission: Admission,
        gate: &impl Fn() -> Result<Gate>,
    ) -> Result<bool> {
        if !matches!(state.phase, Phase::Open) && !self.admits_now(state, admission)? {
            return Ok(false);
        }
        let gate_open = matches!(gate()?, Gate::Open);
        Ok(match admission {
            Admission::Always => true,
            Admission::Recovery { .. } => gate_open,
            Admission::Room | Admission::Attached => {
                gate_open && state.backlog.has_room(channel, false)
            }
            Admission::Publish { large } => {
                gate_open && state.blocked.is_none() && state.backlog.has_room(channel, large)
            }
        })
    }

    /// Whether there is anything for these, when the connection is not open.
    #[cold]
    fn admits_now(&self, state: &State, admission: Admission) -> Result<bool> {
        let (cause, connected) = match &state.phase {
            Phase::Open => return Ok(true),
            Phase::Lost {
                cause, connected, ..
            } => (cause, *connected),
            Phase::Ended(error) => return Err(error.clone()),
        };
        match admission {
            Admission::Always | Admission::Attached => Ok(true),
            Admission::Recovery { epoch } if state.epoch != epoch => Err(cause.clone()),
            Admission::Recovery { .. } => Ok(connected),
            _ if self.fails_fast => Err(recovering(cause, Duration::ZERO)),
            Admission::Room | Admission::Publish { .. } => Ok(false),
        }
    }

    #[cold]
    fn wait(
        &self,
        state: &mut MutexGuard<'_, State>,
        channel: u16,
        admission: Admission,
        gate: &impl Fn() -> Result<Gate>,
        deadline: Deadline,
    ) -> Result<()> {
        while !self.admits(state, channel, admission, gate)? {
            let stopped = state.blocked.is_some() || matches!(gate()?, Gate::Shut);
            let _waits = stopped.then(|| self.stopped.begin());
            let timed_out = self.changed.wait_until(state, deadline.at()).timed_out();
            if timed_out && !self.admits(state, channel, admission, gate)? {
                let stopped = matches!(gate()?, Gate::Shut);
                return Err(Self::no_room(state, admission, stopped, deadline));
            }
        }
        Ok(())
    }

    fn no_room(state: &State, admission: Admission, stopped: bool, deadline: Deadline) -> Error {
        let after = deadline.duration();
        if let Phase::Lost { cause, .. } = &state.phase {
            return recovering(cause, after);
        }
        match &state.blocked {
            _ if stopped => Error::new(ErrorKind::FlowStopped { after }),
            Some(Blocked { reason, .. }) if matches!(admission, Admission::Publish { .. }) => {
                let reason = reason.clone();
                Error::new(ErrorKind::ConnectionBlocked { reason, after })
            }
            _ => Error::new(ErrorKind::OutboxFull { after }),
        }
    }

    fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            let label = self.state.lock().label.clone();
            log_line!(Error, label, "cannot wake the IO thread: {error}");
        }
    }

    /// Why the connection has ended, if it has.
    pub(crate) fn end_cause(&self) -> Option<Error> {
        match &self.state.lock().phase {
            Phase::Ended(cause) => Some(cause.clone()),
            Phase::Open | Phase::Lost { .. } => None,
        }
    }

    /// Why nothing can be sent for now, or for good.
    pub(crate) fn cause(&self) -> Option<Error> {
        self.loss().or_else(|| self.end_cause())
    }

    /// Why the connection is being recovered, if it is.
    pub(crate) fn loss(&self) -> Option<Error> {
        match &self.state.lock().phase {
            Phase::Lost { cause, .. } => Some(cause.clone()),
            Phase::Open | Phase::Ended(_) => None,
        }
    }

    /// As [`loss`](Self::loss), and whether all was there on the connection that was lost.
    pub(crate) fn last_loss(&self) -> Option<(Error, bool)> {
        match &self.state.lock().phase {
            Phase::Lost {
                cause, was_open, ..
            } => Some((cause.clone(), *was_open)),
            Phase::Open | Phase::Ended(_) => None,
        }
    }

    /// Whether the connection is being recovered, and callers do not wait for that.
    pub(crate) fn refuses(&self) -> bool {
        self.fails_fast && self.loss().is_some()
    }

    /// How often the connection was lost.
    pub(crate) fn epoch(&self) -> u64 {
        self.state.lock().epoch
    }

    /// Waits until the connection has ended for good. False if that takes longer.
    pub(crate) fn wait_ended(&self, deadline: Deadline) -> bool {
        let mut state = self.state.lock();
        while !matches!(state.phase, Phase::Ended(_)) {
            let waited = self.changed.wait_until(&mut state, deadline.at());
            if waited.timed_out() {
                return matches!(state.phase, Phase::Ended(_));
            }
        }
        true
    }

    /// A channel for `select!`, which is disconnected when the connection has ended for good.
    pub(crate) fn ended(&self) -> &Receiver<Infallible> {
        &self.ended
    }

    /// What was lost is there again: callers go on, unless it was lost once more. Says whether they do. `tell` is called
    /// before anyone does, and before another loss can be told.
    pub(crate) fn recovered(&self, epoch: u64, tell: impl FnOnce()) -> bool {
        let mut state = self.state.lock();
        let recovered = matches!(state.phase, Phase::Lost { .. }) && state.epoch == epoch;
        if recovered {
            tell();
            state.phase = Phase::Open;
        }
        drop(state);
        self.changed.notify_all();
        recovered
    }

    /// Ends the connection of this epoch, so that another attempt can be made.
    pub(crate) fn give_up(&self, epoch: u64) {
        self.given_up.store(epoch, Ordering::Release);
        self.wake();
    }

    /// Adds what is known here.
    pub(crate) fn add_to(&self, stats: &mut ConnectionStats) {
        let state = self.state.lock();
        stats.messages_published = state.messages;
        stats.acks = state.acks;
        stats.nacks = state.nacks;
        stats.rejects = state.rejects;
        stats.outbox_bytes += state.backlog.len() as u64;
        let blocked = || state.blocked.as_ref().map(|it| it.since.elapsed());
        (stats.blocked_for, stats.lost_for) = match &state.phase {
            Phase::Open => (blocked(), None),
            Phase::Lost { since, .. } => (blocked(), Some(since.elapsed())),
            Phase::Ended(_) => (None, None),
        };
    }

    pub(crate) fn blocked_reason(&self) -> Option<String> {
        let state = self.state.lock();
        state.blocked.as_ref().map(|it| it.reason.clone())
    }

    /// Says so in a timeout if the broker has blocked the connection: it reads nothing from it then, and answers nothing.
    pub(crate) fn explained(&self, error: Error) -> Error {
        let says_so = matches!(error.kind(), ErrorKind::ConnectionBlocked { .. });
        if says_so || !error.is_timeout() {
            return error;
        }
        match self.blocked_reason() {
            Some(reason) => error.noting(blocked(&reason)),
            None => error,
        }
    }

    /// Ends the connection without another word, even if the socket takes nothing.
    pub(crate) fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
        self.wake();
    }

    // ---- the IO thread's side ----

    pub(crate) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    /// Whether someone waits for the broker to say that it takes messages again.
    pub(crate) fn stops_publishers(&self) -> bool {
        self.stopped.any()
    }

    /// Runs `change` under the lock, then lets everyone who waits look again.
    pub(crate) fn change<T>(&self, change: impl FnOnce() -> T) -> T {
        let state = self.state.lock();
        let result = change();
        drop(state);
        self.changed.notify_all();
        result
    }

    /// Runs `change` as [`change`](Self::change) does, and sends what it answers to the broker: so
    /// the answer stands before or after what the handles append, just as they see the change.
    pub(crate) fn answer<T>(&self, channel: u16, change: impl FnOnce(&mut Frames<'_>) -> T) -> T {
        let mut state = self.state.lock();
        let start = state.backlog.target(channel).len();
        let mut frames = Frames {
            state: &mut state,
            channel,
            wake_all: false,
            start,
        };
        let result = change(&mut frames);
        if let Phase::Ended(_) = state.phase {
            // Nothing follows connection.close.
            state.backlog.target(channel).truncate(start);
        }
        drop(state);
        self.changed.notify_all();
        result
    }

    /// Whether there are calls that the core does not know of.
    pub(crate) fn has_calls(&self) -> bool {
        self.state.lock().commands.iter().any(Command::awaits_reply)
    }

    pub(crate) fn set_blocked(&self, reason: Option<String>) {
        let mut state = self.state.lock();
        let before = state.blocked.take();
        state.blocked = reason.map(|reason| Blocked {
            reason,
            since: before.map_or_else(now, |it| it.since),
        });
        drop(state);
        self.changed.notify_all();
    }

    /// This is what everyone who waits is told. When closes cross, it takes the place of our own reason.
    pub(crate) fn set_end(&self, error: Error) {
        self.state.lock().end(error);
        self.changed.notify_all();
    }

    /// Callers wait from now on, unless the connection has ended for good.
    pub(crate) fn set_lost(&self, error: Error) -> Loss {
        let mut state = self.state.lock();
        let lost = match &state.phase {
            Phase::Open => Loss::New,
            Phase::Lost { .. } => Loss::Again,
            Phase::Ended(_) => Loss::None,
        };
        if lost != Loss::None {
            let (since, was_open) = match &state.phase {
                // It has not come back in between.
                Phase::Lost { since, .. } => (*since, false),
                Phase::Open | Phase::Ended(_) => (now(), true),
            };
            state.phase = Phase::Lost {
                cause: error,
                connected: false,
                since,
                was_open,
            };
            state.epoch += 1;
        }
        state.blocked = None;
        drop(state);
        self.changed.notify_all();
        lost
    }

    /// Begins with the connection that follows a lost one. Returns why not, if all has ended.
    pub(crate) fn begin(&self, payload_limit: usize, label: Label) -> Result<()> {
        let mut state = self.state.lock();
        state.label = label;
        state.payload_limit = payload_limit;
        state.backlog = Backlog::default();
        let stale = std::mem::take(&mut state.commands);
        match &mut state.phase {
            Phase::Ended(cause) => return Err(cause.clone()),
            Phase::Lost { connected, .. } => *connected = true,
            Phase::Open => {}
        }
        drop(state);
        drop(stale);
        self.changed.notify_all();
        Ok(())
    }

    /// Whether this connection is to be ended; told once.
    pub(crate) fn take_given_up(&self) -> bool {
        let is_any = self.given_up.load(Ordering::Acquire) != NONE;
        if !is_any {
            return false;
        }
        let given_up = self.given_up.swap(NONE, Ordering::AcqRel);
        let state = self.state.lock();
        // The program may have closed the connection meanwhile, and the broker is to hear of that.
        given_up == state.epoch && !matches!(state.phase, Phase::Ended(_))
    }

    /// Appends what the core itself has to say.
    pub(crate) fn append(&self, take_output: impl FnOnce(&mut Vec<u8>)) {
        self.state.lock().backlog.append(take_output);
    }

    /// Drops all that was not taken, and returns the commands for it: it will never be sent.
    pub(crate) fn discard(&self) -> Vec<Command> {
        let mut state = self.state.lock();
        state.backlog = Backlog::default();
        std::mem::take(&mut state.commands)
    }

    /// Takes the commands of one channel.
    pub(crate) fn take_commands_of(&self, channel: u16) -> Vec<Command> {
        let mut state = self.state.lock();
        let commands = std::mem::take(&mut state.commands);
        let is_its = |it: &Command| it.channel() == channel;
        let (its, others) = commands.into_iter().partition(is_its);
        state.commands = others;
        its
    }

    /// Takes all that was appended, and the commands for it. If nothing is left to write, the next
    /// one who appends wakes the IO thread.
    pub(crate) fn take(&self, outgoing: &mut Outgoing, commands: &mut Vec<Command>) {
        let mut state = self.state.lock();
        std::mem::swap(&mut state.commands, commands);
        state.backlog.move_to(outgoing);
        state.asleep = outgoing.is_empty();
        drop(state);
        self.changed.notify_all();
    }

    pub(crate) fn give_memory_back(&self) {
        let mut state = self.state.lock();
        state.backlog.give_memory_back();
        state.commands.shrink_to_fit();
        state.keeping = BytesMut::new();
    }
}

/// How long to wait, made into a deadline only when waiting begins: most callers never wait, and the clock costs.
pub(crate) enum Patience {
    Begun(Deadline),
    NotBegun(Duration),
}

impl Patience {
    pub(crate) fn deadline(self) -> Deadline {
        match self {
            Self::Begun(deadline) => deadline,
            Self::NotBegun(after) => Deadline::after(after),
        }
    }
}

impl From<Deadline> for Patience {
    fn from(deadline: Deadline) -> Self {
        Self::Begun(deadline)
    }
}

impl From<Duration> for Patience {
    fn from(after: Duration) -> Self {
        Self::NotBegun(after)
    }
}

#[cfg(test)]
mod tests {
    use super::super::mailbox::Call;
    use super::*;
    use crate::proto::Expected;
    use crate::wire::method::{BasicQos, BasicQosOk};

    fn outbox() -> Outbox {
        let poll = mio::Poll::new().unwrap();
        let waker = Waker::new(poll.registry(), mio::Token(0)).unwrap();
        Outbox::new(waker, 4096, false, Label::new("test", "nowhere"))
    }

    fn append_call(frames: &mut Frames<'_>) -> Result<()> {
        frames.method(&BasicQos::default())?;
        frames.command(Command::Call {
            channel: 1,
            expected: Expected::Method(BasicQosOk::ID),
            call: Call::of_nobody(),
        });
        Ok(())
    }

    #[test]
    fn what_could_not_be_appended_to_its_end_leaves_nothing() {
        let outbox = outbox();
        let write = |append: &dyn Fn(&mut Frames<'_>) -> Result<()>| {
            let gate = || Ok(Gate::Open);
            outbox.write(1, Admission::Room, Duration::ZERO, gate, append)
        };
        write(&append_call).unwrap();
        let error = write(&|frames| {
            append_call(frames)?;
            Err(Error::invalid("too large"))
        });
        assert!(!error.unwrap_err().may_have_been_sent());
        let (mut outgoing, mut commands) = (Outgoing::default(), Vec::new());
        outbox.take(&mut outgoing, &mut commands);
        assert_eq!(commands.len(), 1);
        assert_eq!(frame::whole(outgoing.front()).count(), 1);
    }

    #[test]
    fn the_commands_of_one_channel_are_taken_in_their_order() {
        let outbox = outbox();
        for channel in [1, 2, 1] {
            let gate = || Ok(Gate::Open);
            let close = |frames: &mut Frames<'_>| {
                let reason = crate::error::CloseReason::program("");
                frames.command(Command::CloseChannel {
                    channel,
                    reason,
                    call: None,
                });
                Ok(())
            };
            let admission = Admission::Room;
            outbox
                .write(channel, admission, Duration::ZERO, gate, close)
                .unwrap();
        }
        assert_eq!(outbox.take_commands_of(1).len(), 2);
        let left = outbox.discard();
        assert_eq!(left.iter().map(Command::channel).collect::<Vec<_>>(), [2]);
    }
}
