//! Tests of one channel's state.

use super::*;
use crate::error::ClosedBy;
use crate::wire::method::{BasicQos, TxSelect};

/// Channel 7, open on connection 1.
fn open() -> Channel {
    let mut channel = Channel::new(7);
    channel.opened(1);
    channel
}

fn by_program() -> Error {
    closed(CloseReason::program("done"))
}

/// The broker closed the channel because of `confirm.select`.
fn confirms_refused() -> Error {
    let id = ConfirmSelect::ID;
    closed(CloseReason::broker(406, "refused", id.class, id.method))
}

fn lost() -> Error {
    Error::invalid("lost")
}

fn closed(reason: CloseReason) -> Error {
    Error::new(ErrorKind::ChannelClosed { channel: 7, reason })
}

fn last_tag(last_tag: u64) -> Leftover {
    Leftover {
        last_tag,
        ..Leftover::default()
    }
}

/// Which callers the channel admits now (`+`), makes wait (`-`) or refuses (`x`): always, room,
/// publish, publish large, attached, an answer to all and to messages 5 and 6, reopen, and the
/// recovery's request and open on connection 2.
fn admitted(channel: &Channel) -> String {
    let answer = |delivery_tag| Admission::Answer { delivery_tag };
    let all = [
        Admission::Always,
        Admission::Room,
        Admission::Publish,
        Admission::PublishLarge,
        Admission::Attached,
        answer(0),
        answer(5),
        answer(6),
        Admission::Reopen,
        Admission::Recovery { epoch: 2 },
        Admission::RecoveryOpen { epoch: 2 },
    ];
    let shown = all.map(|it| match channel.admits(it) {
        Ok(true) => '+',
        Ok(false) => '-',
        Err(_) => 'x',
    });
    shown.into_iter().collect()
}

#[test]
fn each_phase_admits_its_callers() {
    let mut channel = Channel::new(7);
    assert_eq!(admitted(&channel), "+++++---+x+", "new");
    channel.opened(1);
    assert_eq!(admitted(&channel), "+++++++++x-", "open");
    channel.is_flow_stopped = true;
    assert_eq!(admitted(&channel), "++--+++++x-", "flow stopped");

    assert!(channel.interrupt(&lost(), last_tag(5)).is_none());
    channel.broker_is_done();
    assert_eq!(admitted(&channel), "+++++-x-+x+", "lost after message 5");
    channel.opened(2);
    assert_eq!(admitted(&channel), "++++++x+++-", "open again");

    channel.end(&by_program(), last_tag(6));
    assert_eq!(admitted(&channel), "xxxxxxxx-xx", "ended by the broker");
    channel.broker_is_done();
    assert_eq!(admitted(&channel), "xxxxxxxx+xx", "its number is free");
    channel.opened(2);
    assert_eq!(
        admitted(&channel),
        "++++++xx++-",
        "reopened after message 6"
    );

    assert!(channel.close(by_program()));
    assert_eq!(admitted(&channel), "xxxxxxxx-xx", "closing");
    channel.handles_are_done();
    assert_eq!(admitted(&channel), "xxxxxxxxxxx", "never opened again");
}

#[test]
fn a_refused_caller_gets_the_reason() {
    let mut channel = open();
    channel.interrupt(&lost(), last_tag(5));
    let error = |channel: &Channel, admission| {
        let refusal = channel.admits(admission).unwrap_err();
        channel.refused(refusal)
    };
    let stale = error(&channel, Admission::Answer { delivery_tag: 3 });
    assert!(matches!(
        stale.kind(),
        ErrorKind::AlreadySettled { delivery_tag: 3 }
    ));
    let not_open = error(&channel, Admission::Recovery { epoch: 2 });
    assert!(not_open.to_string().contains("channel 7"), "{not_open}");
    channel.close(by_program());
    let ended = error(&channel, Admission::Room);
    assert_eq!(ended.to_string(), by_program().to_string());
    channel.handles_are_done();
    let in_use = error(&channel, Admission::Reopen);
    assert!(in_use.to_string().contains("open another"), "{in_use}");
}

#[test]
fn a_number_is_free_when_neither_side_needs_it() {
    let mut channel = open();
    assert!(!channel.broker_is_done() && channel.handles_are_done());
    assert!(!channel.broker_is_done() && !channel.handles_are_done());
    let mut channel = open();
    assert!(!channel.handles_are_done() && channel.broker_is_done());
    assert!(Channel::new(7).handles_are_done());
}

