//! Scripted servers for recoveries that a real RabbitMQ does not show on demand.

use std::net::{Shutdown, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{mpsc, Arc, Mutex};
use std::thread;
use std::time::Duration;

use leveret::{
    Connection, ConnectionEvent, ConnectionOptions, ConsumeOptions, ErrorKind, QueueDeclareOptions,
    ReplyCode, StreamOffset,
};

use super::{lost, recovered};
use crate::support::proxy::quick;
use crate::support::{at, eventually, scripted_connections, scripted_server, short, Script, SOON};

const SHORT: Duration = Duration::from_millis(100);

/// Allows one attempt, since a script that failed does not accept another connection.
fn once(address: SocketAddr) -> ConnectionOptions {
    at(address).recovery(quick().max_attempts(1))
}

#[test]
fn a_loss_ends_the_blocked_state() {
    let (cut, is_cut) = mpsc::channel();
    let (address, server) = scripted_connections(2, move |connection, server| {
        server.handshake(0);
        server.open_channel();
        if connection == 0 {
            server.send_method(0, 10, 60, &short("no memory"));
            is_cut.recv().unwrap();
        } else {
            server.expect(60, 40);
        }
    });
    let options = once(address).publish_timeout(SHORT);
    let connection = Connection::open_with(&options).unwrap();
    let events = connection.events();
    let channel = connection.open_channel().unwrap();
    eventually("the connection is blocked", || {
        connection.blocked_reason().is_some()
    });
    let error = channel.basic_publish("", "q", "m").unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::ConnectionBlocked { .. }));
    cut.send(()).unwrap();
    recovered(&events);
    assert_eq!(connection.blocked_reason(), None);
    channel.basic_publish("", "q", "m").unwrap();
    server.join().unwrap();
}

#[test]
fn channels_above_the_next_brokers_channel_max_end() {
    let (cut, is_cut) = mpsc::channel();
    let (address, server) = scripted_connections(2, move |connection, server| {
        server.handshake_with([3, 1][connection], 0);
        assert_eq!(server.open_channel(), 1);
        if connection == 0 {
            assert_eq!(server.open_channel(), 2);
            server.expect(60, 20);
            server.send_method(2, 60, 21, &short("c"));
            assert_eq!(server.open_channel(), 3);
            server.expect(85, 10);
            server.send_method(3, 85, 11, b"");
            server.expect(60, 40);
        } else {
            // The client opens no other channel.
            server.expect(60, 10);
            server.send_method(1, 60, 11, b"");
        }
        is_cut.recv().unwrap();
    });
    let connection = Connection::open_with(once(address)).unwrap();
    let events = connection.events();
    let channels = [(); 2].map(|()| connection.open_channel().unwrap());
    let consume = ConsumeOptions::default().consumer_tag("c");
    let consumer = channels[1].basic_consume("q", consume).unwrap();
    let third = connection.open_channel().unwrap();
    let confirm = third.publisher().unwrap().publish("", "q", "m").unwrap();
    cut.send(()).unwrap();
    recovered(&events);
    let exhausted = ErrorKind::ChannelsExhausted { channel_max: 1 };
    for error in [
        channels[1].basic_qos(1).unwrap_err(),
        third.basic_qos(1).unwrap_err(),
        consumer.recv_timeout(SOON).unwrap_err(),
        connection.open_channel().unwrap_err(),
        // The broker would close the connection (530).
        third.reopen().unwrap_err(),
    ] {
        assert_eq!(*error.kind(), exhausted);
    }
    let error = confirm.wait_timeout(SOON).unwrap_err();
    assert!(error.may_have_been_sent(), "{error}");
    channels[0].basic_qos(1).unwrap();
    cut.send(()).unwrap();
    server.join().unwrap();
}

#[test]
fn channel_numbers_stay_unique_when_channel_max_drops_for_a_while() {
    let (cut, is_cut) = mpsc::channel();
    let (address, server) = scripted_connections(3, move |connection, server| {
        server.handshake_with([2, 1, 2][connection], 0);
        let open: Vec<_> = (0..[2, 1, 2][connection])
            .map(|_| server.open_channel())
            .collect();
        assert_eq!(open, [&[1, 2][..], &[1], &[1, 2]][connection]);
        is_cut.recv().unwrap();
    });
    let connection = Connection::open_with(once(address)).unwrap();
    let events = connection.events();
    let _first = connection.open_channel().unwrap();
    let second = connection.open_channel().unwrap();
    for _ in 0..2 {
        cut.send(()).unwrap();
        recovered(&events);
    }
    // The channel ended when its number was not allowed, but its handle keeps the number.
    let error = connection.open_channel().unwrap_err();
    let exhausted = ErrorKind::ChannelsExhausted { channel_max: 2 };
    assert_eq!(*error.kind(), exhausted);
    drop(second);
    assert_eq!(connection.open_channel().unwrap().number(), 2);
    cut.send(()).unwrap();
    server.join().unwrap();
}

