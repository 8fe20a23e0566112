//! Publishing messages, and getting back what cannot be routed.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::Channel;
use crate::confirm::Awaited;
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::mailbox::{ConfirmMailbox, Published};
use crate::message::Message;
use crate::outbox::{Admission, Patience, LARGE};
use crate::proto::Identity;
use crate::request::Asked;
use crate::returned::ReturnedMessage;
use crate::wire::method::{BasicPublish, Encode};

impl Channel {
    /// Publishes a message. It is handed over to the connection's thread, and the call returns; whether the broker
    /// has it, only a confirm tells. In confirm mode (see [`confirm_select`](Self::confirm_select)) the result is
    /// the message's sequence number.
    ///
    /// Messages that one thread publishes on one channel keep their order; messages of several threads never mix.
    ///
    /// ```no_run
    /// use leveret::{Connection, Message};
    ///
    /// let channel = Connection::open_default()?.open_channel()?;
    /// channel.basic_publish("amq.direct", "key", b"the plain AMQP call")?;
    /// channel.basic_publish("", "tasks", Message::new("by the queue's name").persistent())?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) for a message larger than `max_message_size`, a name of more than 255 bytes, or
    /// headers that do not fit into one frame. A timeout (`publish_timeout`) if the outbox stays full, and
    /// [`ErrorKind::ConnectionBlocked`](crate::ErrorKind::ConnectionBlocked) if the broker has blocked the connection. Whatever the error, nothing
    /// of this message was sent.
    ///
    /// An exchange that does not exist is told later: the broker closes the channel (404).
    pub fn basic_publish<'m>(
        &self,
        exchange: &str,
        routing_key: &str,
        message: impl Into<Message<'m>>,
    ) -> Result<Option<u64>> {
        let timeout = self.connection().publish_timeout();
        self.publish_plainly(exchange, routing_key, &message.into(), timeout)
    }

    /// [`basic_publish`](Self::basic_publish) without waiting: if the outbox is full, or the broker has blocked the
    /// connection, it fails at once.
    ///
    /// # Errors
    /// As [`basic_publish`](Self::basic_publish).
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
        let mandatory = message.is_mandatory();
        let published = self.publish(
            exchange,
            routing_key,
            message,
            mandatory,
            None::<&Arc<Awaited>>,
            timeout,
        );
        published.map_err(|error| Asked::about(BasicPublish::ID, exchange).failed(error))
    }

    /// Hands a message over. In confirm mode, `confirm` is told what becomes of it. By reference: dropped here, it would cost
    /// all other publishes half of their speed.
    pub(crate) fn publish<C: ConfirmMailbox + 'static>(
        &self,
        exchange: &str,
        routing_key: &str,
        message: &Message<'_>,
        mandatory: bool,
        confirm: Option<&Arc<C>>,
        timeout: Duration,
    ) -> Result<Option<u64>> {
        self.check_size(message)?;
        let state = self.state();
        let outbox = &state.link.outbox;
        let method = BasicPublish {
            ticket: 0,
            exchange: Cow::Borrowed(exchange),
            routing_key: Cow::Borrowed(routing_key),
            mandatory,
            immediate: message.is_immediate(),
        };
        let (properties, body) = (message.properties(), message.body());
        // What costs more the larger the message is happens before the lock is taken.
        let identity = (mandatory && state.confirms.is_selected())
            .then(|| Identity::new(exchange, routing_key, body));
        let gate = || state.publish_gate();
        let keep = confirm.is_some_and(|it| it.is_published_again());
        let is_large = body.len() > LARGE;
        let admission = Admission::Publish { large: is_large };
        let (large, patience) = if is_large {
            // Nothing is encoded before there is room, or whoever waits would hold a copy of the body.
            let deadline = Deadline::after(timeout);
            outbox.write(state.number, admission, deadline, gate, |_| Ok(()))?;
            let large = outbox.encode_large(state.number, &method, properties, body, keep)?;
            (Some(large), Patience::from(deadline))
        } else {
            (None, Patience::from(timeout))
        };
        let published = outbox.write(state.number, admission, patience, gate, |frames| {
            let identify = |properties: &[u8]| identity.map(|it| it.with_properties(properties));
            let (identity, kept) = match large {
                Some(mut large) => {
                    let (identity, kept) = (identify(large.properties()), large.take_kept());
                    frames.large(large)?;
                    (identity, kept)
                }
                None => {
                    let (properties, kept) = frames.message(&method, properties, body, keep)?;
                    (identify(properties), kept)
                }
            };
            let Some(sequence_number) = state.confirms.next(confirm.is_some()) else {
                state.settings.used();
                return Ok(None);
            };
            frames.published(Published {
                channel: state.number,
                sequence_number,
                confirm: confirm.map(|it| Arc::<C>::clone(it) as Arc<dyn ConfirmMailbox>),
                identity,
                sent_before: false,
                kept,
            });
            Ok(Some(sequence_number))
        })?;
        state.link.counters.published();
        Ok(published)
    }

    fn check_size(&self, message: &Message<'_>) -> Result<()> {
        let size = message.body().len() as u64;
        let limit = self.connection().max_message_size();
        if size <= limit {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the body has {size} bytes, at most {limit} are allowed (max_message_size)"
        )))
    }

    /// Messages that this channel published as mandatory and that came back as unroutable, from now on. The receiver
    /// keeps the newest 1024; all receivers of a channel share them. It is disconnected when the channel ends.
    ///
    /// In confirm mode a message is returned before it is confirmed, and has its
    /// [`sequence_number`](ReturnedMessage::sequence_number). What a [`Publisher`](crate::Publisher) has published is told to its
    /// [`Confirm`](crate::Confirm) instead.
    ///
    /// ```no_run
    /// use leveret::{Connection, Message};
    /// use std::time::Duration;
    ///
    /// let channel = Connection::open_default()?.open_channel()?;
    /// let returned = channel.returned_messages();
    /// channel.basic_publish("", "no such queue", Message::new("lost?").mandatory())?;
    /// if let Ok(message) = returned.recv_timeout(Duration::from_secs(1)) {
    ///     println!("{}: {}", message.reply_code(), message.reply_text());
    /// }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn returned_messages(&self) -> Receiver<ReturnedMessage> {
        self.state().returned.receiver()
    }
}
