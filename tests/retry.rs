//! Failed messages that `Workers` retry later and park.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded, Receiver};
use leveret::broker::Broker;
use leveret::{
    AckMode, Channel, Connection, ConnectionOptions, Delivery, ErrorKind, ExchangeDeclareOptions,
    ExchangeKind, FieldTable, Message, OnFailure, Overflow, QueueDeclareOptions,
    QueueDeleteOptions, QueueType, ReplyCode, Retry, Settlement, WorkerOptions, Workers,
};

use crate::support::interceptor::{Interceptor, Verdict};
use crate::support::{
    channel, connect, eventually, exclusive_queue, logged, queue_with_dead_letters, ready, unique,
    version, SOON,
};

/// The delays of most tests.
const DELAYS: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(100)];

/// A queue, its retry queues, and the queue of its parked messages. They are deleted at the end.
struct Queues {
    channel: Channel,
    name: String,
    retry: Retry,
}

impl Queues {
    fn declare(options: QueueDeclareOptions) -> Self {
        Self::with(options, Retry::after(DELAYS))
    }

    fn with(options: QueueDeclareOptions, retry: Retry) -> Self {
        let (channel, name) = (channel(), unique("retry"));
        channel.queue_declare(&name, options).unwrap();
        Self {
            channel,
            name,
            retry,
        }
    }

    fn retry_queue(&self, step: usize) -> String {
        self.retry.retry_queue(&self.name, DELAYS[step]).0
    }

    fn parked(&self) -> String {
        self.retry.parked_queue(&self.name).0
    }

    fn workers(&self) -> Workers {
        Workers::new(self.channel.connection())
    }

    fn options(&self) -> WorkerOptions {
        WorkerOptions::default()
            .retry(self.retry.clone())
            .restart_delay(Duration::from_millis(20))
    }

    fn publish<'m>(&self, message: impl Into<Message<'m>>) {
        self.channel.basic_publish("", &self.name, message).unwrap();
    }

    fn wait_parked(&self) -> Delivery {
        let mut parked = None;
        eventually("the message is parked", || {
            let exists = self.channel.connection().queue_exists(&self.parked());
            if exists.unwrap() {
                parked = self
                    .channel
                    .basic_get(&self.parked(), AckMode::Automatic)
                    .unwrap();
            }
            parked.is_some()
        });
        parked.unwrap()
    }

    /// All messages in all queues.
    fn left(&self) -> u32 {
        let names = [
            self.name.clone(),
            self.retry_queue(0),
            self.retry_queue(1),
            self.parked(),
        ];
        names.iter().map(|name| ready(&self.channel, name)).sum()
    }
}

impl Drop for Queues {
    fn drop(&mut self) {
        let Ok(channel) = self.channel.connection().open_channel() else {
            return;
        };
        for name in [
            self.name.clone(),
            self.retry_queue(0),
            self.retry_queue(1),
            self.parked(),
        ] {
            delete(&channel, &name);
        }
    }
}

fn delete(channel: &Channel, queue: &str) {
    let options = QueueDeleteOptions::default();
    channel.queue_delete(queue, options).unwrap();
}

fn text(delivery: &Delivery, header: &str) -> Option<String> {
    Some(delivery.header(header)?.as_str()?.to_owned())
}

/// What a handler saw.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    exchange: String,
    routing_key: String,
    attempts: u64,
}

fn seen(delivery: &Delivery) -> Seen {
    Seen {
        exchange: delivery.exchange().to_owned(),
        routing_key: delivery.routing_key().to_owned(),
        attempts: delivery.attempts(),
    }
}

fn next(told: &Receiver<Seen>) -> (String, String, u64) {
    let seen = told.recv_timeout(SOON).unwrap();
    (seen.exchange, seen.routing_key, seen.attempts)
}

