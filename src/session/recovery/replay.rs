//! The replay: restores on a new connection what was lost with the last one.

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
use crate::io_thread::Shared;
use crate::proto::RecordedEntity;
use crate::session::channel::ChannelState;

pub(super) struct Replay<'a> {
    pub(super) recovery: &'a Recovery,
    pub(super) requester: Requester,
    pub(super) unrecovered: &'a mut Unrecovered,
    pub(super) blame: &'a mut Blame,
    /// The channels of the program.
    pub(super) channels: Vec<Arc<ChannelState>>,
    /// Requests without a reply.
    pub(super) pending: HashSet<Key>,
    /// Requests that had no reply for a while (`STALL`). They are to blame for a loss only if no
    /// other request is pending.
    pub(super) stalled: Vec<Key>,
    /// Streams and broker-named queues that no longer exist.
    pub(super) vanished: HashSet<Key>,
    /// Consumers that were begun on this connection.
    pub(super) begun: HashSet<Key>,
    /// Queues that may not be declared yet. Their consumers wait.
    pub(super) undeclared: HashSet<String>,
    /// Set while consumers begin although queues are still being declared: the consumers that were
    /// refused meanwhile, and that are begun once more later.
    pub(super) refused_early: Option<HashSet<Key>>,
    /// Whether to retry exclusive queues that the broker still locks.
    pub(super) waits_for_locked: bool,
    /// Exclusive queues that the broker still locks for the lost connection.
    pub(super) locked: Vec<(RecordedEntity, Error)>,
    /// Exchanges and queues that vanished after their declaration and were declared once more.
    pub(super) redeclared: HashSet<Entity>,
    /// Whether the replay has started to begin the consumers.
    pub(super) consumers_begun: bool,
    /// Channels of the program with a request that the broker does not answer, or that have ended.
    stuck: HashSet<u16>,
    /// When the search for a message that costs the connection must end.
    pub(super) search_deadline: Option<Deadline>,
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
            pending: HashSet::new(),
            stalled: Vec::new(),
            vanished: HashSet::new(),
            begun: HashSet::new(),
            undeclared: HashSet::new(),
            refused_early: None,
            waits_for_locked: false,
            locked: Vec::new(),
            redeclared: HashSet::new(),
            consumers_begun: false,
            stuck: HashSet::new(),
            search_deadline: None,
        }
    }

    /// Runs all steps of the replay. Consumers come before bindings: a broker without a majority of
    /// its nodes does not answer a binding, even if the binding exists, but answers everything
    /// else.
    pub(super) fn run(&mut self) -> Result<()> {
        self.unrecovered.begin();
        let channels = self.recovery.channels();
        for channel in &channels {
            channel.set_recovering(true);
        }
        self.requester.wait_connected()?;
        self.channels = self.within_channel_max(channels);
        self.declare_exchanges_and_queues()?;
        self.consume_all()?;
        self.declare_bindings()?;
        for channel in self.channels.clone() {
            self.publish_again(&channel)?;
        }
        self.lose_orphaned_publishes();
        Ok(())
    }

    /// How long one declaration, binding or consumer may take: at most half of the time that is
    /// left.
    pub(super) fn entity_timeout(&self) -> Duration {
        let timeout = self.recovery.options.recovery.entity_timeout;
        timeout.min(self.requester.left() / 2)
    }

    /// Takes the requests that may be to blame if the broker closes the connection now.
    pub(super) fn take_pending(&mut self) -> Vec<Key> {
        match self.pending.is_empty() {
            true => std::mem::take(&mut self.stalled),
            false => self.pending.drain().collect(),
        }
    }

    /// Stops using the channel: it is stuck until the broker answers.
    pub(super) fn abandon(&mut self, channel: &Arc<ChannelState>) {
        self.stuck.insert(channel.number);
        self.requester.abandon(channel);
    }

    pub(super) fn no_answer(&self, key: &Key) -> Error {
        let timeout = self.entity_timeout();
        Error::timed_out(timeout)
            .doing(format!("waiting for the broker's reply for {}", key.entity))
    }

    /// Returns a channel that the broker may close. If all channel numbers are in use, this is a
    /// channel of the program: the replay reopens those anyway.
    pub(super) fn scratch_channel(&mut self, index: usize) -> Result<Arc<ChannelState>> {
        let error = match self.requester.scratch_channel(index) {
            Err(error) if matches!(error.kind(), ErrorKind::ChannelsExhausted { .. }) => error,
            result => return result,
        };
        if index > 0 {
            return Err(error);
        }
        for channel in self.channels.clone() {
            if !channel.look(|it| it.is_recovering()) || self.stuck.contains(&channel.number) {
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
        self.pending.remove(key);
    }
}
