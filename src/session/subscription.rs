//! A consumer's life over all connections.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

use parking_lot::Mutex;

use super::stream_position::StreamStart;
use crate::io_thread::mailbox::{Call, Reply};
use crate::options::ConsumeOptions;
use crate::proto::Settling;
use crate::wire::method::{BasicCancelOk, Method};

/// What a consumer reads from, according to the program. A message cannot tell: any publisher can
/// set the header `x-stream-offset`, and a copy of a stream's message carries it into other queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadsFrom {
    /// It takes messages back.
    Queue,
    /// It keeps its messages, and takes none back: RabbitMQ closes the connection for a nack (540) up
    /// to 3.x, and takes it for an ack since 4.0.
    Stream,
}

/// What a consumer and its mailbox at the IO thread have in common.
pub(crate) struct Subscription {
    pub(crate) consumer_tag: Arc<str>,
    pub(crate) no_ack: bool,
    reads_from: ReadsFrom,
    /// The consumer was dropped: nobody will read what comes.
    abandoned: AtomicBool,
    /// It was begun with no-wait, and nothing has shown yet that the broker has agreed.
    is_assumed: AtomicBool,
    /// The broker has cancelled it, and delivers again what was not acknowledged.
    is_revoked: AtomicBool,
    /// How often it was begun again on a new connection.
    recovery_count: AtomicU64,
    /// For a stream only, and only if its first message depends on when the broker is asked.
    since: Option<StreamStart>,
    state: Mutex<SubscriptionState>,
}

/// What `SubscriptionState::Starting` was.
pub(crate) struct Started {
    pub(crate) cancels: Vec<Call>,
    pub(crate) again: bool,
}

enum SubscriptionState {
    /// The broker has not been asked.
    New,
    /// The broker has not agreed yet. Whoever wants the consumer cancelled has to wait for that: a cancel that overtakes
    /// the broker's own consume-ok crashes RabbitMQ's channel (541), or is answered as if there were no consumer.
    Starting {
        cancels: Vec<Call>,
        /// It was live before, on a connection that was lost.
        again: bool,
    },
    /// Messages may come.
    Live,
    /// Messages may come until the broker has answered the cancel. Others that cancel meanwhile wait
    /// for the same answer: the answer to a second cancel could come first.
    Cancelling { others: Vec<Call> },
    /// The connection was lost: messages will come when the next one is there.
    Interrupted,
    /// No message will come.
    Ended,
}

impl Subscription {
    pub(crate) fn new(
        consumer_tag: Arc<str>,
        options: &ConsumeOptions,
        reads_from: ReadsFrom,
    ) -> Self {
        let since = (reads_from == ReadsFrom::Stream).then(|| StreamStart::of(&options.arguments));
        Self {
            consumer_tag,
            no_ack: options.no_ack,
            reads_from,
            abandoned: AtomicBool::new(false),
            is_assumed: AtomicBool::new(false),
            is_revoked: AtomicBool::new(false),
            recovery_count: AtomicU64::new(0),
            since: since.flatten(),
            state: Mutex::new(SubscriptionState::New),
        }
    }

    /// Notes that the consumer is cancelled. Gives the call back if that is to be said to the broker now; otherwise it is
    /// answered, or will be when the broker has agreed to the consumer.
    pub(crate) fn cancel(&self, call: Call) -> Option<Call> {
        let mut state = self.state.lock();
        match &mut *state {
            SubscriptionState::Starting { cancels: calls, .. }
            | SubscriptionState::Cancelling { others: calls } => {
                calls.push(call);
                None
            }
            SubscriptionState::Live => {
                let others = Vec::new();
                *state = SubscriptionState::Cancelling { others };
                Some(call)
            }
            SubscriptionState::New | SubscriptionState::Interrupted | SubscriptionState::Ended => {
                Some(call)
            }
        }
    }

    /// `basic.consume` is on its way. Under the outbox's lock.
    pub(crate) fn asked(&self, no_wait: bool) {
        self.is_assumed.store(no_wait, Ordering::Relaxed);
        if let Some(since) = &self.since {
            since.asked();
        }
        *self.state.lock() = match no_wait {
            // There is no consume-ok.
            true => SubscriptionState::Live,
            false => SubscriptionState::Starting {
                cancels: Vec::new(),
                again: false,
            },
        };
    }

