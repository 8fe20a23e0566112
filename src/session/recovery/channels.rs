//! Reopens channels and begins their consumers again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::replay::Replay;
use super::requester::{Failure, PendingReply};
use super::unrecovered::{is_named, Key, Trouble};
use crate::error::{Error, ErrorKind, Result};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::{Call, Command, Reply};
use crate::io_thread::outbox::channel::Qos;
use crate::io_thread::outbox::Frames;
use crate::session::channel::consumers::RecordedConsumer;
use crate::session::channel::ChannelState;
use crate::wire::method::BasicConsume;

/// After one consumer has no reply in time, the others that were begun at the same time get this
/// much more.
const GRACE: Duration = Duration::from_millis(500);

/// A channel that is being opened, and the consumers that are being begun on it.
struct Opening {
    channel: Arc<ChannelState>,
    opened: Option<PendingReply>,
    consumers: Vec<(RecordedConsumer, PendingReply)>,
}

impl Replay<'_> {
    /// Ends the channels above this broker's `channel_max`, which may be lower than that of the
    /// last one.
    pub(super) fn within_channel_max(
        &self,
        channels: Vec<Arc<ChannelState>>,
    ) -> Vec<Arc<ChannelState>> {
        let channel_max = self.requester.shared.outbox.highest_channel();
        let is_within = |it: &Arc<ChannelState>| it.number <= channel_max;
        let (within, beyond): (Vec<_>, Vec<_>) = channels.into_iter().partition(is_within);
        for channel in beyond {
            channel.set_recovering(false);
            let error = Error::new(ErrorKind::ChannelsExhausted { channel_max });
            channel.end(&error);
        }
        within
    }

    /// Opens the channels and begins the consumers that are not begun yet. All of them are begun at
    /// once, except for those that may have cost a connection: these follow one at a time.
    pub(super) fn consume_all(&mut self) -> Result<()> {
        self.consumers_begun = true;
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

    /// Like [`consume_all`](Self::consume_all), while queues are still being declared.
    pub(super) fn consume_early(&mut self) -> Result<()> {
        self.refused_early = Some(HashSet::new());
        let result = self.consume_all();
        self.refused_early = None;
        result
    }

    /// Opens all channels at once and begins their selected consumers. Reopens a channel that the
    /// broker closes because of one of its consumers.
    fn open_all(&mut self, is_selected: impl Fn(&Self, &Key) -> bool) -> Result<()> {
        let channels = self.channels.clone();
        let mut shared_deadline = None;
        let opening: Vec<_> = channels
            .iter()
            .map(|it| self.begin(it, &is_selected))
            .collect();
        for mut opening in opening {
            while !self.finish(&mut opening, &mut shared_deadline)? {
                opening = self.begin(&opening.channel, &is_selected);
            }
        }
        Ok(())
    }

    fn begin(
        &mut self,
        channel: &Arc<ChannelState>,
        is_selected: impl Fn(&Self, &Key) -> bool,
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
            if self.is_to_begin(channel, &recorded, &key) && is_selected(self, &key) {
                self.begun.insert(key.clone());
                if let Some(pending) = self.consume(channel, &recorded) {
                    self.pending.insert(key);
                    consumers.push((recorded, pending));
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
        // Direct reply-to belongs to an RPC client, so the options for consumers do not apply to
        // it.
        let is_reply_to = recorded.consume.queue == "amq.rabbitmq.reply-to";
        if !is_reply_to && !self.recovery.options.recovery.wants(&key.entity) {
            recorded.mailbox.ended(Some(self.requester.cause()));
            return false;
        }
        let is_refused = self
            .refused_early
            .as_ref()
            .is_some_and(|it| it.contains(key));
        if is_refused || self.begun.contains(key) || self.unrecovered.contains(key) {
            return false;
        }
        if self.unrecovered.needs_silent(key) {
            let error = Error::invalid("the broker does not answer for its queue");
            self.consumer_missing(channel, recorded, Trouble::Lacking, error, None);
            return false;
        }
        !self.undeclared.contains(&*recorded.consume.queue)
    }

    /// Sends `basic.consume` again, with the prefetch that the consumer had. Returns `None` if the
    /// consumer was cancelled or is being begun already.
    pub(super) fn consume(
        &self,
        channel: &ChannelState,
        recorded: &RecordedConsumer,
    ) -> Option<PendingReply> {
        let mut begun = false;
        let limits_channels = self.requester.shared.peer().server.limits_channels();
        let pending = self.requester.send(channel, |frames, call| {
            let mut consume = recorded.consume.clone();
            // Called under the outbox's lock, like a cancel.
            begun = recorded.mailbox.restart(consume.arguments.to_mut());
            match begun {
                true => append_consume(frames, channel, recorded, &consume, limits_channels, call),
                false => Ok(()),
            }
        });
        if let (Err(error), true) = (&pending, begun) {
            // The command never reached the IO thread, which therefore cannot report another loss.
            recorded.mailbox.interrupted(error);
        }
        (begun || pending.is_err()).then_some(pending)
    }

    /// Waits for the replies of one channel. Returns false if the channel must begin again.
    fn finish(
        &mut self,
        opening: &mut Opening,
        shared_deadline: &mut Option<Deadline>,
    ) -> Result<bool> {
        let Opening {
            channel,
            opened,
            consumers,
        } = opening;
        if let Some(is_done) = self.wait_open(channel, opened.take())? {
            return Ok(is_done);
        }
        let (mut refused, mut all_processed, mut is_gone) = (Vec::new(), true, false);
        // Wait for all replies, even after a refusal. A consumer without a reply cannot begin
        // again: its command may still be on its way.
        for (recorded, pending) in consumers.drain(..) {
            let key = Key::of_consumer(channel, &recorded);
            let deadline =
                shared_deadline.unwrap_or_else(|| self.requester.within(self.entity_timeout()));
            let reply = match self.requester.wait_reply(channel, &pending, deadline) {
                Err(Failure::Connection(error)) => return Err(error),
                Err(Failure::NoAnswer(error)) if self.requester.is_over() => return Err(error),
                reply => reply,
            };
            self.answered(&key);
            match reply {
                Ok(_) => {}
                Err(Failure::ChannelGone) => is_gone = true,
                Err(Failure::NotAsked) => all_processed = false,
                Err(Failure::Refused(error)) => refused.push((recorded, error)),
                Err(Failure::NoAnswer(_) | Failure::Connection(_)) => {
                    shared_deadline.get_or_insert_with(|| Deadline::after(GRACE));
                    let error = self.no_answer(&key);
                    self.consumer_missing(channel, &recorded, Trouble::Silent, error, pending.ok());
                }
            }
        }
        if is_gone {
            return Ok(true);
        }
        let Some((recorded, error)) = take_culprit(refused) else {
            return Ok(all_processed);
        };
        if let Some(refused_early) = &mut self.refused_early {
            refused_early.insert(Key::of_consumer(channel, &recorded));
            return Ok(false);
        }
        self.consumer_missing(channel, &recorded, Trouble::Refused, error, None);
        Ok(false)
    }

    /// Waits until the channel is open, and then returns `None`. Otherwise returns whether the
    /// replay is done with the channel; if not, the channel must begin again.
    fn wait_open(
        &mut self,
        channel: &ChannelState,
        pending: Option<PendingReply>,
    ) -> Result<Option<bool>> {
        let Some(pending) = pending else {
            return Ok(None);
        };
        let deadline = self.requester.within(self.recovery.options.request_timeout);
        let is_done = match self.requester.wait_reply(channel, &pending, deadline) {
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
        self.pending.retain(|it| it.channel() != channel.number);
        Ok(Some(is_done))
    }

    /// Notes that a consumer could not be begun.
    pub(super) fn consumer_missing(
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

/// Takes the consumer that the broker refused: the one whose queue the error names, else the first.
fn take_culprit(mut refused: Vec<(RecordedConsumer, Error)>) -> Option<(RecordedConsumer, Error)> {
    let named = refused
        .iter()
        .position(|(recorded, error)| is_named(error, &recorded.consume.queue));
    let index = named.unwrap_or_default();
    (index < refused.len()).then(|| refused.swap_remove(index))
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
    let current = frames.channel().qos().clone();
    let mut qos = recorded.qos.clone();
    if limits_channels {
        // The limit of the channel applies to this consumer, too, no matter when it was set.
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

/// Appends a prefetch that replaces the previous one completely.
fn append_qos(frames: &mut Frames<'_>, _channel: u16, qos: &Qos) -> Result<()> {
    // Zero means no limit, which is the default of a channel.
    let each = qos.each.clone().unwrap_or_default();
    for method in std::iter::once(&each).chain(&qos.global) {
        frames.call(method, Call::unawaited())?;
    }
    Ok(())
}
