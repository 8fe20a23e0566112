//! Brings a lost connection back, on a thread of its own: connects again, then does with calls that wait what any thread
//! of the program could do. Only that the outbox lets it pass while all others wait.

mod declaring;
mod missing;
mod opening;
mod publishing;
mod replay;

use std::collections::hash_map::RandomState;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::channel::ChannelState;
use crate::connect::{connect, Connected};
use crate::deadline::Deadline;
use crate::error::{Error, ErrorKind, Result};
use crate::events::ConnectionEvent;
use crate::io_thread::{Link, Next};
use crate::mailbox::{ChannelMailbox, Mailboxes, Recover};
use crate::options::ConnectionOptions;
use crate::panics;
use crate::queue::ServerNames;

use missing::Missing;
use replay::Replay;

/// Connecting may take so long, and so may what is done again then, even if less is left of the time for all attempts:
/// the last one shall have a chance.
const LAST_ATTEMPT: Duration = Duration::from_secs(1);

/// What outlasts the sockets of one connection, beside its [`Link`].
pub(crate) struct Recovery {
    options: ConnectionOptions,
    /// By their numbers.
    channels: Mutex<BTreeMap<u16, Weak<ChannelState>>>,
    pub(crate) server_names: ServerNames,
    /// What the program has given in the place of the password since.
    secret: Mutex<Option<String>>,
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Default)]
struct Progress {
    /// There is a thread.
    is_running: bool,
    /// The cause of a loss that it has not seen yet.
    lost: Option<Error>,
    /// Nothing comes back any more.
    is_over: bool,
    /// How long the connection holds, since it came back.
    holds: Option<Deadline>,
    /// How often in a row it was lost again soon after it came back.
    relapses: u32,
}

/// What the thread has to do.
enum Task {
    Recover(Error),
    /// Look for what could not be declared.
    Retry,
    Nothing,
}

impl Recover for Recovery {
    fn is_on(&self) -> bool {
        self.options.recovery.is_on
    }

    fn lost(self: Arc<Self>, link: &Arc<Link>, cause: &Error) -> bool {
        let mut progress = self.progress.lock();
        if progress.is_over {
            return false;
        }
        progress.lost = Some(cause.clone());
        self.changed.notify_all();
        if progress.is_running {
            return true;
        }
        let (recovery, link) = (Arc::clone(&self), Arc::clone(link));
        let thread = thread::Builder::new().name("leveret recovery".to_owned());
        let started = thread.spawn(move || recovery.run(&link));
        progress.is_running = started.is_ok();
        if let Err(error) = &started {
            log::error!("cannot start a thread that recovers the connection: {error}");
        }
        started.is_ok()
    }

    fn ended(&self, cause: &Error) {
        self.progress.lock().is_over = true;
        self.changed.notify_all();
        for channel in self.channels() {
            channel.ended(cause, false);
        }
    }
}

