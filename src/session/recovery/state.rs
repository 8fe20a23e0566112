//! What a recovery has to know, over all sockets of one connection.

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

/// What outlasts the sockets of one connection, beside its [`Shared`](crate::io_thread::Shared).
pub(crate) struct Recovery {
    pub(super) options: ConnectionOptions,
    /// By their numbers.
    pub(super) channels: Mutex<BTreeMap<u16, Weak<ChannelState>>>,
    pub(crate) queue_names: QueueNames,
    /// What the program has given in the place of the password since.
    pub(super) secret: Mutex<Option<String>>,
    /// The thread has it while it runs.
    pub(super) blame: Mutex<Blame>,
    pub(super) progress: Mutex<Progress>,
    pub(super) changed: Condvar,
}

#[derive(Default)]
pub(super) struct Progress {
    /// There is a thread.
    pub(super) is_running: bool,
    /// The cause of a loss that it has not seen yet.
    pub(super) lost: Option<Error>,
    /// Nothing comes back any more.
    pub(super) is_over: bool,
    /// How long the connection holds, since it came back.
    pub(super) holds: Option<Deadline>,
    /// How often in a row it was lost again soon after it came back.
    pub(super) relapses: u32,
    /// When the secret is to be renewed.
    pub(super) renewal: Option<Renewal>,
    /// Another thread tries what is missing.
    pub(super) is_trying: bool,
    /// What came of that so far.
    pub(super) verdicts: Vec<(Key, Trial, Verdict)>,
}

impl Recovery {
    pub(crate) fn new(options: &ConnectionOptions) -> Self {
        Self {
            options: options.clone(),
            channels: Mutex::default(),
            queue_names: QueueNames::default(),
            secret: Mutex::default(),
            blame: Mutex::default(),
            progress: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// The channel comes back, as long as it has handles. Under the outbox's lock.
    pub(crate) fn enlist(&self, channel: &Arc<ChannelState>) {
        let mut channels = self.channels.lock();
        channels.insert(channel.number, Arc::downgrade(channel));
    }

    pub(crate) fn set_secret(&self, secret: &str) {
        *self.secret.lock() = Some(secret.to_owned());
    }

    /// To connect with.
    pub(super) fn options_now(&self) -> ConnectionOptions {
        let mut options = self.options.clone();
        if let Some(secret) = &*self.secret.lock() {
            options.password.clone_from(secret);
        }
        options
    }

    /// Those that have not ended.
    pub(super) fn channels(&self) -> Vec<Arc<ChannelState>> {
        let channels = self.channels.lock();
        let channels = channels.values().filter_map(Weak::upgrade);
        channels.filter(|it| it.end.cause().is_none()).collect()
    }
}