#[test]
fn a_login_refused_by_all_reachable_endpoints_ends_the_recovery() {
    let (hangs_up, other) = scripted_server(|server| server.expect_header());
    let mut other = Some(other);
    let (address, server) = scripted_connections(3, move |connection, server| {
        if connection == 0 {
            return server.handshake(0);
        }
        server.expect_login();
        if connection == 2 {
            // Only now is it certain that the other endpoint does not listen any more.
            other.take().unwrap().join().unwrap();
        }
        server.refuse_login("no");
    });
    let options = at(address)
        .endpoint(hangs_up.ip().to_string(), hangs_up.port())
        .recovery(quick().give_up_on_refused_login(true));
    let connection = Connection::open_with(&options).unwrap();
    connection.wait_closed(SOON).unwrap();
    let cause = connection.close_cause().unwrap();
    let ErrorKind::RecoveryGivenUp { attempts, last, .. } = cause.kind() else {
        panic!("{cause}");
    };
    assert!(matches!(**last, ErrorKind::EndpointsFailed(_)), "{cause}");
    // During the first attempt, the other endpoint may still have been listening.
    assert_eq!(*attempts, 2);
    server.join().unwrap();
}

#[test]
fn a_refused_login_counts_as_an_attempt_and_each_outage_is_one_loss() {
    let (cut, is_cut) = mpsc::channel();
    let (address, server) = scripted_connections(5, move |connection, server| match connection {
        0 => {
            server.handshake(0);
            server.open_channel();
            is_cut.recv().unwrap();
        }
        // The connection is lost again at once, which counts as the same outage.
        1 => {
            server.handshake(0);
            server.expect(20, 10);
        }
        4 => {
            server.handshake(0);
            server.open_channel();
            is_cut.recv().unwrap();
        }
        _ => {
            server.expect_login();
            server.refuse_login("LDAP is down");
        }
    });
    let connection = Connection::open_with(at(address).recovery(quick())).unwrap();
    let events = connection.events();
    let _channel = connection.open_channel().unwrap();
    cut.send(()).unwrap();
    let told = recovered(&events);
    let kinds: Vec<_> = told
        .iter()
        .map(|event| match event {
            ConnectionEvent::Lost { .. } => "lost".to_owned(),
            ConnectionEvent::RecoveryFailed { attempt, error, .. } => {
                let refused = matches!(error.kind(), ErrorKind::LoginRefused { .. });
                format!("failed {attempt}, refused {refused}")
            }
            ConnectionEvent::Recovered { attempts, .. } => format!("back {attempts}"),
            other => format!("{other:?}"),
        })
        .collect();
    let expected = [
        "lost",
        "failed 1, refused false",
        "failed 2, refused true",
        "failed 3, refused true",
        "back 4",
    ];
    assert_eq!(kinds, expected, "{told:?}");
    assert_eq!(connection.stats().recovery_attempts, 4);
    cut.send(()).unwrap();
    server.join().unwrap();
}

#[test]
fn a_message_sent_once_is_never_reported_as_unsent() {
    const CHANNELS: usize = 10;
    let (cut, is_cut) = mpsc::channel();
    let (address, server) = scripted_connections(2, move |connection, server| {
        server.handshake(0);
        if connection == 0 {
            for number in 1..=CHANNELS as u16 {
                server.open_channel();
                server.expect(85, 10);
                server.send_method(number, 85, 11, b"");
            }
            let mut messages = 0;
            while messages < CHANNELS {
                messages += usize::from(server.next_method() == (60, 40));
            }
            return;
        }
        let mut opened = 0;
        while opened < CHANNELS {
            let frame = server.next_frame();
            if frame.method() == Some((20, 10)) {
                server.send_method(frame.channel, 20, 11, b"\0\0\0\0");
                opened += 1;
            }
        }
        // The server reads no more, so most of the republished bytes stay with the client.
        is_cut.recv().unwrap();
    });
    let connection = Connection::open_with(once(address)).unwrap();
    let events = connection.events();
    let publishers = [(); CHANNELS].map(|()| {
        let channel = connection.open_channel().unwrap();
        channel.publisher().unwrap()
    });
    let body = vec![0; 2 << 20];
    let confirms = publishers
        .each_ref()
        .map(|it| it.publish("", "q", &body).unwrap());
    recovered(&events);
    cut.send(()).unwrap();
    lost(&events);
    connection.wait_closed(SOON).unwrap();
    for confirm in confirms {
        let error = confirm.wait_timeout(SOON).unwrap_err();
        assert!(
            error.is_connection_end() && error.may_have_been_sent(),
            "{error}"
        );
    }
    server.join().unwrap();
}

