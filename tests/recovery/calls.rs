//! Calls, closes and waits while the connection is lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use leveret::{
    Connection, ConnectionEvent, ErrorKind, ExchangeDeclareOptions, ExchangeKind, LoginMethod,
    QueueDeclareOptions, RecoveryOptions, ReplyCode, RpcClient, RpcServer, SaslConversation,
    SaslMechanism, Settlement, WorkerOptions, Workers,
};

use super::{lost, recovered, Lossy};
use crate::support::proxy::{quick, Direction};
use crate::support::{connect, eventually, exclusive_queue, ready, unique, SOON};

#[test]
fn channels_queues_and_exchanges_survive_losses() {
    let lossy = Lossy::new();
    let (first, second) = (
        lossy.connection.open_channel().unwrap(),
        lossy.connection.open_channel().unwrap(),
    );
    first.confirm_select().unwrap();
    second.basic_qos(3).unwrap();
    let options = QueueDeclareOptions::temporary();
    let queue = first.queue_declare(&unique("q"), options).unwrap();
    let options = ExchangeDeclareOptions::default().auto_delete(true);
    let exchange = first
        .exchange_declare(&unique("x"), ExchangeKind::Fanout, options)
        .unwrap();
    queue.bind(&exchange, "").unwrap();
    assert_eq!(queue.publish("before").unwrap(), Some(1));
    first.wait_for_confirms().unwrap();

    for round in 0..3 {
        let told = lossy.lose();
        assert!(matches!(told[0], ConnectionEvent::Lost { .. }), "{told:?}");
        assert!(lossy.connection.is_open() && lossy.connection.loss_cause().is_none());
        assert_eq!((first.number(), second.number()), (1, 2));
        // The channel is still in confirm mode, and its sequence numbers continue.
        assert_eq!(queue.publish("one").unwrap(), Some(2 + 4 * round));
        assert_eq!(exchange.publish("", "two").unwrap(), Some(3 + 4 * round));
        queue.publish("three").unwrap();
        queue.publish("four").unwrap();
        first.wait_for_confirms().unwrap();
        // An exclusive queue is declared anew, and empty.
        assert_eq!(ready(&second, queue.name()), 4);
        // The prefetch is restored.
        let consumer = second
            .basic_consume(queue.name(), Default::default())
            .unwrap();
        let taken: Vec<_> = (0..3)
            .map(|_| consumer.recv_timeout(SOON).unwrap().unwrap())
            .collect();
        let fourth = consumer.recv_timeout(Duration::from_millis(50));
        assert!(fourth.unwrap().is_none());
        assert_eq!(taken[1].body(), b"two");
        assert_eq!(
            lossy.connection.open_channel().unwrap().number(),
            3,
            "new channels get new numbers"
        );
    }
    assert_eq!(lossy.connection.stats().recoveries, 3);
    assert_eq!(lossy.connection.loss_count(), 3);
    lossy.connection.close().unwrap();
}

#[test]
fn workers_and_rpc_survive_losses() {
    let lossy = Lossy::new();
    let connection = &lossy.connection;
    let channel = connection.open_channel().unwrap();
    let (requests, tasks) = (exclusive_queue(&channel), exclusive_queue(&channel));
    let client = RpcClient::new(connection).unwrap();
    let server = RpcServer::new(connection);
    server
        .serve(requests.name(), |request| {
            request.body().to_ascii_uppercase()
        })
        .unwrap();
    let workers = Workers::new(connection);
    let (sender, worked) = crossbeam_channel::unbounded();
    let options = WorkerOptions::default().threads(2);
    workers
        .consume_with(tasks.name(), options, move |task| {
            sender.send(task.body().to_vec()).unwrap();
            Settlement::Ack
        })
        .unwrap();
    for round in 0..3 {
        let question = format!("question {round}");
        let answer = client.call("", requests.name(), &question, SOON).unwrap();
        assert_eq!(answer.body(), question.to_uppercase().as_bytes());
        tasks.publish(&question).unwrap();
        assert_eq!(worked.recv_timeout(SOON).unwrap(), question.as_bytes());
        lossy.lose();
    }
    // A call that waits when the connection is lost fails: its answer has nowhere to go.
    lossy.proxy.drop_all(Direction::ToBroker);
    let published = connection.stats().messages_published;
    let asking = thread::spawn({
        let (client, requests) = (client, requests.name().to_owned());
        move || client.call("", &requests, "anyone?", 10 * SOON)
    });
    // A late ack of the workers must not pass for the request.
    eventually("the request is sent", || {
        let stats = connection.stats();
        stats.messages_published > published && stats.outbox_bytes == 0
    });
    lossy.lose();
    let error = asking.join().unwrap().unwrap_err();
    assert!(error.is_connection_end(), "{error}");
    workers.shutdown(SOON).unwrap();
    server.shutdown(SOON).unwrap();
}

