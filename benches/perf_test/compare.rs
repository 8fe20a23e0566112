//! `perf_test compare`: a table of all that is measured, from one run in which all clients take turns.

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

/// How it is compared.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// How often each client has its turn in each row
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only rows of this mode; can be repeated
    #[arg(long, value_name = "MODE")]
    only: Vec<Mode>,
    /// Multiplies how much is done: 0.01 for a quick look
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Another client, run as `PROGRAM bench MODE URI COUNT SIZE THREADS`, that prints a line as this one does; can be repeated
    #[arg(long, value_name = "NAME=PROGRAM")]
    peer: Vec<Peer>,
    /// How much of it peers do, who mostly take longer
    #[arg(long, default_value_t = 0.1)]
    peer_scale: f64,
    /// Another server than a sink that is started for this
    #[arg(long)]
    uri: Option<String>,
    /// Where a line of JSON for every single run goes
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Compares TLS with TCP, with this certificate and its key (PEM, the key in PKCS#8). Peers use TLS. Clients trust the
    /// PEM file that the variable PERF_TEST_CA names; by default the certificate, which is then to be signed by itself
    #[arg(long, num_args = 2, value_names = ["CERTIFICATE", "KEY"], conflicts_with = "uri")]
    tls: Option<Vec<PathBuf>>,
    /// How long one run may take, in seconds
    #[arg(long, default_value_t = 60)]
    timeout: u64,
}

impl Options {
    fn wants(&self, row: &Row) -> bool {
        let is_named = self.only.is_empty() || self.only.contains(&row.mode);
        is_named && (row.over_tls || self.tls.is_none())
    }

    /// What clients trust.
    fn authority(&self) -> Option<OsString> {
        let certificate = self.tls.as_ref()?.first()?;
        Some(std::env::var_os(CA).unwrap_or_else(|| certificate.into()))
    }

    /// What the figures depend on.
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
            title += ", not optimized";
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
        return Err("there is no such row".into());
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
        println!("\nRows with one core are left out: `taskset` does not work here.");
    }
    Ok(())
}

impl Comparison<'_> {
    /// The figures of each client.
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
            // OpenSSL reads all that the system trusts, for a tenth of a second, which would be a part of each figure.
            command.env(CA, authority).env("SSL_CERT_FILE", authority);
        }
        let most = Duration::from_secs(self.options.timeout);
        let printed = process::output(command, most)?;
        let figure = printed.lines().rev().find_map(|line| {
            let figure: Value = serde_json::from_str(line).ok()?;
            let is_sound = figure.get(table::key(row.mode))?.as_f64()? > 0.0;
            is_sound.then_some(figure)
        });
        figure.ok_or_else(|| io::Error::other("it prints no figure"))
    }

    /// With what a client does not know of its run.
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
