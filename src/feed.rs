//! News for whoever wants to read it.

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;

/// Nothing is kept before someone asks for a receiver. Then the newest so many are: nothing that a program forgets to
/// read may hold up the IO thread or fill the memory.
pub(crate) struct Feed<T> {
    limit: usize,
    state: Mutex<State<T>>,
}

enum State<T> {
    Unasked,
    Open {
        sender: Sender<T>,
        receiver: Receiver<T>,
    },
    Ended,
}

impl<T> Feed<T> {
    pub(crate) fn new(limit: usize) -> Self {
        let state = Mutex::new(State::Unasked);
        Self { limit, state }
    }

    /// All receivers share what comes from the first call on. They are disconnected at the end.
    pub(crate) fn receiver(&self) -> Receiver<T> {
        let mut state = self.state.lock();
        match &*state {
            State::Open { receiver, .. } => receiver.clone(),
            State::Ended => crossbeam_channel::bounded(0).1,
            State::Unasked => {
                let (sender, receiver) = crossbeam_channel::bounded(self.limit);
                *state = State::Open {
                    sender,
                    receiver: receiver.clone(),
                };
                receiver
            }
        }
    }

    /// Gives back what nobody will read: this one, or the oldest.
    pub(crate) fn send(&self, news: T) -> Option<T> {
        let state = self.state.lock();
        let State::Open { sender, receiver } = &*state else {
            return Some(news);
        };
        let full = sender.try_send(news).err()?;
        let oldest = receiver.try_recv().ok();
        let _ = sender.try_send(full.into_inner());
        oldest
    }

    pub(crate) fn end(&self) {
        *self.state.lock() = State::Ended;
    }

    /// After the end there can be news again; who was told of the end has to ask for another receiver.
    pub(crate) fn reopen(&self) {
        *self.state.lock() = State::Unasked;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest_from_the_first_question_to_the_end() {
        let feed = Feed::new(2);
        assert_eq!(feed.send(1), Some(1));
        let (one, other) = (feed.receiver(), feed.receiver());
        assert_eq!(
            [feed.send(2), feed.send(3), feed.send(4)],
            [None, None, Some(2)]
        );
        assert_eq!([one.try_recv(), other.try_recv()], [Ok(3), Ok(4)]);
        assert_eq!(feed.send(5), None);
        feed.end();
        assert_eq!(feed.send(6), Some(6));
        assert_eq!(one.iter().collect::<Vec<_>>(), [5]);
        assert!(feed.receiver().recv().is_err());
    }
}