impl Recovery {
    pub(crate) fn new(options: &ConnectionOptions) -> Self {
        Self {
            options: options.clone(),
            channels: Mutex::default(),
            server_names: ServerNames::default(),
            secret: Mutex::default(),
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
    fn options_until(&self, attempt_ends: &Deadline) -> ConnectionOptions {
        let mut options = self.options.clone();
        options.connect_timeout = options.connect_timeout.min(attempt_ends.remaining());
        if let Some(secret) = &*self.secret.lock() {
            options.password.clone_from(secret);
        }
        options
    }

    /// Those that have not ended.
    fn channels(&self) -> Vec<Arc<ChannelState>> {
        let channels = self.channels.lock();
        let channels = channels.values().filter_map(Weak::upgrade);
        channels.filter(|it| it.end.cause().is_none()).collect()
    }

    fn run(&self, link: &Arc<Link>) {
        if let Err(message) = panics::catch(|| self.work(link)) {
            // A fault of this crate, or of the program's SASL mechanism, filter or logger. No
            // thread may wait for ever.
            let thread = "recovery thread";
            link.closed(Error::new(ErrorKind::Panicked { thread, message }));
            // Now the IO thread finds the reason when it asks for a recovery that does not come.
            self.progress.lock().is_over = true;
            link.outbox.give_up(link.outbox.epoch());
        }
    }

    fn work(&self, link: &Arc<Link>) {
        let mut missing = Missing::default();
        loop {
            match self.next_task(&missing) {
                Task::Nothing => return,
                Task::Retry => missing.retry(self, link),
                Task::Recover(cause) => {
                    if let Err(error) = self.recover(link, cause, &mut missing) {
                        return link.closed(error);
                    }
                }
            }
        }
    }

    fn next_task(&self, missing: &Missing) -> Task {
        let mut progress = self.progress.lock();
        let retry = missing.next_retry(&self.options.recovery);
        loop {
            if progress.is_over {
                return Task::Nothing;
            }
            if let Some(cause) = progress.lost.take() {
                return Task::Recover(cause);
            }
            let Some(retry) = retry else {
                progress.is_running = false;
                return Task::Nothing;
            };
            let waited = self.changed.wait_until(&mut progress, retry.at());
            if waited.timed_out() && progress.lost.is_none() && !progress.is_over {
                return Task::Retry;
            }
        }
    }

    /// Attempts until one succeeds, or the program closes the connection. An error if that has to end.
    fn recover(&self, link: &Arc<Link>, cause: Error, missing: &mut Missing) -> Result<()> {
        let mut outage = Outage::new(cause, self.relapses());
        loop {
            let delay = outage.delay(&self.options)?;
            if link.outbox.wait_ended(Deadline::after(delay)) {
                return Ok(());
            }
            outage.attempts += 1;
            log::info!("attempt {} to recover the connection", outage.attempts);
            let attempted =
                connect::<Mailboxes>(&self.options_until(&outage.attempt_ends(&self.options)))
                    .and_then(|connected| self.come_back(link, connected, &outage, missing));
            match attempted {
                _ if link.outbox.end_cause().is_some() => return Ok(()),
                Ok(()) => return Ok(()),
                Err(error) if is_login_refused(&error) => return Err(outage.given_up(error)),
                Err(error) => outage.failed(error, link, &self.options)?,
            }
        }
    }

    /// Whether the connection was lost soon after it had come back, and how often in a row: then there is little hope that
    /// it holds the next time.
    fn relapses(&self) -> u32 {
        let mut progress = self.progress.lock();
        let soon = |held: Deadline| held.elapsed() < self.options.recovery.max_delay;
        progress.relapses = match progress.holds.take().is_some_and(soon) {
            true => progress.relapses.saturating_add(1),
            false => 0,
        };
        progress.relapses
    }

    /// Hands the connection to the IO thread, and does again on it what was done on the lost one.
    fn come_back(
        &self,
        link: &Arc<Link>,
        connected: Connected<Mailboxes>,
        outage: &Outage,
        missing: &mut Missing,
    ) -> Result<()> {
        let epoch = link.outbox.epoch();
        let _ = link.next.send(Next::Connected(Box::new(connected)));
        let until = outage.attempt_ends(&self.options);
        let replayed = Replay::new(self, link, epoch, until, missing).run();
        match replayed {
            Ok(()) if self.came_back(link, epoch, outage) => return Ok(()),
            Ok(()) => {}
            Err(_) => link.outbox.give_up(epoch),
        }
        let lost = self.wait_lost();
        replayed.and(Err(lost.unwrap_or_else(|| Error::timed_out(Duration::ZERO))))
    }

    /// Waits until the IO thread has noticed the loss, and returns its cause; none if that was the end.
    fn wait_lost(&self) -> Option<Error> {
        let mut progress = self.progress.lock();
        while progress.lost.is_none() && !progress.is_over {
            self.changed.wait(&mut progress);
        }
        progress.lost.take()
    }

    /// Lets callers go on. False if the connection was lost again before.
    fn came_back(&self, link: &Link, epoch: u64, outage: &Outage) -> bool {
        let after = outage.since.elapsed();
        let attempts = outage.attempts;
        let tell = || {
            link.counters.recovered();
            link.tell(ConnectionEvent::Recovered { attempts, after });
        };
        if !link.outbox.recovered(epoch, tell) {
            return false;
        }
        self.progress.lock().holds = Some(Deadline::after(Duration::MAX));
        link.counters.tell_recovered(after);
        log::info!(
            "connected again to {} after {attempts} attempts and {after:.1?}",
            link.peer().address
        );
        true
    }
}

/// Between a loss and the recovery from it.
struct Outage {
    cause: Error,
    since: Deadline,
    attempts: u32,
    relapses: u32,
    last: Option<Error>,
    next: Option<Duration>,
}

impl Outage {
    fn new(cause: Error, relapses: u32) -> Self {
        Self {
            cause,
            since: Deadline::after(Duration::MAX),
            attempts: 0,
            relapses,
            last: None,
            next: None,
        }
    }

    /// What is left of the time that it may take.
    fn left(&self, options: &ConnectionOptions) -> Option<Duration> {
        let max_time = options.recovery.max_time;
        max_time.checked_sub(self.since.elapsed())
    }

    fn attempt_ends(&self, options: &ConnectionOptions) -> Deadline {
        let left = self.left(options).unwrap_or_default();
        Deadline::after(left.max(LAST_ATTEMPT))
    }

    /// How long to wait before the next attempt. An error if there is none.
    fn delay(&mut self, options: &ConnectionOptions) -> Result<Duration> {
        let recovery = &options.recovery;
        let left = self.left(options);
        let left = left.filter(|_| self.attempts < recovery.max_attempts);
        let Some(left) = left else {
            let last = self.last.take().unwrap_or_else(|| self.cause.clone());
            return Err(self.given_up(last));
        };
        let delay = self.next.take().unwrap_or_else(|| {
            let attempt = self.attempts.saturating_add(1);
            recovery.delay(attempt.saturating_add(self.relapses), random())
        });
        Ok(delay.min(left))
    }

    fn failed(&mut self, error: Error, link: &Link, options: &ConnectionOptions) -> Result<()> {
        self.last = Some(error.clone());
        let next = self.delay(options)?;
        self.next = Some(next);
        let attempt = self.attempts;
        log::warn!("attempt {attempt} to recover the connection failed, the next one follows in {next:.1?}: {error}");
        link.tell(ConnectionEvent::RecoveryFailed {
            attempt,
            error,
            next,
        });
        Ok(())
    }

    fn given_up(&self, last: Error) -> Error {
        let kind = ErrorKind::RecoveryGivenUp {
            cause: Box::new(self.cause.kind().clone()),
            attempts: self.attempts,
            after: self.since.elapsed(),
            last: Box::new(last.kind().clone()),
        };
        Error::new(kind).caused_by(last)
    }
}

/// Whether nobody who could be reached takes this login any more, and says so: a socket that was closed behind the
/// credentials can also be that of a broker that went away just then.
fn is_login_refused(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::LoginRefused { text, .. } => !text.is_empty(),
        ErrorKind::EndpointsFailed(failed) => {
            let refused = failed.iter().any(|it| is_login_refused(&it.error));
            refused
                && failed.iter().all(|it| {
                    let unreachable = matches!(it.error.kind(), ErrorKind::ConnectFailed { .. });
                    unreachable || is_login_refused(&it.error)
                })
        }
        _ => false,
    }
}

/// The seed of the standard library's hash maps is the randomness at hand.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
