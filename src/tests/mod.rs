//! Tests that use several layers and need what only the crate can see.

#[cfg(feature = "broker")]
mod simulation;
