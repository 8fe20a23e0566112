//! One AMQP channel: its waiting calls, its consumers, and the message that is arriving.

use std::collections::VecDeque;
use std::sync::Arc;

use super::confirms::Confirms;
use super::consumers::{Consumers, Receiver};
use super::content::{Assembly, Names};
use super::event::{Expected, Mailboxes, Settling};
use crate::error::{Error, ReplyCode};
use crate::log_line::Label;
use crate::wire::method::{BasicDeliver, Method};

/// A call that waits for its reply.
pub(crate) struct Pending<M: Mailboxes> {
    pub(crate) expected: Expected,
    pub(crate) call: Option<M::Call>,
    /// The number of the consumer that the call cancels. When the reply comes, another consumer may
    /// have its tag.
    pub(crate) cancels: Option<u64>,
}

/// The calls of a channel that wait for replies, oldest first. A call keeps its place after its
/// caller has given up, so that a late reply is never taken for the reply to the next call.
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

    /// As [`push`](Self::push), with the number of the consumer that the call cancels.
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

    /// Takes the call that `reply` answers: the oldest, or a later one if all before it can be
    /// overtaken.
    pub(crate) fn answered_by(&mut self, reply: &Method<'_>) -> Result<Pending<M>, String> {
        let place = self.place_of(reply)?;
        self.pending
            .remove(place)
            .ok_or_else(|| format!("{} without a request", reply.id()))
    }

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

    /// Takes the last call if it waits for `channel.close-ok`.
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

/// The kind of the arriving message.
pub(crate) enum Incoming<M: Mailboxes> {
    Delivery {
        consumer: M::Consumer,
        delivery_tag: u64,
        redelivered: bool,
    },
    Fetch {
        /// The `basic.get` call. It fails if the channel ends before the message is complete.
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

/// The phase of a channel. ARCHITECTURE.md has a table of what each frame means in each phase.
///
/// ```text
///  Opening ── open-ok ──▶ Open ── channel.close to the broker ──▶ Closing ── close-ok ──▶ (closed)
///     └──────────────────────┴──── channel.close from the broker ────┴──────────────────▶ (closed)
/// ```
#[derive(Debug)]
pub(crate) enum Phase {
    /// We have sent `channel.open`. Until open-ok comes, frames may belong to the previous channel
    /// with this number.
    Opening,
    Open,
    /// We have sent `channel.close` and wait for close-ok.
    Closing {
        /// The error for the waiting callers and consumers.
        cause: Error,
        /// Whether open-ok has come.
        was_open: bool,
    },
}

pub(crate) struct Channel<M: Mailboxes> {
    pub(crate) mailbox: M::Channel,
    pub(crate) phase: Phase,
    pub(crate) calls: Calls<M>,
    pub(crate) consumers: Consumers<M>,
    pub(crate) names: Names,
    pub(crate) assembly: Assembly<Incoming<M>>,
    pub(super) confirms: Confirms<M>,
}

impl<M: Mailboxes> Channel<M> {
    /// `last_tag` is the highest delivery tag that the program has seen on the channel. `former`
    /// holds the consumer tags of earlier channels with this number.
    pub(crate) fn opening(mailbox: M::Channel, last_tag: u64, former: Vec<Arc<str>>) -> Self {
        Self {
            mailbox,
            phase: Phase::Opening,
            calls: Calls::new(),
            consumers: Consumers::new(last_tag, former),
            names: Names::default(),
            assembly: Assembly::Idle,
            confirms: Confirms::new(),
        }
    }

    /// Whether the broker still owes a reply, or the rest of a fetched message.
    pub(crate) fn awaits_reply(&self) -> bool {
        !self.calls.is_empty() || matches!(self.assembly.kind(), Some(Incoming::Fetch { .. }))
    }

    /// Handles `basic.deliver`. If the consumer has ended, returns how to settle the message.
    pub(crate) fn begin_delivery(
        &mut self,
        deliver: &BasicDeliver<'_>,
        label: &Label,
    ) -> Result<Option<Settling>, String> {
        let delivery_tag = deliver.delivery_tag;
        match self
            .consumers
            .receiver_of(&deliver.consumer_tag, delivery_tag, label)
        {
            Receiver::Consumer(consumer) => {
                self.names.set(&deliver.exchange, &deliver.routing_key);
                let consumer = consumer.clone();
                self.assembly = Assembly::Header(Incoming::Delivery {
                    consumer,
                    delivery_tag: self.consumers.tag_for_program(delivery_tag),
                    redelivered: deliver.redelivered,
                });
                Ok(None)
            }
            Receiver::Ended(settling) => {
                self.assembly = Assembly::SkipHeader;
                Ok((settling != Settling::NoAck).then_some(settling))
            }
            Receiver::Former => {
                self.assembly = Assembly::SkipHeader;
                Ok(None)
            }
            Receiver::Unknown => {
                let consumer_tag = &deliver.consumer_tag;
                Err(format!(
                    "basic.deliver for unknown consumer {consumer_tag:?}"
                ))
            }
        }
    }

    /// Handles the method that begins a fetched or returned message.
    pub(crate) fn begin_message(&mut self, method: Method<'_>) -> Result<(), String> {
        match method {
            Method::BasicGetOk(got) => {
                self.names.set(&got.exchange, &got.routing_key);
                self.consumers.fetched(got.delivery_tag);
                let delivery_tag = self.consumers.tag_for_program(got.delivery_tag);
                let redelivered = got.redelivered;
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
