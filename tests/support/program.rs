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
        let mut child = command(example)
            .args(arguments)
            .env("AMQP_URL", uri)
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
        let output = command(example)
            .args(arguments)
            .env("AMQP_URL", uri)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
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

/// It is built when it is missing: `cargo test --test` does not build examples.
pub(crate) fn command(example: &str) -> Command {
    static BUILD: Mutex<()> = Mutex::new(());
    let guard = BUILD.lock();
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--example", example])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(built.unwrap().success());
    drop(guard);
    // The tests are in `deps`, beside `examples`.
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.set_file_name("examples");
    Command::new(path.join(example))
}

/// Sends a signal to a process: KILL, STOP, CONT. After STOP, all its threads have stopped.
pub(crate) fn signal(pid: &str, signal: &str) {
    let sent = Command::new("kill").args(["-s", signal, pid]).status();
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
