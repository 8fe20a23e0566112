//! Publishing with a confirm for each message.

pub(crate) mod confirm;
mod message_ids;
pub(crate) mod window;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::Receiver;

use crate::channel::Channel;
use crate::error::{Error, ErrorKind, Result};
use crate::io_thread::deadline::Deadline;
use crate::log_line::log_line;
use crate::message::Message;
use crate::options::PublisherOptions;
use crate::session::call::Operation;
use crate::sync::Mutex;
use crate::wire::method::{BasicPublish, Encode};
use confirm::{Confirm, ConfirmSlot, PublishOutcome, PublisherState, UnreportedFailures};
use message_ids::MessageIds;
use window::{NoRoom, Weight, Window};

/// Publishes messages and reports the outcome of each one.
///
/// [`publish`](Self::publish) hands a message to the IO thread and returns a [`Confirm`] for it at
/// once. It blocks only while the window is full, when too many messages or bytes are unconfirmed.
/// So a program publishes as fast as the broker confirms, and never has more than a window of
/// messages at risk.
///
/// The publisher keeps a copy of each message until the broker has confirmed or nacked it. If the
/// connection is lost before that, recovery republishes the message, in order and before newer
/// messages. The broker gets each message at least once, and its [`Confirm`] stays valid. Consumers
/// can see such a message twice. Give messages an id
/// ([`PublisherOptions::message_ids`]), so that consumers can recognize duplicates.
///
/// A republished message goes to its original exchange and routing key. If the key is the name that
/// the broker gave to an exclusive queue, the message reaches no queue: that queue was lost with
/// its messages, and the new queue has another name.
///
/// ```no_run
/// use leveret::{Connection, Message, PublisherOptions};
///
/// let channel = Connection::open_default()?.open_channel()?;
/// let publisher = channel.publisher_with(PublisherOptions::default().window(500))?;
/// for number in 0..10_000 {
///     publisher.publish("", "tasks", Message::new(format!("task {number}")).persistent(true))?;
/// }
/// publisher.wait_for_confirms()?;
/// # Ok::<(), leveret::Error>(())
/// ```
///
/// # What to do about each outcome
///
/// - **`Ok` from [`Confirm::wait`]**: the broker has taken charge of the message. The
///   program can forget it.
/// - **[`ErrorKind::Returned`]**: no queue is bound for the message's exchange and routing key, so
///   no queue has it. Declare what is missing, or report a wrong key; publishing the message again
///   unchanged returns it again. An exchange of a plugin that delays messages, such as
///   `x-delayed-message`, returns every message and still delivers it later: set
///   [`mandatory`](PublisherOptions::mandatory) to false for such an exchange.
/// - **[`ErrorKind::Nacked`]**: a queue refused the message because it is full (`x-overflow:
///   reject-publish`) or its node has failed. Other queues may have the message. Publish the
///   message again later, and more slowly.
/// - **[`ErrorKind::ChannelClosed`]**: the broker refused something on the channel, such as an
///   exchange that does not exist, or a message above its limit (16 MiB since RabbitMQ 4.0).
///   [`Error::close_reason`] says what. The message itself may have been routed. Correct the cause,
///   [`reopen`](Channel::reopen) the channel or open another one, and publish the message again.
/// - **An error with [`Error::is_connection_end`]**: the connection ended for good before the
///   confirm arrived: it was closed, could not be recovered, or
///   [`recovery`](crate::ConnectionOptions::recovery) is off. Publish the message again on a new
///   connection. If [`Error::may_have_been_sent`] is true, the broker may have the message already,
///   and consumers can see it twice. If [`Connection::is_open`](crate::Connection::is_open) is
///   still true, the broker closed the connection because of this very message: do not publish it
///   again unchanged.
/// - **[`ErrorKind::TimedOut`] from [`Confirm::wait`]**: no answer yet. Wait again, and do not
///   publish the message again: recovery republishes it after a lost connection.
/// - **An error of [`publish`](Self::publish)**: nothing was sent. Publish the message again after
///   the cause is gone.
///
/// # Sharing
/// A publisher is cheap to clone, and threads can share it: each thread's messages keep their
/// order. Each publisher of a channel has its own window. All of them, and
/// [`Channel::basic_publish`], share the channel's sequence numbers.
///
/// Dropping the last clone while messages are unconfirmed logs a warning. The program can still
/// wait for their [`Confirm`]s.
///
/// See <https://www.rabbitmq.com/docs/confirms#publisher-confirms>.
#[derive(Clone)]
pub struct Publisher {
    inner: Arc<Inner>,
}

struct Inner {
    channel: Channel,
    options: PublisherOptions,
    message_ids: Option<MessageIds>,
    unconfirmed: Arc<PublisherState>,
}

