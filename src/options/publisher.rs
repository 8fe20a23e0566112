//! Options for publishers.

use std::time::Duration;

use crate::error::{Error, Result};

/// How a [`Publisher`](crate::Publisher) publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublisherOptions {
    pub(crate) window: u32,
    pub(crate) window_bytes: u64,
    pub(crate) mandatory: bool,
    pub(crate) message_ids: bool,
    pub(crate) confirm_timeout: Duration,
}

impl Default for PublisherOptions {
    fn default() -> Self {
        Self {
            window: 1000,
            window_bytes: 64 << 20,
            mandatory: true,
            message_ids: false,
            confirm_timeout: Duration::from_secs(30),
        }
    }
}

impl PublisherOptions {
    /// The largest window in messages.
    pub const MAX_WINDOW: u32 = 65_536;

    setters! {
        /// Maximum number of unconfirmed messages, from 1 to 65,536. With 1, every message waits
        /// for the confirm of the previous message. Default: 1000.
        window: u32;
        /// Maximum total size of unconfirmed message bodies, in bytes. A single message may be
        /// larger. Default: 64 MiB.
        window_bytes: u64;
        /// Publishes every message as mandatory: the broker returns a message that reaches no
        /// queue, and its [`Confirm`](crate::Confirm) fails. With `false`, the broker drops and
        /// confirms such a message. [`Message::mandatory`](crate::Message::mandatory) decides for
        /// one message. Default: true.
        mandatory: bool;
        /// Whether to give each message a unique [`message_id`](crate::Message::message_id), unless
        /// it has one. If recovery publishes a message again, the copy has the same id, so that
        /// consumers can recognize duplicates. If the program publishes a message again, it must
        /// set the id itself. Default: false.
        message_ids: bool;
        /// How long to wait for the broker's confirm and for room in the window. Default: 30
        /// seconds.
        confirm_timeout: Duration;
    }

    pub(crate) fn check(&self) -> Result<()> {
        if (1..=Self::MAX_WINDOW).contains(&self.window) {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the window must be 1 to {} messages, not {}",
            Self::MAX_WINDOW,
            self.window
        )))
    }
}
