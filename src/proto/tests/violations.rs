use super::*;
use crate::error::ErrorKind;
use crate::wire::method::{
    BasicQos, BasicQosOk, ChannelCloseOk, ConnectionClose, ConnectionCloseOk, QueueBindOk,
    QueueDeclareOk,
};

/// What a peer must not send on a connection with channel 1, on which a call waits for basic.qos-ok
/// and "c" consumes: a name, the bytes, the code sent to the peer, and a part of the error's text.
fn table() -> Vec<(&'static str, Vec<u8>, u16, &'static str)> {
    let qos_ok = framed(1, &BasicQosOk {});
    let mut wrong_end = qos_ok.clone();
    *wrong_end.last_mut().unwrap() = 0;
    let mut too_long = framed(1, &deliver("c", 1));
    too_long.extend(&content(1, b"12345", 100)[..22]);
    too_long.extend(&content(1, b"12345678", 100)[22..]);
    let mut in_the_middle = framed(1, &deliver("c", 1));
    in_the_middle.extend_from_slice(&qos_ok);
    let mut other_class = framed(1, &deliver("c", 1));
    other_class.extend(content(1, b"", 100));
    let class_at = other_class.len() - 14;
    other_class[class_at] = 61;
    vec![
        (
            "wrong end",
            wrong_end,
            501,
            "a frame that ends in 0x00 instead of 0xce",
        ),
        (
            "unknown frame",
            b"\x04".to_vec(),
            501,
            "unknown frame type 4",
        ),
        (
            "huge frame",
            b"\x01\0\x01\x7f\xff\xff\xff".to_vec(),
            501,
            "a frame with 2147483647 bytes",
        ),
        (
            "one byte more than agreed",
            b"\x01\0\x01\0\x01\xff\xf9".to_vec(),
            501,
            "131065 bytes of payload, above the limit of 131064",
        ),
        (
            "heartbeat on a channel",
            b"\x08\0\x01\0\0\0\0\xce".to_vec(),
            501,
            "a heartbeat on channel 1",
        ),
        (
            "half a method",
            b"\x01\0\x01\0\0\0\x03\0\x3c\0\xce".to_vec(),
            502,
            "claims more bytes",
        ),
        (
            "method and a half",
            b"\x01\0\x01\0\0\0\x05\0\x3c\0\x0b!\xce".to_vec(),
            502,
            "1 trailing bytes after basic.qos-ok",
        ),
        (
            "unknown method",
            b"\x01\0\x01\0\0\0\x04\0\x3c\0\x0c\xce".to_vec(),
            503,
            "unknown method 60.12",
        ),
        (
            "other reply",
            framed(1, &QueueDeclareOk::default()),
            503,
            "queue.declare-ok where basic.qos-ok was expected",
        ),
        (
            "unrequested reply",
            [qos_ok.clone(), qos_ok.clone(), qos_ok.clone()].concat(),
            503,
            "basic.qos-ok without a request",
        ),
        (
            "client's method",
            framed(1, &BasicQos::default()),
            503,
            "basic.qos where basic.qos-ok was expected",
        ),
        (
            "unrequested close-ok",
            framed(1, &ChannelCloseOk {}),
            503,
            "channel.close-ok without channel.close",
        ),
        (
            "connection's unrequested close-ok",
            framed(0, &ConnectionCloseOk {}),
            503,
            "connection.close-ok without a request",
        ),
        (
            "start again",
            framed(0, &start()),
            503,
            "connection.start without a request",
        ),
        (
            "unknown consumer",
            framed(1, &deliver("who", 1)),
            503,
            "basic.deliver for unknown consumer \"who\"",
        ),
        (
            "unrequested get-ok",
            framed(1, &get_ok()),
            503,
            "basic.get-ok where basic.qos-ok was expected",
        ),
        (
            "connection's method on a channel",
            framed(1, &start()),
            503,
            "connection.start where",
        ),
        (
            "unused channel",
            framed(2, &QueueBindOk {}),
            504,
            "a frame on channel 2, which was never opened",
        ),
        (
            "content on a closed channel",
            content(2, b"", 100),
            504,
            "a frame on channel 2",
        ),
        (
            "content on channel 0",
            content(0, b"", 100),
            504,
            "content on channel 0",
        ),
        (
            "header alone",
            content(1, b"", 100),
            505,
            "a content header without its method",
        ),
        (
            "body alone",
            content(1, b"b", 100)[22..].to_vec(),
            505,
            "a body without its header",
        ),
        (
            "body too long",
            too_long,
            505,
            "a body 3 bytes longer than its header said",
        ),
        (
            "method in the middle",
            in_the_middle,
            505,
            "basic.qos-ok in the middle of a message",
        ),
        (
            "other class",
            other_class,
            505,
            "content of unknown class 61",
        ),
    ]
}

#[test]
fn each_violation_ends_the_connection_with_its_code() {
    for (what, bytes, code, text) in table() {
        let mut scenario = Scenario::with_channels([1]);
        scenario.sent();
        scenario.call::<BasicQos>(1);
        scenario.consume(1, "c");
        scenario.receive_bytes(&bytes);
        assert_eq!(
            scenario.sent(),
            [format!("0 connection.close {code}")],
            "{what}"
        );
        let error = scenario.end();
        assert_eq!(
            error.reply_code().map(|code| code.0),
            Some(code),
            "{what}: {error}"
        );
        assert!(error.to_string().contains(text), "{what}: {error}");
        assert!(
            matches!(error.kind(), ErrorKind::ProtocolViolation { .. }),
            "{what}"
        );
        // Nothing more is sent or reported.
        scenario.receive_bytes(&bytes);
        scenario.socket_closed();
        assert_eq!(scenario.events(), [""; 0]);
        assert_eq!(scenario.sent(), [""; 0]);
    }
}

fn close_sent(scenario: &mut Scenario) -> ConnectionClose<'static> {
    let mut bytes = Vec::new();
    scenario.core.take_output(&mut bytes);
    let Ok(Cut::Frame(frame, _)) = frame::cut(&bytes, usize::MAX) else {
        panic!("no whole frame in {bytes:?}");
    };
    match Method::decode(frame.payload).unwrap().into_owned() {
        Method::ConnectionClose(close) => close,
        other => panic!("{} instead of a close", other.id()),
    }
}

#[test]
fn the_close_names_the_method_that_broke_the_protocol() {
    let mut scenario = Scenario::with_channels([1]);
    scenario.deliver(1, "unknown", 1);
    let close = close_sent(&mut scenario);
    let id = BasicDeliver::ID;
    assert_eq!((close.class_id, close.method_id), (id.class, id.method));
}

#[test]
fn a_long_text_is_cut_between_two_characters() {
    let mut scenario = Scenario::with_channels([1]);
    let consumer_tag = "\u{1f407}".repeat(63);
    scenario.deliver(1, &consumer_tag, 1);
    let close = close_sent(&mut scenario);
    let (text, whole) = (&*close.reply_text, scenario.end().to_string());
    assert!((252..=255).contains(&text.len()), "{}", text.len());
    assert!(text.starts_with("basic.deliver for unknown consumer"));
    assert!(whole.len() > 255, "the program sees all of it");

    // A text that fits is sent as it is.
    let mut scenario = Scenario::with_channels([1]);
    scenario.deliver(1, "short", 1);
    let text = close_sent(&mut scenario).reply_text;
    assert_eq!(text, "basic.deliver for unknown consumer \"short\"");
}
