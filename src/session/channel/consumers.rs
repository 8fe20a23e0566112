//! The consumers of a channel by tag, and what each was begun with, so that a recovery can begin it
//! again.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use crate::events::Entity;
use crate::io_thread::mailbox::ConsumerMailbox;
use crate::io_thread::outbox::channel::Qos;
use crate::session::subscription::Subscription;
use crate::wire::method::BasicConsume;

/// The consumer tags in use. Each maps to its subscription and its recorded `basic.consume`.
pub(crate) struct Consumers {
    by_tag: HashMap<Arc<str>, Entry>,
    /// Part of the tags that are made up here. Messages for a consumer of an earlier channel with
    /// this number can still arrive, so no later channel uses its tag.
    life: u64,
    /// Numbers the tags that are made up here, and the recorded consumers in their order.
    count: u64,
}

#[derive(Default)]
struct Entry {
    subscription: Weak<Subscription>,
    recorded: Option<RecordedConsumer>,
}

/// What a consumer was begun with. A recovery sends this again.
#[derive(Clone)]
pub(crate) struct RecordedConsumer {
    number: u64,
    pub(crate) mailbox: Arc<dyn ConsumerMailbox>,
    pub(crate) consume: BasicConsume<'static>,
    /// The prefetch of the channel when the consumer began.
    pub(crate) qos: Qos,
}

impl RecordedConsumer {
    pub(crate) fn entity(&self) -> Entity {
        Entity::Consumer {
            queue: self.consume.queue.to_string(),
            consumer_tag: self.consume.consumer_tag.to_string(),
        }
    }
}

impl Consumers {
    /// `life` must differ from that of earlier channels with the same number.
    pub(crate) fn new(life: u64) -> Self {
        Self {
            by_tag: HashMap::new(),
            life,
            count: 0,
        }
    }

    /// Reserves `requested`, or a new tag if `requested` is empty. Returns `None` if the tag is in
    /// use.
    pub(crate) fn take_tag(&mut self, requested: &str, channel: u16) -> Option<Arc<str>> {
        let consumer_tag: Arc<str> = if requested.is_empty() {
            std::iter::repeat_with(|| {
                self.count += 1;
                format!("leveret-{channel}.{}.{}", self.life, self.count)
            })
            .find(|tag| !self.by_tag.contains_key(tag.as_str()))
            .unwrap_or_default()
            .into()
        } else {
            requested.into()
        };
        if self.by_tag.contains_key(&consumer_tag) {
            return None;
        }
        self.by_tag
            .insert(Arc::clone(&consumer_tag), Entry::default());
        Some(consumer_tag)
    }

    pub(crate) fn register(&mut self, subscription: &Arc<Subscription>) {
        if let Some(entry) = self.by_tag.get_mut(&subscription.consumer_tag) {
            entry.subscription = Arc::downgrade(subscription);
        }
    }

    pub(crate) fn subscription(&self, consumer_tag: &str) -> Option<Arc<Subscription>> {
        self.by_tag.get(consumer_tag)?.subscription.upgrade()
    }

    pub(crate) fn record(
        &mut self,
        mailbox: Arc<dyn ConsumerMailbox>,
        consume: BasicConsume<'static>,
        qos: Qos,
    ) {
        self.count += 1;
        let recorded = RecordedConsumer {
            number: self.count,
            mailbox,
            consume,
            qos,
        };
        if let Some(entry) = self.by_tag.get_mut(&*recorded.consume.consumer_tag) {
            entry.recorded = Some(recorded);
        }
    }

    /// Frees the tag: no message can arrive for it any more, or `basic.consume` was never sent.
    pub(crate) fn remove(&mut self, consumer_tag: &str) -> Option<RecordedConsumer> {
        self.by_tag.remove(consumer_tag)?.recorded
    }

    /// The recorded consumers, in the order in which they began.
    pub(crate) fn recorded(&self) -> Vec<RecordedConsumer> {
        let recorded = self.by_tag.values().filter_map(|it| it.recorded.clone());
        let mut recorded: Vec<_> = recorded.collect();
        recorded.sort_by_key(|it| it.number);
        recorded
    }

    pub(crate) fn get(&self, consumer_tag: &str) -> Option<RecordedConsumer> {
        self.by_tag.get(consumer_tag)?.recorded.clone()
    }

    /// Tells the consumers of this queue that it does not exist. It may be declared again.
    pub(crate) fn queue_missing(&self, queue: &str) {
        for recorded in self.by_tag.values().filter_map(|it| it.recorded.as_ref()) {
            if recorded.consume.queue == queue {
                recorded.mailbox.is_without_queue();
            }
        }
    }

    pub(crate) fn queue_renamed(&mut self, old: &str, new: &str) {
        for recorded in self
            .by_tag
            .values_mut()
            .filter_map(|it| it.recorded.as_mut())
        {
            if recorded.consume.queue == old {
                recorded.consume.queue = new.to_owned().into();
            }
        }
    }
}
