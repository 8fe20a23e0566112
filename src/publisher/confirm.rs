//! The outcome of each published message.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::window::{Weight, Window};
use crate::channel::Channel;
use crate::error::{Error, ErrorKind, FailedPublish, Result, ReturnedMessage};
use crate::io_thread::counters::Gauge;
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::ConfirmMailbox;
use crate::io_thread::notifier::Notifier;
use crate::log_line::{log_line, Label};
use crate::proto::{Outcome, Returned};
use crate::session::failures::{Failures, Waiter};
use crate::stats::ConnectionStats;
use crate::sync::{Condvar, Mutex};

/// Number of failures kept for a publisher's report.
const FAILURES_LIMIT: usize = 65_536;
/// Number of outcomes kept for a receiver.
const OUTCOMES_LIMIT: usize = 65_536;

/// The outcome of one message that a [`Publisher`](crate::Publisher) has published.
///
/// The program can wait for the outcome at once, later, on another thread, or not at all. After a
/// `Confirm` is dropped, [`Publisher::wait_for_confirms`](crate::Publisher::wait_for_confirms)
/// reports a failure of its message. A `Confirm` keeps its channel open.
/// [`Publisher`](crate::Publisher) says what to do about each outcome.
///
/// ```no_run
/// use leveret::{Connection, ErrorKind};
///
/// let publisher = Connection::open_default()?.open_channel()?.publisher()?;
/// let confirm = publisher.publish("", "tasks", "work")?;
/// match confirm.wait() {
///     Ok(()) => println!("the broker has message {}", confirm.sequence_number()),
///     Err(error) => match error.kind() {
///         ErrorKind::Returned(message) => println!("no queue for {:?}", message.routing_key()),
///         ErrorKind::Nacked { .. } => println!("the queue would not take it"),
///         _ => println!("it may have been lost: {error}"),
///     },
/// }
/// # Ok::<(), leveret::Error>(())
/// ```
pub struct Confirm {
    sequence_number: u64,
    awaited: Arc<ConfirmSlot>,
    channel: Channel,
}

impl Confirm {
    pub(crate) fn new(sequence_number: u64, awaited: Arc<ConfirmSlot>, channel: Channel) -> Self {
        Self {
            sequence_number,
            awaited,
            channel,
        }
    }

    /// Returns the message's sequence number on its channel, counted from 1.
    #[must_use]
    pub fn sequence_number(&self) -> u64 {
        self.sequence_number
    }

    /// Returns the channel that the message was published on.
    #[must_use]
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Waits up to the publisher's `confirm_timeout` until the broker confirms the message. `Ok`
    /// means that the broker has taken charge of the message: it is in all queues that it was
    /// routed to, and on disk if the message is persistent and the queues are durable.
    ///
    /// Later calls return the same outcome.
    ///
    /// # Errors
    /// - [`ErrorKind::Nacked`] or [`ErrorKind::Returned`].
    /// - The end of the channel or the connection, if it came before the confirm.
    ///   [`Error::may_have_been_sent`] tells whether the broker may have the message. While a lost
    ///   connection is recovering, the wait continues.
    /// - A timeout. The confirm can still arrive: wait again.
    ///
    /// See <https://www.rabbitmq.com/docs/confirms#when-publishes-are-confirmed>.
    pub fn wait(&self) -> Result<()> {
        self.wait_timeout(self.awaited.publisher.confirm_timeout)
    }

    /// [`wait`](Self::wait), but waits up to `timeout`.
    ///
    /// # Errors
    /// Same as [`wait`](Self::wait).
    pub fn wait_timeout(&self, timeout: Duration) -> Result<()> {
        if let Some(outcome) = self.awaited.read(self.sequence_number) {
            return outcome;
        }
        let deadline = Deadline::after(timeout);
        let _waits = self.channel.connection().shared().waiters.begin();
        self.awaited.wait(deadline);
        let outcome = self.awaited.read(self.sequence_number);
        outcome.unwrap_or_else(|| {
            let number = self.sequence_number;
            let doing = format!("waiting for the confirm of message {number}");
            let outbox = &self.channel.connection().shared().outbox;
            Err(outbox.explained(Error::timed_out(timeout).doing(doing)))
        })
    }

