//! The recovery thread: attempts to reconnect, retries what is missing, and renews the secret.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::blame::Blame;
use super::outage::{is_login_refused, Outage};
use super::replay::Replay;
use super::retry::Trials;
use super::secret_renewal::Renewal;
use super::state::{Recovery, State};
use super::trial::{Trial, TrialConnection, Verdict};
use super::unrecovered::{Key, Trouble, Unrecovered};
use crate::error::{Error, ErrorKind, Result};
use crate::events::{ConnectionEvent, Entity};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::Mailboxes;
use crate::io_thread::panics;
use crate::io_thread::socket::connect::{connect, Connected};
use crate::io_thread::{Next, Recover, Shared};
use crate::log_line::log_line;

/// The next task of the thread.
enum Task {
    Recover(Error),
    /// Retry what is missing.
    Retry,
    /// Renew the secret.
    Renew(Renewal),
    /// Apply the results of a retry.
    Tried(Vec<(Key, Trial, Verdict)>),
    Nothing,
}

impl Recover for Recovery {
    fn is_on(&self) -> bool {
        self.options.recovery.enabled
    }

    fn lost(self: Arc<Self>, shared: &Arc<Shared>, cause: &Error) -> bool {
        let mut state = self.state.lock();
        if state.is_over {
            return false;
        }
        state.lost = Some(cause.clone());
        self.changed.notify_all();
        let started = self.start(&mut state, shared);
        drop(state);
        is_started(&started, shared)
    }

    fn ended(&self, cause: &Error) {
        self.state.lock().is_over = true;
        self.changed.notify_all();
        for channel in self.channels() {
            channel.end(cause);
        }
    }
}

impl Recovery {
    /// Starts the thread unless it runs.
    fn start(self: &Arc<Self>, state: &mut State, shared: &Arc<Shared>) -> io::Result<()> {
        if state.is_running {
            return Ok(());
        }
        let (recovery, own_shared) = (Arc::clone(self), Arc::clone(shared));
        let thread = thread::Builder::new().name("leveret recovery".to_owned());
        let started = thread.spawn(move || recovery.run(&own_shared));
        state.is_running = started.is_ok();
        started.map(drop)
    }

    /// Renews the secret before `valid_for` is over. `None` means that the secret does not expire.
    pub(crate) fn renew_after(self: &Arc<Self>, shared: &Arc<Shared>, valid_for: Option<Duration>) {
        let Some(valid_for) = valid_for else { return };
        let mut state = self.state.lock();
        if state.is_over {
            return;
        }
        state.renewal = Some(Renewal::of(valid_for, 0));
        let started = self.start(&mut state, shared);
        drop(state);
        is_started(&started, shared);
    }

    fn run(self: &Arc<Self>, shared: &Arc<Shared>) {
        if let Err(message) = panics::catch(|| self.work(shared)) {
            // A fault of this crate, or of the program's SASL mechanism, filter or logger. End the
            // connection, so that no thread waits for ever.
            let thread = "recovery thread";
            shared.closed(Error::new(ErrorKind::Panicked { thread, message }));
            // From now on the IO thread, when it asks for a recovery, learns that none follows.
            self.state.lock().is_over = true;
            shared.outbox.abandon(shared.outbox.epoch());
        }
    }

    fn work(self: &Arc<Self>, shared: &Arc<Shared>) {
        let mut unrecovered = Unrecovered::new(&self.options.recovery);
        let blame = &mut *self.blame.lock();
        loop {
            match self.next_task(&unrecovered) {
                Task::Nothing => return,
                Task::Retry => {
                    let trials = unrecovered.replay(self, shared, blame).retry();
                    self.start_trials(shared, trials);
                }
                Task::Renew(renewal) => {
                    let renewal = renewal.run(&self.options, shared);
                    self.state.lock().renewal = renewal;
                }
                Task::Tried(verdicts) => {
                    let mut replay = unrecovered.replay(self, shared, blame);
                    for (key, trial, verdict) in verdicts {
                        replay.trial_done(&key, trial, verdict);
                    }
                }
                Task::Recover(cause) => {
                    let recovered = self.recover(shared, cause, &mut unrecovered, blame);
                    if let Err(error) = recovered {
                        return shared.closed(error);
                    }
                }
            }
        }
    }

