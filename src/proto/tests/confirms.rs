//! Confirms and nacks in any order, and how returned messages are matched with their publishes.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::proto::confirms::Confirms;
use crate::proto::effects::Effects;
use crate::wire::method::{BasicAck, BasicNack, ChannelClose};
use crate::wire::properties::Properties;

impl Scenario {
    fn ack(&mut self, delivery_tag: u64, multiple: bool) {
        let ack = BasicAck {
            delivery_tag,
            multiple,
        };
        self.receive(1, &ack);
    }

    fn nack(&mut self, delivery_tag: u64, multiple: bool) {
        let nack = BasicNack {
            delivery_tag,
            multiple,
            requeue: false,
        };
        self.receive(1, &nack);
    }

    /// Publishes a mandatory message on channel 1.
    fn publish_mandatory(&mut self, sequence_number: u64, awaited: bool, message: Sent<'_>) -> u32 {
        let confirm = self.next_call();
        let properties = encoded(message.id);
        let fingerprint = Fingerprint::new("x", message.key, message.body.as_bytes());
        self.core.handle(Command::Publish(Published {
            channel: 1,
            sequence_number,
            confirm: awaited.then_some(confirm),
            fingerprint: Some(fingerprint.with_properties(&properties)),
            send_history: SendHistory::Nothing,
            kept: None,
        }));
        confirm
    }

    fn return_message(&mut self, message: Sent<'_>) {
        let returned = BasicReturn {
            routing_key: message.key.into(),
            ..returned()
        };
        self.receive(1, &returned);
        let mut bytes = Vec::new();
        let properties = Properties::default().message_id(message.id);
        let body = message.body.as_bytes();
        frame::write_content(&mut bytes, 1, Some(&properties), body, 4096).unwrap();
        self.receive_bytes(&bytes);
    }

    /// The outcomes of messages, without the channel's confirm events.
    fn outcomes(&mut self) -> Vec<String> {
        let mut events = self.events();
        events.retain(|event| !event.contains("answered to"));
        events
    }
}

#[derive(Clone, Copy)]
struct Sent<'a> {
    key: &'a str,
    id: &'a str,
    body: &'a str,
}

fn sent<'a>(key: &'a str, id: &'a str, body: &'a str) -> Sent<'a> {
    Sent { key, id, body }
}

fn encoded(message_id: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    Properties::default()
        .message_id(message_id)
        .encode(&mut bytes)
        .unwrap();
    bytes
}

#[test]
fn republished_messages_keep_their_numbers() {
    let mut scenario = Scenario::with_channels([1]);
    // 4 was confirmed on the last connection. The broker starts again at 1.
    let confirms = [3, 5, 6, 7].map(|number| scenario.publish(1, number));
    scenario.ack(3, false);
    scenario.ack(2, true);
    scenario.ack(4, false);
    assert_eq!(
        scenario.events(),
        [
            format!("{} confirmed", confirms[2]),
            "ack on 1 6, answered to 2".to_owned(),
            format!("{} confirmed", confirms[0]),
            format!("{} confirmed", confirms[1]),
            "ack on 1 5 multiple, answered to 6".to_owned(),
            format!("{} confirmed", confirms[3]),
            "ack on 1 7, answered to 7".to_owned(),
        ]
    );
}

