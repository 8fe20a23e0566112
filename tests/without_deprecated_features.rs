//! The crate on a RabbitMQ that denies its deprecated features.

use std::process::Command;

use leveret::{
    AckMode, Connection, ConnectionEvent, ConsumeOptions, Delivery, ExchangeDeclareOptions,
    ExchangeKind, Message, QosOptions, Queue, QueueDeclareOptions, QueueType, ReplyCode, RpcClient,
    RpcServer, Settlement, StreamOffset, WorkerOptions, Workers,
};

use crate::support::proxy::Proxy;
use crate::support::{eventually, unique, version_of, Node, Program, SOON};

/// The features that RabbitMQ 4.0 to 4.3 list as deprecated, for all protocols.
const DEPRECATED: [&str; 7] = [
    "amqp_address_v1",
    "amqp_filter_set_bug",
    "classic_queue_mirroring",
    "global_qos",
    "queue_master_locator",
    "ram_node_type",
    "transient_nonexcl_queues",
];

/// Starts a node that denies all deprecated features. The flag is false if the version has none.
fn strict_node() -> (Node, bool) {
    let plain = Node::start();
    let connection = Connection::open_with(plain.options()).unwrap();
    if version_of(&connection) < (4, 0) {
        // An older node does not start with settings that it does not know.
        return (plain, false);
    }
    drop((connection, plain));
    let deny = |name| format!("deprecated_features.permit.{name} = false\n");
    let strict = Node::start_with(&DEPRECATED.map(deny).concat(), "");
    let listed = strict.ctl(&["list_deprecated_features", "name", "--formatter", "csv"]);
    let listed = listed.lines().skip(1).map(|it| it.trim_matches('"'));
    let unknown: Vec<_> = listed.filter(|it| !DEPRECATED.contains(it)).collect();
    assert_eq!(
        unknown, [""; 0],
        "deprecated features that are missing in this test"
    );
    (strict, true)
}

/// The deprecated features that were used, according to the node's log.
fn asked_for(node: &Node) -> Vec<&'static str> {
    let look = format!(
        "Log = iolist_to_binary([element(2, file:read_file(It)) || It <- rabbit:log_locations(), filelib:is_regular(It)]), \
         [It || It <- {DEPRECATED:?}, binary:match(Log, list_to_binary([\"Feature `\", It, \"` is deprecated\"])) /= nomatch]."
    );
    let found = node.ctl(&["eval", &look]);
    let is_found = |it: &&str| found.contains(&format!("{it:?}"));
    DEPRECATED.into_iter().filter(is_found).collect()
}

#[test]
fn the_crate_and_its_examples_use_no_deprecated_feature_by_default() {
    let (node, is_strict) = strict_node();
    let connection = Connection::open_with(node.options()).unwrap();
    every_kind_of_queue_takes_and_gives_messages(&connection);
    every_kind_of_exchange_routes(&connection);
    a_transaction_is_committed(&connection);
    requests_are_answered(&connection);
    workers_work(&connection);
    all_comes_back_after_a_loss(&node);
    examples_run(&node);
    assert_eq!(asked_for(&node), [""; 0]);

    // Check that the node does deny, and that its log does show it.
    let channel = connection.open_channel().unwrap();
    let together = QosOptions::default().prefetch_count(1).global(true);
    channel.basic_qos_with(together).unwrap();
    let options = QueueDeclareOptions::default().durable(false);
    let transient = channel.queue_declare("transient", options);
    let expected: &[&str] = match is_strict {
        true => {
            let error = transient.unwrap_err();
            assert_eq!(
                error.reply_code(),
                Some(ReplyCode::INTERNAL_ERROR),
                "{error}"
            );
            &["global_qos", "transient_nonexcl_queues"]
        }
        false => {
            transient.unwrap();
            &[]
        }
    };
    eventually("the log shows the used features", || {
        asked_for(&node) == expected
    });
}

