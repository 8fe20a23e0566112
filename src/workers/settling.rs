//! What happens to the messages of a handler that has returned.

use std::borrow::Cow;
use std::result::Result as StdResult;
use std::time::Duration;

use crossbeam_channel::select;

use super::activity::Event;
use super::handler::{Failure, Settlements};
use super::retry::{NextAttempt, Retries};
use super::worker::{Shift, Worker};
use super::{say, Settlement};
use crate::channel::Answered;
use crate::delivery::Delivery;
use crate::error::{Error, ErrorKind, OneLine, Result};
use crate::log_line::log_line;
use crate::options::{backoff, OnFailure, Requeue};

/// Number of failures after which a message of a queue that counts has failed before. One of them
/// may be another worker's crash.
const FAILURES_BEFORE: u64 = 2;

impl Worker {
    /// Settles a batch, of which the handler has returned the settlements.
    pub(super) fn settle_batch(
        &mut self,
        shift: &mut Shift,
        batch: &[Delivery],
        handled: StdResult<Settlements, Failure>,
    ) -> Result<()> {
        let handled = handled.and_then(|settlements| complete(settlements, batch.len()));
        self.count(&handled, batch.len());
        match handled {
            Ok(Settlements::All(settlement)) => batch
                .iter()
                .try_for_each(|it| self.settle(shift, it, settlement, None)),
            Ok(Settlements::Each(settlements)) => {
                let mut each = batch.iter().zip(settlements);
                each.try_for_each(|(it, settlement)| self.settle(shift, it, settlement, None))
            }
            Err(failure) => {
                let on_failure = match failure {
                    Failure::Error(_) => self.options.after_error(),
                    Failure::Panic(_) => self.options.after_panic(),
                };
                batch.iter().try_for_each(|delivery| {
                    let settlement = settlement_after(on_failure, delivery);
                    self.settle(shift, delivery, settlement, Some(&failure))
                })
            }
        }
    }

    fn count(&self, handled: &StdResult<Settlements, Failure>, messages: usize) {
        let event = match handled {
            Ok(_) => Event::Handled,
            Err(Failure::Error(_)) => Event::Failed,
            Err(Failure::Panic(_)) => Event::Panicked,
        };
        self.post.activity().note(event, messages);
        let Some(breaker) = &self.options.circuit_breaker else {
            return;
        };
        if event == Event::Handled {
            return self.post.succeeded();
        }
        if self.post.failed(breaker) {
            let (queue, delay) = (self.post.queue(), breaker.delay);
            say(|| {
                log_line!(
                    Warn,
                    self.connection.shared().label(),
                    "the handlers of queue {queue:?} keep failing: its workers pause for {delay:.1?}"
                )
            });
        }
    }

