//! The time between a loss and its recovery: how many attempts, and when.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::events::ConnectionEvent;
use crate::io_thread::deadline::Deadline;
use crate::io_thread::socket::connect::LAST_ATTEMPT;
use crate::io_thread::Shared;
use crate::log_line::log_line;
use crate::options::backoff::random;
use crate::options::RecoveryOptions;

pub(super) struct Outage {
    cause: Error,
    pub(super) since: Deadline,
    pub(super) attempts: u32,
    /// The step of the back-off that the next delay belongs to.
    backoff_step: u32,
    last: Option<Error>,
    next: Option<Duration>,
}

impl Outage {
    /// `relapses` is the number of losses in a row that came soon after a recovery.
    pub(super) fn new(cause: Error, relapses: u32) -> Self {
        Self {
            cause,
            since: Deadline::after(Duration::MAX),
            attempts: 0,
            backoff_step: relapses,
            last: None,
            next: None,
        }
    }

    /// What is left of `max_time`.
    fn left(&self, options: &RecoveryOptions) -> Option<Duration> {
        options.max_time.checked_sub(self.since.elapsed())
    }

    pub(super) fn attempt_ends(&self, options: &RecoveryOptions) -> Deadline {
        let left = self.left(options).unwrap_or_default();
        Deadline::after(left.max(LAST_ATTEMPT))
    }

    /// Returns how long to wait before the next attempt, or an error if there is none.
    pub(super) fn delay(&mut self, options: &RecoveryOptions) -> Result<Duration> {
        let left = self.left(options);
        let left = left.filter(|_| self.attempts < options.max_attempts);
        let Some(left) = left else {
            let last = self.last.take().unwrap_or_else(|| self.cause.clone());
            return Err(self.given_up(last));
        };
        let delay = self.next.take().unwrap_or_else(|| {
            let attempt = self.backoff_step.saturating_add(1);
            options.delay(attempt, random())
        });
        Ok(delay.min(left))
    }

    pub(super) fn begin_attempt(&mut self) {
        self.attempts = self.attempts.saturating_add(1);
        self.backoff_step = self.backoff_step.saturating_add(1);
    }

    /// Starts the back-off anew: the cause of the last failures was found, so the next attempt is
    /// likely to succeed.
    pub(super) fn reset_backoff(&mut self) {
        self.backoff_step = 0;
    }

    pub(super) fn failed(
        &mut self,
        error: Error,
        shared: &Shared,
        options: &RecoveryOptions,
    ) -> Result<()> {
        self.last = Some(error.clone());
        let next = self.delay(options)?;
        self.next = Some(next);
        let attempt = self.attempts;
        log_line!(
            Warn,
            shared.label(),
            "attempt {attempt} to recover the connection failed, \
             the next one follows in {next:.1?}: {error}"
        );
        shared.tell(ConnectionEvent::RecoveryFailed {
            attempt,
            error,
            next,
        });
        Ok(())
    }

    pub(super) fn given_up(&self, last: Error) -> Error {
        let kind = ErrorKind::RecoveryGivenUp {
            cause: Box::new(self.cause.kind().clone()),
            attempts: self.attempts,
            after: self.since.elapsed(),
            last: Box::new(last.kind().clone()),
        };
        Error::new(kind).caused_by(last)
    }
}

/// Whether every broker that could be reached refuses this login in words. A socket that closes
/// after the credentials does not count: the broker may have gone away just then.
pub(super) fn is_login_refused(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::LoginRefused { text, .. } => !text.is_empty(),
        ErrorKind::EndpointsFailed(failed) => {
            let refused = failed.iter().any(|it| is_login_refused(&it.error));
            refused
                && failed.iter().all(|it| {
                    let unreachable = matches!(it.error.kind(), ErrorKind::ConnectFailed { .. });
                    unreachable || is_login_refused(&it.error)
                })
        }
        _ => false,
    }
}
