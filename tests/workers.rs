//! `Workers`: threads that handle messages, and the example that runs as a worker process.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded, Receiver, RecvTimeoutError, Sender};
use leveret::broker::Broker;
use leveret::{
    AckMode, Channel, Connection, ConnectionEvent, ConnectionOptions, ConsumeOptions, Error,
    ErrorKind, Message, Metrics, OnConsumerEnd, Queue, QueueDeclareOptions, ReplyCode, Settlement,
    StreamOffset, WorkerOptions, Workers,
};

use crate::recovery::{lasting_queue, recovered, Lossy};
use crate::support::proxy::quick;
use crate::support::{
    at, channel, connect, eventually, exclusive_queue, logged, queue_that_times_out,
    queue_with_dead_letters, ready, scripted_connections, scripted_server, short, unique, Node,
    Program, Script, SOON,
};

#[test]
fn the_handlers_settlement_is_applied() {
    let channel = channel();
    let options = QueueDeclareOptions::temporary();
    let (queue, dead) = queue_with_dead_letters(&channel, "", options);
    for body in ["done", "again", "never"] {
        queue.publish(body).unwrap();
    }
    let (tell, told) = unbounded();
    let workers = Workers::new(channel.connection());
    let handler = move |delivery: &leveret::Delivery| {
        let body = String::from_utf8_lossy(delivery.body()).into_owned();
        tell.send((body, delivery.redelivered())).unwrap();
        match delivery.body() {
            b"never" => Settlement::Reject,
            b"again" if !delivery.redelivered() => Settlement::Requeue,
            // The handler may also settle the message itself.
            b"again" => delivery.ack().map(|()| Settlement::Reject).unwrap(),
            _ => Settlement::Ack,
        }
    };
    workers.consume(queue.name(), handler).unwrap();
    let handled: BTreeMap<_, _> = (0..4).map(|_| told.recv_timeout(SOON).unwrap()).collect();
    let expected = [("again", true), ("done", false), ("never", false)];
    assert_eq!(
        handled,
        expected.map(|(body, it)| (body.to_owned(), it)).into()
    );
    workers.shutdown(SOON).unwrap();
    workers.join().unwrap();
    assert_eq!(
        dead.get_with(AckMode::Automatic).unwrap().unwrap().body(),
        b"never"
    );
    assert!(dead.get_with(AckMode::Automatic).unwrap().is_none());
    assert!(
        queue.get_with(AckMode::Automatic).unwrap().is_none(),
        "all other messages are acknowledged"
    );
}

#[test]
fn a_message_whose_handler_panics_is_retried_once_and_then_rejected() {
    logged::begin();
    let channel = channel();
    let options = QueueDeclareOptions::temporary();
    let (queue, dead) = queue_with_dead_letters(&channel, "", options);
    let id = unique("id");
    queue
        .publish(Message::new("fatal").message_id(&id).correlation_id("c"))
        .unwrap();
    queue.publish("harmless").unwrap();
    let (tell, told) = unbounded();
    let workers = Workers::new(channel.connection());
    workers
        .consume(queue.name(), move |delivery| {
            assert_ne!(
                delivery.body(),
                b"fatal",
                "the handler panics on this message"
            );
            tell.send(()).unwrap();
            Settlement::Ack
        })
        .unwrap();
    told.recv_timeout(SOON).unwrap();
    eventually("the message is dead-lettered", || {
        ready(&channel, dead.name()) == 1
    });
    workers.shutdown(SOON).unwrap();
    let letter = dead.get_with(AckMode::Automatic).unwrap().unwrap();
    assert_eq!(letter.message_id(), Some(id.as_str()));
    for (end, tag) in [
        ("requeued", "delivery tag 1,"),
        ("rejected", "delivery tag "),
    ] {
        let says_all = |text: &str| {
            [
                "panicked",
                "the handler panics on this message",
                &id,
                "\"c\"",
                queue.name(),
                tag,
            ]
            .iter()
            .all(|part| text.contains(part))
                && text.ends_with(end)
        };
        assert!(logged::has(says_all), "{end}");
    }
}

#[test]
fn requeues_and_panics_count_as_failed_deliveries() {
    const LIMIT: u32 = 5;
    const TOO_MANY: u32 = 50;
    let channel = channel();
    let options = QueueDeclareOptions::quorum().delivery_limit(LIMIT);
    let (queue, dead) = queue_with_dead_letters(&channel, &unique("quorum"), options);
    let workers = Workers::new(channel.connection());
    let poisoned = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&poisoned);
    let (tell, told) = unbounded();
    workers
        .consume(queue.name(), move |delivery| {
            match (delivery.body(), delivery.redelivered()) {
                (b"panic", false) => panic!("the test panics here"),
                (b"panic", true) => tell.send(delivery.delivery_count()).unwrap(),
                // A queue that does not count would redeliver forever.
                _ if counted.fetch_add(1, Ordering::SeqCst) < TOO_MANY => {
                    return Settlement::Requeue
                }
                _ => {}
            }
            Settlement::Ack
        })
        .unwrap();
    queue.publish("panic").unwrap();
    assert_eq!(told.recv_timeout(SOON), Ok(Some(1)));
    queue.publish("poison").unwrap();
    eventually("the message is dead-lettered", || {
        ready(&channel, dead.name()) == 1 || poisoned.load(Ordering::SeqCst) > TOO_MANY
    });
    workers.shutdown(SOON).unwrap();
    assert_eq!(poisoned.load(Ordering::SeqCst), LIMIT + 1);
    assert_eq!(
        dead.get_with(AckMode::Automatic).unwrap().unwrap().body(),
        b"poison"
    );
    queue.delete().unwrap();
}

