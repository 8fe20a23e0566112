//! Messages to publish.

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

#[cfg(feature = "json")]
use crate::error::{Error, ErrorKind, Result};
use crate::wire::expiration::Expiration;
use crate::wire::properties::Properties;
use crate::wire::short_string::ShortString;
use crate::wire::value::{FieldTable, FieldValue};

/// Header that streams filter by.
pub(crate) const STREAM_FILTER_VALUE: &str = "x-stream-filter-value";

/// The setters of [`Properties`], for a message, with the same documentation.
macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident($($value:ident: $type:ty),*);)*) => {
        impl Message<'_> {
            $(
                $(#[$doc])*
                #[must_use]
                pub fn $name(self, $($value: $type),*) -> Self {
                    self.change(|properties| properties.$name($($value),*))
                }
            )*
        }
    };
}

setters! {
    /// Sets whether a durable queue writes the message to disk before the broker confirms it
    /// (delivery mode 2) or may keep it in memory only (delivery mode 1).
    persistent(persistent: bool);
    /// Adds a header. Replaces an earlier header of the same name.
    header(name: impl Into<ShortString>, value: impl Into<FieldValue>);
    /// Sets all headers. Replaces headers that were set before.
    headers(headers: impl Into<FieldTable>);
    /// Sets the MIME type of the body, such as `application/json`.
    content_type(value: impl Into<ShortString>);
    /// Sets the encoding of the body, such as `gzip`.
    content_encoding(value: impl Into<ShortString>);
    /// Sets the delivery mode. 1: kept in memory. 2: written to disk if the queue is durable.
    delivery_mode(value: u8);
    /// Sets the message's priority in its queue. Messages of a higher priority are delivered first.
    ///
    /// | queue | priorities | without one |
    /// | --- | --- | --- |
    /// | classic with [`max_priority`] | 0 to `max_priority` | 0 |
    /// | classic without [`max_priority`] | none | |
    /// | quorum, since RabbitMQ 4.3 | 0 to 31; higher ones count as 31 | 4 |
    /// | quorum, RabbitMQ 4.0 to 4.2 | high (from 5) and low (0 to 4), delivered 2 to 1 | low |
    /// | quorum before 4.0, streams | none | |
    ///
    /// [`max_priority`]: crate::QueueDeclareOptions::max_priority
    priority(value: u8);
    /// Sets the identifier that links a reply to its request.
    correlation_id(value: impl Into<ShortString>);
    /// Sets the queue for replies to the message.
    reply_to(value: impl Into<ShortString>);
    /// Sets how long the message may stay in a queue before it expires: a [`Duration`], or a number
    /// of milliseconds.
    expiration(value: impl Into<Expiration>);
    /// Sets how long the message may stay in a queue before it expires, in whole milliseconds,
    /// rounded up (the property `expiration`). A call that would send more than 49 days fails.
    expires_after(after: Duration);
    /// Sets an identifier that the program gives the message.
    message_id(value: impl Into<ShortString>);
    /// Sets the timestamp, in seconds since 1970-01-01 00:00 UTC.
    timestamp(value: u64);
    /// Sets the timestamp from a `SystemTime`, in whole seconds.
    sent_at(time: SystemTime);
    /// Sets the kind of message, for the programs at both ends (the property `type`).
    message_type(value: impl Into<ShortString>);
    /// Sets the publishing user. RabbitMQ refuses any name but that of the connection's user.
    user_id(value: impl Into<ShortString>);
    /// Sets the name of the publishing program.
    app_id(value: impl Into<ShortString>);
    /// Sets a property that is unused and that RabbitMQ ignores.
    cluster_id(value: impl Into<ShortString>);
}

