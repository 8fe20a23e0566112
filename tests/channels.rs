//! Opens and closes channels.

use std::time::Duration;

use leveret::{ClosedBy, Connection, ErrorKind, ReplyCode};

use crate::support::{connect, options, SOON};

#[test]
fn channel_numbers_include_channel_max_and_then_opening_fails() {
    let connection = Connection::open_with(options().channel_max(3)).unwrap();
    let channels: Vec<_> = (0..3).map(|_| connection.open_channel().unwrap()).collect();
    assert_eq!(
        channels.iter().map(|it| it.number()).collect::<Vec<_>>(),
        [1, 2, 3]
    );
    let error = connection.open_channel().unwrap_err();
    assert_eq!(
        *error.kind(),
        ErrorKind::ChannelsExhausted { channel_max: 3 }
    );
    channels[1].close().unwrap();
    assert_eq!(connection.open_channel().unwrap().number(), 2);
}

#[test]
fn many_channels_can_be_opened_and_closed_repeatedly() {
    let connection = Connection::open_with(options().channel_max(5)).unwrap();
    for _ in 0..100 {
        let channels: Vec<_> = (0..5).map(|_| connection.open_channel().unwrap()).collect();
        for channel in channels {
            channel.close().unwrap();
        }
    }
}

#[test]
fn the_end_of_a_channel_can_be_waited_for() {
    let connection = connect();
    let [closed, broken, open] = [(); 3].map(|()| connection.open_channel().unwrap());
    let waiting = {
        let broken = broken.clone();
        std::thread::spawn(move || broken.wait_closed(SOON).map(|()| broken.close_cause()))
    };
    let error = broken.queue_declare_passive("missing").unwrap_err();
    let cause = waiting.join().unwrap().unwrap().unwrap();
    assert_eq!(cause, error);
    closed.close().unwrap();
    closed.wait_closed(Duration::ZERO).unwrap();
    let error = open.wait_closed(Duration::from_millis(10)).unwrap_err();
    assert!(error.is_timeout(), "{error}");
    broken.reopen().unwrap();
    assert!(broken.wait_closed(Duration::ZERO).is_err());
    connection.close().unwrap();
    for channel in [broken, open] {
        channel.wait_closed(SOON).unwrap();
    }
}

#[test]
fn a_second_close_says_who_closed_the_channel() {
    let connection = connect();
    let channel = connection.open_channel().unwrap();
    assert!(channel.is_open());
    channel
        .close_with(ReplyCode::SUCCESS, "that is all")
        .unwrap();
    assert!(!channel.is_open());
    let error = channel.close().unwrap_err();
    assert_eq!(error.closed_by(), Some(ClosedBy::Program));
    assert_eq!(
        error.to_string(),
        "channel.close: channel 1 was closed by this program"
    );
    assert_eq!(channel.close_cause().unwrap().kind(), error.kind());
    assert!(connection.is_open());
}

#[test]
fn a_dropped_channel_frees_its_number() {
    let connection = Connection::open_with(options().channel_max(1)).unwrap();
    for _ in 0..20 {
        // Opening waits until the broker has confirmed the close of the previous channel.
        assert_eq!(connection.open_channel().unwrap().number(), 1);
    }
}

#[test]
fn a_channel_error_does_not_affect_other_channels() {
    let connection = connect();
    let (broken, other) = (
        connection.open_channel().unwrap(),
        connection.open_channel().unwrap(),
    );
    broken.basic_ack(99).unwrap();
    let error = loop {
        if let Err(error) = broken.basic_qos(1) {
            break error;
        }
    };
    assert_eq!(error.reply_code(), Some(ReplyCode::PRECONDITION_FAILED));
    assert_eq!(error.close_reason().unwrap().method, Some("basic.ack"));
    assert_eq!(
        error.to_string(),
        "basic.qos: channel 1 was closed by the broker because of basic.ack: 406 PRECONDITION_FAILED - unknown delivery tag 99"
    );
    other.basic_qos(1).unwrap();
    // The broken channel keeps its number while it can still be reopened.
    let third = connection.open_channel().unwrap();
    assert_eq!(third.number(), 3);
    drop(broken);
    assert_eq!(connection.open_channel().unwrap().number(), 1);
}

#[test]
fn crossing_closes_do_not_affect_the_connection() {
    let connection = connect();
    let other = connection.open_channel().unwrap();
    for round in 0..500_u32 {
        let channel = connection.open_channel().unwrap();
        channel.basic_publish("no such exchange", "", "m").unwrap();
        // Close the channel at about the time when the broker closes it.
        let begin = std::time::Instant::now();
        let pause = Duration::from_micros(u64::from(round * 7 % 600));
        while begin.elapsed() < pause {
            std::hint::spin_loop();
        }
        if round % 2 == 0 {
            drop(channel);
        } else if let Err(error) = channel.close() {
            assert!(error.reply_code() == Some(ReplyCode::NOT_FOUND), "{error}");
        }
        assert!(
            connection.is_open(),
            "{round}: {:?}",
            connection.close_cause()
        );
    }
    other.basic_qos(1).unwrap();
}

#[test]
fn channel_flow_can_be_started_but_not_stopped() {
    let connection = connect();
    let channel = connection.open_channel().unwrap();
    assert!(channel.channel_flow(true).unwrap());
    let error = channel.channel_flow(false).unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_IMPLEMENTED));
    assert!(error.is_connection_end());
}

#[test]
fn access_tickets_are_granted() {
    assert_eq!(
        connect()
            .open_channel()
            .unwrap()
            .access_request("/data")
            .unwrap(),
        1
    );
}
