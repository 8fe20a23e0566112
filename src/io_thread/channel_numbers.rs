//! Which channel numbers are free.

use std::collections::HashSet;

use parking_lot::{Condvar, Mutex};

use super::deadline::Deadline;

/// Numbers from 1 to the agreed `channel_max`, both inclusive.
#[derive(Debug)]
pub(crate) struct ChannelNumbers {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    highest: u16,
    /// The lowest that was never used; one more than a number can be when all were.
    fresh: u32,
    /// Used before, and closed by both sides; also beyond `highest`, which another connection may raise again.
    released: Vec<u16>,
    /// Closed by us; the broker has not agreed yet.
    closing: HashSet<u16>,
    /// Closed by both sides at the same time: a late close-ok of the broker could be taken for the
    /// answer to the next close. So these are used last.
    closed_by_both: HashSet<u16>,
    /// The connection has ended: nothing will be released any more.
    ended: bool,
}

impl State {
    fn take(&mut self) -> Option<u16> {
        let is_allowed = |number: &u16| *number <= self.highest;
        let is_quiet = |number: &u16| is_allowed(number) && !self.closed_by_both.contains(number);
        if let Some(place) = self.released.iter().rposition(is_quiet) {
            return Some(self.released.remove(place));
        }
        if let Some(number) = u16::try_from(self.fresh).ok().filter(is_allowed) {
            self.fresh += 1;
            return Some(number);
        }
        // The one that has been closed for the longest time.
        let place = self.released.iter().position(is_allowed)?;
        let number = self.released.remove(place);
        self.closed_by_both.remove(&number);
        Some(number)
    }
}

impl ChannelNumbers {
    pub(crate) fn new(highest: u16) -> Self {
        Self {
            state: Mutex::new(State {
                highest,
                fresh: 1,
                released: Vec::new(),
                closing: HashSet::new(),
                closed_by_both: HashSet::new(),
                ended: false,
            }),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn highest(&self) -> u16 {
        self.state.lock().highest
    }

    /// Another connection may have another `channel_max`, and nothing comes late there.
    pub(crate) fn begin(&self, highest: u16) {
        let mut state = self.state.lock();
        state.highest = highest;
        state.closed_by_both.clear();
    }

    /// A free number. If there is none, but the broker has yet to agree to the close of some channel, that is waited
    /// for.
    pub(crate) fn take(&self, deadline: Deadline) -> Option<u16> {
        let mut state = self.state.lock();
        loop {
            if let Some(number) = state.take() {
                return Some(number);
            }
            if state.closing.is_empty() || state.ended {
                return None;
            }
            let result = self.changed.wait_until(&mut state, deadline.at());
            if result.timed_out() {
                return state.take();
            }
        }
    }

    /// How many numbers can be taken.
    pub(crate) fn free(&self) -> u16 {
        let highest = self.highest();
        highest.saturating_sub(self.in_use())
    }

    /// How many channels there are, also such as are being opened or closed.
    pub(crate) fn in_use(&self) -> u16 {
        let state = self.state.lock();
        if state.ended {
            return 0;
        }
        let ever = state.fresh - 1;
        let released = u32::try_from(state.released.len()).unwrap_or(ever);
        u16::try_from(ever.saturating_sub(released)).unwrap_or(u16::MAX)
    }

    pub(crate) fn closing(&self, number: u16) {
        self.state.lock().closing.insert(number);
    }

    pub(crate) fn closed_by_both(&self, number: u16) {
        self.state.lock().closed_by_both.insert(number);
    }

    pub(crate) fn release(&self, number: u16) {
        let mut state = self.state.lock();
        state.closing.remove(&number);
        state.released.push(number);
        // All: one who waits for this number gets it, one who now waits for nothing is told so.
        self.changed.notify_all();
    }

    pub(crate) fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{ChannelNumbers, Deadline};

    fn now() -> Deadline {
        Deadline::after(Duration::ZERO)
    }

    #[test]
    fn runs_to_channel_max_inclusive_and_reuses_what_was_released() {
        let numbers = ChannelNumbers::new(3);
        assert_eq!([1, 2, 3].map(Some), [(); 3].map(|()| numbers.take(now())));
        assert_eq!(numbers.take(now()), None);
        numbers.release(2);
        assert_eq!(numbers.take(now()), Some(2));
        assert_eq!(numbers.take(now()), None);
    }

    #[test]
    fn does_not_overflow_without_a_limit() {
        let numbers = ChannelNumbers::new(u16::MAX);
        assert_eq!(std::iter::from_fn(|| numbers.take(now())).count(), 65_535);
    }

    #[test]
    fn a_number_that_is_in_use_is_not_given_out_when_a_lower_limit_rises_again() {
        let numbers = ChannelNumbers::new(3);
        let used = [(); 3].map(|()| numbers.take(now()));
        assert_eq!(used, [Some(1), Some(2), Some(3)]);
        numbers.begin(1);
        numbers.begin(3);
        // The handles of the second and third are still there.
        assert_eq!(numbers.take(now()), None);
        numbers.release(2);
        assert_eq!(numbers.take(now()), Some(2));
        assert_eq!(numbers.take(now()), None);
    }

    #[test]
    fn a_number_that_both_sides_have_closed_is_used_last() {
        let numbers = ChannelNumbers::new(3);
        let one = numbers.take(now()).unwrap();
        numbers.closed_by_both(one);
        numbers.release(one);
        assert_eq!(
            [(); 4].map(|()| numbers.take(now())),
            [Some(2), Some(3), Some(1), None]
        );
        numbers.release(1);
        numbers.release(3);
        assert_eq!(numbers.take(now()), Some(3));
    }

    #[test]
    fn waits_for_a_number_that_is_being_released() {
        let numbers = ChannelNumbers::new(1);
        let soon = Deadline::after(Duration::from_secs(20));
        numbers.take(now());
        // None is: no need to wait.
        assert_eq!(numbers.take(soon), None);
        numbers.closing(1);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| numbers.take(soon));
            numbers.release(1);
            assert_eq!(waiting.join().unwrap(), Some(1));
            numbers.closing(1);
            let waiting = scope.spawn(|| numbers.take(soon));
            numbers.end();
            assert_eq!(waiting.join().unwrap(), None);
        });
    }
}
