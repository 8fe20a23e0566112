//! How to bind.

use crate::wire::value::{FieldTable, FieldValue};

/// How to bind or unbind. The default has no arguments and waits for the broker.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct BindOptions {
    pub(crate) no_wait: bool,
    pub(crate) arguments: FieldTable,
}

impl BindOptions {
    flags! {
        /// Does not wait for the broker (without effect on `queue.unbind`, which knows no such thing).
        no_wait;
    }

    arguments! {
        /// All arguments at once, such as the headers that a headers exchange matches.
    }
}
