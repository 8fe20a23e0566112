//! Errors of the broker as the program sees them, and what each of them closes: a channel or the
//! connection.

use leveret::{
    AckMode, Channel, Connection, ConsumeOptions, Error, ErrorKind, ExchangeDeclareOptions,
    ExchangeKind, FieldTable, FieldValue, Message, QosOptions, QueueDeclareOptions,
    QueueDeleteOptions, RecoveryOptions, ReplyCode, Requeue,
};

use crate::support::{connect, eventually, exclusive_queue, options, unique, version};

/// Expects this code and text, and that only the channel is closed.
#[track_caller]
fn refused(code: ReplyCode, text: &str, ask: impl FnOnce(&Channel) -> Error) {
    let connection = connect();
    let other = connection.open_channel().unwrap();
    let channel = connection.open_channel().unwrap();
    let error = ask(&channel);
    assert_eq!(error.reply_code(), Some(code), "{error}");
    assert!(error.to_string().contains(text), "{error}");
    assert!(!error.is_connection_end());
    let later = channel.basic_qos(1).unwrap_err();
    assert_eq!(
        later.kind(),
        error.kind(),
        "later calls return the first cause"
    );
    other.basic_qos(1).unwrap();
}

#[test]
fn not_found_404() {
    refused(ReplyCode::NOT_FOUND, "basic.consume \"nope\": channel 2 was closed by the broker because of basic.consume: 404 NOT_FOUND - no queue 'nope'", |channel| {
        channel.basic_consume("nope", ConsumeOptions::default()).unwrap_err()
    });
    refused(ReplyCode::NOT_FOUND, "basic.get \"nope\"", |channel| {
        channel.basic_get("nope", AckMode::Manual).unwrap_err()
    });
    refused(ReplyCode::NOT_FOUND, "queue.bind", |channel| {
        let queue = exclusive_queue(channel);
        queue.bind(channel.exchange("nope"), "k").unwrap_err()
    });
    refused(ReplyCode::NOT_FOUND, "exchange.bind", |channel| {
        channel
            .exchange("nope")
            .bind(channel.exchange("amq.direct"), "k")
            .unwrap_err()
    });
    refused(ReplyCode::NOT_FOUND, "queue.purge \"nope\"", |channel| {
        channel.queue_purge("nope").unwrap_err()
    });
}

#[test]
fn access_refused_403() {
    refused(
        ReplyCode::ACCESS_REFUSED,
        "queue.declare \"amq.mine\"",
        |channel| {
            channel
                .queue_declare("amq.mine", QueueDeclareOptions::default())
                .unwrap_err()
        },
    );
    refused(
        ReplyCode::ACCESS_REFUSED,
        "exchange.delete \"amq.direct\"",
        |channel| {
            channel
                .exchange_delete("amq.direct", Default::default())
                .unwrap_err()
        },
    );
}

#[test]
fn resource_locked_405() {
    let owner = connect().open_channel().unwrap();
    let name = unique("q");
    let queue = owner
        .queue_declare(&name, QueueDeclareOptions::temporary())
        .unwrap();
    refused(
        ReplyCode::RESOURCE_LOCKED,
        "405 RESOURCE_LOCKED",
        |channel| {
            channel
                .queue_declare(queue.name(), QueueDeclareOptions::temporary())
                .unwrap_err()
        },
    );
    refused(
        ReplyCode::RESOURCE_LOCKED,
        "405 RESOURCE_LOCKED",
        |channel| {
            channel
                .basic_consume(queue.name(), ConsumeOptions::default())
                .unwrap_err()
        },
    );
}

#[test]
fn precondition_failed_406() {
    let channel = connect().open_channel().unwrap();
    let name = unique("q");
    channel
        .queue_declare(&name, QueueDeclareOptions::default())
        .unwrap();
    refused(
        ReplyCode::PRECONDITION_FAILED,
        "inequivalent arg 'auto_delete' for queue",
        |channel| {
            channel
                .queue_declare(&name, QueueDeclareOptions::default().auto_delete(true))
                .unwrap_err()
        },
    );
    refused(
        ReplyCode::PRECONDITION_FAILED,
        "inequivalent arg 'x-max-length'",
        |channel| {
            let options = QueueDeclareOptions::default().argument("x-max-length", 5);
            channel.queue_declare(&name, options).unwrap_err()
        },
    );
    refused(
        ReplyCode::PRECONDITION_FAILED,
        "inequivalent arg 'type' for exchange 'amq.fanout'",
        |channel| {
            let options = ExchangeDeclareOptions::default();
            channel
                .exchange_declare("amq.fanout", ExchangeKind::Direct, options)
                .unwrap_err()
        },
    );
    refused(
        ReplyCode::PRECONDITION_FAILED,
        "invalid arg 'x-message-ttl'",
        |channel| {
            let options = QueueDeclareOptions::temporary().argument("x-message-ttl", -1);
            channel.queue_declare("", options).unwrap_err()
        },
    );
    channel
        .queue_delete(&name, QueueDeleteOptions::default())
        .unwrap();
}

