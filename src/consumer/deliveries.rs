//! The messages of one consumer, between the IO thread and whoever reads them.

use std::collections::VecDeque;
use std::mem::size_of;
use std::sync::{Arc, Weak};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::delivery::{Delivery, DeliverySource};
use crate::error::{Error, Result};
use crate::io_thread::counters::Gauge;
use crate::io_thread::deadline::Deadline;
use crate::io_thread::unread_bytes::UnreadBytes;
use crate::proto::Delivered;
use crate::stats::ConnectionStats;
use crate::wire::content::Content;

/// What an unread message takes beside its own bytes: its place here, and what an allocation costs.
const OVERHEAD: usize = size_of::<Result<Delivered>>() + 32;
/// Room for so many messages is kept when all are read.
const SPARE: usize = 256;

/// What has come and nobody has read.
///
/// The IO thread puts in many messages at once, and a reader takes out all there are at once. So they seldom meet, although
/// each message is read by a call of its own. Whoever asks for a [`receiver`](Self::receiver) gets a channel, which costs
/// both more: they meet at each message.
pub(crate) struct Deliveries {
    origin: Weak<DeliverySource>,
    queue: Mutex<Queue>,
    changed: Condvar,
    /// What a reader has taken out of the queue, and will read next. Locked before the queue.
    taken: Mutex<Messages>,
    receiver: Receiver<Result<Delivery>>,
    /// Of what is in the channel.
    unread: UnreadBytes,
}

/// Messages, and perhaps an error as the last.
#[derive(Default)]
struct Messages {
    queue: VecDeque<Result<Delivered>>,
    bytes: u64,
}

struct Queue {
    came: Messages,
    /// Someone has asked for the receiver, so all goes there.
    goes_to_channel: bool,
    has_ended: bool,
    /// None when nothing more goes into the channel.
    sender: Option<Sender<Result<Delivery>>>,
}

/// What a reader finds.
enum Take<'a> {
    Next(Result<Delivery>),
    /// The queue is locked since `taken` was found empty, too. Otherwise another reader could leave some there, and nobody
    /// would be told who begins to wait then.
    Nothing(MutexGuard<'a, Queue>),
}

impl Queue {
    /// What comes now goes into this channel, if there is one.
    fn channel(&self) -> Option<&Sender<Result<Delivery>>> {
        self.sender.as_ref().filter(|_| self.goes_to_channel)
    }
}

impl Deliveries {
    pub(crate) fn new(origin: Weak<DeliverySource>) -> Self {
        // Unbounded, because the IO thread must never wait for a consumer; prefetch bounds it.
        let (sender, receiver) = crossbeam_channel::unbounded();
        Self {
            origin,
            queue: Mutex::new(Queue {
                came: Messages::default(),
                goes_to_channel: false,
                has_ended: false,
                sender: Some(sender),
            }),
            changed: Condvar::new(),
            taken: Mutex::default(),
            receiver,
            unread: UnreadBytes::default(),
        }
    }

    // ---- the IO thread ----

    /// Puts in what has come, and says how many bytes that are.
    pub(crate) fn push(&self, messages: impl Iterator<Item = Delivered>) -> u64 {
        let mut bytes = 0;
        let messages = messages.map(|message| {
            bytes += size(&message.content);
            Ok(message)
        });
        let mut queue = self.queue.lock();
        if queue.has_ended {
            return 0;
        }
        if let Some(sender) = queue.channel().cloned() {
            // Not under the lock: this can be the end of the last handle of the channel, which then sends its close.
            drop(queue);
            let Some(origin) = self.origin.upgrade() else {
                // The consumer was dropped just now. What is found here at its end is given back.
                self.queue.lock().came.queue.extend(messages);
                return 0;
            };
            self.send(&sender, &origin, messages);
            return bytes;
        }
        queue.came.queue.extend(messages);
        queue.came.bytes += bytes;
        drop(queue);
        self.changed.notify_one();
        bytes
    }

    /// Nothing more comes; the error is the last that is read.
    pub(crate) fn end(&self, error: Option<Error>) {
        let mut queue = self.queue.lock();
        if std::mem::replace(&mut queue.has_ended, true) {
            return;
        }
        if let Some(sender) = queue.channel() {
            if let Some(error) = error {
                self.unread.push(0, || self.receiver.len());
                let _ = sender.send(Err(error));
            }
            queue.sender = None;
        } else {
            queue.came.queue.extend(error.map(Err));
        }
        drop(queue);
        self.changed.notify_all();
    }

    /// How many bytes are unread.
    pub(crate) fn unread(&self) -> u64 {
        let taken = self.taken.lock();
        let came = self.queue.lock().came.bytes;
        taken.bytes + came + self.unread.bytes(self.receiver.len())
    }

    /// Takes out all that is unread, and calls `each` with its delivery tags.
    pub(crate) fn discard(&self, mut each: impl FnMut(u64)) {
        let mut taken = self.taken.lock();
        let first = std::mem::take(&mut *taken).queue;
        let then = std::mem::take(&mut self.queue.lock().came).queue;
        drop(taken);
        for message in first.into_iter().chain(then).flatten() {
            each(message.delivery_tag);
        }
        for delivery in self.receiver.try_iter().flatten() {
            each(delivery.delivery_tag());
        }
    }

