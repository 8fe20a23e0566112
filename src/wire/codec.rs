//! Bounded reading and checked writing of the protocol's primitive types.

use std::fmt;

use byteorder::{BigEndian, ByteOrder, WriteBytesExt};

/// Maximum nesting depth of tables and arrays, so that no peer can exhaust the stack.
pub(crate) const MAX_DEPTH: usize = 32;

/// An error in received bytes, or in a value that cannot be encoded.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum WireError {
    /// A value claims more bytes than there are.
    Truncated { what: &'static str },
    /// Bytes follow the last field.
    TrailingBytes { what: &'static str, count: usize },
    /// Tables and arrays are nested deeper than [`MAX_DEPTH`].
    TooDeep,
    /// A field value of a type that neither the specification nor RabbitMQ knows.
    UnknownValueType(u8),
    /// A frame of a type that does not exist.
    UnknownFrameType(u8),
    /// A frame whose payload is larger than the agreed limit.
    FrameTooLarge { size: u64, limit: u64 },
    /// A frame that does not end in 0xCE.
    WrongFrameEnd(u8),
    /// A class and method id that is not in the method table.
    UnknownMethod { class: u16, method: u16 },
    /// A content header that is not of class basic.
    UnknownContentClass(u16),
    /// A property flag word that announces a 15th property.
    UnknownPropertyFlags(u16),
    /// A text with more bytes than a short string can hold.
    ShortStringTooLong { field: &'static str, length: usize },
    /// A value with more bytes than a 32-bit length can express.
    TooLong { field: &'static str },
    /// A number that no broker reads. `at` says where it is.
    BadNumber { at: String, number: BadNumber },
    /// An expiration that is not a number of milliseconds.
    BadExpiration { value: String },
}

/// A number that cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum BadNumber {
    /// NaN or infinity. RabbitMQ closes the whole connection because of them.
    NotFinite(f64),
    /// An integer that does not fit into a signed 64-bit integer.
    TooLarge(u64),
}

impl fmt::Display for BadNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFinite(number) => {
                write!(f, "{number}: AMQP brokers accept only finite numbers")
            }
            Self::TooLarge(number) => {
                write!(f, "{number}: AMQP has no integer above {}", i64::MAX)
            }
        }
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { what } => write!(f, "{what} claims more bytes than there are"),
            Self::TrailingBytes { what, count } => {
                write!(f, "{count} trailing bytes after {what}")
            }
            Self::TooDeep => write!(f, "field tables are nested deeper than {}", MAX_DEPTH),
            Self::UnknownValueType(tag) => write!(f, "unknown field value type 0x{tag:02x}"),
            Self::UnknownFrameType(kind) => write!(f, "unknown frame type {kind}"),
            Self::FrameTooLarge { size, limit } => {
                write!(
                    f,
                    "a frame with {size} bytes of payload, above the limit of {limit}"
                )
            }
            Self::WrongFrameEnd(octet) => {
                write!(f, "a frame that ends in 0x{octet:02x} instead of 0xce")
            }
            Self::UnknownMethod { class, method } => write!(f, "unknown method {class}.{method}"),
            Self::UnknownContentClass(class) => write!(f, "content of unknown class {class}"),
            Self::UnknownPropertyFlags(flags) => {
                write!(f, "unknown property flags 0x{flags:04x}")
            }
            Self::ShortStringTooLong { field, length } => {
                write!(f, "{field} is longer than 255 bytes ({length} bytes)")
            }
            Self::TooLong { field } => write!(f, "{field} is longer than 4 GiB"),
            Self::BadNumber { at, number } => write!(f, "{at} is {number}"),
            Self::BadExpiration { value } => write!(
                f,
                "expiration {value:?} is not a number of milliseconds from 0 to {}",
                u32::MAX
            ),
        }
    }
}

impl std::error::Error for WireError {}

pub(crate) type WireResult<T> = Result<T, WireError>;

