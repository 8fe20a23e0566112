//! What the handlers of `Workers` return, and the state that each thread's handler has.

use std::cell::Cell;
use std::error::Error as StdError;
use std::fmt;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::Duration;

use crossbeam_channel::unbounded;
use leveret::{
    AckMode, ConnectionEvent, Delivery, ErrorKind, OnConsumerEnd, OnFailure, Queue,
    QueueDeclareOptions, Settlement, WorkerOptions, Workers,
};

use crate::support::{channel, eventually, logged, ready, unique, Queues, SOON};

impl Queues {
    /// Stops the workers, which have handled the message of this body, and returns where it is now:
    /// its queue, or nowhere.
    fn settled(&self, workers: &Workers) -> Option<&'static str> {
        workers.shutdown(SOON).unwrap();
        let has = |queue: &Queue| queue.get_with(AckMode::Automatic).unwrap().is_some();
        match (has(&self.queue), has(&self.dead)) {
            (true, false) => Some("requeued"),
            (false, true) => Some("rejected"),
            (false, false) => None,
            (true, true) => panic!("the message is in two queues"),
        }
    }
}

/// An error with a source.
#[derive(Debug)]
struct Outer(fmt::Error);

impl fmt::Display for Outer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the outer error")
    }
}

impl StdError for Outer {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

fn read(delivery: &Delivery) -> Result<u32, Box<dyn StdError>> {
    Ok(std::str::from_utf8(delivery.body())?.parse()?)
}

#[test]
fn a_handler_returns_nothing_a_settlement_or_a_result_of_either() {
    let queues = Queues::declare();
    let workers = queues.workers();
    let name = queues.queue.name();
    let handled = Arc::new(AtomicU32::new(0));
    let count = || {
        let handled = Arc::clone(&handled);
        move || {
            handled.fetch_add(1, Ordering::Relaxed);
        }
    };
    let counts = [(); 7].map(|()| count());
    let [a, b, c, d, e, f, g] = counts;
    workers.consume(name, move |_| a()).unwrap();
    workers
        .consume(name, move |_| {
            b();
            Settlement::Ack
        })
        .unwrap();
    workers
        .consume(name, move |delivery| {
            c();
            read(delivery).map(drop)
        })
        .unwrap();
    workers
        .consume(
            name,
            move |delivery| -> Result<Settlement, Box<dyn StdError>> {
                d();
                let number = read(delivery)?;
                Ok(match number {
                    7 => Settlement::Ack,
                    _ => Settlement::Reject,
                })
            },
        )
        .unwrap();
    workers
        .consume(
            name,
            move |_| -> Result<(), Box<dyn StdError + Send + Sync>> {
                e();
                Ok("7".parse::<u32>().map(drop)?)
            },
        )
        .unwrap();
    workers
        .consume(name, move |_| {
            f();
            Ok::<_, String>(())
        })
        .unwrap();
    workers
        .consume(name, move |delivery| -> leveret::Result<()> {
            g();
            delivery.properties().map(drop)
        })
        .unwrap();
    for _ in 0..70 {
        queues.queue.publish("7").unwrap();
    }
    eventually("all messages are handled", || {
        handled.load(Ordering::Relaxed) == 70
    });
    assert_eq!(queues.settled(&workers), None);
}

#[test]
fn an_error_is_logged_with_its_sources_and_settled_as_the_options_say() {
    logged::begin();
    for (on_error, settled) in [
        (OnFailure::RequeueOnce, Some("rejected")),
        (OnFailure::Reject, Some("rejected")),
        (OnFailure::Ack, None),
        (OnFailure::Requeue, Some("requeued")),
    ] {
        let queues = Queues::declare();
        let workers = queues.workers();
        let (tell, told) = unbounded();
        let options = WorkerOptions::default().on_error(on_error);
        workers
            .consume_with(queues.queue.name(), options, move |delivery| {
                tell.send(delivery.redelivered()).unwrap();
                // Without this, the broker may redeliver thousands of times before the end.
                if delivery.redelivered() && on_error == OnFailure::Requeue {
                    thread::park_timeout(Duration::from_millis(20));
                }
                Err::<(), _>(Outer(fmt::Error))
            })
            .unwrap();
        queues.queue.publish("m").unwrap();
        assert!(!told.recv_timeout(SOON).unwrap());
        if settled == Some("rejected") {
            eventually("the message is dead-lettered", || {
                ready(&queues.channel, queues.dead.name()) == 1
            });
        }
        let retries = matches!(on_error, OnFailure::RequeueOnce | OnFailure::Requeue);
        if retries {
            assert!(told.recv_timeout(SOON).unwrap());
        }
        assert_eq!(queues.settled(&workers), settled, "{on_error:?}");
        let last = settled.unwrap_or("acknowledged");
        let name = queues.queue.name().to_owned();
        let says_all = |line: &str| {
            line.contains(&name)
                && line.contains("failed: the outer error: an error occurred when formatting")
                && line.ends_with(last)
        };
        assert!(logged::has(says_all), "{on_error:?}");
    }
}

#[test]
fn a_panic_is_settled_as_the_options_say() {
    let queues = Queues::declare();
    let workers = queues.workers();
    let options = WorkerOptions::default().on_panic(OnFailure::Reject);
    let handler = |_: &Delivery| -> Settlement { panic!("at once") };
    workers
        .consume_with(queues.queue.name(), options, handler)
        .unwrap();
    queues.queue.publish("m").unwrap();
    eventually("the message is dead-lettered", || {
        ready(&queues.channel, queues.dead.name()) == 1
    });
    assert_eq!(queues.settled(&workers), Some("rejected"));
}

/// An error whose text panics.
struct Unreadable;

impl fmt::Display for Unreadable {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("the text panics")
    }
}

