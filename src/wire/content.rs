//! A received message: names, properties and body.

use super::codec::WireResult;
use super::fast_deliver::WholeDelivery;
use super::frame::ContentHeader;
use super::properties::Properties;

/// How many bytes are reserved for a body when only its header has arrived. Beyond this limit,
/// memory grows with the data that arrives.
const RESERVE: usize = 1 << 20;

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
