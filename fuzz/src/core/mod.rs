//! The core with arbitrary bytes in arbitrary pieces, in and after the handshake, with commands.
//!
//! The input is a script: see [`script`]. The handles and the driver are a model that keeps the
//! rules of real ones: see [`handles`].

mod broker;
mod driver;
mod handles;
mod log_lines;
mod script;

pub(crate) fn run(input: &[u8]) {
    script::play(input);
}
