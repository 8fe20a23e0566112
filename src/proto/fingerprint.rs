//! How a message is recognised when the broker returns it.

use crate::wire::content::Content;

/// A message in three fingerprints, together of 96 bits. A returned message carries no number, but it is, byte for byte, what was
/// published; unless something on its way changed its properties.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Fingerprint {
    names: u32,
    properties: u32,
    body: u32,
}

/// How much of two identities is equal; ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Match {
    /// All but the properties, which a broker or its plugins may change.
    NamesAndBody,
    Whole,
}

impl Fingerprint {
    /// Without properties, which are encoded last.
    pub(crate) fn new(exchange: &str, routing_key: &str, body: &[u8]) -> Self {
        let names = fingerprint(exchange.as_bytes()).rotate_left(1);
        Self {
            names: names ^ fingerprint(routing_key.as_bytes()),
            properties: 0,
            body: fingerprint(body),
        }
    }

    /// With the properties as they are sent.
    pub(crate) fn with_properties(self, encoded: &[u8]) -> Self {
        Self {
            properties: fingerprint(encoded),
            ..self
        }
    }

    pub(super) fn of(content: &Content) -> Self {
        Self::new(content.exchange(), content.routing_key(), content.body())
            .with_properties(content.encoded_properties())
    }

    /// Nothing if it cannot be the same message.
    pub(super) fn likeness(self, other: Self) -> Option<Match> {
        if self.names != other.names || self.body != other.body {
            return None;
        }
        Some(match self.properties == other.properties {
            true => Match::Whole,
            false => Match::NamesAndBody,
        })
    }
}

/// A hash of 32 bits, for what the program itself has made: it need not resist attacks, but it is taken of every
/// mandatory message, so it has to be about as fast as copying. Four words at a time keep the multiplier busy.
fn fingerprint(bytes: &[u8]) -> u32 {
    // Both halves of the product, so that high bits count as much as low ones.
    let mix = |hash: u64, word: u64| {
        let product = u128::from(hash ^ word) * 0x9e37_79b9_7f4a_7c15;
        (product >> 64) as u64 ^ product as u64
    };
    let mut lanes = [1, 2, 3, 4];
    let mut blocks = bytes.chunks_exact(32);
    for block in &mut blocks {
        for (lane, bytes) in lanes.iter_mut().zip(block.chunks_exact(8)) {
            *lane = mix(*lane, word(bytes));
        }
    }
    let rest = blocks.remainder().chunks(8).map(word);
    let all = lanes.into_iter().chain(rest).fold(0, mix);
    mix(all, bytes.len() as u64) as u32
}

/// Up to eight bytes; what is missing is zero.
fn word(bytes: &[u8]) -> u64 {
    match bytes.try_into() {
        Ok(whole) => u64::from_le_bytes(whole),
        Err(_) => bytes
            .iter()
            .rev()
            .fold(0, |word, byte| word << 8 | u64::from(*byte)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_byte_and_the_length_count() {
        let mut seen = HashSet::new();
        for length in 0..200 {
            let mut bytes = vec![0; length];
            assert!(seen.insert(fingerprint(&bytes)), "{length} zeros");
            for at in 0..length {
                for value in [1, 0x80] {
                    bytes[at] = value;
                    assert!(
                        seen.insert(fingerprint(&bytes)),
                        "{value} at {at} of {length}"
                    );
                }
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn names_do_not_run_into_each_other() {
        let of = |exchange, key| Fingerprint::new(exchange, key, b"").names;
        let names = [of("a", "b"), of("ab", ""), of("", "ab"), of("b", "a")];
        assert_eq!(HashSet::from(names).len(), 4);
        assert_ne!(of("a", "a"), of("b", "b"));
    }
}
