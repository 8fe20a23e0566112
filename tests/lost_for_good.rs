//! The broker is killed and recovery is off: every waiting thread gets the same error.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use leveret::{
    AckMode, Connection, ConsumeOptions, Error, ErrorKind, Message, PublisherOptions,
    QueueDeclareOptions, RecoveryOptions,
};

use crate::support::{eventually, exclusive_queue, Node, SOON};

/// Threads that wait for something that never happens.
struct Waiting {
    threads: Vec<JoinHandle<Error>>,
    begun: Arc<Barrier>,
}

impl Waiting {
    fn new(count: usize) -> Self {
        let begun = Arc::new(Barrier::new(count + 1));
        Self {
            threads: Vec::new(),
            begun,
        }
    }

    fn wait(&mut self, wait: impl FnOnce() -> Error + Send + 'static) {
        let begun = Arc::clone(&self.begun);
        self.threads.push(thread::spawn(move || {
            begun.wait();
            wait()
        }));
    }
}

#[test]
fn killing_the_broker_ends_every_wait_with_the_same_cause() {
    let node = Node::start();
    // No timeout ends a wait here: the test would be late.
    let long = 10 * SOON;
    let options = node
        .options()
        .request_timeout(long)
        .publish_timeout(long)
        .recovery(RecoveryOptions::none());
    let connection = Connection::open_with(&options).unwrap();
    let channels: Vec<_> = (0..5).map(|_| connection.open_channel().unwrap()).collect();
    let queue = exclusive_queue(&channels[0]);
    let consumer = queue.consume().unwrap();
    queue.publish("never acknowledged").unwrap();
    let delivery = consumer.recv().unwrap().unwrap();
    channels[1].confirm_select().unwrap();
    let closing = Connection::open_with(&options).unwrap();
    let flooded = Connection::open_with(&options).unwrap();
    let flooding = flooded.open_channel().unwrap();

    // Stop the broker first, so that every call below waits.
    node.signal("STOP");
    let mut waiting = Waiting::new(6);
    waiting.wait(move || consumer.recv().unwrap_err());
    let channel = channels[1].clone();
    waiting.wait(move || {
        channel.basic_publish("", "q", "unconfirmed").unwrap();
        channel.wait_for_confirms_timeout(long).unwrap_err()
    });
    let channel = channels[2].clone();
    waiting.wait(move || {
        channel
            .queue_declare("q", QueueDeclareOptions::default())
            .unwrap_err()
    });
    let channel = channels[3].clone();
    waiting.wait(move || channel.basic_get("q", AckMode::Manual).unwrap_err());
    let channel = channels[4].clone();
    waiting.wait(move || {
        channel
            .basic_consume("q", ConsumeOptions::default())
            .unwrap_err()
    });
    let opening = connection.clone();
    waiting.wait(move || opening.open_channel().unwrap_err());

    let published = Arc::new(AtomicU32::new(0));
    let counting = Arc::clone(&published);
    let flooder = thread::spawn(move || loop {
        if let Err(error) = flooding.basic_publish("", "nowhere", vec![0; 100_000]) {
            return error;
        }
        counting.fetch_add(1, Ordering::Relaxed);
    });
    let closer = thread::spawn(move || closing.close());
    waiting.begun.wait();
    let mut before = 0;
    eventually("the socket and the outbox are full", || {
        thread::sleep(Duration::from_millis(200));
        let now = published.load(Ordering::Relaxed);
        std::mem::replace(&mut before, now) == now && now > 0
    });
    assert!(connection.is_open() && !flooder.is_finished());
    node.signal("KILL");

    let errors: Vec<Error> = waiting
        .threads
        .into_iter()
        .map(|it| it.join().unwrap())
        .collect();
    let cause = connection.close_cause().unwrap();
    assert!(
        matches!(cause.kind(), ErrorKind::SocketClosed { .. }),
        "{cause}"
    );
    for error in &errors {
        assert_eq!(error.kind(), cause.kind(), "{error}");
    }
    let flooded_error = flooder.join().unwrap();
    assert_eq!(flooded_error.kind(), flooded.close_cause().unwrap().kind());
    assert!(
        matches!(flooded_error.kind(), ErrorKind::SocketClosed { .. }),
        "{flooded_error}"
    );
    // The program wanted to close this connection, so its loss is no error.
    closer.join().unwrap().unwrap();

    // Later calls fail with the same cause.
    connection.wait_closed(SOON).unwrap();
    let later = [
        delivery.ack().unwrap_err(),
        channels[0].basic_qos(1).unwrap_err(),
        channels[0].basic_publish("", "q", "m").unwrap_err(),
        channels[0].close().unwrap_err(),
        connection.open_channel().unwrap_err(),
        connection.close().unwrap_err(),
    ];
    for error in later {
        assert_eq!(error.kind(), cause.kind(), "{error}");
    }
}

