//! However a connection ends, each call is answered exactly once, and all with the same cause.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;
use crate::wire::method::{
    BasicAck, BasicCancelOk, BasicConsumeOk, BasicGetEmpty, BasicQos, BasicQosOk, ChannelClose,
    ChannelCloseOk, ConnectionClose, ConnectionCloseOk, ConnectionUpdateSecret,
};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Ending {
    ClosedByBroker,
    ClosedByUs,
    ClosedByBoth,
    LostWhileClosing,
    Aborted,
    AbortedWhileClosing,
    SocketClosed,
    HeartbeatMissed,
    Violation,
}

const ENDINGS: [Ending; 9] = [
    Ending::ClosedByBroker,
    Ending::ClosedByUs,
    Ending::ClosedByBoth,
    Ending::LostWhileClosing,
    Ending::Aborted,
    Ending::AbortedWhileClosing,
    Ending::SocketClosed,
    Ending::HeartbeatMissed,
    Ending::Violation,
];

fn end(scenario: &mut Scenario, ending: Ending) {
    let shutdown = ConnectionClose {
        reply_code: 320,
        reply_text: "CONNECTION_FORCED - shutdown".into(),
        ..ConnectionClose::default()
    };
    match ending {
        Ending::ClosedByBroker => scenario.receive(0, &shutdown),
        Ending::ClosedByUs => {
            scenario.close();
            scenario.receive(0, &ConnectionCloseOk {});
        }
        Ending::ClosedByBoth => {
            scenario.close();
            scenario.receive(0, &shutdown);
        }
        Ending::LostWhileClosing => {
            scenario.close();
            scenario.socket_closed();
        }
        Ending::Aborted => scenario.core.abort(),
        Ending::AbortedWhileClosing => {
            scenario.close();
            scenario.core.abort();
        }
        Ending::SocketClosed => scenario.socket_closed(),
        Ending::HeartbeatMissed => scenario.pass(Duration::from_secs(120)),
        Ending::Violation => scenario.receive_bytes(b"\xff"),
    }
}

#[test]
fn the_cause_names_who_ended_it() {
    let program = "the connection was closed by this program";
    let causes = [
        "the connection was closed by the broker: 320 CONNECTION_FORCED - shutdown",
        program,
        program,
        program,
        program,
        program,
        "the connection was lost: unexpected end of file",
        "the connection was lost: no bytes from the broker for two heartbeat intervals of 60s",
        "the connection was closed because the peer violated the protocol: 501 FRAME_ERROR - unknown frame type 255",
    ];
    for (ending, cause) in ENDINGS.into_iter().zip(causes) {
        let mut scenario = Scenario::opened();
        end(&mut scenario, ending);
        assert_eq!(scenario.events(), [format!("ended {cause}")], "{ending:?}");
    }
}

#[test]
fn an_abort_keeps_the_reason_of_a_close_that_waits() {
    for (closes, text) in [(true, "done"), (false, "aborted")] {
        let mut scenario = Scenario::opened();
        if closes {
            scenario.close();
        }
        scenario.core.abort();
        let cause = scenario.end();
        assert_eq!(cause.close_reason().map(|it| it.text.as_str()), Some(text));
    }
}

#[test]
fn a_driver_that_cannot_go_on_ends_the_connection_once() {
    let mut scenario = Scenario::opened();
    scenario.core.end_with(Error::invalid("a panic"));
    scenario.core.end_with(Error::invalid("another"));
    let cause = Error::invalid("a panic");
    assert_eq!(scenario.events(), [format!("ended {cause}")]);
}

#[test]
fn a_close_by_the_broker_is_answered_and_nothing_is_sent_afterwards() {
    for ending in [Ending::ClosedByBroker, Ending::ClosedByBoth] {
        let mut scenario = Scenario::opened();
        end(&mut scenario, ending);
        assert_eq!(scenario.sent(), ["0 connection.close-ok"]);
        scenario.pass(Duration::from_secs(1000));
        assert_eq!(scenario.sent(), [""; 0]);
    }
}