    /// Puts into the channel.
    fn send(
        &self,
        sender: &Sender<Result<Delivery>>,
        origin: &Arc<DeliverySource>,
        messages: impl Iterator<Item = Result<Delivered>>,
    ) {
        for message in messages {
            let bytes = message.as_ref().map_or(0, |it| size(&it.content));
            self.unread.push(bytes as usize, || self.receiver.len());
            let _ = sender.send(message.map(|it| Delivery::new(origin, it)));
        }
    }

    // ---- readers ----

    /// Waits for the next one until the deadline, if there is any. None: nothing came in time, or nothing comes any more.
    pub(crate) fn recv(
        &self,
        origin: &Arc<DeliverySource>,
        deadline: Option<&Deadline>,
    ) -> Option<Result<Delivery>> {
        loop {
            let mut queue = match self.take(origin) {
                Take::Next(next) => return Some(next),
                Take::Nothing(queue) => queue,
            };
            if queue.goes_to_channel {
                drop(queue);
                return match deadline {
                    Some(deadline) => self.receiver.recv_deadline(deadline.at()).ok(),
                    None => self.receiver.recv().ok(),
                };
            }
            if queue.has_ended {
                return None;
            }
            let Some(deadline) = deadline else {
                self.changed.wait(&mut queue);
                continue;
            };
            let waited = self.changed.wait_until(&mut queue, deadline.at());
            drop(queue);
            if waited.timed_out() {
                return self.try_recv(origin);
            }
        }
    }

    /// The next one, if it has come.
    pub(crate) fn try_recv(&self, origin: &Arc<DeliverySource>) -> Option<Result<Delivery>> {
        match self.take(origin) {
            Take::Next(next) => Some(next),
            Take::Nothing(queue) => {
                drop(queue);
                self.receiver.try_recv().ok()
            }
        }
    }

    #[inline]
    fn take(&self, origin: &Arc<DeliverySource>) -> Take<'_> {
        let mut taken = self.taken.lock();
        if taken.queue.is_empty() {
            taken.queue.shrink_to(SPARE);
            let mut queue = self.queue.lock();
            std::mem::swap(&mut *taken, &mut queue.came);
            if taken.queue.is_empty() {
                return Take::Nothing(queue);
            }
        }
        let Some(next) = taken.queue.pop_front() else {
            return Take::Nothing(self.queue.lock());
        };
        if let Ok(message) = &next {
            taken.bytes -= size(&message.content);
        }
        let are_left = !taken.queue.is_empty();
        drop(taken);
        if are_left {
            // They were told of by one notice, which has woken one of the readers.
            self.changed.notify_one();
        }
        Take::Next(next.map(|message| Delivery::new(origin, message)))
    }

    /// A channel with all that is unread, and all that comes. It is disconnected after the end.
    pub(crate) fn receiver(&self, origin: &Arc<DeliverySource>) -> &Receiver<Result<Delivery>> {
        let mut taken = self.taken.lock();
        let mut queue = self.queue.lock();
        if queue.goes_to_channel {
            return &self.receiver;
        }
        queue.goes_to_channel = true;
        let first = std::mem::take(&mut *taken).queue;
        let then = std::mem::take(&mut queue.came).queue;
        if let Some(sender) = queue.channel() {
            self.send(sender, origin, first.into_iter().chain(then));
        }
        if queue.has_ended {
            queue.sender = None;
        }
        drop(queue);
        self.changed.notify_all();
        &self.receiver
    }

    /// Nothing more comes, and nothing is left.
    pub(crate) fn is_over(&self) -> bool {
        let taken = self.taken.lock();
        let queue = self.queue.lock();
        let is_empty = taken.queue.is_empty() && queue.came.queue.is_empty();
        queue.has_ended && is_empty && self.receiver.is_empty()
    }

    /// How many are unread, with the error at the end.
    pub(crate) fn len(&self) -> usize {
        let taken = self.taken.lock();
        let queue = self.queue.lock();
        taken.queue.len() + queue.came.queue.len() + self.receiver.len()
    }
}

fn size(content: &Content) -> u64 {
    (content.capacity() + OVERHEAD) as u64
}

impl Gauge for Deliveries {
    fn add_to(&self, stats: &mut ConnectionStats) {
        stats.unread_bytes += self.unread();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(delivery_tag: u64) -> Delivered {
        Delivered {
            delivery_tag,
            redelivered: false,
            content: Content::default(),
        }
    }

    #[test]
    fn what_comes_when_the_consumer_has_just_gone_is_found_at_its_end() {
        for goes_to_channel in [false, true] {
            let deliveries = Deliveries::new(Weak::new());
            deliveries.queue.lock().goes_to_channel = goes_to_channel;
            deliveries.push([1, 2].map(message).into_iter());
            deliveries.push([3].map(message).into_iter());
            deliveries.end(None);
            let mut found = Vec::new();
            deliveries.discard(|delivery_tag| found.push(delivery_tag));
            assert_eq!(found, [1, 2, 3]);
            assert!(deliveries.is_over());
        }
    }

    #[test]
    fn unread_bytes_are_counted_in_and_out() {
        let deliveries = Deliveries::new(Weak::new());
        let bytes = deliveries.push([1, 2].map(message).into_iter());
        assert_eq!(
            (bytes, deliveries.unread()),
            (2 * size(&Content::default()), bytes)
        );
        deliveries.discard(|_| ());
        assert_eq!((deliveries.unread(), deliveries.len()), (0, 0));
    }
}
