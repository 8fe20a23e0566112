//! What can go wrong, and who says so.

pub(crate) mod returned;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::wire::method::MethodId;
use returned::ReturnedMessage;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An AMQP reply code: why a channel or a connection was closed, or a message returned.
///
/// Codes without a constant are possible, since a broker may send any.
///
/// ```
/// use leveret::ReplyCode;
///
/// assert_eq!(ReplyCode::NOT_FOUND.to_string(), "404 NOT_FOUND");
/// ```
///
/// See the constants in [the specification](https://www.rabbitmq.com/resources/specs/amqp-xml-doc0-9-1.pdf), 1.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReplyCode(pub u16);

macro_rules! reply_codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)*) => {
        impl ReplyCode {
            $($(#[$doc])* pub const $name: Self = Self($code);)*

            /// The specification's name of the code, as RabbitMQ writes it.
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
    /// Not an error: a close in good order.
    SUCCESS = 200;
    /// The message is larger than the peer takes.
    CONTENT_TOO_LARGE = 311;
    /// No queue is bound for the routing key of a mandatory message.
    NO_ROUTE = 312;
    /// No consumer could take an immediate message.
    NO_CONSUMERS = 313;
    /// An operator closed the connection.
    CONNECTION_FORCED = 320;
    /// The virtual host does not exist.
    INVALID_PATH = 402;
    /// The user may not do that.
    ACCESS_REFUSED = 403;
    /// There is no such queue or exchange.
    NOT_FOUND = 404;
    /// The queue is exclusive to another connection.
    RESOURCE_LOCKED = 405;
    /// Something is not as the request needs it: other arguments, unknown delivery tag, in use, not empty.
    PRECONDITION_FAILED = 406;
    /// A frame was malformed.
    FRAME_ERROR = 501;
    /// A field had an illegal value.
    SYNTAX_ERROR = 502;
    /// The method is not possible in this state.
    COMMAND_INVALID = 503;
    /// The channel is not open.
    CHANNEL_ERROR = 504;
    /// A frame came where the protocol expects another.
    UNEXPECTED_FRAME = 505;
    /// The broker lacks memory, disk or another resource.
    RESOURCE_ERROR = 506;
    /// The broker forbids it.
    NOT_ALLOWED = 530;
    /// The broker does not implement it.
    NOT_IMPLEMENTED = 540;
    /// The broker has a fault.
    INTERNAL_ERROR = 541;
}

impl fmt::Display for ReplyCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{} {name}", self.0),
            None => write!(f, "{}", self.0),
        }
    }
}

/// Who closed a channel or a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ClosedBy {
    /// This program, by `close` or by dropping the last handle.
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

/// The words of a `connection.close` or `channel.close`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloseReason {
    /// Who closed.
    pub by: ClosedBy,
    /// Why, as a number.
    pub code: ReplyCode,
    /// Why, in words.
    pub text: String,
    /// Which method caused it, such as `queue.declare`, if it was one.
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

/// Writes text in one line. A broker's text, and each name in it, can contain anything: line breaks that forge log lines,
/// sequences that steer a terminal, marks that turn the direction of what follows.
struct Escaping<'a, 'f>(&'a mut fmt::Formatter<'f>);

impl fmt::Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let is_escaped = |it: char| {
            let is_direction = matches!(it, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            it.is_control() || is_direction || matches!(it, '\u{2028}' | '\u{2029}')
        };
        let mut escaped = text.matches(is_escaped);
        for piece in text.split(is_escaped) {
            self.0.write_str(piece)?;
            if let Some(escaped) = escaped.next() {
                write!(self.0, "{}", escaped.escape_default())?;
            }
        }
        Ok(())
    }
}

/// A text of others, in one line for the log.
pub(crate) struct OneLine<T>(pub(crate) T);

impl<T: fmt::Display> fmt::Display for OneLine<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Write::write_fmt(&mut Escaping(f), format_args!("{}", self.0))
    }
}

