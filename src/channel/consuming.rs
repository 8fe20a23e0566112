//! Getting messages, and answering for them.

use std::borrow::Cow;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::Channel;
use crate::consumer::Consumer;
use crate::delivery::GetResponse;
use crate::error::{Error, Result};
use crate::mailbox::{Command, ConsumerMailbox, Reply};
use crate::options::{ConsumeOptions, NackOptions, QosOptions};
use crate::outbox::Frames;
use crate::proto::Expected;
use crate::request::{self, Asked};
use crate::wire::method::{
    BasicAck, BasicCancel, BasicConsume, BasicGet, BasicNack, BasicQos, BasicRecover,
    BasicRecoverAsync, BasicReject, Encode,
};

impl Channel {
    /// How many unacknowledged messages the broker may send ahead to each consumer that begins from now on. Without
    /// it, it sends the whole queue.
    pub fn basic_qos(&self, prefetch_count: u16) -> Result<()> {
        self.basic_qos_with(QosOptions::default().prefetch_count(prefetch_count))
    }

    /// [`basic_qos`](Self::basic_qos) with all its parameters.
    ///
    /// # Errors
    /// 540, which closes the connection, for a `prefetch_size`: RabbitMQ has none.
    pub fn basic_qos_with(&self, options: QosOptions) -> Result<()> {
        let qos = BasicQos {
            prefetch_size: options.prefetch_size,
            prefetch_count: options.prefetch_count,
            global: options.global,
        };
        self.call("", &qos)?;
        Ok(())
    }

