//! Remote procedure calls: `RpcClient` and `RpcServer`.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded, Receiver};
use leveret::{
    AckMode, Channel, Delivery, Error, ErrorKind, ExchangeDeclareOptions, ExchangeKind, Message,
    OnFailure, Queue, QueueDeclareOptions, ReplyCode, RpcClient, RpcServer, Settlement,
    WorkerOptions, Workers,
};

use crate::support::interceptor::{Interceptor, Verdict};
use crate::support::{
    channel, connect, eventually, exclusive_queue, logged, options, queue_with_dead_letters, ready,
    unique, SOON,
};

#[test]
fn threads_that_share_a_client_get_the_answers_to_their_own_requests() {
    const THREADS: usize = 8;
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let server = RpcServer::new(channel.connection());
    let options = WorkerOptions::default().threads(3).prefetch(10);
    let reverse = |request: &Delivery| {
        let body: Vec<u8> = request.body().iter().rev().copied().collect();
        Message::new(body).content_type("application/reversed")
    };
    server.serve_with(queue.name(), options, reverse).unwrap();
    let client = RpcClient::new(&connect()).unwrap();
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let (client, queue) = (client.clone(), queue.name().to_owned());
            thread::spawn(move || {
                for round in 0..50 {
                    let question = format!("{thread}/{round}/?");
                    let answer = client.call("", &queue, &question, SOON).unwrap();
                    let expected: String = question.chars().rev().collect();
                    assert_eq!(answer.body(), expected.as_bytes());
                    assert_eq!(answer.content_type(), Some("application/reversed"));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    server.shutdown(SOON).unwrap();
    server.join().unwrap();
    assert_eq!(ready(&channel, queue.name()), 0);
}

#[test]
fn an_unroutable_request_fails_at_once() {
    let client = RpcClient::new(&connect()).unwrap();
    let begin = Instant::now();
    let error = client
        .call("amq.direct", "nowhere", "hello?", 10 * SOON)
        .unwrap_err();
    assert!(begin.elapsed() < SOON);
    let ErrorKind::Returned(message) = error.kind() else {
        panic!("{error}");
    };
    assert_eq!(
        (message.reply_code(), message.routing_key()),
        (ReplyCode::NO_ROUTE, "nowhere")
    );
    assert!(error.to_string().contains("amq.direct"), "{error}");
}

#[test]
fn a_late_answer_is_dropped_and_not_taken_for_the_next_one() {
    logged::begin();
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let server = RpcServer::new(channel.connection());
    let (go_on, may_go_on) = bounded(0);
    server
        .serve(queue.name(), move |request| {
            if request.body() == b"slow" {
                may_go_on.recv().unwrap();
            }
            request.body().to_vec()
        })
        .unwrap();
    let client = RpcClient::new(&connect()).unwrap();
    // After a first answer in time, the late answer has the id 2, which no other test's log has.
    let answer = client.call("", queue.name(), "quick", SOON).unwrap();
    assert_eq!(answer.body(), b"quick");
    let error = client
        .call("", queue.name(), "slow", Duration::from_millis(50))
        .unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::TimedOut { .. }),
        "{error}"
    );
    assert!(error.to_string().contains(queue.name()), "{error}");
    go_on.send_timeout((), SOON).unwrap();
    let answer = client.call("", queue.name(), "next", SOON).unwrap();
    assert_eq!(answer.body(), b"next");
    let late = "no call waits for the reply with correlation id \"2\"";
    assert!(logged::has(|line| line.contains(late)));
}

#[test]
fn closing_the_connection_ends_all_calls() {
    let silent = channel();
    let queue = exclusive_queue(&silent);
    let client = RpcClient::new(&connect()).unwrap();
    let waiting = waiting_call(&client, &silent, queue.name());
    client.connection().close().unwrap();
    assert!(waiting.join().unwrap().unwrap_err().is_connection_end());
    let error = client.call("", queue.name(), "later", SOON).unwrap_err();
    assert!(error.is_connection_end(), "{error}");
    assert!(!error.may_have_been_sent());
}

// ---- the end of the client's channel ----

/// Starts a call, and waits until its request is in the queue.
fn waiting_call(
    client: &RpcClient,
    channel: &Channel,
    queue: &str,
) -> JoinHandle<Result<Delivery, Error>> {
    let before = ready(channel, queue);
    let call = thread::spawn({
        let (client, queue) = (client.clone(), queue.to_owned());
        move || client.call("", &queue, "anyone?", SOON)
    });
    eventually("the request is in the queue", || {
        ready(channel, queue) == before + 1
    });
    call
}

/// Starts a server that replies with the request.
fn echo(channel: &Channel) -> (RpcServer, Queue) {
    let queue = exclusive_queue(channel);
    let server = RpcServer::new(channel.connection());
    server
        .serve(queue.name(), |request| request.body().to_vec())
        .unwrap();
    (server, queue)
}

/// Makes a call that must succeed.
#[track_caller]
fn works(client: &RpcClient, queue: &str) {
    let answer = client.call("", queue, "next", SOON).unwrap();
    assert_eq!(answer.body(), b"next");
}

/// RabbitMQ closes the channel of a message with another user's name.
fn foreign() -> Message<'static> {
    Message::new("not mine").user_id("somebody else")
}

