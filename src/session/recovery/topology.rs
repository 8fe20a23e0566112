//! Declares exchanges, queues and bindings again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::replay::Replay;
use super::requester::{named_by_broker, send_declaration, Failure, PendingReply};
use super::unrecovered::{entity_of, is_named, Key, Trouble};
use crate::error::{Error, ErrorKind, ReplyCode, Result};
use crate::events::{ConnectionEvent, Entity};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::Reply;
use crate::log_line::log_line;
use crate::proto::{is_stream, RecordedEntity};
use crate::session::channel::ChannelState;
use crate::wire::method::Method;

/// If a declaration has no reply for this long, the consumers are begun meanwhile.
const STALL: Duration = Duration::from_millis(300);

/// After one declaration has no reply in time, the others use up to this many channels at once.
/// RabbitMQ 4.3 closes the connection 30 seconds after the first request that it cannot answer.
const LANES: usize = 16;

/// RabbitMQ locks an exclusive queue for the lost connection until it notices the loss.
const LOCKED_FOR: Duration = Duration::from_secs(1);
const LOCKED_RETRY: Duration = Duration::from_millis(20);

/// Declarations that were sent on one channel, without waiting in between.
struct Lane {
    channel: Arc<ChannelState>,
    pending: VecDeque<(RecordedEntity, PendingReply)>,
}

impl Lane {
    fn into_entities(self) -> Vec<RecordedEntity> {
        self.pending.into_iter().map(|(entity, _)| entity).collect()
    }
}

