//! The example `move`, run as a program.

use std::collections::BTreeSet;
use std::process::Output;
use std::time::Duration;

use leveret::broker::Broker;
use leveret::{
    AckMode, Channel, Connection, FieldValue, Message, Overflow, QueueDeclareOptions,
    QueueDeleteOptions, Requeue,
};

use crate::support::{channel, eventually, program, ready, unique, url, Node, Program, SOON};

/// A source with numbered messages, and a target. Drop deletes both.
struct Queues {
    channel: Channel,
    source: String,
    target: String,
}

impl Queues {
    /// Declares the queues on the broker that all tests share.
    fn declare(source: QueueDeclareOptions, target: QueueDeclareOptions, messages: usize) -> Self {
        let it = Self {
            channel: channel(),
            source: unique("source"),
            target: unique("target"),
        };
        it.channel.queue_declare(&it.source, source).unwrap();
        it.channel.queue_declare(&it.target, target).unwrap();
        fill(&it.channel, &it.source, messages);
        it
    }

    fn run_move(&self, more: &[&str]) -> Output {
        let arguments = [&[self.source.as_str(), &self.target], more].concat();
        run_move(&arguments)
    }

    /// How many messages are ready in the source, and in the target.
    fn ready(&self) -> (u32, u32) {
        let [source, target] = [&self.source, &self.target].map(|it| ready(&self.channel, it));
        (source, target)
    }
}

impl Drop for Queues {
    fn drop(&mut self) {
        for queue in [&self.source, &self.target] {
            let _ = self
                .channel
                .queue_delete(queue, QueueDeleteOptions::default());
        }
    }
}

fn run_move(arguments: &[&str]) -> Output {
    let mut command = program::command("move");
    command.args(arguments).env("AMQP_URL", url());
    command.output().unwrap()
}

#[track_caller]
fn assert_succeeded(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}

#[track_caller]
fn assert_failed(output: &Output, reason: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr.contains(reason), "{stderr}");
}

/// Publishes messages with the bodies 0, 1, 2 and so on.
fn fill(channel: &Channel, queue: &str, messages: usize) {
    let publisher = channel.publisher().unwrap();
    for number in 0..messages {
        let message = Message::new(number.to_string()).persistent(true);
        publisher.publish("", queue, message).unwrap();
    }
    publisher.wait_for_confirms().unwrap();
}

/// Takes all messages out of a queue.
fn numbers(channel: &Channel, queue: &str) -> Vec<usize> {
    let mut numbers = Vec::new();
    while let Some(it) = channel.basic_get(queue, AckMode::Automatic).unwrap() {
        numbers.push(std::str::from_utf8(it.body()).unwrap().parse().unwrap());
    }
    numbers
}

#[track_caller]
fn assert_all_arrived(channel: &Channel, target: &str, messages: usize) {
    let arrived = numbers(channel, target);
    let once: BTreeSet<_> = arrived.iter().copied().collect();
    println!("{} messages came twice", arrived.len() - once.len());
    assert!(once.into_iter().eq(0..messages), "messages are missing");
}

/// The program has succeeded, and says that it lost its connection meanwhile.
#[track_caller]
fn assert_survived(mut mover: Program) {
    assert!(mover.wait().success());
    let lines = mover.rest();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[1].starts_with("the connection was lost"), "{lines:?}");
}

#[test]
fn no_message_is_lost_when_the_broker_restarts_halfway() {
    const MESSAGES: usize = 5000;
    let broker = Broker::start().unwrap();
    let channel = Connection::open(broker.uri())
        .unwrap()
        .open_channel()
        .unwrap();
    for queue in ["source", "target"] {
        channel
            .queue_declare(queue, QueueDeclareOptions::default())
            .unwrap();
    }
    fill(&channel, "source", MESSAGES);
    let mover = Program::start("move", &["source", "target"], &broker.uri());
    let moved = |broker: &Broker| {
        // An original is acknowledged after its copy is in the target, so look there last.
        let source = broker.queue("source").unwrap();
        let target = broker.queue("target").unwrap();
        assert!(source.ready + source.unacknowledged + target.ready >= MESSAGES);
        target.ready
    };
    assert!(broker.wait_until(SOON, |it| moved(it) >= MESSAGES / 2));
    broker.restart();
    assert!(broker.wait_until(SOON, |it| moved(it) >= MESSAGES));
    assert_survived(mover);
    assert!(broker.wait_until(SOON, |it| {
        let source = it.queue("source").unwrap();
        source.ready + source.unacknowledged + source.consumers == 0
    }));
    assert_all_arrived(&channel, "target", MESSAGES);
}

#[test]
fn no_message_is_lost_when_rabbitmq_is_killed_halfway() {
    const MESSAGES: usize = 20_000;
    let mut node = Node::start();
    let connection = Connection::open_with(node.options()).unwrap();
    let channel = connection.open_channel().unwrap();
    channel
        .queue_declare("source", QueueDeclareOptions::quorum())
        .unwrap();
    channel
        .queue_declare("target", QueueDeclareOptions::default())
        .unwrap();
    node.sync_declarations();
    fill(&channel, "source", MESSAGES);
    let mover = Program::start("move", &["source", "target"], &node.uri());
    eventually("a quarter of the messages have arrived", || {
        ready(&channel, "target") as usize >= MESSAGES / 4
    });
    node.signal("KILL");
    node.restart();
    assert_survived(mover);
    let channel = connection.open_channel().unwrap();
    assert_eq!(ready(&channel, "source"), 0);
    assert_all_arrived(&channel, "target", MESSAGES);
}

