//! Messages that got no answer are published again, but for the one that costs the connection.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::blame::Id;
use super::replay::Replay;
use crate::error::{Error, ErrorKind, Result};
use crate::io_thread::lost_publishes::LostPublish;
use crate::io_thread::mailbox::{ChannelMailbox, Command, ConfirmMailbox};
use crate::log_line::log_line;
use crate::proto::Outcome;
use crate::session::channel::ChannelState;

/// For how long messages are published one at a time. Then the others are published together, and
/// the next loss goes on with the search.
const SEARCH: Duration = Duration::from_secs(15);

/// Passes on what a message is told, and tells that it was told.
struct Witness {
    confirm: Arc<dyn ConfirmMailbox>,
    told: Sender<()>,
}

impl ConfirmMailbox for Witness {
    fn answered(&self, sequence_number: u64, outcome: Outcome) {
        self.confirm.answered(sequence_number, outcome);
        let _ = self.told.try_send(());
    }

    fn is_published_again(&self) -> bool {
        self.confirm.is_published_again()
    }

    fn is_kept(&self) {
        self.confirm.is_kept();
        let _ = self.told.try_send(());
    }
}

impl Replay<'_> {
    /// Publishes again what was not answered, before anything newer, and lets go of the channel.
    pub(super) fn publish_again(&mut self, channel: &ChannelState) -> Result<()> {
        let mut unanswered = self.take_unanswered(channel.number);
        let published = self
            .publish_suspects(channel, &mut unanswered)
            .and_then(|begun| self.publish_all(channel, &mut unanswered, begun));
        let Err(error) = published else { return Ok(()) };
        let shared = &self.requester.shared;
        if shared.outbox.epoch() != self.requester.epoch || error.is_connection_end() {
            shared.lost_publishes.lock().extend(unanswered);
            if shared.outbox.end_cause().is_some() {
                shared.lose_publishes();
            }
            return Err(error);
        }
        // The channel is gone, and nothing else says so if the broker has closed it for nothing that
        // was asked.
        unanswered.into_iter().for_each(LostPublish::lose);
        channel.set_recovering(false);
        if channel.end.cause().is_none() {
            // Of these messages nothing was sent now, but that is not true of all that is told so.
            let error = Error::new(error.kind().clone());
            channel.ended(&error, false);
        }
        Ok(())
    }

    /// Publishes all messages up to the last suspect one at a time, each after the answer for the
    /// one before. Returns which numbers are published again in all, if it has published any.
    fn publish_suspects(
        &mut self,
        channel: &ChannelState,
        unanswered: &mut VecDeque<LostPublish>,
    ) -> Result<Option<(u64, u64)>> {
        let last = unanswered.iter().rposition(LostPublish::is_suspect);
        let (Some(last), Some(range)) = (last, range_of(unanswered)) else {
            return Ok(None);
        };
        log_line!(
            Warn,
            self.requester.shared.label(),
            "{} messages of channel {} are published one at a time: the broker has closed the \
             connection twice, perhaps because of one of them",
            last + 1,
            channel.number
        );
        // Before any is published: later it would take back what was answered meanwhile.
        let resume = || channel.confirms.resume(Some(range));
        self.requester.shared.outbox.change(resume);
        let search_ends = *self
            .search_ends
            .get_or_insert_with(|| self.requester.within(SEARCH));
        let doubled = 1 << self.blame.doubts.min(8);
        for _ in 0..=last {
            if search_ends.remaining().is_zero() {
                break;
            }
            let Some((id, told)) = self.publish_alone(channel, unanswered)? else {
                continue;
            };
            if self.blame.cleared.contains(&id) {
                continue;
            }
            self.blame.alone = Some(id);
            let patience = self.entity_timeout().saturating_mul(doubled);
            let answered = told.recv_deadline(self.requester.within(patience).at());
            if self.requester.shared.outbox.epoch() != self.requester.epoch {
                // What was published alone is judged with the cause.
                return Err(self.requester.cause());
            }
            self.blame.alone = None;
            if answered.is_err() {
                self.blame.cleared.insert(id);
            }
        }
        Ok(Some(range))
    }

    fn publish_alone(
        &self,
        channel: &ChannelState,
        unanswered: &mut VecDeque<LostPublish>,
    ) -> Result<Option<(Id, Receiver<()>)>> {
        let Some(mut message) = unanswered.pop_front() else {
            return Ok(None);
        };
        let (told, receiver) = crossbeam_channel::bounded(1);
        let id = message.id();
        let confirm = message.published.confirm.take();
        let witness = |confirm| Arc::new(Witness { confirm, told }) as Arc<dyn ConfirmMailbox>;
        message.published.confirm = confirm.map(witness);
        let mut message = Some(message);
        let written = self.requester.write(
            channel.number,
            || self.requester.gate(channel),
            |frames| {
                let Some(it) = message.take() else {
                    return Ok(());
                };
                let kept = it.published.kept.as_deref().unwrap_or_default();
                if let Err(error) = frames.again(kept) {
                    message = Some(it);
                    return Err(error);
                }
                frames.command(Command::Publish(it.published));
                Ok(())
            },
        );
        match (written, message) {
            (Ok(()), _) => Ok(Some((id, receiver))),
            (Err(error), Some(mut message)) if is_unsendable(&error) => {
                message.cause = error;
                message.lose();
                Ok(None)
            }
            (Err(error), message) => {
                if let Some(message) = message {
                    unanswered.push_front(message);
                }
                Err(error)
            }
        }
    }

    /// Publishes all of these together.
    fn publish_all(
        &self,
        channel: &ChannelState,
        unanswered: &mut VecDeque<LostPublish>,
        begun: Option<(u64, u64)>,
    ) -> Result<()> {
        let mut unsendable = Vec::new();
        let written = self.requester.write(
            channel.number,
            || self.requester.gate(channel),
            |frames| {
                channel.set_recovering(false);
                let mut again = begun;
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
                match (begun, again) {
                    (None, Some(again)) => channel.confirms.resume(Some(again)),
                    (Some(_), Some((_, last))) => channel.confirms.resume_up_to(last),
                    (_, None) => {}
                }
                Ok(again.is_some())
            },
        );
        unsendable.into_iter().for_each(LostPublish::lose);
        if !written? {
            // Only after the lost ones are reported: a caller of wait_for_confirms then reads them.
            self.requester
                .shared
                .outbox
                .change(|| channel.confirms.resume(None));
        }
        Ok(())
    }

    /// Of channels that are gone. Should the connection be lost again just now, theirs are among
    /// them, and stay.
    pub(super) fn lose_those_of_others(&self) {
        let mut unanswered = self.requester.shared.lost_publishes.lock();
        let all = std::mem::take(&mut *unanswered);
        let is_theirs = |it: &LostPublish| {
            self.channels
                .iter()
                .any(|at| at.number == it.published.channel)
        };
        let (theirs, others): (Vec<_>, Vec<_>) = all.into_iter().partition(is_theirs);
        *unanswered = theirs;
        drop(unanswered);
        others.into_iter().for_each(LostPublish::lose);
    }

    fn take_unanswered(&self, channel: u16) -> VecDeque<LostPublish> {
        let mut unanswered = self.requester.shared.lost_publishes.lock();
        let all = std::mem::take(&mut *unanswered);
        let (theirs, others) = all
            .into_iter()
            .partition::<Vec<_>, _>(|it| it.published.channel == channel);
        *unanswered = others;
        theirs.into()
    }
}

fn range_of(messages: &VecDeque<LostPublish>) -> Option<(u64, u64)> {
    let number = |it: &LostPublish| it.published.sequence_number;
    Some((messages.front().map(number)?, messages.back().map(number)?))
}

fn is_unsendable(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidArgument(_))
}
