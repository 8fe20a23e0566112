//! Exchanges, queues and bindings are declared again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::replay::Replay;
use super::requester::{ask, named_by_broker, Failure, PendingReply};
use super::unrecovered::{entity, is_named, Key, Trouble};
use crate::error::{Error, ErrorKind, ReplyCode, Result};
use crate::events::{ConnectionEvent, Entity};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::Reply;
use crate::log_line::log_line;
use crate::proto::{is_stream, RecordedEntity};
use crate::session::channel::ChannelState;
use crate::wire::method::Method;

/// When a declaration has no answer for this long, the consumers are begun meanwhile.
const STALL: Duration = Duration::from_millis(300);

/// When a declaration has no answer in its time, this many channels are used for the others at
/// once. RabbitMQ 4.3 closes the connection 30 seconds after the first one that it cannot answer.
const LANES: usize = 16;

/// RabbitMQ holds an exclusive queue for the lost connection until it has noticed the loss.
const LOCKED_FOR: Duration = Duration::from_secs(1);
const LOCKED_RETRY: Duration = Duration::from_millis(20);

/// What was asked on one channel, without waiting in between.
struct Lane {
    channel: Arc<ChannelState>,
    asked: VecDeque<(RecordedEntity, PendingReply)>,
}

impl Lane {
    fn left(self) -> Vec<RecordedEntity> {
        self.asked
            .into_iter()
            .map(|(redeclare, _)| redeclare)
            .collect()
    }
}

