//! Threads that handle messages, and stop in good order.

use std::collections::{BTreeSet, HashSet};
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::Duration;

use crossbeam_channel::{bounded, select, Receiver, Sender, TryRecvError};
use parking_lot::{Condvar, Mutex};

use crate::channel::{Answered, Channel};
use crate::connection::Connection;
use crate::consumer::Consumer;
use crate::deadline::Deadline;
use crate::delivery::Delivery;
use crate::error::{Error, ErrorKind, ReplyCode, Result};
use crate::options::WorkerOptions;
use crate::panics;

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

/// What all threads share.
struct Crew {
    state: Mutex<State>,
    /// Notified when a thread has ended.
    ended: Condvar,
    /// Disconnected when it is time to stop.
    stopped: Receiver<Infallible>,
}

struct State {
    /// Gone when it is time to stop.
    go_on: Option<Sender<Infallible>>,
    /// Here, so that whoever stops can give back what waits behind a long message.
    consumers: Vec<Consumer>,
    /// The queues of the threads that run.
    running: Vec<Arc<str>>,
    /// These threads, once they have begun.
    threads: HashSet<ThreadId>,
    failure: Option<Error>,
    lost: Lost,
}

/// What the threads have handled, and the broker delivers again since a connection was lost.
#[derive(Debug, Default)]
struct Lost {
    not_sent: u64,
    unconfirmed: u64,
    queues: BTreeSet<Arc<str>>,
}

impl Lost {
    fn error(&self) -> Option<Error> {
        let kind = ErrorKind::AcksLost {
            not_sent: self.not_sent,
            unconfirmed: self.unconfirmed,
        };
        let doing = || format!("workers of {:?}", self.queues);
        (!self.queues.is_empty()).then(|| Error::new(kind).doing(doing()))
    }
}

impl Workers {
    /// Without threads, until [`consume`](Self::consume) starts some.
    pub fn new(connection: &Connection) -> Self {
        let (go_on, stopped) = bounded(0);
        let crew = Crew {
            state: Mutex::new(State {
                go_on: Some(go_on),
                consumers: Vec::new(),
                running: Vec::new(),
                threads: HashSet::new(),
                failure: None,
                lost: Lost::default(),
            }),
            ended: Condvar::new(),
            stopped,
        };
        Self {
            handle: Arc::new(Handle {
                connection: connection.clone(),
                crew: Arc::new(crew),
            }),
        }
    }

    /// Begins to consume from a queue, with as many threads as the options say. Several queues, each with its own handler,
    /// can be consumed at the same time.
    ///
    /// # Errors
    /// As [`Channel::basic_consume`]: 404 if there is no such queue. [`ErrorKind::InvalidArgument`] for no threads, for
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
        let state = self.handle.crew.state.lock();
        f.debug_struct("Workers")
            .field("running", &state.running)
            .field("stopped", &state.go_on.is_none())
            .field("failure", &state.failure)
            .finish_non_exhaustive()
    }
}

impl Crew {
    fn enlist(
        self: &Arc<Self>,
        queue: &Arc<str>,
        handler: &Arc<Handler>,
        prefetch: u16,
        consumers: Vec<Consumer>,
    ) -> Result<Vec<Worker>> {
        let mut state = self.state.lock();
        if state.go_on.is_none() {
            return Err(Error::invalid("the workers were shut down"));
        }
        let workers = consumers.into_iter().map(|consumer| {
            let worker = Worker {
                channel: consumer.channel().clone(),
                deliveries: consumer.receiver().clone(),
                handler: Arc::clone(handler),
                queue: Arc::clone(queue),
                crew: Arc::clone(self),
                answers: Answers::new(prefetch),
                has_warned: false,
            };
            state.consumers.push(consumer);
            state.running.push(Arc::clone(queue));
            worker
        });
        Ok(workers.collect())
    }

    fn stop(&self) {
        let mut state = self.state.lock();
        state.go_on = None;
        let consumers = std::mem::take(&mut state.consumers);
        // Dropping them sends, and that must not happen under the lock.
        drop(state);
        drop(consumers);
    }

    fn wait(&self, deadline: Option<Deadline>) -> Result<()> {
        let mut state = self.state.lock();
        if state.threads.contains(&thread::current().id()) {
            return Err(Error::invalid("a handler would wait for itself to end"));
        }
        while !state.running.is_empty() {
            let Some(deadline) = deadline else {
                self.ended.wait(&mut state);
                continue;
            };
            let waited = self.ended.wait_until(&mut state, deadline.at());
            if waited.timed_out() && !state.running.is_empty() {
                let doing = format!("waiting for handlers of {:?}", state.running);
                return Err(Error::timed_out(deadline.duration()).doing(doing));
            }
        }
        let failure = state.failure.clone().or_else(|| state.lost.error());
        failure.map_or(Ok(()), Err)
    }

    fn is_stopped(&self) -> bool {
        self.stopped.try_recv() == Err(TryRecvError::Disconnected)
    }

    fn fail(&self, error: Error) {
        self.state.lock().failure.get_or_insert(error);
        self.stop();
    }

    fn lose(&self, not_sent: u64, unconfirmed: u64, queue: &Arc<str>) {
        let kind = ErrorKind::AcksLost {
            not_sent,
            unconfirmed,
        };
        log::error!("worker of queue {queue:?}: {kind}");
        let lost = &mut self.state.lock().lost;
        lost.not_sent += not_sent;
        lost.unconfirmed += unconfirmed;
        lost.queues.insert(Arc::clone(queue));
    }
}