    /// Returns `Some` if the broker has confirmed the message, or `None` if its outcome is not
    /// known yet. Does not wait.
    ///
    /// # Errors
    /// Same as [`wait`](Self::wait), but without a timeout.
    pub fn try_wait(&self) -> Result<Option<()>> {
        self.awaited.read(self.sequence_number).transpose()
    }
}

impl fmt::Debug for Confirm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Confirm")
            .field("sequence_number", &self.sequence_number)
            .field("outcome", &*self.awaited.outcome.lock())
            .finish_non_exhaustive()
    }
}

/// The outcome of one message, received from
/// [`Publisher::outcomes`](crate::Publisher::outcomes).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublishOutcome {
    /// The message's sequence number on its channel: see [`Confirm::sequence_number`].
    pub sequence_number: u64,
    /// `Ok` if the broker has confirmed the message. Otherwise the same error as from
    /// [`Confirm::wait`].
    pub result: Result<()>,
}

/// A message that waits for its outcome. The IO thread holds it until then.
pub(crate) struct ConfirmSlot {
    publisher: Arc<PublisherState>,
    weight: Weight,
    outcome: Mutex<Option<Result<()>>>,
    answered: Condvar,
}

impl ConfirmSlot {
    pub(crate) fn new(publisher: Arc<PublisherState>, weight: Weight) -> Self {
        Self {
            publisher,
            weight,
            outcome: Mutex::new(None),
            answered: Condvar::new(),
        }
    }

    /// Waits for the outcome, until the deadline.
    pub(crate) fn wait(&self, deadline: Deadline) {
        let mut outcome = self.outcome.lock();
        while outcome.is_none() {
            let waited = self.answered.wait_until(&mut outcome, deadline.at());
            if waited.timed_out() {
                return;
            }
        }
    }

    /// The outcome, if it is known. No report repeats a failure that was read here.
    pub(crate) fn read(&self, sequence_number: u64) -> Option<Result<()>> {
        let outcome = self.outcome.lock().clone()?;
        if outcome.is_err() {
            self.publisher.failures.lock().told(sequence_number);
        }
        Some(outcome)
    }
}

impl ConfirmSlot {
    #[cold] // Inlined, this costs 1 % of a publish for programs that do not ask.
    fn tell(&self, sequence_number: u64, outcomes: &Notifier<PublishOutcome>) {
        if let Some(result) = self.outcome.lock().clone() {
            let outcome = PublishOutcome {
                sequence_number,
                result,
            };
            outcomes.send(outcome, drop);
        }
    }
}

impl ConfirmMailbox for ConfirmSlot {
    fn answered(&self, sequence_number: u64, outcome: Outcome) {
        let outcome = result_of(sequence_number, outcome);
        if let Err(error) = &outcome {
            // Before the window can be seen empty, and so before any report.
            let mut failures = self.publisher.failures.lock();
            failures.push(sequence_number, error.clone(), &self.publisher.label);
        }
        // Both under the lock: a reader of the outcome finds the room given back, and the other way
        // round.
        let mut slot = self.outcome.lock();
        *slot = Some(outcome);
        self.publisher.window.give_back(self.weight);
        drop(slot);
        self.answered.notify_all();
        if let Some(outcomes) = self.publisher.outcomes.get() {
            self.tell(sequence_number, outcomes);
        }
    }

    fn is_published_again(&self) -> bool {
        self.publisher.recovers
    }

    fn is_kept(&self) {
        self.publisher.window.look_again();
    }
}

