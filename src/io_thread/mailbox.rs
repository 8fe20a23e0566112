//! What the handles leave with the IO thread, so that it can answer them without knowing them.

use std::sync::Arc;
use std::vec::Drain;

use crossbeam_channel::{Receiver, Sender};

use crate::error::{Error, Result};
use crate::proto::{self, Answer, Delivered, Fetched, Leftover, Outcome, Returned, Settling};
use crate::wire::method::Method;
use crate::wire::value::FieldTable;

/// A caller who waits for a reply.
pub(crate) struct Call {
    /// Sending never blocks: there is room for the one answer.
    sender: Sender<Result<Reply>>,
    /// What the broker has done when it answers, if that is to be done again on the next connection.
    record: Option<Box<Method<'static>>>,
}

impl Call {
    pub(crate) fn new() -> (Self, Receiver<Result<Reply>>) {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let record = None;
        (Self { sender, record }, receiver)
    }

    /// One that nobody waits for.
    pub(crate) fn of_nobody() -> Self {
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
        // Whoever has given up waiting has dropped the receiver; a late reply is for nobody.
        let _ = self.sender.send(reply);
    }
}

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
            let delivery_tag = message.delivery_tag;
            self.channel.give_back(delivery_tag, Settling::Requeue);
        }
    }
}

/// What the IO thread tells a channel. It runs on the IO thread and must not block.
pub(crate) trait ChannelMailbox: Send + Sync {
    /// Nothing more can be sent; unless the channel is being opened again, and this is no more than
    /// an obstacle. Sends close-ok if the broker waits for it.
    fn ended(&self, error: &Error, owes_close_ok: bool);
    /// The connection was lost, and is being recovered.
    fn interrupted(&self, error: &Error, left: Leftover);
    /// Its number can be used again.
    fn freed(&self);
    /// The broker asks to stop or go on publishing. Sends flow-ok.
    fn flow(&self, active: bool);
    /// The broker has cancelled a consumer, if it is known. Tells the broker that it has ended.
    fn consumer_cancelled(&self, consumer_tag: &str, is_known: bool, no_wait: bool);
    /// A message came for a consumer that has ended.
    fn unwanted(&self, delivery_tag: u64, settling: Settling);
    /// The broker has answered for a message, or all up to it; all numbers up to `answered_to` are answered now.
    fn confirm(&self, answer: Answer, sequence_number: u64, answered_to: u64);
    /// The broker refused a message.
    fn nacked(&self, sequence_number: u64);
    /// A message came that is larger than we take: the channel has to be closed.
    fn message_too_large(&self, size: u64);
    /// A message came back.
    fn returned(&self, message: Returned, sequence_number: Option<u64>);
    /// The broker has replied to a call: it has read all that was sent before that. With what was asked, if that is to be
    /// done again on the next connection.
    fn broker_replied(&self, asked: Option<&Method<'_>>);
    /// A fetched message came. Returns the delivery tag by which the program knows it.
    fn received(&self, delivery_tag: u64) -> u64;
    /// Answers a message that the program will not read: a queue takes it back.
    fn give_back(&self, delivery_tag: u64, settling: Settling);
}

/// What the IO thread tells a consumer. It runs on the IO thread and must not block.
pub(crate) trait ConsumerMailbox: Send + Sync {
    /// What is done about its messages.
    fn settling(&self) -> Settling;
    /// The broker has agreed.
    fn started(&self);
    /// Takes these messages, and returns how many bytes more are unread now.
    fn deliver(&self, messages: Drain<'_, Delivered>) -> u64;
    /// How many bytes of messages nobody has taken.
    fn unread(&self) -> u64;
    /// Nothing more comes; with an error unless the consumer was cancelled by this program.
    fn ended(&self, error: Option<Error>);
    /// Whether its channel, which was closed for this reason, is being opened again all the same.
    fn outlives(&self, error: &Error) -> bool;
    /// The connection was lost and is being recovered, or its channel was closed and is being opened again.
    fn interrupted(&self, error: &Error);
    /// The broker is about to be asked for messages again, with these arguments. False if nobody wants them any more.
    fn restart(&self, arguments: &mut FieldTable) -> bool;
    /// There is no such queue. It may be declared anew.
    fn is_without_queue(&self) {}
}

/// What the IO thread tells the one who waits for the answer to a message. It runs on the IO thread and must not
/// block.
pub(crate) trait ConfirmMailbox: Send + Sync {
    /// Once, whatever happens.
    fn answered(&self, sequence_number: u64, outcome: Outcome);
    /// Whether the message is to be published again if the connection is lost before the answer.
    fn is_published_again(&self) -> bool;
    /// That has happened: the answer comes when the connection is back.
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

/// For messages whose answer no caller waits for: the channel is told instead.
pub(crate) enum Unwatched {}

impl ConfirmMailbox for Unwatched {
    fn answered(&self, _sequence_number: u64, _outcome: Outcome) {
        match *self {}
    }

    fn is_published_again(&self) -> bool {
        match *self {}
    }
}
