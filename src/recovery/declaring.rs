//! Exchanges, queues and bindings are declared again.

use std::collections::VecDeque;

use super::replay::{is_named, Failure, Replay};
use crate::channel::ChannelState;
use crate::error::{ClosedBy, Error, ErrorKind, ReplyCode, Result};
use crate::events::{ConnectionEvent, Entity};
use crate::mailbox::{Call, Reply};
use crate::outbox::Frames;
use crate::proto::Redeclare;
use crate::request;
use crate::wire::method::{Method, QueueDeclare};

impl Replay<'_> {
    pub(super) fn declare_all(&mut self) -> Result<()> {
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
    pub(super) fn wanted(&self, is_one: impl Fn(&Redeclare) -> bool) -> Vec<Redeclare> {
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

    pub(super) fn declared(&mut self, redeclare: &Redeclare, reply: &Reply) {
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

    pub(super) fn rename_queue(&mut self, old: &str, new: &str) {
        log::info!("queue {old:?} is now {new:?}");
        self.missing.queue_renamed(old, new);
        self.link.topology.lock().queue_renamed(old, new);
        for channel in self.recovery.channels() {
            channel.consumers.lock().queue_renamed(old, new);
        }
        self.recovery.server_names.rename(old, new);
        self.link.tell(ConnectionEvent::QueueRenamed {
            old: old.to_owned(),
            new: new.to_owned(),
        });
    }

    pub(super) fn not_declared(&mut self, entity: Entity, error: Error) {
        self.missing.insert(entity, error, self.link);
    }

    /// Notes what the broker has closed the connection for: it is left out the next time.
    pub(super) fn blame(&mut self, entity: Entity, error: Error) -> Error {
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
}

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
