//! What is done on a new connection, so that it is as the lost one was.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::missing::Missing;
use super::Recovery;
use crate::channel::{ChannelState, Wanted};
use crate::deadline::Deadline;
use crate::error::{CloseReason, ClosedBy, Error, ErrorKind, ReplyCode, Result};
use crate::events::{ConnectionEvent, Entity};
use crate::io_thread::Link;
use crate::mailbox::{Call, ChannelMailbox, Command, Reply};
use crate::outbox::{Admission, Frames, Gate};
use crate::proto::Redeclare;
use crate::request;
use crate::unanswered::Unanswered;
use crate::wire::method::{BasicConsume, BasicConsumeOk, BasicQos, Method, QueueDeclare};

/// The answer to a call that was sent, or why it was not.
type Asked = Result<Receiver<Result<Reply>>>;

/// Whom a failure concerns.
enum Failure {
    /// What was asked for; its channel is closed, if it was sent at all.
    Refused(Error),
    /// The channel, which has ended for another reason.
    ChannelGone,
    /// It was not asked: what was asked before has cost the channel.
    NotAsked,
    /// All.
    Connection(Error),
}

pub(super) struct Replay<'a> {
    pub(super) recovery: &'a Recovery,
    pub(super) link: &'a Arc<Link>,
    epoch: u64,
    /// By then all is done, or it has failed.
    until: Deadline,
    pub(super) missing: &'a mut Missing,
    /// A channel of our own, for what can cost a channel.
    own: Option<Arc<ChannelState>>,
    /// What was declared once more, since it had gone in between.
    again: HashSet<Entity>,
}

impl Drop for Replay<'_> {
    fn drop(&mut self) {
        if let Some(own) = self.own.take() {
            own.dropped();
        }
    }
}

/// A channel that is being opened.
struct Opening {
    channel: Arc<ChannelState>,
    opened: Option<Asked>,
    consumers: Vec<(Wanted, Asked)>,
}

impl<'a> Replay<'a> {
    pub(super) fn new(
        recovery: &'a Recovery,
        link: &'a Arc<Link>,
        epoch: u64,
        until: Deadline,
        missing: &'a mut Missing,
    ) -> Self {
        Self {
            recovery,
            link,
            epoch,
            until,
            missing,
            own: None,
            again: HashSet::new(),
        }
    }

    pub(super) fn run(mut self) -> Result<()> {
        self.missing.begin(self.epoch);
        let channels = self.recovery.channels();
        for channel in &channels {
            channel.set_recovering(true);
        }
        self.wait_connected()?;
        let channels = self.within_the_limit(channels);
        self.declare_all()?;
        self.open_all(&channels)?;
        for channel in &channels {
            self.publish_again(channel)?;
        }
        self.lose_those_of_others(&channels);
        Ok(())
    }

    // ---- asking ----

