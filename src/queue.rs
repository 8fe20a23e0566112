//! Queues: where messages wait.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

use crate::channel::Channel;
use crate::consumer::Consumer;
use crate::delivery::GetResponse;
use crate::error::Result;
use crate::exchange::Exchange;
use crate::message::Message;
use crate::options::{BindOptions, ConsumeOptions, QueueDeleteOptions};
use crate::session::channel::settings::Settings;

/// A queue by its name, and the channel it is used through.
///
/// ```no_run
/// use leveret::{Connection, ConsumeOptions, QueueDeclareOptions};
/// use std::time::Duration;
///
/// let channel = Connection::open_default()?.open_channel()?;
/// let queue = channel.queue_declare("tasks", QueueDeclareOptions::durable())?;
/// queue.publish("work")?;
/// let consumer = queue.consume(ConsumeOptions::default())?;
/// while let Some(delivery) = consumer.recv_timeout(Duration::from_secs(1))? {
///     delivery.ack()?;
/// }
/// # Ok::<(), leveret::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Queue {
    channel: Channel,
    name: Arc<Name>,
    counts: Option<(u32, u32)>,
}

impl Queue {
    /// `counts`: messages and consumers, if the broker has told them.
    pub(crate) fn new(channel: Channel, name: &str, counts: Option<(u32, u32)>) -> Self {
        let names = &channel.connection().recovery().server_names;
        Self {
            name: names.name(name),
            channel,
            counts,
        }
    }

    /// The queue's name, also if the broker made it up. Then the broker makes up another when the connection is recovered
    /// and the queue is gone: ask again instead of keeping it. (Everything that was declared with the old name gets the new
    /// one by itself, and [`ConnectionEvent::QueueRenamed`](crate::ConnectionEvent::QueueRenamed) tells of it.)
    pub fn name(&self) -> &str {
        self.name.current()
    }

    pub(crate) fn tracked_name(&self) -> Arc<Name> {
        Arc::clone(&self.name)
    }

    /// The channel it is used through.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// How many messages were ready when the queue was declared. `None` if the broker was not asked: the handle was
    /// made by [`Channel::queue`], or the queue was declared without waiting.
    pub fn message_count(&self) -> Option<u32> {
        self.counts.map(|(messages, _)| messages)
    }

    /// How many consumers there were when the queue was declared; `None` as for
    /// [`message_count`](Self::message_count).
    pub fn consumer_count(&self) -> Option<u32> {
        self.counts.map(|(_, consumers)| consumers)
    }

    /// Binds the queue to an exchange: see [`Channel::queue_bind`].
    ///
    /// # Errors
    /// As [`Channel::queue_bind`].
    pub fn bind(&self, exchange: &Exchange, routing_key: &str) -> Result<()> {
        self.bind_with(exchange, routing_key, BindOptions::default())
    }

    /// [`bind`](Self::bind) with arguments, as headers exchanges need them.
    ///
    /// # Errors
    /// As [`Channel::queue_bind`].
    pub fn bind_with(
        &self,
        exchange: &Exchange,
        routing_key: &str,
        options: BindOptions,
    ) -> Result<()> {
        let name = self.name.as_ref().into();
        self.channel
            .bind_queue(name, exchange.name(), routing_key, &options)
    }

    /// Undoes [`bind`](Self::bind).
    ///
    /// # Errors
    /// As [`Channel::queue_unbind`].
    pub fn unbind(&self, exchange: &Exchange, routing_key: &str) -> Result<()> {
        self.unbind_with(exchange, routing_key, BindOptions::default())
    }

    /// Undoes [`bind_with`](Self::bind_with) of the same arguments.
    ///
    /// # Errors
    /// As [`Channel::queue_unbind`].
    pub fn unbind_with(
        &self,
        exchange: &Exchange,
        routing_key: &str,
        options: BindOptions,
    ) -> Result<()> {
        let name = self.name.as_ref().into();
        self.channel
            .unbind_queue(name, exchange.name(), routing_key, &options)
    }

    /// Publishes a message to this queue alone, through the default exchange: see [`Channel::basic_publish`].
    ///
    /// # Errors
    /// As [`Channel::basic_publish`].
    pub fn publish<'m>(&self, message: impl Into<Message<'m>>) -> Result<Option<u64>> {
        let message = message.into();
        match self.name.is_made_up() {
            true => self.channel.publish_to_queue(&self.name, &message),
            false => self.channel.basic_publish("", self.name(), message),
        }
    }

    /// Begins to consume: see [`Channel::basic_consume`].
    ///
    /// # Errors
    /// As [`Channel::basic_consume`].
    pub fn consume(&self, options: ConsumeOptions) -> Result<Consumer> {
        self.channel
            .consume_queue(self.name.as_ref().into(), options)
    }

    /// Fetches one message: see [`Channel::basic_get`].
    ///
    /// # Errors
    /// As [`Channel::basic_get`].
    pub fn get(&self, no_ack: bool) -> Result<Option<GetResponse>> {
        self.channel.get(self.name.as_ref().into(), no_ack)
    }

    /// Drops all messages that are ready, and returns how many: see [`Channel::queue_purge`].
    ///
    /// # Errors
    /// As [`Channel::queue_purge`].
    pub fn purge(&self) -> Result<u32> {
        self.channel.purge_queue(self.name.as_ref().into())
    }

    /// Deletes the queue and returns how many messages went with it: see [`Channel::queue_delete`].
    ///
    /// # Errors
    /// As [`Channel::queue_delete`].
    pub fn delete(&self, options: QueueDeleteOptions) -> Result<u32> {
        self.channel
            .delete_queue(self.name.as_ref().into(), &options)
    }
}

