//! The messages of one consumer, between the IO thread and their readers.

use std::collections::VecDeque;
use std::mem::size_of;
use std::sync::{Arc, Weak};

use crossbeam_channel::{Receiver, Sender};

use crate::delivery::{Delivery, DeliverySource};
use crate::error::{Error, Result};
use crate::io_thread::counters::Gauge;
use crate::io_thread::deadline::Deadline;
use crate::io_thread::unread_bytes::UnreadBytes;
use crate::proto::Delivered;
use crate::stats::ConnectionStats;
use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::wire::content::Content;

/// Memory that an unread message takes beside its own bytes: its queue entry, and the cost of an
/// allocation.
const OVERHEAD: usize = size_of::<Result<Delivered>>() + 32;
/// Number of entries to keep room for after all messages are read.
const SPARE: usize = 256;

/// What the messages of one consumer share.
pub(crate) trait Source: Send + Sync {
    /// A message as the program reads it.
    type Delivery: Send;

    fn delivery(self: &Arc<Self>, message: Delivered) -> Self::Delivery;
    fn delivery_tag(delivery: &Self::Delivery) -> u64;
}

impl Source for DeliverySource {
    type Delivery = Delivery;

    #[inline]
    fn delivery(self: &Arc<Self>, message: Delivered) -> Delivery {
        Delivery::new(self, message)
    }

    fn delivery_tag(delivery: &Delivery) -> u64 {
        delivery.delivery_tag()
    }
}

/// Messages that have come and are not read yet.
///
/// The IO thread adds many messages at once, and a reader takes all of them at once. So the two
/// threads seldom meet, although each message is read by its own call. After a call to
/// [`receiver`](Self::receiver), messages go through a channel instead, where the two threads meet
/// at each message. That costs both more.
pub(crate) struct Deliveries<S: Source = DeliverySource> {
    origin: Weak<S>,
    queue: Mutex<Queue<S::Delivery>>,
    changed: Condvar,
    /// Taken out of the queue by a reader, to be read next. Locked before the queue.
    taken: Mutex<Messages>,
    receiver: Receiver<Result<S::Delivery>>,
    /// Bytes of the messages in the channel.
    unread: UnreadBytes,
}

/// Messages, and possibly an error as the last entry.
#[derive(Default)]
struct Messages {
    queue: VecDeque<Result<Delivered>>,
    bytes: u64,
}

struct Queue<D> {
    came: Messages,
    /// The program has asked for the receiver, so all messages go there.
    goes_to_channel: bool,
    has_ended: bool,
    /// `None` when nothing more goes into the channel.
    sender: Option<Sender<Result<D>>>,
}

/// What a reader finds.
enum Take<'a, D> {
    Next(Result<D>),
    /// The queue has stayed locked since `taken` was found empty. Otherwise another reader could
    /// leave messages in `taken` and send its notice before this reader waits for one.
    Nothing(MutexGuard<'a, Queue<D>>),
}

impl<D> Queue<D> {
    /// The channel that new messages go into, if the program has asked for it.
    fn channel(&self) -> Option<&Sender<Result<D>>> {
        self.sender.as_ref().filter(|_| self.goes_to_channel)
    }
}