#[test]
fn each_thread_has_its_own_channel_and_message() {
    const THREADS: usize = 4;
    let channel = channel();
    let (first, second) = (exclusive_queue(&channel), exclusive_queue(&channel));
    let workers = Workers::new(channel.connection());
    let barrier = Arc::new(Barrier::new(THREADS + 1));
    let channels = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let options = WorkerOptions::default().threads(THREADS);
    let handler = {
        let (barrier, channels) = (Arc::clone(&barrier), Arc::clone(&channels));
        move |delivery: &leveret::Delivery| {
            channels.lock().push(delivery.channel().number());
            barrier.wait();
            Settlement::Ack
        }
    };
    workers
        .consume_with(first.name(), options, handler)
        .unwrap();
    let (tell, told) = unbounded();
    workers
        .consume(second.name(), move |_| {
            tell.send(()).unwrap();
            Settlement::Ack
        })
        .unwrap();
    for _ in 0..THREADS {
        first.publish("").unwrap();
    }
    // All threads hold a message while the other queue's thread handles another one.
    barrier.wait();
    second.publish("").unwrap();
    told.recv_timeout(SOON).unwrap();
    workers.shutdown(SOON).unwrap();
    let mut channels = std::mem::take(&mut *channels.lock());
    channels.sort_unstable();
    channels.dedup();
    assert_eq!(channels.len(), THREADS);
    let declared = channel.queue_declare_passive(first.name());
    assert_eq!(declared.unwrap().consumer_count(), Some(0));
}

#[test]
fn shutdown_requeues_waiting_messages_while_handlers_still_run() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    for number in 0..50 {
        queue.publish(number.to_string()).unwrap();
    }
    let (begun, has_begun) = unbounded();
    let (go_on, may_go_on) = bounded(0);
    let workers = Workers::new(channel.connection());
    let options = WorkerOptions::default().threads(2).prefetch(20);
    workers
        .consume_with(queue.name(), options, move |_| {
            begun.send(()).unwrap();
            may_go_on.recv().unwrap();
            Settlement::Ack
        })
        .unwrap();
    for _ in 0..2 {
        has_begun.recv_timeout(SOON).unwrap();
    }
    eventually("messages are sent ahead", || {
        ready(&channel, queue.name()) == 10
    });
    let error = workers.shutdown(Duration::from_millis(50)).unwrap_err();
    assert!(error.is_timeout(), "{error}");
    assert!(error.to_string().contains(queue.name()), "{error}");
    eventually("the messages sent ahead are requeued", || {
        ready(&channel, queue.name()) == 48
    });
    for _ in 0..2 {
        go_on.send_timeout((), SOON).unwrap();
    }
    workers.join().unwrap();
    assert!(
        has_begun.try_recv().is_err(),
        "no handler starts after shutdown"
    );
    assert_eq!(ready(&channel, queue.name()), 48);
    let error = workers
        .consume(queue.name(), |_| Settlement::Ack)
        .unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::InvalidArgument(_)),
        "{error}"
    );
}

/// Waits until the workers stop without a call of shutdown.
#[track_caller]
fn stopped(workers: &Workers) -> Result<(), Error> {
    eventually("the workers stop", || workers.status().stopped);
    workers.join()
}

#[test]
fn with_stop_all_the_end_of_one_consumer_stops_all_workers() {
    let channel = channel();
    let (first, second) = (exclusive_queue(&channel), exclusive_queue(&channel));
    let workers = Workers::new(channel.connection());
    for queue in [&first, &second] {
        let options = WorkerOptions::default().on_consumer_end(OnConsumerEnd::StopAll);
        workers
            .consume_with(queue.name(), options, |_| Settlement::Ack)
            .unwrap();
    }
    first.delete().unwrap();
    let error = stopped(&workers).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::ConsumerCancelled { .. }),
        "{error}"
    );
    assert!(error.to_string().contains(first.name()), "{error}");
    assert_eq!(workers.shutdown(SOON).unwrap_err().kind(), error.kind());
    assert!(channel.is_open());
}

#[test]
fn workers_stop_with_the_error_when_the_connection_ends() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let workers = Workers::new(channel.connection());
    workers.consume(queue.name(), |_| Settlement::Ack).unwrap();
    channel.connection().close().unwrap();
    assert!(stopped(&workers).unwrap_err().is_connection_end());
}

#[test]
fn invalid_options_are_refused_before_a_thread_starts() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let workers = Workers::new(channel.connection());
    let no_ack = WorkerOptions::default().consume(ConsumeOptions::default().no_ack(true));
    for options in [
        WorkerOptions::default().threads(0),
        WorkerOptions::default().prefetch(0),
        no_ack,
    ] {
        let error = workers
            .consume_with(queue.name(), options, |_| Settlement::Ack)
            .unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::InvalidArgument(_)),
            "{error}"
        );
    }
    let error = workers
        .consume("no such queue", |_| Settlement::Ack)
        .unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND));
    // No thread runs.
    workers.join().unwrap();
    workers.shutdown(Duration::ZERO).unwrap();
}

#[test]
fn dropping_the_last_handle_stops_the_threads_and_logs_it() {
    logged::begin();
    for is_shut_down in [false, true] {
        let channel = channel();
        let queue = exclusive_queue(&channel);
        let workers = Workers::new(channel.connection());
        workers
            .consume_with(queue.name(), WorkerOptions::default().threads(3), |_| {
                Settlement::Ack
            })
            .unwrap();
        let other = workers.clone();
        drop(workers);
        let says_so = |line: &str| line.contains(queue.name()) && line.contains("was dropped");
        assert!(!logged::has(says_so) && other.status().is_healthy());
        if is_shut_down {
            other.shutdown(SOON).unwrap();
        }
        drop(other);
        assert_eq!(logged::has(says_so), !is_shut_down);
        eventually("the queue has no consumer", || {
            let declared = channel.queue_declare_passive(queue.name());
            declared.unwrap().consumer_count() == Some(0)
        });
    }
}

#[test]
fn a_copied_offset_header_does_not_change_settlements() {
    let channel = channel();
    let options = QueueDeclareOptions::temporary();
    let (queue, dead) = queue_with_dead_letters(&channel, "", options);
    for body in ["panic", "again", "never"] {
        let message = Message::new(body).header("x-stream-offset", 7_i64);
        queue.publish(message).unwrap();
    }
    let workers = Workers::new(channel.connection());
    let (tell, told) = unbounded();
    workers
        .consume(queue.name(), move |delivery| {
            let body = String::from_utf8_lossy(delivery.body()).into_owned();
            tell.send(body).unwrap();
            match delivery.body() {
                b"panic" => panic!("the test panics here"),
                b"again" if !delivery.redelivered() => Settlement::Requeue,
                b"never" => Settlement::Reject,
                _ => Settlement::Ack,
            }
        })
        .unwrap();
    let mut handled: Vec<_> = (0..5).map(|_| told.recv_timeout(SOON).unwrap()).collect();
    handled.sort();
    assert_eq!(handled, ["again", "again", "never", "panic", "panic"]);
    eventually("two messages are dead-lettered", || {
        ready(&channel, dead.name()) == 2
    });
    workers.shutdown(SOON).unwrap();
    assert_eq!(ready(&channel, queue.name()), 0);
}

