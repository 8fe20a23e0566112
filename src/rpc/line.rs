//! One channel for requests and replies.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;
use std::vec::Drain;

use crossbeam_channel::{bounded, Receiver, Sender};
use parking_lot::Mutex;

use crate::channel::Channel;
use crate::connection::Connection;
use crate::delivery::{Delivery, DeliverySource};
use crate::error::{ClosedBy, Error, ErrorKind, Result};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::{ConfirmMailbox, ConsumerMailbox};
use crate::log_line::log_line;
use crate::message::Message;
use crate::options::ConsumeOptions;
use crate::proto::{Delivered, Outcome, Settling};
use crate::publisher::confirm::result_of;
use crate::session::channel::ChannelState;
use crate::session::subscription::ReadsFrom;
use crate::wire::value::FieldTable;

/// Longest expiration that RabbitMQ accepts.
const MAX_EXPIRATION: Duration = Duration::from_millis(u32::MAX as u64);

/// RabbitMQ's pseudo-queue for direct reply-to.
const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// A channel in confirm mode with a consumer of replies, from its start to its end.
pub(super) struct Line {
    origin: Arc<DeliverySource>,
    calls: Arc<Calls>,
}

impl Line {
    pub(super) fn open(connection: &Connection, deadline: Deadline) -> Result<Self> {
        let channel = connection.open_channel_until(deadline)?;
        channel.select_confirms(deadline)?;
        let calls = Arc::new(Calls::default());
        let options = ConsumeOptions::default().no_ack(true);
        let queue = DIRECT_REPLY_TO.into();
        let origin = channel.consume(queue, &options, Some(deadline), |consumer_tag| {
            let origin = Arc::new(DeliverySource {
                channel: channel.clone(),
                consumer_tag: Arc::clone(&consumer_tag),
                no_ack: true,
                subscription: None,
                reads_from: ReadsFrom::Queue,
                message_count: None,
            });
            let replies = Replies {
                origin: Arc::downgrade(&origin),
                state: Arc::clone(channel.state()),
                consumer_tag,
                calls: Arc::clone(&calls),
            };
            (origin, Arc::new(replies))
        })?;
        Ok(Self { origin, calls })
    }

    /// Whether no more requests can be sent, or no more replies can come.
    pub(super) fn has_ended(&self) -> bool {
        self.calls.end_cause().is_some() || self.channel().state().end_cause().is_some()
    }

    /// The number of calls that wait.
    pub(super) fn waiting(&self) -> usize {
        self.calls.state.lock().waiting.len()
    }

    fn channel(&self) -> &Channel {
        &self.origin.channel
    }

    /// Publishes a request, and waits for its reply.
    pub(super) fn ask(
        &self,
        exchange: &str,
        routing_key: &str,
        request: &Message<'_>,
        deadline: Deadline,
    ) -> Result<Delivery> {
        let (call, answer) = self.calls.begin()?;
        let request = expiring(request.into(), deadline.remaining())
            .reply_to(DIRECT_REPLY_TO)
            .correlation_id(call.correlation_id.to_string());
        let confirm = Arc::new(Request {
            calls: Arc::clone(&self.calls),
            correlation_id: call.correlation_id,
        });
        let left = deadline.remaining();
        self.channel()
            .publish(exchange, routing_key, &request, true, Some(&confirm), left)?;
        let shared = self.channel().connection().shared();
        let _waits = shared.waiters.begin();
        match answer.recv_timeout(deadline.remaining()) {
            Ok(answer) => answer,
            Err(_) => {
                let error = Error::timed_out(deadline.duration());
                Err(shared.outbox.explained(error))
            }
        }
    }
}

/// The request with an expiration of at most `after`.
fn expiring(request: Message<'_>, after: Duration) -> Message<'_> {
    let own = request.properties().and_then(|it| it.expiration.as_ref());
    match own.map(|it| it.as_duration()) {
        // An expiration that cannot be sent fails the call later.
        Some(own) if own.map_or(true, |own| own <= after) => request,
        _ if after > MAX_EXPIRATION => request,
        _ => request.expires_after(after),
    }
}

/// The calls that wait for their replies.
#[derive(Default)]
struct Calls {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: u64,
    waiting: HashMap<u64, WaitingCall>,
    /// Set when no more replies can come.
    end: Option<Error>,
}

struct WaitingCall {
    answer: Sender<Result<Delivery>>,
    /// The broker has the request. Its reply cannot reach the client on another connection.
    is_confirmed: bool,
}

/// One call, until its caller returns.
struct Call<'a> {
    calls: &'a Calls,
    correlation_id: u64,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.calls.take(self.correlation_id);
    }
}

