//! One queue: its messages in order, and its consumers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::arguments::{Arguments, Overflow};
use super::message::{Entry, Message};
use super::state::QueueState;
use super::SessionId;

/// Identifies a queue. A later queue of the same name has another id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct QueueId(pub(super) u64);

/// A consumer of the queue.
#[derive(Debug, Clone)]
pub(super) struct Subscriber {
    pub(super) session: SessionId,
    pub(super) channel: u16,
    pub(super) consumer_tag: String,
    pub(super) priority: i64,
    pub(super) exclusive: bool,
}

impl Subscriber {
    pub(super) fn is(&self, session: SessionId, channel: u16, consumer_tag: &str) -> bool {
        self.session == session && self.channel == channel && self.consumer_tag == consumer_tag
    }
}

#[derive(Debug)]
pub(super) struct Queue {
    pub(super) name: String,
    pub(super) durable: bool,
    pub(super) auto_delete: bool,
    /// The connection to which an exclusive queue belongs.
    pub(super) owner: Option<SessionId>,
    pub(super) arguments: Arguments,
    pub(super) unacknowledged: usize,
    /// By priority, highest first. Among equals, the one whose turn is next comes first.
    subscribers: Vec<Subscriber>,
    ready: BTreeMap<(u8, u64), Entry>,
    ready_bytes: u64,
    came: u64,
    unused_since: Instant,
}

impl Queue {
    pub(super) fn new(name: String, durable: bool, arguments: Arguments, now: Instant) -> Self {
        Self {
            name,
            durable,
            auto_delete: false,
            owner: None,
            arguments,
            unacknowledged: 0,
            subscribers: Vec::new(),
            ready: BTreeMap::new(),
            ready_bytes: 0,
            came: 0,
            unused_since: now,
        }
    }

    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    pub(super) fn state(&self) -> QueueState {
        QueueState {
            name: self.name.clone(),
            ready: self.ready.len(),
            unacknowledged: self.unacknowledged,
            consumers: self.subscribers.len(),
        }
    }

    // ---- messages ----

    pub(super) fn push(&mut self, message: Arc<Message>, now: Instant) {
        let highest = self.arguments.max_priority.unwrap_or_default();
        let priority = message.properties.priority.unwrap_or_default().min(highest);
        let ttl = message
            .ttl()
            .into_iter()
            .chain(self.arguments.message_ttl)
            .min();
        self.came += 1;
        self.put(Entry {
            place: (u8::MAX - priority, self.came),
            message,
            redelivered: false,
            returns: 0,
            expires_at: ttl.map(|ttl| now + ttl),
        });
    }

    /// Puts a message back in its place. Returns the message instead if it is above the delivery
    /// limit.
    pub(super) fn requeue(&mut self, mut entry: Entry) -> Option<Entry> {
        entry.redelivered = true;
        if self.arguments.is_quorum {
            entry.returns += 1;
            let limit = self.arguments.delivery_limit;
            if limit.is_some_and(|limit| entry.returns > limit) {
                return Some(entry);
            }
        }
        self.put(entry);
        None
    }

    fn put(&mut self, entry: Entry) {
        self.ready_bytes += entry.message.body.len() as u64;
        self.ready.insert(entry.place, entry);
    }

    fn remove(&mut self, place: (u8, u64)) -> Option<Entry> {
        let entry = self.ready.remove(&place)?;
        self.ready_bytes -= entry.message.body.len() as u64;
        Some(entry)
    }

    pub(super) fn pop(&mut self) -> Option<Entry> {
        let (place, _) = self.ready.first_key_value()?;
        self.remove(*place)
    }

    pub(super) fn purge(&mut self) -> usize {
        let count = self.ready.len();
        self.ready.clear();
        self.ready_bytes = 0;
        count
    }

    /// Drops everything that does not survive a restart.
    pub(super) fn keep_persistent(&mut self) {
        self.unacknowledged = 0;
        self.subscribers.clear();
        self.ready.retain(|_, entry| entry.message.is_persistent());
        let sizes = self.ready.values().map(|it| it.message.body.len() as u64);
        self.ready_bytes = sizes.sum();
    }

    /// Takes the first message if it expired before `now`, or exactly at `now` if `also_now`. As in
    /// RabbitMQ, other messages expire only when they are the first.
    pub(super) fn pop_expired(&mut self, now: Instant, also_now: bool) -> Option<Entry> {
        let at = self.next_expiration()?;
        match at < now || (also_now && at == now) {
            true => self.pop(),
            false => None,
        }
    }

