//! The broker is killed: everyone who waits is told, and the same.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use leveret::{Connection, ConsumeOptions, Error, ErrorKind, QueueDeclareOptions};

use crate::support::{eventually, exclusive_queue, Node, SOON};

/// Threads that wait for something that will not come.
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
fn a_killed_broker_ends_every_wait_with_the_same_cause() {
    let node = Node::start();
    // Nothing here ends by a timeout, or the test is late.
    let long = 10 * SOON;
    let options = node.options().request_timeout(long).publish_timeout(long);
    let connection = Connection::open_with(&options).unwrap();
    let channels: Vec<_> = (0..5).map(|_| connection.open_channel().unwrap()).collect();
    let queue = exclusive_queue(&channels[0]);
    let consumer = queue.consume(ConsumeOptions::default()).unwrap();
    queue.publish("never acknowledged").unwrap();
    let delivery = consumer.recv().unwrap().unwrap();
    channels[1].confirm_select().unwrap();
    let closing = Connection::open_with(&options).unwrap();
    let flooded = Connection::open_with(&options).unwrap();
    let flooding = flooded.open_channel().unwrap();

    // Stopped first, so that what is asked now is really waited for.
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
            .queue_declare("q", QueueDeclareOptions::durable())
            .unwrap_err()
    });
    let channel = channels[3].clone();
    waiting.wait(move || channel.basic_get("q", false).unwrap_err());
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
    // It wanted the connection closed, and closed it is.
    closer.join().unwrap().unwrap();

    // And so is all that is asked afterwards.
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