#[test]
fn workers_acknowledge_every_message_of_a_stream() {
    logged::begin();
    let channel = channel();
    let name = unique("stream");
    let stream = channel
        .queue_declare(&name, QueueDeclareOptions::stream())
        .unwrap();
    let publisher = channel.publisher().unwrap();
    for body in ["reject", "panic", "requeue", "requeue", "ack"] {
        publisher.publish("", &name, body).unwrap();
    }
    publisher.wait_for_confirms().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let options = WorkerOptions::default()
        .consume(ConsumeOptions::default().stream_offset(StreamOffset::First));
    let workers = Workers::new(channel.connection());
    let handled = Arc::clone(&count);
    workers
        .consume_with(&name, options, move |delivery| {
            handled.fetch_add(1, Ordering::SeqCst);
            assert_ne!(delivery.body(), b"panic", "the handler panics here");
            assert!(delivery.nack(leveret::NackOptions::requeue()).is_err());
            match delivery.body() {
                b"reject" => Settlement::Reject,
                b"requeue" => Settlement::Requeue,
                _ => Settlement::Ack,
            }
        })
        .unwrap();
    eventually("all messages are handled", || {
        count.load(Ordering::SeqCst) == 5
    });
    workers.shutdown(SOON).unwrap();
    assert_eq!(channel.connection().loss_count(), 0);
    let is_of_it = |line: &str| line.contains(&name);
    let warned = logged::count(|line| is_of_it(line) && line.contains("a stream cannot requeue: "));
    assert_eq!(warned, 1, "the warning comes once");
    assert!(logged::has(|line| is_of_it(line)
        && line.contains("the handler panics here")
        && line
            .ends_with("acknowledged, since a stream cannot requeue")));
    stream.delete().unwrap();
}

#[test]
fn shutdown_waits_until_the_broker_has_read_the_last_acknowledgement() {
    let (tell, returned) = bounded::<()>(1);
    let (address, server) = scripted_server(move |server| {
        server.handshake(0);
        server.open_channel();
        server.expect(60, 10);
        server.send_method(1, 60, 11, b"");
        server.expect(60, 20);
        server.send_method(1, 60, 21, &short("w"));
        let deliver = [&short("w")[..], &[0, 0, 0, 0, 0, 0, 0, 1, 0], &[0, 0]].concat();
        server.send_method(1, 60, 60, &deliver);
        server.send_content(1, b"work");
        // The ack, then the close. A cancel may come before the close, or not at all.
        let mut methods = Vec::new();
        while methods.last() != Some(&(20, 40)) {
            let method = server.next_method();
            if method == (60, 30) {
                server.send_method(1, 60, 31, &short("w"));
            } else {
                methods.push(method);
            }
        }
        assert_eq!(methods, [(60, 80), (20, 40)]);
        let early = returned.recv_timeout(Duration::from_millis(200));
        assert_eq!(early, Err(RecvTimeoutError::Timeout));
        server.send_method(1, 20, 41, b"");
        returned.recv_timeout(SOON).unwrap();
    });
    let connection = Connection::open_with(at(address)).unwrap();
    let workers = Workers::new(&connection);
    let (handled, was_handled) = bounded(1);
    let options = WorkerOptions::default().consume(ConsumeOptions::default().consumer_tag("w"));
    workers
        .consume_with("tasks", options, move |_| {
            handled.send(()).unwrap();
            Settlement::Ack
        })
        .unwrap();
    was_handled.recv_timeout(SOON).unwrap();
    workers.shutdown(SOON).unwrap();
    tell.send(()).unwrap();
    server.join().unwrap();
}

/// A handler that reports each start and waits for permission to return.
struct Held {
    has_begun: Receiver<()>,
    go_on: Sender<()>,
}

impl Held {
    /// Starts the handler. With `acks_itself`, it acknowledges the message before it reports.
    fn start(workers: &Workers, queue: &str, acks_itself: bool) -> Self {
        Self::start_with(workers, queue, WorkerOptions::default(), acks_itself)
    }

    fn start_with(
        workers: &Workers,
        queue: &str,
        options: WorkerOptions,
        acks_itself: bool,
    ) -> Self {
        let (begun, has_begun) = unbounded();
        let (go_on, may_go_on) = bounded(0);
        workers
            .consume_with(queue, options, move |delivery| {
                if acks_itself {
                    delivery.ack().unwrap();
                }
                begun.send(()).unwrap();
                may_go_on.recv().unwrap();
                Settlement::Ack
            })
            .unwrap();
        Self { has_begun, go_on }
    }

    fn wait(&self) {
        self.has_begun.recv_timeout(SOON).unwrap();
    }

    fn go_on(&self) {
        self.go_on.send_timeout((), SOON).unwrap();
    }
}

#[test]
fn shutdown_reports_acknowledgements_lost_with_the_connection() {
    for (acks_itself, not_sent, unconfirmed) in [(false, 1, 0), (true, 0, 1)] {
        let lossy = Lossy::new();
        let channel = lossy.connection.open_channel().unwrap();
        let queue = lasting_queue(&channel);
        let workers = Workers::new(&lossy.connection);
        let held = Held::start(&workers, queue.name(), acks_itself);
        queue.publish("work").unwrap();
        held.wait();
        let error = workers.shutdown(Duration::ZERO).unwrap_err();
        assert!(error.is_timeout(), "{error}");
        lossy.lose();
        held.go_on();
        let expected = ErrorKind::AcksLost {
            not_sent,
            unconfirmed,
        };
        for error in [
            workers.join().unwrap_err(),
            workers.shutdown(SOON).unwrap_err(),
        ] {
            assert_eq!(*error.kind(), expected);
            let text = error.to_string();
            assert!(text.contains("redeliver these messages"), "{text}");
            assert!(text.contains(queue.name()), "{text}");
        }
        assert_eq!(lossy.connection.stats().acks_not_sent, not_sent);
        if !acks_itself {
            eventually("the message is redelivered", || {
                ready(&channel, queue.name()) == 1
            });
        }
    }
}

