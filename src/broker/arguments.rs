//! Arguments of queues and exchanges: what they mean, and whether two declarations are equivalent.

use std::time::Duration;

use super::exchange::{integer, is_same};
use super::refusal::Refusal;
use crate::wire::value::{FieldTable, FieldValue};

/// What happens when the queue is full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Overflow {
    #[default]
    DropHead,
    RejectPublish,
    RejectPublishDeadLetter,
}

/// Arguments of a queue.
#[derive(Debug, Clone, Default)]
pub(super) struct Arguments {
    pub(super) table: FieldTable,
    pub(super) message_ttl: Option<Duration>,
    pub(super) expires: Option<Duration>,
    pub(super) max_length: Option<u64>,
    pub(super) max_bytes: Option<u64>,
    pub(super) overflow: Overflow,
    pub(super) max_priority: Option<u8>,
    pub(super) dead_letter_exchange: Option<String>,
    pub(super) dead_letter_routing_key: Option<String>,
    pub(super) single_active: bool,
    /// A quorum queue counts how often a message is requeued, and otherwise works like a classic
    /// one.
    pub(super) is_quorum: bool,
    pub(super) delivery_limit: Option<u64>,
}

/// Ten years in milliseconds. RabbitMQ refuses longer durations.
pub(super) const LONGEST: u64 = 315_360_000_000;

/// Arguments that must agree when a queue is declared again, besides `durable` and `auto_delete`.
const OF_QUEUES: &[&str] = &[
    "x-expires",
    "x-message-ttl",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-max-length",
    "x-max-length-bytes",
    "x-max-in-memory-length",
    "x-max-in-memory-bytes",
    "x-max-priority",
    "x-overflow",
    "x-queue-mode",
    "x-queue-version",
    "x-single-active-consumer",
    "x-queue-type",
    "x-max-age",
    "x-stream-max-segment-size-bytes",
];

/// Arguments that only other types of queues accept.
const NOT_OF_CLASSIC: &[&str] = &[
    "x-delivery-limit",
    "x-dead-letter-strategy",
    "x-max-in-memory-length",
    "x-max-in-memory-bytes",
    "x-quorum-initial-group-size",
    "x-queue-leader-locator",
    "x-max-age",
    "x-stream-max-segment-size-bytes",
    "x-initial-cluster-size",
];
const NOT_OF_QUORUM: &[&str] = &[
    "x-max-priority",
    "x-queue-mode",
    "x-queue-version",
    "x-queue-master-locator",
    "x-max-age",
    "x-stream-max-segment-size-bytes",
    "x-initial-cluster-size",
];

impl Arguments {
    /// `resource` is the queue's name in error texts.
    pub(super) fn read(table: &FieldTable, resource: &str) -> Result<Self, Refusal> {
        let read = Reader { table, resource };
        let dead_letter_exchange = exchange_in(table, "x-dead-letter-exchange", resource)?;
        let is_quorum = read.is_quorum()?;
        read.assert_known(is_quorum)?;
        read.check()?;
        let dead_letter_routing_key = read.text("x-dead-letter-routing-key")?;
        if dead_letter_routing_key.is_some() && dead_letter_exchange.is_none() {
            let text = "routing_key_but_no_dlx_defined";
            return Err(read.invalid("x-dead-letter-routing-key", text));
        }
        let priority = read.number("x-max-priority", u8::MAX.into(), "max_value_exceeded")?;
        Ok(Self {
            message_ttl: read.milliseconds("x-message-ttl")?,
            expires: read.expires()?,
            max_length: read.number("x-max-length", u64::MAX, "")?,
            max_bytes: read.number("x-max-length-bytes", u64::MAX, "")?,
            overflow: read.overflow()?,
            max_priority: priority.and_then(|it| u8::try_from(it).ok()),
            dead_letter_exchange,
            dead_letter_routing_key,
            is_quorum,
            delivery_limit: read.delivery_limit()?,
            single_active: read.truth("x-single-active-consumer")?,
            table: table.clone(),
        })
    }
}

/// Reads a consumer's priority.
pub(super) fn consumer_priority(table: &FieldTable, resource: &str) -> Result<i64, Refusal> {
    let read = Reader { table, resource };
    let Some(value) = table.get("x-priority") else {
        return Ok(0);
    };
    let integer = value.as_i64();
    integer.ok_or_else(|| read.no_integer("x-priority", value))
}