#[test]
fn answers_come_in_any_order_and_for_many_at_once() {
    let mut scenario = Scenario::with_channels([1]);
    let confirms: Vec<_> = (1..=7).map(|number| scenario.publish(1, number)).collect();
    let confirm = |number: usize| confirms[number - 1];
    scenario.ack(3, false);
    scenario.nack(2, true);
    scenario.ack(5, false);
    // Repeated answers and answers to unpublished messages are ignored.
    scenario.nack(5, false);
    scenario.ack(0, false);
    scenario.ack(8, false);
    scenario.nack(u64::MAX, true);
    scenario.ack(0, true);
    scenario.ack(0, true);
    assert_eq!(
        scenario.events(),
        [
            format!("{} confirmed", confirm(3)),
            "ack on 1 3, answered to 0".to_owned(),
            format!("{} nacked", confirm(1)),
            format!("{} nacked", confirm(2)),
            "nack on 1 2 multiple, answered to 3".to_owned(),
            format!("{} confirmed", confirm(5)),
            "ack on 1 5, answered to 3".to_owned(),
            "nack on 1 5, answered to 3".to_owned(),
            "ack on 1 0, answered to 3".to_owned(),
            format!("{} confirmed", confirm(4)),
            format!("{} confirmed", confirm(6)),
            format!("{} confirmed", confirm(7)),
            "ack on 1 7 multiple, answered to 7".to_owned(),
            "ack on 1 7 multiple, answered to 7".to_owned(),
        ]
    );
}

#[test]
fn outcomes_without_a_confirm_go_to_the_channel() {
    let mut scenario = Scenario::with_channels([1]);
    for number in 1..=3 {
        scenario.publish_mandatory(number, false, sent("key", "", "m"));
    }
    scenario.return_message(sent("key", "", "m"));
    scenario.ack(1, false);
    scenario.nack(3, true);
    assert_eq!(
        scenario.events(),
        [
            "returned on 1 as 1 312 NO_ROUTE x/key m",
            "ack on 1 1, answered to 1",
            "nacked on 1 2",
            "nacked on 1 3",
            "nack on 1 3 multiple, answered to 3",
        ]
    );
}

#[test]
fn a_returned_message_finds_its_own_publish() {
    let mut scenario = Scenario::with_channels([1]);
    let messages = [
        sent("routed", "1", "body"),
        sent("key", "2", "body"),
        sent("key", "3", "body"),
        sent("key", "3", "other body"),
        sent("other key", "3", "body"),
    ];
    let confirms: Vec<_> = (1..)
        .zip(messages)
        .map(|(number, message)| scenario.publish_mandatory(number, true, message))
        .collect();
    // Neither matches a publish: the first was published with another key, the second never.
    for message in [sent("key", "1", "body"), sent("unknown", "1", "body")] {
        let mut other = Scenario::with_channels([1]);
        other.publish_mandatory(1, true, messages[0]);
        other.return_message(message);
        let text = format!("returned on 1 312 NO_ROUTE x/{} body", message.key);
        assert_eq!(other.events(), [text]);
    }
    for returned in [3, 1, 4] {
        scenario.return_message(messages[returned]);
    }
    assert_eq!(scenario.outcomes(), [""; 0], "only the answer decides");
    scenario.ack(5, true);
    assert_eq!(
        scenario.outcomes(),
        [
            format!("{} confirmed", confirms[0]),
            format!("{} returned x/key body", confirms[1]),
            format!("{} confirmed", confirms[2]),
            format!("{} returned x/key other body", confirms[3]),
            format!("{} returned x/other key body", confirms[4]),
        ]
    );
}

#[test]
fn among_equal_messages_the_one_answered_next_to_the_return_was_returned() {
    // The first message is routed to a slow queue. The queue is deleted, and the second is
    // returned.
    let equal = sent("key", "", "m");
    let mut scenario = Scenario::with_channels([1]);
    let first = scenario.publish_mandatory(1, true, equal);
    let second = scenario.publish_mandatory(2, true, equal);
    scenario.return_message(equal);
    scenario.ack(2, false);
    scenario.ack(1, false);
    assert_eq!(
        scenario.outcomes(),
        [
            format!("{second} returned x/key m"),
            format!("{first} confirmed")
        ]
    );

    // The queue has confirmed the first at the same time, so that the answer is for both.
    let third = scenario.publish_mandatory(3, true, equal);
    let fourth = scenario.publish_mandatory(4, true, equal);
    let fifth = scenario.publish_mandatory(5, true, equal);
    scenario.return_message(equal);
    scenario.ack(4, true);
    scenario.ack(5, false);
    assert_eq!(
        scenario.outcomes(),
        [
            format!("{third} confirmed"),
            format!("{fourth} returned x/key m"),
            format!("{fifth} confirmed"),
        ]
    );
}

