//! Reply codes, and the reasons of closes.

use std::fmt;

use super::one_line::Escaping;
use crate::wire::method::MethodId;

/// An AMQP reply code: why the broker closed a channel or a connection, or returned a message.
///
/// A broker can send codes that have no constant here.
///
/// ```
/// use leveret::ReplyCode;
///
/// assert_eq!(ReplyCode::NOT_FOUND.to_string(), "404 NOT_FOUND");
/// ```
///
/// See [the specification](https://www.rabbitmq.com/resources/specs/amqp-xml-doc0-9-1.pdf), section
/// 1.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReplyCode(pub(crate) u16);

macro_rules! reply_codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)*) => {
        impl ReplyCode {
            $($(#[$doc])* pub const $name: Self = Self($code);)*

            /// Returns the specification's name of the code, as RabbitMQ writes it.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($code => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

reply_codes! {
    /// Not an error: a clean close.
    SUCCESS = 200;
    /// The message is larger than the peer accepts.
    CONTENT_TOO_LARGE = 311;
    /// A mandatory message reached no queue.
    NO_ROUTE = 312;
    /// No consumer was ready for an immediate message.
    NO_CONSUMERS = 313;
    /// An operator closed the connection.
    CONNECTION_FORCED = 320;
    /// The virtual host does not exist.
    INVALID_PATH = 402;
    /// The user lacks a permission.
    ACCESS_REFUSED = 403;
    /// The queue or exchange does not exist.
    NOT_FOUND = 404;
    /// The queue is exclusive to another connection.
    RESOURCE_LOCKED = 405;
    /// A precondition failed: different arguments, an unknown delivery tag, a queue in use or not
    /// empty.
    PRECONDITION_FAILED = 406;
    /// A frame was malformed.
    FRAME_ERROR = 501;
    /// A field had an illegal value.
    SYNTAX_ERROR = 502;
    /// The method is not valid in this state.
    COMMAND_INVALID = 503;
    /// The channel is not open.
    CHANNEL_ERROR = 504;
    /// The protocol expects a different frame here.
    UNEXPECTED_FRAME = 505;
    /// The broker is out of memory, disk space or another resource.
    RESOURCE_ERROR = 506;
    /// The broker does not allow the request.
    NOT_ALLOWED = 530;
    /// The broker does not implement the request.
    NOT_IMPLEMENTED = 540;
    /// The broker has an internal error.
    INTERNAL_ERROR = 541;
}

impl From<u16> for ReplyCode {
    fn from(code: u16) -> Self {
        Self(code)
    }
}

impl PartialEq<u16> for ReplyCode {
    fn eq(&self, code: &u16) -> bool {
        self.0 == *code
    }
}

impl From<ReplyCode> for u16 {
    fn from(code: ReplyCode) -> Self {
        code.0
    }
}

impl fmt::Display for ReplyCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{} {name}", self.0),
            None => write!(f, "{}", self.0),
        }
    }
}

/// Which side closed a channel or a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ClosedBy {
    /// This program, by calling `close` or by dropping the last handle.
    Program,
    /// The broker.
    Broker,
}

impl fmt::Display for ClosedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Program => "this program",
            Self::Broker => "the broker",
        })
    }
}

/// Why a connection or channel was closed (`connection.close` or `channel.close`).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloseReason {
    /// The side that closed it.
    pub by: ClosedBy,
    /// Reply code.
    pub code: ReplyCode,
    /// Reply text.
    pub text: String,
    /// The method that caused the close, such as `queue.declare`, if a method did.
    pub method: Option<&'static str>,
}

impl CloseReason {
    pub(crate) fn broker(code: u16, text: &str, class: u16, method: u16) -> Self {
        Self {
            by: ClosedBy::Broker,
            code: ReplyCode(code),
            text: text.to_owned(),
            method: MethodId { class, method }.name(),
        }
    }

    pub(crate) fn program(text: &str) -> Self {
        Self {
            by: ClosedBy::Program,
            code: ReplyCode::SUCCESS,
            text: text.to_owned(),
            method: None,
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.describe(&mut Escaping(f))
    }
}

impl CloseReason {
    fn describe(&self, f: &mut dyn fmt::Write) -> fmt::Result {
        write!(f, "closed by {}", self.by)?;
        if self.by == ClosedBy::Program && self.code == ReplyCode::SUCCESS {
            return Ok(());
        }
        if let Some(method) = self.method {
            write!(f, " because of {method}")?;
        }
        // RabbitMQ's texts begin with the code's name.
        match self.code.name() {
            Some(name) if self.text.starts_with(name) => {
                write!(f, ": {} {}", self.code.0, self.text)
            }
            _ => write!(f, ": {} - {}", self.code, self.text),
        }
    }
}
