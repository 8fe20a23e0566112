//! What holds for everything that is decoded and encoded again.

use std::fmt::Debug;

use crate::wire::codec::{WireError, WireResult};

/// Decodes `bytes`, encodes the value, and decodes it again: the value must be the same, and its
/// second encoding, too. Returns the value if `bytes` can be decoded.
pub(crate) fn round_trip<T: Debug + PartialEq>(
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> WireResult<T>,
    encode: impl Fn(&T, &mut Vec<u8>) -> WireResult<()>,
) -> Option<T> {
    let value = match decode(bytes) {
        Ok(value) => value,
        Err(error) => {
            is_one_line(&error.to_string());
            return None;
        }
    };
    let mut encoded = Vec::new();
    if let Err(error) = encode(&value, &mut encoded) {
        is_excused(&error);
        return Some(value);
    }
    let again = decode(&encoded).expect("our own encoding can be decoded");
    assert_eq!(again, value, "after encoding and decoding");
    let mut twice = Vec::new();
    encode(&again, &mut twice).expect("a value that was encoded can be encoded again");
    assert_eq!(twice, encoded, "the second encoding");
    let mut longer = encoded;
    longer.push(0);
    assert!(decode(&longer).is_err(), "a byte after the end is refused");
    longer.truncate(longer.len() - 2);
    assert!(decode(&longer).is_err(), "a missing byte is refused");
    Some(value)
}

/// A peer may send what we must not: numbers that are not finite, expirations that are no numbers,
/// and names of methods that are not UTF-8, which are longer once their invalid bytes are replaced.
fn is_excused(error: &WireError) {
    is_one_line(&error.to_string());
    let excused = matches!(
        error,
        WireError::BadNumber { .. }
            | WireError::BadExpiration { .. }
            | WireError::ShortStringTooLong { .. }
    );
    assert!(excused, "a decoded value cannot be encoded: {error}");
}

fn is_one_line(text: &str) {
    assert!(!text.contains('\n'), "{text}");
}
