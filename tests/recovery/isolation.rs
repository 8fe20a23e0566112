//! An entity that hangs or closes the connection does not take others with it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{mpsc, Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use leveret::{
    Channel, Connection, ConnectionEvent, Entity, ErrorKind, ExchangeDeclareOptions, ExchangeKind,
    FieldTable, Message, PublisherOptions, QueueDeclareOptions, ReplyCode,
};

use super::{lasting_queue, lost, recovered};
use crate::support::interceptor::{Interceptor, Verdict};
use crate::support::proxy::quick;
use crate::support::{at, channel, scripted_connections, short, unique, Frame, Script, SOON};

const AT_ONCE: Duration = Duration::ZERO;

const QUEUE_DECLARE: (u16, u16) = (50, 10);
const QUEUE_BIND: (u16, u16) = (50, 20);
const BASIC_CONSUME: (u16, u16) = (60, 20);
const CONNECTION_CLOSE: (u16, u16) = (10, 50);

/// Applies the verdict, while armed, to each such method that contains this name.
fn judge(
    method: (u16, u16),
    name: &str,
    verdict: Verdict,
) -> (Arc<AtomicBool>, impl Fn(usize, &Frame) -> Verdict) {
    let (armed, name) = (Arc::new(AtomicBool::new(false)), name.to_owned());
    let is_armed = Arc::clone(&armed);
    let judge = move |_: usize, frame: &Frame| {
        let is_it = frame.method() == Some(method) && contains(&frame.payload, &name);
        match is_it && is_armed.load(Ordering::SeqCst) {
            true => verdict,
            false => Verdict::Pass,
        }
    };
    (armed, judge)
}

fn contains(payload: &[u8], name: &str) -> bool {
    payload.windows(name.len()).any(|it| it == name.as_bytes())
}