impl Calls {
    fn begin(&self) -> Result<(Call<'_>, Receiver<Result<Delivery>>)> {
        let mut state = self.state.lock();
        if let Some(error) = &state.end {
            return Err(error.clone().unsent());
        }
        state.last += 1;
        let correlation_id = state.last;
        let (sender, answer) = bounded(1);
        let waiting = WaitingCall {
            answer: sender,
            is_confirmed: false,
        };
        state.waiting.insert(correlation_id, waiting);
        let call = Call {
            calls: self,
            correlation_id,
        };
        Ok((call, answer))
    }

    fn end_cause(&self) -> Option<Error> {
        self.state.lock().end.clone()
    }

    fn take(&self, correlation_id: u64) -> Option<Sender<Result<Delivery>>> {
        let waiting = self.state.lock().waiting.remove(&correlation_id);
        waiting.map(|it| it.answer)
    }

    fn confirmed(&self, correlation_id: u64) {
        if let Some(waiting) = self.state.lock().waiting.get_mut(&correlation_id) {
            waiting.is_confirmed = true;
        }
    }

    fn end(&self, error: &Error) {
        self.state.lock().end = Some(error.clone());
        self.fail(error, |_| true);
    }

    fn fail(&self, error: &Error, concerns: impl Fn(&WaitingCall) -> bool) {
        self.state.lock().waiting.retain(|_, waiting| {
            let fails = concerns(waiting);
            if fails {
                let _ = waiting.answer.send(Err(error.clone()));
            }
            !fails
        });
    }
}

/// The broker's confirm of one request. Only a failure matters: then no reply comes.
struct Request {
    calls: Arc<Calls>,
    correlation_id: u64,
}

impl ConfirmMailbox for Request {
    fn answered(&self, sequence_number: u64, outcome: Outcome) {
        let Err(error) = result_of(sequence_number, outcome) else {
            return self.calls.confirmed(self.correlation_id);
        };
        if let Some(call) = self.calls.take(self.correlation_id) {
            let _ = call.send(Err(error));
        }
    }

    /// Its reply could not reach the client.
    fn is_published_again(&self) -> bool {
        false
    }
}

/// Receives the replies, on the IO thread.
struct Replies {
    origin: Weak<DeliverySource>,
    state: Arc<ChannelState>,
    consumer_tag: Arc<str>,
    calls: Arc<Calls>,
}

impl Replies {
    fn answer(&self, delivery: Delivery) {
        let correlation_id = delivery.correlation_id().unwrap_or_default();
        let id = correlation_id.parse().ok();
        let call = id.and_then(|id| self.calls.take(id));
        match call {
            Some(call) => drop(call.send(Ok(delivery))),
            None => log_line!(
                Debug,
                self.state.shared.label(),
                "no call waits for the reply with correlation id {correlation_id:?}: {delivery:?}"
            ),
        }
    }
}

impl ConsumerMailbox for Replies {
    fn settling(&self) -> Settling {
        Settling::NoAck
    }

    fn started(&self) {}

    /// Hands each reply to its caller at once, so that nothing is left unread.
    fn deliver(&self, messages: Drain<'_, Delivered>) -> u64 {
        let origin = self.origin.upgrade();
        for message in messages {
            if let Some(origin) = &origin {
                self.answer(Delivery::new(origin, message));
            }
        }
        0
    }

    fn unread(&self) -> u64 {
        0
    }

    fn ended(&self, error: Option<Error>) {
        self.state.consumer_ended(&self.consumer_tag, true);
        let cancelled = || {
            let consumer_tag = self.consumer_tag.to_string();
            let by = ClosedBy::Program;
            Error::new(ErrorKind::ConsumerCancelled { consumer_tag, by })
        };
        self.calls.end(&error.unwrap_or_else(cancelled));
    }

    fn outlives(&self, error: &Error) -> bool {
        self.state.has_outlived(error)
    }

    /// Fails the confirmed requests: their replies cannot reach the client any more.
    fn interrupted(&self, error: &Error) {
        // The confirm reports requests that were published and not confirmed. The others are not
        // sent yet.
        self.calls.fail(error, |waiting| waiting.is_confirmed);
    }

    fn restart(&self, _: &mut FieldTable) -> bool {
        true
    }
}