    fn next_task(&self, unrecovered: &Unrecovered) -> Task {
        let mut state = self.state.lock();
        loop {
            if state.is_over {
                return Task::Nothing;
            }
            if let Some(cause) = state.lost.take() {
                return Task::Recover(cause);
            }
            if !state.verdicts.is_empty() {
                return Task::Tried(std::mem::take(&mut state.verdicts));
            }
            let retry = unrecovered.next_retry().filter(|_| !state.is_trying);
            if retry.is_some_and(|it| it.remaining().is_zero()) {
                return Task::Retry;
            }
            if let Some(renewal) = state.renewal.filter(|it| it.next.remaining().is_zero()) {
                state.renewal = None;
                return Task::Renew(renewal);
            }
            let renew = state.renewal.map(|it| it.next);
            match retry.into_iter().chain(renew).min_by_key(Deadline::at) {
                Some(next) => drop(self.changed.wait_until(&mut state, next.at())),
                None if state.is_trying => self.changed.wait(&mut state),
                None => {
                    state.is_running = false;
                    return Task::Nothing;
                }
            }
        }
    }

    /// Runs these trials on another thread and another connection, since they can take long.
    fn start_trials(self: &Arc<Self>, shared: &Arc<Shared>, trials: Trials) {
        if trials.is_empty() {
            return;
        }
        self.state.lock().is_trying = true;
        let (recovery, program) = (Arc::clone(self), Arc::clone(shared));
        let name = "leveret retry".to_owned();
        let started = thread::Builder::new().name(name).spawn(move || {
            let _trying = Trying(&recovery);
            // After a panic, the next retry tries the rest.
            let tried = panics::catch(|| recovery.try_all(&program, trials));
            if let Err(message) = tried {
                log_line!(
                    Error,
                    program.label(),
                    "the retry thread panicked: {message}"
                );
            }
        });
        if let Err(error) = started {
            log_line!(
                Error,
                shared.label(),
                "cannot start the retry thread: {error}"
            );
            self.state.lock().is_trying = false;
        }
    }

    fn try_all(&self, shared: &Shared, trials: Trials) {
        let mut connection = TrialConnection::new(self.options_now(), shared.here());
        for (key, trial) in trials {
            if self.state.lock().is_over {
                return;
            }
            let is_wanted = match &trial {
                Trial::Declare(entity) | Trial::StandIn(entity) => {
                    shared.to_replay.lock().topology.contains(entity)
                }
                Trial::Queue(_) | Trial::Consume(_) => true,
            };
            if !is_wanted {
                continue;
            }
            let verdict = connection.run(&key, &trial);
            self.state.lock().verdicts.push((key, trial, verdict));
            self.changed.notify_all();
        }
    }

    /// Makes attempts until one succeeds or the program closes the connection. Returns an error if
    /// recovery gives up.
    fn recover(
        &self,
        shared: &Arc<Shared>,
        cause: Error,
        unrecovered: &mut Unrecovered,
        blame: &mut Blame,
    ) -> Result<()> {
        let options = &self.options.recovery;
        blame.find_poison(&cause, shared);
        let mut outage = Outage::new(cause, self.relapses());
        loop {
            let delay = outage.delay(options)?;
            if shared.outbox.wait_ended(Deadline::after(delay)) {
                return Ok(());
            }
            outage.begin_attempt();
            log_line!(
                Info,
                shared.label(),
                "attempt {} to recover the connection",
                outage.attempts
            );
            shared.counters.recovery_attempt();
            let mut options_now = self.options_now();
            let left = outage.attempt_ends(options).remaining();
            options_now.connect_timeout = options_now.connect_timeout.min(left);
            let attempted =
                connect::<Mailboxes>(&options_now, shared.last()).and_then(|connected| {
                    self.replay_on(shared, connected, &mut outage, unrecovered, blame)
                });
            match attempted {
                _ if shared.outbox.end_cause().is_some() => return Ok(()),
                Ok(()) => return Ok(()),
                Err(error) if options.give_up_on_refused_login && is_login_refused(&error) => {
                    return Err(outage.given_up(error));
                }
                Err(error) => outage.failed(error, shared, options)?,
            }
        }
    }

