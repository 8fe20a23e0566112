//! Receiving messages from a queue.
//!
//! A [`Consumer`] receives the messages of one queue. `for delivery in &consumer` iterates with
//! [`Iter`], and `for delivery in consumer` with [`IntoIter`]. Both wait for the next message, and
//! end when the consumer ends.

mod consume;
pub(crate) mod deliveries;
pub(crate) mod mailbox;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;

use crate::channel::Channel;
use crate::delivery::{Delivery, DeliverySource};
use crate::error::Result;
use crate::io_thread::deadline::Deadline;
use crate::options::ConsumeOptions;
use crate::session::stream_position::{StreamPosition, StreamStart};
use crate::session::subscription::{ReadsFrom, Subscription};
use deliveries::Deliveries;
use mailbox::Mailbox;

/// A consumer of a queue: receives its messages one by one.
///
/// A consumer never ends silently. If this program cancels it, messages that have already arrived
/// can still be read; then the iteration ends. In all other cases the iteration yields one error
/// and then ends: when the broker cancels the consumer, when either side closes the channel or the
/// connection, and when the connection is lost for good.
///
/// When a lost connection recovers ([`RecoveryOptions`](crate::RecoveryOptions)), the consumer
/// recovers with it, and the iteration continues. The broker redelivers unacknowledged messages, so
/// this crate drops those that the program has not read yet.
/// [`recovery_count`](Self::recovery_count) tells whether that has happened.
///
/// Dropping a consumer cancels it without waiting, and requeues its unread messages.
///
/// # Cancellation by the broker
/// [`ErrorKind::ConsumerCancelled`](crate::ErrorKind::ConsumerCancelled) lists the reasons for
/// which the broker cancels a consumer. The broker then redelivers the consumer's messages, if
/// their queue still exists. So this crate requeues the unread messages, unless the consumer has
/// `no_ack` set. It also requeues each [`Delivery`] that the program acknowledges, nacks or rejects
/// afterwards.
///
/// The consumer tag can be used again at once. But with a quorum queue on RabbitMQ 4.3, do not
/// acknowledge or reject messages of the former consumer by tag ([`Channel::basic_ack`]) or
/// together with later messages: the broker could apply that to messages of the new consumer with
/// the same tag.
///
/// # Streams
/// When a lost connection recovers, a consumer of a stream (see [`Delivery`]) keeps its unread
/// messages and continues after the last message that arrived. If none has arrived yet, it misses
/// no message that was published since it began, and it can receive messages from some seconds
/// before. (Without a filter, [`StreamOffset::Last`](crate::StreamOffset::Last) means the last
/// chunk at the time of the recovery, until a message has arrived.) If the stream was deleted and
/// declared again in the meantime, [`docs::rabbitmq`](crate::docs::rabbitmq#streams) says what the
/// consumer receives.
///
/// # Unread messages and the delivery limit
/// In a quorum queue, a message that a consumer requeues unread can count as a delivery. After 20
/// redeliveries (the default [`delivery_limit`](crate::QueueDeclareOptions::delivery_limit) since
/// RabbitMQ 4.0) the broker drops or dead-letters the message, although no program has seen it:
///
/// - Before RabbitMQ 4.3, every requeued message counts. A test on 4.0 started and dropped 100
///   consumers with a prefetch of 500, one after the other. After that, 1,400 to 2,000 of 20,000
///   messages were gone.
/// - Since RabbitMQ 4.3, messages that this crate requeues (`basic.nack`) do not count. But when a
///   channel closes, the broker counts each of its messages that the queue does not yet know to be
///   requeued: messages in flight, and with a prefetch above 32 also others. The same test lost
///   nothing while the channel stayed open, and up to 2,000 messages when each consumer was dropped
///   together with its channel.
///
/// So start few consumers and keep them, use a prefetch no larger than needed, let a channel
/// outlive its consumers, and give the queue a
/// [`dead_letter_exchange`](crate::QueueDeclareOptions::dead_letter_exchange).
///
/// # Examples
/// ```no_run
/// use leveret::{Connection, ConsumeOptions};
///
/// let channel = Connection::open_default()?.open_channel()?;
/// channel.basic_qos(200)?;
/// let consumer = channel.basic_consume("tasks", ConsumeOptions::default())?;
/// for delivery in &consumer {
///     let delivery = delivery?;
///     println!("{} {} {:?}", delivery.consumer_tag(), delivery.delivery_tag(), delivery.body());
///     delivery.ack()?;
/// }
/// # Ok::<(), leveret::Error>(())
/// ```
///
/// To stop a consuming thread, cancel its consumer from another thread:
///
/// ```no_run
/// use leveret::{Connection, ConsumeOptions};
///
/// let channel = Connection::open_default()?.open_channel()?;
/// let options = ConsumeOptions::default().consumer_tag("worker");
/// let consumer = channel.basic_consume("tasks", options)?;
/// let worker = std::thread::spawn(move || {
///     for delivery in consumer {
///         delivery?.ack()?;
///     }
///     Ok::<_, leveret::Error>(())
/// });
/// channel.basic_cancel("worker")?;
/// worker.join().expect("the worker does not panic")?;
/// # Ok::<(), leveret::Error>(())
/// ```
pub struct Consumer {
    origin: Arc<DeliverySource>,
    deliveries: Arc<Deliveries>,
    subscription: Arc<Subscription>,
}

