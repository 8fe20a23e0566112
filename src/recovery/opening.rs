//! Channels are opened again, with their consumers.

use std::sync::Arc;

use super::replay::{is_named, Asked, Failure, Replay};
use crate::channel::{ChannelState, Wanted};
use crate::error::{Error, ErrorKind, Result};
use crate::mailbox::{Call, ChannelMailbox, Command, Reply};
use crate::outbox::Frames;
use crate::request;
use crate::wire::method::{BasicConsume, BasicConsumeOk, BasicQos};

/// A channel that is being opened.
struct Opening {
    channel: Arc<ChannelState>,
    opened: Option<Asked>,
    consumers: Vec<(Wanted, Asked)>,
}

impl Replay<'_> {
    /// This broker may allow fewer channels: ends the others.
    pub(super) fn within_the_limit(
        &self,
        channels: Vec<Arc<ChannelState>>,
    ) -> Vec<Arc<ChannelState>> {
        let channel_max = self.link.channel_numbers.highest();
        let is_within = |it: &Arc<ChannelState>| it.number <= channel_max;
        let (within, beyond): (Vec<_>, Vec<_>) = channels.into_iter().partition(is_within);
        for channel in beyond {
            channel.set_recovering(false);
            let error = Error::new(ErrorKind::ChannelsExhausted { channel_max });
            channel.ended(&error, false);
        }
        within
    }

    /// Opens the channels, all at once, and those once more that the broker closes for one of their consumers.
    pub(super) fn open_all(&mut self, channels: &[Arc<ChannelState>]) -> Result<()> {
        let opening: Vec<_> = channels.iter().map(|it| self.begin(it)).collect();
        for mut opening in opening {
            while !self.finish(&mut opening)? {
                opening = self.begin(&opening.channel);
            }
        }
        Ok(())
    }

    fn begin(&self, channel: &Arc<ChannelState>) -> Opening {
        let is_open = channel.is_open_in(self.epoch);
        let opened = (!is_open).then(|| self.open(channel));
        let mut consumers = Vec::new();
        let all = channel.consumers.lock().wanted();
        for wanted in all {
            if !self.is_to_consume(&wanted) {
                wanted.mailbox.ended(Some(self.cause()));
            } else if !self.missing.has_consumer(channel, &wanted) {
                let asked = self.consume(channel, &wanted);
                consumers.push((wanted, asked));
            }
        }
        Opening {
            channel: Arc::clone(channel),
            opened,
            consumers,
        }
    }

    fn is_to_consume(&self, wanted: &Wanted) -> bool {
        let entity = wanted.entity();
        // The place for answers is nothing that the program knows of.
        let is_reply_to = wanted.consume.queue == "amq.rabbitmq.reply-to";
        let wants = is_reply_to || self.recovery.options.recovery.wants(&entity);
        wants && !self.missing.is_fatal(&entity)
    }

    /// Begins to consume again, with the prefetch that the consumer had; unless nobody wants it any more.
    pub(super) fn consume(&self, channel: &ChannelState, wanted: &Wanted) -> Asked {
        let mut begun = false;
        let asked = self.ask(channel, |frames, call| {
            let mut consume = wanted.consume.clone();
            // Under the lock, as whoever cancels it.
            begun = wanted.mailbox.restart(consume.arguments.to_mut());
            match begun {
                true => append_consume(frames, channel, wanted, &consume, call),
                false => {
                    let consumer_tag = consume.consumer_tag;
                    call.answer(Ok(Reply::Method(BasicConsumeOk { consumer_tag }.into())));
                    Ok(())
                }
            }
        });
        if let (Err(error), true) = (&asked, begun) {
            // The IO thread has not heard of it, and so will not say that it was lost once more.
            wanted.mailbox.interrupted(error);
        }
        asked
    }

    /// Says whether the broker has agreed.
    pub(super) fn consumes(&self, channel: &ChannelState, asked: Asked) -> Result<bool> {
        match self.answer(channel, asked) {
            Ok(_) => Ok(true),
            Err(Failure::ChannelGone | Failure::NotAsked | Failure::Refused(_)) => Ok(false),
            Err(Failure::Connection(error)) => Err(error),
        }
    }

    /// Says whether it is done, else it has to begin again.
    fn finish(&mut self, opening: &mut Opening) -> Result<bool> {
        let Opening {
            channel,
            opened,
            consumers,
        } = opening;
        match opened.take().map(|opened| self.answer(channel, opened)) {
            None | Some(Ok(_)) => {}
            Some(Err(Failure::ChannelGone)) => return Ok(true),
            Some(Err(Failure::NotAsked)) => return Ok(false),
            Some(Err(Failure::Refused(error) | Failure::Connection(error))) => return Err(error),
        }
        let (mut refused, mut all_asked) = (Vec::new(), true);
        // All of them, also behind one that is refused: who has no answer yet cannot begin again.
        for (wanted, asked) in consumers.drain(..) {
            match self.answer(channel, asked) {
                Ok(_) => {}
                Err(Failure::ChannelGone) => return Ok(true),
                Err(Failure::NotAsked) => all_asked = false,
                Err(Failure::Refused(error)) => refused.push((wanted, error)),
                Err(Failure::Connection(error)) => return Err(self.blame(wanted.entity(), error)),
            }
        }
        let Some((wanted, error)) = take_blamed(refused) else {
            return Ok(all_asked);
        };
        self.missing
            .insert_consumer(channel, wanted, error, self.link);
        Ok(false)
    }
}

fn take_blamed(mut refused: Vec<(Wanted, Error)>) -> Option<(Wanted, Error)> {
    let named = refused
        .iter()
        .position(|(wanted, error)| is_named(error, &wanted.consume.queue));
    let place = named.unwrap_or_default();
    (place < refused.len()).then(|| refused.swap_remove(place))
}

fn append_consume(
    frames: &mut Frames<'_>,
    channel: &ChannelState,
    wanted: &Wanted,
    consume: &BasicConsume<'_>,
    call: Call,
) -> Result<()> {
    let number = channel.number;
    let current = channel.settings.qos().each;
    let set_qos = |frames: &mut Frames<'_>, qos: &Option<BasicQos>| {
        if wanted.qos == current {
            return Ok(());
        }
        // Zero stands for no limit, which is what it begins with.
        let qos = qos.clone().unwrap_or_default();
        request::append(frames, number, &qos, Call::of_nobody())
    };
    set_qos(frames, &wanted.qos)?;
    frames.method(consume)?;
    frames.command(Command::Consume {
        channel: number,
        consumer_tag: consume.consumer_tag.as_ref().into(),
        consumer: Arc::clone(&wanted.mailbox),
        settling: wanted.mailbox.settling(),
        call: Some(call),
    });
    set_qos(frames, &current)
}