/// Replies until the client closes the connection. The recovery may open a channel first.
fn answer_until_closed(server: &mut Script) {
    loop {
        match server.next_method() {
            (20, 10) => server.send_method(1, 20, 11, b"\0\0\0\0"),
            (20, 40) => server.send_method(1, 20, 41, b""),
            method => {
                assert_eq!(method, (10, 50));
                return server.send_method(0, 10, 51, b"");
            }
        }
    }
}

#[test]
fn shutdown_reports_acknowledgements_that_may_be_unread() {
    let (address, server) = scripted_connections(2, |connection, server| {
        server.handshake(0);
        if connection == 1 {
            return answer_until_closed(server);
        }
        server.open_channel();
        server.expect(60, 10);
        server.send_method(1, 60, 11, b"");
        server.expect(60, 20);
        server.send_method(1, 60, 21, &short("w"));
        let deliver = [&short("w")[..], &[0, 0, 0, 0, 0, 0, 0, 1, 0], &[0, 0]].concat();
        server.send_method(1, 60, 60, &deliver);
        server.send_content(1, b"work");
        // The server closes the socket without a reply once the client closes the channel.
        while server.next_method() != (20, 40) {}
    });
    let connection = Connection::open_with(at(address).recovery(quick())).unwrap();
    let events = connection.events();
    let workers = Workers::new(&connection);
    let (handled, was_handled) = bounded(1);
    let options = WorkerOptions::default().consume(ConsumeOptions::default().consumer_tag("w"));
    workers
        .consume_with("tasks", options, move |_| {
            handled.send(()).unwrap();
            Settlement::Ack
        })
        .unwrap();
    was_handled.recv_timeout(SOON).unwrap();
    let error = workers.shutdown(SOON).unwrap_err();
    let expected = ErrorKind::AcksLost {
        not_sent: 0,
        unconfirmed: 1,
    };
    assert_eq!(*error.kind(), expected);
    recovered(&events);
    connection.close().unwrap();
    server.join().unwrap();
}

#[test]
fn shutdown_ignores_losses_of_messages_handled_again() {
    let broker = Broker::start().unwrap();
    let options = ConnectionOptions::from_uri(&broker.uri()).unwrap();
    let connection = Connection::open_with(options.recovery(quick())).unwrap();
    let channel = connection.open_channel().unwrap();
    let durable = QueueDeclareOptions::default();
    let queue = channel.queue_declare("tasks", durable).unwrap();
    let workers = Workers::new(&connection);
    let held = Held::start(&workers, queue.name(), false);
    queue.publish("work").unwrap();
    held.wait();
    let events = connection.events();
    broker.drop_connections();
    recovered(&events);
    held.go_on();
    // The broker redelivers the message.
    held.wait();
    assert_eq!(connection.stats().acks_not_sent, 1);
    held.go_on();
    let is_done = |broker: &Broker| broker.queue("tasks").unwrap().unacknowledged == 0;
    assert!(broker.wait_until(SOON, is_done));
    // Lose the connection again while the worker is idle.
    broker.drop_connections();
    recovered(&events);
    workers.shutdown(SOON).unwrap();
    assert_eq!(broker.queue("tasks").unwrap().ready, 0);
}

#[test]
fn a_worker_process_stops_at_signals_without_losing_or_repeating_messages() {
    const MESSAGES: usize = 10;
    let node = Node::start();
    let connection = Connection::open_with(node.options()).unwrap();
    let channel = connection.open_channel().unwrap();
    channel
        .queue_declare("tasks", QueueDeclareOptions::default())
        .unwrap();
    for number in 0..MESSAGES {
        let text = format!("task {number}.");
        channel
            .basic_publish("", "tasks", Message::new(text).persistent(true))
            .unwrap();
    }
    let start = || Program::start("worker", &["tasks"], &node.uri());
    let done_in = |line: &str| line.strip_prefix("done ").map(str::to_owned);
    let mut done = Vec::new();
    for signal in ["TERM", "INT"] {
        let mut worker = start();
        let before = done.len();
        while done.len() == before {
            done.extend(done_in(&worker.line()));
        }
        worker.signal(signal);
        assert!(worker.wait().success());
        done.extend(worker.rest().iter().filter_map(|line| done_in(line)));
        assert!(done.len() < MESSAGES, "the worker stopped in the middle");
        let left = MESSAGES - done.len();
        assert_eq!(node.counts(), (left as u32, 0));
    }
    let mut worker = start();
    while done.len() < MESSAGES {
        done.extend(done_in(&worker.line()));
    }
    worker.signal("TERM");
    assert!(worker.wait().success());
    assert_eq!(worker.rest(), [""; 0]);
    done.sort();
    let expected: Vec<_> = (0..MESSAGES)
        .map(|number| format!("\"task {number}.\""))
        .collect();
    assert_eq!(done, expected, "each task is done once");
    assert_eq!(ready(&channel, "tasks"), 0);
}

/// A panic payload that panics again when dropped.
struct Grenade;

impl Drop for Grenade {
    fn drop(&mut self) {
        std::panic::panic_any(Self);
    }
}

#[test]
fn a_panic_whose_payload_panics_stops_no_worker() {
    let connection = connect();
    let channel = connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    let workers = Workers::new(&connection);
    let (handled, is_handled) = unbounded();
    workers
        .consume(queue.name(), move |delivery| {
            match delivery.body() {
                b"grenade" => std::panic::panic_any(Grenade),
                body => handled.send(body.to_vec()).unwrap(),
            }
            Settlement::Ack
        })
        .unwrap();
    queue.publish("grenade").unwrap();
    queue.publish("plain").unwrap();
    assert_eq!(is_handled.recv_timeout(SOON).unwrap(), b"plain");
    workers.shutdown(SOON).unwrap();
}

#[test]
fn a_handler_cannot_wait_for_its_own_workers() {
    let connection = connect();
    let channel = connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    let workers = Workers::new(&connection);
    let (told, is_told) = unbounded();
    let own = workers.clone();
    workers
        .consume(queue.name(), move |_| {
            told.send([own.join(), own.shutdown(10 * SOON)]).unwrap();
            Settlement::Ack
        })
        .unwrap();
    queue.publish("join").unwrap();
    for waited in is_told.recv_timeout(SOON).unwrap() {
        let error = waited.unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::InvalidArgument(_)),
            "{error}"
        );
    }
    // Shutdown has stopped the workers nevertheless.
    workers.join().unwrap();
}

// ---- consumers that the broker ends ----

