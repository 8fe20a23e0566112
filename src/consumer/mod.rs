//! Consumers: messages from a queue, as they come.

pub(crate) mod deliveries;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::vec::Drain;

use crossbeam_channel::Receiver;
use parking_lot::Mutex;

use crate::channel::Channel;
use crate::delivery::{stream_offset, Delivery, Origin, ReadsFrom};
use crate::error::{ClosedBy, Error, ErrorKind, Result};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::{Call, ChannelMailbox, ConsumerMailbox, Reply};
use crate::options::{before_now, ConsumeOptions, StreamOffset};
use crate::proto::{Delivered, Settling};
use crate::session::channel::ChannelState;
use crate::wire::content::Content;
use crate::wire::method::{BasicCancelOk, BasicConsume, Encode, Method};
use crate::wire::value::FieldTable;
use deliveries::Deliveries;

/// A consumer of a queue: blocks for the next message, one by one.
///
/// The end is never silent. Cancelled by this program: what has already come can still be read, then the iteration
/// ends. Cancelled by the broker, or the channel or the connection closed (also by this program) or lost for good: the error
/// is yielded once, then the iteration ends.
///
/// When the broker cancels a consumer ([`ErrorKind::ConsumerCancelled`] says when it does so), the
/// broker delivers its messages again, if their queue still exists. So unread messages that are to be
/// acknowledged are given back, and so is a [`Delivery`] that the program settles from then on,
/// whatever it is settled with. The consumer tag can be used again at once. But with a quorum queue on RabbitMQ 4.3, do not settle messages of the former
/// consumer by tag ([`Channel::basic_ack`]) or together with later ones: the broker could take that
/// for messages of the new consumer with the same tag.
///
/// A connection that is lost and comes back ([`RecoveryOptions`](crate::RecoveryOptions)) is no end: the iteration just goes
/// on. What was not acknowledged comes again, and so does what nobody had read yet: it is dropped here.
/// [`epoch`](Self::epoch) tells whether that has happened.
///
/// A consumer of a stream (see [`Delivery`]) drops nothing then, and goes on after the last message
/// that has come. If none has come yet, it misses none that was published since it began; messages of
/// some seconds before that can come, too. (Without a filter, [`StreamOffset::Last`] means the last
/// chunk of that time until a message has come.) If the stream was deleted and declared again in the
/// meantime, [`docs::rabbitmq`](crate::docs::rabbitmq#streams) says what the consumer gets.
///
/// Dropping a consumer cancels it without waiting, and gives back to the queue what nobody has read.
///
/// # Unread messages and the delivery limit
/// In a quorum queue, a message that a consumer gives back unread can count as a delivery. After 20
/// redeliveries (the default [`delivery_limit`](crate::QueueDeclareOptions::delivery_limit) since
/// RabbitMQ 4.0) the broker drops or dead-letters the message, although no program has seen it:
///
/// - Before RabbitMQ 4.3 every message that is given back counts. In a test on 4.0, one consumer
///   after the other with a prefetch of 500 was dropped: after 100 of them, 1,400 to 2,000 of 20,000
///   messages were gone.
/// - Since RabbitMQ 4.3, what this crate gives back does not count (`basic.nack`). But when a channel
///   closes, the broker counts each of its messages that the queue does not yet know to be given
///   back: messages on their way, and with a prefetch above 32 also others. The same test lost
///   nothing while the channel stayed open, and up to 2,000 messages when each consumer was dropped
///   together with its channel.
///
/// So begin few consumers and keep them, use a prefetch no larger than needed, let a channel outlive
/// its consumers, and give the queue a
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
/// A thread that consumes is stopped from another one by cancelling its consumer:
///
/// ```no_run
/// use leveret::{Connection, ConsumeOptions};
///
/// let channel = Connection::open_default()?.open_channel()?;
/// let consumer = channel.basic_consume("tasks", ConsumeOptions::default().consumer_tag("worker"))?;
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
    origin: Arc<Origin>,
    deliveries: Arc<Deliveries>,
    registration: Arc<Registration>,
}

/// What a consumer and its mailbox at the IO thread have in common.
pub(crate) struct Registration {
    pub(crate) consumer_tag: Arc<str>,
    pub(crate) no_ack: bool,
    reads_from: ReadsFrom,
    /// The consumer was dropped: nobody will read what comes.
    abandoned: AtomicBool,
    /// It was begun with no-wait, and nothing has shown yet that the broker has agreed.
    is_assumed: AtomicBool,
    /// The broker has cancelled it, and delivers again what was not acknowledged.
    is_revoked: AtomicBool,
    /// How often it was begun again on a new connection.
    epoch: AtomicU64,
    /// For a stream only, and only if its first message depends on when the broker is asked.
    since: Option<Since>,
    life: Mutex<Life>,
}

