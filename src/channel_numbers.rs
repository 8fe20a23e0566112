//! Which channel numbers are free.

/// Numbers from 1 to the agreed `channel_max`, both inclusive.
#[derive(Debug)]
pub(crate) struct ChannelNumbers {
    highest: u16,
    /// The lowest that was never used; `None` when all were.
    fresh: Option<u16>,
    /// Used before, and closed by both sides.
    released: Vec<u16>,
}

impl ChannelNumbers {
    pub(crate) fn new(highest: u16) -> Self {
        Self {
            highest,
            fresh: Some(1),
            released: Vec::new(),
        }
    }

    pub(crate) fn highest(&self) -> u16 {
        self.highest
    }

    pub(crate) fn take(&mut self) -> Option<u16> {
        if let Some(number) = self.released.pop() {
            return Some(number);
        }
        let number = self.fresh?;
        self.fresh = (number < self.highest).then(|| number + 1);
        Some(number)
    }

    pub(crate) fn release(&mut self, number: u16) {
        self.released.push(number);
    }
}

#[cfg(test)]
mod tests {
    use super::ChannelNumbers;

    #[test]
    fn runs_to_channel_max_inclusive_and_reuses_what_was_released() {
        let mut numbers = ChannelNumbers::new(3);
        assert_eq!([1, 2, 3].map(Some), [(); 3].map(|()| numbers.take()));
        assert_eq!(numbers.take(), None);
        numbers.release(2);
        assert_eq!(numbers.take(), Some(2));
        assert_eq!(numbers.take(), None);
    }

    #[test]
    fn does_not_overflow_without_a_limit() {
        let mut numbers = ChannelNumbers::new(u16::MAX);
        assert_eq!(std::iter::from_fn(|| numbers.take()).count(), 65_535);
    }
}
