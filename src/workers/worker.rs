//! One worker thread: handles messages, and consumes again when its consumer ends.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{select, Receiver};

use super::answers::{Answers, LostAnswers};
use super::crew::{Post, Scope};
use super::handler::{chain, Factory, Handler};
use super::{say, Settlement};
use crate::channel::{Answered, Channel};
use crate::connection::Connection;
use crate::consumer::Consumer;
use crate::delivery::Delivery;
use crate::error::{Error, ErrorKind, OneLine, ReplyCode, Result};
use crate::events::ConnectionEvent;
use crate::io_thread::deadline::Deadline;
use crate::io_thread::panics;
use crate::log_line::log_line;
use crate::options::backoff;
use crate::options::{ConsumeOptions, OnConsumerEnd, OnFailure, Requeue, WorkerOptions};
use crate::session::queue_names::QueueName;
use crate::session::stream_position::StreamStart;

/// How often a thread checks whether a lost connection has recovered.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

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

/// The work of one thread.
pub(super) struct Worker {
    pub(super) connection: Connection,
    pub(super) options: Arc<WorkerOptions>,
    pub(super) factory: Arc<Factory>,
    pub(super) progress: Progress,
    /// Dropped last, since dropping it reports the end of the thread.
    pub(super) post: Post,
}

/// What a thread keeps from one consumer to the next.
#[derive(Default)]
pub(super) struct Progress {
    /// Number of consumers in a row that ended early or could not begin.
    failures: u32,
    /// The stream offset at which the next consumer begins.
    next_offset: Option<u64>,
    /// The time from which the consumer reads its stream, until a message was handled.
    since: Option<StreamStart>,
    /// Whether the log has the warning that this stream cannot requeue.
    has_warned: bool,
}

/// One consumer, from its start to its end.
pub(super) struct Shift {
    channel: Channel,
    deliveries: Receiver<Result<Delivery>>,
    answers: Answers,
    since: Deadline,
    reads_since: Option<StreamStart>,
}

impl Shift {
    pub(super) fn new(consumer: &Consumer, prefetch: u16) -> Self {
        Self {
            channel: consumer.channel().clone(),
            deliveries: consumer.receiver().clone(),
            answers: Answers::new(prefetch),
            since: Deadline::after(Duration::MAX),
            reads_since: consumer.since().cloned(),
        }
    }

    /// Returns why the channel has ended, if it has.
    fn end(&self) -> Option<Error> {
        self.channel.state().end_cause()
    }