/// Reads events until one reports that this entity is back.
#[track_caller]
fn recovered_later(events: &Receiver<ConnectionEvent>, wanted: &Entity) {
    loop {
        match events.recv_timeout(SOON).unwrap() {
            ConnectionEvent::RecoveredLater { entity } if entity == *wanted => return,
            ConnectionEvent::RecoveredLater { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

fn not_recovered(told: &[ConnectionEvent]) -> Vec<&Entity> {
    let entities = told.iter().filter_map(|event| match event {
        ConnectionEvent::NotRecovered { entity, .. } => Some(entity),
        _ => None,
    });
    entities.collect()
}

#[test]
fn a_declare_without_an_answer_does_not_delay_other_queues() {
    let name = unique("hung");
    let (armed, judge) = judge(QUEUE_DECLARE, &name, Verdict::Hang);
    let interceptor = Interceptor::start(judge);
    let timeout = Duration::from_secs(6);
    let recovery = quick().entity_timeout(timeout);
    let connection = Connection::open_with(interceptor.options().recovery(recovery)).unwrap();
    let events = connection.events();
    let declaring = connection.open_channel().unwrap();
    let options = QueueDeclareOptions::default().expires(Duration::from_secs(60));
    let hung = declaring.queue_declare(&name, options).unwrap();
    let waiting = hung.consume().unwrap();
    let well = lasting_queue(&connection.open_channel().unwrap());
    let consumer = well.consume().unwrap();
    armed.store(true, Ordering::SeqCst);
    interceptor.cut(AT_ONCE);
    lost(&events);
    let begin = Instant::now();
    channel().basic_publish("", well.name(), "m").unwrap();
    let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
    delivery.ack().unwrap();
    // The other queue does not wait for the timeout of this one.
    assert!(begin.elapsed() < timeout, "{:?}", begin.elapsed());
    let told = recovered(&events);
    let hung = Entity::Queue { name: name.clone() };
    let lacking = Entity::Consumer {
        queue: name.clone(),
        consumer_tag: waiting.consumer_tag().to_owned(),
    };
    assert_eq!(not_recovered(&told), [&hung, &lacking], "{told:?}");
    // Neither entity is reported again, or costs time again.
    let begin = Instant::now();
    interceptor.cut(AT_ONCE);
    lost(&events);
    let told = recovered(&events);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(begin.elapsed() < timeout, "{:?}", begin.elapsed());
    // The client retries the queue on another connection until the broker answers.
    let before = interceptor.connections();
    armed.store(false, Ordering::SeqCst);
    recovered_later(&events, &hung);
    channel().basic_publish("", &name, "m").unwrap();
    assert!(waiting.recv_timeout(SOON).unwrap().is_some());
    assert!(interceptor.connections() > before);
    assert_eq!(connection.loss_count(), 2);
}

#[test]
fn bindings_without_an_answer_come_last_and_are_left_out_the_next_time() {
    let key = unique("hung");
    let (armed, judge) = judge(QUEUE_BIND, &key, Verdict::Hang);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let asked_on = Arc::clone(&asked);
    let interceptor = Interceptor::start(move |connection, frame| {
        let verdict = judge(connection, frame);
        if verdict == Verdict::Hang {
            asked_on.lock().unwrap().push(connection);
        }
        verdict
    });
    // Within this timeout, everything else must be answered.
    let recovery = quick().entity_timeout(Duration::from_secs(2));
    let connection = Connection::open_with(interceptor.options().recovery(recovery)).unwrap();
    let events = connection.events();
    let channel = connection.open_channel().unwrap();
    let queue = lasting_queue(&channel);
    for number in 0..30 {
        let key = format!("{key}-{number}");
        queue.bind(channel.exchange("amq.topic"), &key).unwrap();
    }
    queue.bind(channel.exchange("amq.direct"), "well").unwrap();
    let consumer = queue.consume().unwrap();
    armed.store(true, Ordering::SeqCst);
    interceptor.cut(AT_ONCE);
    lost(&events);
    self::channel()
        .basic_publish("", queue.name(), "m")
        .unwrap();
    let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
    delivery.ack().unwrap();
    // All thirty bindings share the time of two entities: they do not take a minute.
    let told = recovered(&events);
    let Some(ConnectionEvent::Recovered { after, .. }) = told.last() else {
        panic!("{told:?}");
    };
    assert!(*after < SOON, "{after:?}");
    assert_eq!(not_recovered(&told).len(), 30, "{told:?}");
    // The program's own connection asks for none of them again, neither now nor after the next
    // loss.
    let mut of_program = 1;
    assert!(asked.lock().unwrap().contains(&of_program));
    for _ in 0..2 {
        let before = interceptor.connections();
        interceptor.cut(AT_ONCE);
        lost(&events);
        let told = recovered(&events);
        assert_eq!(not_recovered(&told).len(), 0, "{told:?}");
        of_program = of_program.max(before);
        channel.basic_qos(1).unwrap();
    }
    self::channel()
        .basic_publish("amq.direct", "well", "m")
        .unwrap();
    let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
    delivery.ack().unwrap();
    armed.store(false, Ordering::SeqCst);
    let mut found = 0;
    while found < 30 {
        let event = events.recv_timeout(SOON).unwrap();
        assert!(
            matches!(event, ConnectionEvent::RecoveredLater { .. }),
            "{event:?}"
        );
        found += 1;
    }
}

#[test]
fn a_queue_that_closes_the_connection_is_found_and_left_out_while_it_does() {
    let name = unique("poison");
    let (armed, judge) = judge(QUEUE_DECLARE, &name, Verdict::Close(541));
    let interceptor = Interceptor::start(judge);
    let connection = Connection::open_with(interceptor.options()).unwrap();
    let events = connection.events();
    let channel = connection.open_channel().unwrap();
    let expires = QueueDeclareOptions::default().expires(Duration::from_secs(60));
    let mut consumers = Vec::new();
    for number in 0..10 {
        let name = match number {
            4 => name.clone(),
            _ => unique("q"),
        };
        let queue = channel.queue_declare(&name, expires.clone()).unwrap();
        let consumer = queue.consume().unwrap();
        consumers.push((queue, consumer));
    }
    armed.store(true, Ordering::SeqCst);
    interceptor.cut(AT_ONCE);
    let told = recovered(&events);
    let poison = Entity::Queue { name: name.clone() };
    assert_eq!(not_recovered(&told), [&poison], "{told:?}");
    // The first attempt asks for all queues together, the second for each alone, the third leaves
    // one out.
    let failed = |it: &&ConnectionEvent| matches!(it, ConnectionEvent::RecoveryFailed { .. });
    assert_eq!(told.iter().filter(failed).count(), 2, "{told:?}");
    // After the next loss, the client does not ask for the queue.
    interceptor.cut(AT_ONCE);
    let told = recovered(&events);
    assert_eq!(told.len(), 2, "{told:?}");
    let epoch = connection.loss_count();
    armed.store(false, Ordering::SeqCst);
    recovered_later(&events, &poison);
    assert_eq!(connection.loss_count(), epoch);
    // All consumers work.
    for (queue, consumer) in &consumers {
        self::channel()
            .basic_publish("", queue.name(), "m")
            .unwrap();
        assert!(consumer.recv_timeout(SOON).unwrap().is_some());
    }
}

#[test]
fn a_consumer_that_closes_the_connection_is_found_and_restored_later() {
    let tag = unique("poison");
    let (armed, judge) = judge(BASIC_CONSUME, &tag, Verdict::Close(541));
    let interceptor = Interceptor::start(judge);
    let connection = Connection::open_with(interceptor.options()).unwrap();
    let events = connection.events();
    let channels = [(); 5].map(|()| connection.open_channel().unwrap());
    let queue = lasting_queue(&channels[0]);
    let consumers = channels.each_ref().map(|channel| {
        let options = leveret::ConsumeOptions::default();
        let options = match channel.number() {
            3 => options.consumer_tag(&tag),
            _ => options,
        };
        channel.basic_consume(queue.name(), options).unwrap()
    });
    armed.store(true, Ordering::SeqCst);
    interceptor.cut(AT_ONCE);
    let told = recovered(&events);
    let poison = Entity::Consumer {
        queue: queue.name().to_owned(),
        consumer_tag: tag,
    };
    assert_eq!(not_recovered(&told), [&poison], "{told:?}");
    assert!(!consumers[2].has_ended());
    armed.store(false, Ordering::SeqCst);
    recovered_later(&events, &poison);
    let watching = channel();
    let asked = watching.queue_declare_passive(queue.name()).unwrap();
    assert_eq!(asked.consumer_count(), Some(5));
}

#[test]
fn messages_that_close_the_connection_are_found_in_a_full_window() {
    const WINDOW: usize = 1000;
    let is_bad = |payload: &[u8]| contains(payload, "costs the connection");
    let interceptor = Interceptor::start(move |_, frame| match frame.kind {
        3 if is_bad(&frame.payload) => Verdict::Close(541),
        _ => Verdict::Pass,
    });
    let connection = Connection::open_with(interceptor.options()).unwrap();
    let channel = connection.open_channel().unwrap();
    let queue = lasting_queue(&channel);
    let window = PublisherOptions::default().window(WINDOW as u32);
    let publisher = channel.publisher_with(window).unwrap();
    let begin = Instant::now();
    let confirms: Vec<_> = (0..WINDOW)
        .map(|number| {
            let body = match number {
                300 | 700 => "costs the connection".to_owned(),
                _ => number.to_string(),
            };
            publisher.publish("", queue.name(), body).unwrap()
        })
        .collect();
    for (number, confirm) in confirms.iter().enumerate() {
        let outcome = confirm.wait_timeout(SOON);
        match number {
            300 | 700 => {
                let error = outcome.unwrap_err();
                let code = error.reply_code();
                assert_eq!(code, Some(ReplyCode::INTERNAL_ERROR), "{error}");
                let is_close = matches!(error.kind(), ErrorKind::ConnectionClosed(_));
                assert!(is_close && error.may_have_been_sent(), "{error:?}");
            }
            _ => outcome.unwrap(),
        }
    }
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    // All good messages are there in order, each at most three times.
    let consumer = queue.consume().unwrap();
    let mut counts = vec![0; WINDOW];
    let mut last_new = None;
    while counts.iter().filter(|it| **it > 0).count() < WINDOW - 2 {
        let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
        let number: usize = std::str::from_utf8(delivery.body())
            .unwrap()
            .parse()
            .unwrap();
        if counts[number] == 0 {
            assert!(last_new < Some(number), "{number} after {last_new:?}");
            last_new = Some(number);
        }
        counts[number] += 1;
        delivery.ack().unwrap();
    }
    assert!(counts.iter().all(|it| *it <= 3), "{counts:?}");
}

#[test]
fn an_exclusive_queue_still_held_by_the_broker_is_back_before_publishing() {
    let interceptor = Interceptor::start(|_, _| Verdict::Pass);
    let connection = Connection::open_with(interceptor.options()).unwrap();
    let events = connection.events();
    let channel = connection.open_channel().unwrap();
    let exclusive = QueueDeclareOptions::temporary();
    let queue = channel.queue_declare(&unique("own"), exclusive).unwrap();
    queue
        .bind(channel.exchange("amq.topic"), queue.name())
        .unwrap();
    let consumer = queue.consume().unwrap();
    let publisher = channel.publisher().unwrap();
    interceptor.cut(Duration::from_millis(400));
    let told = recovered(&events);
    assert_eq!(told.len(), 2, "{told:?}");
    let confirm = publisher.publish("amq.topic", queue.name(), "m").unwrap();
    confirm.wait_timeout(SOON).unwrap();
    assert!(consumer.recv_timeout(SOON).unwrap().is_some());
}

#[test]
fn close_with_ends_at_its_timeout_when_the_broker_hangs() {
    const TIMEOUT: Duration = Duration::from_millis(300);
    // The broker ends a connection only after all its channels have ended.
    let hangs = |ids| matches!(ids, Some(QUEUE_DECLARE | CONNECTION_CLOSE));
    let (asks, asked) = crossbeam_channel::unbounded();
    let interceptor = Interceptor::start(move |_, frame| match hangs(frame.method()) {
        true => {
            asks.send(()).unwrap();
            Verdict::Hang
        }
        false => Verdict::Pass,
    });
    let connection = Connection::open_with(interceptor.options()).unwrap();
    let channel = connection.open_channel().unwrap();
    let hung = thread::spawn(move || channel.queue_declare("hung", Default::default()));
    asked.recv_timeout(SOON).unwrap();
    let begin = Instant::now();
    let closed = connection.close_timeout(TIMEOUT);
    let error = closed.unwrap_err();
    assert!(error.is_timeout() && !connection.is_open(), "{error}");
    // The close did not wait for a request timeout.
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    let error = hung.join().unwrap().unwrap_err();
    assert!(error.is_connection_end(), "{error}");
}

#[test]
fn a_refused_binding_does_not_affect_others() {
    let interceptor = Interceptor::start(|_, _| Verdict::Pass);
    let connection = Connection::open_with(interceptor.options()).unwrap();
    let events = connection.events();
    let channel = connection.open_channel().unwrap();
    let queue = lasting_queue(&channel);
    // This binding is restored first.
    let (gone, other) = (unique("aa-gone"), self::channel());
    let options = ExchangeDeclareOptions::default();
    other
        .exchange_declare(&gone, ExchangeKind::Direct, options)
        .unwrap();
    queue.bind(channel.exchange(&gone), "k").unwrap();
    let keys = [(); 5].map(|()| unique("key"));
    for key in &keys {
        queue.bind(channel.exchange("amq.direct"), key).unwrap();
    }
    other.exchange_delete(&gone, Default::default()).unwrap();
    // Another program removes the bindings.
    for key in &keys {
        other
            .queue_unbind(queue.name(), "amq.direct", key, FieldTable::new())
            .unwrap();
    }
    interceptor.cut(AT_ONCE);
    let told = recovered(&events);
    let refused = Entity::Binding {
        source: gone,
        destination: queue.name().to_owned(),
        routing_key: "k".to_owned(),
    };
    assert_eq!(not_recovered(&told), [&refused], "{told:?}");
    let publisher = channel.publisher_with(PublisherOptions::default().mandatory(true));
    let publisher = publisher.unwrap();
    for key in &keys {
        let confirm = publisher.publish("amq.direct", key, "m").unwrap();
        confirm.wait_timeout(SOON).unwrap();
    }
}

#[test]
fn bindings_that_differ_only_in_their_arguments_are_distinguished() {
    let colour = unique("red");
    let (armed, judge) = judge(QUEUE_BIND, &colour, Verdict::Hang);
    let interceptor = Interceptor::start(judge);
    // Within this timeout, everything else must be answered.
    let recovery = quick().entity_timeout(Duration::from_secs(2));
    let connection = Connection::open_with(interceptor.options().recovery(recovery)).unwrap();
    let events = connection.events();
    let channel = connection.open_channel().unwrap();
    let queue = lasting_queue(&channel);
    // One binding is restored before it, and one after it.
    let colours = ["blue", &colour, "a colour whose name is longer"];
    let bind = |channel: &Channel, colour: &str| {
        let options = FieldTable::new().with("colour", colour);
        channel.queue_bind(queue.name(), "amq.headers", "", options)
    };
    for colour in colours {
        bind(&channel, colour).unwrap();
    }
    armed.store(true, Ordering::SeqCst);
    interceptor.cut(AT_ONCE);
    let told = recovered(&events);
    let hung = not_recovered(&told);
    assert_eq!(hung.len(), 1, "{told:?}");
    let hung = hung[0].clone();
    // The binding is missing, although similar ones exist.
    let other = self::channel();
    let options = FieldTable::new().with("colour", &*colour);
    other
        .queue_unbind(queue.name(), "amq.headers", "", options)
        .unwrap();
    armed.store(false, Ordering::SeqCst);
    recovered_later(&events, &hung);
    let publisher = channel.publisher_with(PublisherOptions::default().mandatory(true));
    let publisher = publisher.unwrap();
    for colour in colours {
        let message = Message::new("m").header("colour", colour);
        let confirm = publisher.publish("amq.headers", "", message).unwrap();
        confirm.wait_timeout(SOON).unwrap();
    }
}

#[test]
fn a_late_confirm_ends_every_wait() {
    let published = |server: &mut Script| loop {
        let frame = server.next_frame();
        match (frame.method(), frame.kind) {
            (Some((20, 10)), _) => server.send_method(frame.channel, 20, 11, &[0; 4]),
            (Some((85, 10)), _) if frame.payload.last() == Some(&0) => {
                server.send_method(frame.channel, 85, 11, &[]);
            }
            (_, 3) => return (frame.channel, frame.payload),
            _ => {}
        }
    };
    let close = [
        &541_u16.to_be_bytes()[..],
        &short("INTERNAL_ERROR"),
        &[0; 4],
    ]
    .concat();
    let ack = |tag: u64| [&tag.to_be_bytes()[..], &[0]].concat();
    let (done, is_done) = mpsc::channel();
    let (address, server) = scripted_connections(3, move |connection, server| {
        server.handshake(0);
        let (channel, body) = published(server);
        assert_eq!(body, b"1");
        if connection < 2 {
            assert_eq!(published(server).1, b"2");
            server.send_method(0, 10, 50, &close);
            server.wait_for_end();
            return;
        }
        // The second message is published alone after the first one's time is over.
        assert_eq!(published(server).1, b"2");
        server.send_method(channel, 60, 80, &ack(1));
        server.send_method(channel, 60, 80, &ack(2));
        is_done.recv().unwrap();
    });
    // Within this timeout, the broker must open the channels.
    let recovery = quick().entity_timeout(Duration::from_secs(2));
    let connection = Connection::open_with(at(address).recovery(recovery)).unwrap();
    let channel = connection.open_channel().unwrap();
    let publisher = channel.publisher().unwrap();
    let confirms = ["1", "2"].map(|body| publisher.publish("", "q", body).unwrap());
    for confirm in confirms {
        confirm.wait_timeout(SOON).unwrap();
    }
    channel.wait_for_confirms_timeout(SOON).unwrap();
    done.send(()).unwrap();
    server.join().unwrap();
}
