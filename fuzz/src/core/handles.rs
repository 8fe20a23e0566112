//! A model of the handles: they issue commands by the rules of real ones, and check that each
//! mailbox is answered once.

use std::collections::VecDeque;

use crate::error::{CloseReason, Error};
use crate::proto::{
    Command, Delivered, Event, Expected, Fingerprint, Mailboxes, Outcome, Published, SendHistory,
    Settling,
};
use crate::wire::method::{
    BasicQosOk, ConnectionUpdateSecretOk, Encode, QueueDeclareOk, TxCommitOk,
};

pub(super) const TAGS: [&str; 3] = ["a", "b", "c"];
/// Numbers of channels are below this one.
pub(super) const CHANNELS: u16 = 5;

/// Mailboxes that are only numbers.
#[derive(Debug)]
pub(super) struct Names;

impl Mailboxes for Names {
    type Call = usize;
    type Channel = usize;
    type Consumer = usize;
    type Confirm = usize;

    fn is_same(consumer: &usize, other: &usize) -> bool {
        consumer == other
    }
}

/// One life of a channel number.
struct Channel {
    number: u16,
    open_call: usize,
    is_open: bool,
    is_closing: bool,
    has_ended: bool,
    is_freed: bool,
    answered_to: u64,
}

struct Consumer {
    channel: usize,
    tag: &'static str,
    has_started: bool,
    is_cancelled: bool,
    has_ended: bool,
}

#[derive(Default)]
pub(super) struct Handles {
    /// What the core has not taken yet.
    pub(super) commands: VecDeque<Command<Names>>,
    channels: Vec<Channel>,
    consumers: Vec<Consumer>,
    /// For each call and each awaited message: whether it is answered.
    calls: Vec<bool>,
    confirms: Vec<bool>,
    /// For each channel number, the last sequence number. A new channel counts on, so that no two
    /// messages have the same.
    published: [u64; CHANNELS as usize],
    /// Messages whose loss was reported: channel number and sequence number.
    lost: Vec<(u16, u64)>,
    /// Channels with a message that is too large.
    too_large: Vec<usize>,
    is_closing: bool,
    has_ended: bool,
    /// What the program saw, if that is recorded.
    seen: Option<Vec<String>>,
}

impl Handles {
    pub(super) fn new(is_recorded: bool) -> Self {
        Self {
            seen: is_recorded.then(Vec::new),
            ..Self::default()
        }
    }

    // ---- commands ----

    fn next_call(&mut self) -> usize {
        self.calls.push(false);
        self.calls.len() - 1
    }

    /// The last life of a channel number.
    fn life(&self, number: u8) -> Option<usize> {
        let number = u16::from(number) % CHANNELS;
        self.channels.iter().rposition(|it| it.number == number)
    }

    /// The channel, if a handle may send methods on it.
    fn sendable(&self, number: u8) -> Option<usize> {
        let at = self.life(number).filter(|_| !self.is_closing)?;
        let channel = &self.channels[at];
        let is_sendable = channel.is_open && !channel.is_closing && !channel.has_ended;
        is_sendable.then_some(at)
    }

    pub(super) fn open(&mut self, number: u8) {
        let channel = u16::from(number) % CHANNELS;
        let is_used = self
            .life(number)
            .is_some_and(|at| !self.channels[at].is_freed);
        if channel == 0 || is_used || self.is_closing {
            return;
        }
        let call = self.next_call();
        self.channels.push(Channel {
            number: channel,
            open_call: call,
            is_open: false,
            is_closing: false,
            has_ended: false,
            is_freed: false,
            answered_to: 0,
        });
        let mailbox = self.channels.len() - 1;
        self.commands.push_back(Command::OpenChannel {
            channel,
            mailbox,
            last_tag: 0,
            call,
        });
    }

    pub(super) fn call(&mut self, number: u8, expected: u8) {
        let channel = u16::from(number) % CHANNELS;
        let expected = match expected % 4 {
            _ if channel == 0 => Expected::Method(ConnectionUpdateSecretOk::ID),
            0 => Expected::Message { no_ack: false },
            1 => Expected::Method(QueueDeclareOk::ID),
            2 => Expected::Method(TxCommitOk::ID),
            _ => Expected::Method(BasicQosOk::ID),
        };
        if self.is_closing || (channel != 0 && self.sendable(number).is_none()) {
            return;
        }
        let call = self.next_call();
        self.commands.push_back(Command::Call {
            channel,
            expected,
            call,
        });
    }