/// What kind of failure an [`Error`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The text is no AMQP URI, for the reason given.
    InvalidUri(String),
    /// A value that cannot be sent, or an option that makes no sense. Nothing was sent.
    InvalidArgument(String),
    /// No connection to this address: the name is unknown, nobody listens, the network says no.
    ConnectFailed {
        /// Where to.
        address: String,
        /// What the system says, as a kind.
        kind: io::ErrorKind,
        /// What the system says, in words.
        text: String,
    },
    /// A broker of the feature `broker` cannot listen at this address: the port is in use, for example.
    ListenFailed {
        /// The address.
        address: String,
        /// What the system says, as a kind.
        kind: io::ErrorKind,
        /// What the system says, in words.
        text: String,
    },
    /// TLS could not be agreed on, or failed: the certificate is of an unknown authority, expired, or for another host;
    /// the broker wants a client certificate; the server speaks no TLS at this port.
    TlsFailed {
        /// What is wrong, in the words of the system's TLS.
        text: String,
    },
    /// None of several endpoints could be used.
    EndpointsFailed(Vec<FailedEndpoint>),
    /// The server speaks another version of AMQP, or no AMQP at all.
    ProtocolVersionMismatch {
        /// What it speaks, such as `AMQP 1-0-0`.
        server: String,
    },
    /// The server does not offer the login mechanism.
    MechanismNotOffered {
        /// Asked for.
        mechanism: String,
        /// Those it offers.
        offered: String,
    },
    /// The broker refused this user name and password.
    LoginRefused {
        /// The user.
        user: String,
        /// The mechanism, such as PLAIN.
        mechanism: String,
        /// What the broker said; nothing, if it just closed the socket.
        text: String,
    },
    /// There is no such virtual host, or this user may not use it. A connection beyond a limit of the virtual host or the
    /// user is [`ConnectionClosed`](Self::ConnectionClosed), with the broker's words.
    VhostRefused {
        /// The virtual host.
        vhost: String,
        /// What the broker said.
        reason: CloseReason,
    },
    /// The connection was closed in good order, or by the broker with a reason.
    ConnectionClosed(CloseReason),
    /// The channel was closed. Other channels of the connection are not concerned.
    ChannelClosed {
        /// The channel's number.
        channel: u16,
        /// By whom and why.
        reason: CloseReason,
    },
    /// The socket ended without a word of AMQP: the broker was killed, or the network broke.
    SocketClosed {
        /// What the system says; `UnexpectedEof` if the peer just closed, `ConnectionAborted` if a TLS connection ended
        /// without TLS's goodbye (`close_notify`): cut on the way, or by the peer's death.
        kind: io::ErrorKind,
    },
    /// Nothing was heard from the broker for two heartbeat intervals.
    HeartbeatMissed {
        /// The interval that was agreed.
        interval: Duration,
    },
    /// The peer broke the protocol; the connection was closed with this code.
    ProtocolViolation {
        /// The code that was sent to the peer.
        code: ReplyCode,
        /// What the peer did.
        text: String,
    },
    /// The outbox stayed full, because the socket takes no more bytes: the broker does not read. Nothing was sent.
    OutboxFull {
        /// How long was waited.
        after: Duration,
    },
    /// No answer within the time given. The answer may still come; it will be dropped. If the broker has blocked the
    /// connection, the error's text says so: a broker reads nothing from a connection that it has blocked.
    TimedOut {
        /// How long was waited.
        after: Duration,
    },
    /// The broker has blocked the connection (`connection.blocked`): it lacks memory or disk.
    ConnectionBlocked {
        /// The broker's reason.
        reason: String,
        /// How long was waited.
        after: Duration,
    },
    /// The broker has asked to stop publishing on the channel (`channel.flow`). RabbitMQ never does.
    FlowStopped {
        /// How long was waited.
        after: Duration,
    },
    /// All channel numbers are in use.
    ChannelsExhausted {
        /// The highest channel number that was agreed.
        channel_max: u16,
    },
    /// The consumer was cancelled. The broker does so when its queue was deleted, or when the node that held the queue is
    /// gone. Since RabbitMQ 4.3 it also does so when an acknowledgement for a quorum queue came too late
    /// (`consumer_timeout`, 30 minutes; before, that closed the channel: 406), and when the user lost the permission to
    /// read the queue and the connection got a [new secret](crate::Connection::update_secret).
    ConsumerCancelled {
        /// The consumer's tag.
        consumer_tag: String,
        /// Who cancelled it.
        by: ClosedBy,
    },
    /// The connection was lost and is not back yet. Nothing was sent.
    Recovering {
        /// Why it was lost.
        cause: Box<Self>,
        /// How long was waited.
        after: Duration,
    },
    /// The connection was lost, and did not come back within the limits of its
    /// [`RecoveryOptions`](crate::RecoveryOptions), or the login was refused and these options end the recovery then.
    RecoveryGivenUp {
        /// Why it was lost.
        cause: Box<Self>,
        /// How many attempts were made to recover it.
        attempts: u32,
        /// How long it was away.
        after: Duration,
        /// Why the last attempt failed.
        last: Box<Self>,
    },
    /// The window of a publisher stayed full: the broker does not answer for what was published before. Nothing was
    /// sent.
    WindowFull {
        /// How many messages are unconfirmed.
        unconfirmed: usize,
        /// How long was waited.
        after: Duration,
    },
    /// The broker refused messages (`basic.nack`).
    Nacked {
        /// The sequence numbers of the refused messages.
        sequence_numbers: Vec<u64>,
    },
    /// The broker could not route the message, and gave it back.
    Returned(ReturnedMessage),
    /// Messages failed, each with its own error.
    PublishesFailed {
        /// In the order in which they were published.
        failed: Vec<FailedPublish>,
        /// How many more there were before them, too many to be kept.
        forgotten: u64,
    },
    /// The delivery was acknowledged or rejected before.
    AlreadySettled {
        /// Its delivery tag.
        delivery_tag: u64,
    },
    /// Code of the program that runs on a thread of the connection has panicked, such as a
    /// [`SaslMechanism`](crate::SaslMechanism), a filter of the [`RecoveryOptions`](crate::RecoveryOptions),
    /// [`Metrics`](crate::Metrics) or the logger; or this crate has a fault. The connection has ended.
    Panicked {
        /// The thread: `IO thread` or `recovery thread`.
        thread: &'static str,
        /// What the panic says.
        message: String,
    },
    /// A message came with properties that cannot be read. Its body can.
    MalformedProperties {
        /// What is wrong with them.
        text: String,
    },
    /// The connection or a channel was lost before the broker had the acknowledgements of these messages, which
    /// [`Workers`](crate::Workers) have handled. The broker will deliver the messages again.
    AcksLost {
        /// Messages whose acknowledgement was not sent.
        not_sent: u64,
        /// Messages, at most, whose acknowledgement was sent, but may not have reached the broker. It
        /// delivers these again only if that is so.
        unconfirmed: u64,
    },
    /// The program's function for [`credentials`](crate::ConnectionOptions::credentials) has none.
    CredentialsUnavailable {
        /// What the function says.
        text: String,
    },
    /// A thread of [`Workers`](crate::Workers) has panicked outside of its handler: in the program's logger or
    /// [`Metrics`](crate::Metrics), or because this crate has a fault.
    WorkerPanicked {
        /// What the panic says.
        message: String,
    },
    /// The system does not start another thread.
    ThreadNotStarted {
        /// What the system says.
        kind: io::ErrorKind,
    },
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.describe(&mut Escaping(f))
    }
}

