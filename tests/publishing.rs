//! Published messages arrive as they were published; confirms, returns and transactions.

use std::time::Duration;

use leveret::{
    AckMode, Connection, ErrorKind, FieldTable, FieldValue, Message, Properties,
    QueueDeclareOptions, RecoveryOptions, ReplyCode,
};

use crate::support::{
    channel, connect, eventually, exclusive_queue, options, ready, version, SOON,
};

#[test]
fn bodies_of_every_size_arrive_whole() {
    // Sizes around that of a frame, which is 131072 bytes, 8 of them around the payload.
    for size in [
        0, 1, 131_063, 131_064, 131_065, 262_128, 1_000_000, 10_000_000,
    ] {
        let channel = channel();
        let queue = exclusive_queue(&channel);
        let body: Vec<u8> = (0..size).map(|at: u32| (at % 251) as u8).collect();
        channel.confirm_select().unwrap();
        queue.publish(&body).unwrap();
        channel.wait_for_confirms().unwrap();
        let message = queue.get_with(AckMode::Automatic).unwrap().unwrap();
        assert!(message.body() == body, "a body of {size} bytes has changed");
        assert_eq!(message.into_body().len(), body.len());
    }
}

#[test]
fn small_frames_work() {
    // AMQP's smallest frame_max, and RabbitMQ's since 4.1.
    let smallest = 4096;
    let frame_max = if version() < (4, 1) { smallest } else { 8192 };
    let connection = Connection::open_with(options().frame_max(frame_max)).unwrap();
    let channel = connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    let body = vec![7; 100_000];
    queue.publish(&body).unwrap();
    eventually("the message is in the queue", || {
        ready(&channel, queue.name()) == 1
    });
    assert_eq!(
        queue.get_with(AckMode::Automatic).unwrap().unwrap().body(),
        body
    );
    if frame_max > smallest {
        let error = Connection::open_with(options().frame_max(smallest)).unwrap_err();
        let text = "RabbitMQ 4.1 and later accept no frame_max below 8192";
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[test]
fn all_properties_and_all_types_of_headers_come_back() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let headers = FieldTable::new()
        .with("bool", true)
        .with("i8", i8::MIN)
        .with("u8", u8::MAX)
        .with("i16", i16::MIN)
        .with("u16", u16::MAX)
        .with("i32", i32::MIN)
        .with("u32", u32::MAX)
        .with("i64", i64::MIN)
        .with("f32", 1.5_f32)
        .with("f64", -2.25_f64)
        .with(
            "decimal",
            FieldValue::Decimal {
                scale: 2,
                value: 314,
            },
        )
        .with("text", "grüezi")
        .with("bytes", vec![0_u8, 159, 146, 150])
        .with(
            "array",
            vec![
                FieldValue::from(1),
                FieldValue::from("two"),
                FieldValue::Void,
            ],
        )
        .with("time", FieldValue::Timestamp(1_700_000_000))
        .with(
            "table",
            FieldTable::new().with("inner", FieldTable::new().with("innermost", 1)),
        )
        .with("void", FieldValue::Void);
    let properties = Properties::default()
        .content_type("text/plain")
        .content_encoding("identity")
        .headers(headers)
        .persistent(true)
        .priority(9)
        .correlation_id("correlation")
        .reply_to("reply")
        .expiration("60000")
        .message_id("id")
        .timestamp(1_700_000_000)
        .message_type("type")
        .user_id("guest")
        .app_id("app")
        .cluster_id("cluster");
    // Publish twice: by value and by reference.
    let message = Message::new("body").with_properties(properties.clone());
    queue.publish(&message).unwrap();
    queue.publish(message).unwrap();
    eventually("both messages are in the queue", || {
        ready(&channel, queue.name()) == 2
    });
    for _ in 0..2 {
        let message = queue.get_with(AckMode::Automatic).unwrap().unwrap();
        assert_eq!(*message.properties().unwrap(), properties);
        assert_eq!(message.body(), b"body");
    }
}

#[test]
fn bodies_can_be_any_type_of_bytes() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let string = String::from("b");
    queue.publish("b").unwrap();
    queue.publish(&string).unwrap();
    queue.publish(string).unwrap();
    queue.publish(b"b").unwrap();
    queue.publish(&b"b"[..]).unwrap();
    queue.publish(vec![b'b']).unwrap();
    let vec = vec![b'b'];
    queue.publish(&vec).unwrap();
    queue.publish(Message::new("b")).unwrap();
    eventually("all messages are in the queue", || {
        ready(&channel, queue.name()) == 8
    });
    while let Some(message) = queue.get_with(AckMode::Automatic).unwrap() {
        assert_eq!(message.body(), b"b");
        assert_eq!(*message.properties().unwrap(), Properties::default());
    }
}