#[test]
fn everything_after_the_end_is_answered_with_its_cause() {
    for ending in ENDINGS {
        let mut scenario = Scenario::with_channels([1]);
        end(&mut scenario, ending);
        let cause = scenario.end().to_string();
        let (call, get) = (scenario.call::<BasicQos>(1), scenario.get(1));
        let secret = scenario.call::<ConnectionUpdateSecret<'_>>(0);
        let consume = scenario.consume(1, "c");
        let close = scenario.close_channel(1);
        let confirm = scenario.publish(1, 1);
        scenario.close();
        scenario.core.abort();
        let open = scenario.next_call();
        scenario.core.handle(Command::OpenChannel {
            channel: 2,
            mailbox: 2,
            last_tag: 0,
            call: open,
        });
        assert_eq!(
            scenario.events(),
            [
                format!("failed {call} {cause}"),
                format!("failed {get} {cause}"),
                format!("failed {secret} {cause}"),
                format!("consumer c ended {cause}"),
                format!("failed {consume} {cause}"),
                format!("failed {close} {cause}"),
                // A publish that the core learns of only now was never written.
                format!("{confirm} lost sent=false {cause}"),
                format!("channel 2 ended {cause}"),
                format!("failed {open} {cause}"),
            ],
            "{ending:?}"
        );
    }
}

#[test]
fn the_connection_ends_before_any_waiter_is_notified() {
    for ending in ENDINGS {
        let mut scenario = Scenario::with_channels([1]);
        scenario.call::<BasicQos>(1);
        scenario.call::<ConnectionUpdateSecret<'_>>(0);
        end(&mut scenario, ending);
        let events = scenario.events();
        assert_eq!(events.len(), 4, "{events:?}");
        assert!(events[0].starts_with("ended "), "{ending:?}: {events:?}");
    }
}

/// One step of a random conversation on one of three channels.
#[derive(Debug, Clone, Copy)]
enum Step {
    Call,
    Get,
    Consume,
    Cancel,
    CloseChannel,
    Reply,
    HalfAMessage,
    HalfAFetch,
    HugeMessage,
    ChannelClose,
    Publish,
    Confirm,
    ConfirmAll,
}

const STEPS: [Step; 13] = [
    Step::Call,
    Step::Get,
    Step::Consume,
    Step::Cancel,
    Step::CloseChannel,
    Step::Reply,
    Step::HalfAMessage,
    Step::HalfAFetch,
    Step::HugeMessage,
    Step::ChannelClose,
    Step::Publish,
    Step::Confirm,
    Step::ConfirmAll,
];

/// A broker that keeps to the protocol until the end, and counts of all answers.
struct Conversation {
    scenario: Scenario,
    /// The replies that the broker owes, by channel; `None` for a channel that is closed.
    owed: BTreeMap<u16, Option<Vec<Vec<u8>>>>,
    /// Whether a message has begun, by channel.
    half_a_message: BTreeMap<u16, bool>,
    answers: BTreeMap<u32, usize>,
    consumers: BTreeMap<&'static str, usize>,
    registered: Vec<&'static str>,
    /// How many messages were published, by channel.
    published: BTreeMap<u16, u64>,
    channel_ends: usize,
    opened: usize,
}

impl Conversation {
    fn new() -> Self {
        let scenario = Scenario::with_channels([1, 2, 3]);
        Self {
            scenario,
            owed: (1..=3).map(|channel| (channel, Some(Vec::new()))).collect(),
            half_a_message: BTreeMap::new(),
            answers: BTreeMap::new(),
            consumers: BTreeMap::new(),
            registered: Vec::new(),
            published: BTreeMap::new(),
            channel_ends: 0,
            opened: 3,
        }
    }

    fn owe(&mut self, channel: u16, reply: &impl Encode) {
        if let Some(Some(owed)) = self.owed.get_mut(&channel) {
            owed.push(framed(channel, reply));
        }
    }