/// The option is not meant for the consumer that receives the client's replies.
#[test]
fn an_rpc_client_survives_a_recovery_without_consumers() {
    let lossy = Lossy::with(|options| options.recovery(quick().consumers(false)));
    let serving = connect();
    let queue = exclusive_queue(&serving.open_channel().unwrap());
    let server = RpcServer::new(&serving);
    server
        .serve(queue.name(), |request| request.body().to_vec())
        .unwrap();
    let client = RpcClient::new(&lossy.connection).unwrap();
    for _ in 0..3 {
        let answer = client.call("", queue.name(), "still here?", SOON).unwrap();
        assert_eq!(answer.body(), b"still here?");
        lossy.lose();
    }
}

#[test]
fn a_call_cut_by_a_loss_may_have_been_sent_and_later_calls_wait() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    lossy.proxy.drop_all(Direction::ToBroker);
    let sent = lossy.connection.stats().bytes_sent;
    let asking = thread::spawn({
        let channel = channel.clone();
        move || channel.queue_declare("", QueueDeclareOptions::temporary())
    });
    eventually("the declare is sent", || {
        lossy.connection.stats().bytes_sent > sent
    });
    lossy.proxy.refuse(true);
    lossy.proxy.cut();
    let error = asking.join().unwrap().unwrap_err();
    // The client cannot know whether the broker has read the method.
    assert!(
        error.is_connection_end() && error.may_have_been_sent(),
        "{error}"
    );
    assert!(lossy.connection.is_open());
    lost(&lossy.events);
    let asking = thread::spawn({
        let channel = channel.clone();
        move || channel.queue_declare("", QueueDeclareOptions::temporary())
    });
    let publishing = thread::spawn(move || channel.basic_publish("", "nowhere", "m"));
    thread::sleep(Duration::from_millis(100));
    assert!(!asking.is_finished() && !publishing.is_finished());
    assert!(lossy.connection.loss_cause().is_some());
    lossy.proxy.refuse(false);
    recovered(&lossy.events);
    asking.join().unwrap().unwrap();
    publishing.join().unwrap().unwrap();
}

#[test]
fn calls_wait_up_to_their_timeout_or_fail_at_once() {
    // Within this timeout, calls must be answered before the loss and after the recovery.
    let short = Duration::from_secs(2);
    for fails_fast in [false, true] {
        let lossy = Lossy::with(|options| {
            let recovery = match fails_fast {
                true => quick().fail_fast(true),
                false => quick(),
            };
            let options = options.request_timeout(short).publish_timeout(short);
            options.recovery(recovery)
        });
        let channel = lossy.connection.open_channel().unwrap();
        let publisher = channel.publisher().unwrap();
        lossy.proxy.refuse(true);
        lossy.proxy.cut();
        lost(&lossy.events);
        let opening = &lossy.connection;
        let calls: [&(dyn Fn() -> leveret::Result<()> + Sync); 5] = [
            &|| channel.basic_qos(1),
            &|| channel.basic_publish("", "q", "m").map(drop),
            &|| publisher.publish("", "q", "m").map(drop),
            &|| opening.open_channel().map(drop),
            &|| channel.basic_ack_multiple(0),
        ];
        let errors = thread::scope(|scope| {
            let calling = calls.map(|call| scope.spawn(move || call().unwrap_err()));
            calling.map(|it| it.join().unwrap())
        });
        for error in errors {
            let ErrorKind::Recovering { cause, after } = error.kind() else {
                panic!("{error}");
            };
            assert!(matches!(**cause, ErrorKind::SocketClosed { .. }), "{error}");
            assert_eq!(
                *after,
                if fails_fast { Duration::ZERO } else { short },
                "{error}"
            );
            assert!(error.is_timeout() && !error.may_have_been_sent());
        }
        lossy.proxy.refuse(false);
        recovered(&lossy.events);
        channel.basic_qos(1).unwrap();
    }
}