#[test]
fn a_failed_message_comes_back_after_each_delay_as_it_was_first_published() {
    for options in [
        QueueDeclareOptions::default(),
        QueueDeclareOptions::quorum(),
    ] {
        let queues = Queues::declare(options);
        let exchange = unique("events");
        let declared = queues
            .channel
            .exchange_declare(
                &exchange,
                ExchangeKind::Topic,
                ExchangeDeclareOptions::default().auto_delete(true),
            )
            .unwrap();
        queues
            .channel
            .queue_bind(&queues.name, &exchange, "#", FieldTable::new())
            .unwrap();
        let (tell, told) = unbounded();
        let workers = queues.workers();
        workers
            .consume_with(&queues.name, queues.options(), move |delivery| {
                tell.send(seen(delivery)).unwrap();
                match delivery.attempts() {
                    1 => Err("the database is down"),
                    2 => panic!("the test panics here"),
                    _ => Ok(()),
                }
            })
            .unwrap();
        let begin = Instant::now();
        declared
            .publish("a.b", Message::new("m").header("own", 7))
            .unwrap();
        for attempt in 1..=3 {
            assert_eq!(next(&told), (exchange.clone(), "a.b".to_owned(), attempt));
        }
        assert!(begin.elapsed() >= DELAYS[0] + DELAYS[1]);
        eventually("the last attempt is counted", || {
            let status = &workers.status().queues[0];
            (status.handled, status.failed, status.panicked) == (1, 1, 1)
                && (status.retried, status.parked) == (2, 0)
        });
        workers.shutdown(SOON).unwrap();
        assert_eq!(queues.left(), 0);
    }
}

#[test]
fn a_message_that_keeps_failing_is_parked_with_its_history_and_can_be_moved_back() {
    let queues = Queues::declare(QueueDeclareOptions::default());
    let (tell, told) = unbounded();
    let workers = queues.workers();
    let fails = Arc::new(AtomicU32::new(1));
    let still_fails = Arc::clone(&fails);
    workers
        .consume_with(&queues.name, queues.options(), move |delivery| {
            tell.send(seen(delivery)).unwrap();
            match still_fails.load(Ordering::SeqCst) {
                0 => Ok(()),
                _ => Err(format!("failure {}\nof the handler", delivery.attempts())),
            }
        })
        .unwrap();
    let aside = exclusive_queue(&queues.channel);
    queues.publish(
        Message::new("m")
            .message_id("id-1")
            .header("own", 7)
            .header("CC", vec![aside.name()])
            .expiration(Duration::from_secs(3600))
            .user_id("guest"),
    );
    for attempt in 1..=3 {
        assert_eq!(next(&told), (String::new(), queues.name.clone(), attempt));
    }
    let parked = queues.wait_parked();
    assert_eq!(parked.body(), b"m");
    assert_eq!(parked.message_id(), Some("id-1"));
    assert_eq!(parked.header("own").unwrap().as_i64(), Some(7));
    assert_eq!(text(&parked, "x-retry-exchange").as_deref(), Some(""));
    assert_eq!(
        text(&parked, "x-retry-routing-key"),
        Some(queues.name.clone())
    );
    assert_eq!(parked.header("x-retry-attempts").unwrap().as_u64(), Some(3));
    let error = text(&parked, "x-retry-error");
    assert_eq!(error.as_deref(), Some("failure 3\nof the handler"));
    // What does not suit a copy.
    assert!(parked.header("CC").is_none() && parked.expiration().is_none());
    assert_eq!((parked.user_id(), parked.delivery_mode()), (None, Some(2)));
    eventually("the queues are empty", || queues.left() == 0);
    assert_eq!(ready(&queues.channel, aside.name()), 1);

    // Parked again, and moved back when the handler works again.
    queues.publish("n");
    for attempt in 1..=3 {
        assert_eq!(next(&told).2, attempt);
    }
    eventually("the message is parked", || {
        ready(&queues.channel, &queues.parked()) == 1
    });
    fails.store(0, Ordering::SeqCst);
    assert_eq!(workers.unpark(&queues.name, 10).unwrap(), 1);
    assert_eq!(next(&told), (String::new(), queues.name.clone(), 1));
    assert_eq!(workers.unpark(&queues.name, 10).unwrap(), 0);
    workers.shutdown(SOON).unwrap();
    assert_eq!(queues.left(), 0);
}

#[test]
fn without_delays_a_failed_message_is_parked_at_once_and_never_expires() {
    let queues = Queues::with(QueueDeclareOptions::default(), Retry::after([]));
    let workers = queues.workers();
    workers
        .consume_with(&queues.name, queues.options(), |_| Err::<(), _>("always"))
        .unwrap();
    queues.publish(Message::new("m").expiration(SOON));
    let parked = queues.wait_parked();
    assert_eq!(parked.header("x-retry-attempts").unwrap().as_u64(), Some(1));
    assert_eq!(
        (parked.expiration(), parked.delivery_mode()),
        (None, Some(2))
    );
    workers.shutdown(SOON).unwrap();
}

