//! Queues: where messages wait.

use std::sync::Arc;

use crate::channel::Channel;
use crate::consumer::Consumer;
use crate::delivery::GetResponse;
use crate::error::Result;
use crate::exchange::Exchange;
use crate::message::Message;
use crate::options::{BindOptions, ConsumeOptions, QueueDeleteOptions};
use crate::session::queue_names::Name;

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
