//! A channel's publisher confirms: which messages the broker has answered.

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, ErrorKind, Result};
use crate::io_thread::deadline::Deadline;
use crate::session::failures::Failures;

/// Number of nacked messages to keep until a caller asks for them.
const FAILURES_LIMIT: usize = 65_536;
/// The key of the last loss in `Answers::failed`; one loss says as much as many. No message reaches
/// this number.
const LOST: u64 = u64::MAX;

/// The answers to the messages of one channel. The core matches them to the messages.
#[derive(Debug, Default)]
pub(crate) struct Confirms {
    answers: Mutex<Answers>,
    changed: Condvar,
}

#[derive(Debug)]
struct Answers {
    /// All messages up to this number are answered.
    answered_to: u64,
    /// The messages after the first number, up to and including the second, were lost with a
    /// connection.
    lost_range: (u64, u64),
    failed: Failures<Failure>,
    /// Why no more answers arrive.
    end: Option<Error>,
}

#[derive(Debug, Clone)]
enum Failure {
    Nacked,
    /// Lost with the connection, perhaps with messages before it.
    Lost(Error),
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            answered_to: 0,
            lost_range: (0, 0),
            failed: Failures::new(),
            end: None,
        }
    }
}

impl Confirms {
    pub(crate) fn nacked(&self, sequence_number: u64) {
        let failed = &mut self.answers.lock().failed;
        failed.insert(sequence_number, Failure::Nacked);
        // A program that tracks its confirms itself never asks for them.
        if failed.len() > FAILURES_LIMIT {
            failed.remove_first();
        }
    }

    /// Messages that were published without a `Confirm` were lost with the connection.
    pub(crate) fn lost(&self, cause: &Error) {
        let failure = Failure::Lost(cause.clone());
        self.answers.lock().failed.insert(LOST, failure);
        self.changed.notify_all();
    }

    /// Continues after a loss. `republished` holds the first and the last message that are
    /// published again; all others up to `published` are answered or lost. Called under the
    /// outbox's lock.
    pub(crate) fn resume(&self, published: u64, republished: Option<(u64, u64)>) {
        let (answered_to, last_republished) = match republished {
            Some((first, last)) => (first - 1, last),
            None => (published, published),
        };
        self.answers.lock().lost_range = (last_republished, published);
        self.answered_to(answered_to);
    }

    /// `last` is the last message that is published again. Later ones could not be sent.
    pub(crate) fn resume_up_to(&self, last: u64) {
        self.answers.lock().lost_range.0 = last;
    }

    /// The channel is opened again after its end. Messages without an answer were lost with it.
    /// `unawaited` is the last one without a `Confirm`.
    pub(crate) fn reopen(&self, cause: &Error, published: u64, unawaited: u64) {
        let mut answers = self.answers.lock();
        answers.end = None;
        if answers.answered_to < unawaited {
            let failure = Failure::Lost(cause.clone());
            answers.failed.insert(LOST, failure);
        }
        drop(answers);
        self.resume(published, None);
    }

    pub(crate) fn answered_to(&self, number: u64) {
        let mut answers = self.answers.lock();
        let (last_republished, lost_to) = answers.lost_range;
        answers.answered_to = if number < last_republished {
            number
        } else {
            number.max(lost_to)
        };
        drop(answers);
        self.changed.notify_all();
    }

    pub(crate) fn end(&self, error: &Error) {
        self.answers.lock().end = Some(error.clone());
        self.changed.notify_all();
    }

    /// Waits until the broker has answered all messages up to `published`.
    pub(crate) fn wait(&self, published: u64, deadline: Deadline) -> Result<()> {
        self.wait_unless(published, |_| false, deadline)
    }

    /// Waits like [`wait`](Self::wait), or until `is_over`.
    fn wait_unless(
        &self,
        published: u64,
        is_over: impl Fn(&Answers) -> bool,
        deadline: Deadline,
    ) -> Result<()> {
        let mut answers = self.answers.lock();
        while answers.answered_to < published && !is_over(&answers) {
            if let Some(error) = &answers.end {
                return Err(error.clone());
            }
            let result = self.changed.wait_until(&mut answers, deadline.at());
            let still_waits = answers.answered_to < published && !is_over(&answers);
            if result.timed_out() && still_waits && answers.end.is_none() {
                return Err(Error::timed_out(deadline.duration()));
            }
        }
        Ok(())
    }

    /// Waits until the deadline until no more answers arrive, because the channel has ended.
    /// Returns false on timeout.
    pub(crate) fn wait_end(&self, deadline: Deadline) -> bool {
        let mut answers = self.answers.lock();
        while answers.end.is_none() {
            let waited = self.changed.wait_until(&mut answers, deadline.at());
            if waited.timed_out() {
                return answers.end.is_some();
            }
        }
        true
    }

    /// Waits like [`wait`](Self::wait), then reports nacked and lost messages as an error.
    pub(crate) fn wait_and_report(&self, published: u64, deadline: Deadline) -> Result<()> {
        let waiter = self.answers.lock().failed.wait();
        let is_lost = |it: &Failure| matches!(it, Failure::Lost(_));
        let is_over = |answers: &Answers| answers.failed.concerning(waiter).any(is_lost);
        let answered = self.wait_unless(published, is_over, deadline);
        let failed = &mut self.answers.lock().failed;
        if answered.is_err() {
            failed.give_up();
            return answered;
        }
        let mut sequence_numbers = Vec::new();
        for (number, failure) in failed.take(waiter) {
            match failure {
                Failure::Nacked => sequence_numbers.push(number),
                Failure::Lost(cause) => return Err(cause),
            }
        }
        if sequence_numbers.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Nacked { sequence_numbers }))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn wait_skips_messages_lost_after_the_republished_ones() {
        let confirms = Confirms::default();
        let now = Deadline::after(Duration::ZERO);
        confirms.resume(5, Some((2, 3)));
        confirms.answered_to(2);
        assert!(confirms.wait(5, now).is_err());
        confirms.answered_to(3);
        confirms.wait(5, now).unwrap();
        // A new message is waited for.
        assert!(confirms.wait(6, now).is_err());
        confirms.answered_to(6);
        confirms.wait(6, now).unwrap();
        confirms.resume(7, None);
        confirms.wait(7, now).unwrap();
    }

    #[test]
    fn unreported_failures_are_bounded() {
        let confirms = Confirms::default();
        let published = FAILURES_LIMIT as u64 + 10;
        for number in 1..=published {
            confirms.nacked(number);
            confirms.lost(&Error::timed_out(Duration::ZERO));
        }
        assert!(confirms.answers.lock().failed.len() <= FAILURES_LIMIT);
        confirms.resume(published, None);
        let now = Deadline::after(Duration::ZERO);
        let lost = confirms.wait_and_report(published, now);
        assert!(lost.unwrap_err().is_timeout());
        confirms.wait_and_report(published, now).unwrap();
    }
}