    pub(super) fn next_expiration(&self) -> Option<Instant> {
        let (_, first) = self.ready.first_key_value()?;
        first.expires_at
    }

    /// Whether the queue would be above its limits with this many more messages and bytes.
    fn is_above_limit(&self, messages: usize, bytes: usize) -> bool {
        let count = (self.ready.len() + messages) as u64;
        let bytes = self.ready_bytes + bytes as u64;
        self.arguments.max_length.is_some_and(|max| count > max)
            || self.arguments.max_bytes.is_some_and(|max| bytes > max)
    }

    /// Whether the queue is full and refuses the message.
    pub(super) fn rejects(&self, message: &Message) -> bool {
        self.arguments.overflow != Overflow::DropHead && self.is_above_limit(1, message.body.len())
    }

    /// Takes the first message if the queue is above its limits, even if that message has a high
    /// priority.
    pub(super) fn pop_surplus(&mut self) -> Option<Entry> {
        match self.arguments.overflow == Overflow::DropHead && self.is_above_limit(0, 0) {
            true => self.pop(),
            false => None,
        }
    }

    // ---- consumers ----

    pub(super) fn subscribers(&self) -> &[Subscriber] {
        &self.subscribers
    }

    pub(super) fn subscribe(&mut self, subscriber: Subscriber) {
        let comes_first = |it: &Subscriber| it.priority >= subscriber.priority;
        let at = self.subscribers.partition_point(comes_first);
        // The active consumer stays first.
        let at = at.max(usize::from(
            self.arguments.single_active && !self.subscribers.is_empty(),
        ));
        self.subscribers.insert(at, subscriber);
    }

    /// Removes a consumer. Returns false if the consumer was not found.
    pub(super) fn unsubscribe(
        &mut self,
        is_it: impl Fn(&Subscriber) -> bool,
        now: Instant,
    ) -> bool {
        let before = self.subscribers.len();
        self.subscribers.retain(|it| !is_it(it));
        let was_there = self.subscribers.len() < before;
        if was_there {
            self.used(now);
        }
        was_there
    }

    pub(super) fn take_subscribers(&mut self) -> Vec<Subscriber> {
        std::mem::take(&mut self.subscribers)
    }

    /// Index of the consumer that gets the next message: the first that takes one. The single
    /// active consumer is the first that has not timed out; the others get nothing, even if the
    /// active one takes no message.
    pub(super) fn next_subscriber(
        &self,
        takes: impl Fn(&Subscriber) -> bool,
        has_timed_out: impl Fn(&Subscriber) -> bool,
    ) -> Option<usize> {
        if !self.arguments.single_active {
            return self.subscribers.iter().position(takes);
        }
        let mut subscribers = self.subscribers.iter();
        let at = subscribers.position(|it| !has_timed_out(it))?;
        self.subscribers.get(at).is_some_and(takes).then_some(at)
    }

    /// Moves a consumer to the end, so that it does not replace the single active consumer.
    pub(super) fn stand_back(&mut self, is_it: impl Fn(&Subscriber) -> bool) {
        let at = self.subscribers.iter().position(is_it);
        if let Some(at) = at.filter(|_| self.arguments.single_active) {
            let subscriber = self.subscribers.remove(at);
            self.subscribers.push(subscriber);
        }
    }

    /// Moves a consumer that got a message to the end of those with the same priority.
    pub(super) fn rotate(&mut self, at: usize) {
        let Some(priority) = self.subscribers.get(at).map(|it| it.priority) else {
            return;
        };
        let end = self
            .subscribers
            .partition_point(|it| it.priority >= priority);
        if let Some(rest) = self
            .subscribers
            .get_mut(at..end)
            .filter(|_| !self.arguments.single_active)
        {
            rest.rotate_left(1);
        }
    }

    // ---- expiry of the queue ----

    pub(super) fn used(&mut self, now: Instant) {
        self.unused_since = now;
    }

    /// When the queue expires, unless it is used before.
    pub(super) fn expires_at(&self) -> Option<Instant> {
        let after: Duration = self.arguments.expires?;
        self.subscribers
            .is_empty()
            .then(|| self.unused_since + after)
    }
}
