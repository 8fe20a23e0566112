//! What the core is told and what it tells.

use std::sync::Arc;

use super::channel::Expected;
use super::confirms::{Answer, Left, Outcome, Published};
use super::content::{Fetched, Returned};
use crate::error::{CloseReason, Error};
use crate::wire::method::Method;

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
        call: Option<M::Call>,
    },
    /// `channel.close` was sent.
    CloseChannel {
        channel: u16,
        reason: CloseReason,
        call: Option<M::Call>,
    },
    /// `connection.close` was sent.
    CloseConnection { reason: CloseReason },
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
    /// The broker asks to stop (or go on) publishing on a channel.
    Flow { channel: M::Channel, active: bool },
    /// Nothing more can be sent on a channel, for this reason.
    ChannelEnded {
        channel: M::Channel,
        error: Error,
        left: Left,
    },
    /// The number can be used for a new channel, as soon as what the core has to send is sent.
    ChannelFreed { channel: M::Channel, number: u16 },
    /// The broker takes no messages for now.
    Blocked { reason: String },
    /// The broker takes messages again.
    Unblocked,
    /// It is over. What is left to send shall be sent, then the socket be closed.
    Ended { error: Error },
}
