//! Messages on their way to the broker, and those that came back.

use std::borrow::Cow;
use std::fmt;

use crate::error::{Error, ReplyCode, Result};
use crate::proto::{Content, Returned};
use crate::wire::properties::Properties;
use crate::wire::value::FieldValue;

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

    /// These properties instead of those set before.
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

    /// Delivery mode 2: a durable queue writes the message to disk.
    #[must_use]
    pub fn persistent(self) -> Self {
        self.change(Properties::persistent)
    }

    /// The MIME type of the body.
    #[must_use]
    pub fn content_type(self, value: impl Into<String>) -> Self {
        self.change(|properties| properties.content_type(value))
    }

    /// Which request this message answers.
    #[must_use]
    pub fn correlation_id(self, value: impl Into<String>) -> Self {
        self.change(|properties| properties.correlation_id(value))
    }

    /// The queue that an answer shall go to.
    #[must_use]
    pub fn reply_to(self, value: impl Into<String>) -> Self {
        self.change(|properties| properties.reply_to(value))
    }

    /// A name for this message.
    #[must_use]
    pub fn message_id(self, value: impl Into<String>) -> Self {
        self.change(|properties| properties.message_id(value))
    }

    /// One more header.
    #[must_use]
    pub fn header(self, name: impl Into<String>, value: impl Into<FieldValue>) -> Self {
        self.change(|properties| properties.header(name, value))
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

/// A message that the broker could not route and gave back.
#[derive(Clone)]
pub struct ReturnedMessage {
    code: ReplyCode,
    text: String,
    content: Content,
}

impl ReturnedMessage {
    pub(crate) fn new(returned: Returned) -> Self {
        let Returned {
            code,
            text,
            content,
        } = returned;
        Self {
            code,
            text,
            content,
        }
    }

    /// Why: [`ReplyCode::NO_ROUTE`] for a mandatory message.
    pub fn reply_code(&self) -> ReplyCode {
        self.code
    }

    /// Why, in the broker's words.
    pub fn reply_text(&self) -> &str {
        &self.text
    }

    /// The exchange that it was published to.
    pub fn exchange(&self) -> &str {
        self.content.exchange()
    }

    /// The routing key that it was published with.
    pub fn routing_key(&self) -> &str {
        self.content.routing_key()
    }

    /// The properties, as they were published.
    ///
    /// # Errors
    /// If the bytes of the properties make no sense.
    pub fn properties(&self) -> Result<Properties> {
        read_properties(&self.content)
    }

    /// The body, as it was published.
    pub fn body(&self) -> &[u8] {
        self.content.body()
    }

    /// The body as a vector, without a new allocation.
    pub fn into_body(self) -> Vec<u8> {
        self.content.into_body()
    }
}

impl fmt::Debug for ReturnedMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReturnedMessage")
            .field("reply_code", &self.code)
            .field("reply_text", &self.text)
            .field("exchange", &self.exchange())
            .field("routing_key", &self.routing_key())
            .field("body", &format_args!("{} bytes", self.body().len()))
            .finish_non_exhaustive()
    }
}

pub(crate) fn read_properties(content: &Content) -> Result<Properties> {
    content.properties().map_err(|error| {
        Error::invalid(format!("the properties of the message: {error}")).caused_by(error)
    })
}
