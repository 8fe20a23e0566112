//! How long a message may wait in a queue.

use std::fmt;
use std::time::Duration;

use super::short_string::ShortString;

/// How long a message may stay in a queue before it expires.
///
/// A [`Duration`] converts into it, and a number of milliseconds, as an integer or as decimal
/// digits. A call that would send anything else than a number up to 4,294,967,295 (49 days) fails,
/// because RabbitMQ would close the channel (406).
///
/// ```
/// use leveret::{Expiration, Message};
/// use std::time::Duration;
///
/// let message = Message::new("soon").expiration(Duration::from_secs(5));
/// let expiration = message.properties().and_then(|it| it.expiration.as_ref());
/// assert_eq!(expiration, Some(&Expiration::from("5000")));
/// ```
///
/// See <https://www.rabbitmq.com/docs/ttl#per-message-ttl-in-publishers>.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Expiration {
    text: ShortString,
}

impl Expiration {
    pub(super) fn text(&self) -> &ShortString {
        &self.text
    }

    /// Returns the duration, or `None` if it is not a number of milliseconds that RabbitMQ accepts.
    #[must_use]
    pub fn as_duration(&self) -> Option<Duration> {
        // RabbitMQ also reads a sign.
        let milliseconds: i64 = self.text.as_str()?.parse().ok()?;
        let milliseconds = u32::try_from(milliseconds).ok()?;
        Some(Duration::from_millis(milliseconds.into()))
    }
}

/// Shows the property's text.
impl fmt::Debug for Expiration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

/// Shows the property's text.
impl fmt::Display for Expiration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.text, f)
    }
}

impl From<ShortString> for Expiration {
    fn from(text: ShortString) -> Self {
        Self { text }
    }
}

/// In whole milliseconds, rounded up. With zero, the message expires unless a consumer is waiting.
impl From<Duration> for Expiration {
    fn from(after: Duration) -> Self {
        after.as_nanos().div_ceil(1_000_000).to_string().into()
    }
}

/// A number of milliseconds.
impl From<u64> for Expiration {
    fn from(milliseconds: u64) -> Self {
        milliseconds.to_string().into()
    }
}

/// A number of milliseconds in decimal digits.
impl From<&str> for Expiration {
    fn from(milliseconds: &str) -> Self {
        ShortString::from(milliseconds).into()
    }
}

/// A number of milliseconds in decimal digits.
impl From<String> for Expiration {
    fn from(milliseconds: String) -> Self {
        ShortString::from(milliseconds).into()
    }
}
