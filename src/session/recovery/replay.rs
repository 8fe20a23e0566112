//! What is done on a new connection, so that it is as the lost one was.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::blame::Blame;
use super::requester::{Failure, Requester};
use super::state::Recovery;
use super::unrecovered::{Key, Unrecovered};
use crate::error::{Error, ErrorKind, Result};
use crate::events::Entity;
use crate::io_thread::deadline::Deadline;
use crate::io_thread::outbox::Gate;
use crate::io_thread::Shared;
use crate::proto::RecordedEntity;
use crate::session::channel::ChannelState;

pub(super) struct Replay<'a> {
    pub(super) recovery: &'a Recovery,
    pub(super) requester: Requester,
    pub(super) unrecovered: &'a mut Unrecovered,
    pub(super) blame: &'a mut Blame,
    /// The program's channels.
    pub(super) channels: Vec<Arc<ChannelState>>,
    /// What was asked and has no answer.
    pub(super) asked: HashSet<Key>,
    /// What had no answer for a while. It is only to blame if nothing else was asked.
    pub(super) stalled: Vec<Key>,
    /// Streams, and queues that the broker has named, which it does not have any more.
    pub(super) vanished: HashSet<Key>,
    /// The consumers that were begun on this connection.
    pub(super) begun: HashSet<Key>,
    /// The consumers of these queues have to wait until the queues are declared.
    pub(super) undeclared: HashSet<String>,
    /// Consumers that were refused while their queue may not have been declared: they are asked for
    /// once more.
    pub(super) early: Option<HashSet<Key>>,
    /// Whether exclusive queues are tried again that the broker still holds.
    pub(super) waits_for_locked: bool,
    /// Exclusive queues that the broker still holds for the lost connection.
    pub(super) locked: Vec<(RecordedEntity, Error)>,
    /// What was declared once more, since it had gone in between.
    pub(super) again: HashSet<Entity>,
    /// The consumers are being begun, or were.
    pub(super) consumes: bool,
    /// The program's channels on which something hangs.
    stuck: HashSet<u16>,
    /// When the search for a message that costs the connection has to end.
    pub(super) search_ends: Option<Deadline>,
}

impl<'a> Replay<'a> {
    pub(super) fn new(
        recovery: &'a Recovery,
        shared: &Arc<Shared>,
        epoch: u64,
        until: Deadline,
        unrecovered: &'a mut Unrecovered,
        blame: &'a mut Blame,
    ) -> Self {
        let request_timeout = recovery.options.request_timeout;
        Self {
            recovery,
            requester: Requester::new(shared, epoch, request_timeout, until),
            unrecovered,
            blame,
            channels: Vec::new(),
            asked: HashSet::new(),
            stalled: Vec::new(),
            vanished: HashSet::new(),
            begun: HashSet::new(),
            undeclared: HashSet::new(),
            early: None,
            waits_for_locked: false,
            locked: Vec::new(),
            again: HashSet::new(),
            consumes: false,
            stuck: HashSet::new(),
            search_ends: None,
        }
    }

    /// Consumers come before bindings: a broker that lacks a majority of its nodes does not answer
    /// a binding, even if it exists, and answers everything else.
    pub(super) fn run(&mut self) -> Result<()> {
        self.unrecovered.begin();
        let channels = self.recovery.channels();
        for channel in &channels {
            channel.set_recovering(true);
        }
        self.wait_connected()?;
        self.channels = self.within_the_limit(channels);
        self.declare_exchanges_and_queues()?;
        self.consume_all()?;
        self.declare_bindings()?;
        for channel in self.channels.clone() {
            self.publish_again(&channel)?;
        }
        self.lose_those_of_others();
        Ok(())
    }

    fn wait_connected(&self) -> Result<()> {
        self.requester.write(0, || Ok(Gate::Open), |_| Ok(()))
    }

    /// How long one declaration, binding or consumer may take: not all that is left.
    pub(super) fn entity_timeout(&self) -> Duration {
        let timeout = self.recovery.options.recovery.entity_timeout;
        timeout.min(self.requester.left() / 2)
    }

    /// What may be to blame if the broker closes the connection now.
    pub(super) fn take_asked(&mut self) -> Vec<Key> {
        match self.asked.is_empty() {
            true => std::mem::take(&mut self.stalled),
            false => self.asked.drain().collect(),
        }
    }

    /// The channel is stuck until the broker answers.
    pub(super) fn abandon(&mut self, channel: &Arc<ChannelState>) {
        self.stuck.insert(channel.number);
        self.requester.abandon(channel);
    }

    pub(super) fn no_answer(&self, key: &Key) -> Error {
        let timeout = self.entity_timeout();
        Error::timed_out(timeout).doing(format!(
            "waiting for the broker's answer for {}",
            key.entity
        ))
    }

    /// A channel that may be closed by what it is used for: one of our own; or, if all numbers are
    /// in use, one of the program's, since they are opened again.
    pub(super) fn scratch(&mut self, place: usize) -> Result<Arc<ChannelState>> {
        let error = match self.requester.channel(place) {
            Err(error) if matches!(error.kind(), ErrorKind::ChannelsExhausted { .. }) => error,
            result => return result,
        };
        if place > 0 {
            return Err(error);
        }
        for channel in self.channels.clone() {
            if !channel.is_recovering() || self.stuck.contains(&channel.number) {
                continue;
            }
            match self.requester.make_open(&channel) {
                Ok(()) => return Ok(channel),
                Err(Failure::ChannelGone | Failure::NotAsked) => {
                    self.stuck.insert(channel.number);
                }
                Err(
                    Failure::Refused(error) | Failure::NoAnswer(error) | Failure::Connection(error),
                ) => return Err(error),
            }
        }
        Err(error)
    }

    pub(super) fn answered(&mut self, key: &Key) {
        self.asked.remove(key);
    }
}
