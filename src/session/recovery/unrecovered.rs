//! What could not be brought back, and when to retry it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crossbeam_channel::Receiver;

use crate::error::{ClosedBy, Error, ErrorKind, ReplyCode, Result};
use crate::events::{ConnectionEvent, Entity};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::Reply;
use crate::io_thread::Shared;
use crate::log_line::log_line;
use crate::options::backoff::random;
use crate::options::RecoveryOptions;
use crate::proto::{encoded, RecordedEntity};
use crate::session::channel::consumers::RecordedConsumer;
use crate::session::channel::ChannelState;

/// The shortest delay before a retry of something that the broker refuses.
const MIN_DELAY_OF_REFUSED: Duration = Duration::from_millis(100);
/// The first and the longest delay before a retry of something that costs the connection, or its
/// time. An upgrade or a failure of a node takes minutes.
const FIRST_DELAY_OF_HARMFUL: Duration = Duration::from_secs(1);
const MAX_DELAY_OF_HARMFUL: Duration = Duration::from_secs(300);

/// Identifies an entity or consumer that a recovery brings back.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) entity: Entity,
    /// Distinguishes entities with the same names.
    detail: Detail,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Detail {
    None,
    /// The channel of a consumer, whose tag is unique only there.
    Channel(u16),
    /// The encoded arguments of a binding to a queue.
    OfQueue(Vec<u8>),
    /// The encoded arguments of a binding to an exchange.
    OfExchange(Vec<u8>),
}

impl Key {
    pub(super) fn of(entity: &RecordedEntity) -> Self {
        let detail = match entity {
            RecordedEntity::Exchange(_) | RecordedEntity::Queue { .. } => Detail::None,
            RecordedEntity::BindQueue(bind) => Detail::OfQueue(encoded(&bind.arguments)),
            RecordedEntity::BindExchange(bind) => Detail::OfExchange(encoded(&bind.arguments)),
        };
        Self {
            entity: entity_of(entity),
            detail,
        }
    }

    pub(super) fn of_consumer(channel: &ChannelState, recorded: &RecordedConsumer) -> Self {
        Self {
            entity: recorded.entity(),
            detail: Detail::Channel(channel.number),
        }
    }

    /// The number of a consumer's channel; 0 for everything else.
    pub(super) fn channel(&self) -> u16 {
        match self.detail {
            Detail::Channel(number) => number,
            _ => 0,
        }
    }

    /// Whether this method creates it.
    fn is_created_by(&self, method: &str) -> bool {
        match self.entity {
            Entity::Exchange { .. } => method == "exchange.declare",
            Entity::Queue { .. } => method == "queue.declare",
            Entity::Binding { .. } => matches!(method, "queue.bind" | "exchange.bind"),
            Entity::Consumer { .. } => method == "basic.consume",
        }
    }

    /// Whether this is a binding or a consumer of the other, an exchange or queue.
    fn needs(&self, other: &Self) -> bool {
        let (Entity::Exchange { name } | Entity::Queue { name }) = &other.entity else {
            return false;
        };
        match &self.entity {
            Entity::Exchange { .. } | Entity::Queue { .. } => false,
            Entity::Consumer { queue, .. } => {
                matches!(other.entity, Entity::Queue { .. }) && queue == name
            }
            Entity::Binding {
                source,
                destination,
                ..
            } => {
                let is_of_queue = matches!(self.detail, Detail::OfQueue(_));
                match other.entity {
                    Entity::Queue { .. } => is_of_queue && destination == name,
                    _ => source == name || (!is_of_queue && destination == name),
                }
            }
        }
    }

    fn queue_renamed(self, old: &str, new: &str) -> Self {
        let entity = self.entity.queue_renamed(old, new);
        Self { entity, ..self }
    }
}

/// Why something is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The broker refuses it. Each new connection tries it again.
    Refused,
    /// The broker closes the connection for it. Every recovery leaves out this and the following,
    /// until a trial on another connection has shown that they do no harm any more.
    Harmful,
    /// The broker does not answer for it.
    Silent,
    /// The broker does not answer for its queue or exchange.
    Lacking,
}

struct Missed {
    trouble: Trouble,
    /// Number of retries.
    tries: u32,
    /// When to retry.
    next: Deadline,
    consumer: Option<MissedConsumer>,
}

pub(super) struct MissedConsumer {
    pub(super) channel: Weak<ChannelState>,
    pub(super) waits_for: WaitsFor,
    /// The receiver of the broker's reply, if it did not arrive in time.
    late_reply: Option<Receiver<Result<Reply>>>,
}

