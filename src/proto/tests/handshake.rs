use std::borrow::Cow;

use super::*;
use crate::error::ErrorKind;
use crate::proto::Server;
use crate::wire::method::{
    ConnectionClose, ConnectionOpen, ConnectionSecure, ConnectionStartOk, ConnectionTuneOk,
};

/// The methods that the core has sent, decoded.
fn sent_methods(scenario: &mut Scenario) -> Vec<Method<'static>> {
    let mut bytes = Vec::new();
    scenario.core.take_output(&mut bytes);
    let mut rest = bytes.as_slice();
    let mut methods = Vec::new();
    while let Cut::Frame(frame, length) = frame::cut(rest, usize::MAX).unwrap() {
        methods.push(Method::decode(frame.payload).unwrap().into_owned());
        rest = &rest[length..];
    }
    methods
}

fn close(code: u16, text: &'static str) -> ConnectionClose<'static> {
    ConnectionClose {
        reply_code: code,
        reply_text: text.into(),
        ..ConnectionClose::default()
    }
}

#[test]
fn the_handshake_goes_from_the_header_to_open_ok() {
    let mut scenario = Scenario::begun(Config {
        vhost: "orders".to_owned(),
        client_properties: FieldTable::new().with("product", "p"),
        ..config()
    });
    assert_eq!(scenario.core.handshake_step(), Some("connection.start"));
    scenario.receive(0, &start());
    let [Method::ConnectionStartOk(ConnectionStartOk {
        client_properties,
        mechanism,
        response,
        locale,
    })] = &sent_methods(&mut scenario)[..]
    else {
        panic!("no start-ok");
    };
    assert_eq!(
        client_properties.get("product").and_then(|it| it.as_str()),
        Some("p")
    );
    assert_eq!((mechanism.as_ref(), locale.as_ref()), ("PLAIN", "en_US"));
    assert_eq!(response.0.as_ref(), b"\0guest\0s3cret");

    assert_eq!(scenario.core.handshake_step(), Some("connection.tune"));
    scenario.receive(0, &tune(100, 4096, 30));
    let tune_ok = ConnectionTuneOk {
        channel_max: 100,
        frame_max: 4096,
        heartbeat: 30,
    };
    let open = ConnectionOpen {
        virtual_host: "orders".into(),
        ..ConnectionOpen::default()
    };
    assert_eq!(
        sent_methods(&mut scenario),
        [
            Method::ConnectionTuneOk(tune_ok),
            Method::ConnectionOpen(open)
        ]
    );

    assert_eq!(scenario.core.handshake_step(), Some("connection.open-ok"));
    scenario.receive(0, &ConnectionOpenOk::default());
    assert_eq!(scenario.events(), ["opened"]);
    assert_eq!(scenario.core.handshake_step(), None);
}

#[test]
fn amqplain_is_a_table_without_its_length() {
    let mut scenario = Scenario::begun(Config {
        login: Login::amqplain("u", "p"),
        ..config()
    });
    scenario.receive(0, &start());
    let [Method::ConnectionStartOk(start_ok)] = &sent_methods(&mut scenario)[..] else {
        panic!("no start-ok");
    };
    assert_eq!(start_ok.mechanism, "AMQPLAIN");
    assert_eq!(
        start_ok.response.0.as_ref(),
        b"\x05LOGINS\0\0\0\x01u\x08PASSWORDS\0\0\0\x01p"
    );
}

#[test]
fn the_error_for_another_version_names_the_servers_version() {
    let table: [(&[u8], &str); 4] = [
        (b"AMQP\x01\x01\x00\x0a", "AMQP 1.1.0.10"),
        (b"AMQP\x00\x01\x00\x00", "AMQP 1-0-0"),
        (b"AMQP\x03\x01\x00\x00", "SASL and AMQP 1.0.0"),
        (b"\x15\x03", "TLS (amqps)"),
    ];
    for (header, server) in table {
        for split in 0..header.len() {
            let mut scenario = Scenario::begun(config());
            assert_eq!(scenario.core.receive(&header[..split], scenario.now), 0);
            assert_eq!(scenario.core.receive(header, scenario.now), header.len());
            let server = server.to_owned();
            assert_eq!(
                *scenario.end().kind(),
                ErrorKind::ProtocolVersionMismatch { server }
            );
        }
    }
}

#[test]
fn other_protocols_are_refused() {
    for greeting in [
        "HTTP/1.1 400 Bad Request",
        "SSH-2.0-OpenSSH",
        "Ahoy, who is there?",
        "+OK",
    ] {
        let mut scenario = Scenario::begun(config());
        scenario.receive_bytes(greeting.as_bytes());
        let error = scenario.end();
        assert!(
            error.to_string() == "the server does not speak AMQP 0-9-1, but another protocol",
            "{error}"
        );
    }
}

#[test]
fn the_error_for_a_mechanism_that_is_not_offered_lists_the_offered_ones() {
    let mut scenario = Scenario::begun(config());
    let mechanisms = LongString(b"EXTERNAL PLAINER".as_slice().into());
    scenario.receive(
        0,
        &ConnectionStart {
            mechanisms,
            ..start()
        },
    );
    let error = scenario.end();
    assert_eq!(
        error.to_string(),
        "the server does not offer the login mechanism PLAIN; it offers EXTERNAL PLAINER"
    );
    assert_eq!(scenario.sent(), [""; 0]);
}

#[test]
fn a_403_or_a_closed_socket_means_refused_credentials() {
    let mut scenario = Scenario::begun(config());
    scenario.receive(0, &start());
    scenario.sent();
    scenario.receive(0, &close(403, "ACCESS_REFUSED - Login was refused"));
    assert_eq!(scenario.sent(), ["0 connection.close-ok"]);
    let error = scenario.end().to_string();
    assert_eq!(
        error,
        "login of user \"guest\" with PLAIN was refused: ACCESS_REFUSED - Login was refused"
    );

    let mut scenario = Scenario::begun(config());
    scenario.receive(0, &start());
    scenario.socket_closed();
    let error = scenario.end();
    assert!(
        matches!(error.kind(), ErrorKind::LoginRefused { .. }),
        "{error}"
    );
    assert!(!format!("{error:?} {:?}", scenario.core.config()).contains("s3cret"));
}

#[test]
fn a_socket_closed_at_another_step_is_no_refused_login() {
    let lost = ErrorKind::SocketClosed {
        kind: IoErrorKind::UnexpectedEof,
    };
    let mut scenario = Scenario::begun(config());
    scenario.socket_closed();
    assert_eq!(*scenario.end().kind(), lost);

    let mut scenario = Scenario::begun(config());
    scenario.receive(0, &start());
    scenario.receive(0, &tune(0, 0, 0));
    scenario.socket_closed();
    let error = scenario.end();
    assert_eq!(*error.kind(), lost);
    assert!(
        error
            .to_string()
            .starts_with("waiting for connection.open-ok"),
        "{error}"
    );
}

#[test]
fn the_error_explains_why_a_broker_closes_the_socket_without_a_reason() {
    let logging_in = |length: usize| {
        let mut scenario = Scenario::begun(Config {
            login: Login::plain("guest", &"x".repeat(length)),
            ..config()
        });
        scenario.receive(0, &start());
        scenario
    };
    // The method has 31 bytes besides the password.
    let mut scenario = logging_in(4065);
    scenario.socket_closed();
    let error = scenario.end();
    assert!(
        matches!(error.kind(), ErrorKind::LoginRefused { .. }),
        "{error}"
    );

    let mut scenario = logging_in(4066);
    assert!(scenario.core.handshake_note().is_some());
    scenario.socket_closed();
    let error = scenario.end();
    assert_eq!(
        error.to_string(),
        "waiting for connection.tune: the connection was lost: unexpected end of file; \
         connection.start-ok has 4097 bytes, and RabbitMQ accepts at most 4096 before the login (8192 since 4.1): \
         use a shorter password or token, or fewer client properties"
    );
    assert!(matches!(error.kind(), ErrorKind::SocketClosed { .. }));

    // A close with a reason needs no explanation.
    let mut scenario = logging_in(6000);
    scenario.receive(0, &close(403, "ACCESS_REFUSED - Login was refused"));
    let error = scenario.end().to_string();
    assert!(
        error.ends_with(": ACCESS_REFUSED - Login was refused"),
        "{error}"
    );

    let remedy = ", but RabbitMQ 4.1 and later accept no frame_max below 8192";
    for (frame_max, says_more) in [(4096, remedy), (8191, remedy), (8192, ""), (0, "")] {
        let mut scenario = Scenario::begun(Config {
            frame_max,
            heartbeat: 7,
            ..config()
        });
        scenario.receive(0, &start());
        scenario.receive(0, &tune(10, 0, 0));
        scenario.socket_closed();
        assert_eq!(
            scenario.end().to_string(),
            format!(
                "waiting for connection.open-ok: the connection was lost: unexpected end of file; \
                 both sides had agreed on frame_max {frame_max}, channel_max 10, heartbeat 7s{says_more}"
            )
        );
    }
}

#[test]
fn a_refused_vhost_has_an_error_kind_of_its_own() {
    for (code, text) in [
        (530, "NOT_ALLOWED - vhost nope not found"),
        (
            530,
            "NOT_ALLOWED - access to vhost 'nope' refused for user 'guest'",
        ),
        (
            530,
            "NOT_ALLOWED - access to vhost ' is reached' refused for user 'guest'",
        ),
        (402, "INVALID_PATH"),
    ] {
        let mut scenario = Scenario::begun(Config {
            vhost: "nope".to_owned(),
            ..config()
        });
        scenario.receive(0, &start());
        scenario.receive(0, &tune(0, 0, 0));
        scenario.receive(0, &close(code, text));
        let error = scenario.end();
        let ErrorKind::VhostRefused { vhost, reason } = error.kind() else {
            panic!("{error}");
        };
        assert_eq!((vhost.as_str(), reason.text.as_str()), ("nope", text));
    }
    // Other reasons keep their error kind.
    for (code, method, text) in [
        (541, 0, "INTERNAL_ERROR"),
        (530, 40, "NOT_ALLOWED - access to vhost '/' refused for user 'guest': connection limit (9) is reached"),
        (530, 40, "NOT_ALLOWED - connection refused for user 'guest': user connection limit (0) is reached"),
        (530, 40, "NOT_ALLOWED - connection refused: node connection limit (7) is reached"),
        (530, 31, "NOT_ALLOWED - negotiated frame_max = 4096 is lower than the minimum allowed value (8192)"),
    ] {
        let mut scenario = Scenario::begun(config());
        scenario.receive(0, &start());
        scenario.receive(0, &tune(0, 0, 0));
        let (class_id, method_id) = (if method > 0 { 10 } else { 0 }, method);
        scenario.receive(0, &ConnectionClose { class_id, method_id, ..close(code, text) });
        let error = scenario.end();
        let ErrorKind::ConnectionClosed(reason) = error.kind() else {
            panic!("{error:#?}");
        };
        assert_eq!(reason.text, text);
        assert!(error.to_string().starts_with("waiting for connection.open-ok: "), "{error}");
    }
}

#[test]
fn tuning_takes_the_lower_limit_and_zero_means_none() {
    // (ours, theirs, agreed), each (channel_max, frame_max, heartbeat)
    let table = [
        (
            (2047, 131_072, 60),
            (2047, 131_072, 60),
            (2047, 131_072, 60),
        ),
        ((10, 4096, 5), (2047, 131_072, 60), (10, 4096, 5)),
        ((2047, 131_072, 60), (10, 4096, 5), (10, 4096, 5)),
        ((0, 0, 60), (0, 0, 60), (0, 0, 60)),
        ((0, 0, 60), (7, 8192, 60), (7, 8192, 60)),
        ((7, 8192, 60), (0, 0, 60), (7, 8192, 60)),
        ((1, 4096, 0), (1, 4096, 60), (1, 4096, 0)),
        ((1, 4096, 60), (1, 4096, 0), (1, 4096, 60)),
        ((1, 4096, 0), (1, 4096, 0), (1, 4096, 0)),
        (
            (1, 4096, u16::MAX),
            (1, 4096, u16::MAX),
            (1, 4096, u16::MAX),
        ),
    ];
    for (ours, theirs, agreed) in table {
        let (channel_max, frame_max, heartbeat) = ours;
        let mut scenario = Scenario::begun(Config {
            channel_max,
            frame_max,
            heartbeat,
            ..config()
        });
        scenario.receive(0, &start());
        sent_methods(&mut scenario);
        scenario.receive(0, &tune(theirs.0, theirs.1, theirs.2));
        let (channel_max, frame_max, heartbeat) = agreed;
        let tune_ok = ConnectionTuneOk {
            channel_max,
            frame_max,
            heartbeat,
        };
        assert_eq!(
            sent_methods(&mut scenario)[0],
            Method::ConnectionTuneOk(tune_ok)
        );
        assert_eq!(scenario.core.deadline().is_some(), heartbeat != 0);
        let tuning = scenario.core.tuning();
        assert_eq!(
            tuning.highest_channel(),
            if channel_max == 0 {
                65_535
            } else {
                channel_max
            }
        );
        if frame_max != 0 {
            assert_eq!(tuning.payload_limit(), frame_max as usize - 8);
        }
    }
}

#[test]
fn the_mechanism_answers_challenges_until_it_runs_out_of_answers() {
    let mut answers = ["Alice", "42"].into_iter();
    let conversation = move |challenge: &[u8]| match answers.next() {
        Some(answer) => Ok([challenge, answer.as_bytes()].concat()),
        None => Err("out of answers".to_owned()),
    };
    let mut config = config();
    config.login = Login::new("PLAIN", "alice", Box::new(conversation));
    let mut scenario = Scenario::begun(config);
    scenario.receive(0, &start());
    let secure = |challenge: &'static [u8]| ConnectionSecure {
        challenge: LongString(challenge.into()),
    };
    scenario.receive(0, &secure(b"6 * 7 = "));
    let mut sent = Vec::new();
    scenario.core.take_output(&mut sent);
    let answered = sent.windows(10).any(|it| it == b"6 * 7 = 42");
    assert!(answered && sent.windows(5).any(|it| it == b"Alice"));
    scenario.receive(0, &secure(b"once more"));
    assert_eq!(scenario.sent(), [""; 0]);
    let error = scenario.end();
    let ErrorKind::LoginRefused { user, text, .. } = error.kind() else {
        panic!("{error}");
    };
    assert_eq!((user.as_str(), text.as_str()), ("alice", "out of answers"));
}

