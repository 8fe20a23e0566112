//! Copies of failed messages, published to retry queues or to the queue of parked messages.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{bounded, Receiver, Sender};

use crate::channel::Channel;
use crate::connection::Connection;
use crate::delivery::Delivery;
use crate::error::{Error, ErrorKind, Result};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::ConfirmMailbox;
use crate::log_line::log_line;
use crate::message::Message;
use crate::options::retry::parked;
use crate::options::{AckMode, Retry, RetryDelay};
use crate::proto::Outcome;
use crate::publisher::confirm::result_of;

/// How long a thread waits for the broker's answer to a copy before it says so and tries again.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
/// Number of messages that `unpark` moves at once.
const UNPARKED_AT_ONCE: usize = 100;

/// What happens to a message that has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextAttempt {
    /// A copy goes to a retry queue.
    After(Duration),
    /// The queue itself delays the message.
    ByBroker,
    /// A copy goes to the queue of parked messages.
    Never,
}

/// Publishes the copies of one queue's messages. All threads of the queue share it.
pub(super) struct Retries {
    retry: Retry,
    queue: String,
    copies: Copies,
}

impl Retries {
    /// Declares the queues, or checks that they exist.
    pub(super) fn prepare(connection: &Connection, queue: &str, retry: &Retry) -> Result<Self> {
        if queue.is_empty() || queue.starts_with("amq.") {
            return Err(Error::invalid(format!(
                "queue {queue:?} cannot have retry queues: it needs a name of the program's"
            )));
        }
        let retries = Self {
            retry: retry.clone(),
            queue: queue.to_owned(),
            copies: Copies::open(connection)?,
        };
        // If the queue does not exist, consuming fails, and no other queue must be left over.
        if retries.delays_by_broker() || connection.queue_exists(queue)? {
            retries.declare()?;
        }
        if retries.delays_by_broker() && !can_delay(connection) {
            log_line!(
                Warn,
                connection.shared().label(),
                "the broker redelivers failed messages of queue {queue:?} without a delay: \
                 Retry::by_broker needs RabbitMQ 4.3; use Retry::after"
            );
        }
        Ok(retries)
    }

    fn declare(&self) -> Result<()> {
        let connection = self.copies.channel.connection();
        let queues = self.retry.queues(&self.queue);
        if !self.retry.declare {
            let is_missing = |name: &str| connection.queue_exists(name).map(|exists| !exists);
            for (name, _) in queues {
                if is_missing(&name)? {
                    return Err(Error::invalid(format!(
                        "queue {name:?} does not exist: declare it, or let the workers declare it (Retry::declare)"
                    )));
                }
            }
            return Ok(());
        }
        // An error costs the channel.
        let channel = connection.open_channel()?;
        for (name, options) in queues {
            channel.queue_declare(&name, options)?;
        }
        channel.close()
    }

    pub(super) fn delays_by_broker(&self) -> bool {
        matches!(self.retry.delay, RetryDelay::ByBroker { .. })
    }

    pub(super) fn next_attempt(&self, delivery: &Delivery) -> NextAttempt {
        if self.delays_by_broker() {
            let failures = delivery.failures();
            // In a queue that does not count, the attempts would never end.
            let is_uncounted = failures.is_none() && delivery.redelivered();
            let attempts = failures.unwrap_or_default().saturating_add(1);
            return match is_uncounted || attempts >= self.retry.attempts.into() {
                true => NextAttempt::Never,
                false => NextAttempt::ByBroker,
            };
        }
        let delay = self.retry.delay_after(delivery.retries());
        delay.map_or(NextAttempt::Never, NextAttempt::After)
    }

    /// The queue for the copy, or `None` if the message stays in its queue.
    pub(super) fn target(&self, next: NextAttempt) -> Option<String> {
        match next {
            NextAttempt::After(delay) => Some(self.retry.retry_queue(&self.queue, delay).0),
            NextAttempt::ByBroker => None,
            NextAttempt::Never => Some(parked(&self.queue)),
        }
    }

