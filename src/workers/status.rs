//! The current state of `Workers`, for health checks.

use std::time::Duration;

use crate::error::Error;

/// The current state of [`Workers`](crate::Workers): see
/// [`Workers::status`](crate::Workers::status).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WorkersStatus {
    /// One entry for each call of [`Workers::consume`](crate::Workers::consume) that started
    /// threads, in the order of the calls.
    pub queues: Vec<QueueWorkers>,
    /// Whether all threads have ended, or will end when their handlers return.
    pub stopped: bool,
    /// The error that [`Workers::join`](crate::Workers::join) returns after all threads have ended.
    pub failure: Option<Error>,
}

impl WorkersStatus {
    /// Returns true if all threads consume, except those of queues that the program has
    /// [paused](crate::Workers::pause).
    ///
    /// ```
    /// # use leveret::{broker::Broker, Connection, QueueDeclareOptions};
    /// # use leveret::{Settlement, WorkerOptions, Workers};
    /// # let broker = Broker::start()?;
    /// # let connection = Connection::open(&broker.uri())?;
    /// # let channel = connection.open_channel()?;
    /// # channel.queue_declare("mails", QueueDeclareOptions::default())?;
    /// let workers = Workers::new(&connection);
    /// workers.consume("mails", |_| Settlement::Ack)?;
    ///
    /// let status = workers.status();
    /// for queue in &status.queues {
    ///     println!("{}: {} of {} threads consume", queue.queue, queue.consuming, queue.threads);
    ///     if let Some(last) = &queue.last_error {
    ///         println!("{:?} ago: {}", last.ago, last.error);
    ///     }
    /// }
    /// assert!(status.is_healthy());
    /// # workers.shutdown(std::time::Duration::from_secs(10))?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        let is_healthy = |it: &QueueWorkers| match it.pause {
            None => it.consuming == it.threads,
            Some(Pause::ByProgram) => true,
            Some(Pause::ByCircuitBreaker { .. }) => false,
        };
        !self.stopped && self.queues.iter().all(is_healthy)
    }
}

/// The threads that one call of [`Workers::consume`](crate::Workers::consume) started, and what
/// they have done so far. Part of [`WorkersStatus`].
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct QueueWorkers {
    /// Name of the queue.
    pub queue: String,
    /// Number of threads that were started.
    pub threads: usize,
    /// Number of threads that consume.
    pub consuming: usize,
    /// Number of threads that are waiting to consume again, because the broker ended their consumer
    /// or the connection is lost.
    pub restarting: usize,
    /// Number of threads that keep a failed message because its copy cannot be published: see
    /// [`Retry`](crate::Retry). `last_error` says why.
    pub blocked: usize,
    /// Why the threads take no messages, if their queue is paused.
    pub pause: Option<Pause>,
    /// Number of threads whose handler is running.
    pub busy: usize,
    /// The handlers that have run for more than 80 % of the time that the broker waits for an
    /// acknowledgement: see [`Workers`](crate::Workers#slow-handlers).
    pub late: Vec<LateHandler>,
    /// Number of messages whose handler returned without an error.
    pub handled: u64,
    /// Number of messages whose handler returned an error.
    pub failed: u64,
    /// Number of messages whose handler panicked.
    pub panicked: u64,
    /// Number of messages sent to be retried after a delay: see [`Retry`](crate::Retry).
    pub retried: u64,
    /// Number of messages moved to the queue of parked messages: see [`Retry`](crate::Retry).
    pub parked: u64,
    /// Total time of all handlers that have returned.
    pub handler_time: Duration,
    /// The last error that ended a consumer, prevented a new one, or kept a copy from being
    /// published. It remains after the thread continues.
    pub last_error: Option<LastError>,
}

/// Why the threads of a queue take no messages. Part of [`QueueWorkers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pause {
    /// The program has called [`Workers::pause`](crate::Workers::pause).
    ByProgram,
    /// Too many handlers have failed: see
    /// [`WorkerOptions::circuit_breaker`](crate::WorkerOptions::circuit_breaker).
    ByCircuitBreaker {
        /// Time until the threads continue.
        remaining: Duration,
    },
}

/// A handler that has run for a long time. Part of [`QueueWorkers`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LateHandler {
    /// The delivery tag of its message; of the first one, if it has several.
    pub delivery_tag: u64,
    /// The id of that message, if it has one.
    pub message_id: Option<String>,
    /// Number of messages that the handler has.
    pub messages: usize,
    /// How long the handler has run.
    pub running_for: Duration,
}

/// The last error of a [`QueueWorkers`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LastError {
    /// The error.
    pub error: Error,
    /// Time since the error.
    pub ago: Duration,
}