/// Short delays, for tests that wait for the next attempt.
fn soon_again() -> WorkerOptions {
    let options = WorkerOptions::default().restart_delay(Duration::from_millis(10));
    options.max_restart_delay(Duration::from_millis(200))
}

/// A first delay longer than any test.
fn not_again() -> WorkerOptions {
    let options = WorkerOptions::default().restart_delay(100 * SOON);
    options.max_restart_delay(100 * SOON)
}

/// Waits until a worker of this queue is interrupted. Returns the error and the delay.
#[track_caller]
fn interrupted(events: &Receiver<ConnectionEvent>, of: &str) -> (Error, Duration) {
    loop {
        match events.recv_timeout(SOON).unwrap() {
            ConnectionEvent::WorkerInterrupted { queue, error, next } => {
                assert_eq!(queue, of);
                return (error, next);
            }
            ConnectionEvent::Closed { cause } => panic!("{cause}"),
            _ => {}
        }
    }
}

/// Waits until a worker of this queue consumes again.
#[track_caller]
fn resumed(events: &Receiver<ConnectionEvent>, of: &str) {
    loop {
        match events.recv_timeout(SOON).unwrap() {
            ConnectionEvent::WorkerResumed { queue, .. } => return assert_eq!(queue, of),
            ConnectionEvent::Closed { cause } => panic!("{cause}"),
            _ => {}
        }
    }
}

fn declare(channel: &Channel, name: &str) -> Queue {
    let options = QueueDeclareOptions::default().expires(Duration::from_secs(60));
    channel.queue_declare(name, options).unwrap()
}

/// Makes the broker close the channel of a delivery, and waits until it is closed.
fn cost_the_channel(delivery: &leveret::Delivery) {
    let channel = delivery.channel();
    channel.basic_ack(delivery.delivery_tag() + 1000).unwrap();
    eventually("the channel is closed", || !channel.is_open());
}

#[test]
fn workers_consume_again_from_a_redeclared_queue() {
    logged::begin();
    let channel = channel();
    let events = channel.connection().events();
    let queue = declare(&channel, &unique("deleted"));
    let workers = Workers::new(channel.connection());
    let (handled, is_handled) = unbounded();
    workers
        .consume_with(queue.name(), soon_again().threads(2), move |delivery| {
            handled.send(delivery.channel().number()).unwrap();
            Settlement::Ack
        })
        .unwrap();
    for round in 0..2 {
        queue.delete().unwrap();
        // One of the two threads has already made another attempt.
        let mut cancelled = 0;
        loop {
            let (error, next) = interrupted(&events, queue.name());
            assert!(next < Duration::from_millis(200), "{next:?}");
            assert!(error.to_string().contains(queue.name()), "{error}");
            match error.kind() {
                ErrorKind::ConsumerCancelled { .. } => cancelled += 1,
                _ => {
                    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND), "{error}");
                    break;
                }
            }
        }
        assert!(cancelled > 0, "round {round}");
        declare(&channel, queue.name());
        resumed(&events, queue.name());
        resumed(&events, queue.name());
        queue.publish("work").unwrap();
        is_handled.recv_timeout(SOON).unwrap();
    }
    assert_eq!(ready(&channel, queue.name()), 0);
    workers.shutdown(SOON).unwrap();
    let warned = |line: &str| line.contains(queue.name()) && line.contains("consumes again in");
    assert!(logged::count(warned) >= 6);
    let consumes = |line: &str| line.contains(queue.name()) && line.contains("again after");
    assert_eq!(logged::count(consumes), 4);
    queue.delete().unwrap();
}

#[test]
fn a_channel_closed_by_the_broker_loses_no_message_and_no_worker() {
    const MESSAGES: usize = 20;
    let channel = channel();
    let events = channel.connection().events();
    let queue = exclusive_queue(&channel);
    for number in 0..MESSAGES {
        queue.publish(number.to_string()).unwrap();
    }
    let workers = Workers::new(channel.connection());
    let (handled, is_handled) = unbounded();
    workers
        .consume_with(queue.name(), soon_again().prefetch(10), move |delivery| {
            handled.send(delivery.body().to_vec()).unwrap();
            if delivery.body() == b"5" && !delivery.redelivered() {
                cost_the_channel(delivery);
            }
            Settlement::Ack
        })
        .unwrap();
    let (error, _) = interrupted(&events, queue.name());
    assert_eq!(error.reply_code(), Some(ReplyCode::PRECONDITION_FAILED));
    resumed(&events, queue.name());
    // Only this one message is handled twice: messages sent ahead were not handled yet.
    let next = |_| is_handled.recv_timeout(SOON).unwrap();
    let mut bodies: Vec<_> = (0..=MESSAGES).map(next).collect();
    bodies.sort();
    let mut expected: Vec<_> = (0..MESSAGES)
        .chain([5])
        .map(|number| number.to_string().into_bytes())
        .collect();
    expected.sort();
    assert_eq!(bodies, expected);
    workers.shutdown(SOON).unwrap();
    assert!(is_handled.try_recv().is_err());
    assert_eq!(ready(&channel, queue.name()), 0);
}

#[test]
fn a_worker_consumes_again_after_a_late_acknowledgement() {
    let broker = Broker::start().unwrap();
    let connection = Connection::open(broker.uri()).unwrap();
    let channel = connection.open_channel().unwrap();
    let events = connection.events();
    let queue = channel
        .queue_declare("tasks", QueueDeclareOptions::default())
        .unwrap();
    let workers = Workers::new(&connection);
    let held = Held::start_with(&workers, queue.name(), soon_again(), false);
    queue.publish("work").unwrap();
    held.wait();
    let late = "delivery acknowledgement on channel timed out";
    let time_out: [&dyn Fn(); 2] = [
        // What RabbitMQ 4.3 does, then what earlier versions do.
        &|| assert_eq!(broker.time_out_consumers("tasks"), 1),
        &|| broker.close_channels(ReplyCode::PRECONDITION_FAILED, late),
    ];
    for time_out in time_out {
        time_out();
        held.go_on();
        interrupted(&events, queue.name());
        resumed(&events, queue.name());
        // The broker redelivers the message.
        held.wait();
    }
    held.go_on();
    workers.shutdown(SOON).unwrap();
    let state = broker.queue("tasks").unwrap();
    assert_eq!((state.ready, state.unacknowledged), (0, 0));
    let channels = |broker: &Broker| broker.connections()[0].channels;
    assert!(broker.wait_until(SOON, |broker| channels(broker) == 0));
}

