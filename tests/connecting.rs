//! Opens and closes connections.

use std::net::TcpListener;
use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
use leveret::ConsumeOptions;
use leveret::{
    ClosedBy, Connection, ConnectionOptions, ErrorKind, FieldTable, LoginMethod, ReplyCode,
};

use crate::support::{at, connect, options, scripted_server, url, SOON};
#[cfg(target_os = "linux")]
use crate::support::{content_frames, method_frame, short};

#[test]
fn both_login_methods_work_and_server_properties_are_known() {
    for method in [LoginMethod::Plain, LoginMethod::AmqPlain] {
        let connection = Connection::open_with(options().login_method(method)).unwrap();
        let properties = connection.server_properties();
        let product = properties.get("product").and_then(|it| it.as_str());
        assert!(
            matches!(product, Some("RabbitMQ" | "leveret")),
            "{product:?}"
        );
        let capabilities = properties
            .get("capabilities")
            .and_then(|it| it.as_table())
            .unwrap();
        assert_eq!(
            capabilities
                .get("publisher_confirms")
                .and_then(|it| it.as_bool()),
            Some(true)
        );
        assert!(connection.server_mechanisms().contains(&"PLAIN".to_owned()));
        assert!(connection.server_locales().contains(&"en_US".to_owned()));
        assert!(connection.is_open());
        assert!(connection.close_cause().is_none());
        connection.close().unwrap();
    }
}

#[test]
fn limits_are_the_lower_of_both_sides() {
    let wishes = options()
        .channel_max(7)
        .frame_max(8192)
        .heartbeat(Duration::from_secs(5));
    let connection = Connection::open_with(&wishes).unwrap();
    assert_eq!(connection.channel_max(), 7);
    assert_eq!(connection.frame_max(), 8192);
    assert_eq!(connection.heartbeat(), Duration::from_secs(5));
    assert_eq!(connection.server_heartbeat(), Duration::from_secs(60));

    let off = Connection::open_with(options().heartbeat(Duration::ZERO)).unwrap();
    assert_eq!(off.heartbeat(), Duration::ZERO);
    let unlimited = options()
        .channel_max(0)
        .frame_max(0)
        .heartbeat(Duration::from_secs(1000));
    let servers = Connection::open_with(&unlimited).unwrap();
    assert_eq!(servers.channel_max(), 2047);
    assert_eq!(servers.frame_max(), 131_072);
    assert_eq!(servers.heartbeat(), Duration::from_secs(60));
}

#[test]
fn every_call_after_close_says_that_the_program_closed_the_connection() {
    let connection = connect();
    let other = connection.clone();
    let channel = connection.open_channel().unwrap();
    connection.close().unwrap();
    other.wait_closed(SOON).unwrap();
    assert!(!other.is_open());
    for error in [
        other.close().unwrap_err(),
        other.open_channel().unwrap_err(),
        channel.basic_qos(1).unwrap_err(),
        channel.basic_publish("", "q", "m").unwrap_err(),
        channel.close().unwrap_err(),
    ] {
        assert!(
            matches!(error.kind(), ErrorKind::ConnectionClosed(_)),
            "{error}"
        );
        assert_eq!(error.closed_by(), Some(ClosedBy::Program));
        assert!(error.is_connection_end());
    }
    let error = channel.basic_qos(1).unwrap_err().to_string();
    assert_eq!(
        error,
        "basic.qos: the connection was closed by this program"
    );
}

#[test]
fn wait_closed_times_out_while_the_connection_is_open() {
    let connection = connect();
    let error = connection
        .wait_closed(Duration::from_millis(50))
        .unwrap_err();
    assert!(error.is_timeout());
    assert!(connection.is_open());
}

#[test]
fn the_secret_can_be_updated() {
    let connection = connect();
    connection.update_secret("guest", "rotated").unwrap();
    connection.open_channel().unwrap();
}