    /// Returns the number of losses in a row that came soon after a recovery. After such a loss,
    /// the next connection is likely to be lost soon, too.
    fn relapses(&self) -> u32 {
        let mut state = self.state.lock();
        let is_soon = |up_since: Deadline| up_since.elapsed() < self.options.recovery.max_delay;
        state.relapses = match state.up_since.take().is_some_and(is_soon) {
            true => state.relapses.saturating_add(1),
            false => 0,
        };
        state.relapses
    }

    /// Hands the connection to the IO thread and runs the replay on it.
    fn replay_on(
        &self,
        shared: &Arc<Shared>,
        connected: Connected<Mailboxes>,
        outage: &mut Outage,
        unrecovered: &mut Unrecovered,
        blame: &mut Blame,
    ) -> Result<()> {
        let epoch = shared.outbox.epoch();
        let valid_for = connected.secret_valid_for;
        let renewal = valid_for.map(|it| Renewal::of(it, epoch));
        self.state.lock().renewal = renewal;
        let _ = shared.next.send(Next::Connected(Box::new(connected)));
        let until = outage.attempt_ends(&self.options.recovery);
        let mut replay = Replay::new(self, shared, epoch, until, unrecovered, blame);
        let replayed = replay.run();
        let pending = replay.take_pending();
        drop(replay);
        match &replayed {
            Ok(()) if self.resume_callers(shared, epoch, outage) => {
                unrecovered.epoch = epoch;
                return Ok(());
            }
            Ok(()) => {}
            Err(_) => shared.outbox.abandon(epoch),
        }
        let lost = self.wait_for_loss();
        let cause = lost.or_else(|| replayed.err());
        let cause = cause.unwrap_or_else(|| Error::timed_out(until.duration()));
        let is_culprit_found = match unrecovered.blame(pending, &cause) {
            Some(culprit) => {
                self.insert_harmful(culprit, &cause, unrecovered, shared);
                true
            }
            None => blame.find_poison(&cause, shared),
        };
        if is_culprit_found {
            outage.reset_backoff();
        }
        Err(cause)
    }

    /// Notes that the broker closes the connection for this entity.
    fn insert_harmful(
        &self,
        key: Key,
        cause: &Error,
        unrecovered: &mut Unrecovered,
        shared: &Arc<Shared>,
    ) {
        let trouble = Trouble::Harmful;
        let Entity::Consumer { consumer_tag, .. } = &key.entity else {
            return unrecovered.insert(key, trouble, cause.clone(), shared);
        };
        let channel = self
            .channels()
            .into_iter()
            .find(|it| it.number == key.channel());
        let Some(channel) = channel else { return };
        let recorded = channel.consumers.lock().get(consumer_tag);
        if let Some(recorded) = recorded {
            unrecovered.insert_consumer(&channel, &recorded, trouble, cause.clone(), None, shared);
        }
    }

    /// Waits until the IO thread has noticed the loss. Returns its cause, or `None` if the
    /// connection has ended.
    fn wait_for_loss(&self) -> Option<Error> {
        let mut state = self.state.lock();
        while state.lost.is_none() && !state.is_over {
            self.changed.wait(&mut state);
        }
        state.lost.take()
    }

    /// Lets callers go on. Returns false if the connection was lost again before.
    fn resume_callers(&self, shared: &Shared, epoch: u64, outage: &Outage) -> bool {
        let after = outage.since.elapsed();
        let attempts = outage.attempts;
        let report = || {
            shared.counters.recovered();
            shared.tell(ConnectionEvent::Recovered { attempts, after });
        };
        if !shared.outbox.recovered(epoch, report) {
            return false;
        }
        self.state.lock().up_since = Some(Deadline::after(Duration::MAX));
        shared.counters.tell_recovered(after);
        log_line!(
            Info,
            shared.label(),
            "connected again to {} after {attempts} attempts and {after:.1?}",
            shared.peer().address
        );
        true
    }
}

/// Clears `is_trying` when the retry thread ends, also by a panic.
struct Trying<'a>(&'a Recovery);

impl Drop for Trying<'_> {
    fn drop(&mut self) {
        self.0.state.lock().is_trying = false;
        self.0.changed.notify_all();
    }
}

/// Logs why the recovery thread was not started. Not under the lock of [`State`]: the log needs the
/// connection's label.
fn is_started(started: &io::Result<()>, shared: &Shared) -> bool {
    if let Err(error) = started {
        let label = shared.label();
        log_line!(Error, label, "cannot start the recovery thread: {error}");
    }
    started.is_ok()
}