#[test]
fn sequence_numbers_start_at_one_and_confirms_can_be_waited_for() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let error = channel.wait_for_confirms().unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::InvalidArgument(_)),
        "{error}"
    );
    assert_eq!(queue.publish("before").unwrap(), None);
    channel.confirm_select().unwrap();
    channel.wait_for_confirms().unwrap();
    for number in 1..=1000 {
        assert_eq!(queue.publish("counted").unwrap(), Some(number));
    }
    channel.wait_for_confirms().unwrap();
    assert_eq!(ready(&channel, queue.name()), 1001);
    // A second confirm_select changes nothing.
    channel.confirm_select().unwrap();
    assert_eq!(queue.publish("counted").unwrap(), Some(1001));
    channel.wait_for_confirms().unwrap();

    let channel = channel.connection().open_channel().unwrap();
    channel.confirm_select_no_wait().unwrap();
    assert_eq!(
        channel.basic_publish("", queue.name(), "counted").unwrap(),
        Some(1)
    );
    channel.wait_for_confirms().unwrap();
}

#[test]
fn nacks_of_a_full_queue_name_the_sequence_numbers() {
    let channel = channel();
    let options = QueueDeclareOptions::temporary()
        .argument("x-max-length", 2)
        .argument("x-overflow", "reject-publish");
    let queue = channel.queue_declare("", options).unwrap();
    channel.confirm_select().unwrap();
    for body in ["1", "2"] {
        queue.publish(body).unwrap();
    }
    channel.wait_for_confirms().unwrap();
    for body in ["3", "4"] {
        queue.publish(body).unwrap();
    }
    let error = channel.wait_for_confirms().unwrap_err();
    let ErrorKind::Nacked { sequence_numbers } = error.kind() else {
        panic!("{error}");
    };
    let mut numbers = sequence_numbers.clone();
    numbers.sort_unstable();
    assert_eq!(numbers, [3, 4]);
    assert_eq!(
        error.to_string(),
        "waiting for confirms: the broker nacked 2 messages (basic.nack)"
    );
    // The failures were reported; the next wait covers later messages only.
    channel.wait_for_confirms().unwrap();
}

#[test]
fn a_missing_exchange_fails_confirms_with_the_brokers_reason() {
    let channel = channel();
    channel.confirm_select().unwrap();
    channel.basic_publish("no such exchange", "k", "m").unwrap();
    let error = channel.wait_for_confirms().unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND));
    assert_eq!(error.close_reason().unwrap().method, Some("basic.publish"));
    let error = channel.basic_publish("", "q", "m").unwrap_err();
    assert_eq!(
        error.to_string(),
        "basic.publish: channel 1 was closed by the broker because of basic.publish: 404 NOT_FOUND - no exchange 'no such exchange' in vhost '/'"
    );
}

#[test]
fn unroutable_mandatory_messages_are_returned() {
    let channel = channel();
    let returned = channel.returned_messages();
    channel.confirm_select().unwrap();
    let message = Message::new("come back")
        .mandatory(true)
        .content_type("text/plain");
    channel
        .basic_publish("amq.direct", "nowhere", message)
        .unwrap();
    channel
        .basic_publish("amq.direct", "nowhere", "not mandatory")
        .unwrap();
    channel.wait_for_confirms().unwrap();
    // A return comes before its confirm, so it is here already.
    let message = returned.try_recv().unwrap();
    assert_eq!(message.reply_code(), ReplyCode::NO_ROUTE);
    assert_eq!(message.reply_text(), "NO_ROUTE");
    assert_eq!(
        (message.exchange(), message.routing_key()),
        ("amq.direct", "nowhere")
    );
    assert_eq!(message.body(), b"come back");
    let properties = message.properties().unwrap();
    assert_eq!(properties.content_type, Some("text/plain".into()));
    assert!(returned.is_empty());
    channel.close().unwrap();
    assert!(
        returned.recv_timeout(SOON).is_err(),
        "closing the channel disconnects the receiver"
    );
    assert!(channel.returned_messages().recv().is_err());
}

