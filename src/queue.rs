//! Queues: a handle for one queue, and the channel methods for queues.

use std::borrow::Cow;
use std::sync::Arc;

use crate::channel::{existence, Channel};
use crate::connection::Connection;
use crate::consumer::Consumer;
use crate::delivery::Delivery;
use crate::error::{Error, Result};
use crate::message::Message;
use crate::options::{AckMode, ConsumeOptions, QueueDeclareOptions, QueueDeleteOptions};
use crate::session::call::Operation;
use crate::session::queue_names::{Name, QueueName};
use crate::wire::method::{
    Encode, QueueBind, QueueDeclare, QueueDeclareOk, QueueDelete, QueuePurge, QueueUnbind,
};
use crate::wire::value::FieldTable;

/// A handle for one queue: a name and a channel.
///
/// ```no_run
/// use leveret::{Connection, QueueDeclareOptions};
/// use std::time::Duration;
///
/// let channel = Connection::open_default()?.open_channel()?;
/// let queue = channel.queue_declare("tasks", QueueDeclareOptions::default())?;
/// queue.publish("work")?;
/// let consumer = queue.consume()?;
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
    /// `counts`: messages and consumers, if the broker's reply has them.
    pub(crate) fn new(channel: Channel, name: &str, counts: Option<(u32, u32)>) -> Self {
        let names = &channel.connection().recovery().queue_names;
        Self {
            name: names.name(name),
            channel,
            counts,
        }
    }

    /// Returns the queue's name, including a name that the broker chose.
    ///
    /// If a queue that the broker named is gone when the connection recovers, its replacement gets
    /// a new name. So call this method again instead of keeping the name. Everything that was
    /// declared with the old name changes to the new name automatically, and
    /// [`ConnectionEvent::QueueRenamed`](crate::ConnectionEvent::QueueRenamed) reports the new
    /// name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.current()
    }

    pub(crate) fn tracked_name(&self) -> Arc<Name> {
        Arc::clone(&self.name)
    }

    /// Returns this handle's channel.
    #[must_use]
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Returns the number of ready messages at the time of the declaration. `None` if the broker
    /// was not asked: [`Channel::queue`] made the handle, or the declaration did not wait.
    ///
    /// While a quorum queue has no leader, RabbitMQ answers 0 messages and 0 consumers.
    #[must_use]
    pub fn message_count(&self) -> Option<u32> {
        self.counts.map(|(messages, _)| messages)
    }

    /// Returns the number of consumers at the time of the declaration. `None` in the same cases as
    /// [`message_count`](Self::message_count).
    #[must_use]
    pub fn consumer_count(&self) -> Option<u32> {
        self.counts.map(|(_, consumers)| consumers)
    }

    /// Binds the queue to an exchange, given as its handle or its name: see
    /// [`Channel::queue_bind`].
    ///
    /// # Errors
    /// Same as [`Channel::queue_bind`].
    pub fn bind(&self, exchange: impl AsRef<str>, routing_key: &str) -> Result<()> {
        self.bind_with(exchange, routing_key, FieldTable::new())
    }

    /// Binds the queue with arguments, for example to a headers exchange.
    ///
    /// # Errors
    /// Same as [`Channel::queue_bind`].
    pub fn bind_with(
        &self,
        exchange: impl AsRef<str>,
        routing_key: &str,
        arguments: impl Into<FieldTable>,
    ) -> Result<()> {
        let name = self.name.as_ref().into();
        self.channel.bind_queue(
            name,
            exchange.as_ref(),
            routing_key,
            &arguments.into(),
            false,
        )
    }

    /// Removes a binding made by [`bind`](Self::bind).
    ///
    /// # Errors
    /// Same as [`Channel::queue_unbind`].
    pub fn unbind(&self, exchange: impl AsRef<str>, routing_key: &str) -> Result<()> {
        self.unbind_with(exchange, routing_key, FieldTable::new())
    }

    /// Removes a binding made by [`bind_with`](Self::bind_with) with the same arguments.
    ///
    /// # Errors
    /// Same as [`Channel::queue_unbind`].
    pub fn unbind_with(
        &self,
        exchange: impl AsRef<str>,
        routing_key: &str,
        arguments: impl Into<FieldTable>,
    ) -> Result<()> {
        let name = self.name.as_ref().into();
        self.channel
            .unbind_queue(name, exchange.as_ref(), routing_key, &arguments.into())
    }

    /// Publishes a message directly to this queue, through the default exchange: see
    /// [`Channel::basic_publish`].
    ///
    /// # Errors
    /// Same as [`Channel::basic_publish`].
    pub fn publish<'m>(&self, message: impl Into<Message<'m>>) -> Result<Option<u64>> {
        let message = message.into();
        match self.name.is_made_up() {
            true => self.channel.publish_to_queue(&self.name, &message),
            false => self.channel.basic_publish("", self.name(), message),
        }
    }

    /// Starts a consumer that acknowledges each message: see [`Channel::basic_consume`].
    ///
    /// # Errors
    /// Same as [`Channel::basic_consume`].
    pub fn consume(&self) -> Result<Consumer> {
        self.consume_with(ConsumeOptions::default())
    }

    /// Starts a consumer with other [`ConsumeOptions`].
    ///
    /// # Errors
    /// Same as [`Channel::basic_consume`].
    pub fn consume_with(&self, options: ConsumeOptions) -> Result<Consumer> {
        self.channel
            .consume_queue(self.name.as_ref().into(), options, false)
    }

    /// Fetches one message, which the program must acknowledge: see [`Channel::basic_get`].
    ///
    /// # Errors
    /// Same as [`Channel::basic_get`].
    pub fn get(&self) -> Result<Option<Delivery>> {
        self.get_with(AckMode::Manual)
    }

    /// Fetches one message, with or without an acknowledgement.
    ///
    /// # Errors
    /// Same as [`Channel::basic_get`].
    pub fn get_with(&self, ack_mode: AckMode) -> Result<Option<Delivery>> {
        self.channel.get(self.name.as_ref().into(), ack_mode)
    }

    /// Drops all ready messages and returns their number: see [`Channel::queue_purge`].
    ///
    /// # Errors
    /// Same as [`Channel::queue_purge`].
    pub fn purge(&self) -> Result<u32> {
        self.channel.purge_queue(self.name.as_ref().into())
    }

    /// Deletes the queue and returns the number of messages deleted with it: see
    /// [`Channel::queue_delete`].
    ///
    /// # Errors
    /// Same as [`Channel::queue_delete`].
    pub fn delete(&self) -> Result<u32> {
        self.delete_with(QueueDeleteOptions::default())
    }

    /// Deletes the queue only if the options permit it.
    ///
    /// # Errors
    /// Same as [`Channel::queue_delete`].
    pub fn delete_with(&self, options: QueueDeleteOptions) -> Result<u32> {
        let name = self.name.as_ref().into();
        let deleted = self.channel.delete_queue(name, &options, false)?;
        Ok(deleted.unwrap_or_default())
    }
}