#[test]
fn wait_for_confirms_covers_republished_messages() {
    let (confirm, confirms) = mpsc::channel();
    let (address, server) = scripted_connections(2, move |connection, server| {
        server.handshake(0);
        server.open_channel();
        server.expect(85, 10);
        if connection == 0 {
            server.send_method(1, 85, 11, b"");
        }
        server.expect(60, 40);
        if connection == 1 {
            confirms.recv().unwrap();
            let first = [&1_u64.to_be_bytes()[..], b"\0"].concat();
            server.send_method(1, 60, 80, &first);
            confirms.recv().unwrap();
        }
    });
    let connection = Connection::open_with(once(address)).unwrap();
    let events = connection.events();
    let channel = connection.open_channel().unwrap();
    let publisher = channel.publisher().unwrap();
    let published = publisher.publish("", "q", "m").unwrap();
    recovered(&events);
    let error = publisher.wait_for_confirms_timeout(SHORT).unwrap_err();
    assert!(error.is_timeout() && matches!(published.try_wait(), Ok(None)));
    confirm.send(()).unwrap();
    publisher.wait_for_confirms_timeout(SOON).unwrap();
    published.wait_timeout(SOON).unwrap();
    confirm.send(()).unwrap();
    server.join().unwrap();
}

#[test]
fn calls_that_wait_for_the_outbox_use_a_queues_new_name() {
    let (cut, is_cut) = mpsc::channel();
    let (address, server) = scripted_connections(2, move |connection, server| {
        server.handshake(0);
        let name = ["amq.gen-old", "amq.gen-new"][connection];
        let (mut purged, mut published) = (false, false);
        while !purged || !published {
            let frame = server.next_frame();
            let channel = frame.channel;
            let names_it = |text: &str| {
                let text = text.as_bytes();
                frame.payload.windows(text.len()).any(|it| it == text)
            };
            match frame.method() {
                Some((20, 10)) => server.send_method(channel, 20, 11, &[0; 4]),
                Some((50, 10)) => {
                    let declared = [&short(name)[..], &[0; 8]].concat();
                    server.send_method(channel, 50, 11, &declared);
                    if connection == 0 {
                        // The server reads nothing from now on.
                        return is_cut.recv().unwrap();
                    }
                }
                Some((50, 30)) => {
                    assert!(names_it("amq.gen-new"));
                    server.send_method(channel, 50, 31, &[0; 4]);
                    purged = true;
                }
                Some((60, 40)) => {
                    assert!(names_it("amq.gen-new"));
                    published = true;
                }
                _ => {}
            }
        }
    });
    let connection = Connection::open_with(once(address)).unwrap();
    let channel = connection.open_channel().unwrap();
    let queue = channel
        .queue_declare("", QueueDeclareOptions::temporary())
        .unwrap();
    // Publish until the socket takes no more, either.
    let mut refused = 0;
    while refused < 20 {
        match channel.try_basic_publish("", "flood", [0; 60_000]) {
            Ok(_) => refused = 0,
            Err(_) => {
                refused += 1;
                thread::sleep(SHORT / 10);
            }
        }
    }
    thread::scope(|scope| {
        let purging = scope.spawn(|| queue.purge());
        let publishing = scope.spawn(|| queue.publish("m"));
        // Give both calls time to start waiting: otherwise they would use the new name in any case.
        thread::sleep(SHORT);
        cut.send(()).unwrap();
        purging.join().unwrap().unwrap();
        publishing.join().unwrap().unwrap();
    });
    assert_eq!(queue.name(), "amq.gen-new");
    server.join().unwrap();
}

