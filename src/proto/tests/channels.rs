use super::*;
use crate::error::ErrorKind;
use crate::wire::method::{
    BasicAck, BasicCancel, BasicCancelOk, BasicConsumeOk, BasicGetEmpty, BasicNack, BasicQos,
    BasicQosOk, ChannelClose, ChannelCloseOk, ChannelFlow, ConnectionBlocked, ConnectionUnblocked,
    ConnectionUpdateSecret, ConnectionUpdateSecretOk, QueueDeclare, QueueDeclareOk, QueuePurge,
    QueuePurgeOk, TxCommit, TxCommitOk,
};

const CLOSED_BY_BROKER: &str =
    "channel 1 was closed by the broker because of queue.declare: 404 NOT_FOUND - no queue";
const CLOSED_BY_PROGRAM: &str = "channel 1 was closed by this program";

fn not_found() -> ChannelClose<'static> {
    ChannelClose {
        reply_code: 404,
        reply_text: "NOT_FOUND - no queue".into(),
        class_id: 50,
        method_id: 10,
    }
}

#[test]
fn replies_go_to_the_calls_in_order_and_channels_do_not_mix() {
    let mut scenario = Scenario::with_channels([1, 2]);
    let qos = scenario.call::<BasicQos>(1);
    let declare = scenario.call::<QueueDeclare<'_>>(1);
    let other = scenario.call::<BasicQos>(2);
    scenario.receive(2, &BasicQosOk {});
    scenario.receive(1, &BasicQosOk {});
    scenario.receive(1, &QueueDeclareOk::default());
    assert_eq!(
        scenario.events(),
        [
            format!("reply {other} basic.qos-ok"),
            format!("reply {qos} basic.qos-ok"),
            format!("reply {declare} queue.declare-ok"),
        ]
    );
}

#[test]
fn a_get_is_answered_in_order_with_the_other_calls() {
    let mut scenario = Scenario::with_channels([1]);
    let (empty, full, qos) = (
        scenario.get(1),
        scenario.get(1),
        scenario.call::<BasicQos>(1),
    );
    scenario.receive(1, &BasicGetEmpty::default());
    scenario.receive(1, &get_ok());
    scenario.receive_content(1, b"body");
    scenario.receive(1, &BasicQosOk {});
    assert_eq!(
        scenario.events(),
        [
            format!("reply {empty} basic.get-empty"),
            format!("fetched {full} x/key body left 3"),
            format!("reply {qos} basic.qos-ok"),
        ]
    );
}

#[test]
fn other_replies_can_overtake_those_that_depend_on_queues() {
    let mut scenario = Scenario::with_channels([1]);
    let consume = scenario.consume(1, "a");
    let cancel = scenario.cancel(1, "b");
    let other_cancel = scenario.cancel(1, "c");
    let commit = scenario.call::<TxCommit>(1);
    let qos = scenario.call::<BasicQos>(1);
    let get = scenario.get(1);
    scenario.receive(1, &BasicQosOk {});
    scenario.receive(1, &get_ok());
    scenario.receive_content(1, b"body");
    scenario.receive(
        1,
        &BasicCancelOk {
            consumer_tag: "c".into(),
        },
    );
    scenario.receive(1, &TxCommitOk {});
    scenario.receive(
        1,
        &BasicCancelOk {
            consumer_tag: "b".into(),
        },
    );
    scenario.receive(
        1,
        &BasicConsumeOk {
            consumer_tag: "a".into(),
        },
    );
    assert_eq!(
        scenario.events(),
        [
            format!("reply {qos} basic.qos-ok"),
            format!("fetched {get} x/key body left 3"),
            format!("reply {other_cancel} basic.cancel-ok"),
            format!("reply {commit} tx.commit-ok"),
            format!("reply {cancel} basic.cancel-ok"),
            "consumer a started".to_owned(),
            format!("reply {consume} basic.consume-ok"),
        ]
    );
}