#[test]
fn a_returned_message_that_was_changed_on_its_way_is_still_recognised() {
    let mut scenario = Scenario::with_channels([1]);
    let first = scenario.publish_mandatory(1, true, sent("key", "1", "a"));
    let second = scenario.publish_mandatory(2, true, sent("key", "2", "b"));
    scenario.return_message(sent("key", "with a timestamp", "b"));
    scenario.ack(2, true);
    assert_eq!(
        scenario.outcomes(),
        [
            format!("{first} confirmed"),
            format!("{second} returned x/key b")
        ]
    );
}

#[test]
fn changed_messages_that_are_returned_together_are_matched_in_order() {
    let mut scenario = Scenario::with_channels([1]);
    let ids = ["1", "2", "3"];
    let confirms: Vec<_> = (1..)
        .zip(ids)
        .map(|(number, id)| scenario.publish_mandatory(number, true, sent("key", id, "m")))
        .collect();
    for _ in ids {
        scenario.return_message(sent("key", "changed", "m"));
    }
    scenario.ack(3, true);
    let returned = confirms.iter().map(|it| format!("{it} returned x/key m"));
    assert_eq!(scenario.outcomes(), returned.collect::<Vec<_>>());
}

#[test]
fn an_equal_message_is_recognised_before_a_later_one_that_differs() {
    let mut scenario = Scenario::with_channels([1]);
    let messages = ["1", "2", "3"].map(|id| sent("key", id, "m"));
    let confirms: Vec<_> = (1..)
        .zip(messages)
        .map(|(number, message)| scenario.publish_mandatory(number, true, message))
        .collect();
    scenario.return_message(messages[1]);
    scenario.return_message(messages[0]);
    scenario.ack(3, true);
    assert_eq!(
        scenario.outcomes(),
        [
            format!("{} returned x/key m", confirms[0]),
            format!("{} returned x/key m", confirms[1]),
            format!("{} confirmed", confirms[2]),
        ]
    );
}

#[test]
fn a_broker_that_returns_a_message_twice_fills_no_memory() {
    let mut scenario = Scenario::with_channels([1]);
    let message = sent("key", "", "m");
    let confirm = scenario.publish_mandatory(1, true, message);
    scenario.return_message(message);
    scenario.return_message(message);
    assert_eq!(scenario.events(), ["returned on 1 312 NO_ROUTE x/key m"]);
    scenario.ack(1, false);
    let returned = format!("{confirm} returned x/key m");
    assert_eq!(scenario.outcomes(), [returned]);
}

#[test]
fn answered_messages_are_forgotten_although_an_earlier_one_waits() {
    let mut confirms = Confirms::<Names>::new();
    let mut effects = Effects::new(4096, Label::new("test", "nowhere"));
    for tag in 1..=10_000 {
        confirms.publish(Published {
            channel: 1,
            sequence_number: tag,
            confirm: None,
            fingerprint: None,
            send_history: SendHistory::Nothing,
            kept: None,
        });
        let is_first = tag == 1;
        if !is_first {
            let answer = Answer {
                tag,
                multiple: false,
                nack: false,
            };
            confirms.answer(answer, &1, &mut effects);
        }
        assert!(confirms.remembered() < 100);
    }
}

#[test]
fn an_answer_tells_how_many_messages_it_answers() {
    let mut scenario = Scenario::with_channels([1]);
    for number in 1..=6 {
        scenario.publish(1, number);
    }
    scenario.ack(2, false);
    scenario.ack(4, true);
    scenario.nack(4, false);
    scenario.nack(0, true);
    let mut answered = Vec::new();
    while let Some(event) = scenario.core.next_event() {
        if let Event::Confirm { answered: it, .. } = event {
            answered.push(it);
        }
    }
    assert_eq!(answered, [1, 3, 0, 2]);
}

