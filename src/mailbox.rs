//! What the handles leave with the IO thread, so that it can answer them without knowing them.

use std::sync::Arc;

use crossbeam_channel::Sender;

use crate::error::{Error, Result};
use crate::proto::{self, Answer, Delivered, Fetched, Outcome, Returned};
use crate::wire::method::Method;

/// A caller who waits for a reply. Sending never blocks: there is room for the one answer.
pub(crate) type Call = Sender<Result<Reply>>;

/// What a call is answered with.
pub(crate) enum Reply {
    Method(Method<'static>),
    Message(Unclaimed),
}

/// A fetched message on its way to the caller. If he has given up meanwhile, it goes back to its queue.
pub(crate) struct Unclaimed {
    message: Option<Fetched>,
    no_ack: bool,
    channel: Arc<dyn ChannelMailbox>,
}

impl Unclaimed {
    pub(crate) fn new(message: Fetched, no_ack: bool, channel: Arc<dyn ChannelMailbox>) -> Self {
        Self {
            message: Some(message),
            no_ack,
            channel,
        }
    }

    pub(crate) fn claim(mut self) -> Option<Fetched> {
        self.message.take()
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if let Some(message) = self.message.take().filter(|_| !self.no_ack) {
            self.channel.requeue(message.delivery_tag);
        }
    }
}

/// What the IO thread tells a channel. It runs on the IO thread and must not block.
pub(crate) trait ChannelMailbox: Send + Sync {
    /// Nothing more can be sent.
    fn ended(&self, error: &Error);
    /// Its number can be used again.
    fn freed(&self);
    /// The broker asks to stop or go on publishing.
    fn flow(&self, active: bool);
    /// The broker has answered for a message, or all up to it; all numbers up to `answered_to` are answered now.
    fn confirm(&self, answer: Answer, sequence_number: u64, answered_to: u64);
    /// The broker refused a message.
    fn nacked(&self, sequence_number: u64);
    /// A message came that is larger than we take: the channel has to be closed.
    fn message_too_large(&self, size: u64);
    /// A message came back.
    fn returned(&self, message: Returned, sequence_number: Option<u64>);
    /// The broker has replied to a call: it has read all that was sent before that.
    fn broker_replied(&self);
    /// A fetched message came.
    fn received(&self, delivery_tag: u64);
    /// Nobody wants this message any more.
    fn requeue(&self, delivery_tag: u64);
}

/// What the IO thread tells a consumer. It runs on the IO thread and must not block.
pub(crate) trait ConsumerMailbox: Send + Sync {
    /// The broker has agreed.
    fn started(&self);
    /// Returns how many bytes more are unread now.
    fn deliver(&self, delivery: Delivered) -> u64;
    /// How many bytes of messages nobody has taken.
    fn unread(&self) -> u64;
    /// Nothing more comes; with an error unless the consumer was cancelled by this program.
    fn ended(&self, error: Option<Error>);
}

/// What the IO thread tells the one who waits for the answer to a message. It runs on the IO thread and must not
/// block.
pub(crate) trait ConfirmMailbox: Send + Sync {
    /// Once, whatever happens.
    fn answered(&self, sequence_number: u64, outcome: Outcome);
}

pub(crate) struct Mailboxes;

impl proto::Mailboxes for Mailboxes {
    type Call = Call;
    type Channel = Arc<dyn ChannelMailbox>;
    type Consumer = Arc<dyn ConsumerMailbox>;
    type Confirm = Arc<dyn ConfirmMailbox>;
}

pub(crate) type Command = proto::Command<Mailboxes>;
pub(crate) type Published = proto::Published<Mailboxes>;
