//! The consumers of a channel, as the handles know them.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use super::settings::Qos;
use crate::events::Entity;
use crate::io_thread::mailbox::ConsumerMailbox;
use crate::session::subscription::Registration;
use crate::wire::method::BasicConsume;

/// Who uses which consumer tag, and what is to be asked to have it again on the next connection.
#[derive(Default)]
pub(crate) struct Consumers {
    by_tag: HashMap<Arc<str>, Entry>,
    /// For making up consumer tags, and to tell which came first.
    count: u64,
}

#[derive(Default)]
struct Entry {
    registration: Weak<Registration>,
    wanted: Option<Wanted>,
}

/// What a consumer was begun with.
#[derive(Clone)]
pub(crate) struct Wanted {
    number: u64,
    pub(crate) mailbox: Arc<dyn ConsumerMailbox>,
    pub(crate) consume: BasicConsume<'static>,
    /// The prefetch of its channel at that time.
    pub(crate) qos: Qos,
}

impl Wanted {
    pub(crate) fn entity(&self) -> Entity {
        Entity::Consumer {
            queue: self.consume.queue.to_string(),
            consumer_tag: self.consume.consumer_tag.to_string(),
        }
    }
}

impl Consumers {
    /// Takes the tag that is asked for, or one that is made up. None if it is in use.
    pub(crate) fn take_tag(&mut self, wanted: &str, channel: u16) -> Option<Arc<str>> {
        let consumer_tag: Arc<str> = if wanted.is_empty() {
            std::iter::repeat_with(|| {
                self.count += 1;
                format!("leveret-{channel}.{}", self.count)
            })
            .find(|made_up| !self.by_tag.contains_key(made_up.as_str()))
            .unwrap_or_default()
            .into()
        } else {
            wanted.into()
        };
        if self.by_tag.contains_key(&consumer_tag) {
            return None;
        }
        self.by_tag
            .insert(Arc::clone(&consumer_tag), Entry::default());
        Some(consumer_tag)
    }

    pub(crate) fn register(&mut self, registration: &Arc<Registration>) {
        if let Some(entry) = self.by_tag.get_mut(&registration.consumer_tag) {
            entry.registration = Arc::downgrade(registration);
        }
    }

    pub(crate) fn registration(&self, consumer_tag: &str) -> Option<Arc<Registration>> {
        self.by_tag.get(consumer_tag)?.registration.upgrade()
    }

    pub(crate) fn want(
        &mut self,
        mailbox: Arc<dyn ConsumerMailbox>,
        consume: BasicConsume<'static>,
        qos: Qos,
    ) {
        self.count += 1;
        let wanted = Wanted {
            number: self.count,
            mailbox,
            consume,
            qos,
        };
        if let Some(entry) = self.by_tag.get_mut(&*wanted.consume.consumer_tag) {
            entry.wanted = Some(wanted);
        }
    }

    /// The tag is free again: nothing can come for it any more, or the broker was never asked.
    pub(crate) fn remove(&mut self, consumer_tag: &str) -> Option<Wanted> {
        self.by_tag.remove(consumer_tag)?.wanted
    }

    /// In the order in which they began.
    pub(crate) fn wanted(&self) -> Vec<Wanted> {
        let wanted = self.by_tag.values().filter_map(|it| it.wanted.clone());
        let mut wanted: Vec<_> = wanted.collect();
        wanted.sort_by_key(|it| it.number);
        wanted
    }

    pub(crate) fn get(&self, consumer_tag: &str) -> Option<Wanted> {
        self.by_tag.get(consumer_tag)?.wanted.clone()
    }

    /// This queue is not there. It may be declared anew.
    pub(crate) fn queue_missing(&self, queue: &str) {
        for wanted in self.by_tag.values().filter_map(|it| it.wanted.as_ref()) {
            if wanted.consume.queue == queue {
                wanted.mailbox.is_without_queue();
            }
        }
    }

    pub(crate) fn queue_renamed(&mut self, old: &str, new: &str) {
        for wanted in self.by_tag.values_mut().filter_map(|it| it.wanted.as_mut()) {
            if wanted.consume.queue == old {
                wanted.consume.queue = new.to_owned().into();
            }
        }
    }
}