#[test]
fn a_refused_login_names_the_user_but_not_the_password() {
    let wrong = options().password("wr0ng-s3cret");
    let error = Connection::open_with(&wrong).unwrap_err();
    let ErrorKind::LoginRefused {
        user,
        mechanism,
        text,
    } = error.kind()
    else {
        panic!("{error}");
    };
    assert_eq!((user.as_str(), mechanism.as_str()), ("guest", "PLAIN"));
    assert!(
        text.starts_with("ACCESS_REFUSED - Login was refused"),
        "{text}"
    );
    assert_eq!(error.reply_code(), Some(ReplyCode::ACCESS_REFUSED));
    assert!(!format!("{error} {error:?} {wrong} {wrong:?}").contains("wr0ng-s3cret"));
}

#[test]
fn the_error_names_a_missing_vhost() {
    let error = Connection::open_with(options().vhost("no such vhost")).unwrap_err();
    let ErrorKind::VhostRefused { vhost, reason } = error.kind() else {
        panic!("{error}");
    };
    assert_eq!(vhost, "no such vhost");
    assert_eq!(reason.code, ReplyCode::NOT_ALLOWED);
    assert!(reason.text.contains("not found"), "{reason}");
}

#[test]
fn the_error_names_a_port_without_a_listener() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = Connection::open_with(at(address)).unwrap_err();
    let kind = std::io::ErrorKind::ConnectionRefused;
    let expected = address.to_string();
    assert!(
        matches!(error.kind(), ErrorKind::ConnectFailed { address, kind: it, .. }
            if *address == expected && *it == kind),
        "{error}"
    );
    let error = Connection::open("amqp://no-such-host.invalid").unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::ConnectFailed { .. }),
        "{error}"
    );
    assert!(!error.to_string().contains("uncategorized"), "{error}");
}

#[test]
fn options_that_no_server_accepts_are_refused() {
    let bad = [
        options().frame_max(4095),
        options().vhost("v".repeat(256)),
        options().username("a\0b"),
        options().client_properties(FieldTable::new().with("k".repeat(256), 1)),
        options().client_properties(FieldTable::new().with("k", "x".repeat(200_000))),
    ];
    for options in bad {
        let error = Connection::open_with(&options).unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::InvalidArgument(_)),
            "{error}"
        );
    }
    let second = Duration::from_secs(1);
    for (options, text) in [
        (
            options().tcp_keepalive(Duration::MAX),
            "tcp_keepalive must be at most 32767s",
        ),
        (
            options().tcp_keepalive(32_768 * second),
            "tcp_keepalive must be at most 32767s, not 32768s (zero disables it)",
        ),
        (
            options().client_properties(FieldTable::new().with("k".repeat(256), 1)),
            "client_properties: a name in a field table is longer than 255 bytes (256 bytes)",
        ),
        (
            options().password("x".repeat(200_000)),
            "connection.start-ok has 200",
        ),
        (
            options().tcp_user_timeout(Duration::MAX),
            "tcp_user_timeout must be at most ",
        ),
        (
            options().tcp_user_timeout(Duration::from_millis(1 << 31)),
            "tcp_user_timeout must be at most 2147483.647s, not 2147483.648s",
        ),
    ] {
        let error = Connection::open_with(&options).unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::InvalidArgument(_)),
            "{error}"
        );
        assert!(error.to_string().contains(text), "{error}");
    }
    assert!(matches!(
        Connection::open("amqp://host:notaport").unwrap_err().kind(),
        ErrorKind::InvalidUri(_)
    ));
}

#[test]
fn connecting_to_a_silent_server_times_out_and_names_the_step() {
    let (address, server) = scripted_server(|server| {
        server.expect_header();
        server.send_start();
        server.wait_for_end();
    });
    let begin = Instant::now();
    // Within this timeout, the client must read what the server sends at first.
    let timeout = Duration::from_secs(2);
    let error = Connection::open_with(at(address).connect_timeout(timeout)).unwrap_err();
    assert!(error.is_timeout(), "{error}");
    // The error says where the handshake stood.
    assert!(
        error.to_string().contains("waiting for connection.tune"),
        "{error}"
    );
    // The timeout is not the default of half a minute.
    assert!(begin.elapsed() < SOON);
    server.join().unwrap();
}