/// The broker has parked the message, which is in the message's record of dead letters. With that
/// record, the way back from a retry queue would look like a circle to RabbitMQ 3.10.
#[test]
fn a_message_that_the_broker_has_parked_can_be_retried() {
    let retry = Retry::after(DELAYS);
    let name = unique("limited");
    let (parked, options) = retry.parked_queue(&name);
    let channel = channel();
    channel.queue_declare(&parked, options).unwrap();
    let limited = QueueDeclareOptions::quorum()
        .delivery_limit(1)
        .dead_letter_exchange("")
        .dead_letter_routing_key(&parked);
    channel.queue_declare(&name, limited).unwrap();
    let queues = Queues {
        channel,
        name,
        retry,
    };
    let workers = queues.workers();
    let (poison, fails) = (0, 1);
    let state = Arc::new(AtomicU32::new(poison));
    let shared = Arc::clone(&state);
    let (tell, told) = unbounded();
    workers
        .consume_with(&queues.name, queues.options(), move |_| {
            match shared.load(Ordering::SeqCst) {
                it if it == poison => return Ok(Settlement::Requeue),
                it if it == fails => {
                    shared.store(fails + 1, Ordering::SeqCst);
                    return Err("it fails once");
                }
                _ => tell.send(()).unwrap(),
            }
            Ok(Settlement::Ack)
        })
        .unwrap();
    queues.publish("m");
    eventually("the broker has parked the message", || {
        ready(&queues.channel, &parked) == 1
    });
    state.store(fails, Ordering::SeqCst);
    assert_eq!(workers.unpark(&queues.name, 1).unwrap(), 1);
    told.recv_timeout(SOON).unwrap();
    workers.shutdown(SOON).unwrap();
    assert_eq!(queues.left(), 0);
}

#[test]
fn a_handler_can_ask_for_a_retry_and_decide_otherwise_about_errors() {
    let queues = Queues::declare(QueueDeclareOptions::default());
    let (tell, told) = unbounded();
    let workers = queues.workers();
    let options = queues.options().on_error(OnFailure::Reject);
    workers
        .consume_with(&queues.name, options, move |delivery| {
            tell.send(seen(delivery)).unwrap();
            match (delivery.body(), delivery.attempts()) {
                (b"retry", 1) => Ok(Settlement::Retry),
                (b"error", _) => Err("rejected at once"),
                _ => Ok(Settlement::Ack),
            }
        })
        .unwrap();
    queues.publish("retry");
    queues.publish("error");
    let attempts: Vec<_> = (0..3).map(|_| next(&told).2).collect();
    assert_eq!(attempts, [1, 1, 2]);
    workers.shutdown(SOON).unwrap();
    assert_eq!(workers.status().queues[0].retried, 1);
    assert_eq!(queues.left(), 0);
}

#[test]
fn a_retry_that_is_not_set_is_what_happens_after_an_error() {
    let channel = channel();
    let options = QueueDeclareOptions::temporary();
    let (queue, dead) = queue_with_dead_letters(&channel, "", options);
    let workers = Workers::new(channel.connection());
    workers
        .consume(queue.name(), |_| Settlement::Retry)
        .unwrap();
    queue.publish("m").unwrap();
    eventually("the message is requeued once, then rejected", || {
        ready(&channel, dead.name()) == 1
    });
    workers.shutdown(SOON).unwrap();
}

#[test]
fn a_retry_queue_that_was_deleted_is_declared_again() {
    let queues = Queues::declare(QueueDeclareOptions::default());
    let workers = queues.workers();
    let (tell, told) = unbounded();
    workers
        .consume_with(&queues.name, queues.options(), move |delivery| {
            tell.send(seen(delivery)).unwrap();
            Err::<(), _>("always")
        })
        .unwrap();
    delete(&queues.channel, &queues.retry_queue(0));
    delete(&queues.channel, &queues.parked());
    queues.publish("m");
    for attempt in 1..=3 {
        assert_eq!(next(&told).2, attempt);
    }
    assert_eq!(queues.wait_parked().body(), b"m");
    workers.shutdown(SOON).unwrap();
}

