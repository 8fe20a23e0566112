//! Errors with which the broker closes a channel or a connection.

use crate::error::ReplyCode;

/// A refused request. The text is RabbitMQ's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: ReplyCode,
    pub(super) text: String,
    /// Whether the error closes the connection, and not only the channel.
    pub(super) costs_connection: bool,
}

impl Refusal {
    fn new(code: ReplyCode, costs_connection: bool, text: &str) -> Self {
        let text = match code.name() {
            Some(name) => format!("{name} - {text}"),
            None => text.to_owned(),
        };
        Self {
            code,
            text,
            costs_connection,
        }
    }

    pub(super) fn of_channel(code: ReplyCode, text: impl AsRef<str>) -> Self {
        Self::new(code, false, text.as_ref())
    }

    pub(super) fn of_connection(code: ReplyCode, text: impl AsRef<str>) -> Self {
        Self::new(code, true, text.as_ref())
    }

    pub(super) fn failed(text: impl AsRef<str>) -> Self {
        Self::of_channel(ReplyCode::PRECONDITION_FAILED, text)
    }

    pub(super) fn access(text: impl AsRef<str>) -> Self {
        Self::of_channel(ReplyCode::ACCESS_REFUSED, text)
    }

    /// `what` is "queue" or "exchange".
    pub(super) fn not_found(what: &str, name: &str, vhost: &str) -> Self {
        let text = format!("no {what} '{name}' in vhost '{vhost}'");
        Self::of_channel(ReplyCode::NOT_FOUND, text)
    }
}