    /// Sends what `append` writes on a channel, when `gate` is open and this connection is there.
    fn write<T>(
        &self,
        channel: u16,
        gate: impl Fn() -> Result<Gate>,
        append: impl FnOnce(&mut Frames<'_>) -> Result<T>,
    ) -> Result<T> {
        let admission = Admission::Recovery { epoch: self.epoch };
        let outbox = &self.link.outbox;
        outbox.write(channel, admission, self.patience(), gate, append)
    }

    /// How long to wait for room, or for an answer.
    fn patience(&self) -> Duration {
        let request_timeout = self.recovery.options.request_timeout;
        request_timeout.min(self.until.remaining())
    }

    /// Why the connection was lost.
    fn cause(&self) -> Error {
        let cause = self.link.outbox.cause();
        cause.unwrap_or_else(|| closed(0))
    }

    fn wait_connected(&self) -> Result<()> {
        self.write(0, || Ok(Gate::Open), |_| Ok(()))
    }

    /// Sends on a channel that is open on this connection.
    pub(super) fn ask(
        &self,
        channel: &ChannelState,
        append: impl FnOnce(&mut Frames<'_>, Call) -> Result<()>,
    ) -> Asked {
        let (call, answer) = Call::new();
        let gate = || match channel.gate()? {
            Gate::Open if !channel.is_open_in(self.epoch) => Err(closed(channel.number)),
            gate => Ok(gate),
        };
        self.write(channel.number, gate, |frames| append(frames, call))?;
        Ok(answer)
    }

    fn open(&self, channel: &Arc<ChannelState>) -> Asked {
        let (call, answer) = Call::new();
        let gate = || channel.gate().map(|_| channel.opening_gate());
        self.write(channel.number, gate, |frames| {
            channel.append_open(frames, call)
        })?;
        Ok(answer)
    }

    fn answer(&self, channel: &ChannelState, asked: Asked) -> Result<Reply, Failure> {
        let timeout = self.patience();
        let reply = asked.and_then(|answer| match answer.recv_timeout(timeout) {
            Ok(reply) => reply,
            Err(RecvTimeoutError::Timeout) => Err(Error::timed_out(timeout)),
            Err(RecvTimeoutError::Disconnected) => Err(self.cause()),
        });
        reply.map_err(|error| match error.kind() {
            // For another reason, such as an ack that the program has sent.
            ErrorKind::ChannelClosed { .. } if channel.end.cause().is_some() => {
                Failure::ChannelGone
            }
            ErrorKind::ChannelClosed { reason, .. } => match reason.by {
                ClosedBy::Broker => Failure::Refused(error),
                ClosedBy::Program => Failure::NotAsked,
            },
            // It does not fit into the frames of this broker.
            ErrorKind::InvalidArgument(_) => Failure::Refused(error),
            _ => Failure::Connection(error),
        })
    }

    /// A channel that may be closed by what it is used for: one of the program's, since they are opened again; else one of
    /// our own.
    fn scratch(&mut self) -> Result<Arc<ChannelState>> {
        let channels = self.recovery.channels();
        let recovering = channels.into_iter().find(|it| it.is_recovering());
        let channel = match recovering.or_else(|| self.own.clone()) {
            Some(channel) => channel,
            None => self.take_own()?,
        };
        if channel.is_open_in(self.epoch) {
            return Ok(channel);
        }
        match self.answer(&channel, self.open(&channel)) {
            Ok(_) => Ok(channel),
            Err(Failure::ChannelGone | Failure::NotAsked) => self.scratch(),
            Err(Failure::Refused(error) | Failure::Connection(error)) => Err(error),
        }
    }

    fn take_own(&mut self) -> Result<Arc<ChannelState>> {
        let numbers = &self.link.channel_numbers;
        // Without waiting: nobody else releases one meanwhile.
        let number = numbers
            .take(Deadline::after(Duration::ZERO))
            .ok_or_else(|| {
                let channel_max = numbers.highest();
                Error::new(ErrorKind::ChannelsExhausted { channel_max })
            })?;
        let channel = Arc::new(ChannelState::new(number, Arc::clone(self.link)));
        channel.set_recovering(true);
        self.own = Some(Arc::clone(&channel));
        Ok(channel)
    }

    // ---- exchanges, queues, bindings ----

    fn declare_all(&mut self) -> Result<()> {
        let mut declares = self.wanted(|it| !it.is_binding());
        if let Err(error) = self.scratch() {
            return self.nothing_declared(error);
        }
        let mut survivors = Vec::new();
        for declare in &declares {
            // Exclusive ones went with the connection.
            if let Redeclare::Queue {
                declare,
                named_by_server: true,
            } = declare
            {
                if !declare.exclusive && self.queue_exists(&declare.queue)?.is_some() {
                    survivors.push(declare.queue.clone());
                }
            }
        }
        declares.retain(|it| {
            !matches!(it, Redeclare::Queue { declare, .. } if survivors.contains(&declare.queue))
        });
        self.declare(declares, Self::not_declared)?;
        // Read only now, with the new names of queues.
        let bindings = self.wanted(Redeclare::is_binding);
        self.declare(bindings, Self::not_declared)
    }

    /// The program may hold all numbers, of channels that have ended. They may be free later.
    fn nothing_declared(&mut self, error: Error) -> Result<()> {
        if !matches!(error.kind(), ErrorKind::ChannelsExhausted { .. }) {
            return Err(error);
        }
        for redeclare in self.wanted(|_| true) {
            self.not_declared(entity(&redeclare), error.clone());
        }
        Ok(())
    }

    /// What is to be declared again.
    fn wanted(&self, is_one: impl Fn(&Redeclare) -> bool) -> Vec<Redeclare> {
        let mut all = self.link.topology.lock().redeclare();
        let options = &self.recovery.options.recovery;
        all.retain(|it| {
            let entity = entity(it);
            is_one(it) && !self.missing.is_fatal(&entity) && options.wants(&entity)
        });
        all
    }

    /// Declares all of this, one behind the other without waiting in between. If the broker closes the channel because of
    /// one, it goes on behind that on a new channel.
    pub(super) fn declare(
        &mut self,
        all: Vec<Redeclare>,
        not_declared: impl Fn(&mut Self, Entity, Error),
    ) -> Result<()> {
        let mut left = VecDeque::from(all);
        while !left.is_empty() {
            let channel = self.scratch()?;
            let asked: Vec<_> = left
                .iter()
                .map(|it| self.ask(&channel, |frames, call| append(it, frames, &channel, call)))
                .collect();
            for asked in asked {
                let answer = self.answer(&channel, asked);
                if let Err(Failure::ChannelGone | Failure::NotAsked) = answer {
                    break;
                }
                let Some(redeclare) = left.pop_front() else {
                    break;
                };
                let entity = entity(&redeclare);
                match answer {
                    Ok(reply) => self.declared(&redeclare, &reply),
                    Err(Failure::Refused(error)) => {
                        if let Some(gone) = self.take_gone(&redeclare, &error) {
                            left.push_front(redeclare);
                            left.push_front(gone);
                            break;
                        }
                        let lacking = take_lacking(&mut left, &redeclare, &error);
                        for entity in std::iter::once(entity).chain(lacking) {
                            not_declared(self, entity, error.clone());
                        }
                        if !channel.is_open_in(self.epoch) {
                            break;
                        }
                    }
                    Err(Failure::Connection(error)) => return Err(self.blame(entity, error)),
                    Err(Failure::ChannelGone | Failure::NotAsked) => {}
                }
            }
        }
        Ok(())
    }

    /// What a binding lacks although it was declared: an auto-delete exchange or queue goes when the broker notices, late,
    /// that the lost connection has gone with the last that was bound or consumed there. It is declared once more, and no
    /// more than that.
    fn take_gone(&mut self, refused: &Redeclare, error: &Error) -> Option<Redeclare> {
        if !refused.is_binding() || error.reply_code() != Some(ReplyCode::NOT_FOUND) {
            return None;
        }
        let is_gone = |it: &Redeclare| match it {
            Redeclare::Exchange(declare) => is_named(error, &declare.exchange),
            Redeclare::Queue {
                declare,
                named_by_server: false,
            } => is_named(error, &declare.queue),
            _ => false,
        };
        let gone = self.wanted(is_gone).into_iter().next()?;
        self.again.insert(entity(&gone)).then_some(gone)
    }

    fn declared(&mut self, redeclare: &Redeclare, reply: &Reply) {
        // By its old name, as it was missed.
        self.missing.found(&entity(redeclare), self.link);
        if let (
            Redeclare::Queue {
                declare,
                named_by_server: true,
            },
            Reply::Method(Method::QueueDeclareOk(ok)),
        ) = (redeclare, reply)
        {
            self.rename_queue(&declare.queue, &ok.queue);
        }
    }

    fn rename_queue(&mut self, old: &str, new: &str) {
        log::info!("queue {old:?} is now {new:?}");
        self.missing.queue_renamed(old, new);
        self.link.topology.lock().queue_renamed(old, new);
        for channel in self.recovery.channels() {
            channel.consumers.lock().queue_renamed(old, new);
            channel.settings.queue_renamed(old, new);
        }
        self.recovery.server_names.rename(old, new);
        self.link.tell(ConnectionEvent::QueueRenamed {
            old: old.to_owned(),
            new: new.to_owned(),
        });
    }

    fn not_declared(&mut self, entity: Entity, error: Error) {
        self.missing.insert(entity, error, self.link);
    }

    /// Notes what the broker has closed the connection for: it is left out the next time.
    fn blame(&mut self, entity: Entity, error: Error) -> Error {
        let ErrorKind::ConnectionClosed(reason) = error.kind() else {
            return error;
        };
        let is_blamed =
            reason.by == ClosedBy::Broker && reason.code != ReplyCode::CONNECTION_FORCED;
        if is_blamed && reason.method.is_some() {
            self.missing.insert_fatal(entity, error.clone(), self.link);
        }
        error
    }

    /// The number of consumers of a queue, if it exists.
    pub(super) fn queue_exists(&mut self, name: &str) -> Result<Option<u32>> {
        let channel = self.scratch()?;
        let declare = QueueDeclare {
            queue: name.into(),
            passive: true,
            ..QueueDeclare::default()
        };
        let asked = self.ask(&channel, |frames, call| {
            request::append(frames, channel.number, &declare, call)
        });
        match self.answer(&channel, asked) {
            Ok(Reply::Method(Method::QueueDeclareOk(ok))) => Ok(Some(ok.consumer_count)),
            Ok(_) | Err(Failure::Refused(_)) => Ok(None),
            Err(Failure::ChannelGone | Failure::NotAsked) => self.queue_exists(name),
            Err(Failure::Connection(error)) => Err(error),
        }
    }

    // ---- channels ----

    /// This broker may allow fewer channels: ends the others.
    fn within_the_limit(&self, channels: Vec<Arc<ChannelState>>) -> Vec<Arc<ChannelState>> {
        let channel_max = self.link.channel_numbers.highest();
        let is_within = |it: &Arc<ChannelState>| it.number <= channel_max;
        let (within, beyond): (Vec<_>, Vec<_>) = channels.into_iter().partition(is_within);
        for channel in beyond {
            channel.set_recovering(false);
            channel.ended(&Error::new(ErrorKind::ChannelsExhausted { channel_max }));
        }
        within
    }

    /// Opens the channels, all at once, and those once more that the broker closes for one of their consumers.
    fn open_all(&mut self, channels: &[Arc<ChannelState>]) -> Result<()> {
        let opening: Vec<_> = channels.iter().map(|it| self.begin(it)).collect();
        for mut opening in opening {
            while !self.finish(&mut opening)? {
                opening = self.begin(&opening.channel);
            }
        }
        Ok(())
    }

    fn begin(&self, channel: &Arc<ChannelState>) -> Opening {
        let is_open = channel.is_open_in(self.epoch);
        let opened = (!is_open).then(|| self.open(channel));
        let mut consumers = Vec::new();
        let all = channel.consumers.lock().wanted();
        for wanted in all {
            if !self.is_to_consume(&wanted) {
                wanted.mailbox.ended(Some(self.cause()));
            } else if !self.missing.has_consumer(channel, &wanted) {
                let asked = self.consume(channel, &wanted);
                consumers.push((wanted, asked));
            }
        }
        Opening {
            channel: Arc::clone(channel),
            opened,
            consumers,
        }
    }

    fn is_to_consume(&self, wanted: &Wanted) -> bool {
        let entity = wanted.entity();
        // The place for answers is nothing that the program knows of.
        let is_reply_to = wanted.consume.queue == "amq.rabbitmq.reply-to";
        let wants = is_reply_to || self.recovery.options.recovery.wants(&entity);
        wants && !self.missing.is_fatal(&entity)
    }

    /// Begins to consume again, with the prefetch that the consumer had; unless nobody wants it any more.
    pub(super) fn consume(&self, channel: &ChannelState, wanted: &Wanted) -> Asked {
        let mut begun = false;
        let asked = self.ask(channel, |frames, call| {
            let mut consume = wanted.consume.clone();
            // Under the lock, as whoever cancels it.
            begun = wanted.mailbox.restart(consume.arguments.to_mut());
            match begun {
                true => append_consume(frames, channel, wanted, &consume, call),
                false => {
                    let consumer_tag = consume.consumer_tag;
                    call.answer(Ok(Reply::Method(BasicConsumeOk { consumer_tag }.into())));
                    Ok(())
                }
            }
        });
        if let (Err(error), true) = (&asked, begun) {
            // The IO thread has not heard of it, and so will not say that it was lost once more.
            wanted.mailbox.interrupted(error);
        }
        asked
    }

    /// Says whether the broker has agreed.
    pub(super) fn consumes(&self, channel: &ChannelState, asked: Asked) -> Result<bool> {
        match self.answer(channel, asked) {
            Ok(_) => Ok(true),
            Err(Failure::ChannelGone | Failure::NotAsked | Failure::Refused(_)) => Ok(false),
            Err(Failure::Connection(error)) => Err(error),
        }
    }

    /// Says whether it is done, else it has to begin again.
    fn finish(&mut self, opening: &mut Opening) -> Result<bool> {
        let Opening {
            channel,
            opened,
            consumers,
        } = opening;
        match opened.take().map(|opened| self.answer(channel, opened)) {
            None | Some(Ok(_)) => {}
            Some(Err(Failure::ChannelGone)) => return Ok(true),
            Some(Err(Failure::NotAsked)) => return Ok(false),
            Some(Err(Failure::Refused(error) | Failure::Connection(error))) => return Err(error),
        }
        let (mut refused, mut all_asked) = (Vec::new(), true);
        // All of them, also behind one that is refused: who has no answer yet cannot begin again.
        for (wanted, asked) in consumers.drain(..) {
            match self.answer(channel, asked) {
                Ok(_) => {}
                Err(Failure::ChannelGone) => return Ok(true),
                Err(Failure::NotAsked) => all_asked = false,
                Err(Failure::Refused(error)) => refused.push((wanted, error)),
                Err(Failure::Connection(error)) => return Err(self.blame(wanted.entity(), error)),
            }
        }
        let Some((wanted, error)) = take_blamed(refused) else {
            return Ok(all_asked);
        };
        self.missing
            .insert_consumer(channel, wanted, error, self.link);
        Ok(false)
    }

    // ---- messages ----

    /// Publishes again what was not answered, before anything newer, and lets go of the channel.
    fn publish_again(&self, channel: &ChannelState) -> Result<()> {
        let mut unanswered = self.take_unanswered(channel.number);
        let gate = || match channel.gate()? {
            Gate::Open if !channel.is_open_in(self.epoch) => Err(closed(channel.number)),
            gate => Ok(gate),
        };
        let mut unsendable = Vec::new();
        let written = self.write(channel.number, gate, |frames| {
            channel.set_recovering(false);
            let mut again = None;
            for mut message in unanswered.drain(..) {
                let kept = message.published.kept.as_deref().unwrap_or_default();
                if let Err(error) = frames.again(kept) {
                    message.cause = error;
                    unsendable.push(message);
                    continue;
                }
                let last = message.published.sequence_number;
                again = Some((again.map_or(last, |(first, _)| first), last));
                frames.published(message.published);
            }
            if again.is_some() {
                channel.confirms.resume(again);
            }
            Ok(again.is_some())
        });
        unsendable.into_iter().for_each(Unanswered::lose);
        let error = match written {
            Ok(true) => return Ok(()),
            Ok(false) => {
                // Behind the news of those that were lost: whoever waits for all asks for them then.
                self.link.outbox.change(|| channel.confirms.resume(None));
                return Ok(());
            }
            Err(error) => error,
        };
        if self.link.outbox.epoch() != self.epoch || error.is_connection_end() {
            self.link.unanswered.lock().append(&mut unanswered);
            if self.link.outbox.end_cause().is_some() {
                self.link.lose_unanswered();
            }
            return Err(error);
        }
        // The channel is gone, and nobody else says so if the broker has closed it for nothing that was asked.
        unanswered.into_iter().for_each(Unanswered::lose);
        channel.set_recovering(false);
        if channel.end.cause().is_none() {
            channel.ended(&error);
        }
        Ok(())
    }

    /// Of channels that are gone. Should the connection be lost again just now, theirs are among them, and stay.
    fn lose_those_of_others(&self, channels: &[Arc<ChannelState>]) {
        let mut unanswered = self.link.unanswered.lock();
        let all = std::mem::take(&mut *unanswered);
        let is_theirs =
            |it: &Unanswered| channels.iter().any(|at| at.number == it.published.channel);
        let (theirs, others): (Vec<_>, Vec<_>) = all.into_iter().partition(is_theirs);
        *unanswered = theirs;
        drop(unanswered);
        others.into_iter().for_each(Unanswered::lose);
    }

    fn take_unanswered(&self, channel: u16) -> Vec<Unanswered> {
        let mut unanswered = self.link.unanswered.lock();
        let all = std::mem::take(&mut *unanswered);
        let (theirs, others) = all
            .into_iter()
            .partition(|it| it.published.channel == channel);
        *unanswered = others;
        theirs
    }
}

fn closed(channel: u16) -> Error {
    Error::new(ErrorKind::ChannelClosed {
        channel,
        reason: CloseReason::program("it was closed while it was being opened again"),
    })
}

/// What names the broker gives in what it says.
fn is_named(error: &Error, name: &str) -> bool {
    let reason = error.close_reason();
    reason.is_some_and(|reason| reason.text.contains(&format!("'{name}'")))
}

/// Of the consumers whose channel was closed for one of them, that one: it is not always the first that has no answer.
fn take_blamed(mut refused: Vec<(Wanted, Error)>) -> Option<(Wanted, Error)> {
    let named = refused
        .iter()
        .position(|(wanted, error)| is_named(error, &wanted.consume.queue));
    let place = named.unwrap_or_default();
    (place < refused.len()).then(|| refused.swap_remove(place))
}

/// Takes what needs the same that a binding was refused for: each would cost a channel again.
fn take_lacking(left: &mut VecDeque<Redeclare>, refused: &Redeclare, error: &Error) -> Vec<Entity> {
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
    let needs_it = |it: &Redeclare| match entity(it) {
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
    lacking.iter().map(entity).collect()
}

fn append(
    redeclare: &Redeclare,
    frames: &mut Frames<'_>,
    channel: &ChannelState,
    call: Call,
) -> Result<()> {
    let number = channel.number;
    match redeclare {
        Redeclare::Exchange(declare) => request::append(frames, number, declare, call),
        Redeclare::BindExchange(bind) => request::append(frames, number, bind, call),
        Redeclare::BindQueue(bind) => request::append(frames, number, bind, call),
        Redeclare::Queue {
            declare,
            named_by_server: false,
        } => request::append(frames, number, declare, call),
        Redeclare::Queue { declare, .. } => {
            let declare = QueueDeclare {
                queue: "".into(),
                ..declare.clone()
            };
            request::append(frames, number, &declare, call)
        }
    }
}

fn append_consume(
    frames: &mut Frames<'_>,
    channel: &ChannelState,
    wanted: &Wanted,
    consume: &BasicConsume<'_>,
    call: Call,
) -> Result<()> {
    let number = channel.number;
    let current = channel.settings.qos().each;
    let set_qos = |frames: &mut Frames<'_>, qos: &Option<BasicQos>| {
        if wanted.qos == current {
            return Ok(());
        }
        // Zero stands for no limit, which is what it begins with.
        let qos = qos.clone().unwrap_or_default();
        request::append(frames, number, &qos, Call::of_nobody())
    };
    set_qos(frames, &wanted.qos)?;
    frames.method(consume)?;
    frames.command(Command::Consume {
        channel: number,
        consumer_tag: consume.consumer_tag.as_ref().into(),
        consumer: Arc::clone(&wanted.mailbox),
        call: Some(call),
    });
    set_qos(frames, &current)
}

pub(super) fn entity(redeclare: &Redeclare) -> Entity {
    match redeclare {
        Redeclare::Exchange(declare) => Entity::Exchange {
            name: declare.exchange.to_string(),
        },
        Redeclare::Queue { declare, .. } => Entity::Queue {
            name: declare.queue.to_string(),
        },
        Redeclare::BindExchange(bind) => Entity::Binding {
            source: bind.source.to_string(),
            destination: bind.destination.to_string(),
            routing_key: bind.routing_key.to_string(),
        },
        Redeclare::BindQueue(bind) => Entity::Binding {
            source: bind.exchange.to_string(),
            destination: bind.queue.to_string(),
            routing_key: bind.routing_key.to_string(),
        },
    }
}
