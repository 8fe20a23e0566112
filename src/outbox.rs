//! Where all threads put their frames, and the IO thread takes them.
//!
//! Encoded bytes under one lock: what is appended in one go leaves in one go, so messages of several
//! threads never mix. What depends on the order of frames (sequence numbers, the end of a channel, the commands that
//! announce replies) changes under the same lock.
//!
//! A large message gets a lane of its own beside all others, and so does what follows it on its channel: the IO thread
//! sends it a few frames at a time, so that it does not hold up heartbeats and other channels.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::Sender;
use mio::Waker;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::backlog::Backlog;
use crate::deadline::Deadline;
use crate::error::{Error, ErrorKind, Result};
use crate::mailbox::{Command, Published};
use crate::outgoing::Outgoing;
use crate::reading::Waiting;
use crate::wire::codec::{WireError, WireResult};
use crate::wire::frame;
use crate::wire::method::{BasicPublish, Encode};
use crate::wire::properties::Properties;

/// A message whose body is larger goes in a lane, in bytes.
pub(crate) const LARGE: usize = 256 << 10;

/// Who may append when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// At once: what must not wait, and is little.
    Always,
    /// When there is room.
    Room,
    /// When there is room and the broker takes messages.
    Publish { large: bool },
}

/// Whether a caller may go on, as far as it knows itself.
pub(crate) enum Gate {
    Open,
    /// Wait until the outbox is notified.
    Shut,
}

struct State {
    backlog: Backlog,
    /// The messages of which the core has not been told.
    published: Vec<Published>,
    /// How many commands belong to what the IO thread has not taken.
    commands: usize,
    /// All messages that were appended, in any mode.
    messages: u64,
    /// The IO thread has nothing to do and sleeps, or is about to.
    asleep: bool,
    /// `connection.blocked`, with the broker's reason.
    blocked: Option<String>,
    /// The first cause of the connection's end.
    end: Option<Error>,
}

pub(crate) struct Outbox {
    state: Mutex<State>,
    /// Notified when there may be room, or nothing to wait for any more.
    changed: Condvar,
    /// Publishers who wait for the broker to say that it takes messages again.
    stopped: Waiting,
    commands: Sender<Command>,
    waker: Waker,
    /// Whoever closes has waited long enough.
    aborted: AtomicBool,
    payload_limit: usize,
}

/// A large message as it is sent.
pub(crate) struct Large {
    frames: Vec<u8>,
    properties: Range<usize>,
}

impl Large {
    pub(crate) fn properties(&self) -> &[u8] {
        self.frames.get(self.properties.clone()).unwrap_or_default()
    }
}

/// What a caller can put into the outbox while it holds the lock. All of it is about one channel.
pub(crate) struct Frames<'a> {
    state: &'a mut State,
    channel: u16,
    commands: &'a Sender<Command>,
    payload_limit: usize,
    wake_all: bool,
}

impl Frames<'_> {
    #[inline]
    pub(crate) fn method(&mut self, method: &impl Encode) -> Result<()> {
        let target = self.state.backlog.target(self.channel);
        let written = frame::write_method(target, self.channel, method, self.payload_limit);
        written.map_err(unsendable)
    }

    /// A message. Returns its properties as they are sent.
    #[inline]
    pub(crate) fn message(
        &mut self,
        publish: &BasicPublish<'_>,
        properties: Option<&Properties>,
        body: &[u8],
    ) -> Result<&[u8]> {
        let target = self.state.backlog.target(self.channel);
        let limit = self.payload_limit;
        let written = write_message(target, self.channel, publish, properties, body, limit);
        let properties = written.map_err(unsendable)?;
        self.state.messages += 1;
        let target = self.state.backlog.target(self.channel);
        Ok(target.get(properties).unwrap_or_default())
    }

    /// A message that was encoded before. It goes in a lane.
    pub(crate) fn large(&mut self, large: Large) {
        self.state.messages += 1;
        self.state.backlog.push_large(self.channel, large.frames);
    }

    /// Tells the core of a message in confirm mode: before the answer can come, and in order.
    #[inline]
    pub(crate) fn published(&mut self, published: Published) {
        self.state.published.push(published);
    }

    /// The last method of the connection: behind all that was appended before.
    pub(crate) fn last_method(&mut self, method: &impl Encode) -> Result<()> {
        let target = self.state.backlog.last_target();
        let written = frame::write_method(target, self.channel, method, self.payload_limit);
        written.map_err(unsendable)
    }

    /// Tells the core, as soon as what belongs to it is taken: before the reply can come.
    pub(crate) fn command(&mut self, command: Command) {
        self.state.commands += 1;
        // The receiver goes away only after `end` was set, which is checked before anything is appended.
        let _ = self.commands.send(command);
    }

    /// Nothing can be appended from now on.
    pub(crate) fn end(&mut self, error: Error) {
        self.state.end.get_or_insert(error);
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
    frame::write_method(buffer, channel, publish, limit)?;
    frame::write_content(buffer, channel, properties, body, limit)
}

fn unsendable(error: WireError) -> Error {
    let text = match &error {
        WireError::FrameTooLarge { size, limit } => format!(
            "{size} bytes of arguments or headers do not fit into one frame of at most {limit} (frame_max)"
        ),
        other => other.to_string(),
    };
    Error::invalid(text).caused_by(error)
}

