//! Finds the consumer of each message on a channel, also around the start and end of consumers.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::event::{Mailboxes, Settling};
use crate::log_line::{log_line, Label};

/// How many ended consumers are remembered, and how many tags of earlier channels with this number.
const ENDED_LIMIT: usize = 256;

struct Consumer<M: Mailboxes> {
    /// Unique within the channel, unlike the tag, which can be reused.
    number: u64,
    mailbox: M::Consumer,
    /// Whether consume-ok has come, or no-wait was set.
    is_started: bool,
    settling: Settling,
}

struct Ended {
    consumer_tag: Arc<str>,
    settling: Settling,
    /// Whether the log has reported messages for this consumer. It reports them once.
    is_logged: bool,
}

/// The receiver of a message.
pub(crate) enum Receiver<'a, M: Mailboxes> {
    Consumer(&'a M::Consumer),
    /// A consumer that has ended. The broker may have sent the message before it knew.
    Ended(Settling),
    /// A consumer of an earlier channel with this number. The broker has requeued the message.
    Former,
    /// No consumer of this channel ever had the tag.
    Unknown,
}

/// The consumers of a channel by their tags.
pub(crate) struct Consumers<M: Mailboxes> {
    by_tag: HashMap<Arc<str>, Consumer<M>>,
    /// The receiver of the last message. It usually gets the next one, too: this saves hashing the
    /// tag.
    last: Option<Last<M>>,
    count: u64,
    /// The ended consumers of this channel, oldest first.
    ended: VecDeque<Ended>,
    /// The tags of consumers of earlier channels with this number, latest first.
    former: Vec<Arc<str>>,
    /// The highest delivery tag on this channel, as the broker counts.
    delivered: u64,
    /// The program's tags are higher than the broker's by this: a broker counts the deliveries of a
    /// channel from 1 on each connection, and a message of a lost connection must not be confused
    /// with another.
    tag_offset: u64,
}

struct Last<M: Mailboxes> {
    consumer_tag: Arc<str>,
    mailbox: M::Consumer,
    /// A consumer of an earlier channel had the same consumer tag. Only the delivery tag tells a
    /// late message for that one.
    is_former: bool,
    /// Late messages are delivered, too: RabbitMQ sends direct replies with one delivery tag.
    no_ack: bool,
}

impl<M: Mailboxes> Consumers<M> {
    pub(crate) fn new(tag_offset: u64, former: Vec<Arc<str>>) -> Self {
        Self {
            by_tag: HashMap::new(),
            last: None,
            count: 0,
            ended: VecDeque::new(),
            former,
            delivered: 0,
            tag_offset,
        }
    }

    /// The tag by which the program knows a message.
    #[inline]
    pub(super) fn tag_for_program(&self, delivery_tag: u64) -> u64 {
        delivery_tag.saturating_add(self.tag_offset)
    }

    /// The highest delivery tag that the program has seen.
    pub(super) fn last_tag(&self) -> u64 {
        self.tag_for_program(self.delivered)
    }

    /// Direct reply-to can send a reply with the tag of an earlier message.
    fn note_tag(&mut self, delivery_tag: u64) {
        self.delivered = self.delivered.max(delivery_tag);
    }

    pub(crate) fn insert(
        &mut self,
        consumer_tag: Arc<str>,
        mailbox: M::Consumer,
        settling: Settling,
        is_started: bool,
    ) {
        self.count += 1;
        self.last = None;
        let consumer = Consumer {
            number: self.count,
            mailbox,
            is_started,
            settling,
        };
        self.by_tag.insert(consumer_tag, consumer);
    }

    /// Marks the consumer as started by consume-ok.
    pub(crate) fn start(&mut self, consumer_tag: &str) -> Option<&M::Consumer> {
        let consumer = self.by_tag.get_mut(consumer_tag)?;
        consumer.is_started = true;
        Some(&consumer.mailbox)
    }

    /// Notes the delivery tag of a message that `basic.get` fetched.
    pub(super) fn fetched(&mut self, delivery_tag: u64) {
        self.note_tag(delivery_tag);
    }

    /// The consumer of a message with these tags, and the tag by which the program knows the
    /// message. `None` if only [`receiver_of`](Self::receiver_of)
    /// can tell.
    #[inline(always)] // Not inlined, this costs 3 % of a delivery.
    pub(super) fn get(
        &mut self,
        consumer_tag: &[u8],
        delivery_tag: u64,
    ) -> Option<(&M::Consumer, u64)> {
        let is_last = |last: &Last<M>| last.consumer_tag.as_bytes() == consumer_tag;
        if !self.last.as_ref().is_some_and(is_last) {
            self.last = Some(self.look_up(consumer_tag)?);
        }
        let last = self.last.as_ref()?;
        if !last.is_former || self.is_next(delivery_tag) {
            self.delivered = self.delivered.max(delivery_tag);
        } else if !last.no_ack {
            return None;
        }
        let tag_for_program = delivery_tag.saturating_add(self.tag_offset);
        Some((&last.mailbox, tag_for_program))
    }