#[test]
fn a_worker_consumes_again_after_rabbitmqs_consumer_timeout() {
    let node = Node::start_impatient();
    let connection = Connection::open_with(node.options()).unwrap();
    let channel = connection.open_channel().unwrap();
    let events = connection.events();
    let (queue, cancels) = queue_that_times_out(&channel);
    let workers = Workers::new(&connection);
    let held = Held::start_with(&workers, queue.name(), soon_again(), false);
    queue.publish("work").unwrap();
    held.wait();
    eventually("the broker has requeued the message", || {
        node.counts() == (1, 0)
    });
    held.go_on();
    let (error, _) = interrupted(&events, queue.name());
    if cancels {
        assert!(
            matches!(error.kind(), ErrorKind::ConsumerCancelled { .. }),
            "{error}"
        );
    } else {
        assert_eq!(error.reply_code(), Some(ReplyCode::PRECONDITION_FAILED));
        assert!(error.to_string().contains("timed out"), "{error}");
    }
    held.wait();
    held.go_on();
    workers.shutdown(SOON).unwrap();
    assert_eq!(ready(&channel, queue.name()), 0);
}

#[test]
fn an_error_of_one_queue_does_not_stop_the_workers_of_another() {
    for on_end in [OnConsumerEnd::Restart, OnConsumerEnd::StopQueue] {
        let channel = channel();
        let events = channel.connection().events();
        let (gone, good) = (exclusive_queue(&channel), exclusive_queue(&channel));
        let workers = Workers::new(channel.connection());
        let options = not_again().on_consumer_end(on_end).threads(2);
        // The handler is dropped with the queue's last thread.
        let (alive, has_stopped) = bounded::<()>(0);
        workers
            .consume_with(gone.name(), options, move |_| {
                let _ = &alive;
                Settlement::Ack
            })
            .unwrap();
        let (handled, is_handled) = unbounded();
        workers
            .consume(good.name(), move |_| {
                handled.send(()).unwrap();
                Settlement::Ack
            })
            .unwrap();
        gone.delete().unwrap();
        if on_end == OnConsumerEnd::Restart {
            interrupted(&events, gone.name());
        } else {
            let ended = has_stopped.recv_timeout(SOON);
            assert_eq!(ended, Err(RecvTimeoutError::Disconnected));
        }
        good.publish("work").unwrap();
        is_handled.recv_timeout(SOON).unwrap();
        let stopped = workers.shutdown(SOON);
        if on_end == OnConsumerEnd::Restart {
            stopped.unwrap();
            continue;
        }
        let error = stopped.unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::ConsumerCancelled { .. }),
            "{error}"
        );
        assert!(error.to_string().contains(gone.name()), "{error}");
    }
}

#[test]
fn a_worker_waiting_to_consume_again_stops_at_once() {
    for by_close in [false, true] {
        let channel = channel();
        let events = channel.connection().events();
        let queue = exclusive_queue(&channel);
        let workers = Workers::new(channel.connection());
        workers
            .consume_with(queue.name(), not_again(), |_| Settlement::Ack)
            .unwrap();
        queue.delete().unwrap();
        let (_, next) = interrupted(&events, queue.name());
        assert!(next >= 50 * SOON, "{next:?}");
        let begin = Instant::now();
        if by_close {
            channel.connection().close().unwrap();
            let error = stopped(&workers).unwrap_err();
            assert!(error.is_connection_end(), "{error}");
        } else {
            workers.shutdown(SOON).unwrap();
        }
        let took = begin.elapsed();
        assert!(took < SOON, "{took:?}");
    }
}

#[test]
fn a_message_that_keeps_closing_the_channel_is_retried_with_growing_delays() {
    let channel = channel();
    let events = channel.connection().events();
    let queue = exclusive_queue(&channel);
    let workers = Workers::new(channel.connection());
    let options = WorkerOptions::default().restart_delay(Duration::from_millis(8));
    workers
        .consume_with(queue.name(), options, |delivery| {
            cost_the_channel(delivery);
            Settlement::Ack
        })
        .unwrap();
    queue.publish("poison").unwrap();
    let mut last = Duration::ZERO;
    for attempt in 0..6 {
        let (error, next) = interrupted(&events, queue.name());
        assert_eq!(error.reply_code(), Some(ReplyCode::PRECONDITION_FAILED));
        let most = Duration::from_millis(8 << attempt);
        assert!(next > last && next >= most / 2 && next < most, "{next:?}");
        last = next;
    }
    // The result is Ok, or AcksLost if the thread is waiting.
    let _ = workers.shutdown(SOON);
}

#[test]
fn the_restart_delay_starts_over_after_a_consumer_has_lasted() {
    const FIRST: Duration = Duration::from_millis(10);
    const LONG: Duration = Duration::from_millis(400);
    let channel = channel();
    let events = channel.connection().events();
    let queue = declare(&channel, &unique("lasting"));
    let workers = Workers::new(channel.connection());
    let options = WorkerOptions::default().restart_delay(FIRST);
    workers
        .consume_with(queue.name(), options.max_restart_delay(LONG), |_| {
            Settlement::Ack
        })
        .unwrap();
    for _ in 0..2 {
        queue.delete().unwrap();
        let (_, next) = interrupted(&events, queue.name());
        assert!(next < FIRST, "{next:?}");
        let grows = (0..10).any(|_| interrupted(&events, queue.name()).1 >= 4 * FIRST);
        assert!(grows);
        declare(&channel, queue.name());
        resumed(&events, queue.name());
        // The consumer lives for at least this time.
        std::thread::sleep(LONG);
    }
    workers.shutdown(SOON).unwrap();
    queue.delete().unwrap();
}

#[test]
fn a_worker_consumes_again_if_recovery_restores_no_consumers() {
    let broker = Broker::start().unwrap();
    let options = ConnectionOptions::from_uri(&broker.uri()).unwrap();
    let options = options.recovery(quick().consumers(false));
    let connection = Connection::open_with(&options).unwrap();
    let events = connection.events();
    let channel = connection.open_channel().unwrap();
    let queue = channel
        .queue_declare("tasks", QueueDeclareOptions::default())
        .unwrap();
    let workers = Workers::new(&connection);
    let held = Held::start_with(&workers, queue.name(), soon_again(), false);
    broker.drop_connections();
    let (error, _) = interrupted(&events, queue.name());
    assert!(error.is_connection_end(), "{error}");
    resumed(&events, queue.name());
    queue.publish("work").unwrap();
    held.wait();
    held.go_on();
    workers.shutdown(SOON).unwrap();
    assert_eq!(broker.queue("tasks").unwrap().ready, 0);
}