impl Replay<'_> {
    pub(super) fn declare_exchanges_and_queues(&mut self) -> Result<()> {
        let entities = self.to_redeclare(|it| !it.is_binding());
        self.waits_for_locked = true;
        let declared = self
            .declare_all(entities)
            .and_then(|()| self.declare_locked());
        self.waits_for_locked = false;
        declared
    }

    pub(super) fn declare_bindings(&mut self) -> Result<()> {
        // Read the bindings only now: queues may have new names.
        let bindings = self.to_redeclare(RecordedEntity::is_binding);
        let (lacking, bindings): (Vec<_>, Vec<_>) = bindings
            .into_iter()
            .partition(|it| self.unrecovered.needs_silent(&Key::of(it)));
        for binding in lacking {
            let error = Error::invalid("the broker does not answer for its queue or exchange");
            let shared = &self.requester.shared;
            self.unrecovered
                .insert(Key::of(&binding), Trouble::Lacking, error, shared);
        }
        self.declare_all(bindings)
    }

    /// The selected entities that this recovery declares again.
    fn to_redeclare(&self, is_selected: impl Fn(&RecordedEntity) -> bool) -> Vec<RecordedEntity> {
        let mut all = self.requester.shared.to_replay.lock().topology.entities();
        let options = &self.recovery.options.recovery;
        all.retain(|it| {
            let key = Key::of(it);
            is_selected(it) && !self.unrecovered.is_left_out(&key) && options.wants(&key.entity)
        });
        all
    }

    /// Declares all of these. Those that may have cost a connection follow at the end, one at a
    /// time.
    fn declare_all(&mut self, all: Vec<RecordedEntity>) -> Result<()> {
        let (suspects, others): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|it| self.unrecovered.is_suspect(&Key::of(it)));
        let mut shared_deadline = None;
        self.declare_in(others, &mut shared_deadline)?;
        suspects
            .into_iter()
            .try_for_each(|it| self.declare_in(vec![it], &mut shared_deadline))
    }

    /// Declares all of these, without waiting in between. If the broker closes the channel because
    /// of one of them, the rest follows on a new channel. If the broker does not answer for one,
    /// the rest goes to several channels and shares one timeout.
    pub(super) fn declare(&mut self, all: Vec<RecordedEntity>) -> Result<()> {
        self.declare_in(all, &mut None)
    }

    /// Like [`declare`](Self::declare). `shared_deadline` is set after the first one without a
    /// reply.
    fn declare_in(
        &mut self,
        all: Vec<RecordedEntity>,
        shared_deadline: &mut Option<Deadline>,
    ) -> Result<()> {
        let mut left = all;
        while !left.is_empty() {
            if shared_deadline.is_some_and(|it| it.remaining().is_zero()) {
                left.drain(..)
                    .for_each(|it| self.not_answered(Key::of(&it)));
                break;
            }
            let lanes = match self.send_all(&mut left, shared_deadline.map_or(1, |_| LANES)) {
                Err(error) if is_exhausted(&error) => {
                    // The program may hold all channel numbers for channels that have ended. Some
                    // may be free later.
                    left.drain(..)
                        .for_each(|it| self.not_declared(Key::of(&it), error.clone()));
                    break;
                }
                lanes => lanes?,
            };
            for lane in lanes {
                left.extend(self.take_replies(lane, shared_deadline)?);
            }
        }
        Ok(())
    }

    fn send_all(&mut self, all: &mut Vec<RecordedEntity>, lanes: usize) -> Result<Vec<Lane>> {
        let mut sent: Vec<Lane> = Vec::new();
        // Leave half of the free channel numbers to the program.
        let free = usize::from(self.requester.shared.outbox.free_channel_numbers());
        let lanes = lanes.min(all.len()).min((free / 2).max(1));
        while sent.len() < lanes {
            match self.scratch_channel(sent.len()) {
                Ok(channel) => sent.push(Lane {
                    channel,
                    pending: VecDeque::new(),
                }),
                Err(error) if is_exhausted(&error) && !sent.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        let per_lane = all.len().div_ceil(sent.len().max(1));
        for lane in &mut sent {
            for entity in all.drain(..per_lane.min(all.len())) {
                let key = Key::of(&entity);
                let is_gone = self.vanished.contains(&key);
                let reply = send_declaration(&self.requester, &lane.channel, &entity, is_gone);
                self.pending.insert(key);
                lane.pending.push_back((entity, reply));
            }
        }
        Ok(sent)
    }

    /// Takes the replies of one channel. Returns the entities to declare again.
    fn take_replies(
        &mut self,
        mut lane: Lane,
        shared_deadline: &mut Option<Deadline>,
    ) -> Result<Vec<RecordedEntity>> {
        while let Some((entity, pending)) = lane.pending.pop_front() {
            let key = Key::of(&entity);
            let reply = match self.wait_for(&lane, &entity, pending, *shared_deadline) {
                Err(Failure::Connection(error)) => return Err(error),
                Err(Failure::NoAnswer(error)) if self.requester.is_over() => return Err(error),
                reply => reply,
            };
            self.answered(&key);
            self.stalled.clear();
            match reply {
                Ok(reply) => self.declared(&entity, &reply),
                Err(Failure::Refused(error)) => {
                    if asks_first(&entity) && self.vanished.insert(key) {
                        self.stream_missing(&entity, &error);
                        lane.pending.push_front((entity, Err(error)));
                        return Ok(self.take_rest(lane));
                    }
                    if let Some(gone) = self.take_gone(&entity, &error) {
                        lane.pending.push_front((entity, Err(error)));
                        return Ok([vec![gone], self.take_rest(lane)].concat());
                    }
                    let lacking = take_lacking(&mut lane.pending, &entity, &error);
                    self.refused(entity, error.clone());
                    for lacking in lacking {
                        let key = Key::of(&lacking);
                        self.answered(&key);
                        self.not_declared(key, error.clone());
                    }
                    if !self.requester.is_open(&lane.channel) {
                        return Ok(self.take_rest(lane));
                    }
                }
                Err(Failure::NoAnswer(_) | Failure::Connection(_)) => {
                    self.abandon(&lane.channel);
                    self.not_answered(key);
                    shared_deadline.get_or_insert_with(|| Deadline::after(self.entity_timeout()));
                    return Ok(self.take_rest(lane));
                }
                Err(Failure::ChannelGone | Failure::NotAsked) => {
                    lane.pending
                        .push_front((entity, Err(self.requester.cause())));
                    return Ok(self.take_rest(lane));
                }
            }
        }
        Ok(Vec::new())
    }

    /// Takes the entities of a lane that have no result yet, so that they can be sent again.
    fn take_rest(&mut self, lane: Lane) -> Vec<RecordedEntity> {
        let rest = lane.into_entities();
        rest.iter().for_each(|it| self.answered(&Key::of(it)));
        rest
    }

    /// Waits for a reply. If it takes long, begins the consumers meanwhile.
    fn wait_for(
        &mut self,
        lane: &Lane,
        entity: &RecordedEntity,
        pending: PendingReply,
        shared_deadline: Option<Deadline>,
    ) -> Result<Reply, Failure> {
        let deadline =
            shared_deadline.unwrap_or_else(|| self.requester.within(self.entity_timeout()));
        if !self.consumers_begun && !self.requester.has_reply(&pending, STALL) {
            log_line!(
                Warn,
                self.requester.shared.label(),
                "no reply for {} yet; consumers that do not need it begin meanwhile",
                entity_of(entity)
            );
            let key = Key::of(entity);
            self.answered(&key);
            self.stalled.push(key);
            self.hold_back(entity, lane);
            self.consume_early().map_err(Failure::Connection)?;
        }
        self.requester.wait_reply(&lane.channel, &pending, deadline)
    }

    /// Holds back the consumers of queues that may not exist yet: the stuck one, and those of
    /// `lane` that can have gone with the lost connection.
    fn hold_back(&mut self, stuck: &RecordedEntity, lane: &Lane) {
        let others = lane.pending.iter().map(|(entity, _)| entity);
        let is_temporary = |it: &&RecordedEntity| match it {
            RecordedEntity::Queue {
                declare,
                named_by_server,
            } => !declare.durable || declare.exclusive || declare.auto_delete || *named_by_server,
            _ => false,
        };
        let held_back = std::iter::once(stuck).chain(others.filter(is_temporary));
        let names = held_back.filter_map(|it| match it {
            RecordedEntity::Queue { declare, .. } => Some(declare.queue.to_string()),
            _ => None,
        });
        self.undeclared = names.collect();
    }

    /// Tells the consumers of a stream that it was deleted. Once declared again, it counts from 0.
    fn stream_missing(&self, entity: &RecordedEntity, error: &Error) {
        let Some(stream) = stream(entity).filter(|_| error.is_missing()) else {
            return;
        };
        for channel in self.recovery.channels() {
            channel.consumers.lock().queue_missing(stream);
        }
    }

    /// Finds the exchange or queue that a refused binding lacks although it was declared. The
    /// broker notices late that the lost connection is gone. Then it deletes an auto-delete
    /// exchange or queue that the connection was the last to use. Returns each such entity once, to
    /// declare it again.
    fn take_gone(&mut self, refused: &RecordedEntity, error: &Error) -> Option<RecordedEntity> {
        if !refused.is_binding() || error.reply_code() != Some(ReplyCode::NOT_FOUND) {
            return None;
        }
        let is_gone = |it: &RecordedEntity| match it {
            RecordedEntity::Exchange(declare) => is_named(error, &declare.exchange),
            RecordedEntity::Queue {
                declare,
                named_by_server: false,
            } => is_named(error, &declare.queue),
            _ => false,
        };
        let gone = self.to_redeclare(is_gone).into_iter().next()?;
        self.redeclared.insert(entity_of(&gone)).then_some(gone)
    }

    pub(super) fn declared(&mut self, entity: &RecordedEntity, reply: &Reply) {
        // Use the old name, under which the entity was recorded as missing.
        self.unrecovered
            .recovered(&Key::of(entity), &self.requester.shared);
        if let (
            RecordedEntity::Queue {
                declare,
                named_by_server: true,
            },
            Reply::Method(Method::QueueDeclareOk(ok)),
        ) = (entity, reply)
        {
            if ok.queue != declare.queue {
                self.rename_queue(&declare.queue, &ok.queue);
            }
        }
    }

    pub(super) fn rename_queue(&mut self, old: &str, new: &str) {
        log_line!(
            Info,
            self.requester.shared.label(),
            "queue {old:?} was renamed to {new:?}"
        );
        self.unrecovered.queue_renamed(old, new);
        self.requester
            .shared
            .to_replay
            .lock()
            .topology
            .queue_renamed(old, new);
        for channel in self.recovery.channels() {
            channel.consumers.lock().queue_renamed(old, new);
        }
        self.recovery.queue_names.rename(old, new);
        self.requester.shared.tell(ConnectionEvent::QueueRenamed {
            old: old.to_owned(),
            new: new.to_owned(),
        });
    }

    fn refused(&mut self, entity: RecordedEntity, error: Error) {
        match &entity {
            RecordedEntity::Queue { declare, .. }
                if self.waits_for_locked
                    && declare.exclusive
                    && error.reply_code() == Some(ReplyCode::RESOURCE_LOCKED) =>
            {
                self.locked.push((entity, error));
            }
            _ => self.not_declared(Key::of(&entity), error),
        }
    }

    /// Retries exclusive queues that the broker still locks for the lost connection. Callers wait
    /// meanwhile, so no message to these queues is lost.
    fn declare_locked(&mut self) -> Result<()> {
        let until = self.requester.within(LOCKED_FOR);
        while !self.locked.is_empty() {
            let locked = std::mem::take(&mut self.locked);
            if until.remaining().is_zero() {
                for (entity, error) in locked {
                    self.not_declared(Key::of(&entity), error);
                }
                return Ok(());
            }
            let pause = Deadline::after(LOCKED_RETRY);
            if self.requester.shared.outbox.wait_ended(pause) {
                return Err(self.requester.cause());
            }
            self.declare(locked.into_iter().map(|(entity, _)| entity).collect())?;
        }
        Ok(())
    }

    fn not_declared(&mut self, key: Key, error: Error) {
        self.unrecovered
            .insert(key, Trouble::Refused, error, &self.requester.shared);
    }

    fn not_answered(&mut self, key: Key) {
        let error = self.no_answer(&key);
        self.unrecovered
            .insert(key, Trouble::Silent, error, &self.requester.shared);
    }
}

pub(super) fn is_exhausted(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::ChannelsExhausted { .. })
}