impl Consumer {
    /// Makes a consumer that the broker does not know yet, and the consumer's mailbox.
    pub(crate) fn new(
        channel: Channel,
        consumer_tag: Arc<str>,
        options: &ConsumeOptions,
        reads_from: ReadsFrom,
    ) -> (Self, Mailbox) {
        let subscription = Arc::new(Subscription::new(
            Arc::clone(&consumer_tag),
            options,
            reads_from,
        ));
        let mut consumers = channel.state().consumers.lock();
        consumers.register(&subscription);
        drop(consumers);
        let recovery = &channel.connection().options().recovery;
        let recovers = recovery.recovers_consumers();
        let state = Arc::clone(channel.state());
        let origin = Arc::new(DeliverySource {
            channel,
            consumer_tag,
            no_ack: options.no_ack,
            subscription: Some(Arc::clone(&subscription)),
            reads_from,
            message_count: None,
        });
        let deliveries = Arc::new(Deliveries::new(Arc::downgrade(&origin)));
        origin.channel.connection().add_gauge(&deliveries);
        let mailbox = Mailbox {
            deliveries: Arc::clone(&deliveries),
            state,
            recovers,
            subscription: Arc::clone(&subscription),
            position: (reads_from == ReadsFrom::Stream).then(StreamPosition::new),
        };
        let consumer = Self {
            origin,
            deliveries,
            subscription,
        };
        (consumer, mailbox)
    }

    /// Returns the consumer's tag, which is unique on its channel.
    #[must_use]
    pub fn consumer_tag(&self) -> &str {
        &self.subscription.consumer_tag
    }

    /// Returns how many times the consumer was restarted on a new connection. If the count has
    /// grown, unacknowledged messages are redelivered, to this consumer or another one.
    #[must_use]
    pub fn recovery_count(&self) -> u64 {
        self.subscription.recovery_count()
    }

    /// For a stream only: the time from which the consumer reads.
    pub(crate) fn since(&self) -> Option<&StreamStart> {
        self.subscription.since()
    }

    pub(crate) fn reads_from_stream(&self) -> bool {
        self.origin.reads_from == ReadsFrom::Stream
    }

