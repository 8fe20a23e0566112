//! Tracks which published messages wait for a confirm, and which the broker has returned.
//!
//! In confirm mode, the broker counts the messages of a channel and answers each number, in any
//! order, often several at once. If it cannot route a mandatory message, it first returns the
//! message, without its number, and then confirms it.

use std::collections::{HashMap, VecDeque};

use super::effects::Effects;
use super::event::{Answer, Event, Leftover, Mailboxes, Outcome, Published, Returned};
use super::fingerprint::{Fingerprint, Match};
use crate::error::Error;
use crate::log_line::log_line;

struct Unanswered<M: Mailboxes> {
    published: Published<M>,
    returned: Option<Box<Returned>>,
}

/// The unconfirmed messages of one channel, by tag. The tag counts the channel's messages on this
/// connection, from 1. Sequence numbers keep increasing across reconnects, and may have gaps among
/// the messages published again.
pub(super) struct Confirms<M: Mailboxes> {
    /// The tag of the last message.
    published: u64,
    /// The sequence number of the last message.
    last: u64,
    /// In the order of the tags. An answered message leaves a hole, unless it is at the front.
    waiting: VecDeque<(u64, Option<Unanswered<M>>)>,
    holes: usize,
    returned: ReturnedLike,
    /// The tag of the last message that matched a returned one. The broker works in order, so the
    /// next returned message is probably a later one.
    last_returned: u64,
}

impl<M: Mailboxes> Confirms<M> {
    pub(super) fn new() -> Self {
        Self {
            published: 0,
            last: 0,
            waiting: VecDeque::new(),
            holes: 0,
            returned: ReturnedLike::default(),
            last_returned: 0,
        }
    }

    pub(super) fn publish(&mut self, published: Published<M>) {
        self.published += 1;
        self.last = published.sequence_number;
        let unanswered = Unanswered {
            published,
            returned: None,
        };
        self.waiting.push_back((self.published, Some(unanswered)));
    }

    /// Stores a returned message until its confirm comes. Gives the message back if it matches none
    /// of the unconfirmed messages.
    pub(super) fn take_returned(&mut self, returned: Returned) -> Option<Returned> {
        let fingerprint = Fingerprint::of(&returned.content);
        let next = self.best_match(fingerprint, self.place_of(self.last_returned + 1));
        let found = match next {
            Some((_, _, Match::Whole)) => next,
            // On a tie, prefer a message after the last returned one.
            _ => match (next, self.best_match(fingerprint, 0)) {
                (Some(next), Some(any)) if next.2 >= any.2 => Some(next),
                (_, any) => any,
            },
        };
        match found {
            // The broker returns each message at most once.
            Some((tag, fingerprint, _)) if self.returned.count < self.unanswered() => {
                self.last_returned = tag;
                self.returned.push(fingerprint, returned);
                None
            }
            _ => Some(returned),
        }
    }

    /// The first of the messages from `place` on that match the returned one best.
    fn best_match(&self, returned: Fingerprint, place: usize) -> Option<(u64, Fingerprint, Match)> {
        let mut best: Option<(u64, Fingerprint, Match)> = None;
        for (tag, unanswered) in self.waiting.range(place..) {
            let fingerprint = unanswered.as_ref().and_then(|it| it.published.fingerprint);
            let Some((fingerprint, matched)) =
                fingerprint.and_then(|it| Some((it, it.compare(returned)?)))
            else {
                continue;
            };
            if best.map_or(true, |(_, _, best)| matched > best) {
                best = Some((*tag, fingerprint, matched));
            }
            if matched == Match::Whole {
                break;
            }
        }
        best
    }