impl ErrorKind {
    fn describe(&self, f: &mut dyn fmt::Write) -> fmt::Result {
        match self {
            Self::InvalidUri(text) => write!(f, "invalid AMQP URI: {text}"),
            Self::InvalidArgument(text) => f.write_str(text),
            Self::ConnectFailed { address, text, .. } => {
                write!(f, "cannot connect to {address}: {text}")
            }
            Self::ListenFailed { address, text, .. } => {
                write!(f, "cannot listen at {address}: {text}")
            }
            Self::TlsFailed { text } => write!(f, "TLS failed: {text}"),
            Self::EndpointsFailed(failed) => {
                f.write_str("no endpoint could be used")?;
                for (at, FailedEndpoint { endpoint, error }) in failed.iter().enumerate() {
                    let separator = if at == 0 { ": " } else { "; " };
                    write!(f, "{separator}{endpoint}: {error}")?;
                }
                Ok(())
            }
            Self::ProtocolVersionMismatch { server } => {
                write!(
                    f,
                    "the server does not speak AMQP 0-9-1, but {server}"
                )
            }
            Self::MechanismNotOffered { mechanism, offered } => write!(
                f,
                "the server does not offer the login mechanism {mechanism}, but {offered}"
            ),
            Self::LoginRefused {
                user,
                mechanism,
                text,
            } => {
                write!(f, "login of user {user:?} with {mechanism} was refused")?;
                match text.as_str() {
                    "" => f.write_str(": the server closed the socket after the credentials"),
                    text => write!(f, ": {text}"),
                }
            }
            Self::VhostRefused { vhost, reason } => {
                write!(f, "virtual host {vhost:?} was refused: {reason}")?;
                if vhost.is_empty() {
                    f.write_str(" (a URI that ends in a slash names the virtual host of no name)")?;
                }
                Ok(())
            }
            Self::ConnectionClosed(reason) => write!(f, "the connection was {reason}"),
            Self::ChannelClosed { channel, reason } => write!(f, "channel {channel} was {reason}"),
            Self::SocketClosed { kind } => write!(f, "the connection was lost: {kind}"),
            Self::HeartbeatMissed { interval } => write!(
                f,
                "the connection was lost: nothing was heard from the broker for two heartbeat intervals of {interval:?}"
            ),
            Self::ProtocolViolation { code, text } => {
                write!(
                    f,
                    "the connection was closed because the peer broke the protocol: {code} - {text}"
                )
            }
            Self::OutboxFull { after } => {
                let text = "nothing was sent, since the broker does not read and the outbox is full";
                write_given_up(f, text, *after)
            }
            Self::TimedOut { after } => write!(f, "timed out after {after:?}"),
            Self::ConnectionBlocked { reason, after } => {
                write_given_up(f, &blocked(reason), *after)
            }
            Self::FlowStopped { after } => {
                let text = "the broker has stopped publishing on the channel (channel.flow)";
                write_given_up(f, text, *after)
            }
            Self::WindowFull { unconfirmed, after } => {
                let text = format!(
                    "nothing was sent, since the window is full: {unconfirmed} messages are unconfirmed"
                );
                write_given_up(f, &text, *after)
            }
            Self::Recovering { cause, after } => {
                let text = format!("nothing was sent, since the connection is being recovered ({cause})");
                write_given_up(f, &text, *after)
            }
            Self::RecoveryGivenUp {
                cause,
                attempts,
                after,
                last,
            } => write_recovery_given_up(f, cause, *attempts, *after, &**last),
            Self::ChannelsExhausted { channel_max } => {
                write!(
                    f,
                    "all {channel_max} channels of the connection are in use (channel_max)"
                )
            }
            Self::ConsumerCancelled { consumer_tag, by } => {
                write!(f, "consumer {consumer_tag:?} was cancelled by {by}")
            }
            Self::Panicked { thread, message } => write!(
                f,
                "the connection has ended, since its {thread} panicked: {message}"
            ),
            Self::MalformedProperties { text } => {
                write!(f, "the properties of the message are malformed: {text}")
            }
            Self::Nacked { sequence_numbers } => {
                write!(
                    f,
                    "the broker refused {} messages (basic.nack)",
                    sequence_numbers.len()
                )
            }
            Self::Returned(message) => write!(
                f,
                "returned by the broker: {} - exchange {:?}, routing key {:?}",
                message.reply_code(),
                message.exchange(),
                message.routing_key()
            ),
            Self::PublishesFailed { failed, forgotten } => {
                let count = failed.len() as u64 + forgotten;
                write!(f, "{count} messages failed")?;
                match failed.first() {
                    Some(first) => write!(f, ", the first of them: {}", first.error),
                    None => Ok(()),
                }
            }
            Self::AcksLost {
                not_sent,
                unconfirmed,
            } => write_acks_lost(f, *not_sent, *unconfirmed),
            Self::CredentialsUnavailable { text } => {
                write!(f, "no credentials to log in with: {text}")
            }
            Self::WorkerPanicked { message } => write!(f, "the thread has panicked: {message}"),
            Self::ThreadNotStarted { kind } => write!(f, "cannot start a thread: {kind}"),
            Self::AlreadySettled { delivery_tag } => {
                write!(
                    f,
                    "delivery {delivery_tag} was already acknowledged or rejected"
                )
            }
        }
    }
}

