//! A consumer's life over all connections: whether it is starting, live, interrupted or ended.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

use parking_lot::Mutex;

use super::stream_position::StreamStart;
use crate::io_thread::mailbox::{Call, Reply};
use crate::options::ConsumeOptions;
use crate::proto::Settling;
use crate::wire::method::{BasicCancelOk, Method};

/// What a consumer reads from. The consume arguments or the queue's declaration decide this.
/// Messages cannot: any publisher can set the header `x-stream-offset`, and a copy of a stream's
/// message carries it into other queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadsFrom {
    /// Takes requeued messages back.
    Queue,
    /// Keeps its messages and takes none back. For a nack, RabbitMQ up to 3.x closes the connection
    /// (540); RabbitMQ 4.0 and later treat it as an ack.
    Stream,
}

/// The state that a consumer shares with its mailbox on the IO thread.
pub(crate) struct Subscription {
    pub(crate) consumer_tag: Arc<str>,
    pub(crate) no_ack: bool,
    reads_from: ReadsFrom,
    /// The program dropped the consumer: it reads no more messages.
    is_abandoned: AtomicBool,
    /// The consumer was begun with no-wait, and no message has arrived yet: the broker may still
    /// refuse it.
    is_assumed: AtomicBool,
    /// The broker cancelled the consumer and redelivers its unacknowledged messages.
    is_revoked: AtomicBool,
    /// Number of times the consumer was restarted on a new connection.
    recovery_count: AtomicU64,
    /// Set only for a stream whose first message depends on the time of the request.
    stream_start: Option<StreamStart>,
    state: Mutex<SubscriptionState>,
}

/// The fields of `SubscriptionState::Starting`, after the broker accepted the consumer.
pub(crate) struct Started {
    pub(crate) cancels: Vec<Call>,
    pub(crate) again: bool,
}

/// How a consumer ended.
pub(crate) struct Ended {
    /// Whether the consumer was ever live.
    pub(crate) was_live: bool,
    /// Whether its connection was lost and not yet recovered.
    pub(crate) was_interrupted: bool,
    /// The calls that wait for its cancellation.
    pub(crate) cancels: Vec<Call>,
}

enum SubscriptionState {
    /// `basic.consume` was not sent yet.
    New,
    /// `basic.consume` was sent; consume-ok has not arrived. A cancel must wait for consume-ok:
    /// sent earlier, it crashes RabbitMQ's channel (541), or RabbitMQ answers as if the consumer
    /// did not exist.
    Starting {
        cancels: Vec<Call>,
        /// The consumer was live before, on a lost connection.
        again: bool,
    },
    /// Messages may arrive.
    Live,
    /// `basic.cancel` was sent; messages may arrive until cancel-ok does. Later cancels wait for
    /// the same cancel-ok, since the reply to a second cancel could arrive first.
    Cancelling { others: Vec<Call> },
    /// The connection was lost. Messages arrive again after recovery.
    Interrupted,
    /// No more messages arrive.
    Ended,
}

impl Subscription {
    pub(crate) fn new(
        consumer_tag: Arc<str>,
        options: &ConsumeOptions,
        reads_from: ReadsFrom,
    ) -> Self {
        let stream_start = match reads_from {
            ReadsFrom::Stream => StreamStart::of(&options.arguments),
            ReadsFrom::Queue => None,
        };
        Self {
            consumer_tag,
            no_ack: options.no_ack,
            reads_from,
            is_abandoned: AtomicBool::new(false),
            is_assumed: AtomicBool::new(false),
            is_revoked: AtomicBool::new(false),
            recovery_count: AtomicU64::new(0),
            stream_start,
            state: Mutex::new(SubscriptionState::New),
        }
    }

    /// Notes that the program cancels the consumer. Returns the call if the caller must send
    /// `basic.cancel` now. Otherwise the call waits for consume-ok, or for the cancel-ok of an
    /// earlier cancel.
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

    /// `basic.consume` was appended to the outbox. Called under the outbox's lock.
    pub(crate) fn asked(&self, no_wait: bool) {
        self.is_assumed.store(no_wait, Ordering::Relaxed);
        if let Some(start) = &self.stream_start {
            start.requested();
        }
        *self.state.lock() = match no_wait {
            // The broker sends no consume-ok.
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

    /// Whether the broker cancelled the consumer.
    pub(crate) fn is_revoked(&self) -> bool {
        self.is_revoked.load(Ordering::Acquire)
    }

    pub(crate) fn is_interrupted(&self) -> bool {
        matches!(*self.state.lock(), SubscriptionState::Interrupted)
    }

    /// The broker sent consume-ok. Returns `None` unless the consumer is starting.
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

    /// The program dropped the consumer. Returns whether the caller must cancel it now.
    pub(crate) fn abandon(&self) -> bool {
        // Set under the lock, so that either the caller of this or the caller of `start` cancels.
        let state = self.state.lock();
        self.is_abandoned.store(true, Ordering::Release);
        matches!(
            *state,
            SubscriptionState::Live | SubscriptionState::Interrupted
        )
    }

    /// No more messages arrive. Returns `None` if the consumer had already ended.
    pub(crate) fn end(&self) -> Option<Ended> {
        let last = std::mem::replace(&mut *self.state.lock(), SubscriptionState::Ended);
        let was_interrupted = matches!(last, SubscriptionState::Interrupted);
        let (was_live, cancels) = match last {
            SubscriptionState::Starting { cancels, again } => (again, cancels),
            SubscriptionState::Cancelling { others } => (true, others),
            SubscriptionState::Live | SubscriptionState::Interrupted => (true, Vec::new()),
            SubscriptionState::New => (false, Vec::new()),
            SubscriptionState::Ended => return None,
        };
        Some(Ended {
            was_live,
            was_interrupted,
            cancels,
        })
    }

    /// The connection was lost. Returns false if the consumer ends with it.
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

    /// `basic.consume` is about to be sent again. Returns false if the consumer does not wait for
    /// that.
    pub(crate) fn restart(&self) -> bool {
        let mut state = self.state.lock();
        let is_interrupted = matches!(*state, SubscriptionState::Interrupted);
        if is_interrupted {
            *state = SubscriptionState::Starting {
                cancels: Vec::new(),
                again: true,
            };
        }
        is_interrupted
    }

    /// Messages arrive: the broker accepted a consumer that was begun with no-wait.
    pub(crate) fn delivered(&self) {
        if self.is_assumed.load(Ordering::Relaxed) {
            self.is_assumed.store(false, Ordering::Relaxed);
        }
    }

    /// Whether the consumer was begun with no-wait and no message has arrived yet.
    pub(crate) fn is_assumed(&self) -> bool {
        self.is_assumed.load(Ordering::Relaxed)
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.is_abandoned.load(Ordering::Acquire)
    }

    pub(crate) fn revoke(&self) {
        self.is_revoked.store(true, Ordering::Release);
    }

    pub(crate) fn recovery_count(&self) -> u64 {
        self.recovery_count.load(Ordering::Acquire)
    }

    pub(crate) fn since(&self) -> Option<&StreamStart> {
        self.stream_start.as_ref()
    }

    /// The broker's reply to a cancel, also for an unknown consumer.
    pub(crate) fn cancelled(&self) -> Reply {
        let consumer_tag = self.consumer_tag.to_string().into();
        Reply::Method(Method::BasicCancelOk(BasicCancelOk { consumer_tag }))
    }
}
