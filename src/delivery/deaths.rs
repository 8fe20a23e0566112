//! Why a message was dead-lettered.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::wire::value::{FieldTable, FieldValue};

/// Newest first; each entry is a table.
pub(super) const HEADER: &str = "x-death";

/// How often a message was dead-lettered from one queue for one reason, received from
/// [`Delivery::deaths`](crate::Delivery::deaths).
///
/// See <https://www.rabbitmq.com/docs/dlx#effects>.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Death {
    /// The queue from which the message was dead-lettered.
    pub queue: String,
    /// Why.
    pub reason: DeathReason,
    /// How many times, for this reason.
    pub count: u64,
    /// The exchange that the message was published to before it reached this queue.
    pub exchange: String,
    /// The routing keys that the message was published with.
    pub routing_keys: Vec<String>,
    /// When it happened for the first time, in whole seconds.
    pub time: Option<SystemTime>,
    /// The message's own expiration, which the broker removes when the message is dead-lettered.
    pub original_expiration: Option<Duration>,
}

/// Why a message was dead-lettered.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum DeathReason {
    /// A consumer rejected it without requeueing it.
    Rejected,
    /// Its time to live, or that of the queue's messages, was over.
    Expired,
    /// The queue was full.
    MaxLen,
    /// A quorum queue had redelivered it too often.
    DeliveryLimit,
    /// Another reason.
    Other(String),
}

impl DeathReason {
    /// Returns the reason as the broker writes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::MaxLen => "maxlen",
            Self::DeliveryLimit => "delivery_limit",
            Self::Other(reason) => reason,
        }
    }
}

impl fmt::Display for DeathReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Compares the broker's words.
impl PartialEq for DeathReason {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for DeathReason {}

impl Hash for DeathReason {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl From<&str> for DeathReason {
    fn from(reason: &str) -> Self {
        match reason {
            "rejected" => Self::Rejected,
            "expired" => Self::Expired,
            "maxlen" => Self::MaxLen,
            "delivery_limit" => Self::DeliveryLimit,
            other => Self::Other(other.to_owned()),
        }
    }
}

impl Death {
    /// `None` if the entry lacks its queue or its reason, as a header of a publisher may.
    pub(super) fn read(entry: &FieldValue) -> Option<Self> {
        let entry = entry.as_table()?;
        let time = entry.get("time").and_then(|it| it.as_timestamp());
        let expiration = text(entry, "original-expiration").and_then(|it| it.parse().ok());
        let keys = entry.get("routing-keys").and_then(|it| it.as_array());
        Some(Self {
            queue: text(entry, "queue")?,
            reason: text(entry, "reason")?.as_str().into(),
            count: entry.get("count").and_then(|it| it.as_u64()).unwrap_or(1),
            exchange: text(entry, "exchange").unwrap_or_default(),
            routing_keys: keys
                .unwrap_or_default()
                .iter()
                .filter_map(text_of)
                .collect(),
            time: time.and_then(|it| UNIX_EPOCH.checked_add(Duration::from_secs(it))),
            original_expiration: expiration.map(Duration::from_millis),
        })
    }
}

fn text(entry: &FieldTable, name: &str) -> Option<String> {
    text_of(entry.get(name)?)
}

fn text_of(value: &FieldValue) -> Option<String> {
    let bytes = value.as_bytes()?;
    Some(String::from_utf8_lossy(bytes).into_owned())
}
