//! Options for worker threads.

use std::time::Duration;

use super::{ConsumeOptions, Retry};
use crate::error::{Error, Result};

/// RabbitMQ's default `consumer_timeout`.
const ACKNOWLEDGEMENT_TIMEOUT: Duration = Duration::from_secs(30 * 60);

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
    /// Requeues the message, as with [`Settlement::Requeue`](crate::Settlement::Requeue), but
    /// rejects it if it has failed before, so that a poison message is dead-lettered and not
    /// redelivered forever.
    ///
    /// A quorum queue counts the failures of a message
    /// ([`Delivery::delivery_count`](crate::Delivery::delivery_count)), among them the crash of
    /// another worker. So a message of a quorum queue is rejected at its third failure. Other
    /// queues only mark a message as [redelivered](crate::Delivery::redelivered): a redelivered
    /// message is rejected at its first failure here.
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
    /// Retries the message later, as [`WorkerOptions::retry`] says.
    Retry,
}

/// When failures pause a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CircuitBreaker {
    pub(crate) failures: u32,
    pub(crate) delay: Duration,
}

/// How [`Workers`](crate::Workers) consume from one queue.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct WorkerOptions {
    pub(crate) threads: usize,
    pub(crate) prefetch: u16,
    pub(crate) batch_size: u16,
    pub(crate) batch_timeout: Duration,
    pub(crate) consume: ConsumeOptions,
    on_error: Option<OnFailure>,
    on_panic: Option<OnFailure>,
    pub(crate) retry: Option<Retry>,
    pub(crate) circuit_breaker: Option<CircuitBreaker>,
    pub(crate) on_consumer_end: OnConsumerEnd,
    pub(crate) restart_delay: Duration,
    pub(crate) max_restart_delay: Duration,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        Self {
            threads: 1,
            prefetch: 1,
            batch_size: 100,
            batch_timeout: Duration::from_secs(1),
            consume: ConsumeOptions::default(),
            on_error: None,
            on_panic: None,
            retry: None,
            circuit_breaker: None,
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
        /// message costs a round trip to the broker. For short tasks, 100 to 300 is faster. A
        /// thread that handles batches prefetches at least one batch.
        prefetch: u16;
        /// For [`Workers::consume_batches`](crate::Workers::consume_batches) only: the largest
        /// number of messages in a batch. Default: 100.
        batch_size: u16;
        /// For [`Workers::consume_batches`](crate::Workers::consume_batches) only: how long the
        /// first message of a batch waits for others. Default: 1 second.
        batch_timeout: Duration;
        /// How to consume: priority, exclusive, other arguments. Default:
        /// [`ConsumeOptions::default`].
        consume: ConsumeOptions;
        /// What to do with a message whose handler returns an error. The error is logged at `error`
        /// with its sources and the message's ids. Default: [`OnFailure::Retry`] with
        /// [`retry`](Self::retry), otherwise [`OnFailure::RequeueOnce`].
        on_error: OnFailure;
        /// What to do with a message whose handler panics. Default: [`OnFailure::Retry`] with
        /// [`retry`](Self::retry), otherwise [`OnFailure::RequeueOnce`].
        on_panic: OnFailure;
        /// Retries failed messages later, and parks those that keep failing. [`Retry`] describes
        /// what happens. Default: none.
        ///
        /// ```no_run
        /// use leveret::{Connection, Retry, WorkerOptions, Workers};
        /// use std::time::Duration;
        ///
        /// # fn send(_: &[u8]) -> std::io::Result<()> { Ok(()) }
        /// let workers = Workers::new(&Connection::open_default()?);
        /// let delays = [1, 10, 60].map(Duration::from_secs);
        /// let options = WorkerOptions::default().retry(Retry::after(delays));
        /// // A message whose `send` fails is sent again after 1, 10 and 60 seconds, then parked.
        /// workers.consume_with("mails", options, |delivery| send(delivery.body()))?;
        /// workers.join()?;
        /// # Ok::<(), leveret::Error>(())
        /// ```
        retry: Retry;
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

    /// Pauses the queue for `delay` after this number of errors and panics in a row, on all of its
    /// threads together, and then tries again: for handlers that need a database which is down.
    /// After a pause, one more failure pauses the queue again, and a message that is handled
    /// without an error ends this. Default: never pauses.
    ///
    /// A pause gives the prefetched messages back, as [`Workers::pause`](crate::Workers::pause)
    /// does. The messages that have failed are treated as [`on_error`](Self::on_error) says.
    #[must_use]
    pub fn circuit_breaker(mut self, failures: u32, delay: Duration) -> Self {
        self.circuit_breaker = Some(CircuitBreaker { failures, delay });
        self
    }

    pub(crate) fn after_error(&self) -> OnFailure {
        self.on_error.unwrap_or_else(|| self.after_failure())
    }

    pub(crate) fn after_panic(&self) -> OnFailure {
        self.on_panic.unwrap_or_else(|| self.after_failure())
    }

    fn after_failure(&self) -> OnFailure {
        match self.retry {
            Some(_) => OnFailure::Retry,
            None => OnFailure::RequeueOnce,
        }
    }

    /// The running time at which a handler nears the broker's acknowledgement timeout.
    pub(crate) fn late_after(&self) -> Duration {
        let own = self.consume.arguments.get("x-consumer-timeout");
        let own = own.and_then(|it| it.as_u64()).filter(|it| *it > 0);
        let timeout = own.map_or(ACKNOWLEDGEMENT_TIMEOUT, Duration::from_millis);
        timeout / 10 * 8
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
        if self.batch_size == 0 {
            return Err(Error::invalid("a batch needs at least one message"));
        }
        if matches!(&self.circuit_breaker, Some(it) if it.failures == 0) {
            return Err(Error::invalid(
                "a circuit breaker needs at least one failure",
            ));
        }
        let retries = [self.on_error, self.on_panic].contains(&Some(OnFailure::Retry));
        match &self.retry {
            Some(retry) => retry.check(),
            None if retries => Err(Error::invalid(
                "OnFailure::Retry needs WorkerOptions::retry",
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_is_late_at_four_fifths_of_the_timeout() {
        let late_after = |timeout| {
            let consume = ConsumeOptions::default().consumer_timeout(timeout);
            WorkerOptions::default().consume(consume).late_after()
        };
        assert_eq!(late_after(Duration::from_secs(10)), Duration::from_secs(8));
        let default = Duration::from_secs(24 * 60);
        assert_eq!(WorkerOptions::default().late_after(), default);
        // The broker has no such timeout.
        assert_eq!(late_after(Duration::ZERO), default);
    }
}
