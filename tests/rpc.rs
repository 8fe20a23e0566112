//! Remote procedure calls: `RpcClient` and `RpcServer`.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded};
use leveret::{
    Delivery, ErrorKind, Message, QueueDeclareOptions, ReplyCode, RpcClient, RpcServer, Settlement,
    WorkerOptions, Workers,
};

use crate::support::{channel, connect, eventually, exclusive_queue, logged, options, ready, SOON};

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
fn closing_the_channel_or_the_connection_ends_all_calls() {
    let silent = channel();
    let queue = exclusive_queue(&silent);
    let client = RpcClient::new(&connect()).unwrap();
    let waiting = thread::spawn({
        let (client, queue) = (client.clone(), queue.name().to_owned());
        move || client.call("", &queue, "anyone?", SOON)
    });
    eventually("the request is in the queue", || {
        ready(&silent, queue.name()) == 1
    });
    let error = client
        .call("no such exchange", "", "hello?", SOON)
        .unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND), "{error}");
    let error = waiting.join().unwrap().unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND), "{error}");
    let error = client.call("", queue.name(), "later", SOON).unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND), "{error}");
    assert!(!error.may_have_been_sent());

    let connection = client.channel().connection().clone();
    let client = RpcClient::new(&connection).unwrap();
    let waiting = thread::spawn({
        let (client, queue) = (client, queue.name().to_owned());
        move || client.call("", &queue, "anyone?", SOON)
    });
    eventually("the request is in the queue", || {
        ready(&silent, queue.name()) == 2
    });
    connection.close().unwrap();
    assert!(waiting.join().unwrap().unwrap_err().is_connection_end());
}

#[test]
fn a_panic_in_a_handler_leaves_only_its_request_unanswered() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let server = RpcServer::new(channel.connection());
    let tries = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&tries);
    server
        .serve(queue.name(), move |request| {
            if request.body() == b"fatal" {
                counted.fetch_add(1, Ordering::SeqCst);
                panic!("the test panics here");
            }
            request.body().to_vec()
        })
        .unwrap();
    let client = RpcClient::new(channel.connection()).unwrap();
    // This request names no reply_to, so the server sends no answer.
    queue.publish("no reply_to").unwrap();
    let error = client
        .call("", queue.name(), "fatal", Duration::from_millis(500))
        .unwrap_err();
    assert!(error.is_timeout(), "{error}");
    assert_eq!(
        client.call("", queue.name(), "ok", SOON).unwrap().body(),
        b"ok"
    );
    assert_eq!(tries.load(Ordering::SeqCst), 2);
    server.shutdown(SOON).unwrap();
    assert_eq!(ready(&channel, queue.name()), 0);
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