impl Publisher {
    pub(crate) fn new(channel: Channel, options: PublisherOptions) -> Self {
        let shared = Arc::clone(channel.connection().shared());
        let unconfirmed = PublisherState {
            label: Box::new(move || shared.label()),
            window: Window::new(options.window, options.window_bytes),
            failures: Mutex::new(UnreportedFailures::new(options.window_bytes)),
            outcomes: OnceLock::new(),
            confirm_timeout: options.confirm_timeout,
            recovers: channel.connection().options().recovery.enabled,
        };
        let unconfirmed = Arc::new(unconfirmed);
        channel.connection().add_gauge(&unconfirmed);
        Self {
            inner: Arc::new(Inner {
                channel,
                message_ids: options.message_ids.then(MessageIds::new),
                options,
                unconfirmed,
            }),
        }
    }

    /// Returns the channel that the publisher uses.
    #[must_use]
    pub fn channel(&self) -> &Channel {
        &self.inner.channel
    }

    /// Returns the number of messages that the broker has neither confirmed nor nacked yet.
    #[must_use]
    pub fn unconfirmed(&self) -> usize {
        usize::try_from(self.inner.unconfirmed.window.len()).unwrap_or(usize::MAX)
    }

    /// Returns a receiver of the outcomes of this publisher's messages, from the first call on. For
    /// [`select!`](crossbeam_channel::select) over outcomes, consumers and other receivers, and for
    /// programs that read the outcomes on a thread of their own.
    ///
    /// The receiver keeps the newest 65,536 outcomes. All receivers of a publisher share them: each
    /// outcome goes to one receiver. The receiver is disconnected when the last clone of the
    /// publisher and its last [`Confirm`] are dropped, and all messages have their outcomes.
    /// [`Confirm`] and [`wait_for_confirms`](Self::wait_for_confirms) report the outcomes, too.
    ///
    /// ```no_run
    /// use leveret::crossbeam_channel::select;
    ///
    /// # let channel = leveret::Connection::open_default()?.open_channel()?;
    /// let requests = channel.queue("requests").consume()?;
    /// let publisher = channel.publisher()?;
    /// let outcomes = publisher.outcomes();
    /// loop {
    ///     select! {
    ///         recv(requests.receiver()) -> request => {
    ///             let Ok(request) = request else { break };
    ///             let request = request?;
    ///             publisher.publish("results", "", request.body())?;
    ///             request.ack()?;
    ///         }
    ///         recv(outcomes) -> outcome => {
    ///             let Ok(outcome) = outcome else { break };
    ///             if let Err(error) = outcome.result {
    ///                 println!("message {} failed: {error}", outcome.sequence_number);
    ///             }
    ///         }
    ///     }
    /// }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    #[must_use]
    pub fn outcomes(&self) -> Receiver<PublishOutcome> {
        self.inner.unconfirmed.outcomes()
    }

