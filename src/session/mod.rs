//! One logical connection over many sockets.

pub(crate) mod call;
pub(crate) mod channel;
pub(crate) mod failures;
pub(crate) mod queue_names;
pub(crate) mod recovery;
pub(crate) mod stream_position;
pub(crate) mod subscription;