#[test]
fn a_channel_closed_in_a_failed_attempt_can_be_reopened_and_closed_again() {
    let (cut, is_cut) = mpsc::channel();
    let close = |code: u16, text: &str, [class, method]: [u16; 2]| {
        let ids = [class.to_be_bytes(), method.to_be_bytes()].concat();
        [&code.to_be_bytes()[..], &short(text), &ids].concat()
    };
    let (address, server) = scripted_connections(3, move |connection, server| {
        server.handshake(0);
        if connection == 0 {
            assert_eq!([(); 2].map(|()| server.open_channel()), [1, 2]);
            return is_cut.recv().unwrap();
        }
        if connection == 1 {
            // An acknowledgement closes the first channel; the second is not opened any more.
            assert_eq!(server.open_channel(), 1);
            server.send_method(1, 20, 40, &close(406, "PRECONDITION_FAILED", [60, 80]));
            server.expect(20, 10);
            server.expect(20, 41);
            return;
        }
        assert_eq!([(); 2].map(|()| server.open_channel()), [2, 1]);
        server.expect(50, 10);
        server.send_method(1, 20, 40, &close(404, "NOT_FOUND", [50, 10]));
        server.expect(20, 41);
        assert_eq!(server.next_frame().channel, 2);
    });
    let options = at(address).recovery(quick().max_attempts(2));
    let connection = Connection::open_with(&options).unwrap();
    let events = connection.events();
    let channels = [(); 2].map(|()| connection.open_channel().unwrap());
    cut.send(()).unwrap();
    recovered(&events);
    assert!(!channels[0].is_open() && channels[1].is_open());
    channels[0].reopen().unwrap();
    let error = channels[0].queue_declare_passive("q").unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND), "{error}");
    assert!(!channels[0].is_open());
    channels[0].basic_publish("", "q", "m").unwrap_err();
    channels[1].basic_publish("", "q", "m").unwrap();
    server.join().unwrap();
}

/// Answers a connection's methods, and refuses as many consumers as `refusals` says. Sends one
/// message to each consumer that it accepts on the second connection, which is the recovered one.
fn serve_a_starting_stream(connection: usize, server: &mut Script, refusals: &AtomicUsize) {
    const NO_REPLICA: &str = "PRECONDITION_FAILED - stream queue 's' in vhost '/' does not have a \
                              running replica on the local node";
    server.handshake(0);
    while let Ok(frame) = server.try_next_frame() {
        let channel = frame.channel;
        match frame.method() {
            Some((10, 50)) => return server.send_method(0, 10, 51, &[]),
            Some((20, 10)) => server.send_method(channel, 20, 11, &[0; 4]),
            Some((20, 40)) => server.send_method(channel, 20, 41, &[]),
            Some((50, 10)) => {
                server.send_method(channel, 50, 11, &[short("s"), vec![0; 8]].concat());
            }
            Some((60, 10)) => server.send_method(channel, 60, 11, &[]),
            Some((60, 20)) if connection > 0 && take_one(refusals) => {
                let reason = [
                    &406_u16.to_be_bytes()[..],
                    &short(NO_REPLICA),
                    &[0, 60, 0, 20],
                ];
                server.send_method(channel, 20, 40, &reason.concat());
            }
            Some((60, 20)) => {
                server.send_method(channel, 60, 21, &short("tag"));
                if connection == 1 {
                    let names = [
                        &short("tag")[..],
                        &1_u64.to_be_bytes(),
                        &[0, 0],
                        &short("s"),
                    ];
                    server.send_method(channel, 60, 60, &names.concat());
                    server.send_content(channel, b"m");
                }
            }
            _ => {}
        }
    }
}

fn take_one(count: &AtomicUsize) -> bool {
    let taken = count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |it| it.checked_sub(1));
    taken.is_ok()
}

#[test]
fn a_stream_consumer_waits_until_its_replica_runs() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // At the recovery, and once more when it is retried on a connection of its own.
    let refusals = Arc::new(AtomicUsize::new(2));
    let sockets = Arc::new(Mutex::new(Vec::new()));
    let (left, accepted) = (Arc::clone(&refusals), Arc::clone(&sockets));
    // The threads end with the process.
    thread::spawn(move || {
        for (connection, socket) in listener.incoming().enumerate() {
            let socket = socket.unwrap();
            accepted.lock().unwrap().push(socket.try_clone().unwrap());
            let left = Arc::clone(&left);
            thread::spawn(move || {
                serve_a_starting_stream(connection, &mut Script::over(socket), &left);
            });
        }
    });
    let connection = Connection::open_with(at(address).recovery(quick())).unwrap();
    let events = connection.events();
    let channel = connection.open_channel().unwrap();
    let options = ConsumeOptions::default()
        .consumer_tag("tag")
        .stream_offset(StreamOffset::First);
    let consumer = channel.basic_consume("s", options).unwrap();
    sockets.lock().unwrap()[0].shutdown(Shutdown::Both).unwrap();
    let told = recovered(&events);
    let is_told = |it: &ConnectionEvent| matches!(it, ConnectionEvent::NotRecovered { .. });
    assert!(told.iter().any(is_told), "{told:?}");
    let message = consumer.recv_timeout(SOON).unwrap().expect("a message");
    assert_eq!(message.body(), b"m");
    assert!(channel.is_open(), "the retries cost the channel nothing");
    assert_eq!(refusals.load(Ordering::SeqCst), 0);
}