    fn look_up(&self, consumer_tag: &[u8]) -> Option<Last<M>> {
        let consumer_tag = std::str::from_utf8(consumer_tag).ok()?;
        let (tag, consumer) = self.by_tag.get_key_value(consumer_tag)?;
        let is_former = self.is_former(consumer_tag);
        let had_tag = |it: &Ended| *it.consumer_tag == *consumer_tag;
        if !consumer.is_started && (is_former || self.ended.iter().any(had_tag)) {
            // Until consume-ok comes, a message may be for the previous consumer with this tag.
            return None;
        }
        Some(Last {
            consumer_tag: Arc::clone(tag),
            mailbox: consumer.mailbox.clone(),
            is_former,
            no_ack: consumer.settling == Settling::NoAck,
        })
    }

    /// Whether `delivery_tag` is the next one on this channel. A broker counts deliveries one by
    /// one, so any other tag comes from an earlier channel with this number.
    fn is_next(&self, delivery_tag: u64) -> bool {
        delivery_tag.checked_sub(1) == Some(self.delivered)
    }

    fn is_former(&self, consumer_tag: &str) -> bool {
        self.former.iter().any(|it| **it == *consumer_tag)
    }

    /// The receiver of a message with these tags, even if that consumer has ended.
    pub(super) fn receiver_of(
        &mut self,
        consumer_tag: &str,
        delivery_tag: u64,
        label: &Label,
    ) -> Receiver<'_, M> {
        // A borrow returned from `get` would last to the end of the function, so look up again.
        if self.get(consumer_tag.as_bytes(), delivery_tag).is_some() {
            let found = self.last.as_ref().map(|last| &last.mailbox);
            return found.map_or(Receiver::Unknown, Receiver::Consumer);
        }
        let is_former = self.is_former(consumer_tag);
        if is_former && !self.is_next(delivery_tag) {
            return Receiver::Former;
        }
        let mut ended = self.ended.iter_mut().rev();
        if let Some(ended) = ended.find(|it| *it.consumer_tag == *consumer_tag) {
            if !std::mem::replace(&mut ended.is_logged, true) {
                log_line!(
                    Info,
                    label,
                    "messages for consumer {consumer_tag:?} arrived after it ended"
                );
            }
            let settling = ended.settling;
            self.note_tag(delivery_tag);
            return Receiver::Ended(settling);
        }
        match is_former {
            true => Receiver::Former,
            false => Receiver::Unknown,
        }
    }

    pub(crate) fn number_of(&self, consumer_tag: &str) -> Option<u64> {
        self.by_tag.get(consumer_tag).map(|it| it.number)
    }

    /// Ends the consumer, and remembers its tag.
    pub(crate) fn remove(&mut self, consumer_tag: &str) -> Option<M::Consumer> {
        self.last = None;
        let (consumer_tag, consumer) = self.by_tag.remove_entry(consumer_tag)?;
        self.ended.retain(|it| it.consumer_tag != consumer_tag);
        if self.ended.len() >= ENDED_LIMIT {
            self.ended.pop_front();
        }
        self.ended.push_back(Ended {
            consumer_tag,
            settling: consumer.settling,
            is_logged: false,
        });
        Some(consumer.mailbox)
    }

    /// Removes the consumer if it has started.
    pub(crate) fn remove_started(&mut self, consumer_tag: &str) -> Option<M::Consumer> {
        let is_started = self.by_tag.get(consumer_tag)?.is_started;
        is_started.then(|| self.remove(consumer_tag)).flatten()
    }

    /// Removes the consumer if its number is still `number`.
    pub(crate) fn remove_if(&mut self, tag: &str, number: Option<u64>) -> Option<M::Consumer> {
        (self.number_of(tag) == number)
            .then(|| self.remove(tag))
            .flatten()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &M::Consumer> {
        self.by_tag.values().map(|it| &it.mailbox)
    }

    /// Ends all consumers. Also returns the tags that messages may still arrive for. They include
    /// tags from earlier channels with this number, since RabbitMQ's writers are not in step.
    pub(crate) fn end(self) -> (Vec<M::Consumer>, Vec<Arc<str>>) {
        let mut tags = Vec::new();
        let mut mailboxes = Vec::with_capacity(self.by_tag.len());
        for (consumer_tag, consumer) in self.by_tag {
            tags.push(consumer_tag);
            mailboxes.push(consumer.mailbox);
        }
        let ended = self.ended.into_iter().rev().map(|it| it.consumer_tag);
        for tag in ended.chain(self.former) {
            if tags.len() >= ENDED_LIMIT {
                break;
            }
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        (mailboxes, tags)
    }
}
