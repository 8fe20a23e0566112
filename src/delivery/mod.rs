//! Received messages.
//!
//! - this file: `Delivery` and its acknowledgement; `basic.get`
//! - `properties`: what a message says about itself; `deaths`: why it was dead-lettered
//! - `retries`: copies of messages that failed, for `Workers`

mod deaths;
mod properties;
mod retries;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::channel::{Answered, Channel};
use crate::error::{ClosedBy, Error, ErrorKind, Result};
use crate::io_thread::mailbox::Reply;
use crate::log_line::log_line;
use crate::options::{AckMode, NackOptions, Requeue};
use crate::proto::Expected;
use crate::proto::{Delivered, Fetched};
use crate::session::call::Operation;
use crate::session::queue_names::QueueName;
use crate::session::subscription::{ReadsFrom, Subscription};
use crate::wire::content::Content;
use crate::wire::method::{BasicGet, Encode};
use crate::wire::properties::Properties;
pub use deaths::{Death, DeathReason};

/// A received message, which the program must acknowledge.
///
/// Any thread can acknowledge a delivery. A delivery keeps its channel open. If it is dropped
/// without being acknowledged or rejected, its message stays unacknowledged until the channel
/// closes; then the broker requeues the message.
///
/// When the connection is lost, the broker requeues and redelivers all unacknowledged messages.
/// This crate does not send a later ack, nack or reject for such a delivery. This is not an error:
/// the call returns `Ok` and logs a line at `debug`. But a transaction with such an ack fails at
/// [`tx_commit`](Channel::tx_commit).
/// [`ConnectionStats::acks_not_sent`](crate::ConnectionStats::acks_not_sent) counts these calls.
///
/// A message from a stream can only be acknowledged, because a stream keeps its messages and cannot
/// requeue them. (For a nack, RabbitMQ 3.10 closes the connection, and 4.0 and later treat the nack
/// as an ack; so this crate sends no nack.) A consumer reads from a stream if its options have a
/// [`stream_offset`](crate::ConsumeOptions::stream_offset) or a
/// [`stream_filter`](crate::ConsumeOptions::stream_filter), or if its connection has declared the
/// queue as a stream. The message's headers do not matter.
///
/// See <https://www.rabbitmq.com/docs/confirms#acknowledgement-modes>.
#[must_use = "a delivery that is not acknowledged stays unacknowledged until the channel closes"]
pub struct Delivery {
    origin: Arc<DeliverySource>,
    delivery_tag: u64,
    redelivered: bool,
    settled: AtomicBool,
    content: Content,
    /// Set when the program first asks for the properties.
    properties: OnceLock<Result<Box<Properties>>>,
}

/// What the messages of one consumer share. Keeps their channel open.
pub(crate) struct DeliverySource {
    pub(crate) channel: Channel,
    pub(crate) consumer_tag: Arc<str>,
    pub(crate) no_ack: bool,
    /// None for fetched messages, and for replies to an `RpcClient`.
    pub(crate) subscription: Option<Arc<Subscription>>,
    pub(crate) reads_from: ReadsFrom,
    /// Only for a fetched message.
    pub(crate) message_count: Option<u32>,
}

impl DeliverySource {
    /// Returns the consumer if the broker has cancelled it: the broker then redelivers its
    /// messages.
    fn revoked(&self) -> Option<&Subscription> {
        let subscription = self.subscription.as_deref();
        subscription.filter(|it| it.is_revoked())
    }
}

impl Delivery {
    #[inline]
    pub(crate) fn new(origin: &Arc<DeliverySource>, delivered: Delivered) -> Self {
        Self {
            origin: Arc::clone(origin),
            delivery_tag: delivered.delivery_tag,
            redelivered: delivered.redelivered,
            settled: AtomicBool::new(false),
            content: delivered.content,
            properties: OnceLock::new(),
        }
    }

    fn fetched(channel: Channel, no_ack: bool, fetched: Fetched) -> Self {
        let origin = DeliverySource {
            channel,
            consumer_tag: Arc::from(""),
            no_ack,
            subscription: None,
            // The broker refuses `basic.get` for a stream.
            reads_from: ReadsFrom::Queue,
            message_count: Some(fetched.message_count),
        };
        let delivered = Delivered {
            delivery_tag: fetched.delivery_tag,
            redelivered: fetched.redelivered,
            content: fetched.content,
        };
        Self::new(&Arc::new(origin), delivered)
    }