    /// Begins to consume from a queue. See [`Consumer`] for an example.
    ///
    /// # Errors
    /// 404 if there is no such queue, 403 if another consumer has it exclusively or without permission.
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) if the consumer tag is in use on this channel: the broker would close the
    /// whole connection for it.
    pub fn basic_consume(&self, queue: &str, options: ConsumeOptions) -> Result<Consumer> {
        self.consume(queue, &options, |consumer_tag| {
            let (consumer, mailbox) = Consumer::new(self.clone(), consumer_tag, &options);
            (consumer, Arc::new(mailbox))
        })
    }

    /// Begins to consume into a mailbox that `begin` makes, beside what is returned.
    pub(crate) fn consume<C>(
        &self,
        queue: &str,
        options: &ConsumeOptions,
        begin: impl FnOnce(Arc<str>) -> (C, Arc<dyn ConsumerMailbox>),
    ) -> Result<C> {
        let asked = Asked::about(BasicConsume::ID, queue);
        let consumer_tag = self
            .take_consumer_tag(&options.consumer_tag)
            .map_err(|error| asked.failed(error))?;
        let channel = self.number();
        let (consumer, mailbox) = begin(Arc::clone(&consumer_tag));
        let consume = BasicConsume {
            ticket: 0,
            queue: queue.into(),
            consumer_tag: Cow::Borrowed(&consumer_tag),
            no_local: options.no_local,
            no_ack: options.no_ack,
            exclusive: options.exclusive,
            no_wait: options.no_wait,
            arguments: Cow::Borrowed(&options.arguments),
        };
        let append = |frames: &mut Frames<'_>, call| {
            frames.method(&consume)?;
            frames.command(Command::Consume {
                channel,
                consumer_tag: Arc::clone(&consumer_tag),
                consumer: mailbox,
                call,
            });
            Ok(())
        };
        let asked_for = if options.no_wait {
            self.write(asked, |frames| append(frames, None))
        } else {
            self.call_with(asked, |frames, call| append(frames, Some(call)))
                .map(drop)
        };
        // On an error the consumer is dropped and with it cancelled, if or when the broker has agreed.
        asked_for.map(|()| consumer)
    }

    /// The tag that was asked for, or one that is made up; each only once.
    fn take_consumer_tag(&self, wanted: &str) -> Result<Arc<str>> {
        let state = self.state();
        let mut taken = state.consumer_tags.lock();
        let consumer_tag: Arc<str> = if wanted.is_empty() {
            std::iter::repeat_with(|| {
                let count = state.consumers.fetch_add(1, Ordering::Relaxed) + 1;
                format!("leveret-{}.{count}", state.number)
            })
            .find(|made_up| !taken.contains_key(made_up.as_str()))
            .unwrap_or_default()
            .into()
        } else {
            wanted.into()
        };
        if taken.contains_key(&consumer_tag) {
            return Err(Error::invalid(format!(
                "consumer tag {consumer_tag:?} is in use on channel {}",
                state.number
            )));
        }
        taken.insert(Arc::clone(&consumer_tag), Weak::new());
        Ok(consumer_tag)
    }

    /// Cancels a consumer by its tag and waits until the broker has agreed; an unknown tag is no error. What has come
    /// until then can still be read.
    pub fn basic_cancel(&self, consumer_tag: &str) -> Result<()> {
        let asked = Asked::about(BasicCancel::ID, consumer_tag);
        let consumer_tag = consumer_tag.into();
        self.call_with(asked, |frames, call| {
            self.state().append_cancel(frames, &consumer_tag, call)
        })?;
        Ok(())
    }

    /// [`basic_cancel`](Self::basic_cancel) without waiting for the broker. (The broker answers nevertheless: only that
    /// tells this crate when the last message has come.)
    pub fn basic_cancel_no_wait(&self, consumer_tag: &str) -> Result<()> {
        let asked = Asked::about(BasicCancel::ID, consumer_tag);
        let consumer_tag = consumer_tag.into();
        let (call, _nobody) = crossbeam_channel::bounded(1);
        self.write(asked, |frames| {
            self.state().append_cancel(frames, &consumer_tag, call)
        })
    }

    /// Fetches one message, or `None` if the queue is empty. With `no_ack` it is not to be acknowledged. A program
    /// that wants many messages is better off with a [`Consumer`].
    ///
    /// ```no_run
    /// # let channel = leveret::Connection::open_default()?.open_channel()?;
    /// while let Some(message) = channel.basic_get("tasks", false)? {
    ///     println!("{:?}, {} left", message.body(), message.message_count());
    ///     message.ack()?;
    /// }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// 404 if there is no such queue.
    pub fn basic_get(&self, queue: &str, no_ack: bool) -> Result<Option<GetResponse>> {
        let channel = self.number();
        let get = BasicGet {
            ticket: 0,
            queue: queue.into(),
            no_ack,
        };
        let reply = self.call_with(Asked::about(BasicGet::ID, queue), |frames, call| {
            frames.method(&get)?;
            frames.command(Command::Call {
                channel,
                expected: Expected::Message { no_ack },
                call,
            });
            Ok(())
        })?;
        let fetched = match reply {
            Reply::Message(message) => message.claim(),
            Reply::Method(_) => None,
        };
        Ok(fetched.map(|fetched| GetResponse::new(self.clone(), no_ack, fetched)))
    }

    /// Acknowledges a message by its delivery tag; [`Delivery::ack`](crate::Delivery::ack) does so for its own.
    ///
    /// # Errors
    /// An unknown tag, or one that was acknowledged before, makes the broker close the channel (406): the next call
    /// says so.
    pub fn basic_ack(&self, delivery_tag: u64) -> Result<()> {
        self.ack(delivery_tag, false)
    }

    /// Acknowledges a message and all earlier ones of the channel; 0 means all.
    ///
    /// # Errors
    /// As [`basic_ack`](Self::basic_ack).
    pub fn basic_ack_multiple(&self, delivery_tag: u64) -> Result<()> {
        self.ack(delivery_tag, true)
    }

    fn ack(&self, delivery_tag: u64, multiple: bool) -> Result<()> {
        let ack = BasicAck {
            delivery_tag,
            multiple,
        };
        self.answer(&ack, multiple.then_some(delivery_tag))
    }

    /// Sends an answer to deliveries, perhaps to all up to a tag.
    fn answer<M: Encode>(&self, answer: &M, up_to: Option<u64>) -> Result<()> {
        self.write(Asked::about(M::ID, ""), |frames| {
            frames.method(answer)?;
            if let Some(delivery_tag) = up_to {
                self.state().settled.up_to(delivery_tag);
            }
            Ok(())
        })
    }

    /// Gives messages back: to their queue, or to be dropped or dead-lettered. An extension of RabbitMQ.
    ///
    /// # Errors
    /// As [`basic_ack`](Self::basic_ack).
    pub fn basic_nack(&self, delivery_tag: u64, options: NackOptions) -> Result<()> {
        let nack = BasicNack {
            delivery_tag,
            multiple: options.multiple,
            requeue: options.requeue,
        };
        self.answer(&nack, options.multiple.then_some(delivery_tag))
    }

    /// Gives one message back: to its queue if `requeue`, or to be dropped or dead-lettered.
    ///
    /// # Errors
    /// As [`basic_ack`](Self::basic_ack).
    pub fn basic_reject(&self, delivery_tag: u64, requeue: bool) -> Result<()> {
        let reject = BasicReject {
            delivery_tag,
            requeue,
        };
        self.send("", &reject)
    }

    /// Gives all unacknowledged messages of the channel back to their queues and waits until that is done.
    ///
    /// # Errors
    /// 540, which closes the connection, without `requeue`: RabbitMQ does not implement it.
    pub fn basic_recover(&self, requeue: bool) -> Result<()> {
        let channel = self.number();
        self.call_with(Asked::about(BasicRecover::ID, ""), |frames, call| {
            request::append(frames, channel, &BasicRecover { requeue }, call)?;
            self.state().settled.up_to(0);
            Ok(())
        })?;
        Ok(())
    }

    /// [`basic_recover`](Self::basic_recover) without a reply. Deprecated in AMQP.
    pub fn basic_recover_async(&self, requeue: bool) -> Result<()> {
        self.answer(&BasicRecoverAsync { requeue }, Some(0))
    }
}
