//! How failed messages are retried.

use std::time::Duration;

use super::{milliseconds, QueueDeclareOptions, QueueType};
use crate::error::{Error, Result};

/// How [`Workers`](crate::Workers) retry a message whose handler has failed: later, and not
/// forever. See [`WorkerOptions::retry`](crate::WorkerOptions::retry).
///
/// Nothing is lost: a message is in its queue, in a retry queue, or parked. But a message can be
/// handled twice, and the order of messages is not kept.
///
/// With [`after`](Self::after), a failed message leaves its queue. The thread publishes a copy to a
/// retry queue, waits until the broker has confirmed the copy, and then acknowledges the original.
/// After a delay, the broker moves the copy back. When all attempts have failed, the copy goes to
/// the queue of parked messages, from which [`Workers::unpark`](crate::Workers::unpark) moves it
/// back. This works with every version of RabbitMQ and needs no plugin. For a queue `mails`:
///
/// | queue | its messages | arguments |
/// | --- | --- | --- |
/// | `mails.retry.1000` | wait for a second, then return to `mails` | a time to live for the queue; dead-lettering through the default exchange |
/// | `mails.parked` | wait for a person or a program | a delivery limit that is never reached |
///
/// ```
/// use leveret::{Retry, WorkerOptions};
/// use std::time::Duration;
///
/// let delays = [1, 10, 60].map(Duration::from_secs);
/// let options = WorkerOptions::default().threads(4).retry(Retry::after(delays));
/// ```
///
/// # What the handler sees
/// The exchange and routing key of a copy are those of the first message, and
/// [`Delivery::attempts`](crate::Delivery::attempts) counts on. A copy has these headers:
///
/// | header | content |
/// | --- | --- |
/// | `x-retry-step` | number of retries so far |
/// | `x-retry-attempts` | number of attempts so far |
/// | `x-retry-exchange`, `x-retry-routing-key` | those of the first message |
/// | `x-retry-error` | the last error and its sources, up to 1,024 bytes |
///
/// The names of the queues have at most 255 bytes, as all names in AMQP.
///
/// A copy is persistent. It lacks the properties that would let it expire too early, or keep the
/// broker from taking it: `expiration` and `user_id`. It also lacks the header `CC`, which would
/// send it to further queues, the broker's counts of deliveries, and the broker's record of dead
/// letters (`x-death`), which could make RabbitMQ drop it.
///
/// # When a copy cannot be published
/// If a retry queue or the queue of parked messages is missing, full or refused, the thread keeps
/// the original unacknowledged, and publishes again with the delays of
/// [`WorkerOptions::restart_delay`](crate::WorkerOptions::restart_delay). It handles nothing
/// meanwhile. Each failure is a warning in the log, and
/// [`Workers::status`](crate::Workers::status) counts the thread as
/// [`blocked`](crate::QueueWorkers::blocked). A missing queue is declared again.
///
/// A message that cannot be sent again, because its headers leave no room for those above and for
/// those of the broker, is treated as with
/// [`OnFailure::RequeueOnce`](crate::OnFailure::RequeueOnce). If its properties are malformed, its
/// copy has none.
///
/// If the connection is lost before the original is acknowledged, the broker redelivers it. Its
/// copy may be there, too.
///
/// See <https://www.rabbitmq.com/docs/ttl#per-queue-message-ttl> and
/// <https://www.rabbitmq.com/docs/quorum-queues#dead-lettering>.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    pub(crate) delay: RetryDelay,
    pub(crate) attempts: u32,
    pub(crate) declare: bool,
    queue_type: QueueType,
}

/// Who delays a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RetryDelay {
    /// A queue for each delay.
    Queues(Vec<Duration>),
    /// The queue itself.
    ByBroker { min: Duration, max: Duration },
}

impl Retry {
    /// Retries after each of these delays, in whole milliseconds, rounded up. After the last one,
    /// the message is parked. Without a delay, a message is parked when it fails for the first
    /// time.
    #[must_use]
    pub fn after(delays: impl IntoIterator<Item = Duration>) -> Self {
        let delays: Vec<_> = delays.into_iter().collect();
        let attempts = u32::try_from(delays.len()).unwrap_or(u32::MAX);
        Self {
            delay: RetryDelay::Queues(delays),
            attempts: attempts.saturating_add(1),
            declare: true,
            queue_type: QueueType::Quorum,
        }
    }