    /// Closes the channel of a consumer that has ended. Returns the acknowledgements that the
    /// broker may lack.
    fn give_up(self) -> LostAnswers {
        let close = || self.channel.close_confirmed(ReplyCode::SUCCESS, "");
        let closed = panics::catch(close).ok().and_then(Result::ok);
        self.answers.lost(closed.flatten())
    }
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
        loop {
            let handled = panics::catch(|| self.handle_all(handler, &mut shift));
            let handled = handled.unwrap_or_else(|message| {
                self.post.set_busy(false);
                shift.answers.note(Answered::NotSent);
                Err(panicked(message))
            });
            let error = match handled {
                Err(error) if !self.post.is_stopped() => error,
                _ => return self.finish(&shift),
            };
            match self.begin_again(handler, shift, error) {
                Some(next) => shift = next,
                None => return,
            }
        }
    }

    /// Handles messages until the thread is told to stop, or the consumer ends.
    fn handle_all(&mut self, handler: &mut Option<Box<Handler>>, shift: &mut Shift) -> Result<()> {
        while !self.post.is_stopped() {
            let Some(current) = handler else {
                // Before the next message, which another thread may handle meanwhile.
                *handler = Some(make(&self.factory)?);
                continue;
            };
            let Some(delivery) = self.next(shift)? else {
                let open_in = shift.channel.state().look(|channel| channel.opened_in());
                if open_in.is_some_and(|epoch| epoch != shift.answers.epoch) {
                    shift.answers.forget();
                }
                return Ok(());
            };
            self.post.set_busy(true);
            let handled = panics::catch(|| current(&delivery).map_err(|error| chain(&*error)));
            if handled.is_err() {
                // Its state may be broken.
                discard(handler.take());
            }
            let settled = self.settle_handled(shift, &delivery, handled);
            self.post.set_busy(false);
            settled?;
        }
        Ok(())
    }

    /// Returns the next message, or `None` when the thread is told to stop.
    fn next(&self, shift: &Shift) -> Result<Option<Delivery>> {
        let stopped = self.post.stopped();
        let delivery = select! {
            recv(stopped) -> _ => return Ok(None),
            recv(shift.deliveries) -> delivery => delivery,
        };
        // Without a sender, this program has cancelled the consumer.
        let delivery = delivery.ok().transpose()?;
        match shift.end().filter(|_| delivery.is_some()) {
            // The broker redelivers the message.
            Some(cause) => Err(cause),
            None => Ok(delivery),
        }
    }

    /// Settles a message. `handled` is what its handler has returned, or the panic's message.
    fn settle_handled(
        &mut self,
        shift: &mut Shift,
        delivery: &Delivery,
        handled: std::result::Result<std::result::Result<Settlement, String>, String>,
    ) -> Result<()> {
        let after = |on_failure| after_failure(on_failure, delivery);
        let (settlement, failure) = match handled {
            Ok(Ok(settlement)) => (settlement, None),
            Ok(Err(error)) => (
                after(self.options.on_error),
                Some(format!("failed: {error}")),
            ),
            Err(panic) => (
                after(self.options.on_panic),
                Some(format!("panicked: {panic}")),
            ),
        };
        let outcome = match delivery.is_settled() {
            true => "settled by the handler",
            false => outcome_of(settlement, delivery),
        };
        let answered = self.settle(shift, delivery, settlement);
        if let Some(failure) = failure {
            say(|| self.log_failure(delivery, &failure, outcome));
        }
        shift.answers.note(match &answered {
            Ok(answered) => *answered,
            Err(_) => Answered::NotSent,
        });
        answered?;
        if delivery.is_from_stream() {
            let next = delivery.stream_offset().map(|it| it.saturating_add(1));
            self.progress.next_offset = next.or(self.progress.next_offset);
        }
        Ok(())
    }

    fn log_failure(&self, delivery: &Delivery, failure: &str, outcome: &str) {
        log_line!(Error, self.connection.shared().label(),
            "the handler of queue {:?} {}; delivery tag {}, message id {:?}, correlation id {:?}: {}",
            self.post.queue(),
            OneLine(failure),
            delivery.delivery_tag(),
            delivery.message_id().unwrap_or_default(),
            delivery.correlation_id().unwrap_or_default(),
            outcome
        );
    }

    fn settle(
        &mut self,
        shift: &Shift,
        delivery: &Delivery,
        settlement: Settlement,
    ) -> Result<Answered> {
        let is_from_stream = delivery.is_from_stream();
        let settled = match settlement {
            Settlement::Ack => delivery.answer_ack(),
            Settlement::Requeue | Settlement::Reject if is_from_stream => delivery.answer_ack(),
            // Since RabbitMQ 4.3 a nack does not count towards the queue's delivery limit.
            Settlement::Requeue => delivery.answer_reject(Requeue::Yes),
            Settlement::Reject => delivery.answer_reject(Requeue::No),
        };
        if is_from_stream && settlement == Settlement::Requeue {
            self.warn_of_stream();
        }
        match settled {
            // The handler has settled the message itself.
            Err(error) if matches!(error.kind(), ErrorKind::AlreadySettled { .. }) => {
                Ok(shift.channel.answered(delivery.delivery_tag()))
            }
            Err(error) if shift.end().is_some() => {
                let queue = self.post.queue();
                say(|| {
                    log_line!(Warn, self.connection.shared().label(),
                        "worker of queue {queue:?}: the broker redelivers a message that was handled: {error}"
                    );
                });
                Ok(Answered::NotSent)
            }
            settled => settled,
        }
    }

    fn warn_of_stream(&mut self) {
        if std::mem::replace(&mut self.progress.has_warned, true) {
            return;
        }
        let stream = self.post.queue();
        say(|| {
            log_line!(Warn, self.connection.shared().label(),
                "the handler of stream {stream:?} requeues a message, but a stream cannot requeue: this thread \
                 acknowledges the message, and all others that the handler requeues"
            );
        });
    }

    // ---- the end of a consumer ----

    /// Closes the channel: after that, the broker has read every acknowledgement.
    fn finish(&self, shift: &Shift) {
        match shift.channel.close_confirmed(ReplyCode::SUCCESS, "") {
            Ok(confirmed_in) => self.lose(shift.answers.lost(confirmed_in)),
            // The broker closed the channel, so it may not have read the last acknowledgements.
            Err(error) if matches!(error.kind(), ErrorKind::ChannelClosed { .. }) => {
                self.lose(shift.answers.lost(None));
            }
            Err(error) => self.fail(error, Scope::Queue),
        }
    }

    fn lose(&self, answers: LostAnswers) {
        if answers.is_none() {
            return;
        }
        self.post.lose(answers);
        let queue = self.post.queue();
        say(|| {
            log_line!(
                Error,
                self.connection.shared().label(),
                "worker of queue {queue:?}: {}",
                answers.kind()
            )
        });
    }

    fn fail(&self, error: Error, scope: Scope) {
        let error = self.named(error);
        self.post.fail(error.clone(), scope);
        say(|| log_line!(Error, self.connection.shared().label(), "{error}"));
    }

    fn named(&self, error: Error) -> Error {
        error.doing(format!("worker of queue {:?}", self.post.queue()))
    }

    /// Consumes again as soon as possible. `None` if the thread is to end.
    fn begin_again(
        &mut self,
        handler: &mut Option<Box<Handler>>,
        shift: Shift,
        error: Error,
    ) -> Option<Shift> {
        let outage = Deadline::after(Duration::MAX);
        if shift.since.elapsed() >= self.options.max_restart_delay {
            self.progress.failures = 0;
        }
        let mut next = self.interrupted(error)?;
        let lost = shift.give_up();
        loop {
            if !self.wait(next) {
                self.lose(lost);
                return None;
            }
            if handler.is_none() {
                match make(&self.factory) {
                    Ok(made) => *handler = Some(made),
                    Err(error) => {
                        next = self.interrupted(error)?;
                        continue;
                    }
                }
                if self.post.is_stopped() {
                    self.lose(lost);
                    return None;
                }
            }
            let begun = panics::catch(|| self.try_again());
            match begun.unwrap_or_else(|message| Err(panicked(message))) {
                Ok(consumer) => {
                    let shift = Shift::new(&consumer, self.options.prefetch);
                    if !self.post.resume(consumer) {
                        self.lose(lost);
                        return None;
                    }
                    self.tell_resumed(outage.elapsed());
                    return Some(shift);
                }
                Err(error) => next = self.interrupted(error)?,
            }
        }
    }

    /// Reports the error, and returns when the next attempt is due. `None` if the thread is to end.
    fn interrupted(&mut self, error: Error) -> Option<Deadline> {
        let error = self.connection.close_cause().unwrap_or(error);
        if let Some(scope) = self.ends(&error) {
            self.fail(error, scope);
            return None;
        }
        let error = self.named(error);
        self.post.interrupted(error.clone());
        self.progress.failures = self.progress.failures.saturating_add(1);
        let next = backoff::delay(
            self.options.restart_delay,
            self.options.max_restart_delay,
            self.progress.failures,
            backoff::random(),
        );
        let event = ConnectionEvent::WorkerInterrupted {
            queue: self.post.queue().current().to_owned(),
            error: error.clone(),
            next,
        };
        self.connection.shared().tell(event);
        say(|| {
            log_line!(
                Warn,
                self.connection.shared().label(),
                "{error}; the worker consumes again in {next:.1?}"
            )
        });
        Some(Deadline::after(next))
    }

    /// Which threads stop because this consumer has ended, or has no handler. `None` if the thread
    /// tries again.
    fn ends(&self, error: &Error) -> Option<Scope> {
        match self.options.on_consumer_end {
            _ if !self.connection.is_open() => Some(Scope::All),
            _ if matches!(error.kind(), ErrorKind::HandlerNotCreated { .. }) => None,
            OnConsumerEnd::Restart => None,
            OnConsumerEnd::StopQueue => Some(Scope::Queue),
            OnConsumerEnd::StopAll => Some(Scope::All),
        }
    }

    /// Waits until `until`, then until a lost connection recovers or closes. False if the thread is
    /// to stop.
    fn wait(&self, until: Deadline) -> bool {
        let (mut until, stopped) = (until, self.post.stopped());
        let ended = self.connection.shared().outbox.ended();
        loop {
            select! {
                recv(stopped) -> _ => return false,
                recv(ended) -> _ => return true,
                default(until.remaining()) => {}
            }
            if self.connection.loss_cause().is_none() {
                return true;
            }
            until = Deadline::after(LOOK_AGAIN);
        }
    }

    fn try_again(&mut self) -> Result<Consumer> {
        let mut options = self.options.consume.clone();
        if let Some(next) = self.progress.next_offset {
            options.arguments.insert("x-stream-offset", next);
        } else if let Some(since) = &self.progress.since {
            options = options.stream_offset(since.offset());
        }
        let queue = self.post.queue().into();
        let begun = begin(&self.connection, queue, self.options.prefetch, options);
        if begun.as_ref().is_err_and(Error::is_missing) {
            // A stream that is deleted and declared again starts at offset 0.
            let next = self.progress.next_offset.is_some() || self.progress.since.is_some();
            self.progress.next_offset = next.then_some(0);
        }
        begun
    }

    fn tell_resumed(&self, after: Duration) {
        let queue = self.post.queue();
        self.connection
            .shared()
            .tell(ConnectionEvent::WorkerResumed {
                queue: queue.current().to_owned(),
                after,
            });
        say(|| {
            log_line!(
                Info,
                self.connection.shared().label(),
                "worker of queue {queue:?}: consumes again after {after:.1?}"
            )
        });
    }
}

