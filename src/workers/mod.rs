//! Threads that handle messages, and stop in good order.

mod answers;
mod crew;
mod worker;

use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::connection::Connection;
use crate::consumer::Consumer;
use crate::deadline::Deadline;
use crate::delivery::Delivery;
use crate::error::{Error, ErrorKind, Result};
use crate::options::WorkerOptions;

use crew::Crew;

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
/// When one thread cannot go on (its queue was deleted, its channel was closed, the connection has ended for good), all stop as in
/// [`shutdown`](Self::shutdown), and [`join`](Self::join) says why: so the program can end, and be started again.
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
/// Cheap to clone. Dropping the last clone stops the threads without waiting for them.
#[derive(Clone)]
pub struct Workers {
    handle: Arc<Handle>,
}

/// What the threads do not have, so that they know when nobody can stop them any more.
struct Handle {
    connection: Connection,
    crew: Arc<Crew>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.crew.stop();
    }
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
    /// As [`Channel::basic_consume`](crate::Channel::basic_consume): 404 if there is no such queue. [`ErrorKind::InvalidArgument`] for no threads, for
    /// `no_ack`, and after [`shutdown`](Self::shutdown). Then no thread was started. [`ErrorKind::ThreadNotStarted`]; then
    /// all stop.
    pub fn consume(
        &self,
        queue: &str,
        options: WorkerOptions,
        handler: impl Fn(&Delivery) -> Settlement + Send + Sync + 'static,
    ) -> Result<()> {
        options.check()?;
        let handler: Arc<Handler> = Arc::new(handler);
        let queue: Arc<str> = queue.into();
        let consumers = (0..options.threads)
            .map(|_| self.begin(&queue, &options))
            .collect::<Result<Vec<_>>>()?;
        let crew = &self.handle.crew;
        let workers = crew.enlist(&queue, &handler, options.prefetch, consumers)?;
        for worker in workers {
            // Linux shows 15 bytes of it; a NUL is not possible in it.
            let name = queue.replace('\0', "");
            thread::Builder::new()
                .name(name)
                .spawn(move || worker.run())
                .map_err(|error| {
                    crew.stop();
                    let kind = error.kind();
                    Error::new(ErrorKind::ThreadNotStarted { kind }).caused_by(error)
                })?;
        }
        Ok(())
    }

    fn begin(&self, queue: &str, options: &WorkerOptions) -> Result<Consumer> {
        let channel = self.handle.connection.open_channel()?;
        channel.basic_qos(options.prefetch)?;
        channel.basic_consume(queue, options.consume.clone())
    }

    /// Stops: no more messages are taken, and what was sent ahead goes back to its queue at once. Handlers that are
    /// running finish their message and settle it; waits for them, at most so long.
    ///
    /// When it returns `Ok`, the broker has read every acknowledgement that was sent. A message whose
    /// acknowledgement was lost with an earlier connection has gone back to its queue before.
    ///
    /// # Errors
    /// As [`join`](Self::join). A timeout names the queues whose handlers are still running; they go on and settle their
    /// messages nevertheless, as long as the program and its connection live, and [`join`](Self::join) waits for them.
    /// [`ErrorKind::InvalidArgument`] in a handler, which would wait for itself; all stop nevertheless.
    pub fn shutdown(&self, timeout: Duration) -> Result<()> {
        self.handle.crew.stop();
        self.handle.crew.wait(Some(Deadline::after(timeout)))
    }

    /// Waits until all threads have ended, as long as it takes: after [`shutdown`](Self::shutdown), or because one could
    /// not go on.
    ///
    /// # Errors
    /// Why the first thread could not go on: [`ErrorKind::ConsumerCancelled`], or the end of its channel or of the
    /// connection. [`ErrorKind::AcksLost`] if the connection was lost while the threads stopped, so that the broker may
    /// lack their last acknowledgements. [`ErrorKind::InvalidArgument`] in a handler, which would wait for itself.
    pub fn join(&self) -> Result<()> {
        self.handle.crew.wait(None)
    }
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Workers");
        self.handle.crew.show(&mut shown);
        shown.finish_non_exhaustive()
    }
}
