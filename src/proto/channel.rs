//! One AMQP channel: who waits for which reply, who consumes, which message is coming.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use super::confirms::Confirms;
use super::content::{Assembly, Names};
use super::event::Mailboxes;
use crate::error::{Error, ReplyCode};
use crate::wire::method::{ChannelCloseOk, Encode, Method, MethodId, TxCommitOk};

/// What answers a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Just this method.
    Method(MethodId),
    /// `basic.get-ok` with a message, or `basic.get-empty`.
    Message { no_ack: bool },
    /// `basic.consume-ok` for this consumer.
    ConsumeOk(Arc<str>),
    /// `basic.cancel-ok` for this consumer, which ends with it.
    CancelOk(Arc<str>),
}

impl Expected {
    fn is(&self, reply: &Method<'_>) -> bool {
        match (self, reply) {
            (Self::Method(expected), reply) => *expected == reply.id(),
            (Self::Message { .. }, Method::BasicGetOk(_) | Method::BasicGetEmpty(_)) => true,
            (Self::ConsumeOk(tag), Method::BasicConsumeOk(ok)) => **tag == ok.consumer_tag,
            (Self::CancelOk(tag), Method::BasicCancelOk(ok)) => **tag == ok.consumer_tag,
            _ => false,
        }
    }

    pub(crate) fn is_channel_close_ok(&self) -> bool {
        *self == Self::Method(ChannelCloseOk::ID)
    }

    /// RabbitMQ answers these when the queues have agreed, and goes on with the channel's next methods meanwhile:
    /// replies to those can come before.
    fn can_be_overtaken(&self) -> bool {
        match self {
            Self::ConsumeOk(_) | Self::CancelOk(_) => true,
            Self::Method(reply) => *reply == TxCommitOk::ID,
            Self::Message { .. } => false,
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Method(method) => method.fmt(f),
            Self::Message { .. } => f.write_str("basic.get-ok"),
            Self::ConsumeOk(tag) => write!(f, "basic.consume-ok for {tag:?}"),
            Self::CancelOk(tag) => write!(f, "basic.cancel-ok for {tag:?}"),
        }
    }
}

/// A call whose reply has not come.
pub(crate) struct Pending<M: Mailboxes> {
    pub(crate) expected: Expected,
    pub(crate) call: Option<M::Call>,
    /// The number of the consumer that is cancelled. Its tag can be another's when the reply comes.
    pub(crate) cancels: Option<u64>,
}

/// The consumers of a channel by their tags, numbered as they come.
pub(crate) struct Consumers<M: Mailboxes> {
    by_tag: HashMap<Arc<str>, (u64, M::Consumer)>,
    /// Who got the last message: mostly gets the next one, too, and is found without a hash of its tag.
    last: Option<(Arc<str>, M::Consumer)>,
    count: u64,
}

impl<M: Mailboxes> Consumers<M> {
    pub(crate) fn insert(&mut self, consumer_tag: Arc<str>, consumer: M::Consumer) {
        self.count += 1;
        self.last = None;
        self.by_tag.insert(consumer_tag, (self.count, consumer));
    }

    pub(crate) fn get(&self, consumer_tag: &str) -> Option<&M::Consumer> {
        self.by_tag.get(consumer_tag).map(|(_, consumer)| consumer)
    }

    /// Whom a message is for.
    #[inline]
    pub(super) fn receiver_of(&mut self, consumer_tag: &[u8]) -> Option<&M::Consumer> {
        let is_last = |(tag, _): &(Arc<str>, M::Consumer)| tag.as_bytes() == consumer_tag;
        if !self.last.as_ref().is_some_and(is_last) {
            let consumer_tag = std::str::from_utf8(consumer_tag).ok()?;
            let (tag, (_, consumer)) = self.by_tag.get_key_value(consumer_tag)?;
            self.last = Some((Arc::clone(tag), consumer.clone()));
        }
        self.last.as_ref().map(|(_, consumer)| consumer)
    }

    pub(crate) fn number_of(&self, consumer_tag: &str) -> Option<u64> {
        self.by_tag.get(consumer_tag).map(|(number, _)| *number)
    }

    pub(crate) fn remove(&mut self, consumer_tag: &str) -> Option<M::Consumer> {
        self.last = None;
        self.by_tag
            .remove(consumer_tag)
            .map(|(_, consumer)| consumer)
    }

    /// Removes the consumer if it is still this one.
    pub(crate) fn remove_if(&mut self, tag: &str, number: Option<u64>) -> Option<M::Consumer> {
        (self.number_of(tag) == number)
            .then(|| self.remove(tag))
            .flatten()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &M::Consumer> {
        self.by_tag.values().map(|(_, consumer)| consumer)
    }

    pub(crate) fn into_all(self) -> impl Iterator<Item = M::Consumer> {
        self.by_tag.into_values().map(|(_, consumer)| consumer)
    }
}

/// The calls of a channel whose replies have not come, oldest first. A call keeps its place even if nobody waits any
/// more, so that a late reply is never taken for the next one's.
pub(crate) struct Calls<M: Mailboxes> {
    pending: VecDeque<Pending<M>>,
}

impl<M: Mailboxes> Calls<M> {
    pub(crate) fn new() -> Self {
        Self {
            pending: VecDeque::new(),
        }
    }