    /// Returns the channel that delivered the message.
    pub fn channel(&self) -> &Channel {
        &self.origin.channel
    }

    /// Returns the tag of the consumer; empty if the message was fetched with `basic_get`.
    pub fn consumer_tag(&self) -> &str {
        &self.origin.consumer_tag
    }

    /// Returns the number that identifies the message on its channel in an acknowledgement.
    pub fn delivery_tag(&self) -> u64 {
        self.delivery_tag
    }

    /// Returns the number of messages left in the queue, if the message was fetched with
    /// [`basic_get`](Channel::basic_get).
    pub fn message_count(&self) -> Option<u32> {
        self.origin.message_count
    }

    /// Returns true if the broker may have delivered the message before, to any consumer.
    pub fn redelivered(&self) -> bool {
        self.redelivered
    }

    /// Returns the exchange that the message was published to; empty for the default exchange.
    pub fn exchange(&self) -> &str {
        self.content.exchange()
    }

    /// Returns the routing key that the message was published with. Bytes that are not UTF-8, which
    /// AMQP forbids here and RabbitMQ passes on, are replaced by `�`.
    pub fn routing_key(&self) -> &str {
        self.content.routing_key()
    }

    /// Returns the message's body.
    pub fn body(&self) -> &[u8] {
        self.content.body()
    }

    /// Acknowledges the message: the broker removes it from its queue.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadySettled`] if this delivery was already acknowledged or rejected. If it
    /// was acknowledged together with a later one ([`ack_multiple`](Self::ack_multiple)), the
    /// broker closes the channel instead (406). If the channel or the connection has ended: the
    /// cause; the broker redelivers the message.
    pub fn ack(&self) -> Result<()> {
        self.answer_ack().map(drop)
    }

    pub(crate) fn answer_ack(&self) -> Result<Answered> {
        self.settle("basic.ack", false, || {
            self.channel().ack(self.delivery_tag, false)
        })
    }

    /// Acknowledges this message and all earlier messages of the channel, including those of other
    /// consumers.
    ///
    /// # Errors
    /// Same as [`ack`](Self::ack). If one of the earlier messages is acknowledged again, the broker
    /// closes the channel (406).
    pub fn ack_multiple(&self) -> Result<()> {
        let answered = self.settle("basic.ack", true, || {
            self.channel().ack(self.delivery_tag, true)
        });
        answered.map(drop)
    }

    /// Nacks the message: the broker requeues it, drops it or dead-letters it.
    ///
    /// Use this to requeue a message that was not handled. Since RabbitMQ 4.3, a nack does not
    /// count towards the delivery limit of a quorum queue: a poison message that is requeued with a
    /// nack is redelivered forever. For a message that failed, use [`reject`](Self::reject).
    ///
    /// # Errors
    /// Same as [`ack`](Self::ack). [`ErrorKind::InvalidArgument`] for a message from a stream (see
    /// [`Delivery`]).
    pub fn nack(&self, options: impl Into<NackOptions>) -> Result<()> {
        let options = options.into();
        self.check_can_be_given_back("basic.nack")?;
        let answered = self.settle("basic.nack", options.multiple, || {
            self.channel().nack(self.delivery_tag, options)
        });
        answered.map(drop)
    }

    /// Rejects the message as failed: the broker requeues it, drops it or dead-letters it.
    ///
    /// Use this for a message that could not be handled. With [`Requeue::Yes`], the reject counts
    /// towards the delivery limit of a quorum queue, on every version of RabbitMQ.
    ///
    /// # Errors
    /// Same as [`nack`](Self::nack).
    pub fn reject(&self, requeue: Requeue) -> Result<()> {
        self.answer_reject(requeue).map(drop)
    }

    pub(crate) fn answer_reject(&self, requeue: Requeue) -> Result<Answered> {
        self.check_can_be_given_back("basic.reject")?;
        self.settle("basic.reject", false, || {
            self.channel().reject(self.delivery_tag, requeue)
        })
    }

    fn check_can_be_given_back(&self, doing: &str) -> Result<()> {
        if !self.is_from_stream() {
            return Ok(());
        }
        let text = format!(
            "{doing} {}: a stream keeps its messages; acknowledge the message instead",
            self.delivery_tag
        );
        Err(Error::invalid(text))
    }