pub(crate) fn blocked(reason: &str) -> String {
    format!("the broker has blocked the connection ({reason})")
}

/// What hindered, and how long it was waited for, if at all.
fn write_given_up(f: &mut dyn fmt::Write, hindrance: &str, after: Duration) -> fmt::Result {
    f.write_str(hindrance)?;
    match after {
        Duration::ZERO => Ok(()),
        after => write!(f, "; timed out after {after:?}"),
    }
}

fn write_recovery_given_up(
    f: &mut dyn fmt::Write,
    cause: &ErrorKind,
    attempts: u32,
    after: Duration,
    last: &dyn fmt::Display,
) -> fmt::Result {
    write!(
        f,
        "{cause}; after {attempts} attempts and {after:.1?} it was given up: {last}"
    )
}

fn write_acks_lost(f: &mut dyn fmt::Write, not_sent: u64, unconfirmed: u64) -> fmt::Result {
    f.write_str("the connection or a channel was lost")?;
    if not_sent > 0 {
        write!(
            f,
            "; {not_sent} acknowledgements were not sent, and the broker will deliver these messages again"
        )?;
    }
    if unconfirmed > 0 {
        write!(
            f,
            "; up to {unconfirmed} acknowledgements may not have reached the broker, which will then deliver these messages again"
        )?;
    }
    Ok(())
}

