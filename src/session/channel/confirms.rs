//! How far the broker has answered for what a channel published.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, ErrorKind, Result};
use crate::io_thread::deadline::Deadline;
use crate::proto::Leftover;
use crate::session::failures::Failures;
use crate::wire::method::{ConfirmSelect, Encode};

/// So many are kept of the messages that were refused and of which nobody was told.
const FAILURES_LIMIT: usize = 65_536;
/// Under this number the last loss is reported: one says as much as many. No message comes to it.
const LOST: u64 = u64::MAX;

/// The confirms of one channel. Which message is answered how, the core finds out.
#[derive(Debug, Default)]
pub(crate) struct Confirms {
    /// Whether `confirm.select` was sent, and not refused. Changes, as `published`, only under the outbox's lock, where
    /// the order of publishes is decided.
    selected: AtomicBool,
    /// The sequence number of the last message.
    published: AtomicU64,
    /// That of the last one that nobody waits for by itself; 0 if it was lost.
    unawaited: AtomicU64,
    answers: Mutex<Answers>,
    changed: Condvar,
}

#[derive(Debug)]
struct Answers {
    /// All numbers up to this are answered.
    answered_to: u64,
    /// Behind the first of these numbers, all up to the second were lost with a connection.
    lost_behind: (u64, u64),
    failed: Failures<Failure>,
    /// No more answers will come.
    end: Option<Error>,
}

#[derive(Debug, Clone)]
enum Failure {
    Nacked,
    /// With the connection, and perhaps others before it.
    Lost(Error),
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            answered_to: 0,
            lost_behind: (0, 0),
            failed: Failures::new(),
            end: None,
        }
    }
}

impl Confirms {
    pub(crate) fn select(&self) {
        self.selected.store(true, Ordering::Release);
    }

    /// The broker has ended the channel for this reason.
    pub(crate) fn closed(&self, error: &Error) {
        let reason = error.close_reason();
        if reason.is_some_and(|it| it.method == ConfirmSelect::ID.name()) {
            self.selected.store(false, Ordering::Release);
        }
    }

    #[inline]
    pub(crate) fn is_selected(&self) -> bool {
        self.selected.load(Ordering::Acquire)
    }

    /// The sequence number of the message that is just being published; whether someone waits for it by itself.
    #[inline]
    pub(crate) fn next(&self, awaited: bool) -> Option<u64> {
        if !self.is_selected() {
            return None;
        }
        let number = self.published.load(Ordering::Relaxed) + 1;
        self.published.store(number, Ordering::Release);
        if !awaited {
            self.unawaited.store(number, Ordering::Relaxed);
        }
        Some(number)
    }

    pub(crate) fn nacked(&self, sequence_number: u64) {
        let failed = &mut self.answers.lock().failed;
        failed.insert(sequence_number, Failure::Nacked);
        // A program that keeps its own accounts never asks for them.
        if failed.len() > FAILURES_LIMIT {
            failed.remove_first();
        }
    }

    /// The connection was lost: returns the last message that was not answered, of those that nobody waits for by itself.
    /// The others are told elsewhere. Under the outbox's lock.
    pub(crate) fn take_unawaited(&self, left: Leftover) -> Option<u64> {
        // A loss is told once.
        let unawaited = self.unawaited.swap(0, Ordering::Relaxed);
        let never_sent = Some(unawaited).filter(|it| *it > left.told_to);
        never_sent.or(left.unanswered)
    }

    /// Messages that nobody waits for by itself were lost with the connection.
    pub(crate) fn lost(&self, cause: &Error) {
        let failure = Failure::Lost(cause.clone());
        self.answers.lock().failed.insert(LOST, failure);
        self.changed.notify_all();
    }

    /// All is answered or lost but what is published again, from the first to the last of these numbers. Under the
    /// outbox's lock.
    pub(crate) fn resume(&self, again: Option<(u64, u64)>) {
        let published = self.published.load(Ordering::Relaxed);
        let (answered_to, last_again) = match again {
            Some((first, last)) => (first - 1, last),
            None => (published, published),
        };
        self.answers.lock().lost_behind = (last_again, published);
        self.answered_to(answered_to);
    }