#[test]
fn calls_on_the_connection_itself_are_answered() {
    let mut scenario = Scenario::opened();
    let call = scenario.call::<ConnectionUpdateSecret<'_>>(0);
    scenario.receive(0, &ConnectionUpdateSecretOk {});
    assert_eq!(
        scenario.events(),
        [format!("reply {call} connection.update-secret-ok")]
    );
}

#[test]
fn a_channel_closed_by_us_is_free_after_close_ok() {
    let mut scenario = Scenario::with_channels([1]);
    let waiting = scenario.call::<BasicQos>(1);
    let close = scenario.close_channel(1);
    // After channel.close everything else is discarded, as the specification demands.
    scenario.receive(1, &BasicQosOk {});
    scenario.receive(1, &returned());
    scenario.receive_content(1, b"body");
    assert_eq!(scenario.events(), [""; 0]);
    scenario.receive(1, &ChannelCloseOk {});
    assert_eq!(
        scenario.events(),
        [
            format!("channel 1 ended {CLOSED_BY_PROGRAM}"),
            format!("failed {waiting} {CLOSED_BY_PROGRAM}"),
            "channel 1 freed".to_owned(),
            format!("reply {close} channel.close-ok"),
        ]
    );
    scenario.open_channel(1);
    assert_eq!(
        scenario.events(),
        [format!("reply {} channel.open-ok", scenario.calls)]
    );
}

#[test]
fn a_channel_closed_by_the_broker_ends_alone_and_is_free_at_once() {
    let mut scenario = Scenario::with_channels([1, 2]);
    let (first, second) = (
        scenario.call::<QueueDeclare<'_>>(1),
        scenario.consume(1, "c"),
    );
    scenario.receive(1, &not_found());
    assert_eq!(
        scenario.events(),
        [
            format!("close-ok, channel 1 ended {CLOSED_BY_BROKER}"),
            format!("consumer c ended {CLOSED_BY_BROKER}"),
            format!("failed {first} {CLOSED_BY_BROKER}"),
            format!("failed {second} {CLOSED_BY_BROKER}"),
            "channel 1 freed".to_owned(),
        ]
    );
    // Commands that were on their way when the channel closed get the same error.
    let late = scenario.call::<BasicQos>(1);
    let late_consume = scenario.consume(1, "late");
    let late_close = scenario.close_channel(1);
    assert_eq!(
        scenario.events(),
        [
            format!("failed {late} {CLOSED_BY_BROKER}"),
            format!("consumer late ended {CLOSED_BY_BROKER}"),
            format!("failed {late_consume} {CLOSED_BY_BROKER}"),
            format!("failed {late_close} {CLOSED_BY_BROKER}"),
        ]
    );
    let other = scenario.call::<BasicQos>(2);
    scenario.receive(2, &BasicQosOk {});
    assert_eq!(scenario.events(), [format!("reply {other} basic.qos-ok")]);
    scenario.open_channel(1);
    assert_eq!(
        scenario.events(),
        [format!("reply {} channel.open-ok", scenario.calls)]
    );
}

