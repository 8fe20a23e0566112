//! Runs the client below its handles against a broker, in one thread and in virtual time. A seed
//! chooses every step of every party, so a run can be repeated.
//!
//! - `program` does what the handles do, step by step
//! - `hostile_broker` does what RabbitMQ may do; `memory_broker` is the broker of this crate
//! - `ledger` compares what the parties know
//!
//! To repeat one run with its trace:
//! `LEVERET_SIMULATION_SEED=7 cargo test --lib simulation -- --nocapture`
//!
//! To run more of them: `LEVERET_SIMULATION_SEEDS=100000 cargo test --lib simulation`

mod hostile_broker;
mod ledger;
mod memory_broker;
mod program;
mod rng;

use std::io::ErrorKind as IoErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use mio::{Poll, Token, Waker};

use crate::error::{Error, ErrorKind};
use crate::io_thread::engine::{End, Engine};
use crate::io_thread::mailbox::Mailboxes;
use crate::io_thread::outbox::write_buffer::WriteBuffer;
use crate::io_thread::{Next, Peer, Shared};
use crate::log_line::Label;
use crate::options::ConnectionOptions;
use crate::proto::{self, Config, Event, Login};
use crate::wire::frame;
use crate::wire::method::{ConnectionOpenOk, ConnectionStart, ConnectionTune, LongString};
use crate::wire::value::FieldTable;
use hostile_broker::HostileBroker;
use ledger::Ledger;
use memory_broker::MemoryBroker;
use program::Program;
use rng::Rng;

const SEEDS: u64 = 10_000;
const CHANNEL_MAX: u16 = 3;
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Rounds until everything must be quiet.
const ROUNDS: usize = 200;

/// What the simulation needs of a broker.
trait Broker {
    /// Bytes come. The broker reads them when it wants.
    fn receive(&mut self, bytes: &[u8]);
    /// Does one thing, or nothing.
    fn step(&mut self, rng: &mut Rng);
    /// Reads and answers everything. Returns whether there was something to answer.
    fn settle(&mut self, rng: &mut Rng) -> bool;
    fn take_output(&mut self) -> Vec<u8>;
    fn pass(&mut self, now: Instant);
    fn closes_socket(&self) -> bool;
    fn is_silent(&self) -> bool;
    /// Nothing may be left to do.
    fn check_quiet(&self);
}

fn config() -> Config {
    let capabilities = FieldTable::new()
        .with("consumer_cancel_notify", true)
        .with("connection.blocked", true);
    Config {
        login: Login::plain("guest", "guest"),
        vhost: "/".to_owned(),
        client_properties: FieldTable::new().with("capabilities", capabilities),
        channel_max: CHANNEL_MAX,
        frame_max: 131_072,
        heartbeat: HEARTBEAT.as_secs() as u16,
        max_message_size: 1 << 20,
        piecemeal: 4,
    }
}

/// The broker's part of the handshake, for a broker that begins after it.
fn handshake() -> Vec<u8> {
    let mut bytes = Vec::new();
    let start = ConnectionStart {
        version_major: 0,
        version_minor: 9,
        mechanisms: LongString(b"PLAIN".as_slice().into()),
        locales: LongString(b"en_US".as_slice().into()),
        ..ConnectionStart::default()
    };
    let tune = ConnectionTune {
        channel_max: CHANNEL_MAX,
        frame_max: 131_072,
        heartbeat: HEARTBEAT.as_secs() as u16,
    };
    frame::write_method(&mut bytes, 0, &start, usize::MAX).unwrap();
    frame::write_method(&mut bytes, 0, &tune, usize::MAX).unwrap();
    frame::write_method(&mut bytes, 0, &ConnectionOpenOk::default(), usize::MAX).unwrap();
    bytes
}

fn is_opened(core: &mut proto::Connection<Mailboxes>) -> bool {
    std::iter::from_fn(|| core.next_event()).any(|it| matches!(it, Event::Opened))
}