#[test]
fn a_returned_message_with_another_body_matches_no_publish() {
    let mut scenario = Scenario::with_channels([1]);
    let confirm = scenario.publish_mandatory(1, true, sent("key", "", "new"));
    scenario.return_message(sent("key", "", "old, from before confirm mode"));
    scenario.ack(1, false);
    assert_eq!(
        scenario.outcomes(),
        [
            "returned on 1 312 NO_ROUTE x/key old, from before confirm mode".to_owned(),
            format!("{confirm} confirmed"),
        ]
    );
}

#[test]
fn a_message_that_was_returned_before_the_end_counts_as_returned() {
    let mut scenario = Scenario::with_channels([1]);
    let messages = [sent("key", "1", "m"), sent("nowhere", "2", "m")];
    let first = scenario.publish_mandatory(1, true, messages[0]);
    let second = scenario.publish_mandatory(2, true, messages[1]);
    scenario.return_message(messages[1]);
    scenario.receive(1, &ChannelClose::default());
    let outcomes = scenario.outcomes();
    assert!(outcomes.contains(&format!("{second} returned x/nowhere m")));
    let lost = format!("{first} lost sent=true channel 1 was closed by the broker: 0 - ");
    assert!(outcomes.contains(&lost), "{outcomes:?}");
    // A publish that the core learns of only now was written to a channel that had ended.
    let late = scenario.publish(1, 3);
    let lost = format!("{late} lost sent=true channel 1 was closed by the broker: 0 - ");
    assert_eq!(scenario.outcomes(), [lost]);
}

/// What a broker does with a message.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Confirm,
    Nack,
    Return,
}

proptest! {
    /// Up to 199 messages, some with the same routing key, answered in any order, one by one or
    /// many at once.
    #[test]
    fn each_message_gets_its_own_outcome(
        keys in prop::collection::vec(0..4_u8, 1..200),
        fates in prop::collection::vec(prop_oneof![Just(Fate::Confirm), Just(Fate::Nack), Just(Fate::Return)], 200),
        order in prop::collection::vec((0..200_usize, any::<bool>()), 0..200),
    ) {
        let mut scenario = Scenario::with_channels([1]);
        let mut expected = BTreeMap::new();
        let mut waiting = BTreeMap::new();
        for (number, (key, fate)) in (1..).zip(keys.iter().zip(&fates)) {
            let (key, id) = (format!("key {key}"), format!("id {number}"));
            let message = sent(&key, &id, "m");
            let confirm = scenario.publish_mandatory(number, true, message);
            // The broker handles messages in order, and answers a returned one at once.
            if *fate == Fate::Return {
                scenario.return_message(message);
                scenario.ack(number, false);
                expected.insert(confirm, format!("{confirm} returned x/{key} m"));
            } else {
                waiting.insert(number, (confirm, *fate));
            }
        }
        let mut answer = |scenario: &mut Scenario, number: u64, multiple: bool| {
            let Some(&(_, fate)) = waiting.get(&number) else { return };
            let first = if multiple { 0 } else { number };
            let answered: Vec<u64> = waiting.range(first..=number).map(|(number, _)| *number).collect();
            for number in answered {
                if let Some((confirm, _)) = waiting.remove(&number) {
                    let outcome = if fate == Fate::Nack { "nacked" } else { "confirmed" };
                    expected.insert(confirm, format!("{confirm} {outcome}"));
                }
            }
            match fate {
                Fate::Nack => scenario.nack(number, multiple),
                _ => scenario.ack(number, multiple),
            }
        };
        for (at, multiple) in order {
            answer(&mut scenario, at as u64 + 1, multiple);
        }
        for number in 1..=keys.len() as u64 {
            answer(&mut scenario, number, false);
        }
        let mut events = scenario.events();
        let all = format!("answered to {}", keys.len());
        prop_assert!(events.last().unwrap().ends_with(&all));
        events.retain(|event| !event.contains("answered to"));
        let mut expected: Vec<_> = expected.into_values().collect();
        events.sort();
        expected.sort();
        prop_assert_eq!(events, expected);
    }
}