#[test]
fn unread_returned_messages_are_limited_to_the_newest() {
    let channel = channel();
    let returned = channel.returned_messages();
    channel.confirm_select().unwrap();
    for number in 0..1500 {
        channel
            .basic_publish(
                "",
                "no such queue",
                Message::new(number.to_string()).mandatory(true),
            )
            .unwrap();
    }
    channel.wait_for_confirms().unwrap();
    let bodies: Vec<_> = returned.try_iter().map(|it| it.into_body()).collect();
    assert_eq!(bodies.len(), 1024);
    assert_eq!(bodies[0], b"476");
    assert_eq!(bodies[1023], b"1499");
}

#[test]
fn the_broker_refuses_immediate_as_not_implemented() {
    let options = options().recovery(RecoveryOptions::none());
    let connection = Connection::open_with(&options).unwrap();
    let channel = connection.open_channel().unwrap();
    channel
        .basic_publish("", "q", Message::new("now").immediate(true))
        .unwrap();
    connection.wait_closed(SOON).unwrap();
    let cause = connection.close_cause().unwrap();
    assert_eq!(cause.reply_code(), Some(ReplyCode::NOT_IMPLEMENTED));
}

#[test]
fn transactions_commit_or_roll_back() {
    let connection = connect();
    let channel = connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel.tx_select().unwrap();
    queue.publish("undone").unwrap();
    channel.tx_rollback().unwrap();
    assert_eq!(ready(&channel, queue.name()), 0);
    queue.publish("one").unwrap();
    queue.publish("two").unwrap();
    assert_eq!(ready(&channel, queue.name()), 0);
    channel.tx_commit().unwrap();
    assert_eq!(ready(&channel, queue.name()), 2);
    // A rolled-back acknowledgement leaves the message unacknowledged.
    let message = queue.get().unwrap().unwrap();
    message.ack().unwrap();
    channel.tx_rollback().unwrap();
    drop(message);
    channel.close().unwrap();
    let channel = connection.open_channel().unwrap();
    eventually("the message is requeued", || {
        ready(&channel, queue.name()) == 2
    });

    let error = channel.tx_commit().unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::PRECONDITION_FAILED));
}

#[test]
fn confirms_and_transactions_exclude_each_other() {
    let connection = connect();
    let channel = connection.open_channel().unwrap();
    channel.tx_select().unwrap();
    let error = channel.confirm_select().unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::PRECONDITION_FAILED));
    // A reopened channel is in the same mode as before.
    channel.reopen().unwrap();
    let queue = exclusive_queue(&channel);
    assert_eq!(queue.publish("m").unwrap(), None);
    assert!(channel.wait_for_confirms().is_err());
    channel.tx_commit().unwrap();
    assert_eq!(ready(&channel, queue.name()), 1);

    let channel = connection.open_channel().unwrap();
    channel.confirm_select().unwrap();
    let error = channel.tx_select().unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::PRECONDITION_FAILED));
    channel.reopen().unwrap();
    assert_eq!(channel.basic_publish("", "nowhere", "m").unwrap(), Some(1));
    channel.wait_for_confirms().unwrap();
}

#[test]
fn invalid_messages_are_refused_before_anything_is_sent() {
    let connection = Connection::open_with(options().max_message_size(1000)).unwrap();
    let channel = connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel.confirm_select().unwrap();
    let long = "x".repeat(256);
    let table = [
        (
            channel.basic_publish("", queue.name(), vec![0; 1001]),
            "the body has 1001 bytes, more than max_message_size (1000)",
        ),
        (
            channel.basic_publish("", &long, "m"),
            "routing_key is longer than 255 bytes",
        ),
        (
            channel.basic_publish(&long, "", "m"),
            "exchange is longer than 255 bytes",
        ),
        (
            channel.basic_publish("", queue.name(), Message::new("m").content_type(&long)),
            "content_type is longer than 255 bytes",
        ),
        (
            channel.basic_publish("", queue.name(), Message::new("m").header(&long, 1)),
            "a name in a field table is longer than 255 bytes",
        ),
        (
            channel.basic_publish(
                "",
                queue.name(),
                Message::new("m").header("h", "x".repeat(200_000)),
            ),
            "do not fit into one frame of at most 131064 (frame_max)",
        ),
    ];
    for (refused, text) in table {
        let error = refused.unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::InvalidArgument(_)),
            "{error}"
        );
        assert!(error.to_string().starts_with("basic.publish"), "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
    // The refused messages sent nothing and used no sequence number.
    assert_eq!(queue.publish("fits").unwrap(), Some(1));
    channel
        .wait_for_confirms_timeout(Duration::from_secs(10))
        .unwrap();
    assert_eq!(ready(&channel, queue.name()), 1);
}