impl fmt::Debug for Unreadable {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("the text panics")
    }
}

impl StdError for Unreadable {}

/// State whose destructor panics.
struct Undroppable;

impl Drop for Undroppable {
    fn drop(&mut self) {
        panic!("the destructor panics");
    }
}

#[test]
fn panics_of_an_error_or_a_destructor_end_no_thread() {
    let queues = Queues::declare();
    let workers = queues.workers();
    let (tell, told) = unbounded();
    let options = WorkerOptions::default()
        .on_panic(OnFailure::Reject)
        .on_consumer_end(OnConsumerEnd::StopAll);
    workers
        .consume_per_thread(queues.queue.name(), options, move || {
            let (state, tell) = (Undroppable, tell.clone());
            Ok::<_, fmt::Error>(move |delivery: &Delivery| {
                let _state = &state;
                assert_ne!(delivery.body(), b"panic");
                if delivery.body() == b"error" {
                    return Err(Unreadable);
                }
                tell.send(()).unwrap();
                Ok(())
            })
        })
        .unwrap();
    for body in ["panic", "error", "fine"] {
        queues.queue.publish(body).unwrap();
    }
    told.recv_timeout(SOON).unwrap();
    eventually("both messages are dead-lettered", || {
        ready(&queues.channel, queues.dead.name()) == 2
    });
    workers.shutdown(SOON).unwrap();
}

#[test]
fn a_failed_handler_that_has_settled_its_message_is_not_contradicted() {
    logged::begin();
    let queues = Queues::declare();
    let workers = queues.workers();
    let handler = |delivery: &Delivery| {
        delivery.ack().unwrap();
        Err::<(), _>("too late")
    };
    workers.consume(queues.queue.name(), handler).unwrap();
    queues.queue.publish("m").unwrap();
    let name = queues.queue.name().to_owned();
    let says = |line: &str| {
        line.contains(&name)
            && line.ends_with("settled by the handler")
            && line.contains("too late")
    };
    eventually("the failure is logged", || logged::has(says));
    assert_eq!(queues.settled(&workers), None);
}

#[test]
fn each_thread_has_a_handler_with_its_own_state() {
    let queues = Queues::declare();
    let workers = queues.workers();
    let (tell, told) = unbounded::<(ThreadId, u32)>();
    let options = WorkerOptions::default().threads(3);
    workers
        .consume_per_thread(queues.queue.name(), options, move || {
            // Such state cannot leave its thread.
            let count = Rc::new(Cell::new(0));
            let (tell, made_on) = (tell.clone(), thread::current().id());
            Ok::<_, fmt::Error>(move |_: &Delivery| {
                count.set(count.get() + 1);
                assert_eq!(thread::current().id(), made_on);
                tell.send((made_on, count.get())).unwrap();
            })
        })
        .unwrap();
    for _ in 0..300 {
        queues.queue.publish("m").unwrap();
    }
    let mut counts = std::collections::HashMap::new();
    for _ in 0..300 {
        let (thread, count) = told.recv_timeout(SOON).unwrap();
        let before = counts.insert(thread, count).unwrap_or(0);
        assert_eq!(count, before + 1);
    }
    assert_eq!(counts.values().sum::<u32>(), 300);
    assert_eq!(queues.settled(&workers), None);
}