    fn step(&mut self, channel: u16, step: Step) {
        let open = matches!(self.owed.get(&channel), Some(Some(_)));
        match step {
            Step::Call => {
                self.scenario.call::<BasicQos>(channel);
                self.owe(channel, &BasicQosOk {});
            }
            Step::Get => {
                self.scenario.get(channel);
                self.owe(channel, &BasicGetEmpty::default());
            }
            Step::Consume => {
                let consumer: &'static str =
                    Box::leak(format!("c{}", self.registered.len()).into_boxed_str());
                self.registered.push(consumer);
                self.scenario.consume(channel, consumer);
                self.owe(
                    channel,
                    &BasicConsumeOk {
                        consumer_tag: consumer.into(),
                    },
                );
            }
            Step::Cancel => {
                let consumer = self.registered.last().copied().unwrap_or("unknown");
                self.scenario.cancel(channel, consumer);
                self.owe(
                    channel,
                    &BasicCancelOk {
                        consumer_tag: consumer.into(),
                    },
                );
            }
            Step::CloseChannel => {
                self.scenario.close_channel(channel);
                self.owe(channel, &ChannelCloseOk {});
            }
            Step::Reply => {
                if self.half_a_message.get(&channel) == Some(&true) {
                    return;
                }
                let Some(Some(owed)) = self.owed.get_mut(&channel) else {
                    return;
                };
                if !owed.is_empty() {
                    let reply = owed.remove(0);
                    let closed = reply == framed(channel, &ChannelCloseOk {});
                    self.scenario.receive_bytes(&reply);
                    if closed {
                        self.owed.insert(channel, None);
                    }
                }
            }
            Step::HalfAMessage if open && self.half_a_message.get(&channel) != Some(&true) => {
                self.scenario.receive(channel, &returned());
                self.half_a_message.insert(channel, true);
            }
            Step::HalfAFetch if self.half_a_message.get(&channel) != Some(&true) => {
                let Some(Some(owed)) = self.owed.get_mut(&channel) else {
                    return;
                };
                if owed.first() == Some(&framed(channel, &BasicGetEmpty::default())) {
                    owed.remove(0);
                    self.scenario.receive(channel, &get_ok());
                    self.half_a_message.insert(channel, true);
                }
            }
            Step::HugeMessage if open && self.half_a_message.get(&channel) != Some(&true) => {
                let mut header = content(channel, b"", 20);
                header[11] = 0x80;
                self.scenario.receive(channel, &returned());
                self.scenario.receive_bytes(&header);
                self.half_a_message.insert(channel, true);
            }
            Step::ChannelClose if open => {
                self.scenario.receive(channel, &ChannelClose::default());
                // If our close has crossed it, the broker still owes us that one answer.
                let close_ok = framed(channel, &ChannelCloseOk {});
                let owed = self.owed.get_mut(&channel).unwrap();
                let crossed = owed.as_ref().is_some_and(|owed| owed.contains(&close_ok));
                *owed = crossed.then(|| vec![close_ok]);
                self.half_a_message.insert(channel, false);
            }
            Step::Publish => {
                let published = self.published.entry(channel).or_default();
                *published += 1;
                self.scenario.publish(channel, *published);
            }
            // Confirms the last message, or all.
            Step::Confirm | Step::ConfirmAll
                if open && self.half_a_message.get(&channel) != Some(&true) =>
            {
                let published = self.published.get(&channel).copied().unwrap_or_default();
                let ack = BasicAck {
                    delivery_tag: published,
                    multiple: matches!(step, Step::ConfirmAll),
                };
                self.scenario.receive(channel, &ack);
            }
            Step::HalfAMessage
            | Step::HalfAFetch
            | Step::HugeMessage
            | Step::ChannelClose
            | Step::Confirm
            | Step::ConfirmAll => {}
        }
        self.count();
    }

    fn count(&mut self) {
        while let Some(event) = self.scenario.core.next_event() {
            match event {
                Event::Answered { confirm: call, .. }
                | Event::Reply { call, .. }
                | Event::Fetched { call, .. }
                | Event::Failed { call, .. } => {
                    *self.answers.entry(call).or_default() += 1;
                }
                Event::Lost { published, .. } => {
                    let call = published.confirm.unwrap();
                    *self.answers.entry(call).or_default() += 1;
                }
                Event::ConsumerEnded { consumer, .. } => {
                    *self.consumers.entry(consumer).or_default() += 1;
                }
                Event::ChannelEnded { .. } => self.channel_ends += 1,
                _ => {}
            }
        }
    }
}

proptest! {
    #[test]
    fn each_call_is_answered_exactly_once(
        steps in prop::collection::vec((1..=3_u16, 0..STEPS.len()), 0..60),
        ending in 0..ENDINGS.len(),
    ) {
        let mut conversation = Conversation::new();
        for (channel, step) in steps {
            conversation.step(channel, STEPS[step]);
        }
        end(&mut conversation.scenario, ENDINGS[ending]);
        conversation.count();
        // The first three calls opened the channels, before the count began.
        let asked: BTreeMap<u32, usize> = (4..=conversation.scenario.calls).map(|call| (call, 1)).collect();
        prop_assert_eq!(&conversation.answers, &asked);
        let consumers: BTreeMap<_, _> = conversation.registered.iter().map(|it| (*it, 1)).collect();
        prop_assert_eq!(&conversation.consumers, &consumers);
        prop_assert_eq!(conversation.channel_ends, conversation.opened);
    }
}

#[test]
fn a_violation_by_the_peer_is_not_mistaken_for_a_clean_close() {
    let mut scenario = Scenario::opened();
    end(&mut scenario, Ending::Violation);
    let error = scenario.end();
    assert!(matches!(error.kind(), ErrorKind::ProtocolViolation { .. }));
    assert_eq!(error.closed_by(), None);
}
