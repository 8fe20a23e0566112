//! The thread that brings a connection back.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::aside::{Aside, Trial, Verdict};
use super::blame::Blame;
use super::missing::{Key, Missing, Trouble};
use super::outage::{is_login_refused, Outage};
use super::replay::Replay;
use super::retry::Trials;
use super::secret_renewal::Renewal;
use super::state::{Progress, Recovery};
use crate::error::{Error, ErrorKind, Result};
use crate::events::{ConnectionEvent, Entity};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::{ChannelMailbox, Mailboxes};
use crate::io_thread::panics;
use crate::io_thread::socket::connect::{connect, Connected};
use crate::io_thread::{Link, Next, Recover};
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

    fn lost(self: Arc<Self>, link: &Arc<Link>, cause: &Error) -> bool {
        let mut progress = self.progress.lock();
        if progress.is_over {
            return false;
        }
        progress.lost = Some(cause.clone());
        self.changed.notify_all();
        self.start(&mut progress, link)
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
    fn start(self: &Arc<Self>, progress: &mut Progress, link: &Arc<Link>) -> bool {
        if progress.is_running {
            return true;
        }
        let (recovery, own_link) = (Arc::clone(self), Arc::clone(link));
        let thread = thread::Builder::new().name("leveret recovery".to_owned());
        let started = thread.spawn(move || recovery.run(&own_link));
        progress.is_running = started.is_ok();
        if let Err(error) = &started {
            log_line!(
                Error,
                link.label(),
                "cannot start a thread that recovers the connection: {error}"
            );
        }
        started.is_ok()
    }

    /// The secret is valid for this long.
    pub(crate) fn renew_after(self: &Arc<Self>, link: &Arc<Link>, valid_for: Option<Duration>) {
        let Some(valid_for) = valid_for else { return };
        let mut progress = self.progress.lock();
        if progress.is_over {
            return;
        }
        progress.renewal = Some(Renewal::of(valid_for, 0));
        self.start(&mut progress, link);
    }

    fn run(self: &Arc<Self>, link: &Arc<Link>) {
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

    fn work(self: &Arc<Self>, link: &Arc<Link>) {
        let mut missing = Missing::new(&self.options.recovery);
        let blame = &mut *self.blame.lock();
        loop {
            match self.next_task(&missing) {
                Task::Nothing => return,
                Task::Retry => {
                    let trials = missing.replay(self, link, blame).retry();
                    self.try_aside(link, trials);
                }
                Task::Renew(renewal) => {
                    let renewal = renewal.run(&self.options, link);
                    self.progress.lock().renewal = renewal;
                }
                Task::Tried(verdicts) => {
                    let mut replay = missing.replay(self, link, blame);
                    for (key, trial, verdict) in verdicts {
                        replay.tried(&key, trial, verdict);
                    }
                }
                Task::Recover(cause) => {
                    let recovered = self.recover(link, cause, &mut missing, blame);
                    if let Err(error) = recovered {
                        return link.closed(error);
                    }
                }
            }
        }
    }

    fn next_task(&self, missing: &Missing) -> Task {
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
            let retry = missing.next_retry().filter(|_| !progress.is_trying);
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
    fn try_aside(self: &Arc<Self>, link: &Arc<Link>, trials: Trials) {
        if trials.is_empty() {
            return;
        }
        self.progress.lock().is_trying = true;
        let (recovery, program) = (Arc::clone(self), Arc::clone(link));
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
                link.label(),
                "cannot start a thread that tries again what is missing: {error}"
            );
            self.progress.lock().is_trying = false;
        }
    }

    fn try_all(&self, link: &Link, trials: Trials) {
        let mut aside = Aside::new(self.options_now(), link.here());
        for (key, trial) in trials {
            if self.progress.lock().is_over {
                return;
            }
            let is_wanted = match &trial {
                Trial::Declare(redeclare) | Trial::StandIn(redeclare) => {
                    link.topology.lock().contains(redeclare)
                }
                Trial::Queue(_) | Trial::Consume(_) => true,
            };
            if !is_wanted {
                continue;
            }
            let verdict = aside.run(&key, &trial);
            self.progress.lock().verdicts.push((key, trial, verdict));
            self.changed.notify_all();
        }
    }

    /// Attempts until one succeeds, or the program closes the connection. An error if that has to
    /// end.
    fn recover(
        &self,
        link: &Arc<Link>,
        cause: Error,
        missing: &mut Missing,
        blame: &mut Blame,
    ) -> Result<()> {
        let options = &self.options.recovery;
        blame.judge(&cause, link);
        let mut outage = Outage::new(cause, self.relapses());
        loop {
            let delay = outage.delay(options)?;
            if link.outbox.wait_ended(Deadline::after(delay)) {
                return Ok(());
            }
            outage.begin_attempt();
            log_line!(
                Info,
                link.label(),
                "attempt {} to recover the connection",
                outage.attempts
            );
            link.counters.recovery_attempt();
            let mut options_now = self.options_now();
            let left = outage.attempt_ends(options).remaining();
            options_now.connect_timeout = options_now.connect_timeout.min(left);
            let attempted = connect::<Mailboxes>(&options_now, link.last())
                .and_then(|connected| self.come_back(link, connected, &mut outage, missing, blame));
            match attempted {
                _ if link.outbox.end_cause().is_some() => return Ok(()),
                Ok(()) => return Ok(()),
                Err(error) if options.give_up_on_refused_login && is_login_refused(&error) => {
                    return Err(outage.given_up(error));
                }
                Err(error) => outage.failed(error, link, options)?,
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
        link: &Arc<Link>,
        connected: Connected<Mailboxes>,
        outage: &mut Outage,
        missing: &mut Missing,
        blame: &mut Blame,
    ) -> Result<()> {
        let epoch = link.outbox.epoch();
        let valid_for = connected.secret_valid_for;
        let renewal = valid_for.map(|it| Renewal::of(it, epoch));
        self.progress.lock().renewal = renewal;
        let _ = link.next.send(Next::Connected(Box::new(connected)));
        let until = outage.attempt_ends(&self.options.recovery);
        let mut replay = Replay::new(self, link, epoch, until, missing, blame);
        let replayed = replay.run();
        let asked = replay.take_asked();
        drop(replay);
        match &replayed {
            Ok(()) if self.came_back(link, epoch, outage) => {
                missing.epoch = epoch;
                return Ok(());
            }
            Ok(()) => {}
            Err(_) => link.outbox.give_up(epoch),
        }
        let lost = self.wait_lost();
        let cause = lost.or_else(|| replayed.err());
        let cause = cause.unwrap_or_else(|| Error::timed_out(until.duration()));
        let guilty = missing.blame(asked, &cause);
        let has_hope = match guilty {
            Some(key) => {
                self.leave_out(key, &cause, missing, link);
                true
            }
            None => blame.judge(&cause, link),
        };
        if has_hope {
            outage.has_hope();
        }
        Err(cause)
    }

    /// The broker closes the connection for this.
    fn leave_out(&self, key: Key, cause: &Error, missing: &mut Missing, link: &Arc<Link>) {
        let trouble = Trouble::Harmful;
        let Entity::Consumer { consumer_tag, .. } = &key.entity else {
            return missing.insert(key, trouble, cause.clone(), link);
        };
        let channel = self
            .channels()
            .into_iter()
            .find(|it| it.number == key.channel());
        let Some(channel) = channel else { return };
        let wanted = channel.consumers.lock().get(consumer_tag);
        if let Some(wanted) = wanted {
            missing.insert_consumer(&channel, &wanted, trouble, cause.clone(), None, link);
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
        log_line!(
            Info,
            link.label(),
            "connected again to {} after {attempts} attempts and {after:.1?}",
            link.peer().address
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
