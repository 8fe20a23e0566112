//! Finds the state of a channel under the outbox's lock.
//!
//! A handle of a channel that has ended outlives the channel's number, which a later channel may
//! have by then. So each channel has a place of its own, which is free when its handles are gone.

use crossbeam_channel::{Receiver, Sender};

use super::channel::Channel;
use crate::error::Error;

/// A channel: where its state is, and its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChannelId {
    place: usize,
    pub(crate) number: u16,
}

/// The connection itself, which AMQP calls channel 0.
pub(crate) const CONNECTION: ChannelId = ChannelId {
    place: usize::MAX,
    number: 0,
};

/// Owns the place of a channel. Dropping it takes no lock, since a channel's last handle can be
/// dropped anywhere.
#[derive(Debug)]
pub(crate) struct OwnedChannel {
    pub(crate) id: ChannelId,
    /// Differs between channels that have had the same number.
    pub(crate) life: u64,
    dropped: Sender<usize>,
}

impl Drop for OwnedChannel {
    fn drop(&mut self) {
        // This fails only if the connection is gone, too.
        let _ = self.dropped.send(self.id.place);
    }
}

pub(super) struct Channels {
    connection: Channel,
    places: Vec<Channel>,
    free: Vec<usize>,
    dropped: (Sender<usize>, Receiver<usize>),
}

impl Channels {
    pub(super) fn new() -> Self {
        Self {
            connection: Channel::new(0),
            places: Vec::new(),
            free: Vec::new(),
            dropped: crossbeam_channel::unbounded(),
        }
    }

    /// Adds a channel that is not open yet.
    pub(super) fn add(&mut self, number: u16, life: u64) -> OwnedChannel {
        self.free.extend(self.dropped.1.try_iter());
        let channel = Channel::new(number);
        let place = self.free.pop().unwrap_or(self.places.len());
        match self.places.get_mut(place) {
            Some(unused) => {
                let former = std::mem::replace(unused, channel);
                self.connection.unflushed.inherit(former.unflushed);
            }
            None => self.places.push(channel),
        }
        OwnedChannel {
            id: ChannelId { place, number },
            life,
            dropped: self.dropped.0.clone(),
        }
    }

    /// The connection is lost.
    pub(super) fn lose_unflushed(&mut self, cause: &Error) {
        for channel in self.all() {
            channel.unflushed.lost(cause);
        }
    }

    /// All messages up to this one are flushed. If others may be lost, returns the first cause.
    pub(super) fn flushed(&mut self, number: u64) -> Option<Error> {
        let causes = self.all().map(|it| it.unflushed.flushed(number));
        causes.fold(None, Option::or)
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Channel> {
        self.places.iter_mut().chain([&mut self.connection])
    }

    #[inline]
    pub(super) fn get(&self, id: ChannelId) -> &Channel {
        self.places.get(id.place).unwrap_or(&self.connection)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: ChannelId) -> &mut Channel {
        match self.places.get_mut(id.place) {
            Some(channel) => channel,
            None => &mut self.connection,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_used_again_when_its_channel_is_dropped() {
        let mut channels = Channels::new();
        let [one, two] = [1, 2].map(|number| channels.add(number, 0));
        channels.get_mut(one.id).opened(7);
        assert_eq!(channels.get(one.id).opened_in(), Some(7));
        let is_open = [one.id, two.id, CONNECTION].map(|id| channels.get(id).is_open_in(7));
        assert_eq!(is_open, [true, false, true]);
        let place = one.id.place;
        drop(one);
        let three = channels.add(3, 1);
        assert_eq!((three.id.place, channels.places.len()), (place, 2));
        assert_eq!(channels.get(three.id).opened_in(), None);
        let four = channels.add(4, 1);
        assert!(four.id.place != two.id.place && four.id.place != place);
    }
}
