//! Recognises a published message when the broker returns it.

use crate::wire::content::Content;

/// Identifies a message by three hashes, 96 bits in total. A returned message carries no number.
/// It equals the published one byte for byte, unless the broker or a plugin changed its properties.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Fingerprint {
    names: u32,
    properties: u32,
    body: u32,
}

/// How well two fingerprints match, from worst to best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Match {
    /// All but the properties match. A broker or its plugins may change those.
    NamesAndBody,
    Whole,
}

impl Fingerprint {
    /// A fingerprint without properties. The caller encodes those last, and then adds them.
    pub(crate) fn new(exchange: &str, routing_key: &str, body: &[u8]) -> Self {
        let names = hash(exchange.as_bytes()).rotate_left(1);
        Self {
            names: names ^ hash(routing_key.as_bytes()),
            properties: 0,
            body: hash(body),
        }
    }

    /// Adds the properties, as sent.
    pub(crate) fn with_properties(self, encoded: &[u8]) -> Self {
        Self {
            properties: hash(encoded),
            ..self
        }
    }

    pub(super) fn of(content: &Content) -> Self {
        Self::new(content.exchange(), content.routing_key(), content.body())
            .with_properties(content.encoded_properties())
    }

    /// `None` if the two cannot be the same message.
    pub(super) fn compare(self, other: Self) -> Option<Match> {
        if self.names != other.names || self.body != other.body {
            return None;
        }
        Some(match self.properties == other.properties {
            true => Match::Whole,
            false => Match::NamesAndBody,
        })
    }
}

/// A 32-bit hash. The program makes its own messages, so the hash need not resist attacks. Each
/// mandatory message is hashed, so hashing has to be about as fast as copying. Four words at a time
/// keep the multiplier busy.
fn hash(bytes: &[u8]) -> u32 {
    // Mix both halves of the product, so that high bits count as much as low bits.
    let mix = |state: u64, word: u64| {
        let product = u128::from(state ^ word) * 0x9e37_79b9_7f4a_7c15;
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

/// Up to eight bytes as a word, padded with zeros.
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
            assert!(seen.insert(hash(&bytes)), "{length} zeros");
            for at in 0..length {
                for value in [1, 0x80] {
                    bytes[at] = value;
                    assert!(seen.insert(hash(&bytes)), "{value} at {at} of {length}");
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