#[test]
fn shutdown_reports_acknowledgements_lost_with_a_channel() {
    for is_waiting in [false, true] {
        let broker = Broker::start().unwrap();
        let connection = Connection::open(broker.uri()).unwrap();
        let events = connection.events();
        let channel = connection.open_channel().unwrap();
        let queue = channel
            .queue_declare("tasks", QueueDeclareOptions::default())
            .unwrap();
        let workers = Workers::new(&connection);
        let held = Held::start_with(&workers, queue.name(), not_again(), false);
        queue.publish("work").unwrap();
        held.wait();
        broker.close_channels(ReplyCode::PRECONDITION_FAILED, "late");
        assert!(broker.wait_until(SOON, |it| it.queue("tasks").unwrap().ready == 1));
        if is_waiting {
            held.go_on();
            interrupted(&events, queue.name());
        } else {
            let error = workers.shutdown(Duration::ZERO).unwrap_err();
            assert!(error.is_timeout(), "{error}");
            held.go_on();
        }
        let error = workers.shutdown(SOON).unwrap_err();
        let expected = ErrorKind::AcksLost {
            not_sent: 1,
            unconfirmed: 0,
        };
        assert_eq!(*error.kind(), expected);
        assert!(error.to_string().contains(queue.name()), "{error}");
        connection.close().unwrap();
    }
}

#[test]
fn no_message_is_lost_when_channels_are_closed_repeatedly() {
    const MESSAGES: usize = 500;
    let broker = Broker::start().unwrap();
    let connection = Connection::open(broker.uri()).unwrap();
    let channel = connection.open_channel().unwrap();
    let queue = channel
        .queue_declare("tasks", QueueDeclareOptions::default())
        .unwrap();
    for number in 0..MESSAGES {
        queue.publish(number.to_string()).unwrap();
    }
    let workers = Workers::new(&connection);
    let handled = Arc::new(parking_lot::Mutex::new(HashSet::new()));
    let options = soon_again().restart_delay(Duration::from_millis(1));
    let options = options.max_restart_delay(Duration::from_millis(4));
    let handler = {
        let handled = Arc::clone(&handled);
        move |delivery: &leveret::Delivery| {
            handled.lock().insert(delivery.body().to_vec());
            std::thread::sleep(Duration::from_millis(1));
            Settlement::Ack
        }
    };
    workers
        .consume_with("tasks", options.threads(3).prefetch(5), handler)
        .unwrap();
    let is_done = |broker: &Broker| {
        let state = broker.queue("tasks").unwrap();
        (state.ready, state.unacknowledged) == (0, 0)
    };
    let begin = Instant::now();
    let mut closes = 0;
    while !broker.wait_until(Duration::from_millis(20), is_done) {
        assert!(begin.elapsed() < SOON, "{:?}", broker.queues());
        broker.close_channels(ReplyCode::PRECONDITION_FAILED, "once more");
        closes += 1;
    }
    assert_eq!(handled.lock().len(), MESSAGES);
    assert!(closes > 0);
    // The last acknowledgements may have crossed the last close.
    if let Err(error) = workers.shutdown(SOON) {
        assert!(
            matches!(error.kind(), ErrorKind::AcksLost { .. }),
            "{error}"
        );
    }
    assert!(is_done(&broker));
    assert_eq!(connection.loss_count(), 0);
}

#[test]
fn a_worker_resumes_a_stream_where_its_channel_was_closed() {
    let channel = channel();
    let events = channel.connection().events();
    let name = unique("stream");
    let stream = channel
        .queue_declare(&name, QueueDeclareOptions::stream())
        .unwrap();
    let publisher = channel.publisher().unwrap();
    for number in 0..10 {
        publisher.publish("", &name, number.to_string()).unwrap();
    }
    publisher.wait_for_confirms().unwrap();
    let consume = ConsumeOptions::default().stream_offset(StreamOffset::First);
    let workers = Workers::new(channel.connection());
    let (handled, is_handled) = unbounded();
    let options = soon_again().prefetch(5).consume(consume);
    workers
        .consume_with(&name, options, move |delivery| {
            handled.send(delivery.body().to_vec()).unwrap();
            if delivery.body() == b"3" {
                cost_the_channel(delivery);
            }
            Settlement::Ack
        })
        .unwrap();
    let handled: Vec<_> = (0..10)
        .map(|_| is_handled.recv_timeout(SOON).unwrap())
        .collect();
    let expected = (0..10).map(|number| number.to_string().into_bytes());
    assert_eq!(handled, expected.collect::<Vec<_>>());
    resumed(&events, &name);
    workers.shutdown(SOON).unwrap();
    stream.delete().unwrap();
}

// ---- status ----

/// For each queue, how many threads consume, wait to consume again, and are busy.
fn counts(workers: &Workers) -> Vec<(usize, usize, usize)> {
    let status = workers.status();
    let counts = status
        .queues
        .iter()
        .map(|it| (it.consuming, it.restarting, it.busy));
    counts.collect()
}

