//! Errors: what was asked, what happened, and who said so.

pub(crate) mod returned;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::wire::method::MethodId;
use returned::ReturnedMessage;

/// A `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An AMQP reply code: why the broker closed a channel or a connection, or returned a message.
///
/// A broker may send codes without a constant here.
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
pub struct ReplyCode(pub u16);

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
    /// The user lacks the permission.
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
    /// The broker lacks memory, disk or another resource.
    RESOURCE_ERROR = 506;
    /// The broker does not allow the request.
    NOT_ALLOWED = 530;
    /// The broker does not implement the request.
    NOT_IMPLEMENTED = 540;
    /// The broker has an internal error.
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

/// The reason of a `connection.close` or `channel.close`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloseReason {
    /// Which side closed.
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

/// Writes text in one line. A broker's texts and names can contain anything: line breaks that forge
/// log lines, terminal escape sequences, marks that reverse the text direction.
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

/// Shows text from outside this program in one line, for the log.
pub(crate) struct OneLine<T>(pub(crate) T);

impl<T: fmt::Display> fmt::Display for OneLine<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Write::write_fmt(&mut Escaping(f), format_args!("{}", self.0))
    }
}

/// The kind of an [`Error`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The text is not an AMQP URI, for this reason.
    InvalidUri(String),
    /// A value cannot be sent, or an option is invalid. Nothing was sent.
    InvalidArgument(String),
    /// Connecting to this address failed: the host name is unknown, the port is closed, or the
    /// network refuses.
    ConnectFailed {
        /// Host and port.
        address: String,
        /// The system's error kind.
        kind: io::ErrorKind,
        /// The system's error text.
        text: String,
    },
    /// A broker of the feature `broker` cannot listen on this address, for example because the port
    /// is in use.
    ListenFailed {
        /// Host and port.
        address: String,
        /// The system's error kind.
        kind: io::ErrorKind,
        /// The system's error text.
        text: String,
    },
    /// TLS failed: the certificate is expired, from an unknown authority or for another host, the
    /// broker requires a client certificate, or the server does not speak TLS on this port.
    TlsFailed {
        /// The error text of the system's TLS.
        text: String,
    },
    /// All of several endpoints failed.
    EndpointsFailed(Vec<FailedEndpoint>),
    /// The server speaks another version of AMQP, or another protocol.
    ProtocolVersionMismatch {
        /// What the server speaks, such as `AMQP 1-0-0`.
        server: String,
    },
    /// The server does not offer the login mechanism of
    /// [`ConnectionOptions::login_method`](crate::ConnectionOptions::login_method).
    MechanismNotOffered {
        /// The mechanism that the options ask for.
        mechanism: String,
        /// The mechanisms that the server offers.
        offered: String,
    },
    /// The broker refused the login.
    LoginRefused {
        /// User name.
        user: String,
        /// Login mechanism, such as PLAIN.
        mechanism: String,
        /// The broker's text. Empty if the broker closed the socket without one.
        text: String,
    },
    /// The virtual host does not exist, or the user may not use it. A connection over a limit of
    /// the virtual host or of the user is [`ConnectionClosed`](Self::ConnectionClosed) instead.
    VhostRefused {
        /// The virtual host.
        vhost: String,
        /// The broker's reason.
        reason: CloseReason,
    },
    /// The connection was closed cleanly by this program, or by the broker with a reason.
    ConnectionClosed(CloseReason),
    /// The channel was closed. Other channels of the connection stay open.
    ChannelClosed {
        /// The channel's number.
        channel: u16,
        /// Which side closed it, and why.
        reason: CloseReason,
    },
    /// The socket closed without an AMQP close: the broker was killed, or the network broke.
    SocketClosed {
        /// The system's error kind. `UnexpectedEof`: the peer closed the socket.
        /// `ConnectionAborted`: a TLS connection ended without `close_notify`, because it was cut
        /// or the peer died.
        kind: io::ErrorKind,
    },
    /// The broker sent no bytes for two heartbeat intervals.
    HeartbeatMissed {
        /// The negotiated interval.
        interval: Duration,
    },
    /// The peer violated the protocol; this crate closed the connection with this code.
    ProtocolViolation {
        /// The code that this crate sent to the peer.
        code: ReplyCode,
        /// What the peer did.
        text: String,
    },
    /// The outbox stayed full because the broker does not read from the socket. Nothing was sent.
    OutboxFull {
        /// How long the call waited.
        after: Duration,
    },
    /// The broker's reply did not come in time. If the reply comes later, it is dropped. If the
    /// broker has blocked the connection, the error text says so: a broker reads nothing from a
    /// connection that it blocks.
    TimedOut {
        /// How long the call waited.
        after: Duration,
    },
    /// The broker blocks the connection (`connection.blocked`) because it is low on memory or disk.
    ConnectionBlocked {
        /// The broker's reason.
        reason: String,
        /// How long the call waited.
        after: Duration,
    },
    /// The broker has stopped publishing on the channel (`channel.flow`). RabbitMQ never does.
    FlowStopped {
        /// How long the call waited.
        after: Duration,
    },
    /// All channel numbers are in use.
    ChannelsExhausted {
        /// The negotiated maximum number of channels.
        channel_max: u16,
    },
    /// The consumer was cancelled.
    ///
    /// The broker cancels a consumer when its queue is deleted, or when the node with the queue
    /// goes away. Since RabbitMQ 4.3 it also does so when an acknowledgement for a quorum queue is
    /// late (`consumer_timeout`, 30 minutes; earlier versions close the channel: 406), and when the
    /// user has lost the permission to read the queue and the connection gets a [new
    /// secret](crate::Connection::update_secret).
    ConsumerCancelled {
        /// Consumer tag.
        consumer_tag: String,
        /// Which side cancelled it.
        by: ClosedBy,
    },
    /// The connection is lost and still recovering. Nothing was sent.
    Recovering {
        /// Why the connection was lost.
        cause: Box<Self>,
        /// How long the call waited.
        after: Duration,
    },
    /// The connection was lost, and recovery gave up: it reached a limit of the
    /// [`RecoveryOptions`](crate::RecoveryOptions), or a login was refused and these options end
    /// recovery then.
    RecoveryGivenUp {
        /// Why the connection was lost.
        cause: Box<Self>,
        /// Number of attempts to recover it.
        attempts: u32,
        /// How long the connection was lost.
        after: Duration,
        /// Why the last attempt failed.
        last: Box<Self>,
    },
    /// The publisher's window stayed full because the broker does not confirm earlier messages.
    /// Nothing was sent.
    WindowFull {
        /// Number of unconfirmed messages.
        unconfirmed: usize,
        /// How long the call waited.
        after: Duration,
    },
    /// The broker nacked messages (`basic.nack`).
    Nacked {
        /// Sequence numbers of the nacked messages.
        sequence_numbers: Vec<u64>,
    },
    /// The broker could not route a mandatory message, and returned it.
    Returned(ReturnedMessage),
    /// Messages failed, each with its own error.
    PublishesFailed {
        /// The failed messages, in the order in which they were published.
        failed: Vec<FailedPublish>,
        /// Number of earlier failures, too many to keep.
        forgotten: u64,
    },
    /// The delivery was already acknowledged or rejected.
    AlreadySettled {
        /// Delivery tag.
        delivery_tag: u64,
    },
    /// A thread of the connection panicked, and the connection is closed. The panic came from the
    /// program's code on that thread, such as a [`SaslMechanism`](crate::SaslMechanism), a filter
    /// of the [`RecoveryOptions`](crate::RecoveryOptions), [`Metrics`](crate::Metrics) or the
    /// logger, or from a bug of this crate.
    Panicked {
        /// The thread: `IO thread` or `recovery thread`.
        thread: &'static str,
        /// The panic message.
        message: String,
    },
    /// A message has malformed properties. Its body can be read.
    MalformedProperties {
        /// What is malformed.
        text: String,
    },
    /// Acknowledgements of messages that [`Workers`](crate::Workers) have handled were lost with
    /// the connection or a channel. The broker redelivers these messages.
    AcksLost {
        /// Number of messages whose acknowledgement was not sent.
        not_sent: u64,
        /// Maximum number of messages whose acknowledgement was sent, but may not have reached the
        /// broker. The broker redelivers those whose acknowledgement it did not get.
        unconfirmed: u64,
    },
    /// The program's function for [`credentials`](crate::ConnectionOptions::credentials) failed.
    CredentialsUnavailable {
        /// The error text of the function.
        text: String,
    },
    /// A thread of [`Workers`](crate::Workers) panicked outside its handler: in the program's
    /// logger or [`Metrics`](crate::Metrics), or because of a bug of this crate.
    WorkerPanicked {
        /// The panic message.
        message: String,
    },
    /// The system cannot start another thread.
    ThreadNotStarted {
        /// The system's error kind.
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
                "the server does not offer the login mechanism {mechanism}; it offers {offered}"
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
                    f.write_str(
                        " (a URI that ends in a slash names the virtual host \"\"; omit the slash for \"/\")",
                    )?;
                }
                Ok(())
            }
            Self::ConnectionClosed(reason) => write!(f, "the connection was {reason}"),
            Self::ChannelClosed { channel, reason } => write!(f, "channel {channel} was {reason}"),
            Self::SocketClosed { kind } => write!(f, "the connection was lost: {kind}"),
            Self::HeartbeatMissed { interval } => write!(
                f,
                "the connection was lost: no bytes from the broker for two heartbeat intervals of {interval:?}"
            ),
            Self::ProtocolViolation { code, text } => {
                write!(
                    f,
                    "the connection was closed because the peer violated the protocol: {code} - {text}"
                )
            }
            Self::OutboxFull { after } => {
                let text = "nothing was sent: the outbox is full because the broker does not read";
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
                    "nothing was sent: the window is full with {unconfirmed} unconfirmed messages"
                );
                write_given_up(f, &text, *after)
            }
            Self::Recovering { cause, after } => {
                let text = format!("nothing was sent: the connection is recovering ({cause})");
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
                "the connection was closed because its {thread} panicked: {message}"
            ),
            Self::MalformedProperties { text } => {
                write!(f, "the properties of the message are malformed: {text}")
            }
            Self::Nacked { sequence_numbers } => {
                write!(
                    f,
                    "the broker nacked {} messages (basic.nack)",
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
                    Some(first) => write!(f, "; first error: {}", first.error),
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
            Self::WorkerPanicked { message } => write!(f, "the worker thread panicked: {message}"),
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

/// Writes why a call failed, and how long it waited, if it did.
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
        "{cause}; recovery gave up after {attempts} attempts and {after:.1?}: {last}"
    )
}