impl Channel {
    /// Declares a queue: creates it, or checks that it exists with these options. If the name is
    /// `""`, the broker chooses one: see [`Queue::name`].
    ///
    /// ```no_run
    /// use leveret::{Connection, QueueDeclareOptions};
    ///
    /// let channel = Connection::open_default()?.open_channel()?;
    /// let queue = channel.queue_declare("tasks", QueueDeclareOptions::default())?;
    /// println!("{:?} messages, {:?} consumers", queue.message_count(), queue.consumer_count());
    /// queue.publish("work")?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// 406 if the queue exists with other options; 405 if it is exclusive to another connection;
    /// 404 if a passive declaration finds no queue; 403 without permission.
    pub fn queue_declare(&self, name: &str, options: QueueDeclareOptions) -> Result<Queue> {
        let ok = self.declare_queue(name, &options, false)?;
        Ok(self.declared(name, ok))
    }

    /// Checks that a queue exists, and returns its counts.
    /// [`Connection::queue_exists`] asks the same without risk to a channel.
    ///
    /// # Errors
    /// 404 if the queue does not exist: the broker then closes the channel. 405 if it is exclusive
    /// to another connection; 403 without permission.
    pub fn queue_declare_passive(&self, name: &str) -> Result<Queue> {
        self.queue_declare(name, QueueDeclareOptions::default().passive(true))
    }