    pub(crate) fn push(&mut self, expected: Expected, call: Option<M::Call>) {
        self.push_cancel(expected, call, None);
    }

    /// With the consumer that is cancelled, if it is that.
    pub(crate) fn push_cancel(
        &mut self,
        expected: Expected,
        call: Option<M::Call>,
        cancels: Option<u64>,
    ) {
        self.pending.push_back(Pending {
            expected,
            call,
            cancels,
        });
    }

    /// Takes the call that `reply` answers: the oldest, but for those that can be overtaken.
    pub(crate) fn answered_by(&mut self, reply: &Method<'_>) -> Result<Pending<M>, String> {
        let place = self.place_of(reply)?;
        self.pending
            .remove(place)
            .ok_or_else(|| format!("{} without a request", reply.id()))
    }

    /// Where the call stands that `reply` answers.
    fn place_of(&self, reply: &Method<'_>) -> Result<usize, String> {
        for (place, pending) in self.pending.iter().enumerate() {
            if pending.expected.is(reply) {
                return Ok(place);
            }
            if !pending.expected.can_be_overtaken() {
                let expected = &pending.expected;
                return Err(format!("{} where {expected} was expected", reply.id()));
            }
        }
        Err(format!("{} without a request", reply.id()))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    pub(crate) fn put_back(&mut self, pending: Pending<M>) {
        self.pending.push_front(pending);
    }

    /// Takes the closer's call, if the last one is such a call.
    pub(crate) fn take_closer(&mut self) -> Option<Pending<M>> {
        let last = self.pending.back()?;
        last.expected
            .is_channel_close_ok()
            .then(|| self.pending.pop_back())
            .flatten()
    }

    pub(crate) fn into_all(self) -> impl Iterator<Item = M::Call> {
        self.pending.into_iter().filter_map(|pending| pending.call)
    }
}

/// Which message is coming.
pub(crate) enum Incoming<M: Mailboxes> {
    Delivery {
        consumer: M::Consumer,
        delivery_tag: u64,
        redelivered: bool,
    },
    Fetch {
        /// Who asked for it; if the channel ends before the message is whole, the end answers.
        pending: Pending<M>,
        delivery_tag: u64,
        redelivered: bool,
        message_count: u32,
    },
    Return {
        code: ReplyCode,
        text: String,
    },
}

/// Where a channel stands.
///
/// ```text
///   Open ── channel.close to the broker ──▶ Closing ── close-ok ──▶ (slot free)
///     └──── channel.close from the broker: close-ok ──────────────▶ (slot free)
/// ```
#[derive(Debug)]
pub(crate) enum State {
    Open,
    /// We have sent `channel.close` and wait for close-ok. `cause` is the end that everyone is told.
    Closing {
        cause: Error,
    },
}

pub(crate) struct Channel<M: Mailboxes> {
    pub(crate) mailbox: M::Channel,
    pub(crate) state: State,
    pub(crate) calls: Calls<M>,
    pub(crate) consumers: Consumers<M>,
    pub(crate) names: Names,
    pub(crate) assembly: Assembly<Incoming<M>>,
    pub(super) confirms: Confirms<M>,
}

impl<M: Mailboxes> Channel<M> {
    pub(crate) fn new(mailbox: M::Channel) -> Self {
        Self {
            mailbox,
            state: State::Open,
            calls: Calls::new(),
            consumers: Consumers {
                by_tag: HashMap::new(),
                last: None,
                count: 0,
            },
            names: Names::default(),
            assembly: Assembly::Idle,
            confirms: Confirms::new(),
        }
    }

    /// Whether the broker owes an answer, or a part of it.
    pub(crate) fn awaits_reply(&self) -> bool {
        !self.calls.is_empty() || matches!(self.assembly.kind(), Some(Incoming::Fetch { .. }))
    }

    /// Takes in the method that begins a message.
    pub(crate) fn begin_message(&mut self, method: Method<'_>) -> Result<(), String> {
        match method {
            Method::BasicDeliver(deliver) => {
                let Some(consumer) = self.consumers.receiver_of(deliver.consumer_tag.as_bytes())
                else {
                    return Err(format!(
                        "basic.deliver for unknown consumer {:?}",
                        deliver.consumer_tag
                    ));
                };
                self.names.set(&deliver.exchange, &deliver.routing_key);
                self.assembly = Assembly::Header(Incoming::Delivery {
                    consumer: consumer.clone(),
                    delivery_tag: deliver.delivery_tag,
                    redelivered: deliver.redelivered,
                });
            }
            Method::BasicGetOk(got) => {
                self.names.set(&got.exchange, &got.routing_key);
                let (delivery_tag, redelivered) = (got.delivery_tag, got.redelivered);
                let message_count = got.message_count;
                let pending = self.calls.answered_by(&Method::BasicGetOk(got))?;
                self.assembly = Assembly::Header(Incoming::Fetch {
                    pending,
                    delivery_tag,
                    redelivered,
                    message_count,
                });
            }
            Method::BasicReturn(returned) => {
                self.names.set(&returned.exchange, &returned.routing_key);
                self.assembly = Assembly::Header(Incoming::Return {
                    code: ReplyCode(returned.reply_code),
                    text: returned.reply_text.into_owned(),
                });
            }
            other => return Err(format!("{} begins no message", other.id())),
        }
        Ok(())
    }
}
