//! Back-pressure: how a caller waits until it may append.

use std::time::Duration;

use super::admission::Admission;
use super::channels::ChannelId;
use super::state::{Blocked, Phase, State};
use super::Outbox;
use crate::error::{Error, ErrorKind, Result};
use crate::io_thread::deadline::Deadline;
use crate::sync::MutexGuard;

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
        channel: ChannelId,
        admission: Admission,
        timeout: impl Into<Timeout>,
    ) -> Result<()> {
        if self.admits(state, channel, admission)? {
            return Ok(());
        }
        self.wait(state, channel, admission, timeout.into().deadline())
    }

    #[inline(always)]
    fn admits(&self, state: &State, channel: ChannelId, admission: Admission) -> Result<bool> {
        if !matches!(state.phase, Phase::Open) && !self.admits_now(state, admission)? {
            return Ok(false);
        }
        if !state.channels.get(channel).admits(admission)? {
            return Ok(false);
        }
        let has_room = |large| state.send_queue.has_room(channel.number, large);
        Ok(match admission {
            Admission::Always | Admission::Recovery { .. } | Admission::RecoveryOpen { .. } => true,
            Admission::Room
            | Admission::Attached
            | Admission::Answer { .. }
            | Admission::Reopen => has_room(false),
            Admission::Publish { large } => state.blocked.is_none() && has_room(large),
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
            Admission::Answer { delivery_tag } if delivery_tag > 0 => Ok(true),
            Admission::Recovery { epoch } | Admission::RecoveryOpen { epoch } => {
                match epoch == state.epoch {
                    true => Ok(connected),
                    false => Err(cause.clone()),
                }
            }
            _ if self.fails_fast => Err(recovering(cause, Duration::ZERO)),
            Admission::Room
            | Admission::Publish { .. }
            | Admission::Answer { .. }
            | Admission::Reopen => Ok(false),
        }
    }

    #[cold]
    fn wait(
        &self,
        state: &mut MutexGuard<'_, State>,
        channel: ChannelId,
        admission: Admission,
        deadline: Deadline,
    ) -> Result<()> {
        while !self.admits(state, channel, admission)? {
            let ready = state.channels.get(channel).admits(admission)?;
            let _waits = (!ready || state.blocked.is_some()).then(|| self.stopped.begin());
            let timed_out = self.changed.wait_until(state, deadline.at()).timed_out();
            if timed_out && !self.admits(state, channel, admission)? {
                let ready = state.channels.get(channel).admits(admission)?;
                return Err(Self::not_admitted(state, admission, ready, deadline));
            }
        }
        Ok(())
    }

    /// The error for a caller that has waited in vain. `ready` tells whether its channel admits it.
    fn not_admitted(state: &State, admission: Admission, ready: bool, deadline: Deadline) -> Error {
        let after = deadline.duration();
        if let Phase::Lost { cause, .. } = &state.phase {
            return recovering(cause, after);
        }
        let is_publish = matches!(admission, Admission::Publish { .. });
        match &state.blocked {
            _ if is_publish && !ready => Error::new(ErrorKind::FlowStopped { after }),
            // The broker has not answered an earlier `channel.open` or `channel.close`.
            _ if !ready => Error::timed_out(after),
            Some(Blocked { reason, .. }) if is_publish => {
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