/// A core after its handshake, and its broker.
fn connect(
    rng: &mut Rng,
    ledger: &Ledger,
    now: Instant,
    is_hostile: bool,
) -> (proto::Connection<Mailboxes>, Box<dyn Broker>) {
    let mut core = proto::Connection::new(config(), Label::new("simulation", "nowhere"));
    let temper = rng.below(3);
    if is_hostile {
        core.receive(&handshake(), now);
        assert!(is_opened(&mut core));
        core.take_output(&mut Vec::new());
        let broker = HostileBroker::new(HEARTBEAT, now, ledger.clone(), temper);
        return (core, Box::new(broker));
    }
    let mut broker = MemoryBroker::new(CHANNEL_MAX, HEARTBEAT, now, ledger.clone(), temper);
    while !is_opened(&mut core) {
        let mut bytes = Vec::new();
        core.take_output(&mut bytes);
        broker.receive(&bytes);
        broker.settle(rng);
        core.receive(&broker.take_output(), now);
    }
    (core, Box::new(broker))
}

/// The connection between the engine and the broker.
#[derive(Default)]
struct Wire {
    /// Bytes that the client has read and not consumed.
    input: Vec<u8>,
    to_broker: Vec<u8>,
    to_client: Vec<u8>,
    write_buffer: WriteBuffer,
    is_closed: bool,
}

struct Simulation<'a> {
    rng: Rng,
    ledger: Ledger,
    engine: Engine<'a>,
    broker: Box<dyn Broker>,
    program: Program,
    wire: Wire,
    now: Instant,
    shared: &'a Arc<Shared>,
    is_hostile: bool,
    recovers: bool,
    /// How many losses are recovered from.
    recoveries: usize,
}

/// The first bytes, at most `count`.
fn take(bytes: &mut Vec<u8>, count: usize) -> Vec<u8> {
    bytes.drain(..count.min(bytes.len())).collect()
}

