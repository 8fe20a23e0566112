//! What people write on their first try, coming from other clients: it compiles, and does what it
//! says.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::catch_unwind;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use leveret::crossbeam_channel::{after, select, unbounded};
use leveret::{
    AckMode, Channel, Connection, ConnectionEvent, ConnectionOptions, ConsumeOptions, DeathReason,
    Delivery, ErrorKind, ExchangeDeclareOptions, ExchangeDeleteOptions, ExchangeKind, Expiration,
    FieldTable, FieldValue, LoginMethod, Message, NackOptions, Overflow, Properties,
    PublisherOptions, QosOptions, Queue, QueueDeclareOptions, QueueDeleteOptions, QueueType,
    RecoveryOptions, ReplyCode, Requeue, Settlement, ShortString, StreamOffset, TlsOptions,
    WorkerOptions, Workers,
};
use serde::{Deserialize, Serialize};

use crate::support::proxy::Proxy;
use crate::support::{channel, connect, eventually, exclusive_queue, ready, unique, url, SOON};

/// Publishes a message, and returns what arrives.
#[track_caller]
fn arrived<'m>(queue: &Queue, message: impl Into<Message<'m>>) -> Delivery {
    queue.publish(message).unwrap();
    next(queue)
}

#[track_caller]
fn next(queue: &Queue) -> Delivery {
    let mut got = None;
    eventually("a message arrives", || {
        got = queue.get_with(AckMode::Automatic).unwrap();
        got.is_some()
    });
    got.unwrap()
}

// ---- options ----

#[test]
fn switches_take_a_variable() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    for flag in [true, false] {
        let options = ConsumeOptions::default().no_ack(flag).exclusive(!flag);
        let consumer = queue.consume_with(options).unwrap();
        queue.publish("m").unwrap();
        let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
        assert_eq!(delivery.ack().is_err(), flag);
        consumer.cancel().unwrap();
    }
    let returned = channel.returned_messages();
    for flag in [true, false] {
        let message = Message::new("m").mandatory(flag);
        channel
            .basic_publish("amq.direct", "nowhere", message)
            .unwrap();
        // The broker returns a message before it answers a later call.
        channel.basic_qos(1).unwrap();
        let back = returned.try_recv();
        assert_eq!(back.is_ok(), flag);
    }
    let publisher = channel.publisher().unwrap();
    for flag in [true, false] {
        let message = Message::new("m").mandatory(flag).persistent(flag);
        let published = publisher.publish("amq.direct", "nowhere", message);
        assert_eq!(published.unwrap().wait().is_err(), flag);
    }
    channel.close_with(320, "bye").unwrap();
}

#[test]
fn every_combination_of_flags_can_be_written() {
    let channel = channel();
    let every = [false, true];
    for (durable, auto_delete) in every.map(|it| (it, !it)) {
        let name = unique("combined");
        let options = QueueDeclareOptions::default()
            .durable(durable)
            .exclusive(true)
            .auto_delete(auto_delete);
        let queue = channel.queue_declare(&name, options.clone()).unwrap();
        channel.queue_declare(&name, options.passive(true)).unwrap();
        queue.delete().unwrap();

        let options = ExchangeDeclareOptions::default()
            .durable(durable)
            .auto_delete(auto_delete)
            .internal(durable);
        let exchange = channel.exchange_declare(&name, "topic", options.clone());
        let exchange = exchange.unwrap();
        let passive = options.passive(true);
        channel.exchange_declare(&name, "topic", passive).unwrap();
        let unused = ExchangeDeleteOptions::default().if_unused(true);
        exchange.delete_with(unused).unwrap();
    }
    channel.exchange_declare_passive("amq.topic").unwrap();
}

