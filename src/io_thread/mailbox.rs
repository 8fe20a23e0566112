//! The traits through which the IO thread answers channels, consumers and publishers.
//!
//! Handles leave these mailboxes with the IO thread, which need not know a handle's type.

use std::sync::Arc;
use std::vec::Drain;

use crossbeam_channel::{Receiver, Sender};

use crate::error::{Error, Result};
use crate::proto::{self, Answer, Delivered, Fetched, Leftover, Outcome, Returned, Settling};
use crate::wire::method::Method;
use crate::wire::value::FieldTable;

/// A caller that waits for a reply.
pub(crate) struct Call {
    /// Sending never blocks: the channel has room for the one answer.
    sender: Sender<Result<Reply>>,
    /// The request, if it changes what a recovery has to repeat. Recorded when the broker agrees.
    record: Option<Box<Method<'static>>>,
    /// Counts the calls of a connection in the order of their frames. Set when the call is
    /// appended.
    pub(crate) number: u64,
}

impl Call {
    pub(crate) fn new() -> (Self, Receiver<Result<Reply>>) {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let call = Self {
            sender,
            record: None,
            number: 0,
        };
        (call, receiver)
    }

    /// A call without a waiting caller.
    pub(crate) fn unawaited() -> Self {
        Self::new().0
    }

    pub(crate) fn recording(mut self, method: Option<Method<'static>>) -> Self {
        self.record = method.map(Box::new);
        self
    }

    pub(crate) fn take_record(&mut self) -> Option<Method<'static>> {
        self.record.take().map(|record| *record)
    }

    pub(crate) fn answer(self, reply: Result<Reply>) {
        // A caller that has timed out has dropped the receiver, so a late reply is discarded.
        let _ = self.sender.send(reply);
    }
}

/// The answer to a call.
pub(crate) enum Reply {
    Method(Method<'static>),
    Message(Unclaimed),
}

/// A message of `basic.get` on its way to the caller. If the caller has timed out, dropping this
/// requeues the message.
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
            let delivery_tag = message.delivery_tag;
            self.channel.give_back(delivery_tag, Settling::Requeue);
        }
    }
}

/// Notifies a channel. Its methods run on the IO thread and must not block.
pub(crate) trait ChannelMailbox: Send + Sync {
    /// The channel has ended, unless a recovery is opening it again and only this attempt failed.
    /// Sends close-ok if the broker expects it.
    fn ended(&self, error: &Error, leftover: Leftover, owes_close_ok: bool);
    /// The connection was lost and is being recovered.
    fn interrupted(&self, error: &Error, leftover: Leftover);
    /// The broker is done with the channel's number.
    fn freed(&self);
    /// The broker asks to stop or resume publishing. Sends flow-ok.
    fn flow(&self, active: bool);
    /// The broker has cancelled a consumer, which may be unknown here. Sends cancel-ok unless
    /// `no_wait` is set.
    fn consumer_cancelled(&self, consumer_tag: &str, is_known: bool, no_wait: bool);
    /// A message came for a consumer that has ended.
    fn unwanted(&self, delivery_tag: u64, settling: Settling);
    /// The broker has confirmed or nacked a message, or all messages up to it. All sequence numbers
    /// up to `answered_to` are answered now.
    fn confirm(&self, answer: Answer, sequence_number: u64, answered_to: u64);
    /// The broker has nacked a message that was published without a [`ConfirmMailbox`].
    fn nacked(&self, sequence_number: u64);
    /// A message came that is larger than `max_message_size`. Closes the channel.
    fn message_too_large(&self, size: u64);
    /// The broker has returned a message as unroutable.
    fn returned(&self, message: Returned, sequence_number: Option<u64>);
    /// The broker has replied to the call with this number, so it has read everything that was sent
    /// before that call. `last_tag` is the highest delivery tag that came before the reply. `asked`
    /// is the request, if it changes what a recovery has to repeat.
    fn broker_replied(&self, call_number: u64, last_tag: u64, asked: Option<&Method<'_>>);
    /// Settles a message that the program will not read. A queue gets it back.
    fn give_back(&self, delivery_tag: u64, settling: Settling);
}

/// Notifies a consumer. Its methods run on the IO thread and must not block.
pub(crate) trait ConsumerMailbox: Send + Sync {
    /// How the consumer's messages are settled.
    fn settling(&self) -> Settling;
    /// The broker has agreed to the consumer.
    fn started(&self);
    /// Takes these messages. Returns how many bytes this adds to the unread ones. A reader that
    /// sleeps may hear of them only at the next [`wake`](Self::wake).
    fn deliver(&self, messages: Drain<'_, Delivered>) -> u64;
    /// More messages do not follow at once.
    fn wake(&self) {}
    /// The size of the messages that the program has not taken yet, in bytes.
    fn unread(&self) -> u64;
    /// No more messages will come. The error is `None` if the program has cancelled the consumer.
    fn ended(&self, error: Option<Error>);
    /// Whether the channel is being opened again although it was closed with this error.
    fn outlives(&self, error: &Error) -> bool;
    /// The connection was lost and is being recovered, or the channel was closed and is being
    /// opened again.
    fn interrupted(&self, error: &Error);
    /// The consumer is about to be started again, with these arguments, which may be changed.
    /// Returns false if the consumer is not wanted any more.
    fn restart(&self, arguments: &mut FieldTable) -> bool;
    /// The consumer's queue does not exist. A later queue of this name is a new one.
    fn is_without_queue(&self) {}
}

/// Notifies the waiter for the confirm of one message. Its methods run on the IO thread and must
/// not block.
pub(crate) trait ConfirmMailbox: Send + Sync {
    /// Called exactly once for each message.
    fn answered(&self, sequence_number: u64, outcome: Outcome);
    /// Whether the message is published again if the connection is lost before the answer.
    fn is_published_again(&self) -> bool;
    /// The connection was lost before the answer. The message will be published again.
    fn is_kept(&self) {}
}

pub(crate) struct Mailboxes;

impl proto::Mailboxes for Mailboxes {
    type Call = Call;
    type Channel = Arc<dyn ChannelMailbox>;
    type Consumer = Arc<dyn ConsumerMailbox>;
    type Confirm = Arc<dyn ConfirmMailbox>;

    fn is_same(consumer: &Self::Consumer, other: &Self::Consumer) -> bool {
        Arc::ptr_eq(consumer, other)
    }
}

pub(crate) type Command = proto::Command<Mailboxes>;
pub(crate) type Published = proto::Published<Mailboxes>;

/// The confirm mailbox of messages without one: their channel gets the answer instead.
pub(crate) enum Unwatched {}

impl ConfirmMailbox for Unwatched {
    fn answered(&self, _sequence_number: u64, _outcome: Outcome) {
        match *self {}
    }

    fn is_published_again(&self) -> bool {
        match *self {}
    }
}
