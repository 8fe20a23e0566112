//! The application with a broker in this process, which restarts under load.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leveret::broker::Broker;
use leveret::{Connection, Message, Pause, Workers};

use super::app::{self, Settings, QUEUES};

const SOON: Duration = Duration::from_secs(20);
const MESSAGES: usize = 2_000;

/// A running application, with its own broker and its own directory.
struct Test {
    broker: Broker,
    connection: Connection,
    directory: PathBuf,
    workers: Workers,
}

impl Test {
    fn start(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("orders-{}-{name}", std::process::id()));
        fs::create_dir_all(directory.join("mails")).unwrap();
        let broker = Broker::start().unwrap();
        let connection = Connection::open(broker.uri()).unwrap();
        let settings = Settings {
            directory: directory.clone(),
            delays: [20, 40].map(Duration::from_millis).to_vec(),
            mail_pause: Duration::from_millis(50),
        };
        let workers = Workers::new(&connection);
        app::start(&connection, &workers, &settings).unwrap();
        Self {
            broker,
            connection,
            directory,
            workers,
        }
    }

    fn publish(&self, queue: &str, id: &str, body: &str) {
        let channel = self.connection.open_channel().unwrap();
        let message = Message::new(body).message_id(id);
        let publisher = channel.publisher().unwrap();
        publisher
            .publish("", queue, message)
            .unwrap()
            .wait()
            .unwrap();
    }

    fn publish_all(&self) {
        let publisher = self.connection.open_channel().unwrap().publisher().unwrap();
        for number in 0..MESSAGES {
            let message = Message::new("7")
                .persistent(true)
                .message_id(number.to_string());
            for queue in QUEUES {
                publisher.publish("", queue, &message).unwrap();
            }
        }
        publisher.wait_for_confirms().unwrap();
    }

    fn ready(&self, queue: &str) -> usize {
        self.broker.queue(queue).map_or(0, |it| it.ready)
    }

    fn wait(&self, what: &str, is_done: impl Fn(&Self) -> bool) {
        let done = self.broker.wait_until(SOON, |_| is_done(self));
        assert!(done, "{what}: {:?}", self.workers.status());
    }

    /// Whether all messages are handled, and those handled again are marked as redelivered.
    fn is_complete(&self, table: &str) -> bool {
        let rows = rows(&self.directory.join(table));
        let mut unmarked = HashMap::<&str, usize>::new();
        for row in &rows {
            let (id, redelivered) = row.split_once(' ').unwrap();
            *unmarked.entry(id).or_default() += usize::from(redelivered == "false");
        }
        assert!(unmarked.values().all(|it| *it <= 1), "{unmarked:?}");
        unmarked.len() == MESSAGES
    }
}

impl Drop for Test {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn rows(table: &Path) -> Vec<String> {
    let text = fs::read_to_string(table).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_restart_of_the_broker_loses_nothing() {
    let test = Test::start("restart");
    test.publish_all();
    test.wait("some orders are handled", |it| {
        rows(&it.directory.join("orders")).len() > MESSAGES / 4
    });
    test.broker.restart();
    test.wait("all messages are handled", |it| {
        let mails = fs::read_dir(it.directory.join("mails")).unwrap().count();
        it.is_complete("orders") && it.is_complete("measurements") && mails == MESSAGES
    });
    test.workers.shutdown(SOON).unwrap();
    assert!(QUEUES.iter().all(|queue| test.ready(queue) == 0));
}

#[test]
fn an_order_that_keeps_failing_is_parked_and_others_are_not_held_up() {
    let test = Test::start("poison");
    for (id, body) in [("text", "seven"), ("panics", "0"), ("fine", "7")] {
        test.publish("orders", id, body);
    }
    test.wait("two orders are parked", |it| {
        let status = &it.workers.status().queues[0];
        (status.handled, status.parked) == (1, 2)
    });
    assert_eq!(test.ready("orders.parked"), 2);
    assert_eq!(rows(&test.directory.join("orders")), ["fine false"]);
    let status = &test.workers.status().queues[0];
    assert_eq!((status.failed, status.panicked, status.retried), (3, 3, 4));
}

#[test]
fn mails_wait_while_the_mail_server_is_down() {
    let test = Test::start("mails");
    let server = test.directory.join("mails");
    fs::remove_dir(&server).unwrap();
    for id in ["a", "b", "c"] {
        test.publish("mails", id, "hello");
    }
    test.wait("the queue pauses", |it| {
        let pause = it.workers.status().queues[2].pause;
        matches!(pause, Some(Pause::ByCircuitBreaker { .. }))
    });
    fs::create_dir(&server).unwrap();
    test.wait("all mails are sent or parked", |it| {
        fs::read_dir(&server).unwrap().count() + it.ready("mails.parked") == 3
    });
    test.workers.unpark("mails", 3).unwrap();
    test.wait("all mails are sent", |_| {
        fs::read_dir(&server).unwrap().count() == 3
    });
}