/// Which queue a method is about. The name is read when the method is admitted: while it waits, the
/// connection can be lost and recovered, and the broker makes up another name for a queue of its own
/// naming.
#[derive(Clone, Copy)]
pub(crate) enum QueueName<'a> {
    /// The empty name stands for the queue that the channel has declared last.
    Given(&'a str),
    /// Of a handle.
    Tracked(&'a Name),
}

impl<'a> From<&'a str> for QueueName<'a> {
    fn from(name: &'a str) -> Self {
        Self::Given(name)
    }
}

impl<'a> From<&'a Name> for QueueName<'a> {
    fn from(name: &'a Name) -> Self {
        Self::Tracked(name)
    }
}

impl<'a> QueueName<'a> {
    /// The name as the program knows it now.
    pub(crate) fn shown(self) -> &'a str {
        match self {
            Self::Given(name) => name,
            Self::Tracked(name) => name.current(),
        }
    }

    /// The name to be sent. Under the outbox's lock.
    pub(crate) fn resolve(self, settings: &Settings) -> Cow<'a, str> {
        match self {
            Self::Given("") => settings.last_queue().into(),
            other => other.shown().into(),
        }
    }
}

/// A name, and the one that has taken its place. The old one is kept with it, since [`Queue::name`] lends it.
pub(crate) struct Name {
    text: Box<str>,
    next: OnceLock<Arc<Self>>,
}

impl Name {
    fn new(text: &str) -> Arc<Self> {
        let (text, next) = (text.into(), OnceLock::new());
        Arc::new(Self { text, next })
    }

    /// Only the broker may begin names so.
    fn is_made_up(&self) -> bool {
        self.text.starts_with("amq.gen-")
    }

    pub(crate) fn current(&self) -> &str {
        let mut name = self;
        while let Some(next) = name.next.get() {
            name = next;
        }
        &name.text
    }
}

/// Not one inside the other: a queue of a program that runs for long can have had many names.
impl Drop for Name {
    fn drop(&mut self) {
        let mut next = self.next.take();
        while let Some(mut name) = next.and_then(Arc::into_inner) {
            next = name.next.take();
        }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.current().fmt(f)
    }
}

/// The names that a broker has made up for queues of which there are handles.
#[derive(Default)]
pub(crate) struct ServerNames(Mutex<Names>);

#[derive(Default)]
struct Names {
    current: HashMap<String, Weak<Name>>,
    /// Old and new, the latest last: a thread that was just told the old name may come with it.
    renamed: VecDeque<(String, String)>,
}

/// How many changes of names are remembered.
const RENAMED_LIMIT: usize = 4096;

impl Names {
    fn latest(&self, name: &str) -> String {
        let mut latest = name.to_owned();
        for (old, new) in &self.renamed {
            if *old == latest {
                latest.clone_from(new);
            }
        }
        latest
    }
}

impl ServerNames {
    /// A name that follows the queue, if the broker has made the name up.
    pub(crate) fn name(&self, text: &str) -> Arc<Name> {
        let name = Name::new(text);
        if !name.is_made_up() {
            return name;
        }
        let mut names = self.0.lock();
        let latest = names.latest(text);
        if let Some(name) = names.current.get(&latest).and_then(Weak::upgrade) {
            return name;
        }
        let name = Name::new(&latest);
        names.current.retain(|_, name| name.strong_count() > 0);
        names.current.insert(latest, Arc::downgrade(&name));
        name
    }

    pub(crate) fn rename(&self, old: &str, new: &str) {
        let mut names = self.0.lock();
        if names.renamed.len() >= RENAMED_LIMIT {
            names.renamed.pop_front();
        }
        names.renamed.push_back((old.to_owned(), new.to_owned()));
        let name = names.current.remove(old).and_then(|name| name.upgrade());
        if let Some(name) = name {
            let next = Name::new(new);
            names.current.insert(new.to_owned(), Arc::downgrade(&next));
            // Only once: the old name is no longer in the map.
            let _ = name.next.set(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_the_broker_made_up_follows_the_queue() {
        let names = ServerNames::default();
        let (one, other) = (names.name("amq.gen-1"), names.name("amq.gen-1"));
        let given = names.name("given");
        names.rename("amq.gen-1", "amq.gen-2");
        names.rename("given", "taken");
        assert_eq!(one.current(), "amq.gen-2");
        let late = names.name("amq.gen-2");
        names.rename("amq.gen-2", "amq.gen-3");
        let current = [&one, &other, &late].map(|name| name.current());
        assert_eq!(current, ["amq.gen-3"; 3]);
        assert_eq!(given.current(), "given");
        drop((one, other, late));
        names.name("amq.gen-4");
        assert_eq!(names.0.lock().current.len(), 1);
    }

    #[test]
    fn a_name_that_was_told_just_before_it_changed_follows_the_queue() {
        let names = ServerNames::default();
        let early = names.name("amq.gen-1");
        names.rename("amq.gen-1", "amq.gen-2");
        names.rename("amq.gen-2", "amq.gen-3");
        let late = names.name("amq.gen-1");
        assert_eq!(late.current(), "amq.gen-3");
        names.rename("amq.gen-3", "amq.gen-4");
        assert_eq!([early.current(), late.current()], ["amq.gen-4"; 2]);
    }

    #[test]
    fn many_names_are_dropped_without_a_deep_stack() {
        let names = ServerNames::default();
        let name = names.name("amq.gen-0");
        for count in 0..200_000 {
            names.rename(
                &format!("amq.gen-{count}"),
                &format!("amq.gen-{}", count + 1),
            );
        }
        assert_eq!(name.current(), "amq.gen-200000");
        drop(name);
    }
}
