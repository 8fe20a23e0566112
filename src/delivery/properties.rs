//! What a message says about itself: its properties and headers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::deaths::{self, Death, DeathReason};
use super::Delivery;
use crate::error::{Error, Result};
use crate::message::{Message, STREAM_FILTER_VALUE};
use crate::session::stream_position::STREAM_OFFSET;
use crate::wire::properties::Properties;
use crate::wire::value::{FieldTable, FieldValue};

macro_rules! texts {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $(
            $(#[$doc])*
            ///
            /// `None` if the property is not set, not UTF-8, or malformed. In the first two cases,
            /// [`properties`](Self::properties) has its bytes.
            #[must_use]
            pub fn $name(&self) -> Option<&str> {
                self.known_properties()?.$name.as_ref()?.as_str()
            }
        )*
    };
}

impl Delivery {
    /// Returns the message's properties. They are decoded once, on the first call.
    ///
    /// # Errors
    /// [`ErrorKind::MalformedProperties`](crate::ErrorKind::MalformedProperties). The body can
    /// still be read.
    pub fn properties(&self) -> Result<&Properties> {
        let decode = || match self.content.properties() {
            Ok(properties) => Ok(Box::new(properties)),
            Err(error) => Err(Error::malformed_properties(&error)),
        };
        let decoded = self.properties.get_or_init(decode);
        decoded.as_deref().map_err(Error::clone)
    }

    /// The properties, unless they are malformed.
    fn known_properties(&self) -> Option<&Properties> {
        self.properties().ok()
    }

    /// Returns the value of a header.
    ///
    /// ```no_run
    /// # let channel = leveret::Connection::open_default()?.open_channel()?;
    /// # let consumer = channel.queue("tasks").consume()?;
    /// for delivery in &consumer {
    ///     let delivery = delivery?;
    ///     let tenant = delivery.header("tenant").and_then(|it| it.as_str());
    ///     println!("{tenant:?}");
    ///     delivery.ack()?;
    /// }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    #[must_use]
    pub fn header(&self, name: impl AsRef<[u8]>) -> Option<&FieldValue> {
        self.headers()?.get(name)
    }

    /// Returns all headers, if there are any.
    #[must_use]
    pub fn headers(&self) -> Option<&FieldTable> {
        self.known_properties()?.headers.as_ref()
    }

    texts! {
        /// Returns the MIME type of the body, such as `application/json`.
        content_type;
        /// Returns the encoding of the body, such as `gzip`.
        content_encoding;
        /// Returns the identifier that links a reply to its request.
        correlation_id;
        /// Returns the queue for replies to the message.
        reply_to;
        /// Returns the identifier that the publisher gave the message.
        message_id;
        /// Returns the kind of message, for the programs at both ends (the property `type`).
        message_type;
        /// Returns the publishing user, which RabbitMQ has checked.
        user_id;
        /// Returns the name of the publishing program.
        app_id;
    }

    /// Returns the message's priority, if the publisher has set one.
    #[must_use]
    pub fn priority(&self) -> Option<u8> {
        self.known_properties()?.priority
    }

    /// Returns the delivery mode. 1: kept in memory. 2: written to disk if the queue is durable.
    #[must_use]
    pub fn delivery_mode(&self) -> Option<u8> {
        self.known_properties()?.delivery_mode
    }

    /// Returns how long the message could stay in its queue, if its publisher has set that.
    #[must_use]
    pub fn expiration(&self) -> Option<Duration> {
        self.known_properties()?.expiration.as_ref()?.as_duration()
    }

    /// Returns the time at which the publisher says that it sent the message (the property
    /// `timestamp`), in whole seconds.
    #[must_use]
    pub fn sent_at(&self) -> Option<SystemTime> {
        let seconds = self.known_properties()?.timestamp?;
        UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    }

    /// Returns why and how often the message was dead-lettered (the header `x-death`): one entry
    /// for each queue and reason, the most recent first. Empty if it never was.
    ///
    /// See <https://www.rabbitmq.com/docs/dlx#effects>.
    #[must_use]
    pub fn deaths(&self) -> Vec<Death> {
        let entries = self.header(deaths::HEADER).and_then(|it| it.as_array());
        let entries = entries.unwrap_or_default().iter();
        entries.filter_map(Death::read).collect()
    }

    /// Returns how many times programs have received the message, at least: this delivery, and the
    /// earlier ones that the broker reports.
    ///
    /// The broker reports earlier deliveries with [`acquired_count`](Self::acquired_count) and
    /// [`delivery_count`](Self::delivery_count), or only with [`redelivered`](Self::redelivered),
    /// and earlier rejections before a dead-lettering with [`deaths`](Self::deaths). The highest
    /// number counts, since they can report the same delivery. So a program that rejects failed
    /// messages into a queue from which they come back later can use this count to give up. A
    /// message that a program publishes again begins anew since RabbitMQ 4.0, but the copies that
    /// [`Workers`](crate::Workers) publish count on (see [`Retry`](crate::Retry)).
    #[must_use]
    pub fn attempts(&self) -> u64 {
        let counted = self.acquired_count().max(self.delivery_count());
        let here = counted.unwrap_or(0).max(self.redelivered.into());
        let ended_a_delivery = |it: &Death| {
            matches!(
                it.reason,
                DeathReason::Rejected | DeathReason::DeliveryLimit
            )
        };
        let deaths = self.deaths().into_iter().filter(ended_a_delivery);
        let rejections = deaths.fold(0, |sum: u64, it| sum.saturating_add(it.count));
        let here = here.saturating_add(self.retry_attempts());
        here.max(rejections).saturating_add(1)
    }

