//! Bytes and what they mean: primitives, field tables, methods, properties, frames. No state.

pub(crate) mod codec;
pub(crate) mod content;
pub(crate) mod fast_deliver;
pub(crate) mod fast_publish;
pub(crate) mod frame;
pub(crate) mod method;
pub(crate) mod properties;
pub(crate) mod value;

#[cfg(test)]
mod tests;