    /// [`queue_declare`](Self::queue_declare) without waiting for the broker. The counts are
    /// unknown.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) for the name `""`. If the
    /// broker refuses, it closes the channel, and the next call on the channel fails.
    pub fn queue_declare_no_wait(&self, name: &str, options: QueueDeclareOptions) -> Result<Queue> {
        if name.is_empty() {
            let asked = Operation::about(QueueDeclare::ID, name);
            return Err(asked.failed(Error::invalid(
                "the queue needs a name: without a reply, the program cannot learn the name that the broker chooses",
            )));
        }
        let no_reply = self.declare_queue(name, &options, true)?;
        Ok(self.declared(name, no_reply))
    }

    /// [`queue_declare_passive`](Self::queue_declare_passive) without a handle for the queue.
    pub(crate) fn find_queue(&self, name: &str) -> Result<()> {
        let declare = QueueDeclare {
            queue: name.into(),
            passive: true,
            ..QueueDeclare::default()
        };
        self.call(name, || declare).map(drop)
    }

    fn declare_queue(
        &self,
        name: &str,
        options: &QueueDeclareOptions,
        no_wait: bool,
    ) -> Result<Option<QueueDeclareOk<'static>>> {
        let declare = QueueDeclare {
            ticket: 0,
            queue: name.into(),
            passive: options.passive,
            durable: options.durable,
            exclusive: options.exclusive,
            auto_delete: options.auto_delete,
            no_wait,
            arguments: Cow::Borrowed(&options.arguments),
        };
        self.call_recorded(no_wait, name, || declare)
    }

    fn declared(&self, name: &str, ok: Option<QueueDeclareOk<'_>>) -> Queue {
        let name = ok.as_ref().map_or(name, |ok| &ok.queue);
        let counts = ok.as_ref().map(|ok| (ok.message_count, ok.consumer_count));
        let queue = Queue::new(self.clone(), name, counts);
        self.state().set_last_queue(queue.tracked_name());
        queue
    }

    /// Returns a handle for an existing queue without asking the broker. Its counts are unknown.
    #[must_use]
    pub fn queue(&self, name: &str) -> Queue {
        Queue::new(self.clone(), name, None)
    }

    /// Binds a queue to an exchange: messages that the exchange receives with a matching routing
    /// key go into the queue.
    ///
    /// ```no_run
    /// use leveret::{Connection, FieldTable, QueueDeclareOptions};
    ///
    /// let channel = Connection::open_default()?.open_channel()?;
    /// let queue = channel.queue_declare("", QueueDeclareOptions::temporary())?;
    /// channel.queue_bind(queue.name(), "amq.topic", "sensors.#", FieldTable::new())?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// 404 if the queue or the exchange does not exist.
    pub fn queue_bind(
        &self,
        queue: &str,
        exchange: &str,
        routing_key: &str,
        arguments: impl Into<FieldTable>,
    ) -> Result<()> {
        self.bind_queue(
            queue.into(),
            exchange,
            routing_key,
            &arguments.into(),
            false,
        )
    }

    /// [`queue_bind`](Self::queue_bind) without waiting for the broker.
    ///
    /// # Errors
    /// If the broker refuses, it closes the channel, and the next call on the channel fails.
    pub fn queue_bind_no_wait(
        &self,
        queue: &str,
        exchange: &str,
        routing_key: &str,
        arguments: impl Into<FieldTable>,
    ) -> Result<()> {
        self.bind_queue(queue.into(), exchange, routing_key, &arguments.into(), true)
    }

    fn bind_queue(
        &self,
        queue: QueueName<'_>,
        exchange: &str,
        routing_key: &str,
        arguments: &FieldTable,
        no_wait: bool,
    ) -> Result<()> {
        self.call_recorded(no_wait, queue.shown(), || {
            let name = self.state().resolve(queue);
            QueueBind {
                ticket: 0,
                exchange: exchange.into(),
                routing_key: routing_key_or(routing_key, &name, queue).to_owned().into(),
                queue: name,
                no_wait,
                arguments: Cow::Borrowed(arguments),
            }
        })?;
        Ok(())
    }

    /// Removes the binding that [`queue_bind`](Self::queue_bind) made with the same routing key and
    /// arguments. A missing binding is not an error.
    ///
    /// # Errors
    /// 403 without permission, and for the default exchange.
    pub fn queue_unbind(
        &self,
        queue: &str,
        exchange: &str,
        routing_key: &str,
        arguments: impl Into<FieldTable>,
    ) -> Result<()> {
        self.unbind_queue(queue.into(), exchange, routing_key, &arguments.into())
    }

    fn unbind_queue(
        &self,
        queue: QueueName<'_>,
        exchange: &str,
        routing_key: &str,
        arguments: &FieldTable,
    ) -> Result<()> {
        self.call_recorded(false, queue.shown(), || {
            let name = self.state().resolve(queue);
            QueueUnbind {
                ticket: 0,
                exchange: exchange.into(),
                routing_key: routing_key_or(routing_key, &name, queue).to_owned().into(),
                queue: name,
                arguments: Cow::Borrowed(arguments),
            }
        })?;
        Ok(())
    }

    /// Drops all ready messages of a queue and returns their number. Unacknowledged messages stay.
    ///
    /// # Errors
    /// 404 if the queue does not exist; 403 without permission. For a stream, RabbitMQ closes the
    /// connection (540).
    pub fn queue_purge(&self, name: &str) -> Result<u32> {
        self.purge_queue(name.into())
    }

    fn purge_queue(&self, queue: QueueName<'_>) -> Result<u32> {
        let purged = self.call(queue.shown(), || self.purge(queue, false))?;
        Ok(purged.message_count)
    }

    /// [`queue_purge`](Self::queue_purge) without waiting for the broker.
    ///
    /// # Errors
    /// If the broker refuses, it closes the channel, and the next call on the channel fails.
    pub fn queue_purge_no_wait(&self, name: &str) -> Result<()> {
        let asked = Operation::about(QueuePurge::ID, name);
        self.write(asked, |frames| {
            frames.method(&self.purge(name.into(), true))
        })
    }

    fn purge<'a>(&self, queue: QueueName<'a>, no_wait: bool) -> QueuePurge<'a> {
        QueuePurge {
            ticket: 0,
            queue: self.state().resolve(queue),
            no_wait,
        }
    }

    /// Deletes a queue and returns the number of messages deleted with it. A missing queue is not
    /// an error.
    ///
    /// # Errors
    /// 406 if the options demand an unused or empty queue, and the queue is in use or not empty;
    /// 405 if it is exclusive to another connection.
    pub fn queue_delete(&self, name: &str, options: QueueDeleteOptions) -> Result<u32> {
        let deleted = self.delete_queue(name.into(), &options, false)?;
        Ok(deleted.unwrap_or_default())
    }

    /// [`queue_delete`](Self::queue_delete) without waiting for the broker.
    ///
    /// # Errors
    /// If the broker refuses, it closes the channel, and the next call on the channel fails.
    pub fn queue_delete_no_wait(&self, name: &str, options: QueueDeleteOptions) -> Result<()> {
        self.delete_queue(name.into(), &options, true).map(drop)
    }

    /// Returns the number of messages deleted with the queue, if the broker replies.
    fn delete_queue(
        &self,
        queue: QueueName<'_>,
        options: &QueueDeleteOptions,
        no_wait: bool,
    ) -> Result<Option<u32>> {
        let ok = self.call_recorded(no_wait, queue.shown(), || QueueDelete {
            ticket: 0,
            queue: self.state().resolve(queue),
            if_unused: options.if_unused,
            if_empty: options.if_empty,
            no_wait,
        })?;
        Ok(ok.map(|ok| ok.message_count))
    }
}

/// If both names are empty, the name of the last declared queue is used for both.
fn routing_key_or<'a>(routing_key: &'a str, name: &'a str, asked: QueueName<'_>) -> &'a str {
    match (routing_key, asked) {
        ("", QueueName::Given("")) => name,
        _ => routing_key,
    }
}

impl Connection {
    /// Returns true if the queue exists. Asks on a separate channel, so that a "no" from the broker
    /// closes none of the program's channels. For a queue that
    /// [`expires`](QueueDeclareOptions::expires), this call counts as use.
    ///
    /// Before RabbitMQ 4.3, any user may ask. Since then, the user needs one permission for this
    /// name: "configure", "write" or "read". (RabbitMQ 4.3.0 demands "configure".)
    ///
    /// # Errors
    /// 403 without permission, whether the queue exists or not. Also the errors of
    /// [`open_channel`](Self::open_channel).
    pub fn queue_exists(&self, name: &str) -> Result<bool> {
        let channel = self.open_question()?;
        existence(channel.find_queue(name))
    }
}