/// Declares the queues of `queues` in the program, with another retry queue.
fn declare_others(queues: &Queues, retry_queue: QueueDeclareOptions) {
    let (parked, options) = queues.retry.parked_queue(&queues.name);
    queues.channel.queue_declare(&parked, options).unwrap();
    let (second, options) = queues.retry.retry_queue(&queues.name, DELAYS[1]);
    queues.channel.queue_declare(&second, options).unwrap();
    let first = queues.retry_queue(0);
    queues.channel.queue_declare(&first, retry_queue).unwrap();
}

/// A queue that takes one message.
fn narrow() -> QueueDeclareOptions {
    QueueDeclareOptions::default()
        .max_length(1)
        .overflow(Overflow::RejectPublish)
}

#[test]
fn while_a_retry_queue_is_missing_or_full_its_message_is_kept() {
    logged::begin();
    for is_full in [false, true] {
        let retry = Retry::after(DELAYS).declare(false);
        let queues = Queues::with(QueueDeclareOptions::default(), retry);
        let (workers, first) = (queues.workers(), queues.retry_queue(0));
        let handler = |_: &Delivery| Err::<(), _>("always");
        let refused = workers.consume_with(&queues.name, queues.options(), handler);
        let error = refused.unwrap_err().to_string();
        assert!(error.contains(&queues.parked()), "{error}");
        declare_others(&queues, narrow());
        workers
            .consume_with(&queues.name, queues.options(), handler)
            .unwrap();
        match is_full {
            true => drop(
                queues
                    .channel
                    .basic_publish("", &first, "fills it")
                    .unwrap(),
            ),
            false => delete(&queues.channel, &first),
        }
        eventually("the retry queue is full or missing", || {
            let exists = queues.channel.connection().queue_exists(&first).unwrap();
            exists == is_full && (!is_full || ready(&queues.channel, &first) == 1)
        });
        queues.publish("m");
        eventually("the worker is blocked", || {
            let status = &workers.status().queues[0];
            status.blocked == 1 && status.last_error.is_some()
        });
        let status = workers.status();
        assert!(!status.is_healthy());
        let error = status.queues[0].last_error.as_ref().unwrap().error.clone();
        let is_cause = match error.kind() {
            ErrorKind::Returned(_) => !is_full,
            ErrorKind::Nacked { .. } => is_full,
            _ => false,
        };
        assert!(is_cause && error.to_string().contains(&first), "{error}");
        let name = queues.name.clone();
        assert!(logged::has(
            |it| it.contains(&name) && it.contains("keeps the message")
        ));
        // Its message is neither acknowledged nor requeued.
        assert_eq!(ready(&queues.channel, &queues.name), 0);
        match is_full {
            true => drop(queues.channel.queue_purge(&first).unwrap()),
            false => drop(queues.channel.queue_declare(&first, narrow()).unwrap()),
        }
        eventually("there is a copy", || ready(&queues.channel, &first) == 1);
        eventually("the worker is healthy", || workers.status().is_healthy());
        workers.shutdown(SOON).unwrap();
        assert_eq!(queues.left(), 1);
    }
}

#[test]
fn a_worker_that_keeps_a_message_stops_at_once_and_requeues_it() {
    let retry = Retry::after(DELAYS).declare(false);
    let queues = Queues::with(QueueDeclareOptions::default(), retry);
    declare_others(&queues, narrow().max_length(0));
    let workers = queues.workers();
    let options = queues
        .options()
        .restart_delay(2 * SOON)
        .max_restart_delay(2 * SOON);
    workers
        .consume_with(&queues.name, options, |_| Err::<(), _>("always"))
        .unwrap();
    queues.publish("m");
    eventually("the worker is blocked", || {
        workers.status().queues[0].blocked == 1
    });
    workers.shutdown(SOON).unwrap();
    assert_eq!(queues.left(), 1);
}

