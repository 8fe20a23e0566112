//! What is missing is tried again: first on a connection of its own; what only the program's
//! connection can have, then there.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::blame::Blame;
use super::replay::Replay;
use super::requester::Failure;
use super::state::Recovery;
use super::trial::{Trial, Verdict};
use super::unrecovered::{is_close_by_broker, Key, Trouble, Unrecovered};
use crate::error::Error;
use crate::events::Entity;
use crate::io_thread::deadline::Deadline;
use crate::io_thread::Shared;
use crate::log_line::log_line;
use crate::proto::RecordedEntity;
use crate::session::channel::consumers::RecordedConsumer;
use crate::session::channel::ChannelState;
use crate::wire::method::QueueDeclare;

/// What is to be tried aside, each with what it is for.
pub(super) type Trials = Vec<(Key, Trial)>;

impl Replay<'_> {
    /// Tries everything that is due, or says how it is to be tried on a connection of its own.
    pub(super) fn retry(&mut self) -> Trials {
        let due = self.unrecovered.due();
        let is_due: HashSet<_> = due.iter().collect();
        let all = self.requester.shared.topology.lock().entities();
        // The program may have deleted others meanwhile.
        let declared: HashSet<_> = all.iter().map(Key::of).collect();
        let (mut trials, mut own) = (Vec::new(), Vec::new());
        for redeclare in all {
            let key = Key::of(&redeclare);
            if !is_due.contains(&key) || self.unrecovered.lacks(&key) {
                continue;
            }
            self.unrecovered.begin_trial(&key);
            match self.is_own(&redeclare) {
                // Another connection can learn nothing about it, and it does no harm.
                true if self.unrecovered.trouble(&key) == Some(Trouble::Refused) => {
                    own.push(redeclare)
                }
                true => trials.push((key, Trial::StandIn(redeclare))),
                false => trials.push((key, Trial::Declare(redeclare))),
            }
        }
        self.declare_own(own);
        for key in due {
            match &key.entity {
                Entity::Consumer { .. } => trials.extend(self.retry_consumer(key)),
                _ if !declared.contains(&key) => self.unrecovered.forget(&key),
                _ if self.unrecovered.lacks(&key) => self.unrecovered.postpone(&key),
                _ => {}
            }
        }
        // There may not be time for all of them.
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

    /// Whether no other connection can declare it.
    fn is_own(&self, redeclare: &RecordedEntity) -> bool {
        match redeclare {
            RecordedEntity::Queue { declare, .. } => declare.exclusive,
            RecordedEntity::BindQueue(bind) => self.is_queue(&bind.queue, |it| it.exclusive),
            RecordedEntity::Exchange(_) | RecordedEntity::BindExchange(_) => false,
        }
    }

    /// Whether this queue was declared here in such a way.
    fn is_queue(&self, queue: &str, is_so: impl Fn(&QueueDeclare<'_>) -> bool) -> bool {
        let topology = self.requester.shared.topology.lock();
        topology.declared_queue(queue).is_some_and(is_so)
    }

    /// Declares this on the program's own connection.
    fn declare_own(&mut self, own: Vec<RecordedEntity>) {
        if let Err(error) = self.declare(own) {
            let label = self.requester.shared.label();
            log_line!(Debug, label, "trying again what is missing: {error}");
        }
    }

    fn missed(&self, key: &Key) -> Option<(Arc<ChannelState>, RecordedConsumer)> {
        let Entity::Consumer { consumer_tag, .. } = &key.entity else {
            return None;
        };
        let missed = self.unrecovered.consumer(key)?;
        let channel = missed.channel.upgrade()?;
        if channel.end.cause().is_some() {
            return None;
        }
        let recorded = channel.consumers.lock().get(consumer_tag)?;
        Some((channel, recorded))
    }

    fn retry_consumer(&mut self, key: Key) -> Option<(Key, Trial)> {
        let Some((_, recorded)) = self.missed(&key) else {
            self.unrecovered.forget(&key);
            return None;
        };
        if let Some(answer) = self.unrecovered.take_answer(&key) {
            // The broker has answered at last; a refusal has ended its channel.
            match answer {
                Ok(_) => self.unrecovered.found(&key, &self.requester.shared),
                Err(_) => self.unrecovered.forget(&key),
            }
            return None;
        }
        self.unrecovered.begin_trial(&key);
        let queue = recorded.consume.queue.to_string();
        if self.is_queue(&queue, |it| it.exclusive) {
            // No other connection sees it.
            match self.unrecovered.lacks(&key) {
                true => self.unrecovered.postpone(&key),
                false => self.begin_consumer(&key),
            }
            return None;
        }
        let trial = match self.unrecovered.trouble(&key)? {
            Trouble::Refused | Trouble::Lacking => Trial::Queue(queue),
            // It would go with the consumer that tries it.
            _ if self.is_queue(&queue, |it| it.auto_delete) => Trial::Queue(queue),
            Trouble::Harmful | Trouble::Silent => Trial::Consume(recorded.consume),
        };
        Some((key, trial))
    }

    /// Takes in what came of a trial.
    pub(super) fn tried(&mut self, key: &Key, trial: Trial, verdict: Verdict) {
        match (verdict, trial) {
            (Verdict::Failed(trouble, error), _) => self.still_missing(key, trouble, error),
            (Verdict::OutOfTime, _) => self.unrecovered.begin_trial(key),
            (Verdict::NotTried(error), _) => {
                log_line!(
                    Debug,
                    self.requester.shared.label(),
                    "{} was not tried again: {error}",
                    key.entity
                );
                self.unrecovered.postpone(key);
            }
            (Verdict::Declared(reply), Trial::Declare(redeclare)) => {
                self.declared(&redeclare, &reply);
            }
            (Verdict::Harmless, Trial::StandIn(redeclare)) => self.try_own(key, redeclare),
            (Verdict::Queue(count), _) => self.queue_looked_up(key, count),
            (Verdict::Declared(_) | Verdict::Harmless, _) => {}
        }
    }

    fn try_own(&mut self, key: &Key, redeclare: RecordedEntity) {
        if !self.requester.shared.topology.lock().contains(&redeclare) {
            return self.unrecovered.forget(key);
        }
        if let Err(error) = self.declare(vec![redeclare]) {
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

    fn queue_looked_up(&mut self, key: &Key, count: Option<u32>) {
        let Entity::Consumer { queue, .. } = &key.entity else {
            return;
        };
        let waits_for_other = self
            .unrecovered
            .consumer(key)
            .is_some_and(|it| it.waits_for_other);
        match count {
            None => {
                self.miss_queue(queue);
                self.unrecovered.postpone(key);
            }
            Some(1..) if waits_for_other => self.unrecovered.postpone(key),
            Some(_) => self.begin_consumer(key),
        }
    }

    /// The channel is in use again, and must not be closed by an attempt: so it is only made when
    /// it looks good.
    fn begin_consumer(&mut self, key: &Key) {
        let Some((channel, recorded)) = self.missed(key) else {
            return self.unrecovered.forget(key);
        };
        let Some(asked) = self.consume(&channel, &recorded) else {
            // It was cancelled, or the broker has not answered for it yet.
            return self.unrecovered.postpone(key);
        };
        let deadline = self.requester.within(self.entity_timeout());
        match self.requester.answer(&channel, &asked, deadline) {
            Ok(_) => self.unrecovered.found(key, &self.requester.shared),
            Err(Failure::NoAnswer(error)) => {
                self.miss(&channel, &recorded, Trouble::Silent, error, asked.ok());
            }
            // Its channel has ended, and with it the consumer; or the connection is lost, and a
            // consumer that costs it must not be asked for at once.
            Err(_) if self.unrecovered.is_left_out(key) => self.unrecovered.postpone(key),
            Err(_) => self.unrecovered.forget(key),
        }
    }

    /// It went, with its bindings, after it was declared again: as an auto-delete queue does when the
    /// broker notices late that the consumers of the lost connection are gone.
    fn miss_queue(&mut self, name: &str) {
        let declared = self.requester.shared.topology.lock().entities();
        let concerns_it = |it: &RecordedEntity| match Key::of(it).entity {
            Entity::Queue { name: queue } => queue == name,
            Entity::Binding { destination, .. } => {
                matches!(it, RecordedEntity::BindQueue(_)) && destination == name
            }
            _ => false,
        };
        let options = &self.recovery.options.recovery;
        for key in declared.iter().filter(|it| concerns_it(it)).map(Key::of) {
            if options.wants(&key.entity) {
                self.unrecovered.insert_gone(key);
            }
        }
    }
}

impl Unrecovered {
    /// Brings back what is missing, between recoveries.
    pub(super) fn replay<'a>(
        &'a mut self,
        recovery: &'a Recovery,
        shared: &Arc<Shared>,
        blame: &'a mut Blame,
    ) -> Replay<'a> {
        let until = Deadline::after(Duration::MAX);
        let epoch = self.epoch;
        let mut replay = Replay::new(recovery, shared, epoch, until, self, blame);
        replay.consumes = true;
        replay
    }
}