#[test]
fn events_report_each_attempt_with_its_error_and_delay() {
    let lossy = Lossy::new();
    lossy.proxy.refuse(true);
    lossy.proxy.cut();
    let mut attempts = Vec::new();
    let attempted = |event: &ConnectionEvent| match event {
        ConnectionEvent::RecoveryFailed {
            attempt,
            error,
            next,
        } => Some((*attempt, error.clone(), *next)),
        _ => None,
    };
    while attempts.len() < 4 {
        attempts.extend(attempted(&lossy.events.recv_timeout(SOON).unwrap()));
    }
    lossy.proxy.refuse(false);
    let told = recovered(&lossy.events);
    attempts.extend(told.iter().filter_map(attempted));
    for (place, (attempt, error, next)) in attempts.iter().enumerate() {
        assert_eq!(*attempt as usize, place + 1);
        assert!(matches!(error.kind(), ErrorKind::SocketClosed { .. }));
        assert!(*next <= Duration::from_millis(100), "{next:?}");
    }
    let Some(ConnectionEvent::Recovered {
        attempts: made,
        after,
    }) = told.last()
    else {
        panic!("{told:?}");
    };
    assert_eq!(*made as usize, attempts.len() + 1);
    assert!(*after > Duration::from_millis(30) && *after < SOON);
}

#[test]
fn repeated_losses_make_the_delays_grow() {
    // The connection never lasts long enough to reset the delay.
    let lossy = Lossy::with(|options| options.recovery(quick().max_delay(SOON)));
    for relapses in 0..6 {
        let told = lossy.lose();
        let Some(ConnectionEvent::Recovered { attempts, after }) = told.last() else {
            panic!("{told:?}");
        };
        // The delay doubles each time, minus up to a half at random.
        let least = Duration::from_millis(10) * (1 << relapses) / 2;
        assert!(*attempts == 1 && *after >= least, "{relapses}: {told:?}");
    }
}

#[test]
fn recovery_ends_after_max_attempts_or_max_time() {
    let limits = [
        quick().max_attempts(3),
        quick().max_time(Duration::from_millis(300)),
        // The first delay alone would exceed the limit.
        RecoveryOptions::default()
            .first_delay(4 * SOON)
            .max_delay(4 * SOON)
            .max_time(Duration::from_millis(300)),
    ];
    for (limit, recovery) in limits.into_iter().enumerate() {
        let lossy = Lossy::with(|options| options.recovery(recovery));
        let channel = lossy.connection.open_channel().unwrap();
        let queue = exclusive_queue(&channel);
        let consumer = queue.consume().unwrap();
        let confirm = channel.publisher().unwrap();
        lossy.proxy.drop_all(Direction::ToClient);
        let sent = lossy.connection.stats().bytes_sent;
        let confirm = confirm.publish("", "nowhere", "m").unwrap();
        eventually("the message is sent", || {
            lossy.connection.stats().bytes_sent > sent
        });
        lossy.proxy.refuse(true);
        let begin = Instant::now();
        lossy.proxy.cut();
        lost(&lossy.events);
        let waiting = thread::spawn(move || channel.basic_qos(1).unwrap_err());
        lossy.connection.wait_closed(SOON).unwrap();
        let cause = lossy.connection.close_cause().unwrap();
        let ErrorKind::RecoveryGivenUp { attempts, last, .. } = cause.kind() else {
            panic!("{cause}");
        };
        assert!(matches!(**last, ErrorKind::SocketClosed { .. }), "{cause}");
        match limit {
            0 => assert_eq!((*attempts, lossy.proxy.accepted()), (3, 4)),
            _ => assert!(begin.elapsed() >= Duration::from_millis(250)),
        }
        // Every handle returns the same error.
        assert_eq!(waiting.join().unwrap().kind(), cause.kind());
        assert_eq!(consumer.recv().unwrap_err().kind(), cause.kind());
        let error = confirm.wait_timeout(SOON).unwrap_err();
        assert!(error.is_connection_end() && error.may_have_been_sent());
        let last = lossy.events.iter().last();
        assert!(matches!(last, Some(ConnectionEvent::Closed { .. })));
        assert!(!lossy.connection.is_open());
    }
}