fn write_acks_lost(f: &mut dyn fmt::Write, not_sent: u64, unconfirmed: u64) -> fmt::Result {
    f.write_str("the connection or a channel was lost")?;
    if not_sent > 0 {
        write!(
            f,
            "; {not_sent} acknowledgements were not sent: the broker will redeliver these messages"
        )?;
    }
    if unconfirmed > 0 {
        write!(
            f,
            "; up to {unconfirmed} acknowledgements may not have reached the broker, which will then redeliver these messages"
        )?;
    }
    Ok(())
}

/// An endpoint to which connecting failed, and why.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FailedEndpoint {
    /// Host and port.
    pub endpoint: String,
    /// Why it failed.
    pub error: Error,
}

impl PartialEq for FailedEndpoint {
    fn eq(&self, other: &Self) -> bool {
        self.endpoint == other.endpoint && self.error.kind() == other.error.kind()
    }
}

impl Eq for FailedEndpoint {}

/// A message that the broker did not confirm.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FailedPublish {
    /// Sequence number on its channel.
    pub sequence_number: u64,
    /// Why it failed.
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
    /// A possible cause, and what to do.
    note: Option<String>,
    /// Nothing of the request has left this program. Set where the kind alone does not say so.
    unsent: bool,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// Any failure of this crate: what was asked, what happened, and who said so.
