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
    #[inline(always)] // Not inlined, this costs 15 % of a publish.
    pub(super) fn admit(
        &self,
        state: &mut MutexGuard<'_, State>,
        channel: ChannelId,
        admission: Admission,
        timeout: impl Into<Timeout>,
    ) -> Result<()> {
        let is_admitted = matches!(state.phase, Phase::Open)
            && state.channels.get(channel).admits(admission) == Ok(true)
            && has_room(state, channel, admission);
        if is_admitted {
            return Ok(());
        }
        self.wait(state, channel, admission, timeout.into().deadline())
    }

    /// Checks again, and with the error if waiting is in vain.
    fn admits(&self, state: &State, channel: ChannelId, admission: Admission) -> Result<bool> {
        Ok(self.admits_now(state, admission)?
            && is_ready(state, channel, admission)?
            && has_room(state, channel, admission))
    }

    /// Whether the connection's phase lets this admission pass. Fails if it can never pass.
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
            | Admission::Publish
            | Admission::PublishLarge
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
        self.check_process()?;
        while !self.admits(state, channel, admission)? {
            let is_stopped = !is_ready(state, channel, admission)? || state.blocked.is_some();
            let _waits = is_stopped.then(|| self.stopped.begin());
            let timed_out = self.changed.wait_until(state, deadline.at()).timed_out();
            if timed_out && !self.admits(state, channel, admission)? {
                return Err(not_admitted(state, channel, admission, deadline));
            }
        }
        Ok(())
    }
}

/// Whether the channel's own state lets the caller append.
fn is_ready(state: &State, channel: ChannelId, admission: Admission) -> Result<bool> {
    let channel = state.channels.get(channel);
    let admitted = channel.admits(admission);
    admitted.map_err(|refusal| channel.refused(refusal))
}

#[inline(always)]
fn has_room(state: &State, channel: ChannelId, admission: Admission) -> bool {
    let has_room = |large| state.send_queue.has_room(channel.number, large);
    match admission {
        Admission::Always | Admission::Recovery { .. } | Admission::RecoveryOpen { .. } => true,
        Admission::Room | Admission::Attached | Admission::Answer { .. } | Admission::Reopen => {
            has_room(false)
        }
        Admission::Publish => state.blocked.is_none() && has_room(false),
        Admission::PublishLarge => state.blocked.is_none() && has_room(true),
    }
}

/// The error for a caller that has waited in vain.
fn not_admitted(
    state: &State,
    channel: ChannelId,
    admission: Admission,
    deadline: Deadline,
) -> Error {
    let after = deadline.duration();
    if let Phase::Lost { cause, .. } = &state.phase {
        return recovering(cause, after);
    }
    let is_publish = matches!(admission, Admission::Publish | Admission::PublishLarge);
    match (&state.blocked, is_ready(state, channel, admission)) {
        (_, Err(refused)) => refused,
        (_, Ok(false)) if is_publish => Error::new(ErrorKind::FlowStopped { after }),
        // The broker has not answered an earlier `channel.open` or `channel.close`.
        (_, Ok(false)) => Error::timed_out(after),
        (Some(Blocked { reason, .. }), Ok(true)) if is_publish => {
            let reason = reason.clone();
            Error::new(ErrorKind::ConnectionBlocked { reason, after })
        }
        (_, Ok(true)) => Error::new(ErrorKind::OutboxFull { after }),
    }
}

fn recovering(cause: &Error, after: Duration) -> Error {
    let cause = Box::new(cause.kind().clone());
    Error::new(ErrorKind::Recovering { cause, after })
}
