use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::wire::method::{
    BasicAck, BasicConsumeOk, ChannelClose, ChannelCloseOk, ConnectionBlocked,
};
use crate::wire::properties::Properties;

#[test]
fn messages_can_have_any_number_of_body_frames() {
    for size in [0, 1, 99, 100, 101, 1000] {
        let mut scenario = Scenario::with_channels([1]);
        scenario.consume(1, "c");
        let body: String = (0..size)
            .map(|at| char::from(b'a' + (at % 26) as u8))
            .collect();
        scenario.deliver(1, "c", 9);
        scenario.receive_content(1, body.as_bytes());
        assert_eq!(scenario.events(), [format!("delivery c 9 x/key {body}")]);
    }
}

#[test]
fn messages_of_several_channels_can_be_interleaved() {
    let mut scenario = Scenario::with_channels([1, 2]);
    scenario.consume(1, "a");
    scenario.consume(2, "b");
    let (first, second) = (content(1, &[b'1'; 30], 20), content(2, &[b'2'; 30], 20));
    // A header frame has 22 bytes, and a body frame for 20 bytes has 28.
    scenario.deliver(1, "a", 1);
    scenario.deliver(2, "b", 1);
    scenario.receive_bytes(&second[..22]);
    scenario.receive_bytes(&first[..22 + 28]);
    scenario.receive_bytes(&second[22..22 + 28]);
    scenario.receive_bytes(&first[22 + 28..]);
    scenario.receive_bytes(&second[22 + 28..]);
    assert_eq!(
        scenario.events(),
        [
            format!("delivery a 1 x/key {}", "1".repeat(30)),
            format!("delivery b 1 x/key {}", "2".repeat(30)),
        ]
    );
}

#[test]
fn a_returned_message_is_an_event() {
    let mut scenario = Scenario::with_channels([1]);
    scenario.receive(1, &returned());
    scenario.receive_content(1, b"back");
    assert_eq!(scenario.events(), ["returned on 1 312 NO_ROUTE x/key back"]);
}

#[test]
fn a_message_with_invalid_utf8_in_its_names_is_delivered() {
    let mut scenario = Scenario::with_channels([1]);
    scenario.consume(1, "c");
    let mut method = framed(1, &deliver("c", 1));
    let at = method.windows(3).position(|it| it == b"key").unwrap();
    method[at] = 0xff;
    scenario.receive_bytes(&method);
    scenario.receive_content(1, b"body");
    assert_eq!(scenario.events(), ["delivery c 1 x/\u{fffd}ey body"]);
}

#[test]
fn a_message_above_the_limit_is_skipped_and_reported() {
    let size = config().max_message_size + 1;
    let body = vec![0; size as usize];
    let mut scenario = Scenario::with_channels([1]);
    let consume = scenario.consume(1, "c");
    let get = scenario.get(1);
    scenario.deliver(1, "c", 1);
    scenario.receive_bytes(&content(1, &body, 100_000));
    assert_eq!(scenario.events(), [format!("too large on 1 {size}")]);

    // The next one fits.
    scenario.receive(1, &returned());
    scenario.receive_content(1, b"back");
    assert_eq!(scenario.events(), ["returned on 1 312 NO_ROUTE x/key back"]);

    // A get with such a message fails when the channel ends.
    scenario.receive(1, &get_ok());
    scenario.receive_bytes(&content(1, &body, 100_000));
    assert_eq!(scenario.events(), [format!("too large on 1 {size}")]);
    scenario.core.handle(Command::CloseChannel {
        channel: 1,
        reason: CloseReason::program("too large"),
        call: None,
    });
    scenario.receive(1, &ChannelCloseOk {});
    let end = "channel 1 was closed by this program";
    assert_eq!(
        scenario.events(),
        [
            format!("channel 1 ended {end}"),
            format!("consumer c ended {end}"),
            format!("failed {get} {end}"),
            format!("failed {consume} {end}"),
            "channel 1 freed".to_owned(),
        ]
    );
}

