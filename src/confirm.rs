//! Which published messages the broker has answered for.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use crate::deadline::Deadline;
use crate::error::{Error, ErrorKind, Result};

/// The confirms of one channel.
#[derive(Debug, Default)]
pub(crate) struct Confirms {
    /// Whether `confirm.select` was sent. Changes, as `published`, only under the outbox's lock, where the order of
    /// publishes is decided.
    selected: AtomicBool,
    /// The sequence number of the last message.
    published: AtomicU64,
    settled: Mutex<Settled>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Settled {
    /// All numbers up to this are answered.
    all_to: u64,
    /// Answered numbers beyond it.
    beyond: BTreeSet<u64>,
    /// Refused ones that nobody was told of.
    nacked: Vec<u64>,
    /// No more answers will come.
    end: Option<Error>,
}

impl Settled {
    fn settle(&mut self, number: u64, multiple: bool, nack: bool) {
        let first = if multiple { self.all_to + 1 } else { number };
        if number < first || number <= self.all_to {
            return;
        }
        if nack {
            let beyond = &self.beyond;
            let fresh = (first..=number).filter(|it| !beyond.contains(it));
            self.nacked.extend(fresh);
        }
        if multiple {
            self.all_to = number;
            self.beyond = self.beyond.split_off(&number);
        } else {
            self.beyond.insert(number);
        }
        self.beyond.remove(&self.all_to);
        while self.beyond.remove(&(self.all_to + 1)) {
            self.all_to += 1;
        }
    }
}

impl Confirms {
    pub(crate) fn select(&self) {
        self.selected.store(true, Ordering::Release);
    }

    pub(crate) fn is_selected(&self) -> bool {
        self.selected.load(Ordering::Acquire)
    }

    /// The sequence number of the message that is just being published.
    #[inline]
    pub(crate) fn next(&self) -> Option<u64> {
        if !self.is_selected() {
            return None;
        }
        let number = self.published.load(Ordering::Relaxed) + 1;
        self.published.store(number, Ordering::Release);
        Some(number)
    }

    /// Takes an answer of the broker. Numbers that were never published are ignored.
    pub(crate) fn settle(&self, number: u64, multiple: bool, nack: bool) {
        let published = self.published.load(Ordering::Acquire);
        // "Zero, multiple" means all that are outstanding.
        let all = number == 0 && multiple;
        let number = if all { published } else { number };
        if number > published {
            log::warn!("the broker confirmed message {number}, {published} were published");
            return;
        }
        self.settled.lock().settle(number, multiple, nack);
        self.changed.notify_all();
    }

    pub(crate) fn end(&self, error: &Error) {
        self.settled.lock().end = Some(error.clone());
        self.changed.notify_all();
    }

    /// Waits until all that was published before this call is answered.
    pub(crate) fn wait(&self, deadline: Deadline) -> Result<()> {
        let published = self.published.load(Ordering::Acquire);
        let mut settled = self.settled.lock();
        while settled.all_to < published {
            if let Some(error) = &settled.end {
                return Err(error.clone());
            }
            let result = self.changed.wait_until(&mut settled, deadline.at());
            if result.timed_out() && settled.all_to < published && settled.end.is_none() {
                return Err(Error::timed_out(deadline.duration()));
            }
        }
        let sequence_numbers = std::mem::take(&mut settled.nacked);
        if sequence_numbers.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Nacked { sequence_numbers }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn published(count: u64) -> Confirms {
        let confirms = Confirms::default();
        assert_eq!(confirms.next(), None);
        confirms.select();
        let numbers: Vec<_> = (0..count).filter_map(|_| confirms.next()).collect();
        assert_eq!(numbers, (1..=count).collect::<Vec<_>>());
        confirms
    }

    fn wait(confirms: &Confirms) -> Result<()> {
        confirms.wait(Deadline::after(Duration::ZERO))
    }

    #[test]
    fn counts_answers_in_any_order() {
        let confirms = published(5);
        for number in [3, 1, 5, 2] {
            confirms.settle(number, false, false);
            assert!(wait(&confirms).unwrap_err().is_timeout());
        }
        confirms.settle(4, false, false);
        wait(&confirms).unwrap();
        assert!(confirms.settled.lock().beyond.is_empty());
    }

    #[test]
    fn multiple_answers_for_all_up_to_it() {
        let confirms = published(5);
        confirms.settle(5, false, false);
        confirms.settle(4, true, false);
        wait(&confirms).unwrap();

        let confirms = published(5);
        confirms.settle(2, true, false);
        confirms.settle(0, true, false);
        wait(&confirms).unwrap();
    }

    #[test]
    fn tells_once_which_were_refused() {
        let confirms = published(6);
        confirms.settle(2, false, false);
        confirms.settle(3, true, true);
        confirms.settle(6, false, true);
        confirms.settle(5, true, false);
        let sequence_numbers = vec![1, 3, 6];
        assert_eq!(
            *wait(&confirms).unwrap_err().kind(),
            ErrorKind::Nacked { sequence_numbers }
        );
        wait(&confirms).unwrap();
    }

    #[test]
    fn ignores_answers_that_nobody_asked_for() {
        let confirms = published(2);
        confirms.settle(u64::MAX, false, false);
        confirms.settle(u64::MAX, true, false);
        confirms.settle(0, false, false);
        assert!(wait(&confirms).unwrap_err().is_timeout());
        confirms.settle(2, true, false);
        confirms.settle(1, false, true);
        wait(&confirms).unwrap();
    }

    #[test]
    fn what_is_confirmed_stays_confirmed_after_the_end() {
        let confirms = published(1);
        confirms.settle(1, false, false);
        confirms.end(&Error::invalid("gone"));
        wait(&confirms).unwrap();
        confirms.next();
        assert_eq!(wait(&confirms).unwrap_err().to_string(), "gone");
    }
}
