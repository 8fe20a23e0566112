//! Publishing that knows what became of every message.

pub(crate) mod confirm;
pub(crate) mod window;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::channel::Channel;
use crate::error::{Error, ErrorKind, Result};
use crate::io_thread::deadline::Deadline;
use crate::log_line::log_line;
use crate::message::Message;
use crate::options::PublisherOptions;
use crate::session::call::Operation;
use crate::wire::method::{BasicPublish, Encode};
use confirm::{Confirm, ConfirmSlot, PublisherState, UnreportedFailures};
use window::{NoRoom, Weight, Window};

/// Publishes messages, and tells for each what became of it.
///
/// [`publish`](Self::publish) hands a message over and returns a [`Confirm`] for it at once. It blocks only while the
/// window is full: so many messages, or bytes of them, that the broker has not answered for. So a program can be as
/// fast as the broker, and never has more at stake than the window.
///
/// A copy of each message is kept until the broker has answered for it. If the connection is lost before, the message is
/// published again when it is back, in order and before newer ones: at least once, never lost. Its [`Confirm`] stays valid.
/// Consumers can see such a message twice, and mostly cannot tell by anything but a
/// [`message_id`](Message::message_id).
/// It goes to the exchange and routing key that it was published with: one for an exclusive queue whose name the broker
/// made up finds no queue of that name any more, as what was in the queue is gone, too.
///
/// ```no_run
/// use leveret::{Connection, Message, PublisherOptions};
///
/// let channel = Connection::open_default()?.open_channel()?;
/// let publisher = channel.publisher_with(PublisherOptions::default().window(500))?;
/// for number in 0..10_000 {
///     publisher.publish("", "tasks", Message::new(format!("task {number}")).persistent())?;
/// }
/// publisher.wait_for_confirms()?;
/// # Ok::<(), leveret::Error>(())
/// ```
///
/// # What to do about each outcome
///
/// | outcome | it means | what the program should do |
/// | --- | --- | --- |
/// | `Ok` from [`Confirm::wait`] | the broker has taken charge of the message | forget it |
/// | [`ErrorKind::Returned`] | no queue is bound for its exchange and routing key; it is in none | declare what is missing, or report a wrong key; publishing it again as it is brings it back again. An exchange of a plugin that holds messages back, such as `x-delayed-message`, returns every message and delivers it all the same: set [`mandatory`](PublisherOptions::mandatory) to false for it |
/// | [`ErrorKind::Nacked`] | a queue refused it: it is full (`x-overflow: reject-publish`), or its node has failed. With several queues, others may have it | publish it again later, more slowly |
/// | [`ErrorKind::ChannelClosed`] | the broker refused something on the channel, such as an exchange that does not exist, or a message above its limit (16 MiB since RabbitMQ 4.0): [`Error::close_reason`] says what. The message itself may have been routed | correct the cause, [`reopen`](Channel::reopen) the channel or open another, publish again |
/// | any error with [`Error::is_connection_end`] | the connection ended for good before the answer came: it was closed, did not come back, or [`recovery`](crate::ConnectionOptions::recovery) is off; or the broker closed it because of a message. With [`Error::may_have_been_sent`] the broker may have this one | publish it again on a new connection. If it may have been sent, consumers can see it twice: give it a [`message_id`](Message::message_id) |
/// | [`ErrorKind::TimedOut`] from [`Confirm::wait`] | no answer yet | wait on; do not publish it again: that happens by itself |
/// | an error of [`publish`](Self::publish) | nothing was sent | publish it again when the cause has gone |
///
/// # Sharing
/// Cheap to clone, and made to be shared between threads: each thread's messages keep their order. Publishers of one
/// channel have windows of their own, and share the channel's sequence numbers, also with
/// [`Channel::basic_publish`].
///
/// Dropping the last clone with messages unconfirmed logs a warning; their [`Confirm`]s can still be waited for.
///
/// See <https://www.rabbitmq.com/docs/confirms#publisher-confirms>.
#[derive(Clone)]
pub struct Publisher {
    inner: Arc<Inner>,
}

struct Inner {
    channel: Channel,
    options: PublisherOptions,
    unconfirmed: Arc<PublisherState>,
}

impl Publisher {
    pub(crate) fn new(channel: Channel, options: PublisherOptions) -> Self {
        let unconfirmed = PublisherState {
            shared: Arc::clone(channel.connection().shared()),
            window: Window::new(options.window, options.window_bytes),
            failures: Mutex::new(UnreportedFailures::new(options.window_bytes)),
            confirm_timeout: options.confirm_timeout,
            recovers: channel.connection().options().recovery.is_on,
        };
        let unconfirmed = Arc::new(unconfirmed);
        channel.connection().add_gauge(&unconfirmed);
        Self {
            inner: Arc::new(Inner {
                channel,
                options,
                unconfirmed,
            }),
        }
    }