impl<S: Source> Deliveries<S> {
    pub(crate) fn new(origin: Weak<S>) -> Self {
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

    /// Adds messages and returns their size in bytes. Readers that sleep need a
    /// [`wake`](Self::wake).
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
            // Not under the lock: dropping the last handle of the channel here sends its close.
            drop(queue);
            let Some(origin) = self.origin.upgrade() else {
                // The consumer was just dropped. Its end gives these messages back.
                self.queue.lock().came.queue.extend(messages);
                return 0;
            };
            self.send(&sender, &origin, messages);
            return bytes;
        }
        queue.came.queue.extend(messages);
        queue.came.bytes += bytes;
        bytes
    }

    pub(crate) fn wake(&self) {
        self.changed.notify_one();
    }

    /// No more messages come. The error is the last entry that is read.
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

    /// Size of all unread messages, in bytes.
    pub(crate) fn unread(&self) -> u64 {
        let taken = self.taken.lock();
        let came = self.queue.lock().came.bytes;
        taken.bytes + came + self.unread.bytes(self.receiver.len())
    }

    /// Removes all unread messages and calls `each` with their delivery tags.
    pub(crate) fn discard(&self, mut each: impl FnMut(u64)) {
        let mut taken = self.taken.lock();
        let first = std::mem::take(&mut *taken).queue;
        let then = std::mem::take(&mut self.queue.lock().came).queue;
        drop(taken);
        for message in first.into_iter().chain(then).flatten() {
            each(message.delivery_tag);
        }
        for delivery in self.receiver.try_iter().flatten() {
            each(S::delivery_tag(&delivery));
        }
    }

    /// Puts messages into the channel.
    fn send(
        &self,
        sender: &Sender<Result<S::Delivery>>,
        origin: &Arc<S>,
        messages: impl Iterator<Item = Result<Delivered>>,
    ) {
        for message in messages {
            let bytes = message.as_ref().map_or(0, |it| size(&it.content));
            self.unread.push(bytes as usize, || self.receiver.len());
            let _ = sender.send(message.map(|it| origin.delivery(it)));
        }
    }

    // ---- readers ----

    /// Waits for the next message, until the deadline if one is given. Returns `None` on timeout,
    /// and when the consumer has ended.
    pub(crate) fn recv(
        &self,
        origin: &Arc<S>,
        deadline: Option<&Deadline>,
    ) -> Option<Result<S::Delivery>> {
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

    /// The next message, if it has come.
    pub(crate) fn try_recv(&self, origin: &Arc<S>) -> Option<Result<S::Delivery>> {
        match self.take(origin) {
            Take::Next(next) => Some(next),
            Take::Nothing(queue) => {
                drop(queue);
                self.receiver.try_recv().ok()
            }
        }
    }

    /// Makes the error that ended the consumer the next entry again.
    pub(crate) fn put_back(&self, error: Error) {
        self.taken.lock().queue.push_front(Err(error));
    }

    #[inline]
    fn take(&self, origin: &Arc<S>) -> Take<'_, S::Delivery> {
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
            // One notice for many messages has woken only one reader.
            self.changed.notify_one();
        }
        Take::Next(next.map(|message| origin.delivery(message)))
    }

    /// A channel of all unread and later messages. It is disconnected after the end.
    pub(crate) fn receiver(&self, origin: &Arc<S>) -> &Receiver<Result<S::Delivery>> {
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

    /// Whether no more messages come and none is left.
    pub(crate) fn is_over(&self) -> bool {
        let taken = self.taken.lock();
        let queue = self.queue.lock();
        let is_empty = taken.queue.is_empty() && queue.came.queue.is_empty();
        queue.has_ended && is_empty && self.receiver.is_empty()
    }

    /// Number of unread messages, counting the final error.
    pub(crate) fn len(&self) -> usize {
        let taken = self.taken.lock();
        let queue = self.queue.lock();
        taken.queue.len() + queue.came.queue.len() + self.receiver.len()
    }
}

fn size(content: &Content) -> u64 {
    (content.capacity() + OVERHEAD) as u64
}

impl<S: Source> Gauge for Deliveries<S> {
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
            let deliveries: Deliveries = Deliveries::new(Weak::new());
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
        let deliveries: Deliveries = Deliveries::new(Weak::new());
        let bytes = deliveries.push([1, 2].map(message).into_iter());
        assert_eq!(
            (bytes, deliveries.unread()),
            (2 * size(&Content::default()), bytes)
        );
        deliveries.discard(|_| ());
        assert_eq!((deliveries.unread(), deliveries.len()), (0, 0));
    }
}
