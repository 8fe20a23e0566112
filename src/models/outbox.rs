//! Callers append to the outbox; the IO thread takes from it and sleeps.

use std::sync::Arc;

use loom::thread;

use super::{at_any_moment, check, never};
use crate::error::{CloseReason, Error, Result};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::Command;
use crate::io_thread::outbox::channels::{ChannelId, OwnedChannel};
use crate::io_thread::outbox::send_queue::HIGH_WATER;
use crate::io_thread::outbox::write_buffer::WriteBuffer;
use crate::io_thread::outbox::{Admission, Frames, Outbox, CONNECTION};
use crate::io_thread::Peer;
use crate::proto::Tuning;
use crate::sync::modelled::Sleeper;
use crate::sync::Waker;
use crate::wire::frame;
use crate::wire::method::{BasicPublish, BasicQos};

/// Each thread appends on a channel of its own.
const ROOM: Admission = Admission::Room;
const PUBLISH: Admission = Admission::Publish;

/// Also returns the connection and its channels, by their numbers.
fn outbox() -> (Arc<Outbox>, IoThread, [ChannelId; 4]) {
    let (waker, sleeper) = Waker::of_model();
    // A message that fills the outbox fits into one frame.
    let tuning = Tuning {
        frame_max: 2 * HIGH_WATER as u32 + 8,
        ..Tuning::BEFORE
    };
    let outbox = Arc::new(Outbox::new(waker, Peer::nameless(tuning), false));
    let channels = [(); 3].map(|()| outbox.add_channel(at_any_moment()).unwrap());
    let [one, two, three] = [0, 1, 2].map(|at| channels[at].id);
    let io_thread = IoThread {
        outbox: Arc::clone(&outbox),
        _channels: channels,
        sleeper,
        write_buffer: WriteBuffer::default(),
        frames: Vec::new(),
        commands: Vec::new(),
    };
    (outbox, io_thread, [CONNECTION, one, two, three])
}

/// Writes and sleeps as `io_thread/driver.rs` does.
struct IoThread {
    outbox: Arc<Outbox>,
    _channels: [OwnedChannel; 3],
    sleeper: Sleeper,
    write_buffer: WriteBuffer,
    /// The channels of all frames and commands that were taken.
    frames: Vec<u16>,
    commands: Vec<u16>,
}

impl IoThread {
    /// Takes once. Returns whether there is nothing to write.
    fn take(&mut self) -> bool {
        let mut commands = Vec::new();
        self.outbox.take(&mut self.write_buffer, &mut commands);
        self.commands.extend(commands.iter().map(Command::channel));
        let sleeps = self.write_buffer.is_empty();
        let taken = self.write_buffer.front();
        self.frames.extend(frame::whole(taken).map(|it| it.0));
        let count = taken.len();
        self.write_buffer.wrote(count);
        let has_command = |it: &u16| self.commands.contains(it);
        assert!(self.frames.iter().all(has_command), "before its command");
        sleeps
    }

    /// Writes and sleeps until this condition is met when there is nothing to write.
    fn run_until(&mut self, mut is_done: impl FnMut(&Self) -> bool) {
        loop {
            while !self.take() {}
            if is_done(self) {
                return;
            }
            self.sleeper.sleep();
        }
    }

    /// What was taken, by channel.
    fn sorted(mut self) -> Vec<u16> {
        self.frames.sort_unstable();
        self.commands.sort_unstable();
        assert_eq!(self.frames, self.commands);
        self.frames
    }
}

fn command(channel: u16) -> Command {
    Command::CloseChannel {
        channel,
        reason: CloseReason::program(""),
        call: None,
    }
}

fn append(frames: &mut Frames<'_>, channel: u16) -> Result<()> {
    frames.method(&BasicQos::default())?;
    frames.command(command(channel));
    Ok(())
}

fn write(
    outbox: &Outbox,
    channel: ChannelId,
    admission: Admission,
    deadline: Deadline,
) -> Result<()> {
    let number = channel.number;
    outbox.write(channel, admission, deadline, |it| append(it, number))
}

fn caller(
    outbox: &Arc<Outbox>,
    channel: ChannelId,
    admission: Admission,
    deadline: Deadline,
) -> thread::JoinHandle<Result<()>> {
    let outbox = Arc::clone(outbox);
    thread::spawn(move || write(&outbox, channel, admission, deadline))
}

/// Appends a message after which there is no room.
fn fill(outbox: &Outbox, channel: ChannelId) {
    let body = vec![0; HIGH_WATER];
    let fill = |frames: &mut Frames<'_>| {
        frames.message(&BasicPublish::default(), None, &body)?;
        frames.command(command(channel.number));
        Ok(())
    };
    outbox.write(channel, ROOM, never(), fill).unwrap();
}

#[test]
fn the_io_thread_sleeps_only_when_all_is_taken_and_wakes_for_more() {
    check(3, || {
        let (outbox, mut io_thread, ids) = outbox();
        let callers = [1, 2].map(|channel| {
            let outbox = Arc::clone(&outbox);
            thread::spawn(move || {
                for _ in 0..2 {
                    write(&outbox, ids[channel], ROOM, never()).unwrap();
                }
            })
        });
        io_thread.run_until(|it| it.frames.len() == 4);
        callers.into_iter().for_each(|it| it.join().unwrap());
        assert_eq!(io_thread.sorted(), [1, 1, 2, 2]);
    });
}

