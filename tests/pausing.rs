//! `Workers` that pause, and the warning before the broker's acknowledgement timeout.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded};
use leveret::broker::Broker;
use leveret::{
    Connection, ConnectionEvent, ConsumeOptions, ErrorKind, Message, OnFailure, Pause,
    QueueDeclareOptions, WorkerOptions, Workers,
};

use crate::support::{channel, eventually, exclusive_queue, logged, ready, unique, SOON};

#[test]
fn a_paused_queue_keeps_its_messages_until_it_is_resumed() {
    let channel = channel();
    let (queue, other) = (exclusive_queue(&channel), exclusive_queue(&channel));
    let workers = Workers::new(channel.connection());
    let (tell, told) = unbounded();
    let (go_on, may_go_on) = bounded(0);
    let options = WorkerOptions::default().threads(2).prefetch(10);
    let tells = tell.clone();
    workers
        .consume_with(queue.name(), options, move |delivery| {
            tells.send(delivery.body().to_vec()).unwrap();
            if delivery.body() == b"slow" {
                may_go_on.recv().unwrap();
            }
        })
        .unwrap();
    workers
        .consume(other.name(), move |_| tell.send(b"other".to_vec()).unwrap())
        .unwrap();
    queue.publish("slow").unwrap();
    assert_eq!(told.recv_timeout(SOON).unwrap(), b"slow");
    workers.pause(queue.name()).unwrap();
    // The message of the running handler is still acknowledged.
    go_on.send(()).unwrap();
    queue.publish("waits").unwrap();
    other.publish("").unwrap();
    assert_eq!(told.recv_timeout(SOON).unwrap(), b"other");
    let status = workers.status();
    let paused = &status.queues[0];
    assert_eq!((paused.pause, paused.threads), (Some(Pause::ByProgram), 2));
    assert_eq!((paused.consuming, paused.restarting), (0, 0));
    assert!(status.is_healthy() && status.queues[1].pause.is_none());
    eventually("the message waits in the queue", || {
        ready(&channel, queue.name()) == 1
    });
    assert!(told.try_recv().is_err());
    workers.resume(queue.name()).unwrap();
    assert_eq!(told.recv_timeout(SOON).unwrap(), b"waits");
    eventually("all threads consume", || {
        workers.status().queues[0].consuming == 2
    });
    assert!(workers.status().queues[0].pause.is_none());
    workers.shutdown(SOON).unwrap();
    assert_eq!(ready(&channel, queue.name()), 0);
}

#[test]
fn a_pause_ends_with_a_shutdown_and_knows_its_queues() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let workers = Workers::new(channel.connection());
    workers.consume(queue.name(), |_| ()).unwrap();
    for refused in [
        workers.pause("no such queue"),
        workers.resume("no such queue"),
    ] {
        let error = refused.unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::InvalidArgument(_)),
            "{error}"
        );
    }
    // Paused twice, and resumed although not paused.
    workers.resume(queue.name()).unwrap();
    workers.pause(queue.name()).unwrap();
    workers.pause(queue.name()).unwrap();
    workers.shutdown(SOON).unwrap();
    assert!(workers.pause(queue.name()).is_err());
}

#[test]
fn a_pause_outlasts_a_lost_connection() {
    let broker = Broker::start().unwrap();
    let connection = Connection::open(broker.uri()).unwrap();
    let channel = connection.open_channel().unwrap();
    let durable = QueueDeclareOptions::default();
    channel.queue_declare("tasks", durable).unwrap();
    let publisher = channel.publisher().unwrap();
    let workers = Workers::new(&connection);
    let (tell, told) = unbounded();
    workers
        .consume("tasks", move |_| tell.send(()).unwrap())
        .unwrap();
    workers.pause("tasks").unwrap();
    broker.restart();
    publisher.publish("", "tasks", "m").unwrap().wait().unwrap();
    assert!(broker.wait_until(SOON, |it| it.queue("tasks").is_some_and(|it| it.ready == 1)));
    assert_eq!(broker.queue("tasks").unwrap().consumers, 0);
    workers.resume("tasks").unwrap();
    told.recv_timeout(SOON).unwrap();
    workers.shutdown(SOON).unwrap();
}

#[test]
fn a_shutdown_while_the_connection_is_lost_waits_for_nothing() {
    for prefetch in [1, 100] {
        let broker = Broker::start().unwrap();
        let connection = Connection::open(broker.uri()).unwrap();
        let channel = connection.open_channel().unwrap();
        channel
            .queue_declare("tasks", QueueDeclareOptions::default())
            .unwrap();
        let workers = Workers::new(&connection);
        let options = WorkerOptions::default().threads(2).prefetch(prefetch);
        workers.consume_with("tasks", options, |_| ()).unwrap();
        broker.refuse_connections(true);
        broker.drop_connections();
        eventually("the connection is lost", || {
            connection.loss_cause().is_some()
        });
        let begin = Instant::now();
        workers.shutdown(SOON).unwrap();
        assert!(begin.elapsed() < SOON / 4, "{:?}", begin.elapsed());
    }
}

