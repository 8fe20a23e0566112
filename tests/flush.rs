//! `flush` waits until what was sent is written to the socket, or answered in confirm mode.

use std::process::{Command, Stdio};
use std::sync::{mpsc, OnceLock};
use std::time::Duration;

use leveret::crossbeam_channel::bounded;
use leveret::{Channel, Connection, ErrorKind, Message, RecoveryOptions};

use crate::support::proxy::Proxy;
use crate::support::{
    at, connect, eventually, exclusive_queue, method_frame, scripted_server, url, SOON,
};

const SHORT: Duration = Duration::from_millis(200);
const MESSAGES: u32 = 1000;

/// Its handles are in a `static`, so nothing closes the connection.
#[test]
#[ignore = "run by the test below, in its own process"]
fn program() {
    static HANDLES: OnceLock<(Connection, Channel)> = OnceLock::new();
    let uri = std::env::var("FLUSHED_PROGRAM").unwrap();
    let (connection, channel) = HANDLES.get_or_init(|| {
        let connection = Connection::open(uri).unwrap();
        let channel = connection.open_channel().unwrap();
        (connection, channel)
    });
    for _ in 0..MESSAGES {
        channel.basic_publish("", "q", vec![0; 1000]).unwrap();
    }
    connection.flush(SOON).unwrap();
    std::process::exit(0);
}

/// RabbitMQ itself can drop messages of a connection that ends without a close, so the peer is a
/// script.
#[test]
fn a_program_that_ends_after_a_flush_has_sent_all_messages() {
    let (address, server) = scripted_server(|server| {
        server.handshake(0);
        server.open_channel();
        let mut published = 0;
        while let Ok(frame) = server.try_next_frame() {
            published += u32::from(frame.method() == Some((60, 40)));
        }
        published
    });
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "flush::program", "--ignored", "--nocapture"])
        .env("FLUSHED_PROGRAM", format!("amqp://{address}/%2f"))
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(server.join().unwrap(), MESSAGES);
}

/// A server that reads nothing more until it is told to, and then everything.
fn server_that_pauses() -> (Connection, Channel, mpsc::Sender<()>) {
    let (go_on, paused) = mpsc::channel::<()>();
    let (address, _server) = scripted_server(move |server| {
        server.handshake(0);
        server.open_channel();
        paused.recv_timeout(SOON).unwrap();
        server.wait_for_end();
    });
    let options = at(address).recovery(RecoveryOptions::none());
    let connection = Connection::open_with(options).unwrap();
    let channel = connection.open_channel().unwrap();
    (connection, channel, go_on)
}

/// Publishes until the socket and the outbox are full.
fn fill(channel: &Channel) {
    let body = vec![0; 100_000];
    for _ in 0..1000 {
        match channel.try_basic_publish("", "q", &body) {
            Ok(_) => {}
            Err(error) => {
                assert!(
                    matches!(error.kind(), ErrorKind::OutboxFull { .. }),
                    "{error}"
                );
                return;
            }
        }
    }
    panic!("the outbox takes 100 MB");
}

#[test]
fn a_flush_waits_for_a_peer_that_does_not_read() {
    let (connection, channel, go_on) = server_that_pauses();
    channel.flush(SHORT).unwrap();
    fill(&channel);
    for error in [
        channel.flush(SHORT).unwrap_err(),
        connection.flush(SHORT).unwrap_err(),
    ] {
        assert!(error.is_timeout(), "{error}");
    }
    go_on.send(()).unwrap();
    connection.flush(SOON).unwrap();
    channel.flush(Duration::ZERO).unwrap();
    // The counter follows a little later.
    eventually("the outbox is empty", || {
        connection.stats().outbox_bytes == 0
    });
    // The script does not answer a close.
    let _ = connection.close_timeout(SHORT);
}

#[test]
fn a_flush_waits_for_large_messages_of_its_channel() {
    let (connection, channel, go_on) = server_that_pauses();
    let body = vec![0; 8 << 20];
    channel.basic_publish("", "q", &body).unwrap();
    assert!(channel.flush(SHORT).unwrap_err().is_timeout());
    go_on.send(()).unwrap();
    channel.flush(SOON).unwrap();
    // The counter follows a little later.
    eventually("the outbox is empty", || {
        connection.stats().outbox_bytes == 0
    });
    // The script does not answer a close.
    let _ = connection.close_timeout(SHORT);
}