#[test]
fn crossing_closes_are_accepted_whenever_ours_is_answered() {
    // The answer can come as late as the close of the reopened channel, since the broker's writers
    // are not in step.
    for (answered_at, ours_first) in (0..4).flat_map(|at| [(at, false), (at, true)]) {
        let mut scenario = Scenario::with_channels([1]);
        let waiting = scenario.call::<QueueDeclare<'_>>(1);
        let mut events = vec![
            format!("close-ok, channel 1 ended {CLOSED_BY_BROKER}"),
            format!("failed {waiting} {CLOSED_BY_BROKER}"),
        ];
        let freed = "channel 1 freed".to_owned();
        if ours_first {
            let close = scenario.close_channel(1);
            scenario.receive(1, &not_found());
            events.extend([format!("failed {close} {CLOSED_BY_BROKER}"), freed]);
        } else {
            // Our close was sent before we read the broker's, but the core learns of it only now.
            scenario.receive(1, &not_found());
            let close = scenario.close_channel(1);
            events.extend([freed, format!("failed {close} {CLOSED_BY_BROKER}")]);
        }
        assert_eq!(scenario.events(), events);
        // Other calls on their way get the same cause.
        let late = scenario.call::<QueueDeclare<'_>>(1);
        assert_eq!(
            scenario.events(),
            [format!("failed {late} {CLOSED_BY_BROKER}")]
        );
        let answer = |scenario: &mut Scenario, at| {
            if answered_at == at {
                scenario.receive(1, &ChannelCloseOk {});
            }
        };
        answer(&mut scenario, 0);
        let open = scenario.begin_channel(1);
        answer(&mut scenario, 1);
        scenario.receive(1, &ChannelOpenOk::default());
        answer(&mut scenario, 2);
        assert_eq!(scenario.events(), [format!("reply {open} channel.open-ok")]);
        assert_eq!(scenario.sent(), [""; 0]);
        if answered_at == 3 {
            continue;
        }
        // A second answer is a violation.
        scenario.receive(1, &ChannelCloseOk {});
        assert!(matches!(
            scenario.end().kind(),
            ErrorKind::ProtocolViolation { .. }
        ));
    }
}

#[test]
fn both_closes_that_crossed_on_a_number_can_be_answered_late() {
    let mut scenario = Scenario::with_channels([1]);
    for _ in 0..2 {
        scenario.close_channel(1);
        scenario.receive(1, &not_found());
        scenario.open_channel(1);
    }
    scenario.events();
    for _ in 0..2 {
        scenario.receive(1, &ChannelCloseOk {});
        assert_eq!(scenario.events(), [""; 0]);
    }
    scenario.receive(1, &ChannelCloseOk {});
    assert!(matches!(
        scenario.end().kind(),
        ErrorKind::ProtocolViolation { .. }
    ));
}

#[test]
fn a_cancel_ends_the_consumer_that_had_the_tag_when_it_was_sent() {
    let cancel_ok = BasicCancelOk {
        consumer_tag: "c".into(),
    };
    let consume_ok = BasicConsumeOk {
        consumer_tag: "c".into(),
    };
    let mut scenario = Scenario::with_channels([1]);
    // The first cancel has no consumer. Of the other two, the second finds the consumer gone.
    let mut cancels = vec![scenario.cancel(1, "c")];
    scenario.consume(1, "c");
    scenario.receive(1, &cancel_ok);
    scenario.receive(1, &consume_ok);
    cancels.extend([scenario.cancel(1, "c"), scenario.cancel(1, "c")]);
    scenario.receive(1, &cancel_ok);
    scenario.consume(1, "c");
    scenario.receive(1, &cancel_ok);
    scenario.receive(1, &consume_ok);
    let mut events = scenario.events();
    events.retain(|event| event.starts_with("consumer"));
    let expected = [
        "consumer c started",
        "consumer c ended",
        "consumer c started",
    ];
    assert_eq!(events, expected);
    scenario.deliver(1, "c", 1);
    scenario.receive_content(1, b"");
    assert_eq!(scenario.events(), ["delivery c 1 x/key "]);
}

#[test]
fn a_cancelled_consumer_gets_what_comes_before_cancel_ok() {
    let mut scenario = Scenario::with_channels([1]);
    let consume = scenario.consume(1, "c");
    scenario.receive(
        1,
        &BasicConsumeOk {
            consumer_tag: "c".into(),
        },
    );
    let cancel = scenario.cancel(1, "c");
    scenario.deliver(1, "c", 1);
    scenario.receive_content(1, b"late");
    scenario.receive(
        1,
        &BasicCancelOk {
            consumer_tag: "c".into(),
        },
    );
    assert_eq!(
        scenario.events(),
        [
            "consumer c started".to_owned(),
            format!("reply {consume} basic.consume-ok"),
            "delivery c 1 x/key late".to_owned(),
            "consumer c ended".to_owned(),
            format!("reply {cancel} basic.cancel-ok"),
        ]
    );
    let unknown = scenario.cancel(1, "c");
    scenario.receive(
        1,
        &BasicCancelOk {
            consumer_tag: "c".into(),
        },
    );
    assert_eq!(
        scenario.events(),
        [format!("reply {unknown} basic.cancel-ok")]
    );
}

