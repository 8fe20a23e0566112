//! Worker threads, which handle messages, restart their consumers, and shut down gracefully.

mod activity;
mod answers;
mod crew;
mod handler;
mod post;
mod recruit;
mod restart;
mod retry;
mod settling;
mod squad;
mod status;
mod watch;
mod worker;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::connection::Connection;
use crate::consumer::Consumer;
use crate::delivery::Delivery;
use crate::error::{Error, Result};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::panics;
use crate::log_line::log_line;
use crate::options::WorkerOptions;

use crew::Crew;
use handler::Factory;
pub use handler::{BatchOutput, HandlerOutput, Settlements};
use post::Post;
use recruit::Recruit;
use retry::Retries;
pub use status::{LastError, LateHandler, Pause, QueueWorkers, WorkersStatus};
use watch::Watch;
use worker::{BatchLimits, Progress, Shift, Worker};

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
    /// Retries the message later, as [`WorkerOptions::retry`](crate::WorkerOptions::retry) says.
    /// Without that option: as after an error ([`WorkerOptions::on_error`]).
    Retry,
}

/// Threads that consume from queues and call a handler for each message. [`docs::workers`] is a
/// guide.
///
/// Each thread has its own channel on the same connection and handles one message at a time. A
/// handler returns nothing, which acknowledges the message, or a [`Settlement`], or a `Result` of
/// either ([`HandlerOutput`]). A handler that has already settled the message itself may return any
/// value.
///
/// An error or a panic of a handler does not end its thread. It is logged at `error` with the
/// message's ids, and [`WorkerOptions::on_error`] and [`on_panic`](WorkerOptions::on_panic) say
/// what happens to the message. By default, it is requeued once, then rejected. A message from a
/// stream is acknowledged.
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
///     let text = std::str::from_utf8(delivery.body())?;
///     println!("sending {text}");
///     Ok::<_, std::str::Utf8Error>(())
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
/// # Slow handlers
/// The broker waits up to 30 minutes for an acknowledgement, unless it or the queue says otherwise
/// ([`ConsumeOptions::consumer_timeout`](crate::ConsumeOptions::consumer_timeout) sets the timeout
/// of one consumer). After that, it redelivers the message and ends the consumer. When a handler
/// has run for 80 % of 30 minutes, or of the consumer's own timeout, a line at `warn` names the
/// queue and the message, and [`status`](Self::status) shows the handler. The time that a message
/// has waited in the prefetch is not included, although the broker counts it, too.
///
/// # Shutdown
/// When a thread stops, its prefetched messages that were not handled are requeued. In a quorum
/// queue, this can count [towards the delivery
/// limit](crate::Consumer#unread-messages-and-the-delivery-limit): keep [`WorkerOptions::prefetch`]
/// low if workers start and stop often.
///
/// [`docs::workers`]: crate::docs::workers
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
    watch: Watch,
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
                watch: Watch::default(),
            }),
        }
    }

    /// Starts a thread that consumes from a queue and calls `handler` for each message. Call this
    /// once for each queue.
    ///
    /// # Errors
    /// Same as [`consume_with`](Self::consume_with).
    pub fn consume<R: HandlerOutput<E>, E>(
        &self,
        queue: &str,
        handler: impl Fn(&Delivery) -> R + Send + Sync + 'static,
    ) -> Result<()> {
        self.consume_with(queue, WorkerOptions::default(), handler)
    }

    /// [`consume`](Self::consume) with other [`WorkerOptions`], such as more threads or a larger
    /// prefetch. All threads of the queue call the same handler.
    ///
    /// # Errors
    /// - [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) for invalid options,
    ///   such as no threads or `no_ack`, and after [`shutdown`](Self::shutdown). With
    ///   [`WorkerOptions::retry`], also for a stream, for a name of the broker's own (`amq.`), and
    ///   if a queue is missing that the workers do not declare.
    /// - Same as [`Channel::basic_consume`](crate::Channel::basic_consume), such as 404 if the
    ///   queue does not exist.
    /// - [`ErrorKind::ThreadNotStarted`](crate::ErrorKind::ThreadNotStarted) if the system cannot
    ///   start a thread.
    ///
    /// After an error, nothing is consumed, and nothing is retried.
    pub fn consume_with<R: HandlerOutput<E>, E>(
        &self,
        queue: &str,
        options: WorkerOptions,
        handler: impl Fn(&Delivery) -> R + Send + Sync + 'static,
    ) -> Result<()> {
        let factory = handler::shared(move |batch| handler::single(batch, &handler));
        let limits = BatchLimits::single(&options);
        self.start(queue, options, limits, &factory)
    }

    /// [`consume_with`](Self::consume_with), but each thread makes its own handler, which can have
    /// state such as a database client or a buffer. The handler stays on its thread, so it needs
    /// neither `Send` nor `Sync`.
    ///
    /// `make` runs on each thread before the thread consumes. After a panic of its handler, the
    /// thread makes a new one before the next message. If `make` fails then, the thread gives its
    /// messages back, and tries again with the delays of [`WorkerOptions::restart_delay`], whatever
    /// [`WorkerOptions::on_consumer_end`] says.
    ///
    /// ```no_run
    /// use leveret::{Connection, WorkerOptions, Workers};
    /// use std::fs::File;
    /// use std::io::{self, Write};
    ///
    /// let workers = Workers::new(&Connection::open_default()?);
    /// let options = WorkerOptions::default().threads(4);
    /// workers.consume_per_thread("audit", options, || {
    ///     let mut log = File::options().create(true).append(true).open("audit.log")?;
    ///     Ok::<_, io::Error>(move |delivery: &leveret::Delivery| log.write_all(delivery.body()))
    /// })?;
    /// workers.join()?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// Same as [`consume_with`](Self::consume_with);
    /// [`ErrorKind::HandlerNotCreated`](crate::ErrorKind::HandlerNotCreated) if `make` fails on a
    /// thread. The call then does not wait for the other threads' `make`.
    pub fn consume_per_thread<H, R, E, F>(
        &self,
        queue: &str,
        options: WorkerOptions,
        make: impl Fn() -> std::result::Result<H, F> + Send + Sync + 'static,
    ) -> Result<()>
    where
        H: FnMut(&Delivery) -> R + 'static,
        R: HandlerOutput<E>,
        F: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let factory = handler::per_thread(move || {
            let mut handler = make()?;
            Ok::<_, F>(move |batch: &[Delivery]| handler::single(batch, &mut handler))
        });
        let limits = BatchLimits::single(&options);
        self.start(queue, options, limits, &factory)
    }

    /// [`consume_with`](Self::consume_with), but the handler gets several messages at once: for
    /// programs that insert many rows into a database with one statement.
    ///
    /// A batch has up to [`WorkerOptions::batch_size`] messages; fewer if no more have arrived
    /// [`WorkerOptions::batch_timeout`] after the first. The handler returns what a handler of
    /// single messages returns, for the whole batch, or one [`Settlement`] for each message
    /// ([`BatchOutput`]). After an error or a panic, each message of the batch is treated as one
    /// that has failed. So a handler that can tell which message is at fault should return
    /// settlements.
    ///
    /// ```no_run
    /// use leveret::{Connection, Delivery, WorkerOptions, Workers};
    /// # fn insert(_: &[&[u8]]) -> std::io::Result<()> { Ok(()) }
    ///
    /// let workers = Workers::new(&Connection::open_default()?);
    /// let options = WorkerOptions::default().batch_size(500);
    /// workers.consume_batches("measurements", options, |batch: &[Delivery]| {
    ///     let rows: Vec<_> = batch.iter().map(|it| it.body()).collect();
    ///     insert(&rows)
    /// })?;
    /// workers.join()?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// Same as [`consume_with`](Self::consume_with).
    pub fn consume_batches<R: BatchOutput<E>, E>(
        &self,
        queue: &str,
        options: WorkerOptions,
        handler: impl Fn(&[Delivery]) -> R + Send + Sync + 'static,
    ) -> Result<()> {
        let factory = handler::shared(move |batch| handler(batch).into_settlements());
        let limits = BatchLimits::batches(&options);
        self.start(queue, options, limits, &factory)
    }

    /// [`consume_batches`](Self::consume_batches), but each thread makes its own handler, as with
    /// [`consume_per_thread`](Self::consume_per_thread).
    ///
    /// # Errors
    /// Same as [`consume_per_thread`](Self::consume_per_thread).
    pub fn consume_batches_per_thread<H, R, E, F>(
        &self,
        queue: &str,
        options: WorkerOptions,
        make: impl Fn() -> std::result::Result<H, F> + Send + Sync + 'static,
    ) -> Result<()>
    where
        H: FnMut(&[Delivery]) -> R + 'static,
        R: BatchOutput<E>,
        F: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let factory = handler::per_thread(move || {
            let mut handler = make()?;
            Ok::<_, F>(move |batch: &[Delivery]| handler(batch).into_settlements())
        });
        let limits = BatchLimits::batches(&options);
        self.start(queue, options, limits, &factory)
    }

    fn start(
        &self,
        queue: &str,
        options: WorkerOptions,
        limits: BatchLimits,
        factory: &Arc<Factory>,
    ) -> Result<()> {
        options.check()?;
        let Handle {
            connection,
            crew,
            watch,
        } = &*self.handle;
        let retries = options.retry.as_ref();
        let retries = retries.map(|it| Retries::prepare(connection, queue, it));
        let retries = retries.transpose()?.map(Arc::new);
        let queue = connection.recovery().queue_names.name(queue);
        let recruits = (0..options.threads).map(|_| Recruit::spawn(queue.current(), factory));
        let recruits: Vec<_> = recruits.collect::<Result<_>>()?;
        recruits.iter().try_for_each(Recruit::wait_ready)?;
        crew.check_open()?;
        let begin = |_| {
            let queue = queue.as_ref().into();
            worker::begin(connection, queue, limits.prefetch, options.consume.clone())
        };
        let consumers = (0..options.threads).map(begin);
        let consumers: Vec<_> = consumers.collect::<Result<_>>()?;
        if retries.is_some() && consumers.iter().any(Consumer::reads_from_stream) {
            return Err(Error::invalid(
                "messages of a stream cannot be retried: the stream keeps them",
            ));
        }
        let shifts = consumers.iter().map(|it| Shift::new(it, limits.prefetch));
        let shifts: Vec<_> = shifts.collect();
        watch.start(crew, connection.shared())?;
        let posts = Post::enlist(crew, &queue, &options, consumers)?;
        let options = Arc::new(options);
        let workers = posts.into_iter().map(|post| Worker {
            connection: connection.clone(),
            options: Arc::clone(&options),
            limits,
            retries: retries.clone(),
            factory: Arc::clone(factory),
            progress: Progress::default(),
            post,
        });
        for (recruit, task) in recruits.into_iter().zip(workers.zip(shifts)) {
            // The thread waits for it.
            let _ = recruit.begin.send(task);
        }
        Ok(())
    }

    /// Stops taking messages from a queue, without ending its threads. The prefetched messages are
    /// requeued within a tenth of a second, and other programs can handle them. Running handlers
    /// finish, and their messages are settled as usual. Does not wait for them.
    ///
    /// ```no_run
    /// # let connection = leveret::Connection::open_default()?;
    /// # let workers = leveret::Workers::new(&connection);
    /// # workers.consume("mails", |_| ())?;
    /// # let mail_server_moves = || ();
    /// workers.pause("mails")?;
    /// mail_server_moves();
    /// workers.resume("mails")?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) if these workers do not
    /// consume from the queue, and after [`shutdown`](Self::shutdown).
    pub fn pause(&self, queue: &str) -> Result<()> {
        self.handle.crew.pause(queue)
    }

    /// Takes messages again from a queue that [`pause`](Self::pause) or
    /// [`WorkerOptions::circuit_breaker`] has paused. The circuit breaker counts from 0 again. Does
    /// not wait until the threads consume; [`status`](Self::status) shows that.
    ///
    /// # Errors
    /// Same as [`pause`](Self::pause).
    pub fn resume(&self, queue: &str) -> Result<()> {
        self.handle.crew.resume(queue)
    }

    /// Moves up to `limit` messages from the parked messages of a queue back to the queue, the
    /// oldest first. Returns how many it has moved. Their attempts are counted anew.
    ///
    /// Each message is in both queues until the broker has confirmed its copy. After an error,
    /// some messages may have been moved; none is lost. The workers need not consume from the
    /// queue, so an administrator's program can call this, too:
    ///
    /// ```no_run
    /// use leveret::{Connection, Workers};
    ///
    /// let workers = Workers::new(&Connection::open_default()?);
    /// println!("{} mails are sent again", workers.unpark("mails", usize::MAX)?);
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// - 404 if there is no queue of parked messages.
    /// - [`ErrorKind::Returned`](crate::ErrorKind::Returned) if the queue does not exist;
    ///   [`ErrorKind::Nacked`](crate::ErrorKind::Nacked) if it refuses a message.
    /// - A timeout, or the end of the connection.
    pub fn unpark(&self, queue: &str, limit: usize) -> Result<usize> {
        let unparked = retry::unpark(&self.handle.connection, queue, limit);
        unparked.map_err(|error| error.doing(format!("unparking messages of queue {queue:?}")))
    }

    /// Returns the current state of the threads: which queues run, how many handlers are busy, and
    /// the last errors. Does not wait for the broker or for a handler.
    #[must_use]
    pub fn status(&self) -> WorkersStatus {
        self.handle.crew.status()
    }

    /// Stops the threads and waits up to `timeout` for the running handlers.
    ///
    /// The threads take no more messages, and prefetched messages are requeued within a tenth of a
    /// second. Running handlers finish, and their messages are acknowledged, requeued or rejected
    /// as usual. A thread that waits to consume again stops at once.
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
    /// - [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) if a handler calls this,
    ///   since the handler would wait for itself. The threads stop nevertheless.
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
    ///   [`WorkerOptions::on_consumer_end`] chooses to stop,
    ///   [`ErrorKind::ConsumerCancelled`](crate::ErrorKind::ConsumerCancelled) or the end of the
    ///   channel.
    /// - [`ErrorKind::AcksLost`](crate::ErrorKind::AcksLost) if a connection or a channel was lost,
    ///   and the threads stopped before they consumed again: the last acknowledgements may not have
    ///   reached the broker.
    /// - [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) if a handler calls this,
    ///   since the handler would wait for itself.
    pub fn join(&self) -> Result<()> {
        self.handle.crew.wait(None)
    }
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
