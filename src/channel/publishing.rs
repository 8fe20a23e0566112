//! Publishing messages, and receiving messages that the broker returns.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::Channel;
use crate::error::{Error, Result, ReturnedMessage};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::{ConfirmMailbox, Unwatched};
use crate::io_thread::outbox::{Admission, Timeout, LARGE};
use crate::message::Message;
use crate::proto::Fingerprint;
use crate::session::call::Operation;
use crate::session::channel::frames::is_kept;
use crate::session::queue_names::Name;
use crate::wire::method::{BasicPublish, Encode};

impl Channel {
    /// Publishes a message without waiting for the broker: the IO thread sends it. In confirm mode
    /// (see [`confirm_select`](Self::confirm_select)), returns the message's sequence number.
    ///
    /// Messages that one thread publishes on one channel keep their order. Messages of different
    /// threads never interleave.
    ///
    /// ```no_run
    /// use leveret::{Connection, Message};
    ///
    /// let channel = Connection::open_default()?.open_channel()?;
    /// channel.basic_publish("amq.direct", "key", b"the plain AMQP call")?;
    /// channel.basic_publish("", "tasks", Message::new("by the queue's name").persistent(true))?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// The call waits up to `publish_timeout` while the outbox is full, the broker has blocked the
    /// connection, or the connection is recovering. If the call fails, nothing of this message was
    /// sent.
    ///
    /// - [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) for a message larger
    ///   than `max_message_size`, a name longer than 255 bytes, or headers that do not fit into one
    ///   frame.
    /// - [`ErrorKind::OutboxFull`](crate::ErrorKind::OutboxFull) if the outbox stays full.
    /// - [`ErrorKind::ConnectionBlocked`](crate::ErrorKind::ConnectionBlocked) if the broker does
    ///   not unblock the connection in time.
    /// - [`ErrorKind::Recovering`](crate::ErrorKind::Recovering) if a lost connection does not
    ///   recover in time.
    ///
    /// If the exchange does not exist, this call succeeds, and the broker then closes the channel
    /// (404).
    ///
    /// # What a publish does not guarantee
    /// `Ok` means that the message is queued for the socket. If the connection is lost, the broker
    /// may or may not have the messages that were published on it, and they are not republished. In
    /// confirm mode, [`wait_for_confirms`](Self::wait_for_confirms) at least reports that messages
    /// were lost. If a program must not lose messages, use a [`Publisher`](crate::Publisher).
    pub fn basic_publish<'m>(
        &self,
        exchange: &str,
        routing_key: &str,
        message: impl Into<Message<'m>>,
    ) -> Result<Option<u64>> {
        let timeout = self.connection().publish_timeout();
        self.publish_plainly(exchange, routing_key, &message.into(), timeout)
    }

    /// [`basic_publish`](Self::basic_publish) without waiting: fails at once if the outbox is full,
    /// the broker has blocked the connection, or the connection is recovering.
    ///
    /// # Errors
    /// Same as [`basic_publish`](Self::basic_publish).
    pub fn try_basic_publish<'m>(
        &self,
        exchange: &str,
        routing_key: &str,
        message: impl Into<Message<'m>>,
    ) -> Result<Option<u64>> {
        self.publish_plainly(exchange, routing_key, &message.into(), Duration::ZERO)
    }

    fn publish_plainly(
        &self,
        exchange: &str,
        routing_key: &str,
        message: &Message<'_>,
        timeout: Duration,
    ) -> Result<Option<u64>> {
        let mandatory = message.is_mandatory_or(false);
        let published = self.publish(
            exchange,
            routing_key,
            message,
            mandatory,
            None::<&Arc<Unwatched>>,
            timeout,
        );
        published.map_err(|error| Operation::about(BasicPublish::ID, exchange).failed(error))
    }

    /// Waits up to `timeout` until everything that was sent on this channel so far, including
    /// acknowledgements, is written to the socket. On a channel in confirm mode, also waits until
    /// the broker has confirmed or nacked all messages;
    /// [`wait_for_confirms`](Self::wait_for_confirms) and the [`Confirm`](crate::Confirm)s report
    /// the outcomes. In a transaction, [`tx_commit`](Self::tx_commit) reports what was lost.
    ///
    /// [`Connection::flush`](crate::Connection::flush) does this for all channels, and says what a
    /// program loses that ends without it.
    ///
    /// # Errors
    /// - A timeout. The program can wait again.
    /// - The end of the connection, or of the channel if the broker closed it.
    /// - The cause of a loss, once, if the connection was lost before messages were flushed that no
    ///   recovery publishes again. The broker may or may not have them. Acknowledgements that were
    ///   not sent are no error, as for [`Delivery::ack`](crate::Delivery::ack).
    pub fn flush(&self, timeout: Duration) -> Result<()> {
        let shared = self.connection().shared();
        let _waits = shared.waiters.begin();
        let flushed = self.state().flush(Deadline::after(timeout));
        flushed.map_err(|error| shared.outbox.explained(error).doing("flush"))
    }

    /// Publishes through the default exchange to a queue that the broker named. Uses the name that
    /// the queue has when the message is admitted.
    pub(crate) fn publish_to_queue(
        &self,
        name: &Name,
        message: &Message<'_>,
    ) -> Result<Option<u64>> {
        let deadline = Deadline::after(self.connection().publish_timeout());
        loop {
            let current = name.current();
            let check = || match name.current() == current {
                true => Ok(()),
                // The connection was lost and recovered while this call waited.
                false => Err(Error::invalid("the queue has another name")),
            };
            let method = publish_method("", current, message, message.is_mandatory_or(false));
            let confirm = None::<&Arc<Unwatched>>;
            let published = self.publish_through(check, &method, message, confirm, deadline.into());
            if published.is_ok() || name.current() == current {
                return published
                    .map_err(|error| Operation::about(BasicPublish::ID, "").failed(error));
            }
        }
    }

    /// Hands a message to the IO thread. In confirm mode, `confirm` receives its outcome. `confirm`
    /// is a reference because dropping it here would halve the speed of all other publishes.
    pub(crate) fn publish<C: ConfirmMailbox + 'static>(
        &self,
        exchange: &str,
        routing_key: &str,
        message: &Message<'_>,
        mandatory: bool,
        confirm: Option<&Arc<C>>,
        timeout: Duration,
    ) -> Result<Option<u64>> {
        let method = publish_method(exchange, routing_key, message, mandatory);
        self.publish_through(|| Ok(()), &method, message, confirm, timeout.into())
    }

    /// `check` runs when the message is admitted, and can refuse it.
    #[inline(always)]
    fn publish_through<C: ConfirmMailbox + 'static>(
        &self,
        check: impl Fn() -> Result<()>,
        method: &BasicPublish<'_>,
        message: &Message<'_>,
        confirm: Option<&Arc<C>>,
        patience: Timeout,
    ) -> Result<Option<u64>> {
        self.check_size(message)?;
        let state = self.state();
        let (properties, body) = (message.properties(), message.body());
        // Work that grows with the message is done before the outbox is locked.
        let is_confirmed = || confirm.is_some() || state.last_published().is_some();
        let fingerprint = (method.mandatory && is_confirmed())
            .then(|| Fingerprint::new(&method.exchange, &method.routing_key, body));
        let published = if body.len() > LARGE {
            self.publish_large(
                check,
                method,
                message,
                fingerprint,
                confirm,
                patience.deadline(),
            )?
        } else {
            let admission = Admission::Publish;
            let outbox = &state.shared.outbox;
            outbox.write(state.id(), admission, patience, |frames| {
                check()?;
                let properties = frames.message(method, properties, body)?;
                let fingerprint = fingerprint.map(|it| it.with_properties(properties));
                Ok(state.published(frames, fingerprint, confirm, |frames| frames.keep()))
            })?
        };
        state.shared.counters.published();
        Ok(published)
    }

    #[cold]
    fn publish_large<C: ConfirmMailbox + 'static>(
        &self,
        check: impl Fn() -> Result<()>,
        method: &BasicPublish<'_>,
        message: &Message<'_>,
        fingerprint: Option<Fingerprint>,
        confirm: Option<&Arc<C>>,
        deadline: Deadline,
    ) -> Result<Option<u64>> {
        let state = self.state();
        let outbox = &state.shared.outbox;
        let admission = Admission::PublishLarge;
        // Wait for room before encoding, or each waiting thread holds a second copy of its body.
        outbox.write(state.id(), admission, deadline, |_| check())?;
        let (properties, body) = (message.properties(), message.body());
        let large = outbox.encode_large(state.number, method, properties, body)?;
        // This copies the message, so it is done outside the lock, too.
        let kept = is_kept(confirm).then(|| large.keep());
        outbox.write(state.id(), admission, deadline, |frames| {
            check()?;
            let fingerprint = fingerprint.map(|it| it.with_properties(large.properties()));
            frames.large(large)?;
            Ok(state.published(frames, fingerprint, confirm, |_| kept.unwrap_or_default()))
        })
    }

    fn check_size(&self, message: &Message<'_>) -> Result<()> {
        let size = message.body().len() as u64;
        let limit = self.connection().max_message_size();
        if size <= limit {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the body has {size} bytes, more than max_message_size ({limit})"
        )))
    }

    /// Returns a receiver of this channel's mandatory messages that the broker returns as
    /// unroutable from now on.
    ///
    /// The receiver keeps the newest 1024 messages and at most 16 MiB, but always the newest
    /// message. All receivers of a channel share them: each message goes to one receiver. The
    /// receiver is disconnected when the channel ends.
    ///
    /// In confirm mode the broker returns a message before it confirms it, and the returned message
    /// has its [`sequence_number`](ReturnedMessage::sequence_number). Returned messages of a
    /// [`Publisher`](crate::Publisher) go to their [`Confirm`](crate::Confirm) instead.
    ///
    /// ```no_run
    /// use leveret::{Connection, Message};
    /// use std::time::Duration;
    ///
    /// let channel = Connection::open_default()?.open_channel()?;
    /// let returned = channel.returned_messages();
    /// channel.basic_publish("", "no such queue", Message::new("lost?").mandatory(true))?;
    /// if let Ok(message) = returned.recv_timeout(Duration::from_secs(1)) {
    ///     println!("{}: {}", message.reply_code(), message.reply_text());
    /// }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    #[must_use]
    pub fn returned_messages(&self) -> Receiver<ReturnedMessage> {
        self.state().returned.receiver()
    }
}

#[inline]
fn publish_method<'a>(
    exchange: &'a str,
    routing_key: &'a str,
    message: &Message<'_>,
    mandatory: bool,
) -> BasicPublish<'a> {
    BasicPublish {
        ticket: 0,
        exchange: Cow::Borrowed(exchange),
        routing_key: Cow::Borrowed(routing_key),
        mandatory,
        immediate: message.is_immediate(),
    }
}
