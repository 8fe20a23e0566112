//! The outbox: all threads append encoded frames to it, and the IO thread takes and writes them.
//!
//! One lock guards the bytes. What is appended in one go is sent in one go, so messages of several
//! threads never mix. The same lock guards all that depends on the order of frames: the state of
//! each channel, and the commands that announce replies. The outbox knows frames, and whether the
//! connection is open, lost or ended. It must not know the socket or a handle: a caller says with
//! an [`Admission`] when it may append.
//!
//! A large message goes into a lane, and so does what follows it on its channel. The IO thread
//! sends a lane a few frames at a time, so heartbeats and other channels need not wait for it.
//!
//! Where to look:
//!
//! - `admission`: when a caller may append; `back_pressure`: where it waits until then;
//! - `frames`: what a caller can append; `state`: what the lock guards;
//! - `channel`: the state of one channel; `channels` finds it; `channel_numbers` allocates numbers;
//! - `flush`: where it waits until the socket has what it appended;
//! - `phase`: whether the connection is open, lost or ended;
//! - `send_queue`: what waits to be taken; `write_buffer`: what the IO thread is writing.

mod admission;
mod back_pressure;
pub(crate) mod channel;
mod channel_numbers;
pub(crate) mod channels;
mod flush;
mod frames;
mod phase;
pub(crate) mod send_queue;
mod state;
pub(crate) mod write_buffer;

use std::convert::Infallible;
use std::process;
use std::sync::Arc;

use bytes::BytesMut;
use crossbeam_channel::Receiver;

use super::mailbox::Command;
use super::peer::Peer;
use super::waiters::Waiters;
use crate::error::{blocked, Error, ErrorKind, Result};
use crate::log_line::log_line;
use crate::stats::ConnectionStats;
use crate::sync::{AtomicBool, AtomicU64, Condvar, Mutex, MutexGuard, Waker};
use crate::wire::method::BasicPublish;
use crate::wire::properties::Properties;
pub(crate) use admission::Admission;
pub(crate) use back_pressure::Timeout;
use channel::Channel;
use channel_numbers::ChannelNumbers;
pub(crate) use channels::CONNECTION;
use channels::{ChannelId, Channels};
use frames::{unsendable, write_message};
pub(crate) use frames::{Frames, Large};
use phase::now;
pub(crate) use phase::Loss;
use send_queue::SendQueue;
use state::{Blocked, Phase, State};
use write_buffer::WriteBuffer;

/// A message with a larger body, in bytes, goes into a lane.
pub(crate) const LARGE: usize = 256 << 10;

/// No epoch.
const NONE: u64 = u64::MAX;

pub(crate) struct Outbox {
    state: Mutex<State>,
    /// Notified when a waiting caller may be admitted, or must fail.
    changed: Condvar,
    /// Disconnected when the connection has ended for good.
    ended: Receiver<Infallible>,
    /// Threads that wait until the broker takes messages again.
    stopped: Waiters,
    waker: Waker,
    /// Set when `close` timed out: drop the socket without a clean close.
    aborted: AtomicBool,
    /// The epoch of the connection that the recovery gives up, so that it can make a new attempt.
    abandoned: AtomicU64,
    /// The process whose IO thread takes the frames.
    process: u32,
    /// Callers fail at once during a recovery rather than wait for its end.
    fails_fast: bool,
}

impl Outbox {
    pub(crate) fn new(waker: Waker, peer: Arc<Peer>, fails_fast: bool) -> Self {
        let (has_not_ended, ended) = crossbeam_channel::bounded(0);
        Self {
            state: Mutex::new(State {
                phase: Phase::Open,
                has_not_ended: Some(has_not_ended),
                epoch: 0,
                payload_limit: peer.tuning.payload_limit(),
                channels: Channels::new(),
                channel_numbers: ChannelNumbers::new(peer.tuning.highest_channel()),
                peer,
                keeping: BytesMut::new(),
                send_queue: SendQueue::default(),
                commands: Vec::new(),
                calls: 0,
                messages: 0,
                acks: 0,
                nacks: 0,
                rejects: 0,
                asleep: false,
                blocked: None,
                finished: false,
            }),
            changed: Condvar::new(),
            ended,
            stopped: Waiters::default(),
            waker,
            aborted: AtomicBool::new(false),
            abandoned: AtomicU64::new(NONE),
            process: process::id(),
            fails_fast,
        }
    }