    /// Handles a confirm or nack. Ignores tags that were never published or are already answered.
    pub(super) fn answer(
        &mut self,
        answer: Answer,
        channel: &M::Channel,
        effects: &mut Effects<M>,
    ) {
        let Answer {
            tag,
            multiple,
            nack,
        } = answer;
        // Tag zero with `multiple` means all unconfirmed messages.
        let tag = match tag {
            0 if multiple => self.published,
            tag => tag,
        };
        if tag > self.published {
            log_line!(
                Warn,
                effects.label,
                "the broker answered message {tag}, but only {} were published",
                self.published
            );
            return;
        }
        let sequence_number = self.number_of(tag);
        self.assign_returned(tag, multiple);
        let before = self.unanswered();
        let outcome = || match nack {
            true => Outcome::Nacked,
            false => Outcome::Confirmed,
        };
        if multiple {
            while self.waiting.front().is_some_and(|&(front, _)| front <= tag) {
                self.take_at(0, channel, outcome, effects);
            }
        } else if let Some(place) = self.find(tag) {
            self.take_at(place, channel, outcome, effects);
        }
        let answered = (before - self.unanswered()) as u64;
        self.forget_answered();
        effects.event(Event::Confirm {
            channel: channel.clone(),
            answer,
            sequence_number,
            answered,
            answered_to: self.answered_to(),
        });
    }

    pub(super) fn shrink(&mut self) {
        self.waiting.shrink_to_fit();
    }

    /// How many messages and holes are in memory.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.waiting.len()
    }

    fn unanswered(&self) -> usize {
        self.waiting.len() - self.holes
    }

    /// The last sequence number up to which all messages are answered.
    fn answered_to(&self) -> u64 {
        let front = self
            .waiting
            .iter()
            .find_map(|(_, waiting)| waiting.as_ref());
        front.map_or(self.last, |it| it.published.sequence_number - 1)
    }

    /// The sequence number of the message with this tag. For an answered message, this counts back
    /// from the next unanswered one.
    fn number_of(&self, tag: u64) -> u64 {
        let next = self.waiting.range(self.place_of(tag)..);
        let mut next = next.filter_map(|(tag, waiting)| Some((*tag, waiting.as_ref()?)));
        let (known, number) = next
            .next()
            .map_or((self.published, self.last), |(tag, it)| {
                (tag, it.published.sequence_number)
            });
        number.saturating_sub(known - tag)
    }

    /// Assigns the stored returned messages to the messages that this answer covers. The broker
    /// returns a message while it handles the message, and answers it right after. The same answer
    /// can cover earlier messages, but no later ones, so the search starts with the last one.
    fn assign_returned(&mut self, tag: u64, multiple: bool) {
        if self.returned.count == 0 {
            return;
        }
        let first = if multiple { 0 } else { self.place_of(tag) };
        let end = self.place_of(tag + 1);
        for (_, unanswered) in self.waiting.range_mut(first..end).rev() {
            take_back(&mut self.returned, unanswered);
        }
    }

    /// The index of this tag, or else of the first later one.
    fn place_of(&self, tag: u64) -> usize {
        match self.waiting.front() {
            Some(&(front, _)) if tag <= front => 0,
            _ => self.waiting.partition_point(|&(it, _)| it < tag),
        }
    }

    fn find(&self, tag: u64) -> Option<usize> {
        let place = self.place_of(tag);
        let &(found, _) = self.waiting.get(place)?;
        (found == tag).then_some(place)
    }

    /// Reports the outcome of the message at this index.
    fn take_at(
        &mut self,
        place: usize,
        channel: &M::Channel,
        outcome: impl Fn() -> Outcome,
        effects: &mut Effects<M>,
    ) {
        let Some((_, slot)) = self.waiting.get_mut(place) else {
            return;
        };
        let unanswered = slot.take();
        if place == 0 {
            self.waiting.pop_front();
            self.holes -= usize::from(unanswered.is_none());
        } else {
            self.holes += usize::from(unanswered.is_some());
        }
        if let Some(unanswered) = unanswered {
            tell(unanswered, channel, outcome(), effects);
        }
    }

    /// Drops the holes at the front. Drops all holes once they outnumber the waiting messages.
    fn forget_answered(&mut self) {
        while let Some((_, None)) = self.waiting.front() {
            self.waiting.pop_front();
            self.holes -= 1;
        }
        if self.holes > 32 && self.holes > self.waiting.len() / 2 {
            self.waiting.retain(|(_, unanswered)| unanswered.is_some());
            self.holes = 0;
        }
    }

    /// `last_tag` is the channel's highest delivery tag.
    pub(super) fn leftover(&self, last_tag: u64) -> Leftover {
        let waiting = self.waiting.iter().rev().filter_map(|(_, it)| it.as_ref());
        let mut unawaited = waiting.filter(|it| it.published.confirm.is_none());
        Leftover {
            last_known: self.last,
            unanswered: unawaited.next().map(|it| it.published.sequence_number),
            last_tag,
        }
    }

    /// Reports all unconfirmed messages as returned or lost: no more confirms will come.
    pub(super) fn end(mut self, cause: &Error, channel: &M::Channel, effects: &mut Effects<M>) {
        for (_, unanswered) in &mut self.waiting {
            take_back(&mut self.returned, unanswered);
        }
        for (_, unanswered) in self.waiting {
            match unanswered {
                None => {}
                Some(it) if it.returned.is_some() => tell(it, channel, Outcome::Confirmed, effects),
                Some(it) => effects.lose(it.published, cause.clone(), true),
            }
        }
    }
}

