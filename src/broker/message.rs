//! Messages as the broker stores them, and dead letters.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::wire::properties::Properties;
use crate::wire::value::{FieldTable, FieldValue};

/// A message, shared by the queues that hold it.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) exchange: String,
    pub(super) routing_key: String,
    /// Routing keys from the header BCC, which is not delivered.
    pub(super) hidden_keys: Vec<String>,
    pub(super) properties: Properties,
    pub(super) body: Vec<u8>,
}

impl Message {
    /// All keys by which the message is routed.
    pub(super) fn routing_keys(&self) -> impl Iterator<Item = &str> {
        let hidden = self.hidden_keys.iter().map(String::as_str);
        self.open_keys().chain(hidden)
    }

    /// The routing key and the keys of the header CC.
    fn open_keys(&self) -> impl Iterator<Item = &str> {
        let headers = self.properties.headers.as_ref();
        let copies = headers.and_then(|headers| headers.get("CC")?.as_array());
        let copies = copies.unwrap_or_default().iter();
        std::iter::once(self.routing_key.as_str()).chain(copies.filter_map(FieldValue::as_str))
    }

    /// The properties, with `x-delivery-count` if the message was requeued.
    pub(super) fn properties_after(&self, returns: u64) -> Cow<'_, Properties> {
        match returns {
            0 => Cow::Borrowed(&self.properties),
            count => Cow::Owned(
                self.properties
                    .clone()
                    .header("x-delivery-count", count as i64),
            ),
        }
    }

    pub(super) fn is_persistent(&self) -> bool {
        self.properties.delivery_mode == Some(2)
    }

    /// The property `expiration`, which was checked when the message was published.
    pub(super) fn ttl(&self) -> Option<Duration> {
        self.properties.expiration.as_ref()?.as_duration()
    }
}

/// A message that is in a queue, or delivered and unacknowledged.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Place in the queue, to which a requeued message returns: by priority, then in order of
    /// arrival.
    pub(super) place: (u8, u64),
    pub(super) message: Arc<Message>,
    pub(super) redelivered: bool,
    /// How often the message was requeued. Only quorum queues count this.
    pub(super) returns: u64,
    pub(super) expires_at: Option<Instant>,
}

/// Why a message is dropped or dead-lettered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    Rejected,
    Expired,
    MaxLength,
    DeliveryLimit,
}

impl Reason {
    fn name(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::MaxLength => "maxlen",
            Self::DeliveryLimit => "delivery_limit",
        }
    }
}

/// Whether an entry of the header `x-death` is for this queue and reason.
fn is_death(death: &FieldValue, queue: &str, reason: Reason) -> bool {
    let text = |name| death.as_table()?.get(name)?.as_str();
    text("queue") == Some(queue) && text("reason") == Some(reason.name())
}

/// Makes a dead letter: the message with the headers about its death, for the dead-letter exchange.
pub(super) fn dead_letter(
    message: &Message,
    queue: &str,
    reason: Reason,
    exchange: &str,
    routing_key: Option<&str>,
) -> Message {
    let mut properties = message.properties.clone();
    let mut headers = properties.headers.take().unwrap_or_default();
    let is_first = headers.get("x-death").is_none();
    let mut deaths = match headers.remove("x-death") {
        Some(FieldValue::Array(deaths)) => deaths,
        _ => Vec::new(),
    };
    let death = match deaths.iter().position(|it| is_death(it, queue, reason)) {
        Some(at) => once_more(deaths.remove(at)),
        None => FieldValue::Table(death(message, queue, reason)),
    };
    deaths.insert(0, death);
    headers.insert("x-death", FieldValue::Array(deaths));
    if is_first {
        headers.insert("x-first-death-reason", reason.name());
        headers.insert("x-first-death-queue", queue);
        headers.insert("x-first-death-exchange", message.exchange.as_str());
    }
    if routing_key.is_some() {
        headers.remove("CC");
    }
    properties.headers = Some(headers);
    properties.expiration = None;
    Message {
        exchange: exchange.to_owned(),
        routing_key: routing_key.unwrap_or(&message.routing_key).to_owned(),
        hidden_keys: match routing_key {
            Some(_) => Vec::new(),
            None => message.hidden_keys.clone(),
        },
        properties,
        body: message.body.clone(),
    }
}

/// The entry of `x-death` for the first death in this queue for this reason.
fn death(message: &Message, queue: &str, reason: Reason) -> FieldTable {
    let keys = message.open_keys().map(FieldValue::from).collect();
    let mut death = FieldTable::new()
        .with("count", 1_i64)
        .with("reason", reason.name())
        .with("queue", queue)
        .with("time", FieldValue::Timestamp(now_in_seconds()))
        .with("exchange", message.exchange.as_str())
        .with("routing-keys", FieldValue::Array(keys));
    if let Some(expiration) = &message.properties.expiration {
        death.insert("original-expiration", expiration.to_string());
    }
    death
}

/// Counts another death. The rest of the entry keeps describing the first one.
fn once_more(death: FieldValue) -> FieldValue {
    match death {
        FieldValue::Table(mut death) => {
            let count = death.get("count").and_then(FieldValue::as_i64);
            death.insert("count", count.unwrap_or_default().saturating_add(1));
            FieldValue::Table(death)
        }
        other => other,
    }
}

/// Whether a dead letter has been in this queue before and no consumer has rejected it since.
/// RabbitMQ drops such a message.
pub(super) fn goes_in_circles(dead_letter: &Message, queue: &str) -> bool {
    let headers = dead_letter.properties.headers.as_ref();
    let deaths = headers.and_then(|headers| headers.get("x-death")?.as_array());
    let deaths = deaths.unwrap_or_default();
    let text = |death: &FieldValue, name| Some(death.as_table()?.get(name)?.as_str()?.to_owned());
    let Some(last) = deaths
        .iter()
        .position(|it| text(it, "queue").as_deref() == Some(queue))
    else {
        return false;
    };
    let since = deaths.iter().take(last + 1);
    since
        .filter_map(|it| text(it, "reason"))
        .all(|reason| reason != Reason::Rejected.name())
}

#[allow(clippy::disallowed_methods)] // Only for a header; no deadline depends on this time.
fn now_in_seconds() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}