#[test]
fn without_recovery_a_loss_closes_the_connection_and_open_does_not_retry() {
    let lossy = Lossy::with(|options| options.recovery(RecoveryOptions::none()));
    let channel = lossy.connection.open_channel().unwrap();
    lossy.proxy.cut();
    lossy.connection.wait_closed(SOON).unwrap();
    let cause = lossy.connection.close_cause().unwrap();
    assert!(matches!(cause.kind(), ErrorKind::SocketClosed { .. }));
    assert_eq!(channel.basic_qos(1).unwrap_err().kind(), cause.kind());
    assert_eq!(lossy.proxy.accepted(), 1);

    lossy.proxy.refuse(true);
    let error = Connection::open_with(lossy.proxy.options()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::SocketClosed { .. }));
    assert_eq!(lossy.proxy.accepted(), 2);
}

#[test]
fn a_lost_connection_can_be_closed_and_dropped() {
    for way in 0..3 {
        let lossy = Lossy::with(|options| options.recovery(RecoveryOptions::default()));
        let channel = lossy.connection.open_channel().unwrap();
        let consumer = exclusive_queue(&channel).consume().unwrap();
        lossy.proxy.refuse(true);
        lossy.proxy.cut();
        lost(&lossy.events);
        let waiting = thread::spawn({
            let channel = channel.clone();
            move || channel.basic_qos(1)
        });
        thread::sleep(Duration::from_millis(50));
        let begin = Instant::now();
        match way {
            0 => lossy.connection.close().unwrap(),
            1 => {
                channel.close().unwrap();
                assert!(!channel.is_open());
                let error = consumer.recv().unwrap_err();
                assert!(error.to_string().contains("by this program"), "{error}");
                drop((consumer, lossy.connection));
            }
            _ => {
                // Only the waiting thread still has a handle.
                drop((channel, consumer, lossy.connection));
                lossy.proxy.refuse(false);
                recovered(&lossy.events);
                waiting.join().unwrap().unwrap();
                assert!(begin.elapsed() < SOON);
                continue;
            }
        }
        let error = waiting.join().unwrap().unwrap_err();
        assert!(!error.may_have_been_sent(), "{error}");
        assert!(error.to_string().contains("by this program"), "{error}");
        // No call waits for its request timeout.
        assert!(begin.elapsed() < SOON);
    }
}

