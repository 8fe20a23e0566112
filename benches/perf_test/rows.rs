//! The rows of a comparison.

use crate::bench::Mode;

/// The channels that one connection can have.
const MOST_CHANNELS: u64 = 2047;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) mode: Mode,
    pub(crate) size: usize,
    pub(crate) threads: u64,
    /// How much this crate does in about half a second.
    count: u64,
    /// Whether client and sink share one core.
    pub(crate) pinned: bool,
    /// Whether the comparison of TLS with TCP has this row.
    pub(crate) over_tls: bool,
}

const fn row(mode: Mode, size: usize, threads: u64, count: u64) -> Row {
    Row {
        mode,
        size,
        threads,
        count,
        pinned: false,
        over_tls: false,
    }
}

impl Row {
    const fn pinned(mut self) -> Self {
        self.pinned = true;
        self
    }

    const fn over_tls(mut self) -> Self {
        self.over_tls = true;
        self
    }

    /// The scaled count: at least one for each thread, and a multiple of their number.
    pub(crate) fn count(&self, scale: f64) -> u64 {
        let scaled = (self.count as f64 * scale) as u64;
        let count = (scaled / self.threads).max(1) * self.threads;
        match self.mode {
            Mode::Channels => count.min(MOST_CHANNELS),
            _ => count,
        }
    }

    pub(crate) fn name(&self) -> String {
        match self.pinned {
            true => format!("{}, one core", self.mode),
            false => self.mode.to_string(),
        }
    }

    pub(crate) fn size(&self) -> String {
        match self.size {
            0 if matches!(
                self.mode,
                Mode::Rpc | Mode::RpcHandOver | Mode::Connect | Mode::Channels
            ) =>
            {
                "-".to_owned()
            }
            size if size < KIB => format!("{size} B"),
            size if size < MIB => format!("{} KiB", size / KIB),
            size => format!("{} MiB", size / MIB),
        }
    }
}

pub(crate) const ROWS: &[Row] = &[
    row(Mode::Publish, 16, 1, 4_000_000).over_tls(),
    row(Mode::Publish, 16, 4, 4_000_000),
    row(Mode::Publish, 16, 16, 4_000_000),
    row(Mode::Publish, KIB, 1, 1_000_000).over_tls(),
    row(Mode::Publish, 64 * KIB, 1, 25_000).over_tls(),
    row(Mode::Publish, MIB, 1, 500),
    row(Mode::Confirm, 16, 1, 600_000).over_tls(),
    row(Mode::Confirm, KIB, 1, 300_000).over_tls(),
    row(Mode::Publisher, 16, 1, 600_000),
    row(Mode::Consume, 16, 1, 2_500_000).over_tls(),
    row(Mode::Consume, KIB, 1, 600_000).over_tls(),
    row(Mode::Consume, 64 * KIB, 1, 10_000).over_tls(),
    row(Mode::ConsumeAck, 16, 1, 800_000).over_tls(),
    row(Mode::Rpc, 0, 1, 8000).over_tls(),
    row(Mode::Rpc, 0, 1, 15_000).pinned(),
    row(Mode::RpcHandOver, 0, 1, 8000),
    row(Mode::RpcHandOver, 0, 1, 15_000).pinned(),
    row(Mode::Confirm1, 16, 1, 8000),
    row(Mode::Confirm1, 16, 1, 15_000).pinned(),
    row(Mode::Connect, 0, 1, 1000),
    row(Mode::Channels, 0, 1, MOST_CHANNELS),
    // See cliffs.rs.
    row(Mode::PublishInTurn, 16, 1, 4_000_000),
    row(Mode::PublishInTurn, 16, 10, 4_000_000),
    row(Mode::PublishInTurn, 16, 100, 4_000_000),
    row(Mode::PublishInTurn, 16, 1000, 4_000_000),
    row(Mode::Publish, 0, 1, 4_000_000),
    row(Mode::Publish, 16 * MIB, 1, 40),
    row(Mode::RpcBusy, 16, 1, 1000),
    row(Mode::RpcBusy, KIB, 1, 1000),
    row(Mode::RpcBusy, 64 * KIB, 1, 1000),
    row(Mode::ConsumeAck, 16, 99, 800_000),
    row(Mode::ConsumeSlow, 16, 99, 800_000),
];