/// A connection that is cut when the client has sent `method` for the first time, which the broker
/// does not get. The workers' handler fails at the first attempt. Returns the attempts, and whether
/// they were redelivered, until two more have come or none is left.
fn lose_the_connection_at(method: (u16, u16), queues: &Queues) -> Vec<(u64, bool)> {
    let (tell_sent, sent) = unbounded();
    let interceptor = Interceptor::start(move |connection, frame| match frame.method() {
        it if connection == 0 && it == Some(method) => {
            tell_sent.send(()).unwrap();
            Verdict::Hang
        }
        _ => Verdict::Pass,
    });
    let connection = Connection::open_with(interceptor.options()).unwrap();
    let workers = Workers::new(&connection);
    let (tell, told) = unbounded();
    workers
        .consume_with(&queues.name, queues.options(), move |delivery| {
            tell.send((delivery.attempts(), delivery.redelivered()))
                .unwrap();
            match (delivery.attempts(), delivery.body()) {
                (1, b"m") => Err("the first time"),
                _ => Ok(()),
            }
        })
        .unwrap();
    queues.publish("m");
    assert_eq!(told.recv_timeout(SOON), Ok((1, false)));
    sent.recv_timeout(SOON).unwrap();
    interceptor.cut(Duration::ZERO);
    eventually("the message is handled", || {
        workers.status().queues[0].handled >= 1 && queues.left() == 0
    });
    workers.shutdown(SOON).unwrap();
    let mut handled: Vec<_> = told.try_iter().collect();
    handled.sort_unstable();
    handled
}

#[test]
fn a_connection_lost_between_the_confirm_and_the_acknowledgement_loses_nothing() {
    let queues = Queues::declare(QueueDeclareOptions::default());
    let handled = lose_the_connection_at((60, 80), &queues);
    // The original is redelivered, and the copy comes, too: as a duplicate, never not at all.
    assert_eq!(handled, [(2, false), (2, true)]);
}

#[test]
fn a_connection_lost_before_the_confirm_makes_no_copy() {
    let queues = Queues::declare(QueueDeclareOptions::default());
    let handled = lose_the_connection_at((60, 40), &queues);
    assert_eq!(handled, [(2, true)]);
}

#[test]
fn foreign_headers_and_headers_without_room_hold_no_thread_up() {
    logged::begin();
    let queues = Queues::declare(QueueDeclareOptions::default());
    let workers = queues.workers();
    workers
        .consume_with(&queues.name, queues.options(), |_| Err::<(), _>("always"))
        .unwrap();
    let foreign = Message::new("m")
        .header("x-retry-step", "no number")
        .header("x-retry-attempts", i64::MAX)
        .header("x-retry-exchange", 7);
    queues.publish(foreign);
    assert_eq!(queues.wait_parked().body(), b"m");
    // In the largest frame, there is no room for another header.
    let frame_max = queues.channel.connection().frame_max() as usize;
    let room = frame_max - 40 - "own".len();
    let filled = |size: usize| Message::new("n").header("own", "x".repeat(size));
    let fits = |size: usize| {
        let published = queues.channel.basic_publish("", &queues.name, filled(size));
        published.is_ok()
    };
    assert!((0..40).any(|more| fits(room - more)));
    let name = queues.name.clone();
    let is_told = |it: &str, word| it.contains(&name) && it.contains(word);
    eventually("the message is requeued, then rejected", || {
        [
            "requeued, since it cannot be copied",
            "rejected, since it cannot be copied",
        ]
        .iter()
        .all(|word| logged::has(|it| is_told(it, word)))
    });
    workers.shutdown(SOON).unwrap();
    assert_eq!(queues.left(), 0);
}

#[test]
fn messages_that_fail_again_while_they_are_unparked_are_moved_once() {
    const MESSAGES: usize = 120;
    let queues = Queues::with(QueueDeclareOptions::default(), Retry::after([]));
    let workers = queues.workers();
    workers
        .consume_with(&queues.name, queues.options().threads(4), |_| {
            Err::<(), _>("always")
        })
        .unwrap();
    for _ in 0..MESSAGES {
        queues.publish("m");
    }
    let all_parked = || ready(&queues.channel, &queues.parked()) as usize == MESSAGES;
    eventually("all messages are parked", all_parked);
    assert_eq!(workers.unpark(&queues.name, usize::MAX).unwrap(), MESSAGES);
    eventually("all messages are parked again", all_parked);
    workers.shutdown(SOON).unwrap();
    let parked = workers.status().queues[0].parked;
    assert_eq!(parked, 2 * MESSAGES as u64);
}

