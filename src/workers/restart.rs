//! The end of a thread's consumer, and how the thread consumes again.

use std::time::Duration;

use crossbeam_channel::select;

use super::answers::LostAnswers;
use super::handler::{make, Handler};
use super::post::{Resumed, Scope};
use super::say;
use super::worker::{begin, panicked, Shift, Worker};
use crate::consumer::Consumer;
use crate::error::{Error, ErrorKind, ReplyCode, Result};
use crate::events::ConnectionEvent;
use crate::io_thread::deadline::Deadline;
use crate::io_thread::panics;
use crate::log_line::log_line;
use crate::options::{OnConsumerEnd, Requeue};

/// How often a thread checks whether a lost connection has recovered.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Number of answers for a quorum queue above which RabbitMQ's channel keeps them.
const KEPT_ABOVE: u16 = 32;

impl Worker {
    /// Gives the unread messages back, before the channel is closed.
    ///
    /// RabbitMQ's channel hands 32 acknowledgements to a quorum queue, and keeps further ones until
    /// the queue has answered. When the channel closes, it forgets those that it keeps. So the
    /// consumer is cancelled after the last acknowledgement: before cancel-ok, the queue answers
    /// all earlier ones. Then all messages go back at once, instead of one by one.
    pub(super) fn hand_back(&self, shift: &Shift) {
        // Dropping it cancels it, too, without waiting.
        let consumer = self.post.take_consumer();
        let prefetch = self.limits.prefetch;
        // Each unacknowledged message is acknowledged or given back.
        let is_kept = prefetch > KEPT_ABOVE / 2;
        // The broker redelivers all messages of a lost connection.
        if !is_kept || self.connection.loss_cause().is_some() {
            return;
        }
        let handed_back = panics::catch(|| match consumer {
            Some(consumer) if consumer.reads_from_stream() => consumer.cancel(),
            Some(consumer) => {
                consumer.cancel()?;
                shift.channel.basic_recover(Requeue::Yes)
            }
            // Another thread has cancelled the consumer. The reply follows what it sent.
            None => shift.channel.basic_qos(prefetch),
        });
        if let Ok(Err(error)) = handed_back {
            let queue = self.post.queue();
            say(|| {
                log_line!(
                    Debug,
                    self.connection.shared().label(),
                    "worker of queue {queue:?}: {error}"
                )
            });
        }
    }

    /// Closes the channel: after that, the broker has read every acknowledgement.
    pub(super) fn finish(&self, shift: &Shift) {
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

    pub(super) fn fail(&self, error: Error, scope: Scope) {
        let error = self.named(error);
        self.post.fail(error.clone(), scope);
        say(|| log_line!(Error, self.connection.shared().label(), "{error}"));
    }

    pub(super) fn named(&self, error: Error) -> Error {
        error.doing(format!("worker of queue {:?}", self.post.queue()))
    }

    /// Consumes again as soon as possible. `None` if the thread is to end.
    pub(super) fn begin_again(
        &mut self,
        handler: &mut Option<Box<Handler>>,
        shift: Shift,
        error: Error,
    ) -> Option<Shift> {
        if shift.since.elapsed() >= self.options.max_restart_delay {
            self.progress.failures = 0;
        }
        let outage = Deadline::after(Duration::MAX);
        let next = self.interrupted(error)?;
        let lost = shift.give_up();
        let begun = self.begin_at(handler, next);
        match begun {
            Some(_) => self.tell_resumed(outage.elapsed()),
            None => self.lose(lost),
        }
        begun
    }

    /// Consumes again when the queue is resumed. `None` if the thread is to end.
    pub(super) fn begin_after_pause(
        &mut self,
        handler: &mut Option<Box<Handler>>,
        shift: Shift,
    ) -> Option<Shift> {
        let lost = shift.give_up();
        let begun = self.begin_at(handler, Deadline::after(Duration::ZERO));
        if begun.is_none() {
            self.lose(lost);
        }
        begun
    }

    /// Waits until `next` and while the queue is paused, then begins, as often as needed. `None` if
    /// the thread is to end.
    fn begin_at(
        &mut self,
        handler: &mut Option<Box<Handler>>,
        mut next: Deadline,
    ) -> Option<Shift> {
        loop {
            if !self.wait(next) || !self.post.wait_resumed() {
                return None;
            }
            let begun = panics::catch(|| self.try_begin(handler));
            let consumer = match begun.unwrap_or_else(|message| Err(panicked(message))) {
                Ok(consumer) => consumer,
                Err(error) => {
                    next = self.interrupted(error)?;
                    continue;
                }
            };
            let shift = Shift::new(&consumer, self.limits.prefetch);
            match self.post.resume(consumer) {
                Resumed::Consuming => return Some(shift),
                Resumed::Paused => {
                    shift.give_up();
                }
                Resumed::Stopped => return None,
            }
        }
    }

    fn try_begin(&mut self, handler: &mut Option<Box<Handler>>) -> Result<Consumer> {
        if handler.is_none() {
            *handler = Some(make(&self.factory)?);
        }
        self.try_again()
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
        let next = self.restart_delay(self.progress.failures);
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
        let begun = begin(&self.connection, queue, self.limits.prefetch, options);
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
