//! Golden bytes, round trips, and refusals before anything is allocated.

use std::borrow::Cow;
use std::collections::BTreeSet;

use proptest::prelude::*;

use super::codec::{Reader, WireError, Writer, MAX_DEPTH};
use super::fast_publish::write_plain;
use super::frame::{self, Cut, FrameKind};
use super::method::{
    BasicConsume, BasicPublish, ConnectionTuneOk, Encode, LongString, Method, QueueDeclare,
    ShortString, Table,
};
use super::properties::Properties;
use super::value::{self, FieldTable, FieldValue};

/// Values for the fields of a method, different for each field.
pub(super) trait Sample {
    /// The specification's name of the type.
    const TYPE: &'static str;
    fn sample(seed: &mut u8) -> Self;
}

fn next(seed: &mut u8) -> u8 {
    *seed = seed.wrapping_add(1);
    *seed
}

macro_rules! samples {
    ($($type:ty = $name:literal: |$n:ident| $value:expr;)*) => {
        $(impl Sample for $type {
            const TYPE: &'static str = $name;
            fn sample(seed: &mut u8) -> Self {
                let $n = next(seed);
                $value
            }
        })*
    };
}

samples! {
    bool = "bit": |n| n % 2 == 0;
    u8 = "octet": |n| n;
    u16 = "short": |n| u16::from(n) << 8 | 1;
    u32 = "long": |n| u32::from(n) << 24 | 2;
    u64 = "longlong": |n| u64::from(n) << 56 | 3;
    ShortString<'_> = "shortstr": |n| Cow::Owned(format!("text {n}"));
    LongString<'_> = "longstr": |n| LongString(Cow::Owned(vec![n; 300]));
    Table<'_> = "table": |n| Cow::Owned(FieldTable::new().with("n", n));
}

fn encoded(method: &Method<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    method.encode(&mut bytes).unwrap();
    bytes
}

#[test]
fn the_method_table_agrees_with_the_specification() {
    let ours: BTreeSet<_> = Method::rows().into_iter().collect();
    let specified: BTreeSet<_> = include_str!("methods.txt")
        .lines()
        .map(String::from)
        .collect();
    assert_eq!(ours, specified);
    assert_eq!(ours.len(), 66);
}

#[test]
fn every_method_round_trips() {
    for method in Method::samples() {
        let bytes = encoded(&method);
        assert_eq!(Method::decode(&bytes).unwrap(), method);
        assert_eq!(Method::decode(&bytes).unwrap().into_owned(), method);
    }
}

#[test]
fn every_truncation_and_every_extra_byte_is_refused() {
    for method in Method::samples() {
        let mut bytes = encoded(&method);
        for end in 0..bytes.len() {
            let cut = Method::decode(&bytes[..end]);
            assert!(
                matches!(cut, Err(WireError::Truncated { .. })),
                "{} at {end}",
                method.id()
            );
        }
        bytes.push(0);
        let longer = Method::decode(&bytes);
        assert!(
            matches!(longer, Err(WireError::TrailingBytes { count: 1, .. })),
            "{}",
            method.id()
        );
    }
}