/// Reads one frame's payload. Every length is checked against the remaining bytes, so a false
/// length never causes an allocation.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    /// The current octet of bits, and how many are used. Consecutive bits share octets; any other
    /// read ends the octet.
    bits: Option<(u8, u8)>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            bits: None,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Reads the next `count` bytes.
    #[inline]
    pub(crate) fn bytes(&mut self, count: usize, what: &'static str) -> WireResult<&'a [u8]> {
        self.bits = None;
        if count > self.rest.len() {
            return Err(WireError::Truncated { what });
        }
        let (head, rest) = self.rest.split_at(count);
        self.rest = rest;
        Ok(head)
    }

    #[inline]
    pub(crate) fn bit(&mut self, what: &'static str) -> WireResult<bool> {
        let (octet, used) = match self.bits {
            Some((octet, used)) if used < 8 => (octet, used),
            _ => (self.u8(what)?, 0),
        };
        self.bits = Some((octet, used + 1));
        Ok(octet & (1 << used) != 0)
    }

    #[inline]
    pub(crate) fn u8(&mut self, what: &'static str) -> WireResult<u8> {
        Ok(self.bytes(1, what)?.first().copied().unwrap_or_default())
    }

    #[inline]
    pub(crate) fn u16(&mut self, what: &'static str) -> WireResult<u16> {
        Ok(BigEndian::read_u16(self.bytes(2, what)?))
    }

    #[inline]
    pub(crate) fn u32(&mut self, what: &'static str) -> WireResult<u32> {
        Ok(BigEndian::read_u32(self.bytes(4, what)?))
    }

    #[inline]
    pub(crate) fn u64(&mut self, what: &'static str) -> WireResult<u64> {
        Ok(BigEndian::read_u64(self.bytes(8, what)?))
    }

    #[inline]
    pub(crate) fn short_bytes(&mut self, what: &'static str) -> WireResult<&'a [u8]> {
        let length = self.u8(what)?;
        self.bytes(usize::from(length), what)
    }

    pub(crate) fn long_bytes(&mut self, what: &'static str) -> WireResult<&'a [u8]> {
        let length = self.u32(what)?;
        self.bytes(length as usize, what)
    }

    /// Fails if bytes follow the last field.
    pub(crate) fn finish(self, what: &'static str) -> WireResult<()> {
        match self.rest.len() {
            0 => Ok(()),
            count => Err(WireError::TrailingBytes { what, count }),
        }
    }
}

/// Appends the protocol's primitive types to a buffer. After an error, the caller truncates the
/// buffer to its former length.
#[derive(Debug)]
pub(crate) struct Writer<'b> {
    pub(crate) buffer: &'b mut Vec<u8>,
    bits_used: u8,
}

impl<'b> Writer<'b> {
    pub(crate) fn new(buffer: &'b mut Vec<u8>) -> Self {
        Self {
            buffer,
            bits_used: 0,
        }
    }

    #[inline]
    pub(crate) fn bit(&mut self, value: bool) {
        if self.bits_used == 0 || self.bits_used == 8 {
            self.buffer.push(0);
            self.bits_used = 0;
        }
        if let Some(octet) = self.buffer.last_mut() {
            *octet |= u8::from(value) << self.bits_used;
        }
        self.bits_used += 1;
    }

    #[inline]
    pub(crate) fn u8(&mut self, value: u8) {
        self.bits_used = 0;
        self.buffer.push(value);
    }

    #[inline]
    pub(crate) fn u16(&mut self, value: u16) {
        self.bits_used = 0;
        // Writing to a Vec cannot fail.
        let _ = self.buffer.write_u16::<BigEndian>(value);
    }

    #[inline]
    pub(crate) fn u32(&mut self, value: u32) {
        self.bits_used = 0;
        let _ = self.buffer.write_u32::<BigEndian>(value);
    }

    #[inline]
    pub(crate) fn u64(&mut self, value: u64) {
        self.bits_used = 0;
        let _ = self.buffer.write_u64::<BigEndian>(value);
    }

    #[inline]
    pub(crate) fn short_bytes(&mut self, value: &[u8], field: &'static str) -> WireResult<()> {
        let Ok(length) = u8::try_from(value.len()) else {
            return Err(WireError::ShortStringTooLong {
                field,
                length: value.len(),
            });
        };
        self.u8(length);
        self.buffer.extend_from_slice(value);
        Ok(())
    }

    pub(crate) fn long_bytes(&mut self, value: &[u8], field: &'static str) -> WireResult<()> {
        let length = u32::try_from(value.len()).map_err(|_| WireError::TooLong { field })?;
        self.u32(length);
        self.buffer.extend_from_slice(value);
        Ok(())
    }

    /// Writes the output of `body`, preceded by its length in four bytes.
    pub(crate) fn with_length(
        &mut self,
        field: &'static str,
        body: impl FnOnce(&mut Self) -> WireResult<()>,
    ) -> WireResult<()> {
        let at = self.buffer.len();
        self.u32(0);
        body(self)?;
        self.bits_used = 0;
        let length =
            u32::try_from(self.buffer.len() - at - 4).map_err(|_| WireError::TooLong { field })?;
        if let Some(place) = self.buffer.get_mut(at..at + 4) {
            BigEndian::write_u32(place, length);
        }
        Ok(())
    }
}
