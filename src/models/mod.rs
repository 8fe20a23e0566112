//! Models of what several threads do at once, run by `loom` in every order of their steps:
//! `RUSTFLAGS="--cfg loom" cargo test --lib models`.
//!
//! They run the program's own code on the types of `sync/modelled.rs`. A lost wake-up leaves a
//! thread waiting forever, which `loom` reports as a deadlock.

mod confirm_slot;
mod deliveries;
mod outbox;
mod window;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use loom::model::Builder;

use crate::io_thread::deadline::Deadline;

/// Runs `model` in every order in which a thread is interrupted at most this often where it could
/// go on. Without a limit, in every order.
fn check(interruptions: impl Into<Option<usize>>, model: impl Fn() + Send + Sync + 'static) {
    let runs = Arc::new(AtomicU64::new(0));
    let _printed = Runs(Arc::clone(&runs));
    let mut builder = Builder::new();
    // `LOOM_MAX_PREEMPTIONS` raises the limit.
    builder.preemption_bound = builder.preemption_bound.or(interruptions.into());
    builder.check(move || {
        runs.fetch_add(1, Ordering::Relaxed);
        model();
    });
}

/// Prints the number of runs, also of a model that fails.
struct Runs(Arc<AtomicU64>);

impl Drop for Runs {
    fn drop(&mut self) {
        println!("{} runs", self.0.load(Ordering::Relaxed));
    }
}

/// A deadline that never passes.
fn never() -> Deadline {
    Deadline::after(Duration::MAX)
}

/// A deadline that passes at any moment, or not before the notice.
fn at_any_moment() -> Deadline {
    Deadline::after(Duration::ZERO)
}
