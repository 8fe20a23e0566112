//! Frames: how methods, content headers and bodies are cut out of a byte stream, and written to
//! one.

use std::ops::Range;

use byteorder::{BigEndian, ByteOrder};

use super::codec::{Reader, WireError, WireResult, Writer};
use super::method::Encode;
use super::properties::Properties;

/// The first bytes that a client sends: the protocol and its version.
pub(crate) const PROTOCOL_HEADER: [u8; 8] = *b"AMQP\x00\x00\x09\x01";
/// Bytes around a payload: seven before it, one after it.
pub(crate) const OVERHEAD: usize = 8;
/// Every peer must accept frames of this size, and may not negotiate a lower limit.
pub(crate) const MIN_SIZE: u32 = 4096;

pub(crate) const BASIC_CLASS: u16 = 60;
/// Maximum size in bytes of a piece of a body, even if larger frames are allowed: between two
/// frames, other channels have their turn.
pub(crate) const BODY_PIECE: usize = 128 << 10;
const HEAD: usize = 7;
pub(crate) const END: u8 = 0xce;

pub(crate) const METHOD: u8 = 1;
pub(crate) const HEADER: u8 = 2;
pub(crate) const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameKind {
    Method,
    Header,
    Body,
    Heartbeat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) kind: FrameKind,
    pub(crate) channel: u16,
    pub(crate) payload: &'a [u8],
}

/// The result of looking for a frame at the front of the input.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Cut<'a> {
    /// A whole frame, and its length in bytes.
    Frame(Frame<'a>, usize),
    /// The rest of the frame has not arrived.
    Incomplete,
}

/// Looks for a frame at the front of `input`. `limit` bounds the payload: a larger size is refused
/// as soon as it is read.
#[inline]
pub(crate) fn cut(input: &[u8], limit: usize) -> WireResult<Cut<'_>> {
    let Some((head, rest)) = split_at(input, HEAD) else {
        if let Some(&kind) = input.first() {
            frame_kind(kind)?;
        }
        return Ok(Cut::Incomplete);
    };
    let mut reader = Reader::new(head);
    let kind = frame_kind(reader.u8("a frame")?)?;
    let channel = reader.u16("a frame")?;
    let size = reader.u32("a frame")? as usize;
    if size > limit {
        return Err(WireError::FrameTooLarge {
            size: size as u64,
            limit: limit as u64,
        });
    }
    let Some((payload, end)) = split_at(rest, size) else {
        return Ok(Cut::Incomplete);
    };
    match end.first() {
        None => Ok(Cut::Incomplete),
        Some(&END) => {
            let frame = Frame {
                kind,
                channel,
                payload,
            };
            Ok(Cut::Frame(frame, size + OVERHEAD))
        }
        Some(&other) => Err(WireError::WrongFrameEnd(other)),
    }
}

/// A body frame whose end has not arrived.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BegunBody<'a> {
    pub(crate) channel: u16,
    pub(crate) size: usize,
    /// The beginning of the payload, or all of it.
    pub(crate) payload: &'a [u8],
}

/// Looks at the front of an input in which [`cut`] has found no whole frame.
pub(crate) fn begun_body(input: &[u8]) -> Option<BegunBody<'_>> {
    let (&[BODY, channel @ .., s0, s1, s2, s3], payload) = input.split_first_chunk::<HEAD>()?
    else {
        return None;
    };
    let size = u32::from_be_bytes([s0, s1, s2, s3]) as usize;
    Some(BegunBody {
        channel: u16::from_be_bytes(channel),
        size,
        payload: payload.get(..size).unwrap_or(payload),
    })
}

/// Returns the whole frames at the front of `bytes`, each with its channel. The frames must be our
/// own output.
pub(crate) fn whole(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let Ok(Cut::Frame(frame, length)) = cut(bytes, usize::MAX) else {
            return None;
        };
        let (frame_bytes, rest) = split_at(bytes, length)?;
        bytes = rest;
        Some((frame.channel, frame_bytes))
    })
}

fn split_at(bytes: &[u8], at: usize) -> Option<(&[u8], &[u8])> {
    (bytes.len() >= at).then(|| bytes.split_at(at))
}

fn frame_kind(kind: u8) -> WireResult<FrameKind> {
    Ok(match kind {
        METHOD => FrameKind::Method,
        HEADER => FrameKind::Header,
        BODY => FrameKind::Body,
        HEARTBEAT => FrameKind::Heartbeat,
        unknown => return Err(WireError::UnknownFrameType(unknown)),
    })
}

/// A content header: the size of the body, and the encoded properties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ContentHeader<'a> {
    pub(crate) body_size: u64,
    pub(crate) properties: &'a [u8],
}