#[test]
fn an_exchange_that_does_not_exist_fails_only_the_call_that_names_it() {
    let silent = channel();
    let queue = exclusive_queue(&silent);
    let client = RpcClient::new(&connect()).unwrap();
    let waiting = waiting_call(&client, &silent, queue.name());
    for _ in 0..2 {
        let error = client
            .call("no such exchange", "", "hello?", SOON)
            .unwrap_err();
        assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND), "{error}");
        assert!(!error.may_have_been_sent());
    }
    let request = queue.get().unwrap().unwrap();
    let reply = Message::new("me").correlation_id(request.correlation_id().unwrap());
    silent
        .basic_publish("", request.reply_to().unwrap(), reply)
        .unwrap();
    assert_eq!(waiting.join().unwrap().unwrap().body(), b"me");
    assert_eq!(client.connection().stats().channels_closed_by_broker, 0);
}

#[test]
fn an_exchange_that_was_deleted_ends_the_channel_only_once() {
    let channel = channel();
    let (_server, queue) = echo(&channel);
    let name = unique("e");
    let exchange = channel
        .exchange_declare(
            &name,
            ExchangeKind::Fanout,
            ExchangeDeclareOptions::default(),
        )
        .unwrap();
    queue.bind(&exchange, "").unwrap();
    let client = RpcClient::new(&connect()).unwrap();
    let answer = client.call(&name, "", "here", SOON).unwrap();
    assert_eq!(answer.body(), b"here");
    exchange.delete().unwrap();
    for is_sent in [true, false] {
        let error = client.call(&name, "", "gone", SOON).unwrap_err();
        assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND), "{error}");
        assert_eq!(error.may_have_been_sent(), is_sent, "{error}");
    }
    assert_eq!(client.connection().stats().channels_closed_by_broker, 1);
    works(&client, queue.name());
}

#[test]
fn after_the_broker_has_closed_its_channel_a_client_goes_on() {
    let channel = channel();
    let (_server, queue) = echo(&channel);
    let silent = exclusive_queue(&channel);
    let client = RpcClient::new(&connect()).unwrap();
    for _ in 0..3 {
        let waiting = waiting_call(&client, &channel, silent.name());
        let own = client
            .clone()
            .call("", queue.name(), foreign(), SOON)
            .unwrap_err();
        for error in [own, waiting.join().unwrap().unwrap_err()] {
            let code = error.reply_code();
            assert_eq!(code, Some(ReplyCode::PRECONDITION_FAILED), "{error}");
            assert!(error.may_have_been_sent());
        }
        let answer = client.call("", queue.name(), "next", SOON).unwrap();
        assert_eq!(answer.body(), b"next");
        // The program can end the consumer of the replies, or the channel.
        let channel = answer.channel();
        channel.basic_cancel(answer.consumer_tag()).unwrap();
        works(&client, queue.name());
        channel.close().unwrap();
        works(&client, queue.name());
    }
}

#[test]
fn the_end_of_the_channel_fails_only_requests_that_may_have_been_sent() {
    let channel = channel();
    let (_server, queue) = echo(&channel);
    let client = RpcClient::new(&connect()).unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    match client.call("", queue.name(), "next", SOON) {
                        Ok(answer) => assert_eq!(answer.body(), b"next"),
                        Err(error) => {
                            let code = error.reply_code();
                            assert_eq!(code, Some(ReplyCode::PRECONDITION_FAILED), "{error}");
                            assert!(error.may_have_been_sent(), "{error}");
                        }
                    }
                }
            });
        }
        for _ in 0..50 {
            client.call("", queue.name(), foreign(), SOON).unwrap_err();
        }
    });
    works(&client, queue.name());
}

