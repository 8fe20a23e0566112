//! The consumers of one channel, as far as the order of frames concerns them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::event::{Mailboxes, Settling};
use crate::log_line::{log_line, Label};

/// How many consumers that have ended are remembered, and how many tags of former lives.
const ENDED_LIMIT: usize = 256;

struct Consumer<M: Mailboxes> {
    /// Counted as they come: a tag can be used again.
    number: u64,
    mailbox: M::Consumer,
    /// Consume-ok has come, or none was asked for.
    is_started: bool,
    settling: Settling,
}

struct Ended {
    consumer_tag: Arc<str>,
    settling: Settling,
    /// The log tells once of messages that come for it.
    is_logged: bool,
}

/// Whom a message is for.
pub(crate) enum Receiver<'a, M: Mailboxes> {
    Consumer(&'a M::Consumer),
    /// One that has ended, after which a broker may still have sent a message.
    Ended(Settling),
    /// One of the number's former lives. The broker has requeued the message.
    Former,
    /// One that never was.
    Unknown,
}

/// The consumers of a channel by their tags.
pub(crate) struct Consumers<M: Mailboxes> {
    by_tag: HashMap<Arc<str>, Consumer<M>>,
    /// Who got the last message: mostly gets the next one, too, and is found without a hash of its
    /// tag.
    last: Option<Last<M>>,
    count: u64,
    /// Of this life of the channel, the oldest first.
    ended: VecDeque<Ended>,
    /// The tags of the number's former lives on this connection, the latest first.
    former: Vec<Arc<str>>,
    /// The last delivery tag of this life.
    delivered: u64,
}

struct Last<M: Mailboxes> {
    consumer_tag: Arc<str>,
    mailbox: M::Consumer,
    /// A consumer of a former life had the same tag, so the delivery tag is looked at.
    is_checked: bool,
}

impl<M: Mailboxes> Consumers<M> {
    pub(crate) fn new(former: Vec<Arc<str>>) -> Self {
        Self {
            by_tag: HashMap::new(),
            last: None,
            count: 0,
            ended: VecDeque::new(),
            former,
            delivered: 0,
        }
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

    /// Consume-ok has come.
    pub(crate) fn start(&mut self, consumer_tag: &str) -> Option<&M::Consumer> {
        let consumer = self.by_tag.get_mut(consumer_tag)?;
        consumer.is_started = true;
        Some(&consumer.mailbox)
    }

    /// A message has come that was fetched.
    pub(super) fn fetched(&mut self, delivery_tag: u64) {
        self.delivered = delivery_tag;
    }

    /// Who gets a message with these tags, if that is a consumer which the broker has agreed to.
    #[inline(always)] // As a function of its own it costs 3 % of a delivery.
    pub(super) fn get(&mut self, consumer_tag: &[u8], delivery_tag: u64) -> Option<&M::Consumer> {
        let is_last = |last: &Last<M>| last.consumer_tag.as_bytes() == consumer_tag;
        if !self.last.as_ref().is_some_and(is_last) {
            self.last = Some(self.look_up(consumer_tag)?);
        }
        let last = self.last.as_ref()?;
        if last.is_checked && !self.is_next(delivery_tag) {
            return None;
        }
        self.delivered = delivery_tag;
        Some(&last.mailbox)
    }

    fn look_up(&self, consumer_tag: &[u8]) -> Option<Last<M>> {
        let consumer_tag = std::str::from_utf8(consumer_tag).ok()?;
        let (tag, consumer) = self.by_tag.get_key_value(consumer_tag)?;
        let is_former = self.is_former(consumer_tag);
        let had_tag = |it: &Ended| *it.consumer_tag == *consumer_tag;
        if !consumer.is_started && (is_former || self.ended.iter().any(had_tag)) {
            // Until consume-ok comes, a message can be for the one that had the tag before.
            return None;
        }
        Some(Last {
            consumer_tag: Arc::clone(tag),
            mailbox: consumer.mailbox.clone(),
            // Answers to direct reply-to, which are never acknowledged, all have the same tag.
            is_checked: is_former && consumer.settling != Settling::NoAck,
        })
    }

    /// Whether it is the delivery tag that this life of the channel goes on with: a broker counts
    /// them one by one.
    fn is_next(&self, delivery_tag: u64) -> bool {
        delivery_tag.checked_sub(1) == Some(self.delivered)
    }

    fn is_former(&self, consumer_tag: &str) -> bool {
        self.former.iter().any(|it| **it == *consumer_tag)
    }

    /// Whom a message with these tags is for, whatever became of that consumer.
    pub(super) fn receiver_of(
        &mut self,
        consumer_tag: &str,
        delivery_tag: u64,
        label: &Label,
    ) -> Receiver<'_, M> {
        // Looked up twice, since a borrow that is returned lasts on all ways.
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
                    "messages for consumer {consumer_tag:?} came after it had ended"
                );
            }
            self.delivered = delivery_tag;
            return Receiver::Ended(ended.settling);
        }
        match is_former {
            true => Receiver::Former,
            false => Receiver::Unknown,
        }
    }

    pub(crate) fn number_of(&self, consumer_tag: &str) -> Option<u64> {
        self.by_tag.get(consumer_tag).map(|it| it.number)
    }

    /// The consumer has ended.
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

    /// Removes the consumer if the broker has agreed to it.
    pub(crate) fn remove_started(&mut self, consumer_tag: &str) -> Option<M::Consumer> {
        let is_started = self.by_tag.get(consumer_tag)?.is_started;
        is_started.then(|| self.remove(consumer_tag)).flatten()
    }

    /// Removes the consumer if it is still this one.
    pub(crate) fn remove_if(&mut self, tag: &str, number: Option<u64>) -> Option<M::Consumer> {
        (self.number_of(tag) == number)
            .then(|| self.remove(tag))
            .flatten()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &M::Consumer> {
        self.by_tag.values().map(|it| &it.mailbox)
    }

    /// Ends all, and returns the tags that messages may still come for. They can be of earlier lives,
    /// too, since a broker's writers are not in step.
    pub(crate) fn end(self) -> (Vec<M::Consumer>, Vec<Arc<str>>) {
        let mut tags = Vec::new();
        let mut mailboxes = Vec::with_capacity(self.by_tag.len());
        for (consumer_tag, consumer) in self.by_tag {
            tags.push(consumer_tag);
            mailboxes.push(consumer.mailbox);
        }
        let ended = self.ended.into_iter().rev().map(|it| it.consumer_tag);
        for earlier in ended.chain(self.former) {
            if tags.len() >= ENDED_LIMIT {
                break;
            }
            if !tags.contains(&earlier) {
                tags.push(earlier);
            }
        }
        (mailboxes, tags)
    }
}