/// A place to connect to, and why that failed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FailedEndpoint {
    /// Host and port.
    pub endpoint: String,
    /// What went wrong there.
    pub error: Error,
}

impl PartialEq for FailedEndpoint {
    fn eq(&self, other: &Self) -> bool {
        self.endpoint == other.endpoint && self.error.kind() == other.error.kind()
    }
}

impl Eq for FailedEndpoint {}

/// A message of which the broker has not taken charge.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FailedPublish {
    /// Its number on its channel.
    pub sequence_number: u64,
    /// What became of it.
    pub error: Error,
}

impl PartialEq for FailedPublish {
    fn eq(&self, other: &Self) -> bool {
        self.sequence_number == other.sequence_number && self.error.kind() == other.error.kind()
    }
}

impl Eq for FailedPublish {}

#[derive(Clone)]
struct Inner {
    doing: Option<String>,
    kind: ErrorKind,
    /// What may explain it, and what to do.
    note: Option<String>,
    /// Set where the kind alone does not say so: nothing of what was asked has left this program.
    unsent: bool,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// Any failure of this crate: what was being done, what happened, who said so.
///
/// Small (one pointer) and cheap to clone, since one event, such as a lost connection, is told to everyone who
/// waits. `Display` is one line, whatever a broker's text or a name contains: control characters are escaped. It never
/// contains a password. [`source`](std::error::Error::source) does not repeat it.
///
/// ```no_run
/// use leveret::{Connection, QueueDeclareOptions, ReplyCode};
///
/// let channel = Connection::open_default()?.open_channel()?;
/// match channel.queue_declare("tasks", QueueDeclareOptions::passive()) {
///     Ok(queue) => println!("{:?} messages", queue.message_count()),
///     Err(error) if error.reply_code() == Some(ReplyCode::NOT_FOUND) => println!("no such queue"),
///     Err(error) => return Err(error),
/// }
/// # Ok::<(), leveret::Error>(())
/// ```
#[derive(Clone)]
pub struct Error(Arc<Inner>);

impl Error {
    pub(crate) fn new(kind: ErrorKind) -> Self {
        Self(Arc::new(Inner {
            doing: None,
            kind,
            note: None,
            unsent: false,
            source: None,
        }))
    }

    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument(text.into()))
    }

    pub(crate) fn tls(text: impl Into<String>) -> Self {
        let text = text.into();
        Self::new(ErrorKind::TlsFailed { text })
    }

    /// The message was requeued when its connection was lost; nobody is told.
    pub(crate) fn stale(delivery_tag: u64) -> Self {
        Self::new(ErrorKind::AlreadySettled { delivery_tag })
    }

    pub(crate) fn timed_out(after: Duration) -> Self {
        Self::new(ErrorKind::TimedOut { after })
    }

    /// Keeps an error that says more than this one's `Display`, which is shown before it where a chain of errors is printed.
    pub(crate) fn caused_by(
        mut self,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Arc::make_mut(&mut self.0).source = Some(Arc::new(source));
        self
    }

    /// The same failure, told to one whose request was not sent.
    pub(crate) fn unsent(mut self) -> Self {
        Arc::make_mut(&mut self.0).unsent = true;
        self
    }

    /// The same failure, told to one who was doing this. What was done as a part of it is told behind it.
    pub(crate) fn doing(mut self, doing: impl Into<String>) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        let mut whole = doing.into();
        if let Some(part) = &inner.doing {
            whole.push_str(": ");
            whole.push_str(part);
        }
        inner.doing = Some(whole);
        self
    }

    /// Appends what may explain the failure. The first explanation counts.
    pub(crate) fn noting(mut self, note: impl Into<String>) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        inner.note.get_or_insert_with(|| note.into());
        self
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// The reply code, if the broker gave one (or was given one, after a protocol violation).
    pub fn reply_code(&self) -> Option<ReplyCode> {
        match self.kind() {
            ErrorKind::ProtocolViolation { code, .. } => Some(*code),
            ErrorKind::LoginRefused { text, .. } if text.is_empty() => None,
            ErrorKind::LoginRefused { .. } => Some(ReplyCode::ACCESS_REFUSED),
            _ => self.close_reason().map(|reason| reason.code),
        }
    }

    /// Whether the broker says that there is no such thing. While a node starts or is away, RabbitMQ says 404 of its
    /// queues, too.
    pub(crate) fn is_missing(&self) -> bool {
        const NOT_THERE_NOW: [&str; 3] = ["is down or inaccessible", "has crashed", "is stopped"];
        self.reply_code() == Some(ReplyCode::NOT_FOUND)
            && self.close_reason().is_some_and(|reason| {
                let says = |it: &&str| reason.text.contains(*it);
                !NOT_THERE_NOW.iter().any(says)
            })
    }

    /// The words of the close, if a channel or a connection was closed in good order.
    pub fn close_reason(&self) -> Option<&CloseReason> {
        match self.kind() {
            ErrorKind::ConnectionClosed(reason)
            | ErrorKind::ChannelClosed { reason, .. }
            | ErrorKind::VhostRefused { reason, .. } => Some(reason),
            _ => None,
        }
    }

    /// Who closed the channel or the connection, if one of them was closed in good order.
    pub fn closed_by(&self) -> Option<ClosedBy> {
        self.close_reason().map(|reason| reason.by)
    }

    /// Whether the whole connection was lost, or has ended. If it comes back
    /// ([`Connection::is_open`](crate::Connection::is_open) tells), it is worth another try; otherwise every further call fails
    /// with this cause.
    pub fn is_connection_end(&self) -> bool {
        matches!(
            self.kind(),
            ErrorKind::ConnectionClosed(_)
                | ErrorKind::SocketClosed { .. }
                | ErrorKind::HeartbeatMissed { .. }
                | ErrorKind::ProtocolViolation { .. }
                | ErrorKind::RecoveryGivenUp { .. }
                | ErrorKind::Panicked { .. }
        )
    }

    /// Whether the broker can have received what was asked of it, be it a message or a call. If not, it is safe to
    /// ask again. Otherwise nobody can tell, and doing it again may do it twice.
    ///
    /// ```no_run
    /// use leveret::{Connection, ConnectionOptions};
    ///
    /// let channel = Connection::open_default()?.open_channel()?;
    /// while let Err(error) = channel.basic_publish("", "tasks", "charge the customer") {
    ///     if error.may_have_been_sent() || !error.is_timeout() {
    ///         return Err(error);
    ///     }
    /// }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn may_have_been_sent(&self) -> bool {
        let never = matches!(
            self.kind(),
            ErrorKind::InvalidUri(_)
                | ErrorKind::InvalidArgument(_)
                | ErrorKind::ConnectFailed { .. }
                | ErrorKind::ListenFailed { .. }
                | ErrorKind::OutboxFull { .. }
                | ErrorKind::WindowFull { .. }
                | ErrorKind::ConnectionBlocked { .. }
                | ErrorKind::FlowStopped { .. }
                | ErrorKind::Recovering { .. }
                | ErrorKind::ChannelsExhausted { .. }
                | ErrorKind::AlreadySettled { .. }
        );
        !never && !self.0.unsent
    }

    /// The message that the broker gave back, if that is the failure.
    pub fn returned_message(&self) -> Option<&ReturnedMessage> {
        match self.kind() {
            ErrorKind::Returned(message) => Some(message),
            _ => None,
        }
    }

    /// Each of the messages that failed, if these are the failure.
    pub fn failed_publishes(&self) -> &[FailedPublish] {
        match self.kind() {
            ErrorKind::PublishesFailed { failed, .. } => failed,
            _ => &[],
        }
    }

    /// Whether a time limit was reached.
    pub fn is_timeout(&self) -> bool {
        matches!(
            self.kind(),
            ErrorKind::TimedOut { .. }
                | ErrorKind::OutboxFull { .. }
                | ErrorKind::WindowFull { .. }
                | ErrorKind::ConnectionBlocked { .. }
                | ErrorKind::FlowStopped { .. }
                | ErrorKind::Recovering { .. }
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.describe(&mut Escaping(f))
    }
}

