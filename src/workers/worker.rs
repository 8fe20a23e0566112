//! One worker thread: receives messages and calls its handler.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{select, Receiver, TryRecvError};

use super::answers::{Answers, LostAnswers};
use super::handler::{call, discard, make, Factory, Handler};
use super::post::{Post, Scope};
use super::retry::Retries;
use crate::channel::{Answered, Channel};
use crate::connection::Connection;
use crate::consumer::Consumer;
use crate::delivery::Delivery;
use crate::error::{ClosedBy, Error, ErrorKind, ReplyCode, Result};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::panics;
use crate::options::{ConsumeOptions, WorkerOptions};
use crate::session::queue_names::QueueName;
use crate::session::stream_position::StreamStart;

/// Starts a consumer on a new channel.
pub(super) fn begin(
    connection: &Connection,
    queue: QueueName<'_>,
    prefetch: u16,
    options: ConsumeOptions,
) -> Result<Consumer> {
    let channel = connection.open_channel()?;
    channel.basic_qos(prefetch)?;
    channel.consume_queue(queue, options, false)
}

/// How many messages a handler gets at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchLimits {
    size: u16,
    /// How long the first message waits for others.
    timeout: Duration,
    pub(super) prefetch: u16,
}

impl BatchLimits {
    pub(super) fn single(options: &WorkerOptions) -> Self {
        Self {
            size: 1,
            timeout: Duration::ZERO,
            prefetch: options.prefetch,
        }
    }

    pub(super) fn batches(options: &WorkerOptions) -> Self {
        Self {
            size: options.batch_size,
            timeout: options.batch_timeout,
            prefetch: options.prefetch.max(options.batch_size),
        }
    }
}

/// The work of one thread.
pub(super) struct Worker {
    pub(super) connection: Connection,
    pub(super) options: Arc<WorkerOptions>,
    pub(super) limits: BatchLimits,
    pub(super) factory: Arc<Factory>,
    pub(super) retries: Option<Arc<Retries>>,
    pub(super) progress: Progress,
    /// Dropped last, since dropping it reports the end of the thread.
    pub(super) post: Post,
}

/// What a thread keeps from one consumer to the next.
#[derive(Default)]
pub(super) struct Progress {
    /// Number of consumers in a row that ended early or could not begin.
    pub(super) failures: u32,
    /// The stream offset at which the next consumer begins.
    pub(super) next_offset: Option<u64>,
    /// The time from which the consumer reads its stream, until a message was handled.
    pub(super) since: Option<StreamStart>,
    /// Whether the log has the warning that this stream cannot requeue.
    pub(super) has_warned: bool,
}

/// One consumer, from its start to its end.
pub(super) struct Shift {
    pub(super) channel: Channel,
    consumer_tag: String,
    deliveries: Receiver<Result<Delivery>>,
    pub(super) answers: Answers,
    pub(super) since: Deadline,
    reads_since: Option<StreamStart>,
}

impl Shift {
    pub(super) fn new(consumer: &Consumer, prefetch: u16) -> Self {
        Self {
            channel: consumer.channel().clone(),
            consumer_tag: consumer.consumer_tag().to_owned(),
            deliveries: consumer.receiver().clone(),
            answers: Answers::new(prefetch),
            since: Deadline::after(Duration::MAX),
            reads_since: consumer.since().cloned(),
        }
    }

    /// Returns why the channel has ended, if it has.
    pub(super) fn end(&self) -> Option<Error> {
        self.channel.state().end_cause()
    }

    /// The error of a consumer that a handler has cancelled.
    fn cancelled(&self) -> Error {
        let consumer_tag = self.consumer_tag.clone();
        let by = ClosedBy::Program;
        Error::new(ErrorKind::ConsumerCancelled { consumer_tag, by })
    }

    /// Closes the channel of a consumer that has ended. Returns the acknowledgements that the
    /// broker may lack.
    pub(super) fn give_up(self) -> LostAnswers {
        let close = || self.channel.close_confirmed(ReplyCode::SUCCESS, "");
        let closed = panics::catch(close).ok().and_then(Result::ok);
        self.answers.lost(closed.flatten())
    }

    /// Forgets the acknowledgements of an earlier connection: the broker has redelivered their
    /// messages.
    fn forget_lost_answers(&mut self) {
        let open_in = self.channel.state().look(|channel| channel.opened_in());
        if open_in.is_some_and(|epoch| epoch != self.answers.epoch) {
            self.answers.forget();
        }
    }
}

/// Why a thread takes no more messages, without an error.
enum Ended {
    /// The thread is to leave its consumer.
    Left,
    /// A handler has cancelled the consumer.
    Cancelled,
}

impl Worker {
    pub(super) fn run(mut self, handler: Box<Handler>, shift: Shift) {
        self.post.begin();
        if let Err(message) = panics::catch(|| self.work(handler, shift)) {
            // A bug of this crate, or a panic of the program's metrics. `join` returns the error.
            self.fail(panicked(message), Scope::All);
        }
    }

