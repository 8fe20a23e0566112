//! The clients of a comparison.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use crate::process;
use crate::rows::Row;

/// Another client library, with its program.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    name: String,
    program: PathBuf,
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, program) = text.split_once('=').ok_or("expected NAME=PROGRAM")?;
        Ok(Self {
            name: name.to_owned(),
            program: program.into(),
        })
    }
}

/// One column of a client.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part {
    /// The median of the row's figure.
    Median,
    Cpu,
    /// The lowest and the highest figure, in percent of the median.
    Spread,
    /// The first client's figure divided by this one's.
    OfFirst,
}

use Part::{Cpu, Median, OfFirst, Spread};

/// A client that has a turn in each round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Client<'a> {
    pub(crate) name: &'a str,
    pub(crate) parts: &'a [Part],
    pub(crate) over_tls: bool,
    pub(crate) is_peer: bool,
    program: &'a Path,
    command: &'a str,
}

impl<'a> Client<'a> {
    pub(crate) fn all(program: &'a Path, peers: &'a [Peer], over_tls: bool) -> Vec<Self> {
        let ours = Self {
            name: "ours",
            parts: &[Median, Cpu, Spread],
            over_tls,
            is_peer: false,
            program,
            command: "bench",
        };
        let limit = Self {
            name: "limit",
            parts: &[Median, Cpu, OfFirst],
            command: "limit",
            ..ours
        };
        let over_tcp = Self {
            name: "TCP",
            parts: &[Median, Cpu, OfFirst],
            over_tls: false,
            ..ours
        };
        let own = [ours, limit].into_iter();
        let own = own.chain(over_tls.then_some(over_tcp));
        let peers = peers.iter().map(|peer| Self {
            name: &peer.name,
            parts: &[Median, Cpu],
            is_peer: true,
            program: &peer.program,
            ..ours
        });
        own.chain(peers).collect()
    }

    fn is_limit(&self) -> bool {
        self.command == "limit"
    }

    pub(crate) fn run(&self, row: &Row, uri: &str, scale: f64) -> Command {
        // The limit always has one thread.
        let threads = if self.is_limit() { 1 } else { row.threads };
        let (mode, count) = (row.mode.to_string(), row.count(scale).to_string());
        let (size, threads) = (row.size.to_string(), threads.to_string());
        let mut command = process::command(self.program, row.pinned);
        command.args([self.command, &mode, uri, &count, &size, &threads]);
        command
    }
}
