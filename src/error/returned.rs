//! Returned messages.

use std::fmt;

use super::reply::ReplyCode;
use super::{Error, Result};
use crate::wire::content::Content;
use crate::wire::properties::Properties;

/// A message that the broker returned because it reached no queue.
#[derive(Clone, PartialEq, Eq)]
pub struct ReturnedMessage {
    code: ReplyCode,
    text: String,
    sequence_number: Option<u64>,
    content: Content,
}

impl ReturnedMessage {
    pub(crate) fn new(
        code: ReplyCode,
        text: String,
        sequence_number: Option<u64>,
        content: Content,
    ) -> Self {
        Self {
            code,
            text,
            sequence_number,
            content,
        }
    }

    pub(crate) fn size(&self) -> usize {
        self.content.capacity()
    }

    /// Returns the sequence number of the message, if its channel is in confirm mode.
    ///
    /// Two messages with the same bytes, exchange and routing key can be mistaken for each other if
    /// the broker routes only one of them and confirms both at once. A
    /// [`message_id`](crate::Message::message_id) tells them apart.
    #[must_use]
    pub fn sequence_number(&self) -> Option<u64> {
        self.sequence_number
    }

    /// Returns the reply code: [`ReplyCode::NO_ROUTE`] for a mandatory message.
    #[must_use]
    pub fn reply_code(&self) -> ReplyCode {
        self.code
    }

    /// Returns the broker's reply text.
    #[must_use]
    pub fn reply_text(&self) -> &str {
        &self.text
    }

    /// Returns the exchange that the message was published to.
    #[must_use]
    pub fn exchange(&self) -> &str {
        self.content.exchange()
    }

    /// Returns the routing key of the message.
    #[must_use]
    pub fn routing_key(&self) -> &str {
        self.content.routing_key()
    }

    /// Returns the properties of the message, as they were published.
    ///
    /// # Errors
    /// [`ErrorKind::MalformedProperties`](crate::ErrorKind::MalformedProperties).
    pub fn properties(&self) -> Result<Properties> {
        let properties = self.content.properties();
        properties.map_err(|error| Error::malformed_properties(&error))
    }

    /// Returns the body, as it was published.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        self.content.body()
    }

    /// Converts the message into its body, without a new allocation.
    #[must_use]
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
            .field("sequence_number", &self.sequence_number)
            .field("body", &format_args!("{} bytes", self.body().len()))
            .finish_non_exhaustive()
    }
}
