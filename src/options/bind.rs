//! Options for bindings.

use crate::wire::value::{FieldTable, FieldValue};

/// How to bind or unbind. By default, a binding has no arguments, and the call waits for the
/// broker's reply.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct BindOptions {
    pub(crate) no_wait: bool,
    pub(crate) arguments: FieldTable,
}

impl BindOptions {
    flags! {
        /// Returns without waiting for the broker's reply. No effect on
        /// [`queue_unbind`](crate::Channel::queue_unbind): AMQP's `queue.unbind` always has a
        /// reply.
        no_wait;
    }

    arguments! {
        /// Sets all arguments, such as the headers that a headers exchange matches. Replaces
        /// arguments that were set before.
    }
}
