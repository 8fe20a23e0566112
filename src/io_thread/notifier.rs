//! A bounded notification queue that drops its oldest entries when full.

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;

use super::unread_bytes::UnreadBytes;

/// Drops every entry until the program asks for a receiver, then keeps the newest ones. A program
/// that forgets to read must not hold up the IO thread or fill the memory.
pub(crate) struct Notifier<T> {
    /// The largest number of entries kept.
    limit: usize,
    bytes: Option<Bytes<T>>,
    state: Mutex<State<T>>,
}

/// A limit in bytes. The newest entry is kept whatever its size.
struct Bytes<T> {
    limit: u64,
    size_of: fn(&T) -> usize,
    unread: UnreadBytes,
}

impl<T> Bytes<T> {
    /// Whether an entry of this size fits.
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

    /// A queue that is also limited in bytes.
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

    /// Returns a receiver of the entries from the first call on. All receivers share these entries,
    /// and are disconnected when the queue ends.
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

    /// Sends an entry. Passes to `dropped` what the program will not read: this entry, or the
    /// oldest ones.
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
        // There is room now: every sender holds the lock.
        let _ = sender.try_send(full.into_inner());
    }

    pub(crate) fn end(&self) {
        *self.state.lock() = State::Ended;
    }

    /// Opens the queue again after its end. Old receivers stay disconnected.
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
    fn keeps_the_newest_entries_from_the_first_receiver_to_the_end() {
        let notifier = Notifier::new(2);
        assert_eq!(send(&notifier, 1), [1]);
        let (one, other) = (notifier.receiver(), notifier.receiver());
        let dropped = [2, 3, 4].map(|it| send(&notifier, it));
        assert_eq!(dropped, [vec![], vec![], vec![2]]);
        assert_eq!([one.try_recv(), other.try_recv()], [Ok(3), Ok(4)]);
        assert_eq!(send(&notifier, 5), [0; 0]);
        notifier.end();
        assert_eq!(send(&notifier, 6), [6]);
        assert_eq!(one.iter().collect::<Vec<_>>(), [5]);
        assert!(notifier.receiver().recv().is_err());
    }

    #[test]
    fn keeps_at_most_its_limit_in_bytes_but_always_the_newest_entry() {
        let notifier = Notifier::of_bytes(10, 100, |size| *size);
        let receiver = notifier.receiver();
        let dropped = [40, 50, 30, 25].map(|it| send(&notifier, it));
        assert_eq!(dropped, [vec![], vec![], vec![40], vec![50]]);
        // What the program has read makes room.
        assert_eq!(receiver.try_recv(), Ok(30));
        assert_eq!(send(&notifier, 70), [0; 0]);
        assert_eq!(send(&notifier, 1000), [25, 70]);
        assert_eq!(send(&notifier, 1), [1000]);
        assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [1]);
    }
}
