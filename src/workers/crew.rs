//! The state that the threads of one `Workers` share.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::Duration;

use crossbeam_channel::{bounded, Receiver, Sender, TryRecvError};
use parking_lot::{Condvar, Mutex};

use super::answers::LostAnswers;
use super::status::{LastError, QueueWorkers, WorkersStatus};
use crate::consumer::Consumer;
use crate::error::{Error, Result};
use crate::io_thread::deadline::Deadline;
use crate::session::queue_names::Name;

/// The threads of all queues.
pub(super) struct Crew {
    state: Mutex<State>,
    /// Notified when a thread has ended.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    is_stopped: bool,
    squads: Vec<Squad>,
    failure: Option<Error>,
    lost: Lost,
}

/// The threads that one call of `Workers::consume` started.
struct Squad {
    queue: Arc<Name>,
    /// Dropped to stop the threads.
    go_on: Option<Sender<Infallible>>,
    /// `None` for a thread that has ended.
    members: Vec<Option<Member>>,
    /// The last error and its time.
    last_error: Option<(Error, Deadline)>,
}

/// One thread, as other threads see it.
struct Member {
    /// Known once the thread has begun.
    thread: Option<ThreadId>,
    /// Whether its handler runs.
    is_busy: Arc<AtomicBool>,
    duty: Duty,
}

enum Duty {
    /// The consumer is here so that any thread can stop it. Its unread messages are then requeued
    /// at once, even during a long handler.
    Consuming(Consumer),
    /// The consumer has ended. The thread will start another one.
    Restarting,
    Stopping,
}

/// Messages that were handled but are redelivered, because a connection or a channel was lost while
/// the threads stopped.
#[derive(Debug, Default)]
struct Lost {
    answers: LostAnswers,
    queues: BTreeSet<String>,
}

impl Lost {
    fn error(&self) -> Option<Error> {
        let kind = self.answers.kind();
        let doing = || format!("workers of {:?}", self.queues);
        (!self.queues.is_empty()).then(|| Error::new(kind).doing(doing()))
    }
}

/// Which threads stop after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// The threads of the same squad.
    Queue,
    All,
}

/// The place of a thread in its crew.
#[derive(Debug, Clone, Copy)]
struct Place {
    squad: usize,
    member: usize,
}

impl State {
    fn member(&mut self, at: Place) -> Option<&mut Option<Member>> {
        self.squads.get_mut(at.squad)?.members.get_mut(at.member)
    }

    /// The queues of the threads that run, one for each thread.
    fn running(&self) -> Vec<&str> {
        let running = self.squads.iter().flat_map(|squad| {
            let members = squad.members.iter().flatten();
            members.map(|_| squad.queue.current())
        });
        running.collect()
    }

    fn has_thread(&self, thread: ThreadId) -> bool {
        let mut members = self
            .squads
            .iter()
            .flat_map(|it| it.members.iter().flatten());
        members.any(|it| it.thread == Some(thread))
    }

    fn check_open(&self) -> Result<()> {
        match self.is_stopped {
            true => Err(Error::invalid("the workers are shut down")),
            false => Ok(()),
        }
    }

    /// Drop the result after the lock is free: dropping a consumer sends.
    #[must_use]
    fn stop(&mut self) -> Vec<Consumer> {
        self.is_stopped = true;
        self.squads.iter_mut().flat_map(Squad::stop).collect()
    }
}

impl Squad {
    #[must_use]
    fn stop(&mut self) -> Vec<Consumer> {
        self.go_on = None;
        let members = self.members.iter_mut().flatten();
        let stopped = members.filter_map(|it| it.turn_to(Duty::Stopping));
        stopped.collect()
    }

    fn note(&mut self, error: Error) {
        self.last_error = Some((error, Deadline::after(Duration::MAX)));
    }

    fn status(&self) -> QueueWorkers {
        let members = || self.members.iter().flatten();
        let last_error = self.last_error.as_ref().map(|(error, at)| LastError {
            error: error.clone(),
            ago: at.elapsed(),
        });
        QueueWorkers {
            queue: self.queue.current().to_owned(),
            threads: self.members.len(),
            consuming: members().filter(|it| it.duty.consumes()).count(),
            restarting: members().filter(|it| it.duty.restarts()).count(),
            busy: members().filter(|it| it.is_busy()).count(),
            last_error,
        }
    }
}

impl Duty {
    fn consumes(&self) -> bool {
        matches!(self, Self::Consuming(consumer) if !consumer.is_interrupted())
    }

    fn restarts(&self) -> bool {
        match self {
            Self::Consuming(consumer) => consumer.is_interrupted(),
            Self::Restarting => true,
            Self::Stopping => false,
        }
    }
}

impl Member {
    fn is_busy(&self) -> bool {
        self.is_busy.load(Ordering::Relaxed)
    }

    /// Returns the consumer of the former duty, which ends when it is dropped.
    #[must_use]
    fn turn_to(&mut self, duty: Duty) -> Option<Consumer> {
        match std::mem::replace(&mut self.duty, duty) {
            Duty::Consuming(consumer) => Some(consumer),
            Duty::Restarting | Duty::Stopping => None,
        }
    }
}

impl Crew {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::default(),
            ended: Condvar::new(),
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

