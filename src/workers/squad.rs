//! The threads of one queue, as other threads see them.

use std::convert::Infallible;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Duration;

use crossbeam_channel::Sender;

use super::activity::Activity;
use super::status::{LastError, Pause, QueueWorkers};
use crate::consumer::Consumer;
use crate::error::Error;
use crate::io_thread::deadline::Deadline;
use crate::session::queue_names::Name;

/// The threads that one call of `Workers::consume` started.
pub(super) struct Squad {
    pub(super) queue: Arc<Name>,
    /// Dropped to stop the threads.
    pub(super) go_on: Option<Sender<Infallible>>,
    pub(super) members: Vec<Member>,
    pub(super) pause: Paused,
    /// Handlers that failed one after the other, on any thread.
    pub(super) failures_in_a_row: Arc<AtomicU32>,
    /// The running time at which a handler nears the broker's acknowledgement timeout.
    pub(super) late_after: Duration,
    /// The last error and its time.
    pub(super) last_error: Option<(Error, Deadline)>,
}

/// Why threads take no messages for a while.
#[derive(Clone, Copy)]
pub(super) enum Paused {
    Not,
    ByProgram,
    ByCircuitBreaker { until: Deadline },
}

/// One thread, as other threads see it.
pub(super) struct Member {
    /// Known once the thread has begun.
    pub(super) thread: Option<ThreadId>,
    pub(super) activity: Arc<Activity>,
    /// Tells the thread to take no more messages.
    pub(super) leaves: Arc<AtomicBool>,
    /// Wakes the thread to look at that.
    pub(super) wake: Sender<()>,
    pub(super) duty: Duty,
}

pub(super) enum Duty {
    /// The consumer is here so that another thread can take it away from a long handler.
    Consuming(Consumer),
    /// The thread has no consumer, and will start one.
    Restarting,
    /// The thread waits until its queue is resumed.
    Paused(Option<Held>),
    /// The thread keeps its message, because a copy of it cannot be published.
    Blocked(Consumer),
    Stopping(Option<Held>),
    Ended,
}

/// The consumer of a thread that is to leave it. The thread cancels the consumer after its last
/// acknowledgement. If its handler takes long, another thread does that, so that the unread
/// messages do not wait.
pub(super) struct Held {
    consumer: Consumer,
    since: Deadline,
}

/// How long a handler may hold up the unread messages.
const PATIENCE: Duration = Duration::from_millis(100);

impl Squad {
    pub(super) fn stop(&mut self) {
        self.go_on = None;
        let members = self.members.iter_mut().filter(|it| !it.has_ended());
        members.for_each(|it| it.leave(Duty::Stopping));
    }

    pub(super) fn pause(&mut self, pause: Paused) {
        self.pause = pause;
        let members = self.members.iter_mut().filter(|it| it.duty.can_pause());
        members.for_each(|it| it.leave(Duty::Paused));
    }

    pub(super) fn resume(&mut self) {
        self.pause = Paused::Not;
    }

    pub(super) fn note(&mut self, error: Error) {
        self.last_error = Some((error, Deadline::after(Duration::MAX)));
    }

    pub(super) fn status(&self) -> QueueWorkers {
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
            Self::Paused(_) | Self::Blocked(_) | Self::Stopping(_) | Self::Ended => false,
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
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.duty, Duty::Ended)
    }

    pub(super) fn is_to_stop(&self) -> bool {
        matches!(self.duty, Duty::Stopping(_) | Duty::Ended)
    }

    /// Returns the consumer of the former duty, which ends when it is dropped.
    #[must_use]
    pub(super) fn turn_to(&mut self, duty: Duty) -> Option<Consumer> {
        match mem::replace(&mut self.duty, duty) {
            Duty::Consuming(consumer) | Duty::Blocked(consumer) => Some(consumer),
            Duty::Paused(held) | Duty::Stopping(held) => held.map(|it| it.consumer),
            Duty::Restarting | Duty::Ended => None,
        }
    }

    /// Lets the thread leave its consumer.
    fn leave(&mut self, duty: fn(Option<Held>) -> Duty) {
        self.leaves.store(true, Ordering::Relaxed);
        let since = Deadline::after(Duration::MAX);
        let consumer = self.turn_to(duty(None));
        self.duty = duty(consumer.map(|consumer| Held { consumer, since }));
        // It fails if the thread has not seen the last one yet.
        let _ = self.wake.try_send(());
    }

    /// Takes the consumer that the thread is to leave.
    pub(super) fn take_held(&mut self) -> Option<Consumer> {
        match &mut self.duty {
            Duty::Paused(held) | Duty::Stopping(held) => held.take().map(|it| it.consumer),
            _ => None,
        }
    }

    /// How long the thread may still hold its consumer, if it does.
    pub(super) fn patience(&self) -> Option<Duration> {
        match &self.duty {
            Duty::Paused(Some(held)) | Duty::Stopping(Some(held)) => {
                Some(PATIENCE.saturating_sub(held.since.elapsed()))
            }
            _ => None,
        }
    }
}