/// Publishes numbers until the connection is lost. Returns the confirmed numbers, and how many were
/// lost.
fn publish_until_lost(
    connection: &Connection,
    queue: &str,
    first: u32,
    confirmed: &AtomicU32,
) -> (Vec<u32>, u32) {
    let channel = connection.open_channel().unwrap();
    let publisher = channel
        .publisher_with(PublisherOptions::default().window(1000))
        .unwrap();
    let mut open = std::collections::VecDeque::new();
    let (mut answered, mut lost) = (Vec::new(), 0);
    let mut number = first;
    loop {
        let body = number.to_be_bytes();
        let message = Message::new(body).persistent(true);
        match publisher.publish("", queue, message) {
            Ok(confirm) => open.push_back((number, confirm)),
            Err(error) => {
                assert!(!error.may_have_been_sent(), "{error}");
                assert!(error.is_connection_end(), "{error}");
                break;
            }
        }
        number += 1;
        while let Some(Ok(Some(()))) = open.front().map(|(_, confirm)| confirm.try_wait()) {
            answered.push(open.pop_front().unwrap().0);
            confirmed.fetch_add(1, Ordering::Relaxed);
        }
    }
    // All confirms have their answer now: confirmed, or the end of the connection.
    for (number, confirm) in open {
        match confirm.wait_timeout(SOON) {
            Ok(()) => answered.push(number),
            Err(error) => {
                assert!(error.is_connection_end(), "{error}");
                lost += 1;
            }
        }
    }
    assert_eq!(publisher.unconfirmed(), 0);
    (answered, lost)
}

#[test]
fn messages_confirmed_before_a_kill_survive_the_restart() {
    const THREADS: u32 = 2;
    let mut node = Node::start();
    let options = node.options().recovery(RecoveryOptions::none());
    let connection = Connection::open_with(&options).unwrap();
    let channel = connection.open_channel().unwrap();
    let queue = channel
        .queue_declare("durable", QueueDeclareOptions::default())
        .unwrap();
    node.sync_declarations();
    let confirmed = Arc::new(AtomicU32::new(0));
    let publishers: Vec<_> = (0..THREADS)
        .map(|thread| {
            let (connection, confirmed) = (connection.clone(), Arc::clone(&confirmed));
            let queue = queue.name().to_owned();
            thread::spawn(move || publish_until_lost(&connection, &queue, thread << 24, &confirmed))
        })
        .collect();
    eventually("thousands of messages are confirmed", || {
        confirmed.load(Ordering::Relaxed) > 10_000
    });
    node.signal("KILL");
    let (mut confirmed, mut lost) = (HashSet::new(), 0);
    for publisher in publishers {
        let (theirs, lost_theirs) = publisher.join().unwrap();
        confirmed.extend(theirs);
        lost += lost_theirs;
    }
    assert!(lost > 0, "the broker was killed with messages in flight");

    node.restart();
    let connection = Connection::open_with(node.options()).unwrap();
    let channel = connection.open_channel().unwrap();
    let queue = channel.queue("durable");
    let consumer = queue
        .consume_with(ConsumeOptions::default().no_ack(true))
        .unwrap();
    let mut found = HashSet::new();
    while !confirmed.is_subset(&found) {
        let delivery = consumer.recv_timeout(SOON).unwrap();
        let delivery = delivery.unwrap_or_else(|| {
            let missing = confirmed.difference(&found).count();
            panic!(
                "{missing} of {} confirmed messages are missing",
                confirmed.len()
            )
        });
        let number = u32::from_be_bytes(delivery.body().try_into().unwrap());
        assert!(found.insert(number), "message {number} came twice");
    }
}
