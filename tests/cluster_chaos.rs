//! Kills, stops and cuts off the nodes of a cluster under load: `tests/cluster test`.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Write};
use std::hash::{BuildHasher, Hasher};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use leveret::{
    AckMode, Channel, Confirm, Connection, ConnectionEvent, ConnectionOptions, Consumer, Entity,
    Error, ErrorKind, ExchangeDeclareOptions, ExchangeKind, FieldTable, Message, Publisher,
    PublisherOptions, QueueDeclareOptions, RecoveryOptions, Result, Settlement, WorkerOptions,
    Workers,
};

use crate::stress::{variable, Random};
use crate::support::proxy::Proxy;

const NODES: usize = 3;
const PUBLISHERS: u64 = 4;
const MESSAGES: u64 = 200_000;
const FAULTS: u64 = 20;
/// The timeout of calls, publishes and confirms.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How much longer than its timeout a call may take on a busy machine.
const MARGIN: Duration = Duration::from_secs(5);
/// How long a handle may wait in total, over all its timeouts. The longest fault takes 20 seconds,
/// and the restart of a node on a busy machine a minute.
const PATIENCE: Duration = Duration::from_secs(180);
const WINDOW: u32 = 300;
const EXCHANGE: &str = "chaos";
const CALLS: &str = "chaos calls";

#[test]
#[ignore = "takes four minutes and a cluster: `tests/cluster test`"]
fn nothing_is_lost() {
    let seed = variable("LEVERET_CLUSTER_SEED").unwrap_or_else(|| {
        let random = RandomState::new();
        random.build_hasher().finish() >> 32
    });
    let messages = variable("LEVERET_CLUSTER_MESSAGES").unwrap_or(MESSAGES);
    let faults = variable("LEVERET_CLUSTER_FAULTS").unwrap_or(FAULTS);
    println!("LEVERET_CLUSTER_SEED={seed}: {messages} messages, {faults} faults");
    let chaos = Arc::new(Chaos::new(messages / PUBLISHERS, faults));
    // One connection for each publisher and each consumer, and one for the caller.
    let mut connections: Vec<_> = (0..=2 * PUBLISHERS as usize)
        .map(|number| chaos.connect(number))
        .collect();
    let listen = |connection: &Connection| {
        let (events, chaos) = (connection.events(), Arc::clone(&chaos));
        thread::spawn(move || chaos.listen(events))
    };
    let listeners: Vec<_> = connections.iter().map(listen).collect();
    let mut threads = Vec::new();
    let all = connections.clone();
    let mut start = |name: String, run: fn(&Doer, &Connection, u64) -> Option<()>, number| {
        let doer = chaos.doer(name);
        let connection = connections.pop().unwrap();
        threads.push(thread::spawn(move || run(&doer, &connection, number)));
    };
    for number in 0..PUBLISHERS {
        start(format!("publisher {number}"), publish, number);
        let run = if number % 2 == 0 { consume } else { work };
        start(format!("consumer {number}"), run, number);
    }
    start("caller".to_owned(), call, 0);
    chaos.make_faults(seed, &all);
    chaos.wait_for_messages();
    // Reports stuck threads by name: joining them would hang.
    let begin = Instant::now();
    while threads.iter().any(|thread| !thread.is_finished()) {
        let stuck = begin.elapsed() > PATIENCE;
        assert!(!stuck, "threads are stuck: {}", chaos.report_stuck());
        thread::sleep(Duration::from_millis(10));
    }
    for thread in threads {
        thread.join().unwrap();
    }
    let doer = chaos.doer("the end".to_owned());
    for connection in &all {
        let _ = doer.call("connection.close", || connection.close());
    }
    // The close is the last event, so the listeners end.
    for listener in listeners {
        listener.join().unwrap();
    }
    chaos.report(seed);
}

/// Counts errors and events. Texts that differ only in numbers count as one, and the first is kept.
#[derive(Default)]
struct Tally(Mutex<BTreeMap<String, (u64, String)>>);

impl Tally {
    fn add(&self, text: String) {
        let parts = text.split(|it: char| it.is_ascii_digit());
        let parts: Vec<_> = parts.filter(|it| !it.is_empty()).collect();
        let mut all = self.0.lock().unwrap();
        all.entry(parts.join("#")).or_insert((0, text)).0 += 1;
    }
}

