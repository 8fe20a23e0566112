//! The commands that go into the core, and the events that come out.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::fingerprint::Fingerprint;
use crate::error::{CloseReason, Error, ReplyCode};
use crate::wire::content::Content;
use crate::wire::method::{ChannelCloseOk, Encode, Method, MethodId, TxCommitOk};

/// The driver's handles for waiting callers, channels and consumers. The core stores them, returns
/// them in events, and never looks inside.
pub(crate) trait Mailboxes {
    /// A caller that waits for a reply.
    type Call;
    type Channel: Clone;
    type Consumer: Clone;
    /// A caller that waits for the confirm of one message.
    type Confirm;

    fn is_same(consumer: &Self::Consumer, other: &Self::Consumer) -> bool;
}

/// A call of the program that the core must know about. The handles encode and send their methods
/// themselves; the core only needs to know which replies will come.
pub(crate) enum Command<M: Mailboxes> {
    /// `channel.open` was sent.
    OpenChannel {
        channel: u16,
        mailbox: M::Channel,
        /// The highest delivery tag that the program has seen on the channel. Those of this
        /// connection continue after it.
        last_tag: u64,
        call: M::Call,
    },
    /// A method with a reply was sent. Channel 0 is the connection.
    Call {
        channel: u16,
        expected: Expected,
        call: M::Call,
    },
    /// `basic.consume` was sent. Without a call, it was sent with no-wait.
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
    /// The channel of the command. 0 is the connection.
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

    pub(crate) fn call_mut(&mut self) -> Option<&mut M::Call> {
        match self {
            Self::OpenChannel { call, .. } | Self::Call { call, .. } => Some(call),
            Self::Consume { call, .. } | Self::CloseChannel { call, .. } => call.as_mut(),
            Self::Publish(_) | Self::CloseConnection { .. } => None,
        }
    }

    /// Whether a caller may be waiting for the reply.
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
    /// Whether the driver answers the broker on this event.
    pub(crate) fn is_answered(&self) -> bool {
        match self {
            Self::ConsumerCancelled { .. } | Self::Unwanted { .. } | Self::Flow { .. } => true,
            Self::ChannelEnded { owes_close_ok, .. } => *owes_close_ok,
            _ => false,
        }
    }
}

/// What happened on the connection. Each call and each confirm that the driver passes in comes back
/// in exactly one event, whatever happens.
pub(crate) enum Event<M: Mailboxes> {
    /// The handshake is over.
    Opened,
    /// The reply to a call, with the channel if it stays open.
    Reply {
        channel: Option<M::Channel>,
        /// The channel's highest delivery tag when the reply came.
        last_tag: u64,
        call: M::Call,
        /// Boxed to keep the event small: replies are large, and rare compared with deliveries.
        reply: Box<Method<'static>>,
    },
    /// The message that `basic.get` fetched.
    Fetched {
        call: M::Call,
        channel: M::Channel,
        no_ack: bool,
        message: Fetched,
    },
    /// A call that will get no reply.
    Failed { call: M::Call, error: Error },
    /// Consecutive messages for one consumer: the next `count` of `Connection::take_messages`.
    Deliveries { consumer: M::Consumer, count: usize },
    /// The broker has confirmed a consumer with consume-ok.
    ConsumerStarted { consumer: M::Consumer },
    /// The broker has cancelled a consumer. Precedes the consumer's end, so that the answer is on
    /// its way before the tag can be used again.
    ConsumerCancelled {
        channel: M::Channel,
        consumer_tag: String,
        /// `None` if no running consumer has this tag.
        consumer: Option<M::Consumer>,
        /// The broker expects no cancel-ok.
        no_wait: bool,
    },
    /// A message arrived for a consumer that has ended. The driver gives it back to the broker.
    Unwanted {
        channel: M::Channel,
        delivery_tag: u64,
        settling: Settling,
    },
    /// A consumer gets no more messages. No error if the program cancelled it.
    ConsumerEnded {
        consumer: M::Consumer,
        error: Option<Error>,
    },
    /// The broker returned an unroutable message. Its number is known in confirm mode only.
    Returned {
        channel: M::Channel,
        sequence_number: Option<u64>,
        message: Returned,
    },
    /// The outcome of a message that has a `Confirm`.
    Answered {
        confirm: M::Confirm,
        sequence_number: u64,
        outcome: Outcome,
    },
    /// A message will get no confirm, since its channel or the connection has ended.
    Lost {
        published: Published<M>,
        cause: Error,
        may_have_been_sent: bool,
    },
    /// The broker nacked a message without a `Confirm`.
    Nacked {
        channel: M::Channel,
        sequence_number: u64,
    },
    /// The broker confirmed or nacked messages. Follows the events of the messages themselves.
    Confirm {
        channel: M::Channel,
        answer: Answer,
        /// The sequence number of the message, or of the last one if `multiple`.
        sequence_number: u64,
        /// How many messages this answers.
        answered: u64,
        /// All sequence numbers up to this one are answered.
        answered_to: u64,
    },
    /// A message is larger than `max_message_size`. The core skips it. The driver should close the
    /// channel: only under the outbox's lock is it known whether a handle has closed it already,
    /// and a second close costs the connection.
    MessageTooLarge { channel: M::Channel, size: u64 },
    /// The broker asks to stop or resume publishing on a channel, and expects flow-ok.
    Flow { channel: M::Channel, active: bool },
    /// A channel has ended. Nothing more can be sent on it.
    ChannelEnded {
        channel: M::Channel,
        error: Error,
        leftover: Leftover,
        /// The broker has closed the channel and expects close-ok, the last frame on it.
        owes_close_ok: bool,
    },
    /// A channel's number can be used again. Follows all events of the channel's end except the
    /// reply to the program's own close.
    ChannelFreed { channel: M::Channel, number: u16 },
    /// The broker has stopped accepting messages on this connection.
    Blocked { reason: String },
    /// The broker accepts messages again.
    Unblocked,
    /// The connection has ended. The driver sends the remaining output, then closes the socket.
    Ended { error: Error },
}