#[test]
fn the_next_call_reports_an_acknowledgement_of_an_unknown_tag() {
    refused(
        ReplyCode::PRECONDITION_FAILED,
        "406 PRECONDITION_FAILED - unknown delivery tag 5",
        |channel| {
            channel.basic_ack(5).unwrap();
            eventually("the broker has closed the channel", || !channel.is_open());
            channel.basic_qos(1).unwrap_err()
        },
    );
}

/// Expects this code, and that the whole connection is closed.
#[track_caller]
fn connection_refused(code: ReplyCode, ask: impl FnOnce(&Channel) -> Error) {
    let options = options().recovery(RecoveryOptions::none());
    let connection = Connection::open_with(&options).unwrap();
    let other = connection.open_channel().unwrap();
    let consumer = exclusive_queue(&other).consume().unwrap();
    let error = ask(&connection.open_channel().unwrap());
    assert_eq!(error.reply_code(), Some(code), "{error}");
    assert!(error.is_connection_end());
    // Every handle returns the same error.
    assert_eq!(consumer.recv().unwrap_err().kind(), error.kind());
    assert_eq!(other.basic_qos(1).unwrap_err().kind(), error.kind());
    assert_eq!(connection.open_channel().unwrap_err().kind(), error.kind());
    assert_eq!(connection.close().unwrap_err().kind(), error.kind());
}

#[test]
fn some_errors_close_the_connection() {
    connection_refused(ReplyCode::NOT_IMPLEMENTED, |channel| {
        channel.basic_recover(Requeue::No).unwrap_err()
    });
    connection_refused(ReplyCode::NOT_IMPLEMENTED, |channel| {
        let limit = QosOptions::default().prefetch_size(1);
        channel.basic_qos_with(limit).unwrap_err()
    });
}

#[test]
fn an_unknown_exchange_type_closes_the_connection_or_since_rabbitmq_4_the_channel() {
    let declare = |channel: &Channel| {
        let kind = ExchangeKind::Other("nope".into());
        channel
            .exchange_declare(&unique("x"), kind, Default::default())
            .unwrap_err()
    };
    if version() < (4, 0) {
        connection_refused(ReplyCode::COMMAND_INVALID, declare);
    } else {
        let text = "unknown exchange type 'nope'";
        refused(ReplyCode::PRECONDITION_FAILED, text, declare);
    }
}

#[test]
fn not_allowed_530() {
    // Other violations, such as a duplicate consumer tag, are refused before they are sent.
    let error = Connection::open_with(options().vhost("nope")).unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_ALLOWED));
}

#[test]
fn non_finite_floats_are_refused_before_anything_is_sent() {
    let connection = connect();
    let channel = connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    let publisher = channel.publisher().unwrap();
    let infinite = || FieldTable::new().with("ratio", f64::INFINITY);
    let message = || Message::new("x").header("stats", vec![FieldValue::from(f32::NAN)]);
    let large = Message::new(vec![0; 300_000]).headers(infinite());
    let declare = QueueDeclareOptions::temporary().argument("ratio", f64::NAN);
    let properties = options().client_properties(infinite());
    let (kind, name) = (ExchangeKind::Headers, unique("not-finite"));
    let exchange = ExchangeDeclareOptions::default().argument("ratio", -f64::INFINITY);
    let bind = FieldTable::new().with("ratio", f64::NAN);
    let consume = ConsumeOptions::default().argument("ratio", f64::NAN);
    let errors = [
        (
            queue.publish(message()).unwrap_err(),
            "header \"stats\"[0] is NaN",
        ),
        (
            queue.publish(&large).unwrap_err(),
            "header \"ratio\" is inf",
        ),
        (
            publisher.publish("", queue.name(), message()).unwrap_err(),
            "header \"stats\"[0] is NaN",
        ),
        (
            channel.queue_declare("", declare).unwrap_err(),
            "argument \"ratio\" is NaN",
        ),
        (
            channel.exchange_declare(&name, kind, exchange).unwrap_err(),
            "argument \"ratio\" is -inf",
        ),
        (
            channel
                .queue_bind(queue.name(), "amq.headers", "", bind.clone())
                .unwrap_err(),
            "argument \"ratio\" is NaN",
        ),
        (
            channel
                .exchange_bind("amq.fanout", "amq.headers", "", bind)
                .unwrap_err(),
            "argument \"ratio\" is NaN",
        ),
        (
            queue.consume_with(consume).unwrap_err(),
            "argument \"ratio\" is NaN",
        ),
        (
            Connection::open_with(&properties).unwrap_err(),
            "client property \"ratio\" is inf",
        ),
    ];
    for (error, text) in errors {
        assert!(
            matches!(error.kind(), ErrorKind::InvalidArgument(_)),
            "{error}"
        );
        assert!(error.to_string().contains(text), "{error}");
        assert!(!error.may_have_been_sent(), "{error}");
    }
    // A refused consume leaves its tag free.
    let tagged = || ConsumeOptions::default().consumer_tag("tag");
    let refused = || tagged().argument("ratio", f64::NAN);
    for result in [
        queue.consume_with(refused()),
        channel.basic_consume_no_wait(queue.name(), refused()),
    ] {
        assert!(!result.unwrap_err().may_have_been_sent());
    }
    queue.consume_with(tagged()).unwrap().cancel().unwrap();
    // The connection, the channel and the publisher still work.
    assert_eq!(connection.loss_count(), 0);
    let confirm = publisher.publish("", queue.name(), "good").unwrap();
    confirm.wait().unwrap();
    assert_eq!(channel.queue_purge(queue.name()).unwrap(), 1);
}

