//! Worker threads, which handle messages, restart their consumers, and shut down gracefully.

mod answers;
mod crew;
mod status;
mod worker;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::connection::Connection;
use crate::delivery::Delivery;
use crate::error::{Error, ErrorKind, Result};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::panics;
use crate::log_line::log_line;
use crate::options::WorkerOptions;

use crew::Crew;
pub use status::{LastError, QueueWorkers, WorkersStatus};
use worker::{Progress, Shift, Worker};

/// The outcome of a message that a handler has handled.
///
/// For a message from a stream (see [`Delivery`]), each variant acknowledges the message, because a
/// stream cannot requeue it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[must_use]
pub enum Settlement {
    /// Acknowledges the message: the broker removes it from the queue.
    Ack,
    /// Requeues the message (`basic.reject`). The broker may redeliver it at once, to the same
    /// handler. Each requeue counts towards the delivery limit of a quorum queue. Above the limit,
    /// the queue drops or dead-letters the message.
    Requeue,
    /// Rejects the message: the broker dead-letters it if its queue has a dead-letter exchange,
    /// otherwise drops it.
    Reject,
}

type Handler = dyn Fn(&Delivery) -> Settlement + Send + Sync;

/// Threads that consume from queues and call a handler for each message.
///
/// Each thread has its own channel on the same connection and handles one message at a time. The
/// handler's return value says whether to acknowledge, requeue or reject the message. A handler
/// that has already done so itself may return any value.
///
/// A panic of a handler does not end its thread. The panic is logged at `error` with the message's
/// ids, and the message is requeued as with [`Settlement::Requeue`]. If the message was already
/// redelivered, it is rejected instead, so that a poison message is dead-lettered and not
/// redelivered forever. A message from a stream is acknowledged.
///
/// When the broker cancels the consumer of a thread (for example, the queue was deleted) or closes
/// its channel (for example, an acknowledgement was late), the thread consumes again on a new
/// channel. It retries with growing delays ([`WorkerOptions::restart_delay`]) until that succeeds,
/// even while the queue does not exist. Threads of other queues continue. Each failed attempt is a
/// warning in the log and an event of the connection:
/// [`WorkerInterrupted`](crate::ConnectionEvent::WorkerInterrupted), then
/// [`WorkerResumed`](crate::ConnectionEvent::WorkerResumed). If a handler was running, the broker
/// redelivers its message. [`WorkerOptions::on_consumer_end`] can stop the threads instead.
///
/// When a lost connection recovers, the consumers recover with it. When the connection closes for
/// good, all threads stop, and [`join`](Self::join) returns the cause.
///
/// ```no_run
/// use leveret::{Connection, Settlement, WorkerOptions, Workers};
///
/// let connection = Connection::open_default()?;
/// let workers = Workers::new(&connection);
/// workers.consume("mails", |delivery| {
///     println!("sending {} bytes", delivery.body().len());
///     Settlement::Ack
/// })?;
/// let options = WorkerOptions::default().threads(4).prefetch(10);
/// workers.consume_with("thumbnails", options, |delivery| match delivery.body() {
///     b"" => Settlement::Reject,
///     _ => Settlement::Ack,
/// })?;
/// // Returns after another thread calls `shutdown`, as the example `worker` does on SIGTERM.
/// workers.join()?;
/// # Ok::<(), leveret::Error>(())
/// ```
///
/// When a thread stops, its prefetched messages that were not handled are requeued. In a quorum
/// queue, this can count [towards the delivery
/// limit](crate::Consumer#unread-messages-and-the-delivery-limit): keep [`WorkerOptions::prefetch`]
/// low if workers start and stop often.
///
/// `Workers` is cheap to clone. Dropping the last clone stops the threads without waiting for them,
/// and logs a warning.
#[derive(Clone)]
#[must_use = "dropping the last handle stops the workers"]
pub struct Workers {
    handle: Arc<Handle>,
}

/// Owned by the program's clones only: dropping the last one stops the threads.
struct Handle {
    connection: Connection,
    crew: Arc<Crew>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let queues = self.crew.at_work();
        self.crew.stop();
        if !queues.is_empty() {
            say(|| {
                log_line!(Warn, self.connection.shared().label(),
                    "the workers of {queues:?} stop because the last `Workers` handle was dropped: keep a handle, \
                     and call `shutdown` to wait for the handlers"
                );
            });
        }
    }
}

/// Logs, and ignores a panic of the program's logger, which the panic hook has reported.
fn say(log: impl FnOnce()) {
    let _ = panics::catch(log);
}

impl Workers {
    /// Creates workers without threads. Start them with [`consume`](Self::consume).
    pub fn new(connection: &Connection) -> Self {
        Self {
            handle: Arc::new(Handle {
                connection: connection.clone(),
                crew: Arc::new(Crew::new()),
            }),
        }
    }

    /// Starts a thread that consumes from a queue and calls `handler` for each message. Call this
    /// once for each queue.
    ///
    /// # Errors
    /// Same as [`consume_with`](Self::consume_with).
    pub fn consume(
        &self,
        queue: &str,
        handler: impl Fn(&Delivery) -> Settlement + Send + Sync + 'static,
    ) -> Result<()> {
        self.consume_with(queue, WorkerOptions::default(), handler)
    }

