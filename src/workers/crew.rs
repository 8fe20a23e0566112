//! What the threads of one `Workers` share.

use std::collections::{BTreeSet, HashSet};
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::thread::{self, ThreadId};

use crossbeam_channel::{bounded, Receiver, Sender, TryRecvError};
use parking_lot::{Condvar, Mutex};

use super::answers::Answers;
use super::worker::Worker;
use super::Handler;
use crate::consumer::Consumer;
use crate::deadline::Deadline;
use crate::error::{Error, ErrorKind, Result};

/// What all threads share.
pub(super) struct Crew {
    pub(super) state: Mutex<State>,
    /// Notified when a thread has ended.
    pub(super) ended: Condvar,
    /// Disconnected when it is time to stop.
    pub(super) stopped: Receiver<Infallible>,
}

pub(super) struct State {
    /// Gone when it is time to stop.
    go_on: Option<Sender<Infallible>>,
    /// Here, so that whoever stops can give back what waits behind a long message.
    consumers: Vec<Consumer>,
    /// The queues of the threads that run.
    pub(super) running: Vec<Arc<str>>,
    /// These threads, once they have begun.
    pub(super) threads: HashSet<ThreadId>,
    failure: Option<Error>,
    lost: Lost,
}

/// What the threads have handled, and the broker delivers again since a connection was lost.
#[derive(Debug, Default)]
struct Lost {
    not_sent: u64,
    unconfirmed: u64,
    queues: BTreeSet<Arc<str>>,
}

impl Lost {
    fn error(&self) -> Option<Error> {
        let kind = ErrorKind::AcksLost {
            not_sent: self.not_sent,
            unconfirmed: self.unconfirmed,
        };
        let doing = || format!("workers of {:?}", self.queues);
        (!self.queues.is_empty()).then(|| Error::new(kind).doing(doing()))
    }
}

impl Crew {
    pub(super) fn new() -> Self {
        let (go_on, stopped) = bounded(0);
        Self {
            state: Mutex::new(State {
                go_on: Some(go_on),
                consumers: Vec::new(),
                running: Vec::new(),
                threads: HashSet::new(),
                failure: None,
                lost: Lost::default(),
            }),
            ended: Condvar::new(),
            stopped,
        }
    }

    pub(super) fn show(&self, shown: &mut fmt::DebugStruct<'_, '_>) {
        let state = self.state.lock();
        shown
            .field("running", &state.running)
            .field("stopped", &state.go_on.is_none())
            .field("failure", &state.failure);
    }

    pub(super) fn enlist(
        self: &Arc<Self>,
        queue: &Arc<str>,
        handler: &Arc<Handler>,
        prefetch: u16,
        consumers: Vec<Consumer>,
    ) -> Result<Vec<Worker>> {
        let mut state = self.state.lock();
        if state.go_on.is_none() {
            return Err(Error::invalid("the workers were shut down"));
        }
        let workers = consumers.into_iter().map(|consumer| {
            let worker = Worker {
                channel: consumer.channel().clone(),
                deliveries: consumer.receiver().clone(),
                handler: Arc::clone(handler),
                queue: Arc::clone(queue),
                crew: Arc::clone(self),
                answers: Answers::new(prefetch),
                has_warned: false,
            };
            state.consumers.push(consumer);
            state.running.push(Arc::clone(queue));
            worker
        });
        Ok(workers.collect())
    }

    pub(super) fn stop(&self) {
        let mut state = self.state.lock();
        state.go_on = None;
        let consumers = std::mem::take(&mut state.consumers);
        // Dropping them sends, and that must not happen under the lock.
        drop(state);
        drop(consumers);
    }

    pub(super) fn wait(&self, deadline: Option<Deadline>) -> Result<()> {
        let mut state = self.state.lock();
        if state.threads.contains(&thread::current().id()) {
            return Err(Error::invalid("a handler would wait for itself to end"));
        }
        while !state.running.is_empty() {
            let Some(deadline) = deadline else {
                self.ended.wait(&mut state);
                continue;
            };
            let waited = self.ended.wait_until(&mut state, deadline.at());
            if waited.timed_out() && !state.running.is_empty() {
                let doing = format!("waiting for handlers of {:?}", state.running);
                return Err(Error::timed_out(deadline.duration()).doing(doing));
            }
        }
        let failure = state.failure.clone().or_else(|| state.lost.error());
        failure.map_or(Ok(()), Err)
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.try_recv() == Err(TryRecvError::Disconnected)
    }

    pub(super) fn fail(&self, error: Error) {
        self.state.lock().failure.get_or_insert(error);
        self.stop();
    }

    pub(super) fn lose(&self, not_sent: u64, unconfirmed: u64, queue: &Arc<str>) {
        let kind = ErrorKind::AcksLost {
            not_sent,
            unconfirmed,
        };
        log::error!("worker of queue {queue:?}: {kind}");
        let lost = &mut self.state.lock().lost;
        lost.not_sent += not_sent;
        lost.unconfirmed += unconfirmed;
        lost.queues.insert(Arc::clone(queue));
    }
}