#[test]
fn a_reply_that_is_too_large_fails_only_its_call() {
    let channel = channel();
    let (_server, queue) = echo(&channel);
    let small = leveret::Connection::open_with(options().max_message_size(100_000)).unwrap();
    let client = RpcClient::new(&small).unwrap();
    let server = RpcServer::new(channel.connection());
    let large = exclusive_queue(&channel);
    server
        .serve(large.name(), |_: &Delivery| vec![0; 200_000])
        .unwrap();
    let error = client.call("", large.name(), "much?", SOON).unwrap_err();
    assert!(error.to_string().contains("max_message_size"), "{error}");
    works(&client, queue.name());
}

const CHANNEL_OPEN: Option<(u16, u16)> = Some((20, 10));
const BASIC_CONSUME: Option<(u16, u16)> = Some((60, 20));

#[test]
fn threads_share_the_channel_that_one_of_them_opens() {
    let opened = Arc::new(AtomicU32::new(0));
    let interceptor = Interceptor::start({
        let opened = Arc::clone(&opened);
        move |_, frame| {
            if frame.method() == CHANNEL_OPEN {
                opened.fetch_add(1, Ordering::SeqCst);
            }
            Verdict::Pass
        }
    });
    let channel = channel();
    let (_server, queue) = echo(&channel);
    let connection = leveret::Connection::open_with(interceptor.options()).unwrap();
    let client = RpcClient::new(&connection).unwrap();
    for round in 0..5 {
        client.call("", queue.name(), foreign(), SOON).unwrap_err();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| client.call("", queue.name(), "all at once", SOON).unwrap());
            }
        });
        assert_eq!(opened.load(Ordering::SeqCst), 2 + round);
    }
}

#[test]
fn a_channel_that_does_not_open_costs_no_call_more_than_its_timeout() {
    let (hangs, consumes) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU32::new(0)),
    );
    let interceptor = Interceptor::start({
        let (hangs, consumes) = (Arc::clone(&hangs), Arc::clone(&consumes));
        move |_, frame| {
            if frame.method() != BASIC_CONSUME {
                return Verdict::Pass;
            }
            consumes.fetch_add(1, Ordering::SeqCst);
            match hangs.load(Ordering::SeqCst) {
                true => Verdict::Hang,
                false => Verdict::Pass,
            }
        }
    });
    let channel = channel();
    let (_server, queue) = echo(&channel);
    let connection = leveret::Connection::open_with(interceptor.options()).unwrap();
    let client = RpcClient::new(&connection).unwrap();
    client.call("", queue.name(), foreign(), SOON).unwrap_err();
    let call = |timeout| {
        let error = client.call("", queue.name(), "now?", timeout).unwrap_err();
        assert!(error.is_timeout() && !error.may_have_been_sent(), "{error}");
    };
    hangs.store(true, Ordering::SeqCst);
    thread::scope(|scope| {
        let timeout = Duration::from_secs(2);
        let patient = scope.spawn(move || call(timeout));
        eventually("the channel is opened", || {
            consumes.load(Ordering::SeqCst) == 2
        });
        let begin = Instant::now();
        call(Duration::from_millis(100));
        assert!(begin.elapsed() < timeout / 2);
        patient.join().unwrap();
        // The second thread has waited for the channel of the first.
        assert_eq!(consumes.load(Ordering::SeqCst), 2);
    });
    hangs.store(false, Ordering::SeqCst);
    works(&client, queue.name());
}

// ---- how long requests live ----

/// The expiration of the request that a call publishes.
fn expiration(request: Message<'_>, timeout: Duration) -> Option<Duration> {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let client = RpcClient::new(channel.connection()).unwrap();
    thread::scope(|scope| {
        let call = scope.spawn(|| client.call("", queue.name(), request, timeout).unwrap());
        let consumer = queue.consume().unwrap();
        let request = consumer.recv_timeout(SOON).unwrap().unwrap();
        let id = request.correlation_id().unwrap();
        let reply = Message::new("").correlation_id(id);
        channel
            .basic_publish("", request.reply_to().unwrap(), reply)
            .unwrap();
        drop(call.join().unwrap());
        request.expiration()
    })
}