#[test]
fn golden_methods() {
    let tune_ok = ConnectionTuneOk {
        channel_max: 2047,
        frame_max: 131_072,
        heartbeat: 60,
    };
    let declare = QueueDeclare {
        queue: "q".into(),
        durable: true,
        no_wait: true,
        arguments: Cow::Owned(FieldTable::new().with("x-expires", 1)),
        ..QueueDeclare::default()
    };
    let consume = BasicConsume {
        queue: "q".into(),
        consumer_tag: "t".into(),
        no_ack: true,
        ..BasicConsume::default()
    };
    let publish = BasicPublish {
        exchange: "e".into(),
        routing_key: "rk".into(),
        mandatory: true,
        ..BasicPublish::default()
    };
    let mut bytes = Vec::new();
    tune_ok.encode(&mut bytes).unwrap();
    assert_eq!(bytes, b"\0\x0a\0\x1f\x07\xff\0\x02\0\0\0\x3c");
    bytes.clear();
    declare.encode(&mut bytes).unwrap();
    assert_eq!(
        bytes,
        b"\0\x32\0\x0a\0\0\x01q\x12\0\0\0\x0f\x09x-expiresI\0\0\0\x01"
    );
    bytes.clear();
    consume.encode(&mut bytes).unwrap();
    assert_eq!(bytes, b"\0\x3c\0\x14\0\0\x01q\x01t\x02\0\0\0\0");
    bytes.clear();
    publish.encode(&mut bytes).unwrap();
    assert_eq!(bytes, b"\0\x3c\0\x28\0\0\x01e\x02rk\x01");
}

#[test]
fn the_error_for_a_long_short_string_names_its_field() {
    let long = "x".repeat(256);
    let method = QueueDeclare {
        queue: long.as_str().into(),
        ..QueueDeclare::default()
    };
    let error = method.encode(&mut Vec::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "queue is longer than 255 bytes (256 bytes)"
    );
}

#[test]
fn passwords_are_not_shown() {
    let secret = LongString(Cow::Borrowed(b"secret"));
    assert_eq!(format!("{secret:?}"), "6 bytes");
}

// ---- field tables ----

fn table_bytes(table: &FieldTable) -> Vec<u8> {
    let mut bytes = Vec::new();
    Writer::new(&mut bytes).table(table, "table").unwrap();
    bytes
}

fn read_table(bytes: &[u8]) -> Result<FieldTable, WireError> {
    let mut reader = Reader::new(bytes);
    let table = value::read_table(&mut reader, 0)?;
    reader.finish("table")?;
    Ok(table)
}

#[test]
fn golden_values() {
    let golden: [(FieldValue, &[u8]); 17] = [
        (true.into(), b"t\x01"),
        (i8::MIN.into(), b"b\x80"),
        (200_u8.into(), b"B\xc8"),
        ((-2_i16).into(), b"s\xff\xfe"),
        (40_000_u16.into(), b"u\x9c\x40"),
        ((-2_i32).into(), b"I\xff\xff\xff\xfe"),
        (3_000_000_000_u32.into(), b"i\xb2\xd0\x5e\0"),
        ((-2_i64).into(), b"l\xff\xff\xff\xff\xff\xff\xff\xfe"),
        (1.5_f32.into(), b"f\x3f\xc0\0\0"),
        ((-2.0_f64).into(), b"d\xc0\0\0\0\0\0\0\0"),
        (
            FieldValue::Decimal {
                scale: 2,
                value: 314,
            },
            b"D\x02\0\0\x01\x3a",
        ),
        ("hi".into(), b"S\0\0\0\x02hi"),
        (vec![0_u8, 255].into(), b"x\0\0\0\x02\0\xff"),
        (FieldValue::Timestamp(1), b"T\0\0\0\0\0\0\0\x01"),
        (
            vec![FieldValue::Void, true.into()].into(),
            b"A\0\0\0\x03Vt\x01",
        ),
        (
            FieldTable::new().with("k", FieldValue::Void).into(),
            b"F\0\0\0\x03\x01kV",
        ),
        (FieldValue::Void, b"V"),
    ];
    for (value, bytes) in golden {
        let table = FieldTable::new().with("n", value);
        let mut expected = vec![0, 0, 0, bytes.len() as u8 + 2, 1, b'n'];
        expected.extend_from_slice(bytes);
        assert_eq!(table_bytes(&table), expected);
        assert_eq!(read_table(&expected).unwrap(), table);
    }
}

#[test]
fn both_cases_of_the_type_tag_l_mean_a_signed_64_bit_integer() {
    let table = read_table(b"\0\0\0\x0b\x01nL\xff\xff\xff\xff\xff\xff\xff\xff").unwrap();
    assert_eq!(table.get("n"), Some(&FieldValue::I64(-1)));
}

