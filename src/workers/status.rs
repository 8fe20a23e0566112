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
    /// Returns true if all threads of all queues consume.
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
        let all_consume = |it: &QueueWorkers| it.consuming == it.threads;
        !self.stopped && self.queues.iter().all(all_consume)
    }
}

/// The threads that one call of [`Workers::consume`](crate::Workers::consume) started. Part of
/// [`WorkersStatus`].
#[derive(Debug, Clone)]
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
    /// Number of threads whose handler is running.
    pub busy: usize,
    /// The last error that ended a consumer or prevented a new one. It remains after the thread
    /// consumes again.
    pub last_error: Option<LastError>,
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