#[test]
fn the_status_shows_what_the_threads_of_each_queue_do() {
    let channel = channel();
    let events = channel.connection().events();
    let (first, second) = (
        declare(&channel, &unique("status")),
        exclusive_queue(&channel),
    );
    let workers = Workers::new(channel.connection());
    assert!(workers.status().queues.is_empty() && workers.status().is_healthy());
    let options = soon_again().threads(2);
    let held = Held::start_with(&workers, first.name(), options, false);
    workers
        .consume_with(second.name(), not_again().threads(3), |_| Settlement::Ack)
        .unwrap();
    first.publish("work").unwrap();
    held.wait();
    assert_eq!(counts(&workers), [(2, 0, 1), (3, 0, 0)]);
    let status = workers.status();
    assert!(status.is_healthy() && !status.stopped && status.failure.is_none());
    assert_eq!(status.queues[0].queue, first.name());
    assert_eq!(status.queues[1].threads, 3);
    assert!(status.queues[0].last_error.is_none());
    second.delete().unwrap();
    eventually("all threads of the second queue are interrupted", || {
        counts(&workers) == [(2, 0, 1), (0, 3, 0)]
    });
    let status = workers.status();
    assert!(!status.is_healthy() && status.queues[0].last_error.is_none());
    let last = status.queues[1].last_error.clone().unwrap();
    assert!(last.ago < SOON, "{last:?}");
    assert!(
        matches!(last.error.kind(), ErrorKind::ConsumerCancelled { .. }),
        "{last:?}"
    );
    first.delete().unwrap();
    // The busy thread has not noticed yet.
    eventually("the idle thread waits to consume again", || {
        counts(&workers)[0] == (1, 1, 1)
    });
    declare(&channel, first.name());
    resumed(&events, first.name());
    held.go_on();
    eventually("both threads consume", || counts(&workers)[0] == (2, 0, 0));
    assert!(workers.status().queues[0].last_error.is_some());
    workers.shutdown(SOON).unwrap();
    assert_eq!(counts(&workers), [(0, 0, 0), (0, 0, 0)]);
    assert!(workers.status().stopped && !workers.status().is_healthy());
    first.delete().unwrap();
}

#[test]
fn the_status_is_unhealthy_while_the_connection_is_lost() {
    let broker = Broker::start().unwrap();
    let options = ConnectionOptions::from_uri(&broker.uri()).unwrap();
    let connection = Connection::open_with(options.recovery(quick())).unwrap();
    let channel = connection.open_channel().unwrap();
    let durable = QueueDeclareOptions::default();
    channel.queue_declare("tasks", durable).unwrap();
    let workers = Workers::new(&connection);
    workers.consume("tasks", |_| Settlement::Ack).unwrap();
    assert_eq!(counts(&workers), [(1, 0, 0)]);
    broker.refuse_connections(true);
    broker.drop_connections();
    eventually("the loss is known", || counts(&workers) == [(0, 1, 0)]);
    broker.refuse_connections(false);
    eventually("the consumer is back", || counts(&workers) == [(1, 0, 0)]);
    // The recovery restored the consumer, so the worker saw no error.
    assert!(workers.status().queues[0].last_error.is_none());
    workers.shutdown(SOON).unwrap();
}

#[test]
fn the_status_shows_why_the_threads_of_a_queue_have_stopped() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let workers = Workers::new(channel.connection());
    let options = WorkerOptions::default().on_consumer_end(OnConsumerEnd::StopQueue);
    workers
        .consume_with(queue.name(), options, |_| Settlement::Ack)
        .unwrap();
    queue.delete().unwrap();
    workers.join().unwrap_err();
    let status = workers.status();
    assert_eq!(counts(&workers), [(0, 0, 0)]);
    assert!(!status.is_healthy() && !status.stopped);
    let last = status.queues[0].last_error.clone().unwrap();
    assert_eq!(status.failure.unwrap().kind(), last.error.kind());
}

// ---- panics outside of handlers ----

#[test]
fn a_logger_that_panics_on_a_handlers_panic_stops_no_worker() {
    logged::begin();
    let channel = channel();
    let options = QueueDeclareOptions::temporary();
    let (queue, dead) = queue_with_dead_letters(&channel, "", options);
    let workers = Workers::new(channel.connection());
    let (handled, is_handled) = unbounded();
    workers
        .consume(queue.name(), move |delivery| {
            assert_ne!(delivery.body(), b"poison", "{}", logged::PANIC);
            handled.send(()).unwrap();
            Settlement::Ack
        })
        .unwrap();
    queue.publish("poison").unwrap();
    queue.publish("plain").unwrap();
    is_handled.recv_timeout(SOON).unwrap();
    eventually("the poison message is dead-lettered", || {
        ready(&channel, dead.name()) == 1
    });
    assert!(workers.status().is_healthy());
    assert!(workers.status().queues[0].last_error.is_none());
    workers.shutdown(SOON).unwrap();
}

#[test]
fn a_logger_that_panics_on_an_interruption_stops_no_worker() {
    logged::begin();
    let broker = Broker::start().unwrap();
    let connection = Connection::open(broker.uri()).unwrap();
    let events = connection.events();
    let channel = connection.open_channel().unwrap();
    let queue = channel
        .queue_declare(logged::PANIC, QueueDeclareOptions::default())
        .unwrap();
    let workers = Workers::new(&connection);
    let held = Held::start_with(&workers, queue.name(), soon_again(), false);
    for _ in 0..2 {
        assert_eq!(broker.cancel_consumers(queue.name()), 1);
        interrupted(&events, queue.name());
        resumed(&events, queue.name());
    }
    queue.publish("work").unwrap();
    held.wait();
    held.go_on();
    workers.shutdown(SOON).unwrap();
    assert_eq!(broker.queue(queue.name()).unwrap().ready, 0);
}

/// Metrics that panic when an acknowledgement is not sent.
struct Fragile;

impl Metrics for Fragile {
    fn ack_not_sent(&self) {
        panic!("the test panics here");
    }
}

#[test]
fn metrics_that_panic_cost_a_worker_only_its_channel() {
    let broker = Broker::start().unwrap();
    let options = ConnectionOptions::from_uri(&broker.uri()).unwrap();
    let connection = Connection::open_with(options.metrics(Arc::new(Fragile))).unwrap();
    let events = connection.events();
    let channel = connection.open_channel().unwrap();
    let queue = channel
        .queue_declare("tasks", QueueDeclareOptions::default())
        .unwrap();
    let workers = Workers::new(&connection);
    let held = Held::start_with(&workers, queue.name(), soon_again(), false);
    queue.publish("work").unwrap();
    held.wait();
    assert_eq!(broker.time_out_consumers("tasks"), 1);
    // Wait until the client knows of the cancel: before, it would still send the acknowledgement.
    eventually("the client has answered the cancel", || {
        broker.queue("tasks").unwrap().consumers == 0
    });
    held.go_on();
    let (error, _) = interrupted(&events, queue.name());
    let ErrorKind::WorkerPanicked { message } = error.kind() else {
        panic!("{error}");
    };
    assert_eq!(message, "the test panics here");
    assert!(!error.is_connection_end());
    resumed(&events, queue.name());
    held.wait();
    held.go_on();
    workers.shutdown(SOON).unwrap();
    assert_eq!(broker.queue("tasks").unwrap().ready, 0);
}
