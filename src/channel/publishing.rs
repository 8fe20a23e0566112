//! Publishing messages, and getting back what cannot be routed.

use std::borrow::Cow;

use crossbeam_channel::Receiver;

use super::Channel;
use crate::error::{Error, Result};
use crate::message::{Message, ReturnedMessage};
use crate::outbox::{Admission, LARGE};
use crate::request::Asked;
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
    /// [`ErrorKind::ConnectionBlocked`](crate::ErrorKind::ConnectionBlocked) if the broker has blocked the connection. In all these cases nothing was sent.
    ///
    /// An exchange that does not exist is told later: the broker closes the channel (404).
    pub fn basic_publish<'m>(
        &self,
        exchange: &str,
        routing_key: &str,
        message: impl Into<Message<'m>>,
    ) -> Result<Option<u64>> {
        let message = message.into();
        let published = self.publish(exchange, routing_key, &message);
        published.map_err(|error| Asked::about(BasicPublish::ID, exchange).failed(error))
    }

    fn publish(
        &self,
        exchange: &str,
        routing_key: &str,
        message: &Message<'_>,
    ) -> Result<Option<u64>> {
        let size = message.body().len() as u64;
        let limit = self.connection().max_message_size();
        if size > limit {
            return Err(Error::invalid(format!(
                "the body has {size} bytes, at most {limit} are allowed (max_message_size)"
            )));
        }
        let state = self.state();
        let method = BasicPublish {
            ticket: 0,
            exchange: Cow::Borrowed(exchange),
            routing_key: Cow::Borrowed(routing_key),
            mandatory: message.is_mandatory(),
            immediate: message.is_immediate(),
        };
        let outbox = &state.link.outbox;
        let (properties, body) = (message.properties(), message.body());
        let large = if body.len() > LARGE {
            Some(outbox.encode_large(state.number, &method, properties, body)?)
        } else {
            None
        };
        outbox.write(
            state.number,
            Admission::Publish {
                large: large.is_some(),
            },
            self.connection().publish_timeout(),
            || state.publish_gate(),
            |frames| {
                match large {
                    Some(large) => frames.large(large),
                    None => {
                        frames.method(&method)?;
                        frames.content(properties, body)?;
                    }
                }
                Ok(state.confirms.next())
            },
        )
    }

    /// Messages that this channel published as mandatory and that came back as unroutable, from now on. The receiver
    /// keeps the newest 1024; all receivers of a channel share them. It is disconnected when the channel ends.
    ///
    /// In confirm mode a message is returned before it is confirmed.
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
        self.state().returned_messages()
    }
}
