//! One AMQP channel: who waits for which reply, who consumes, which message is coming.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use super::connection::Mailboxes;
use super::content::{Assembly, Names};
use crate::error::{Error, ReplyCode};
use crate::wire::method::{BasicGetEmpty, BasicGetOk, Encode, Method, MethodId};

/// What answers a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Just this method.
    Method(MethodId),
    /// `basic.get-ok` with a message, or `basic.get-empty`.
    Message { no_ack: bool },
}

impl Expected {
    pub(crate) fn is(self, reply: MethodId) -> bool {
        match self {
            Self::Method(expected) => expected == reply,
            Self::Message { .. } => reply == BasicGetOk::ID || reply == BasicGetEmpty::ID,
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Method(method) => method.fmt(f),
            Self::Message { .. } => f.write_str("basic.get-ok"),
        }
    }
}

/// A call whose reply has not come. It keeps its place even if nobody waits any more, so that a late reply is never
/// taken for the next one's.
pub(crate) struct Pending<M: Mailboxes> {
    pub(crate) expected: Expected,
    pub(crate) call: Option<M::Call>,
    /// The consumer that ends with the reply, if it is `basic.cancel-ok`.
    pub(crate) cancels: Option<Arc<str>>,
}

/// Takes the call that `reply` answers, which must be the oldest.
pub(crate) fn answered<M: Mailboxes>(
    pending: &mut VecDeque<Pending<M>>,
    reply: MethodId,
) -> Result<Pending<M>, String> {
    match pending.front() {
        Some(oldest) if oldest.expected.is(reply) => {}
        Some(oldest) => return Err(format!("{reply} where {} was expected", oldest.expected)),
        None => return Err(format!("{reply} without a request")),
    }
    pending
        .pop_front()
        .ok_or_else(|| format!("{reply} without a request"))
}

/// Which message is coming.
pub(crate) enum Incoming<C> {
    Delivery {
        consumer: C,
        delivery_tag: u64,
        redelivered: bool,
    },
    Fetch {
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
    pub(crate) pending: VecDeque<Pending<M>>,
    pub(crate) consumers: HashMap<Arc<str>, M::Consumer>,
    pub(crate) names: Names,
    pub(crate) assembly: Assembly<Incoming<M::Consumer>>,
}

impl<M: Mailboxes> Channel<M> {
    pub(crate) fn new(mailbox: M::Channel) -> Self {
        Self {
            mailbox,
            state: State::Open,
            pending: VecDeque::new(),
            consumers: HashMap::new(),
            names: Names::default(),
            assembly: Assembly::Idle,
        }
    }

    /// Takes in the method that begins a message.
    pub(crate) fn begin_message(&mut self, method: Method<'_>) -> Result<(), String> {
        match method {
            Method::BasicDeliver(deliver) => {
                let Some(consumer) = self.consumers.get(deliver.consumer_tag.as_ref()) else {
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
                // The call stays at the front until the whole message is here: if the channel ends before, it is
                // still found and answered.
                if !self
                    .pending
                    .front()
                    .is_some_and(|call| call.expected.is(BasicGetOk::ID))
                {
                    return Err("basic.get-ok without a request".to_owned());
                }
                self.names.set(&got.exchange, &got.routing_key);
                self.assembly = Assembly::Header(Incoming::Fetch {
                    delivery_tag: got.delivery_tag,
                    redelivered: got.redelivered,
                    message_count: got.message_count,
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

/// What stands under a channel number.
pub(crate) enum Slot<M: Mailboxes> {
    Unused,
    InUse(Box<Channel<M>>),
    /// Closed by the core itself: everyone was told this cause, and only close-ok is missing.
    Leaving(Error),
    /// Closed with this cause, which answers calls that were on their way when it closed.
    Closed(Error),
}
