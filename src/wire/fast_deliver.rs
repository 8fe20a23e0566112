//! The fast path for the most common input of a busy connection: whole deliveries.

use super::frame::{BASIC_CLASS, BODY, END, HEADER, METHOD, OVERHEAD};
use super::method::{BasicDeliver, Encode, MethodId};

/// A message for a consumer, as it is in the input: `basic.deliver`, a header, and at most one body
/// frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct WholeDelivery<'a> {
    pub(crate) channel: u16,
    /// Not checked to be UTF-8. The check is unnecessary if the bytes equal the tag of a known
    /// consumer.
    pub(crate) consumer_tag: &'a [u8],
    pub(crate) delivery_tag: u64,
    pub(crate) redelivered: bool,
    /// Exchange and routing key are UTF-8.
    pub(crate) exchange: &'a [u8],
    pub(crate) routing_key: &'a [u8],
    pub(crate) properties: &'a [u8],
    pub(crate) body: &'a [u8],
    /// How many bytes of the input the message takes.
    pub(crate) length: usize,
}

impl<'a> WholeDelivery<'a> {
    /// Looks for a whole delivery at the front of `input`. `limit` bounds each frame's payload.
    /// Returns `None` for any other input and for every error: the general path then reads frame by
    /// frame and reports the error.
    #[inline]
    pub(crate) fn cut(input: &'a [u8], limit: usize) -> Option<Self> {
        let mut rest = input;
        let (channel, mut deliver) = take_frame(&mut rest, METHOD, limit)?;
        let class = u16::from_be_bytes(take(&mut deliver)?);
        let method = u16::from_be_bytes(take(&mut deliver)?);
        if (MethodId { class, method }) != BasicDeliver::ID {
            return None;
        }
        let consumer_tag = take_short(&mut deliver)?;
        let delivery_tag = u64::from_be_bytes(take(&mut deliver)?);
        let [bits] = take(&mut deliver)?;
        let exchange = take_text(&mut deliver)?;
        let routing_key = take_text(&mut deliver)?;

        let (of_header, mut header) = take_frame(&mut rest, HEADER, limit)?;
        let class = u16::from_be_bytes(take(&mut header)?);
        let [_, _] = take(&mut header)?;
        let body_size = u64::from_be_bytes(take(&mut header)?);

        let (of_body, body) = match body_size {
            0 => (channel, &[] as &[u8]),
            _ => take_frame(&mut rest, BODY, limit)?,
        };
        let fits = deliver.is_empty() && class == BASIC_CLASS && body.len() as u64 == body_size;
        (fits && of_header == channel && of_body == channel).then_some(Self {
            channel,
            consumer_tag,
            delivery_tag,
            redelivered: bits & 1 != 0,
            exchange,
            routing_key,
            properties: header,
            body,
            length: input.len() - rest.len(),
        })
    }
}

#[inline(always)]
fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*taken)
}

#[inline(always)]
fn take_short<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let [length] = take(bytes)?;
    let (short, rest) = bytes.split_at_checked(length.into())?;
    *bytes = rest;
    Some(short)
}

#[inline(always)]
fn take_text<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let text = take_short(bytes)?;
    // Most names are short and ASCII, which is the faster check.
    (text.is_ascii() || std::str::from_utf8(text).is_ok()).then_some(text)
}

/// Takes a frame of this kind, and returns its channel and payload.
#[inline(always)]
fn take_frame<'a>(bytes: &mut &'a [u8], kind: u8, limit: usize) -> Option<(u16, &'a [u8])> {
    let [is_kind, channel @ .., s0, s1, s2, s3] = take::<{ OVERHEAD - 1 }>(bytes)?;
    let size = u32::from_be_bytes([s0, s1, s2, s3]) as usize;
    let (payload, rest) = bytes.split_at_checked(size)?;
    let (&end, rest) = rest.split_first()?;
    *bytes = rest;
    let is_right = is_kind == kind && size <= limit && end == END;
    is_right.then_some((u16::from_be_bytes(channel), payload))
}