impl Outbox {
    pub(crate) fn new(commands: Sender<Command>, waker: Waker, payload_limit: usize) -> Self {
        Self {
            state: Mutex::new(State {
                backlog: Backlog::default(),
                published: Vec::new(),
                commands: 0,
                messages: 0,
                asleep: false,
                blocked: None,
                end: None,
            }),
            changed: Condvar::new(),
            stopped: Waiting::default(),
            commands,
            waker,
            aborted: AtomicBool::new(false),
            payload_limit,
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
        let mut frames = self.state.lock().backlog.take_spare();
        // Around each piece of the body, a piece being 4 KiB at least; and names and properties.
        frames.reserve(body.len() + body.len() / 256 + 1024);
        let limit = self.payload_limit;
        let written = write_message(&mut frames, channel, publish, properties, body, limit);
        let properties = written.map_err(unsendable)?;
        Ok(Large { frames, properties })
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
        let mut frames = Frames {
            state: &mut state,
            channel,
            commands: &self.commands,
            payload_limit: self.payload_limit,
            wake_all: false,
        };
        let appended = append(&mut frames);
        let wake_all = frames.wake_all;
        if appended.is_err() {
            state.backlog.target(channel).truncate(start);
        }
        let wake = std::mem::take(&mut state.asleep);
        drop(state);
        if wake {
            self.wake();
        }
        if wake_all {
            self.changed.notify_all();
        }
        appended.map_err(Error::unsent)
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
        if Self::admits(state, channel, admission, gate)? {
            return Ok(());
        }
        self.wait(state, channel, admission, gate, patience.into().deadline())
    }

    #[inline]
    fn admits(
        state: &State,
        channel: u16,
        admission: Admission,
        gate: &impl Fn() -> Result<Gate>,
    ) -> Result<bool> {
        if let Some(error) = &state.end {
            return Err(error.clone());
        }
        let gate_open = matches!(gate()?, Gate::Open);
        Ok(match admission {
            Admission::Always => true,
            Admission::Room => gate_open && state.backlog.has_room(channel, false),
            Admission::Publish { large } => {
                gate_open && state.blocked.is_none() && state.backlog.has_room(channel, large)
            }
        })
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
        while !Self::admits(state, channel, admission, gate)? {
            let stopped = state.blocked.is_some() || matches!(gate()?, Gate::Shut);
            let _waits = stopped.then(|| self.stopped.begin());
            let timed_out = self.changed.wait_until(state, deadline.at()).timed_out();
            if timed_out && !Self::admits(state, channel, admission, gate)? {
                let stopped = matches!(gate()?, Gate::Shut);
                return Err(Self::no_room(state, admission, stopped, deadline));
            }
        }
        Ok(())
    }

    fn no_room(state: &State, admission: Admission, stopped: bool, deadline: Deadline) -> Error {
        let after = deadline.duration();
        match &state.blocked {
            _ if stopped => Error::new(ErrorKind::FlowStopped { after }),
            Some(reason) if matches!(admission, Admission::Publish { .. }) => {
                let reason = reason.clone();
                Error::new(ErrorKind::ConnectionBlocked { reason, after })
            }
            _ => Error::new(ErrorKind::OutboxFull { after }),
        }
    }

    fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            log::error!("cannot wake the IO thread: {error}");
        }
    }

    /// Why the connection has ended, if it has.
    pub(crate) fn end_cause(&self) -> Option<Error> {
        self.state.lock().end.clone()
    }

    pub(crate) fn messages_published(&self) -> u64 {
        self.state.lock().messages
    }

    pub(crate) fn blocked_reason(&self) -> Option<String> {
        self.state.lock().blocked.clone()
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

    pub(crate) fn set_blocked(&self, reason: Option<String>) {
        self.state.lock().blocked = reason;
        self.changed.notify_all();
    }

    /// This is what everyone who waits is told. When closes cross, it takes the place of our own reason.
    pub(crate) fn set_end(&self, error: Error) {
        self.state.lock().end = Some(error);
        self.changed.notify_all();
    }

    /// Appends what the core has to say.
    pub(crate) fn append(&self, take_output: impl FnOnce(&mut Vec<u8>)) {
        self.state.lock().backlog.append(take_output);
    }

    /// Drops all that was not taken, and returns the messages in it: they will never be sent.
    pub(crate) fn discard(&self) -> Vec<Published> {
        let mut state = self.state.lock();
        state.backlog = Backlog::default();
        std::mem::take(&mut state.published)
    }

    /// Takes those of one channel.
    pub(crate) fn take_published_on(&self, channel: u16) -> Vec<Published> {
        let mut state = self.state.lock();
        let published = std::mem::take(&mut state.published);
        let (theirs, others) = published.into_iter().partition(|it| it.channel == channel);
        state.published = others;
        theirs
    }

    /// Takes all that was appended, and the messages in it, and returns how many commands belong to it. If nothing is
    /// left to write, the next one who appends wakes the IO thread.
    pub(crate) fn take(&self, outgoing: &mut Outgoing, published: &mut Vec<Published>) -> usize {
        let mut state = self.state.lock();
        std::mem::swap(&mut state.published, published);
        let commands = std::mem::take(&mut state.commands);
        state.backlog.move_to(outgoing);
        state.asleep = outgoing.is_empty();
        drop(state);
        self.changed.notify_all();
        commands
    }
}

/// How long to wait, made into a deadline only when waiting begins: most callers never wait, and the clock costs.
pub(crate) enum Patience {
    Begun(Deadline),
    NotBegun(std::time::Duration),
}

impl Patience {
    fn deadline(self) -> Deadline {
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

impl From<std::time::Duration> for Patience {
    fn from(after: std::time::Duration) -> Self {
        Self::NotBegun(after)
    }
}