    pub(super) fn consume(&mut self, number: u8, choice: u8) {
        let Some(channel) = self.sendable(number) else {
            return;
        };
        let tag = TAGS[usize::from(choice) % TAGS.len()];
        let has_tag = |it: &Consumer| it.channel == channel && it.tag == tag && !it.has_ended;
        if self.consumers.iter().any(has_tag) {
            return;
        }
        let is_awaited = choice < 128;
        self.consumers.push(Consumer {
            channel,
            tag,
            has_started: !is_awaited,
            is_cancelled: false,
            has_ended: false,
        });
        let settling = [Settling::Requeue, Settling::NoAck, Settling::Stream];
        let call = is_awaited.then(|| self.next_call());
        self.commands.push_back(Command::Consume {
            channel: self.channels[channel].number,
            consumer_tag: tag.into(),
            consumer: self.consumers.len() - 1,
            settling: settling[usize::from(choice / 4) % 3],
            call,
        });
    }

    /// Cancels a consumer, once, and not before it has started.
    pub(super) fn cancel(&mut self, choice: u8) {
        let Some(consumer) = self.consumers.get_mut(usize::from(choice)) else {
            return;
        };
        let channel = &self.channels[consumer.channel];
        let is_sendable = !channel.is_closing && !channel.has_ended && !self.is_closing;
        if !is_sendable || !consumer.has_started || consumer.is_cancelled {
            return;
        }
        consumer.is_cancelled = true;
        let expected = Expected::CancelOk(consumer.tag.into());
        let channel = channel.number;
        let call = self.next_call();
        self.commands.push_back(Command::Call {
            channel,
            expected,
            call,
        });
    }

    pub(super) fn publish(&mut self, number: u8, kind: u8) {
        let Some(channel) = self.sendable(number) else {
            return;
        };
        let channel = self.channels[channel].number;
        let last = &mut self.published[usize::from(channel)];
        *last += 1;
        let fingerprint = Fingerprint::new("x", "key", b"").with_properties(&[0, 0]);
        let confirm = (kind % 2 == 0).then(|| {
            self.confirms.push(false);
            self.confirms.len() - 1
        });
        self.commands.push_back(Command::Publish(Published {
            channel,
            sequence_number: *last,
            confirm,
            fingerprint: (kind % 4 < 2).then_some(fingerprint),
            send_history: SendHistory::Nothing,
            kept: None,
        }));
    }

    pub(super) fn close_channel(&mut self, number: u8) {
        if let Some(channel) = self.life(number) {
            let call = self.next_call();
            if !self.close_life(channel, Some(call)) {
                self.calls.pop();
            }
        }
    }

    /// A channel is closed once.
    fn close_life(&mut self, at: usize, call: Option<usize>) -> bool {
        let channel = &mut self.channels[at];
        if channel.is_closing || channel.has_ended || self.is_closing {
            return false;
        }
        channel.is_closing = true;
        self.commands.push_back(Command::CloseChannel {
            channel: channel.number,
            reason: CloseReason::program("done"),
            call,
        });
        true
    }

    pub(super) fn close(&mut self) {
        if !self.is_closing {
            self.is_closing = true;
            let reason = CloseReason::program("done");
            self.commands.push_back(Command::CloseConnection { reason });
        }
    }

    /// Does what events ask for.
    pub(super) fn react(&mut self) {
        for channel in std::mem::take(&mut self.too_large) {
            self.close_life(channel, None);
        }
    }

    // ---- events ----

    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    fn see(&mut self, what: impl FnOnce() -> String) {
        if let Some(seen) = &mut self.seen {
            let what = what();
            assert!(!what.contains('\n'), "an error has two lines: {what}");
            seen.push(what);
        }
    }

    fn answer(&mut self, call: usize) {
        let was_answered = std::mem::replace(&mut self.calls[call], true);
        assert!(!was_answered, "call {call} is answered twice");
    }

    fn answer_confirm(&mut self, confirm: usize) {
        let was_answered = std::mem::replace(&mut self.confirms[confirm], true);
        assert!(!was_answered, "message {confirm} is answered twice");
    }

    pub(super) fn delivered(&mut self, consumer: usize, message: &Delivered) {
        assert!(!self.has_ended, "a delivery after the end");
        assert!(
            !self.consumers[consumer].has_ended,
            "a delivery after the consumer's end"
        );
        let content = &message.content;
        let _ = content.properties();
        self.see(|| {
            format!(
                "{consumer} {} {} {} {:?}",
                message.delivery_tag,
                content.exchange(),
                content.routing_key(),
                content.body()
            )
        });
    }

