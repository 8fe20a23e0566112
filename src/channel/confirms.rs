//! How far the broker has answered for what a channel published.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use crate::deadline::Deadline;
use crate::error::{Error, ErrorKind, Result};
use crate::report::Report;

/// An answer of the broker to messages of a channel in confirm mode, just as it came: for programs that keep their own
/// accounts.
///
/// See <https://www.rabbitmq.com/docs/confirms#publisher-confirms>.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Confirmation {
    /// Which message it is for, counted from 1. Zero with `multiple`: all that were published.
    pub sequence_number: u64,
    /// It is also for all earlier messages that were not answered.
    pub multiple: bool,
    /// Refused (`basic.nack`), not confirmed.
    pub nack: bool,
}

/// The confirms of one channel. Which message is answered how, the core finds out.
#[derive(Debug, Default)]
pub(crate) struct Confirms {
    /// Whether `confirm.select` was sent. Changes, as `published`, only under the outbox's lock, where the order of
    /// publishes is decided.
    selected: AtomicBool,
    /// The sequence number of the last message.
    published: AtomicU64,
    answers: Mutex<Answers>,
    changed: Condvar,
}

#[derive(Debug)]
struct Answers {
    /// All numbers up to this are answered.
    answered_to: u64,
    nacked: Report<()>,
    /// No more answers will come.
    end: Option<Error>,
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            answered_to: 0,
            nacked: Report::new(),
            end: None,
        }
    }
}

impl Confirms {
    pub(super) fn select(&self) {
        self.selected.store(true, Ordering::Release);
    }

    pub(super) fn is_selected(&self) -> bool {
        self.selected.load(Ordering::Acquire)
    }

    /// The sequence number of the message that is just being published.
    #[inline]
    pub(super) fn next(&self) -> Option<u64> {
        if !self.is_selected() {
            return None;
        }
        let number = self.published.load(Ordering::Relaxed) + 1;
        self.published.store(number, Ordering::Release);
        Some(number)
    }

    pub(super) fn nacked(&self, sequence_number: u64) {
        self.answers.lock().nacked.insert(sequence_number, ());
    }

    pub(super) fn answered_to(&self, number: u64) {
        self.answers.lock().answered_to = number;
        self.changed.notify_all();
    }

    pub(super) fn end(&self, error: &Error) {
        self.answers.lock().end = Some(error.clone());
        self.changed.notify_all();
    }

    /// Waits until all that was published before this call is answered.
    pub(crate) fn wait(&self, deadline: Deadline) -> Result<()> {
        let published = self.published.load(Ordering::Acquire);
        let mut answers = self.answers.lock();
        while answers.answered_to < published {
            if let Some(error) = &answers.end {
                return Err(error.clone());
            }
            let result = self.changed.wait_until(&mut answers, deadline.at());
            if result.timed_out() && answers.answered_to < published && answers.end.is_none() {
                return Err(Error::timed_out(deadline.duration()));
            }
        }
        Ok(())
    }

    /// Waits as [`wait`](Self::wait) does, and tells which messages were refused.
    pub(super) fn wait_and_report(&self, deadline: Deadline) -> Result<()> {
        let since = self.answers.lock().nacked.wait();
        let answered = self.wait(deadline);
        let nacked = &mut self.answers.lock().nacked;
        if answered.is_err() {
            nacked.give_up();
            return answered;
        }
        let nacked = nacked.take(since);
        if nacked.is_empty() {
            return Ok(());
        }
        let sequence_numbers = nacked.into_iter().map(|(number, ())| number).collect();
        Err(Error::new(ErrorKind::Nacked { sequence_numbers }))
    }
}
