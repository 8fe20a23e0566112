//! One thread's place among the threads of its `Workers`.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{bounded, Receiver, TryRecvError};

use super::activity::Activity;
use super::answers::LostAnswers;
use super::crew::{Crew, Place};
use super::squad::{Duty, Member, Paused, Squad};
use crate::consumer::Consumer;
use crate::error::{Error, Result};
use crate::io_thread::deadline::Deadline;
use crate::options::{CircuitBreaker, WorkerOptions};
use crate::session::queue_names::Name;

/// Which threads stop after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// The threads of the same squad.
    Queue,
    All,
}

/// One thread's place in its crew. Dropping it marks the thread as ended.
pub(super) struct Post {
    crew: Arc<Crew>,
    queue: Arc<Name>,
    place: Place,
    /// Disconnected to stop the thread.
    stopped: Receiver<Infallible>,
    leaves: Arc<AtomicBool>,
    /// Gets a message when `leaves` is set.
    woken: Receiver<()>,
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
    /// Makes room for one thread for each consumer.
    pub(super) fn enlist(
        crew: &Arc<Crew>,
        queue: &Arc<Name>,
        options: &WorkerOptions,
        consumers: Vec<Consumer>,
    ) -> Result<Vec<Self>> {
        let mut state = crew.state.lock();
        state.check_open()?;
        let (go_on, stopped) = bounded(0);
        let squad = state.squads.len();
        let failures_in_a_row = Arc::new(AtomicU32::new(0));
        let mut posts = Vec::new();
        let mut members = Vec::new();
        for (member, consumer) in consumers.into_iter().enumerate() {
            let activity = Arc::new(Activity::default());
            let leaves = Arc::new(AtomicBool::new(false));
            let (wake, woken) = bounded(1);
            posts.push(Self {
                crew: Arc::clone(crew),
                queue: Arc::clone(queue),
                place: Place { squad, member },
                stopped: stopped.clone(),
                leaves: Arc::clone(&leaves),
                woken,
                activity: Arc::clone(&activity),
                failures_in_a_row: Arc::clone(&failures_in_a_row),
            });
            members.push(Member {
                thread: None,
                activity,
                leaves,
                wake,
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
        crew.changed.notify_all();
        Ok(posts)
    }

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

    /// Whether the thread is to take no more messages: to stop, or to pause.
    pub(super) fn leaves(&self) -> bool {
        self.leaves.load(Ordering::Relaxed)
    }

    pub(super) fn woken(&self) -> &Receiver<()> {
        &self.woken
    }

    /// Returns the consumer that the thread is to leave, unless another thread has taken it.
    pub(super) fn take_consumer(&self) -> Option<Consumer> {
        let mut state = self.crew.state.lock();
        state.member(self.place).and_then(Member::take_held)
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
        member.is_some_and(|it| matches!(it.duty, Duty::Paused(_)))
    }

    /// Waits while the queue is paused. Returns false if the thread is to stop.
    pub(super) fn wait_resumed(&self) -> bool {
        // Left if the queue was paused right after a handler had cancelled the consumer.
        drop(self.take_consumer());
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
            // No consumer is dropped under the lock.
            member.duty = match pause {
                Paused::Not => Duty::Restarting,
                Paused::ByProgram | Paused::ByCircuitBreaker { .. } => Duty::Paused(None),
            };
            match pause {
                Paused::Not => {
                    self.leaves.store(false, Ordering::Relaxed);
                    return true;
                }
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
        squad.pause(Paused::ByCircuitBreaker { until });
        drop(state);
        self.crew.changed.notify_all();
        true
    }

    /// Stops threads because of this error.
    pub(super) fn fail(&self, error: Error, scope: Scope) {
        let mut state = self.crew.state.lock();
        state.failure.get_or_insert_with(|| error.clone());
        if let Some(squad) = state.squads.get_mut(self.place.squad) {
            squad.note(error);
            squad.stop();
        }
        if scope == Scope::All {
            state.stop();
        }
        drop(state);
        self.crew.changed.notify_all();
    }

    /// Records the acknowledgements of this thread that the broker may lack, for `join`.
    pub(super) fn lose(&self, answers: LostAnswers) {
        let lost = &mut self.crew.state.lock().lost;
        lost.answers.add(answers);
        lost.queues.insert(self.queue.current().to_owned());
    }
}