impl<'a> ContentHeader<'a> {
    #[inline]
    pub(crate) fn decode(payload: &'a [u8]) -> WireResult<Self> {
        let mut reader = Reader::new(payload);
        let class = reader.u16("a content header")?;
        if class != BASIC_CLASS {
            return Err(WireError::UnknownContentClass(class));
        }
        let _weight = reader.u16("a content header")?;
        let body_size = reader.u64("a content header")?;
        let properties = payload.get(12..).unwrap_or_default();
        Ok(Self {
            body_size,
            properties,
        })
    }
}

/// Appends a frame whose payload `body` writes. On an error, the buffer stays unchanged.
#[inline]
fn write_frame(
    buffer: &mut Vec<u8>,
    kind: u8,
    channel: u16,
    limit: usize,
    body: impl FnOnce(&mut Vec<u8>) -> WireResult<()>,
) -> WireResult<()> {
    let start = buffer.len();
    let mut head = [kind, 0, 0, 0, 0, 0, 0];
    BigEndian::write_u16(&mut head[1..3], channel);
    buffer.extend_from_slice(&head);
    let written = body(buffer).and_then(|()| {
        let size = buffer.len() - start - HEAD;
        if size > limit {
            return Err(WireError::FrameTooLarge {
                size: size as u64,
                limit: limit as u64,
            });
        }
        Ok(size)
    });
    let size = match written {
        Ok(size) => size,
        Err(error) => {
            buffer.truncate(start);
            return Err(error);
        }
    };
    if let Some(place) = buffer.get_mut(start + 3..start + HEAD) {
        // The limit is below 4 GiB: `frame_max` is a 32-bit number.
        BigEndian::write_u32(place, size as u32);
    }
    buffer.push(END);
    Ok(())
}

/// Appends a method frame, or nothing if it cannot be encoded or its payload is above `limit`.
#[inline]
pub(crate) fn write_method<M: Encode>(
    buffer: &mut Vec<u8>,
    channel: u16,
    method: &M,
    limit: usize,
) -> WireResult<()> {
    write_frame(buffer, METHOD, channel, limit, |buffer| {
        method.encode(buffer)
    })
}

/// Appends content: the header frame and as many body frames as the body needs, each with at most
/// `limit` and [`BODY_PIECE`] bytes of payload. Returns where the properties are in the buffer.
/// Appends nothing if the header does not fit in one frame.
#[inline]
pub(crate) fn write_content(
    buffer: &mut Vec<u8>,
    channel: u16,
    properties: Option<&Properties>,
    body: &[u8],
    limit: usize,
) -> WireResult<Range<usize>> {
    let start = buffer.len() + HEAD + 12;
    write_frame(buffer, HEADER, channel, limit, |buffer| {
        let mut writer = Writer::new(buffer);
        writer.u16(BASIC_CLASS);
        writer.u16(0);
        writer.u64(body.len() as u64);
        match properties {
            Some(properties) => properties.encode(buffer),
            None => {
                writer.u16(0);
                Ok(())
            }
        }
    })?;
    let properties = start..buffer.len() - 1;
    for piece in body.chunks(limit.min(BODY_PIECE)) {
        write_frame(buffer, BODY, channel, limit, |buffer| {
            buffer.extend_from_slice(piece);
            Ok(())
        })?;
    }
    Ok(properties)
}

/// Whether all frames of our own output have at most `limit` bytes of payload.
pub(crate) fn fits(frames: &[u8], limit: usize) -> bool {
    frames.len() <= limit + OVERHEAD || whole(frames).all(|(_, it)| it.len() <= limit + OVERHEAD)
}

/// Returns a message's frames with its body cut into pieces of at most `limit` bytes.
pub(crate) fn cut_smaller(frames: &[u8], limit: usize) -> WireResult<Vec<u8>> {
    let mut smaller = Vec::with_capacity(frames.len());
    for (channel, frame) in whole(frames) {
        let kind = frame.first().copied().unwrap_or_default();
        let payload = frame.get(HEAD..frame.len() - 1).unwrap_or_default();
        let piece_size = if kind == BODY { limit } else { usize::MAX };
        for piece in payload.chunks(piece_size) {
            write_frame(&mut smaller, kind, channel, limit, |buffer| {
                buffer.extend_from_slice(piece);
                Ok(())
            })?;
        }
    }
    Ok(smaller)
}

pub(crate) fn write_heartbeat(buffer: &mut Vec<u8>) {
    buffer.extend_from_slice(&[HEARTBEAT, 0, 0, 0, 0, 0, 0, END]);
}