#[test]
fn a_request_expires_when_its_call_times_out() {
    let long = Duration::from_secs(60);
    let of_its_timeout =
        |expiration: Option<Duration>| expiration.is_some_and(|it| it > long - SOON && it <= long);
    assert!(of_its_timeout(expiration("".into(), long)));
    // The program's own expiration stays if it is shorter.
    let own = |after| Message::new("").expires_after(after);
    assert_eq!(expiration(own(SOON), long), Some(SOON));
    assert!(of_its_timeout(expiration(own(2 * long), long)));
    // RabbitMQ accepts no more than 49 days.
    assert_eq!(
        expiration("".into(), Duration::from_secs(50 * 86_400)),
        None
    );
    assert_eq!(expiration(own(SOON), Duration::MAX), Some(SOON));

    let channel = channel();
    let queue = exclusive_queue(&channel);
    let client = RpcClient::new(channel.connection()).unwrap();
    client
        .call("", queue.name(), "nobody?", Duration::from_millis(50))
        .unwrap_err();
    eventually("the request has expired", || {
        ready(&channel, queue.name()) == 0
    });
}

// ---- handlers that fail ----

#[track_caller]
fn failure(answer: Result<Delivery, Error>) -> String {
    let error = answer.unwrap_err();
    let ErrorKind::RpcFailed { text } = error.kind() else {
        panic!("{error}");
    };
    assert!(error.may_have_been_sent() && !error.is_timeout());
    text.clone()
}

#[test]
fn a_client_learns_why_a_handler_failed() {
    logged::begin();
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let server = RpcServer::new(channel.connection());
    let options = WorkerOptions::default().on_error(OnFailure::Requeue);
    server
        .serve_with(queue.name(), options, |request: &Delivery| {
            let text = std::str::from_utf8(request.body())?;
            let number: u32 = text.parse().map_err(|error| format!("{text:?}: {error}"))?;
            Ok::<_, Box<dyn std::error::Error>>(format!("{}", number + 1))
        })
        .unwrap();
    let client = RpcClient::new(&connect()).unwrap();
    let call = |body: &[u8]| client.call("", queue.name(), body, SOON);
    assert_eq!(call(b"1").unwrap().body(), b"2");
    assert_eq!(failure(call(b"x")), "\"x\": invalid digit found in string");
    assert!(failure(call(b"\xff")).contains("utf-8"));
    // One line, whatever the server says.
    let error = call(b"a\nb").unwrap_err().to_string();
    assert!(
        error.contains("the server failed") && error.contains("a\\nb"),
        "{error}"
    );
    let long = "\u{e9}".repeat(2000);
    let text = failure(call(long.as_bytes()));
    assert!(text.len() <= 1024 && text.len() > 1020, "{}", text.len());
    assert!(long.contains(text.trim_start_matches('"')));
    // Each request was acknowledged, and each failure was logged once.
    server.shutdown(SOON).unwrap();
    assert_eq!(ready(&channel, queue.name()), 0);
    let logged = || {
        let lines = logged::lines().into_iter();
        let lines = lines.filter(|it| it.level == log::Level::Error);
        lines.filter(|it| it.text.contains(queue.name())).count()
    };
    assert_eq!(logged(), 4);
}

#[test]
fn the_reply_of_a_handler_that_failed_has_a_header() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let replies = exclusive_queue(&channel);
    let server = RpcServer::new(channel.connection());
    server
        .serve(queue.name(), |_: &Delivery| Err::<String, _>("not today"))
        .unwrap();
    let request = Message::new("please").correlation_id("7");
    queue.publish(request.reply_to(replies.name())).unwrap();
    let reply = replies.consume().unwrap().recv_timeout(SOON);
    let reply = reply.unwrap().unwrap();
    assert_eq!(reply.header("x-rpc-error"), Some(&"not today".into()));
    assert_eq!(
        (reply.body(), reply.correlation_id()),
        (&b""[..], Some("7"))
    );
}