///
/// An error is one pointer and cheap to clone, since one event, such as a lost connection, fails
/// many calls. `Display` writes one line, with control characters escaped, and never a password.
/// [`source`](std::error::Error::source) does not repeat what `Display` says.
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

    /// For a message of a lost connection: the broker has requeued it, so the acknowledgement is
    /// dropped.
    pub(crate) fn stale(delivery_tag: u64) -> Self {
        Self::new(ErrorKind::AlreadySettled { delivery_tag })
    }

    pub(crate) fn timed_out(after: Duration) -> Self {
        Self::new(ErrorKind::TimedOut { after })
    }

    /// Attaches a source that says more than this error's `Display`. A printed chain of errors
    /// shows this error first, then the source.
    pub(crate) fn caused_by(
        mut self,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Arc::make_mut(&mut self.0).source = Some(Arc::new(source));
        self
    }

    /// The same failure, for a request that was not sent.
    pub(crate) fn unsent(mut self) -> Self {
        Arc::make_mut(&mut self.0).unsent = true;
        self
    }

    /// Prepends context; existing context follows after a colon.
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

    /// Appends a possible cause or a remedy. The first note stays.
    pub(crate) fn noting(mut self, note: impl Into<String>) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        inner.note.get_or_insert_with(|| note.into());
        self
    }

    /// Returns the kind of failure.
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// Returns the reply code that the broker sent, or that this crate sent after a protocol
    /// violation.
    pub fn reply_code(&self) -> Option<ReplyCode> {
        match self.kind() {
            ErrorKind::ProtocolViolation { code, .. } => Some(*code),
            ErrorKind::LoginRefused { text, .. } if text.is_empty() => None,
            ErrorKind::LoginRefused { .. } => Some(ReplyCode::ACCESS_REFUSED),
            _ => self.close_reason().map(|reason| reason.code),
        }
    }

    /// Whether the broker says that the entity does not exist. RabbitMQ also says 404 for queues of
    /// a node that starts or is away; such queues do exist.
    pub(crate) fn is_missing(&self) -> bool {
        const NOT_THERE_NOW: [&str; 3] = ["is down or inaccessible", "has crashed", "is stopped"];
        self.reply_code() == Some(ReplyCode::NOT_FOUND)
            && self.close_reason().is_some_and(|reason| {
                let says = |it: &&str| reason.text.contains(*it);
                !NOT_THERE_NOW.iter().any(says)
            })
    }

    /// Returns the reason of the close, if a channel or a connection was closed with one.
    pub fn close_reason(&self) -> Option<&CloseReason> {
        match self.kind() {
            ErrorKind::ConnectionClosed(reason)
            | ErrorKind::ChannelClosed { reason, .. }
            | ErrorKind::VhostRefused { reason, .. } => Some(reason),
            _ => None,
        }
    }

    /// Returns which side closed the channel or the connection, if it was closed with a reason.
    pub fn closed_by(&self) -> Option<ClosedBy> {
        self.close_reason().map(|reason| reason.by)
    }

    /// Whether the whole connection is lost or closed. If it recovers
    /// ([`Connection::is_open`](crate::Connection::is_open)), a retry can succeed; otherwise every
    /// further call fails with this cause.
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

    /// Whether the broker may have received the request or message.
    ///
    /// If not, a retry is safe. If so, a retry may do the same thing twice.
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

    /// Returns the message that the broker returned, if that is the failure.
    pub fn returned_message(&self) -> Option<&ReturnedMessage> {
        match self.kind() {
            ErrorKind::Returned(message) => Some(message),
            _ => None,
        }
    }

    /// Returns each failed message of [`ErrorKind::PublishesFailed`], otherwise nothing.
    pub fn failed_publishes(&self) -> &[FailedPublish] {
        match self.kind() {
            ErrorKind::PublishesFailed { failed, .. } => failed,
            _ => &[],
        }
    }

    /// Whether the call reached its timeout.
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
            // The last attempt's whole error says more than its kind: what was tried, and a
            // possible cause.
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

/// Writes the same line as `Display`, since a `main` that returns an error prints `Debug`. `{:#?}`
/// shows the fields.
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
    /// Returns the underlying error if it says more than `Display`.
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

    /// Text from a peer, and how it is shown.
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
            "the connection was lost: unexpected end of file; recovery gave up after 3 attempts and 7.0s: \
             waiting for it: timed out after 2s; why"
        );
        assert!(error.source().is_none());
    }
}
