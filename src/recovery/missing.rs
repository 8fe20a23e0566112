//! What could not be declared again. It is looked for until it is there.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::declaring::entity;
use super::replay::Replay;
use super::Recovery;
use crate::channel::{ChannelState, Wanted};
use crate::deadline::Deadline;
use crate::error::{Error, ReplyCode, Result};
use crate::events::{ConnectionEvent, Entity};
use crate::io_thread::Link;
use crate::options::RecoveryOptions;
use crate::proto::Redeclare;

#[derive(Default)]
pub(super) struct Missing {
    entities: HashSet<Entity>,
    consumers: Vec<MissingConsumer>,
    /// The broker closes the connection for these: they are left alone.
    fatal: HashSet<Entity>,
    /// How often they were looked for since the connection came back.
    retries: u32,
    /// How often the connection had been lost when they were missed. It may be lost again before anyone is told: then there
    /// is nothing to look at, and nobody but the one who looks to bring it back.
    epoch: u64,
}

#[derive(Clone)]
struct MissingConsumer {
    channel: Weak<ChannelState>,
    number: u16,
    consumer_tag: String,
    /// The queue is another consumer's alone: that has to go first.
    waits_for_other: bool,
}

impl Missing {
    /// Another connection: perhaps nothing is missing there.
    pub(super) fn begin(&mut self, epoch: u64) {
        self.entities.clear();
        self.consumers.clear();
        self.retries = 0;
        self.epoch = epoch;
    }

    pub(super) fn queue_renamed(&mut self, old: &str, new: &str) {
        let entities = std::mem::take(&mut self.entities);
        let renamed = entities.into_iter().map(|it| it.queue_renamed(old, new));
        self.entities = renamed.collect();
    }

    pub(super) fn insert(&mut self, entity: Entity, error: Error, link: &Link) {
        tell_not_recovered(&entity, error, link);
        self.entities.insert(entity);
    }

    pub(super) fn insert_fatal(&mut self, entity: Entity, error: Error, link: &Link) {
        tell_not_recovered(&entity, error, link);
        self.fatal.insert(entity);
    }

    pub(super) fn is_fatal(&self, entity: &Entity) -> bool {
        self.fatal.contains(entity)
    }

    /// It is there; who was told of its lack is told so.
    pub(super) fn found(&mut self, entity: &Entity, link: &Link) {
        if self.entities.remove(entity) {
            tell_recovered(entity.clone(), link);
        }
    }

    /// The broker does not let it consume. It goes on waiting if that can change by itself, else it ends.
    pub(super) fn insert_consumer(
        &mut self,
        channel: &Arc<ChannelState>,
        wanted: Wanted,
        error: Error,
        link: &Link,
    ) {
        let waits_for_other = error
            .close_reason()
            .is_some_and(|reason| reason.text.contains("exclusive use"));
        let may_change = match error.reply_code() {
            Some(ReplyCode::NOT_FOUND | ReplyCode::RESOURCE_LOCKED) => true,
            Some(ReplyCode::ACCESS_REFUSED) => waits_for_other,
            _ => false,
        };
        tell_not_recovered(&wanted.entity(), error.clone(), link);
        if !may_change {
            return wanted.mailbox.ended(Some(error));
        }
        self.consumers.push(MissingConsumer {
            channel: Arc::downgrade(channel),
            number: channel.number,
            consumer_tag: wanted.consume.consumer_tag.to_string(),
            waits_for_other,
        });
    }

    pub(super) fn has_consumer(&self, channel: &ChannelState, wanted: &Wanted) -> bool {
        self.consumers
            .iter()
            .any(|it| it.number == channel.number && it.consumer_tag == wanted.consume.consumer_tag)
    }

    /// When to look again. None if nothing is missing.
    pub(super) fn next_retry(&self, options: &RecoveryOptions) -> Option<Deadline> {
        let nothing = self.entities.is_empty() && self.consumers.is_empty();
        let delay = options.delay(self.retries.saturating_add(1), super::random());
        (!nothing).then(|| Deadline::after(delay))
    }

