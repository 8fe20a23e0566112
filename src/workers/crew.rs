//! The state that the threads of one `Workers` share.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::Duration;

use crossbeam_channel::{bounded, Receiver, Sender, TryRecvError};
use parking_lot::{Condvar, Mutex};

use super::activity::Activity;
use super::answers::LostAnswers;
use super::status::{LastError, LateHandler, Pause, QueueWorkers, WorkersStatus};
use crate::consumer::Consumer;
use crate::error::{Error, Result};
use crate::io_thread::deadline::Deadline;
use crate::options::{CircuitBreaker, WorkerOptions};
use crate::session::queue_names::Name;

/// The threads of all queues.
pub(super) struct Crew {
    state: Mutex<State>,
    /// Notified when a thread has ended, and when threads are to stop or to go on.
    changed: Condvar,
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
    members: Vec<Member>,
    pause: Paused,
    /// Handlers that failed one after the other, on any thread.
    failures_in_a_row: Arc<AtomicU32>,
    /// A handler that runs so long is about to meet the broker's acknowledgement timeout.
    late_after: Duration,
    /// The last error and its time.
    last_error: Option<(Error, Deadline)>,
}

/// Why threads take no messages for a while.
#[derive(Clone, Copy)]
enum Paused {
    Not,
    ByProgram,
    ByCircuitBreaker { until: Deadline },
}

/// One thread, as other threads see it.
struct Member {
    /// Known once the thread has begun.
    thread: Option<ThreadId>,
    activity: Arc<Activity>,
    duty: Duty,
}

enum Duty {
    /// The consumer is here so that any thread can stop it. Its unread messages are then requeued
    /// at once, even during a long handler.
    Consuming(Consumer),
    /// The thread has no consumer, and will start one.
    Restarting,
    /// The thread waits until its queue is resumed.
    Paused,
    /// The thread keeps its message, because a copy of it cannot be published.
    Blocked(Consumer),
    Stopping,
    Ended,
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
    fn member(&mut self, at: Place) -> Option<&mut Member> {
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
        let members = self.members.iter_mut().filter(|it| !it.has_ended());
        let stopped = members.filter_map(|it| it.turn_to(Duty::Stopping));
        stopped.collect()
    }

    #[must_use]
    fn pause(&mut self, pause: Paused) -> Vec<Consumer> {
        self.pause = pause;
        let members = self.members.iter_mut().filter(|it| it.duty.can_pause());
        let paused = members.filter_map(|it| it.turn_to(Duty::Paused));
        paused.collect()
    }

    fn resume(&mut self) {
        self.pause = Paused::Not;
    }

    fn note(&mut self, error: Error) {
        self.last_error = Some((error, Deadline::after(Duration::MAX)));
    }

    fn status(&self) -> QueueWorkers {
        let count = |is: fn(&Duty) -> bool| {
            self.members
                .iter()
                .filter(|member| is(&member.duty))
                .count()
        };
        let late = self.members.iter();
        let last_error = self.last_error.as_ref().map(|(error, at)| LastError {
            error: error.clone(),
            ago: at.elapsed(),
        });
        let mut status = QueueWorkers {
            queue: self.queue.current().to_owned(),
            threads: self.members.len(),
            consuming: count(Duty::consumes),
            restarting: count(Duty::restarts),
            blocked: count(Duty::is_blocked),
            pause: match self.pause {
                Paused::Not => None,
                Paused::ByProgram => Some(Pause::ByProgram),
                Paused::ByCircuitBreaker { until } => Some(Pause::ByCircuitBreaker {
                    remaining: until.remaining(),
                }),
            },
            late: late
                .filter_map(|it| it.activity.late(self.late_after))
                .collect(),
            last_error,
            ..QueueWorkers::default()
        };
        for member in &self.members {
            member.activity.add_to(&mut status);
        }
        status
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
            Self::Paused | Self::Blocked(_) | Self::Stopping | Self::Ended => false,
        }
    }

    fn is_blocked(&self) -> bool {
        matches!(self, Self::Blocked(_))
    }

    fn can_pause(&self) -> bool {
        matches!(
            self,
            Self::Consuming(_) | Self::Blocked(_) | Self::Restarting
        )
    }
}

impl Member {
    fn has_ended(&self) -> bool {
        matches!(self.duty, Duty::Ended)
    }

    fn is_to_stop(&self) -> bool {
        matches!(self.duty, Duty::Stopping | Duty::Ended)
    }

