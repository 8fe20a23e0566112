//! leveret
mod error;
mod proto;
mod wire;
