//! Unique ids for messages.

use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::message::Message;
use crate::options::backoff::random;

/// Counts the messages of one publisher. The process id and 64 random bits tell its ids from those
/// of all other publishers.
pub(super) struct MessageIds {
    prefix: String,
    count: AtomicU64,
}

impl MessageIds {
    pub(super) fn new() -> Self {
        Self {
            prefix: format!("{:x}-{:016x}", process::id(), random()),
            count: AtomicU64::new(0),
        }
    }

    /// Gives the message an id, unless it has one.
    pub(super) fn identify<'m>(&self, message: Message<'m>) -> Message<'m> {
        let has_id = message
            .properties()
            .is_some_and(|it| it.message_id.is_some());
        if has_id {
            return message;
        }
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        message.message_id(format!("{}-{number:x}", self.prefix))
    }
}
