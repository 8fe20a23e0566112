//! What gets in the way of a recovery: errors of the broker, and further losses.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use leveret::{
    AckMode, Channel, Connection, ConnectionEvent, ConsumeOptions, Consumer, Entity, ErrorKind,
    ExchangeDeclareOptions, ExchangeKind, Message, PublisherOptions, Queue, QueueDeclareOptions,
    ReplyCode, RpcClient, RpcServer,
};
use parking_lot::Mutex;

use super::{lasting_queue, lost, recovered, Lossy};
use crate::support::proxy::{quick, Direction, Fault, Plan, Proxy};
use crate::support::{channel, connect, eventually, exclusive_queue, unique, url, Node, SOON};

const MILLISECOND: Duration = Duration::from_millis(1);

/// Starts another program's exclusive consumer as soon as the queue has no consumer.
fn take_away(queue: &Queue) -> Consumer {
    let begin = Instant::now();
    loop {
        let exclusive = ConsumeOptions::default().exclusive(true);
        match channel().basic_consume(queue.name(), exclusive) {
            Ok(consumer) => return consumer,
            Err(error) => assert!(begin.elapsed() < SOON, "{error}"),
        }
    }
}

fn consumer_count(channel: &Channel, queue: &Queue) -> Option<u32> {
    let queue = channel.queue_declare_passive(queue.name()).unwrap();
    queue.consumer_count()
}

#[test]
fn a_consumer_that_lost_its_permission_ends_and_everything_else_is_restored() {
    let node = Node::start();
    node.ctl(&["add_user", "worker", "secret"]);
    node.ctl(&["set_permissions", "worker", ".*", ".*", ".*"]);
    let options = node.options().username("worker").password("secret");
    let connection = Connection::open_with(options.recovery(quick())).unwrap();
    let events = connection.events();
    let channel = connection.open_channel().unwrap();
    let queue = lasting_queue(&channel);
    let consumer = queue.consume().unwrap();
    node.ctl(&["set_permissions", "worker", ".*", ".*", "^$"]);
    node.ctl(&["close_all_connections", "other permissions"]);
    let told = recovered(&events);
    let refused = told.iter().filter(|event| {
        matches!(event, ConnectionEvent::NotRecovered { error, .. }
            if error.reply_code() == Some(ReplyCode::ACCESS_REFUSED))
    });
    assert_eq!(refused.count(), 1, "{told:?}");
    let error = consumer.recv_timeout(SOON).unwrap_err();
    assert_eq!(
        error.reply_code(),
        Some(ReplyCode::ACCESS_REFUSED),
        "{error}"
    );
    assert!(consumer.has_ended());
    channel.basic_qos(1).unwrap();
}

#[test]
fn a_refused_consumer_does_not_affect_other_consumers() {
    const CONSUMERS: u32 = 30;
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let (taken, mine) = (lasting_queue(&channel), lasting_queue(&channel));
    let exclusive = ConsumeOptions::default().exclusive(true);
    let _first = taken.consume_with(exclusive).unwrap();
    let _others: Vec<_> = (0..CONSUMERS).map(|_| mine.consume().unwrap()).collect();
    let watching = self::channel();
    for _ in 0..30 {
        lossy.proxy.refuse(true);
        lossy.proxy.cut();
        lost(&lossy.events);
        let theirs = take_away(&taken);
        lossy.proxy.refuse(false);
        recovered(&lossy.events);
        eventually("all other consumers are back", || {
            consumer_count(&watching, &mine) == Some(CONSUMERS)
        });
        theirs.cancel().unwrap();
    }
}

