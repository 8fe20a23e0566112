//! Failures that are reported once, to every thread that waits for them.

use std::collections::BTreeMap;

/// Failures by number. Each failure is reported once. If several threads wait at the same time, all
/// of them get it, since any of them may have published the message.
#[derive(Debug)]
pub(crate) struct Failures<T> {
    failures: BTreeMap<u64, Failure<T>>,
    /// Number of reports so far.
    round: u64,
    /// Number of waiting threads.
    waiting: usize,
}

#[derive(Debug)]
struct Failure<T> {
    value: T,
    /// The round in which it was reported.
    reported: Option<u64>,
}

/// A waiting thread: the round in which its wait began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waiter(u64);

impl<T: Clone> Failures<T> {
    pub(crate) fn new() -> Self {
        Self {
            failures: BTreeMap::new(),
            round: 0,
            waiting: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.failures.len()
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.failures.values().map(|failure| &failure.value)
    }

    pub(crate) fn insert(&mut self, number: u64, value: T) {
        let reported = None;
        self.failures.insert(number, Failure { value, reported });
    }

    pub(crate) fn remove(&mut self, number: u64) -> Option<T> {
        self.failures.remove(&number).map(|failure| failure.value)
    }

    pub(crate) fn remove_first(&mut self) -> Option<T> {
        self.failures.pop_first().map(|(_, failure)| failure.value)
    }

    /// Registers a waiting thread. The caller must follow up with `give_up` or `take`.
    pub(crate) fn wait(&mut self) -> Waiter {
        self.waiting += 1;
        Waiter(self.round)
    }

    pub(crate) fn give_up(&mut self) {
        self.waiting -= 1;
        if self.waiting == 0 {
            self.failures.retain(|_, it| it.reported.is_none());
        }
    }

    /// The failures that `take` would return to this thread.
    pub(crate) fn concerning(&self, waiter: Waiter) -> impl Iterator<Item = &T> {
        let failures = self.failures.values();
        let concerning = failures.filter(move |it| it.reported.map_or(true, |it| it >= waiter.0));
        concerning.map(|failure| &failure.value)
    }

    /// Ends the wait. Returns all failures, with their numbers, that were not reported before the
    /// wait began.
    pub(crate) fn take(&mut self, waiter: Waiter) -> Vec<(u64, T)> {
        let mut taken = Vec::new();
        for (number, failure) in &mut self.failures {
            let reported = *failure.reported.get_or_insert(self.round);
            if reported >= waiter.0 {
                taken.push((*number, failure.value.clone()));
            }
        }
        self.round += 1;
        self.give_up();
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_waiting_thread_gets_every_failure_once() {
        let mut failures = Failures::new();
        failures.insert(2, "b");
        let (one, other) = (failures.wait(), failures.wait());
        failures.insert(1, "a");
        assert_eq!(failures.take(one), [(1, "a"), (2, "b")]);
        // This wait begins after the report, so the reported failures are not repeated.
        let late = failures.wait();
        failures.insert(3, "c");
        assert_eq!(failures.take(late), [(3, "c")]);
        assert_eq!(failures.take(other), [(1, "a"), (2, "b"), (3, "c")]);
        assert_eq!(failures.len(), 0);

        failures.wait();
        failures.insert(4, "d");
        failures.give_up();
        assert_eq!(failures.remove(4), Some("d"));
        let next = failures.wait();
        assert_eq!(failures.take(next), []);
    }
}
