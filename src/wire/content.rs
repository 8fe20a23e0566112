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

/// A message whose body arrives in pieces.
#[derive(Debug)]
pub(crate) struct Arriving {
    /// Of the size of the message, or less if that is above [`RESERVE`].
    content: Content,
    /// How many bytes have come: names, properties, and the beginning of the body.
    filled: usize,
    size: usize,
}

impl Arriving {
    /// A message whose body has not arrived. `names` is the exchange, up to `exchange_end`, and the
    /// routing key. `take` returns memory of a former message for a size, with any content.
    pub(crate) fn new(
        names: &[u8],
        exchange_end: usize,
        header: ContentHeader<'_>,
        body_size: usize,
        take: impl FnOnce(usize) -> Option<Vec<u8>>,
    ) -> Self {
        let head = names.len() + header.properties.len();
        let reserved = head + body_size.min(RESERVE);
        let mut bytes = take(reserved).unwrap_or_default();
        match bytes.capacity() {
            // Needs no clearing if it is fresh from the system.
            0 => bytes = vec![0; reserved],
            _ => bytes.resize(reserved, 0),
        }
        let content = Content {
            exchange_end: exchange_end as u16,
            routing_key_end: names.len() as u16,
            properties_end: head as u32,
            bytes,
        };
        let mut arriving = Self {
            content,
            filled: 0,
            size: head + body_size,
        };
        arriving.push(names);
        arriving.push(header.properties);
        arriving
    }

    /// How many bytes of the body have not arrived.
    pub(crate) fn missing(&self) -> usize {
        self.size - self.filled
    }

    /// Appends a piece of the message. What is too long is left out.
    pub(crate) fn push(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            let room = self.room(piece.len());
            let count = room.len();
            let (first, rest) = piece.split_at(count);
            room.copy_from_slice(first);
            if count == 0 {
                return;
            }
            self.arrived(count);
            piece = rest;
        }
    }

    /// The place of the next bytes, at most this many.
    pub(crate) fn room(&mut self, most: usize) -> &mut [u8] {
        let bytes = &mut self.content.bytes;
        if self.filled == bytes.len() {
            bytes.resize(self.size.min(2 * bytes.len()), 0);
        }
        let end = bytes.len().min(self.filled.saturating_add(most));
        bytes.get_mut(self.filled..end).unwrap_or_default()
    }

    /// Notes that bytes have come to the [`room`](Self::room).
    pub(crate) fn arrived(&mut self, count: usize) {
        self.filled += count;
    }

    /// The message, once no byte is missing.
    pub(crate) fn into_content(self) -> Content {
        self.content
    }
}

impl Content {
    /// A message that arrived as a whole. It is stored in a buffer that `take` returns for its
    /// size.
    #[inline]
    pub(crate) fn whole(
        message: &WholeDelivery<'_>,
        take: impl FnOnce(usize) -> Option<Vec<u8>>,
    ) -> Self {
        let routing_key_end = message.exchange.len() + message.routing_key.len();
        let properties_end = routing_key_end + message.properties.len();
        let size = properties_end + message.body.len();
        let mut bytes = take(size).unwrap_or_else(|| Vec::with_capacity(size));
        bytes.clear();
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
        let mut content = Content::whole(&message, |_| None);
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