#[test]
fn malformed_tables_are_refused() {
    let malformed: [(&[u8], WireError); 5] = [
        (
            b"\xff\xff\xff\xff",
            WireError::Truncated {
                what: "a field table",
            },
        ),
        (
            b"\0\0\0\x07\x01nS\xff\xff\xff\xff",
            WireError::Truncated {
                what: "a field value",
            },
        ),
        (
            b"\0\0\0\x07\x01nA\0\0\0\x01",
            WireError::Truncated {
                what: "a field array",
            },
        ),
        (
            b"\0\0\0\x02\xffn",
            WireError::Truncated {
                what: "a field table",
            },
        ),
        (b"\0\0\0\x03\x01nZ", WireError::UnknownValueType(b'Z')),
    ];
    for (bytes, error) in malformed {
        assert_eq!(read_table(bytes), Err(error));
    }
}

/// A table that contains `depth` tables, one inside another.
fn nested(depth: usize) -> FieldTable {
    (0..depth).fold(FieldTable::new(), |inner, _| {
        FieldTable::new().with("t", inner)
    })
}

#[test]
fn nesting_beyond_the_limit_is_refused_in_both_directions() {
    let deepest = nested(MAX_DEPTH);
    assert_eq!(read_table(&table_bytes(&deepest)).unwrap(), deepest);

    let mut bytes = Vec::new();
    let refused = Writer::new(&mut bytes).table(&nested(MAX_DEPTH + 1), "table");
    assert_eq!(refused, Err(WireError::TooDeep));

    // A peer may send what our writer refuses to write.
    assert_eq!(
        read_table(&wrapped(b"\x01tF", 10_000)),
        Err(WireError::TooDeep)
    );
    let mut arrays = b"\x01nA".to_vec();
    arrays.append(&mut wrapped(b"A", 10_000));
    assert_eq!(read_table(&sized(&arrays)), Err(WireError::TooDeep));
}