    fn work(&mut self, handler: Box<Handler>, mut shift: Shift) {
        self.progress.since = shift.reads_since.take();
        let mut handler = Some(handler);
        self.work_with(&mut handler, shift);
        discard(handler);
    }

    fn work_with(&mut self, handler: &mut Option<Box<Handler>>, mut shift: Shift) {
        let mut batch = Vec::new();
        loop {
            let handled = panics::catch(|| self.handle_all(handler, &mut shift, &mut batch));
            let handled = handled.unwrap_or_else(|message| {
                self.post.activity().rest(&mut batch);
                shift.answers.note(Answered::NotSent);
                Err(panicked(message))
            });
            // After an error, a batch can be incomplete.
            batch.clear();
            if self.post.leaves() {
                self.hand_back(&shift);
            }
            let next = match handled {
                _ if self.post.is_stopped() => return self.finish(&shift),
                Ok(_) if self.post.is_paused() => self.begin_after_pause(handler, shift),
                Ok(Ended::Cancelled) => {
                    let cancelled = shift.cancelled();
                    self.begin_again(handler, shift, cancelled)
                }
                Ok(Ended::Left) => return self.finish(&shift),
                Err(error) => self.begin_again(handler, shift, error),
            };
            match next {
                Some(next) => shift = next,
                None => return,
            }
        }
    }

    /// Handles messages until the thread is told to stop or to pause, or the consumer ends.
    fn handle_all(
        &mut self,
        handler: &mut Option<Box<Handler>>,
        shift: &mut Shift,
        batch: &mut Vec<Delivery>,
    ) -> Result<Ended> {
        let activity = Arc::clone(self.post.activity());
        while !self.post.leaves() {
            if handler.is_none() {
                // Before the next message, which another thread may handle meanwhile.
                *handler = Some(make(&self.factory)?);
                continue;
            }
            if let Some(ended) = self.receive(shift, batch)? {
                return Ok(ended);
            }
            if batch.is_empty() {
                shift.forget_lost_answers();
                continue;
            }
            activity.handle(batch, |batch, begun| {
                let handled = call(handler, batch);
                activity.note_handler_time(begun.elapsed());
                self.settle_batch(shift, batch, handled)
            })?;
        }
        Ok(Ended::Left)
    }

    /// Fills the batch, if its messages are not stale by then. Returns why the consumer has ended.
    fn receive(&self, shift: &Shift, batch: &mut Vec<Delivery>) -> Result<Option<Ended>> {
        let first = match self.next(shift, Duration::MAX) {
            Next::Delivery(first) => first?,
            Next::Nothing => return Ok(None),
            Next::Cancelled => return Ok(Some(Ended::Cancelled)),
        };
        batch.push(first);
        if self.limits.size > 1 {
            self.fill(shift, batch)?;
        }
        if let Some(cause) = shift.end() {
            // The broker redelivers the messages.
            batch.clear();
            return Err(cause);
        }
        if self.retries.is_some() {
            let queue = self.post.queue().current();
            batch.iter_mut().for_each(|it| it.as_first_published(queue));
        }
        Ok(None)
    }

    /// Waits for more messages, until the batch is full or its first message has waited long
    /// enough. If the thread is to stop or to pause, it still handles what it has.
    fn fill(&self, shift: &Shift, batch: &mut Vec<Delivery>) -> Result<()> {
        let deadline = Deadline::after(self.limits.timeout);
        while batch.len() < self.limits.size.into() {
            let Next::Delivery(delivery) = self.next(shift, deadline.remaining()) else {
                break;
            };
            batch.push(delivery?);
        }
        // The broker redelivers what came over a connection that was lost since.
        batch.retain(|it| it.is_from_stream() || !it.is_stale());
        Ok(())
    }

    fn next(&self, shift: &Shift, timeout: Duration) -> Next {
        // Looking first is cheaper.
        let delivery = match shift.deliveries.try_recv() {
            Ok(delivery) => return Next::Delivery(delivery),
            Err(TryRecvError::Disconnected) => return Next::Cancelled,
            Err(TryRecvError::Empty) => select! {
                recv(self.post.woken()) -> _ => return Next::Nothing,
                recv(shift.deliveries) -> delivery => delivery,
                default(timeout) => return Next::Nothing,
            },
        };
        delivery.map_or(Next::Cancelled, Next::Delivery)
    }
}

/// What a thread that waits for a message gets.
enum Next {
    Delivery(Result<Delivery>),
    /// No message came in time, or the thread is to leave its consumer.
    Nothing,
    /// This program has cancelled the consumer.
    Cancelled,
}

pub(super) fn panicked(message: String) -> Error {
    Error::new(ErrorKind::WorkerPanicked { message })
}