/// The broker redelivers the message of a consumer that it has cancelled.
#[test]
fn a_message_of_a_cancelled_consumer_is_not_copied() {
    let broker = Broker::start().unwrap();
    let connection = Connection::open(broker.uri()).unwrap();
    let channel = connection.open_channel().unwrap();
    channel
        .queue_declare("tasks", QueueDeclareOptions::default())
        .unwrap();
    let workers = Workers::new(&connection);
    let (go_on, may_go_on) = bounded(0);
    let options = WorkerOptions::default()
        .retry(Retry::after(DELAYS))
        .restart_delay(Duration::from_millis(1));
    workers
        .consume_with("tasks", options, move |delivery| {
            may_go_on.recv().unwrap();
            match delivery.attempts() {
                1 => Err("the first time"),
                _ => Ok(()),
            }
        })
        .unwrap();
    channel.basic_publish("", "tasks", "m").unwrap();
    eventually("the handler runs", || workers.status().queues[0].busy == 1);
    assert_eq!(broker.time_out_consumers("tasks"), 1);
    // The client reads the cancellation before this reply.
    assert_eq!(ready(&channel, "tasks"), 1);
    go_on.send(()).unwrap();
    // It is redelivered, and handled.
    go_on.send(()).unwrap();
    eventually("the message is handled", || {
        workers.status().queues[0].handled == 1
    });
    workers.shutdown(SOON).unwrap();
    let status = &workers.status().queues[0];
    assert_eq!((status.failed, status.retried), (1, 0));
    let is_empty = |name: &str| broker.queue(name).map_or(true, |it| it.ready == 0);
    assert!(["tasks", "tasks.retry.50", "tasks.parked"]
        .iter()
        .all(|it| is_empty(it)));
}

#[test]
fn invalid_retries_are_refused() {
    let channel = channel();
    let workers = Workers::new(channel.connection());
    let refused = |queue: &str, options: WorkerOptions| {
        let error = workers.consume_with(queue, options, |_| ()).unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::InvalidArgument(_)),
            "{error}"
        );
        error.to_string()
    };
    let with = |retry| WorkerOptions::default().retry(retry);
    refused("q", with(Retry::after(DELAYS).attempts(0)));
    refused(
        "q",
        with(Retry::after(DELAYS).queue_type(QueueType::Stream)),
    );
    refused("q", WorkerOptions::default().on_error(OnFailure::Retry));
    refused("q", WorkerOptions::default().circuit_breaker(0, SOON));
    let queue = channel
        .queue_declare("", QueueDeclareOptions::temporary())
        .unwrap();
    let error = refused(queue.name(), with(Retry::after(DELAYS)));
    assert!(error.contains("amq."), "{error}");
    refused("", with(Retry::after(DELAYS)));
    let missing = unique("missing");
    let options = with(Retry::after(DELAYS));
    let error = workers.consume_with(&missing, options, |_| ()).unwrap_err();
    assert!(
        error.reply_code() == Some(ReplyCode::NOT_FOUND) && error.to_string().contains(&missing),
        "{error}"
    );
    let parked = Retry::after(DELAYS).parked_queue(&missing).0;
    assert!(!channel.connection().queue_exists(&parked).unwrap());
    assert!(workers.status().queues.is_empty());
}

#[test]
fn the_broker_can_delay_the_retries() {
    logged::begin();
    let (min, max) = (Duration::from_millis(100), Duration::from_millis(200));
    let retry = Retry::by_broker(min, max).attempts(4);
    let (channel, name) = (channel(), unique("delayed"));
    let parked = retry.parked_queue(&name).0;
    let workers = Workers::new(channel.connection());
    let (tell, told) = unbounded();
    workers
        .consume_with(
            &name,
            WorkerOptions::default().retry(retry),
            move |delivery| {
                tell.send(delivery.attempts()).unwrap();
                Err::<(), _>("always")
            },
        )
        .unwrap();
    let begin = Instant::now();
    channel.basic_publish("", &name, "m").unwrap();
    for attempt in 1..=4 {
        assert_eq!(told.recv_timeout(SOON), Ok(attempt));
    }
    let took = begin.elapsed();
    eventually("the message is parked", || ready(&channel, &parked) == 1);
    workers.shutdown(SOON).unwrap();
    let letter = channel
        .basic_get(&parked, AckMode::Automatic)
        .unwrap()
        .unwrap();
    assert_eq!(text(&letter, "x-retry-error").as_deref(), Some("always"));
    assert_eq!(letter.header("x-retry-attempts").unwrap().as_u64(), Some(4));
    let status = &workers.status().queues[0];
    assert_eq!((status.failed, status.retried, status.parked), (4, 3, 1));
    let is_warned = logged::has(|it| it.contains(&name) && it.contains("without a delay"));
    match version() >= (4, 3) {
        true => assert!(took >= min + 2 * max && !is_warned, "{took:?}"),
        false => assert!(is_warned),
    }
    delete(&channel, &name);
    delete(&channel, &parked);
}