#[test]
fn a_mechanism_without_challenges_refuses_them() {
    let mut scenario = Scenario::begun(config());
    scenario.receive(0, &start());
    scenario.receive(0, &ConnectionSecure::default());
    let error = scenario.end().to_string();
    assert!(
        error.contains("this mechanism has no challenges"),
        "{error}"
    );
}

#[test]
fn servers_that_break_the_handshake_are_refused() {
    let mut scenario = Scenario::begun(config());
    scenario.receive(0, &start());
    scenario.sent();
    scenario.receive(0, &tune(0, 4095, 0));
    assert_eq!(scenario.sent(), ["0 connection.close 502"]);
    assert!(scenario
        .end()
        .to_string()
        .contains("frame_max 4095 is below the minimum of 4096"));

    let mut scenario = Scenario::begun(config());
    scenario.receive(0, &tune(0, 0, 0));
    assert_eq!(scenario.sent(), ["0 connection.close 503"]);
    let error = scenario.end().to_string();
    assert!(
        error.contains("connection.tune where connection.start was expected"),
        "{error}"
    );

    // The frame size is limited even before both sides have agreed on a limit.
    let mut scenario = Scenario::begun(config());
    assert_eq!(
        scenario.core.receive(b"\x01\0\0\x00\x02\0\0", scenario.now),
        7
    );
    assert_eq!(scenario.sent(), ["0 connection.close 501"]);
}

