//! Growing delays between attempts.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

/// How long to wait before this attempt, counted from 1: each delay is twice the one before, up to
/// `max`. `random` takes up to a half off, so that many programs do not all try at once.
pub(crate) fn delay(first: Duration, max: Duration, attempt: u32, random: u64) -> Duration {
    let doubled = 1 << attempt.saturating_sub(1).min(31);
    let delay = first.saturating_mul(doubled).min(max);
    let half = delay / 2;
    half + half.mul_f64((random % 1024) as f64 / 1024.0)
}

/// The seed of the standard library's hash maps is the randomness at hand.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
