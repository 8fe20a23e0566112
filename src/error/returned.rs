//! Messages that came back.

use std::fmt;

use super::{Error, ErrorKind, ReplyCode, Result};
use crate::wire::content::Content;
use crate::wire::properties::Properties;

/// A message that the broker could not route and gave back.
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

    /// In bytes.
    pub(crate) fn size(&self) -> usize {
        self.content.capacity()
    }

    /// The number under which it was published, if its channel is in confirm mode.
    ///
    /// Messages that are equal in every byte, to the same exchange with the same routing key, can be taken for one
    /// another if the broker routes one of them and not the other, and answers for both at once; a
    /// [`message_id`](crate::Message::message_id) tells them apart.
    pub fn sequence_number(&self) -> Option<u64> {
        self.sequence_number
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
            .field("sequence_number", &self.sequence_number)
            .field("body", &format_args!("{} bytes", self.body().len()))
            .finish_non_exhaustive()
    }
}

pub(crate) fn read_properties(content: &Content) -> Result<Properties> {
    content.properties().map_err(|error| {
        let text = error.to_string();
        Error::new(ErrorKind::MalformedProperties { text })
    })
}