    /// Returns the message's count towards the delivery limit of a quorum queue
    /// (`x-delivery-count`): the number of earlier deliveries, or since RabbitMQ 4.3 the number of
    /// failed deliveries.
    ///
    /// `None` if nothing was counted yet (`Some(0)` before RabbitMQ 4.0). Since 4.3, a message that
    /// is dead-lettered keeps its count in the next quorum queue. Other types of queue do not
    /// count, and leave this header as the publisher set it.
    ///
    /// [`docs::rabbitmq`](crate::docs::rabbitmq#what-counts-towards-the-delivery-limit) says what
    /// counts as a failure. See also
    /// <https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling>.
    #[must_use]
    pub fn delivery_count(&self) -> Option<u64> {
        self.header("x-delivery-count")?.as_u64()
    }

    /// Returns how often a quorum queue has delivered the message before, whatever the outcome
    /// (`x-acquired-count`).
    ///
    /// Only RabbitMQ 4.3 and later send this count, from the second delivery on. It begins anew
    /// when the message is dead-lettered, and is then sent with the first delivery, too. It
    /// includes what [`delivery_count`](Self::delivery_count) leaves out: a [`nack`](Self::nack), a
    /// late acknowledgement, and messages that a consumer requeued unread. A program that requeues
    /// messages with `nack` can base its own limit on this count. Other types of queue leave this
    /// header as the publisher set it.
    #[must_use]
    pub fn acquired_count(&self) -> Option<u64> {
        self.header("x-acquired-count")?.as_u64()
    }

    /// Returns the message's offset in its stream, or `None` if the message is not from a stream
    /// (see [`Delivery`]). Offsets start at 0 and increase, with gaps.
    ///
    /// To resume after this message, consume from
    /// [`StreamOffset::Offset`](crate::StreamOffset::Offset) with this number plus one.
    #[must_use]
    pub fn stream_offset(&self) -> Option<u64> {
        let offset = self.header(STREAM_OFFSET)?;
        offset.as_u64().filter(|_| self.is_from_stream())
    }

    /// Returns the message's filter value, if it has one: see
    /// [`ConsumeOptions::stream_filter`](crate::ConsumeOptions::stream_filter).
    #[must_use]
    pub fn stream_filter_value(&self) -> Option<&str> {
        self.header(STREAM_FILTER_VALUE)?.as_str()
    }

    /// Reads the body as JSON, whatever its content type.
    ///
    /// Needs this crate's feature `json`.
    ///
    /// ```no_run
    /// use leveret::Connection;
    /// use serde::Deserialize;
    ///
    /// #[derive(Deserialize)]
    /// struct Order<'a> {
    ///     id: u64,
    ///     #[serde(borrow)]
    ///     customer: &'a str,
    /// }
    ///
    /// let channel = Connection::open_default()?.open_channel()?;
    /// for delivery in channel.queue("orders").consume()? {
    ///     let delivery = delivery?;
    ///     let order: Order = delivery.json()?;
    ///     println!("{} by {}", order.id, order.customer);
    ///     delivery.ack()?;
    /// }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidJson`](crate::ErrorKind::InvalidJson) if the body is no JSON, or not
    /// that of a `T`.
    #[cfg(feature = "json")]
    pub fn json<'a, T: serde::Deserialize<'a>>(&'a self) -> Result<T> {
        serde_json::from_slice(self.body()).map_err(|error| {
            let doing = format!("reading the body of delivery {}", self.delivery_tag);
            Error::invalid_json(error).doing(doing)
        })
    }

    /// Returns a message with this body and these properties, including the headers that the broker
    /// has added, to publish it again. Nothing is copied.
    ///
    /// A `user_id` must be the connection's own user, or RabbitMQ closes the channel (406).
    ///
    /// ```no_run
    /// # let channel = leveret::Connection::open_default()?.open_channel()?;
    /// # let delivery = channel.queue("tasks").get()?.unwrap();
    /// let publisher = channel.publisher()?;
    /// let copy = delivery.to_message()?.header("copied", true);
    /// publisher.publish("archive", delivery.routing_key(), copy)?.wait()?;
    /// delivery.ack()?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// Same as [`properties`](Self::properties).
    pub fn to_message(&self) -> Result<Message<'_>> {
        Ok(Message::new(self.body()).with_properties(self.properties()?))
    }
}
