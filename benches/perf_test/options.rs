//! The command-line options, named as in RabbitMQ's PerfTest.

use std::time::Duration;

use clap::ValueEnum;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Flag {
    Persistent,
    Mandatory,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// URI of the broker
    #[arg(long, default_value = "amqp://guest:guest@localhost:5672/%2f")]
    pub(crate) uri: String,
    /// Number of producers, each with its own connection
    #[arg(short = 'x', long, default_value_t = 1)]
    pub(crate) producers: u32,
    /// Number of consumers, each with its own connection
    #[arg(short = 'y', long, default_value_t = 1)]
    pub(crate) consumers: u32,
    /// Number of channels per producer, each with its own thread
    #[arg(short = 'X', long, default_value_t = 1)]
    pub(crate) producer_channel_count: u32,
    /// Number of channels per consumer, each with its own thread
    #[arg(short = 'Y', long, default_value_t = 1)]
    pub(crate) consumer_channel_count: u32,
    /// Use one connection for all producers and consumers
    #[arg(long)]
    pub(crate) shared_connection: bool,
    /// Size of a message's body in bytes; at least 12 to measure latencies
    #[arg(short = 's', long, default_value_t = 12)]
    pub(crate) size: usize,
    /// Maximum number of unconfirmed messages per channel [default: publish without confirms]
    #[arg(short = 'c', long)]
    pub(crate) confirm: Option<u32>,
    /// Consume without acknowledgements
    #[arg(short = 'a', long)]
    pub(crate) autoack: bool,
    /// Prefetch of each consumer; 0 for no limit
    #[arg(short = 'q', long, default_value_t = 0)]
    pub(crate) qos: u16,
    /// Acknowledge after every N messages
    #[arg(short = 'A', long, default_value_t = 1)]
    pub(crate) multi_ack_every: u32,
    /// Number of messages per producer channel
    #[arg(short = 'C', long)]
    pub(crate) pmessages: Option<u64>,
    /// Number of messages per consumer channel
    #[arg(short = 'D', long)]
    pub(crate) cmessages: Option<u64>,
    /// Stop after this many seconds
    #[arg(short = 'z', long)]
    pub(crate) time: Option<u64>,
    /// Messages per second and producer channel [default: unlimited]
    #[arg(short = 'r', long)]
    pub(crate) rate: Option<u64>,
    /// Name of the queue [default: a new queue, deleted at the end]
    #[arg(short = 'u', long)]
    pub(crate) queue: Option<String>,
    /// Flag of the messages; can be repeated
    #[arg(short = 'f', long, value_enum)]
    pub(crate) flag: Vec<Flag>,
    /// Interval of reports in seconds
    #[arg(short = 'i', long, default_value_t = 1)]
    pub(crate) interval: u64,
    /// Also report the CPU time of this process: the broker, if it runs on this machine
    #[arg(long)]
    pub(crate) server_pid: Option<u32>,
    /// Print a line of JSON at the end
    #[arg(long)]
    pub(crate) json: bool,
}

impl Options {
    pub(crate) fn has(&self, flag: Flag) -> bool {
        self.flag.contains(&flag)
    }

    pub(crate) fn producer_channels(&self) -> u32 {
        self.producers * self.producer_channel_count
    }

    pub(crate) fn consumer_channels(&self) -> u32 {
        self.consumers * self.consumer_channel_count
    }

    /// The time between two messages of a channel.
    pub(crate) fn pause(&self) -> Option<Duration> {
        let rate = self.rate.filter(|rate| *rate > 0)?;
        Some(Duration::from_secs(1) / u32::try_from(rate).unwrap_or(u32::MAX))
    }
}