fn every_kind_of_queue_takes_and_gives_messages(connection: &Connection) {
    let channel = connection.open_channel().unwrap();
    let publisher = channel.publisher().unwrap();
    let queues = [
        ("", QueueDeclareOptions::default()),
        ("", QueueDeclareOptions::temporary()),
        ("durable", QueueDeclareOptions::default()),
        (
            "durable exclusive",
            QueueDeclareOptions::default().exclusive(true),
        ),
        ("exclusive", QueueDeclareOptions::temporary()),
        (
            "auto-delete",
            QueueDeclareOptions::default().auto_delete(true),
        ),
        ("priorities", QueueDeclareOptions::default().max_priority(5)),
        ("expires", QueueDeclareOptions::default().expires(SOON)),
        (
            "single",
            QueueDeclareOptions::default().single_active_consumer(true),
        ),
        (
            "limited",
            QueueDeclareOptions::default()
                .max_length(10)
                .message_ttl(SOON),
        ),
        (
            "classic",
            QueueDeclareOptions::default().queue_type(QueueType::Classic),
        ),
        ("quorum", QueueDeclareOptions::quorum().delivery_limit(5)),
    ];
    for (name, options) in queues {
        let queue = channel.queue_declare(name, options).unwrap();
        for body in ["1", "2"] {
            let message = Message::new(body).persistent(true);
            publisher.publish("", queue.name(), message).unwrap();
        }
        publisher.wait_for_confirms().unwrap();
        let got = queue.get().unwrap().unwrap();
        got.ack().unwrap();
        channel.basic_qos(1).unwrap();
        let consumer = queue.consume().unwrap();
        let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
        assert_eq!(
            (got.body(), delivery.body()),
            (&b"1"[..], &b"2"[..]),
            "{name}"
        );
        delivery.ack().unwrap();
        consumer.cancel().unwrap();
        delete(&queue);
    }
    let stream = channel.queue_declare("stream", QueueDeclareOptions::stream());
    let stream = stream.unwrap();
    publisher
        .publish("", "stream", "1")
        .unwrap()
        .wait()
        .unwrap();
    channel.basic_qos(10).unwrap();
    let from_first = ConsumeOptions::default().stream_offset(StreamOffset::First);
    let consumer = stream.consume_with(from_first).unwrap();
    consumer.recv_timeout(SOON).unwrap().unwrap().ack().unwrap();
    delete(&stream);
}

fn delete(queue: &Queue) {
    queue.delete().unwrap();
}

fn every_kind_of_exchange_routes(connection: &Connection) {
    let channel = connection.open_channel().unwrap();
    let publisher = channel.publisher().unwrap();
    let queue = channel.queue_declare("", QueueDeclareOptions::temporary());
    let queue = queue.unwrap();
    for kind in [
        ExchangeKind::Direct,
        ExchangeKind::Fanout,
        ExchangeKind::Topic,
        ExchangeKind::Headers,
    ] {
        for options in [
            ExchangeDeclareOptions::default(),
            ExchangeDeclareOptions::default(),
            ExchangeDeclareOptions::default().auto_delete(true),
        ] {
            let name = unique("exchange");
            let exchange = channel.exchange_declare(&name, kind.clone(), options);
            queue.bind(exchange.unwrap(), "key").unwrap();
            publisher
                .publish(&name, "key", "m")
                .unwrap()
                .wait()
                .unwrap();
            assert!(
                queue.get_with(AckMode::Automatic).unwrap().is_some(),
                "{kind:?}"
            );
        }
    }
}

fn a_transaction_is_committed(connection: &Connection) {
    let channel = connection.open_channel().unwrap();
    let queue = channel.queue_declare("", QueueDeclareOptions::temporary());
    let queue = queue.unwrap();
    channel.tx_select().unwrap();
    queue.publish("m").unwrap();
    channel.tx_commit().unwrap();
    queue.get().unwrap().unwrap().ack().unwrap();
    channel.tx_commit().unwrap();
}

fn requests_are_answered(connection: &Connection) {
    let channel = connection.open_channel().unwrap();
    let queue = channel.queue_declare("requests", QueueDeclareOptions::default());
    let server = RpcServer::new(connection);
    let answer = |request: &Delivery| request.body().to_ascii_uppercase();
    server.serve("requests", answer).unwrap();
    let client = RpcClient::new(connection).unwrap();
    let answer = client.call("", "requests", "question", SOON).unwrap();
    assert_eq!(answer.body(), b"QUESTION");
    server.shutdown(SOON).unwrap();
    delete(&queue.unwrap());
}

