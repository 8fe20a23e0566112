//! Threads that handle messages, and stop in good order.

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

/// What becomes of a message that was handled.
///
/// A stream (see [`Delivery`]) keeps its messages and takes none back: there, each of these
/// acknowledges the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use]
pub enum Settlement {
    /// It is done: the broker forgets it.
    Ack,
    /// The message goes back to its queue, and may come again at once, to the same handler
    /// (`basic.reject`). Each time counts towards the delivery limit of a quorum queue, which
    /// then dead-letters or drops the message.
    Requeue,
    /// The message is not to be handled again: it is dropped, or dead-lettered if its queue is
    /// declared so.
    Reject,
}

type Handler = dyn Fn(&Delivery) -> Settlement + Send + Sync;

/// Threads that take messages from queues, one by one, and call a handler for each.
///
/// Each thread has a channel of its own on the same connection, and acknowledges what its handler has done. The handler
/// says what becomes of the message; one that has acknowledged it itself may return anything.
///
/// A handler that panics takes nothing with it: the panic is logged at `error` with the message's ids, and the message
/// goes back to its queue as with [`Settlement::Requeue`]; if it had been delivered before, it is rejected, so that a message
/// that no handler survives is dead-lettered and does not go round for ever. A message from a stream is acknowledged.
///
/// When the broker cancels the consumer of a thread (its queue was deleted, for example) or closes its channel (an
/// acknowledgement came too late, for example), the thread consumes again on a new channel. It tries until that succeeds,
/// with growing delays ([`WorkerOptions::restart_delay`]), and also while the queue does not exist. Threads of other queues
/// go on meanwhile. Each attempt that fails is a warning in the log, and an event of the connection:
/// [`WorkerInterrupted`](crate::ConnectionEvent::WorkerInterrupted), then
/// [`WorkerResumed`](crate::ConnectionEvent::WorkerResumed). The broker delivers a message again if its handler was running
/// at that time. [`WorkerOptions::on_consumer_end`] chooses to stop instead.
///
/// When the connection is lost and comes back, the consumers come back with it. When the connection ends for good, all
/// threads stop, and [`join`](Self::join) says why.
///
/// ```no_run
/// use leveret::{Connection, Settlement, WorkerOptions, Workers};
///
/// let connection = Connection::open_default()?;
/// let workers = Workers::new(&connection);
/// workers.consume("mails", WorkerOptions::default().threads(4), |delivery| {
///     println!("sending {} bytes", delivery.body().len());
///     Settlement::Ack
/// })?;
/// workers.consume("thumbnails", WorkerOptions::default().prefetch(10), |delivery| {
///     match delivery.body() {
///         b"" => Settlement::Reject,
///         _ => Settlement::Ack,
///     }
/// })?;
/// workers.join()?; // until another thread calls `shutdown`; the example `worker` does so at SIGINT and SIGTERM
/// # Ok::<(), leveret::Error>(())
/// ```
///
/// Messages that were sent ahead to a thread and not handled go back to their queue when it stops. With a quorum queue that
/// can count [towards the delivery limit](crate::Consumer#unread-messages-and-the-delivery-limit): keep
/// [`WorkerOptions::prefetch`] low if workers start and stop often.
///
/// Cheap to clone. Dropping the last clone stops the threads without waiting for them, and logs that at `warn`.
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
                    "the workers of {queues:?} stop, since the last handle of these `Workers` was dropped: keep it, \
                     and call `shutdown` to stop them and to wait for their handlers"
                );
            });
        }
    }
}

/// Logs something. A panic of the program's logger ends no thread: the panic hook has told of it.
fn say(log: impl FnOnce()) {
    let _ = panics::catch(log);
}

impl Workers {
    /// Without threads, until [`consume`](Self::consume) starts some.
    pub fn new(connection: &Connection) -> Self {
        Self {
            handle: Arc::new(Handle {
                connection: connection.clone(),
                crew: Arc::new(Crew::new()),
            }),
        }
    }

    /// Begins to consume from a queue, with as many threads as the options say. Several queues, each with its own handler,
    /// can be consumed at the same time.
    ///
    /// # Errors
    /// As [`Channel::basic_consume`](crate::Channel::basic_consume): 404 if there is no such queue.
    /// [`ErrorKind::InvalidArgument`] for no threads, for `no_ack`, and after [`shutdown`](Self::shutdown). Then no thread
    /// was started, and nothing is tried again. [`ErrorKind::ThreadNotStarted`]; then all stop.
    pub fn consume(
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

    /// What the threads do at the moment: which queues run, how many handlers are busy, what went wrong last. Does not wait
    /// for the broker or for a handler.
    pub fn status(&self) -> WorkersStatus {
        self.handle.crew.status()
    }

    /// Stops: no more messages are taken, and what was sent ahead goes back to its queue at once. Handlers that are
    /// running finish their message and settle it; waits for them, at most so long.
    ///
    /// A thread that waits to consume again stops at once.
    ///
    /// When it returns `Ok`, the broker has read every acknowledgement that was sent. A message whose
    /// acknowledgement was lost with an earlier connection or channel had gone back to its queue before its thread consumed
    /// again.
    ///
    /// # Errors
    /// As [`join`](Self::join). A timeout names the queues whose handlers are still running; they go on and settle their
    /// messages nevertheless, as long as the program and its connection live, and [`join`](Self::join) waits for them.
    /// [`ErrorKind::InvalidArgument`] in a handler, which would wait for itself; all stop nevertheless.
    pub fn shutdown(&self, timeout: Duration) -> Result<()> {
        self.handle.crew.stop();
        self.handle.crew.wait(Some(Deadline::after(timeout)))
    }

    /// Waits until all threads have ended, as long as it takes: after [`shutdown`](Self::shutdown), because the connection
    /// has ended, or because [`OnConsumerEnd`](crate::OnConsumerEnd) says so.
    ///
    /// # Errors
    /// Why the first thread could not go on: the end of the connection; or [`ErrorKind::ConsumerCancelled`] or the end of its
    /// channel, if [`WorkerOptions::on_consumer_end`] chooses to stop. [`ErrorKind::AcksLost`] if a connection or a channel
    /// was lost, and the threads stopped before they consumed again: the broker may lack their last acknowledgements.
    /// [`ErrorKind::InvalidArgument`] in a handler, which would wait for itself.
    pub fn join(&self) -> Result<()> {
        self.handle.crew.wait(None)
    }
}

fn spawn(worker: Worker, shift: Shift) -> io::Result<()> {
    // Linux shows 15 bytes of it; a NUL is not possible in it.
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