/// The outcome as the program sees it.
pub(crate) fn result_of(sequence_number: u64, outcome: Outcome) -> Result<()> {
    let (error, what) = match outcome {
        Outcome::Confirmed => return Ok(()),
        Outcome::Nacked => {
            let sequence_numbers = vec![sequence_number];
            (Error::new(ErrorKind::Nacked { sequence_numbers }), "")
        }
        Outcome::Returned(returned) => {
            let Returned {
                code,
                text,
                content,
            } = *returned;
            let message = ReturnedMessage::new(code, text, Some(sequence_number), content);
            (Error::new(ErrorKind::Returned(message)), "")
        }
        Outcome::Lost {
            cause,
            may_have_been_sent: true,
        } => (cause, ", which may have been sent"),
        Outcome::Lost { cause, .. } => (cause.unsent(), ", which was not sent"),
    };
    Err(error.doing(format!("message {sequence_number}{what}")))
}

/// Shared by a publisher and its unconfirmed messages.
pub(crate) struct PublisherState {
    /// Names the connection and its current peer in the log.
    pub(crate) label: Box<dyn Fn() -> Label + Send + Sync>,
    pub(crate) window: Window,
    pub(crate) failures: Mutex<UnreportedFailures>,
    /// Set when the program first asks for them.
    pub(crate) outcomes: OnceLock<Notifier<PublishOutcome>>,
    pub(crate) confirm_timeout: Duration,
    /// Whether recovery republishes unconfirmed messages.
    pub(crate) recovers: bool,
}

impl PublisherState {
    pub(super) fn outcomes(&self) -> Receiver<PublishOutcome> {
        let outcomes = || Notifier::new(OUTCOMES_LIMIT);
        self.outcomes.get_or_init(outcomes).receiver()
    }
}

/// The failed messages that the program has not been told about.
#[derive(Debug)]
pub(crate) struct UnreportedFailures {
    failed: Failures<Error>,
    /// Total size of the returned bodies, in bytes.
    bytes: u64,
    bytes_limit: u64,
    /// Number of failures dropped because too many were unreported.
    forgotten: u64,
}

impl UnreportedFailures {
    pub(crate) fn new(bytes_limit: u64) -> Self {
        Self {
            failed: Failures::new(),
            bytes: 0,
            bytes_limit,
            forgotten: 0,
        }
    }

    fn push(&mut self, sequence_number: u64, error: Error, label: impl Fn() -> Label) {
        self.bytes += returned_bytes(&error);
        self.failed.insert(sequence_number, error);
        while self.failed.len() > FAILURES_LIMIT
            || (self.bytes > self.bytes_limit && self.failed.len() > 1)
        {
            let Some(error) = self.failed.remove_first() else {
                return;
            };
            self.bytes -= returned_bytes(&error);
            self.forgotten += 1;
            log_line!(
                Warn,
                label(),
                "too many unreported publish failures: dropped the oldest; call wait_for_confirms: {error}"
            );
        }
    }

    fn told(&mut self, sequence_number: u64) {
        if let Some(error) = self.failed.remove(sequence_number) {
            self.bytes -= returned_bytes(&error);
        }
    }

    pub(crate) fn wait(&mut self) -> Waiter {
        self.failed.wait()
    }

    pub(crate) fn give_up(&mut self) {
        self.failed.give_up();
        self.weigh();
    }

    fn weigh(&mut self) {
        self.bytes = self.failed.values().map(returned_bytes).sum();
    }

    /// Reports all failures since the last report.
    pub(crate) fn report(&mut self, since: Waiter) -> Result<()> {
        let forgotten = std::mem::take(&mut self.forgotten);
        let failed: Vec<_> = self
            .failed
            .take(since)
            .into_iter()
            .map(|(sequence_number, error)| FailedPublish {
                sequence_number,
                error,
            })
            .collect();
        self.weigh();
        if failed.is_empty() && forgotten == 0 {
            return Ok(());
        }
        Err(Error::new(ErrorKind::PublishesFailed { failed, forgotten }))
    }
}

fn returned_bytes(error: &Error) -> u64 {
    let message = error.returned_message();
    message.map_or(0, |message| message.body().len() as u64)
}

impl Gauge for PublisherState {
    fn add_to(&self, stats: &mut ConnectionStats) {
        let (messages, bytes) = self.window.taken();
        stats.unconfirmed_messages += messages;
        stats.unconfirmed_bytes += bytes;
    }
}
