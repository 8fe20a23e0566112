//! Runs the examples and `perf_test` as programs.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread;

use crossbeam_channel::Receiver;

use super::{eventually, SOON};

/// A running program, which is killed on drop.
pub(crate) struct Program {
    child: Child,
    /// Its output, line by line.
    lines: Receiver<String>,
}

impl Program {
    pub(crate) fn start(example: &str, arguments: &[&str], uri: &str) -> Self {
        let mut example = command(example);
        example.args(arguments).env("AMQP_URL", uri);
        Self::spawn(example)
    }

    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = crossbeam_channel::unbounded();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self { child, lines }
    }

    /// Runs an example, which must succeed, and returns its output.
    pub(crate) fn run(example: &str, arguments: &[&str], uri: &str) -> String {
        let mut example = command(example);
        example.args(arguments).env("AMQP_URL", uri);
        printed(example)
    }

    /// Waits for the next line.
    #[track_caller]
    pub(crate) fn line(&self) -> String {
        self.lines.recv_timeout(SOON).unwrap()
    }

    #[track_caller]
    pub(crate) fn expect(&self, line: &str) {
        assert_eq!(self.line(), line);
    }

    /// The rest of the program's output.
    pub(crate) fn rest(&self) -> Vec<String> {
        self.lines.iter().collect()
    }

    pub(crate) fn signal(&self, signal: &str) {
        self::signal(&self.child.id().to_string(), signal);
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command, which must succeed, and returns its output.
pub(crate) fn printed(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A command that runs an example. Builds the example first: `cargo test --test` does not.
pub(crate) fn command(example: &str) -> Command {
    built(&["--example", example], &format!("examples/{example}"))
}

/// A command that runs the benchmark program.
pub(crate) fn perf_test() -> Command {
    built(&["--package", "leveret-benches"], "perf_test")
}

/// Builds a target with this test's features, and returns a command that runs it.
fn built(target: &[&str], path: &str) -> Command {
    static BUILD: Mutex<()> = Mutex::new(());
    let guard = BUILD.lock();
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--locked"]).args(target);
    if cfg!(not(feature = "native-tls")) {
        build.arg("--no-default-features");
    }
    let status = build.current_dir(env!("CARGO_MANIFEST_DIR")).status();
    assert!(status.unwrap().success());
    drop(guard);
    // The test program is in `deps`, the other programs are next to that directory.
    let test = std::env::current_exe().unwrap();
    Command::new(test.parent().unwrap().with_file_name(path))
}

/// Sends a signal to a process: KILL, STOP, CONT. After STOP, waits until all threads have stopped.
pub(crate) fn signal(pid: &str, signal: &str) {
    // `kill` is built into the shell; not every system has it as a command.
    let sent = Command::new("sh")
        .args(["-c", "kill -s \"$1\" \"$2\"", "sh", signal, pid])
        .status();
    assert!(sent.unwrap().success());
    if signal == "STOP" {
        eventually("all threads of the process have stopped", || {
            has_stopped(pid)
        });
    }
}

/// Whether all threads have stopped: a process gets a signal at once, but its threads stop one by
/// one.
fn has_stopped(pid: &str) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        // Outside Linux, only the state of the process is visible.
        let state = Command::new("ps")
            .args(["-o", "state=", "-p", pid])
            .output();
        return state.unwrap().stdout.starts_with(b"T");
    };
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // The line is "pid (name) state …", and the name may contain parentheses.
        stat.rsplit(')')
            .next()
            .is_some_and(|rest| rest.trim_start().starts_with('T'))
    })
}
