//! The example `orders` under load, while its broker is killed and it is stopped itself.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use leveret::{Connection, Message, QueueDeclareOptions};

use crate::support::program::command;
use crate::support::{ready, unique, Node, Program, SOON};

const ORDERS: usize = 60_000;
const MEASUREMENTS: usize = 35_000;
const MAILS: usize = 5_000;

/// A directory for the example's tables, deleted at the end.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let directory = std::env::temp_dir().join(unique("orders"));
        std::fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }

    fn table(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn mails(&self) -> usize {
        let mails = std::fs::read_dir(self.0.join("mails"));
        mails.map_or(0, |it| it.count())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How often each message was handled, and how often of these as one that was not redelivered.
fn rows(table: &Path) -> HashMap<String, (usize, usize)> {
    let text = std::fs::read_to_string(table).unwrap_or_default();
    let mut rows = HashMap::new();
    for row in text.lines() {
        let (id, redelivered) = row.split_once(' ').unwrap();
        let counts: &mut (usize, usize) = rows.entry(id.to_owned()).or_default();
        counts.0 += 1;
        counts.1 += usize::from(redelivered == "false");
    }
    rows
}

fn publish_all(connection: &Connection) {
    let channel = connection.open_channel().unwrap();
    let publisher = channel.publisher().unwrap();
    for (queue, count) in [
        ("orders", ORDERS),
        ("measurements", MEASUREMENTS),
        ("mails", MAILS),
    ] {
        channel
            .queue_declare(queue, QueueDeclareOptions::quorum())
            .unwrap();
        for number in 0..count {
            let message = Message::new("7").message_id(number.to_string());
            publisher.publish("", queue, message).unwrap();
        }
    }
    publisher.wait_for_confirms().unwrap();
}

#[track_caller]
fn wait(what: &str, is_done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_done() {
        assert!(begin.elapsed() < 4 * SOON, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_killed_broker_and_a_stopped_program_lose_none_of_100_000_messages() {
    let mut node = Node::start();
    let connection = Connection::open_with(node.options()).unwrap();
    publish_all(&connection);
    connection.close().unwrap();
    let directory = Directory::new();
    let start = || {
        let mut orders = command("orders");
        orders
            .env("AMQP_URL", node.uri())
            .env("ORDERS_DIR", &directory.0);
        Program::spawn(orders)
    };
    let handled = || rows(&directory.table("orders")).len();
    let mut application = start();
    wait("some orders are handled", || handled() > ORDERS / 10);
    application.signal("TERM");
    assert!(application.wait().success());
    let stopped_at = handled();
    assert!(stopped_at < ORDERS, "it was stopped under load");
    // Nothing was handled twice so far.
    for table in ["orders", "measurements"] {
        let rows = rows(&directory.table(table));
        assert!(rows.values().all(|counts| *counts == (1, 1)), "{table}");
    }
    node.sync_declarations();
    let mut application = start();
    wait("more orders are handled", || {
        handled() > stopped_at + ORDERS / 10
    });
    node.signal("KILL");
    assert!(handled() < ORDERS, "the broker is killed under load");
    node.restart();
    wait("all messages are handled", || {
        handled() == ORDERS
            && rows(&directory.table("measurements")).len() == MEASUREMENTS
            && directory.mails() == MAILS
    });
    // A thread without a connection could not tell whether its acknowledgements have arrived.
    let connection = Connection::open_with(node.options()).unwrap();
    let channel = connection.open_channel().unwrap();
    for (queue, threads) in [("orders", 4), ("measurements", 1), ("mails", 2)] {
        wait("all threads consume", || {
            let queue = channel.queue_declare_passive(queue).unwrap();
            queue.consumer_count() == Some(threads)
        });
    }
    application.signal("TERM");
    assert!(application.wait().success());
    let mut again = 0;
    for table in ["orders", "measurements"] {
        for (id, (times, unmarked)) in rows(&directory.table(table)) {
            assert!(
                unmarked <= 1,
                "{table} {id} was handled twice without a mark"
            );
            again += times - 1;
        }
    }
    println!("{again} messages were handled twice");
    for queue in ["orders", "measurements", "mails"] {
        assert_eq!(ready(&channel, queue), 0, "{queue}");
        assert_eq!(ready(&channel, &format!("{queue}.parked")), 0, "{queue}");
    }
}