#[test]
fn a_killed_mover_loses_nothing_and_the_next_one_moves_the_rest() {
    const MESSAGES: usize = 20_000;
    let durable = QueueDeclareOptions::default();
    let queues = Queues::declare(durable.clone(), durable, MESSAGES);
    let mut mover = Program::start("move", &[&queues.source, &queues.target], &url());
    eventually("a quarter of the messages have arrived", || {
        queues.ready().1 as usize >= MESSAGES / 4
    });
    mover.signal("KILL");
    assert!(!mover.wait().success());
    assert_succeeded(&queues.run_move(&[]));
    assert_eq!(queues.ready().0, 0);
    assert_all_arrived(&queues.channel, &queues.target, MESSAGES);
}

#[test]
fn a_missing_queue_is_reported_and_nothing_moves() {
    const MESSAGES: usize = 10;
    let durable = QueueDeclareOptions::default();
    let queues = Queues::declare(durable.clone(), durable, MESSAGES);
    let missing = unique("missing");
    let not_found = format!("404 NOT_FOUND - no queue '{missing}'");
    assert_failed(&run_move(&[&queues.source, &missing]), &not_found);
    assert_failed(&run_move(&[&missing, &queues.target]), &not_found);
    eventually("the messages are in the source", || {
        queues.ready() == (MESSAGES as u32, 0)
    });
    let usage = program::command("move").output().unwrap();
    assert_failed(&usage, "usage:");
    assert_failed(&run_move(&[&queues.source, &queues.source]), "usage:");
    // A prefetch of zero would mean no limit.
    assert_failed(&queues.run_move(&["0"]), "usage:");
}

#[test]
fn messages_that_a_full_queue_refuses_stay_in_the_source() {
    const MESSAGES: usize = 1200;
    const ROOM: usize = 700;
    let full = QueueDeclareOptions::default()
        .max_length(ROOM as u64)
        .overflow(Overflow::RejectPublish);
    let queues = Queues::declare(QueueDeclareOptions::quorum(), full, MESSAGES);
    let output = queues.run_move(&[]);
    assert_failed(&output, "is it full?");
    eventually("the messages are in the source", || {
        let (source, target) = queues.ready();
        source + target == MESSAGES as u32
    });
    let moved = numbers(&queues.channel, &queues.target);
    // RabbitMQ can take more while it tells the publisher's channel that the queue is full.
    assert!(moved.len() >= ROOM, "{} messages", moved.len());
    let report = format!("moved {} messages", moved.len());
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.starts_with(&report), "{report}: {stdout}");
    let mut all = numbers(&queues.channel, &queues.source);
    all.extend(moved);
    all.sort_unstable();
    assert!(
        all.into_iter().eq(0..MESSAGES),
        "each message is there once"
    );
}

#[test]
fn a_count_moves_the_oldest_messages_and_receives_no_others() {
    const MESSAGES: usize = 1600;
    const COUNT: usize = 1200;
    let queues = Queues::declare(
        QueueDeclareOptions::quorum(),
        QueueDeclareOptions::quorum(),
        MESSAGES,
    );
    let output = queues.run_move(&[&COUNT.to_string()]);
    assert_succeeded(&output);
    let report = format!(
        "moved {COUNT} messages from {:?} to {:?}\n",
        queues.source, queues.target
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), report);
    assert!(numbers(&queues.channel, &queues.target)
        .into_iter()
        .eq(0..COUNT));
    for number in COUNT..MESSAGES {
        let left = queues.channel.basic_get(&queues.source, AckMode::Automatic);
        let left = left.unwrap().unwrap();
        assert_eq!(left.body(), number.to_string().as_bytes());
        assert!(!left.redelivered(), "{left:?}");
    }
}

#[test]
fn a_copy_reaches_only_the_target_with_the_properties_that_still_apply() {
    let durable = QueueDeclareOptions::default();
    let queues = Queues::declare(QueueDeclareOptions::quorum(), durable, 0);
    let channel = &queues.channel;
    let other = channel
        .queue_declare("", QueueDeclareOptions::temporary())
        .unwrap();
    let message = Message::new("body")
        .header("CC", [other.name()])
        .header("tenant", "t")
        .user_id("guest")
        .message_id("m")
        .expiration(Duration::from_secs(3600));
    let publisher = channel.publisher().unwrap();
    let confirm = publisher.publish("", &queues.source, message).unwrap();
    confirm.wait().unwrap();
    assert_eq!(ready(channel, other.name()), 1);
    // The source counts a failed delivery.
    let delivery = channel.basic_get(&queues.source, AckMode::Manual);
    delivery.unwrap().unwrap().reject(Requeue::Yes).unwrap();
    assert_succeeded(&queues.run_move(&[]));
    assert_eq!(ready(channel, other.name()), 1);
    let copy = channel.basic_get(&queues.target, AckMode::Automatic);
    let copy = copy.unwrap().unwrap();
    let properties = copy.properties().unwrap();
    assert_eq!(properties.user_id, None);
    assert_eq!(properties.delivery_mode, Some(2));
    assert_eq!(copy.message_id(), Some("m"));
    assert_eq!(copy.expiration(), Some(Duration::from_secs(3600)));
    let headers: Vec<_> = copy.headers().unwrap().iter().collect();
    assert_eq!(headers, [(&"tenant".into(), &FieldValue::from("t"))]);
}
