//! Getting messages, and answering for them.

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::Arc;

use super::Channel;
use crate::consumer::Consumer;
use crate::delivery::GetResponse;
use crate::error::{Error, ErrorKind, Result};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::{Call, Command, ConsumerMailbox, Reply};
use crate::io_thread::outbox::{Admission, Frames, Gate};
use crate::log_line::log_line;
use crate::options::{ConsumeOptions, NackOptions, QosOptions};
use crate::proto::Expected;
use crate::session::call::{self, Asked};
use crate::session::queue_names::QueueName;
use crate::session::subscription::{ReadsFrom, Registration};
use crate::wire::method::{
    BasicAck, BasicCancel, BasicConsume, BasicGet, BasicNack, BasicQos, BasicRecover,
    BasicRecoverAsync, BasicReject, Encode,
};

/// What became of an ack, nack or reject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answered {
    /// It was sent on the connection of this epoch.
    Sent { epoch: u64 },
    /// It was not sent: the connection on which its message came was lost, or the broker has
    /// cancelled the consumer.
    NotSent,
}

impl Channel {
    /// How many unacknowledged messages the broker may send ahead to each consumer that begins from now on. Without
    /// it, it sends the whole queue; a stream refuses a consumer without it (406).
    ///
    /// What a consumer of a quorum queue gets and does not read can count
    /// [towards the delivery limit](Consumer#unread-messages-and-the-delivery-limit): do not send ahead more than needed.
    pub fn basic_qos(&self, prefetch_count: u16) -> Result<()> {
        self.basic_qos_with(QosOptions::default().prefetch_count(prefetch_count))
    }

    /// [`basic_qos`](Self::basic_qos) with all its parameters. A limit for the whole channel
    /// ([`global`](QosOptions::global)) is none on RabbitMQ 4.3: the call returns `Ok`, and the log has a warning.
    ///
    /// # Errors
    /// 540, which closes the connection, for a `prefetch_size`: RabbitMQ has none. What becomes of a
    /// [`global`](QosOptions::global) limit depends on the version.
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

    /// Begins to consume from a queue. See [`Consumer`] for an example.
    ///
    /// # Errors
    /// 404 if there is no such queue, 403 if another consumer has it exclusively or without permission, 406 for a stream
    /// without a prefetch. [`ErrorKind::InvalidArgument`] if the consumer tag is in use on this channel: the broker would close the
    /// whole connection for it.
    pub fn basic_consume(&self, queue: &str, options: ConsumeOptions) -> Result<Consumer> {
        self.consume_queue(queue.into(), options)
    }

    pub(crate) fn consume_queue(
        &self,
        queue: QueueName<'_>,
        options: ConsumeOptions,
    ) -> Result<Consumer> {
        let reads_from = self.reads_from(queue, &options);
        self.consume(queue, &options, |consumer_tag| {
            let (consumer, mailbox) =
                Consumer::new(self.clone(), consumer_tag, &options, reads_from);
            (consumer, Arc::new(mailbox))
        })
    }

    /// Whether a consumer of this queue reads from a stream, as far as the program has said so.
    fn reads_from(&self, queue: QueueName<'_>, options: &ConsumeOptions) -> ReadsFrom {
        let state = self.state();
        let queue = state.settings.resolve(queue);
        let of_streams = ["x-stream-offset", "x-stream-filter"];
        let is_told = of_streams
            .iter()
            .any(|it| options.arguments.get(it).is_some());
        match is_told || state.link.topology.lock().is_stream(&queue) {
            true => ReadsFrom::Stream,
            false => ReadsFrom::Queue,
        }
    }