    /// Fails if the copy could become too large for a frame on its way back, which would cost the
    /// whole connection each time.
    fn check_room(&self, copy: &Message<'_>) -> Result<()> {
        let frame_max = self.copies.channel.connection().frame_max() as usize;
        let mut encoded = Vec::new();
        let properties = copy.properties().map(|it| it.encode(&mut encoded));
        let size = encoded.len() + ROOM_FOR_THE_BROKER;
        if !matches!(properties, Some(Ok(()))) || frame_max == 0 || size <= frame_max {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "{} bytes of headers leave no room for those of the broker (frame_max is {frame_max})",
            encoded.len()
        )))
    }

    /// Publishes the copy, and waits until the broker has confirmed it. Waits up to `timeout` for
    /// room in the outbox.
    pub(super) fn publish(
        &self,
        delivery: &Delivery,
        target: &str,
        error: &str,
        timeout: Duration,
    ) -> Result<()> {
        let copy = delivery.to_retry(error);
        self.check_room(&copy)?;
        let published = self.copies.publish(target, &copy, timeout);
        let is_missing = |error: &Error| matches!(error.kind(), ErrorKind::Returned(_));
        let published = match published {
            // The queue was deleted.
            Err(error) if is_missing(&error) && self.retry.declare => {
                self.declare()?;
                self.copies.publish(target, &copy, timeout)
            }
            published => published,
        };
        let doing = || {
            let tag = delivery.delivery_tag();
            format!(
                "moving delivery {tag} from queue {:?} to {target:?}",
                self.queue
            )
        };
        published.map_err(|error| error.doing(doing()))
    }
}

/// Bytes for the headers that the broker adds when it moves a copy: `x-death` and six others, with
/// the names of queues and exchanges.
const ROOM_FOR_THE_BROKER: usize = 4096;

/// Whether the broker is a RabbitMQ with `delayed_retry`.
fn can_delay(connection: &Connection) -> bool {
    let properties = connection.server_properties();
    let text = |name| properties.get(name).and_then(|it| it.as_str());
    let mut version = text("version").unwrap_or_default().split('.');
    let mut next = || version.next().and_then(|it| it.parse::<u32>().ok());
    text("product") == Some("RabbitMQ") && (next(), next()) >= (Some(4), Some(3))
}

/// A channel for copies.
struct Copies {
    channel: Channel,
}

impl Copies {
    fn open(connection: &Connection) -> Result<Self> {
        let channel = connection.open_channel()?;
        channel.confirm_select()?;
        Ok(Self { channel })
    }

    fn publish(&self, queue: &str, copy: &Message<'_>, timeout: Duration) -> Result<()> {
        self.begin(queue, copy, timeout)?.wait(CONFIRM_TIMEOUT)
    }

    /// Publishes through the default exchange.
    fn begin(&self, queue: &str, copy: &Message<'_>, timeout: Duration) -> Result<Published> {
        if !self.channel.is_open() {
            self.channel.reopen()?;
        }
        let (sender, outcome) = bounded(1);
        let slot = Arc::new(Slot { sender });
        self.channel
            .publish("", queue, copy, true, Some(&slot), timeout)?;
        Ok(Published {
            channel: self.channel.clone(),
            outcome,
        })
    }
}

/// A copy that is published and not confirmed yet.
struct Published {
    channel: Channel,
    outcome: Receiver<Result<()>>,
}

impl Published {
    fn wait(&self, timeout: Duration) -> Result<()> {
        let shared = self.channel.connection().shared();
        let _waits = shared.waiters.begin();
        let outcome = self.outcome.recv_timeout(timeout);
        outcome.unwrap_or_else(|_| Err(shared.outbox.explained(Error::timed_out(timeout))))
    }
}

/// Receives the outcome of one copy.
struct Slot {
    sender: Sender<Result<()>>,
}

impl ConfirmMailbox for Slot {
    fn answered(&self, sequence_number: u64, outcome: Outcome) {
        let _ = self.sender.send(result_of(sequence_number, outcome));
    }

    /// The broker redelivers the original.
    fn is_published_again(&self) -> bool {
        false
    }
}

/// Moves up to `limit` parked messages back to their queue. Returns how many it has moved.
pub(super) fn unpark(connection: &Connection, queue: &str, limit: usize) -> Result<usize> {
    let channel = connection.open_channel()?;
    let copies = Copies::open(connection)?;
    let parked = parked(queue);
    // Without this limit, messages that are parked again meanwhile would be moved again.
    let count = channel.queue_declare_passive(&parked)?.message_count();
    let count = count.and_then(|it| usize::try_from(it).ok());
    let limit = limit.min(count.unwrap_or_default());
    let mut moved = 0;
    while moved < limit {
        let at_once = UNPARKED_AT_ONCE.min(limit - moved);
        let mut begun = Vec::new();
        while begun.len() < at_once {
            let Some(delivery) = channel.basic_get(&parked, AckMode::Manual)? else {
                break;
            };
            let copy = delivery.to_unparked();
            let published = copies.begin(queue, &copy, connection.publish_timeout())?;
            begun.push((delivery, published));
        }
        let deadline = Deadline::after(CONFIRM_TIMEOUT);
        for (delivery, published) in &begun {
            published.wait(deadline.remaining())?;
            delivery.ack()?;
            moved += 1;
        }
        if begun.len() < at_once {
            break;
        }
    }
    // After that, the broker has read the acknowledgements.
    channel.close()?;
    Ok(moved)
}
