//! Messages that got no answer are published again.

use std::sync::Arc;

use super::replay::{closed, Replay};
use crate::channel::ChannelState;
use crate::error::{Error, Result};
use crate::mailbox::{ChannelMailbox, Command};
use crate::outbox::Gate;
use crate::unanswered::Unanswered;

impl Replay<'_> {
    /// Publishes again what was not answered, before anything newer, and lets go of the channel.
    pub(super) fn publish_again(&self, channel: &ChannelState) -> Result<()> {
        let mut unanswered = self.take_unanswered(channel.number);
        let gate = || match channel.gate()? {
            Gate::Open if !channel.is_open_in(self.epoch) => Err(closed(channel.number)),
            gate => Ok(gate),
        };
        let mut unsendable = Vec::new();
        let written = self.write(channel.number, gate, |frames| {
            channel.set_recovering(false);
            let mut again = None;
            for mut message in unanswered.drain(..) {
                let kept = message.published.kept.as_deref().unwrap_or_default();
                if let Err(error) = frames.again(kept) {
                    message.cause = error;
                    unsendable.push(message);
                    continue;
                }
                let last = message.published.sequence_number;
                again = Some((again.map_or(last, |(first, _)| first), last));
                frames.command(Command::Publish(message.published));
            }
            if again.is_some() {
                channel.confirms.resume(again);
            }
            Ok(again.is_some())
        });
        unsendable.into_iter().for_each(Unanswered::lose);
        let error = match written {
            Ok(true) => return Ok(()),
            Ok(false) => {
                // Behind the news of those that were lost: whoever waits for all asks for them then.
                self.link.outbox.change(|| channel.confirms.resume(None));
                return Ok(());
            }
            Err(error) => error,
        };
        if self.link.outbox.epoch() != self.epoch || error.is_connection_end() {
            self.link.unanswered.lock().append(&mut unanswered);
            if self.link.outbox.end_cause().is_some() {
                self.link.lose_unanswered();
            }
            return Err(error);
        }
        // The channel is gone, and nobody else says so if the broker has closed it for nothing that was asked.
        unanswered.into_iter().for_each(Unanswered::lose);
        channel.set_recovering(false);
        if channel.end.cause().is_none() {
            // Of these messages nothing was sent now, but that is not true of all that is told so.
            let error = Error::new(error.kind().clone());
            channel.ended(&error, false);
        }
        Ok(())
    }

    /// Of channels that are gone. Should the connection be lost again just now, theirs are among them, and stay.
    pub(super) fn lose_those_of_others(&self, channels: &[Arc<ChannelState>]) {
        let mut unanswered = self.link.unanswered.lock();
        let all = std::mem::take(&mut *unanswered);
        let is_theirs =
            |it: &Unanswered| channels.iter().any(|at| at.number == it.published.channel);
        let (theirs, others): (Vec<_>, Vec<_>) = all.into_iter().partition(is_theirs);
        *unanswered = theirs;
        drop(unanswered);
        others.into_iter().for_each(Unanswered::lose);
    }

    fn take_unanswered(&self, channel: u16) -> Vec<Unanswered> {
        let mut unanswered = self.link.unanswered.lock();
        let all = std::mem::take(&mut *unanswered);
        let (theirs, others) = all
            .into_iter()
            .partition(|it| it.published.channel == channel);
        *unanswered = others;
        theirs
    }
}
