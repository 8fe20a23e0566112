//! What is reported once, to everyone who waits for it.

use std::collections::BTreeMap;

/// Failures by number. A failure is in one report; but when several threads wait at the same time, each of them is told:
/// it may be the one that it concerns.
#[derive(Debug)]
pub(crate) struct Failures<T> {
    failures: BTreeMap<u64, Failure<T>>,
    /// Counts the reports.
    round: u64,
    /// How many threads are waiting.
    waiting: usize,
}

#[derive(Debug)]
struct Failure<T> {
    what: T,
    /// In which round it was reported.
    reported: Option<u64>,
}

/// One who waits, and since when.
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
        self.failures.values().map(|failure| &failure.what)
    }

    pub(crate) fn insert(&mut self, number: u64, what: T) {
        let reported = None;
        self.failures.insert(number, Failure { what, reported });
    }

    pub(crate) fn remove(&mut self, number: u64) -> Option<T> {
        self.failures.remove(&number).map(|failure| failure.what)
    }

    pub(crate) fn remove_first(&mut self) -> Option<T> {
        self.failures.pop_first().map(|(_, failure)| failure.what)
    }

    /// Begins to wait. To be followed by `give_up` or `take`.
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

    /// What this one will be told.
    pub(crate) fn concerning(&self, since: Waiter) -> impl Iterator<Item = &T> {
        let failures = self.failures.values();
        let concerning = failures.filter(move |it| it.reported.map_or(true, |it| it >= since.0));
        concerning.map(|failure| &failure.what)
    }

    /// All failures that were not reported before this one began to wait, by their numbers.
    pub(crate) fn take(&mut self, since: Waiter) -> Vec<(u64, T)> {
        let mut taken = Vec::new();
        for (number, failure) in &mut self.failures {
            let reported = *failure.reported.get_or_insert(self.round);
            if reported >= since.0 {
                taken.push((*number, failure.what.clone()));
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
    fn everyone_who_waits_is_told_and_nobody_twice() {
        let mut report = Failures::new();
        report.insert(2, "b");
        let (one, other) = (report.wait(), report.wait());
        report.insert(1, "a");
        assert_eq!(report.take(one), [(1, "a"), (2, "b")]);
        // Who begins now has not been waiting when these were told.
        let late = report.wait();
        report.insert(3, "c");
        assert_eq!(report.take(late), [(3, "c")]);
        assert_eq!(report.take(other), [(1, "a"), (2, "b"), (3, "c")]);
        assert_eq!(report.len(), 0);

        report.wait();
        report.insert(4, "d");
        report.give_up();
        assert_eq!(report.remove(4), Some("d"));
        let next = report.wait();
        assert_eq!(report.take(next), []);
    }
}
