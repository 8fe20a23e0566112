//! The state of recovery, over all sockets of one connection.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::{Condvar, Mutex};

use super::blame::Blame;
use super::secret_renewal::Renewal;
use super::trial::{Trial, Verdict};
use super::unrecovered::Key;
use crate::error::Error;
use crate::io_thread::deadline::Deadline;
use crate::options::ConnectionOptions;
use crate::session::channel::ChannelState;
use crate::session::queue_names::QueueNames;

/// Outlives the sockets of one connection, like its [`Shared`](crate::io_thread::Shared).
pub(crate) struct Recovery {
    pub(super) options: ConnectionOptions,
    pub(crate) queue_names: QueueNames,
    /// The recovery thread holds this lock while it runs.
    pub(super) blame: Mutex<Blame>,
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
}

#[derive(Default)]
pub(super) struct State {
    /// All channels that can come back, by number.
    channels: BTreeMap<u16, Weak<ChannelState>>,
    /// The secret that replaced the password of the options.
    secret: Option<String>,
    /// The recovery thread runs.
    pub(super) is_running: bool,
    /// The cause of a loss that the thread has not seen yet.
    pub(super) lost: Option<Error>,
    /// The connection has ended for good.
    pub(super) is_over: bool,
    /// Measures the time since the last recovery.
    pub(super) up_since: Option<Deadline>,
    /// Number of losses in a row that came soon after a recovery.
    pub(super) relapses: u32,
    /// When to renew the secret.
    pub(super) renewal: Option<Renewal>,
    /// The retry thread runs.
    pub(super) is_trying: bool,
    /// Its results so far.
    pub(super) verdicts: Vec<(Key, Trial, Verdict)>,
}

impl Recovery {
    pub(crate) fn new(options: &ConnectionOptions) -> Self {
        Self {
            options: options.clone(),
            queue_names: QueueNames::default(),
            blame: Mutex::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Registers a channel. It comes back after a loss, as long as it has handles. Called under the
    /// outbox's lock.
    pub(crate) fn enlist(&self, channel: &Arc<ChannelState>) {
        let channels = &mut self.state.lock().channels;
        channels.insert(channel.number, Arc::downgrade(channel));
    }

    pub(crate) fn set_secret(&self, secret: &str) {
        self.state.lock().secret = Some(secret.to_owned());
    }

    /// The options for the next connect, with the current secret.
    pub(super) fn options_now(&self) -> ConnectionOptions {
        let mut options = self.options.clone();
        if let Some(secret) = &self.state.lock().secret {
            options.password.clone_from(secret);
        }
        options
    }

    /// The channels that have not ended.
    pub(crate) fn channels(&self) -> Vec<Arc<ChannelState>> {
        let state = self.state.lock();
        let mut channels: Vec<_> = state.channels.values().filter_map(Weak::upgrade).collect();
        // `enlist` takes these two locks in the other order.
        drop(state);
        channels.retain(|it| it.end_cause().is_none());
        channels
    }
}
