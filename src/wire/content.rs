//! A received message: names, properties and body.

use super::codec::WireResult;
use super::fast_deliver::WholeDelivery;
use super::frame::ContentHeader;
use super::properties::Properties;

/// How many bytes are reserved for a body when only its header has arrived. Beyond this limit,
/// memory grows with the data that arrives.
const RESERVE: usize = 1 << 20;
/// The longest name in bytes.
const MAX_NAME: usize = 255;

/// A message's bytes in one allocation: exchange, routing key, properties, body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Content {
    bytes: Vec<u8>,
    // These are small because messages are moved often. A name has at most 255 bytes, and the
    // properties fit in a frame.
    exchange_end: u16,
    routing_key_end: u16,
    properties_end: u32,
}

impl Content {
    /// A message whose body has not arrived. `names` is the exchange, up to `exchange_end`, and the
    /// routing key.
    pub(crate) fn new(
        names: &[u8],
        exchange_end: usize,
        header: ContentHeader<'_>,
        body_size: usize,
    ) -> Self {
        let head = names.len() + header.properties.len();
        let mut bytes = Vec::with_capacity(head + body_size.min(RESERVE));
        bytes.extend_from_slice(names);
        bytes.extend_from_slice(header.properties);
        Self {
            exchange_end: exchange_end as u16,
            routing_key_end: names.len() as u16,
            properties_end: head as u32,
            bytes,
        }
    }

    /// A message that arrived as a whole. It is stored in the empty `buffer` if the size fits.
    #[inline]
    pub(crate) fn whole(message: &WholeDelivery<'_>, buffer: Option<Vec<u8>>) -> Self {
        let routing_key_end = message.exchange.len() + message.routing_key.len();
        let properties_end = routing_key_end + message.properties.len();
        let size = properties_end + message.body.len();
        // Do not use a buffer that is much too large: the program may keep the message for long.
        let fits = |buffer: &Vec<u8>| (size..=2 * size + 64).contains(&buffer.capacity());
        let fitting = buffer.filter(fits);
        let mut bytes = fitting.unwrap_or_else(|| Vec::with_capacity(size));
        bytes.extend_from_slice(message.exchange);
        bytes.extend_from_slice(message.routing_key);
        bytes.extend_from_slice(message.properties);
        bytes.extend_from_slice(message.body);
        Self {
            exchange_end: message.exchange.len() as u16,
            routing_key_end: routing_key_end as u16,
            properties_end: properties_end as u32,
            bytes,
        }
    }

    /// Replaces the exchange and the routing key. Nothing changes if they have more than 255 bytes.
    pub(crate) fn readdress(&mut self, exchange: &str, routing_key: &str) {
        if exchange.len().max(routing_key.len()) > MAX_NAME {
            return;
        }
        let names = exchange.bytes().chain(routing_key.bytes());
        let old = usize::from(self.routing_key_end).min(self.bytes.len());
        let new = exchange.len() + routing_key.len();
        self.bytes.splice(..old, names);
        self.properties_end = self.properties_end - old as u32 + new as u32;
        self.exchange_end = exchange.len() as u16;
        self.routing_key_end = new as u16;
    }

    fn properties_end(&self) -> usize {
        self.properties_end as usize
    }

    /// Appends a piece of the body.
    pub(crate) fn push(&mut self, piece: &[u8]) {
        self.bytes.extend_from_slice(piece);
    }

    /// The allocated memory in bytes.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    pub(crate) fn exchange(&self) -> &str {
        self.text(0, self.exchange_end.into())
    }

    pub(crate) fn routing_key(&self) -> &str {
        self.text(self.exchange_end.into(), self.routing_key_end.into())
    }

    /// The names were checked to be UTF-8 before they were stored.
    fn text(&self, start: usize, end: usize) -> &str {
        let bytes = self.bytes.get(start..end).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    pub(crate) fn properties(&self) -> WireResult<Properties> {
        Properties::decode(self.encoded_properties())
    }

    pub(crate) fn encoded_properties(&self) -> &[u8] {
        let bytes = self
            .bytes
            .get(self.routing_key_end.into()..self.properties_end());
        bytes.unwrap_or_default()
    }

    pub(crate) fn body(&self) -> &[u8] {
        self.bytes.get(self.properties_end()..).unwrap_or_default()
    }

    /// Returns the memory, so that it can be used again.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(crate) fn into_body(mut self) -> Vec<u8> {
        self.bytes.drain(..self.properties_end());
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_can_get_another_address() {
        let message = WholeDelivery {
            channel: 1,
            consumer_tag: b"tag",
            delivery_tag: 1,
            redelivered: false,
            exchange: b"events",
            routing_key: b"a.b",
            properties: b"\x00\x00",
            body: b"body",
            length: 0,
        };
        let mut content = Content::whole(&message, None);
        let long = "x".repeat(MAX_NAME + 1);
        for (exchange, routing_key) in [("", "queue"), ("an exchange", ""), ("", "")] {
            content.readdress(exchange, routing_key);
            content.readdress(&long, "");
            content.readdress("", &long);
            assert_eq!(content.exchange(), exchange);
            assert_eq!(content.routing_key(), routing_key);
            assert_eq!(content.encoded_properties(), b"\x00\x00");
            assert_eq!(content.body(), b"body");
        }
    }
}