/// One default for both: a message to a durable exchange is not lost because the exchange is.
#[test]
fn exchanges_and_queues_are_durable_by_default() {
    let channel = channel();
    let name = unique("durable");
    channel.queue_declare(&name, Default::default()).unwrap();
    channel
        .exchange_declare(&name, ExchangeKind::Direct, Default::default())
        .unwrap();
    let connection = channel.connection();
    let transient = QueueDeclareOptions::default().durable(false);
    let error = connection
        .open_channel()
        .unwrap()
        .queue_declare(&name, transient);
    assert_eq!(
        error.unwrap_err().reply_code(),
        Some(ReplyCode::PRECONDITION_FAILED)
    );
    let transient = ExchangeDeclareOptions::default().durable(false);
    let error = connection
        .open_channel()
        .unwrap()
        .exchange_declare(&name, "direct", transient);
    assert_eq!(
        error.unwrap_err().reply_code(),
        Some(ReplyCode::PRECONDITION_FAILED)
    );
    channel
        .queue_delete(&name, QueueDeleteOptions::default())
        .unwrap();
    channel.exchange_delete(&name, Default::default()).unwrap();
}

#[test]
fn a_uri_can_be_parsed_and_read() {
    let uri = "amqps://me:secret@a:1,b/v%2fhost?heartbeat=7&channel_max=9&auth_mechanism=amqplain";
    let options = uri.parse::<ConnectionOptions>().unwrap();
    assert_eq!(ConnectionOptions::try_from(uri).unwrap(), options);
    assert_eq!((options.get_host(), options.get_port()), ("a", 1));
    let endpoints: Vec<_> = options.get_endpoints().collect();
    assert_eq!(endpoints, [("a", 1), ("b", 5671)]);
    assert_eq!(
        (options.get_username(), options.get_password()),
        ("me", "secret")
    );
    assert_eq!(options.get_vhost(), "v/host");
    assert_eq!(options.get_heartbeat(), Duration::from_secs(7));
    assert_eq!(options.get_channel_max(), 9);
    assert_eq!(*options.get_login_method(), LoginMethod::AmqPlain);
    assert_eq!(options.get_tls(), Some(&TlsOptions::default()));
    assert!(options.get_recovery() == &RecoveryOptions::default());
    assert_eq!(
        "amqp://".parse::<ConnectionOptions>().unwrap().get_port(),
        5672
    );
    let error = "localhost".parse::<ConnectionOptions>().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::InvalidUri(_)), "{error}");
}

#[test]
fn options_can_be_compared() {
    let options = ConnectionOptions::default();
    assert_eq!(options, options.clone());
    assert_ne!(options, options.clone().password("other"));
    let uri = "amqp://guest:guest@localhost:5672/%2f";
    assert_eq!(ConnectionOptions::from_uri(uri).unwrap(), options);
    assert_ne!(
        ConnectionOptions::from_uri("amqp://localhost:5673").unwrap(),
        options
    );
    let filtered = || RecoveryOptions::default().filter(|_| true);
    let recovery = filtered();
    assert_eq!(recovery, recovery.clone());
    assert_ne!(recovery, filtered());
    let with_credentials = options.clone().credentials(|| unreachable!());
    assert_eq!(with_credentials, with_credentials.clone());
    assert_ne!(with_credentials, options);
    let tls = || TlsOptions::default().server_name("x").ca_certificate("pem");
    assert_eq!(tls(), tls());
    assert_ne!(tls(), TlsOptions::default());
    assert_eq!(QueueDeclareOptions::quorum(), QueueDeclareOptions::quorum());
    assert_ne!(QueueDeclareOptions::quorum(), QueueDeclareOptions::stream());
    let active = |flag| QueueDeclareOptions::default().single_active_consumer(flag);
    assert_eq!(active(false), QueueDeclareOptions::default());
    assert_ne!(active(true), active(false));
    assert_eq!(
        ExchangeDeclareOptions::default(),
        ExchangeDeclareOptions::default()
    );
    assert_eq!(
        ConsumeOptions::default().priority(1),
        ConsumeOptions::default().priority(1)
    );
    assert_eq!(QosOptions::default(), QosOptions::default().global(false));
    assert_eq!(NackOptions::requeue(), NackOptions::from(Requeue::Yes));
    assert_eq!(PublisherOptions::default(), PublisherOptions::default());
    assert_eq!(
        WorkerOptions::default(),
        WorkerOptions::default().threads(1)
    );
}

