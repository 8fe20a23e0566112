//! `flush` waits until what was sent is written to the socket, or answered in confirm mode.

use std::process::{Command, Stdio};
use std::sync::{mpsc, OnceLock};
use std::time::Duration;

use leveret::crossbeam_channel::bounded;
use leveret::{Channel, Connection, ErrorKind, RecoveryOptions};

use crate::support::proxy::{Direction, Proxy};
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

/// A server that lets the client open two channels, the second in confirm mode. Then it reads
/// nothing more until it is told to, and then everything.
fn server_that_pauses() -> (Connection, [Channel; 2], mpsc::Sender<()>) {
    let (go_on, paused) = mpsc::channel::<()>();
    let (address, _server) = scripted_server(move |server| {
        server.handshake(0);
        server.open_channel();
        let confirming = server.open_channel();
        server.expect(85, 10);
        server.send_method(confirming, 85, 11, b"");
        paused.recv_timeout(SOON).unwrap();
        server.wait_for_end();
    });
    let options = at(address).recovery(RecoveryOptions::none());
    let connection = Connection::open_with(options).unwrap();
    let channels = [(); 2].map(|()| connection.open_channel().unwrap());
    channels[1].confirm_select().unwrap();
    (connection, channels, go_on)
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
    let (connection, [channel, confirming], go_on) = server_that_pauses();
    channel.flush(SHORT).unwrap();
    fill(&channel);
    drop(confirming);
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
    let (connection, [channel, confirming], go_on) = server_that_pauses();
    let body = vec![0; 8 << 20];
    channel.basic_publish("", "q", &body).unwrap();
    // Acknowledgements wait, too, also where no message waits for a confirm.
    confirming.basic_ack(1).unwrap();
    for channel in [&channel, &confirming] {
        assert!(channel.flush(SHORT).unwrap_err().is_timeout());
    }
    go_on.send(()).unwrap();
    channel.flush(SOON).unwrap();
    confirming.flush(SOON).unwrap();
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

/// A connection through a proxy that can cut it.
struct Lossy {
    proxy: Proxy,
    connection: Connection,
}

impl Lossy {
    fn new() -> Self {
        let proxy = Proxy::start(&url());
        let connection = Connection::open_with(proxy.options()).unwrap();
        Self { proxy, connection }
    }

    fn channel(&self) -> Channel {
        self.connection.open_channel().unwrap()
    }

    fn publish(&self, channel: &Channel) {
        channel.basic_publish("amq.direct", "nowhere", "m").unwrap();
    }

    fn lose(&self) {
        let losses = self.connection.loss_count();
        self.proxy.cut();
        eventually("the connection is lost", || {
            self.connection.loss_count() > losses
        });
    }

    fn recover(&self) {
        eventually("the connection is back", || {
            self.connection.loss_cause().is_none()
        });
    }

    /// The next flush reports the loss, and the one after it does not.
    #[track_caller]
    fn expect_one_report(&self) {
        let error = self.connection.flush(SOON).unwrap_err();
        assert!(error.is_connection_end(), "{error}");
        self.connection.flush(SOON).unwrap();
    }
}

#[test]
fn a_flush_reports_once_that_messages_before_it_may_be_lost() {
    let lossy = Lossy::new();
    let channels = [(); 3].map(|()| lossy.channel());
    channels.iter().for_each(|it| lossy.publish(it));
    lossy.connection.flush(SOON).unwrap();
    lossy.lose();
    lossy.connection.flush(SOON).unwrap();
    lossy.recover();
    channels.iter().for_each(|it| lossy.publish(it));
    lossy.lose();
    lossy.expect_one_report();
    lossy.recover();

    let [channel, other, _] = &channels;
    lossy.publish(channel);
    lossy.lose();
    other.flush(SOON).unwrap();
    let error = channel.flush(SOON).unwrap_err();
    assert!(error.is_connection_end(), "{error}");
    channel.flush(SOON).unwrap();
    lossy.recover();

    // The mode changes after the loss.
    lossy.publish(channel);
    lossy.lose();
    channel.confirm_select().unwrap();
    lossy.expect_one_report();

    // The handles are gone.
    let dropped = lossy.channel();
    lossy.publish(&dropped);
    lossy.lose();
    drop(dropped);
    lossy.recover();
    let _in_its_place = [(); 3].map(|()| lossy.channel());
    lossy.expect_one_report();
}

#[test]
fn in_confirm_mode_a_flush_reports_what_no_recovery_publishes_again() {
    let lossy = Lossy::new();
    let channel = lossy.channel();
    channel.confirm_select().unwrap();
    lossy.proxy.drop_all(Direction::ToBroker);
    lossy.publish(&channel);
    lossy.lose();
    lossy.expect_one_report();
    channel.wait_for_confirms().unwrap_err();

    let publisher = channel.publisher().unwrap();
    lossy.proxy.drop_all(Direction::ToBroker);
    let published = publisher.publish("amq.direct", "nowhere", "m").unwrap();
    std::thread::scope(|scope| {
        // It waits through the loss.
        let flush = scope.spawn(|| lossy.connection.flush(SOON));
        lossy.lose();
        flush.join().unwrap().unwrap();
    });
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
    // The broker has read everything before it agrees to a close.
    let [closed, open] = [(); 2].map(|()| connection.open_channel().unwrap());
    closed.basic_publish("amq.direct", "nowhere", "m").unwrap();
    closed.close().unwrap();
    closed.flush(SOON).unwrap();
    connection.close().unwrap();
    for error in [connection.flush(SOON), open.flush(SOON)] {
        let error = error.unwrap_err();
        assert!(error.is_connection_end(), "{error}");
    }
}