/// An error with all its sources, as a program prints them.
fn chain(error: &Error) -> String {
    let mut texts = vec![error.to_string()];
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        texts.push(error.to_string());
        source = error.source();
    }
    texts.join(": ")
}

#[test]
fn an_error_chain_repeats_nothing() {
    let connection = connect();
    let channel = connection.open_channel().unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let broker = leveret::broker::Broker::start().unwrap();
    let port = broker.address().port();
    let taken = leveret::broker::BrokerOptions::default().port(port);
    let errors = [
        (
            Connection::open(format!("amqp://{address}")).unwrap_err(),
            "onnection refused",
        ),
        (
            Connection::open("amqp://localhost:x").unwrap_err(),
            "the port",
        ),
        (
            channel
                .basic_get(&"q".repeat(256), AckMode::Automatic)
                .unwrap_err(),
            "is longer than 255 bytes",
        ),
        (
            channel.basic_get("nope", AckMode::Automatic).unwrap_err(),
            "NOT_FOUND",
        ),
        (
            leveret::broker::Broker::start_with(taken).unwrap_err(),
            "cannot listen",
        ),
    ];
    for (error, text) in errors {
        let chain = chain(&error);
        assert_eq!(chain.matches(text).count(), 1, "{chain}");
    }
    #[cfg(feature = "native-tls")]
    {
        let tls = leveret::TlsOptions::default();
        let options = options().tls(tls.clone().ca_certificate_file("/nope.pem"));
        let error = Connection::open_with(&options).unwrap_err();
        assert_eq!(
            chain(&error).matches("o such file").count(),
            1,
            "{}",
            chain(&error)
        );
        let plain = options.tls(tls);
        let error = Connection::open_with(&plain).unwrap_err();
        assert_eq!(
            chain(&error).matches("without TLS").count(),
            1,
            "{}",
            chain(&error)
        );
    }
}

#[test]
fn line_breaks_in_the_brokers_text_are_escaped() {
    let error = Connection::open_with(options().vhost("no\npe")).unwrap_err();
    assert!(
        error.reply_code() == Some(ReplyCode::NOT_ALLOWED),
        "{error}"
    );
    let text = error.to_string();
    assert!(text.contains("vhost no\\npe not found"), "{text}");
    assert!(!text.contains('\n'), "{text}");
}

#[test]
fn names_that_are_too_long_are_refused_locally() {
    let connection = connect();
    let channel = connection.open_channel().unwrap();
    let long = "q".repeat(256);
    let errors = [
        channel
            .queue_declare(&long, QueueDeclareOptions::default())
            .unwrap_err(),
        channel
            .exchange_declare(&long, ExchangeKind::Direct, Default::default())
            .unwrap_err(),
        channel
            .basic_consume(&long, ConsumeOptions::default())
            .unwrap_err(),
        channel
            .basic_consume("q", ConsumeOptions::default().consumer_tag(&long))
            .unwrap_err(),
        channel.basic_get(&long, AckMode::Automatic).unwrap_err(),
        channel.basic_cancel(&long).unwrap_err(),
    ];
    for error in errors {
        assert!(
            error
                .to_string()
                .contains("is longer than 255 bytes (256 bytes)"),
            "{error}"
        );
    }
    let huge = QueueDeclareOptions::temporary().argument("x", "x".repeat(200_000));
    let error = channel.queue_declare("", huge).unwrap_err();
    assert!(
        error.to_string().contains("do not fit into one frame"),
        "{error}"
    );
    channel.basic_qos(1).unwrap();
}
