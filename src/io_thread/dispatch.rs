//! Hands each event of the core to its mailbox: a delivery to its consumer, a reply to its caller.

use std::sync::Arc;

use super::engine::Engine;
use super::lost_publishes::LostPublish;
use super::mailbox::{Call, ChannelMailbox, ConfirmMailbox, ConsumerMailbox};
use super::mailbox::{Mailboxes, Published, Reply, Unclaimed};
use crate::error::{Error, OneLine};
use crate::events::ConnectionEvent;
use crate::log_line::log_line;
use crate::proto::{Answer, Event, Fetched, Leftover, Outcome, Returned};
use crate::wire::method::Method;

impl Engine<'_> {
    /// Dispatches all events that wait in the core.
    pub(super) fn dispatch(&mut self) {
        while let Some(event) = self.core.next_event() {
            self.answers += usize::from(event.is_answered());
            self.dispatch_one(event);
        }
    }

    #[inline]
    fn dispatch_one(&mut self, event: Event<Mailboxes>) {
        match event {
            Event::Opened => {}
            Event::Reply {
                channel,
                last_tag,
                call,
                reply,
            } => self.reply(channel, last_tag, call, *reply),
            Event::Fetched {
                call,
                channel,
                no_ack,
                message,
            } => self.fetched(call, channel, no_ack, message),
            Event::Failed { call, error } => call.answer(Err(error)),
            Event::Deliveries { consumer, count } => self.deliver(consumer, count),
            Event::ConsumerStarted { consumer } => consumer.started(),
            Event::ConsumerCancelled {
                channel,
                consumer_tag,
                consumer,
                no_wait,
            } => channel.consumer_cancelled(&consumer_tag, consumer.is_some(), no_wait),
            Event::Unwanted {
                channel,
                delivery_tag,
                settling,
            } => channel.unwanted(delivery_tag, settling),
            Event::ConsumerEnded { consumer, error } => self.consumer_ended(&*consumer, error),
            Event::Returned {
                channel,
                sequence_number,
                message,
            } => self.returned(&*channel, sequence_number, message),
            Event::Answered {
                confirm,
                sequence_number,
                outcome,
            } => self.answered(&*confirm, sequence_number, outcome),
            Event::Lost {
                published,
                cause,
                may_have_been_sent,
            } => self.lost(published, cause, may_have_been_sent),
            Event::Nacked {
                channel,
                sequence_number,
            } => channel.nacked(sequence_number),
            Event::Confirm {
                channel,
                answer,
                sequence_number,
                answered,
                answered_to,
            } => self.confirm(&*channel, answer, sequence_number, answered, answered_to),
            Event::MessageTooLarge { channel, size } => channel.message_too_large(size),
            Event::Flow { channel, active } => channel.flow(active),
            Event::ChannelEnded {
                channel,
                error,
                leftover,
                owes_close_ok,
            } => self.channel_ended(&*channel, &error, leftover, owes_close_ok),
            Event::ChannelFreed { channel, number } => self.channel_freed(&*channel, number),
            Event::Blocked { reason } => self.blocked(reason),
            Event::Unblocked => self.unblocked(),
            Event::Ended { error } => self.ended(error),
        }
    }

    fn reply(
        &self,
        channel: Option<Arc<dyn ChannelMailbox>>,
        last_tag: u64,
        mut call: Call,
        reply: Method<'static>,
    ) {
        let asked = call.take_record();
        if let Some(channel) = channel {
            // Record this now: the connection can be lost before the caller takes the reply.
            channel.broker_replied(call.number, last_tag, asked.as_ref());
        }
        if let Some(asked) = asked {
            self.shared
                .to_replay
                .lock()
                .topology
                .done(asked, Some(&reply));
        }
        call.answer(Ok(Reply::Method(reply)));
    }

    fn fetched(
        &self,
        call: Call,
        channel: Arc<dyn ChannelMailbox>,
        no_ack: bool,
        message: Fetched,
    ) {
        let last_tag = message.delivery_tag.saturating_sub(1);
        channel.broker_replied(call.number, last_tag, None);
        let redelivered = usize::from(message.redelivered);
        let message = Unclaimed::new(message, no_ack, channel);
        let counters = &self.shared.counters;
        counters.redelivered(redelivered);
        counters.delivered(1, || call.answer(Ok(Reply::Message(message))));
    }

    #[inline]
    fn deliver(&mut self, consumer: Arc<dyn ConsumerMailbox>, count: usize) {
        let messages = self.core.take_messages(count);
        let redelivered = messages.as_slice().iter().filter(|it| it.redelivered);
        let counters = &self.shared.counters;
        counters.redelivered(redelivered.count());
        let bytes = counters.delivered(count, || consumer.deliver(messages));
        self.read_throttle.delivered(bytes);
        let last = self.asleep.last();
        if !last.is_some_and(|it| Arc::ptr_eq(it, &consumer)) {
            self.asleep.push(consumer);
        }
    }

    fn consumer_ended(&self, consumer: &dyn ConsumerMailbox, error: Option<Error>) {
        match error {
            Some(error) if self.is_lost() || consumer.outlives(&error) => {
                consumer.interrupted(&error);
            }
            error => consumer.ended(error),
        }
    }

    fn returned(
        &self,
        channel: &dyn ChannelMailbox,
        sequence_number: Option<u64>,
        message: Returned,
    ) {
        let give_back = || channel.returned(message, sequence_number);
        self.shared.counters.returned(give_back);
    }

    fn answered(&self, confirm: &dyn ConfirmMailbox, sequence_number: u64, outcome: Outcome) {
        let is_returned = matches!(outcome, Outcome::Returned(_));
        let answer = || confirm.answered(sequence_number, outcome);
        match is_returned {
            true => self.shared.counters.returned(answer),
            false => answer(),
        }
    }

    fn lost(&mut self, published: Published, cause: Error, may_have_been_sent: bool) {
        let lost = LostPublish::new(published, cause, may_have_been_sent);
        match self.is_lost() && lost.can_be_kept() {
            true => self.lost_publishes.push(lost),
            false => lost.lose(),
        }
    }

    fn confirm(
        &self,
        channel: &dyn ChannelMailbox,
        answer: Answer,
        sequence_number: u64,
        answered: u64,
        answered_to: u64,
    ) {
        let confirm = || channel.confirm(answer, sequence_number, answered_to);
        self.shared
            .counters
            .confirmed(answered, answer.nack, confirm);
    }

    fn channel_ended(
        &self,
        channel: &dyn ChannelMailbox,
        error: &Error,
        leftover: Leftover,
        owes_close_ok: bool,
    ) {
        match self.is_lost() {
            true => channel.interrupted(error, leftover),
            false => channel.ended(error, leftover, owes_close_ok),
        }
    }

    fn channel_freed(&mut self, channel: &dyn ChannelMailbox, number: u16) {
        // Answer the channel's waiting commands now: the socket may not take their frames for long.
        for command in self.shared.outbox.take_commands_of(number) {
            self.core.handle(command);
        }
        channel.freed();
    }

    fn blocked(&self, reason: String) {
        self.shared.outbox.set_blocked(Some(reason.clone()));
        let label = self.shared.label();
        let shown = OneLine(reason.clone());
        self.shared.tell(ConnectionEvent::Blocked { reason });
        log_line!(
            Warn,
            label,
            "the broker has blocked the connection: {shown}"
        );
    }

    fn unblocked(&self) {
        self.shared.outbox.set_blocked(None);
        self.shared.tell(ConnectionEvent::Unblocked);
        log_line!(
            Info,
            self.shared.label(),
            "the broker has unblocked the connection"
        );
    }
}