/// What `Life::Starting` was.
struct Started {
    cancels: Vec<Call>,
    again: bool,
}

enum Life {
    /// The broker has not been asked.
    New,
    /// The broker has not agreed yet. Whoever wants the consumer cancelled has to wait for that: a cancel that overtakes
    /// the broker's own consume-ok crashes RabbitMQ's channel (541), or is answered as if there were no consumer.
    Starting {
        cancels: Vec<Call>,
        /// It was live before, on a connection that was lost.
        again: bool,
    },
    /// Messages may come.
    Live,
    /// Messages may come until the broker has answered the cancel. Others that cancel meanwhile wait
    /// for the same answer: the answer to a second cancel could come first.
    Cancelling { others: Vec<Call> },
    /// The connection was lost: messages will come when the next one is there.
    Interrupted,
    /// No message will come.
    Ended,
}

impl Registration {
    /// Notes that the consumer is cancelled. Gives the call back if that is to be said to the broker now; otherwise it is
    /// answered, or will be when the broker has agreed to the consumer.
    pub(crate) fn cancel(&self, call: Call) -> Option<Call> {
        let mut life = self.life.lock();
        match &mut *life {
            Life::Starting { cancels: calls, .. } | Life::Cancelling { others: calls } => {
                calls.push(call);
                None
            }
            Life::Live => {
                let others = Vec::new();
                *life = Life::Cancelling { others };
                Some(call)
            }
            Life::New | Life::Interrupted | Life::Ended => Some(call),
        }
    }

    /// `basic.consume` is on its way. Under the outbox's lock.
    pub(crate) fn asked(&self, no_wait: bool) {
        self.is_assumed.store(no_wait, Ordering::Relaxed);
        if let Some(since) = &self.since {
            since.asked();
        }
        *self.life.lock() = match no_wait {
            // There is no consume-ok.
            true => Life::Live,
            false => Life::Starting {
                cancels: Vec::new(),
                again: false,
            },
        };
    }

    fn settling(&self) -> Settling {
        match self.reads_from {
            _ if self.no_ack => Settling::NoAck,
            ReadsFrom::Stream => Settling::Stream,
            ReadsFrom::Queue => Settling::Requeue,
        }
    }

    /// Whether the broker has cancelled it.
    pub(crate) fn is_revoked(&self) -> bool {
        self.is_revoked.load(Ordering::Acquire)
    }

    pub(crate) fn is_interrupted(&self) -> bool {
        matches!(*self.life.lock(), Life::Interrupted)
    }

    /// The broker has agreed.
    fn start(&self) -> Option<Started> {
        let mut life = self.life.lock();
        let Life::Starting { cancels, again } = &mut *life else {
            return None;
        };
        let (cancels, again) = (std::mem::take(cancels), *again);
        *life = Life::Live;
        if again {
            self.epoch.fetch_add(1, Ordering::AcqRel);
        }
        Some(Started { cancels, again })
    }

    /// Nobody will read what comes. Says whether to cancel now.
    fn abandon(&self) -> bool {
        // Under the lock, so that either this or `start` sees to it.
        let life = self.life.lock();
        self.abandoned.store(true, Ordering::Release);
        matches!(*life, Life::Live | Life::Interrupted)
    }

    /// No message will come. Returns whether it was ever live, and those who wait for it to be
    /// cancelled; none if it had ended before.
    fn end(&self) -> Option<(bool, Vec<Call>)> {
        match std::mem::replace(&mut *self.life.lock(), Life::Ended) {
            Life::Starting { cancels, again } => Some((again, cancels)),
            Life::Cancelling { others } => Some((true, others)),
            Life::Live | Life::Interrupted => Some((true, Vec::new())),
            Life::New => Some((false, Vec::new())),
            Life::Ended => None,
        }
    }

    /// The connection was lost. False if the consumer ends with it.
    fn interrupt(&self) -> bool {
        let mut life = self.life.lock();
        let goes_on = match &*life {
            Life::Starting { cancels, again } => *again && cancels.is_empty(),
            Life::Live | Life::Interrupted => true,
            Life::New | Life::Cancelling { .. } | Life::Ended => false,
        };
        if goes_on {
            *life = Life::Interrupted;
        }
        goes_on
    }

