//! Many threads provoke channel errors on one connection. No error may cost the connection, and the
//! program must be told the truth about each message.
//!
//! `LEVERET_STRESS_SECONDS` makes each test longer. `LEVERET_STRESS_SEED` replays the choices of
//! the threads in a run; the scheduler still decides how they interleave.

mod accounts;
mod worker;

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashSet};
use std::fmt::{Debug, Write};
use std::hash::{BuildHasher, Hasher};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use leveret::{
    AckMode, Channel, ClosedBy, Connection, ConnectionEvent, Error, ErrorKind, Publisher,
    QueueDeclareOptions, ReplyCode, Result,
};

use crate::support::proxy::Proxy;
use crate::support::url;
use accounts::{Queues, Sent};

const THREADS: usize = 32;
/// How many channels the threads share. Each thread also has its own channel.
const SHARED: usize = 4;
const SECONDS: u64 = 6;
/// The timeout of calls, publishes and confirms.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How much longer than its timeout a call may take on a busy machine.
const MARGIN: Duration = Duration::from_secs(5);
/// How long the threads may take to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest pause between two cuts, in milliseconds.
const PAUSE: usize = 600;
/// One cut in four comes within this time after the previous one, and so meets the recovery.
const SHORT_PAUSE: usize = 40;
/// The names of missing entities contain this.
const MISSING: &str = "missing";
/// No broker reaches delivery tags beyond this.
const UNKNOWN_TAG: u64 = 1 << 62;

#[test]
fn no_channel_error_costs_the_connection() {
    run_all(false);
}

#[test]
fn only_a_cut_costs_the_connection() {
    run_all(true);
}

/// What the threads do. A bug that costs the connection many times a second hides others, so two of
/// three runs leave something out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mixture {
    Everything,
    WithoutConsumers,
    WithoutErrors,
}

const MIXTURES: [Mixture; 3] = [
    Mixture::Everything,
    Mixture::WithoutConsumers,
    Mixture::WithoutErrors,
];

fn run_all(with_cuts: bool) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let random_seed = || RandomState::new().build_hasher().finish();
    let seed = variable("LEVERET_STRESS_SEED").unwrap_or_else(random_seed);
    let time = Duration::from_secs(variable("LEVERET_STRESS_SECONDS").unwrap_or(SECONDS));
    eprintln!("LEVERET_STRESS_SEED={seed}, {time:?}, with cuts: {with_cuts}");
    let time = time / MIXTURES.len() as u32;
    let faults = MIXTURES.map(|mixture| Stress::run(mixture, with_cuts, seed, time));
    let faults = faults.concat();
    assert!(faults.is_empty(), "LEVERET_STRESS_SEED={seed}{faults}");
}

/// Reads an environment variable. Panics if its value cannot be parsed.
pub(crate) fn variable<T: FromStr<Err: Debug>>(name: &str) -> Option<T> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap())
}

/// Pseudo-random numbers that depend only on the seed (SplitMix64).
pub(crate) struct Random(u64);

