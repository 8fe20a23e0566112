//! Allocates channel numbers.

use std::collections::HashSet;

use parking_lot::{Condvar, Mutex};

use super::deadline::Deadline;

/// The channel numbers from 1 up to and including the negotiated `channel_max`.
#[derive(Debug)]
pub(crate) struct ChannelNumbers {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    highest: u16,
    /// The lowest number never used. It is 65,536 when all were used.
    fresh: u32,
    /// Numbers that were used and are free again. Some may exceed `highest`: the next connection
    /// can raise the limit again.
    released: Vec<u16>,
    /// Numbers whose `channel.close` the broker has not answered yet.
    closing: HashSet<u16>,
    /// Numbers whose `channel.close` crossed the broker's. A late close-ok could pass for the reply
    /// to the next close, so these numbers are reused last.
    closed_by_both: HashSet<u16>,
    /// The connection has ended, and no more numbers will be released.
    ended: bool,
}

impl State {
    fn take(&mut self) -> Option<u16> {
        let is_allowed = |number: &u16| *number <= self.highest;
        let is_quiet = |number: &u16| is_allowed(number) && !self.closed_by_both.contains(number);
        if let Some(index) = self.released.iter().rposition(is_quiet) {
            return Some(self.released.remove(index));
        }
        if let Some(number) = u16::try_from(self.fresh).ok().filter(is_allowed) {
            self.fresh += 1;
            return Some(number);
        }
        // Only crossed closes are left: take the number that was released first.
        let index = self.released.iter().position(is_allowed)?;
        let number = self.released.remove(index);
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

    /// Adapts to a new connection: its `channel_max` may differ, and it gets no late close-ok.
    pub(crate) fn begin(&self, highest: u16) {
        let mut state = self.state.lock();
        state.highest = highest;
        state.closed_by_both.clear();
    }

    /// Takes a free number. If all are in use, waits until `deadline` while a channel is closing.
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

    /// How many numbers are free.
    pub(crate) fn free(&self) -> u16 {
        let highest = self.highest();
        highest.saturating_sub(self.in_use())
    }

    /// How many numbers are in use, including those of channels that are being opened or closed.
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
        // Wake all waiters: one gets this number, and the others must give up if no channel is
        // closing any more.
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
    fn numbers_run_up_to_channel_max_and_released_ones_are_reused() {
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
    fn a_number_in_use_is_not_reissued_when_the_limit_drops_and_rises() {
        let numbers = ChannelNumbers::new(3);
        let used = [(); 3].map(|()| numbers.take(now()));
        assert_eq!(used, [Some(1), Some(2), Some(3)]);
        numbers.begin(1);
        numbers.begin(3);
        // Channels 2 and 3 still have handles.
        assert_eq!(numbers.take(now()), None);
        numbers.release(2);
        assert_eq!(numbers.take(now()), Some(2));
        assert_eq!(numbers.take(now()), None);
    }

    #[test]
    fn a_number_closed_by_both_sides_is_reused_last() {
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
    fn take_waits_while_a_channel_is_closing() {
        let numbers = ChannelNumbers::new(1);
        let soon = Deadline::after(Duration::from_secs(20));
        numbers.take(now());
        // No channel is closing, so it does not wait.
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