#[test]
fn options_are_passed_by_value_or_by_reference() {
    let options = ConnectionOptions::from_uri(&url()).unwrap();
    Connection::open_with(&options).unwrap();
    Connection::open_with(options).unwrap();
}

// ---- messages ----

#[test]
fn a_body_is_any_text_or_bytes() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let shared = Bytes::from_static(b"body");
    let cow = Cow::from("body");
    let bodies: [Message<'_>; 12] = [
        Message::new("body"),
        Message::new(String::from("body")),
        Message::new(String::from_utf8_lossy(b"body")),
        Message::new(cow.clone()),
        Message::new(Cow::<[u8]>::from(&b"body"[..])),
        Message::new(shared.clone()),
        Message::new(&shared),
        Message::new(b"body".to_vec().into_boxed_slice()),
        Message::new(String::from("body").into_boxed_str()),
        Message::new(b"body"),
        Message::new([b'b', b'o', b'd', b'y']),
        shared.clone().into(),
    ];
    for message in bodies {
        assert_eq!(arrived(&queue, message).body(), b"body");
    }
    assert_eq!(arrived(&queue, shared).body(), b"body");
    assert_eq!(arrived(&queue, format!("{cow}")).body(), b"body");
}

#[test]
fn a_header_is_any_value_that_fits() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let text = String::from("text");
    let items = ["a", "b"];
    let time = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let message = Message::new("m")
        .header("string", &text)
        .header("cow", String::from_utf8_lossy(b"text"))
        .header(&text, true)
        .header(String::from("owned"), text.clone())
        .header("u64", 5_u64)
        .header("len", items.len())
        .header("isize", -5_isize)
        .header("u128", u32::MAX)
        .header("float", 0.5)
        .header("bytes", b"\x00\xff")
        .header("vec", vec![1_u8, 2])
        .header("slice", &[1_u8, 2][..])
        .header("time", time)
        .header("array", items)
        .header("numbers", vec![1, 2, 3])
        .header("mixed", vec![FieldValue::from(1), "x".into()])
        .header(
            "table",
            FieldTable::from([("deep", FieldTable::from([("er", 1)]))]),
        );
    let delivery = arrived(&queue, message);
    let header = |name: &str| delivery.header(name).unwrap();
    for name in ["string", "cow", "owned"] {
        assert_eq!(header(name).as_str(), Some("text"), "{name}");
    }
    assert_eq!(header("text").as_bool(), Some(true));
    assert_eq!(header("u64").as_u64(), Some(5));
    assert_eq!(header("len").as_i64(), Some(2));
    assert_eq!(header("isize").as_i64(), Some(-5));
    assert_eq!(header("u128").as_u64(), Some(u32::MAX.into()));
    assert_eq!(header("float").as_f64(), Some(0.5));
    assert_eq!(header("bytes").as_bytes(), Some(&b"\x00\xff"[..]));
    assert_eq!(header("vec"), header("slice"));
    assert_eq!(header("vec").as_bytes(), Some(&[1, 2][..]));
    assert_eq!(header("time").as_timestamp(), Some(1_700_000_000));
    assert_eq!(*header("array"), FieldValue::from(["a", "b"]));
    assert_eq!(*header("numbers"), FieldValue::from([1, 2, 3]));
    assert_eq!(header("mixed").as_array().unwrap()[1].as_str(), Some("x"));
    let deep = header("table").as_table().unwrap().get("deep");
    assert_eq!(deep.unwrap().as_table().unwrap().get("er"), Some(&1.into()));
    assert!(delivery.header("none").is_none());
}

#[test]
fn numbers_that_do_not_fit_are_refused_before_sending() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let message = Message::new("m").header("n", u64::MAX);
    let error = queue.publish(message).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::InvalidArgument(_)),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .contains("header \"n\" is 18446744073709551615"),
        "{error}"
    );
    let largest = Message::new("m").header("n", i64::MAX as u64);
    let delivery = arrived(&queue, largest);
    assert_eq!(delivery.header("n"), Some(&FieldValue::I64(i64::MAX)));
}

