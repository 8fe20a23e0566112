use super::*;
use crate::error::ErrorKind;
use crate::wire::method::{
    BasicCancel, BasicCancelOk, BasicConsumeOk, BasicGetEmpty, BasicQos, BasicQosOk, ChannelClose,
    ChannelCloseOk, ChannelFlow, ConnectionBlocked, ConnectionUnblocked, ConnectionUpdateSecret,
    ConnectionUpdateSecretOk, QueueDeclare, QueueDeclareOk, QueuePurge, QueuePurgeOk, TxCommit,
    TxCommitOk,
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
fn a_get_takes_its_place_among_the_calls() {
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
fn what_queues_have_to_agree_on_can_be_overtaken() {
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
fn the_connection_has_calls_of_its_own() {
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
    // After channel.close all else is discarded, as the specification says.
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
    assert_eq!(scenario.sent(), ["1 channel.close-ok"]);
    assert_eq!(
        scenario.events(),
        [
            format!("channel 1 ended {CLOSED_BY_BROKER}"),
            format!("consumer c ended {CLOSED_BY_BROKER}"),
            format!("failed {first} {CLOSED_BY_BROKER}"),
            format!("failed {second} {CLOSED_BY_BROKER}"),
            "channel 1 freed".to_owned(),
        ]
    );
    // What was on its way when it closed gets the same answer.
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
fn closes_that_cross_are_both_good_whether_or_not_ours_is_answered() {
    for (answered, ours_first) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut scenario = Scenario::with_channels([1]);
        let waiting = scenario.call::<QueueDeclare<'_>>(1);
        let mut events = vec![
            format!("channel 1 ended {CLOSED_BY_BROKER}"),
            format!("failed {waiting} {CLOSED_BY_BROKER}"),
        ];
        let freed = "channel 1 freed".to_owned();
        if ours_first {
            let close = scenario.close_channel(1);
            scenario.receive(1, &not_found());
            events.extend([format!("failed {close} {CLOSED_BY_BROKER}"), freed]);
        } else {
            // It was sent before we read the broker's, but the core learns of it only now.
            scenario.receive(1, &not_found());
            let close = scenario.close_channel(1);
            events.extend([freed, format!("failed {close} {CLOSED_BY_BROKER}")]);
        }
        assert_eq!(scenario.events(), events);
        assert_eq!(scenario.sent(), ["1 channel.close-ok"]);
        // What else was on its way gets the same cause.
        let late = scenario.call::<QueueDeclare<'_>>(1);
        assert_eq!(
            scenario.events(),
            [format!("failed {late} {CLOSED_BY_BROKER}")]
        );
        // The number is used again; the answer can come up to the next open-ok, and only once.
        let open = scenario.next_call();
        scenario.core.handle(Command::OpenChannel {
            channel: 1,
            mailbox: 1,
            call: open,
        });
        if answered {
            scenario.receive(1, &ChannelCloseOk {});
        }
        scenario.receive(1, &ChannelOpenOk::default());
        assert_eq!(scenario.events(), [format!("reply {open} channel.open-ok")]);
        scenario.receive(1, &ChannelCloseOk {});
        assert!(matches!(
            scenario.end().kind(),
            ErrorKind::ProtocolViolation { .. }
        ));
    }
}

#[test]
fn a_cancel_is_for_the_consumer_that_had_the_tag_then() {
    let cancel_ok = BasicCancelOk {
        consumer_tag: "c".into(),
    };
    let consume_ok = BasicConsumeOk {
        consumer_tag: "c".into(),
    };
    let mut scenario = Scenario::with_channels([1]);
    // The first was for nobody; of the others, the second finds the consumer gone.
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
fn a_consumer_cancelled_by_the_broker_is_told_so() {
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
        assert_eq!(
            scenario.events(),
            ["consumer c ended consumer \"c\" was cancelled by the broker"]
        );
        let answer: &[&str] = if no_wait { &[] } else { &["1 basic.cancel-ok"] };
        assert_eq!(scenario.sent(), answer);
        // One that we do not know (any more) is none of our business.
        scenario.receive(
            1,
            &BasicCancel {
                consumer_tag: "c".into(),
                no_wait: true,
            },
        );
        assert_eq!(scenario.events(), [""; 0]);
    }
}

#[test]
fn a_consumer_may_get_messages_before_consume_ok_or_without_it() {
    let mut scenario = Scenario::with_channels([1]);
    scenario.core.handle(Command::Consume {
        channel: 1,
        consumer_tag: "c".into(),
        consumer: "c",
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
    assert_eq!(scenario.sent(), ["1 channel.flow-ok"]);
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
fn a_call_that_nobody_waits_for_any_more_still_takes_its_reply() {
    // Whether the caller is still there is none of the core's business: call 2 gets reply 2, whatever became of 1.
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