    /// Begins to consume into a mailbox that `begin` makes, beside what is returned.
    pub(crate) fn consume<C>(
        &self,
        queue: QueueName<'_>,
        options: &ConsumeOptions,
        begin: impl FnOnce(Arc<str>) -> (C, Arc<dyn ConsumerMailbox>),
    ) -> Result<C> {
        let asked = Asked::about(BasicConsume::ID, queue.shown());
        let consumer_tag = self
            .take_consumer_tag(&options.consumer_tag)
            .map_err(|error| asked.failed(error))?;
        let channel = self.number();
        let (consumer, mailbox) = begin(Arc::clone(&consumer_tag));
        let state = self.state();
        let consume = || BasicConsume {
            ticket: 0,
            queue: state.settings.resolve(queue),
            consumer_tag: Cow::Borrowed(&consumer_tag),
            no_local: options.no_local,
            no_ack: options.no_ack,
            exclusive: options.exclusive,
            no_wait: options.no_wait,
            arguments: Cow::Borrowed(&options.arguments),
        };
        let mut sent = false;
        let append = |frames: &mut Frames<'_>, call| {
            let consume = consume();
            frames.method(&consume)?;
            let registration = state.consumers.lock().registration(&consumer_tag);
            if let Some(registration) = registration {
                registration.asked(options.no_wait);
            }
            if self.connection().options().recovery.is_on {
                let again = BasicConsume {
                    no_wait: false,
                    ..consume.into_owned()
                };
                let qos = state.settings.qos();
                let mut consumers = state.consumers.lock();
                consumers.want(Arc::clone(&mailbox), again, qos);
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
        let asked_for = if options.no_wait {
            self.write(asked, |frames| append(frames, None))
        } else {
            self.call_with(asked, |frames, call| append(frames, Some(call)))
                .map(drop)
        };
        if !sent {
            state.consumers.lock().remove(&consumer_tag);
        } else if options.no_wait {
            state.consumer_started(&consumer_tag);
        }
        // On an error the consumer is dropped and with it cancelled, if or when the broker has agreed.
        asked_for.map(|()| consumer)
    }

    /// The tag that was asked for, or one that is made up; each only once.
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

    /// Cancels a consumer by its tag and waits until the broker has agreed; an unknown tag is no error. What has come
    /// until then can still be read.
    pub fn basic_cancel(&self, consumer_tag: &str) -> Result<()> {
        self.cancel(&consumer_tag.into(), None)
    }

    /// With `only`, nothing is done if the tag is not that consumer's any more.
    pub(crate) fn cancel(
        &self,
        consumer_tag: &Arc<str>,
        only: Option<&Registration>,
    ) -> Result<()> {
        let asked = Asked::about(BasicCancel::ID, consumer_tag);
        let state = self.state();
        let deadline = Deadline::after(self.connection().request_timeout());
        let attached = Admission::Attached;
        let gate = || state.gate();
        let cancelled = call::call(
            &state.link,
            state.number,
            deadline,
            attached,
            gate,
            |frames, call| state.append_cancel(frames, consumer_tag, only, call),
        );
        match cancelled {
            // With the connection the consumer is gone, too.
            Err(error) if error.is_connection_end() && self.connection().is_open() => Ok(()),
            cancelled => cancelled.map(drop).map_err(|error| asked.failed(error)),
        }
    }

    /// [`basic_cancel`](Self::basic_cancel) without waiting for the broker. (The broker answers nevertheless: only that
    /// tells this crate when the last message has come.)
    pub fn basic_cancel_no_wait(&self, consumer_tag: &str) -> Result<()> {
        let asked = Asked::about(BasicCancel::ID, consumer_tag);
        let consumer_tag = consumer_tag.into();
        self.write(asked, |frames| {
            let call = Call::of_nobody();
            self.state()
                .append_cancel(frames, &consumer_tag, None, call)
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
        self.get(queue.into(), no_ack)
    }

    pub(crate) fn get(&self, queue: QueueName<'_>, no_ack: bool) -> Result<Option<GetResponse>> {
        let channel = self.number();
        let asked = Asked::about(BasicGet::ID, queue.shown());
        let reply = self.call_with(asked, |frames, call| {
            frames.method(&BasicGet {
                ticket: 0,
                queue: self.state().settings.resolve(queue),
                no_ack,
            })?;
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
        self.ack(delivery_tag, false).map(drop)
    }

    /// Acknowledges a message and all earlier ones of the channel; 0 means all.
    ///
    /// # Errors
    /// As [`basic_ack`](Self::basic_ack). [`ErrorKind::Recovering`] for 0, which waits for a connection
    /// that is being recovered as calls do.
    pub fn basic_ack_multiple(&self, delivery_tag: u64) -> Result<()> {
        self.ack(delivery_tag, true).map(drop)
    }

    pub(crate) fn ack(&self, delivery_tag: u64, multiple: bool) -> Result<Answered> {
        self.answer(delivery_tag, multiple, |delivery_tag| BasicAck {
            delivery_tag,
            multiple,
        })
    }

    /// Sends an answer to a delivery, or to all up to that one. If it came on a connection that was lost, nothing is
    /// sent: the broker has requeued it, and would take the answer for one to another message.
    fn answer<M: Encode>(
        &self,
        delivery_tag: u64,
        multiple: bool,
        answer: impl FnOnce(u64) -> M,
    ) -> Result<Answered> {
        let state = self.state();
        let settled = &state.settled;
        let stale = || Error::stale(delivery_tag);
        let opened_in = Cell::new(None);
        let gate = || {
            let gate = state.gate()?;
            if settled.broker_tag(delivery_tag).is_none() {
                return Err(stale());
            }
            opened_in.set(state.opened_in());
            Ok(opened_in.get().map_or(Gate::Shut, |_| gate))
        };
        let admission = match delivery_tag {
            // For "all", which is all of the next connection then.
            0 => Admission::Room,
            _ => Admission::Attached,
        };
        let patience = self.connection().publish_timeout();
        let outbox = &state.link.outbox;
        let written = outbox.write(state.number, admission, patience, gate, |frames| {
            let epoch = frames.epoch();
            // The connection may be lost already, and the channel not have heard of it.
            let tag = settled.broker_tag(delivery_tag);
            let tag = tag.filter(|_| opened_in.get() == Some(epoch));
            frames.method(&answer(tag.ok_or_else(stale)?))?;
            state.settings.used();
            if multiple {
                settled.up_to(delivery_tag);
                if settled.take_stale_open() {
                    state.settings.answer_lost();
                }
            }
            Ok(Answered::Sent { epoch })
        });
        match written {
            Err(error) if self.is_stale(delivery_tag, &error) => {
                log_line!(
                    Debug,
                    state.link.label(),
                    "{} {delivery_tag} is not sent: the message was requeued when its connection was lost",
                    M::ID
                );
                state.answer_not_sent();
                Ok(Answered::NotSent)
            }
            written => written.map_err(|error| Asked::about(M::ID, "").failed(error)),
        }
    }

    /// Whether an answer failed because its message came on a connection that was lost.
    fn is_stale(&self, delivery_tag: u64, error: &Error) -> bool {
        let state = self.state();
        let is_stale = state.settled.broker_tag(delivery_tag).is_none()
            || matches!(error.kind(), ErrorKind::AlreadySettled { .. });
        is_stale && state.end.cause().is_none()
    }

    /// What became of the answer that the program itself has given to a delivery.
    pub(crate) fn answered(&self, delivery_tag: u64) -> Answered {
        let state = self.state();
        // In this order: as long as the tag is known, the channel is open where it came.
        let opened_in = state.opened_in();
        let is_known = state.settled.broker_tag(delivery_tag).is_some();
        // Else on a connection that was lost: the answer can have been sent before or after that.
        let lost = || state.link.outbox.epoch().saturating_sub(1);
        let epoch = opened_in.filter(|_| is_known).unwrap_or_else(lost);
        Answered::Sent { epoch }
    }

    /// Gives messages back: to their queue, or to be dropped or dead-lettered. An extension of RabbitMQ.
    ///
    /// Since RabbitMQ 4.3 this does not count towards the delivery limit of a quorum queue, as
    /// [`basic_reject`](Self::basic_reject) does: use it for messages that were not handled.
    ///
    /// # Errors
    /// As [`basic_ack`](Self::basic_ack).
    pub fn basic_nack(&self, delivery_tag: u64, options: NackOptions) -> Result<()> {
        self.nack(delivery_tag, options).map(drop)
    }

    pub(crate) fn nack(&self, delivery_tag: u64, options: NackOptions) -> Result<Answered> {
        self.answer(delivery_tag, options.multiple, |delivery_tag| BasicNack {
            delivery_tag,
            multiple: options.multiple,
            requeue: options.requeue,
        })
    }

    /// Gives one message back: to its queue if `requeue`, or to be dropped or dead-lettered.
    ///
    /// With `requeue`, it counts as a failed delivery towards the delivery limit of a quorum queue.
    ///
    /// # Errors
    /// As [`basic_ack`](Self::basic_ack).
    pub fn basic_reject(&self, delivery_tag: u64, requeue: bool) -> Result<()> {
        self.reject(delivery_tag, requeue).map(drop)
    }

    pub(crate) fn reject(&self, delivery_tag: u64, requeue: bool) -> Result<Answered> {
        self.answer(delivery_tag, false, |delivery_tag| BasicReject {
            delivery_tag,
            requeue,
        })
    }

    /// Gives all unacknowledged messages of the channel back to their queues and waits until that is done. As with
    /// [`basic_nack`](Self::basic_nack), this does not count towards the delivery limit since RabbitMQ 4.3.
    ///
    /// # Errors
    /// 540, which closes the connection, without `requeue`: RabbitMQ does not implement it.
    pub fn basic_recover(&self, requeue: bool) -> Result<()> {
        let channel = self.number();
        self.call_with(Asked::about(BasicRecover::ID, ""), |frames, call| {
            call::append(frames, channel, &BasicRecover { requeue }, call)?;
            self.state().settled.up_to(0);
            Ok(())
        })?;
        Ok(())
    }

    /// [`basic_recover`](Self::basic_recover) without a reply. Deprecated in AMQP.
    pub fn basic_recover_async(&self, requeue: bool) -> Result<()> {
        let answered = self.answer(0, true, |_| BasicRecoverAsync { requeue });
        answered.map(drop)
    }
}
