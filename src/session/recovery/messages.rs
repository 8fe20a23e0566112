//! Publishes unanswered messages again, except for one that costs the connection.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::blame::Id;
use super::replay::Replay;
use crate::error::{Error, ErrorKind, Result};
use crate::io_thread::lost_publishes::LostPublish;
use crate::io_thread::mailbox::{Command, ConfirmMailbox};
use crate::log_line::log_line;
use crate::proto::Outcome;
use crate::session::channel::ChannelState;

/// How long messages are published one at a time. Then the rest is published together. The search
/// continues after the next loss.
const SEARCH: Duration = Duration::from_secs(15);

/// Passes on the outcome of a message, and notifies `publish_suspects` of it.
struct Witness {
    confirm: Arc<dyn ConfirmMailbox>,
    answered: Sender<()>,
}

impl ConfirmMailbox for Witness {
    fn answered(&self, sequence_number: u64, outcome: Outcome) {
        self.confirm.answered(sequence_number, outcome);
        let _ = self.answered.try_send(());
    }

    fn is_published_again(&self) -> bool {
        self.confirm.is_published_again()
    }

    fn is_kept(&self) {
        self.confirm.is_kept();
        let _ = self.answered.try_send(());
    }
}

impl Replay<'_> {
    /// Publishes the unanswered messages of a channel again, before any newer ones. Then the
    /// program can use the channel.
    pub(super) fn publish_again(&mut self, channel: &ChannelState) -> Result<()> {
        let mut lost = self.take_lost_publishes(channel.number);
        let published = self
            .publish_suspects(channel, &mut lost)
            .and_then(|republished| self.publish_all(channel, &mut lost, republished));
        let Err(error) = published else { return Ok(()) };
        let shared = &self.requester.shared;
        if shared.outbox.epoch() != self.requester.epoch || error.is_connection_end() {
            shared.to_replay.lock().lost_publishes.extend(lost);
            if shared.outbox.end_cause().is_some() {
                shared.lose_publishes();
            }
            return Err(error);
        }
        // The channel has ended. If no request of the replay caused that, nothing else ends it
        // here.
        lost.into_iter().for_each(LostPublish::lose);
        channel.set_recovering(false);
        if channel.end_cause().is_none() {
            // Strip `unsent`, which is true of these messages but not of everything that gets this
            // error.
            let error = Error::new(error.kind().clone());
            channel.end(&error);
        }
        Ok(())
    }

    /// Publishes all messages up to the last suspect one at a time, each after the answer for the
    /// previous one. If there are suspects, returns the range of all numbers to publish again.
    fn publish_suspects(
        &mut self,
        channel: &ChannelState,
        lost: &mut VecDeque<LostPublish>,
    ) -> Result<Option<(u64, u64)>> {
        let last = lost.iter().rposition(LostPublish::is_suspect);
        let (Some(last), Some(range)) = (last, range_of(lost)) else {
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
        // Call this before publishing any: later it would undo the answers that arrived meanwhile.
        channel.resume_confirms(Some(range));
        let search_deadline = *self
            .search_deadline
            .get_or_insert_with(|| self.requester.within(SEARCH));
        let factor = 1 << self.blame.failed_searches.min(8);
        for _ in 0..=last {
            if search_deadline.remaining().is_zero() {
                break;
            }
            let Some((id, answered)) = self.publish_alone(channel, lost)? else {
                continue;
            };
            if self.blame.cleared.contains(&id) {
                continue;
            }
            self.blame.alone = Some(id);
            let timeout = self.entity_timeout().saturating_mul(factor);
            let answer = answered.recv_deadline(self.requester.within(timeout).at());
            if self.requester.shared.outbox.epoch() != self.requester.epoch {
                // `Blame::find_poison` judges the message with the cause of the loss.
                return Err(self.requester.cause());
            }
            self.blame.alone = None;
            if answer.is_err() {
                self.blame.cleared.insert(id);
            }
        }
        Ok(Some(range))
    }

    fn publish_alone(
        &self,
        channel: &ChannelState,
        lost: &mut VecDeque<LostPublish>,
    ) -> Result<Option<(Id, Receiver<()>)>> {
        let Some(mut message) = lost.pop_front() else {
            return Ok(None);
        };
        let (answered, receiver) = crossbeam_channel::bounded(1);
        let id = message.id();
        let confirm = message.published.confirm.take();
        let witness = |confirm| Arc::new(Witness { confirm, answered }) as Arc<dyn ConfirmMailbox>;
        message.published.confirm = confirm.map(witness);
        let mut message = Some(message);
        let written = self.requester.write(channel, |frames| {
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
        });
        match (written, message) {
            (Ok(()), _) => Ok(Some((id, receiver))),
            (Err(error), Some(mut message)) if is_unsendable(&error) => {
                message.cause = error;
                message.lose();
                Ok(None)
            }
            (Err(error), message) => {
                if let Some(message) = message {
                    lost.push_front(message);
                }
                Err(error)
            }
        }
    }

    /// Publishes all of these messages together. `republished` is the range that `publish_suspects`
    /// has announced.
    fn publish_all(
        &self,
        channel: &ChannelState,
        lost: &mut VecDeque<LostPublish>,
        republished: Option<(u64, u64)>,
    ) -> Result<()> {
        let mut unsendable = Vec::new();
        let written = self.requester.write(channel, |frames| {
            frames.channel().set_recovering(false);
            let mut range = republished;
            for mut message in lost.drain(..) {
                let kept = message.published.kept.as_deref().unwrap_or_default();
                if let Err(error) = frames.again(kept) {
                    message.cause = error;
                    unsendable.push(message);
                    continue;
                }
                let last = message.published.sequence_number;
                range = Some((range.map_or(last, |(first, _)| first), last));
                frames.command(Command::Publish(message.published));
            }
            match (republished, range) {
                (None, Some(range)) => {
                    let published = frames.channel().sequence_numbers.last();
                    channel.confirms.resume(published, Some(range));
                }
                (Some(_), Some((_, last))) => channel.confirms.resume_up_to(last),
                (_, None) => {}
            }
            Ok(range.is_some())
        });
        unsendable.into_iter().for_each(LostPublish::lose);
        if !written? {
            // Only after the losses are reported, so that a caller of `wait_for_confirms` sees
            // them.
            channel.resume_confirms(None);
        }
        Ok(())
    }

    /// Fails the unanswered messages of channels that no longer exist. If the connection is lost
    /// again meanwhile, the list also holds messages of existing channels: those stay.
    pub(super) fn lose_orphaned_publishes(&self) {
        let mut to_replay = self.requester.shared.to_replay.lock();
        let all = std::mem::take(&mut to_replay.lost_publishes);
        let has_channel = |it: &LostPublish| {
            self.channels
                .iter()
                .any(|channel| channel.number == it.published.channel)
        };
        let (kept, orphaned): (Vec<_>, Vec<_>) = all.into_iter().partition(has_channel);
        to_replay.lost_publishes = kept;
        drop(to_replay);
        orphaned.into_iter().for_each(LostPublish::lose);
    }

    fn take_lost_publishes(&self, channel: u16) -> VecDeque<LostPublish> {
        let lost = &mut self.requester.shared.to_replay.lock().lost_publishes;
        let all = std::mem::take(lost);
        let (taken, others) = all
            .into_iter()
            .partition::<Vec<_>, _>(|it| it.published.channel == channel);
        *lost = others;
        taken.into()
    }
}

fn range_of(messages: &VecDeque<LostPublish>) -> Option<(u64, u64)> {
    let number = |it: &LostPublish| it.published.sequence_number;
    Some((messages.front().map(number)?, messages.back().map(number)?))
}

fn is_unsendable(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidArgument(_))
}