#[test]
fn callers_that_wait_for_room_get_it_when_the_io_thread_takes() {
    check(3, || {
        let (outbox, mut io_thread, ids) = outbox();
        fill(&outbox, ids[3]);
        let callers = [1, 2].map(|channel| caller(&outbox, ids[channel], ROOM, never()));
        io_thread.run_until(|it| it.commands.len() == 3);
        { callers.into_iter() }.for_each(|it| it.join().unwrap().unwrap());
    });
}

#[test]
fn a_blocked_connection_takes_no_message_until_the_broker_unblocks_it() {
    check(3, || {
        let (outbox, mut io_thread, ids) = outbox();
        outbox.set_blocked(Some("disk".to_owned()));
        let patient = caller(&outbox, ids[1], PUBLISH, never());
        let hasty = caller(&outbox, ids[2], PUBLISH, at_any_moment());
        assert!(io_thread.take(), "nothing is appended");
        outbox.set_blocked(None);
        // Before the next take, which would wake the caller, too.
        patient.join().unwrap().unwrap();
        let mut expected = vec![1];
        match hasty.join().unwrap() {
            Ok(()) => expected.push(2),
            Err(error) => assert!(error.is_timeout() && !error.may_have_been_sent()),
        }
        io_thread.take();
        assert_eq!(io_thread.sorted(), expected);
    });
}

#[test]
fn a_channel_that_changes_wakes_who_waits_for_that() {
    check(3, || {
        let (outbox, mut io_thread, ids) = outbox();
        let set_flow = |is_active: bool| {
            outbox.change(ids[1], |frames| {
                frames.channel().is_flow_stopped = !is_active
            });
        };
        set_flow(false);
        let caller = caller(&outbox, ids[1], PUBLISH, never());
        assert!(io_thread.take(), "nothing is appended");
        set_flow(true);
        caller.join().unwrap().unwrap();
        assert!(!io_thread.take());
    });
}

/// As `Engine::ended` does: what was appended before the end and not taken is given back, and
/// nothing is appended afterwards.
#[test]
fn at_the_end_each_call_fails_or_is_taken_or_is_given_back() {
    check(3, || {
        let (outbox, mut io_thread, ids) = outbox();
        fill(&outbox, ids[3]);
        let callers = [1, 2].map(|channel| caller(&outbox, ids[channel], ROOM, never()));
        io_thread.take();
        outbox.set_end(Error::invalid("end"));
        let given_back = outbox.discard();
        let [first, second] = callers.map(|it| it.join().unwrap().is_ok());
        let mut handled: Vec<_> = given_back.iter().map(Command::channel).collect();
        handled.extend(&io_thread.commands);
        handled.sort_unstable();
        let expected = [(1, first), (2, second), (3, true)];
        let expected = expected.iter().filter(|it| it.1).map(|it| it.0);
        assert!(handled.into_iter().eq(expected));
        assert!(outbox.discard().is_empty());
        assert!(outbox.wait_ended(at_any_moment()));
    });
}

#[test]
fn the_end_wakes_who_waits_for_room() {
    check(3, || {
        let (outbox, _, ids) = outbox();
        fill(&outbox, ids[3]);
        let callers = [1, 2].map(|channel| caller(&outbox, ids[channel], ROOM, never()));
        outbox.set_end(Error::invalid("end"));
        { callers.into_iter() }.for_each(|it| assert!(it.join().unwrap().is_err()));
        assert_eq!(outbox.discard().len(), 1);
    });
}

#[test]
fn room_wakes_the_caller_that_may_append_whoever_else_waits() {
    check(3, || {
        let (outbox, mut io_thread, ids) = outbox();
        outbox.set_blocked(Some("disk".to_owned()));
        fill(&outbox, ids[3]);
        let publishes = caller(&outbox, ids[1], PUBLISH, never());
        let calls = caller(&outbox, ids[2], ROOM, never());
        io_thread.take();
        calls.join().unwrap().unwrap();
        outbox.set_blocked(None);
        publishes.join().unwrap().unwrap();
    });
}

#[test]
fn a_lost_connection_admits_callers_once_it_is_recovered() {
    check(3, || {
        let (outbox, mut io_thread, ids) = outbox();
        io_thread.run_until(|_| true);
        outbox.set_lost(Error::invalid("lost"));
        let caller = caller(&outbox, ids[1], ROOM, never());
        let recovery = {
            let outbox = Arc::clone(&outbox);
            thread::spawn(move || {
                let replay = Admission::Recovery { epoch: 1 };
                write(&outbox, ids[0], replay, never()).unwrap();
                assert!(outbox.recovered(1, || ()));
            })
        };
        outbox.begin(Peer::nameless(Tuning::BEFORE)).unwrap();
        recovery.join().unwrap();
        caller.join().unwrap().unwrap();
        io_thread.run_until(|_| true);
        // The replay comes before all callers.
        assert_eq!(io_thread.frames, [0, 1]);
    });
}

#[test]
fn a_sleeping_io_thread_sees_that_the_socket_is_to_be_dropped() {
    check(3, || {
        let (outbox, mut io_thread, _) = outbox();
        let caller = {
            let outbox = Arc::clone(&outbox);
            thread::spawn(move || outbox.abort())
        };
        io_thread.run_until(|it| it.outbox.is_aborted());
        caller.join().unwrap();
    });
}

#[test]
fn a_sleeping_io_thread_sees_that_its_connection_is_given_up() {
    check(3, || {
        let (outbox, mut io_thread, _) = outbox();
        let recovery = {
            let outbox = Arc::clone(&outbox);
            thread::spawn(move || outbox.abandon(0))
        };
        io_thread.run_until(|it| it.outbox.take_abandoned());
        recovery.join().unwrap();
    });
}