    /// Answers a message that the program will not read: a queue takes it back.
    pub(crate) fn give_back(&self, state: &ChannelState, delivery_tag: u64) {
        let settling = self.settling();
        if settling != Settling::NoAck {
            state.give_back(delivery_tag, settling);
        }
    }

    /// As the broker says that a consumer is cancelled, or unknown.
    pub(crate) fn cancelled(&self) -> Reply {
        let consumer_tag = self.consumer_tag.to_string().into();
        Reply::Method(Method::BasicCancelOk(BasicCancelOk { consumer_tag }))
    }
}

/// The consumer as the IO thread sees it. It does not keep the channel open, but the iteration ends with it.
pub(crate) struct Mailbox {
    deliveries: Arc<Deliveries>,
    state: Arc<ChannelState>,
    recovers: bool,
    registration: Arc<Registration>,
    /// For a stream only.
    place: Option<Place>,
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        self.deliveries.end(None);
    }
}

/// The offset at which a consumer of a stream goes on, on the next connection.
struct Place(AtomicI64);

impl Place {
    /// Nothing has come.
    const UNKNOWN: i64 = -1;

    fn new() -> Self {
        Self(AtomicI64::new(Self::UNKNOWN))
    }

    fn came(&self, content: &Content) {
        if let Some(offset) = stream_offset(content) {
            let next = offset.saturating_add(1);
            self.0.store(next, Ordering::Relaxed);
        }
    }

    /// A stream that is declared anew counts from 0. At a higher offset the broker would send
    /// nothing until the new stream is as long as the old one was.
    fn begin_at_first(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn write_to(&self, arguments: &mut FieldTable, since: Option<&Since>) {
        let next = self.0.load(Ordering::Relaxed);
        if next >= 0 {
            arguments.insert("x-stream-offset", next);
        } else if let Some(since) = since {
            arguments.insert("x-stream-offset", since.offset());
        }
    }
}

/// The time from which a consumer reads its stream.
///
/// The broker finds out what "next" means each time it is asked. A consumer that begins again
/// before its first message has come would miss what was published in between, and with a filter
/// the first message can take long. So it says "next" for the first time only, and then how long
/// ago that was, by the broker's own clock.
#[derive(Debug, Clone)]
pub(crate) struct Since {
    before: Duration,
    asked: OnceLock<Deadline>,
}

impl Since {
    /// How much earlier it begins than the clocks say: the broker may take longer to read the next
    /// question than it took for the first one, and a stream's nodes have clocks of their own.
    const MARGIN: Duration = Duration::from_secs(5);

    /// `None` if the arguments name the same message at any time.
    pub(crate) fn of(arguments: &FieldTable) -> Option<Self> {
        let before = before_now(arguments)?;
        let asked = OnceLock::new();
        Some(Self { before, asked })
    }

    /// The broker is asked, now or before.
    pub(crate) fn asked(&self) {
        self.asked.get_or_init(|| Deadline::after(Duration::MAX));
    }

    pub(crate) fn offset(&self) -> StreamOffset {
        let ago = self.asked.get().map(Deadline::elapsed).unwrap_or_default();
        let before = self.before.saturating_add(ago).saturating_add(Self::MARGIN);
        StreamOffset::Interval(before)
    }
}

impl ConsumerMailbox for Mailbox {
    fn deliver(&self, messages: Drain<'_, Delivered>) -> u64 {
        if self.registration.is_assumed.load(Ordering::Relaxed) {
            self.registration.is_assumed.store(false, Ordering::Relaxed);
        }
        let messages = messages.map(|mut message| {
            message.delivery_tag = self.state.settled.received(message.delivery_tag);
            if let Some(place) = &self.place {
                place.came(&message.content);
            }
            message
        });
        if !self.registration.abandoned.load(Ordering::Acquire) {
            return self.deliveries.push(messages);
        }
        for message in messages {
            self.give_back(message.delivery_tag);
        }
        0
    }

    fn settling(&self) -> Settling {
        self.registration.settling()
    }

    fn unread(&self) -> u64 {
        self.deliveries.unread()
    }

    fn started(&self) {
        let Some(Started { mut cancels, again }) = self.registration.start() else {
            return;
        };
        let consumer_tag = &self.registration.consumer_tag;
        if !again {
            self.state.consumer_started(consumer_tag);
        }
        if self.registration.abandoned.load(Ordering::Acquire) {
            cancels.push(Call::of_nobody());
        }
        for call in cancels {
            self.state.cancel_for(&self.registration, call);
        }
    }