    /// Lets the queue itself delay the messages, without copies: a quorum queue of RabbitMQ 4.3 or
    /// later, with [`QueueDeclareOptions::delayed_retry`]. The n-th delay is n times `min`, but at
    /// most `max`. After 10 attempts (see [`attempts`](Self::attempts)), a copy is parked, as with
    /// [`after`](Self::after).
    ///
    /// The workers declare their queue with these delays, with the number of attempts as its
    /// [`delivery_limit`](QueueDeclareOptions::delivery_limit), and with the queue of parked
    /// messages for its dead letters. So the broker parks a message that ends its process each
    /// time, too. If the queue needs other arguments, declare it with
    /// [`delayed_retry`](QueueDeclareOptions::delayed_retry) in the program, and use
    /// [`declare(false)`](Self::declare).
    ///
    /// Before RabbitMQ 4.3, the broker redelivers without a delay: the workers log a warning.
    #[must_use]
    pub fn by_broker(min: Duration, max: Duration) -> Self {
        Self {
            delay: RetryDelay::ByBroker { min, max },
            attempts: 10,
            declare: true,
            queue_type: QueueType::Quorum,
        }
    }

    /// Parks a message after so many attempts. With more attempts than delays, the last delay, if
    /// there is one, is repeated. Default: one more than there are delays; 10 for
    /// [`by_broker`](Self::by_broker).
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// Whether the workers declare the queues. With false, they only check that the queues exist,
    /// for a user without the permission to configure them. Default: true.
    ///
    /// The program must then declare the queues, or an operator, with the arguments of
    /// [`retry_queue`](Self::retry_queue) and [`parked_queue`](Self::parked_queue).
    #[must_use]
    pub fn declare(mut self, declare: bool) -> Self {
        self.declare = declare;
        self
    }

    /// The type of the queues that the workers declare: [`QueueType::Quorum`] or
    /// [`QueueType::Classic`]. Default: quorum.
    ///
    /// Quorum queues move messages back safely (at-least-once dead-lettering), and need RabbitMQ
    /// 3.10 or later. A classic queue can lose a message if the node stops while it moves the
    /// message.
    #[must_use]
    pub fn queue_type(mut self, queue_type: QueueType) -> Self {
        self.queue_type = queue_type;
        self
    }

    /// Returns the name and the options of the queue in which messages of `queue` wait for a delay.
    #[must_use]
    pub fn retry_queue(&self, queue: &str, delay: Duration) -> (String, QueueDeclareOptions) {
        let name = format!("{queue}.retry.{}", milliseconds(delay));
        let options = self.queue_options().message_ttl(delay);
        let options = match self.queue_type {
            QueueType::Quorum => options.dead_letter_at_least_once(""),
            _ => options.dead_letter_exchange(""),
        };
        (name, options.dead_letter_routing_key(queue))
    }

    /// Returns the name and the options of the queue of parked messages.
    #[must_use]
    pub fn parked_queue(&self, queue: &str) -> (String, QueueDeclareOptions) {
        let options = match self.queue_type {
            // By default, RabbitMQ 4.0 drops a message that was looked at and given back 20 times.
            QueueType::Quorum => self.queue_options().delivery_limit(u32::MAX),
            _ => self.queue_options(),
        };
        (parked(queue), options)
    }

    fn queue_options(&self) -> QueueDeclareOptions {
        QueueDeclareOptions::default().queue_type(self.queue_type)
    }

    /// All queues that the workers declare for `queue`, with their options.
    pub(crate) fn queues(&self, queue: &str) -> Vec<(String, QueueDeclareOptions)> {
        let mut queues = vec![self.parked_queue(queue)];
        match &self.delay {
            RetryDelay::Queues(delays) => {
                queues.extend(delays.iter().map(|delay| self.retry_queue(queue, *delay)));
            }
            RetryDelay::ByBroker { min, max } => {
                let options = QueueDeclareOptions::quorum()
                    .delayed_retry(super::DelayedRetry::Failed, *min, *max)
                    .delivery_limit(self.attempts)
                    .dead_letter_at_least_once("")
                    .dead_letter_routing_key(parked(queue));
                queues.push((queue.to_owned(), options));
            }
        }
        queues
    }

    /// The delay after this many retries, or `None` if the message is to be parked.
    pub(crate) fn delay_after(&self, retries: u64) -> Option<Duration> {
        let RetryDelay::Queues(delays) = &self.delay else {
            return None;
        };
        if retries.saturating_add(1) >= self.attempts.into() {
            return None;
        }
        let step = usize::try_from(retries).unwrap_or(usize::MAX);
        delays.get(step).or_else(|| delays.last()).copied()
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.attempts == 0 {
            return Err(Error::invalid("a retry needs at least one attempt"));
        }
        if self.queue_type == QueueType::Stream {
            return Err(Error::invalid(
                "a stream cannot be a retry queue, since it keeps its messages",
            ));
        }
        Ok(())
    }
}

/// The name of the queue of parked messages.
pub(crate) fn parked(queue: &str) -> String {
    format!("{queue}.parked")
}