impl Replay<'_> {
    pub(super) fn declare_exchanges_and_queues(&mut self) -> Result<()> {
        let wanted = self.wanted(|it| !it.is_binding());
        self.waits_for_locked = true;
        let declared = self
            .declare_all(wanted)
            .and_then(|()| self.declare_locked());
        self.waits_for_locked = false;
        declared
    }

    pub(super) fn declare_bindings(&mut self) -> Result<()> {
        // Read only now, with the new names of queues.
        let bindings = self.wanted(RecordedEntity::is_binding);
        let (lacking, bindings): (Vec<_>, Vec<_>) = bindings
            .into_iter()
            .partition(|it| self.unrecovered.lacks_silent(&Key::of(it)));
        for binding in lacking {
            let error = Error::invalid("its queue or exchange is not there");
            let shared = &self.requester.shared;
            self.unrecovered
                .insert(Key::of(&binding), Trouble::Lacking, error, shared);
        }
        self.declare_all(bindings)
    }

    /// What is to be declared again.
    fn wanted(&self, is_one: impl Fn(&RecordedEntity) -> bool) -> Vec<RecordedEntity> {
        let mut all = self.requester.shared.topology.lock().entities();
        let options = &self.recovery.options.recovery;
        all.retain(|it| {
            let key = Key::of(it);
            is_one(it) && !self.unrecovered.is_left_out(&key) && options.wants(&key.entity)
        });
        all
    }

    /// Declares all of this; what may have cost a connection alone, at last.
    fn declare_all(&mut self, all: Vec<RecordedEntity>) -> Result<()> {
        let (suspects, others): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|it| self.unrecovered.is_suspect(&Key::of(it)));
        let mut hurry = None;
        self.declare_in(others, &mut hurry)?;
        suspects
            .into_iter()
            .try_for_each(|it| self.declare_in(vec![it], &mut hurry))
    }

    /// Declares all of this, without waiting in between. If the broker closes the channel because
    /// of one, it goes on after that one on a new channel. If the broker does not answer for one,
    /// the others go to several channels, and have as much time together.
    pub(super) fn declare(&mut self, all: Vec<RecordedEntity>) -> Result<()> {
        self.declare_in(all, &mut None)
    }

    /// As [`declare`](Self::declare). After one without an answer `hurry` is when all must be done.
    fn declare_in(&mut self, all: Vec<RecordedEntity>, hurry: &mut Option<Deadline>) -> Result<()> {
        let mut left = all;
        while !left.is_empty() {
            if hurry.is_some_and(|it| it.remaining().is_zero()) {
                left.drain(..)
                    .for_each(|it| self.not_answered(Key::of(&it)));
                break;
            }
            let lanes = match self.ask_all(&mut left, hurry.map_or(1, |_| LANES)) {
                Err(error) if is_exhausted(&error) => {
                    // The program may hold all numbers, of channels that have ended. They may be
                    // free later.
                    left.drain(..)
                        .for_each(|it| self.not_declared(Key::of(&it), error.clone()));
                    break;
                }
                lanes => lanes?,
            };
            for lane in lanes {
                left.extend(self.settle(lane, hurry)?);
            }
        }
        Ok(())
    }

    fn ask_all(&mut self, all: &mut Vec<RecordedEntity>, lanes: usize) -> Result<Vec<Lane>> {
        let mut asked: Vec<Lane> = Vec::new();
        // The program needs some, too.
        let free = usize::from(self.requester.shared.channel_numbers.free());
        let lanes = lanes.min(all.len()).min((free / 2).max(1));
        while asked.len() < lanes {
            match self.scratch(asked.len()) {
                Ok(channel) => asked.push(Lane {
                    channel,
                    asked: VecDeque::new(),
                }),
                Err(error) if is_exhausted(&error) && !asked.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        let per_lane = all.len().div_ceil(asked.len().max(1));
        for lane in &mut asked {
            for redeclare in all.drain(..per_lane.min(all.len())) {
                let key = Key::of(&redeclare);
                let is_gone = self.vanished.contains(&key);
                let answer = ask(&self.requester, &lane.channel, &redeclare, is_gone);
                self.asked.insert(key);
                lane.asked.push_back((redeclare, answer));
            }
        }
        Ok(asked)
    }

    /// Takes the answers of one channel, and returns what is to be asked again.
    fn settle(
        &mut self,
        mut lane: Lane,
        hurry: &mut Option<Deadline>,
    ) -> Result<Vec<RecordedEntity>> {
        while let Some((redeclare, answer)) = lane.asked.pop_front() {
            let key = Key::of(&redeclare);
            let answer = match self.wait_for(&lane, &redeclare, answer, *hurry) {
                Err(Failure::Connection(error)) => return Err(error),
                Err(Failure::NoAnswer(error)) if self.requester.is_over() => return Err(error),
                answer => answer,
            };
            self.answered(&key);
            self.stalled.clear();
            match answer {
                Ok(reply) => self.declared(&redeclare, &reply),
                Err(Failure::Refused(error)) => {
                    if asks_first(&redeclare) && self.vanished.insert(key) {
                        self.missing_stream(&redeclare, &error);
                        lane.asked.push_front((redeclare, Err(error)));
                        return Ok(self.not_asked(lane));
                    }
                    if let Some(gone) = self.take_gone(&redeclare, &error) {
                        lane.asked.push_front((redeclare, Err(error)));
                        return Ok([vec![gone], self.not_asked(lane)].concat());
                    }
                    let lacking = take_lacking(&mut lane.asked, &redeclare, &error);
                    self.refused(redeclare, error.clone());
                    for lacking in lacking {
                        let key = Key::of(&lacking);
                        self.answered(&key);
                        self.not_declared(key, error.clone());
                    }
                    if !self.requester.is_open(&lane.channel) {
                        return Ok(self.not_asked(lane));
                    }
                }
                Err(Failure::NoAnswer(_) | Failure::Connection(_)) => {
                    self.abandon(&lane.channel);
                    self.not_answered(key);
                    hurry.get_or_insert_with(|| Deadline::after(self.entity_timeout()));
                    return Ok(self.not_asked(lane));
                }
                Err(Failure::ChannelGone | Failure::NotAsked) => {
                    lane.asked
                        .push_front((redeclare, Err(self.requester.cause())));
                    return Ok(self.not_asked(lane));
                }
            }
        }
        Ok(Vec::new())
    }

    fn not_asked(&mut self, lane: Lane) -> Vec<RecordedEntity> {
        let left = lane.left();
        left.iter().for_each(|it| self.answered(&Key::of(it)));
        left
    }

    fn wait_for(
        &mut self,
        lane: &Lane,
        redeclare: &RecordedEntity,
        answer: PendingReply,
        hurry: Option<Deadline>,
    ) -> Result<Reply, Failure> {
        let deadline = hurry.unwrap_or_else(|| self.requester.within(self.entity_timeout()));
        if !self.consumes && !self.requester.has_answer(&answer, STALL) {
            log_line!(
                Warn,
                self.requester.shared.label(),
                "no answer for {} yet; consumers go on",
                entity(redeclare)
            );
            let key = Key::of(redeclare);
            self.answered(&key);
            self.stalled.push(key);
            self.hold_back(redeclare, lane);
            self.consume_early().map_err(Failure::Connection)?;
        }
        self.requester.answer(&lane.channel, &answer, deadline)
    }

    /// Consumers of queues that cannot be there yet have to wait for them.
    fn hold_back(&mut self, stuck: &RecordedEntity, lane: &Lane) {
        let others = lane.asked.iter().map(|(redeclare, _)| redeclare);
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

    /// A stream that was deleted counts from 0 again, once it is declared.
    fn missing_stream(&self, redeclare: &RecordedEntity, error: &Error) {
        let Some(stream) = stream(redeclare).filter(|_| error.is_missing()) else {
            return;
        };
        for channel in self.recovery.channels() {
            channel.consumers.lock().queue_missing(stream);
        }
    }

    /// What a binding lacks although it was declared: an auto-delete exchange or queue goes when the
    /// broker notices, late, that the lost connection has gone with the last that was bound or
    /// consumed there. It is declared once more, and no more than that.
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
        let gone = self.wanted(is_gone).into_iter().next()?;
        self.again.insert(entity(&gone)).then_some(gone)
    }

    pub(super) fn declared(&mut self, redeclare: &RecordedEntity, reply: &Reply) {
        // By its old name, as it was missed.
        self.unrecovered
            .found(&Key::of(redeclare), &self.requester.shared);
        if let (
            RecordedEntity::Queue {
                declare,
                named_by_server: true,
            },
            Reply::Method(Method::QueueDeclareOk(ok)),
        ) = (redeclare, reply)
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
            "queue {old:?} is now {new:?}"
        );
        self.unrecovered.queue_renamed(old, new);
        self.requester
            .shared
            .topology
            .lock()
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

    fn refused(&mut self, redeclare: RecordedEntity, error: Error) {
        match &redeclare {
            RecordedEntity::Queue { declare, .. }
                if self.waits_for_locked
                    && declare.exclusive
                    && error.reply_code() == Some(ReplyCode::RESOURCE_LOCKED) =>
            {
                self.locked.push((redeclare, error));
            }
            _ => self.not_declared(Key::of(&redeclare), error),
        }
    }

    /// Tries again for exclusive queues that the broker still holds for the lost connection, so
    /// that what is published to them meanwhile waits.
    fn declare_locked(&mut self) -> Result<()> {
        let until = self.requester.within(LOCKED_FOR);
        while !self.locked.is_empty() {
            let locked = std::mem::take(&mut self.locked);
            if until.remaining().is_zero() {
                for (redeclare, error) in locked {
                    self.not_declared(Key::of(&redeclare), error);
                }
                return Ok(());
            }
            let pause = Deadline::after(LOCKED_RETRY);
            if self.requester.shared.outbox.wait_ended(pause) {
                return Err(self.requester.cause());
            }
            self.declare(locked.into_iter().map(|(redeclare, _)| redeclare).collect())?;
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

/// Whether it is asked whether the broker still has it, before it is declared.
fn asks_first(redeclare: &RecordedEntity) -> bool {
    named_by_broker(redeclare).is_some() || stream(redeclare).is_some()
}

/// The name of a stream.
fn stream(redeclare: &RecordedEntity) -> Option<&str> {
    match redeclare {
        RecordedEntity::Queue { declare, .. } if is_stream(declare) => Some(&declare.queue),
        _ => None,
    }
}

fn take_lacking(
    left: &mut VecDeque<(RecordedEntity, PendingReply)>,
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
    ) = (lacks, entity(refused))
    else {
        return Vec::new();
    };
    let (no_source, no_destination) = (is_named(error, &source), is_named(error, &destination));
    let needs_it = |(it, _): &(RecordedEntity, PendingReply)| match entity(it) {
        Entity::Binding {
            source: from,
            destination: to,
            ..
        } => (no_source && from == source) || (no_destination && to == destination),
        _ => false,
    };
    let all = std::mem::take(left).into_iter();
    let (lacking, others): (Vec<_>, Vec<_>) = all.partition(needs_it);
    *left = others.into();
    lacking
        .into_iter()
        .map(|(redeclare, _)| redeclare)
        .collect()
}