#[test]
fn the_limit_holds_for_a_message_that_comes_in_one_piece() {
    let config = Config {
        max_message_size: 4,
        ..config()
    };
    let mut scenario = Scenario::opened_with(config, &tune(2047, 131_072, 60));
    scenario.open_channel(1);
    scenario.consume(1, "c");
    scenario.events();
    for (delivery_tag, body) in [(1, b"four".as_slice()), (2, b"longer"), (3, b"end")] {
        let mut message = framed(1, &deliver("c", delivery_tag));
        message.extend(content(1, body, 100));
        scenario.receive_bytes(&message);
    }
    assert_eq!(
        scenario.events(),
        [
            "delivery c 1 x/key four",
            "too large on 1 6",
            "delivery c 3 x/key end",
        ]
    );
}

#[test]
fn a_delivery_reuses_the_memory_that_the_driver_gives() {
    let mut scenario = Scenario::with_channels([1]);
    scenario.consume(1, "c");
    scenario.core.buffers().small.push(Vec::with_capacity(60));
    let mut message = framed(1, &deliver("c", 1));
    message.extend(content(1, b"body", 100));
    scenario.core.receive(&message, scenario.now);
    assert!(scenario.core.buffers().small.is_empty());
    let messages = scenario.core.take_messages(1);
    let contents: Vec<_> = messages.map(|it| it.content.into_bytes()).collect();
    assert!(contents[0].capacity() >= 60);
}

#[test]
fn a_large_body_is_read_into_the_memory_of_a_former_message() {
    let body: Vec<u8> = (0..10_000).map(|at| at as u8).collect();
    let mut scenario = Scenario::with_channels([1]);
    scenario.consume(1, "c");
    scenario.core.buffers().large.push(vec![b'?'; 12_000]);
    scenario.deliver(1, "c", 1);
    let frames = content(1, &body, 20_000);
    // The header, and the beginning of the body.
    let (begun, rest) = frames.split_at(22 + 7 + 100);
    assert_eq!(scenario.core.receive(begun, scenario.now), begun.len());
    assert_eq!(scenario.core.body_room(50).unwrap().len(), 50);
    let room = scenario.core.body_room(usize::MAX).unwrap();
    let of_body = room.len();
    assert_eq!(of_body, 9_900);
    room.copy_from_slice(&rest[..of_body]);
    scenario.core.body_came(of_body);
    // Not before the end of the frame.
    assert!(scenario.core.body_room(usize::MAX).is_none());
    assert!(!scenario.core.has_events());
    assert_eq!(scenario.core.receive(&rest[of_body..], scenario.now), 1);
    let messages = scenario.core.take_messages(1);
    let contents: Vec<_> = messages.map(|it| it.content).collect();
    assert_eq!(contents[0].body(), body);
    assert_eq!(contents[0].capacity(), 12_000);
}

#[test]
fn a_channel_that_closes_in_the_middle_of_a_body_drops_it() {
    let mut scenario = Scenario::with_channels([1]);
    scenario.consume(1, "c");
    scenario.deliver(1, "c", 1);
    let frames = content(1, &[b'x'; 10_000], 20_000);
    scenario.receive_bytes(&frames[..5_000]);
    scenario.close_channel(1);
    assert!(scenario.core.body_room(1).is_none());
    scenario.receive_bytes(&frames[5_000..]);
    assert_eq!(scenario.events(), [""; 0]);
    scenario.receive(1, &ChannelCloseOk {});
    assert!(scenario.events()[0].starts_with("channel 1 ended"));
}

#[test]
fn a_fetch_whose_body_does_not_follow_fails_with_the_violation() {
    let mut scenario = Scenario::with_channels([1]);
    let get = scenario.get(1);
    scenario.receive(1, &get_ok());
    let header = &content(1, b"body", 100)[..22];
    scenario.receive_bytes(&[header, header].concat());
    let end = scenario.events().pop().unwrap();
    assert!(end.starts_with(&format!("failed {get} ")), "{end}");
    assert!(end.contains("a content header without its method"), "{end}");
}

#[test]
fn a_false_body_size_costs_no_memory() {
    let mut scenario = Scenario::with_channels([1]);
    scenario.receive(1, &returned());
    let mut header = content(1, b"", 20);
    header[11] = 0xff;
    scenario.receive_bytes(&header);
    assert_eq!(scenario.events(), ["too large on 1 18374686479671623680"]);
}