#[test]
fn a_cancel_by_the_broker_ends_the_consumer_with_an_error() {
    for no_wait in [true, false] {
        let mut scenario = Scenario::with_channels([1]);
        scenario.consume(1, "c");
        scenario.receive(
            1,
            &BasicConsumeOk {
                consumer_tag: "c".into(),
            },
        );
        scenario.events();
        scenario.receive(
            1,
            &BasicCancel {
                consumer_tag: "c".into(),
                no_wait,
            },
        );
        let answer = if no_wait { "" } else { ", answer expected" };
        assert_eq!(
            scenario.events(),
            [
                format!("cancelled on 1 c{answer}"),
                "consumer c ended consumer \"c\" was cancelled by the broker".to_owned()
            ]
        );
        // A cancel for an unknown consumer ends nothing.
        scenario.receive(
            1,
            &BasicCancel {
                consumer_tag: "c".into(),
                no_wait: true,
            },
        );
        assert_eq!(scenario.events(), ["cancelled on 1 unknown c"]);
    }
}

#[test]
fn a_consumer_may_get_messages_before_consume_ok_or_without_it() {
    let mut scenario = Scenario::with_channels([1]);
    scenario.core.handle(Command::Consume {
        channel: 1,
        consumer_tag: "c".into(),
        consumer: "c",
        settling: Settling::NoAck,
        call: None,
    });
    scenario.deliver(1, "c", 1);
    scenario.receive_content(1, b"");
    assert_eq!(scenario.events(), ["delivery c 1 x/key "]);
}

#[test]
fn flow_and_blocked_are_events() {
    let mut scenario = Scenario::with_channels([1]);
    scenario.receive(1, &ChannelFlow { active: false });
    scenario.receive(
        0,
        &ConnectionBlocked {
            reason: "low on memory".into(),
        },
    );
    scenario.receive(0, &ConnectionUnblocked {});
    assert_eq!(
        scenario.events(),
        ["flow on 1 false", "blocked low on memory", "unblocked",]
    );
}

#[test]
fn a_call_whose_caller_has_given_up_still_takes_its_reply() {
    // The core does not know whether a caller still waits: call 2 gets reply 2 in any case.
    let mut scenario = Scenario::with_channels([1]);
    let (given_up, next) = (
        scenario.call::<QueuePurge<'_>>(1),
        scenario.call::<QueuePurge<'_>>(1),
    );
    scenario.receive(1, &QueuePurgeOk { message_count: 1 });
    scenario.receive(1, &QueuePurgeOk { message_count: 2 });
    let mut counts = Vec::new();
    while let Some(Event::Reply { call, reply, .. }) = scenario.core.next_event() {
        let Method::QueuePurgeOk(ok) = *reply else {
            panic!("{reply:?}");
        };
        counts.push((call, ok.message_count));
    }
    assert_eq!(counts, [(given_up, 1), (next, 2)]);
}