#[test]
fn the_search_for_missing_entities_notices_a_loss_at_once() {
    let lossy = Lossy::with(|options| {
        let recovery = quick().first_delay(MILLISECOND).max_delay(2 * MILLISECOND);
        options.request_timeout(SOON).recovery(recovery)
    });
    let channel = lossy.connection.open_channel().unwrap();
    let taken = lasting_queue(&channel);
    let exclusive = ConsumeOptions::default().exclusive(true);
    let _consumer = taken.consume_with(exclusive).unwrap();
    lossy.proxy.refuse(true);
    lossy.proxy.cut();
    lost(&lossy.events);
    let _theirs = take_away(&taken);
    lossy.proxy.refuse(false);
    recovered(&lossy.events);
    for round in 0..150 {
        let begin = Instant::now();
        thread::sleep(round % 7 * MILLISECOND);
        lossy.lose();
        // If the recovery thread waited for a connection that only it can restore, it would wait
        // for the request timeout.
        assert!(begin.elapsed() < SOON / 2, "{:?}", begin.elapsed());
    }
}

#[test]
fn an_ack_that_closes_a_channel_during_recovery_is_reported() {
    let lossy = Lossy::new();
    let mut caught = 0;
    for _ in 0..30 {
        let channel = lossy.connection.open_channel().unwrap();
        let queue = lasting_queue(&channel);
        for _ in 0..20 {
            queue.publish("m").unwrap();
        }
        let consumer = queue.consume().unwrap();
        drop(consumer.recv_timeout(SOON).unwrap());
        // More channels make the recovery take longer.
        let _others: Vec<_> = (0..20)
            .map(|_| lossy.connection.open_channel().unwrap())
            .collect();
        let epoch = lossy.connection.loss_count();
        let acking = thread::spawn({
            let channel = channel.clone();
            move || loop {
                let Ok(Some(delivery)) = consumer.recv_timeout(Duration::from_millis(300)) else {
                    return;
                };
                let tag = delivery.delivery_tag();
                let acked = channel.basic_ack(tag);
                // The second ack is an error: the broker does not know the tag any more.
                let is_new = channel.connection().loss_count() > epoch;
                if acked.is_err() || (is_new && channel.basic_ack(tag).is_err()) {
                    return;
                }
            }
        });
        lossy.lose();
        acking.join().unwrap();
        if let Err(error) = channel.basic_qos(1) {
            let code = error.reply_code();
            assert_eq!(code, Some(ReplyCode::PRECONDITION_FAILED), "{error}");
            caught += 1;
        }
        assert_eq!(lossy.connection.loss_count(), epoch + 1);
        queue.delete().unwrap_or_default();
    }
    assert!(caught > 0);
}

#[test]
fn recoveries_that_fail_half_way_leak_no_channel() {
    let lossy = Lossy::with(|options| options.channel_max(3));
    let channel = lossy.connection.open_channel().unwrap();
    let _queues = [(); 3].map(|()| lasting_queue(&channel));
    drop(channel);
    // Cut after the handshake, while the client declares queues.
    for after in (450..900).step_by(25) {
        lossy.proxy.plan(Plan {
            fault: Fault::Cut,
            direction: Direction::ToBroker,
            after,
        });
    }
    lossy.lose();
    eventually("all channel numbers are free", || {
        lossy.connection.stats().channels == 1
    });
}

#[test]
fn a_connection_without_a_free_channel_number_recovers() {
    let lossy = Lossy::with(|options| options.channel_max(1));
    let channel = lossy.connection.open_channel().unwrap();
    let queue = channel
        .queue_declare(&unique("q"), QueueDeclareOptions::temporary())
        .unwrap();
    channel.queue_declare_passive(&unique("none")).unwrap_err();
    let told = lossy.lose();
    let name = queue.name().to_owned();
    let missing = Entity::Queue { name };
    let is_told = |event: &ConnectionEvent| matches!(event, ConnectionEvent::NotRecovered { entity, .. } if *entity == missing);
    assert!(told.iter().any(is_told), "{told:?}");
    // A channel number is free once the handles are dropped.
    drop((queue, channel));
    let later = lossy.events.recv_timeout(SOON).unwrap();
    assert!(
        matches!(&later, ConnectionEvent::RecoveredLater { entity } if *entity == missing),
        "{later:?}"
    );
}

