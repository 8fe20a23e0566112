//! All channels of a connection, by their numbers.

use std::collections::HashSet;
use std::sync::Arc;

use super::channel::{Channel, Expected, Incoming, Pending, State};
use super::confirms::{Answer, Published};
use super::content::{Delivered, Fetched, Misfit, Returned};
use super::effects::Effects;
use super::event::{Event, Mailboxes};
use super::violation::{invalid, violation, Checked};
use crate::error::{CloseReason, Error, ErrorKind, ReplyCode};
use crate::wire::content::Content;
use crate::wire::delivery::WholeDelivery;
use crate::wire::frame::{ContentHeader, Frame, FrameKind};
use crate::wire::method::{
    BasicCancelOk, BasicDeliver, ChannelClose, ChannelCloseOk, ChannelFlowOk, ChannelOpenOk,
    Encode, Method,
};

/// What stands under a channel number.
enum Slot<M: Mailboxes> {
    Unused,
    InUse(Box<Channel<M>>),
    /// Closed with this cause, which answers calls that were on their way when it closed.
    Closed(Error),
}

pub(super) struct Channels<M: Mailboxes> {
    slots: Vec<Slot<M>>,
    /// Channels that both sides have closed at the same time. RabbitMQ answers our close if it comes after its own, and
    /// never if it came before; so an answer is possible up to the next open-ok, and is not waited for.
    closed_by_both: HashSet<u16>,
    /// A larger message is not taken.
    max_message_size: u64,
}

impl<M: Mailboxes> Channels<M> {
    pub(super) fn new(max_message_size: u64) -> Self {
        Self {
            slots: Vec::new(),
            closed_by_both: HashSet::new(),
            max_message_size,
        }
    }

    fn get(&mut self, number: u16) -> Checked<&mut Channel<M>> {
        match self.slots.get_mut(usize::from(number)) {
            Some(Slot::InUse(channel)) => Ok(channel),
            _ => Err(violation(
                ReplyCode::CHANNEL_ERROR,
                format!("a frame on channel {number}, which is not open"),
            )),
        }
    }