/// Receives everything that a broker may still send on a channel that has ended.
fn receive_all_kinds(scenario: &mut Scenario) {
    scenario.deliver(1, "c", 7);
    scenario.receive_content(1, b"a message of two pieces, since it has more than a hundred bytes: the second comes in a frame of its own");
    scenario.deliver(1, "c", 8);
    scenario.receive_content(1, b"");
    scenario.receive(1, &returned());
    scenario.receive_content(1, b"body");
    scenario.receive(1, &get_ok());
    scenario.receive_content(1, b"body");
    scenario.receive(
        1,
        &BasicAck {
            delivery_tag: 1,
            multiple: true,
        },
    );
    scenario.receive(
        1,
        &BasicNack {
            delivery_tag: 2,
            multiple: false,
            requeue: false,
        },
    );
    scenario.receive(1, &BasicQosOk {});
    scenario.receive(
        1,
        &BasicConsumeOk {
            consumer_tag: "c".into(),
        },
    );
    scenario.receive(
        1,
        &BasicCancelOk {
            consumer_tag: "c".into(),
        },
    );
    scenario.receive(
        1,
        &BasicCancel {
            consumer_tag: "c".into(),
            no_wait: true,
        },
    );
    scenario.receive(1, &ChannelFlow { active: false });
}

fn consumer_started(scenario: &mut Scenario, consumer: &'static str) {
    scenario.consume(1, consumer);
    scenario.receive(
        1,
        &BasicConsumeOk {
            consumer_tag: consumer.into(),
        },
    );
    scenario.events();
}

#[test]
fn frames_for_an_ended_channel_are_dropped_until_the_next_open_ok() {
    for closed_by_us in [false, true] {
        let mut scenario = Scenario::with_channels([1]);
        consumer_started(&mut scenario, "c");
        scenario.publish(1, 1);
        if closed_by_us {
            scenario.close_channel(1);
            receive_all_kinds(&mut scenario);
            scenario.receive(1, &ChannelCloseOk {});
        } else {
            scenario.receive(1, &not_found());
        }
        scenario.events();
        receive_all_kinds(&mut scenario);
        let open = scenario.begin_channel(1);
        let confirm = scenario.publish(1, 2);
        receive_all_kinds(&mut scenario);
        assert_eq!(scenario.events(), [""; 0]);
        // No dropped frame begins a message, or confirms a message of the reopened channel.
        scenario.receive(1, &ChannelOpenOk::default());
        scenario.receive(
            1,
            &BasicAck {
                delivery_tag: 1,
                multiple: false,
            },
        );
        assert_eq!(
            scenario.events(),
            [
                format!("reply {open} channel.open-ok"),
                format!("{confirm} confirmed"),
                "ack on 1 2, answered to 2".to_owned(),
            ]
        );
    }
}

#[test]
fn a_channel_that_the_broker_closes_before_open_ok_ends() {
    let mut scenario = Scenario::with_channels([1]);
    scenario.receive(1, &not_found());
    scenario.events();
    let open = scenario.begin_channel(1);
    scenario.receive(1, &not_found());
    assert_eq!(
        scenario.events(),
        [
            format!("close-ok, channel 1 ended {CLOSED_BY_BROKER}"),
            format!("failed {open} {CLOSED_BY_BROKER}"),
            "channel 1 freed".to_owned(),
        ]
    );
}

#[test]
fn a_channel_closed_before_open_ok_waits_for_the_answer_to_that_close() {
    let mut scenario = Scenario::with_channels([1]);
    // Closes cross, so that a close-ok can come late.
    scenario.close_channel(1);
    scenario.receive(1, &not_found());
    scenario.begin_channel(1);
    let close = scenario.close_channel(1);
    scenario.events();
    scenario.receive(1, &ChannelCloseOk {});
    scenario.receive(1, &ChannelOpenOk::default());
    assert_eq!(scenario.events(), [""; 0]);
    scenario.receive(1, &ChannelCloseOk {});
    let events = scenario.events();
    assert_eq!(
        events.last(),
        Some(&format!("reply {close} channel.close-ok")),
        "{events:?}"
    );
}