    /// Encodes a large message to be appended later: encoding under the lock would hold up others.
    #[cold]
    pub(crate) fn encode_large(
        &self,
        channel: u16,
        publish: &BasicPublish<'_>,
        properties: Option<&Properties>,
        body: &[u8],
    ) -> Result<Large> {
        let mut state = self.state.lock();
        let mut frames = state.send_queue.take_spare();
        let limit = state.payload_limit;
        drop(state);
        // Room for a frame header per piece of the body (at least 4 KiB), names and properties.
        frames.reserve(body.len() + body.len() / 256 + 1024);
        let written = write_message(&mut frames, channel, publish, properties, body, limit);
        let properties = written.map_err(unsendable)?;
        Ok(Large {
            frames,
            properties,
            payload_limit: limit,
        })
    }

    /// Appends what `append` writes on a channel, all or nothing. First waits up to `timeout`
    /// until the caller is admitted. Wakes the IO thread only if it sleeps.
    #[inline]
    pub(crate) fn write<T>(
        &self,
        channel: ChannelId,
        admission: Admission,
        timeout: impl Into<Timeout>,
        append: impl FnOnce(&mut Frames<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut state = self.state.lock();
        self.admit(&mut state, channel, admission, timeout)
            .map_err(Error::unsent)?;
        let start = state.send_queue.target(channel.number).len();
        let first_command = state.commands.len();
        let mut frames = Frames {
            state: &mut state,
            id: channel,
            wake_all: false,
            start,
        };
        let appended = append(&mut frames);
        let wake_all = frames.wake_all;
        if appended.is_err() {
            Self::undo(state, channel.number, start, first_command);
            return appended.map_err(Error::unsent);
        }
        let wake = std::mem::take(&mut state.asleep);
        drop(state);
        if wake {
            self.wake_for_caller()?;
        }
        if wake_all {
            self.changed.notify_all();
        }
        appended
    }

    /// Takes back what a failed `append` has written.
    #[cold]
    fn undo(mut state: MutexGuard<'_, State>, channel: u16, start: usize, first_command: usize) {
        state.send_queue.target(channel).truncate(start);
        let commands = state.commands.split_off(first_command);
        // Not under the lock: dropping a mailbox can drop its channel, which then sends its close.
        drop(state);
        drop(commands);
    }

    #[cold] // Inlined, this costs 2 % of a publish.
    fn wake_for_caller(&self) -> Result<()> {
        if let Err(forked) = self.check_process() {
            // Later callers would not wake the IO thread, and so not notice.
            self.set_end(forked.clone());
            return Err(forked.unsent());
        }
        self.wake();
        Ok(())
    }

    fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            let peer = self.peer();
            log_line!(Error, peer.label, "cannot wake the IO thread: {error}");
        }
    }

    /// Fails in a fork of the process, which has no IO thread. Costs a system call, so it is called
    /// only where a caller waits anyway. Takes no lock: a thread that exists only in the parent can
    /// hold it forever.
    pub(crate) fn check_process(&self) -> Result<()> {
        match self.process == process::id() {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Forked)),
        }
    }

    /// Adds the numbers that the outbox counts.
    pub(crate) fn add_to(&self, stats: &mut ConnectionStats) {
        let state = self.state.lock();
        stats.channels = state.channel_numbers.in_use();
        stats.messages_published = state.messages;
        stats.acks = state.acks;
        stats.nacks = state.nacks;
        stats.rejects = state.rejects;
        stats.outbox_bytes += state.send_queue.len() as u64;
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

    /// Notes in a timeout's error if the broker has blocked the connection. RabbitMQ then reads
    /// nothing from the connection, and so answers nothing.
    pub(crate) fn explained(&self, error: Error) -> Error {
        let is_explained = matches!(error.kind(), ErrorKind::ConnectionBlocked { .. });
        if is_explained || !error.is_timeout() {
            return error;
        }
        match self.blocked_reason() {
            Some(reason) => error.noting(blocked(&reason)),
            None => error,
        }
    }

    /// Reads the state of a channel, or changes what no caller waits for.
    pub(crate) fn channel<T>(&self, id: ChannelId, look: impl FnOnce(&mut Channel) -> T) -> T {
        look(self.state.lock().channels.get_mut(id))
    }

    // ---- the IO thread's side ----

    /// Whether a thread waits until the broker takes messages again.
    pub(crate) fn stops_publishers(&self) -> bool {
        self.stopped.any()
    }

    /// Changes the state of a channel under the lock, sends the frames that `change` appends, and
    /// wakes all waiting callers to check again. So an answer to the broker comes after the frames
    /// of handles that did not see the change yet, and before those of handles that did.
    pub(crate) fn change<T>(
        &self,
        channel: ChannelId,
        change: impl FnOnce(&mut Frames<'_>) -> T,
    ) -> T {
        let mut state = self.state.lock();
        let start = state.send_queue.target(channel.number).len();
        let mut frames = Frames {
            state: &mut state,
            id: channel,
            wake_all: false,
            start,
        };
        let result = change(&mut frames);
        if let Phase::Ended(_) = state.phase {
            // Nothing follows connection.close.
            state.send_queue.target(channel.number).truncate(start);
        }
        drop(state);
        self.changed.notify_all();
        result
    }

    /// Whether calls wait in the outbox, which the core does not know yet.
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

    /// Appends frames of the core itself.
    pub(crate) fn append(&self, take_output: impl FnOnce(&mut Vec<u8>)) {
        self.state.lock().send_queue.append(take_output);
    }

    /// Drops all frames that were not taken, and returns their commands. These frames are never
    /// sent.
    pub(crate) fn discard(&self) -> Vec<Command> {
        let mut state = self.state.lock();
        state.send_queue = SendQueue::default();
        std::mem::take(&mut state.commands)
    }

    /// Takes the commands of one channel, in their order.
    pub(crate) fn take_commands_of(&self, channel: u16) -> Vec<Command> {
        let mut state = self.state.lock();
        let commands = std::mem::take(&mut state.commands);
        let is_of_channel = |it: &Command| it.channel() == channel;
        let (taken, others) = commands.into_iter().partition(is_of_channel);
        state.commands = others;
        taken
    }

    /// Takes the frames that were appended, and their commands. If nothing is left to write, the
    /// next caller that appends wakes the IO thread.
    pub(crate) fn take(&self, write_buffer: &mut WriteBuffer, commands: &mut Vec<Command>) {
        let mut state = self.state.lock();
        std::mem::swap(&mut state.commands, commands);
        state.send_queue.move_to(write_buffer);
        state.asleep = write_buffer.is_empty();
        drop(state);
        self.changed.notify_all();
    }

    pub(crate) fn shrink(&self) {
        let mut state = self.state.lock();
        state.send_queue.shrink();
        state.commands.shrink_to_fit();
        state.keeping = BytesMut::new();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::deadline::Deadline;
    use super::super::mailbox::Call;
    use super::*;
    use crate::proto::{Expected, Tuning};
    use crate::wire::frame;
    use crate::wire::method::{BasicQos, BasicQosOk, Encode, Method, TxSelect};

    fn outbox() -> Outbox {
        let poll = mio::Poll::new().unwrap();
        let waker = Waker::new(poll.registry(), mio::Token(0)).unwrap();
        Outbox::new(waker, Peer::nameless(Tuning::BEFORE), false)
    }

    fn append_call(frames: &mut Frames<'_>) -> Result<()> {
        frames.method(&BasicQos::default())?;
        frames.expect(Expected::Method(BasicQosOk::ID), Call::unawaited());
        Ok(())
    }

    #[test]
    fn a_failed_append_leaves_no_frame_and_no_command() {
        let outbox = outbox();
        let one = outbox.add_channel(Deadline::after(Duration::ZERO)).unwrap();
        let write = |append: &dyn Fn(&mut Frames<'_>) -> Result<()>| {
            outbox.write(one.id, Admission::Room, Duration::ZERO, append)
        };
        write(&append_call).unwrap();
        let error = write(&|frames| {
            append_call(frames)?;
            Err(Error::invalid("too large"))
        });
        assert!(!error.unwrap_err().may_have_been_sent());
        let (mut write_buffer, mut commands) = (WriteBuffer::default(), Vec::new());
        outbox.take(&mut write_buffer, &mut commands);
        assert_eq!(commands.len(), 1);
        assert_eq!(frame::whole(write_buffer.front()).count(), 1);
    }

    /// The channel hears of the loss a little later.
    #[test]
    fn a_channel_is_not_open_once_its_connection_is_lost() {
        let outbox = outbox();
        let owned = outbox.add_channel(Deadline::after(Duration::ZERO)).unwrap();
        let is_open = |outbox: &Outbox| outbox.change(owned.id, |frames| frames.is_open());
        assert!(!is_open(&outbox));
        let epoch = outbox.epoch();
        outbox.channel(owned.id, |channel| channel.opened(epoch));
        assert!(is_open(&outbox));
        outbox.set_lost(Error::invalid("lost"));
        assert!(!is_open(&outbox));
    }

    #[test]
    fn an_ack_that_is_not_sent_tears_the_transaction_before_the_channel_hears_of_the_loss() {
        let outbox = outbox();
        let owned = outbox.add_channel(Deadline::after(Duration::ZERO)).unwrap();
        outbox.channel(owned.id, |channel| {
            channel.opened(0);
            channel.done(&Method::TxSelect(TxSelect {}));
        });
        outbox.set_lost(Error::invalid("lost"));
        outbox.change(owned.id, |frames| frames.answer_not_sent(None));
        let torn_by = outbox.channel(owned.id, Channel::end_transaction);
        let lost = Error::invalid("lost").to_string();
        assert_eq!(torn_by.map(|it| it.to_string()), Some(lost));
    }

    #[test]
    fn a_fork_of_the_process_gets_an_error() {
        let mut outbox = outbox();
        outbox.process = 0;
        let (mut write_buffer, mut commands) = (WriteBuffer::default(), Vec::new());
        // The IO thread of the parent is asleep.
        outbox.take(&mut write_buffer, &mut commands);
        let patience = Duration::from_secs(20);
        for _ in 0..2 {
            let written = outbox.write(CONNECTION, Admission::Room, patience, append_call);
            let error = written.unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Forked), "{error}");
            assert!(!error.may_have_been_sent() && error.is_connection_end());
        }
    }

    #[test]
    fn calls_are_numbered_in_the_order_of_their_frames() {
        let outbox = outbox();
        for last_call in 0..3 {
            let write = |frames: &mut Frames<'_>| {
                assert_eq!(frames.last_call(), last_call);
                append_call(frames)
            };
            let admission = Admission::Room;
            outbox
                .write(CONNECTION, admission, Duration::ZERO, write)
                .unwrap();
        }
        assert!(outbox.has_calls());
        let numbers = outbox.discard().into_iter().map(|mut it| {
            let call = it.call_mut();
            call.map(|it| it.number)
        });
        assert_eq!(numbers.collect::<Vec<_>>(), [1, 2, 3].map(Some));
    }

    #[test]
    fn the_commands_of_one_channel_are_taken_in_their_order() {
        let outbox = outbox();
        let added = || outbox.add_channel(Deadline::after(Duration::ZERO)).unwrap();
        let [one, two] = [added(), added()];
        for id in [one.id, two.id, one.id] {
            let channel = id.number;
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
            outbox.write(id, admission, Duration::ZERO, close).unwrap();
        }
        assert!(!outbox.has_calls(), "no one waits for these closes");
        assert_eq!(outbox.take_commands_of(1).len(), 2);
        let left = outbox.discard();
        assert_eq!(left.iter().map(Command::channel).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn a_channel_number_is_waited_for_while_a_channel_is_closing() {
        let outbox = &outbox();
        outbox.state.lock().channel_numbers = ChannelNumbers::new(1);
        let soon = || Deadline::after(Duration::from_secs(20));
        let first = outbox.add_channel(soon()).unwrap();
        // No channel is closing, so it does not wait.
        assert!(outbox.add_channel(soon()).is_none());
        outbox.change(first.id, |frames| frames.channel_numbers().closing(1));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| outbox.add_channel(soon()));
            outbox.change(first.id, |frames| frames.handles_are_done());
            let second = waiting.join().unwrap().unwrap();
            assert_eq!(second.id.number, 1);
            outbox.change(second.id, |frames| frames.channel_numbers().closing(1));
            let waiting = scope.spawn(|| outbox.add_channel(soon()));
            outbox.set_end(Error::timed_out(Duration::ZERO));
            assert!(waiting.join().unwrap().is_none());
        });
    }
}