#[test]
fn closed_channels_are_not_restored() {
    let lossy = Lossy::new();
    let connection = &lossy.connection;
    let channels: Vec<_> = (0..4).map(|_| connection.open_channel().unwrap()).collect();
    channels[1].close().unwrap();
    let refused = channels[2].queue_declare_passive(&unique("none"));
    refused.unwrap_err();
    // Close the last channel while the connection is lost.
    lossy.proxy.refuse(true);
    lossy.proxy.cut();
    lost(&lossy.events);
    channels[3].close().unwrap();
    lossy.proxy.refuse(false);
    recovered(&lossy.events);
    channels[0].basic_qos(1).unwrap();
    for (closed, code) in [
        (1, ReplyCode::SUCCESS),
        (2, ReplyCode::NOT_FOUND),
        (3, ReplyCode::SUCCESS),
    ] {
        let error = channels[closed].basic_qos(1).unwrap_err();
        assert_eq!(error.reply_code(), Some(code), "{error}");
    }
    assert_eq!(connection.stats().channels, 2);
    // All numbers are free, except that of the channel that can be reopened.
    let numbers = (0..3).map(|_| connection.open_channel().unwrap());
    let mut numbers: Vec<_> = numbers.map(|it| it.number()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert!(!numbers.contains(&3), "{numbers:?}");
    channels[2].reopen().unwrap();
    channels[2].basic_qos(1).unwrap();
    assert_eq!(channels[2].number(), 3);
}

#[test]
fn a_channel_closed_by_the_broker_can_be_reopened() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel.reopen().unwrap();
    channel.basic_qos(2).unwrap();
    let publisher = channel.publisher().unwrap();
    publisher
        .publish("", queue.name(), "1")
        .unwrap()
        .wait()
        .unwrap();
    let returned = channel.returned_messages();
    for _ in 0..2 {
        let consumer = queue.consume().unwrap();
        let error = channel.queue_declare_passive(&unique("none")).unwrap_err();
        assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND));
        assert!(publisher.publish("", queue.name(), "lost").is_err());
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let channel = channel.clone();
                thread::spawn(move || channel.reopen())
            })
            .collect();
        for thread in threads {
            thread.join().unwrap().unwrap();
        }
        // The channel is in confirm mode again, with its prefetch.
        for body in ["2", "3"] {
            publisher
                .publish("", queue.name(), body)
                .unwrap()
                .wait()
                .unwrap();
        }
        assert!(returned.recv().is_err());
        let end = consumer.iter().find_map(Result::err).unwrap();
        assert_eq!(end.reply_code(), Some(ReplyCode::NOT_FOUND));
        let consumer = queue.consume().unwrap();
        let taken: Vec<_> = (0..2)
            .map(|_| consumer.recv_timeout(SOON).unwrap().unwrap())
            .collect();
        assert!(consumer
            .recv_timeout(Duration::from_millis(50))
            .unwrap()
            .is_none());
        assert_eq!(taken[0].body(), b"1");
        consumer.cancel().unwrap();
        drop(taken);
        queue.purge().unwrap();
        publisher
            .publish("", queue.name(), "1")
            .unwrap()
            .wait()
            .unwrap();
    }
    channel.close().unwrap();
    let error = channel.reopen().unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::InvalidArgument(_)),
        "{error}"
    );
}

#[test]
fn partly_lost_transactions_are_not_committed() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel.tx_select().unwrap();
    queue.publish("one").unwrap();
    lossy.lose();
    queue.publish("two").unwrap();
    let error = channel.tx_commit().unwrap_err();
    assert!(
        error.is_connection_end() && !error.may_have_been_sent(),
        "{error}"
    );
    assert_eq!(ready(&channel, queue.name()), 0);
    // Repeat the whole transaction.
    queue.publish("one").unwrap();
    queue.publish("two").unwrap();
    channel.tx_commit().unwrap();
    assert_eq!(ready(&channel, queue.name()), 2);
    lossy.lose();
    queue.publish("three").unwrap();
    channel.tx_commit().unwrap();
    assert_eq!(ready(&channel, queue.name()), 1);
}

#[test]
fn a_transaction_that_acks_a_message_of_a_lost_connection_is_not_committed() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let (tasks, results) = (exclusive_queue(&channel), exclusive_queue(&channel));
    tasks.publish("task").unwrap();
    channel.tx_select().unwrap();
    let task = tasks.get().unwrap().unwrap();
    lossy.lose();
    task.ack().unwrap();
    results.publish("result").unwrap();
    let error = channel.tx_commit().unwrap_err();
    assert!(
        error.is_connection_end() && !error.may_have_been_sent(),
        "{error}"
    );
    assert_eq!(ready(&channel, results.name()), 0);
    results.publish("result").unwrap();
    channel.tx_commit().unwrap();
    // A rollback clears the failure, too.
    tasks.publish("task").unwrap();
    channel.tx_commit().unwrap();
    let task = tasks.get().unwrap().unwrap();
    lossy.lose();
    task.ack().unwrap();
    channel.tx_rollback().unwrap();
    channel.tx_commit().unwrap();
}

