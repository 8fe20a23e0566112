//! The consumers of one channel, as far as the order of frames concerns them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::event::Mailboxes;

/// How many consumers that have ended are remembered.
const ENDED_LIMIT: usize = 256;

struct Consumer<M: Mailboxes> {
    /// Counted as they come: a tag can be used again.
    number: u64,
    mailbox: M::Consumer,
    /// Consume-ok has come, or none was asked for.
    is_started: bool,
    /// Whether its unread messages are given back to the queue.
    requeues: bool,
}

struct Ended {
    consumer_tag: Arc<str>,
    requeues: bool,
    /// The log tells once of messages that come for it.
    is_logged: bool,
}

/// Whom a message is for.
pub(crate) enum Receiver<'a, M: Mailboxes> {
    Consumer(&'a M::Consumer),
    /// One that has ended, after which a broker may still have sent a message.
    Ended {
        requeues: bool,
    },
    /// One of the number's last life. The broker has requeued the message.
    Former,
    /// One that never was.
    Unknown,
}

/// The consumers of a channel by their tags.
pub(crate) struct Consumers<M: Mailboxes> {
    by_tag: HashMap<Arc<str>, Consumer<M>>,
    /// Who got the last message: mostly gets the next one, too, and is found without a hash of its
    /// tag.
    last: Option<(Arc<str>, M::Consumer)>,
    count: u64,
    /// Of this life of the channel, the oldest first.
    ended: VecDeque<Ended>,
    /// The tags of the number's last life on this connection.
    former: Vec<Arc<str>>,
}

impl<M: Mailboxes> Consumers<M> {
    pub(crate) fn new(former: Vec<Arc<str>>) -> Self {
        Self {
            by_tag: HashMap::new(),
            last: None,
            count: 0,
            ended: VecDeque::new(),
            former,
        }
    }

    pub(crate) fn insert(
        &mut self,
        consumer_tag: Arc<str>,
        mailbox: M::Consumer,
        requeues: bool,
        is_started: bool,
    ) {
        self.count += 1;
        self.last = None;
        let consumer = Consumer {
            number: self.count,
            mailbox,
            is_started,
            requeues,
        };
        self.by_tag.insert(consumer_tag, consumer);
    }

    /// Consume-ok has come.
    pub(crate) fn start(&mut self, consumer_tag: &str) -> Option<&M::Consumer> {
        let consumer = self.by_tag.get_mut(consumer_tag)?;
        consumer.is_started = true;
        Some(&consumer.mailbox)
    }

    /// Who gets a message with this tag, if it is the consumer that got one before or another one
    /// that is known.
    #[inline]
    pub(super) fn get(&mut self, consumer_tag: &[u8]) -> Option<&M::Consumer> {
        let is_last = |(tag, _): &(Arc<str>, M::Consumer)| tag.as_bytes() == consumer_tag;
        if !self.last.as_ref().is_some_and(is_last) {
            let consumer_tag = std::str::from_utf8(consumer_tag).ok()?;
            let (tag, consumer) = self.by_tag.get_key_value(consumer_tag)?;
            if !consumer.is_started && self.had_tag(consumer_tag) {
                return None;
            }
            self.last = Some((Arc::clone(tag), consumer.mailbox.clone()));
        }
        self.last.as_ref().map(|(_, consumer)| consumer)
    }

    /// Whether the tag was another consumer's before: until consume-ok comes, a message can be that
    /// one's.
    fn had_tag(&self, consumer_tag: &str) -> bool {
        let has_ended = self
            .ended
            .iter()
            .any(|it| *it.consumer_tag == *consumer_tag);
        has_ended || self.is_former(consumer_tag)
    }

    fn is_former(&self, consumer_tag: &str) -> bool {
        self.former.iter().any(|it| **it == *consumer_tag)
    }

    /// Whom a message with this tag is for, whatever became of that consumer.
    pub(super) fn receiver_of(&mut self, consumer_tag: &str) -> Receiver<'_, M> {
        // Looked up twice, since a borrow that is returned lasts on all ways.
        if self.get(consumer_tag.as_bytes()).is_some() {
            let found = self.last.as_ref().map(|(_, consumer)| consumer);
            return found.map_or(Receiver::Unknown, Receiver::Consumer);
        }
        let mut ended = self.ended.iter_mut().rev();
        if let Some(ended) = ended.find(|it| *it.consumer_tag == *consumer_tag) {
            if !std::mem::replace(&mut ended.is_logged, true) {
                log::info!("messages for consumer {consumer_tag:?} came after it had ended");
            }
            let requeues = ended.requeues;
            return Receiver::Ended { requeues };
        }
        match self.is_former(consumer_tag) {
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
            requeues: consumer.requeues,
            is_logged: false,
        });
        Some(consumer.mailbox)
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

    /// Ends all, and returns the tags that messages may still come for.
    pub(crate) fn end(self) -> (Vec<M::Consumer>, Vec<Arc<str>>) {
        let ended = self.ended.into_iter().map(|it| it.consumer_tag);
        let mut tags: Vec<_> = ended.collect();
        let mut mailboxes = Vec::with_capacity(self.by_tag.len());
        for (consumer_tag, consumer) in self.by_tag {
            tags.push(consumer_tag);
            mailboxes.push(consumer.mailbox);
        }
        (mailboxes, tags)
    }
}
