//! Allocates channel numbers.

use std::collections::HashSet;

use super::channels::OwnedChannel;
use super::Outbox;
use crate::io_thread::deadline::Deadline;

/// The channel numbers from 1 up to and including the negotiated `channel_max`.
#[derive(Debug)]
pub(crate) struct ChannelNumbers {
    highest: u16,
    /// How many numbers were taken so far, counting each one again when it is reused.
    taken: u64,
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

impl ChannelNumbers {
    pub(super) fn new(highest: u16) -> Self {
        Self {
            highest,
            taken: 0,
            fresh: 1,
            released: Vec::new(),
            closing: HashSet::new(),
            closed_by_both: HashSet::new(),
            ended: false,
        }
    }

    pub(crate) fn highest(&self) -> u16 {
        self.highest
    }

    /// Adapts to a new connection: its `channel_max` may differ, and it gets no late close-ok.
    pub(super) fn begin(&mut self, highest: u16) {
        self.highest = highest;
        self.closed_by_both.clear();
    }

    fn take(&mut self) -> Option<u16> {
        let number = self.find()?;
        self.taken += 1;
        Some(number)
    }

    fn find(&mut self) -> Option<u16> {
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

    /// Whether a number will become free without a call of the program.
    fn may_come_free(&self) -> bool {
        !self.closing.is_empty() && !self.ended
    }

    /// How many numbers are free.
    fn free(&self) -> u16 {
        self.highest.saturating_sub(self.in_use())
    }

    /// How many numbers are in use, including those of channels that are being opened or closed.
    pub(super) fn in_use(&self) -> u16 {
        if self.ended {
            return 0;
        }
        let ever = self.fresh - 1;
        let released = u32::try_from(self.released.len()).unwrap_or(ever);
        u16::try_from(ever.saturating_sub(released)).unwrap_or(u16::MAX)
    }

    pub(crate) fn closing(&mut self, number: u16) {
        self.closing.insert(number);
    }

    pub(crate) fn closed_by_both(&mut self, number: u16) {
        self.closed_by_both.insert(number);
    }

    /// Frees a number. Callers that wait for one must look again: one gets this number, and the
    /// others give up if no channel is closing any more.
    pub(crate) fn release(&mut self, number: u16) {
        self.closing.remove(&number);
        self.released.push(number);
    }

    pub(super) fn end(&mut self) {
        self.ended = true;
    }
}

impl Outbox {
    /// Adds a channel with a free number. If all are in use, waits until `deadline` while a channel
    /// is closing.
    pub(crate) fn add_channel(&self, deadline: Deadline) -> Option<OwnedChannel> {
        let mut state = self.state.lock();
        let number = loop {
            if let Some(number) = state.channel_numbers.take() {
                break number;
            }
            if !state.channel_numbers.may_come_free() {
                return None;
            }
            let waited = self.changed.wait_until(&mut state, deadline.at());
            if waited.timed_out() {
                break state.channel_numbers.take()?;
            }
        };
        let life = state.channel_numbers.taken;
        Some(state.channels.add(number, life))
    }

    pub(crate) fn free_channel_numbers(&self) -> u16 {
        self.state.lock().channel_numbers.free()
    }

    pub(crate) fn highest_channel(&self) -> u16 {
        self.state.lock().channel_numbers.highest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_run_up_to_channel_max_and_released_ones_are_reused() {
        let mut numbers = ChannelNumbers::new(3);
        assert_eq!([1, 2, 3].map(Some), [(); 3].map(|()| numbers.take()));
        assert_eq!(numbers.take(), None);
        numbers.release(2);
        assert_eq!(numbers.take(), Some(2));
        assert_eq!(numbers.take(), None);
        assert_eq!(numbers.taken, 4);
    }

    #[test]
    fn does_not_overflow_without_a_limit() {
        let mut numbers = ChannelNumbers::new(u16::MAX);
        assert_eq!(std::iter::from_fn(|| numbers.take()).count(), 65_535);
    }

    #[test]
    fn a_number_in_use_is_not_reissued_when_the_limit_drops_and_rises() {
        let mut numbers = ChannelNumbers::new(3);
        let used = [(); 3].map(|()| numbers.take());
        assert_eq!(used, [Some(1), Some(2), Some(3)]);
        numbers.begin(1);
        numbers.begin(3);
        // Channels 2 and 3 still have handles.
        assert_eq!(numbers.take(), None);
        numbers.release(2);
        assert_eq!(numbers.take(), Some(2));
        assert_eq!(numbers.take(), None);
    }

    #[test]
    fn a_number_closed_by_both_sides_is_reused_last() {
        let mut numbers = ChannelNumbers::new(3);
        let one = numbers.take().unwrap();
        numbers.closed_by_both(one);
        numbers.release(one);
        assert_eq!(
            [(); 4].map(|()| numbers.take()),
            [Some(2), Some(3), Some(1), None]
        );
        numbers.release(1);
        numbers.release(3);
        assert_eq!(numbers.take(), Some(3));
    }
}