    /// This is the last one that is published again: those after it could not be sent.
    pub(crate) fn resume_up_to(&self, last: u64) {
        self.answers.lock().lost_behind.0 = last;
    }

    /// The channel is opened again after its end, which messages without an answer were lost with.
    pub(crate) fn reopen(&self, cause: &Error) {
        let unawaited = self.unawaited.swap(0, Ordering::Relaxed);
        let mut answers = self.answers.lock();
        answers.end = None;
        if answers.answered_to < unawaited {
            let failure = Failure::Lost(cause.clone());
            answers.failed.insert(LOST, failure);
        }
        drop(answers);
        self.resume(None);
    }

    pub(crate) fn answered_to(&self, number: u64) {
        let mut answers = self.answers.lock();
        let (last_again, lost_to) = answers.lost_behind;
        answers.answered_to = if number < last_again {
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

    /// Waits until all that was published before this call is answered.
    pub(crate) fn wait(&self, deadline: Deadline) -> Result<()> {
        self.wait_unless(|_| false, deadline)
    }

    /// Waits as [`wait`](Self::wait) does, or until there is another end to it.
    fn wait_unless(&self, over: impl Fn(&Answers) -> bool, deadline: Deadline) -> Result<()> {
        let published = self.published.load(Ordering::Acquire);
        let mut answers = self.answers.lock();
        while answers.answered_to < published && !over(&answers) {
            if let Some(error) = &answers.end {
                return Err(error.clone());
            }
            let result = self.changed.wait_until(&mut answers, deadline.at());
            let waits_on = answers.answered_to < published && !over(&answers);
            if result.timed_out() && waits_on && answers.end.is_none() {
                return Err(Error::timed_out(deadline.duration()));
            }
        }
        Ok(())
    }

    /// Waits as [`wait`](Self::wait) does, and tells which messages were refused.
    pub(crate) fn wait_and_report(&self, deadline: Deadline) -> Result<()> {
        let since = self.answers.lock().failed.wait();
        let lost = |it: &Failure| matches!(it, Failure::Lost(_));
        let over = |answers: &Answers| answers.failed.concerning(since).any(lost);
        let answered = self.wait_unless(over, deadline);
        let failed = &mut self.answers.lock().failed;
        if answered.is_err() {
            failed.give_up();
            return answered;
        }
        let mut sequence_numbers = Vec::new();
        for (number, failure) in failed.take(since) {
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
    fn lost_ones_behind_those_that_are_published_again_are_not_waited_for() {
        let confirms = Confirms::default();
        confirms.select();
        for _ in 1..=5 {
            confirms.next(true);
        }
        let now = Deadline::after(Duration::ZERO);
        confirms.resume(Some((2, 3)));
        confirms.answered_to(2);
        assert!(confirms.wait(now).is_err());
        confirms.answered_to(3);
        confirms.wait(now).unwrap();
        // What is new is.
        confirms.next(true);
        assert!(confirms.wait(now).is_err());
        confirms.answered_to(6);
        confirms.wait(now).unwrap();
        confirms.next(true);
        confirms.resume(None);
        confirms.wait(now).unwrap();
    }

    #[test]
    fn failures_that_nobody_asks_for_do_not_pile_up() {
        let confirms = Confirms::default();
        confirms.select();
        for number in 1..=FAILURES_LIMIT as u64 + 10 {
            confirms.next(false);
            confirms.nacked(number);
            confirms.lost(&Error::timed_out(Duration::ZERO));
        }
        assert!(confirms.answers.lock().failed.len() <= FAILURES_LIMIT);
        confirms.resume(None);
        let lost = confirms.wait_and_report(Deadline::after(Duration::ZERO));
        assert!(lost.unwrap_err().is_timeout());
        confirms
            .wait_and_report(Deadline::after(Duration::ZERO))
            .unwrap();
    }
}
