//! Copies of messages that a handler of `Workers` could not handle.

use super::Delivery;
use crate::error::shortened;
use crate::message::Message;
use crate::wire::properties::Properties;
use crate::wire::value::FieldTable;

const STEP: &str = "x-retry-step";
const ATTEMPTS: &str = "x-retry-attempts";
const EXCHANGE: &str = "x-retry-exchange";
const ROUTING_KEY: &str = "x-retry-routing-key";
const ERROR: &str = "x-retry-error";

/// Headers that do not suit a copy. The first would route it to further queues. The next count
/// deliveries from another queue. With the others, RabbitMQ 3.10 can take the copy for a message
/// that is dead-lettered in a circle, and drops it when it leaves its retry queue.
const OF_THE_ORIGINAL: &[&str] = &[
    "CC",
    "BCC",
    "x-delivery-count",
    "x-acquired-count",
    "x-death",
    "x-first-death-exchange",
    "x-first-death-queue",
    "x-first-death-reason",
    "x-last-death-exchange",
    "x-last-death-queue",
    "x-last-death-reason",
];

impl Delivery {
    /// How often the message was retried.
    pub(crate) fn retries(&self) -> u64 {
        self.number(STEP)
    }

    /// How often the message has failed, if its queue counts that. `None` at the first delivery.
    pub(crate) fn failures(&self) -> Option<u64> {
        match (self.acquired_count(), self.delivery_count()) {
            // No header of a broker that counts is zero when a message is redelivered.
            (None, None | Some(0)) => None,
            (_, failures) => Some(failures.unwrap_or_default()),
        }
    }

    /// How many attempts the message had before it was last retried.
    pub(super) fn retry_attempts(&self) -> u64 {
        self.number(ATTEMPTS)
    }

    fn number(&self, header: &str) -> u64 {
        let value = self.header(header).and_then(|it| it.as_u64());
        value.unwrap_or_default()
    }

    /// Gives the message its first exchange and routing key, if it is a copy that has come back to
    /// `queue`.
    pub(crate) fn as_first_published(&mut self, queue: &str) {
        if !self.exchange().is_empty() || self.routing_key() != queue {
            return;
        }
        let first = |name| self.header(name).and_then(|it| it.as_str());
        let (Some(exchange), Some(routing_key)) = (first(EXCHANGE), first(ROUTING_KEY)) else {
            return;
        };
        let (exchange, routing_key) = (exchange.to_owned(), routing_key.to_owned());
        self.content.readdress(&exchange, &routing_key);
    }

    /// Makes the copy of a message that has failed with `error`.
    pub(crate) fn to_retry(&self, error: &str) -> Message<'_> {
        let headers = |headers: FieldTable| {
            let mut headers = headers;
            headers.insert(STEP, at_most_i64(self.retries().saturating_add(1)));
            headers.insert(ATTEMPTS, at_most_i64(self.attempts()));
            headers.insert(EXCHANGE, self.exchange());
            headers.insert(ROUTING_KEY, self.routing_key());
            headers.insert(ERROR, shortened(error));
            headers
        };
        self.to_copy(headers)
    }

    /// Makes the copy of a parked message that begins anew.
    pub(crate) fn to_unparked(&self) -> Message<'_> {
        self.to_copy(|mut headers| {
            for name in [STEP, ATTEMPTS, ERROR] {
                headers.remove(name);
            }
            headers
        })
    }

    fn to_copy(&self, change: impl FnOnce(FieldTable) -> FieldTable) -> Message<'_> {
        // Malformed properties cannot be copied. The body still can.
        let properties = self.properties().cloned().unwrap_or_default();
        let mut headers = properties.headers.unwrap_or_default();
        for name in OF_THE_ORIGINAL {
            headers.remove(name);
        }
        Message::new(self.body()).with_properties(Properties {
            headers: Some(change(headers)),
            expiration: None,
            user_id: None,
            delivery_mode: Some(2),
            ..properties
        })
    }
}

/// AMQP has no larger integer, and any publisher can set the headers.
fn at_most_i64(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