#[test]
fn non_finite_floats_are_read_but_refused_with_their_place_when_written() {
    let list = vec![1.into(), f64::NEG_INFINITY.into()];
    let list = FieldTable::new().with("a \"list\"", FieldValue::Array(list));
    let mut deep = FieldTable::new().with("x", f32::NAN);
    for _ in 0..MAX_DEPTH {
        deep = FieldTable::new().with("t", deep);
    }
    let table = [
        (FieldTable::new().with("x", f64::NAN), "header \"x\" is NaN"),
        (
            FieldTable::new().with("x", -f32::NAN),
            "header \"x\" is NaN",
        ),
        (
            FieldTable::new().with("x", f32::INFINITY),
            "header \"x\" is inf",
        ),
        (
            FieldTable::new().with("stats", list),
            "header \"stats\"[\"a \\\"list\\\"\"][1] is -inf",
        ),
        (deep, "[\"t\"][\"x\"] is NaN"),
    ];
    for (headers, expected) in table {
        let properties = Properties::default().headers(headers);
        let error = properties.encode(&mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(
            error.ends_with(": AMQP brokers accept only finite numbers"),
            "{error}"
        );
    }
    let argument = FieldTable::new().with("x-limit", f64::NAN);
    let error = Writer::new(&mut Vec::new()).table(&argument, "arguments");
    let error = error.unwrap_err().to_string();
    assert!(error.starts_with("argument \"x-limit\" is NaN"), "{error}");

    let largest = FieldTable::new()
        .with("x", f64::MAX)
        .with("y", f32::MIN_POSITIVE);
    assert_eq!(read_table(&table_bytes(&largest)).unwrap(), largest);
    let read = read_table(b"\0\0\0\x0b\x01nd\x7f\xf8\0\0\0\0\0\0").unwrap();
    assert!(read.get("n").unwrap().as_f64().unwrap().is_nan());
    let read = read_table(b"\0\0\0\x07\x01nf\xff\x80\0\0").unwrap();
    assert_eq!(read.get("n"), Some(&f32::NEG_INFINITY.into()));
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

/// Wraps an empty value `depth` times: each layer is a length, `before`, and the inner layer.
fn wrapped(before: &[u8], depth: usize) -> Vec<u8> {
    (0..depth).fold(sized(b""), |inner, _| sized(&[before, &inner].concat()))
}

fn any_value() -> impl Strategy<Value = FieldValue> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(FieldValue::from),
        any::<i8>().prop_map(FieldValue::from),
        any::<u16>().prop_map(FieldValue::from),
        any::<i64>().prop_map(FieldValue::from),
        // NaN is not equal to itself.
        (-1e9..1e9_f64).prop_map(FieldValue::from),
        any::<u64>().prop_map(FieldValue::Timestamp),
        ".{0,300}".prop_map(FieldValue::from),
        any::<Vec<u8>>().prop_map(FieldValue::from),
        Just(FieldValue::Void),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(FieldValue::Array),
            prop::collection::vec((".{0,20}", inner), 0..6)
                .prop_map(|values| FieldValue::Table(values.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn the_fast_path_for_publishes_writes_the_same_bytes_as_the_general_path(
        channel in any::<u16>(),
        exchange in prop_oneof![Just(String::new()), "[a-zäß]{0,20}", "x{250,260}"],
        routing_key in prop_oneof![Just(String::new()), "[a-z.*#]{0,20}", "x{250,260}"],
        flags in any::<(bool, bool)>(),
        size in prop_oneof![0..100_usize, 4_080..4_100_usize, 131_060..131_080_usize],
        limit in prop_oneof![Just(4088_usize), Just(131_064), Just(usize::MAX)],
    ) {
        let body = vec![b'b'; size];
        let publish = BasicPublish {
            ticket: 0,
            exchange: exchange.as_str().into(),
            routing_key: routing_key.as_str().into(),
            mandatory: flags.0,
            immediate: flags.1,
        };
        let mut plain = b"before".to_vec();
        let properties = write_plain(&mut plain, channel, &publish, &body, limit);
        let mut general = b"before".to_vec();
        let written = frame::write_method(&mut general, channel, &publish, limit)
            .and_then(|()| frame::write_content(&mut general, channel, None, &body, limit));
        match properties {
            Some(properties) => {
                prop_assert_eq!(&plain, &general);
                prop_assert_eq!(properties, written.unwrap());
            }
            None => {
                prop_assert_eq!(plain, b"before");
                let is_one_piece = (1..=limit.min(128 << 10)).contains(&size);
                prop_assert!(exchange.len() > 255 || routing_key.len() > 255 || !is_one_piece);
            }
        }
    }

    #[test]
    fn any_table_round_trips(values in prop::collection::vec(("[ -~]{0,30}", any_value()), 0..8)) {
        let table: FieldTable = values.into_iter().collect();
        prop_assert_eq!(read_table(&table_bytes(&table)).unwrap(), table);
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(bytes: Vec<u8>) {
        let _ = Method::decode(&bytes);
        let _ = Properties::decode(&bytes);
        let _ = read_table(&bytes);
        let _ = frame::cut(&bytes, 100);
    }

    #[test]
    fn any_damage_to_a_method_is_decoded_or_refused(
        row in 0..66_usize, at: prop::sample::Index, bits in 1..=255_u8
    ) {
        let mut bytes = encoded(&Method::samples()[row]);
        let at = at.index(bytes.len());
        bytes[at] ^= bits;
        let _ = Method::decode(&bytes);
    }
}

// ---- properties ----

#[test]
fn golden_properties() {
    let properties = Properties::default()
        .content_type("text/plain")
        .header("n", 1)
        .persistent(true)
        .priority(5)
        .timestamp(1);
    let mut bytes = Vec::new();
    properties.encode(&mut bytes).unwrap();
    assert_eq!(
        bytes,
        b"\xb8\x40\x0atext/plain\0\0\0\x07\x01nI\0\0\0\x01\x02\x05\0\0\0\0\0\0\0\x01"
    );
    assert_eq!(Properties::decode(&bytes).unwrap(), properties);
}

#[test]
fn all_properties_round_trip_and_every_truncation_is_refused() {
    let properties = Properties::default()
        .content_type("1")
        .content_encoding("2")
        .headers(FieldTable::new().with("3", 3))
        .delivery_mode(4)
        .priority(5)
        .correlation_id("6")
        .reply_to("7")
        .expiration("8")
        .message_id("9")
        .timestamp(10)
        .message_type("11")
        .user_id("12")
        .app_id("13")
        .cluster_id("14");
    let mut bytes = Vec::new();
    properties.encode(&mut bytes).unwrap();
    assert_eq!(&bytes[..2], b"\xff\xfc");
    assert_eq!(Properties::decode(&bytes).unwrap(), properties);
    for end in 0..bytes.len() {
        assert!(Properties::decode(&bytes[..end]).is_err(), "{end}");
    }
    assert_eq!(
        Properties::decode(b"\0\x01"),
        Err(WireError::UnknownPropertyFlags(1))
    );
}

// ---- frames ----

#[test]
fn golden_frames() {
    let mut bytes = Vec::new();
    frame::write_heartbeat(&mut bytes);
    assert_eq!(bytes, b"\x08\0\0\0\0\0\0\xce");

    bytes.clear();
    frame::write_content(&mut bytes, 3, None, b"abcde", 14).unwrap();
    assert_eq!(
        bytes,
        b"\x02\0\x03\0\0\0\x0e\0\x3c\0\0\0\0\0\0\0\0\0\x05\0\0\xce\x03\0\x03\0\0\0\x05abcde\xce"
    );
}

#[test]
fn bodies_are_cut_to_the_limit() {
    let mut bytes = Vec::new();
    frame::write_content(&mut bytes, 1, None, &[7; 100], 40).unwrap();
    let mut sizes = Vec::new();
    let mut rest = bytes.as_slice();
    while let Cut::Frame(frame, length) = frame::cut(rest, 40).unwrap() {
        if frame.kind == FrameKind::Body {
            sizes.push(frame.payload.len());
        }
        rest = &rest[length..];
    }
    assert_eq!(sizes, [40, 40, 20]);
    assert!(rest.is_empty());
}

#[test]
fn nothing_is_written_if_a_header_is_too_large_for_a_frame() {
    let properties = Properties::default().header("h", "x".repeat(100));
    let mut bytes = b"before".to_vec();
    let refused = frame::write_content(&mut bytes, 1, Some(&properties), b"body", 50);
    assert!(matches!(
        refused,
        Err(WireError::FrameTooLarge { limit: 50, .. })
    ));
    assert_eq!(bytes, b"before");
}

#[test]
fn bad_frames_are_refused_as_early_as_possible() {
    // Seven bytes contain the size: the refusal does not wait for the rest.
    let too_large = b"\x01\0\0\xff\xff\xff\xff";
    let expected = WireError::FrameTooLarge {
        size: 0xffff_ffff,
        limit: 100,
    };
    assert_eq!(frame::cut(too_large, 100), Err(expected));
    assert_eq!(
        frame::cut(b"\x05", 100),
        Err(WireError::UnknownFrameType(5))
    );
    assert_eq!(
        frame::cut(b"\x08\0\0\0\0\0\0\xcd", 100),
        Err(WireError::WrongFrameEnd(0xcd))
    );
    for end in 0..8 {
        let part = frame::cut(&b"\x08\0\0\0\0\0\0\xce"[..end], 100);
        assert_eq!(part, Ok(Cut::Incomplete), "{end}");
    }
}