#[test]
fn a_queue_declared_late_gets_its_bindings_and_consumers() {
    let node = Node::start();
    let connection = Connection::open_with(node.options().recovery(quick())).unwrap();
    let events = connection.events();
    let channel = connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    let topics = channel.exchange("amq.topic");
    queue.bind(&topics, "bound").unwrap();
    let consumer = queue.consume().unwrap();
    node.ctl(&["set_vhost_limits", r#"{"max-queues": 0}"#]);
    node.ctl(&["close_all_connections", "no queues"]);
    recovered(&events);
    node.ctl(&["clear_vhost_limits"]);
    let mut found = 0;
    while found < 3 {
        let event = events.recv_timeout(SOON).unwrap();
        found += usize::from(matches!(event, ConnectionEvent::RecoveredLater { .. }));
    }
    topics.publish("bound", "m").unwrap();
    let delivery = consumer.recv_timeout(SOON).unwrap();
    assert_eq!(delivery.unwrap().body(), b"m");
}

#[test]
fn a_queue_deleted_before_its_consumer_is_restored_is_redeclared() {
    let theirs = Arc::new(Mutex::new(None::<Consumer>));
    let armed = Arc::new(AtomicBool::new(false));
    let lossy = Lossy::with(|options| {
        let (theirs, armed) = (Arc::clone(&theirs), Arc::clone(&armed));
        options.recovery(quick().filter(move |entity| {
            let consumes = matches!(entity, Entity::Consumer { .. });
            if consumes && armed.swap(false, Ordering::SeqCst) {
                // The last other consumer ends, so the broker deletes the queue.
                let consumer = theirs.lock().take().unwrap();
                let queue = consumer.consumer_tag().to_owned();
                consumer.cancel().unwrap();
                let watching = consumer.channel().connection();
                eventually("the queue is gone", || {
                    !watching.queue_exists(&queue).unwrap()
                });
            }
            true
        }))
    });
    let channel = lossy.connection.open_channel().unwrap();
    let short_lived = QueueDeclareOptions::default().auto_delete(true);
    let queue = channel.queue_declare(&unique("q"), short_lived).unwrap();
    queue.bind(channel.exchange("amq.topic"), "bound").unwrap();
    let consumer = queue.consume().unwrap();
    let tagged = ConsumeOptions::default().consumer_tag(queue.name());
    let other = self::channel().basic_consume(queue.name(), tagged);
    *theirs.lock() = Some(other.unwrap());
    armed.store(true, Ordering::SeqCst);
    let told = lossy.lose();
    assert!(!armed.load(Ordering::SeqCst), "{told:?}");
    let begin = Instant::now();
    loop {
        channel.basic_publish("amq.topic", "bound", "m").unwrap();
        let delivery = consumer.recv_timeout(Duration::from_millis(100)).unwrap();
        if delivery.is_some_and(|it| it.body() == b"m") {
            break;
        }
        assert!(begin.elapsed() < SOON, "{told:?}");
    }
}

#[test]
fn calls_that_wait_for_the_connection_use_a_queues_new_name() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let queue = exclusive_queue(&channel);
    let before = queue.name().to_owned();
    lossy.proxy.refuse(true);
    lossy.proxy.cut();
    lost(&lossy.events);
    let (consuming, publishing) = thread::scope(|scope| {
        let consuming = scope.spawn(|| queue.consume());
        let publishing = scope.spawn(|| queue.publish("m"));
        thread::sleep(100 * MILLISECOND);
        lossy.proxy.refuse(false);
        recovered(&lossy.events);
        (consuming.join().unwrap(), publishing.join().unwrap())
    });
    publishing.unwrap();
    assert_ne!(queue.name(), before);
    let delivery = consuming.unwrap().recv_timeout(SOON).unwrap();
    assert_eq!(delivery.unwrap().body(), b"m");
}

#[test]
fn unread_no_ack_messages_are_kept() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let queue = lasting_queue(&channel);
    let no_ack = ConsumeOptions::default().no_ack(true);
    let consumer = queue.consume_with(no_ack).unwrap();
    for number in 0..10 {
        queue.publish(number.to_string()).unwrap();
    }
    eventually("the consumer has all messages", || consumer.unread() == 10);
    lossy.lose();
    queue.publish("10").unwrap();
    for number in 0..=10 {
        let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
        assert_eq!(delivery.body(), number.to_string().as_bytes());
    }
}

