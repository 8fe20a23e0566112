//! Starts and stops the processes of a comparison: servers and clients.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// How long a sink may take to end.
const SOON: Duration = Duration::from_secs(10);
/// How often to check whether a process has ended.
const LOOK: Duration = Duration::from_millis(1);
/// Limits the output of a client, which prints one line.
const MOST_OUTPUT: u64 = 1 << 20;

/// A command, bound to core 0 if `pinned`.
pub(crate) fn command(program: impl AsRef<OsStr>, pinned: bool) -> Command {
    if !pinned {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(program);
    command
}

pub(crate) fn can_pin() -> bool {
    let mut command = command("true", true);
    command.stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// The server that clients connect to.
pub(crate) struct Server {
    uri: String,
    /// A `perf_test sink`. If this process dies, its input closes, and the sink ends.
    sink: Option<Child>,
}

impl Server {
    /// A server that runs already, and stays.
    pub(crate) fn at(uri: &str) -> Self {
        Self {
            uri: uri.to_owned(),
            sink: None,
        }
    }

    pub(crate) fn start(program: &Path, options: &[&OsStr], pinned: bool) -> io::Result<Self> {
        let mut child = command(program, pinned)
            .arg("sink")
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take();
        let mut server = Self {
            uri: String::new(),
            sink: Some(child),
        };
        if let Some(stdout) = stdout {
            BufReader::new(stdout).read_line(&mut server.uri)?;
        }
        match server.uri() {
            "" => Err(io::Error::other("the sink did not start")),
            _ => Ok(server),
        }
    }

    pub(crate) fn uri(&self) -> &str {
        self.uri.trim_end()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(sink) = &mut self.sink else {
            return;
        };
        drop(sink.stdin.take());
        if let Err(error) = wait_until(sink, Instant::now() + SOON) {
            eprintln!("the sink: {error}");
        }
    }
}

/// Runs a command and returns its output. Fails if the command fails or does not end in time.
pub(crate) fn output(mut command: Command, most: Duration) -> io::Result<String> {
    let deadline = Instant::now() + most;
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let (sender, printed) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        thread::spawn(move || sender.send(io::read_to_string(stdout.take(MOST_OUTPUT))));
    }
    // This blocks: polling would take CPU time from the client.
    let printed = printed.recv_timeout(most);
    let status = wait_until(&mut child, deadline)?;
    if !status.success() {
        return Err(io::Error::other(format!("the client ended with {status}")));
    }
    printed.map_err(io::Error::other)?
}

/// Waits until a process ends, and kills it at the deadline.
fn wait_until(child: &mut Child, deadline: Instant) -> io::Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            break;
        }
        thread::sleep(LOOK);
    }
    child.kill()?;
    child.wait()?;
    Err(io::ErrorKind::TimedOut.into())
}