#[test]
fn headers_come_from_any_map() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let map = HashMap::from([("a", 1), ("b", 2)]);
    let sorted: BTreeMap<String, String> = [("c".to_owned(), "3".to_owned())].into();
    assert_eq!(
        FieldTable::from(sorted.clone()),
        sorted.clone().into_iter().collect()
    );
    assert_eq!(
        FieldTable::from(map.clone()),
        FieldTable::from(vec![("a", 1), ("b", 2)])
    );
    let mut headers: FieldTable = map.into_iter().collect();
    headers.extend(sorted);
    headers.extend([("d", true)]);
    *headers.get_mut("a").unwrap() = 7.into();
    assert!(headers.contains_key("b") && !headers.contains_key("e"));
    let delivery = arrived(&queue, Message::new("m").headers(headers.clone()));
    assert_eq!(
        delivery.properties().unwrap().headers,
        Some(headers.clone())
    );
    let mut names = Vec::new();
    for (name, value) in &headers {
        assert_eq!(headers.get(name), Some(value));
        names.push(name.to_string());
    }
    assert!(headers.iter().eq(&headers));
    assert_eq!(names, ["a", "b", "c", "d"]);
    assert!(headers.iter().next().is_some_and(|(name, _)| name == "a"));
    let delivery = arrived(&queue, Message::new("m").headers([("only", "one")]));
    assert_eq!(delivery.header("only").unwrap().as_str(), Some("one"));
}

#[test]
fn an_expiration_is_a_duration_or_a_number() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let minute = Duration::from_secs(60);
    for message in [
        Message::new("m").expiration(minute),
        Message::new("m").expires_after(minute),
        Message::new("m").expiration("60000"),
        Message::new("m").expiration(60_000),
        Message::new("m").expiration(minute.as_millis().to_string()),
    ] {
        let delivery = arrived(&queue, message);
        let expiration = delivery.properties().unwrap().expiration.as_ref().unwrap();
        assert_eq!(*expiration, Expiration::from("60000"));
        assert_eq!(expiration.as_duration(), Some(minute));
    }
    queue
        .publish(Message::new("gone").expires_after(Duration::from_millis(1)))
        .unwrap();
    eventually("the message expires", || ready(&channel, queue.name()) == 0);
}

#[test]
fn an_expiration_that_is_no_number_costs_only_this_call() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let year = Duration::from_secs(365 * 24 * 3600);
    for expiration in [
        "soon".into(),
        "".into(),
        "-1".into(),
        "1.5".into(),
        Expiration::from(year),
    ] {
        let message = Message::new("m").expiration(expiration.clone());
        let error = queue.publish(message).unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::InvalidArgument(_)),
            "{error}"
        );
        assert!(error.to_string().contains("expiration"), "{error}");
        assert!(expiration.as_duration().is_none());
    }
    assert_eq!(arrived(&queue, "after that").body(), b"after that");
}

#[test]
fn every_property_has_a_setter_and_comes_back() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let time = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let message = Message::new("m")
        .content_type("text/plain")
        .content_encoding("gzip")
        .persistent(true)
        .priority(3)
        .correlation_id(String::from("correlation"))
        .reply_to("replies")
        .message_id("id")
        .sent_at(time)
        .message_type("kind")
        .user_id("guest")
        .app_id("app")
        .cluster_id("cluster");
    let delivery = arrived(&queue, &message);
    assert_eq!(delivery.content_type(), Some("text/plain"));
    assert_eq!(delivery.content_encoding(), Some("gzip"));
    assert_eq!(delivery.priority(), Some(3));
    assert_eq!(delivery.correlation_id(), Some("correlation"));
    assert_eq!(delivery.reply_to(), Some("replies"));
    assert_eq!(delivery.message_id(), Some("id"));
    assert_eq!(delivery.sent_at(), Some(time));
    assert_eq!(delivery.message_type(), Some("kind"));
    assert_eq!(delivery.user_id(), Some("guest"));
    assert_eq!(delivery.app_id(), Some("app"));
    let properties = delivery.properties().unwrap();
    assert_eq!(Some(properties), message.properties());
    assert_eq!(properties.cluster_id.as_ref().unwrap(), "cluster");
    // Decoded once.
    assert!(std::ptr::eq(properties, delivery.properties().unwrap()));
    let plain = arrived(&queue, "m");
    assert_eq!(
        (plain.message_id(), plain.sent_at(), plain.attempts()),
        (None, None, 1)
    );
    assert!(plain.deaths().is_empty());
}