#[test]
fn with_fail_fast_a_publish_into_a_full_window_fails_at_once() {
    let lossy = Lossy::with(|options| options.recovery(quick().fail_fast(true)));
    let channel = lossy.connection.open_channel().unwrap();
    let options = PublisherOptions::default()
        .window(1)
        .confirm_timeout(2 * SOON);
    let publisher = channel.publisher_with(options).unwrap();
    lossy.proxy.drop_all(Direction::ToBroker);
    let confirm = publisher.publish("", "nowhere", "1").unwrap();
    // One publish waits for room when the connection is lost, one starts later.
    let waiting = thread::spawn({
        let publisher = publisher.clone();
        move || publisher.publish("", "nowhere", "2").map(drop)
    });
    thread::sleep(100 * MILLISECOND);
    lossy.proxy.refuse(true);
    lossy.proxy.cut();
    lost(&lossy.events);
    let begin = Instant::now();
    let later = publisher.publish("", "nowhere", "3").map(drop);
    for refused in [waiting.join().unwrap(), later] {
        let error = refused.unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Recovering { .. }),
            "{error}"
        );
    }
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    lossy.proxy.refuse(false);
    recovered(&lossy.events);
    assert!(
        confirm.wait_timeout(SOON).is_err(),
        "the message is returned"
    );
    publisher.publish("", "nowhere", "4").unwrap();
}

#[test]
fn a_silent_peer_does_not_delay_the_end_of_a_recovery() {
    let most = Duration::from_millis(500);
    let lossy = Lossy::with(|options| {
        let options = options.connect_timeout(2 * SOON);
        options.recovery(quick().max_time(most))
    });
    for _ in 0..10 {
        lossy.proxy.plan(Plan {
            fault: Fault::Stall,
            direction: Direction::ToBroker,
            after: 0,
        });
    }
    lossy.proxy.cut();
    lossy.connection.wait_closed(SOON).unwrap();
    let cause = lossy.connection.close_cause().unwrap();
    let ErrorKind::RecoveryGivenUp { after, .. } = cause.kind() else {
        panic!("{cause}");
    };
    assert!(*after >= most, "{cause}");

    // The peer may also fall silent when the client restores the queue.
    let proxy = Arc::new(Proxy::start(&url()));
    let silent = Arc::clone(&proxy);
    let recovery = quick().max_time(most).filter(move |_| {
        silent.drop_all(Direction::ToClient);
        true
    });
    let options = proxy.options().request_timeout(2 * SOON);
    let connection = Connection::open_with(options.recovery(recovery)).unwrap();
    let _queue = exclusive_queue(&connection.open_channel().unwrap());
    proxy.cut();
    connection.wait_closed(SOON).unwrap();
    let cause = connection.close_cause().unwrap();
    let ErrorKind::RecoveryGivenUp { after, .. } = cause.kind() else {
        panic!("{cause}");
    };
    assert!(*after >= most, "{cause}");
}

#[test]
fn a_waiting_rpc_call_is_not_lost_with_the_next_connection() {
    let serving = connect();
    let requests = lasting_queue(&serving.open_channel().unwrap());
    let server = RpcServer::new(&serving);
    server
        .serve(requests.name(), |request| request.body().to_vec())
        .unwrap();
    let mut lost_again = 0;
    for step in 0..10 {
        let lossy = Lossy::new();
        let received = || lossy.proxy.bytes_to_client();
        let of_the_handshake = received();
        let client = RpcClient::new(&lossy.connection).unwrap();
        // Every handshake has as many bytes as the first. The replies to the client's calls follow.
        let after = of_the_handshake + (received() - of_the_handshake) * step / 10;
        lossy.proxy.refuse(true);
        lossy.proxy.cut();
        lost(&lossy.events);
        let calling = thread::spawn({
            let requests = requests.name().to_owned();
            move || client.call("", &requests, "question", SOON)
        });
        thread::sleep(30 * MILLISECOND);
        lossy.proxy.plan(Plan {
            fault: Fault::Cut,
            direction: Direction::ToClient,
            after,
        });
        lossy.proxy.refuse(false);
        let told = recovered(&lossy.events);
        // The call is sent only after the recovery, so an earlier cut cannot lose it. A later cut
        // can.
        let before_it_was_back = told.iter().any(|event| match event {
            ConnectionEvent::RecoveryFailed { error, .. } => {
                !error.to_string().contains("waiting for connection.start")
            }
            _ => false,
        });
        if before_it_was_back {
            lost_again += 1;
            assert_eq!(calling.join().unwrap().unwrap().body(), b"question");
        }
    }
    assert!(lost_again > 0);
    server.shutdown(SOON).unwrap();
}