/// Lists the most frequent text first.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.0.lock().unwrap();
        let mut all: Vec<_> = all.values().collect();
        all.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        all.into_iter()
            .try_for_each(|(count, first)| write!(f, "\n  {count:5} × {first}"))
    }
}

/// What a thread is doing, and since when.
type Doing = Mutex<(&'static str, Instant)>;

struct Chaos {
    begin: Instant,
    proxies: Vec<Proxy>,
    /// Number of messages of each publisher.
    each: u64,
    faults: u64,
    /// How many faults are over, and since when. It paces the publishers.
    pace: Mutex<(u64, Instant)>,
    /// How often each message was received.
    received: Vec<AtomicU8>,
    first_receipts: AtomicU64,
    confirmed: Vec<AtomicBool>,
    confirms: AtomicU64,
    /// Number of messages that the program published again after an error.
    retries: AtomicU64,
    ends: AtomicBool,
    threads: Mutex<Vec<(String, Arc<Doing>)>>,
    recoveries: Mutex<Vec<Duration>>,
    longest_confirm: Mutex<Duration>,
    longest_call: Mutex<(Duration, &'static str)>,
    events: Tally,
    errors: Tally,
    /// What must not happen.
    failures: Tally,
}

impl Chaos {
    fn new(each: u64, faults: u64) -> Self {
        let uri = script(&["uri"]);
        let uri = String::from_utf8(uri.stdout).unwrap();
        let addresses = uri.trim().strip_prefix("amqp://guest:guest@").unwrap();
        let addresses = addresses.strip_suffix("/%2f").unwrap().split(',');
        let proxies: Vec<_> = addresses
            .map(|address| Proxy::start(&format!("amqp://guest@{address}")))
            .collect();
        assert_eq!(proxies.len(), NODES);
        let messages = (each * PUBLISHERS) as usize;
        Self {
            begin: Instant::now(),
            proxies,
            each,
            faults,
            pace: Mutex::new((0, Instant::now())),
            received: (0..messages).map(|_| AtomicU8::new(0)).collect(),
            first_receipts: AtomicU64::new(0),
            confirmed: (0..messages).map(|_| AtomicBool::new(false)).collect(),
            confirms: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            ends: AtomicBool::new(false),
            threads: Mutex::default(),
            recoveries: Mutex::default(),
            longest_confirm: Mutex::default(),
            longest_call: Mutex::new((Duration::ZERO, "nothing")),
            events: Tally::default(),
            errors: Tally::default(),
            failures: Tally::default(),
        }
    }

    /// Opens a connection. Each connection prefers another node.
    fn connect(&self, number: usize) -> Connection {
        let ports = (0..NODES).map(|it| self.proxies[(number + it) % NODES].port());
        let mut ports = ports.collect::<VecDeque<_>>();
        let options = ConnectionOptions::default()
            .host("127.0.0.1")
            .port(ports.pop_front().unwrap())
            .connection_name(format!("chaos {number}"))
            .connect_timeout(Duration::from_secs(6))
            .request_timeout(TIMEOUT)
            .publish_timeout(TIMEOUT)
            .heartbeat(Duration::from_secs(4))
            .recovery(RecoveryOptions::default().max_delay(Duration::from_secs(2)));
        let options = ports
            .into_iter()
            .fold(options, |options, port| options.endpoint("127.0.0.1", port));
        Connection::open_with(&options).unwrap()
    }

    fn say(&self, text: impl fmt::Display) {
        println!("{:6.1} s  {text}", self.begin.elapsed().as_secs_f64());
    }

    fn doer(self: &Arc<Self>, name: String) -> Doer {
        let now = Arc::new(Mutex::new(("nothing", Instant::now())));
        let entry = (name.clone(), Arc::clone(&now));
        self.threads.lock().unwrap().push(entry);
        Doer {
            chaos: Arc::clone(self),
            name,
            now,
        }
    }

    fn report_stuck(&self) -> String {
        let mut report = String::new();
        for (name, doing) in &*self.threads.lock().unwrap() {
            let (what, since) = *doing.lock().unwrap();
            let _ = write!(report, "\n  {name}: {what} for {:.1?}", since.elapsed());
        }
        report
    }

    // ---- messages ----

    /// How many messages a publisher may have published by now. The messages are divided evenly
    /// among the faults. During a fault, publishing slows down but never stops; after the fault,
    /// the rest follows at once. So each fault meets messages in flight.
    fn allowed(&self) -> u64 {
        let (over, since) = *self.pace.lock().unwrap();
        if over >= self.faults {
            return self.each;
        }
        let seconds = since.elapsed().as_secs_f64();
        let part = seconds / (seconds + 5.0);
        (self.each as f64 * (over as f64 + part) / (self.faults + 1) as f64) as u64
    }

    fn is_over(&self) -> bool {
        self.ends.load(Ordering::SeqCst)
    }

    fn receive(&self, body: &[u8]) {
        let id = body.first_chunk().map(|it| u64::from_be_bytes(*it));
        let Some(count) = id.and_then(|id| self.received.get(id as usize)) else {
            return self
                .failures
                .add("a message that no publisher sent".to_owned());
        };
        if count.fetch_add(1, Ordering::SeqCst) == 0 {
            self.first_receipts.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn confirm(&self, id: u64, after: Duration) {
        if !self.confirmed[id as usize].swap(true, Ordering::SeqCst) {
            self.confirms.fetch_add(1, Ordering::SeqCst);
        }
        let mut longest = self.longest_confirm.lock().unwrap();
        *longest = after.max(*longest);
    }

    /// Waits until all messages are confirmed and received, or none has come for [`PATIENCE`].
    fn wait_for_messages(&self) {
        let (mut last, mut since) = ((0, 0), Instant::now());
        let messages = self.received.len() as u64;
        loop {
            let now = (
                self.confirms.load(Ordering::SeqCst),
                self.first_receipts.load(Ordering::SeqCst),
            );
            if now == (messages, messages) {
                break;
            }
            if now != last {
                (last, since) = (now, Instant::now());
            }
            if since.elapsed() > PATIENCE {
                let stuck = self.report_stuck();
                let text = format!("{now:?} of {messages} were confirmed and received{stuck}");
                self.failures.add(text);
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.ends.store(true, Ordering::SeqCst);
    }

    // ---- events ----

    /// Counts the events of one connection, until its end.
    fn listen(&self, events: Receiver<ConnectionEvent>) {
        // Entities that the client has not recovered yet.
        let mut missing: Vec<Entity> = Vec::new();
        for event in events {
            let text = match event {
                ConnectionEvent::Lost { cause } => {
                    // The next recovery starts over.
                    missing.clear();
                    format!("lost: {cause}")
                }
                ConnectionEvent::RecoveryFailed { error, .. } => {
                    format!("an attempt to recover failed: {error}")
                }
                ConnectionEvent::Recovered { after, .. } => {
                    self.recoveries.lock().unwrap().push(after);
                    continue;
                }
                ConnectionEvent::NotRecovered { entity, error } => {
                    let text = format!("not recovered: {entity}: {error}");
                    missing.push(entity);
                    text
                }
                ConnectionEvent::RecoveredLater { entity } => {
                    missing.retain(|it| *it != entity);
                    format!("recovered later: {entity}")
                }
                ConnectionEvent::Closed { cause } if !self.is_over() => {
                    self.failures.add(format!("closed for good: {cause}"));
                    continue;
                }
                ConnectionEvent::Closed { .. } => continue,
                other => format!("{other:?}"),
            };
            self.events.add(text);
        }
        for entity in missing {
            self.failures.add(format!("never recovered: {entity}"));
        }
    }

    // ---- faults ----

    fn make_faults(&self, seed: u64, connections: &[Connection]) {
        let mut random = Random::of(seed, 0);
        let mut kinds = VecDeque::new();
        for number in 0..self.faults {
            // All kinds equally often, in an order that depends on the seed.
            if kinds.is_empty() {
                let mut all = FaultKind::ALL.to_vec();
                while !all.is_empty() {
                    kinds.push_back(all.swap_remove(random.below(all.len())));
                }
            }
            thread::sleep(Duration::from_millis(500 + random.below(3500) as u64));
            let kind = kinds.pop_front().unwrap();
            // In two of three cases, choose a node that has connections.
            let connection = &connections[random.below(connections.len())];
            let any = random.below(NODES);
            let port = connection.peer_addr().port();
            let at = self.proxies.iter().position(|proxy| proxy.port() == port);
            let node = if random.one_in(3) { any } else { at.unwrap() };
            let seconds = random.below(kind.longest() + 1);
            let waits = random.one_in(2);
            let recoveries = self.recoveries.lock().unwrap().len();
            let confirmed = self.confirms.load(Ordering::SeqCst);
            self.say(format_args!(
                "fault {number}: {kind:?} at node {}, {seconds} s; {confirmed} confirmed",
                node + 1
            ));
            self.make_fault(kind, node, Duration::from_secs(seconds as u64));
            self.wait_for_node(node);
            if waits {
                self.wait_for_recoveries(connections);
            }
            let recoveries = self.recoveries.lock().unwrap().split_off(recoveries);
            self.say(match recoveries.iter().max() {
                Some(longest) => {
                    let count = recoveries.len();
                    format!("        over; {count} recoveries, {longest:.1?} at most")
                }
                None => "        over; no connection was lost".to_owned(),
            });
            self.recoveries.lock().unwrap().extend(recoveries);
            *self.pace.lock().unwrap() = (number + 1, Instant::now());
        }
    }

    fn make_fault(&self, kind: FaultKind, at: usize, time: Duration) {
        let node = &(at + 1).to_string();
        match kind {
            FaultKind::Kill => {
                script(&["signal", node, "KILL"]);
                thread::sleep(time);
                script(&["start", node]);
            }
            FaultKind::Stop => {
                script(&["signal", node, "STOP"]);
                thread::sleep(time);
                script(&["signal", node, "CONT"]);
            }
            FaultKind::StopApp => {
                script(&["ctl", node, "stop_app"]);
                thread::sleep(time);
                script(&["ctl", node, "start_app"]);
            }
            FaultKind::Cut => {
                let proxy = &self.proxies[at];
                proxy.refuse(true);
                proxy.cut();
                thread::sleep(time);
                proxy.refuse(false);
            }
            FaultKind::Transfer => {
                // To this node, from the current leader of each queue.
                let letter = ["a", "b", "c"][at];
                let transfer = format!(
                    "[rabbit_quorum_queue:transfer_leadership(Q, {letter}@localhost) || Q <- rabbit_amqqueue:list()]."
                );
                script(&["ctl", node, "eval", &transfer]);
                thread::sleep(time);
            }
        }
    }

    /// Waits until the cluster could lose another node: then this node is back with its replicas of
    /// all queues.
    fn wait_for_node(&self, at: usize) {
        let other = ((at + 1) % NODES + 1).to_string();
        let begin = Instant::now();
        loop {
            let output = run_script(&["queues", &other, "check_if_node_is_quorum_critical"]);
            if output.status.success() {
                return;
            }
            let late = begin.elapsed() > PATIENCE;
            assert!(!late, "node {} is not back: {output:?}", at + 1);
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn wait_for_recoveries(&self, connections: &[Connection]) {
        let begin = Instant::now();
        let is_any_lost = || connections.iter().any(|it| it.loss_cause().is_some());
        while is_any_lost() && begin.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(10));
        }
    }

    // ---- the end ----

    fn report(&self, seed: u64) {
        let mut recoveries = self.recoveries.lock().unwrap().clone();
        recoveries.sort();
        let median = recoveries.get(recoveries.len() / 2).copied();
        let max = recoveries.last().copied();
        let count = |condition: &dyn Fn(u8) -> bool| {
            let counts = self.received.iter().map(|it| it.load(Ordering::SeqCst));
            counts.filter(|it| condition(*it)).count()
        };
        let again: u64 = self
            .received
            .iter()
            .map(|it| u64::from(it.load(Ordering::SeqCst).saturating_sub(1)))
            .sum();
        println!(
            "{:.1?} in all; {} messages confirmed, {} received, {again} received again, {} published again by the program",
            self.begin.elapsed(),
            self.confirms.load(Ordering::SeqCst),
            count(&|it| it > 0),
            self.retries.load(Ordering::SeqCst),
        );
        println!(
            "{} recoveries: median {:.2?}, maximum {:.2?}",
            recoveries.len(),
            median.unwrap_or_default(),
            max.unwrap_or_default()
        );
        let (longest, what) = *self.longest_call.lock().unwrap();
        println!(
            "longest wait for a confirm {:.1?}, longest call {longest:.1?} ({what})",
            self.longest_confirm.lock().unwrap()
        );
        println!("events:{}", self.events);
        println!("errors:{}", self.errors);
        let both = self.confirmed.iter().zip(&self.received);
        let missing = both
            .filter(|(confirmed, received)| {
                confirmed.load(Ordering::SeqCst) && received.load(Ordering::SeqCst) == 0
            })
            .count();
        if missing > 0 {
            self.failures
                .add(format!("{missing} confirmed messages are missing"));
        }
        let failures = self.failures.to_string();
        assert!(failures.is_empty(), "LEVERET_CLUSTER_SEED={seed}{failures}");
    }
}

#[derive(Debug, Clone, Copy)]
enum FaultKind {
    /// SIGKILL, and a restart after a while.
    Kill,
    /// SIGSTOP, and SIGCONT after a while.
    Stop,
    StopApp,
    /// Cuts all connections to the node, and refuses new ones for a while.
    Cut,
    /// Makes this node the leader of all queues.
    Transfer,
}

impl FaultKind {
    const ALL: [Self; 5] = [
        Self::Kill,
        Self::Stop,
        Self::StopApp,
        Self::Cut,
        Self::Transfer,
    ];

    /// The longest time that the fault takes, in seconds.
    fn longest(self) -> usize {
        match self {
            Self::Kill | Self::StopApp => 8,
            Self::Stop => 20,
            Self::Cut => 3,
            Self::Transfer => 0,
        }
    }
}

fn run_script(arguments: &[&str]) -> Output {
    Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster"))
        .args(arguments)
        .output()
        .unwrap()
}

fn script(arguments: &[&str]) -> Output {
    let output = run_script(arguments);
    assert!(
        output.status.success(),
        "tests/cluster {arguments:?}: {output:?}"
    );
    output
}

/// A thread of the test.
struct Doer {
    chaos: Arc<Chaos>,
    name: String,
    now: Arc<Doing>,
}

impl Doer {
    /// Makes a call, checks that it returns in time, and counts its error.
    fn call<T>(&self, what: &'static str, call: impl FnOnce() -> Result<T>) -> Result<T> {
        self.call_within(TIMEOUT, what, call)
    }

    fn call_within<T>(
        &self,
        timeout: Duration,
        what: &'static str,
        call: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let begin = Instant::now();
        *self.now.lock().unwrap() = (what, begin);
        let result = call();
        let took = begin.elapsed();
        *self.now.lock().unwrap() = ("nothing", Instant::now());
        if took > timeout + MARGIN {
            let text = format!("{}: {what} took {took:.1?}", self.name);
            self.chaos.failures.add(text);
        }
        let mut longest = self.chaos.longest_call.lock().unwrap();
        if took > longest.0 {
            *longest = (took, what);
        }
        if let Err(error) = &result {
            self.check(what, error);
        }
        result
    }

    fn check(&self, what: &str, error: &Error) {
        let text = format!("{what}: {error}");
        // A fault of the client, or the end of the connection.
        if let ErrorKind::ProtocolViolation { .. }
        | ErrorKind::Panicked { .. }
        | ErrorKind::RecoveryGivenUp { .. }
        | ErrorKind::AlreadySettled { .. }
        | ErrorKind::Returned(_) = error.kind()
        {
            self.chaos.failures.add(format!("{}: {text}", self.name));
        }
        self.chaos.errors.add(text);
    }

    /// Repeats a call until it succeeds or the test is over. Reopens the channel if the broker has
    /// closed it.
    fn insist<T>(
        &self,
        what: &'static str,
        channel: &Channel,
        mut call: impl FnMut() -> Result<T>,
    ) -> Option<T> {
        let begin = Instant::now();
        while !self.chaos.is_over() {
            if let Ok(value) = self.call(what, &mut call) {
                return Some(value);
            }
            if begin.elapsed() > PATIENCE {
                let text = format!("{}: {what} failed for {PATIENCE:?}", self.name);
                self.chaos.failures.add(text);
                return None;
            }
            if !channel.is_open() {
                let _ = self.call("channel.open, again", || channel.reopen());
            }
            thread::sleep(Duration::from_millis(50));
        }
        None
    }

    fn open(&self, connection: &Connection) -> Option<Channel> {
        while !self.chaos.is_over() {
            let opened = self.call("channel.open", || connection.open_channel());
            if opened.is_ok() {
                return opened.ok();
            }
        }
        None
    }

    /// Declares a publisher's queue. All connections do so, so that each recovery declares it
    /// again.
    fn declare(&self, channel: &Channel, number: u64) -> Option<String> {
        let queue = format!("chaos {number}");
        let options = QueueDeclareOptions::quorum()
            // The delivery limit is not under test.
            .argument("x-delivery-limit", -1);
        let exchange = ExchangeDeclareOptions::default();
        self.insist("exchange.declare", channel, || {
            channel.exchange_declare(EXCHANGE, ExchangeKind::Direct, exchange.clone())
        })?;
        self.insist("queue.declare", channel, || {
            channel.queue_declare(&queue, options.clone())
        })?;
        self.insist("queue.bind", channel, || {
            channel.queue_bind(&queue, EXCHANGE, &queue, FieldTable::new())
        })?;
        Some(queue)
    }
}

/// Publishes messages until each is confirmed.
fn publish(doer: &Doer, connection: &Connection, number: u64) -> Option<()> {
    let channel = doer.open(connection)?;
    let queue = doer.declare(&channel, number)?;
    let options = PublisherOptions::default()
        .window(WINDOW)
        .confirm_timeout(TIMEOUT);
    let select = || channel.publisher_with(options.clone());
    let publisher = doer.insist("confirm.select", &channel, select)?;
    let mut publishing = Publishing {
        doer,
        publisher,
        queue,
        pending: VecDeque::new(),
        failed: VecDeque::new(),
    };
    publishing.publish_all(number);
    Some(())
}

struct Publishing<'a> {
    doer: &'a Doer,
    publisher: Publisher,
    queue: String,
    pending: VecDeque<(u64, Instant, Confirm)>,
    failed: VecDeque<u64>,
}

impl Publishing<'_> {
    fn publish_all(&mut self, number: u64) {
        let chaos = &self.doer.chaos;
        let mut next = 0;
        while !chaos.is_over() {
            if let Some(id) = self.failed.pop_front() {
                chaos.retries.fetch_add(1, Ordering::SeqCst);
                self.publish(id);
            } else if next < chaos.allowed() {
                self.publish(number * chaos.each + next);
                next += 1;
            } else if next == chaos.each && self.pending.is_empty() {
                break;
            } else {
                thread::sleep(Duration::from_millis(2));
            }
            let is_full = self.pending.len() >= WINDOW as usize;
            if is_full || next == chaos.each {
                self.conclude();
            }
            while self.is_answered() {
                self.conclude();
            }
        }
    }

    fn is_answered(&self) -> bool {
        let first = self.pending.front();
        first.is_some_and(|(_, _, confirm)| !matches!(confirm.try_wait(), Ok(None)))
    }

    fn publish(&mut self, id: u64) {
        let mut body = id.to_be_bytes().to_vec();
        // One message in 500 has several frames.
        body.resize(if id % 500 == 0 { 200_000 } else { 100 }, 0);
        let (publisher, queue) = (&self.publisher, &self.queue);
        let channel = publisher.channel();
        let publish = || publisher.publish(EXCHANGE, queue, Message::new(&body).persistent(true));
        // A publish may wait for the window, and then for the outbox.
        let published = self.doer.call_within(2 * TIMEOUT, "basic.publish", publish);
        match published {
            Ok(confirm) => self.pending.push_back((id, Instant::now(), confirm)),
            Err(_) => {
                self.failed.push_back(id);
                if !channel.is_open() {
                    let reopen = || channel.reopen();
                    let _ = self.doer.call("channel.open, again", reopen);
                }
            }
        }
    }

    /// Waits for the confirm of the oldest message.
    fn conclude(&mut self) {
        let Some((id, at, confirm)) = self.pending.pop_front() else {
            return;
        };
        let chaos = &self.doer.chaos;
        while at.elapsed() < PATIENCE && !chaos.is_over() {
            match self.doer.call("confirm", || confirm.wait()) {
                Ok(()) => return chaos.confirm(id, at.elapsed()),
                // The confirm can still come.
                Err(error) if error.is_timeout() => {}
                Err(_) => return self.failed.push_back(id),
            }
        }
        let text = format!("message {id} has no confirm after {:.1?}", at.elapsed());
        chaos.failures.add(text);
    }
}

/// Consumes with a `Consumer`.
fn consume(doer: &Doer, connection: &Connection, number: u64) -> Option<()> {
    let channel = doer.open(connection)?;
    let queue = doer.declare(&channel, number)?;
    let begin = || {
        channel.basic_qos(200)?;
        channel.basic_consume(&queue, Default::default())
    };
    while let Some(consumer) = doer.insist("basic.consume", &channel, begin) {
        consume_from(doer, &consumer);
        if !channel.is_open() {
            let _ = doer.call("channel.open, again", || channel.reopen());
        }
    }
    Some(())
}

/// Reads until the consumer ends or the test is over.
fn consume_from(doer: &Doer, consumer: &Consumer) {
    while !doer.chaos.is_over() && !consumer.has_ended() {
        let received = doer.call("receiving", || {
            consumer.recv_timeout(Duration::from_millis(500))
        });
        if let Ok(Some(delivery)) = received {
            doer.chaos.receive(delivery.body());
            let _ = doer.call("basic.ack", || delivery.ack());
        }
    }
}

/// Consumes with `Workers`.
fn work(doer: &Doer, connection: &Connection, number: u64) -> Option<()> {
    let channel = doer.open(connection)?;
    let queue = doer.declare(&channel, number)?;
    let (sender, bodies) = crossbeam_channel::unbounded();
    let mut workers = None;
    let (ended, ends) = crossbeam_channel::unbounded();
    while !doer.chaos.is_over() {
        if workers.is_none() {
            let sender = sender.clone();
            let begun = Workers::new(connection);
            let options = WorkerOptions::default().prefetch(200);
            // Up to three calls wait: opening a channel, setting its prefetch, and consuming.
            let consume = || {
                begun.consume_with(&queue, options, move |delivery| {
                    let _ = sender.send(delivery.body().to_vec());
                    Settlement::Ack
                })
            };
            if doer
                .call_within(3 * TIMEOUT, "Workers::consume", consume)
                .is_err()
            {
                continue;
            }
            let (joined, ended) = (begun.clone(), ended.clone());
            thread::spawn(move || ended.send(joined.join()));
            workers = Some(begun);
        }
        crossbeam_channel::select! {
            recv(bodies) -> body => doer.chaos.receive(&body.unwrap()),
            recv(ends) -> end => {
                if let Err(error) = end.unwrap() {
                    doer.check("Workers", &error);
                }
                workers = None;
            }
            default(Duration::from_millis(100)) => {}
        }
    }
    if let Some(workers) = workers {
        let _ = doer.call("Workers::shutdown", || workers.shutdown(TIMEOUT));
    }
    Some(())
}

/// Makes calls of all kinds.
fn call(doer: &Doer, connection: &Connection, _: u64) -> Option<()> {
    let channel = doer.open(connection)?;
    doer.declare(&channel, 0)?;
    let quorum = QueueDeclareOptions::quorum();
    for round in 0.. {
        if doer.chaos.is_over() {
            break;
        }
        let key = format!("key {}", round % 10);
        let _ = doer.call("queue.declare", || {
            channel.queue_declare(CALLS, quorum.clone())
        });
        let _ = doer.call("queue.bind", || {
            channel.queue_bind(CALLS, "amq.direct", &key, FieldTable::new())
        });
        let publish = || channel.basic_publish("amq.direct", &key, "a call");
        let _ = doer.call("basic.publish", publish);
        let _ = doer.call("basic.get", || channel.basic_get(CALLS, AckMode::Automatic));
        let _ = doer.call("queue.declare, passive", || {
            channel.queue_declare_passive("chaos 0")
        });
        let _ = doer.call("queue.unbind", || {
            channel.queue_unbind(CALLS, "amq.direct", &key, FieldTable::new())
        });
        let _ = doer.call("queue.purge", || channel.queue_purge(CALLS));
        let other = doer.call("channel.open", || connection.open_channel());
        if let Ok(other) = other {
            let _ = doer.call("basic.consume", || {
                other.basic_consume(CALLS, Default::default())
            });
            let _ = doer.call("channel.close", || other.close());
        }
        if !channel.is_open() {
            let _ = doer.call("channel.open, again", || channel.reopen());
        }
        thread::sleep(Duration::from_millis(50));
    }
    Some(())
}
