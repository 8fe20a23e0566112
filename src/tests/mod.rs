//! Tests that use several layers and need what only the crate can see.

// Under `loom` the locks only work inside a model.
#[cfg(all(feature = "broker", not(loom)))]
mod simulation;
