//! The kinds of errors, and their texts.

use std::fmt;
use std::io;
use std::time::Duration;

use super::one_line::Escaping;
use super::reply::{CloseReason, ClosedBy, ReplyCode};
use super::returned::ReturnedMessage;
use super::Error;

/// The kind of an [`Error`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The text is not a valid AMQP URI, for this reason.
    InvalidUri(String),
    /// A value that cannot be sent, or an invalid option. Nothing was sent.
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
    /// The virtual host does not exist, or the user may not use it. If the virtual host or the user
    /// has reached its connection limit, the error is [`ConnectionClosed`](Self::ConnectionClosed)
    /// instead.
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
        /// `ConnectionAborted`: a TLS connection ended without `close_notify`, because the network
        /// broke or the peer died.
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
    /// The outbox stayed full because the broker did not read from the socket. Nothing was sent.
    OutboxFull {
        /// How long the call waited.
        after: Duration,
    },
    /// The broker's reply did not arrive in time. A late reply is dropped. If the broker has
    /// blocked the connection, the error text says so: a broker reads nothing from a connection
    /// that it blocks.
    TimedOut {
        /// How long the call waited.
        after: Duration,
    },
    /// The broker has blocked the connection (`connection.blocked`) because it is low on memory or
    /// disk. Nothing was sent.
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
    /// The broker cancels a consumer when its queue is deleted, or when the queue's node goes down.
    /// Since RabbitMQ 4.3, it also does so when an acknowledgement for a quorum queue is late
    /// (`consumer_timeout`, 30 minutes by default; earlier versions close the channel: 406), and
    /// when the connection gets a [new secret](crate::Connection::update_secret) with which the
    /// user may no longer read the queue.
    ConsumerCancelled {
        /// Consumer tag.
        consumer_tag: String,
        /// Which side cancelled it.
        by: ClosedBy,
    },
    /// The connection is lost and has not recovered yet. Nothing was sent.
    Recovering {
        /// Why the connection was lost.
        cause: Box<Self>,
        /// How long the call waited.
        after: Duration,
    },
    /// The connection was lost, and recovery gave up: it reached a limit of the
    /// [`RecoveryOptions`](crate::RecoveryOptions), or the broker refused a login and
    /// [`give_up_on_refused_login`](crate::RecoveryOptions::give_up_on_refused_login) is set.
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
    /// The publisher's window stayed full because the broker did not confirm earlier messages in
    /// time. Nothing was sent.
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
        /// Number of earlier failures that were dropped, because too many were unreported.
        forgotten: u64,
    },
    /// The delivery was already acknowledged or rejected.
    AlreadySettled {
        /// Delivery tag.
        delivery_tag: u64,
    },
    /// A thread of the connection panicked, and the connection is closed. The cause is the
    /// program's code on that thread, such as a [`SaslMechanism`](crate::SaslMechanism), a filter
    /// of the [`RecoveryOptions`](crate::RecoveryOptions), [`Metrics`](crate::Metrics) or the
    /// logger, or a bug in this crate.
    Panicked {
        /// The thread: `IO thread` or `recovery thread`.
        thread: &'static str,
        /// The panic message.
        message: String,
    },
    /// A message has malformed properties. Its body can still be read.
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
        /// broker. The broker redelivers the messages whose acknowledgement it did not get.
        unconfirmed: u64,
    },
    /// The program's [`credentials`](crate::ConnectionOptions::credentials) function failed.
    CredentialsUnavailable {
        /// The error text of the function.
        text: String,
    },
    /// A thread of [`Workers`](crate::Workers) panicked outside its handler: in the program's
    /// logger or [`Metrics`](crate::Metrics), or because of a bug in this crate.
    WorkerPanicked {
        /// The panic message.
        message: String,
    },
    /// A body is not the JSON that the program expects, or JSON cannot express a value.
    InvalidJson {
        /// The kind of error, and where it is. The error's source says more, and can show a part of
        /// the body.
        text: String,
    },
    /// The server of a request has the request, and its handler failed. The reply to
    /// [`RpcClient::call`](crate::RpcClient::call) says so.
    RpcFailed {
        /// The server's text.
        text: String,
    },
    /// This process is a fork of the process that opened the connection. The IO thread runs only in
    /// that process, so each process must open its own connection after the fork.
    Forked,
    /// The program's function failed to create the handler of a worker thread:
    /// [`Workers::consume_per_thread`](crate::Workers::consume_per_thread).
    HandlerNotCreated {
        /// The function's error, with its sources.
        text: String,
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
    pub(super) fn describe(&self, f: &mut dyn fmt::Write) -> fmt::Result {
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
            Self::HandlerNotCreated { text } => {
                write!(f, "the handler could not be created: {text}")
            }
            Self::RpcFailed { text } => write!(f, "the server failed: {text}"),
            Self::InvalidJson { text } => write!(f, "invalid JSON: {text}"),
            Self::Forked => f.write_str(
                "this process is a fork of the process that opened the connection: open a \
                 connection after the fork",
            ),
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

pub(super) fn write_recovery_given_up(
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

/// An endpoint that could not be used, and why.
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

/// A message of a [`Publisher`](crate::Publisher) that failed, and why.
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