#[test]
fn only_rabbitmq_since_4_3_does_not_limit_channels() {
    let limits = |product: &str, version: &str| {
        let properties = FieldTable::new()
            .with("product", product)
            .with("version", version);
        let server = Server {
            properties,
            ..Server::default()
        };
        server.limits_channels()
    };
    for (version, expected) in [
        ("3.10.8", true),
        ("4.2.11", true),
        ("4.3.0-rc.1", false),
        ("4.3", false),
        ("4.10.0", false),
        ("5.0.0+7", false),
        ("99999999999.0", true),
        ("4", true),
        ("", true),
        ("new", true),
    ] {
        assert_eq!(limits("RabbitMQ", version), expected, "{version}");
        assert!(limits("another", version));
    }
    assert!(Server::default().limits_channels());
}

#[test]
fn what_the_server_says_about_itself_is_kept() {
    let properties = FieldTable::new()
        .with("product", "RabbitMQ")
        .with("version", "4.3.6");
    let mut scenario = Scenario::begun(config());
    scenario.receive(
        0,
        &ConnectionStart {
            server_properties: Cow::Borrowed(&properties),
            ..start()
        },
    );
    let server = scenario.core.server();
    assert_eq!(server.name(), "RabbitMQ 4.3.6");
    assert_eq!(server.mechanisms, "PLAIN AMQPLAIN");
    assert_eq!(server.locales, "en_US");
}

#[test]
fn the_core_tells_whether_it_has_something_to_send() {
    let mut scenario = Scenario::begun(config());
    assert!(!scenario.core.has_output());
    scenario.receive(0, &start());
    assert!(scenario.core.has_output());
    scenario.sent();
    assert!(!scenario.core.has_output());
}

#[test]
fn a_login_shows_its_mechanism_and_user_and_no_secret() {
    let shown = format!("{:?}", Login::plain("guest", "s3cret"));
    assert_eq!(shown, "PLAIN for \"guest\"");
}