    /// Publishes a message and returns a [`Confirm`] for it. Waits up to `confirm_timeout` while
    /// the window is full, then for room in the outbox as [`Channel::basic_publish`] does.
    ///
    /// # Errors
    /// Same as [`Channel::basic_publish`]; [`ErrorKind::WindowFull`] if the window stays full. If
    /// the call fails, nothing was sent.
    pub fn publish<'m>(
        &self,
        exchange: &str,
        routing_key: &str,
        message: impl Into<Message<'m>>,
    ) -> Result<Confirm> {
        let confirm_timeout = self.inner.options.confirm_timeout;
        let publish_timeout = self.channel().connection().publish_timeout();
        let mut message = message.into();
        if let Some(ids) = &self.inner.message_ids {
            message = ids.identify(message);
        }
        let published = self.hand_over(
            exchange,
            routing_key,
            &message,
            confirm_timeout,
            publish_timeout,
        );
        published.map_err(|error| Operation::about(BasicPublish::ID, exchange).failed(error))
    }

    /// [`publish`](Self::publish) without waiting: fails at once if the window or the outbox is
    /// full, the broker has blocked the connection, or the connection is recovering.
    ///
    /// # Errors
    /// Same as [`publish`](Self::publish).
    pub fn try_publish<'m>(
        &self,
        exchange: &str,
        routing_key: &str,
        message: impl Into<Message<'m>>,
    ) -> Result<Confirm> {
        let mut message = message.into();
        if let Some(ids) = &self.inner.message_ids {
            message = ids.identify(message);
        }
        let published = self.hand_over(
            exchange,
            routing_key,
            &message,
            Duration::ZERO,
            Duration::ZERO,
        );
        published.map_err(|error| Operation::about(BasicPublish::ID, exchange).failed(error))
    }

    fn hand_over(
        &self,
        exchange: &str,
        routing_key: &str,
        message: &Message<'_>,
        window_patience: Duration,
        outbox_patience: Duration,
    ) -> Result<Confirm> {
        let Inner {
            channel,
            options,
            unconfirmed,
            ..
        } = &*self.inner;
        let weight = Weight::of(message.body().len());
        if !unconfirmed.window.try_take(weight) {
            self.wait_for_room(weight, window_patience)?;
        }
        let awaited = Arc::new(ConfirmSlot::new(Arc::clone(unconfirmed), weight));
        let mandatory = message.is_mandatory_or(options.mandatory);
        let published = channel.publish(
            exchange,
            routing_key,
            message,
            mandatory,
            Some(&awaited),
            outbox_patience,
        );
        match published {
            Ok(number) => {
                // The channel is in confirm mode for good, so it returns a number.
                let number = number.unwrap_or_default();
                Ok(Confirm::new(number, awaited, channel.clone()))
            }
            Err(error) => {
                unconfirmed.window.give_back(weight);
                Err(error)
            }
        }
    }

    #[cold]
    fn wait_for_room(&self, weight: Weight, after: Duration) -> Result<()> {
        let window = &self.inner.unconfirmed.window;
        let _waits = self.channel().connection().shared().waiters.begin();
        let begin = Deadline::after(after);
        // If calls fail fast during a recovery, no confirm can make room meanwhile.
        let outbox = &self.channel().connection().shared().outbox;
        let after = match window.take(weight, begin, || outbox.refuses()) {
            Ok(()) => return Ok(()),
            Err(NoRoom::InTime) => after,
            Err(NoRoom::UselessToWait) => begin.elapsed(),
        };
        // Names the obstacle to the confirms, if it is known.
        if let Some(cause) = self.channel().connection().loss_cause() {
            let cause = Box::new(cause.kind().clone());
            return Err(Error::new(ErrorKind::Recovering { cause, after }));
        }
        if let Some(reason) = self.channel().connection().blocked_reason() {
            return Err(Error::new(ErrorKind::ConnectionBlocked { reason, after }));
        }
        let unconfirmed = self.unconfirmed();
        Err(Error::new(ErrorKind::WindowFull { unconfirmed, after }))
    }

    /// Waits up to `confirm_timeout` until the broker has confirmed or nacked all messages
    /// published so far, and reports those that failed. After a timeout, the program can wait
    /// again.
    ///
    /// # Errors
    /// [`ErrorKind::PublishesFailed`] lists each message that failed since the last report, unless
    /// its [`Confirm`] has already returned the failure. All threads that are waiting at the same
    /// time get the report. A timeout if confirms are missing.
    pub fn wait_for_confirms(&self) -> Result<()> {
        self.wait_for_confirms_timeout(self.inner.options.confirm_timeout)
    }

    /// [`wait_for_confirms`](Self::wait_for_confirms), but waits up to `timeout`.
    ///
    /// # Errors
    /// Same as [`wait_for_confirms`](Self::wait_for_confirms).
    pub fn wait_for_confirms_timeout(&self, timeout: Duration) -> Result<()> {
        let deadline = Deadline::after(timeout);
        let unconfirmed = &self.inner.unconfirmed;
        let _waits = self.channel().connection().shared().waiters.begin();
        let since = unconfirmed.failures.lock().wait();
        let answered = match self.channel().wait_until_answered(deadline) {
            Err(error) if error.is_timeout() => Err(error),
            // The channel has ended. Each message gets that outcome now; those that were just being
            // published get it last.
            Err(_) if !unconfirmed.window.wait_empty(deadline) => {
                let outbox = &self.channel().connection().shared().outbox;
                Err(outbox.explained(Error::timed_out(timeout)))
            }
            _ => Ok(()),
        };
        let failures = &mut unconfirmed.failures.lock();
        let result = match answered {
            Ok(()) => failures.report(since),
            Err(error) => {
                failures.give_up();
                Err(error)
            }
        };
        result.map_err(|error| error.doing("waiting for confirms"))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let unconfirmed = self.unconfirmed.window.len();
        if unconfirmed > 0 {
            let channel = self.channel.number();
            log_line!(
                Warn,
                (self.unconfirmed.label)(),
                "a publisher of channel {channel} was dropped with {unconfirmed} unconfirmed messages"
            );
        }
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("channel", self.channel())
            .field("options", &self.inner.options)
            .field("unconfirmed", &self.unconfirmed())
            .finish_non_exhaustive()
    }
}

impl Channel {
    /// Returns a [`Publisher`] for this channel: it limits unconfirmed messages to a window, and
    /// reports the outcome of each message with a [`Confirm`]. Puts the channel into confirm mode.
    ///
    /// # Errors
    /// Same as [`confirm_select`](Self::confirm_select).
    pub fn publisher(&self) -> Result<Publisher> {
        self.publisher_with(PublisherOptions::default())
    }

    /// [`publisher`](Self::publisher) with another window or other timeouts.
    ///
    /// # Errors
    /// Same as [`publisher`](Self::publisher); [`ErrorKind::InvalidArgument`] for a window of 0 or
    /// more than 65,536.
    pub fn publisher_with(&self, options: PublisherOptions) -> Result<Publisher> {
        options.check()?;
        // Also needed after `confirm_select_no_wait`: messages from before confirm mode have no
        // number. If they come back, it is before this reply, so they are not mistaken for messages
        // of this publisher.
        self.confirm_select()?;
        Ok(Publisher::new(self.clone(), options))
    }
}