impl Simulation<'_> {
    /// How many bytes go at once.
    fn piece(&mut self) -> usize {
        match self.rng.below(4) {
            0 => 1 + self.rng.below(20),
            1 => 1 + self.rng.below(200),
            _ => usize::MAX,
        }
    }

    fn step(&mut self) {
        match self.rng.weighted(&[10, 6, 4, 6, 4, 10, 1]) {
            0 => self.program.act(&mut self.rng),
            1 => self.write(),
            2 => {
                let count = self.piece();
                let bytes = take(&mut self.wire.to_broker, count);
                self.broker.receive(&bytes);
            }
            3 => {
                let bytes = self.broker.take_output();
                self.wire.to_client.extend(bytes);
                let count = self.piece();
                self.read(count);
            }
            4 => self.engine.handle_requests(),
            5 => self.broker.step(&mut self.rng),
            _ if self.rng.one_in(if self.recovers { 8 } else { 100 }) => {
                self.close_socket(IoErrorKind::ConnectionReset);
            }
            _ => {
                let seconds = self.rng.below(3) as u64;
                self.pass(Duration::from_secs(seconds));
            }
        }
    }

    /// Writes once.
    fn write(&mut self) {
        let Wire { write_buffer, .. } = &mut self.wire;
        if write_buffer.is_empty() && !self.engine.refill(write_buffer) {
            return;
        }
        let count = self.piece();
        let Wire {
            write_buffer,
            to_broker,
            is_closed,
            ..
        } = &mut self.wire;
        let front = write_buffer.front();
        let front = &front[..front.len().min(count)];
        if !*is_closed {
            to_broker.extend_from_slice(front);
        }
        let count = front.len();
        write_buffer.wrote(count);
        self.engine.core.wrote(self.now);
    }

    fn read(&mut self, count: usize) {
        let bytes = take(&mut self.wire.to_client, count);
        if self.engine.end.is_some() || bytes.is_empty() {
            return;
        }
        if !self.engine.may_read(|| self.now) {
            self.ledger.fault("reading pauses without a reason");
        }
        self.wire.input.extend(bytes);
        let consumed = self.engine.receive(&self.wire.input, self.now);
        self.wire.input.drain(..consumed);
        self.engine.wake_readers();
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.broker.pass(self.now);
        // The driver reads before it tells the time, and input that waits counts.
        let bytes = self.broker.take_output();
        self.wire.to_client.extend(bytes);
        if !self.wire.to_client.is_empty() {
            self.engine.core.input_waits(self.now);
        }
        self.engine.handle_timeout(self.now);
    }

    fn close_socket(&mut self, kind: IoErrorKind) {
        self.ledger.trace(|| "the socket ends".to_owned());
        self.wire.is_closed = true;
        self.wire.to_client.clear();
        if self.engine.end.is_none() {
            self.engine.socket_closed(kind);
        }
    }

    /// Writes all and reads all. Returns whether there was something.
    fn exchange(&mut self) -> bool {
        let mut any = false;
        self.engine.handle_requests();
        while !self.wire.write_buffer.is_empty() || self.engine.refill(&mut self.wire.write_buffer)
        {
            self.write();
            any = true;
        }
        let bytes = std::mem::take(&mut self.wire.to_broker);
        if !self.wire.is_closed {
            self.broker.receive(&bytes);
            any |= self.broker.settle(&mut self.rng);
        }
        let bytes = self.broker.take_output();
        self.wire.to_client.extend(bytes);
        any |= !self.wire.to_client.is_empty();
        self.read(usize::MAX);
        any |= self.program.poll();
        self.program.go_on_with_replay();
        if self.broker.closes_socket() && self.engine.end.is_none() {
            self.close_socket(IoErrorKind::UnexpectedEof);
        }
        any
    }

    /// Lets everybody finish. Afterwards nothing may wait.
    fn quiesce(&mut self) {
        for _ in 0..ROUNDS {
            if !self.exchange() {
                break;
            }
            self.program.read_all();
        }
        if self.engine.end.is_some() || self.broker.is_silent() {
            return;
        }
        self.ledger.trace(|| "all is quiet".to_owned());
        let waiting = self.program.waiting_calls();
        self.ledger.check(waiting.is_empty(), || {
            format!("calls wait although all is quiet: {waiting:?}")
        });
        let unanswered = self.ledger.unanswered();
        self.ledger.check(unanswered == 0, || {
            format!("{unanswered} confirms wait although all is quiet")
        });
        self.ledger.check(!self.engine.core.awaits_reply(), || {
            "the core waits for a reply although all is quiet".to_owned()
        });
        self.ledger.check(!self.engine.core.has_events(), || {
            "the core has events".to_owned()
        });
        let left = (self.wire.input.len(), self.wire.write_buffer.len());
        self.ledger
            .check(left == (0, 0), || format!("bytes are left: {left:?}"));
        self.program.check_plain();
        self.broker.check_quiet();
    }

    fn end(&mut self) {
        if self.broker.is_silent() {
            // Only the heartbeats tell.
            for _ in 0..30 {
                self.exchange();
                self.pass(HEARTBEAT / 10);
            }
            self.ledger.check(self.engine.end.is_some(), || {
                "the silence of the broker goes unnoticed".to_owned()
            });
        }
        if self.engine.end.is_none() && self.rng.one_in(4) {
            self.close_socket(IoErrorKind::ConnectionReset);
        }
        self.program.close_connection();
        for _ in 0..ROUNDS {
            if !self.exchange() {
                break;
            }
        }
        match &self.engine.end {
            Some(End::Final(error)) => self.check_cause(error),
            Some(End::Lost(error)) => {
                self.check_cause(error);
                self.shared.end(error);
            }
            None => self.ledger.fault("the connection has not ended"),
        }
        self.recoveries = 0;
        self.recover();
        if let Some(cause) = self.shared.outbox.end_cause().filter(|_| self.recovers) {
            self.program.end_all(&cause);
        }
        self.program.check_end();
        self.program.drop_all();
        self.ledger.check_end();
    }

    /// Begins with the next connection. Returns false if there is none.
    fn recover(&mut self) -> bool {
        let lost_publishes = std::mem::take(&mut self.engine.lost_publishes);
        self.shared.keep_publishes(lost_publishes);
        self.program.end_replay();
        if self.recoveries == 0 || !matches!(self.engine.end, Some(End::Lost(_))) {
            return false;
        }
        self.recoveries -= 1;
        self.ledger.trace(|| "the connection is lost".to_owned());
        if self.rng.one_in(8) {
            self.program.close_connection();
        }
        for _ in 0..self.rng.below(20) {
            self.program.act(&mut self.rng);
            // Meanwhile the last frames go to the old socket.
            self.write();
            let bytes = std::mem::take(&mut self.wire.to_broker);
            self.broker.receive(&bytes);
            self.broker.step(&mut self.rng);
        }
        let (core, broker) = connect(&mut self.rng, &self.ledger, self.now, self.is_hostile);
        let begun = self.shared.outbox.begin(peer_of(&core));
        if begun.is_err() {
            return false;
        }
        self.broker = broker;
        self.engine = Engine::new(self.shared, core, true, u64::MAX);
        self.wire = Wire::default();
        self.program.begin_replay();
        true
    }

    fn check_cause(&self, error: &Error) {
        self.ledger.trace(|| format!("the end: {error}"));
        let is_violation = matches!(error.kind(), ErrorKind::ProtocolViolation { .. });
        self.ledger.check(!is_violation, || {
            format!("the client accuses the broker: {error}")
        });
    }

    fn run(&mut self) {
        let steps = 100 + self.rng.below(1000);
        for _ in 0..steps {
            self.step();
            if self.ledger.has_faults() {
                return;
            }
            if self.broker.closes_socket() {
                let bytes = self.broker.take_output();
                self.wire.to_client.extend(bytes);
                self.read(usize::MAX);
                self.close_socket(IoErrorKind::UnexpectedEof);
            }
            self.program.go_on_with_replay();
            if self.engine.end.is_some() && !self.recover() {
                break;
            }
        }
        self.quiesce();
        if !self.ledger.has_faults() {
            self.end();
        }
    }
}