/// One of each kind of input from a broker, as bytes.
fn conversation() -> Vec<u8> {
    let close = ChannelClose {
        reply_code: 404,
        ..ChannelClose::default()
    };
    [
        framed(
            1,
            &BasicConsumeOk {
                consumer_tag: "c".into(),
            },
        ),
        framed(1, &deliver("c", 1)),
        content(1, &[b'x'; 250], 100),
        framed(2, &get_ok()),
        content(2, b"fetched", 100),
        framed(1, &deliver("c", 2)),
        content(1, b"", 100),
        b"\x08\0\0\0\0\0\0\xce".to_vec(),
        framed(2, &returned()),
        content(2, b"back", 100),
        framed(
            2,
            &BasicAck {
                delivery_tag: 3,
                multiple: true,
            },
        ),
        framed(
            0,
            &ConnectionBlocked {
                reason: "why".into(),
            },
        ),
        framed(2, &close),
        framed(1, &deliver("unknown", 3)),
    ]
    .concat()
}

/// The events of the conversation if it arrives in pieces that end at `cuts`.
fn events_of(bytes: &[u8], cuts: &[usize]) -> (Vec<String>, Vec<String>) {
    let (consumed, events, sent) = told_and_sent(bytes, cuts);
    assert_eq!(consumed, bytes.len());
    (events, sent)
}

fn told_and_sent(bytes: &[u8], cuts: &[usize]) -> (usize, Vec<String>, Vec<String>) {
    let mut scenario = Scenario::with_channels([1, 2]);
    scenario.consume(1, "c");
    scenario.get(2);
    for number in 1..=3 {
        scenario.publish(2, number);
    }
    let mut consumed = 0;
    let mut events = Vec::new();
    for &cut in cuts.iter().chain([&bytes.len()]) {
        consumed += scenario
            .core
            .receive(&bytes[consumed..cut.max(consumed)], scenario.now);
        events.extend(scenario.events());
    }
    (consumed, events, scenario.sent())
}

#[test]
fn every_split_in_two_gives_the_same_events() {
    let bytes = conversation();
    let whole = events_of(&bytes, &[]);
    assert_eq!(whole.0.len(), 16, "{whole:#?}");
    for cut in 0..bytes.len() {
        assert_eq!(events_of(&bytes, &[cut]), whole, "cut at {cut}");
    }
    let every_byte: Vec<_> = (0..bytes.len()).collect();
    assert_eq!(events_of(&bytes, &every_byte), whole);
}

/// A message that arrives as a whole takes the fast path, and one that arrives in pieces does not.
#[test]
fn damage_to_a_message_has_the_same_effect_on_the_fast_and_the_general_path() {
    let properties = Properties {
        message_id: Some("id".into()),
        ..Properties::default()
    };
    let with_properties = |body: &[u8]| {
        let mut bytes = Vec::new();
        frame::write_content(&mut bytes, 1, Some(&properties), body, 100).unwrap();
        bytes
    };
    let again = BasicDeliver {
        redelivered: true,
        exchange: "".into(),
        routing_key: "schlüssel".into(),
        ..deliver("c", 8)
    };
    let bytes = [
        framed(1, &deliver("c", 7)),
        with_properties(b"first"),
        framed(1, &again),
        with_properties(b""),
        framed(1, &deliver("c", 9)),
        content(1, b"last", 100),
    ]
    .concat();
    let every_byte: Vec<_> = (0..bytes.len()).collect();
    let (_, events, _) = told_and_sent(&bytes, &[]);
    assert_eq!(
        events,
        [
            "delivery c 7 x/key first, with 5 bytes of properties",
            "delivery c 8 again /schlüssel , with 5 bytes of properties",
            "delivery c 9 x/key last",
        ]
    );
    let mut outcomes = HashSet::new();
    for at in 0..bytes.len() {
        for wrong in [0, 1, 2, 3, 8, 60, 0xc3, 0xce, 0xff] {
            let mut bytes = bytes.clone();
            bytes[at] = wrong;
            let whole = told_and_sent(&bytes, &[]);
            let in_pieces = told_and_sent(&bytes, &every_byte);
            assert_eq!(whole, in_pieces, "{wrong} at {at}");
            outcomes.insert(whole);
        }
    }
    assert!(outcomes.len() > 50, "{}", outcomes.len());
}

proptest! {
    #[test]
    fn any_split_gives_the_same_events(mut cuts in prop::collection::vec(0..1000_usize, 0..20)) {
        let bytes = conversation();
        cuts.iter_mut().for_each(|cut| *cut %= bytes.len());
        cuts.sort_unstable();
        prop_assert_eq!(events_of(&bytes, &cuts), events_of(&bytes, &[]));
    }
}