#[test]
fn messages_from_before_a_reopen_do_not_reach_a_new_consumer_with_the_same_tag() {
    let mut scenario = Scenario::with_channels([1]);
    consumer_started(&mut scenario, "c");
    scenario.receive(1, &not_found());
    scenario.open_channel(1);
    scenario.events();
    // The broker has already requeued these messages.
    scenario.deliver(1, "c", 99);
    scenario.receive_content(1, b"of the last life");
    scenario.consume(1, "c");
    scenario.deliver(1, "c", 100);
    scenario.receive_content(1, b"of the last life");
    assert_eq!(scenario.events(), [""; 0]);
    scenario.receive(
        1,
        &BasicConsumeOk {
            consumer_tag: "c".into(),
        },
    );
    scenario.events();
    scenario.deliver(1, "c", 1);
    scenario.receive_content(1, b"new");
    assert_eq!(scenario.events(), ["delivery c 1 x/key new"]);
}

#[test]
fn delivery_tags_tell_late_messages_apart_when_a_consumer_tag_is_reused() {
    let mut scenario = Scenario::with_channels([1]);
    consumer_started(&mut scenario, "c");
    scenario.receive(1, &not_found());
    // In between, the channel is open without consumers.
    scenario.open_channel(1);
    scenario.receive(1, &not_found());
    scenario.open_channel(1);
    scenario.deliver(1, "c", 57);
    scenario.receive_content(1, b"of the first life");
    consumer_started(&mut scenario, "c");
    let mut deliver = |delivery_tag| {
        scenario.deliver(1, "c", delivery_tag);
        scenario.receive_content(1, b"");
        scenario.events()
    };
    let is_taken = [58, 1, 59, 2, 1, 3].map(|tag| !deliver(tag).is_empty());
    assert_eq!(is_taken, [false, true, false, true, false, true]);
    // Fetched messages and messages for ended consumers count, too.
    scenario.get(1);
    scenario.receive(
        1,
        &BasicGetOk {
            delivery_tag: 4,
            ..get_ok()
        },
    );
    scenario.receive_content(1, b"");
    scenario.cancel(1, "c");
    scenario.receive(
        1,
        &BasicCancelOk {
            consumer_tag: "c".into(),
        },
    );
    scenario.events();
    let mut deliver = |delivery_tag| {
        scenario.deliver(1, "c", delivery_tag);
        scenario.receive_content(1, b"");
        scenario.events()
    };
    assert_eq!(
        [60, 5, 61].map(|tag| deliver(tag).concat()),
        ["", "unwanted on 1 5", ""]
    );
}

#[test]
fn delivery_tags_continue_after_those_of_an_earlier_connection() {
    let mut scenario = Scenario::with_channels([1]);
    scenario.receive(1, &not_found());
    let call = scenario.next_call();
    scenario.core.handle(Command::OpenChannel {
        channel: 1,
        mailbox: 1,
        last_tag: 10,
        call,
    });
    scenario.receive(1, &ChannelOpenOk::default());
    consumer_started(&mut scenario, "c");
    for delivery_tag in 1..=2 {
        scenario.deliver(1, "c", delivery_tag);
        scenario.receive_content(1, b"whole");
    }
    scenario.get(1);
    let delivery_tag = 3;
    scenario.receive(
        1,
        &BasicGetOk {
            delivery_tag,
            ..get_ok()
        },
    );
    scenario.receive_content(1, b"fetched");
    // A direct reply has a low tag, which does not count.
    scenario.deliver(1, "c", 1);
    scenario.receive_content(1, b"a reply");
    scenario.cancel(1, "c");
    scenario.receive(
        1,
        &BasicCancelOk {
            consumer_tag: "c".into(),
        },
    );
    scenario.deliver(1, "c", 4);
    scenario.receive_content(1, b"unwanted");
    scenario.receive(1, &not_found());
    let mut tags = Vec::new();
    while let Some(event) = scenario.core.next_event() {
        match event {
            Event::Deliveries { count, .. } => {
                let messages = scenario.core.take_messages(count);
                tags.extend(messages.map(|it| ("delivery", it.delivery_tag)));
            }
            Event::Fetched { message, .. } => tags.push(("fetched", message.delivery_tag)),
            Event::Unwanted { delivery_tag, .. } => tags.push(("unwanted", delivery_tag)),
            Event::Reply {
                last_tag, reply, ..
            } => tags.push((reply.id().name().unwrap(), last_tag)),
            Event::ChannelEnded { leftover, .. } => tags.push(("ended", leftover.last_tag)),
            _ => {}
        }
    }
    assert_eq!(
        tags,
        [
            ("delivery", 11),
            ("delivery", 12),
            ("fetched", 13),
            ("delivery", 11),
            ("basic.cancel-ok", 13),
            ("unwanted", 14),
            ("ended", 14),
        ]
    );
}