#[test]
fn an_unparked_message_keeps_its_address_if_the_broker_delays_retries() {
    let second = Duration::from_secs(1);
    let retry = Retry::by_broker(second, second).attempts(1);
    let (channel, name) = (channel(), unique("address"));
    let parked = retry.parked_queue(&name).0;
    let workers = Workers::new(channel.connection());
    let (tell, told) = unbounded();
    let options = WorkerOptions::default().retry(retry);
    workers
        .consume_with(&name, options, move |delivery| {
            tell.send(seen(delivery)).unwrap();
            Err::<(), _>("always")
        })
        .unwrap();
    let key = unique("key");
    channel
        .queue_bind(&name, "amq.topic", &key, FieldTable::new())
        .unwrap();
    channel.basic_publish("amq.topic", &key, "m").unwrap();
    for _ in 0..2 {
        assert_eq!(next(&told), ("amq.topic".to_owned(), key.clone(), 1));
        eventually("the message is parked", || ready(&channel, &parked) == 1);
        assert_eq!(workers.unpark(&name, 1).unwrap(), 1);
    }
    workers.shutdown(SOON).unwrap();
    delete(&channel, &name);
    delete(&channel, &parked);
}

/// A thread that is to stop does not wait for each message of its batch.
#[test]
fn a_failed_batch_of_a_blocked_connection_stops_soon() {
    let timeout = Duration::from_secs(2);
    let broker = Broker::start().unwrap();
    let options = ConnectionOptions::from_uri(&broker.uri()).unwrap();
    let connection = Connection::open_with(options.publish_timeout(timeout)).unwrap();
    let channel = connection.open_channel().unwrap();
    channel
        .queue_declare("tasks", QueueDeclareOptions::default())
        .unwrap();
    for _ in 0..10 {
        channel.basic_publish("", "tasks", "m").unwrap();
    }
    let workers = Workers::new(&connection);
    let (begun, has_begun) = bounded(0);
    let (go_on, may_go_on) = bounded(0);
    let options = WorkerOptions::default()
        .batch_size(10)
        .retry(Retry::after(DELAYS));
    workers
        .consume_batches("tasks", options, move |_: &[Delivery]| {
            begun.send(()).unwrap();
            may_go_on.recv().unwrap();
            Err::<(), _>("always")
        })
        .unwrap();
    has_begun.recv_timeout(SOON).unwrap();
    broker.block("no memory");
    eventually("the connection is blocked", || {
        connection.blocked_reason().is_some()
    });
    go_on.send(()).unwrap();
    let begin = Instant::now();
    workers.shutdown(SOON).unwrap();
    assert!(begin.elapsed() < 3 * timeout, "{:?}", begin.elapsed());
    broker.unblock();
    assert!(broker.wait_until(SOON, |it| it.queue("tasks").unwrap().ready == 10));
}

/// A message of a worker that crashed is not dead-lettered when a handler fails for the first time.
#[test]
fn a_crash_elsewhere_does_not_count_as_the_handlers_failure() {
    let channel = channel();
    let options = QueueDeclareOptions::quorum();
    let (queue, dead) = queue_with_dead_letters(&channel, &unique("crash"), options);
    queue.publish("m").unwrap();
    // This "worker" ends with an unacknowledged message.
    let crashing = connect();
    let fetched = crashing.open_channel().unwrap();
    eventually("the message is delivered", || {
        let delivery = fetched.basic_get(queue.name(), AckMode::Manual).unwrap();
        delivery.is_some()
    });
    crashing.close().unwrap();
    let workers = Workers::new(channel.connection());
    let (tell, told) = unbounded();
    workers
        .consume(queue.name(), move |delivery| -> Settlement {
            tell.send(delivery.redelivered()).unwrap();
            panic!("the test panics here")
        })
        .unwrap();
    // Once more than a message that no other worker had.
    assert_eq!(told.recv_timeout(SOON), Ok(true));
    assert_eq!(told.recv_timeout(SOON), Ok(true));
    eventually("the message is rejected", || {
        ready(&channel, dead.name()) == 1
    });
    workers.shutdown(SOON).unwrap();
    assert!(told.try_recv().is_err());
    queue.delete().unwrap();
}
