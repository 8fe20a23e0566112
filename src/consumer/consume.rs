//! Starting and cancelling consumers, and setting their prefetch.

use std::borrow::Cow;
use std::sync::Arc;

use super::Consumer;
use crate::channel::Channel;
use crate::error::{Error, Result};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::{Call, Command, ConsumerMailbox};
use crate::io_thread::outbox::{Admission, Frames};
use crate::options::{ConsumeOptions, QosOptions};
use crate::session::call::Operation;
use crate::session::queue_names::QueueName;
use crate::session::subscription::{ReadsFrom, Subscription};
use crate::wire::method::{BasicCancel, BasicConsume, BasicQos, Encode};

impl Channel {
    /// Sets the prefetch: how many unacknowledged messages the broker sends ahead to each consumer
    /// that starts from now on. By default there is no limit (0): the broker sends the whole queue,
    /// and refuses consumers of streams (406).
    ///
    /// Unread messages of a quorum queue can count
    /// [towards the delivery limit](Consumer#unread-messages-and-the-delivery-limit): use a
    /// prefetch no larger than needed.
    ///
    /// # Errors
    /// A timeout, or the end of the channel or the connection.
    pub fn basic_qos(&self, prefetch_count: u16) -> Result<()> {
        self.basic_qos_with(QosOptions::default().prefetch_count(prefetch_count))
    }

    /// [`basic_qos`](Self::basic_qos) with all its parameters. RabbitMQ 4.3 does not support a
    /// channel-wide prefetch ([`global`](QosOptions::global)): the call returns `Ok`, and this
    /// crate logs a warning.
    ///
    /// # Errors
    /// With a `prefetch_size`, RabbitMQ closes the connection (540): it does not implement that.
    /// The effect of [`global`](QosOptions::global) depends on RabbitMQ's version.
    pub fn basic_qos_with(&self, options: QosOptions) -> Result<()> {
        let qos = BasicQos {
            prefetch_size: options.prefetch_size,
            prefetch_count: options.prefetch_count,
            global: options.global,
        };
        self.call_recorded(false, "", || qos)?;
        if options.global {
            self.state().warn_of_global_qos();
        }
        Ok(())
    }

