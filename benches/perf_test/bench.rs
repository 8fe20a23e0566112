//! `perf_test bench` and `perf_test limit`: one figure, in one line of JSON.

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
                    other => Err(format!("{other:?} is none of{}", concat!($(" ", $name),*))),
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
    /// Fire and forget; a call on each channel at the end tells that all has come.
    Publish "publish",
    /// With 256 unconfirmed, counted by the program.
    Confirm "confirm",
    /// With 256 unconfirmed, and a handle for each message that is waited for.
    Publisher "publisher",
    /// Each is waited for before the next one.
    Confirm1 "confirm1",
    Consume "consume",
    /// Each message acknowledged by itself, with a prefetch of 200.
    ConsumeAck "consume-ack",
    /// A passive declaration.
    Rpc "rpc",
    /// The same; but the limit has an IO thread, too.
    RpcHandOver "rpc-hand-over",
    /// Connect and close.
    Connect "connect",
    /// So many on one connection.
    Channels "channels",
    /// So many at once, at rest.
    Connections "connections",
    /// One thread, and THREADS channels in turn.
    PublishInTurn "publish-in-turn",
    /// Calls while THREADS others publish as fast as they can.
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

/// What is to be done.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Run {
    /// publish, confirm, publisher, confirm1, consume, consume-ack, rpc, rpc-hand-over, connect, channels, connections;
    /// publish-in-turn, rpc-busy, consume-slow
    pub(crate) mode: Mode,
    pub(crate) uri: String,
    /// Messages, calls, connections or channels, of all threads together
    pub(crate) count: u64,
    /// Of a message's body, in bytes
    pub(crate) size: usize,
    /// Each with a channel of its own, all on one connection
    pub(crate) threads: u64,
}

impl Run {
    pub(crate) fn count_per_thread(&self) -> u64 {
        self.count / self.threads.max(1)
    }

    /// The queue that is consumed from: the sink makes up its messages by its name.
    pub(crate) fn queue(&self) -> String {
        format!("gen-{}-{}", self.size, self.count_per_thread())
    }
}

/// How long each of something took.
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

/// What one run has come to.
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
    /// Of each thing that was kept, in bytes.
    pub(crate) rss_each: Option<u64>,
    pub(crate) server_cpu: Option<Duration>,
}

impl Figure<'_> {
    /// An object of JSON in one line.
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

/// Whose figure it is.
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