fn panicked(message: String) -> Error {
    Error::new(ErrorKind::WorkerPanicked { message })
}

/// Makes a handler. A panic of the program's function is an error.
pub(super) fn make(factory: &Arc<Factory>) -> Result<Box<Handler>> {
    let made = panics::catch(|| factory());
    made.unwrap_or_else(|text| Err(Error::new(ErrorKind::HandlerNotCreated { text })))
}

/// Drops a handler. The panic hook reports a panic of its destructor.
fn discard(handler: Option<Box<Handler>>) {
    let _ = panics::catch(|| drop(handler));
}

fn outcome_of(settlement: Settlement, delivery: &Delivery) -> &'static str {
    match settlement {
        _ if delivery.is_from_stream() => "acknowledged, since a stream cannot requeue",
        Settlement::Ack => "acknowledged",
        Settlement::Requeue => "requeued",
        Settlement::Reject => "rejected",
    }
}

/// The settlement of a message whose handler has failed.
fn after_failure(on_failure: OnFailure, delivery: &Delivery) -> Settlement {
    match on_failure {
        _ if delivery.is_from_stream() => Settlement::Ack,
        OnFailure::RequeueOnce if delivery.redelivered() => Settlement::Reject,
        OnFailure::RequeueOnce | OnFailure::Requeue => Settlement::Requeue,
        OnFailure::Reject => Settlement::Reject,
        OnFailure::Ack => Settlement::Ack,
    }
}
