//! Channels are opened again, with their consumers.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::replay::Replay;
use super::requester::{Failure, PendingReply};
use super::unrecovered::{is_named, Key, Trouble};
use crate::error::{Error, ErrorKind, Result};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::{Call, ChannelMailbox, Command, Reply};
use crate::io_thread::outbox::Frames;
use crate::session::call;
use crate::session::channel::consumers::RecordedConsumer;
use crate::session::channel::settings::Qos;
use crate::session::channel::ChannelState;
use crate::wire::method::BasicConsume;

/// When a consumer has no answer in its time, others that were asked at the same time have this
/// much more.
const GRACE: Duration = Duration::from_millis(500);

/// A channel that is being opened.
struct Opening {
    channel: Arc<ChannelState>,
    opened: Option<PendingReply>,
    consumers: Vec<(RecordedConsumer, PendingReply)>,
}

impl Replay<'_> {
    /// This broker may allow fewer channels: ends the others.
    pub(super) fn within_the_limit(
        &self,
        channels: Vec<Arc<ChannelState>>,
    ) -> Vec<Arc<ChannelState>> {
        let channel_max = self.requester.shared.channel_numbers.highest();
        let is_within = |it: &Arc<ChannelState>| it.number <= channel_max;
        let (within, beyond): (Vec<_>, Vec<_>) = channels.into_iter().partition(is_within);
        for channel in beyond {
            channel.set_recovering(false);
            let error = Error::new(ErrorKind::ChannelsExhausted { channel_max });
            channel.ended(&error, false);
        }
        within
    }

    /// Opens the channels and begins the consumers that are not begun yet: all at once, then, one
    /// by one, those that may have cost a connection.
    pub(super) fn consume_all(&mut self) -> Result<()> {
        self.consumes = true;
        self.open_all(|replay, key| !replay.unrecovered.is_suspect(key))?;
        for channel in self.channels.clone() {
            let all = channel.consumers.lock().recorded();
            for recorded in all {
                let suspect = Key::of_consumer(&channel, &recorded);
                if self.unrecovered.is_suspect(&suspect) {
                    self.open_all(|_, key| *key == suspect)?;
                }
            }
        }
        self.undeclared.clear();
        Ok(())
    }

    /// As [`consume_all`](Self::consume_all), while queues are still being declared.
    pub(super) fn consume_early(&mut self) -> Result<()> {
        self.early = Some(HashSet::new());
        let begun = self.consume_all();
        self.early = None;
        begun
    }

    /// Opens the channels, all at once, and those once more that the broker closes for one of their
    /// consumers.
    fn open_all(&mut self, is_one: impl Fn(&Self, &Key) -> bool) -> Result<()> {
        let channels = self.channels.clone();
        let mut hurry = None;
        let opening: Vec<_> = channels.iter().map(|it| self.begin(it, &is_one)).collect();
        for mut opening in opening {
            while !self.finish(&mut opening, &mut hurry)? {
                opening = self.begin(&opening.channel, &is_one);
            }
        }
        Ok(())
    }

    fn begin(
        &mut self,
        channel: &Arc<ChannelState>,
        is_one: impl Fn(&Self, &Key) -> bool,
    ) -> Opening {
        let is_open = channel.is_open_in(self.requester.epoch);
        let opened = (!is_open).then(|| self.requester.open(channel));
        if !is_open {
            self.begun.retain(|it| it.channel() != channel.number);
        }
        let mut consumers = Vec::new();
        let all = channel.consumers.lock().recorded();
        for recorded in all {
            let key = Key::of_consumer(channel, &recorded);
            if self.is_to_begin(channel, &recorded, &key) && is_one(self, &key) {
                self.begun.insert(key.clone());
                if let Some(asked) = self.consume(channel, &recorded) {
                    self.asked.insert(key);
                    consumers.push((recorded, asked));
                }
            }
        }
        Opening {
            channel: Arc::clone(channel),
            opened,
            consumers,
        }
    }

    fn is_to_begin(
        &mut self,
        channel: &Arc<ChannelState>,
        recorded: &RecordedConsumer,
        key: &Key,
    ) -> bool {
        // The place for answers is nothing that the program knows of.
        let is_reply_to = recorded.consume.queue == "amq.rabbitmq.reply-to";
        if !is_reply_to && !self.recovery.options.recovery.wants(&key.entity) {
            recorded.mailbox.ended(Some(self.requester.cause()));
            return false;
        }
        let is_refused = self.early.as_ref().is_some_and(|it| it.contains(key));
        if is_refused || self.begun.contains(key) || self.unrecovered.contains(key) {
            return false;
        }
        if self.unrecovered.lacks_silent(key) {
            let error = Error::invalid("the broker does not answer for its queue");
            self.miss(channel, recorded, Trouble::Lacking, error, None);
            return false;
        }
        !self.undeclared.contains(&*recorded.consume.queue)
    }

    /// Begins to consume again, with the prefetch that the consumer had. `None` if nobody wants it
    /// any more, or it is being begun already.
    pub(super) fn consume(
        &self,
        channel: &ChannelState,
        recorded: &RecordedConsumer,
    ) -> Option<PendingReply> {
        let mut begun = false;
        let limits_channels = self.requester.shared.peer().server.limits_channels();
        let asked = self.requester.ask(channel, |frames, call| {
            let mut consume = recorded.consume.clone();
            // Under the lock, as whoever cancels it.
            begun = recorded.mailbox.restart(consume.arguments.to_mut());
            match begun {
                true => append_consume(frames, channel, recorded, &consume, limits_channels, call),
                false => Ok(()),
            }
        });
        if let (Err(error), true) = (&asked, begun) {
            // The IO thread has not heard of it, and so will not say that it was lost once more.
            recorded.mailbox.interrupted(error);
        }
        (begun || asked.is_err()).then_some(asked)
    }

    /// Says whether it is done, else it has to begin again.
    fn finish(&mut self, opening: &mut Opening, hurry: &mut Option<Deadline>) -> Result<bool> {
        let Opening {
            channel,
            opened,
            consumers,
        } = opening;
        if let Some(is_done) = self.wait_open(channel, opened.take())? {
            return Ok(is_done);
        }
        let (mut refused, mut all_asked, mut is_gone) = (Vec::new(), true, false);
        // All of them, also after one that is refused: who has no answer yet cannot begin again.
        for (recorded, asked) in consumers.drain(..) {
            let key = Key::of_consumer(channel, &recorded);
            let deadline = hurry.unwrap_or_else(|| self.requester.within(self.entity_timeout()));
            let answer = match self.requester.answer(channel, &asked, deadline) {
                Err(Failure::Connection(error)) => return Err(error),
                Err(Failure::NoAnswer(error)) if self.requester.is_over() => return Err(error),
                answer => answer,
            };
            self.answered(&key);
            match answer {
                Ok(_) => {}
                Err(Failure::ChannelGone) => is_gone = true,
                Err(Failure::NotAsked) => all_asked = false,
                Err(Failure::Refused(error)) => refused.push((recorded, error)),
                Err(Failure::NoAnswer(_) | Failure::Connection(_)) => {
                    hurry.get_or_insert_with(|| Deadline::after(GRACE));
                    let error = self.no_answer(&key);
                    self.miss(channel, &recorded, Trouble::Silent, error, asked.ok());
                }
            }
        }
        if is_gone {
            return Ok(true);
        }
        let Some((recorded, error)) = take_blamed(refused) else {
            return Ok(all_asked);
        };
        if let Some(early) = &mut self.early {
            early.insert(Key::of_consumer(channel, &recorded));
            return Ok(false);
        }
        self.miss(channel, &recorded, Trouble::Refused, error, None);
        Ok(false)
    }

    /// Waits until the channel is open. Else says whether it is done with the channel.
    fn wait_open(
        &mut self,
        channel: &ChannelState,
        asked: Option<PendingReply>,
    ) -> Result<Option<bool>> {
        let Some(asked) = asked else { return Ok(None) };
        let deadline = self.requester.within(self.recovery.options.request_timeout);
        let is_done = match self.requester.answer(channel, &asked, deadline) {
            Ok(_) => {
                channel.warn_of_global_qos();
                return Ok(None);
            }
            Err(Failure::ChannelGone) => true,
            Err(Failure::NotAsked) => false,
            Err(
                Failure::Refused(error) | Failure::NoAnswer(error) | Failure::Connection(error),
            ) => return Err(error),
        };
        self.asked.retain(|it| it.channel() != channel.number);
        Ok(Some(is_done))
    }

    pub(super) fn miss(
        &mut self,
        channel: &Arc<ChannelState>,
        recorded: &RecordedConsumer,
        trouble: Trouble,
        error: Error,
        answer: Option<Receiver<Result<Reply>>>,
    ) {
        let shared = &self.requester.shared;
        self.unrecovered
            .insert_consumer(channel, recorded, trouble, error, answer, shared);
    }
}

