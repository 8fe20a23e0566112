//! The fuzz targets. Each takes any bytes, and panics if an invariant does not hold.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::indexing_slicing)]
// The included sources ask for the features of leveret.
#![allow(unexpected_cfgs)]

// The layers below the handles are private, and need nothing else of the crate, so this includes
// their sources. So leveret itself has no code for fuzzing.
macro_rules! included {
    ($($path:literal $name:ident;)*) => {
        $(
            #[allow(
                dead_code,
                unnameable_types,
                unreachable_pub,
                unused_imports
            )]
            #[path = $path]
            mod $name;
        )*
    };
}

included! {
    "../../src/wire/mod.rs" wire;
    "../../src/error/mod.rs" error;
    "../../src/log_line.rs" log_line;
    "../../src/events.rs" events;
    "../../src/sasl.rs" sasl;
    "../../src/stats.rs" stats;
    "../../src/options/mod.rs" options;
    "../../src/proto/mod.rs" proto;
}

mod core;
mod encoded;
mod frames;
mod methods;
mod properties;
mod tables;
mod uris;

use std::alloc::System;

use stats_alloc::{StatsAlloc, INSTRUMENTED_SYSTEM};

/// The target `core` checks how much memory a connection holds.
#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// A target.
#[derive(Debug)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// How many changed inputs take a second or less without a fuzzer and without optimization.
    pub executions: u64,
    /// Its body.
    pub run: fn(&[u8]),
}

const fn target(name: &'static str, executions: u64, run: fn(&[u8])) -> Target {
    Target {
        name,
        executions,
        run,
    }
}

/// All targets.
pub const TARGETS: [Target; 6] = [
    target("frames", 100_000, frames::run),
    target("methods", 100_000, methods::run),
    target("tables", 100_000, tables::run),
    target("properties", 100_000, properties::run),
    target("uris", 50_000, uris::run),
    target("core", 20_000, core::run),
];

/// Runs a target on one input.
pub fn run(name: &str, input: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a target with this name").run)(input);
}