/// Reads the name of an exchange from the arguments of `resource`.
pub(super) fn exchange_in(
    table: &FieldTable,
    name: &str,
    resource: &str,
) -> Result<Option<String>, Refusal> {
    match table.get(name) {
        Some(value) if value.as_str().is_none() => Err(Refusal::failed(format!(
            "invalid type '{}' for arg '{name}' in {resource}",
            type_name(value)
        ))),
        value => Ok(value.and_then(FieldValue::as_str).map(str::to_owned)),
    }
}

struct Reader<'a> {
    table: &'a FieldTable,
    resource: &'a str,
}

impl Reader<'_> {
    fn invalid(&self, name: &str, reason: impl AsRef<str>) -> Refusal {
        let (resource, reason) = (self.resource, reason.as_ref());
        Refusal::failed(format!("invalid arg '{name}' for {resource}: {reason}"))
    }

    fn unacceptable(&self, name: &str, value: &FieldValue) -> Refusal {
        self.invalid(name, format!("{{unacceptable_type,{}}}", type_name(value)))
    }

    fn no_integer(&self, name: &str, value: &FieldValue) -> Refusal {
        self.invalid(
            name,
            format!("\"expected integer, got {}\"", type_name(value)),
        )
    }

    fn number(&self, name: &str, highest: u64, too_large: &str) -> Result<Option<u64>, Refusal> {
        let Some(value) = self.table.get(name) else {
            return Ok(None);
        };
        let number = value.as_i64().ok_or_else(|| self.no_integer(name, value))?;
        match u64::try_from(number) {
            Ok(number) if number <= highest => Ok(Some(number)),
            Ok(number) => Err(self.invalid(name, format!("{{{too_large},{number}}}"))),
            Err(_) => Err(self.invalid(name, format!("{{value_negative,{number}}}"))),
        }
    }

    fn milliseconds(&self, name: &str) -> Result<Option<Duration>, Refusal> {
        let number = self.number(name, LONGEST, "value_too_large")?;
        Ok(number.map(Duration::from_millis))
    }

    /// As in RabbitMQ 4, a negative limit means no limit.
    fn delivery_limit(&self) -> Result<Option<u64>, Refusal> {
        let name = "x-delivery-limit";
        let value = self.table.get(name);
        let is_none = value.and_then(FieldValue::as_i64).is_some_and(|it| it < 0);
        match is_none {
            true => Ok(None),
            false => self.number(name, u64::MAX, ""),
        }
    }

    /// Checks arguments that have no effect here.
    fn check(&self) -> Result<(), Refusal> {
        let name = "x-dead-letter-strategy";
        match self.text(name)?.as_deref() {
            None | Some("at-most-once" | "at-least-once") => {}
            Some(_) => return Err(self.invalid(name, "invalid_dlx_strategy")),
        }
        let name = "x-queue-leader-locator";
        match self.text(name)?.as_deref() {
            None | Some("client-local" | "balanced" | "random" | "least-leaders") => {}
            Some(_) => return Err(self.invalid(name, "invalid_queue_locator_arg")),
        }
        let name = "x-quorum-initial-group-size";
        match self.number(name, u64::MAX, "")? {
            Some(0) => Err(self.invalid(name, "{value_zero,0}")),
            _ => Ok(()),
        }
    }

    fn expires(&self) -> Result<Option<Duration>, Refusal> {
        match self.milliseconds("x-expires")? {
            Some(Duration::ZERO) => Err(self.invalid("x-expires", "{value_zero,0}")),
            expires => Ok(expires),
        }
    }

    fn text(&self, name: &str) -> Result<Option<String>, Refusal> {
        let Some(value) = self.table.get(name) else {
            return Ok(None);
        };
        let text = value
            .as_str()
            .ok_or_else(|| self.unacceptable(name, value))?;
        Ok(Some(text.to_owned()))
    }

    fn truth(&self, name: &str) -> Result<bool, Refusal> {
        match self.table.get(name) {
            None => Ok(false),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.unacceptable(name, value)),
        }
    }

    fn assert_known(&self, is_quorum: bool) -> Result<(), Refusal> {
        let (kind, unknown) = match is_quorum {
            true => ("quorum", NOT_OF_QUORUM),
            false => ("classic", NOT_OF_CLASSIC),
        };
        let Some(name) = unknown.iter().find(|it| self.table.get(it).is_some()) else {
            return Ok(());
        };
        Err(Refusal::failed(format!(
            "invalid arg '{name}' for {} of queue type rabbit_{kind}_queue",
            self.resource
        )))
    }

    fn is_quorum(&self) -> Result<bool, Refusal> {
        match self.text("x-queue-type")?.as_deref() {
            None | Some("classic") => Ok(false),
            Some("quorum") => Ok(true),
            Some("stream") => {
                let text = "\"this broker does not support streams\"";
                Err(self.invalid("x-queue-type", text))
            }
            Some(other) => {
                let text = format!("\"unsupported queue type '{other}'\"");
                Err(self.invalid("x-queue-type", text))
            }
        }
    }

    fn overflow(&self) -> Result<Overflow, Refusal> {
        Ok(match self.text("x-overflow")?.as_deref() {
            None | Some("drop-head") => Overflow::DropHead,
            Some("reject-publish") => Overflow::RejectPublish,
            Some("reject-publish-dlx") => Overflow::RejectPublishDeadLetter,
            Some(_) => return Err(self.invalid("x-overflow", "invalid_overflow")),
        })
    }
}