#[test]
fn a_server_that_closes_the_socket_after_the_login_has_refused_it() {
    let (address, server) = scripted_server(|server| {
        server.expect_header();
        server.send_start();
        server.expect(10, 11);
    });
    let error = Connection::open_with(at(address)).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::LoginRefused { .. }),
        "{error}"
    );
    assert_eq!(error.reply_code(), None);
    server.join().unwrap();

    let (address, server) = scripted_server(|server| server.expect_header());
    let error = Connection::open_with(at(address)).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::SocketClosed { .. }),
        "{error}"
    );
    server.join().unwrap();
}

#[test]
fn the_error_names_the_protocol_version_of_the_server() {
    let (address, server) = scripted_server(|server| {
        server.expect_header();
        server.send(b"AMQP\0\x01\0\0");
    });
    let error = Connection::open_with(at(address)).unwrap_err();
    let expected = ErrorKind::ProtocolVersionMismatch {
        server: "AMQP 1-0-0".to_owned(),
    };
    assert_eq!(*error.kind(), expected);
    server.join().unwrap();
}

#[test]
fn dropping_the_last_handle_closes_channel_and_connection_cleanly() {
    let (address, server) = scripted_server(|server| {
        server.handshake(0);
        server.open_channel();
        // The channel closes, then the connection, which does not wait for the channel's close-ok.
        server.expect(20, 40);
        server.expect(10, 50);
        server.send_method(1, 20, 41, b"");
        server.send_method(0, 10, 51, b"");
        assert_eq!(server.wait_for_end(), b"");
    });
    let connection = Connection::open_with(at(address)).unwrap();
    let channel = connection.open_channel().unwrap();
    drop(connection);
    assert!(channel.is_open(), "a channel keeps its connection");
    drop(channel);
    server.join().unwrap();
}

#[test]
fn a_close_without_an_answer_times_out_and_closes_the_socket() {
    let (address, server) = scripted_server(|server| {
        server.handshake(0);
        server.expect(10, 50);
        server.wait_for_end();
    });
    let connection = Connection::open_with(at(address)).unwrap();
    let error = connection
        .close_timeout(Duration::from_millis(200))
        .unwrap_err();
    assert!(error.is_timeout(), "{error}");
    connection.wait_closed(Duration::ZERO).unwrap();
    server.join().unwrap();
}

#[test]
fn heartbeats_are_sent_and_missing_ones_end_the_connection() {
    let (address, server) = scripted_server(|server| {
        server.handshake(2);
        // The client sends at least one heartbeat in each of the two intervals of silence.
        let said = server.wait_for_end();
        let heartbeats = said
            .chunks(8)
            .filter(|it| *it == b"\x08\0\0\0\0\0\0\xce")
            .count();
        assert!(heartbeats >= 2, "{said:?}");
    });
    let begin = Instant::now();
    let connection = Connection::open_with(at(address)).unwrap();
    connection.wait_closed(SOON).unwrap();
    let interval = Duration::from_secs(2);
    let cause = connection.close_cause().unwrap();
    assert_eq!(*cause.kind(), ErrorKind::HeartbeatMissed { interval });
    assert!(begin.elapsed() >= 2 * interval);
    server.join().unwrap();
}