    fn settle(
        &mut self,
        shift: &mut Shift,
        delivery: &Delivery,
        settlement: Settlement,
        failure: Option<&Failure>,
    ) -> Result<()> {
        let settlement = match settlement {
            Settlement::Retry if self.retries.is_none() || delivery.is_from_stream() => {
                settlement_after(self.options.after_error(), delivery)
            }
            settlement => settlement,
        };
        let (answered, outcome) = self.answer(shift, delivery, settlement, failure);
        if let Some(failure) = failure {
            say(|| self.log_failure(delivery, failure, &outcome));
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

    /// Answers the broker. Also says what became of the message.
    fn answer(
        &mut self,
        shift: &Shift,
        delivery: &Delivery,
        settlement: Settlement,
        failure: Option<&Failure>,
    ) -> (Result<Answered>, Cow<'static, str>) {
        if delivery.is_settled() {
            let answered = shift.channel.answered(delivery.delivery_tag());
            return (Ok(answered), "settled by the handler".into());
        }
        let retries = self.retries.as_deref();
        if let (Settlement::Retry, Some(retries)) = (settlement, retries) {
            let next = retries.next_attempt(delivery);
            let (answered, outcome) = self.retry(shift, delivery, retries, next, failure);
            return (answered, outcome.into());
        }
        let is_from_stream = delivery.is_from_stream();
        let outcome = match settlement {
            _ if is_from_stream => "acknowledged, since a stream cannot requeue",
            Settlement::Ack => "acknowledged",
            Settlement::Requeue | Settlement::Retry => "requeued",
            Settlement::Reject => "rejected",
        };
        if is_from_stream && settlement == Settlement::Requeue {
            self.warn_of_stream();
        }
        let answer = match settlement {
            _ if is_from_stream => delivery.answer_ack(),
            Settlement::Ack => delivery.answer_ack(),
            // Since RabbitMQ 4.3 a nack does not count towards the queue's delivery limit.
            Settlement::Requeue | Settlement::Retry => delivery.answer_reject(Requeue::Yes),
            Settlement::Reject => delivery.answer_reject(Requeue::No),
        };
        (self.settled(shift, delivery, answer), outcome.into())
    }

    fn settled(
        &self,
        shift: &Shift,
        delivery: &Delivery,
        answer: Result<Answered>,
    ) -> Result<Answered> {
        match answer {
            // The handler has settled the message on another thread just now.
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

    fn retry(
        &self,
        shift: &Shift,
        delivery: &Delivery,
        retries: &Retries,
        next: NextAttempt,
        failure: Option<&Failure>,
    ) -> (Result<Answered>, String) {
        let attempts = delivery.attempts();
        let Some(target) = retries.target(next) else {
            let answered = delivery.answer_reject(Requeue::Yes);
            self.post.activity().note(Event::Retried, 1);
            let outcome = format!("requeued after {attempts} attempts");
            return (self.settled(shift, delivery, answered), outcome);
        };
        match self.publish_copy(shift, delivery, retries, &target, failure) {
            Copied::Yes => {}
            Copied::No => {
                let requeued = delivery.answer_reject(Requeue::Yes);
                let outcome = format!("requeued, since there is no copy in queue {target:?}");
                return (self.settled(shift, delivery, requeued), outcome);
            }
            Copied::Never(error) => {
                let (requeue, word) = match has_failed_before(delivery) {
                    true => (Requeue::No, "rejected"),
                    false => (Requeue::Yes, "requeued"),
                };
                let answered = delivery.answer_reject(requeue);
                let outcome = format!("{word}, since it cannot be copied: {error}");
                return (self.settled(shift, delivery, answered), outcome);
            }
        }
        let event = match next {
            NextAttempt::Never => Event::Parked,
            NextAttempt::After(_) | NextAttempt::ByBroker => Event::Retried,
        };
        self.post.activity().note(event, 1);
        let acknowledged = delivery.answer_ack();
        let outcome = format!("moved to queue {target:?} after {attempts} attempts");
        (self.settled(shift, delivery, acknowledged), outcome)
    }

    /// Publishes a copy, as often as needed.
    fn publish_copy(
        &self,
        shift: &Shift,
        delivery: &Delivery,
        retries: &Retries,
        target: &str,
        failure: Option<&Failure>,
    ) -> Copied {
        let error = failure.map_or("the handler asked for a retry", Failure::text);
        let is_redelivered = || shift.end().is_some() || delivery.is_stale();
        let mut failures: u32 = 0;
        let copied = loop {
            if is_redelivered() {
                break Copied::No;
            }
            // A thread that is to stop waits for nothing but the broker's confirm.
            let timeout = match self.post.is_stopped() {
                true => Duration::ZERO,
                false => self.connection.publish_timeout(),
            };
            let error = match retries.publish(delivery, target, error, timeout) {
                Ok(()) => break Copied::Yes,
                Err(_) if is_redelivered() => break Copied::No,
                Err(error) if matches!(error.kind(), ErrorKind::InvalidArgument(_)) => {
                    break Copied::Never(error);
                }
                Err(error) => error,
            };
            failures = failures.saturating_add(1);
            let delay = self.restart_delay(failures);
            self.tell_blocked(error, delay);
            let stopped = self.post.stopped();
            select! {
                recv(stopped) -> _ => break Copied::No,
                default(delay) => {}
            }
        };
        if failures > 0 {
            self.post.set_blocked(None);
        }
        copied
    }

    pub(super) fn restart_delay(&self, failures: u32) -> Duration {
        let (first, longest) = (self.options.restart_delay, self.options.max_restart_delay);
        backoff::delay(first, longest, failures, backoff::random())
    }

    fn tell_blocked(&self, error: Error, delay: Duration) {
        let error = self.named(error);
        self.post.set_blocked(Some(error.clone()));
        say(|| {
            log_line!(
                Warn,
                self.connection.shared().label(),
                "{error}; the worker keeps the message, and tries again in {delay:.1?}"
            )
        });
    }

    fn log_failure(&self, delivery: &Delivery, failure: &Failure, outcome: &str) {
        let (verb, text) = match failure {
            Failure::Error(text) => ("failed", text),
            Failure::Panic(text) => ("panicked", text),
        };
        log_line!(Error, self.connection.shared().label(),
            "the handler of queue {:?} {verb}: {}; delivery tag {}, message id {:?}, correlation id {:?}: {}",
            self.post.queue(),
            OneLine(text),
            delivery.delivery_tag(),
            delivery.message_id().unwrap_or_default(),
            delivery.correlation_id().unwrap_or_default(),
            outcome
        );
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
}

fn settlement_after(on_failure: OnFailure, delivery: &Delivery) -> Settlement {
    match on_failure {
        _ if delivery.is_from_stream() => Settlement::Ack,
        OnFailure::RequeueOnce if has_failed_before(delivery) => Settlement::Reject,
        OnFailure::RequeueOnce | OnFailure::Requeue => Settlement::Requeue,
        OnFailure::Reject => Settlement::Reject,
        OnFailure::Ack => Settlement::Ack,
        OnFailure::Retry => Settlement::Retry,
    }
}

/// Whether there is a copy of a failed message.
enum Copied {
    Yes,
    /// The broker redelivers the original anyway, or the thread is to stop.
    No,
    /// The message cannot be sent again, for example because its headers leave no room for more.
    Never(Error),
}

/// Fails if a handler has returned another number of settlements than it has got messages.
fn complete(settlements: Settlements, messages: usize) -> StdResult<Settlements, Failure> {
    match &settlements {
        Settlements::Each(each) if each.len() != messages => {
            let count = each.len();
            let text = format!("the handler returned {count} settlements for {messages} messages");
            Err(Failure::Error(text))
        }
        _ => Ok(settlements),
    }
}

/// Whether the message has failed before. A redelivery after another worker's crash is no failure,
/// where the broker counts.
fn has_failed_before(delivery: &Delivery) -> bool {
    match delivery.failures() {
        Some(failures) => failures >= FAILURES_BEFORE,
        None => delivery.redelivered(),
    }
}