    /// [`consume`](Self::consume) with other [`WorkerOptions`], such as more threads or a larger
    /// prefetch. All threads of the queue call the same handler.
    ///
    /// # Errors
    /// - [`ErrorKind::InvalidArgument`] for invalid options, such as no threads or `no_ack`, and
    ///   after [`shutdown`](Self::shutdown).
    /// - Same as [`Channel::basic_consume`](crate::Channel::basic_consume), such as 404 if the
    ///   queue does not exist.
    /// - [`ErrorKind::ThreadNotStarted`] if the system cannot start a thread. All threads of these
    ///   workers then stop.
    ///
    /// After the first two errors, no thread was started, and nothing is retried.
    pub fn consume_with(
        &self,
        queue: &str,
        options: WorkerOptions,
        handler: impl Fn(&Delivery) -> Settlement + Send + Sync + 'static,
    ) -> Result<()> {
        self.start(queue, options, Arc::new(handler))
    }

    fn start(&self, queue: &str, options: WorkerOptions, handler: Arc<Handler>) -> Result<()> {
        options.check()?;
        let Handle { connection, crew } = &*self.handle;
        let queue = connection.recovery().queue_names.name(queue);
        let begin = |_| {
            let options = &options;
            worker::begin(
                connection,
                queue.as_ref().into(),
                options.prefetch,
                options.consume.clone(),
            )
        };
        let consumers = (0..options.threads)
            .map(begin)
            .collect::<Result<Vec<_>>>()?;
        let shifts = consumers.iter().map(|it| Shift::new(it, options.prefetch));
        let shifts: Vec<_> = shifts.collect();
        let posts = crew.enlist(&queue, consumers)?;
        let options = Arc::new(options);
        let worker = |post| Worker {
            connection: connection.clone(),
            options: Arc::clone(&options),
            handler: Arc::clone(&handler),
            progress: Progress::default(),
            post,
        };
        let workers: Vec<_> = posts.into_iter().map(worker).collect();
        for (worker, shift) in workers.into_iter().zip(shifts) {
            spawn(worker, shift).map_err(|error| {
                crew.stop();
                let kind = error.kind();
                Error::new(ErrorKind::ThreadNotStarted { kind }).caused_by(error)
            })?;
        }
        Ok(())
    }

    /// Returns the current state of the threads: which queues run, how many handlers are busy, and
    /// the last errors. Does not wait for the broker or for a handler.
    #[must_use]
    pub fn status(&self) -> WorkersStatus {
        self.handle.crew.status()
    }

    /// Stops the threads and waits up to `timeout` for the running handlers.
    ///
    /// The threads take no more messages, and prefetched messages are requeued at once. Running
    /// handlers finish, and their messages are acknowledged, requeued or rejected as usual. A
    /// thread that waits to consume again stops at once.
    ///
    /// After `Ok`, the broker has received every acknowledgement that was sent. If an
    /// acknowledgement was lost with an earlier connection or channel, the broker requeued its
    /// message before the thread consumed again.
    ///
    /// # Errors
    /// - Same as [`join`](Self::join).
    /// - A timeout, which names the queues whose handlers are still running. These handlers
    ///   continue, and their messages are still acknowledged, as long as the program and its
    ///   connection live. [`join`](Self::join) waits for them.
    /// - [`ErrorKind::InvalidArgument`] if a handler calls this, since the handler would wait for
    ///   itself. The threads stop nevertheless.
    pub fn shutdown(&self, timeout: Duration) -> Result<()> {
        self.handle.crew.stop();
        self.handle.crew.wait(Some(Deadline::after(timeout)))
    }

    /// Waits until all threads have ended, without a timeout.
    ///
    /// Threads end after [`shutdown`](Self::shutdown), when the connection closes, or when
    /// [`OnConsumerEnd`](crate::OnConsumerEnd) says so.
    ///
    /// # Errors
    /// - The error that stopped the first thread: the end of the connection, or, if
    ///   [`WorkerOptions::on_consumer_end`] chooses to stop, [`ErrorKind::ConsumerCancelled`] or
    ///   the end of the channel.
    /// - [`ErrorKind::AcksLost`] if a connection or a channel was lost, and the threads stopped
    ///   before they consumed again: the last acknowledgements may not have reached the broker.
    /// - [`ErrorKind::InvalidArgument`] if a handler calls this, since the handler would wait for
    ///   itself.
    pub fn join(&self) -> Result<()> {
        self.handle.crew.wait(None)
    }
}

fn spawn(worker: Worker, shift: Shift) -> io::Result<()> {
    // Linux shows the first 15 bytes. A thread name cannot contain a NUL.
    let name = worker.post.queue().current().replace('\0', "");
    let thread = thread::Builder::new().name(name);
    thread.spawn(move || worker.run(shift)).map(drop)
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.status();
        let mut shown = f.debug_struct("Workers");
        shown
            .field("queues", &status.queues)
            .field("stopped", &status.stopped)
            .field("failure", &status.failure);
        shown.finish_non_exhaustive()
    }
}