    /// The channel it publishes on.
    pub fn channel(&self) -> &Channel {
        &self.inner.channel
    }

    /// How many messages wait for the broker's answer.
    pub fn unconfirmed(&self) -> usize {
        usize::try_from(self.inner.unconfirmed.window.len()).unwrap_or(usize::MAX)
    }

    /// Publishes a message. Waits while the window is full, at most `confirm_timeout`; then for room in the outbox as
    /// [`Channel::basic_publish`] does.
    ///
    /// # Errors
    /// As [`Channel::basic_publish`], and [`ErrorKind::WindowFull`]. Whatever the error, nothing was sent.
    pub fn publish<'m>(
        &self,
        exchange: &str,
        routing_key: &str,
        message: impl Into<Message<'m>>,
    ) -> Result<Confirm> {
        let confirm_timeout = self.inner.options.confirm_timeout;
        let publish_timeout = self.channel().connection().publish_timeout();
        let message = message.into();
        let published = self.hand_over(
            exchange,
            routing_key,
            &message,
            confirm_timeout,
            publish_timeout,
        );
        published.map_err(|error| Operation::about(BasicPublish::ID, exchange).failed(error))
    }

    /// [`publish`](Self::publish) without waiting: it fails if the window or the outbox is full, or the broker has
    /// blocked the connection.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub fn try_publish<'m>(
        &self,
        exchange: &str,
        routing_key: &str,
        message: impl Into<Message<'m>>,
    ) -> Result<Confirm> {
        let message = message.into();
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
        } = &*self.inner;
        let weight = Weight::of(message.body().len());
        if !unconfirmed.window.try_take(weight) {
            self.wait_for_room(weight, window_patience)?;
        }
        let awaited = Arc::new(ConfirmSlot::new(Arc::clone(unconfirmed), weight));
        let mandatory = options.mandatory || message.is_mandatory();
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
                // The channel is in confirm mode, and there is no way back.
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
        // Lost and not to be waited for: the answers that would make room do not come meanwhile.
        let outbox = &self.channel().connection().shared().outbox;
        let after = match window.take(weight, begin, || outbox.refuses()) {
            Ok(()) => return Ok(()),
            Err(NoRoom::InTime) => after,
            Err(NoRoom::UselessToWait) => begin.elapsed(),
        };
        // Whatever hinders the answers, if it is known.
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

    /// Waits until the broker has answered for all messages published so far, at most `confirm_timeout`, and reports
    /// those that failed. A timeout changes nothing: it can be called again.
    ///
    /// # Errors
    /// [`ErrorKind::PublishesFailed`] lists every message that failed since the last report, but for those whose
    /// [`Confirm`] has already told of it. Threads that wait at the same time are all told. A timeout if answers are
    /// missing.
    pub fn wait_for_confirms(&self) -> Result<()> {
        self.wait_for_confirms_timeout(self.inner.options.confirm_timeout)
    }

    /// [`wait_for_confirms`](Self::wait_for_confirms), at most so long.
    ///
    /// # Errors
    /// As [`wait_for_confirms`](Self::wait_for_confirms).
    pub fn wait_for_confirms_timeout(&self, timeout: Duration) -> Result<()> {
        let deadline = Deadline::after(timeout);
        let unconfirmed = &self.inner.unconfirmed;
        let _waits = self.channel().connection().shared().waiters.begin();
        let since = unconfirmed.failures.lock().wait();
        let answered = match self.channel().wait_until_answered(deadline) {
            Err(error) if error.is_timeout() => Err(error),
            // The channel has ended: each message is told so now, those that were just being handed over last.
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
                self.unconfirmed.shared.label(),
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
    /// Puts the channel into confirm mode, if it is not, and publishes with a window of unconfirmed messages and a
    /// [`Confirm`] for each: the way to lose nothing. See [`Publisher`].
    ///
    /// # Errors
    /// As [`confirm_select`](Self::confirm_select).
    pub fn publisher(&self) -> Result<Publisher> {
        self.publisher_with(PublisherOptions::default())
    }

    /// [`publisher`](Self::publisher) with another window or other timeouts.
    ///
    /// # Errors
    /// As [`publisher`](Self::publisher); [`ErrorKind::InvalidArgument`] for a window of 0 or more than 65,536.
    pub fn publisher_with(&self, options: PublisherOptions) -> Result<Publisher> {
        options.check()?;
        // Also if it was done without waiting: messages from before confirm mode, which nobody counts, come back before
        // its reply, and so are not taken for ones of this publisher.
        self.confirm_select()?;
        Ok(Publisher::new(self.clone(), options))
    }
}