/// What has to change before a consumer can come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WaitsFor {
    /// The broker must find the queue, or answer for it.
    Queue,
    /// Another consumer uses the queue exclusively, and must end.
    OtherConsumer,
    /// The stream's replica on the node must start.
    Replica,
}

impl WaitsFor {
    /// Returns `None` if waiting does not help.
    fn of(trouble: Trouble, error: &Error) -> Option<Self> {
        let reason = error.close_reason();
        let says = |text| reason.is_some_and(|it| it.text.contains(text));
        match error.reply_code() {
            Some(ReplyCode::ACCESS_REFUSED) if says("exclusive use") => Some(Self::OtherConsumer),
            // RabbitMQ finds a stream before it has started the replica.
            Some(ReplyCode::PRECONDITION_FAILED) if says("running replica") => Some(Self::Replica),
            Some(ReplyCode::NOT_FOUND | ReplyCode::RESOURCE_LOCKED) => Some(Self::Queue),
            _ => (trouble != Trouble::Refused).then_some(Self::Queue),
        }
    }
}

/// Everything that is missing, and what may be to blame for a loss.
pub(super) struct Unrecovered {
    all: HashMap<Key, Missed>,
    /// The broker closed a connection while these were pending together. The next replay requests
    /// each of them alone.
    suspects: HashSet<Key>,
    /// The epoch of the last recovery, in which retries run. If the connection is lost again before
    /// the recovery thread learns so, a request of this epoch fails. It must not wait for the next
    /// connection, which only this thread can bring back.
    pub(super) epoch: u64,
    options: RecoveryOptions,
}

impl Unrecovered {
    pub(super) fn new(options: &RecoveryOptions) -> Self {
        Self {
            all: HashMap::new(),
            suspects: HashSet::new(),
            epoch: 0,
            options: options.clone(),
        }
    }

    /// Begins the replay on a new connection, which may accept what was refused on the last one.
    pub(super) fn begin(&mut self) {
        self.all.retain(|_, it| it.trouble != Trouble::Refused);
        for missed in self.all.values_mut() {
            if let Some(consumer) = &mut missed.consumer {
                consumer.late_reply = None;
            }
        }
    }

    pub(super) fn queue_renamed(&mut self, old: &str, new: &str) {
        let all = std::mem::take(&mut self.all).into_iter();
        self.all = all
            .map(|(key, it)| (key.queue_renamed(old, new), it))
            .collect();
        let suspects = std::mem::take(&mut self.suspects).into_iter();
        self.suspects = suspects.map(|it| it.queue_renamed(old, new)).collect();
    }

    pub(super) fn contains(&self, key: &Key) -> bool {
        self.all.contains_key(key)
    }

    pub(super) fn consumer(&self, key: &Key) -> Option<&MissedConsumer> {
        self.all.get(key)?.consumer.as_ref()
    }

    /// Takes the reply for a consumer that had none in time, if it has arrived since.
    pub(super) fn take_late_reply(&mut self, key: &Key) -> Option<Result<Reply>> {
        let consumer = self.all.get_mut(key)?.consumer.as_mut()?;
        let reply = consumer.late_reply.as_ref()?.try_recv().ok()?;
        consumer.late_reply = None;
        Some(reply)
    }

    /// Whether recoveries leave it out.
    pub(super) fn is_left_out(&self, key: &Key) -> bool {
        let missed = self.all.get(key);
        missed.is_some_and(|it| it.trouble != Trouble::Refused)
    }

    /// Whether the queue or exchange of this binding or consumer is missing.
    pub(super) fn lacks_dependency(&self, key: &Key) -> bool {
        self.all.keys().any(|it| key.needs(it))
    }

    /// Whether the broker does not answer for the queue or exchange of this binding or consumer.
    pub(super) fn needs_silent(&self, key: &Key) -> bool {
        let mut all = self.all.iter();
        all.any(|(it, missed)| missed.trouble == Trouble::Silent && key.needs(it))
    }

    pub(super) fn trouble(&self, key: &Key) -> Option<Trouble> {
        self.all.get(key).map(|it| it.trouble)
    }

    pub(super) fn is_suspect(&self, key: &Key) -> bool {
        self.suspects.contains(key)
    }

    /// Notes that something could not be brought back. Reports it to the program the first time.
    pub(super) fn insert(&mut self, key: Key, trouble: Trouble, error: Error, shared: &Shared) {
        self.insert_with(key, trouble, error, None, shared);
    }

