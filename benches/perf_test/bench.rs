//! `perf_test bench` and `perf_test limit`: print one figure as a line of JSON.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::usage::{resident, usage};
use crate::{client, limit};

macro_rules! modes {
    ($($(#[$doc:meta])* $mode:ident $name:literal,)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Mode {
            $($(#[$doc])* $mode,)*
        }

        impl FromStr for Mode {
            type Err = String;

            fn from_str(name: &str) -> Result<Self, String> {
                match name {
                    $($name => Ok(Self::$mode),)*
                    other => Err(format!("{other:?} is not one of{}", concat!($(" ", $name),*))),
                }
            }
        }

        impl fmt::Display for Mode {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self {
                    $(Self::$mode => $name,)*
                })
            }
        }
    };
}

modes! {
    /// Publishes without confirms. A call on each channel at the end shows that everything has
    /// arrived.
    Publish "publish",
    /// Publishes with at most 256 unconfirmed messages, which the program counts.
    Confirm "confirm",
    /// Publishes with at most 256 unconfirmed messages, and waits for the `Confirm` of each.
    Publisher "publisher",
    /// Waits for each confirm before the next message.
    Confirm1 "confirm1",
    /// Consumes without acknowledgements.
    Consume "consume",
    /// Acknowledges each message, with a prefetch of 200.
    ConsumeAck "consume-ack",
    /// Declares a queue passively.
    Rpc "rpc",
    /// As rpc, but the limit has an IO thread, too.
    RpcHandOver "rpc-hand-over",
    /// Connects and closes.
    Connect "connect",
    /// Opens COUNT channels on one connection.
    Channels "channels",
    /// Opens COUNT connections and keeps them idle.
    Connections "connections",
    /// Publishes on THREADS channels in turn, with one thread.
    PublishInTurn "publish-in-turn",
    /// Makes calls while THREADS threads publish as fast as they can.
    RpcBusy "rpc-busy",
    /// As consume-ack, beside a consumer that does not read.
    ConsumeSlow "consume-slow",
}

impl Mode {
    pub(crate) fn counts_latency(self) -> bool {
        matches!(
            self,
            Self::Confirm1 | Self::Rpc | Self::RpcHandOver | Self::RpcBusy | Self::Connect
        )
    }

    pub(crate) fn keeps_all(self) -> bool {
        matches!(self, Self::Channels | Self::Connections)
    }
}

/// The arguments of one run.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Run {
    /// publish, confirm, publisher, confirm1, consume, consume-ack, rpc, rpc-hand-over, connect,
    /// channels, connections, publish-in-turn, rpc-busy, consume-slow
    pub(crate) mode: Mode,
    /// The broker or sink
    pub(crate) uri: String,
    /// Number of messages, calls, connections or channels, over all threads
    pub(crate) count: u64,
    /// Size of a message's body in bytes
    pub(crate) size: usize,
    /// Number of threads, each with its own channel on one connection
    pub(crate) threads: u64,
}

impl Run {
    pub(crate) fn count_per_thread(&self) -> u64 {
        self.count / self.threads.max(1)
    }

    /// The queue to consume from: the sink makes up its messages from the name.
    pub(crate) fn queue(&self) -> String {
        format!("gen-{}-{}", self.size, self.count_per_thread())
    }
}

/// A histogram of durations.
pub(crate) struct Latencies(pub(crate) Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new(3).expect("three digits are possible"))
    }
}

impl Latencies {
    pub(crate) fn time<E>(&mut self, act: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let begin = Instant::now();
        act()?;
        self.record(begin.elapsed());
        Ok(())
    }

    pub(crate) fn record(&mut self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.0.record(nanoseconds).expect("it grows as needed");
    }

    pub(crate) fn microseconds(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1000.0
    }
}

/// The result of one run.
pub(crate) struct Figure<'a> {
    pub(crate) client: Client,
    pub(crate) mode: String,
    pub(crate) size: usize,
    pub(crate) threads: u64,
    pub(crate) count: u64,
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
    pub(crate) max_rss_kb: u64,
    pub(crate) latencies: Option<&'a Latencies>,
    /// Memory for each channel or connection, in bytes.
    pub(crate) rss_each: Option<u64>,
    pub(crate) server_cpu: Option<Duration>,
}

impl Figure<'_> {
    /// The figure as a line of JSON.
    pub(crate) fn line(&self) -> String {
        let Self {
            mode,
            size,
            threads,
            count,
            max_rss_kb,
            ..
        } = self;
        let (name, version) = match self.client {
            Client::Leveret => ("leveret", env!("CARGO_PKG_VERSION")),
            Client::Limit => ("limit", ""),
        };
        let wall_s = self.wall.as_secs_f64();
        let each = (*count).max(1) as f64;
        let (per_second, cpu_us) = (each / wall_s, self.cpu.as_secs_f64() * 1e6 / each);
        let mut line = format!(
            r#"{{"client":"{name}","version":"{version}","mode":"{mode}","size":{size},"threads":{threads},"count":{count},"wall_s":{wall_s:.4},"msgs_per_s":{per_second:.0},"cpu_us_per_msg":{cpu_us:.4},"max_rss_kb":{max_rss_kb}"#
        );
        if let Some(latencies) = self.latencies {
            let [p50, p99] = [0.5, 0.99].map(|it| latencies.microseconds(it));
            line += &format!(r#","p50_us":{p50:.1},"p99_us":{p99:.1}"#);
        }
        if let Some(each) = self.rss_each {
            line += &format!(r#","rss_bytes_each":{each}"#);
        }
        if let Some(cpu) = self.server_cpu {
            let each = cpu.as_secs_f64() * 1e6 / each;
            line += &format!(r#","server_cpu_us_per_msg":{each:.4}"#);
        }
        line + "}"
    }
}

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    Leveret,
    Limit,
}

impl Client {
    pub(crate) fn measure(self, run: &Run) -> io::Result<String> {
        let mut latencies = Latencies::default();
        let (rss_before, before, begin) = (resident(), usage(), Instant::now());
        let kept = match self {
            Self::Leveret => client::run(run, &mut latencies).map_err(io::Error::other)?,
            Self::Limit => limit::run(run, &mut latencies).map(|()| client::Kept::default())?,
        };
        let (wall, after, rss_after) = (begin.elapsed(), usage(), resident());
        drop(kept);
        let grown = rss_after.zip(rss_before);
        let grown = grown.map(|(after, before)| after.saturating_sub(before) / run.count);
        let figure = Figure {
            client: self,
            mode: run.mode.to_string(),
            size: run.size,
            threads: run.threads,
            count: run.count,
            wall,
            cpu: after.cpu - before.cpu,
            max_rss_kb: after.max_rss_kb,
            latencies: run.mode.counts_latency().then_some(&latencies),
            rss_each: grown.filter(|_| run.mode.keeps_all() && self == Self::Leveret),
            server_cpu: None,
        };
        Ok(figure.line())
    }
}