/// Returned messages, by the fingerprint of the unconfirmed message that they match. If several
/// messages have the same fingerprint, the confirm tells which of them was returned.
#[derive(Default)]
struct ReturnedLike {
    by_fingerprint: HashMap<Fingerprint, Vec<Returned>>,
    count: usize,
}

impl ReturnedLike {
    fn push(&mut self, fingerprint: Fingerprint, returned: Returned) {
        self.by_fingerprint
            .entry(fingerprint)
            .or_default()
            .push(returned);
        self.count += 1;
    }

    fn pop(&mut self, fingerprint: &Fingerprint) -> Option<Returned> {
        let matching = self.by_fingerprint.get_mut(fingerprint)?;
        let last = matching.pop();
        self.count -= usize::from(last.is_some());
        if matching.is_empty() {
            self.by_fingerprint.remove(fingerprint);
        }
        last
    }
}

/// Assigns a returned message with the same fingerprint to this message, if one is stored.
fn take_back<M: Mailboxes>(returned: &mut ReturnedLike, unanswered: &mut Option<Unanswered<M>>) {
    let Some(unanswered) = unanswered else { return };
    let Some(fingerprint) = unanswered.published.fingerprint else {
        return;
    };
    unanswered.returned = returned.pop(&fingerprint).map(Box::new);
}

/// Reports the outcome of a message to its `Confirm`, or else to its channel.
fn tell<M: Mailboxes>(
    unanswered: Unanswered<M>,
    channel: &M::Channel,
    outcome: Outcome,
    effects: &mut Effects<M>,
) {
    let Unanswered {
        published,
        returned,
    } = unanswered;
    let Published {
        sequence_number,
        confirm,
        ..
    } = published;
    let outcome = returned.map_or(outcome, Outcome::Returned);
    let channel = channel.clone();
    match (confirm, outcome) {
        (Some(confirm), outcome) => effects.event(Event::Answered {
            confirm,
            sequence_number,
            outcome,
        }),
        (None, Outcome::Returned(message)) => effects.event(Event::Returned {
            channel,
            sequence_number: Some(sequence_number),
            message: *message,
        }),
        (None, Outcome::Nacked) => effects.event(Event::Nacked {
            channel,
            sequence_number,
        }),
        // `Event::Confirm` covers confirmed messages.
        (None, Outcome::Confirmed | Outcome::Lost { .. }) => {}
    }
}
