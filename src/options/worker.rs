//! How worker threads consume.

use super::ConsumeOptions;
use crate::error::{Error, Result};

/// How [`Workers`](crate::Workers) consume from one queue.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WorkerOptions {
    pub(crate) threads: usize,
    pub(crate) prefetch: u16,
    pub(crate) consume: ConsumeOptions,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        Self {
            threads: 1,
            prefetch: 1,
            consume: ConsumeOptions::default(),
        }
    }
}

impl WorkerOptions {
    setters! {
        /// How many threads handle messages of the queue at the same time, each on a channel of its own. With more than
        /// one, or more than one process, messages are not handled in their order. Default: 1.
        threads: usize;
        /// How many messages the broker sends ahead to each thread, including the one that is being handled. With 1,
        /// no message waits behind a long one while another thread is idle, and each costs a round trip to the broker;
        /// for short tasks 100 to 300 are faster. Default: 1.
        prefetch: u16;
        /// How to consume: priority, exclusive, further arguments. Default: as [`ConsumeOptions`].
        consume: ConsumeOptions;
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.threads == 0 {
            return Err(Error::invalid("workers need one thread at least"));
        }
        if self.consume.no_ack {
            return Err(Error::invalid(
                "workers acknowledge what they have handled; with no_ack there is nothing to acknowledge",
            ));
        }
        if self.prefetch == 0 {
            return Err(Error::invalid(
                "workers need a prefetch of one message at least; 0 would be the whole queue",
            ));
        }
        Ok(())
    }
}