impl Error {
    fn describe(&self, f: &mut dyn fmt::Write) -> fmt::Result {
        if let Some(doing) = &self.0.doing {
            write!(f, "{doing}: ")?;
        }
        match (&self.0.kind, &self.0.source) {
            // The whole error of the last attempt says more than its kind: what was done, and what may explain it.
            (
                ErrorKind::RecoveryGivenUp {
                    cause,
                    attempts,
                    after,
                    ..
                },
                Some(last),
            ) => write_recovery_given_up(f, cause, *attempts, *after, last)?,
            (kind, _) => kind.describe(f)?,
        }
        match &self.0.note {
            Some(note) => write!(f, "; {note}"),
            None => Ok(()),
        }
    }
}

/// The same line as `Display`, since that is what a `main` that returns an error prints; `{:#?}` shows the parts.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            return fmt::Display::fmt(self, f);
        }
        let Inner {
            doing,
            kind,
            note,
            unsent: _,
            source,
        } = &*self.0;
        f.debug_struct("Error")
            .field("doing", doing)
            .field("kind", kind)
            .field("note", note)
            .field("may_have_been_sent", &self.may_have_been_sent())
            .field("source", source)
            .finish()
    }
}

impl std::error::Error for Error {
    /// What `Display` does not say already, if there is more.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        if matches!(self.kind(), ErrorKind::RecoveryGivenUp { .. }) {
            return None;
        }
        self.0
            .source
            .as_deref()
            .map(|source| source as &(dyn std::error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    /// What a peer can say, and how it is shown.
    const SAID: &str = "a\r\nWARN b\0\x1b[31m\u{85}\u{2028}c\u{202e}d\u{2066}é\\n";
    const SHOWN: &str = "a\\r\\nWARN b\\u{0}\\u{1b}[31m\\u{85}\\u{2028}c\\u{202e}d\\u{2066}é\\n";

    #[test]
    fn whatever_a_broker_says_an_error_is_one_line() {
        let said = || SAID.to_owned();
        let reason = CloseReason::broker(541, SAID, 0, 0);
        assert_eq!(
            reason.to_string(),
            format!("closed by the broker: 541 INTERNAL_ERROR - {SHOWN}")
        );
        let closed = ErrorKind::ConnectionClosed(reason.clone());
        let after = Duration::from_secs(1);
        let kinds = [
            closed.clone(),
            ErrorKind::ChannelClosed {
                channel: 1,
                reason: reason.clone(),
            },
            ErrorKind::VhostRefused {
                vhost: said(),
                reason,
            },
            ErrorKind::InvalidUri(said()),
            ErrorKind::InvalidArgument(said()),
            ErrorKind::TlsFailed { text: said() },
            ErrorKind::ProtocolVersionMismatch { server: said() },
            ErrorKind::MechanismNotOffered {
                mechanism: said(),
                offered: said(),
            },
            ErrorKind::LoginRefused {
                user: said(),
                mechanism: said(),
                text: said(),
            },
            ErrorKind::ProtocolViolation {
                code: ReplyCode(501),
                text: said(),
            },
            ErrorKind::ConnectionBlocked {
                reason: said(),
                after,
            },
            ErrorKind::Panicked {
                thread: "IO thread",
                message: said(),
            },
            ErrorKind::Recovering {
                cause: Box::new(closed),
                after,
            },
        ];
        for kind in kinds {
            let text = kind.to_string();
            assert!(text.contains(SHOWN), "{text}");
            assert!(!text.contains(char::is_control), "{text:?}");
            let whole = Error::new(kind).doing(SAID).noting(SAID).to_string();
            assert_eq!(whole, format!("{SHOWN}: {text}; {SHOWN}"));
        }
        assert_eq!(OneLine(SAID).to_string(), SHOWN);
    }

    #[test]
    fn a_recovery_that_is_given_up_tells_all_of_its_last_attempt_once() {
        let kind = io::ErrorKind::UnexpectedEof;
        let lost = ErrorKind::SocketClosed { kind };
        let last = Error::timed_out(Duration::from_secs(2))
            .doing("waiting for it")
            .noting("why");
        let given_up = Error::new(ErrorKind::RecoveryGivenUp {
            cause: Box::new(lost),
            attempts: 3,
            after: Duration::from_secs(7),
            last: Box::new(last.kind().clone()),
        });
        let error = given_up.caused_by(last);
        assert_eq!(
            error.to_string(),
            "the connection was lost: unexpected end of file; after 3 attempts and 7.0s it was given up: \
             waiting for it: timed out after 2s; why"
        );
        assert!(error.source().is_none());
    }
}
