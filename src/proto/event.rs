//! What the core is told and what it tells.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::fingerprint::Fingerprint;
use crate::error::{CloseReason, Error, ReplyCode};
use crate::wire::content::Content;
use crate::wire::method::{ChannelCloseOk, Encode, Method, MethodId, TxCommitOk};

/// What the driver wants to get back in events. The core keeps these and never looks inside.
pub(crate) trait Mailboxes {
    /// One caller who waits for a reply.
    type Call;
    /// A channel's handle.
    type Channel: Clone;
    /// A consumer.
    type Consumer: Clone;
    /// Someone who waits for the broker's answer to one published message.
    type Confirm;

    fn is_same(consumer: &Self::Consumer, other: &Self::Consumer) -> bool;
}

/// What the handles did. Where it says "was sent", the bytes are on their way by another road: the handles encode
/// their methods themselves, and the core only has to know what will come back.
pub(crate) enum Command<M: Mailboxes> {
    /// `channel.open` was sent.
    OpenChannel {
        channel: u16,
        mailbox: M::Channel,
        call: M::Call,
    },
    /// A method was sent that has a reply. Channel 0 is the connection.
    Call {
        channel: u16,
        expected: Expected,
        call: M::Call,
    },
    /// `basic.consume` was sent; without a call it was sent with no-wait.
    Consume {
        channel: u16,
        consumer_tag: Arc<str>,
        consumer: M::Consumer,
        settling: Settling,
        call: Option<M::Call>,
    },
    /// A message was published in confirm mode.
    Publish(Published<M>),
    /// `channel.close` was sent.
    CloseChannel {
        channel: u16,
        reason: CloseReason,
        call: Option<M::Call>,
    },
    /// `connection.close` was sent.
    CloseConnection { reason: CloseReason },
}

impl<M: Mailboxes> Command<M> {
    /// The channel that it is about; 0 is the connection.
    pub(crate) fn channel(&self) -> u16 {
        match self {
            Self::OpenChannel { channel, .. }
            | Self::Call { channel, .. }
            | Self::Consume { channel, .. }
            | Self::CloseChannel { channel, .. } => *channel,
            Self::Publish(published) => published.channel,
            Self::CloseConnection { .. } => 0,
        }
    }

    /// Whether someone may wait for what it asks for.
    pub(crate) fn awaits_reply(&self) -> bool {
        match self {
            Self::OpenChannel { .. } | Self::Call { .. } => true,
            Self::Consume { call, .. } | Self::CloseChannel { call, .. } => call.is_some(),
            Self::CloseConnection { .. } => true,
            Self::Publish(_) => false,
        }
    }
}

impl<M: Mailboxes> Event<M> {
    /// Whether the broker gets an answer.
    pub(crate) fn is_answered(&self) -> bool {
        match self {
            Self::ConsumerCancelled { .. } | Self::Unwanted { .. } | Self::Flow { .. } => true,
            Self::ChannelEnded { owes_close_ok, .. } => *owes_close_ok,
            _ => false,
        }
    }
}

