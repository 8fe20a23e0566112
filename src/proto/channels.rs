//! All channels of a connection, by number.

use std::collections::HashMap;
use std::sync::Arc;

use super::channel::{Channel, Incoming, Pending, Phase};
use super::content::{Assembly, Misfit};
use super::effects::Effects;
use super::event::{
    Answer, Delivered, Event, Expected, Fetched, Mailboxes, Published, Returned, Settling,
};
use super::violation::{invalid, violation, Checked};
use crate::error::{CloseReason, ClosedBy, Error, ErrorKind, ReplyCode};
use crate::log_line::log_line;
use crate::wire::content::Content;
use crate::wire::fast_deliver::WholeDelivery;
use crate::wire::frame::{ContentHeader, Frame, FrameKind};
use crate::wire::method::{
    BasicCancel, BasicDeliver, ChannelClose, ChannelCloseOk, ChannelOpenOk, Encode, Method,
};

/// The state of one channel number.
enum Slot<M: Mailboxes> {
    Unused,
    InUse(Box<Channel<M>>),
    Closed(Closed),
}

/// A channel that has ended. Frames that still arrive for it are dropped.
struct Closed {
    /// The error for calls that the program made before it knew of the end.
    cause: Error,
    /// Messages for these consumers can still arrive while the next channel uses the number.
    consumer_tags: Vec<Arc<str>>,
}

pub(super) struct Channels<M: Mailboxes> {
    slots: Vec<Slot<M>>,
    /// How many channels with a number were closed by both sides at the same time. RabbitMQ answers
    /// our close if it reads our close after it has sent its own, and never if it read ours before.
    /// RabbitMQ has a separate writer for each channel that uses a number, so the answer can come
    /// even after the open-ok of the next channel, or of the next but one.
    late_close_oks: HashMap<u16, usize>,
    /// Larger messages are skipped.
    max_message_size: u64,
}

impl<M: Mailboxes> Channels<M> {
    pub(super) fn new(max_message_size: u64) -> Self {
        Self {
            slots: Vec::new(),
            late_close_oks: HashMap::new(),
            max_message_size,
        }
    }

