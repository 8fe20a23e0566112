//! Messages as they are put together: a method, a header, any number of body frames.

use std::fmt;

use crate::wire::content::Content;
use crate::wire::frame::ContentHeader;

/// The names of the message that is coming, kept until its size is known. The buffer is used again and again.
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

/// How far the message that is coming on a channel has come. `K` says what it will be.
#[derive(Debug)]
pub(crate) enum Assembly<K> {
    /// No message is coming.
    Idle,
    /// Its method was read, its header comes next.
    Header(K),
    /// `missing` bytes of body are yet to come.
    Body {
        kind: K,
        content: Content,
        missing: u64,
    },
    /// The header of an unwanted message comes next.
    SkipHeader,
    /// `missing` bytes are yet to come of a message that is too large, or unwanted.
    Skip { missing: u64 },
}

/// Why a frame does not fit into the message that is coming.
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

    /// What the message will be, if one is coming.
    pub(crate) fn kind(&self) -> Option<&K> {
        match self {
            Self::Idle | Self::SkipHeader | Self::Skip { .. } => None,
            Self::Header(kind) | Self::Body { kind, .. } => Some(kind),
        }
    }

    /// What the message would have been, if one was coming.
    pub(crate) fn into_kind(self) -> Option<K> {
        match self {
            Self::Idle | Self::SkipHeader | Self::Skip { .. } => None,
            Self::Header(kind) | Self::Body { kind, .. } => Some(kind),
        }
    }

    /// Takes a header and returns the message if it has no body.
    pub(crate) fn header(
        &mut self,
        names: &Names,
        header: ContentHeader<'_>,
        max_size: u64,
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
            Self::Idle | Self::Body { .. } | Self::Skip { .. } => {
                return Err(Misfit::UnexpectedHeader)
            }
        };
        let size = header.body_size;
        let fits = usize::try_from(size).ok().filter(|_| size <= max_size);
        let Some(body_size) = fits else {
            *self = Self::Skip { missing: size };
            return Err(Misfit::MessageTooLarge { kind, size });
        };
        let content = Content::new(&names.bytes, names.exchange_end, header, body_size);
        if size == 0 {
            return Ok(Some((kind, content)));
        }
        *self = Self::Body {
            kind,
            content,
            missing: size,
        };
        Ok(None)
    }

    /// Takes a piece of the body and returns the message if it was the last.
    pub(crate) fn body(&mut self, piece: &[u8]) -> Result<Option<(K, Content)>, Misfit<K>> {
        let (content, missing) = match self {
            Self::Body {
                content, missing, ..
            } => (Some(content), missing),
            Self::Skip { missing } => (None, missing),
            Self::Idle | Self::Header(_) | Self::SkipHeader => return Err(Misfit::UnexpectedBody),
        };
        let length = piece.len() as u64;
        if length > *missing {
            let excess = length - *missing;
            return Err(Misfit::BodyTooLong { excess });
        }
        if let Some(content) = content {
            content.push(piece);
        }
        *missing -= length;
        if *missing > 0 {
            return Ok(None);
        }
        match std::mem::replace(self, Self::Idle) {
            Self::Body { kind, content, .. } => Ok(Some((kind, content))),
            Self::Idle | Self::Header(_) | Self::SkipHeader | Self::Skip { .. } => Ok(None),
        }
    }
}