/// Whether the replay asks passively whether this queue still exists, before it declares it.
fn asks_first(entity: &RecordedEntity) -> bool {
    named_by_broker(entity).is_some() || stream(entity).is_some()
}

/// The name of the queue, if it is a stream.
fn stream(entity: &RecordedEntity) -> Option<&str> {
    match entity {
        RecordedEntity::Queue { declare, .. } if is_stream(declare) => Some(&declare.queue),
        _ => None,
    }
}

/// Takes the bindings that lack the same exchange or queue as the refused one.
fn take_lacking(
    pending: &mut VecDeque<(RecordedEntity, PendingReply)>,
    refused: &RecordedEntity,
    error: &Error,
) -> Vec<RecordedEntity> {
    let code = error.reply_code();
    let lacks = matches!(
        code,
        Some(ReplyCode::NOT_FOUND | ReplyCode::RESOURCE_LOCKED)
    );
    let (
        true,
        Entity::Binding {
            source,
            destination,
            ..
        },
    ) = (lacks, entity_of(refused))
    else {
        return Vec::new();
    };
    let (no_source, no_destination) = (is_named(error, &source), is_named(error, &destination));
    let needs_it = |(it, _): &(RecordedEntity, PendingReply)| match entity_of(it) {
        Entity::Binding {
            source: from,
            destination: to,
            ..
        } => (no_source && from == source) || (no_destination && to == destination),
        _ => false,
    };
    let all = std::mem::take(pending).into_iter();
    let (lacking, others): (Vec<_>, Vec<_>) = all.partition(needs_it);
    *pending = others.into();
    lacking.into_iter().map(|(entity, _)| entity).collect()
}
