//! Errors: what was asked, what happened, and who said so.

mod kind;
mod one_line;
mod reply;
mod returned;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "json")]
use serde_json::error::Category;

use crate::wire::codec::WireError;

pub(crate) use kind::blocked;
use kind::write_recovery_given_up;
pub use kind::{ErrorKind, FailedEndpoint, FailedPublish};
use one_line::Escaping;
pub(crate) use one_line::OneLine;
pub use reply::{CloseReason, ClosedBy, ReplyCode};
pub use returned::ReturnedMessage;

/// Longest text of an error in a header, in bytes.
const LONGEST_IN_HEADER: usize = 1024;

/// A `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error with all its sources, except those that show a part of a message's body.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let own = error.downcast_ref::<Error>().map(Error::kind);
    let shows_body = matches!(own, Some(ErrorKind::InvalidJson { .. }));
    let mut source = error.source().filter(|_| !shows_body);
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// The beginning of an error's text, for a header.
pub(crate) fn shortened(text: &str) -> &str {
    let mut end = text.len().min(LONGEST_IN_HEADER);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

#[derive(Clone)]
struct Inner {
    doing: Option<String>,
    kind: ErrorKind,
    /// A possible cause, and what to do.
    note: Option<String>,
    /// Nothing of the request has left this program. Set if the kind alone does not say so.
    unsent: bool,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// Any failure of this crate: what was asked, what happened, and who said so.
///
/// An error is one pointer, and cheap to clone, since one event such as a lost connection can fail
/// many calls. `Display` writes one line, with control characters escaped, and never a password.
/// [`source`](std::error::Error::source) does not repeat what `Display` says.
///
/// ```no_run
/// use leveret::{Connection, QueueDeclareOptions, ReplyCode};
///
/// let channel = Connection::open_default()?.open_channel()?;
/// match channel.queue_declare_passive("tasks") {
///     Ok(queue) => println!("{:?} messages", queue.message_count()),
///     Err(error) if error.reply_code() == Some(ReplyCode::NOT_FOUND) => println!("no such queue"),
///     Err(error) => return Err(error),
/// }
/// # Ok::<(), leveret::Error>(())
/// ```
#[derive(Clone)]
pub struct Error(Arc<Inner>);

/// Compares the [`kind`](Error::kind)s.
impl PartialEq for Error {
    fn eq(&self, other: &Self) -> bool {
        self.kind() == other.kind()
    }
}

impl Eq for Error {}

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

    pub(crate) fn malformed_properties(error: &WireError) -> Self {
        let text = error.to_string();
        Self::new(ErrorKind::MalformedProperties { text })
    }

    /// For JSON that was received. Only the source shows what it contains.
    #[cfg(feature = "json")]
    pub(crate) fn invalid_json(error: serde_json::Error) -> Self {
        let what = match error.classify() {
            Category::Io | Category::Syntax => "a syntax error",
            Category::Data => "a value that does not fit the type",
            Category::Eof => "an unexpected end",
        };
        let text = format!("{what} at line {}, column {}", error.line(), error.column());
        Self::new(ErrorKind::InvalidJson { text }).caused_by(error)
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
    #[must_use]
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// Returns the reply code that the broker sent, with a close or a returned message, or that
    /// this crate sent after a protocol violation.
    #[must_use]
    pub fn reply_code(&self) -> Option<ReplyCode> {
        match self.kind() {
            ErrorKind::ProtocolViolation { code, .. } => Some(*code),
            ErrorKind::Returned(message) => Some(message.reply_code()),
            ErrorKind::LoginRefused { text, .. } if text.is_empty() => None,
            ErrorKind::LoginRefused { .. } => Some(ReplyCode::ACCESS_REFUSED),
            _ => self.close_reason().map(|reason| reason.code),
        }
    }

    /// Whether the broker says that the entity does not exist. RabbitMQ also replies 404 for queues
    /// of a node that is starting or down; such queues do exist.
    pub(crate) fn is_missing(&self) -> bool {
        const NOT_THERE_NOW: [&str; 3] = ["is down or inaccessible", "has crashed", "is stopped"];
        self.reply_code() == Some(ReplyCode::NOT_FOUND)
            && self.close_reason().is_some_and(|reason| {
                let says = |it: &&str| reason.text.contains(*it);
                !NOT_THERE_NOW.iter().any(says)
            })
    }

    /// Returns the reason for the close, if a channel or connection was closed with a reason.
    #[must_use]
    pub fn close_reason(&self) -> Option<&CloseReason> {
        match self.kind() {
            ErrorKind::ConnectionClosed(reason)
            | ErrorKind::ChannelClosed { reason, .. }
            | ErrorKind::VhostRefused { reason, .. } => Some(reason),
            _ => None,
        }
    }

    /// Returns which side closed the channel or the connection, if it was closed with a reason.
    #[must_use]
    pub fn closed_by(&self) -> Option<ClosedBy> {
        self.close_reason().map(|reason| reason.by)
    }

    /// Returns true if the whole connection was lost or closed. If
    /// [`Connection::is_open`](crate::Connection::is_open) is still true, the connection is
    /// recovering, and a retry can succeed. Otherwise every later call fails with this cause.
    #[must_use]
    pub fn is_connection_end(&self) -> bool {
        matches!(
            self.kind(),
            ErrorKind::ConnectionClosed(_)
                | ErrorKind::SocketClosed { .. }
                | ErrorKind::HeartbeatMissed { .. }
                | ErrorKind::ProtocolViolation { .. }
                | ErrorKind::RecoveryGivenUp { .. }
                | ErrorKind::Panicked { .. }
                | ErrorKind::Forked
        )
    }

    /// Returns true if the broker may have received the request or message.
    ///
    /// If false, a retry is safe. If true, a retry may do the same thing twice.
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
    #[must_use]
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

    /// Returns the message of [`ErrorKind::Returned`].
    #[must_use]
    pub fn returned_message(&self) -> Option<&ReturnedMessage> {
        match self.kind() {
            ErrorKind::Returned(message) => Some(message),
            _ => None,
        }
    }

    /// Returns the failed messages of [`ErrorKind::PublishesFailed`]; empty for other kinds.
    #[must_use]
    pub fn failed_publishes(&self) -> &[FailedPublish] {
        match self.kind() {
            ErrorKind::PublishesFailed { failed, .. } => failed,
            _ => &[],
        }
    }

    /// Returns true if the call reached its timeout.
    #[must_use]
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

    use std::io;

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
            ErrorKind::RpcFailed { text: said() },
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