#[test]
fn after_a_panic_a_thread_makes_a_new_handler() {
    let queues = Queues::declare();
    let workers = queues.workers();
    let (tell, told) = unbounded();
    let made = Arc::new(AtomicU32::new(0));
    let makes = Arc::clone(&made);
    workers
        .consume_per_thread(queues.queue.name(), WorkerOptions::default(), move || {
            makes.fetch_add(1, Ordering::Relaxed);
            let (mut handled, tell) = (0, tell.clone());
            Ok::<_, fmt::Error>(move |delivery: &Delivery| {
                handled += 1;
                assert_ne!(delivery.body(), b"panic");
                tell.send(handled).unwrap();
            })
        })
        .unwrap();
    for body in ["first", "second", "panic", "third"] {
        queues.queue.publish(body).unwrap();
    }
    let handled: Vec<_> = (0..3).map(|_| told.recv_timeout(SOON).unwrap()).collect();
    // The third message meets a handler that has handled nothing.
    assert_eq!(handled, [1, 2, 1]);
    eventually("the message is dead-lettered", || {
        ready(&queues.channel, queues.dead.name()) == 1
    });
    workers.shutdown(SOON).unwrap();
    assert!((2..=3).contains(&made.load(Ordering::Relaxed)));
}

#[test]
fn a_handler_that_cannot_be_made_is_reported_and_nothing_is_consumed() {
    let queues = Queues::declare();
    let workers = queues.workers();
    let name = queues.queue.name();
    queues.queue.publish("m").unwrap();
    let tries = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&tries);
    let options = || WorkerOptions::default().threads(2);
    let fails = move || match counted.fetch_add(1, Ordering::Relaxed) {
        0 => Ok(|_: &Delivery| ()),
        _ => Err(Outer(fmt::Error)),
    };
    let error = workers
        .consume_per_thread(name, options(), fails)
        .unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::HandlerNotCreated { .. }),
        "{error}"
    );
    let text = error.to_string();
    assert!(
        text.contains("the outer error: an error occurred"),
        "{text}"
    );
    let panics = || -> Result<fn(&Delivery), fmt::Error> { panic!("no database") };
    let error = workers
        .consume_per_thread(name, options(), panics)
        .unwrap_err();
    assert!(error.to_string().contains("no database"), "{error}");
    assert!(workers.status().queues.is_empty());
    // RabbitMQ may count before it has read a message that was published before.
    eventually("nothing is consumed", || ready(&queues.channel, name) == 1);
    // The workers go on with another handler.
    let (tell, told) = unbounded();
    workers.consume(name, move |_| tell.send(())).unwrap();
    told.recv_timeout(SOON).unwrap();
    assert_eq!(queues.settled(&workers), None);
}

#[test]
fn a_handler_that_cannot_be_made_after_a_panic_is_made_later() {
    let channel = channel();
    let queue = channel
        .queue_declare(&unique("per-thread"), QueueDeclareOptions::default())
        .unwrap();
    let connection = channel.connection();
    let events = connection.events();
    let workers = Workers::new(connection);
    let (tell, told) = unbounded();
    let made = Arc::new(AtomicU32::new(0));
    let makes = Arc::clone(&made);
    let options = WorkerOptions::default()
        .restart_delay(Duration::from_millis(1))
        // Its consumer has not ended.
        .on_consumer_end(OnConsumerEnd::StopAll);
    workers
        .consume_per_thread(queue.name(), options, move || {
            let tell = tell.clone();
            match makes.fetch_add(1, Ordering::Relaxed) {
                1..=3 => Err("the database is down"),
                number => Ok(move |_: &Delivery| {
                    assert!(number > 0, "the first handler panics");
                    tell.send(number).unwrap();
                }),
            }
        })
        .unwrap();
    queue.publish("m").unwrap();
    assert_eq!(told.recv_timeout(SOON).unwrap(), 4);
    let interrupted = |event: &ConnectionEvent| match event {
        ConnectionEvent::WorkerInterrupted { error, .. } => {
            assert!(
                error.to_string().contains("the database is down"),
                "{error}"
            );
            true
        }
        ConnectionEvent::WorkerResumed { .. } => false,
        other => panic!("{other:?}"),
    };
    let events: Vec<_> = events.try_iter().map(|it| interrupted(&it)).collect();
    assert_eq!(events, [true, true, true, false]);
    workers.shutdown(SOON).unwrap();
    assert!(queue.get_with(AckMode::Automatic).unwrap().is_none());
    queue.delete().unwrap();
}