/// What became of the acknowledgements of one thread. Those of an earlier connection do not matter
/// once the consumer has gone on: the broker has delivered their messages again.
struct Answers {
    prefetch: u64,
    /// The connection on which the last ones were sent.
    epoch: u64,
    sent: u64,
    /// The last one was not sent.
    is_last_lost: bool,
}

impl Answers {
    fn new(prefetch: u16) -> Self {
        Self {
            prefetch: prefetch.into(),
            epoch: 0,
            sent: 0,
            is_last_lost: false,
        }
    }

    fn forget(&mut self) {
        self.sent = 0;
        self.is_last_lost = false;
    }

    fn note(&mut self, answered: Answered) {
        match answered {
            Answered::Sent { epoch } => {
                if self.is_last_lost || self.epoch != epoch {
                    self.forget();
                }
                self.epoch = epoch;
                self.sent += 1;
            }
            Answered::NotSent => {
                if self.is_last_lost {
                    self.forget();
                }
                self.is_last_lost = true;
            }
        }
    }

    /// How many the broker does not have, and how many more it may not have, when all that was sent
    /// on the connection of this epoch has reached it.
    fn lost(&self, confirmed_in: Option<u64>) -> (u64, u64) {
        let not_sent = u64::from(self.is_last_lost);
        if confirmed_in == Some(self.epoch) {
            return (not_sent, 0);
        }
        // It has read all others, or it would not have delivered the last message.
        let unread = self.sent.min(self.prefetch.saturating_sub(not_sent));
        (not_sent, unread)
    }
}

/// One thread's work.
struct Worker {
    channel: Channel,
    deliveries: Receiver<Result<Delivery>>,
    handler: Arc<Handler>,
    queue: Arc<str>,
    crew: Arc<Crew>,
    answers: Answers,
    /// The log tells that this stream takes nothing back.
    has_warned: bool,
}

/// Also for a thread that could not be started.
impl Drop for Worker {
    fn drop(&mut self) {
        let mut state = self.crew.state.lock();
        let own = state.running.iter().position(|it| *it == self.queue);
        own.map(|place| state.running.swap_remove(place));
        state.threads.remove(&thread::current().id());
        drop(state);
        self.crew.ended.notify_all();
    }
}

impl Worker {
    fn run(mut self) {
        let id = thread::current().id();
        self.crew.state.lock().threads.insert(id);
        let ended = self.handle_all().and_then(|()| self.finish());
        if let Err(error) = ended {
            let error = error.doing(format!("worker of queue {:?}", self.queue));
            log::error!("{error}");
            self.crew.fail(error);
        }
    }

    fn handle_all(&mut self) -> Result<()> {
        while !self.crew.is_stopped() {
            let Some(delivery) = self.next()? else {
                let open_in = self.channel.state().opened_in();
                if open_in.is_some_and(|epoch| epoch != self.answers.epoch) {
                    self.answers.forget();
                }
                return Ok(());
            };
            let settlement = self.handle(&delivery);
            let answered = match self.settle(&delivery, settlement) {
                // The handler has done it itself.
                Err(error) if matches!(error.kind(), ErrorKind::AlreadySettled { .. }) => {
                    self.channel.answered(delivery.delivery_tag())
                }
                settled => settled?,
            };
            self.answers.note(answered);
        }
        Ok(())
    }

    /// Only when the channel is closed the broker has read every acknowledgement.
    fn finish(&self) -> Result<()> {
        let confirmed_in = self.channel.close_confirmed(ReplyCode::SUCCESS, "")?;
        let (not_sent, unconfirmed) = self.answers.lost(confirmed_in);
        if not_sent + unconfirmed > 0 {
            self.crew.lose(not_sent, unconfirmed, &self.queue);
        }
        Ok(())
    }

    /// `None` when it is time to stop.
    fn next(&self) -> Result<Option<Delivery>> {
        let stopped = &self.crew.stopped;
        let delivery = select! {
            recv(stopped) -> _ => return Ok(None),
            recv(self.deliveries) -> delivery => delivery,
        };
        // Without a sender the consumer was cancelled by this program.
        delivery.ok().transpose()
    }

    fn handle(&self, delivery: &Delivery) -> Settlement {
        panics::catch(|| (self.handler)(delivery)).unwrap_or_else(|message| {
            let (settlement, outcome) = if delivery.is_from_stream() {
                (Settlement::Ack, "acknowledged, since a stream takes nothing back")
            } else if delivery.redelivered() {
                (Settlement::Reject, "rejected")
            } else {
                (Settlement::Requeue, "requeued")
            };
            let properties = delivery.properties().unwrap_or_default();
            log::error!(
                "the handler of queue {:?} panicked: {}; delivery tag {}, message id {:?}, correlation id {:?}: {}",
                self.queue,
                message,
                delivery.delivery_tag(),
                properties.message_id.unwrap_or_default(),
                properties.correlation_id.unwrap_or_default(),
                outcome
            );
            settlement
        })
    }

    fn settle(&mut self, delivery: &Delivery, settlement: Settlement) -> Result<Answered> {
        let is_from_stream = delivery.is_from_stream();
        if is_from_stream && settlement == Settlement::Requeue && !self.has_warned {
            self.has_warned = true;
            log::warn!(
                "the handler of stream {:?} requeues a message, but a stream takes nothing back: the message is \
                 acknowledged, and so are all others that this thread's handler requeues",
                self.queue
            );
        }
        match settlement {
            Settlement::Ack => delivery.answer_ack(),
            Settlement::Requeue | Settlement::Reject if is_from_stream => delivery.answer_ack(),
            // Since RabbitMQ 4.3 a nack does not count towards the queue's delivery limit.
            Settlement::Requeue => delivery.answer_reject(true),
            Settlement::Reject => delivery.answer_reject(false),
        }
    }
}