#[test]
fn a_publisher_gives_each_message_an_id_of_its_own() {
    let proxy = Proxy::start(&url());
    let connection = Connection::open_with(proxy.options()).unwrap();
    let channel = connection.open_channel().unwrap();
    let queue = channel
        .queue_declare(&unique("ids"), QueueDeclareOptions::default())
        .unwrap();
    let options = PublisherOptions::default().message_ids(true);
    let publishers = [&options, &options].map(|it| channel.publisher_with(it.clone()).unwrap());
    for publisher in &publishers {
        for _ in 0..50 {
            publisher.publish("", queue.name(), "m").unwrap();
        }
        let own = Message::new("m").message_id("my own");
        publisher.publish("", queue.name(), own).unwrap();
    }
    // A message that recovery publishes again keeps its id.
    proxy.cut();
    for publisher in &publishers {
        publisher.wait_for_confirms().unwrap();
    }
    let mut ids = HashSet::new();
    while let Some(got) = queue.get_with(AckMode::Automatic).unwrap() {
        ids.insert(got.message_id().unwrap().to_owned());
    }
    assert_eq!(ids.len(), 101);
    assert!(ids.contains("my own"));
    queue.delete().unwrap();
}

// ---- names that are not UTF-8 ----

#[test]
fn what_is_not_utf_8_is_kept_and_published_again_unchanged() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let message = Message::new("m")
        .message_id(b"\xff")
        .correlation_id(&b"\xfe"[..])
        .header(b"\xff", 1)
        .header(b"\xfe", 2)
        .header("\u{fffd}", 3);
    let first = arrived(&queue, &message);
    let second = arrived(&queue, first.to_message().unwrap());
    for delivery in [&first, &second] {
        let properties = delivery.properties().unwrap();
        assert_eq!(Some(properties), message.properties());
        assert_eq!(properties.message_id.as_ref().unwrap().as_bytes(), b"\xff");
        assert_eq!(delivery.header(b"\xff").unwrap().as_i64(), Some(1));
        assert_eq!(delivery.header(b"\xfe").unwrap().as_i64(), Some(2));
        assert_eq!(delivery.header("\u{fffd}").unwrap().as_i64(), Some(3));
        // Two such ids must not be taken for the same.
        assert_eq!(delivery.message_id(), None);
        let shown = format!("{properties:?}");
        assert!(shown.contains(r#"b"\xff""#), "{shown}");
    }
    let id = ShortString::from("id");
    assert_eq!(id, "id");
    assert_eq!("id", id);
    assert_eq!(id, String::from("id"));
    assert_ne!(id, "other");
}

// ---- deliveries ----

#[test]
fn a_dead_letter_says_why_and_how_often() {
    let channel = channel();
    let dead = exclusive_queue(&channel);
    let options = QueueDeclareOptions::temporary()
        .dead_letter_exchange("")
        .dead_letter_routing_key(dead.name());
    let queue = channel.queue_declare("", options.clone()).unwrap();
    let short_lived = options.message_ttl(Duration::from_millis(1));
    let waiting = channel.queue_declare("", short_lived).unwrap();
    queue.publish("m").unwrap();
    for (attempts, requeue) in [(1, Requeue::Yes), (2, Requeue::No)] {
        let mut got = None;
        eventually("the message arrives", || {
            got = queue.get().unwrap();
            got.is_some()
        });
        let delivery = got.unwrap();
        assert_eq!(delivery.attempts(), attempts);
        delivery.reject(requeue).unwrap();
    }
    let letter = next(&dead);
    let deaths = letter.deaths();
    assert_eq!(deaths.len(), 1);
    assert_eq!(
        (&deaths[0].reason, deaths[0].count),
        (&DeathReason::Rejected, 1)
    );
    assert_eq!(deaths[0].queue, queue.name());
    assert_eq!(deaths[0].exchange, "");
    assert_eq!(deaths[0].routing_keys, [queue.name()]);
    assert!(deaths[0].time.unwrap() > SystemTime::now() - Duration::from_secs(3600));
    assert_eq!(letter.attempts(), 2);
    waiting
        .publish(Message::new("m").expires_after(Duration::from_secs(60)))
        .unwrap();
    let letter = next(&dead);
    let death = &letter.deaths()[0];
    assert_eq!(death.reason, DeathReason::Expired);
    assert_eq!(death.original_expiration, Some(Duration::from_secs(60)));
    // No program has seen it.
    assert_eq!(letter.attempts(), 1);
}

#[test]
fn a_fetched_message_is_a_delivery() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    queue.publish("first").unwrap();
    queue.publish("second").unwrap();
    eventually("both arrive", || ready(&channel, queue.name()) == 2);
    let got = queue.get().unwrap().unwrap();
    assert_eq!((got.body(), got.message_count()), (&b"first"[..], Some(1)));
    got.ack().unwrap();
    let got = channel
        .basic_get(queue.name(), AckMode::Automatic)
        .unwrap()
        .unwrap();
    assert_eq!(got.message_count(), Some(0));
    assert_eq!(got.into_body(), b"second");
    assert!(queue.get().unwrap().is_none());
}

