//! How a publisher publishes.

use std::time::Duration;

use crate::error::{Error, Result};

/// How a [`Publisher`](crate::Publisher) publishes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PublisherOptions {
    pub(crate) window: u32,
    pub(crate) window_bytes: u64,
    pub(crate) mandatory: bool,
    pub(crate) confirm_timeout: Duration,
}

impl Default for PublisherOptions {
    fn default() -> Self {
        Self {
            window: 1000,
            window_bytes: 64 << 20,
            mandatory: true,
            confirm_timeout: Duration::from_secs(30),
        }
    }
}

impl PublisherOptions {
    /// The largest window, in messages.
    pub const MAX_WINDOW: u32 = 65_536;

    setters! {
        /// How many messages can be unconfirmed at once, from 1 to 65,536. With 1, every message waits for the answer
        /// to the one before. Default: 1000.
        window: u32;
        /// How many bytes of message bodies can be unconfirmed at once; a single message can be larger. Default:
        /// 64 MiB.
        window_bytes: u64;
        /// Whether every message is published as mandatory: one that no queue is bound for comes back and is a
        /// failure. Otherwise the broker drops and confirms it, unless [`Message::mandatory`](crate::Message::mandatory) says so for this one.
        /// Default: true.
        mandatory: bool;
        /// How long is waited at most for the broker's answer, and for room in the window. Default: 30 seconds.
        confirm_timeout: Duration;
    }

    /// Refuses a window that makes no sense.
    pub(crate) fn check(&self) -> Result<()> {
        if (1..=Self::MAX_WINDOW).contains(&self.window) {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the window is {} messages, possible are 1 to {}",
            self.window,
            Self::MAX_WINDOW
        )))
    }
}