#[test]
fn the_end_is_reported_once_and_by_the_right_side() {
    // The core does not know a channel that was never opened.
    let mut channel = Channel::new(7);
    assert!(!channel.close(by_program()));
    assert_eq!((channel.opened_in(), channel.is_open_in(1)), (None, false));

    // Crossed closes: the broker's cause counts.
    let mut channel = open();
    assert!(channel.is_open_in(1) && !channel.is_open_in(2));
    assert!(channel.close(by_program()));
    assert!(!channel.is_open_in(1));
    assert_eq!(channel.opened_in(), Some(1));
    channel.end(&confirms_refused(), last_tag(0));
    let closed_by = channel.end_cause().and_then(Error::closed_by);
    assert_eq!(closed_by, Some(ClosedBy::Broker));
    assert_eq!(channel.opened_in(), Some(1));

    // The loss of the connection completes a close.
    let mut channel = open();
    channel.close(by_program());
    let cause = channel.interrupt(&lost(), last_tag(0));
    assert_eq!(cause.and_then(|it| it.closed_by()), Some(ClosedBy::Program));
    assert_eq!(channel.opened_in(), None);
    assert!(channel.end_cause().is_some());
}

#[test]
fn a_channel_that_has_ended_is_not_recovered() {
    let mut channel = open();
    assert!(!channel.is_recovering());
    channel.set_recovering(true);
    assert!(channel.is_recovering());
    channel.interrupt(&lost(), last_tag(0));
    assert!(channel.is_recovering());
    channel.close(by_program());
    assert!(!channel.is_recovering());
}

#[test]
fn messages_get_numbers_in_confirm_mode_only() {
    let mut channel = open();
    assert_eq!(channel.published(false, 1), None);
    channel.select_confirms();
    assert_eq!(
        [channel.published(true, 1), channel.published(false, 1)],
        [Some(1), Some(2)]
    );
    channel.end(&by_program(), last_tag(0));
    channel.opened(1);
    assert_eq!(
        channel.published(true, 1),
        Some(3),
        "another end keeps the mode"
    );
    channel.end(&confirms_refused(), last_tag(0));
    channel.opened(1);
    assert_eq!(channel.published(true, 1), None);
}

#[test]
fn an_ack_of_all_after_a_loss_tears_the_transaction() {
    let begin = || {
        let mut channel = open();
        channel.done(&Method::TxSelect(TxSelect {}));
        channel.published(false, 1);
        channel
    };
    let torn_by = |channel: &mut Channel| channel.end_transaction().map(|it| it.to_string());
    let mut channel = begin();
    channel.answered(Some((0, 0)));
    assert_eq!(torn_by(&mut channel), None);
    // What was published is lost.
    channel.published(false, 1);
    channel.interrupt(&lost(), last_tag(3));
    channel.opened(2);
    assert_eq!(torn_by(&mut channel), Some(lost().to_string()));
    // All messages were settled before the loss, so none is left that the ack does not reach.
    channel.answered(Some((0, 0)));
    assert_eq!(torn_by(&mut channel), None);

    let mut channel = begin();
    channel.end_transaction();
    channel.interrupt(&lost(), last_tag(3));
    channel.opened(2);
    channel.answered(None);
    assert_eq!(
        torn_by(&mut channel),
        None,
        "one message of this connection"
    );
    channel.answered(Some((5, 0)));
    assert_eq!(torn_by(&mut channel), Some(lost().to_string()));

    let mut channel = begin();
    channel.answer_not_sent(Some(&Error::invalid("cancelled")));
    let text = Error::invalid("cancelled").to_string();
    assert_eq!(torn_by(&mut channel), Some(text));
    channel.answer_not_sent(None);
    assert_eq!(torn_by(&mut channel), None, "nothing was lost");
}

#[test]
fn a_prefetch_for_each_consumer_replaces_that_of_the_channel() {
    let mut channel = open();
    let set = |channel: &mut Channel, prefetch_count, global| {
        channel.done(&Method::BasicQos(BasicQos {
            prefetch_count,
            global,
            ..BasicQos::default()
        }));
        let methods = channel.qos().methods();
        methods.map(|it| it.prefetch_count).collect::<Vec<_>>()
    };
    assert_eq!(set(&mut channel, 1, false), [1]);
    assert_eq!(channel.take_global_qos_warning(), None);
    assert_eq!(set(&mut channel, 2, true), [1, 2]);
    assert_eq!(channel.take_global_qos_warning(), Some(2));
    assert_eq!(channel.take_global_qos_warning(), None, "one warning");
    assert_eq!(set(&mut channel, 3, false), [3]);
    channel.done(&Method::TxSelect(TxSelect {}));
    assert!(matches!(channel.mode(), Mode::Transaction(_)));
}
