//! Which published messages the broker has not answered for, and which it has returned.
//!
//! In confirm mode the broker counts the messages of a channel and answers for each number, in any order, and for many
//! at once. A message that it cannot route it returns first, without its number, and then confirms it.

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

/// The messages of one channel, by their tags: the broker counts what it gets on this connection from 1. The sequence
/// numbers go on over several connections, and some of those published again may be missing in between.
pub(super) struct Confirms<M: Mailboxes> {
    /// The tag of the last message.
    published: u64,
    /// Its sequence number.
    last: u64,
    /// In the order of their tags. An answered one leaves a hole, unless it stands at the front.
    waiting: VecDeque<(u64, Option<Unanswered<M>>)>,
    holes: usize,
    returned: ReturnedLike,
    /// The last message of which one came back. The broker works in order, so the next one is likely behind it.
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

    /// Takes in a returned message; gives it back if it is none of these.
    pub(super) fn take_returned(&mut self, returned: Returned) -> Option<Returned> {
        let fingerprint = Fingerprint::of(&returned.content);
        let next = self.most_like(fingerprint, self.place_of(self.last_returned + 1));
        let found = match next {
            Some((_, _, Match::Whole)) => next,
            // If nothing is more like it, then rather one of which none came back.
            _ => match (next, self.most_like(fingerprint, 0)) {
                (Some(next), Some(any)) if next.2 >= any.2 => Some(next),
                (_, any) => any,
            },
        };
        match found {
            // A message comes back once.
            Some((tag, fingerprint, _)) if self.returned.count < self.unanswered() => {
                self.last_returned = tag;
                self.returned.push(fingerprint, returned);
                None
            }
            _ => Some(returned),
        }
    }

    /// The first of those from `place` on that are most like the returned one.
    fn most_like(&self, returned: Fingerprint, place: usize) -> Option<(u64, Fingerprint, Match)> {
        let mut best: Option<(u64, Fingerprint, Match)> = None;
        for (tag, unanswered) in self.waiting.range(place..) {
            let fingerprint = unanswered.as_ref().and_then(|it| it.published.fingerprint);
            let Some((fingerprint, likeness)) =
                fingerprint.and_then(|it| Some((it, it.likeness(returned)?)))
            else {
                continue;
            };
            if best.map_or(true, |(_, _, best)| likeness > best) {
                best = Some((*tag, fingerprint, likeness));
            }
            if likeness == Match::Whole {
                break;
            }
        }
        best
    }

    /// Takes in an answer. Numbers that were never published, or were answered before, are ignored.
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
        // "Zero, multiple" means all that are waiting.
        let tag = match tag {
            0 if multiple => self.published,
            tag => tag,
        };
        if tag > self.published {
            log_line!(
                Warn,
                effects.label,
                "the broker answers for message {tag}, {} were published",
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

    fn unanswered(&self) -> usize {
        self.waiting.len() - self.holes
    }

    /// All sequence numbers up to this are answered.
    fn answered_to(&self) -> u64 {
        let front = self
            .waiting
            .iter()
            .find_map(|(_, waiting)| waiting.as_ref());
        front.map_or(self.last, |it| it.published.sequence_number - 1)
    }

    /// The sequence number of the message with this tag; of an answered one it is only known from those behind it.
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

    /// Finds out which messages have come back, among those that are answered now. The broker returns a message when
    /// it works on it, and then answers for it at once: earlier ones that it has finished meanwhile can be answered in
    /// the same go, later ones cannot.
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

    /// Where this tag stands, or the first one behind it.
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

    /// Answers the message at this place.
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

    /// Drops the holes at the front, and all of them when they are most of what is kept.
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

    pub(super) fn leftover(&self) -> Leftover {
        let waiting = self.waiting.iter().rev().filter_map(|(_, it)| it.as_ref());
        let mut unawaited = waiting.filter(|it| it.published.confirm.is_none());
        Leftover {
            told_to: self.last,
            unanswered: unawaited.next().map(|it| it.published.sequence_number),
        }
    }

    /// No more answers will come.
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

/// Returned messages that look like a waiting one of this identity. Their answer tells which of
/// them it was.
#[derive(Default)]
struct ReturnedLike {
    by_identity: HashMap<Fingerprint, Vec<Returned>>,
    count: usize,
}

impl ReturnedLike {
    fn push(&mut self, fingerprint: Fingerprint, returned: Returned) {
        self.by_identity
            .entry(fingerprint)
            .or_default()
            .push(returned);
        self.count += 1;
    }

    fn pop(&mut self, fingerprint: &Fingerprint) -> Option<Returned> {
        let like_it = self.by_identity.get_mut(fingerprint)?;
        let last = like_it.pop();
        self.count -= usize::from(last.is_some());
        if like_it.is_empty() {
            self.by_identity.remove(fingerprint);
        }
        last
    }
}

/// Gives a message that looks like this one back to it.
fn take_back<M: Mailboxes>(returned: &mut ReturnedLike, unanswered: &mut Option<Unanswered<M>>) {
    let Some(unanswered) = unanswered else { return };
    let Some(fingerprint) = unanswered.published.fingerprint else {
        return;
    };
    unanswered.returned = returned.pop(&fingerprint).map(Box::new);
}

/// Tells what became of a message: to whoever wants to know just that, or to its channel what it has to know.
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
        // It learns the count of the confirmed ones.
        (None, Outcome::Confirmed | Outcome::Lost { .. }) => {}
    }
}