    pub(crate) fn settling(&self) -> Settling {
        match self.reads_from {
            _ if self.no_ack => Settling::NoAck,
            ReadsFrom::Stream => Settling::Stream,
            ReadsFrom::Queue => Settling::Requeue,
        }
    }

    /// Whether the broker has cancelled it.
    pub(crate) fn is_revoked(&self) -> bool {
        self.is_revoked.load(Ordering::Acquire)
    }

    pub(crate) fn is_interrupted(&self) -> bool {
        matches!(*self.state.lock(), SubscriptionState::Interrupted)
    }

    /// The broker has agreed.
    pub(crate) fn start(&self) -> Option<Started> {
        let mut state = self.state.lock();
        let SubscriptionState::Starting { cancels, again } = &mut *state else {
            return None;
        };
        let (cancels, again) = (std::mem::take(cancels), *again);
        *state = SubscriptionState::Live;
        if again {
            self.recovery_count.fetch_add(1, Ordering::AcqRel);
        }
        Some(Started { cancels, again })
    }

    /// Nobody will read what comes. Says whether to cancel now.
    pub(crate) fn abandon(&self) -> bool {
        // Under the lock, so that either this or `start` sees to it.
        let state = self.state.lock();
        self.abandoned.store(true, Ordering::Release);
        matches!(
            *state,
            SubscriptionState::Live | SubscriptionState::Interrupted
        )
    }

    /// No message will come. Returns whether it was ever live, and those who wait for it to be
    /// cancelled; none if it had ended before.
    pub(crate) fn end(&self) -> Option<(bool, Vec<Call>)> {
        match std::mem::replace(&mut *self.state.lock(), SubscriptionState::Ended) {
            SubscriptionState::Starting { cancels, again } => Some((again, cancels)),
            SubscriptionState::Cancelling { others } => Some((true, others)),
            SubscriptionState::Live | SubscriptionState::Interrupted => Some((true, Vec::new())),
            SubscriptionState::New => Some((false, Vec::new())),
            SubscriptionState::Ended => None,
        }
    }

    /// The connection was lost. False if the consumer ends with it.
    pub(crate) fn interrupt(&self) -> bool {
        let mut state = self.state.lock();
        let goes_on = match &*state {
            SubscriptionState::Starting { cancels, again } => *again && cancels.is_empty(),
            SubscriptionState::Live | SubscriptionState::Interrupted => true,
            SubscriptionState::New
            | SubscriptionState::Cancelling { .. }
            | SubscriptionState::Ended => false,
        };
        if goes_on {
            *state = SubscriptionState::Interrupted;
        }
        goes_on
    }

    /// The broker is about to be asked again. False if that is not wanted any more.
    pub(crate) fn restart(&self) -> bool {
        let mut state = self.state.lock();
        let wanted = matches!(*state, SubscriptionState::Interrupted);
        if wanted {
            *state = SubscriptionState::Starting {
                cancels: Vec::new(),
                again: true,
            };
        }
        wanted
    }

    /// The broker sends messages although it has not said that it has agreed.
    pub(crate) fn delivered(&self) {
        if self.is_assumed.load(Ordering::Relaxed) {
            self.is_assumed.store(false, Ordering::Relaxed);
        }
    }

    /// Whether it was begun with no-wait, and nothing has shown yet that the broker has agreed.
    pub(crate) fn is_assumed(&self) -> bool {
        self.is_assumed.load(Ordering::Relaxed)
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    pub(crate) fn revoke(&self) {
        self.is_revoked.store(true, Ordering::Release);
    }

    pub(crate) fn recovery_count(&self) -> u64 {
        self.recovery_count.load(Ordering::Acquire)
    }

    pub(crate) fn since(&self) -> Option<&StreamStart> {
        self.since.as_ref()
    }

    /// As the broker says that a consumer is cancelled, or unknown.
    pub(crate) fn cancelled(&self) -> Reply {
        let consumer_tag = self.consumer_tag.to_string().into();
        Reply::Method(Method::BasicCancelOk(BasicCancelOk { consumer_tag }))
    }
}
