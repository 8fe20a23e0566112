//! The state that the threads of one `Workers` share.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::thread::{self, ThreadId};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::answers::LostAnswers;
use super::squad::{Member, Paused, Squad};
use super::status::{LateHandler, WorkersStatus};
use crate::consumer::Consumer;
use crate::error::{Error, Result};
use crate::io_thread::deadline::Deadline;

/// The threads of all queues.
pub(super) struct Crew {
    pub(super) state: Mutex<State>,
    /// Notified when a thread has ended, and when threads are to stop or to go on.
    pub(super) changed: Condvar,
}

#[derive(Default)]
pub(super) struct State {
    is_stopped: bool,
    pub(super) squads: Vec<Squad>,
    pub(super) failure: Option<Error>,
    pub(super) lost: Lost,
}

/// Messages that were handled but are redelivered, because a connection or a channel was lost while
/// the threads stopped.
#[derive(Debug, Default)]
pub(super) struct Lost {
    pub(super) answers: LostAnswers,
    pub(super) queues: BTreeSet<String>,
}

impl Lost {
    fn error(&self) -> Option<Error> {
        let kind = self.answers.kind();
        let doing = || format!("workers of {:?}", self.queues);
        (!self.queues.is_empty()).then(|| Error::new(kind).doing(doing()))
    }
}

/// The place of a thread in its crew.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) squad: usize,
    pub(super) member: usize,
}

impl State {
    pub(super) fn member(&mut self, at: Place) -> Option<&mut Member> {
        self.squads.get_mut(at.squad)?.members.get_mut(at.member)
    }

    /// The queues of the threads that run, one for each thread.
    fn running(&self) -> Vec<&str> {
        let running = self.squads.iter().flat_map(|squad| {
            let members = squad.members.iter().filter(|it| !it.has_ended());
            members.map(|_| squad.queue.current())
        });
        running.collect()
    }

    fn has_thread(&self, thread: ThreadId) -> bool {
        let mut members = self.squads.iter().flat_map(|it| &it.members);
        members.any(|it| it.thread == Some(thread) && !it.has_ended())
    }

    pub(super) fn check_open(&self) -> Result<()> {
        match self.is_stopped {
            true => Err(Error::invalid("the workers are shut down")),
            false => Ok(()),
        }
    }

    fn overdue(&mut self) -> Overdue {
        let late = self.squads.iter().flat_map(|squad| {
            let late = squad.members.iter();
            let late = late.filter_map(|it| it.activity.newly_late(squad.late_after));
            late.map(|late| (squad.queue.current().to_owned(), late))
        });
        let late = late.collect();
        let members = self.squads.iter_mut().flat_map(|it| &mut it.members);
        let impatient = members.filter(|it| it.patience().is_some_and(|it| it.is_zero()));
        let held = impatient.filter_map(Member::take_held).collect();
        Overdue { late, held }
    }

    pub(super) fn stop(&mut self) {
        self.is_stopped = true;
        self.squads.iter_mut().for_each(Squad::stop);
    }
}

impl Crew {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    pub(super) fn status(&self) -> WorkersStatus {
        let state = self.state.lock();
        WorkersStatus {
            queues: state.squads.iter().map(Squad::status).collect(),
            stopped: state.is_stopped,
            failure: state.failure.clone(),
        }
    }

    /// Fails after a shutdown.
    pub(super) fn check_open(&self) -> Result<()> {
        self.state.lock().check_open()
    }

    pub(super) fn stop(&self) {
        self.state.lock().stop();
        self.changed.notify_all();
    }

    pub(super) fn pause(&self, queue: &str) -> Result<()> {
        self.for_each_of(queue, |squad| squad.pause(Paused::ByProgram))?;
        self.changed.notify_all();
        Ok(())
    }

    pub(super) fn resume(&self, queue: &str) -> Result<()> {
        self.for_each_of(queue, |squad| {
            squad.failures_in_a_row.store(0, Ordering::Relaxed);
            squad.resume();
        })?;
        self.changed.notify_all();
        Ok(())
    }

    fn for_each_of(&self, queue: &str, change: impl FnMut(&mut Squad)) -> Result<()> {
        let mut state = self.state.lock();
        state.check_open()?;
        let of_queue = |it: &&mut Squad| it.queue.current() == queue;
        let squads = state.squads.iter_mut().filter(of_queue);
        match squads.map(change).count() {
            0 => Err(Error::invalid(format!(
                "these workers do not consume from queue {queue:?}"
            ))),
            _ => Ok(()),
        }
    }

    /// The queues whose threads run and were not told to stop.
    pub(super) fn at_work(&self) -> BTreeSet<String> {
        let state = self.state.lock();
        let at_work = state.squads.iter().filter(|it| it.go_on.is_some());
        let at_work = at_work.filter(|it| it.members.iter().any(|it| !it.has_ended()));
        at_work.map(|it| it.queue.current().to_owned()).collect()
    }

    pub(super) fn wait(&self, deadline: Option<Deadline>) -> Result<()> {
        let mut state = self.state.lock();
        if state.has_thread(thread::current().id()) {
            return Err(Error::invalid(
                "a handler cannot wait for its own workers to end",
            ));
        }
        while !state.running().is_empty() {
            let Some(deadline) = deadline else {
                self.changed.wait(&mut state);
                continue;
            };
            let waited = self.changed.wait_until(&mut state, deadline.at());
            if waited.timed_out() && !state.running().is_empty() {
                let doing = format!("waiting for handlers of {:?}", state.running());
                return Err(Error::timed_out(deadline.duration()).doing(doing));
            }
        }
        let failure = state.failure.clone().or_else(|| state.lost.error());
        failure.map_or(Ok(()), Err)
    }

    /// Waits until a handler nears the broker's acknowledgement timeout, or holds up unread
    /// messages. Returns `None` when all threads have ended for good.
    pub(super) fn watch(&self) -> Option<Overdue> {
        let mut state = self.state.lock();
        loop {
            if state.is_stopped && state.running().is_empty() {
                return None;
            }
            let overdue = state.overdue();
            if !overdue.late.is_empty() || !overdue.held.is_empty() {
                return Some(overdue);
            }
            let next = state.squads.iter().flat_map(|squad| {
                let members = squad.members.iter();
                members.flat_map(|it| [Some(it.activity.warns_in(squad.late_after)), it.patience()])
            });
            let next = Deadline::after(next.flatten().min().unwrap_or(Duration::MAX));
            self.changed.wait_until(&mut state, next.at());
        }
    }
}

/// Handlers that take long.
pub(super) struct Overdue {
    /// Each of them once, with its queue.
    pub(super) late: Vec<(String, LateHandler)>,
    /// Consumers whose unread messages wait for them.
    pub(super) held: Vec<Consumer>,
}