    fn ended(&self, error: Option<Error>) {
        let Some((was_live, cancels)) = self.registration.end() else {
            return;
        };
        let tag = &self.registration.consumer_tag;
        if error.as_ref().is_some_and(is_cancelled_by_broker) {
            self.revoke();
        }
        let is_refused = error.as_ref().is_some_and(is_consume_refused)
            && self.registration.is_assumed.load(Ordering::Relaxed);
        self.deliveries.end(error.clone());
        // One that came just when the consumer was dropped.
        if self.registration.abandoned.load(Ordering::Acquire) {
            self.deliveries
                .discard(|delivery_tag| self.give_back(delivery_tag));
        }
        // Cancelled by the broker, it is cancelled for those who wanted that, too.
        let error = error.filter(|it| !is_cancelled_by_broker(it));
        for call in cancels {
            let cancelled = || Ok(self.registration.cancelled());
            call.answer(error.clone().map_or_else(cancelled, Err));
        }
        self.state.consumer_ended(tag, was_live && !is_refused);
    }

    fn outlives(&self, error: &Error) -> bool {
        self.state.has_outlived(error)
    }

    fn interrupted(&self, error: &Error) {
        // The broker delivers again what it waits to have acknowledged. A stream does not: its consumer
        // goes on after what has come, which can still be read.
        if self.registration.settling() == Settling::Requeue {
            self.deliveries.discard(|_| {});
        }
        if !self.recovers {
            self.ended(Some(error.clone()));
        } else if !self.registration.interrupt() {
            self.ended(None);
        }
    }

    fn is_without_queue(&self) {
        if let Some(place) = &self.place {
            place.begin_at_first();
        }
    }

    fn restart(&self, arguments: &mut FieldTable) -> bool {
        if let Some(place) = &self.place {
            place.write_to(arguments, self.registration.since.as_ref());
        }
        let mut life = self.registration.life.lock();
        let wanted = matches!(*life, Life::Interrupted);
        if wanted {
            *life = Life::Starting {
                cancels: Vec::new(),
                again: true,
            };
        }
        wanted
    }
}

fn is_cancelled_by_broker(error: &Error) -> bool {
    let by_broker = ClosedBy::Broker;
    matches!(error.kind(), ErrorKind::ConsumerCancelled { by, .. } if *by == by_broker)
}

/// Whether a channel was closed because a consumer was refused.
fn is_consume_refused(error: &Error) -> bool {
    let reason = error.close_reason();
    reason.is_some_and(|it| it.method == BasicConsume::ID.name())
}

impl Mailbox {
    /// The broker delivers again what was not acknowledged in time. What is unread is given back,
    /// since RabbitMQ 4.3 closes the channel (406) if it times out later.
    fn revoke(&self) {
        if self.registration.no_ack {
            return;
        }
        self.registration.is_revoked.store(true, Ordering::Release);
        self.deliveries
            .discard(|delivery_tag| self.give_back(delivery_tag));
    }

    fn give_back(&self, delivery_tag: u64) {
        self.registration.give_back(&self.state, delivery_tag);
    }
}

impl Consumer {
    /// A consumer that is not yet known to the broker, and its mailbox.
    pub(crate) fn new(
        channel: Channel,
        consumer_tag: Arc<str>,
        options: &ConsumeOptions,
        reads_from: ReadsFrom,
    ) -> (Self, Mailbox) {
        let registration = Arc::new(Registration {
            consumer_tag: Arc::clone(&consumer_tag),
            no_ack: options.no_ack,
            reads_from,
            abandoned: AtomicBool::new(false),
            is_assumed: AtomicBool::new(false),
            is_revoked: AtomicBool::new(false),
            epoch: AtomicU64::new(0),
            since: (reads_from == ReadsFrom::Stream)
                .then(|| Since::of(&options.arguments))
                .flatten(),
            life: Mutex::new(Life::New),
        });
        let mut consumers = channel.state().consumers.lock();
        consumers.register(&registration);
        drop(consumers);
        let recovery = &channel.connection().options().recovery;
        let recovers = recovery.recovers_consumers();
        let state = Arc::clone(channel.state());
        let origin = Arc::new(Origin {
            channel,
            consumer_tag,
            no_ack: options.no_ack,
            registration: Some(Arc::clone(&registration)),
            reads_from,
        });
        let deliveries = Arc::new(Deliveries::new(Arc::downgrade(&origin)));
        origin.channel.connection().enlist_consumer(&deliveries);
        let mailbox = Mailbox {
            deliveries: Arc::clone(&deliveries),
            state,
            recovers,
            registration: Arc::clone(&registration),
            place: (reads_from == ReadsFrom::Stream).then(Place::new),
        };
        let consumer = Self {
            origin,
            deliveries,
            registration,
        };
        (consumer, mailbox)
    }