#[test]
fn the_core_knows_which_events_are_answered() {
    let mut scenario = Scenario::with_channels([1, 2]);
    consumer_started(&mut scenario, "c");
    scenario.get(1);
    scenario.receive(1, &get_ok());
    scenario.receive_content(1, b"fetched");
    scenario.receive(1, &ChannelFlow { active: false });
    for _ in 0..2 {
        let consumer_tag = "c".into();
        let no_wait = false;
        scenario.receive(
            1,
            &BasicCancel {
                consumer_tag,
                no_wait,
            },
        );
    }
    scenario.deliver(1, "c", 8);
    scenario.receive_content(1, b"unwanted");
    scenario.receive(1, &not_found());
    scenario.close_channel(2);
    scenario.receive(2, &ChannelCloseOk {});
    let mut answered = Vec::new();
    while let Some(event) = scenario.core.next_event() {
        let is_answered = event.is_answered();
        answered.push((is_answered, described(event)));
    }
    let answered = answered.into_iter().filter_map(|it| it.0.then_some(it.1));
    let answered: Vec<_> = answered.collect();
    assert_eq!(
        answered[..4],
        [
            "flow on 1 false",
            "cancelled on 1 c, answer expected",
            "cancelled on 1 unknown c, answer expected",
            "unwanted on 1 8",
        ]
    );
    // The end of channel 2, which we closed, expects no answer.
    assert_eq!(answered.len(), 5, "{answered:?}");
    assert!(answered[4].starts_with("close-ok, channel 1 ended"));
}

#[test]
fn the_core_knows_whether_the_broker_owes_a_reply() {
    let mut scenario = Scenario::with_channels([1, 2]);
    assert!(!scenario.core.awaits_reply());
    scenario.get(2);
    assert!(scenario.core.awaits_reply());
    // The reply has come, the rest of its message has not.
    scenario.receive(2, &get_ok());
    assert!(scenario.core.awaits_reply());
    scenario.receive_content(2, b"body");
    assert!(!scenario.core.awaits_reply());
    scenario.call::<ConnectionUpdateSecret<'_>>(0);
    assert!(scenario.core.awaits_reply());
    scenario.receive(0, &ConnectionUpdateSecretOk {});
    assert!(!scenario.core.awaits_reply());
    scenario.close();
    assert!(scenario.core.awaits_reply());
}

#[test]
fn the_core_knows_the_consumers_that_messages_can_arrive_for() {
    let mut scenario = Scenario::with_channels([1, 2, 3]);
    let consumers = |scenario: &Scenario| {
        let mut consumers: Vec<_> = scenario.core.consumers().copied().collect();
        consumers.sort_unstable();
        consumers
    };
    assert_eq!(consumers(&scenario), [""; 0]);
    for (channel, tag) in [(1, "a"), (1, "b"), (2, "c")] {
        scenario.consume(channel, tag);
    }
    assert_eq!(consumers(&scenario), ["a", "b", "c"]);
    scenario.cancel(1, "a");
    let consumer_tag = "a".into();
    scenario.receive(1, &BasicCancelOk { consumer_tag });
    scenario.receive(2, &not_found());
    assert_eq!(consumers(&scenario), ["b"]);
}