#[test]
fn a_copy_can_be_published_elsewhere() {
    let channel = channel();
    let [queue, archive] = [(); 2].map(|()| exclusive_queue(&channel));
    let delivery = arrived(&queue, Message::new("m").message_id("7").header("a", 1));
    let copy = delivery.to_message().unwrap().header("copied", true);
    let copied = arrived(&archive, copy);
    assert_eq!((copied.message_id(), copied.body()), (Some("7"), &b"m"[..]));
    assert_eq!(copied.header("a"), Some(&1.into()));
    assert_eq!(copied.header("copied"), Some(&true.into()));
    let same = Message::new("other").with_properties(delivery.properties().unwrap());
    assert_eq!(arrived(&archive, same).message_id(), Some("7"));
    let owned = Message::new("other").with_properties(Properties::default().message_id("8"));
    assert_eq!(arrived(&archive, owned).message_id(), Some("8"));
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Order<'a> {
    id: u64,
    customer: Cow<'a, str>,
}

#[test]
fn json_is_written_and_read() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let order = Order {
        id: 7,
        customer: "Zoë".into(),
    };
    let message = Message::json(&order).unwrap().persistent(true);
    let owned = Message::json(serde_json::json!({"id": 7})).unwrap();
    assert_eq!(owned.body(), br#"{"id":7}"#);
    let delivery = arrived(&queue, message);
    assert_eq!(delivery.content_type(), Some("application/json"));
    assert_eq!(delivery.json::<Order<'_>>().unwrap(), order);
    let error = delivery.json::<Vec<u8>>().unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::InvalidJson { .. }),
        "{error}"
    );
    let text = error.to_string();
    assert!(
        text.contains("line 1, column 0") && !text.contains("Zoë"),
        "{text}"
    );
    let unwritable = HashMap::from([(vec![1], 1)]);
    let error = Message::json(&unwritable).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::InvalidJson { .. }),
        "{error}"
    );
    // The properties, too.
    let properties = serde_json::to_string(delivery.properties().unwrap()).unwrap();
    let read: Properties = serde_json::from_str(&properties).unwrap();
    assert_eq!(&read, delivery.properties().unwrap());
    let arguments: FieldTable = serde_json::from_str(r#"{"x-max-length": 2}"#).unwrap();
    assert_eq!(arguments, FieldTable::from([("x-max-length", 2)]));
}