    pub(super) fn retry(&mut self, recovery: &Recovery, link: &Arc<Link>) {
        self.retries = self.retries.saturating_add(1);
        let until = Deadline::after(Duration::MAX);
        let mut replay = Replay::new(recovery, link, self.epoch, until, self);
        let retried = replay
            .retry_entities()
            .and_then(|()| replay.retry_consumers());
        if let Err(error) = retried {
            log::debug!("looking for what is missing: {error}");
        }
    }
}

impl Replay<'_> {
    fn retry_entities(&mut self) -> Result<()> {
        let still_missing = |_: &mut Self, entity: Entity, error: Error| {
            log::debug!("{entity} is still not there: {error}");
        };
        let mut missing = self.missing_entities();
        // The program may have deleted others meanwhile.
        self.missing.entities = missing.iter().map(entity).collect();
        missing.retain(|it| !it.is_binding());
        self.declare(missing, still_missing)?;
        // Read only now, with the new names of queues.
        let mut bindings = self.missing_entities();
        bindings.retain(Redeclare::is_binding);
        self.declare(bindings, still_missing)
    }

    fn missing_entities(&self) -> Vec<Redeclare> {
        let mut missing = self.link.topology.lock().redeclare();
        missing.retain(|it| self.missing.entities.contains(&entity(it)));
        missing
    }

    /// It went, with its bindings, after it was declared again: as an auto-delete queue does when the broker notices late
    /// that the consumers of the lost connection are gone.
    fn miss_queue(&mut self, name: &str) {
        let declared = self.link.topology.lock().redeclare();
        let concerns_it = |it: &Redeclare| match entity(it) {
            Entity::Queue { name: queue } => queue == name,
            Entity::Binding { destination, .. } => {
                matches!(it, Redeclare::BindQueue(_)) && destination == name
            }
            _ => false,
        };
        let wanted = declared.iter().filter(|it| concerns_it(it)).map(entity);
        let options = &self.recovery.options.recovery;
        let wanted = wanted.filter(|it| options.wants(it));
        self.missing.entities.extend(wanted);
    }

    fn retry_consumers(&mut self) -> Result<()> {
        for consumer in self.missing.consumers.clone() {
            if self.retry_consumer(&consumer)? {
                self.missing.consumers.retain(|it| !it.is(&consumer));
            }
        }
        Ok(())
    }

    /// Says whether it is done with this one. The channel is in use again, and must not be closed by an attempt: so it is
    /// only made when it looks good.
    fn retry_consumer(&mut self, consumer: &MissingConsumer) -> Result<bool> {
        let channel = consumer.channel.upgrade();
        let Some(channel) = channel.filter(|it| it.end.cause().is_none()) else {
            return Ok(true);
        };
        let wanted = channel.consumers.lock().get(&consumer.consumer_tag);
        let Some(wanted) = wanted else {
            return Ok(true);
        };
        match self.queue_exists(&wanted.consume.queue)? {
            None => {
                self.miss_queue(&wanted.consume.queue);
                return Ok(false);
            }
            Some(1..) if consumer.waits_for_other => return Ok(false),
            Some(_) => {}
        }
        let asked = self.consume(&channel, &wanted);
        if self.consumes(&channel, asked)? {
            tell_recovered(wanted.entity(), self.link);
        }
        Ok(true)
    }
}

impl MissingConsumer {
    fn is(&self, other: &Self) -> bool {
        self.number == other.number && self.consumer_tag == other.consumer_tag
    }
}

fn tell_not_recovered(entity: &Entity, error: Error, link: &Link) {
    log::warn!("{entity} was not recovered: {error}");
    let entity = entity.clone();
    link.tell(ConnectionEvent::NotRecovered { entity, error });
}

fn tell_recovered(entity: Entity, link: &Link) {
    log::info!("{entity} is there again");
    link.tell(ConnectionEvent::RecoveredLater { entity });
}
