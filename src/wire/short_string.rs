//! AMQP's short strings: names and identifiers.

use std::borrow::{Borrow, Cow};
use std::fmt;

/// A name or identifier as AMQP sends it (`shortstr`): usually text, but any bytes are possible.
///
/// Text converts into it, it compares with text, and `to_string` shows it as text. Bytes that are
/// not UTF-8 are kept, so a message that is published again has the same ids and headers.
///
/// A call that would send more than 255 bytes fails.
///
/// ```
/// use leveret::ShortString;
///
/// let id = ShortString::from("order-7");
/// assert_eq!(id, "order-7");
/// assert_eq!(id.as_str(), Some("order-7"));
///
/// let odd = ShortString::from(&b"order-\xff"[..]);
/// assert_eq!(odd.as_str(), None);
/// assert_eq!(odd.as_bytes(), b"order-\xff");
/// ```
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShortString {
    bytes: Vec<u8>,
}

impl ShortString {
    /// Returns the text, or `None` if it is not UTF-8.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.bytes).ok()
    }

    /// Returns the bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Converts the string into its bytes, without a new allocation.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Shows bytes that are not UTF-8 as `�`.
impl fmt::Display for ShortString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(&self.bytes).fmt(f)
    }
}

/// Shows bytes that are not UTF-8 as escapes such as `\xff`.
impl fmt::Debug for ShortString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_str() {
            Some(text) => text.fmt(f),
            None => write!(f, "b\"{}\"", self.bytes.escape_ascii()),
        }
    }
}

impl AsRef<[u8]> for ShortString {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Finds a short string in a map by its bytes.
impl Borrow<[u8]> for ShortString {
    fn borrow(&self) -> &[u8] {
        &self.bytes
    }
}

macro_rules! conversions {
    ($($type:ty => |$text:ident| $bytes:expr;)*) => {
        $(impl From<$type> for ShortString {
            fn from($text: $type) -> Self {
                Self { bytes: $bytes }
            }
        })*
    };
}

conversions! {
    &str => |text| text.as_bytes().to_vec();
    &String => |text| text.as_bytes().to_vec();
    String => |text| text.into_bytes();
    Cow<'_, str> => |text| text.into_owned().into_bytes();
    Box<str> => |text| text.into_string().into_bytes();
    &[u8] => |bytes| bytes.to_vec();
    Vec<u8> => |bytes| bytes;
    &Self => |other| other.bytes.clone();
}

impl<const N: usize> From<&[u8; N]> for ShortString {
    fn from(bytes: &[u8; N]) -> Self {
        bytes.as_slice().into()
    }
}

macro_rules! comparisons {
    ($($type:ty),*) => {
        $(
            impl PartialEq<$type> for ShortString {
                fn eq(&self, other: &$type) -> bool {
                    self.bytes == other.as_bytes()
                }
            }

            impl PartialEq<ShortString> for $type {
                fn eq(&self, other: &ShortString) -> bool {
                    other == self
                }
            }
        )*
    };
}

comparisons!(str, &str, String);
