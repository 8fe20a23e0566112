//! Options for worker threads.

use std::time::Duration;

use super::ConsumeOptions;
use crate::error::{Error, Result};

/// What [`Workers`](crate::Workers) do when the consumer of one of their threads ends.
///
/// A consumer ends when the broker cancels it or closes its channel. A consumer also ends when the
/// connection is lost and its [`RecoveryOptions`](crate::RecoveryOptions) exclude consumers. This
/// option has no effect on [`Workers::shutdown`](crate::Workers::shutdown), nor while a lost
/// connection is recovering.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum OnConsumerEnd {
    /// Restarts the consumer on a new channel, as soon as the broker permits. Other threads
    /// continue.
    #[default]
    Restart,
    /// Stops all threads of this queue, as [`Workers::shutdown`](crate::Workers::shutdown) does.
    /// The threads of other queues continue. [`Workers::join`](crate::Workers::join) returns the
    /// error after all threads have stopped.
    StopQueue,
    /// Stops all threads of these [`Workers`](crate::Workers), including those of other queues, and
    /// [`Workers::join`](crate::Workers::join) returns the error. The program can then exit, and a
    /// supervisor can restart it.
    StopAll,
}

/// What [`Workers`](crate::Workers) do with a message whose handler has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum OnFailure {
    /// Requeues the message, as with [`Settlement::Requeue`](crate::Settlement::Requeue). If it was
    /// already redelivered, rejects it instead, so that a poison message is dead-lettered and not
    /// redelivered forever.
    #[default]
    RequeueOnce,
    /// Requeues the message, however often. A quorum queue has a delivery limit; other queues
    /// redeliver the message forever.
    Requeue,
    /// Rejects the message: the broker dead-letters it if its queue has a dead-letter exchange,
    /// otherwise drops it.
    Reject,
    /// Acknowledges the message, although it was not handled.
    Ack,
}

/// How [`Workers`](crate::Workers) consume from one queue.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct WorkerOptions {
    pub(crate) threads: usize,
    pub(crate) prefetch: u16,
    pub(crate) consume: ConsumeOptions,
    pub(crate) on_error: OnFailure,
    pub(crate) on_panic: OnFailure,
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
            on_error: OnFailure::default(),
            on_panic: OnFailure::default(),
            on_consumer_end: OnConsumerEnd::default(),
            restart_delay: Duration::from_millis(500),
            max_restart_delay: Duration::from_secs(30),
        }
    }
}

impl WorkerOptions {
    setters! {
        /// Number of threads that handle messages of the queue, each on its own channel. Default:
        /// 1.
        ///
        /// With several threads, or several processes, messages are not handled in order. For a
        /// stream, each thread gets all messages.
        threads: usize;
        /// Prefetch of each thread, including the message that it handles. Default: 1.
        ///
        /// With 1, no message waits for a slow message while another thread is idle, but each
        /// message costs a round trip to the broker. For short tasks, 100 to 300 is faster.
        prefetch: u16;
        /// How to consume: priority, exclusive, other arguments. Default:
        /// [`ConsumeOptions::default`].
        consume: ConsumeOptions;
        /// What to do with a message whose handler returns an error. The error is logged at `error`
        /// with its sources and the message's ids. Default: [`OnFailure::RequeueOnce`].
        on_error: OnFailure;
        /// What to do with a message whose handler panics. Default: [`OnFailure::RequeueOnce`].
        on_panic: OnFailure;
        /// What to do when the broker ends the consumer of a thread. Default:
        /// [`OnConsumerEnd::Restart`].
        ///
        /// ```
        /// use leveret::{OnConsumerEnd, WorkerOptions};
        ///
        /// // The program ends when its queue is deleted.
        /// let options = WorkerOptions::default().on_consumer_end(OnConsumerEnd::StopAll);
        /// ```
        on_consumer_end: OnConsumerEnd;
        /// Delay before a thread consumes again. Each further delay is twice as long, until a
        /// consumer has lasted for at least [`max_restart_delay`](Self::max_restart_delay). Each
        /// delay is shortened by a random amount of up to a half. Default: 500 milliseconds.
        restart_delay: Duration;
        /// Longest delay between two attempts to consume again. Default: 30 seconds.
        max_restart_delay: Duration;
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.threads == 0 {
            return Err(Error::invalid("workers need at least one thread"));
        }
        if self.consume.no_ack {
            return Err(Error::invalid(
                "workers acknowledge each message, so they cannot consume with no_ack",
            ));
        }
        if self.prefetch == 0 {
            return Err(Error::invalid(
                "workers need a prefetch of at least one message; 0 would prefetch the whole queue",
            ));
        }
        Ok(())
    }
}
