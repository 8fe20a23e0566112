//! The wire format: how AMQP 0-9-1 is written in bytes.
//!
//! The layer knows primitives, field tables, methods, properties, frames and message contents. It
//! has no state, no IO and no clock, and must not know any other layer. It is driven by plain calls
//! on byte slices and buffers: `frame::cut` finds a frame at the front of the input,
//! `Method::decode` reads its payload, and `frame::write_method` and `frame::write_content` append
//! to an output buffer. `method` has one row for each method of the protocol. `fast_deliver` and
//! `fast_publish` handle the most common messages in one step.

pub(crate) mod codec;
pub(crate) mod content;
pub(crate) mod expiration;
pub(crate) mod fast_deliver;
pub(crate) mod fast_publish;
pub(crate) mod frame;
pub(crate) mod method;
pub(crate) mod properties;
#[cfg(feature = "serde")]
mod serde;
pub(crate) mod short_string;
pub(crate) mod value;

#[cfg(test)]
mod tests;