/// RabbitMQ's name of a type in its error texts.
pub(super) fn type_name(value: &FieldValue) -> &'static str {
    match value {
        FieldValue::Bool(_) => "bool",
        FieldValue::I8(_) => "byte",
        FieldValue::U8(_) => "unsignedbyte",
        FieldValue::I16(_) => "short",
        FieldValue::U16(_) => "unsignedshort",
        FieldValue::I32(_) => "signedint",
        FieldValue::U32(_) => "unsignedint",
        FieldValue::I64(_) | FieldValue::U64(_) => "long",
        FieldValue::F32(_) => "float",
        FieldValue::F64(_) => "double",
        FieldValue::Decimal { .. } => "decimal",
        FieldValue::LongString(_) => "longstr",
        FieldValue::Array(_) => "array",
        FieldValue::Timestamp(_) => "timestamp",
        FieldValue::Table(_) => "table",
        FieldValue::Void => "void",
        FieldValue::ByteArray(_) => "binary",
    }
}

pub(super) fn type_and_value(value: &FieldValue) -> String {
    format!("{} (value {})", type_name(value), shown(value))
}

fn shown(value: &FieldValue) -> String {
    match (value.as_str(), integer(value), value.as_bool()) {
        (Some(text), ..) => text.to_owned(),
        (_, Some(number), _) => number.to_string(),
        (.., Some(truth)) => truth.to_string(),
        _ => format!("{value:?}"),
    }
}

/// Refuses a declaration that differs from the first one. `resource` is the name in error texts.
pub(super) fn assert_same(
    name: &str,
    resource: &str,
    received: &dyn std::fmt::Display,
    current: &dyn std::fmt::Display,
) -> Result<(), Refusal> {
    let (received, current) = (received.to_string(), current.to_string());
    if received == current {
        return Ok(());
    }
    Err(Refusal::failed(format!(
        "inequivalent arg '{name}' for {resource}: received '{received}' but current is '{current}'"
    )))
}

fn assert_same_argument(
    name: &str,
    resource: &str,
    received: &FieldTable,
    current: &FieldTable,
) -> Result<(), Refusal> {
    let with_type = |value: &FieldValue| {
        let (text, kind) = (shown(value), type_name(value));
        format!("the value '{text}' of type '{kind}'")
    };
    let none = || "none".to_owned();
    let (received, current) = match (received.get(name), current.get(name)) {
        (None, None) => return Ok(()),
        // A queue without a type is a classic queue.
        (None, Some(said)) | (Some(said), None)
            if name == "x-queue-type" && said.as_str() == Some("classic") =>
        {
            return Ok(())
        }
        (Some(received), Some(current)) if is_same(received, current) => return Ok(()),
        (Some(received), Some(current)) => {
            let quoted = |value| format!("'{}'", shown(value));
            (quoted(received), quoted(current))
        }
        (Some(received), None) => (with_type(received), none()),
        (None, Some(current)) => (none(), with_type(current)),
    };
    Err(Refusal::failed(format!(
        "inequivalent arg '{name}' for {resource}: received {received} but current is {current}"
    )))
}

pub(super) fn assert_same_queue(
    resource: &str,
    received: &FieldTable,
    current: &FieldTable,
) -> Result<(), Refusal> {
    let mut names = OF_QUEUES.iter();
    names.try_for_each(|name| assert_same_argument(name, resource, received, current))
}

pub(super) fn assert_same_exchange(
    resource: &str,
    received: &FieldTable,
    current: &FieldTable,
) -> Result<(), Refusal> {
    assert_same_argument("alternate-exchange", resource, received, current)
}
