//! One logical connection over many sockets.

pub(crate) mod call;
pub(crate) mod channel;
pub(crate) mod failures;
pub(crate) mod recovery;
