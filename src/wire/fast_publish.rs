//! The fast path for the most common output of a busy connection: small messages without
//! properties.

use std::ops::Range;

use super::frame::{BASIC_CLASS, BODY, BODY_PIECE, END, HEADER, METHOD, OVERHEAD};
use super::method::{BasicPublish, Encode};

/// The size of the frames without names and body. The method frame has its overhead, ids (4),
/// ticket (2), two lengths (2) and bits (1); the header frame is whole; the body frame has its
/// overhead.
const AROUND: usize = OVERHEAD + 9 + HEADER_FRAME + OVERHEAD;
const HEADER_PAYLOAD: u8 = 14;
const HEADER_FRAME: usize = OVERHEAD + HEADER_PAYLOAD as usize;

/// Appends a message that has no properties and a body of one frame, in a few large writes. Returns
/// where the properties are in the buffer.
///
/// For any other message, it returns `None` and appends nothing: the general path then writes field
/// by field, or reports the error.
#[inline]
pub(crate) fn write_plain(
    buffer: &mut Vec<u8>,
    channel: u16,
    publish: &BasicPublish<'_>,
    body: &[u8],
    limit: usize,
) -> Option<Range<usize>> {
    let (exchange, routing_key) = (publish.exchange.as_bytes(), publish.routing_key.as_bytes());
    let exchange_length = u8::try_from(exchange.len()).ok()?;
    let routing_key_length = u8::try_from(routing_key.len()).ok()?;
    let names = exchange.len() + routing_key.len();
    let method_size = (9 + names) as u16;
    let is_one_piece = !body.is_empty() && body.len() <= limit.min(BODY_PIECE);
    if !is_one_piece || usize::from(method_size) > limit {
        return None;
    }
    let [c0, c1] = channel.to_be_bytes();
    let [s0, s1] = method_size.to_be_bytes();
    let [b0, b1, b2, b3] = u32::try_from(body.len()).ok()?.to_be_bytes();
    let [k0, k1] = BASIC_CLASS.to_be_bytes();
    let [m0, m1] = BasicPublish::ID.method.to_be_bytes();
    let [t0, t1] = publish.ticket.to_be_bytes();
    let bits = u8::from(publish.mandatory) | u8::from(publish.immediate) << 1;

    buffer.reserve(AROUND + names + body.len());
    #[rustfmt::skip]
    let head = [
        METHOD, c0, c1, 0, 0, s0, s1,
        k0, k1, m0, m1, t0, t1, exchange_length,
    ];
    buffer.extend_from_slice(&head);
    buffer.extend_from_slice(exchange);
    buffer.push(routing_key_length);
    buffer.extend_from_slice(routing_key);
    #[rustfmt::skip]
    let between = [
        bits, END,
        HEADER, c0, c1, 0, 0, 0, HEADER_PAYLOAD,
        k0, k1, 0, 0, 0, 0, 0, 0, b0, b1, b2, b3, 0, 0, END,
        BODY, c0, c1, b0, b1, b2, b3,
    ];
    buffer.extend_from_slice(&between);
    // The empty properties are the first two of the last ten bytes.
    let properties = buffer.len() - 10..buffer.len() - 8;
    buffer.extend_from_slice(body);
    buffer.push(END);
    Some(properties)
}