/// Then the worker's options say what happens.
#[test]
fn a_failed_request_that_names_no_client_is_rejected() {
    let channel = channel();
    let (queue, dead) =
        queue_with_dead_letters(&channel, &unique("q"), QueueDeclareOptions::temporary());
    let server = RpcServer::new(channel.connection());
    let options = WorkerOptions::default()
        .on_error(OnFailure::Reject)
        .on_panic(OnFailure::Reject);
    server
        .serve_with(queue.name(), options, |request: &Delivery| {
            assert!(request.body() != b"panic", "the test panics here");
            Err::<String, _>("not today")
        })
        .unwrap();
    queue.publish("fail").unwrap();
    queue.publish("panic").unwrap();
    eventually("both are dead", || ready(&channel, dead.name()) == 2);
}

#[test]
fn a_panic_in_a_handler_fails_only_its_call() {
    logged::begin();
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let server = RpcServer::new(channel.connection());
    let (tries, secret) = (Arc::new(AtomicU32::new(0)), unique("secret"));
    let (counted, told) = (Arc::clone(&tries), secret.clone());
    server
        .serve(queue.name(), move |request| {
            if request.body() == b"fatal" {
                counted.fetch_add(1, Ordering::SeqCst);
                panic!("{told}");
            }
            request.body().to_vec()
        })
        .unwrap();
    let client = RpcClient::new(channel.connection()).unwrap();
    // This request names no reply_to, so the server sends no answer.
    queue.publish("no reply_to").unwrap();
    let error = client.call("", queue.name(), "fatal", SOON).unwrap_err();
    let told = error.to_string();
    assert!(
        told.contains("the handler panicked") && !told.contains(&secret),
        "{told}"
    );
    assert!(matches!(error.kind(), ErrorKind::RpcFailed { .. }));
    assert_eq!(
        client.call("", queue.name(), "ok", SOON).unwrap().body(),
        b"ok"
    );
    assert_eq!(tries.load(Ordering::SeqCst), 1);
    assert_eq!(logged::count(|line| line.contains(&secret)), 1);
    server.shutdown(SOON).unwrap();
    assert_eq!(ready(&channel, queue.name()), 0);
}

#[test]
fn each_thread_has_its_own_state_which_a_panic_renews() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let server = RpcServer::new(channel.connection());
    let options = WorkerOptions::default().threads(2);
    server
        .serve_per_thread(queue.name(), options, || {
            // Cannot leave its thread.
            let requests = Rc::new(Cell::new(0));
            Ok::<_, Error>(move |request: &Delivery| {
                requests.set(requests.get() + 1);
                assert!(request.body() != b"panic", "the test panics here");
                requests.get().to_string()
            })
        })
        .unwrap();
    let client = RpcClient::new(channel.connection()).unwrap();
    let call = |body: &str| client.call("", queue.name(), body, SOON);
    let count = || -> u32 {
        let answer = call("count").unwrap();
        std::str::from_utf8(answer.body()).unwrap().parse().unwrap()
    };
    // Both threads together have counted all of them.
    let counts: Vec<_> = (0..20).map(|_| count()).collect();
    assert!(counts.iter().max() < Some(&20), "{counts:?}");
    for _ in 0..20 {
        failure(call("panic"));
    }
    assert_eq!(count(), 1);
    let error = server.serve_per_thread(queue.name(), WorkerOptions::default(), || {
        Err::<fn(&Delivery) -> String, _>("no database")
    });
    let error = error.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::HandlerNotCreated { .. }));
}

// ---- clients that are gone ----

/// Leaves a request in the queue, and closes its client's connection.
fn abandon(channel: &Channel, queue: &str) {
    let client = RpcClient::new(&connect()).unwrap();
    let call = waiting_call(&client, channel, queue);
    client.connection().close().unwrap();
    call.join().unwrap().unwrap_err();
}

/// Serves a queue, and tells which requests the handler gets.
fn serve_and_tell(queue: &Queue) -> (RpcServer, Receiver<Vec<u8>>) {
    let (tell, handled) = unbounded();
    let server = RpcServer::new(queue.channel().connection());
    server
        .serve(queue.name(), move |request| {
            tell.send(request.body().to_vec()).unwrap();
            request.body().to_vec()
        })
        .unwrap();
    (server, handled)
}

#[test]
fn requests_of_clients_that_are_gone_are_dropped() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    for _ in 0..3 {
        abandon(&channel, queue.name());
    }
    let (server, handled) = serve_and_tell(&queue);
    let client = RpcClient::new(&connect()).unwrap();
    works(&client, queue.name());
    assert_eq!(handled.try_iter().collect::<Vec<_>>(), [b"next"]);
    server.shutdown(SOON).unwrap();
    assert_eq!(ready(&channel, queue.name()), 0);
    let stats = channel.connection().stats();
    assert_eq!(stats.channels_closed_by_broker, 0, "a question is no fault");
}

