//! Whether the connection is open, lost or ended, as its callers see it.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::send_queue::SendQueue;
use super::state::{Phase, State};
use super::{Outbox, NONE};
use crate::error::{Error, Result};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::peer::Peer;

/// What the end of a socket means for the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The connection is lost.
    New,
    /// It was lost before, and an attempt to recover it has failed.
    Again,
    /// It has ended for good.
    None,
}

/// A start to measure [`elapsed`](Deadline::elapsed) from.
pub(super) fn now() -> Deadline {
    Deadline::after(Duration::MAX)
}

impl Outbox {
    /// Why the connection has ended, if it has.
    pub(crate) fn end_cause(&self) -> Option<Error> {
        match &self.state.lock().phase {
            Phase::Ended(cause) => Some(cause.clone()),
            Phase::Open | Phase::Lost { .. } => None,
        }
    }

    /// Why nothing can be sent for now, or for good.
    pub(crate) fn cause(&self) -> Option<Error> {
        self.loss_cause().or_else(|| self.end_cause())
    }

    /// Why the connection is being recovered, if it is.
    pub(crate) fn loss_cause(&self) -> Option<Error> {
        match &self.state.lock().phase {
            Phase::Lost { cause, .. } => Some(cause.clone()),
            Phase::Open | Phase::Ended(_) => None,
        }
    }

    /// Like [`loss_cause`](Self::loss_cause), and whether the lost connection was open to callers.
    pub(crate) fn last_loss(&self) -> Option<(Error, bool)> {
        match &self.state.lock().phase {
            Phase::Lost {
                cause, was_open, ..
            } => Some((cause.clone(), *was_open)),
            Phase::Open | Phase::Ended(_) => None,
        }
    }

    /// Whether callers fail at once because the connection is being recovered.
    pub(crate) fn refuses(&self) -> bool {
        self.fails_fast && self.loss_cause().is_some()
    }

    /// How many times the connection was lost.
    pub(crate) fn epoch(&self) -> u64 {
        self.state.lock().epoch
    }

    /// Waits up to `deadline` until the connection has ended for good. Returns false on timeout.
    pub(crate) fn wait_ended(&self, deadline: Deadline) -> bool {
        self.wait_until(deadline, |state| matches!(state.phase, Phase::Ended(_)))
    }

    /// Waits up to `timeout` until the socket is closed and the IO thread is done. Returns false on
    /// timeout.
    pub(crate) fn wait_finished(&self, timeout: Duration) -> bool {
        self.wait_until(Deadline::after(timeout), |state| state.finished)
    }

    fn wait_until(&self, deadline: Deadline, is_so: impl Fn(&State) -> bool) -> bool {
        let mut state = self.state.lock();
        while !is_so(&state) {
            let waited = self.changed.wait_until(&mut state, deadline.at());
            if waited.timed_out() {
                return is_so(&state);
            }
        }
        true
    }

    /// Notifies the callers of [`wait_finished`](Self::wait_finished) that the IO thread is done.
    pub(crate) fn finish(&self) {
        self.state.lock().finished = true;
        self.changed.notify_all();
    }

    /// A receiver for `select!`, disconnected when the connection has ended for good.
    pub(crate) fn ended(&self) -> &Receiver<Infallible> {
        &self.ended
    }

    /// Opens the recovered connection to callers. Returns false if it was lost once more. `tell`
    /// runs before any caller goes on, and before another loss can be reported.
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

    /// The peer of the last connection.
    pub(crate) fn peer(&self) -> Arc<Peer> {
        Arc::clone(&self.state.lock().peer)
    }

    /// Makes the IO thread drop the connection of this epoch, so that recovery can try again.
    pub(crate) fn abandon(&self, epoch: u64) {
        self.abandoned.store(epoch, Ordering::Release);
        self.wake();
    }

    /// Ends the connection for good: all waiting callers fail with this error. When closes cross,
    /// the broker's reason replaces our own.
    pub(crate) fn set_end(&self, error: Error) {
        self.state.lock().end(error);
        self.changed.notify_all();
    }

    /// Marks the connection as lost, unless it has ended for good. From now on callers wait.
    pub(crate) fn set_lost(&self, error: Error) -> Loss {
        let mut state = self.state.lock();
        let lost = match &state.phase {
            Phase::Open => Loss::New,
            Phase::Lost { .. } => Loss::Again,
            Phase::Ended(_) => Loss::None,
        };
        if lost != Loss::None {
            let (since, was_open) = match &state.phase {
                // It was not open to callers in between.
                Phase::Lost { since, .. } => (*since, false),
                Phase::Open | Phase::Ended(_) => (now(), true),
            };
            state.channels.lose_unflushed(&error);
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

    /// Adopts the connection that follows a lost one, and admits the recovery. Fails with the cause
    /// if the connection has ended for good.
    pub(crate) fn begin(&self, peer: Arc<Peer>) -> Result<()> {
        let mut state = self.state.lock();
        state.payload_limit = peer.tuning.payload_limit();
        state.channel_numbers.begin(peer.tuning.highest_channel());
        state.peer = peer;
        state.send_queue = SendQueue::default();
        let stale = std::mem::take(&mut state.commands);
        let begun = match &mut state.phase {
            Phase::Ended(cause) => Err(cause.clone()),
            Phase::Lost { connected, .. } => {
                *connected = true;
                Ok(())
            }
            Phase::Open => Ok(()),
        };
        // Not under the lock: a dropped mailbox can be the last handle of a channel.
        drop(state);
        drop(stale);
        self.changed.notify_all();
        begun
    }

    /// Whether [`abandon`](Self::abandon) was called for this connection. Clears the request.
    pub(crate) fn take_abandoned(&self) -> bool {
        let is_any = self.abandoned.load(Ordering::Acquire) != NONE;
        if !is_any {
            return false;
        }
        let abandoned = self.abandoned.swap(NONE, Ordering::AcqRel);
        let state = self.state.lock();
        // If the program has closed the connection meanwhile, its close is still to be sent.
        abandoned == state.epoch && !matches!(state.phase, Phase::Ended(_))
    }

    /// Makes the IO thread drop the socket at once, without a clean close.
    pub(crate) fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
        self.wake();
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }
}
