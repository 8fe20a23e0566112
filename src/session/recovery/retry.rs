//! Retries what is missing: first on a separate connection, since a retry can do harm. What only
//! the program's connection can have is then retried on that.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::blame::Blame;
use super::replay::Replay;
use super::requester::Failure;
use super::state::Recovery;
use super::trial::{Trial, Verdict};
use super::unrecovered::{is_close_by_broker, Key, Trouble, Unrecovered, WaitsFor};
use crate::error::Error;
use crate::events::Entity;
use crate::io_thread::deadline::Deadline;
use crate::io_thread::Shared;
use crate::log_line::log_line;
use crate::proto::RecordedEntity;
use crate::session::channel::consumers::RecordedConsumer;
use crate::session::channel::ChannelState;
use crate::wire::method::QueueDeclare;

/// Trials for the separate connection, each with the key of its entity.
pub(super) type Trials = Vec<(Key, Trial)>;

impl Replay<'_> {
    /// Retries everything that is due on this connection, or returns a trial for the separate one.
    pub(super) fn retry(&mut self) -> Trials {
        let due = self.unrecovered.due();
        let is_due: HashSet<_> = due.iter().collect();
        let all = self.requester.shared.to_replay.lock().topology.entities();
        // The program may have deleted some of the missing entities meanwhile.
        let declared: HashSet<_> = all.iter().map(Key::of).collect();
        let (mut trials, mut exclusive) = (Vec::new(), Vec::new());
        for entity in all {
            let key = Key::of(&entity);
            if !is_due.contains(&key) || self.unrecovered.lacks_dependency(&key) {
                continue;
            }
            self.unrecovered.begin_trial(&key);
            match self.is_exclusive(&entity) {
                // Another connection can learn nothing about it, and a refusal does no harm.
                true if self.unrecovered.trouble(&key) == Some(Trouble::Refused) => {
                    exclusive.push(entity)
                }
                true => trials.push((key, Trial::StandIn(entity))),
                false => trials.push((key, Trial::Declare(entity))),
            }
        }
        self.declare_exclusive(exclusive);
        for key in due {
            match &key.entity {
                Entity::Consumer { .. } => trials.extend(self.retry_consumer(key)),
                _ if !declared.contains(&key) => self.unrecovered.forget(&key),
                _ if self.unrecovered.lacks_dependency(&key) => self.unrecovered.postpone(&key),
                _ => {}
            }
        }
        // There may not be time for all of them: begin with those that were retried least.
        trials.sort_by_key(|(key, _)| {
            let rank = match key.entity {
                Entity::Exchange { .. } | Entity::Queue { .. } => 0,
                Entity::Consumer { .. } => 1,
                Entity::Binding { .. } => 2,
            };
            (self.unrecovered.tries(key), rank)
        });
        trials
    }

    /// Whether only this connection can declare the entity: an exclusive queue or a binding of one.
    fn is_exclusive(&self, entity: &RecordedEntity) -> bool {
        match entity {
            RecordedEntity::Queue { declare, .. } => declare.exclusive,
            RecordedEntity::BindQueue(bind) => self.is_declared(&bind.queue, |it| it.exclusive),
            RecordedEntity::Exchange(_) | RecordedEntity::BindExchange(_) => false,
        }
    }

    /// Whether this connection declared the queue, and with these properties.
    fn is_declared(&self, queue: &str, has_properties: impl Fn(&QueueDeclare<'_>) -> bool) -> bool {
        let topology = &self.requester.shared.to_replay.lock().topology;
        topology.declared_queue(queue).is_some_and(has_properties)
    }

    fn declare_exclusive(&mut self, exclusive: Vec<RecordedEntity>) {
        if let Err(error) = self.declare(exclusive) {
            let label = self.requester.shared.label();
            log_line!(Debug, label, "retrying what is missing failed: {error}");
        }
    }

    fn missing_consumer(&self, key: &Key) -> Option<(Arc<ChannelState>, RecordedConsumer)> {
        let Entity::Consumer { consumer_tag, .. } = &key.entity else {
            return None;
        };
        let missing = self.unrecovered.consumer(key)?;
        let channel = missing.channel.upgrade()?;
        if channel.end_cause().is_some() {
            return None;
        }
        let recorded = channel.consumers.lock().get(consumer_tag)?;
        Some((channel, recorded))
    }

    fn retry_consumer(&mut self, key: Key) -> Option<(Key, Trial)> {
        let Some((_, recorded)) = self.missing_consumer(&key) else {
            self.unrecovered.forget(&key);
            return None;
        };
        if let Some(reply) = self.unrecovered.take_late_reply(&key) {
            // The broker has replied at last. A refusal has ended the channel of the consumer.
            match reply {
                Ok(_) => self.unrecovered.recovered(&key, &self.requester.shared),
                Err(_) => self.unrecovered.forget(&key),
            }
            return None;
        }
        self.unrecovered.begin_trial(&key);
        let queue = recorded.consume.queue.to_string();
        if self.is_declared(&queue, |it| it.exclusive) {
            // No other connection can use the queue.
            match self.unrecovered.lacks_dependency(&key) {
                true => self.unrecovered.postpone(&key),
                false => self.begin_consumer(&key),
            }
            return None;
        }
        let trial = match self.unrecovered.trouble(&key)? {
            // Only consuming shows whether the replica runs.
            _ if self.waits_for(&key) == Some(WaitsFor::Replica) => {
                Trial::Consume(recorded.consume)
            }
            Trouble::Refused | Trouble::Lacking => Trial::Queue(queue),
            // The broker would delete the queue with the consumer of the trial.
            _ if self.is_declared(&queue, |it| it.auto_delete) => Trial::Queue(queue),
            Trouble::Harmful | Trouble::Silent => Trial::Consume(recorded.consume),
        };
        Some((key, trial))
    }

    /// Applies the result of a trial.
    pub(super) fn trial_done(&mut self, key: &Key, trial: Trial, verdict: Verdict) {
        match (verdict, trial) {
            (Verdict::Failed(trouble, error), _) => self.still_missing(key, trouble, error),
            (Verdict::OutOfTime, _) => self.unrecovered.begin_trial(key),
            (Verdict::NotTried(error), _) => {
                log_line!(
                    Debug,
                    self.requester.shared.label(),
                    "{} was not retried: {error}",
                    key.entity
                );
                self.unrecovered.postpone(key);
            }
            (Verdict::Declared(reply), Trial::Declare(entity)) => {
                self.declared(&entity, &reply);
            }
            (Verdict::Harmless, Trial::StandIn(entity)) => self.declare_after_stand_in(key, entity),
            (Verdict::Queue(count), _) => self.queue_checked(key, count),
            (Verdict::Declared(_) | Verdict::Harmless, _) => {}
        }
    }

    /// Declares an exclusive entity after its stand-in did no harm.
    fn declare_after_stand_in(&mut self, key: &Key, entity: RecordedEntity) {
        if !self
            .requester
            .shared
            .to_replay
            .lock()
            .topology
            .contains(&entity)
        {
            return self.unrecovered.forget(key);
        }
        if let Err(error) = self.declare(vec![entity]) {
            let trouble = match is_close_by_broker(&error) {
                true => Trouble::Harmful,
                false => Trouble::Refused,
            };
            self.still_missing(key, trouble, error);
        }
    }

    fn still_missing(&mut self, key: &Key, trouble: Trouble, error: Error) {
        if self.unrecovered.contains(key) {
            let shared = &self.requester.shared;
            self.unrecovered.insert(key.clone(), trouble, error, shared);
        }
    }

    fn waits_for(&self, key: &Key) -> Option<WaitsFor> {
        self.unrecovered.consumer(key).map(|it| it.waits_for)
    }

    fn queue_checked(&mut self, key: &Key, count: Option<u32>) {
        let Entity::Consumer { queue, .. } = &key.entity else {
            return;
        };
        let waits_for = self.waits_for(key);
        match count {
            None => {
                self.queue_vanished(queue);
                self.unrecovered.postpone(key);
            }
            Some(1..) if waits_for == Some(WaitsFor::OtherConsumer) => {
                self.unrecovered.postpone(key);
            }
            Some(_) => self.begin_consumer(key),
        }
    }

    /// Begins the consumer on its channel. The program uses the channel again, and a refusal would
    /// close it. So call this only when success is likely.
    fn begin_consumer(&mut self, key: &Key) {
        let Some((channel, recorded)) = self.missing_consumer(key) else {
            return self.unrecovered.forget(key);
        };
        let Some(pending) = self.consume(&channel, &recorded) else {
            // The consumer was cancelled, or its last `basic.consume` has no reply yet.
            return self.unrecovered.postpone(key);
        };
        let deadline = self.requester.within(self.entity_timeout());
        match self.requester.wait_reply(&channel, &pending, deadline) {
            Ok(_) => self.unrecovered.recovered(key, &self.requester.shared),
            Err(Failure::NoAnswer(error)) => {
                self.consumer_missing(&channel, &recorded, Trouble::Silent, error, pending.ok());
            }
            // Either the channel has ended, and the consumer with it. Or the connection is lost: a
            // consumer that costs the connection must not be retried at once.
            Err(_) if self.unrecovered.is_left_out(key) => self.unrecovered.postpone(key),
            Err(_) => self.unrecovered.forget(key),
        }
    }

    /// Notes that a queue vanished, with its bindings, after it was declared again. An auto-delete
    /// queue does so when the broker notices late that the consumers of the lost connection are
    /// gone.
    fn queue_vanished(&mut self, name: &str) {
        let declared = self.requester.shared.to_replay.lock().topology.entities();
        let is_affected = |it: &RecordedEntity| match Key::of(it).entity {
            Entity::Queue { name: queue } => queue == name,
            Entity::Binding { destination, .. } => {
                matches!(it, RecordedEntity::BindQueue(_)) && destination == name
            }
            _ => false,
        };
        let options = &self.recovery.options.recovery;
        for key in declared.iter().filter(|it| is_affected(it)).map(Key::of) {
            if options.wants(&key.entity) {
                self.unrecovered.insert_vanished(key);
            }
        }
    }
}

impl Unrecovered {
    /// A replay that retries what is missing, between recoveries.
    pub(super) fn replay<'a>(
        &'a mut self,
        recovery: &'a Recovery,
        shared: &Arc<Shared>,
        blame: &'a mut Blame,
    ) -> Replay<'a> {
        let until = Deadline::after(Duration::MAX);
        let epoch = self.epoch;
        let mut replay = Replay::new(recovery, shared, epoch, until, self, blame);
        replay.consumers_begun = true;
        replay
    }
}