#[test]
fn a_protocol_violation_is_reported_to_both_sides() {
    let (address, server) = scripted_server(|server| {
        server.handshake(0);
        server.open_channel();
        server.expect(60, 10);
        // queue.declare-ok in reply to basic.qos.
        server.send_method(1, 50, 11, b"\x01q\0\0\0\0\0\0\0\0");
        server.expect(10, 50);
        server.wait_for_end();
    });
    let connection = Connection::open_with(at(address)).unwrap();
    let channel = connection.open_channel().unwrap();
    let error = channel.basic_qos(1).unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::COMMAND_INVALID));
    assert!(
        error.to_string().starts_with(
            "basic.qos: the connection was closed because the peer violated the protocol"
        ),
        "{error}"
    );
    connection.wait_closed(SOON).unwrap();
    server.join().unwrap();
}

#[test]
fn options_show_the_uri_without_the_password() {
    let options = ConnectionOptions::from_uri(&url()).unwrap();
    assert!(options.to_string().starts_with("amqp://guest@127.0.0.1:"));
    assert_eq!(
        ConnectionOptions::from_uri(&options.to_string())
            .unwrap()
            .to_string(),
        options.to_string()
    );
}

/// How often the thread with this name has gone to sleep so far.
#[cfg(target_os = "linux")]
fn sleeps_of_thread(name: &str) -> Option<u64> {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    threads.flatten().find_map(|thread| {
        let comm = std::fs::read_to_string(thread.path().join("comm")).ok()?;
        let status = std::fs::read_to_string(thread.path().join("status")).ok()?;
        let sleeps = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        (comm.trim() == name).then(|| sleeps?.trim().parse().ok())?
    })
}

#[cfg(target_os = "linux")]
#[test]
fn the_io_thread_of_an_idle_connection_sleeps() {
    let (address, server) = scripted_server(|server| {
        server.handshake(0);
        server.open_channel();
        server.expect(20, 40);
        server.send_method(1, 20, 41, b"");
        server.expect(10, 50);
        server.send_method(0, 10, 51, b"");
        server.wait_for_end();
    });
    let connection = Connection::open_with(at(address)).unwrap();
    let channel = connection.open_channel().unwrap();
    let name = format!("leveret:{}", address.port());
    let mut before = sleeps_of_thread(&name);
    assert!(before.is_some());
    // The IO thread may still be going to sleep when the test first looks.
    let mut looks = 0;
    crate::support::eventually("the IO thread sleeps for a second", || {
        std::thread::sleep(Duration::from_secs(1));
        looks += 1;
        std::mem::replace(&mut before, sleeps_of_thread(&name)) == before
    });
    assert!(looks <= 2, "the IO thread woke in {looks} seconds in a row");
    drop(channel);
    drop(connection);
    server.join().unwrap();
}

/// On Linux, a read ends before urgent data although more has come.
#[cfg(target_os = "linux")]
#[test]
fn urgent_data_of_the_peer_delays_no_message() {
    const PAIRS: u64 = 500;
    let (address, server) = scripted_server(|server| {
        server.handshake(0);
        server.open_channel();
        server.expect(60, 20);
        server.send_method(1, 60, 21, &short("c"));
        for tag in (1..=2 * PAIRS).step_by(2) {
            let message = |tag: u64| {
                let deliver = [&short("c")[..], &tag.to_be_bytes(), &[0, 0, 0]].concat();
                [method_frame(1, 60, 60, &deliver), content_frames(1, b"m")].concat()
            };
            server.send(&message(tag));
            server.send_urgent(b'!');
            server.send(&message(tag + 1));
            server.expect(60, 80);
        }
        server.expect(10, 50);
        server.send_method(0, 10, 51, &[]);
    });
    let connection = Connection::open_with(at(address)).unwrap();
    let channel = connection.open_channel().unwrap();
    let options = ConsumeOptions::default().consumer_tag("c");
    let consumer = channel.basic_consume("q", options).unwrap();
    for tag in 1..=2 * PAIRS {
        let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
        assert_eq!(delivery.delivery_tag(), tag);
        if tag % 2 == 0 {
            delivery.ack().unwrap();
        }
    }
    connection.close().unwrap();
    server.join().unwrap();
}
