//! The examples, run as the programs that they are.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread;

use crossbeam_channel::Receiver;

use super::{eventually, SOON};

/// A running example. It is killed with this value.
pub(crate) struct Program {
    child: Child,
    /// What it prints, line by line.
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

    /// Runs it to its end, in good order, and returns what it has printed.
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

    /// What it prints until its end.
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

/// What a command prints, which has to succeed.
pub(crate) fn printed(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// It is built when it is missing: `cargo test --test` does not build examples.
pub(crate) fn command(example: &str) -> Command {
    built(&["--example", example], &format!("examples/{example}"))
}

/// A command of the benchmarks' program.
pub(crate) fn perf_test() -> Command {
    built(&["--package", "leveret-benches"], "perf_test")
}

/// Builds a target with the features of this test, and returns a command that runs it.
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
    // The tests are in `deps`, and the programs beside it.
    let test = std::env::current_exe().unwrap();
    Command::new(test.parent().unwrap().with_file_name(path))
}

/// Sends a signal to a process: KILL, STOP, CONT. After STOP, all its threads have stopped.
pub(crate) fn signal(pid: &str, signal: &str) {
    // The shell has it built in; not every system has the command.
    let sent = Command::new("sh")
        .args(["-c", "kill -s \"$1\" \"$2\"", "sh", signal, pid])
        .status();
    assert!(sent.unwrap().success());
    if signal == "STOP" {
        eventually("all its threads have stopped", || has_stopped(pid));
    }
}

/// The signal is sent to the process, but its threads stop one by one.
fn has_stopped(pid: &str) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        // Not Linux: all that can be seen is the process.
        let state = Command::new("ps")
            .args(["-o", "state=", "-p", pid])
            .output();
        return state.unwrap().stdout.starts_with(b"T");
    };
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // "pid (name) state …", and the name may have parentheses.
        stat.rsplit(')')
            .next()
            .is_some_and(|rest| rest.trim_start().starts_with('T'))
    })
}
