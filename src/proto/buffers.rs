//! Memory for arriving messages.

/// Messages up to this size, in bytes, take small buffers.
const SMALL: usize = 4 << 10;

/// Memory of messages that the program has dropped, to be used again.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// Empty ones.
    pub(crate) small: Vec<Vec<u8>>,
    /// These keep their content, so that they can be read into without being cleared first.
    pub(crate) large: Vec<Vec<u8>>,
    /// Whether a message has taken the last large one. The pool resets this after looking for more.
    pub(crate) wants_large: bool,
}

impl Buffers {
    /// Whether a buffer of this capacity is a small one.
    #[inline]
    pub(crate) fn is_small(capacity: usize) -> bool {
        capacity <= SMALL
    }

    /// Whether more are of use.
    #[inline]
    pub(crate) fn are_wanted(&self) -> bool {
        self.small.is_empty() || self.wants_large
    }

    /// Takes a buffer for a message of this size. It is not much too large: the program may keep
    /// the message for long.
    #[inline]
    pub(super) fn take(&mut self, size: usize) -> Option<Vec<u8>> {
        let buffer = match Self::is_small(size) {
            true => self.small.pop(),
            false => self.take_large(),
        };
        buffer.filter(|it| (size..=2 * size + 64).contains(&it.capacity()))
    }

    #[cold]
    fn take_large(&mut self) -> Option<Vec<u8>> {
        let taken = self.large.pop();
        self.wants_large = self.large.is_empty();
        taken
    }
}