fn workers_work(connection: &Connection) {
    let channel = connection.open_channel().unwrap();
    let (done, is_done) = crossbeam_channel::unbounded();
    let workers = Workers::new(connection);
    for (name, options) in [
        ("classic work", QueueDeclareOptions::default()),
        ("quorum work", QueueDeclareOptions::quorum()),
    ] {
        let queue = channel.queue_declare(name, options).unwrap();
        let done = done.clone();
        let handle = move |delivery: &Delivery| match delivery.redelivered() {
            true => {
                done.send(()).unwrap();
                Settlement::Ack
            }
            false => Settlement::Requeue,
        };
        let options = WorkerOptions::default().threads(2);
        workers.consume_with(name, options, handle).unwrap();
        queue.publish("work").unwrap();
        is_done.recv_timeout(SOON).unwrap();
    }
    workers.shutdown(SOON).unwrap();
}

fn all_comes_back_after_a_loss(node: &Node) {
    let proxy = Proxy::start(&node.uri());
    let connection = Connection::open_with(proxy.options()).unwrap();
    let events = connection.events();
    let channel = connection.open_channel().unwrap();
    let publisher = channel.publisher().unwrap();
    channel.basic_qos(10).unwrap();
    let options = ExchangeDeclareOptions::default();
    let fanout = channel.exchange_declare("lost and found", ExchangeKind::Fanout, options);
    let fanout = fanout.unwrap();
    let consumers: Vec<_> = [
        ("", QueueDeclareOptions::temporary()),
        ("lost exclusive", QueueDeclareOptions::temporary()),
        (
            "lost auto-delete",
            QueueDeclareOptions::default().auto_delete(true),
        ),
        ("lost durable", QueueDeclareOptions::default()),
        ("lost quorum", QueueDeclareOptions::quorum()),
    ]
    .into_iter()
    .map(|(name, options)| {
        let queue = channel.queue_declare(name, options).unwrap();
        queue.bind(&fanout, "").unwrap();
        queue.consume().unwrap()
    })
    .collect();
    proxy.cut();
    let told = crate::recovery::recovered(&events);
    let is_lacking = |it: &ConnectionEvent| matches!(it, ConnectionEvent::NotRecovered { .. });
    assert!(!told.iter().any(is_lacking), "{told:?}");
    publisher
        .publish(fanout.name(), "", "m")
        .unwrap()
        .wait()
        .unwrap();
    for consumer in consumers {
        let delivery = consumer.recv_timeout(SOON).unwrap();
        delivery.unwrap().ack().unwrap();
    }
}

fn examples_run(node: &Node) {
    let uri = node.uri();
    for (example, arguments, last_line) in [
        (
            "quickstart",
            &[][..],
            "ok: 1000 published, 1000 confirmed, 1000 consumed, 1000 acknowledged",
        ),
        (
            "send_with_return",
            &[],
            "\"hello\" came back: NO_ROUTE for \"no such queue\"",
        ),
        (
            "tutorial_7_publisher_confirms",
            &["100"],
            "published 100 messages with a window",
        ),
    ] {
        let said = Program::run(example, arguments, &uri);
        let said = said.lines().last().unwrap();
        assert!(said.starts_with(last_line), "{said}");
    }
    let mut worker = Program::start("worker", &[], &uri);
    worker.expect("waiting for messages; to exit press Ctrl+C");
    Program::run("tutorial_2_new_task", &[], &uri);
    worker.expect("received \"Hello World!\"");
    worker.expect("done \"Hello World!\"");
    worker.signal("TERM");
    assert!(worker.wait().success());

    let run = Command::new(std::env::current_exe().unwrap())
        .arg("tutorials::")
        .env("AMQP_URL", uri)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{said}");
    assert!(!said.contains(" 0 passed"), "{said}");
}