    /// Sends at most one answer: the broker would close the channel for a second one (406).
    fn settle(
        &self,
        doing: &str,
        multiple: bool,
        answer: impl FnOnce() -> Result<Answered>,
    ) -> Result<Answered> {
        let delivery_tag = self.delivery_tag;
        if self.origin.no_ack {
            return Err(Error::invalid(format!(
                "{doing} {delivery_tag}: the message was received with no_ack and cannot be acknowledged"
            )));
        }
        if self.settled.swap(true, Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::AlreadySettled { delivery_tag }).doing(doing));
        }
        // With `multiple`, the answer is sent, since it also covers messages of other consumers.
        if let Some(subscription) = self.origin.revoked().filter(|_| !multiple) {
            log_line!(
                Debug,
                self.channel().connection().shared().label(),
                "{doing} {delivery_tag} is not sent: the broker has cancelled the consumer"
            );
            let state = self.channel().state();
            let by = ClosedBy::Broker;
            let consumer_tag = subscription.consumer_tag.to_string();
            let reason = Error::new(ErrorKind::ConsumerCancelled { consumer_tag, by });
            state.answer_not_sent(Some(&reason));
            state.give_back_unread(subscription, delivery_tag);
            return Ok(Answered::NotSent);
        }
        let answered = answer();
        if answered.is_err() {
            // Nothing was sent, so the program may retry after a timeout.
            self.settled.store(false, Ordering::Relaxed);
        }
        answered
    }

    /// Whether the program has acknowledged or rejected the message.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }

    /// Whether the broker redelivers the message whatever the program does: its connection was lost
    /// since, or the broker has cancelled its consumer.
    pub(crate) fn is_stale(&self) -> bool {
        let state = self.channel().state();
        let stale_to = || state.look(|channel| channel.delivery_tags.stale_to());
        self.origin.revoked().is_some() || self.delivery_tag <= stale_to()
    }

    pub(crate) fn is_from_stream(&self) -> bool {
        self.origin.reads_from == ReadsFrom::Stream
    }

    /// Converts the message into its body, without a new allocation.
    pub fn into_body(mut self) -> Vec<u8> {
        std::mem::take(&mut self.content).into_body()
    }
}

impl Drop for Delivery {
    #[inline]
    fn drop(&mut self) {
        let content = std::mem::take(&mut self.content);
        let shared = self.channel().connection().shared();
        shared.buffer_pool.give_back(content.into_bytes());
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("consumer_tag", &self.consumer_tag())
            .field("delivery_tag", &self.delivery_tag)
            .field("redelivered", &self.redelivered)
            .field("exchange", &self.exchange())
            .field("routing_key", &self.routing_key())
            .field("body", &format_args!("{} bytes", self.body().len()))
            .finish_non_exhaustive()
    }
}

impl Channel {
    /// Fetches one message, or returns `None` if the queue is empty. To receive many messages, use
    /// a [`Consumer`](crate::Consumer).
    ///
    /// ```no_run
    /// use leveret::{AckMode, Connection};
    ///
    /// let channel = Connection::open_default()?.open_channel()?;
    /// while let Some(delivery) = channel.basic_get("tasks", AckMode::Manual)? {
    ///     println!("{:?}, {:?} left", delivery.body(), delivery.message_count());
    ///     delivery.ack()?;
    /// }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// 404 if the queue does not exist; 403 without permission. For a stream, RabbitMQ closes the
    /// connection (540).
    pub fn basic_get(&self, queue: &str, ack_mode: AckMode) -> Result<Option<Delivery>> {
        self.get(queue.into(), ack_mode)
    }

    pub(crate) fn get(&self, queue: QueueName<'_>, ack_mode: AckMode) -> Result<Option<Delivery>> {
        let asked = Operation::about(BasicGet::ID, queue.shown());
        let no_ack = ack_mode.is_no_ack();
        let reply = self.call_with(asked, |frames, call| {
            frames.method(&BasicGet {
                ticket: 0,
                queue: self.state().resolve(queue),
                no_ack,
            })?;
            frames.expect(Expected::Message { no_ack }, call);
            Ok(())
        })?;
        let fetched = match reply {
            Reply::Message(message) => message.claim(),
            Reply::Method(_) => None,
        };
        Ok(fetched.map(|fetched| Delivery::fetched(self.clone(), no_ack, fetched)))
    }
}