impl Random {
    /// The sequence for one part of a run.
    pub(crate) fn of(seed: u64, part: usize) -> Self {
        Self(Self(seed.wrapping_add(part as u64)).next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    pub(crate) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    /// Picks one of these, as often as its weight says.
    fn pick<T: Copy>(&mut self, weighted: &[(usize, T)]) -> T {
        let mut place = self.below(weighted.iter().map(|(weight, _)| weight).sum());
        let found = weighted.iter().find(|(weight, _)| {
            let is_here = place < *weight;
            place = place.saturating_sub(*weight);
            is_here
        });
        found.unwrap().1
    }
}

/// What should not have happened. Texts that differ only in numbers count as one, and the first is
/// kept.
#[derive(Default)]
struct Faults(Mutex<BTreeMap<String, (u64, String)>>);

impl Faults {
    fn add(&self, text: String) {
        let parts = text.split(|it: char| it.is_ascii_digit());
        let parts: Vec<_> = parts.filter(|it| !it.is_empty()).collect();
        let mut faults = self.0.lock().unwrap();
        faults.entry(parts.join("#")).or_insert((0, text)).0 += 1;
    }

    /// Lists the most frequent fault first.
    fn report(&self, mixture: Mixture) -> String {
        let faults = self.0.lock().unwrap();
        let mut all: Vec<_> = faults.values().collect();
        all.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        let mut report = String::new();
        for (count, first) in all {
            let _ = write!(report, "\n{mixture:?} {count:4} × {first}");
        }
        report
    }
}

/// A channel, with what the test knows of it.
struct Tracked {
    id: u32,
    channel: Channel,
    publisher: Option<Publisher>,
    is_shared: bool,
    /// All delivery tags so far. They keep increasing when the channel is reopened.
    delivery_tags: Mutex<HashSet<u64>>,
    /// Deliveries up to this tag were acknowledged together.
    settled_to: AtomicU64,
    /// The sequence number of the last published message.
    published: AtomicU64,
}

/// What all threads of a run share.
struct Stress {
    mixture: Mixture,
    seed: u64,
    until: Instant,
    connection: Connection,
    queues: Queues,
    shared: [Mutex<Option<Arc<Tracked>>>; SHARED],
    next_id: AtomicU32,
    /// What each thread is doing, and since when.
    doing: Vec<Mutex<(&'static str, Instant)>>,
    faults: Faults,
}

impl Stress {
    /// Runs the threads. Returns the faults, one a line.
    fn run(mixture: Mixture, with_cuts: bool, seed: u64, time: Duration) -> String {
        let proxy = Proxy::start(&url());
        // Long messages have several frames.
        let options = proxy.options().frame_max(8192);
        let options = options.request_timeout(TIMEOUT).publish_timeout(TIMEOUT);
        let now = Instant::now();
        let stress = Arc::new(Self {
            mixture,
            seed,
            until: now + time,
            connection: Connection::open_with(&options).unwrap(),
            queues: Queues::declare(),
            shared: Default::default(),
            next_id: AtomicU32::new(0),
            doing: (0..THREADS).map(|_| Mutex::new(("nothing", now))).collect(),
            faults: Faults::default(),
        });
        let mut watch = Watch {
            stress: &stress,
            events: stress.connection.events(),
            pauses: with_cuts.then(|| Random::of(seed, THREADS)),
            cuts: 0,
            losses: 0,
        };
        let start = |number| {
            let stress = Arc::clone(&stress);
            thread::spawn(move || worker::run(&stress, number))
        };
        let threads: Vec<_> = (0..THREADS).map(start).collect();
        watch.until_threads_end(&proxy, &threads);
        let sent = threads.into_iter().flat_map(|it| stress.join(it)).collect();
        stress.check_connection();
        watch.check_events();
        stress.check_messages(sent);
        stress.faults.report(mixture)
    }

    fn goes_on(&self) -> bool {
        Instant::now() < self.until && self.connection.is_open()
    }

    fn fault(&self, text: impl Into<String>) {
        self.faults.add(text.into());
    }

    /// Records an error, unless a thread has provoked it.
    fn check(&self, doing: &str, error: &Error) {
        if !self.is_expected(error) {
            self.fault(format!("{doing}: {error}"));
        }
    }

    fn is_expected(&self, error: &Error) -> bool {
        match error.kind() {
            ErrorKind::ChannelClosed { reason, .. } if reason.by == ClosedBy::Program => {
                reason.code == ReplyCode::SUCCESS
            }
            ErrorKind::ChannelClosed { reason, .. } => is_provoked(reason.code, &reason.text),
            ErrorKind::RecoveryGivenUp { .. } => false,
            // Whether a loss is allowed is checked where its event is read.
            _ if error.is_connection_end() => self.connection.loss_count() > 0,
            ErrorKind::InvalidArgument(text) => {
                let is_tag_in_use = text.starts_with("consumer tag") && text.contains("is in use");
                is_tag_in_use || text.contains("this program has closed the channel")
            }
            _ => false,
        }
    }

    fn join(&self, thread: JoinHandle<Vec<Sent>>) -> Vec<Sent> {
        thread.join().unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>();
            self.fault(format!("a thread panicked: {text:?}"));
            Vec::new()
        })
    }

    /// Checks that the connection is open and usable, and that no channel is left on it.
    fn check_connection(&self) {
        for shared in &self.shared {
            *shared.lock().unwrap() = None;
        }
        if let Some(cause) = self.connection.close_cause() {
            return self.fault(format!("the connection has ended: {cause}"));
        }
        let mut checked = self.check_fresh_channel();
        // The loss after the last cut can come just now.
        if checked.as_ref().is_err_and(Error::is_connection_end) {
            checked = self.check_fresh_channel();
        }
        if let Err(error) = checked {
            self.fault(format!("a fresh channel at the end: {error}"));
        }
        let begin = Instant::now();
        while self.connection.stats().channels > 0 && begin.elapsed() < TIMEOUT {
            thread::sleep(Duration::from_millis(10));
        }
        if self.connection.stats().channels > 0 {
            self.fault("channel numbers are in use without a handle");
        }
        if let Err(error) = self.connection.close() {
            self.fault(format!("closing the connection: {error}"));
        }
    }

    fn check_fresh_channel(&self) -> Result<()> {
        let channel = self.connection.open_channel()?;
        let queue = channel.queue_declare("", QueueDeclareOptions::temporary())?;
        let publisher = channel.publisher()?;
        publisher.publish("", queue.name(), "last")?.wait()?;
        if queue.get_with(AckMode::Automatic)?.is_none() {
            self.fault("a fresh channel at the end: the message is not in its queue");
        }
        Ok(())
    }

    fn report_stuck(&self, threads: &[JoinHandle<Vec<Sent>>]) -> String {
        let mut report = format!("LEVERET_STRESS_SEED={}: threads are stuck", self.seed);
        let all = threads.iter().zip(&self.doing).enumerate();
        for (number, (_, doing)) in all.filter(|(_, (thread, _))| !thread.is_finished()) {
            let (what, since) = *doing.lock().unwrap();
            let _ = write!(report, "\n{number:4}: {what} for {:.1?}", since.elapsed());
        }
        report + &self.faults.report(self.mixture)
    }
}

/// Whether the threads provoke this error of the broker.
fn is_provoked(code: ReplyCode, text: &str) -> bool {
    match code {
        ReplyCode::NOT_FOUND => text.contains(MISSING),
        ReplyCode::PRECONDITION_FAILED => {
            let tag = text.split("unknown delivery tag ").nth(1);
            let tag = tag.and_then(|it| it.parse::<u64>().ok());
            // A reopened channel counts the broker's tags from another number.
            tag.is_some_and(|it| it > UNKNOWN_TAG / 2)
                || text.contains("inequivalent arg")
                || text.contains("cannot switch from confirm to tx mode")
        }
        _ => false,
    }
}

/// Cuts the connection, and reads its events.
struct Watch<'a> {
    stress: &'a Stress,
    events: Receiver<ConnectionEvent>,
    /// The pauses between the cuts, if the run has cuts.
    pauses: Option<Random>,
    cuts: u64,
    losses: u64,
}