    /// Starts a consumer of a queue. See [`Consumer`] for an example.
    ///
    /// # Errors
    /// 404 if the queue does not exist; 403 if another consumer is exclusive, or without
    /// permission; 406 for a stream without a prefetch;
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) if the consumer tag is in
    /// use on this channel, because the broker would close the whole connection.
    pub fn basic_consume(&self, queue: &str, options: ConsumeOptions) -> Result<Consumer> {
        self.consume_queue(queue.into(), options, false)
    }

    /// [`basic_consume`](Self::basic_consume) without waiting for the broker. If the broker
    /// refuses, the consumer yields the channel's error.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) if the consumer tag is in
    /// use on this channel.
    pub fn basic_consume_no_wait(&self, queue: &str, options: ConsumeOptions) -> Result<Consumer> {
        self.consume_queue(queue.into(), options, true)
    }

    pub(crate) fn consume_queue(
        &self,
        queue: QueueName<'_>,
        options: ConsumeOptions,
        no_wait: bool,
    ) -> Result<Consumer> {
        let reads_from = self.reads_from(queue, &options);
        let timeout = self.connection().request_timeout();
        let reply_by = (!no_wait).then(|| Deadline::after(timeout));
        self.consume(queue, &options, reply_by, |consumer_tag| {
            let (consumer, mailbox) =
                Consumer::new(self.clone(), consumer_tag, &options, reads_from);
            (consumer, Arc::new(mailbox))
        })
    }

    /// Whether a consumer of this queue reads from a stream, as far as the program has said so.
    fn reads_from(&self, queue: QueueName<'_>, options: &ConsumeOptions) -> ReadsFrom {
        let state = self.state();
        let queue = state.resolve(queue);
        let of_streams = ["x-stream-offset", "x-stream-filter"];
        let is_told = of_streams
            .iter()
            .any(|it| options.arguments.get(it).is_some());
        match is_told || state.shared.to_replay.lock().topology.is_stream(&queue) {
            true => ReadsFrom::Stream,
            false => ReadsFrom::Queue,
        }
    }

    /// Starts a consumer that delivers into the mailbox from `begin`. Waits until `reply_by` for
    /// the broker. Also returns the other value that `begin` makes.
    pub(crate) fn consume<C>(
        &self,
        queue: QueueName<'_>,
        options: &ConsumeOptions,
        reply_by: Option<Deadline>,
        begin: impl FnOnce(Arc<str>) -> (C, Arc<dyn ConsumerMailbox>),
    ) -> Result<C> {
        let asked = Operation::about(BasicConsume::ID, queue.shown());
        let consumer_tag = self
            .take_consumer_tag(&options.consumer_tag)
            .map_err(|error| asked.failed(error))?;
        let channel = self.number();
        let (consumer, mailbox) = begin(Arc::clone(&consumer_tag));
        let state = self.state();
        let no_wait = reply_by.is_none();
        let consume = || BasicConsume {
            ticket: 0,
            queue: state.resolve(queue),
            consumer_tag: Cow::Borrowed(&consumer_tag),
            no_local: options.no_local,
            no_ack: options.no_ack,
            exclusive: options.exclusive,
            no_wait,
            arguments: Cow::Borrowed(&options.arguments),
        };
        let mut sent = false;
        let append = |frames: &mut Frames<'_>, call| {
            let consume = consume();
            frames.method(&consume)?;
            let subscription = state.consumers.lock().subscription(&consumer_tag);
            if let Some(subscription) = subscription {
                subscription.asked(no_wait);
            }
            if self.connection().options().recovery.enabled {
                let again = BasicConsume {
                    no_wait: false,
                    ..consume.into_owned()
                };
                let qos = frames.channel().qos().clone();
                let mut consumers = state.consumers.lock();
                consumers.record(Arc::clone(&mailbox), again, qos);
            }
            frames.command(Command::Consume {
                channel,
                consumer_tag: Arc::clone(&consumer_tag),
                settling: mailbox.settling(),
                consumer: mailbox,
                call,
            });
            sent = true;
            Ok(())
        };
        let asked_for = match reply_by {
            None => self.write(asked, |frames| append(frames, None)),
            Some(deadline) => self
                .call_until(deadline, asked, |frames, call| append(frames, Some(call)))
                .map(drop),
        };
        if !sent {
            state.consumers.lock().remove(&consumer_tag);
        } else if no_wait {
            state.consumer_started(&consumer_tag);
        }
        // On an error, the consumer is dropped here. That cancels it, if the broker agrees to it
        // later.
        asked_for.map(|()| consumer)
    }

    /// Takes the wanted tag, or chooses one. Fails if the tag is in use.
    fn take_consumer_tag(&self, wanted: &str) -> Result<Arc<str>> {
        let state = self.state();
        let taken = state.consumers.lock().take_tag(wanted, state.number);
        taken.ok_or_else(|| {
            Error::invalid(format!(
                "consumer tag {wanted:?} is in use on channel {}",
                state.number
            ))
        })
    }

    /// Cancels a consumer by its tag and waits until the broker has agreed. Messages that arrived
    /// before can still be read. An unknown tag is not an error.
    ///
    /// # Errors
    /// A timeout, or the end of the channel or the connection.
    pub fn basic_cancel(&self, consumer_tag: &str) -> Result<()> {
        self.cancel(&consumer_tag.into(), None)
    }

    /// With `only`, does nothing if the tag no longer belongs to that consumer.
    pub(crate) fn cancel(
        &self,
        consumer_tag: &Arc<str>,
        only: Option<&Subscription>,
    ) -> Result<()> {
        let asked = Operation::about(BasicCancel::ID, consumer_tag);
        let state = self.state();
        let deadline = Deadline::after(self.connection().request_timeout());
        let cancelled = state.call(Admission::Attached, deadline, |frames, call| {
            state.append_cancel(frames, consumer_tag, only, call)
        });
        match cancelled {
            // The consumer was lost with the connection.
            Err(error) if error.is_connection_end() && self.connection().is_open() => Ok(()),
            cancelled => cancelled.map(drop).map_err(|error| asked.failed(error)),
        }
    }

    /// [`basic_cancel`](Self::basic_cancel) without waiting for the broker. The broker still
    /// replies: the reply tells the IO thread that the last message has arrived.
    ///
    /// # Errors
    /// The end of the channel or the connection; [`ErrorKind::OutboxFull`](crate::ErrorKind) if the
    /// outbox stays full.
    pub fn basic_cancel_no_wait(&self, consumer_tag: &str) -> Result<()> {
        let asked = Operation::about(BasicCancel::ID, consumer_tag);
        let consumer_tag = consumer_tag.into();
        self.write(asked, |frames| {
            let call = Call::unawaited();
            self.state()
                .append_cancel(frames, &consumer_tag, None, call)
        })
    }
}