    /// Whether the connection was lost and the consumer has not recovered yet.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.subscription.is_interrupted()
    }

    /// Returns the consumer's channel.
    #[must_use]
    pub fn channel(&self) -> &Channel {
        &self.origin.channel
    }

    /// Waits for the next message, without a timeout. Returns `None` if this program has cancelled
    /// the consumer, or after the error that ended it.
    ///
    /// # Errors
    /// The reason why no more messages will arrive:
    /// [`ErrorKind::ConsumerCancelled`](crate::ErrorKind::ConsumerCancelled), or the end of the
    /// channel or the connection.
    pub fn recv(&self) -> Result<Option<Delivery>> {
        self.deliveries.recv(&self.origin, None).transpose()
    }

    /// Waits up to `timeout` for the next message. Returns `None` on timeout, or at once if the
    /// consumer has ended as in [`recv`](Self::recv). A loop that continues after `None` must check
    /// [`has_ended`](Self::has_ended), or it spins after the end:
    ///
    /// ```no_run
    /// # let channel = leveret::Connection::open_default()?.open_channel()?;
    /// # let consumer = channel.basic_consume("tasks", Default::default())?;
    /// # let tick = || ();
    /// loop {
    ///     match consumer.recv_timeout(std::time::Duration::from_secs(1))? {
    ///         Some(delivery) => delivery.ack()?,
    ///         None if consumer.has_ended() => break,
    ///         None => tick(),
    ///     }
    /// }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// Same as [`recv`](Self::recv).
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Option<Delivery>> {
        let deadline = Deadline::after(timeout);
        let received = self.deliveries.recv(&self.origin, Some(&deadline));
        received.transpose()
    }

    /// Waits up to `timeout` until `max` messages have arrived, and returns those that have: for
    /// programs that handle many messages at once, such as with one insert into a database. Returns
    /// at once what has arrived if the consumer has ended as in [`recv`](Self::recv).
    ///
    /// The broker sends at most the prefetch ([`basic_qos`](Channel::basic_qos)) ahead, so a
    /// prefetch below `max` makes each call wait for the timeout. If no other thread reads from the
    /// channel, [`Delivery::ack_multiple`] acknowledges a whole batch.
    ///
    /// If the connection is lost meanwhile, the batch has only what the broker does not redeliver.
    /// Do not use this together with [`receiver`](Self::receiver), which would miss the error that
    /// ends the consumer.
    ///
    /// ```no_run
    /// # let channel = leveret::Connection::open_default()?.open_channel()?;
    /// # let insert = |_: &[leveret::Delivery]| ();
    /// channel.basic_qos(200)?;
    /// let consumer = channel.queue("measurements").consume()?;
    /// while !consumer.has_ended() {
    ///     let batch = consumer.recv_batch(100, std::time::Duration::from_secs(1))?;
    ///     insert(&batch);
    ///     if let Some(last) = batch.last() {
    ///         last.ack_multiple()?;
    ///     }
    /// }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// Same as [`recv`](Self::recv). If messages arrived before the error, this call returns them,
    /// and the next call returns the error.
    pub fn recv_batch(&self, max: usize, timeout: Duration) -> Result<Vec<Delivery>> {
        let deadline = Deadline::after(timeout);
        let mut batch = Vec::new();
        while batch.len() < max {
            match self.deliveries.recv(&self.origin, Some(&deadline)) {
                Some(Ok(delivery)) => batch.push(delivery),
                Some(Err(error)) if batch.is_empty() => return Err(error),
                Some(Err(error)) => {
                    self.deliveries.put_back(error);
                    break;
                }
                None => break,
            }
        }
        if !self.origin.no_ack && self.origin.reads_from == ReadsFrom::Queue {
            let state = self.channel().state();
            let stale_to = state.look(|channel| channel.delivery_tags.stale_to());
            batch.retain(|it| it.delivery_tag() > stale_to);
        }
        Ok(batch)
    }

    /// Returns the next message if one has already arrived. Returns `None` if none has, or if the
    /// consumer has ended as in [`recv`](Self::recv); see [`has_ended`](Self::has_ended).
    ///
    /// # Errors
    /// Same as [`recv`](Self::recv).
    pub fn try_recv(&self) -> Result<Option<Delivery>> {
        self.deliveries.try_recv(&self.origin).transpose()
    }

    /// Returns the number of messages received but not yet read, counting the final error.
    #[must_use]
    pub fn unread(&self) -> usize {
        self.deliveries.len()
    }

    /// Returns true if the consumer has ended: no more messages will arrive, and no message or
    /// error is left to read.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.deliveries.is_over()
    }

    /// Returns a receiver of the messages, for [`select!`](crossbeam_channel::select) over several
    /// consumers and other receivers. It is disconnected after the consumer has ended.
    ///
    /// From the first call on, all messages go through this receiver's channel, which costs more
    /// for each message than [`recv`](Self::recv) and iteration alone.
    ///
    /// ```no_run
    /// use leveret::crossbeam_channel::{select, tick};
    ///
    /// # let channel = leveret::Connection::open_default()?.open_channel()?;
    /// let first = channel.queue("first").consume()?;
    /// let second = channel.queue("second").consume()?;
    /// let ticks = tick(std::time::Duration::from_secs(1));
    /// loop {
    ///     let delivery = select! {
    ///         recv(first.receiver()) -> delivery => delivery,
    ///         recv(second.receiver()) -> delivery => delivery,
    ///         recv(ticks) -> _ => continue,
    ///     };
    ///     match delivery {
    ///         Ok(delivery) => delivery?.ack()?,
    ///         // Without this arm the loop would spin after the end.
    ///         Err(_ended) => break,
    ///     }
    /// }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    #[must_use]
    pub fn receiver(&self) -> &Receiver<Result<Delivery>> {
        self.deliveries.receiver(&self.origin)
    }

    /// Iterates over the messages until the consumer ends; the same as `for delivery in &consumer`.
    #[must_use]
    pub fn iter(&self) -> Iter<'_> {
        Iter { consumer: self }
    }

    /// Cancels the consumer and waits until the broker has agreed. Waits up to `request_timeout`.
    ///
    /// Messages that arrived before can still be read and acknowledged. Unread messages are
    /// requeued when the consumer is dropped, which can count [towards the delivery
    /// limit](Self#unread-messages-and-the-delivery-limit).
    ///
    /// # Errors
    /// A timeout, or the end of the channel or the connection.
    pub fn cancel(&self) -> Result<()> {
        let subscription = &self.subscription;
        self.channel()
            .cancel(&subscription.consumer_tag, Some(subscription))
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let state = self.channel().state();
        let subscription = &self.subscription;
        if subscription.abandon() {
            state.cancel_in_background(subscription);
        }
        // Not left to the IO thread: unread deliveries in a channel keep their AMQP channel open.
        self.deliveries.discard(|delivery_tag| {
            state.give_back_unread(subscription, delivery_tag);
        });
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("consumer_tag", &self.consumer_tag())
            .field("channel", &self.channel().number())
            .field("unread", &self.unread())
            .finish_non_exhaustive()
    }
}

/// Iterator over the messages of a borrowed [`Consumer`], until the consumer ends.
#[derive(Debug)]
pub struct Iter<'a> {
    consumer: &'a Consumer,
}

impl Iterator for Iter<'_> {
    type Item = Result<Delivery>;

    fn next(&mut self) -> Option<Self::Item> {
        self.consumer.recv().transpose()
    }
}

impl<'a> IntoIterator for &'a Consumer {
    type Item = Result<Delivery>;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// Iterator that owns its [`Consumer`]: yields the messages until the consumer ends. Dropping the
/// iterator drops the consumer.
#[derive(Debug)]
pub struct IntoIter {
    consumer: Consumer,
}

impl Iterator for IntoIter {
    type Item = Result<Delivery>;

    fn next(&mut self) -> Option<Self::Item> {
        self.consumer.recv().transpose()
    }
}

impl IntoIterator for Consumer {
    type Item = Result<Delivery>;
    type IntoIter = IntoIter;

    fn into_iter(self) -> IntoIter {
        IntoIter { consumer: self }
    }
}