#[cfg(feature = "json")]
impl Message<'static> {
    /// Creates a message with this value as its body, in JSON. Sets the content type
    /// `application/json`.
    ///
    /// Needs this crate's feature `json`.
    ///
    /// ```
    /// use leveret::Message;
    /// use serde::Serialize;
    ///
    /// #[derive(Serialize)]
    /// struct Order {
    ///     id: u64,
    /// }
    ///
    /// let message = Message::json(&Order { id: 7 })?;
    /// assert_eq!(message.body(), br#"{"id":7}"#);
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidJson`] if JSON cannot express the value,
    /// such as a map whose keys are no strings.
    pub fn json(value: impl serde::Serialize) -> Result<Self> {
        let body = serde_json::to_vec(&value).map_err(|error| {
            let text = "it cannot express the value".to_owned();
            Error::new(ErrorKind::InvalidJson { text }).caused_by(error)
        })?;
        Ok(Self::new(body).content_type("application/json"))
    }
}

#[derive(Clone)]
enum MessageProperties<'a> {
    None,
    Borrowed(&'a Properties),
    Owned(Box<Properties>),
}

/// A message to publish: a body and optional properties.
///
/// Bytes and strings convert to a message, so `channel.basic_publish("", "tasks", "text")` works.
/// The message borrows the body if possible; publishing copies it once, into the connection's
/// outbox. To publish a message several times, pass a reference. A function of the program can
/// accept the same: `fn send<'m>(message: impl Into<Message<'m>>)`.
///
/// ```
/// use leveret::Message;
///
/// let message = Message::new(b"{}")
///     .persistent(true)
///     .content_type("application/json")
///     .header("attempt", 1);
/// assert_eq!(message.body(), b"{}");
/// ```
#[derive(Clone)]
pub struct Message<'a> {
    body: Cow<'a, [u8]>,
    properties: MessageProperties<'a>,
    /// `None`: as its publisher says.
    mandatory: Option<bool>,
    immediate: bool,
}

impl<'a> Message<'a> {
    /// Creates a message with this body and no properties.
    pub fn new(body: impl Into<Body<'a>>) -> Self {
        Self {
            body: body.into().0,
            properties: MessageProperties::None,
            mandatory: None,
            immediate: false,
        }
    }

    /// Returns the body.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Returns the properties, if any are set.
    #[must_use]
    pub fn properties(&self) -> Option<&Properties> {
        match &self.properties {
            MessageProperties::None => None,
            MessageProperties::Borrowed(properties) => Some(properties),
            MessageProperties::Owned(properties) => Some(properties),
        }
    }

    /// Sets all properties. Replaces properties that were set before.
    #[must_use]
    pub fn with_properties(mut self, properties: impl Into<Cow<'a, Properties>>) -> Self {
        self.properties = match properties.into() {
            Cow::Borrowed(properties) => MessageProperties::Borrowed(properties),
            Cow::Owned(properties) => MessageProperties::Owned(Box::new(properties)),
        };
        self
    }

    fn change(self, change: impl FnOnce(Properties) -> Properties) -> Self {
        let properties = match self.properties {
            MessageProperties::None => Properties::default(),
            MessageProperties::Borrowed(properties) => properties.clone(),
            MessageProperties::Owned(properties) => *properties,
        };
        Self {
            properties: MessageProperties::Owned(Box::new(change(properties))),
            ..self
        }
    }

    /// Sets the value that consumers of a stream can filter by (the header
    /// `x-stream-filter-value`). See
    /// [`ConsumeOptions::stream_filter`](crate::ConsumeOptions::stream_filter). In other types of
    /// queue, the value is an ordinary header.
    ///
    /// Keep the value below 4,096 bytes: for a value of 6,000 bytes, RabbitMQ 4.0 and 4.3 consider
    /// the message malformed and close the connection (541), or never confirm the message.
    ///
    /// See <https://www.rabbitmq.com/docs/stream-filtering>.
    #[must_use]
    pub fn stream_filter_value(self, value: impl Into<String>) -> Self {
        self.header(STREAM_FILTER_VALUE, value.into())
    }