/// Otherwise a program would wait as long as another of its threads publishes.
#[test]
fn a_flush_ends_while_another_thread_publishes() {
    let connection = connect();
    let busy = connection.open_channel().unwrap();
    let queue = exclusive_queue(&busy);
    let options = leveret::ConsumeOptions::default().no_ack(true);
    let consumer = queue.consume_with(options).unwrap();
    let (done, is_done) = bounded::<()>(1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let large = vec![0; 300_000];
            while is_done.try_recv().is_err() {
                queue.publish(&large).unwrap();
                queue.publish("small").unwrap();
            }
            busy.close().unwrap();
        });
        scope.spawn(|| consumer.iter().for_each(drop));
        let channel = connection.open_channel().unwrap();
        for _ in 0..20 {
            channel.basic_publish("amq.direct", "nowhere", "m").unwrap();
            channel.flush(SOON).unwrap();
            busy.flush(SOON).unwrap();
        }
        done.send(()).unwrap();
    });
}

#[test]
fn in_confirm_mode_a_flush_waits_for_the_answers() {
    let (confirm, confirmed) = mpsc::channel::<()>();
    let (address, _server) = scripted_server(move |server| {
        server.handshake(0);
        let channel = server.open_channel();
        server.expect(85, 10);
        server.send_method(channel, 85, 11, b"");
        server.expect(60, 40);
        confirmed.recv_timeout(SOON).unwrap();
        let nack = method_frame(channel, 60, 120, &[0, 0, 0, 0, 0, 0, 0, 1, 0]);
        server.send(&nack);
        server.wait_for_end();
    });
    let connection = Connection::open_with(at(address)).unwrap();
    let channel = connection.open_channel().unwrap();
    let publisher = channel.publisher().unwrap();
    let outcome = publisher.publish("", "q", "m").unwrap();
    assert!(channel.flush(SHORT).unwrap_err().is_timeout());
    assert!(connection.flush(SHORT).unwrap_err().is_timeout());
    confirm.send(()).unwrap();
    connection.flush(SOON).unwrap();
    channel.flush(Duration::ZERO).unwrap();
    // The flush does not say how it was answered.
    let error = outcome.try_wait().unwrap_err();
    let _ = connection.close_timeout(SHORT);
    assert!(matches!(error.kind(), ErrorKind::Nacked { .. }), "{error}");
}

#[test]
fn a_flush_reports_once_that_messages_before_it_may_be_lost() {
    let proxy = Proxy::start(&url());
    let connection = Connection::open_with(proxy.options()).unwrap();
    let channel = connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    let lose = || {
        let losses = connection.loss_count();
        proxy.cut();
        eventually("the connection is lost", || {
            connection.loss_count() > losses
        });
    };
    queue.publish("flushed").unwrap();
    connection.flush(SOON).unwrap();
    lose();
    connection.flush(SOON).unwrap();
    eventually("the connection is back", || {
        connection.loss_cause().is_none()
    });
    queue.publish(Message::new("perhaps lost")).unwrap();
    lose();
    let error = connection.flush(SOON).unwrap_err();
    assert!(error.is_connection_end(), "{error}");
    connection.flush(SOON).unwrap();

    // A publisher's messages are published again.
    let publisher = channel.publisher().unwrap();
    let published = publisher.publish("", queue.name(), "m").unwrap();
    lose();
    connection.flush(SOON).unwrap();
    assert!(!matches!(published.try_wait(), Ok(None)));
}

#[test]
fn a_flush_reports_the_end_of_its_channel_and_of_the_connection() {
    let connection = connect();
    let channel = connection.open_channel().unwrap();
    channel.basic_publish("missing", "", "m").unwrap();
    eventually("the channel is closed", || !channel.is_open());
    let error = channel.flush(SOON).unwrap_err();
    assert_eq!(error.reply_code(), Some(leveret::ReplyCode::NOT_FOUND));
    connection.flush(SOON).unwrap();
    connection.close().unwrap();
    let error = connection.flush(SOON).unwrap_err();
    assert!(error.is_connection_end(), "{error}");
}
