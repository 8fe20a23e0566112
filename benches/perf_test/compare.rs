//! `perf_test compare`: prints a table of all rows, from one run in which the clients take turns.

use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{json, Value};

use crate::bench::Mode;
use crate::client::CA;
use crate::clients::{Client, Peer};
use crate::process::{self, Server};
use crate::rows::{Row, ROWS};
use crate::table::{self, Figures};

/// The options of a comparison.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Number of runs of each client in each row
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Measure only rows of this mode; can be repeated
    #[arg(long, value_name = "MODE")]
    only: Vec<Mode>,
    /// Multiply the work of each run; 0.01 for a quick look
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Another client, run as `PROGRAM bench MODE URI COUNT SIZE THREADS`, which prints a line of
    /// JSON as `perf_test bench` does; can be repeated
    #[arg(long, value_name = "NAME=PROGRAM")]
    peer: Vec<Peer>,
    /// Multiply the work of peers, which are mostly slower
    #[arg(long, default_value_t = 0.1)]
    peer_scale: f64,
    /// Use this server instead of starting a sink
    #[arg(long)]
    uri: Option<String>,
    /// Write a line of JSON for each run to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Compare TLS with TCP, with this certificate and its key (PEM, the key in PKCS#8). Peers use
    /// TLS. Clients trust the PEM file in the variable PERF_TEST_CA, by default the certificate,
    /// which then has to be self-signed
    #[arg(long, num_args = 2, value_names = ["CERTIFICATE", "KEY"], conflicts_with = "uri")]
    tls: Option<Vec<PathBuf>>,
    /// Kill a run after this many seconds
    #[arg(long, default_value_t = 60)]
    timeout: u64,
}

impl Options {
    fn wants(&self, row: &Row) -> bool {
        let is_named = self.only.is_empty() || self.only.contains(&row.mode);
        is_named && (row.over_tls || self.tls.is_none())
    }

    /// The PEM file that clients trust.
    fn authority(&self) -> Option<OsString> {
        let certificate = self.tls.as_ref()?.first()?;
        Some(std::env::var_os(CA).unwrap_or_else(|| certificate.into()))
    }

    /// Version, machine and options of the run.
    fn title(&self) -> String {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (os, architecture) = (std::env::consts::OS, std::env::consts::ARCH);
        let (version, rounds) = (env!("CARGO_PKG_VERSION"), self.rounds);
        let mut title =
            format!("leveret {version}, {cores} cores, {os} {architecture}, {rounds} rounds");
        if self.scale != 1.0 {
            title += &format!(", scale {}", self.scale);
        }
        if cfg!(debug_assertions) {
            title += ", debug build";
        }
        title
    }
}

struct Servers {
    usual: Server,
    pinned: Option<Server>,
    tls: Option<Server>,
}

impl Servers {
    fn start(options: &Options, program: &Path, rows: &[Row]) -> io::Result<Self> {
        let start = |arguments: &[&OsStr], pinned| match &options.uri {
            Some(uri) => Ok(Server::at(uri)),
            None => Server::start(program, arguments, pinned),
        };
        let pinned = rows.iter().any(|row| row.pinned);
        let tls = options.tls.as_ref().map(|files| {
            let mut arguments = vec![OsStr::new("--tls")];
            arguments.extend(files.iter().map(|file| file.as_os_str()));
            start(&arguments, false)
        });
        Ok(Self {
            usual: start(&[], false)?,
            pinned: pinned.then(|| start(&[], true)).transpose()?,
            tls: tls.transpose()?,
        })
    }

    fn uri(&self, row: &Row, client: &Client<'_>) -> &str {
        let special = match client.over_tls {
            true => &self.tls,
            false if row.pinned => &self.pinned,
            false => &None,
        };
        special.as_ref().unwrap_or(&self.usual).uri()
    }
}

struct Comparison<'a> {
    options: &'a Options,
    clients: Vec<Client<'a>>,
    servers: Servers,
    authority: Option<OsString>,
    json: Option<File>,
}

pub(crate) fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let program = std::env::current_exe()?;
    let can_pin = process::can_pin();
    let wanted = ROWS.iter().copied().filter(|row| options.wants(row));
    let (rows, left_out): (Vec<_>, Vec<_>) = wanted.partition(|row| can_pin || !row.pinned);
    if rows.is_empty() {
        return Err("no row matches --only".into());
    }
    let mut comparison = Comparison {
        options,
        clients: Client::all(&program, &options.peer, options.tls.is_some()),
        servers: Servers::start(options, &program, &rows)?,
        authority: options.authority(),
        json: options.json.as_ref().map(File::create).transpose()?,
    };
    println!("{}\n", options.title());
    println!("{}", table::head(&comparison.clients));
    for row in &rows {
        let figures = comparison.measure(row)?;
        println!("{}", table::line(row, &comparison.clients, &figures));
    }
    if !left_out.is_empty() {
        println!("\nRows with one core are skipped: `taskset` does not work here.");
    }
    Ok(())
}

impl Comparison<'_> {
    /// Measures all rounds of a row and returns the figures of each client.
    fn measure(&mut self, row: &Row) -> io::Result<Vec<Figures>> {
        let count = self.clients.len();
        let mut figures: Vec<_> = self.clients.iter().map(|_| Figures::default()).collect();
        for round in 0..self.options.rounds {
            for turn in 0..count {
                let index = (round + turn) % count;
                let (client, figures) = (self.clients[index], &mut figures[index]);
                if figures.has_failed {
                    continue;
                }
                match self.measure_once(row, &client) {
                    Ok(figure) => {
                        self.keep(row, &client, round, &figure)?;
                        figures.push(figure);
                    }
                    Err(error) => {
                        figures.has_failed = true;
                        eprintln!("{} in {} {}: {error}", client.name, row.name(), row.size());
                    }
                }
            }
        }
        Ok(figures)
    }

    fn measure_once(&self, row: &Row, client: &Client<'_>) -> io::Result<Value> {
        let uri = self.servers.uri(row, client);
        let scale = match client.is_peer {
            true => self.options.scale * self.options.peer_scale,
            false => self.options.scale,
        };
        let mut command = client.run(row, uri, scale);
        if let Some(authority) = &self.authority {
            // By default OpenSSL loads all authorities of the system. That takes 0.1 s per
            // connection, which would distort each figure.
            command.env(CA, authority).env("SSL_CERT_FILE", authority);
        }
        let most = Duration::from_secs(self.options.timeout);
        let printed = process::output(command, most)?;
        let figure = printed.lines().rev().find_map(|line| {
            let figure: Value = serde_json::from_str(line).ok()?;
            let is_sound = figure.get(table::key(row.mode))?.as_f64()? > 0.0;
            is_sound.then_some(figure)
        });
        figure.ok_or_else(|| io::Error::other("the client printed no figure"))
    }

    /// Appends a figure to the JSON file, with what the client does not know about its run.
    fn keep(
        &mut self,
        row: &Row,
        client: &Client<'_>,
        round: usize,
        figure: &Value,
    ) -> io::Result<()> {
        let Some(file) = &mut self.json else {
            return Ok(());
        };
        let mut line = figure.clone();
        line["name"] = json!(client.name);
        line["round"] = json!(round);
        line["one_core"] = json!(row.pinned);
        writeln!(file, "{line}")
    }
}