// ---- handles ----

#[test]
fn handles_survive_a_caught_panic() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    catch_unwind(|| {
        queue.publish("m").unwrap();
        panic!("after a publish");
    })
    .unwrap_err();
    assert_eq!(next(&queue).body(), b"m");
    catch_unwind(|| channel.close()).unwrap().unwrap();
}

#[test]
fn several_things_are_waited_for_at_once() {
    let connection = connect();
    let channel = connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    let consumer = queue.consume().unwrap();
    let publisher = channel.publisher().unwrap();
    let outcomes = publisher.outcomes();
    let events = connection.events();
    let broken = connection.open_channel().unwrap();
    let confirm = publisher.publish("", queue.name(), "m").unwrap();
    publisher.publish("amq.direct", "nowhere", "m").unwrap();
    broken.queue_declare_passive("missing").unwrap_err();
    let (mut delivered, mut answered, mut ended) = (0, Vec::new(), None);
    let late = after(SOON);
    while (delivered, answered.len(), ended) != (1, 2, Some(broken.number())) {
        select! {
            recv(consumer.receiver()) -> delivery => {
                delivery.unwrap().unwrap().ack().unwrap();
                delivered += 1;
            }
            recv(outcomes) -> outcome => answered.push(outcome.unwrap()),
            recv(events) -> event => match event.unwrap() {
                ConnectionEvent::ChannelClosed { channel, cause } => {
                    assert_eq!(cause.reply_code(), Some(ReplyCode::from(404)));
                    ended = Some(channel);
                }
                other => panic!("{other:?}"),
            },
            recv(late) -> _ => panic!("{delivered} {answered:?} {ended:?}"),
        }
    }
    // The broker answers in any order.
    answered.sort_by_key(|it| it.sequence_number);
    assert_eq!(answered[0].sequence_number, confirm.sequence_number());
    assert!(answered[0].result.is_ok());
    let error = answered[1].result.as_ref().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Returned(_)), "{error}");
    assert_eq!(error.reply_code(), Some(ReplyCode::NO_ROUTE));
    assert_eq!(confirm.try_wait().unwrap(), Some(()));
    drop((publisher, confirm, consumer));
    assert!(outcomes.recv().is_err(), "the last clone is gone");
    // A question is no fault.
    assert!(!connection.queue_exists("missing").unwrap());
    channel.close().unwrap();
    assert!(events.try_recv().is_err());
}

#[test]
fn workers_need_no_options() {
    let channel = channel();
    let queue = channel
        .queue_declare(&unique("work"), QueueDeclareOptions::default())
        .unwrap();
    let workers = Workers::new(channel.connection());
    let (told, heard) = unbounded();
    let handler = move |delivery: &Delivery| {
        told.send(delivery.body().to_vec()).unwrap();
        Settlement::Ack
    };
    workers.consume(queue.name(), handler.clone()).unwrap();
    let options = WorkerOptions::default().threads(2);
    workers
        .consume_with(queue.name(), options, handler)
        .unwrap();
    queue.publish("m").unwrap();
    assert_eq!(heard.recv_timeout(SOON).unwrap(), b"m");
    workers.shutdown(SOON).unwrap();
    queue.delete().unwrap();
}

// ---- values ----

#[test]
fn values_convert_and_can_be_keys() {
    let kinds = HashMap::from([(ExchangeKind::from("x-random"), 1)]);
    assert_eq!(kinds[&ExchangeKind::Random], 1);
    assert_eq!(ReplyCode::from(406), ReplyCode::PRECONDITION_FAILED);
    assert_eq!(u16::from(ReplyCode::NOT_FOUND), 404);
    assert!(ReplyCode::NOT_FOUND == 404);
    assert_eq!(FieldValue::from(["a", "b"]), vec!["a", "b"].into());
    assert_eq!(FieldValue::from(u64::MAX), FieldValue::U64(u64::MAX));
    assert_eq!(FieldValue::from([1_u8, 2]).as_bytes(), Some(&[1, 2][..]));
    assert_eq!(
        FieldValue::from(StreamOffset::First).as_str(),
        Some("first")
    );
    let nested: FieldValue = [FieldTable::from([("a", 1)])].into();
    assert!(nested.as_array().unwrap()[0].as_table().is_some());
}

