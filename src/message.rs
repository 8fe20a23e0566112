//! Messages on their way to the broker.

use std::borrow::Cow;
use std::fmt;
use std::time::SystemTime;

use crate::wire::properties::Properties;
use crate::wire::value::{FieldTable, FieldValue};

/// The header by which streams filter.
pub(crate) const STREAM_FILTER_VALUE: &str = "x-stream-filter-value";

/// The setters of [`Properties`], for the message.
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
    /// Delivery mode 2: a durable queue writes the message to disk.
    persistent();
    /// One more header.
    header(name: impl Into<String>, value: impl Into<FieldValue>);
    /// All headers at once.
    headers(headers: FieldTable);
    /// The MIME type of the body.
    content_type(value: impl Into<String>);
    /// How the body is encoded on top of its type.
    content_encoding(value: impl Into<String>);
    /// 1: kept in memory. 2: written to disk if the queue is durable.
    delivery_mode(value: u8);
    /// The priority in its queue; messages of a higher priority are delivered first.
    ///
    /// | queue | priorities | without one |
    /// | --- | --- | --- |
    /// | classic | 0 to its [`max_priority`](crate::QueueDeclareOptions::max_priority); none without that | 0 |
    /// | quorum, since RabbitMQ 4.3 | 0 to 31, higher ones count as 31 | 4 |
    /// | quorum, RabbitMQ 4.0 to 4.2 | two: 0 to 4, and from 5 on; two of the higher for one of the lower | the lower |
    /// | quorum before 4.0, streams | none | |
    priority(value: u8);
    /// Which request this message answers.
    correlation_id(value: impl Into<String>);
    /// The queue that an answer shall go to.
    reply_to(value: impl Into<String>);
    /// After how many milliseconds in a queue the message expires, as a text of digits.
    expiration(value: impl Into<String>);
    /// A name for this message.
    message_id(value: impl Into<String>);
    /// Seconds since 1970-01-01 00:00 UTC.
    timestamp(value: u64);
    /// The timestamp of that time, in whole seconds.
    sent_at(time: SystemTime);
    /// What kind of message this is, to the programs at both ends.
    message_type(value: impl Into<String>);
    /// The user who publishes; RabbitMQ refuses any other name than the connection's user.
    user_id(value: impl Into<String>);
    /// The program that publishes.
    app_id(value: impl Into<String>);
}

#[derive(Clone)]
enum MessageProperties<'a> {
    None,
    Borrowed(&'a Properties),
    Owned(Box<Properties>),
}

/// A message to publish: a body, and properties if there are any.
///
/// Made of bytes or a text by itself, so that `channel.basic_publish("", "tasks", "text")` is possible. The body is
/// borrowed if it can be; publishing copies it once, into the connection's outbox. A message that is published again
/// and again can be given by reference.
///
/// ```
/// use leveret::Message;
///
/// let message = Message::new(b"{}").persistent().content_type("application/json").header("attempt", 1);
/// assert_eq!(message.body(), b"{}");
/// ```
#[derive(Clone)]
pub struct Message<'a> {
    body: Cow<'a, [u8]>,
    properties: MessageProperties<'a>,
    mandatory: bool,
    immediate: bool,
}

impl<'a> Message<'a> {
    /// A message of this body, without properties.
    pub fn new(body: impl Into<Body<'a>>) -> Self {
        Self {
            body: body.into().0,
            properties: MessageProperties::None,
            mandatory: false,
            immediate: false,
        }
    }

    /// The body's bytes.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The properties, if any were set.
    pub fn properties(&self) -> Option<&Properties> {
        match &self.properties {
            MessageProperties::None => None,
            MessageProperties::Borrowed(properties) => Some(properties),
            MessageProperties::Owned(properties) => Some(properties),
        }
    }

    /// These properties instead of all that were set before.
    #[must_use]
    pub fn with_properties(mut self, properties: Properties) -> Self {
        self.properties = MessageProperties::Owned(Box::new(properties));
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

    /// The value by which consumers of a stream can filter (the header `x-stream-filter-value`). See
    /// [`ConsumeOptions::stream_filter`](crate::ConsumeOptions::stream_filter). Other queues keep it
    /// as a header.
    ///
    /// Keep it below 4,096 bytes: RabbitMQ 4.0 and 4.3 take a message with one of 6,000 bytes for
    /// broken and close the connection (541), or never confirm it.
    ///
    /// See <https://www.rabbitmq.com/docs/stream-filtering>.
    #[must_use]
    pub fn stream_filter_value(self, value: impl Into<String>) -> Self {
        self.header(STREAM_FILTER_VALUE, value.into())
    }

    /// This message with a body and properties of its own, to be kept or sent to another thread.
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

    /// The broker returns the message if no queue is bound for it; see
    /// [`Channel::returned_messages`](crate::Channel::returned_messages). Otherwise it drops it without a word.
    #[must_use]
    pub fn mandatory(mut self) -> Self {
        self.mandatory = true;
        self
    }

    /// The broker returns the message if no consumer can take it at once. RabbitMQ has not implemented it since 3.0
    /// and closes the connection (540).
    #[must_use]
    pub fn immediate(mut self) -> Self {
        self.immediate = true;
        self
    }

    pub(crate) fn is_mandatory(&self) -> bool {
        self.mandatory
    }

    pub(crate) fn is_immediate(&self) -> bool {
        self.immediate
    }
}

/// The size of the body, not the body: messages carry what is none of a log's business.
impl fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("body", &format_args!("{} bytes", self.body.len()))
            .field("properties", &self.properties())
            .finish_non_exhaustive()
    }
}

/// What can be a message's body.
#[derive(Clone)]
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
    [] Cow<'a, [u8]> => |value| value;
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