    /// Notes that a consumer could not be brought back. It waits for retries if the cause can pass;
    /// otherwise the consumer ends.
    pub(super) fn insert_consumer(
        &mut self,
        channel: &Arc<ChannelState>,
        recorded: &RecordedConsumer,
        trouble: Trouble,
        error: Error,
        late_reply: Option<Receiver<Result<Reply>>>,
        shared: &Shared,
    ) {
        let key = Key::of_consumer(channel, recorded);
        if error.is_missing() {
            recorded.mailbox.is_without_queue();
        }
        let Some(waits_for) = WaitsFor::of(trouble, &error) else {
            self.all.remove(&key);
            report_not_recovered(&key.entity, error.clone(), shared);
            return recorded.mailbox.ended(Some(error));
        };
        let consumer = MissedConsumer {
            channel: Arc::downgrade(channel),
            waits_for,
            late_reply,
        };
        self.insert_with(key, trouble, error, Some(consumer), shared);
    }

    fn insert_with(
        &mut self,
        key: Key,
        trouble: Trouble,
        error: Error,
        consumer: Option<MissedConsumer>,
        shared: &Shared,
    ) {
        self.suspects.remove(&key);
        if let Some(missed) = self.all.get_mut(&key) {
            log_line!(
                Debug,
                shared.label(),
                "{} is still missing: {error}",
                key.entity
            );
            missed.tries = match missed.trouble == trouble {
                true => missed.tries.saturating_add(1),
                false => 0,
            };
            missed.trouble = trouble;
            missed.next = delay(trouble, missed.tries, &self.options);
            if consumer.is_some() {
                missed.consumer = consumer;
            }
            return;
        }
        report_not_recovered(&key.entity, error, shared);
        let missed = Missed {
            trouble,
            tries: 0,
            next: delay(trouble, 0, &self.options),
            consumer,
        };
        self.all.insert(key, missed);
    }

    /// Notes that something vanished after it was declared again. It is retried at once.
    pub(super) fn insert_vanished(&mut self, key: Key) {
        self.all.entry(key).or_insert_with(|| Missed {
            trouble: Trouble::Refused,
            tries: 0,
            next: Deadline::after(Duration::ZERO),
            consumer: None,
        });
    }

    /// Notes that something exists. If it was missing, reports it to the program.
    pub(super) fn recovered(&mut self, key: &Key, shared: &Shared) {
        self.suspects.remove(key);
        if self.all.remove(key).is_none() {
            return;
        }
        for (dependent, missed) in &mut self.all {
            if dependent.needs(key) {
                missed.next = Deadline::after(Duration::ZERO);
            }
        }
        report_recovered(key.entity.clone(), shared);
    }

    /// Stops retrying something.
    pub(super) fn forget(&mut self, key: &Key) {
        self.all.remove(key);
    }

    /// Decides which pending request cost the connection, if the broker closed it. A single one is
    /// to blame, and is returned. Several become suspects: the next replay requests each of them
    /// alone.
    pub(super) fn blame(&mut self, mut pending: Vec<Key>, cause: &Error) -> Option<Key> {
        if !is_close_by_broker(cause) {
            return None;
        }
        if let Some(method) = cause.close_reason().and_then(|it| it.method) {
            pending.retain(|it| it.is_created_by(method));
        }
        if let [culprit] = pending.as_slice() {
            return Some(culprit.clone());
        }
        self.suspects.extend(pending);
        None
    }

    /// When to retry next. `None` if nothing is missing.
    pub(super) fn next_retry(&self) -> Option<Deadline> {
        let next = self.all.values().map(|it| it.next);
        next.min_by_key(Deadline::at)
    }

    /// Number of retries of this key.
    pub(super) fn tries(&self, key: &Key) -> u32 {
        self.all.get(key).map_or(0, |it| it.tries)
    }

    /// What is due for a retry. If something that was refused is due, returns all of that kind, so
    /// that they share a connection.
    pub(super) fn due(&self) -> Vec<Key> {
        let is_due = |it: &Missed| it.next.remaining().is_zero();
        let is_mild = |it: &Missed| matches!(it.trouble, Trouble::Refused | Trouble::Lacking);
        let any_mild = self.all.values().any(|it| is_mild(it) && is_due(it));
        let is_included = |it: &Missed| is_due(it) || (any_mild && is_mild(it));
        let due = self.all.iter().filter(|(_, it)| is_included(it));
        due.map(|(key, _)| key.clone()).collect()
    }

    /// Schedules the next retry. Called when a trial begins, in case it brings no result, and when
    /// there was no time for it.
    pub(super) fn begin_trial(&mut self, key: &Key) {
        if let Some(missed) = self.all.get_mut(key) {
            missed.next = delay(missed.trouble, missed.tries, &self.options);
        }
    }