#[allow(clippy::disallowed_methods)] // Any start will do: all times are relative to it.
fn start() -> Instant {
    Instant::now()
}

fn peer_of(core: &proto::Connection<Mailboxes>) -> Arc<Peer> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 5672));
    let endpoint = ConnectionOptions::default().endpoints().remove(0);
    Peer::new(core, address, endpoint)
}

/// Runs one seed. Returns its faults.
fn run(seed: u64, ledger: &Ledger) -> Vec<String> {
    let mut rng = Rng::new(seed);
    let now = start();
    let is_hostile = seed % 4 != 3;
    let (core, broker) = connect(&mut rng, ledger, now, is_hostile);
    let poll = Poll::new().unwrap();
    let waker = Waker::new(poll.registry(), Token(0)).unwrap();
    let options = ConnectionOptions::default();
    let (shared, _connections): (_, Receiver<Next>) = Shared::new(waker, peer_of(&core), &options);
    let recovers = is_hostile && rng.one_in(2);
    let engine = Engine::new(&shared, core, recovers, u64::MAX);
    let program = Program::new(shared.clone(), ledger.clone(), is_hostile, recovers);
    let mut simulation = Simulation {
        rng,
        ledger: ledger.clone(),
        engine,
        broker,
        program,
        wire: Wire::default(),
        now,
        shared: &shared,
        is_hostile,
        recovers,
        recoveries: 3,
    };
    simulation.run();
    drop(simulation);
    // Each channel, consumer and waiting message keeps the shared state.
    let kept = Arc::strong_count(&shared) - 1;
    ledger.check(kept == 0, || {
        format!("{kept} owners of the shared state are left after the end")
    });
    ledger.take_faults()
}

/// Fails with the trace of a seed.
fn fail(seed: u64) {
    let ledger = Ledger::traced();
    let faults = run(seed, &ledger);
    for line in ledger.take_trace() {
        println!("{line}");
    }
    assert!(
        faults.is_empty(),
        "seed {seed}: {faults:#?}\nrepeat it: LEVERET_SIMULATION_SEED={seed} cargo test --lib simulation -- --nocapture"
    );
}

#[test]
fn every_seed_keeps_the_invariants() {
    if let Ok(seed) = std::env::var("LEVERET_SIMULATION_SEED") {
        return fail(seed.parse().unwrap());
    }
    let seeds = std::env::var("LEVERET_SIMULATION_SEEDS");
    for seed in 0..seeds.map_or(SEEDS, |it| it.parse().unwrap()) {
        if !run(seed, &Ledger::default()).is_empty() {
            fail(seed);
        }
    }
}

#[test]
fn a_seed_repeats_its_run() {
    for seed in 0..200 {
        let traces = [(); 2].map(|()| {
            let ledger = Ledger::traced();
            run(seed, &ledger);
            // The consumers of a channel end in any order.
            let mut trace = ledger.take_trace();
            trace.sort();
            trace
        });
        assert!(traces[0] == traces[1], "seed {seed} has two traces");
    }
}