/// The server does not ask for every request of a handler as quick as this one.
#[test]
fn a_redelivered_request_of_a_client_that_is_gone_is_dropped() {
    let (channel, other) = (channel(), channel());
    let queue = channel
        .queue_declare(
            &unique("q"),
            QueueDeclareOptions::default().auto_delete(true),
        )
        .unwrap();
    abandon(&channel, queue.name());
    let taken = other.basic_get(queue.name(), AckMode::Manual).unwrap();
    assert!(taken.is_some());
    let (server, handled) = serve_and_tell(&queue);
    let client = RpcClient::new(&connect()).unwrap();
    works(&client, queue.name());
    other.close().unwrap();
    works(&client, queue.name());
    assert_eq!(handled.try_iter().collect::<Vec<_>>(), [b"next", b"next"]);
    server.shutdown(SOON).unwrap();
    drop(taken);
}

#[test]
fn a_server_survives_clients_that_go_while_it_works() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let server = RpcServer::new(channel.connection());
    let (begin, begun) = bounded(0);
    let (go_on, may_go_on) = bounded::<()>(0);
    server
        .serve(queue.name(), move |request| {
            if request.body() == b"anyone?" {
                begin.send(()).unwrap();
                may_go_on.recv().unwrap();
            }
            request.body().to_vec()
        })
        .unwrap();
    for _ in 0..3 {
        let client = RpcClient::new(&connect()).unwrap();
        let call = thread::spawn({
            let (client, queue) = (client.clone(), queue.name().to_owned());
            move || client.call("", &queue, "anyone?", SOON)
        });
        begun.recv_timeout(SOON).unwrap();
        client.connection().close().unwrap();
        call.join().unwrap().unwrap_err();
        go_on.send_timeout((), SOON).unwrap();
    }
    let client = RpcClient::new(&connect()).unwrap();
    works(&client, queue.name());
    let stats = channel.connection().stats();
    assert_eq!(stats.channels_closed_by_broker, 0);
}

#[test]
fn handlers_can_make_calls_over_their_own_connection() {
    let channel = channel();
    let (front, back) = (exclusive_queue(&channel), exclusive_queue(&channel));
    let connection = channel.connection();
    let server = RpcServer::new(connection);
    server
        .serve(back.name(), |request| [request.body(), b"!"].concat())
        .unwrap();
    let client = RpcClient::new(connection).unwrap();
    let workers = Workers::new(connection);
    let (tell, told) = unbounded();
    let name = back.name().to_owned();
    workers
        .consume(front.name(), move |delivery| {
            let answer = client.call("", &name, delivery.body(), SOON).unwrap();
            tell.send(answer.into_body()).unwrap();
            Settlement::Ack
        })
        .unwrap();
    front.publish("hello").unwrap();
    assert_eq!(told.recv_timeout(SOON).unwrap(), b"hello!");
    workers.shutdown(SOON).unwrap();
}

#[test]
fn requests_use_any_exchange_and_answers_pass_unread_messages() {
    let connection = leveret::Connection::open_with(options().max_unread_bytes(1 << 16)).unwrap();
    let channel = connection.open_channel().unwrap();
    // One consumer does not keep up: it takes no messages.
    let lagging = exclusive_queue(&channel);
    for _ in 0..100 {
        lagging.publish(vec![0; 100_000]).unwrap();
    }
    eventually("all messages are in the queue", || {
        ready(&channel, lagging.name()) == 100
    });
    let unread = lagging
        .consume_with(leveret::ConsumeOptions::default().no_ack(true))
        .unwrap();
    let serving = connect();
    let queue = serving
        .open_channel()
        .unwrap()
        .queue_declare("", QueueDeclareOptions::temporary())
        .unwrap();
    queue
        .bind(queue.channel().exchange("amq.topic"), "question.*")
        .unwrap();
    let server = RpcServer::new(&serving);
    server
        .serve(queue.name(), |request| request.routing_key().to_owned())
        .unwrap();
    let client = RpcClient::new(&connection).unwrap();
    let answer = client.call("amq.topic", "question.1", "", SOON).unwrap();
    assert_eq!(answer.body(), b"question.1");
    drop(unread);
}