    /// Counts a retry that did not take place, and schedules the next one.
    pub(super) fn postpone(&mut self, key: &Key) {
        if let Some(missed) = self.all.get_mut(key) {
            missed.tries = missed.tries.saturating_add(1);
        }
        self.begin_trial(key);
    }
}

/// Whether the broker closed the connection, perhaps because of a request. Excludes a broker that
/// stops and an operator who closes the connection.
pub(super) fn is_close_by_broker(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::ConnectionClosed(reason) => {
            reason.by == ClosedBy::Broker && reason.code != ReplyCode::CONNECTION_FORCED
        }
        _ => false,
    }
}

fn delay(trouble: Trouble, tries: u32, options: &RecoveryOptions) -> Deadline {
    Deadline::after(match trouble {
        Trouble::Refused | Trouble::Lacking => {
            let delay = options.delay(tries.saturating_add(1), random());
            delay.max(MIN_DELAY_OF_REFUSED)
        }
        Trouble::Harmful | Trouble::Silent => {
            let grown = FIRST_DELAY_OF_HARMFUL.saturating_mul(1 << (2 * tries.min(10)));
            grown.min(MAX_DELAY_OF_HARMFUL)
        }
    })
}

pub(super) fn entity_of(entity: &RecordedEntity) -> Entity {
    match entity {
        RecordedEntity::Exchange(declare) => Entity::Exchange {
            name: declare.exchange.to_string(),
        },
        RecordedEntity::Queue { declare, .. } => Entity::Queue {
            name: declare.queue.to_string(),
        },
        RecordedEntity::BindExchange(bind) => Entity::Binding {
            source: bind.source.to_string(),
            destination: bind.destination.to_string(),
            routing_key: bind.routing_key.to_string(),
        },
        RecordedEntity::BindQueue(bind) => Entity::Binding {
            source: bind.exchange.to_string(),
            destination: bind.queue.to_string(),
            routing_key: bind.routing_key.to_string(),
        },
    }
}

fn report_not_recovered(entity: &Entity, error: Error, shared: &Shared) {
    log_line!(Warn, shared.label(), "{entity} was not recovered: {error}");
    let entity = entity.clone();
    shared.tell(ConnectionEvent::NotRecovered { entity, error });
}

fn report_recovered(entity: Entity, shared: &Shared) {
    log_line!(Info, shared.label(), "{entity} was recovered");
    shared.tell(ConnectionEvent::RecoveredLater { entity });
}

/// Whether the broker's error text names this exchange or queue.
pub(super) fn is_named(error: &Error, name: &str) -> bool {
    let reason = error.close_reason();
    reason.is_some_and(|reason| reason.text.contains(&format!("'{name}'")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::CloseReason;

    fn queue(name: &str) -> Key {
        let name = name.to_owned();
        let entity = Entity::Queue { name };
        let detail = Detail::None;
        Key { entity, detail }
    }

    fn closed(code: u16, class: u16, method: u16) -> Error {
        let reason = CloseReason::broker(code, "", class, method);
        Error::new(ErrorKind::ConnectionClosed(reason))
    }

    #[test]
    fn delays_of_harmful_entities_grow_from_seconds_to_minutes() {
        let options = RecoveryOptions::default();
        let seconds = |tries| {
            let delay = delay(Trouble::Harmful, tries, &options);
            delay.duration().as_secs()
        };
        let expected = [1, 4, 16, 64, 256, 300, 300];
        assert_eq!([0, 1, 2, 3, 4, 5, u32::MAX].map(seconds), expected);
        let at_once = RecoveryOptions::default().first_delay(Duration::ZERO);
        let refused = delay(Trouble::Refused, 0, &at_once);
        assert_eq!(refused.duration(), MIN_DELAY_OF_REFUSED);
    }

    #[test]
    fn a_single_pending_request_is_to_blame_and_several_become_suspects() {
        let (one, other) = (queue("one"), queue("other"));
        let mut unrecovered = Unrecovered::new(&RecoveryOptions::default());
        let both = || vec![one.clone(), other.clone()];
        // An operator closed the connection, or the broker stops.
        assert_eq!(
            unrecovered.blame(vec![one.clone()], &closed(320, 0, 0)),
            None
        );
        // Closed because of another method.
        let publishing = closed(541, 60, 40);
        assert_eq!(unrecovered.blame(vec![one.clone()], &publishing), None);
        assert!(!unrecovered.is_suspect(&one));
        assert_eq!(unrecovered.blame(both(), &closed(541, 0, 0)), None);
        assert!(unrecovered.is_suspect(&one) && unrecovered.is_suspect(&other));
        let culprit = unrecovered.blame(vec![other.clone()], &closed(541, 50, 10));
        assert_eq!(culprit, Some(other));
    }
}
