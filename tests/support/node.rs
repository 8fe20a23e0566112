//! A RabbitMQ node for one test, which the test can kill, stop or configure.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use leveret::{Channel, Connection, ConnectionOptions, Queue, QueueDeclareOptions};

use super::{exclusive_queue, program, version_of, SOON};

/// A private RabbitMQ node, which ends when dropped. `tests/with-rabbitmq` starts and stops it.
pub(crate) struct Node {
    script: Child,
    /// Servers that were started again. The script stops them, too.
    restarted: Vec<Child>,
    /// The variables that the script sets for the node.
    environment: Vec<(String, String)>,
}

impl Node {
    pub(crate) fn start() -> Self {
        Self::start_with("", "")
    }

    /// Starts a node with more lines in its rabbitmq.conf, and with plugins.
    pub(crate) fn start_with(config: &str, plugins: &str) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/with-rabbitmq");
        // The script keeps the node running until its standard input ends.
        let hold = "env | grep -E '^(AMQP_URL|RABBITMQ_HOME)='; echo; cat";
        let mut child = Command::new(script)
            .args(["sh", "-c", hold])
            .env_remove("AMQP_URL")
            .env("RABBITMQ_EXTRA_CONFIG", config)
            .env("RABBITMQ_EXTRA_PLUGINS", plugins)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let environment = stdout
            .lines()
            .map(|line| line.unwrap())
            .take_while(|line| !line.is_empty())
            .filter_map(|line| {
                line.split_once('=')
                    .map(|(name, value)| (name.into(), value.into()))
            })
            .collect();
        Self {
            script: child,
            restarted: Vec::new(),
            environment,
        }
    }

    /// Starts a node with a `consumer_timeout` of one second on channels that are opened from now
    /// on.
    pub(crate) fn start_impatient() -> Self {
        let node = Self::start();
        for limit in ["consumer_timeout, 1000", "channel_tick_interval, 500"] {
            node.ctl(&["eval", &format!("application:set_env(rabbit, {limit}).")]);
        }
        node
    }

    fn variable(&self, name: &str) -> &str {
        let found = self.environment.iter().find(|(it, _)| it == name);
        found
            .map(|(_, value)| value.as_str())
            .expect("the node has started")
    }

    pub(crate) fn uri(&self) -> String {
        self.variable("AMQP_URL").to_owned()
    }

    pub(crate) fn options(&self) -> ConnectionOptions {
        ConnectionOptions::from_uri(&self.uri()).unwrap()
    }

    /// Runs rabbitmqctl on this node and returns what it prints.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        let output = self.script("ctl").args(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "rabbitmqctl {arguments:?}: {output:?}"
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Writes all declarations to disk, so that they survive a kill. RabbitMQ can take two seconds
    /// for a classic queue after its declare-ok. RabbitMQ 3.10 takes minutes for a quorum queue,
    /// and after a kill within that time, the queue confirms nothing.
    pub(crate) fn sync_declarations(&self) {
        let sync = "mnesia:sync_log(), [dets:sync(Table) || Table <- dets:all()].";
        self.ctl(&["eval", sync]);
    }

    /// How many messages of the node's only queue are ready, and how many unacknowledged, according
    /// to the broker.
    pub(crate) fn counts(&self) -> (u32, u32) {
        let counts = self.ctl(&["list_queues", "messages_ready", "messages_unacknowledged"]);
        let last = counts.lines().last().unwrap();
        let (ready, unacknowledged) = last.split_once('\t').unwrap();
        (ready.parse().unwrap(), unacknowledged.parse().unwrap())
    }

    /// Sends a signal to the node's process: KILL, STOP, CONT.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.pid();
        program::signal(&pid, signal);
    }

    fn pid(&self) -> String {
        let pid = std::fs::read_to_string(self.path("pid"));
        pid.unwrap().trim().to_owned()
    }

    /// The path of one of the node's files.
    fn path(&self, name: &str) -> PathBuf {
        Path::new(self.variable("RABBITMQ_HOME")).join(name)
    }

    fn script(&self, name: &str) -> Command {
        let mut command = Command::new("bash");
        command.arg(self.path(name));
        command
    }

    /// Starts a killed node again with its data, and waits until it accepts connections.
    pub(crate) fn restart(&mut self) {
        let mut server = self.script("start").spawn().unwrap();
        let options = self.options();
        // The time that RabbitMQ needs to recover its queues is not under test: next to other
        // builds it was 35 s.
        let begin = Instant::now();
        while let Err(error) = Connection::open_with(&options) {
            let ended = server.try_wait().unwrap();
            assert!(
                ended.is_none() && begin.elapsed() < 5 * SOON,
                "the node is not back after {:?} ({ended:?}): {error}\n{}",
                begin.elapsed(),
                self.console(),
            );
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        self.restarted.push(server);
    }

    /// The node's output since its first start.
    fn console(&self) -> String {
        std::fs::read_to_string(self.path("console")).unwrap_or_default()
    }
}

/// Declares a queue that enforces `consumer_timeout`. The flag says whether it cancels the
/// consumer. Before RabbitMQ 4.3, all queues enforce the timeout, and the broker closes the
/// channel. Since then, only quorum queues do, and they cancel the consumer.
pub(crate) fn queue_that_times_out(channel: &Channel) -> (Queue, bool) {
    if version_of(channel.connection()) < (4, 3) {
        return (exclusive_queue(channel), false);
    }
    let quorum = QueueDeclareOptions::quorum();
    (channel.queue_declare("quorum", quorum).unwrap(), true)
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.script.stdin.take());
        let _ = self.script.wait();
        for server in &mut self.restarted {
            let _ = server.wait();
        }
    }
}
