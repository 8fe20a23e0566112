//! The options, named as those of RabbitMQ's PerfTest.

use std::time::Duration;

use clap::ValueEnum;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Flag {
    Persistent,
    Mandatory,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// The broker
    #[arg(long, default_value = "amqp://guest:guest@localhost:5672/%2f")]
    pub(crate) uri: String,
    /// Producers, each with a connection of its own
    #[arg(short = 'x', long, default_value_t = 1)]
    pub(crate) producers: u32,
    /// Consumers, each with a connection of its own
    #[arg(short = 'y', long, default_value_t = 1)]
    pub(crate) consumers: u32,
    /// Channels of each producer, each with a thread of its own
    #[arg(short = 'X', long, default_value_t = 1)]
    pub(crate) producer_channel_count: u32,
    /// Channels of each consumer, each with a thread of its own
    #[arg(short = 'Y', long, default_value_t = 1)]
    pub(crate) consumer_channel_count: u32,
    /// All producers and consumers on ONE connection
    #[arg(long)]
    pub(crate) shared_connection: bool,
    /// Of a message's body, in bytes; from 12 on latencies are measured
    #[arg(short = 's', long, default_value_t = 12)]
    pub(crate) size: usize,
    /// At most so many unconfirmed messages a channel; without, messages are not confirmed
    #[arg(short = 'c', long)]
    pub(crate) confirm: Option<u32>,
    /// Consume without acknowledgements
    #[arg(short = 'a', long)]
    pub(crate) autoack: bool,
    /// Prefetch of each consumer; 0 for no limit
    #[arg(short = 'q', long, default_value_t = 0)]
    pub(crate) qos: u16,
    /// Acknowledge so many messages at once
    #[arg(short = 'A', long, default_value_t = 1)]
    pub(crate) multi_ack_every: u32,
    /// Messages that each producer's channel publishes
    #[arg(short = 'C', long)]
    pub(crate) pmessages: Option<u64>,
    /// Messages that each consumer's channel takes
    #[arg(short = 'D', long)]
    pub(crate) cmessages: Option<u64>,
    /// How long it runs, in seconds
    #[arg(short = 'z', long)]
    pub(crate) time: Option<u64>,
    /// Messages a second of each producer's channel; without, as many as go
    #[arg(short = 'r', long)]
    pub(crate) rate: Option<u64>,
    /// The queue; without, one that goes with the connections
    #[arg(short = 'u', long)]
    pub(crate) queue: Option<String>,
    /// Of the messages
    #[arg(short = 'f', long, value_enum)]
    pub(crate) flag: Vec<Flag>,
    /// How often it tells what goes on, in seconds
    #[arg(short = 'i', long, default_value_t = 1)]
    pub(crate) interval: u64,
    /// The process whose processor time is told, too: the broker's, if it runs on this machine
    #[arg(long)]
    pub(crate) server_pid: Option<u32>,
    /// At the end, a line of JSON
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

    /// Between two messages of a channel.
    pub(crate) fn pause(&self) -> Option<Duration> {
        let rate = self.rate.filter(|rate| *rate > 0)?;
        Some(Duration::from_secs(1) / u32::try_from(rate).unwrap_or(u32::MAX))
    }
}