/// The reply that a call waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Exactly this method.
    Method(MethodId),
    /// `basic.get-ok` with a message, or `basic.get-empty`.
    Message { no_ack: bool },
    /// `basic.consume-ok` for this consumer.
    ConsumeOk(Arc<str>),
    /// `basic.cancel-ok` for this consumer, which then ends.
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

    /// RabbitMQ sends these replies once the queues have agreed. Meanwhile it handles the channel's
    /// next methods, whose replies can come first.
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

/// How to settle the unread messages of a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settling {
    /// Nack them with requeue.
    Requeue,
    /// Acknowledge them: the stream keeps them anyway.
    Stream,
    /// Do nothing: the broker forgot them when it sent them.
    NoAck,
}

/// A message for a consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delivered {
    /// Keeps increasing across reconnects, unlike the broker's tag.
    pub(crate) delivery_tag: u64,
    pub(crate) redelivered: bool,
    pub(crate) content: Content,
}

/// A message that `basic.get` fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fetched {
    /// Keeps increasing across reconnects, unlike the broker's tag.
    pub(crate) delivery_tag: u64,
    pub(crate) redelivered: bool,
    /// How many messages remain in the queue.
    pub(crate) message_count: u32,
    pub(crate) content: Content,
}

/// An unroutable message that the broker returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Returned {
    pub(crate) code: ReplyCode,
    pub(crate) text: String,
    pub(crate) content: Content,
}

/// A message that was published in confirm mode.
pub(crate) struct Published<M: Mailboxes> {
    pub(crate) channel: u16,
    /// Starts at 1 on each channel, and keeps increasing across reconnects.
    pub(crate) sequence_number: u64,
    /// The caller that waits for this message. If `None`, the channel gets the outcome.
    pub(crate) confirm: Option<M::Confirm>,
    /// Set for a mandatory message, which the broker may return.
    pub(crate) fingerprint: Option<Fingerprint>,
    pub(crate) send_history: SendHistory,
    /// The message's frames, if it is to be published again after a reconnect.
    pub(crate) kept: Option<Bytes>,
}

/// What happened to a message on earlier connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SendHistory {
    /// It was never sent.
    Nothing,
    /// The broker may have received it.
    Sent,
    /// The broker closed a connection, perhaps because of this message.
    Blamed,
    /// The broker closed at least two connections, perhaps because of this message.
    Suspect,
}

impl SendHistory {
    /// The history after the broker closed another connection, perhaps because of this message.
    pub(crate) fn blamed(self) -> Self {
        match self {
            Self::Nothing => Self::Nothing,
            Self::Sent => Self::Blamed,
            Self::Blamed | Self::Suspect => Self::Suspect,
        }
    }
}

/// The outcome of a published message.
#[derive(Debug)]
pub(crate) enum Outcome {
    Confirmed,
    /// The broker could not take responsibility for the message.
    Nacked,
    /// The broker could not route the message to any queue.
    Returned(Box<Returned>),
    /// No confirm will come.
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

/// The broker's answer to published messages: `basic.ack` or `basic.nack`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The delivery tag: counts the channel's messages on this connection from 1. With `multiple`,
    /// zero means all.
    pub(crate) tag: u64,
    /// The answer covers all earlier messages, too.
    pub(crate) multiple: bool,
    pub(crate) nack: bool,
}

/// What the channel needs to know, when it ends, about its messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Leftover {
    /// The sequence number of the last message that the core knows, with or without a `Confirm`.
    /// Later messages were never sent.
    pub(crate) last_known: u64,
    /// The sequence number of the last unanswered message without a `Confirm`.
    pub(crate) unanswered: Option<u64>,
    /// The highest delivery tag. 0 if the channel was never opened.
    pub(crate) last_tag: u64,
}
