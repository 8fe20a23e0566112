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
    /// Connect and close.
    Connect "connect",
    /// So many on one connection.
    Channels "channels",
    /// So many at once, at rest.
    Connections "connections",
}

impl Mode {
    fn counts_latency(self) -> bool {
        matches!(self, Self::Confirm1 | Self::Rpc | Self::Connect)
    }

    fn keeps_all(self) -> bool {
        matches!(self, Self::Channels | Self::Connections)
    }
}

/// What is to be done.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Run {
    /// publish, confirm, publisher, confirm1, consume, consume-ack, rpc, connect, channels, connections
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
        let (name, version) = match self {
            Self::Leveret => ("leveret", env!("CARGO_PKG_VERSION")),
            Self::Limit => ("limit", ""),
        };
        let Run {
            mode,
            size,
            threads,
            count,
            ..
        } = run;
        let wall_s = wall.as_secs_f64();
        let per_second = *count as f64 / wall_s;
        let cpu_us = (after.cpu - before.cpu).as_secs_f64() * 1e6 / *count as f64;
        let max_rss_kb = after.max_rss_kb;
        let mut line = format!(
            r#"{{"client":"{name}","version":"{version}","mode":"{mode}","size":{size},"threads":{threads},"count":{count},"wall_s":{wall_s:.4},"msgs_per_s":{per_second:.0},"cpu_us_per_msg":{cpu_us:.4},"max_rss_kb":{max_rss_kb}"#
        );
        if mode.counts_latency() {
            let [p50, p99] = [0.5, 0.99].map(|it| latencies.microseconds(it));
            line += &format!(r#","p50_us":{p50:.1},"p99_us":{p99:.1}"#);
        }
        if let (true, Some(before), Some(after)) = (mode.keeps_all(), rss_before, rss_after) {
            let each = after.saturating_sub(before) / count;
            line += &format!(r#","rss_bytes_each":{each}"#);
        }
        Ok(line + "}")
    }
}