impl Watch<'_> {
    fn until_threads_end(&mut self, proxy: &Proxy, threads: &[JoinHandle<Vec<Sent>>]) {
        let until = self.stress.until;
        let mut next_cut = self.next_cut();
        while threads.iter().any(|it| !it.is_finished()) {
            let now = Instant::now();
            let is_late = now > until + PATIENCE;
            assert!(!is_late, "{}", self.stress.report_stuck(threads));
            if next_cut.is_some_and(|at| at <= now && now < until) {
                self.cuts += 1;
                proxy.cut();
                next_cut = self.next_cut();
            }
            match self.events.recv_timeout(Duration::from_millis(5)) {
                Ok(event) => self.check(&event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.events = crossbeam_channel::never(),
            }
        }
    }

    fn next_cut(&mut self) -> Option<Instant> {
        let random = self.pauses.as_mut()?;
        let longest = random.pick(&[(3, PAUSE), (1, SHORT_PAUSE)]);
        Some(Instant::now() + Duration::from_millis(random.below(longest) as u64))
    }

    /// Reads the remaining events.
    fn check_events(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            self.check(&event);
        }
    }

    fn check(&mut self, event: &ConnectionEvent) {
        let is_expected = match event {
            ConnectionEvent::Lost { cause } if is_cut(cause) => {
                self.losses += 1;
                self.losses <= self.cuts
            }
            ConnectionEvent::RecoveryFailed { error, .. } => self.cuts > 0 && is_cut(error),
            // The consumer was started without waiting, and now waits for its missing queue.
            ConnectionEvent::NotRecovered { entity, .. } => entity.to_string().contains(MISSING),
            ConnectionEvent::Recovered { .. } => true,
            ConnectionEvent::ChannelClosed { cause, .. } => self.stress.is_expected(cause),
            ConnectionEvent::Closed { cause } => cause.closed_by() == Some(ClosedBy::Program),
            _ => false,
        };
        if !is_expected {
            self.stress.fault(match event {
                ConnectionEvent::Lost { cause } => format!("lost without a cut: {cause}"),
                other => format!("{other:?}"),
            });
        }
    }
}

fn is_cut(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::SocketClosed { .. } => true,
        // The cut came in the middle of a login.
        ErrorKind::LoginRefused { text, .. } => text.is_empty(),
        _ => false,
    }
}