    fn in_use(&self) -> impl Iterator<Item = &Channel<M>> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::InUse(channel) => Some(&**channel),
            Slot::Unused | Slot::Closed(_) => None,
        })
    }

    pub(super) fn consumers(&self) -> impl Iterator<Item = &M::Consumer> {
        self.in_use().flat_map(|channel| channel.consumers.all())
    }

    pub(super) fn give_memory_back(&mut self) {
        for slot in &mut self.slots {
            if let Slot::InUse(channel) = slot {
                channel.confirms.give_memory_back();
            }
        }
    }

    /// Whether the broker owes an answer on any of them.
    pub(super) fn await_reply(&self) -> bool {
        self.in_use().any(Channel::awaits_reply)
    }

    // ---- what the broker says ----

    pub(super) fn method(
        &mut self,
        number: u16,
        method: Method<'_>,
        effects: &mut Effects<M>,
    ) -> Checked<()> {
        match method {
            Method::ChannelCloseOk(_) if self.closed_by_both.remove(&number) => return Ok(()),
            Method::ChannelOpenOk(_) => drop(self.closed_by_both.remove(&number)),
            _ => {}
        }
        let channel = self.get(number)?;
        match (&channel.state, method) {
            (_, Method::ChannelClose(close)) => {
                effects.send(number, &ChannelCloseOk {});
                if let State::Closing { .. } = channel.state {
                    self.closed_by_both.insert(number);
                }
                self.closed_by_broker(number, &close, effects);
                Ok(())
            }
            (State::Closing { cause }, Method::ChannelCloseOk(ok)) => {
                let cause = cause.clone();
                // The closer's reply is this close-ok; the calls before it get none any more.
                let closer = channel.calls.take_closer();
                self.free(number, cause, effects);
                if let Some(closer) = closer {
                    effects.reply(None, closer.call, Method::ChannelCloseOk(ok));
                }
                Ok(())
            }
            // After channel.close all else is to be discarded.
            (State::Closing { .. }, _) => Ok(()),
            (State::Open, method) if !channel.assembly.is_idle() => Err(violation(
                ReplyCode::UNEXPECTED_FRAME,
                format!("{} in the middle of a message", method.id()),
            )),
            (
                State::Open,
                method @ (Method::BasicDeliver(_) | Method::BasicGetOk(_) | Method::BasicReturn(_)),
            ) => channel.begin_message(method).map_err(invalid),
            (State::Open, method) => Self::method_on_open(number, channel, method, effects),
        }
    }

    /// Takes a whole message, if it is expected. Otherwise it has to be taken frame by frame.
    #[inline]
    pub(super) fn deliver(
        &mut self,
        message: &WholeDelivery<'_>,
        effects: &mut Effects<M>,
    ) -> bool {
        let Some(Slot::InUse(channel)) = self.slots.get_mut(usize::from(message.channel)) else {
            return false;
        };
        let takes = matches!(channel.state, State::Open) && channel.assembly.is_idle();
        if !takes || message.body.len() as u64 > self.max_message_size {
            return false;
        }
        let Some(consumer) = channel.consumers.receiver_of(message.consumer_tag) else {
            return false;
        };
        log::trace!("channel {} ← {}", message.channel, BasicDeliver::ID);
        let delivered = Delivered {
            delivery_tag: message.delivery_tag,
            redelivered: message.redelivered,
            content: Content::whole(message, effects.buffers.pop()),
        };
        effects.deliver(consumer, delivered);
        true
    }

    fn method_on_open(
        number: u16,
        channel: &mut Channel<M>,
        method: Method<'_>,
        effects: &mut Effects<M>,
    ) -> Checked<()> {
        let mailbox = channel.mailbox.clone();
        let event = match method {
            Method::BasicAck(ack) => {
                let answer = Answer {
                    tag: ack.delivery_tag,
                    multiple: ack.multiple,
                    nack: false,
                };
                channel.confirms.answer(answer, &mailbox, effects);
                return Ok(());
            }
            Method::BasicNack(nack) => {
                let answer = Answer {
                    tag: nack.delivery_tag,
                    multiple: nack.multiple,
                    nack: true,
                };
                channel.confirms.answer(answer, &mailbox, effects);
                return Ok(());
            }
            Method::ChannelFlow(flow) => {
                let active = flow.active;
                effects.send(number, &ChannelFlowOk { active });
                Event::Flow {
                    channel: mailbox,
                    active,
                }
            }
            Method::BasicCancel(cancel) => {
                let consumer_tag = cancel.consumer_tag.into_owned();
                let consumer = channel.consumers.remove(consumer_tag.as_str());
                if !cancel.no_wait {
                    let consumer_tag = consumer_tag.as_str().into();
                    effects.send(number, &BasicCancelOk { consumer_tag });
                }
                let Some(consumer) = consumer else {
                    return Ok(());
                };
                let error = Some(Error::new(ErrorKind::ConsumerCancelled { consumer_tag }));
                Event::ConsumerEnded { consumer, error }
            }
            reply => return Self::reply(channel, reply, effects),
        };
        effects.event(event);
        Ok(())
    }

    fn reply(channel: &mut Channel<M>, reply: Method<'_>, effects: &mut Effects<M>) -> Checked<()> {
        let pending = channel.calls.answered_by(&reply).map_err(invalid)?;
        let consumers = &mut channel.consumers;
        let event = match &pending.expected {
            Expected::ConsumeOk(consumer_tag) => {
                let consumer = consumers.get(consumer_tag).cloned();
                consumer.map(|consumer| Event::ConsumerStarted { consumer })
            }
            Expected::CancelOk(consumer_tag) => {
                let consumer = consumers.remove_if(consumer_tag, pending.cancels);
                let error = None;
                consumer.map(|consumer| Event::ConsumerEnded { consumer, error })
            }
            Expected::Method(_) | Expected::Message { .. } => None,
        };
        effects.events.extend(event);
        effects.reply(Some(channel.mailbox.clone()), pending.call, reply);
        Ok(())
    }

    /// Takes a frame of a message: its header or a piece of its body.
    pub(super) fn content(
        &mut self,
        number: u16,
        frame: Frame<'_>,
        effects: &mut Effects<M>,
    ) -> Checked<()> {
        let max_size = self.max_message_size;
        let channel = self.get(number)?;
        if let State::Closing { .. } = channel.state {
            return Ok(());
        }
        let outcome = match frame.kind {
            FrameKind::Body => channel.assembly.body(frame.payload),
            _ => {
                let header = ContentHeader::decode(frame.payload)?;
                channel.assembly.header(&channel.names, header, max_size)
            }
        };
        match outcome {
            Ok(None) => Ok(()),
            Ok(Some((incoming, content))) => {
                Self::message(channel, incoming, content, effects);
                Ok(())
            }
            Err(Misfit::MessageTooLarge { kind, size }) => {
                Self::message_too_large(channel, kind, size, effects);
                Ok(())
            }
            Err(misfit) => Err(violation(ReplyCode::UNEXPECTED_FRAME, misfit.to_string())),
        }
    }

    fn message(
        channel: &mut Channel<M>,
        incoming: Incoming<M>,
        content: Content,
        effects: &mut Effects<M>,
    ) {
        let event = match incoming {
            Incoming::Delivery {
                consumer,
                delivery_tag,
                redelivered,
            } => {
                let delivered = Delivered {
                    delivery_tag,
                    redelivered,
                    content,
                };
                return effects.deliver(&consumer, delivered);
            }
            Incoming::Fetch {
                pending: Pending { expected, call, .. },
                delivery_tag,
                redelivered,
                message_count,
            } => {
                let (Some(call), Expected::Message { no_ack }) = (call, expected) else {
                    return;
                };
                Event::Fetched {
                    call,
                    channel: channel.mailbox.clone(),
                    no_ack,
                    message: Fetched {
                        delivery_tag,
                        redelivered,
                        message_count,
                        content,
                    },
                }
            }
            Incoming::Return { code, text } => {
                let returned = Returned {
                    code,
                    text,
                    content,
                };
                let Some(message) = channel.confirms.take_returned(returned) else {
                    return;
                };
                Event::Returned {
                    channel: channel.mailbox.clone(),
                    sequence_number: None,
                    message,
                }
            }
        };
        effects.event(event);
    }

    /// The handles close the channel, under the same lock as any close of theirs: two closes would be one too many.
    fn message_too_large(
        channel: &mut Channel<M>,
        incoming: Incoming<M>,
        size: u64,
        effects: &mut Effects<M>,
    ) {
        if let Incoming::Fetch { pending, .. } = incoming {
            // It ends with the channel.
            channel.calls.put_back(pending);
        }
        let channel = channel.mailbox.clone();
        effects.event(Event::MessageTooLarge { channel, size });
    }

    // ---- ends ----

    fn closed_by_broker(
        &mut self,
        number: u16,
        close: &ChannelClose<'_>,
        effects: &mut Effects<M>,
    ) {
        let (class, method) = (close.class_id, close.method_id);
        let reason = CloseReason::broker(close.reply_code, &close.reply_text, class, method);
        let cause = channel_closed(number, reason);
        self.free(number, cause, effects);
    }

    fn free(&mut self, number: u16, cause: Error, effects: &mut Effects<M>) {
        let Some(slot) = self.slots.get_mut(usize::from(number)) else {
            return;
        };
        if let Slot::InUse(channel) = std::mem::replace(slot, Slot::Closed(cause.clone())) {
            let mailbox = channel.mailbox.clone();
            Self::end(*channel, &cause, effects);
            effects.event(Event::ChannelFreed {
                channel: mailbox,
                number,
            });
        }
    }

    pub(super) fn end_all(&mut self, cause: &Error, effects: &mut Effects<M>) {
        for slot in std::mem::take(&mut self.slots) {
            if let Slot::InUse(channel) = slot {
                Self::end(*channel, cause, effects);
            }
        }
    }

    /// The one end of a channel: its handle, its consumers and its callers are told.
    fn end(channel: Channel<M>, cause: &Error, effects: &mut Effects<M>) {
        let Channel {
            mailbox,
            calls,
            consumers,
            assembly,
            confirms,
            ..
        } = channel;
        effects.event(Event::ChannelEnded {
            channel: mailbox.clone(),
            error: cause.clone(),
            left: confirms.left(),
        });
        confirms.end(cause, &mailbox, effects);
        for consumer in consumers.into_all() {
            let error = Some(cause.clone());
            effects.event(Event::ConsumerEnded { consumer, error });
        }
        if let Some(Incoming::Fetch { pending, .. }) = assembly.into_kind() {
            effects.fail(pending.call, cause);
        }
        for call in calls.into_all() {
            effects.fail(Some(call), cause);
        }
    }

    // ---- what the handles have sent ----

    pub(super) fn opening(
        &mut self,
        number: u16,
        mailbox: M::Channel,
        call: M::Call,
        effects: &mut Effects<M>,
    ) {
        let index = usize::from(number);
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || Slot::Unused);
        }
        if let Some(slot) = self.slots.get_mut(index) {
            *slot = Slot::InUse(Box::new(Channel::new(mailbox)));
        }
        let expected = Expected::Method(ChannelOpenOk::ID);
        self.calling(number, expected, Some(call), effects);
    }

    pub(super) fn calling(
        &mut self,
        number: u16,
        expected: Expected,
        call: Option<M::Call>,
        effects: &mut Effects<M>,
    ) {
        match self.get_sendable(number) {
            Ok(channel) => {
                let cancels = match &expected {
                    Expected::CancelOk(consumer_tag) => channel.consumers.number_of(consumer_tag),
                    _ => None,
                };
                channel.calls.push_cancel(expected, call, cancels);
            }
            Err(cause) => effects.fail(call, &cause),
        }
    }

    /// A message was published in confirm mode.
    pub(super) fn published(&mut self, published: Published<M>, effects: &mut Effects<M>) {
        let cause = match self.slots.get_mut(usize::from(published.channel)) {
            Some(Slot::InUse(channel)) => return channel.confirms.publish(published),
            Some(Slot::Closed(cause)) => cause.clone(),
            Some(Slot::Unused) | None => never_opened(published.channel),
        };
        effects.lose(published, cause, true);
    }

    pub(super) fn consuming(
        &mut self,
        number: u16,
        consumer_tag: Arc<str>,
        consumer: M::Consumer,
        call: Option<M::Call>,
        effects: &mut Effects<M>,
    ) {
        match self.get_sendable(number) {
            Ok(channel) => {
                channel
                    .consumers
                    .insert(Arc::clone(&consumer_tag), consumer);
                if call.is_some() {
                    channel.calls.push(Expected::ConsumeOk(consumer_tag), call);
                }
            }
            Err(cause) => {
                let error = Some(cause.clone());
                effects.event(Event::ConsumerEnded { consumer, error });
                effects.fail(call, &cause);
            }
        }
    }

    pub(super) fn closing(
        &mut self,
        number: u16,
        reason: CloseReason,
        call: Option<M::Call>,
        effects: &mut Effects<M>,
    ) {
        match self.get_sendable(number) {
            Ok(channel) => {
                let expected = Expected::Method(ChannelCloseOk::ID);
                channel.calls.push(expected, call);
                let cause = channel_closed(number, reason);
                channel.state = State::Closing { cause };
            }
            Err(cause) => {
                effects.fail(call, &cause);
                // The broker closed it when our close was on its way.
                self.closed_by_both.insert(number);
            }
        }
    }

    /// The channel, unless it has ended since the handles used it.
    fn get_sendable(&mut self, number: u16) -> Result<&mut Channel<M>, Error> {
        match self.slots.get_mut(usize::from(number)) {
            Some(Slot::InUse(channel)) => match &channel.state {
                State::Open => Ok(channel),
                State::Closing { cause } => Err(cause.clone()),
            },
            Some(Slot::Closed(cause)) => Err(cause.clone()),
            Some(Slot::Unused) | None => Err(never_opened(number)),
        }
    }
}

fn never_opened(channel: u16) -> Error {
    Error::invalid(format!("channel {channel} was never opened"))
}

fn channel_closed(channel: u16, reason: CloseReason) -> Error {
    Error::new(ErrorKind::ChannelClosed { channel, reason })
}
