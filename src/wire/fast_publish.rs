//! The shortest way for what a busy connection writes most: small messages without properties.

use std::ops::Range;

use super::frame::{BASIC_CLASS, BODY, BODY_PIECE, END, HEADER, METHOD, OVERHEAD};
use super::method::{BasicPublish, Encode};

/// What the frames have around the names and the body: seven bytes, ids, ticket and two lengths; the bits and the end; a
/// whole header frame; seven bytes and the end.
const AROUND: usize = OVERHEAD + 9 + HEADER_FRAME + OVERHEAD;
const HEADER_PAYLOAD: u8 = 14;
const HEADER_FRAME: usize = OVERHEAD + HEADER_PAYLOAD as usize;

/// Appends a message that has no properties and a body of one frame, as few pieces. Returns where the properties stand; none,
/// and nothing is appended, if it is not such a message: the general way, field by field, does it then, or says what is wrong.
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
    // The last ten of these bytes begin with an empty list of properties.
    let properties = buffer.len() - 10..buffer.len() - 8;
    buffer.extend_from_slice(body);
    buffer.push(END);
    Some(properties)
}