    pub(super) fn event(&mut self, event: Event<Names>) {
        let is_answer = matches!(
            event,
            Event::Failed { .. }
                | Event::ConsumerEnded { .. }
                | Event::Returned { .. }
                | Event::Answered { .. }
                | Event::Lost { .. }
                | Event::ChannelEnded { .. }
        );
        assert!(
            !self.has_ended || is_answer,
            "more than answers after the end"
        );
        match event {
            Event::Reply { call, reply, .. } => self.replied(call, reply.id().name()),
            Event::Fetched { call, message, .. } => {
                let _ = message.content.properties();
                self.replied(call, Some("message"));
            }
            Event::Failed { call, error } => {
                self.see(|| format!("{call} failed: {error}"));
                self.answer(call);
            }
            Event::ChannelEnded { .. } | Event::ChannelFreed { .. } => self.about_channels(event),
            Event::Confirm { .. } => self.about_channels(event),
            Event::ConsumerStarted { .. } | Event::ConsumerEnded { .. } => {
                self.about_consumers(event);
            }
            Event::Answered {
                confirm, outcome, ..
            } => {
                assert!(
                    !matches!(outcome, Outcome::Lost { .. }),
                    "Event::Lost says so"
                );
                self.answer_confirm(confirm);
            }
            Event::Lost {
                published, cause, ..
            } => self.message_lost(&published, &cause),
            Event::MessageTooLarge { channel, size } => {
                self.see(|| format!("{channel}: {size} bytes are too large"));
                self.too_large.push(channel);
            }
            Event::Ended { error } => {
                self.has_ended = true;
                self.is_closing = true;
                self.see(|| format!("ended: {error}"));
            }
            Event::Blocked { .. } | Event::Unblocked | Event::Opened | Event::Flow { .. } => {}
            Event::ConsumerCancelled { .. } | Event::Unwanted { .. } => {}
            Event::Returned { .. } | Event::Nacked { .. } => {}
            Event::Deliveries { .. } => panic!("the driver takes these"),
        }
    }

    fn replied(&mut self, call: usize, reply: Option<&str>) {
        self.see(|| format!("{call} {reply:?}"));
        self.answer(call);
        if let Some(channel) = self.channels.iter_mut().find(|it| it.open_call == call) {
            channel.is_open = true;
        }
    }

    fn about_channels(&mut self, event: Event<Names>) {
        match event {
            Event::ChannelEnded {
                channel,
                error,
                leftover,
                ..
            } => {
                self.see(|| format!("{channel} ended: {error}"));
                let channel = &mut self.channels[channel];
                let was_ended = std::mem::replace(&mut channel.has_ended, true);
                assert!(!was_ended, "channel {} ends twice", channel.number);
                let last = self.published[usize::from(channel.number)];
                assert!(leftover.last_known <= last, "{leftover:?} of {last}");
                assert!(leftover.unanswered.unwrap_or_default() <= leftover.last_known);
            }
            Event::ChannelFreed { channel, number } => {
                let channel = &mut self.channels[channel];
                assert!(channel.has_ended && channel.number == number);
                let was_freed = std::mem::replace(&mut channel.is_freed, true);
                assert!(!was_freed, "channel {number} is freed twice");
            }
            Event::Confirm {
                channel,
                sequence_number,
                answered_to,
                ..
            } => {
                let channel = &mut self.channels[channel];
                assert!(!channel.has_ended, "a confirm after the channel's end");
                let last = self.published[usize::from(channel.number)];
                assert!(sequence_number <= last && answered_to <= last);
                assert!(answered_to >= channel.answered_to, "answers are taken back");
                channel.answered_to = answered_to;
            }
            _ => {}
        }
    }

    fn about_consumers(&mut self, event: Event<Names>) {
        match event {
            Event::ConsumerStarted { consumer } => {
                self.see(|| format!("consumer {consumer} started"));
                let consumer = &mut self.consumers[consumer];
                assert!(!consumer.has_started && !consumer.has_ended);
                consumer.has_started = true;
            }
            Event::ConsumerEnded { consumer, .. } => {
                let was_ended = std::mem::replace(&mut self.consumers[consumer].has_ended, true);
                assert!(!was_ended, "consumer {consumer} ends twice");
            }
            _ => {}
        }
    }

    fn message_lost(&mut self, published: &Published<Names>, cause: &Error) {
        let id = (published.channel, published.sequence_number);
        self.see(|| format!("{id:?} lost: {cause}"));
        assert!(!self.lost.contains(&id), "{id:?} is lost twice");
        self.lost.push(id);
        if let Some(confirm) = published.confirm {
            self.answer_confirm(confirm);
        }
    }

    /// Checks that all are answered, and returns what the program saw.
    pub(super) fn finish(self) -> Option<Vec<String>> {
        assert!(self.has_ended, "the connection has not ended");
        let open = self.calls.iter().position(|&it| !it);
        assert_eq!(open, None, "a call has no answer: {:#?}", self.seen);
        assert!(
            self.confirms.iter().all(|&it| it),
            "a message has no answer"
        );
        assert!(
            self.channels.iter().all(|it| it.has_ended),
            "a channel has not ended"
        );
        assert!(
            self.consumers.iter().all(|it| it.has_ended),
            "a consumer has not ended"
        );
        self.seen
    }
}