/// What happened. Every mailbox that was handed over comes back in just one answer, whatever happens.
pub(crate) enum Event<M: Mailboxes> {
    /// The handshake is over.
    Opened,
    /// The reply to a call; with its channel, if that goes on.
    Reply {
        channel: Option<M::Channel>,
        call: M::Call,
        /// Large, and rare beside deliveries.
        reply: Box<Method<'static>>,
    },
    /// The message that `basic.get` asked for.
    Fetched {
        call: M::Call,
        channel: M::Channel,
        no_ack: bool,
        message: Fetched,
    },
    /// A call that gets no reply any more.
    Failed { call: M::Call, error: Error },
    /// Messages for a consumer that came one behind the other: the next `count` of those to be taken.
    Deliveries { consumer: M::Consumer, count: usize },
    /// The broker has agreed to a consumer.
    ConsumerStarted { consumer: M::Consumer },
    /// The broker has cancelled a consumer; none if that is not known (any more). Comes before the
    /// consumer's end, so that the answer is on its way before its tag can be used again.
    ConsumerCancelled {
        channel: M::Channel,
        consumer_tag: String,
        consumer: Option<M::Consumer>,
        /// The broker expects no cancel-ok.
        no_wait: bool,
    },
    /// A message came for a consumer that has ended: it is to be given back.
    Unwanted {
        channel: M::Channel,
        delivery_tag: u64,
        settling: Settling,
    },
    /// A consumer gets nothing any more: cancelled by us, or with an error.
    ConsumerEnded {
        consumer: M::Consumer,
        error: Option<Error>,
    },
    /// A message came back as unroutable. Its number is known in confirm mode.
    Returned {
        channel: M::Channel,
        sequence_number: Option<u64>,
        message: Returned,
    },
    /// What became of a message that someone waits for.
    Answered {
        confirm: M::Confirm,
        sequence_number: u64,
        outcome: Outcome,
    },
    /// No answer will come for a message, since its channel or the connection has ended.
    Lost {
        published: Published<M>,
        cause: Error,
        may_have_been_sent: bool,
    },
    /// The broker refused a message that nobody waits for by itself.
    Nacked {
        channel: M::Channel,
        sequence_number: u64,
    },
    /// The broker has answered for messages. Comes behind what it means for each of them.
    Confirm {
        channel: M::Channel,
        answer: Answer,
        /// Which message it is for, or the last one of them.
        sequence_number: u64,
        /// How many messages it is the answer for.
        answered: u64,
        /// All numbers up to this are answered.
        answered_to: u64,
    },
    /// A message came that is larger than we take. It is skipped, and its channel should be closed.
    MessageTooLarge { channel: M::Channel, size: u64 },
    /// The broker asks to stop (or go on) publishing on a channel, and expects flow-ok.
    Flow { channel: M::Channel, active: bool },
    /// Nothing more can be sent on a channel, for this reason.
    ChannelEnded {
        channel: M::Channel,
        error: Error,
        leftover: Leftover,
        /// The broker has closed it and expects close-ok: the last frame on the channel.
        owes_close_ok: bool,
    },
    /// All that the channel's end meant was told. Its number can be used again.
    ChannelFreed { channel: M::Channel, number: u16 },
    /// The broker takes no messages for now.
    Blocked { reason: String },
    /// The broker takes messages again.
    Unblocked,
    /// It is over. What is left to send shall be sent, then the socket be closed.
    Ended { error: Error },
}

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
    pub(super) fn is(&self, reply: &Method<'_>) -> bool {
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
    pub(super) fn can_be_overtaken(&self) -> bool {
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

/// What is done about the messages of a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settling {
    /// They are acknowledged, and unread ones go back to their queue.
    Requeue,
    /// They are acknowledged, and a stream keeps them all.
    Stream,
    /// The broker has forgotten them.
    NoAck,
}

/// A message for a consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delivered {
    pub(crate) delivery_tag: u64,
    pub(crate) redelivered: bool,
    pub(crate) content: Content,
}

/// A message that `basic.get` asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fetched {
    pub(crate) delivery_tag: u64,
    pub(crate) redelivered: bool,
    /// How many are left in the queue.
    pub(crate) message_count: u32,
    pub(crate) content: Content,
}

/// A message that could not be routed and came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Returned {
    pub(crate) code: ReplyCode,
    pub(crate) text: String,
    pub(crate) content: Content,
}

/// A message that was published in confirm mode.
pub(crate) struct Published<M: Mailboxes> {
    pub(crate) channel: u16,
    /// Counted from 1 on each channel, also over several connections.
    pub(crate) sequence_number: u64,
    /// Who wants to know what becomes of just this message. Without, the channel is told.
    pub(crate) confirm: Option<M::Confirm>,
    /// Of a mandatory message, which can be returned.
    pub(crate) fingerprint: Option<Fingerprint>,
    /// It may be published again.
    pub(crate) send_history: SendHistory,
    /// Its frames, if it is to be published again when no answer came.
    pub(crate) kept: Option<Bytes>,
}

/// What became of a message on earlier connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SendHistory {
    /// It was not sent.
    Nothing,
    /// A broker may have it.
    Sent,
    /// And may have closed the connection because of it.
    Blamed,
    /// Twice.
    Suspect,
}

impl SendHistory {
    /// The broker has closed a connection, perhaps because of this message.
    pub(crate) fn blamed(self) -> Self {
        match self {
            Self::Nothing => Self::Nothing,
            Self::Sent => Self::Blamed,
            Self::Blamed | Self::Suspect => Self::Suspect,
        }
    }
}

/// What became of a message.
#[derive(Debug)]
pub(crate) enum Outcome {
    Confirmed,
    /// The broker could not take charge of it.
    Nacked,
    /// No queue was bound for it.
    Returned(Box<Returned>),
    /// No answer will come.
    Lost {
        cause: Error,
        may_have_been_sent: bool,
    },
}

impl Outcome {
    pub(crate) fn lost(cause: Error, may_have_been_sent: bool) -> Self {
        Self::Lost {
            cause,
            may_have_been_sent,
        }
    }
}

/// An answer of the broker, `basic.ack` or `basic.nack`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Which message of the connection's channel, counted from 1. Zero for all, with `multiple`.
    pub(crate) tag: u64,
    /// It is for all earlier messages, too.
    pub(crate) multiple: bool,
    pub(crate) nack: bool,
}

/// What a channel has to know at its end of the messages that nobody waits for by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Leftover {
    /// The last message that was told to the core, of any kind: those behind it were never sent.
    pub(crate) told_to: u64,
    /// The last one of them that was not answered.
    pub(crate) unanswered: Option<u64>,
}
