//! How worker threads consume.

use std::time::Duration;

use super::ConsumeOptions;
use crate::error::{Error, Result};

/// What [`Workers`](crate::Workers) do when the consumer of one of their threads ends.
///
/// A consumer ends when the broker cancels it or closes its channel. A consumer also ends with a lost connection if its
/// [`RecoveryOptions`](crate::RecoveryOptions) leave consumers out. It does not end by
/// [`Workers::shutdown`](crate::Workers::shutdown), nor while a lost connection is being recovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum OnConsumerEnd {
    /// The thread consumes again on a new channel, as soon as the broker lets it. Other threads go on meanwhile.
    #[default]
    Restart,
    /// All threads of this queue stop, as in [`Workers::shutdown`](crate::Workers::shutdown). The threads of other queues go
    /// on. [`Workers::join`](crate::Workers::join) returns the error when all have stopped.
    StopQueue,
    /// All threads of these [`Workers`](crate::Workers) stop, those of other queues too, and
    /// [`Workers::join`](crate::Workers::join) returns the error: so that the program can end, and be started again.
    StopAll,
}

/// How [`Workers`](crate::Workers) consume from one queue.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WorkerOptions {
    pub(crate) threads: usize,
    pub(crate) prefetch: u16,
    pub(crate) consume: ConsumeOptions,
    pub(crate) on_consumer_end: OnConsumerEnd,
    pub(crate) restart_delay: Duration,
    pub(crate) max_restart_delay: Duration,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        Self {
            threads: 1,
            prefetch: 1,
            consume: ConsumeOptions::default(),
            on_consumer_end: OnConsumerEnd::default(),
            restart_delay: Duration::from_millis(500),
            max_restart_delay: Duration::from_secs(30),
        }
    }
}

impl WorkerOptions {
    setters! {
        /// How many threads handle messages of the queue at the same time, each on a channel of its own. With more than
        /// one, or more than one process, messages are not handled in their order; of a stream, each thread gets all
        /// messages. Default: 1.
        threads: usize;
        /// How many messages the broker sends ahead to each thread, including the one that is being handled. With 1,
        /// no message waits behind a long one while another thread is idle, and each costs a round trip to the broker;
        /// for short tasks 100 to 300 are faster. Default: 1.
        prefetch: u16;
        /// How to consume: priority, exclusive, further arguments. Default: as [`ConsumeOptions`].
        consume: ConsumeOptions;
        /// What a thread does when the broker ends its consumer. Default: [`OnConsumerEnd::Restart`].
        ///
        /// ```
        /// use leveret::{OnConsumerEnd, WorkerOptions};
        ///
        /// // The program ends when its queue is deleted.
        /// let options = WorkerOptions::default().on_consumer_end(OnConsumerEnd::StopAll);
        /// ```
        on_consumer_end: OnConsumerEnd;
        /// How long a thread waits before it consumes again. Each further attempt waits twice as long, until a consumer has
        /// lasted for [`max_restart_delay`](Self::max_restart_delay). From each delay up to a half is taken at random.
        /// Default: 500 milliseconds.
        restart_delay: Duration;
        /// The longest delay between two attempts to consume again. Default: 30 seconds.
        max_restart_delay: Duration;
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