#[test]
fn messages_with_no_ack_may_share_one_delivery_tag() {
    let mut scenario = Scenario::with_channels([1]);
    consumer_started(&mut scenario, "c");
    scenario.receive(1, &not_found());
    scenario.open_channel(1);
    let call = scenario.next_call();
    scenario.core.handle(Command::Consume {
        channel: 1,
        consumer_tag: "c".into(),
        consumer: "c",
        settling: Settling::NoAck,
        call: Some(call),
    });
    scenario.receive(
        1,
        &BasicConsumeOk {
            consumer_tag: "c".into(),
        },
    );
    scenario.events();
    // RabbitMQ gives all direct replies the same delivery tag.
    for _ in 0..3 {
        scenario.deliver(1, "c", 1);
        scenario.receive_content(1, b"");
    }
    assert_eq!(scenario.events().len(), 3);
    // A message of the earlier channel does not change how this one's are counted.
    scenario.deliver(1, "c", 57);
    scenario.receive_content(1, b"late");
    scenario.receive(1, &not_found());
    let mut last_tag = None;
    while let Some(event) = scenario.core.next_event() {
        if let Event::ChannelEnded { leftover, .. } = event {
            last_tag = Some(leftover.last_tag);
        }
    }
    assert_eq!(last_tag, Some(1));
}

#[test]
fn a_message_for_an_ended_consumer_is_reported_as_unwanted() {
    let cancel_ok = BasicCancelOk {
        consumer_tag: "c".into(),
    };
    let by_broker = BasicCancel {
        consumer_tag: "c".into(),
        no_wait: true,
    };
    for cancelled_by_broker in [false, true] {
        let mut scenario = Scenario::with_channels([1]);
        consumer_started(&mut scenario, "c");
        match cancelled_by_broker {
            true => scenario.receive(1, &by_broker),
            false => {
                scenario.cancel(1, "c");
                scenario.receive(1, &cancel_ok);
            }
        }
        scenario.events();
        scenario.deliver(1, "c", 5);
        scenario.receive_content(1, b"late");
        // A new consumer has the tag, but the broker has not answered yet.
        let consume = scenario.consume(1, "c");
        scenario.deliver(1, "c", 6);
        scenario.receive_content(1, b"");
        scenario.receive(
            1,
            &BasicConsumeOk {
                consumer_tag: "c".into(),
            },
        );
        scenario.deliver(1, "c", 7);
        scenario.receive_content(1, b"");
        assert_eq!(
            scenario.events(),
            [
                "unwanted on 1 5".to_owned(),
                "unwanted on 1 6".to_owned(),
                "consumer c started".to_owned(),
                format!("reply {consume} basic.consume-ok"),
                "delivery c 7 x/key ".to_owned(),
            ]
        );
        // A tag that was never used is still a violation.
        scenario.deliver(1, "d", 8);
        assert!(matches!(
            scenario.end().kind(),
            ErrorKind::ProtocolViolation { .. }
        ));
    }
}

#[test]
fn ended_consumers_do_not_pile_up() {
    let mut scenario = Scenario::with_channels([1]);
    let tags: Vec<&'static str> = (0..1000).map(|n| &*format!("c{n}").leak()).collect();
    for consumer in &tags {
        consumer_started(&mut scenario, consumer);
        scenario.cancel(1, consumer);
        scenario.receive(
            1,
            &BasicCancelOk {
                consumer_tag: (*consumer).into(),
            },
        );
    }
    scenario.events();
    scenario.deliver(1, tags[999], 1);
    scenario.receive_content(1, b"");
    assert_eq!(scenario.events(), ["unwanted on 1 1"]);
    scenario.deliver(1, tags[0], 2);
    assert!(matches!(
        scenario.end().kind(),
        ErrorKind::ProtocolViolation { .. }
    ));
}

#[test]
fn nothing_is_a_violation_after_we_close_the_connection() {
    let mut scenario = Scenario::with_channels([1]);
    scenario.close();
    scenario.deliver(1, "never known", 1);
    let events = scenario.events();
    assert_eq!(events[0], "ended the connection was closed by this program");
    assert_eq!(scenario.sent(), [""; 0]);
}