fn take_blamed(mut refused: Vec<(RecordedConsumer, Error)>) -> Option<(RecordedConsumer, Error)> {
    let named = refused
        .iter()
        .position(|(recorded, error)| is_named(error, &recorded.consume.queue));
    let place = named.unwrap_or_default();
    (place < refused.len()).then(|| refused.swap_remove(place))
}

fn append_consume(
    frames: &mut Frames<'_>,
    channel: &ChannelState,
    recorded: &RecordedConsumer,
    consume: &BasicConsume<'_>,
    limits_channels: bool,
    call: Call,
) -> Result<()> {
    let number = channel.number;
    let current = channel.settings.qos();
    let mut qos = recorded.qos.clone();
    if limits_channels {
        // The channel's limit holds for this consumer, too, whenever it was set.
        qos.global.clone_from(&current.global);
    }
    let set_qos = |frames: &mut Frames<'_>, to: &Qos| match qos == current {
        true => Ok(()),
        false => append_qos(frames, number, to),
    };
    set_qos(frames, &qos)?;
    frames.method(consume)?;
    frames.command(Command::Consume {
        channel: number,
        consumer_tag: consume.consumer_tag.as_ref().into(),
        consumer: Arc::clone(&recorded.mailbox),
        settling: recorded.mailbox.settling(),
        call: Some(call),
    });
    set_qos(frames, &current)
}

/// Appends a prefetch that leaves nothing of the one before.
fn append_qos(frames: &mut Frames<'_>, channel: u16, qos: &Qos) -> Result<()> {
    // Zero stands for no limit, which is what a channel begins with.
    let each = qos.each.clone().unwrap_or_default();
    for method in std::iter::once(&each).chain(&qos.global) {
        call::append(frames, channel, method, Call::of_nobody())?;
    }
    Ok(())
}