    /// The consumer's name on its channel.
    pub fn consumer_tag(&self) -> &str {
        &self.registration.consumer_tag
    }

    /// How often it was begun again on a new connection. When this has grown, there is a gap before the next message:
    /// messages that were not acknowledged come again, to this consumer or another.
    pub fn epoch(&self) -> u64 {
        self.registration.epoch.load(Ordering::Acquire)
    }

    /// For a stream only: the time from which it reads.
    pub(crate) fn since(&self) -> Option<&Since> {
        self.registration.since.as_ref()
    }

    /// Whether the connection was lost and the consumer is not back yet.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.registration.is_interrupted()
    }

    /// The channel it consumes on.
    pub fn channel(&self) -> &Channel {
        &self.origin.channel
    }

    /// Waits for the next message, as long as it takes. `None`: the consumer was cancelled by this program, or its
    /// error was already told.
    ///
    /// # Errors
    /// Why no more messages come: [`ErrorKind::ConsumerCancelled`], or the end
    /// of the channel or the connection.
    pub fn recv(&self) -> Result<Option<Delivery>> {
        self.deliveries.recv(&self.origin, None).transpose()
    }

    /// Waits for the next message, at most so long. `None`: nothing came in time, or the consumer has ended as in
    /// [`recv`](Self::recv), and then at once. A loop that goes on after `None` has to ask
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
    /// As [`recv`](Self::recv).
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Option<Delivery>> {
        let deadline = Deadline::after(timeout);
        let received = self.deliveries.recv(&self.origin, Some(&deadline));
        received.transpose()
    }

    /// The next message if one has already come. `None`: none has, or the consumer has ended as in
    /// [`recv`](Self::recv); see [`has_ended`](Self::has_ended).
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn try_recv(&self) -> Result<Option<Delivery>> {
        self.deliveries.try_recv(&self.origin).transpose()
    }

    /// How many messages have come and wait to be read; one more if the error at the end does, too.
    pub fn unread(&self) -> usize {
        self.deliveries.len()
    }

    /// Whether it is all over: no more messages will come, and neither a message nor an error is left to be read.
    pub fn has_ended(&self) -> bool {
        self.deliveries.is_over()
    }

    /// What [`recv`](Self::recv) reads from, for [`select!`](crossbeam_channel::select) over several consumers and
    /// other channels. It is disconnected after the end. From the first call on all messages go through this channel, which
    /// costs more for each than [`recv`](Self::recv) and iteration do otherwise.
    ///
    /// ```no_run
    /// use leveret::crossbeam_channel::{select, tick};
    ///
    /// # let channel = leveret::Connection::open_default()?.open_channel()?;
    /// let (first, second) = (channel.queue("first"), channel.queue("second"));
    /// let (first, second) = (first.consume(Default::default())?, second.consume(Default::default())?);
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
    pub fn receiver(&self) -> &Receiver<Result<Delivery>> {
        self.deliveries.receiver(&self.origin)
    }

    /// The messages, one by one, until the end; the same as `for delivery in &consumer`.
    pub fn iter(&self) -> Iter<'_> {
        Iter { consumer: self }
    }

    /// Cancels the consumer and waits until the broker has agreed. What has come until then can still be read and
    /// acknowledged. What is not read goes back to the queue when the consumer is dropped, which can count
    /// [towards the delivery limit](Self#unread-messages-and-the-delivery-limit).
    ///
    /// # Errors
    /// A timeout, or the end of the channel or the connection.
    pub fn cancel(&self) -> Result<()> {
        let registration = &self.registration;
        self.channel()
            .cancel(&registration.consumer_tag, Some(registration))
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let state = self.channel().state();
        let registration = &self.registration;
        if registration.abandon() {
            state.cancel_in_background(registration);
        }
        // Not left to the IO thread alone: unread deliveries in a channel keep theirs open.
        self.deliveries.discard(|delivery_tag| {
            registration.give_back(state, delivery_tag);
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

/// The messages of a [`Consumer`], until its end.
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

/// The messages of a [`Consumer`], until its end; it is dropped with them.
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