    /// Copies the body and properties, so that the message can be kept or sent to another thread.
    #[must_use]
    pub fn into_owned(self) -> Message<'static> {
        Message {
            properties: match self.properties() {
                Some(properties) => MessageProperties::Owned(Box::new(properties.clone())),
                None => MessageProperties::None,
            },
            body: Cow::Owned(self.body.into_owned()),
            mandatory: self.mandatory,
            immediate: self.immediate,
        }
    }

    /// Sets whether the broker returns the message if it reaches no queue: see
    /// [`Channel::returned_messages`](crate::Channel::returned_messages). Otherwise the broker
    /// drops such a message silently. Default: false, but for a
    /// [`Publisher`](crate::Publisher) what
    /// [`PublisherOptions::mandatory`](crate::PublisherOptions::mandatory) says.
    #[must_use]
    pub fn mandatory(mut self, mandatory: bool) -> Self {
        self.mandatory = Some(mandatory);
        self
    }

    /// Sets whether the broker returns the message if no consumer can take it at once. RabbitMQ
    /// does not support this since 3.0 and closes the connection (540).
    #[must_use]
    pub fn immediate(mut self, immediate: bool) -> Self {
        self.immediate = immediate;
        self
    }

    /// Whether the message is published as mandatory, if it does not say so itself.
    pub(crate) fn is_mandatory_or(&self, default: bool) -> bool {
        self.mandatory.unwrap_or(default)
    }

    pub(crate) fn is_immediate(&self) -> bool {
        self.immediate
    }
}

/// Shows the size of the body only, because the body does not belong in logs.
impl fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("body", &format_args!("{} bytes", self.body.len()))
            .field("properties", &self.properties())
            .field("mandatory", &self.mandatory)
            .finish_non_exhaustive()
    }
}

impl PartialEq for Message<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.body == other.body
            && self.properties() == other.properties()
            && self.mandatory == other.mandatory
            && self.immediate == other.immediate
    }
}

/// The body of a message. Bytes and strings convert to it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Body<'a>(Cow<'a, [u8]>);

impl fmt::Debug for Body<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

macro_rules! bodies {
    ($([$($generics:tt)*] $type:ty => |$value:ident| $bytes:expr;)*) => {
        $(
            impl<'a, $($generics)*> From<$type> for Body<'a> {
                fn from($value: $type) -> Self {
                    Self($bytes)
                }
            }

            impl<'a, $($generics)*> From<$type> for Message<'a> {
                fn from($value: $type) -> Self {
                    Self::new($value)
                }
            }
        )*
    };
}

bodies! {
    [] &'a str => |value| Cow::Borrowed(value.as_bytes());
    [] &'a String => |value| Cow::Borrowed(value.as_bytes());
    [] String => |value| Cow::Owned(value.into_bytes());
    [] &'a [u8] => |value| Cow::Borrowed(value);
    [] &'a Vec<u8> => |value| Cow::Borrowed(value);
    [] Vec<u8> => |value| Cow::Owned(value);
    [const N: usize] &'a [u8; N] => |value| Cow::Borrowed(value);
    [const N: usize] [u8; N] => |value| Cow::Owned(value.to_vec());
    [] Cow<'a, [u8]> => |value| value;
    [] Cow<'a, str> => |value| match value {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    };
    [] Box<[u8]> => |value| Cow::Owned(value.into_vec());
    [] Box<str> => |value| Cow::Owned(value.into_string().into_bytes());
    [] Bytes => |value| Cow::Owned(value.into());
    [] &'a Bytes => |value| Cow::Borrowed(value);
}

impl<'a> From<&'a Properties> for Cow<'a, Properties> {
    fn from(properties: &'a Properties) -> Self {
        Self::Borrowed(properties)
    }
}

impl From<Properties> for Cow<'_, Properties> {
    fn from(properties: Properties) -> Self {
        Self::Owned(properties)
    }
}

impl<'a> From<&'a Message<'_>> for Message<'a> {
    fn from(message: &'a Message<'_>) -> Self {
        Self {
            body: Cow::Borrowed(&message.body),
            properties: match message.properties() {
                Some(properties) => MessageProperties::Borrowed(properties),
                None => MessageProperties::None,
            },
            mandatory: message.mandatory,
            immediate: message.immediate,
        }
    }
}
