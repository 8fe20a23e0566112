//! A bounded notification queue that drops its oldest entries when it is full.

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;

use super::unread_bytes::UnreadBytes;

/// Nothing is kept before the program asks for a receiver. Then the newest entries are: nothing that
/// a program forgets to read may hold up the IO thread or fill the memory.
pub(crate) struct Notifier<T> {
    /// How many entries are kept.
    limit: usize,
    bytes: Option<Bytes<T>>,
    state: Mutex<State<T>>,
}

/// A limit in bytes. The newest entry is kept in any case.
struct Bytes<T> {
    limit: u64,
    size_of: fn(&T) -> usize,
    unread: UnreadBytes,
}

impl<T> Bytes<T> {
    /// Whether there is room for one of this size.
    fn has_room(&self, size: usize, in_channel: usize) -> bool {
        self.unread.bytes(in_channel).saturating_add(size as u64) <= self.limit
    }
}

enum State<T> {
    Unasked,
    Open {
        sender: Sender<T>,
        receiver: Receiver<T>,
    },
    Ended,
}

impl<T> Notifier<T> {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            bytes: None,
            state: Mutex::new(State::Unasked),
        }
    }

    /// With a limit in bytes, too.
    pub(crate) fn of_bytes(limit: usize, bytes_limit: u64, size_of: fn(&T) -> usize) -> Self {
        let bytes = Bytes {
            limit: bytes_limit,
            size_of,
            unread: UnreadBytes::default(),
        };
        Self {
            bytes: Some(bytes),
            ..Self::new(limit)
        }
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

    /// Gives to `dropped` what the program will not read: this entry, or the oldest ones.
    pub(crate) fn send(&self, entry: T, mut dropped: impl FnMut(T)) {
        let state = self.state.lock();
        let State::Open { sender, receiver } = &*state else {
            return dropped(entry);
        };
        if let Some(bytes) = &self.bytes {
            let size = (bytes.size_of)(&entry);
            while !bytes.has_room(size, receiver.len()) {
                let Ok(oldest) = receiver.try_recv() else {
                    break;
                };
                dropped(oldest);
            }
            bytes.unread.push(size, || receiver.len());
        }
        let Err(full) = sender.try_send(entry) else {
            return;
        };
        receiver.try_recv().into_iter().for_each(&mut dropped);
        // There is room now: only here is sent, under the lock.
        let _ = sender.try_send(full.into_inner());
    }

    pub(crate) fn end(&self) {
        *self.state.lock() = State::Ended;
    }

    /// Opens the feed again after its end. Receivers from before stay disconnected.
    pub(crate) fn reopen(&self) {
        *self.state.lock() = State::Unasked;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends an entry, and returns what was dropped for it.
    fn send<T>(notifier: &Notifier<T>, entry: T) -> Vec<T> {
        let mut dropped = Vec::new();
        notifier.send(entry, |it| dropped.push(it));
        dropped
    }

    #[test]
    fn keeps_the_newest_from_the_first_question_to_the_end() {
        let notifier = Notifier::new(2);
        assert_eq!(send(&notifier, 1), [1]);
        let (one, other) = (notifier.receiver(), notifier.receiver());
        let dropped = [2, 3, 4].map(|it| send(&notifier, it));
        assert_eq!(dropped, [vec![], vec![], vec![2]]);
        assert_eq!([one.try_recv(), other.try_recv()], [Ok(3), Ok(4)]);
        assert_eq!(send(&notifier, 5), []);
        notifier.end();
        assert_eq!(send(&notifier, 6), [6]);
        assert_eq!(one.iter().collect::<Vec<_>>(), [5]);
        assert!(notifier.receiver().recv().is_err());
    }

    #[test]
    fn keeps_no_more_bytes_than_its_limit_but_always_the_newest() {
        let notifier = Notifier::of_bytes(10, 100, |size| *size);
        let receiver = notifier.receiver();
        let dropped = [40, 50, 30, 25].map(|it| send(&notifier, it));
        assert_eq!(dropped, [vec![], vec![], vec![40], vec![50]]);
        // What the program has read makes room.
        assert_eq!(receiver.try_recv(), Ok(30));
        assert_eq!(send(&notifier, 70), []);
        assert_eq!(send(&notifier, 1000), [25, 70]);
        assert_eq!(send(&notifier, 1), [1000]);
        assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [1]);
    }
}
