//! Assembles messages from their frames: a method, a header, and any number of body frames.

use std::fmt;

use crate::wire::content::{Arriving, Content};
use crate::wire::frame::ContentHeader;

/// The exchange and routing key of the arriving message, kept until its header gives the size. The
/// buffer is reused for each message.
#[derive(Debug, Default)]
pub(crate) struct Names {
    bytes: Vec<u8>,
    exchange_end: usize,
}

impl Names {
    pub(crate) fn set(&mut self, exchange: &str, routing_key: &str) {
        self.bytes.clear();
        self.bytes.extend_from_slice(exchange.as_bytes());
        self.exchange_end = exchange.len();
        self.bytes.extend_from_slice(routing_key.as_bytes());
    }
}

/// How much of a channel's next message has arrived. `K` is the kind of the message.
#[derive(Debug)]
pub(crate) enum Assembly<K> {
    /// No message is arriving.
    Idle,
    /// The method has arrived. The header comes next.
    Header(K),
    /// Some of the body has not arrived.
    Body { kind: K, content: Arriving },
    /// The header of an unwanted message comes next.
    SkipHeader,
    /// `missing` bytes of a message that is too large or unwanted have not arrived.
    Skip { missing: u64 },
}

/// Why a frame does not fit the arriving message.
#[derive(Debug)]
pub(crate) enum Misfit<K> {
    UnexpectedHeader,
    UnexpectedBody,
    BodyTooLong { excess: u64 },
    MessageTooLarge { kind: K, size: u64 },
}

impl<K> fmt::Display for Misfit<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnexpectedHeader => f.write_str("a content header without its method"),
            Self::UnexpectedBody => f.write_str("a body without its header"),
            Self::BodyTooLong { excess } => {
                write!(f, "a body {excess} bytes longer than its header said")
            }
            Self::MessageTooLarge { size, .. } => write!(f, "a message of {size} bytes"),
        }
    }
}

impl<K> Assembly<K> {
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self, Self::Idle)
    }

    /// The kind of the arriving message. `None` if there is none, or if it is skipped.
    pub(crate) fn kind(&self) -> Option<&K> {
        match self {
            Self::Idle | Self::SkipHeader | Self::Skip { .. } => None,
            Self::Header(kind) | Self::Body { kind, .. } => Some(kind),
        }
    }

    /// As [`kind`](Self::kind), by value.
    pub(crate) fn into_kind(self) -> Option<K> {
        match self {
            Self::Idle | Self::SkipHeader | Self::Skip { .. } => None,
            Self::Header(kind) | Self::Body { kind, .. } => Some(kind),
        }
    }

    /// Adds the header. Returns the message if it has no body.
    pub(crate) fn header(
        &mut self,
        names: &Names,
        header: ContentHeader<'_>,
        max_size: u64,
        take: impl FnOnce(usize) -> Option<Vec<u8>>,
    ) -> Result<Option<(K, Content)>, Misfit<K>> {
        let kind = match std::mem::replace(self, Self::Idle) {
            Self::Header(kind) => kind,
            Self::SkipHeader => {
                if header.body_size > 0 {
                    let missing = header.body_size;
                    *self = Self::Skip { missing };
                }
                return Ok(None);
            }
            other @ (Self::Idle | Self::Body { .. } | Self::Skip { .. }) => {
                // Keeps the kind: the call of a fetched message still needs its answer.
                *self = other;
                return Err(Misfit::UnexpectedHeader);
            }
        };
        let size = header.body_size;
        let fits = usize::try_from(size).ok().filter(|_| size <= max_size);
        let Some(body_size) = fits else {
            *self = Self::Skip { missing: size };
            return Err(Misfit::MessageTooLarge { kind, size });
        };
        let content = Arriving::new(&names.bytes, names.exchange_end, header, body_size, take);
        *self = Self::Body { kind, content };
        Ok(self.take_whole())
    }

    /// Adds a body frame. Returns the message if that was the last one.
    pub(crate) fn body(&mut self, piece: &[u8]) -> Result<Option<(K, Content)>, Misfit<K>> {
        self.expects(piece.len())?;
        self.piece(piece);
        Ok(self.take_whole())
    }

    /// Checks the size of a body frame.
    pub(crate) fn expects(&self, size: usize) -> Result<(), Misfit<K>> {
        let missing = match self {
            Self::Body { content, .. } => content.missing() as u64,
            Self::Skip { missing } => *missing,
            Self::Idle | Self::Header(_) | Self::SkipHeader => return Err(Misfit::UnexpectedBody),
        };
        match (size as u64).checked_sub(missing) {
            None | Some(0) => Ok(()),
            Some(excess) => Err(Misfit::BodyTooLong { excess }),
        }
    }

    /// Adds a piece of a body frame.
    pub(crate) fn piece(&mut self, piece: &[u8]) {
        match self {
            Self::Body { content, .. } => content.push(piece),
            Self::Skip { missing } => *missing = missing.saturating_sub(piece.len() as u64),
            Self::Idle | Self::Header(_) | Self::SkipHeader => {}
        }
    }

    /// The message whose body is arriving. `None` if it is skipped.
    pub(crate) fn arriving(&mut self) -> Option<&mut Arriving> {
        match self {
            Self::Body { content, .. } => Some(content),
            Self::Idle | Self::Header(_) | Self::SkipHeader | Self::Skip { .. } => None,
        }
    }

    /// Takes the message if all of its body has come.
    pub(crate) fn take_whole(&mut self) -> Option<(K, Content)> {
        let is_whole = match self {
            Self::Body { content, .. } => content.missing() == 0,
            Self::Skip { missing } => *missing == 0,
            Self::Idle | Self::Header(_) | Self::SkipHeader => false,
        };
        if !is_whole {
            return None;
        }
        match std::mem::replace(self, Self::Idle) {
            Self::Body { kind, content } => Some((kind, content.into_content())),
            Self::Idle | Self::Header(_) | Self::SkipHeader | Self::Skip { .. } => None,
        }
    }
}
