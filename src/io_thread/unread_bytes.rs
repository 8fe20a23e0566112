//! Counts the bytes that wait in a crossbeam channel.

use std::collections::VecDeque;

use crate::sync::Mutex;

/// The size of the messages that wait in a channel. A channel does not report what is taken out.
/// So this keeps the sizes of all that went in, and drops the oldest ones down to the number of
/// messages that are still in the channel.
#[derive(Debug, Default)]
pub(crate) struct UnreadBytes {
    sizes: Mutex<Sizes>,
}

#[derive(Debug, Default)]
struct Sizes {
    queue: VecDeque<u32>,
    sum: u64,
}

impl Sizes {
    fn keep(&mut self, messages: usize) {
        while self.queue.len() > messages {
            let size = self.queue.pop_front().unwrap_or_default();
            self.sum -= u64::from(size);
        }
    }
}

impl UnreadBytes {
    /// Adds a message that is about to be sent to the channel.
    pub(crate) fn push(&self, bytes: usize, in_channel: impl FnOnce() -> usize) {
        let size = u32::try_from(bytes).unwrap_or(u32::MAX);
        let mut sizes = self.sizes.lock();
        if sizes.queue.len() == sizes.queue.capacity() {
            sizes.keep(in_channel());
        }
        sizes.queue.push_back(size);
        sizes.sum += u64::from(size);
    }

    pub(crate) fn bytes(&self, in_channel: usize) -> u64 {
        let mut sizes = self.sizes.lock();
        sizes.keep(in_channel);
        sizes.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_that_have_left_the_channel_are_not_counted() {
        let unread = UnreadBytes::default();
        for size in [1, 20, 300] {
            unread.push(size, || 0);
        }
        assert_eq!(unread.bytes(3), 321);
        assert_eq!(unread.bytes(1), 300);
        assert_eq!(unread.bytes(0), 0);
    }

    #[test]
    fn sizes_do_not_pile_up_while_the_reader_keeps_up() {
        let unread = UnreadBytes::default();
        for _ in 0..100_000 {
            unread.push(1, || 2);
        }
        assert!(unread.sizes.lock().queue.capacity() < 100);
        assert_eq!(unread.bytes(2), 2);
    }
}