#[test]
fn a_message_that_closes_the_connection_loses_no_other_message() {
    let lossy = Lossy::new();
    let open = || lossy.connection.open_channel().unwrap();
    let (good, bad) = (open().publisher().unwrap(), open().publisher().unwrap());
    let queue = lasting_queue(good.channel());
    let mut confirms = Vec::new();
    let mut publish = || {
        for number in 0..250 {
            let message = Message::new(number.to_string()).persistent(true);
            confirms.push(good.publish("", queue.name(), message).unwrap());
        }
    };
    publish();
    // Each bad message but the first comes right after the republished ones.
    for _ in 0..4 {
        let immediate = Message::new("m").immediate(true);
        let refused = bad.publish("", queue.name(), immediate).unwrap();
        publish();
        let error = refused.wait_timeout(SOON).unwrap_err();
        let code = error.reply_code();
        assert_eq!(code, Some(ReplyCode::NOT_IMPLEMENTED), "{error}");
    }
    for confirm in confirms {
        confirm.wait_timeout(SOON).unwrap();
    }
    assert_eq!(lossy.connection.loss_count(), 4);
}

#[test]
fn recovery_logs_in_with_the_updated_secret() {
    let node = Node::start();
    let proxy = Proxy::start(&node.uri());
    let options = proxy.options().recovery(quick().fail_fast(true));
    let connection = Connection::open_with(&options).unwrap();
    let events = connection.events();
    node.ctl(&["change_password", "guest", "another"]);
    connection
        .update_secret("another", "it has expired")
        .unwrap();
    node.ctl(&["close_all_connections", "new password"]);
    recovered(&events);
    // The new secret is kept even if the broker cannot take it now.
    proxy.refuse(true);
    proxy.cut();
    lost(&events);
    node.ctl(&["change_password", "guest", "a third"]);
    let error = connection.update_secret("a third", "").unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Recovering { .. }),
        "{error}"
    );
    proxy.refuse(false);
    recovered(&events);
    let shown = format!("{connection:?}");
    assert!(!shown.contains("another") && !shown.contains("a third"));
}

#[test]
fn an_exchange_deleted_before_its_bindings_are_restored_is_redeclared() {
    let gone = Arc::new(Mutex::new(None::<String>));
    let lossy = Lossy::with(|options| {
        let (gone, other) = (Arc::clone(&gone), channel());
        options.recovery(quick().filter(move |entity| {
            let binds = matches!(entity, Entity::Binding { .. });
            if let Some(exchange) = gone.lock().take_if(|_| binds) {
                let deleted = other.exchange_delete(&exchange, Default::default());
                deleted.unwrap();
            }
            true
        }))
    });
    let channel = lossy.connection.open_channel().unwrap();
    let short_lived = ExchangeDeclareOptions::default().auto_delete(true);
    let exchange = channel
        .exchange_declare(&unique("x"), ExchangeKind::Direct, short_lived)
        .unwrap();
    let queue = exclusive_queue(&channel);
    for key in ["one", "two"] {
        queue.bind(&exchange, key).unwrap();
    }
    *gone.lock() = Some(exchange.name().to_owned());
    let told = lossy.lose();
    assert!(gone.lock().is_none());
    // Lost, renamed and recovered: nothing is missing.
    assert_eq!(told.len(), 3, "{told:?}");
    for key in ["one", "two"] {
        exchange.publish(key, key).unwrap();
        assert_eq!(
            queue.get_with(AckMode::Automatic).unwrap().unwrap().body(),
            key.as_bytes()
        );
    }
}
