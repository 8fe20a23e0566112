//! The thread that brings a connection back.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::blame::Blame;
use super::outage::{is_login_refused, Outage};
use super::replay::Replay;
use super::retry::Trials;
use super::secret_renewal::Renewal;
use super::state::{Progress, Recovery};
use super::trial::{Trial, TrialConnection, Verdict};
use super::unrecovered::{Key, Trouble, Unrecovered};
use crate::error::{Error, ErrorKind, Result};
use crate::events::{ConnectionEvent, Entity};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::{ChannelMailbox, Mailboxes};
use crate::io_thread::panics;
use crate::io_thread::socket::connect::{connect, Connected};
use crate::io_thread::{Next, Recover, Shared};
use crate::log_line::log_line;

/// What the thread has to do.
enum Task {
    Recover(Error),
    /// Try again what is missing.
    Retry,
    /// Renew the secret.
    Renew(Renewal),
    /// Take in what came of that.
    Tried(Vec<(Key, Trial, Verdict)>),
    Nothing,
}

impl Recover for Recovery {
    fn is_on(&self) -> bool {
        self.options.recovery.is_on
    }

    fn lost(self: Arc<Self>, shared: &Arc<Shared>, cause: &Error) -> bool {
        let mut progress = self.progress.lock();
        if progress.is_over {
            return false;
        }
        progress.lost = Some(cause.clone());
        self.changed.notify_all();
        self.start(&mut progress, shared)
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
    /// Starts the thread, unless it is there. Says whether it is.
    fn start(self: &Arc<Self>, progress: &mut Progress, shared: &Arc<Shared>) -> bool {
        if progress.is_running {
            return true;
        }
        let (recovery, own_shared) = (Arc::clone(self), Arc::clone(shared));
        let thread = thread::Builder::new().name("leveret recovery".to_owned());
        let started = thread.spawn(move || recovery.run(&own_shared));
        progress.is_running = started.is_ok();
        if let Err(error) = &started {
            log_line!(
                Error,
                shared.label(),
                "cannot start a thread that recovers the connection: {error}"
            );
        }
        started.is_ok()
    }

    /// The secret is valid for this long.
    pub(crate) fn renew_after(self: &Arc<Self>, shared: &Arc<Shared>, valid_for: Option<Duration>) {
        let Some(valid_for) = valid_for else { return };
        let mut progress = self.progress.lock();
        if progress.is_over {
            return;
        }
        progress.renewal = Some(Renewal::of(valid_for, 0));
        self.start(&mut progress, shared);
    }

    fn run(self: &Arc<Self>, shared: &Arc<Shared>) {
        if let Err(message) = panics::catch(|| self.work(shared)) {
            // A fault of this crate, or of the program's SASL mechanism, filter or logger. No
            // thread may wait for ever.
            let thread = "recovery thread";
            shared.closed(Error::new(ErrorKind::Panicked { thread, message }));
            // Now the IO thread finds the reason when it asks for a recovery that does not come.
            self.progress.lock().is_over = true;
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
                    self.progress.lock().renewal = renewal;
                }
                Task::Tried(verdicts) => {
                    let mut replay = unrecovered.replay(self, shared, blame);
                    for (key, trial, verdict) in verdicts {
                        replay.tried(&key, trial, verdict);
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
        let mut progress = self.progress.lock();
        loop {
            if progress.is_over {
                return Task::Nothing;
            }
            if let Some(cause) = progress.lost.take() {
                return Task::Recover(cause);
            }
            if !progress.verdicts.is_empty() {
                return Task::Tried(std::mem::take(&mut progress.verdicts));
            }
            let retry = unrecovered.next_retry().filter(|_| !progress.is_trying);
            if retry.is_some_and(|it| it.remaining().is_zero()) {
                return Task::Retry;
            }
            if let Some(renewal) = progress.renewal.filter(|it| it.next.remaining().is_zero()) {
                progress.renewal = None;
                return Task::Renew(renewal);
            }
            let renew = progress.renewal.map(|it| it.next);
            match retry.into_iter().chain(renew).min_by_key(Deadline::at) {
                Some(next) => drop(self.changed.wait_until(&mut progress, next.at())),
                None if progress.is_trying => self.changed.wait(&mut progress),
                None => {
                    progress.is_running = false;
                    return Task::Nothing;
                }
            }
        }
    }

    /// Tries this on another connection and another thread, since it can take its time.
    fn start_trials(self: &Arc<Self>, shared: &Arc<Shared>, trials: Trials) {
        if trials.is_empty() {
            return;
        }
        self.progress.lock().is_trying = true;
        let (recovery, program) = (Arc::clone(self), Arc::clone(shared));
        let name = "leveret retry".to_owned();
        let started = thread::Builder::new().name(name).spawn(move || {
            let _trying = Trying(&recovery);
            // What was not tried is tried the next time.
            let tried = panics::catch(|| recovery.try_all(&program, trials));
            if let Err(message) = tried {
                log_line!(
                    Error,
                    program.label(),
                    "trying again what is missing: {message}"
                );
            }
        });
        if let Err(error) = started {
            log_line!(
                Error,
                shared.label(),
                "cannot start a thread that tries again what is missing: {error}"
            );
            self.progress.lock().is_trying = false;
        }
    }

    fn try_all(&self, shared: &Shared, trials: Trials) {
        let mut connection = TrialConnection::new(self.options_now(), shared.here());
        for (key, trial) in trials {
            if self.progress.lock().is_over {
                return;
            }
            let is_wanted = match &trial {
                Trial::Declare(redeclare) | Trial::StandIn(redeclare) => {
                    shared.topology.lock().contains(redeclare)
                }
                Trial::Queue(_) | Trial::Consume(_) => true,
            };
            if !is_wanted {
                continue;
            }
            let verdict = connection.run(&key, &trial);
            self.progress.lock().verdicts.push((key, trial, verdict));
            self.changed.notify_all();
        }
    }

    /// Attempts until one succeeds, or the program closes the connection. An error if that has to
    /// end.
    fn recover(
        &self,
        shared: &Arc<Shared>,
        cause: Error,
        unrecovered: &mut Unrecovered,
        blame: &mut Blame,
    ) -> Result<()> {
        let options = &self.options.recovery;
        blame.judge(&cause, shared);
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
                    self.come_back(shared, connected, &mut outage, unrecovered, blame)
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

    /// How often in a row the connection was lost soon after it had come back: then there is little
    /// hope that it holds the next time.
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
        shared: &Arc<Shared>,
        connected: Connected<Mailboxes>,
        outage: &mut Outage,
        unrecovered: &mut Unrecovered,
        blame: &mut Blame,
    ) -> Result<()> {
        let epoch = shared.outbox.epoch();
        let valid_for = connected.secret_valid_for;
        let renewal = valid_for.map(|it| Renewal::of(it, epoch));
        self.progress.lock().renewal = renewal;
        let _ = shared.next.send(Next::Connected(Box::new(connected)));
        let until = outage.attempt_ends(&self.options.recovery);
        let mut replay = Replay::new(self, shared, epoch, until, unrecovered, blame);
        let replayed = replay.run();
        let asked = replay.take_asked();
        drop(replay);
        match &replayed {
            Ok(()) if self.came_back(shared, epoch, outage) => {
                unrecovered.epoch = epoch;
                return Ok(());
            }
            Ok(()) => {}
            Err(_) => shared.outbox.abandon(epoch),
        }
        let lost = self.wait_lost();
        let cause = lost.or_else(|| replayed.err());
        let cause = cause.unwrap_or_else(|| Error::timed_out(until.duration()));
        let guilty = unrecovered.blame(asked, &cause);
        let has_hope = match guilty {
            Some(key) => {
                self.leave_out(key, &cause, unrecovered, shared);
                true
            }
            None => blame.judge(&cause, shared),
        };
        if has_hope {
            outage.has_hope();
        }
        Err(cause)
    }

    /// The broker closes the connection for this.
    fn leave_out(
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

    /// Waits until the IO thread has noticed the loss, and returns its cause; none if that was the
    /// end.
    fn wait_lost(&self) -> Option<Error> {
        let mut progress = self.progress.lock();
        while progress.lost.is_none() && !progress.is_over {
            self.changed.wait(&mut progress);
        }
        progress.lost.take()
    }

    /// Lets callers go on. False if the connection was lost again before.
    fn came_back(&self, shared: &Shared, epoch: u64, outage: &Outage) -> bool {
        let after = outage.since.elapsed();
        let attempts = outage.attempts;
        let tell = || {
            shared.counters.recovered();
            shared.tell(ConnectionEvent::Recovered { attempts, after });
        };
        if !shared.outbox.recovered(epoch, tell) {
            return false;
        }
        self.progress.lock().holds = Some(Deadline::after(Duration::MAX));
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

/// Notes that trying is over, whatever happens.
struct Trying<'a>(&'a Recovery);

impl Drop for Trying<'_> {
    fn drop(&mut self) {
        self.0.progress.lock().is_trying = false;
        self.0.changed.notify_all();
    }
}