#[test]
fn a_circuit_breaker_pauses_after_failures_in_a_row() {
    logged::begin();
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let workers = Workers::new(channel.connection());
    let is_down = Arc::new(AtomicBool::new(false));
    let calls = Arc::new(AtomicU32::new(0));
    let (down, counted) = (Arc::clone(&is_down), Arc::clone(&calls));
    let delay = Duration::from_secs(600);
    let options = WorkerOptions::default()
        .on_error(OnFailure::Requeue)
        .circuit_breaker(3, delay);
    workers
        .consume_with(queue.name(), options, move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            match down.load(Ordering::SeqCst) {
                true => Err("the database is down"),
                false => Ok(()),
            }
        })
        .unwrap();
    queue.publish("m").unwrap();
    eventually("the message is handled", || {
        calls.load(Ordering::SeqCst) == 1
    });
    let name = queue.name().to_owned();
    let is_told = |it: &str| it.contains(&name) && it.contains("keep failing");
    let pauses = |times: usize| {
        eventually("the breaker pauses the queue", || {
            let status = workers.status();
            let pause = status.queues[0].pause;
            matches!(pause, Some(Pause::ByCircuitBreaker { remaining }) if remaining <= delay)
                && !status.is_healthy()
                && logged::count(is_told) == times
        });
    };
    is_down.store(true, Ordering::SeqCst);
    queue.publish("n").unwrap();
    pauses(1);
    assert_eq!(calls.load(Ordering::SeqCst), 1 + 3);
    // The program's own attempt counts anew.
    workers.resume(queue.name()).unwrap();
    pauses(2);
    assert_eq!(calls.load(Ordering::SeqCst), 1 + 3 + 3);
    is_down.store(false, Ordering::SeqCst);
    workers.resume(queue.name()).unwrap();
    eventually("the message is handled", || {
        workers.status().queues[0].handled == 2
    });
    eventually("the workers are healthy", || workers.status().is_healthy());
    workers.shutdown(SOON).unwrap();
    assert_eq!(ready(&channel, queue.name()), 0);
}

#[test]
fn a_circuit_breaker_tries_again_after_its_delay() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let workers = Workers::new(channel.connection());
    let delay = Duration::from_millis(200);
    let options = WorkerOptions::default()
        .on_error(OnFailure::Requeue)
        .circuit_breaker(3, delay);
    let (tell, told) = unbounded();
    workers
        .consume_with(queue.name(), options, move |_| {
            tell.send(Instant::now()).unwrap();
            Err::<(), _>("the database is down")
        })
        .unwrap();
    queue.publish("m").unwrap();
    let calls: Vec<Instant> = (0..5).map(|_| told.recv_timeout(SOON).unwrap()).collect();
    // One more failure is enough for each further pause.
    for pair in calls[2..].windows(2) {
        assert!(pair[1] - pair[0] >= delay);
    }
    workers.shutdown(SOON).unwrap();
}

#[test]
fn a_handler_near_the_acknowledgement_timeout_is_reported_once() {
    logged::begin();
    let channel = channel();
    let queue = channel
        .queue_declare(&unique("late"), QueueDeclareOptions::quorum())
        .unwrap();
    let workers = Workers::new(channel.connection());
    let (go_on, may_go_on) = bounded(0);
    let timeout = Duration::from_secs(2);
    let consume = ConsumeOptions::default().consumer_timeout(timeout);
    workers
        .consume_with(
            queue.name(),
            WorkerOptions::default().consume(consume),
            move |_| may_go_on.recv().unwrap(),
        )
        .unwrap();
    let begin = Instant::now();
    queue.publish(Message::new("m").message_id("id-7")).unwrap();
    let name = queue.name().to_owned();
    let is_warning = |it: &str| {
        it.contains(&name) && it.contains("acknowledgement timeout") && it.contains("\"id-7\"")
    };
    eventually("the handler is late", || logged::has(is_warning));
    assert!(begin.elapsed() >= timeout.mul_f64(0.8));
    let late = workers.status().queues[0].late.clone();
    assert_eq!(late.len(), 1);
    assert_eq!((late[0].delivery_tag, late[0].messages), (1, 1));
    assert_eq!(late[0].message_id.as_deref(), Some("id-7"));
    assert!(late[0].running_for >= timeout.mul_f64(0.8));
    go_on.send(()).unwrap();
    eventually("the handler has returned", || {
        workers.status().queues[0].busy == 0
    });
    assert!(workers.status().queues[0].late.is_empty());
    // Another message is handled in time.
    queue.publish("n").unwrap();
    go_on.send(()).unwrap();
    workers.shutdown(SOON).unwrap();
    assert_eq!(logged::count(is_warning), 1);
    queue.delete().unwrap();
}

#[test]
fn a_handler_that_cancels_its_own_consumer_consumes_again() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let events = channel.connection().events();
    let workers = Workers::new(channel.connection());
    let (tell, told) = unbounded();
    let options = WorkerOptions::default().restart_delay(Duration::from_millis(1));
    workers
        .consume_with(queue.name(), options, move |delivery| {
            if delivery.body() == b"cancel" {
                let consumer = delivery.consumer_tag();
                delivery.channel().basic_cancel(consumer).unwrap();
            }
            tell.send(delivery.body().to_vec()).unwrap();
        })
        .unwrap();
    for body in ["cancel", "next"] {
        queue.publish(body).unwrap();
        assert_eq!(told.recv_timeout(SOON).unwrap(), body.as_bytes());
    }
    let interruption = events.try_iter().find_map(|event| match event {
        ConnectionEvent::WorkerInterrupted { error, .. } => Some(error),
        _ => None,
    });
    let error = interruption.unwrap();
    assert!(
        matches!(error.kind(), ErrorKind::ConsumerCancelled { .. }),
        "{error}"
    );
    workers.shutdown(SOON).unwrap();
    assert_eq!(ready(&channel, queue.name()), 0);
}
