//! Sends requests and waits for the replies.

use std::collections::HashMap;
use std::fmt;
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

/// RabbitMQ's pseudo-queue for direct reply-to.
const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// Sends requests to other programs and waits for their replies.
///
/// Any number of threads can make calls at the same time: they share one channel, and each thread
/// gets the reply to its own request. Replies use RabbitMQ's direct reply-to, which needs no reply
/// queue. The server, such as an [`RpcServer`](crate::RpcServer) or a program in another language,
/// publishes its reply to the default exchange with the request's `reply_to` as the routing key,
/// and copies the `correlation_id`.
///
/// ```no_run
/// use leveret::{Connection, RpcClient};
/// use std::time::Duration;
///
/// let client = RpcClient::new(&Connection::open_default()?)?;
/// let answer = client.call("", "rpc_queue", "30", Duration::from_secs(5))?;
/// println!("{}", String::from_utf8_lossy(answer.body()));
/// # Ok::<(), leveret::Error>(())
/// ```
///
/// When the connection is lost, waiting calls fail, because their replies cannot reach the client
/// any more. Later calls wait for recovery.
///
/// A client is cheap to clone. It ends when its channel is closed, for example after a request to
/// an exchange that does not exist: all calls then fail with the cause, and the program needs a new
/// client.
///
/// See <https://www.rabbitmq.com/docs/direct-reply-to>.
#[derive(Clone)]
pub struct RpcClient {
    origin: Arc<DeliverySource>,
    calls: Arc<Calls>,
}

impl RpcClient {
    /// Creates a client with its own channel on this connection.
    ///
    /// # Errors
    /// Same as [`Connection::open_channel`]; 404 from a broker without direct reply-to.
    pub fn new(connection: &Connection) -> Result<Self> {
        let channel = connection.open_channel()?;
        channel.confirm_select()?;
        let calls = Arc::new(Calls::default());
        let options = ConsumeOptions::default().no_ack(true);
        let origin = channel.consume(DIRECT_REPLY_TO.into(), &options, false, |consumer_tag| {
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

    /// Returns the channel for requests and replies.
    #[must_use]
    pub fn channel(&self) -> &Channel {
        &self.origin.channel
    }

    /// Publishes a request and waits up to `timeout` for the reply. Sets the request's
    /// `correlation_id` and `reply_to`.
    ///
    /// # Errors
    /// - [`ErrorKind::Returned`], without waiting for the timeout, if the request reaches no queue.
    /// - [`ErrorKind::Nacked`] if a queue refused the request.
    /// - A timeout. A late reply is dropped.
    /// - The end of the channel or the connection: [`Error::may_have_been_sent`] says whether the
    ///   server may have handled the request.
    ///
    /// If no server consumes from the queue, the call times out, since the queue accepts requests
    /// without a consumer.
    pub fn call<'m>(
        &self,
        exchange: &str,
        routing_key: &str,
        request: impl Into<Message<'m>>,
        timeout: Duration,
    ) -> Result<Delivery> {
        let answer = self.ask(exchange, routing_key, request.into(), timeout);
        answer.map_err(|error| error.doing(format!("rpc to {exchange:?} with {routing_key:?}")))
    }

    fn ask(
        &self,
        exchange: &str,
        routing_key: &str,
        request: Message<'_>,
        timeout: Duration,
    ) -> Result<Delivery> {
        let deadline = Deadline::after(timeout);
        let (call, answer) = self.calls.begin()?;
        let request = request
            .reply_to(DIRECT_REPLY_TO)
            .correlation_id(call.correlation_id.to_string());
        let confirm = Arc::new(Request {
            calls: Arc::clone(&self.calls),
            correlation_id: call.correlation_id,
        });
        let left = deadline.remaining();
        self.channel()
            .publish(exchange, routing_key, &request, true, Some(&confirm), left)?;
        let _waits = self.channel().connection().shared().waiters.begin();
        match answer.recv_timeout(deadline.remaining()) {
            Ok(answer) => answer,
            Err(_) => {
                let outbox = &self.channel().connection().shared().outbox;
                Err(outbox.explained(Error::timed_out(timeout)))
            }
        }
    }
}

impl fmt::Debug for RpcClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RpcClient")
            .field("channel", self.channel())
            .field("waiting", &self.calls.state.lock().waiting.len())
            .finish_non_exhaustive()
    }
}

/// The calls of a client that wait for their replies.
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