#[test]
fn words_of_a_configuration_can_be_read() {
    assert_eq!("quorum".parse::<QueueType>().unwrap(), QueueType::Quorum);
    assert_eq!(QueueType::Stream.to_string(), "stream");
    assert_eq!(
        "reject-publish".parse::<Overflow>().unwrap(),
        Overflow::RejectPublish
    );
    let error = "quorom".parse::<QueueType>().unwrap_err().to_string();
    assert!(
        error.contains(r#""quorom" is not a type of queue"#),
        "{error}"
    );
    assert!(
        error.contains(r#"["classic", "quorum", "stream"]"#),
        "{error}"
    );
    assert_eq!(
        "topic".parse::<ExchangeKind>().unwrap(),
        ExchangeKind::Topic
    );
    assert_eq!(
        ExchangeKind::from(String::from("topic")),
        ExchangeKind::Topic
    );
    assert_eq!(ExchangeKind::Other("topic".into()), ExchangeKind::Topic);
    assert_eq!(
        DeathReason::Other("expired".into()),
        DeathReason::from("expired")
    );
}

#[test]
fn owned_values_of_a_configuration_can_be_passed() {
    let connection = Connection::open(url()).unwrap();
    let channel = connection.open_channel().unwrap();
    let (dead, kind) = (unique("dlx"), String::from("fanout"));
    channel
        .exchange_declare(&dead, &kind, Default::default())
        .unwrap();
    let options = QueueDeclareOptions::temporary()
        .dead_letter_exchange(dead.clone())
        .dead_letter_routing_key(String::from("key"));
    let queue = channel.queue_declare("", options).unwrap();
    let letters = exclusive_queue(&channel);
    letters.bind(&dead, "").unwrap();
    letters
        .bind_with("amq.headers", "", [("colour", "red")])
        .unwrap();
    queue.publish("m").unwrap();
    let requeue = false;
    let mut got = None;
    eventually("the message arrives", || {
        got = queue.get().unwrap();
        got.is_some()
    });
    got.unwrap().nack(Requeue::from(requeue)).unwrap();
    let letter = next(&letters);
    assert_eq!(letter.routing_key(), "key");
    assert!(letter.headers().unwrap().keys().any(|it| it == "x-death"));
    let red = Message::new("m").header("colour", "red");
    channel.basic_publish("amq.headers", "", red).unwrap();
    assert_eq!(
        next(&letters).header("colour").unwrap().as_str(),
        Some("red")
    );
    channel.exchange_delete(&dead, Default::default()).unwrap();
    let options = ConnectionOptions::try_from(url()).unwrap();
    let options = options.client_property("team", "billing");
    assert!(options.get_client_properties().contains_key("team"));
    Connection::open_with(options).unwrap();
}

#[test]
fn outcomes_and_events_can_be_compared() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let publisher = channel.publisher().unwrap();
    let outcomes = publisher.outcomes();
    let confirm = publisher.publish("", queue.name(), "m").unwrap();
    assert_eq!(confirm.wait(), Ok(()));
    assert_eq!(outcomes.recv_timeout(SOON).unwrap().result, Ok(()));
    assert_ne!(
        ConnectionEvent::Unblocked,
        ConnectionEvent::Blocked {
            reason: String::new()
        }
    );
}

fn publish_text<'m>(channel: &Channel, text: impl Into<Message<'m>>) {
    channel.basic_publish("", "nowhere", text).unwrap();
}

#[test]
fn functions_of_the_program_can_be_as_generous() {
    let channel = channel();
    publish_text(&channel, "text");
    publish_text(&channel, String::from("text"));
    publish_text(&channel, Message::new(vec![0]).persistent(true));
    channel.flush(SOON).unwrap();
}