    /// Returns the consumer of the former duty, which ends when it is dropped.
    #[must_use]
    fn turn_to(&mut self, duty: Duty) -> Option<Consumer> {
        match std::mem::replace(&mut self.duty, duty) {
            Duty::Consuming(consumer) | Duty::Blocked(consumer) => Some(consumer),
            Duty::Restarting | Duty::Paused | Duty::Stopping | Duty::Ended => None,
        }
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

    /// Makes room for one thread for each consumer.
    pub(super) fn enlist(
        self: &Arc<Self>,
        queue: &Arc<Name>,
        options: &WorkerOptions,
        consumers: Vec<Consumer>,
    ) -> Result<Vec<Post>> {
        let mut state = self.state.lock();
        state.check_open()?;
        let (go_on, stopped) = bounded(0);
        let squad = state.squads.len();
        let failures_in_a_row = Arc::new(AtomicU32::new(0));
        let mut posts = Vec::new();
        let mut members = Vec::new();
        for (member, consumer) in consumers.into_iter().enumerate() {
            let activity = Arc::new(Activity::default());
            posts.push(Post {
                crew: Arc::clone(self),
                queue: Arc::clone(queue),
                place: Place { squad, member },
                stopped: stopped.clone(),
                activity: Arc::clone(&activity),
                failures_in_a_row: Arc::clone(&failures_in_a_row),
            });
            members.push(Member {
                thread: None,
                activity,
                duty: Duty::Consuming(consumer),
            });
        }
        state.squads.push(Squad {
            queue: Arc::clone(queue),
            go_on: Some(go_on),
            members,
            pause: Paused::Not,
            failures_in_a_row,
            late_after: options.late_after(),
            last_error: None,
        });
        drop(state);
        // The watch looks at this squad, too.
        self.changed.notify_all();
        Ok(posts)
    }

    pub(super) fn stop(&self) {
        let stopped = self.state.lock().stop();
        self.changed.notify_all();
        drop(stopped);
    }

    pub(super) fn pause(&self, queue: &str) -> Result<()> {
        let pause = |squad: &mut Squad| squad.pause(Paused::ByProgram);
        let paused = self.for_each_of(queue, pause)?;
        drop(paused);
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

    fn for_each_of<T>(&self, queue: &str, change: impl FnMut(&mut Squad) -> T) -> Result<Vec<T>> {
        let mut state = self.state.lock();
        state.check_open()?;
        let of_queue = |it: &&mut Squad| it.queue.current() == queue;
        let squads = state.squads.iter_mut().filter(of_queue);
        let changed: Vec<_> = squads.map(change).collect();
        match changed.is_empty() {
            true => Err(Error::invalid(format!(
                "these workers do not consume from queue {queue:?}"
            ))),
            false => Ok(changed),
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

    /// Waits until a handler takes so long that the broker's acknowledgement timeout is near.
    /// Returns each of them once, with its queue. `None` when all threads have ended for good.
    pub(super) fn next_late(&self) -> Option<Vec<(String, LateHandler)>> {
        let mut state = self.state.lock();
        loop {
            if state.is_stopped && state.running().is_empty() {
                return None;
            }
            let late = state.squads.iter().flat_map(|squad| {
                let late = squad.members.iter();
                let late = late.filter_map(|it| it.activity.newly_late(squad.late_after));
                late.map(|late| (squad.queue.current().to_owned(), late))
            });
            let late: Vec<_> = late.collect();
            if !late.is_empty() {
                return Some(late);
            }
            let next = state.squads.iter().flat_map(|squad| {
                let members = squad.members.iter();
                members.map(|it| it.activity.warns_in(squad.late_after))
            });
            let next = Deadline::after(next.min().unwrap_or(Duration::MAX));
            self.changed.wait_until(&mut state, next.at());
        }
    }
}

/// One thread's place in its crew. Dropping it marks the thread as ended.
pub(super) struct Post {
    crew: Arc<Crew>,
    queue: Arc<Name>,
    place: Place,
    /// Disconnected to stop the thread.
    stopped: Receiver<Infallible>,
    activity: Arc<Activity>,
    failures_in_a_row: Arc<AtomicU32>,
}

impl Drop for Post {
    fn drop(&mut self) {
        let mut state = self.crew.state.lock();
        let consumer = state.member(self.place);
        let consumer = consumer.and_then(|it| it.turn_to(Duty::Ended));
        drop(state);
        // Dropping a consumer sends.
        drop(consumer);
        self.crew.changed.notify_all();
    }
}

/// What became of a new consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resumed {
    Consuming,
    /// The queue was paused meanwhile, and the consumer was dropped.
    Paused,
    /// The thread is to stop, and the consumer was dropped.
    Stopped,
}

impl Post {
    /// The name of the queue, which follows renames if the broker chose it.
    pub(super) fn queue(&self) -> &Name {
        &self.queue
    }

    pub(super) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    pub(super) fn stopped(&self) -> &Receiver<Infallible> {
        &self.stopped
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Must be called by the thread itself.
    pub(super) fn begin(&self) {
        let thread = Some(thread::current().id());
        if let Some(member) = self.crew.state.lock().member(self.place) {
            member.thread = thread;
        }
    }

    /// The consumer has ended, or could not begin.
    pub(super) fn interrupted(&self, error: Error) {
        let mut state = self.crew.state.lock();
        if let Some(squad) = state.squads.get_mut(self.place.squad) {
            squad.note(error);
        }
        let member = state.member(self.place);
        let member = member.filter(|it| !it.is_to_stop());
        let former = member.and_then(|it| it.turn_to(Duty::Restarting));
        drop(state);
        drop(former);
    }

    /// Whether the queue was paused while the thread consumed.
    pub(super) fn is_paused(&self) -> bool {
        let mut state = self.crew.state.lock();
        let member = state.member(self.place);
        member.is_some_and(|it| matches!(it.duty, Duty::Paused))
    }

    /// Waits while the queue is paused. Returns false if the thread is to stop.
    pub(super) fn wait_resumed(&self) -> bool {
        let mut state = self.crew.state.lock();
        loop {
            let Some(squad) = state.squads.get_mut(self.place.squad) else {
                return false;
            };
            match squad.pause {
                Paused::ByCircuitBreaker { until } if until.remaining().is_zero() => {
                    squad.resume();
                    self.crew.changed.notify_all();
                }
                _ => {}
            }
            let pause = squad.pause;
            let Some(member) = state.member(self.place).filter(|it| !it.is_to_stop()) else {
                return false;
            };
            // It has no consumer here, and none can be dropped under the lock.
            member.duty = match pause {
                Paused::Not => Duty::Restarting,
                Paused::ByProgram | Paused::ByCircuitBreaker { .. } => Duty::Paused,
            };
            match pause {
                Paused::Not => return true,
                Paused::ByProgram => self.crew.changed.wait(&mut state),
                Paused::ByCircuitBreaker { until } => {
                    self.crew.changed.wait_until(&mut state, until.at());
                }
            }
        }
    }

    /// Hands over the consumer that the thread has begun.
    pub(super) fn resume(&self, consumer: Consumer) -> Resumed {
        let mut state = self.crew.state.lock();
        let squad = state.squads.get(self.place.squad);
        let is_paused = squad.is_some_and(|it| !matches!(it.pause, Paused::Not));
        let member = state.member(self.place).filter(|it| !it.is_to_stop());
        let (resumed, unwanted) = match member {
            None => (Resumed::Stopped, Some(consumer)),
            Some(_) if is_paused => (Resumed::Paused, Some(consumer)),
            Some(member) => {
                let former = member.turn_to(Duty::Consuming(consumer));
                (Resumed::Consuming, former)
            }
        };
        drop(state);
        drop(unwanted);
        resumed
    }

    /// Notes that the thread keeps a message because its copy cannot be published, or, without an
    /// error, that the copy is published.
    pub(super) fn set_blocked(&self, error: Option<Error>) {
        let mut state = self.crew.state.lock();
        let is_blocked = error.is_some();
        if let (Some(error), Some(squad)) = (error, state.squads.get_mut(self.place.squad)) {
            squad.note(error);
        }
        let Some(member) = state.member(self.place) else {
            return;
        };
        let duty = std::mem::replace(&mut member.duty, Duty::Ended);
        member.duty = match duty {
            Duty::Consuming(consumer) if is_blocked => Duty::Blocked(consumer),
            Duty::Blocked(consumer) if !is_blocked => Duty::Consuming(consumer),
            other => other,
        };
    }

    /// Notes a handler that has not failed.
    pub(super) fn succeeded(&self) {
        if self.failures_in_a_row.load(Ordering::Relaxed) > 0 {
            self.failures_in_a_row.store(0, Ordering::Relaxed);
        }
    }

    /// Notes a handler that has failed. Returns whether that made the circuit breaker pause the
    /// queue.
    pub(super) fn failed(&self, breaker: &CircuitBreaker) -> bool {
        let before = self.failures_in_a_row.fetch_add(1, Ordering::Relaxed);
        if before.saturating_add(1) < breaker.failures {
            return false;
        }
        // After the pause, one more failure is enough.
        let almost = breaker.failures.saturating_sub(1);
        self.failures_in_a_row.store(almost, Ordering::Relaxed);
        let mut state = self.crew.state.lock();
        let squad = state.squads.get_mut(self.place.squad);
        let Some(squad) = squad.filter(|it| matches!(it.pause, Paused::Not)) else {
            return false;
        };
        let until = Deadline::after(breaker.delay);
        let paused = squad.pause(Paused::ByCircuitBreaker { until });
        drop(state);
        drop(paused);
        true
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
        self.crew.changed.notify_all();
        drop((stopped, others));
    }

    /// Records the acknowledgements of this thread that the broker may lack, for `join`.
    pub(super) fn lose(&self, answers: LostAnswers) {
        let lost = &mut self.crew.state.lock().lost;
        lost.answers.add(answers);
        lost.queues.insert(self.queue.current().to_owned());
    }
}
