//! The broker under test, and helpers that wait for conditions.

#[cfg(feature = "native-tls")]
pub(crate) mod certificates;
pub(crate) mod interceptor;
pub(crate) mod logged;
mod node;
pub(crate) mod program;
pub(crate) mod proxy;
mod scripted;
mod version;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use leveret::broker::Broker;
use leveret::{Channel, Connection, ConnectionOptions, Queue, QueueDeclareOptions, Workers};

pub(crate) use node::{queue_that_times_out, Node};
pub(crate) use program::Program;
pub(crate) use scripted::{
    at, content_frames, frame, method_frame, scripted_connections, scripted_server, short, Frame,
    Script,
};
pub(crate) use version::{version, version_of};

/// How long a test waits for something that should happen soon.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// The URI of the broker that all tests share. With `AMQP_URL=box`, this is the in-memory broker.
pub(crate) fn url() -> String {
    static IN_THE_BOX: LazyLock<Broker> = LazyLock::new(|| Broker::start().unwrap());
    match std::env::var("AMQP_URL").as_deref() {
        Ok("box") => IN_THE_BOX.uri(),
        Ok(uri) => uri.to_owned(),
        Err(_) => panic!(
            "no broker: run the tests with `tests/with-rabbitmq cargo test`, or set AMQP_URL"
        ),
    }
}

/// The address of the broker at this URI.
pub(crate) fn address_of(uri: &str) -> SocketAddr {
    let authority = uri.rsplit('@').next().unwrap();
    authority.split('/').next().unwrap().parse().unwrap()
}

pub(crate) fn options() -> ConnectionOptions {
    ConnectionOptions::from_uri(&url()).unwrap()
}

pub(crate) fn connect() -> Connection {
    Connection::open(url()).unwrap()
}

pub(crate) fn channel() -> Channel {
    connect().open_channel().unwrap()
}

/// A name that no other test uses.
pub(crate) fn unique(name: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{name}-{}-{count}", std::process::id())
}

/// Declares a queue that is deleted with its connection.
pub(crate) fn exclusive_queue(channel: &Channel) -> Queue {
    channel
        .queue_declare("", QueueDeclareOptions::temporary())
        .unwrap()
}

/// Declares a queue, and the queue that gets its dead letters.
pub(crate) fn queue_with_dead_letters(
    channel: &Channel,
    name: &str,
    options: QueueDeclareOptions,
) -> (Queue, Queue) {
    let dead = exclusive_queue(channel);
    let options = options
        .dead_letter_exchange("")
        .dead_letter_routing_key(dead.name());
    (channel.queue_declare(name, options).unwrap(), dead)
}

/// A queue for workers, and the queue that gets its dead letters.
pub(crate) struct Queues {
    pub(crate) channel: Channel,
    pub(crate) queue: Queue,
    pub(crate) dead: Queue,
}

impl Queues {
    pub(crate) fn declare() -> Self {
        let channel = channel();
        let options = QueueDeclareOptions::temporary();
        let (queue, dead) = queue_with_dead_letters(&channel, "", options);
        Self {
            channel,
            queue,
            dead,
        }
    }

    pub(crate) fn workers(&self) -> Workers {
        Workers::new(self.channel.connection())
    }
}

/// How many messages are ready in a queue, as the broker counts them.
pub(crate) fn ready(channel: &Channel, queue: &str) -> u32 {
    channel
        .queue_declare_passive(queue)
        .unwrap()
        .message_count()
        .unwrap()
}

/// The shortest of ten runs, which shows the time on a machine that is not busy.
pub(crate) fn shortest_of_ten(mut it: impl FnMut()) -> Duration {
    let times = [(); 10].map(|()| {
        let begin = Instant::now();
        it();
        begin.elapsed()
    });
    times.into_iter().min().unwrap()
}

/// The resident memory of a process, or, on Linux, of `self`. None if the process has ended.
#[cfg(target_os = "linux")]
pub(crate) fn resident_kib(process: &str) -> Option<usize> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix(" kB"));
    kib?.trim().parse().ok()
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn resident_kib(process: &str) -> Option<usize> {
    let mut ps = std::process::Command::new("ps");
    let output = ps.args(["-o", "rss=", "-p", process]).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// Waits until the condition holds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < SOON, "not in {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