    /// The channel of a frame. `None` if the channel has ended: the frame is dropped.
    fn get(&mut self, number: u16) -> Checked<Option<&mut Channel<M>>> {
        match self.slots.get_mut(usize::from(number)) {
            Some(Slot::InUse(channel)) => Ok(Some(channel)),
            Some(Slot::Closed(_)) => Ok(None),
            Some(Slot::Unused) | None => Err(violation(
                ReplyCode::CHANNEL_ERROR,
                format!("a frame on channel {number}, which was never opened"),
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

    pub(super) fn shrink(&mut self) {
        for slot in &mut self.slots {
            if let Slot::InUse(channel) = slot {
                channel.confirms.shrink();
            }
        }
    }

    /// Whether the broker still owes a reply on any channel.
    pub(super) fn await_reply(&self) -> bool {
        self.in_use().any(Channel::awaits_reply)
    }

    // ---- frames from the broker ----

    pub(super) fn method(
        &mut self,
        number: u16,
        method: Method<'_>,
        effects: &mut Effects<M>,
    ) -> Checked<()> {
        if let Method::ChannelCloseOk(ok) = method {
            return self.close_ok(number, ok, effects);
        }
        let Some(channel) = self.get(number)? else {
            return Ok(());
        };
        match (&mut channel.phase, method) {
            (phase, Method::ChannelClose(close)) => {
                if let Phase::Closing { .. } = phase {
                    self.crossed(number);
                }
                self.closed_by_broker(number, &close, effects);
                Ok(())
            }
            (phase @ Phase::Opening, Method::ChannelOpenOk(ok)) => {
                *phase = Phase::Open;
                Self::reply(channel, Method::ChannelOpenOk(ok), effects)
            }
            (Phase::Closing { was_open, .. }, Method::ChannelOpenOk(_)) => {
                *was_open = true;
                Ok(())
            }
            // Frames before open-ok belong to the previous channel with this number. After our
            // channel.close, AMQP says to discard everything else.
            (Phase::Opening | Phase::Closing { .. }, _) => Ok(()),
            (Phase::Open, method) => Self::method_on_open(channel, method, effects),
        }
    }

    fn close_ok(
        &mut self,
        number: u16,
        ok: ChannelCloseOk,
        effects: &mut Effects<M>,
    ) -> Checked<()> {
        let phase = self.get(number)?.map(|channel| &channel.phase);
        if let Some(Phase::Closing {
            cause,
            was_open: true,
        }) = phase
        {
            let cause = cause.clone();
            self.closed_by_us(number, cause, ok, effects);
            return Ok(());
        }
        let has_ended = phase.is_none();
        if self.take_late_close_ok(number) || has_ended {
            return Ok(());
        }
        Err(invalid("channel.close-ok without channel.close"))
    }

    /// Both sides have closed a channel with this number.
    fn crossed(&mut self, number: u16) {
        *self.late_close_oks.entry(number).or_default() += 1;
    }

    /// Whether a close-ok on this number can answer the close of an earlier channel.
    fn take_late_close_ok(&mut self, number: u16) -> bool {
        let late = self.late_close_oks.get_mut(&number);
        let Some(late) = late.filter(|it| **it > 0) else {
            return false;
        };
        *late -= 1;
        true
    }

    /// Delivers a whole message if the channel and the consumer are ready for it. Otherwise returns
    /// false: the caller must then handle the message frame by frame.
    #[inline]
    pub(super) fn deliver(
        &mut self,
        message: &WholeDelivery<'_>,
        effects: &mut Effects<M>,
    ) -> bool {
        let Some(Slot::InUse(channel)) = self.slots.get_mut(usize::from(message.channel)) else {
            return false;
        };
        let takes = matches!(channel.phase, Phase::Open) && channel.assembly.is_idle();
        if !takes || message.body.len() as u64 > self.max_message_size {
            return false;
        }
        let Some((consumer, delivery_tag)) = channel
            .consumers
            .get(message.consumer_tag, message.delivery_tag)
        else {
            return false;
        };
        let label = &effects.label;
        log_line!(
            Trace,
            label,
            "channel {} ← {}",
            message.channel,
            BasicDeliver::ID
        );
        let delivered = Delivered {
            delivery_tag,
            redelivered: message.redelivered,
            content: Content::whole(message, |size| effects.buffers.take(size)),
        };
        effects.deliver(consumer, delivered);
        true
    }

    fn method_on_open(
        channel: &mut Channel<M>,
        method: Method<'_>,
        effects: &mut Effects<M>,
    ) -> Checked<()> {
        if !channel.assembly.is_idle() {
            return Err(violation(
                ReplyCode::UNEXPECTED_FRAME,
                format!("{} in the middle of a message", method.id()),
            ));
        }
        let mailbox = channel.mailbox.clone();
        match method {
            Method::BasicDeliver(deliver) => {
                let begun = channel.begin_delivery(&deliver, &effects.label);
                if let Some(settling) = begun.map_err(invalid)? {
                    effects.event(Event::Unwanted {
                        channel: mailbox,
                        delivery_tag: channel.consumers.tag_for_program(deliver.delivery_tag),
                        settling,
                    });
                }
            }
            method @ (Method::BasicGetOk(_) | Method::BasicReturn(_)) => {
                channel.begin_message(method).map_err(invalid)?;
            }
            Method::BasicAck(ack) => {
                let answer = Answer {
                    tag: ack.delivery_tag,
                    multiple: ack.multiple,
                    nack: false,
                };
                channel.confirms.answer(answer, &mailbox, effects);
            }
            Method::BasicNack(nack) => {
                let answer = Answer {
                    tag: nack.delivery_tag,
                    multiple: nack.multiple,
                    nack: true,
                };
                channel.confirms.answer(answer, &mailbox, effects);
            }
            Method::ChannelFlow(flow) => effects.event(Event::Flow {
                channel: mailbox,
                active: flow.active,
            }),
            Method::BasicCancel(cancel) => Self::cancelled_by_broker(channel, cancel, effects),
            reply => return Self::reply(channel, reply, effects),
        }
        Ok(())
    }

    fn cancelled_by_broker(
        channel: &mut Channel<M>,
        cancel: BasicCancel<'_>,
        effects: &mut Effects<M>,
    ) {
        let consumer_tag = cancel.consumer_tag.into_owned();
        // RabbitMQ 4.3 can cancel a consumer twice before it reads our answer. By then, another
        // consumer may have the tag.
        let consumer = channel.consumers.remove_started(&consumer_tag);
        effects.event(Event::ConsumerCancelled {
            channel: channel.mailbox.clone(),
            consumer_tag: consumer_tag.clone(),
            consumer: consumer.clone(),
            no_wait: cancel.no_wait,
        });
        if let Some(consumer) = consumer {
            let by = ClosedBy::Broker;
            let error = Error::new(ErrorKind::ConsumerCancelled { consumer_tag, by });
            let error = Some(error);
            effects.event(Event::ConsumerEnded { consumer, error });
        }
    }

    fn reply(channel: &mut Channel<M>, reply: Method<'_>, effects: &mut Effects<M>) -> Checked<()> {
        let pending = channel.calls.answered_by(&reply).map_err(invalid)?;
        let consumers = &mut channel.consumers;
        let event = match &pending.expected {
            Expected::ConsumeOk(consumer_tag) => {
                let consumer = consumers.start(consumer_tag).cloned();
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
        let last_tag = channel.consumers.last_tag();
        effects.reply(Some(channel.mailbox.clone()), last_tag, pending.call, reply);
        Ok(())
    }

    /// Handles a content frame: the header, or a piece of the body.
    pub(super) fn content(
        &mut self,
        number: u16,
        frame: Frame<'_>,
        effects: &mut Effects<M>,
    ) -> Checked<()> {
        let max_size = self.max_message_size;
        let Some(channel) = self.get(number)? else {
            return Ok(());
        };
        let Phase::Open = channel.phase else {
            return Ok(());
        };
        let outcome = match frame.kind {
            FrameKind::Body => channel.assembly.body(frame.payload),
            _ => {
                let header = ContentHeader::decode(frame.payload)?;
                let take = |size| effects.buffers.take(size);
                channel
                    .assembly
                    .header(&channel.names, header, max_size, take)
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

    /// Whether a body frame of this size can come now.
    pub(super) fn fits_body(&mut self, number: u16, size: usize) -> bool {
        match self.get(number) {
            Ok(Some(channel)) if matches!(channel.phase, Phase::Open) => {
                channel.assembly.expects(size).is_ok()
            }
            // It is dropped.
            Ok(_) => true,
            Err(_) => false,
        }
    }

    /// The message whose body frame is arriving. A channel that is closing drops it.
    pub(super) fn arriving(&mut self, number: u16) -> Option<&mut Assembly<Incoming<M>>> {
        let channel = self.get(number).ok()??;
        matches!(channel.phase, Phase::Open).then_some(&mut channel.assembly)
    }

    /// Handles the end of a body frame that has come in pieces.
    pub(super) fn body_ends(&mut self, number: u16, effects: &mut Effects<M>) {
        let Ok(Some(channel)) = self.get(number) else {
            return;
        };
        if let Phase::Open = channel.phase {
            if let Some((incoming, content)) = channel.assembly.take_whole() {
                Self::message(channel, incoming, content, effects);
            }
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

    /// Reports the message, so that the channel's handles close the channel. The core must not: a
    /// handle may have sent a close already, and a second one would cost the connection.
    fn message_too_large(
        channel: &mut Channel<M>,
        incoming: Incoming<M>,
        size: u64,
        effects: &mut Effects<M>,
    ) {
        if let Incoming::Fetch { pending, .. } = incoming {
            // The call fails when the channel ends.
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
        self.free(number, cause, true, effects);
    }

    fn closed_by_us(
        &mut self,
        number: u16,
        cause: Error,
        ok: ChannelCloseOk,
        effects: &mut Effects<M>,
    ) {
        // This close-ok is the reply to the close. Earlier calls get no reply.
        let closer = match self.slots.get_mut(usize::from(number)) {
            Some(Slot::InUse(channel)) => channel.calls.take_closer(),
            _ => None,
        };
        self.free(number, cause, false, effects);
        if let Some(closer) = closer {
            effects.reply(None, 0, closer.call, Method::ChannelCloseOk(ok));
        }
    }

    fn free(&mut self, number: u16, cause: Error, owes_close_ok: bool, effects: &mut Effects<M>) {
        let Some(slot) = self.slots.get_mut(usize::from(number)) else {
            return;
        };
        let Slot::InUse(channel) = std::mem::replace(slot, Slot::Unused) else {
            return;
        };
        let mailbox = channel.mailbox.clone();
        let consumer_tags = Self::end(*channel, &cause, owes_close_ok, effects);
        *slot = Slot::Closed(Closed {
            cause,
            consumer_tags,
        });
        effects.event(Event::ChannelFreed {
            channel: mailbox,
            number,
        });
    }

    pub(super) fn end_all(&mut self, cause: &Error, effects: &mut Effects<M>) {
        for slot in std::mem::take(&mut self.slots) {
            if let Slot::InUse(channel) = slot {
                Self::end(*channel, cause, false, effects);
            }
        }
    }

    /// The only place where a channel ends: notifies its handle, its consumers and its callers.
    /// Returns the tags of consumers that messages can still arrive for.
    fn end(
        channel: Channel<M>,
        cause: &Error,
        owes_close_ok: bool,
        effects: &mut Effects<M>,
    ) -> Vec<Arc<str>> {
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
            leftover: confirms.leftover(consumers.last_tag()),
            owes_close_ok,
        });
        confirms.end(cause, &mailbox, effects);
        let (consumers, consumer_tags) = consumers.end();
        for consumer in consumers {
            let error = Some(cause.clone());
            effects.event(Event::ConsumerEnded { consumer, error });
        }
        if let Some(Incoming::Fetch { pending, .. }) = assembly.into_kind() {
            effects.fail(pending.call, cause);
        }
        for call in calls.into_all() {
            effects.fail(Some(call), cause);
        }
        consumer_tags
    }

    // ---- commands from the handles ----

    pub(super) fn opening(
        &mut self,
        number: u16,
        mailbox: M::Channel,
        last_tag: u64,
        call: M::Call,
        effects: &mut Effects<M>,
    ) {
        let index = usize::from(number);
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || Slot::Unused);
        }
        if let Some(slot) = self.slots.get_mut(index) {
            let former = match std::mem::replace(slot, Slot::Unused) {
                Slot::Closed(closed) => closed.consumer_tags,
                Slot::Unused | Slot::InUse(_) => Vec::new(),
            };
            *slot = Slot::InUse(Box::new(Channel::opening(mailbox, last_tag, former)));
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
    #[inline]
    pub(super) fn published(&mut self, published: Published<M>, effects: &mut Effects<M>) {
        let cause = match self.slots.get_mut(usize::from(published.channel)) {
            Some(Slot::InUse(channel)) => return channel.confirms.publish(published),
            Some(Slot::Closed(closed)) => closed.cause.clone(),
            Some(Slot::Unused) | None => never_opened(published.channel),
        };
        effects.lose(published, cause, true);
    }

    pub(super) fn consuming(
        &mut self,
        number: u16,
        consumer_tag: Arc<str>,
        consumer: M::Consumer,
        settling: Settling,
        call: Option<M::Call>,
        effects: &mut Effects<M>,
    ) {
        match self.get_sendable(number) {
            Ok(channel) => {
                let tag = Arc::clone(&consumer_tag);
                channel
                    .consumers
                    .insert(tag, consumer, settling, call.is_none());
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
                let was_open = matches!(channel.phase, Phase::Open);
                channel.phase = Phase::Closing { cause, was_open };
            }
            Err(cause) => {
                effects.fail(call, &cause);
                // The broker closed the channel while our close was on its way.
                self.crossed(number);
            }
        }
    }

    /// The channel, unless it has ended since the handle sent the command.
    fn get_sendable(&mut self, number: u16) -> Result<&mut Channel<M>, Error> {
        match self.slots.get_mut(usize::from(number)) {
            Some(Slot::InUse(channel)) => match &channel.phase {
                Phase::Opening | Phase::Open => Ok(channel),
                Phase::Closing { cause, .. } => Err(cause.clone()),
            },
            Some(Slot::Closed(closed)) => Err(closed.cause.clone()),
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