    /// Makes room for one thread for each consumer.
    pub(super) fn enlist(
        self: &Arc<Self>,
        queue: &Arc<Name>,
        consumers: Vec<Consumer>,
    ) -> Result<Vec<Post>> {
        let mut state = self.state.lock();
        state.check_open()?;
        let (go_on, stopped) = bounded(0);
        let squad = state.squads.len();
        let mut posts = Vec::new();
        let mut members = Vec::new();
        for (member, consumer) in consumers.into_iter().enumerate() {
            let is_busy = Arc::new(AtomicBool::new(false));
            posts.push(Post {
                crew: Arc::clone(self),
                queue: Arc::clone(queue),
                place: Place { squad, member },
                stopped: stopped.clone(),
                is_busy: Arc::clone(&is_busy),
            });
            members.push(Some(Member {
                thread: None,
                is_busy,
                duty: Duty::Consuming(consumer),
            }));
        }
        state.squads.push(Squad {
            queue: Arc::clone(queue),
            go_on: Some(go_on),
            members,
            last_error: None,
        });
        Ok(posts)
    }

    pub(super) fn stop(&self) {
        let stopped = self.state.lock().stop();
        drop(stopped);
    }

    /// The queues whose threads run and were not told to stop.
    pub(super) fn at_work(&self) -> BTreeSet<String> {
        let state = self.state.lock();
        let at_work = state.squads.iter().filter(|it| it.go_on.is_some());
        let at_work = at_work.filter(|it| it.members.iter().flatten().next().is_some());
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
                self.ended.wait(&mut state);
                continue;
            };
            let waited = self.ended.wait_until(&mut state, deadline.at());
            if waited.timed_out() && !state.running().is_empty() {
                let doing = format!("waiting for handlers of {:?}", state.running());
                return Err(Error::timed_out(deadline.duration()).doing(doing));
            }
        }
        let failure = state.failure.clone().or_else(|| state.lost.error());
        failure.map_or(Ok(()), Err)
    }
}

/// One thread's place in its crew. Dropping it marks the thread as ended.
pub(super) struct Post {
    crew: Arc<Crew>,
    queue: Arc<Name>,
    place: Place,
    /// Disconnected to stop the thread.
    stopped: Receiver<Infallible>,
    is_busy: Arc<AtomicBool>,
}

impl Drop for Post {
    fn drop(&mut self) {
        let mut state = self.crew.state.lock();
        let member = state.member(self.place).and_then(Option::take);
        drop(state);
        // Dropping a consumer sends.
        drop(member);
        self.crew.ended.notify_all();
    }
}

impl Post {
    /// The name of the queue, which follows renames if the broker chose it.
    pub(super) fn queue(&self) -> &Name {
        &self.queue
    }

    pub(super) fn stopped(&self) -> &Receiver<Infallible> {
        &self.stopped
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.try_recv() == Err(TryRecvError::Disconnected)
    }

    pub(super) fn set_busy(&self, is_busy: bool) {
        self.is_busy.store(is_busy, Ordering::Relaxed);
    }

    /// Must be called by the thread itself.
    pub(super) fn begin(&self) {
        let thread = Some(thread::current().id());
        if let Some(Some(member)) = self.crew.state.lock().member(self.place) {
            member.thread = thread;
        }
    }

    /// The consumer has ended, or could not begin.
    pub(super) fn interrupted(&self, error: Error) {
        let mut state = self.crew.state.lock();
        if let Some(squad) = state.squads.get_mut(self.place.squad) {
            squad.note(error);
        }
        let member = state.member(self.place).and_then(Option::as_mut);
        let former = match member {
            Some(member) if !matches!(member.duty, Duty::Stopping) => {
                member.turn_to(Duty::Restarting)
            }
            _ => None,
        };
        drop(state);
        drop(former);
    }

    /// Returns false, and drops the consumer, if the thread is to stop.
    pub(super) fn resume(&self, consumer: Consumer) -> bool {
        let mut state = self.crew.state.lock();
        let member = state.member(self.place).and_then(Option::as_mut);
        let unwanted = match member {
            Some(member) if !matches!(member.duty, Duty::Stopping) => {
                let former = member.turn_to(Duty::Consuming(consumer));
                debug_assert!(former.is_none());
                None
            }
            _ => Some(consumer),
        };
        drop(state);
        unwanted.is_none()
    }

    /// Stops threads because of this error.
    pub(super) fn fail(&self, error: Error, scope: Scope) {
        let mut state = self.crew.state.lock();
        state.failure.get_or_insert_with(|| error.clone());
        let stopped = match state.squads.get_mut(self.place.squad) {
            Some(squad) => {
                squad.note(error);
                squad.stop()
            }
            None => Vec::new(),
        };
        let others = match scope {
            Scope::Queue => Vec::new(),
            Scope::All => state.stop(),
        };
        drop(state);
        drop((stopped, others));
    }

    /// Records the acknowledgements of this thread that the broker may lack, for `join`.
    pub(super) fn lose(&self, answers: LostAnswers) {
        let lost = &mut self.crew.state.lock().lost;
        lost.answers.add(answers);
        lost.queues.insert(self.queue.current().to_owned());
    }
}