#[test]
fn a_transaction_with_a_multiple_ack_across_a_loss_is_not_committed() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    queue.publish("lost").unwrap();
    channel.tx_select().unwrap();
    let lost = queue.get().unwrap().unwrap();
    lossy.lose();
    queue.publish("task").unwrap();
    channel.tx_commit().unwrap();
    let task = queue.get().unwrap().unwrap();
    task.ack_multiple().unwrap();
    let error = channel.tx_commit().unwrap_err();
    assert!(error.is_connection_end(), "{error}");
    channel.basic_ack_multiple(task.delivery_tag()).unwrap();
    channel.tx_commit().unwrap();
    // All messages were acknowledged before the next loss.
    lossy.lose();
    channel.basic_ack_multiple(0).unwrap();
    channel.tx_commit().unwrap();
    drop(lost);
}

#[test]
fn a_second_tx_select_keeps_the_current_transaction() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel.tx_select().unwrap();
    queue.publish("one").unwrap();
    channel.tx_select().unwrap();
    lossy.lose();
    queue.publish("two").unwrap();
    let error = channel.tx_commit().unwrap_err();
    assert!(error.is_connection_end(), "{error}");
    assert_eq!(ready(&channel, queue.name()), 0);
}

#[test]
fn a_silent_peer_is_detected_after_two_heartbeats() {
    let interval = Duration::from_secs(2);
    let lossy = Lossy::with(|options| options.heartbeat(interval));
    let channel = lossy.connection.open_channel().unwrap();
    // The last byte to arrive belongs to the reply or to a heartbeat right after it.
    let before_last = Instant::now();
    channel.basic_qos(1).unwrap();
    lossy.proxy.drop_all(Direction::ToClient);
    let after_last = Instant::now();
    lost(&lossy.events);
    assert!(before_last.elapsed() >= 2 * interval);
    let found_after = after_last.elapsed();
    // A busy machine may need a while to wake the threads.
    assert!(found_after < 3 * interval, "{found_after:?}");
    let cause = channel.close_cause();
    assert!(cause.is_none(), "{cause:?}");
    recovered(&lossy.events);
    channel.basic_qos(1).unwrap();
}

/// Logs in like PLAIN, but panics at the second login.
#[derive(Default)]
struct PanicsAtTheSecondLogin(AtomicBool);

impl SaslMechanism for PanicsAtTheSecondLogin {
    fn name(&self) -> &str {
        "PLAIN"
    }

    fn begin(&self) -> SaslConversation {
        assert!(!self.0.swap(true, Ordering::SeqCst), "no second login");
        SaslConversation::new(|_| Ok(b"\0guest\0guest".to_vec()))
    }
}

#[test]
fn a_panic_of_a_callback_during_recovery_is_reported_as_a_panic() {
    let filtered = Lossy::with(|options| options.recovery(quick().filter(|_| panic!("no filter"))));
    let mechanism = Arc::new(PanicsAtTheSecondLogin::default());
    let login = LoginMethod::Sasl(mechanism);
    let logged_in = Lossy::with(|options| options.login_method(login));
    for (lossy, text) in [(filtered, "no filter"), (logged_in, "no second login")] {
        let connection = &lossy.connection;
        let channel = connection.open_channel().unwrap();
        let queue = exclusive_queue(&channel);
        let consumer = queue.consume().unwrap();
        lossy.proxy.cut();
        let told = [
            consumer.recv().unwrap_err(),
            channel.basic_qos(1).unwrap_err(),
            connection.open_channel().unwrap_err(),
            connection.close_cause().unwrap(),
        ];
        for error in told {
            let ErrorKind::Panicked { thread, message } = error.kind() else {
                panic!("{error}");
            };
            assert_eq!((*thread, message.as_str()), ("recovery thread", text));
            assert!(error.is_connection_end());
        }
        connection.wait_closed(SOON).unwrap();
        let last = lossy.events.iter().last().unwrap();
        assert!(matches!(last, ConnectionEvent::Closed { .. }), "{last:?}");
    }
}
