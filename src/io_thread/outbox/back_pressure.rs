//! Back-pressure: when a caller may append, and how it waits until then.

use std::time::Duration;

use super::state::{Blocked, Phase, State};
use super::Outbox;
use crate::error::{Error, ErrorKind, Result};
use crate::io_thread::deadline::Deadline;
use crate::sync::MutexGuard;

/// When a caller may append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// At once: for a few bytes that must not wait.
    Always,
    /// When the connection is open and has room.
    Room,
    /// When the connection is open, has room, and is not blocked by the broker.
    Publish { large: bool },
    /// When there is room, even while the connection is being recovered: the caller checks what is
    /// open there.
    Attached,
    /// For the recovery thread, without waiting for room and before others are admitted. Passes on
    /// the connection of this epoch only.
    Recovery { epoch: u64 },
}

/// Whether the caller's own state lets it append.
pub(crate) enum Gate {
    Open,
    /// Wait, and ask again when the outbox is notified.
    Shut,
}

/// How long to wait. It becomes a deadline only when waiting begins: most callers never wait, and
/// reading the clock costs time.
pub(crate) enum Timeout {
    Begun(Deadline),
    NotBegun(Duration),
}

impl Timeout {
    pub(crate) fn deadline(self) -> Deadline {
        match self {
            Self::Begun(deadline) => deadline,
            Self::NotBegun(after) => Deadline::after(after),
        }
    }
}

impl From<Deadline> for Timeout {
    fn from(deadline: Deadline) -> Self {
        Self::Begun(deadline)
    }
}

impl From<Duration> for Timeout {
    fn from(after: Duration) -> Self {
        Self::NotBegun(after)
    }
}

impl Outbox {
    #[inline]
    pub(super) fn admit(
        &self,
        state: &mut MutexGuard<'_, State>,
        channel: u16,
        admission: Admission,
        timeout: impl Into<Timeout>,
        gate: &impl Fn() -> Result<Gate>,
    ) -> Result<()> {
        if self.admits(state, channel, admission, gate)? {
            return Ok(());
        }
        self.wait(state, channel, admission, gate, timeout.into().deadline())
    }

    #[inline(always)]
    fn admits(
        &self,
        state: &State,
        channel: u16,
        admission: Admission,
        gate: &impl Fn() -> Result<Gate>,
    ) -> Result<bool> {
        if !matches!(state.phase, Phase::Open) && !self.admits_now(state, admission)? {
            return Ok(false);
        }
        let gate_open = matches!(gate()?, Gate::Open);
        Ok(match admission {
            Admission::Always => true,
            Admission::Recovery { .. } => gate_open,
            Admission::Room | Admission::Attached => {
                gate_open && state.send_queue.has_room(channel, false)
            }
            Admission::Publish { large } => {
                gate_open && state.blocked.is_none() && state.send_queue.has_room(channel, large)
            }
        })
    }

    /// Whether this admission passes while the connection is lost. Fails if it can never pass.
    #[cold]
    fn admits_now(&self, state: &State, admission: Admission) -> Result<bool> {
        let (cause, connected) = match &state.phase {
            Phase::Open => return Ok(true),
            Phase::Lost {
                cause, connected, ..
            } => (cause, *connected),
            Phase::Ended(error) => return Err(error.clone()),
        };
        match admission {
            Admission::Always | Admission::Attached => Ok(true),
            Admission::Recovery { epoch } if state.epoch != epoch => Err(cause.clone()),
            Admission::Recovery { .. } => Ok(connected),
            _ if self.fails_fast => Err(recovering(cause, Duration::ZERO)),
            Admission::Room | Admission::Publish { .. } => Ok(false),
        }
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
        while !self.admits(state, channel, admission, gate)? {
            let stopped = state.blocked.is_some() || matches!(gate()?, Gate::Shut);
            let _waits = stopped.then(|| self.stopped.begin());
            let timed_out = self.changed.wait_until(state, deadline.at()).timed_out();
            if timed_out && !self.admits(state, channel, admission, gate)? {
                let stopped = matches!(gate()?, Gate::Shut);
                return Err(Self::no_room(state, admission, stopped, deadline));
            }
        }
        Ok(())
    }

    fn no_room(state: &State, admission: Admission, stopped: bool, deadline: Deadline) -> Error {
        let after = deadline.duration();
        if let Phase::Lost { cause, .. } = &state.phase {
            return recovering(cause, after);
        }
        match &state.blocked {
            _ if stopped => Error::new(ErrorKind::FlowStopped { after }),
            Some(Blocked { reason, .. }) if matches!(admission, Admission::Publish { .. }) => {
                let reason = reason.clone();
                Error::new(ErrorKind::ConnectionBlocked { reason, after })
            }
            _ => Error::new(ErrorKind::OutboxFull { after }),
        }
    }
}

fn recovering(cause: &Error, after: Duration) -> Error {
    let cause = Box::new(cause.kind().clone());
    Error::new(ErrorKind::Recovering { cause, after })
}
