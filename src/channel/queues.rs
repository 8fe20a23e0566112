//! Declaring, binding, purging and deleting queues.

use std::borrow::Cow;

use super::Channel;
use crate::error::{Error, Result};
use crate::options::{BindOptions, QueueDeclareOptions, QueueDeleteOptions};
use crate::queue::Queue;
use crate::session::call::Asked;
use crate::session::queue_names::QueueName;
use crate::wire::method::{Encode, QueueBind, QueueDeclare, QueueDelete, QueuePurge, QueueUnbind};

impl Channel {
    /// Declares a queue: makes it, or checks that it is as described. With the name `""` the broker makes one up:
    /// see [`Queue::name`].
    ///
    /// ```no_run
    /// use leveret::{Connection, QueueDeclareOptions};
    ///
    /// let channel = Connection::open_default()?.open_channel()?;
    /// let queue = channel.queue_declare("tasks", QueueDeclareOptions::durable())?;
    /// println!("{:?} messages, {:?} consumers", queue.message_count(), queue.consumer_count());
    /// queue.publish("work")?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// 406 if it exists otherwise, 405 if it is exclusive to another connection, 404 if asked for passively and
    /// missing, 403 without permission.
    pub fn queue_declare(&self, name: &str, options: QueueDeclareOptions) -> Result<Queue> {
        if options.no_wait && name.is_empty() {
            let asked = Asked::about(QueueDeclare::ID, name);
            return Err(asked.failed(Error::invalid(
                "with no_wait the name that the broker makes up would stay unknown",
            )));
        }
        let declare = QueueDeclare {
            ticket: 0,
            queue: name.into(),
            passive: options.passive,
            durable: options.durable,
            exclusive: options.exclusive,
            auto_delete: options.auto_delete,
            no_wait: options.no_wait,
            arguments: Cow::Borrowed(&options.arguments),
        };
        let ok = self.call_recorded(options.no_wait, name, || declare)?;
        let name = ok.as_ref().map_or(name, |ok| &ok.queue);
        let counts = ok.as_ref().map(|ok| (ok.message_count, ok.consumer_count));
        let queue = Queue::new(self.clone(), name, counts);
        self.state().settings.set_last_queue(queue.tracked_name());
        Ok(queue)
    }

    /// A handle of a queue that exists, without asking the broker; its counts are not known.
    pub fn queue(&self, name: &str) -> Queue {
        Queue::new(self.clone(), name, None)
    }

    /// Binds a queue to an exchange: what is published there with a matching routing key goes into the queue.
    ///
    /// ```no_run
    /// use leveret::{BindOptions, Connection, QueueDeclareOptions};
    ///
    /// let channel = Connection::open_default()?.open_channel()?;
    /// let queue = channel.queue_declare("", QueueDeclareOptions::exclusive())?;
    /// channel.queue_bind(queue.name(), "amq.topic", "sensors.#", BindOptions::default())?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// 404 if one of them is missing.
    pub fn queue_bind(
        &self,
        queue: &str,
        exchange: &str,
        routing_key: &str,
        options: BindOptions,
    ) -> Result<()> {
        self.bind_queue(queue.into(), exchange, routing_key, &options)
    }

    pub(crate) fn bind_queue(
        &self,
        queue: QueueName<'_>,
        exchange: &str,
        routing_key: &str,
        options: &BindOptions,
    ) -> Result<()> {
        self.call_recorded(options.no_wait, queue.shown(), || {
            let name = self.state().settings.resolve(queue);
            QueueBind {
                ticket: 0,
                exchange: exchange.into(),
                routing_key: routing_key_or(routing_key, &name, queue).to_owned().into(),
                queue: name,
                no_wait: options.no_wait,
                arguments: Cow::Borrowed(&options.arguments),
            }
        })?;
        Ok(())
    }

    /// Undoes [`queue_bind`](Self::queue_bind) with the same routing key and arguments.
    pub fn queue_unbind(
        &self,
        queue: &str,
        exchange: &str,
        routing_key: &str,
        options: BindOptions,
    ) -> Result<()> {
        self.unbind_queue(queue.into(), exchange, routing_key, &options)
    }

    pub(crate) fn unbind_queue(
        &self,
        queue: QueueName<'_>,
        exchange: &str,
        routing_key: &str,
        options: &BindOptions,
    ) -> Result<()> {
        self.call_recorded(false, queue.shown(), || {
            let name = self.state().settings.resolve(queue);
            QueueUnbind {
                ticket: 0,
                exchange: exchange.into(),
                routing_key: routing_key_or(routing_key, &name, queue).to_owned().into(),
                queue: name,
                arguments: Cow::Borrowed(&options.arguments),
            }
        })?;
        Ok(())
    }

    /// Drops all messages of a queue that are ready, and returns how many. Unacknowledged ones stay.
    pub fn queue_purge(&self, name: &str) -> Result<u32> {
        self.purge_queue(name.into())
    }

    pub(crate) fn purge_queue(&self, queue: QueueName<'_>) -> Result<u32> {
        let purged = self.call(queue.shown(), || self.purge(queue, false))?;
        Ok(purged.message_count)
    }

    /// [`queue_purge`](Self::queue_purge) without waiting for the broker.
    pub fn queue_purge_no_wait(&self, name: &str) -> Result<()> {
        let asked = Asked::about(QueuePurge::ID, name);
        self.write(asked, |frames| {
            frames.method(&self.purge(name.into(), true))
        })
    }

    fn purge<'a>(&self, queue: QueueName<'a>, no_wait: bool) -> QueuePurge<'a> {
        QueuePurge {
            ticket: 0,
            queue: self.state().settings.resolve(queue),
            no_wait,
        }
    }

    /// Deletes a queue and returns how many messages went with it. It is no error if there is none.
    ///
    /// # Errors
    /// 406 if asked for only if unused or empty, and it is not; 405 if it is exclusive to another connection.
    pub fn queue_delete(&self, name: &str, options: QueueDeleteOptions) -> Result<u32> {
        self.delete_queue(name.into(), &options)
    }

    pub(crate) fn delete_queue(
        &self,
        queue: QueueName<'_>,
        options: &QueueDeleteOptions,
    ) -> Result<u32> {
        let ok = self.call_recorded(options.no_wait, queue.shown(), || QueueDelete {
            ticket: 0,
            queue: self.state().settings.resolve(queue),
            if_unused: options.if_unused,
            if_empty: options.if_empty,
            no_wait: options.no_wait,
        })?;
        Ok(ok.map_or(0, |ok| ok.message_count))
    }
}

/// Without either name, the queue's stands for both.
fn routing_key_or<'a>(routing_key: &'a str, name: &'a str, asked: QueueName<'_>) -> &'a str {
    match (routing_key, asked) {
        ("", QueueName::Given("")) => name,
        _ => routing_key,
    }
}
