//! A publisher reports the outcome of every message.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use leveret::{
    Confirm, Connection, ConsumeOptions, Error, ErrorKind, Message, PublisherOptions,
    QueueDeclareOptions, ReplyCode, Result,
};

use crate::support::{
    at, channel, connect, eventually, exclusive_queue, logged, ready, scripted_server, short,
    shortest_of_ten, unique, Script, SOON,
};

const SHORT: Duration = Duration::from_millis(300);

fn kinds(error: &Error) -> BTreeMap<u64, ErrorKind> {
    let failed = error.failed_publishes().iter();
    failed
        .map(|it| (it.sequence_number, it.error.kind().clone()))
        .collect()
}

#[test]
fn every_message_has_its_own_outcome() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let full = QueueDeclareOptions::temporary()
        .argument("x-max-length", 1)
        .argument("x-overflow", "reject-publish");
    let full = channel.queue_declare("", full).unwrap();
    let publisher = channel.publisher().unwrap();

    let confirmed = publisher.publish("", queue.name(), "confirmed").unwrap();
    confirmed.wait().unwrap();
    assert_eq!(confirmed.sequence_number(), 1);
    assert_eq!(ready(&channel, queue.name()), 1);
    // Every later wait returns the same outcome.
    confirmed.wait_timeout(Duration::ZERO).unwrap();
    assert_eq!(confirmed.try_wait().unwrap(), Some(()));

    publisher
        .publish("", full.name(), "fits")
        .unwrap()
        .wait()
        .unwrap();
    let nacked = publisher.publish("", full.name(), "nacked").unwrap();
    let error = nacked.wait().unwrap_err();
    let sequence_numbers = vec![3];
    assert_eq!(*error.kind(), ErrorKind::Nacked { sequence_numbers });
    assert!(error.may_have_been_sent());
    assert!(error.to_string().starts_with("message 3: "), "{error}");

    let message = Message::new("back")
        .content_type("text/plain")
        .header("h", 1);
    let returned = publisher
        .publish("amq.direct", "nowhere", &message)
        .unwrap();
    let error = returned.wait().unwrap_err();
    assert_eq!(
        error.to_string(),
        "message 4: returned by the broker: 312 NO_ROUTE - exchange \"amq.direct\", routing key \"nowhere\""
    );
    let back = error.returned_message().unwrap();
    assert_eq!(back.reply_code(), ReplyCode::NO_ROUTE);
    assert_eq!(back.reply_text(), "NO_ROUTE");
    assert_eq!(
        (back.exchange(), back.routing_key()),
        ("amq.direct", "nowhere")
    );
    assert_eq!(back.body(), b"back");
    assert_eq!(back.sequence_number(), Some(4));
    assert_eq!(back.properties().unwrap(), *message.properties().unwrap());
    assert_eq!(returned.try_wait().unwrap_err().kind(), error.kind());

    // A missing queue only returns the message; a missing exchange closes the channel.
    let lost = publisher
        .publish("no such exchange", "key", "lost")
        .unwrap();
    let error = lost.wait().unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND));
    assert!(error.may_have_been_sent());
    assert!(
        error.to_string().starts_with("message 5, which may have been sent: channel 1 was closed by the broker because of basic.publish: 404"),
        "{error}"
    );
    let error = publisher.publish("", queue.name(), "too late").unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND));
    assert!(!error.may_have_been_sent());
}

#[test]
fn wait_for_confirms_lists_every_failure_not_yet_reported() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let publisher = channel.publisher().unwrap();
    publisher.wait_for_confirms().unwrap();
    let mut confirms: Vec<Confirm> = (1..=300)
        .map(|number| {
            let key = if number % 3 == 0 {
                "nowhere"
            } else {
                queue.name()
            };
            publisher.publish("", key, number.to_string()).unwrap()
        })
        .collect();
    // One failure is reported by its handle. The handles of the others may be dropped or not.
    let third = confirms.remove(2);
    assert!(third.wait().is_err());
    confirms.truncate(100);
    let error = publisher.wait_for_confirms().unwrap_err();
    let failed = error.failed_publishes();
    let numbers: Vec<_> = failed.iter().map(|it| it.sequence_number).collect();
    assert_eq!(numbers, (2..=100).map(|it| it * 3).collect::<Vec<_>>());
    for failure in failed {
        let message = failure.error.returned_message().unwrap();
        assert_eq!(
            message.body(),
            failure.sequence_number.to_string().as_bytes()
        );
    }
    assert!(
        error
            .to_string()
            .contains("99 messages failed; first error: message 6: returned"),
        "{error}"
    );
    for (number, confirm) in [1, 2, 4, 5, 6].into_iter().zip(confirms) {
        assert_eq!(confirm.wait().is_ok(), number % 3 != 0);
    }
    publisher.wait_for_confirms().unwrap();

    // The end of the channel fails all unconfirmed messages.
    publisher.publish("", queue.name(), "before").unwrap();
    publisher.publish("no such exchange", "", "why").unwrap();
    let error = publisher.wait_for_confirms().unwrap_err();
    let kinds = kinds(&error);
    assert!(
        matches!(kinds[&302], ErrorKind::ChannelClosed { .. }),
        "{error}"
    );
    publisher.wait_for_confirms().unwrap();
}

#[test]
fn threads_that_share_a_publisher_get_the_outcomes_of_their_own_messages() {
    const THREADS: u32 = 4;
    const MESSAGES: u32 = 5_000;
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let publisher = channel.publisher().unwrap();
    let returned = channel.returned_messages();
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let (publisher, queue) = (publisher.clone(), queue.clone());
            thread::spawn(move || {
                let mut unroutable = 0;
                let confirms: Vec<_> = (0..MESSAGES)
                    .map(|number| {
                        // Each thread has its own pattern, and many messages have equal bodies.
                        let routed = (number * 7 + thread) % (thread + 2) != 0;
                        let key = if routed { queue.name() } else { "nowhere" };
                        let body = format!("{}", (number / 2) * 10 + thread);
                        unroutable += u32::from(!routed);
                        let confirm = publisher.publish("", key, &body).unwrap();
                        (routed, body, confirm)
                    })
                    .collect();
                for (routed, body, confirm) in confirms {
                    match confirm.wait() {
                        Ok(()) => assert!(routed, "message {body} was not returned"),
                        Err(error) => {
                            assert!(!routed, "{body}: {error}");
                            let message = error.returned_message().unwrap();
                            assert_eq!(message.body(), body.as_bytes());
                            assert_eq!(message.sequence_number(), Some(confirm.sequence_number()));
                        }
                    }
                }
                MESSAGES - unroutable
            })
        })
        .collect();
    // basic_publish can use the same channel meanwhile.
    let plain = (0..MESSAGES).filter_map(|number| {
        let message = Message::new(number.to_string()).mandatory(true);
        let key = if number % 50 == 0 {
            "nowhere"
        } else {
            queue.name()
        };
        channel.basic_publish("", key, message).unwrap()
    });
    let plain = plain.count() as u32;
    channel.wait_for_confirms().unwrap();
    let routed: u32 = threads.into_iter().map(|it| it.join().unwrap()).sum();
    publisher.wait_for_confirms().unwrap();
    let returned: Vec<_> = returned.try_iter().collect();
    assert_eq!(returned.len() as u32, MESSAGES / 50);
    for (at, message) in returned.iter().enumerate() {
        assert_eq!(message.body(), (at * 50).to_string().as_bytes());
        assert!(message.sequence_number().is_some());
    }
    assert_eq!(
        ready(&channel, queue.name()),
        routed + plain - MESSAGES / 50
    );
    assert_eq!(publisher.unconfirmed(), 0);
}

#[test]
fn of_two_equal_messages_only_the_unroutable_one_is_returned() {
    let channel = channel();
    let publisher = channel.publisher().unwrap();
    let key = unique("comes and goes");
    for _ in 0..20 {
        let queue = channel
            .queue_declare(&key, QueueDeclareOptions::default())
            .unwrap();
        let routed = publisher
            .publish("", &key, Message::new("m").persistent(true))
            .unwrap();
        queue.delete().unwrap();
        let unroutable = publisher
            .publish("", &key, Message::new("m").persistent(true))
            .unwrap();
        assert!(unroutable.wait().unwrap_err().returned_message().is_some());
        routed.wait().unwrap();
    }
}

/// Opens a connection to a server that confirms messages only as the script says.
fn publish_to(
    script: impl FnOnce(&mut Script) + Send + 'static,
) -> (Connection, thread::JoinHandle<()>) {
    let (address, server) = scripted_server(|server| {
        server.handshake(0);
        server.open_channel();
        server.expect(85, 10);
        server.send_method(1, 85, 11, b"");
        script(server);
    });
    let options = at(address).request_timeout(SOON);
    (Connection::open_with(&options).unwrap(), server)
}

fn ack(server: &mut Script, delivery_tag: u8, multiple: bool) {
    let arguments = [0, 0, 0, 0, 0, 0, 0, delivery_tag, u8::from(multiple)];
    server.send_method(1, 60, 80, &arguments);
}

fn window_full(after: Duration, unconfirmed: usize) -> ErrorKind {
    ErrorKind::WindowFull { unconfirmed, after }
}

#[test]
fn publishing_blocks_only_while_the_window_is_full() {
    let (go, went) = std::sync::mpsc::channel();
    let (connection, server) = publish_to(move |server| {
        for _ in 0..3 {
            server.expect(60, 40);
        }
        went.recv().unwrap();
        // Out of order: the window has room, although the first message is still unconfirmed.
        ack(server, 2, false);
        server.expect(60, 40);
        went.recv().unwrap();
        ack(server, 0, true);
        server.wait_for_end();
    });
    let channel = connection.open_channel().unwrap();
    let options = PublisherOptions::default().window(3).confirm_timeout(SHORT);
    let publisher = channel.publisher_with(options).unwrap();
    let confirms: Vec<_> = (1..=3)
        .map(|_| publisher.publish("", "q", "m").unwrap())
        .collect();
    assert_eq!(publisher.unconfirmed(), 3);
    assert_eq!(confirms[0].try_wait().unwrap(), None);
    let error = confirms[0].wait().unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::TimedOut { after: SHORT });
    assert_eq!(
        error.to_string(),
        "waiting for the confirm of message 1: timed out after 300ms"
    );

    let took = shortest_of_ten(|| {
        let error = publisher.try_publish("", "q", "m").unwrap_err();
        assert_eq!(*error.kind(), window_full(Duration::ZERO, 3));
    });
    assert!(took < SHORT, "{took:?}");
    let error = publisher.publish("", "q", "m").unwrap_err();
    assert_eq!(*error.kind(), window_full(SHORT, 3));
    assert!(error.is_timeout() && !error.may_have_been_sent());
    assert!(publisher.wait_for_confirms().unwrap_err().is_timeout());

    let blocked = thread::spawn({
        let publisher = publisher.clone();
        move || loop {
            match publisher.publish("", "q", "m") {
                Err(error) if error.is_timeout() => {}
                published => break published.unwrap(),
            }
        }
    });
    go.send(()).unwrap();
    let fourth = blocked.join().unwrap();
    assert_eq!(fourth.sequence_number(), 4);
    confirms[1].wait().unwrap();
    assert_eq!(confirms[0].try_wait().unwrap(), None);
    go.send(()).unwrap();
    fourth.wait_timeout(SOON).unwrap();
    publisher.wait_for_confirms().unwrap();
    drop((publisher, channel, confirms, fourth, connection));
    server.join().unwrap();
}

#[test]
fn window_bytes_limits_publishing_but_a_single_message_always_fits() {
    let (connection, server) = publish_to(|server| {
        for answer in [1, 3] {
            server.expect(60, 40);
            if answer == 3 {
                server.expect(60, 40);
            }
            ack(server, answer, true);
        }
        server.wait_for_end();
    });
    let channel = connection.open_channel().unwrap();
    let options = PublisherOptions::default()
        .window_bytes(1000)
        .confirm_timeout(SOON);
    let publisher = channel.publisher_with(options).unwrap();
    publisher
        .publish("", "q", vec![0; 5000])
        .unwrap()
        .wait()
        .unwrap();
    let confirm = publisher.publish("", "q", vec![0; 600]).unwrap();
    let error = publisher.try_publish("", "q", vec![0; 401]).unwrap_err();
    assert_eq!(*error.kind(), window_full(Duration::ZERO, 1));
    publisher
        .try_publish("", "q", vec![0; 400])
        .unwrap()
        .wait()
        .unwrap();
    confirm.wait().unwrap();
    drop((publisher, channel, confirm, connection));
    server.join().unwrap();
}

#[test]
fn publishing_waits_while_the_broker_has_stopped_flow() {
    let (go, went) = std::sync::mpsc::channel();
    let (tell, told) = std::sync::mpsc::channel();
    let (connection, server) = publish_to(move |server| {
        for active in [0, 1] {
            server.send_method(1, 20, 20, &[active]);
            server.expect(20, 21);
            tell.send(()).unwrap();
            went.recv().unwrap();
        }
        server.expect(60, 40);
        ack(server, 1, false);
        server.wait_for_end();
    });
    let channel = connection.open_channel().unwrap();
    let publisher = channel.publisher().unwrap();
    told.recv().unwrap();
    let error = publisher.try_publish("", "q", "m").unwrap_err();
    let after = Duration::ZERO;
    assert_eq!(*error.kind(), ErrorKind::FlowStopped { after });
    assert_eq!(publisher.unconfirmed(), 0);
    go.send(()).unwrap();
    told.recv().unwrap();
    go.send(()).unwrap();
    let confirm = publisher.publish("", "q", "m").unwrap();
    confirm.wait_timeout(SOON).unwrap();
    drop((confirm, publisher, channel, connection));
    server.join().unwrap();
}

#[test]
fn a_confirm_keeps_its_channel_open_and_dropping_a_publisher_early_is_logged() {
    logged::begin();
    let (go, went) = std::sync::mpsc::channel();
    let (connection, server) = publish_to(move |server| {
        for _ in 0..7 {
            server.expect(60, 40);
        }
        went.recv().unwrap();
        ack(server, 7, true);
        // The channel closes only now.
        server.expect(20, 40);
        server.send_method(1, 20, 41, b"");
        server.wait_for_end();
    });
    let channel = connection.open_channel().unwrap();
    let publisher = channel.publisher().unwrap();
    drop(channel);
    for _ in 0..6 {
        publisher.publish("", "q", "m").unwrap();
    }
    let confirm = publisher.publish("", "q", "m").unwrap();
    let peer = connection.peer_addr();
    let warning =
        format!("at {peer}] a publisher of channel 1 was dropped with 7 unconfirmed messages");
    assert!(!logged::has(|it| it.ends_with(&warning)));
    drop(publisher);
    assert!(logged::has(|it| it.ends_with(&warning)));
    go.send(()).unwrap();
    confirm.wait().unwrap();
    drop((confirm, connection));
    server.join().unwrap();
}

#[test]
fn messages_that_never_reach_the_socket_fail_as_unsent() {
    let (go, went) = std::sync::mpsc::channel();
    let (address, server) = scripted_server(move |server| {
        server.handshake(0);
        for channel in 1..=3 {
            server.open_channel();
            if channel != 2 {
                server.expect(85, 10);
                server.send_method(channel, 85, 11, b"");
            }
        }
        // The server reads nothing from now on.
        went.recv().unwrap();
        let close = [&404_u16.to_be_bytes()[..], &short("NOT_FOUND"), &[0; 4]].concat();
        server.send_method(1, 20, 40, &close);
        went.recv().unwrap();
    });
    let options = at(address);
    let connection = Connection::open_with(&options).unwrap();
    let closed = connection.open_channel().unwrap();
    let on_closed = closed.publisher().unwrap();
    let flooding = connection.open_channel().unwrap();
    let on_open = connection.open_channel().unwrap().publisher().unwrap();
    flooding.basic_publish("", "q", vec![0; 64 << 20]).unwrap();
    // The first messages may still be sent; by the last one, the socket has long been full.
    let publish = |publisher: &leveret::Publisher| {
        let confirms = (0..20).map(|_| {
            thread::sleep(Duration::from_millis(10));
            publisher.publish("", "q", "m").unwrap()
        });
        confirms.collect::<Vec<_>>()
    };
    let (first, second) = (publish(&on_closed), publish(&on_open));
    go.send(()).unwrap();
    for confirm in first {
        let error = confirm.wait_timeout(SOON).unwrap_err();
        assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND), "{error}");
    }
    assert_eq!(on_closed.unconfirmed(), 0);
    assert!(second
        .iter()
        .all(|confirm| matches!(confirm.try_wait(), Ok(None))));
    go.send(()).unwrap();
    let errors = second
        .iter()
        .map(|confirm| confirm.wait_timeout(SOON).unwrap_err());
    let errors: Vec<_> = errors.collect();
    let last = &errors[19];
    assert!(
        last.is_connection_end() && !last.may_have_been_sent(),
        "{last}"
    );
    assert!(
        last.to_string()
            .starts_with("message 20, which was not sent: the connection was lost"),
        "{last}"
    );
    server.join().unwrap();
}

#[test]
fn messages_reported_as_unsent_are_not_sent_before_connection_close() {
    let (go, went) = std::sync::mpsc::channel();
    let (address, server) = scripted_server(move |server| {
        server.handshake(0);
        for channel in 1..=2 {
            server.open_channel();
            if channel == 1 {
                server.expect(85, 10);
                server.send_method(1, 85, 11, b"");
            }
        }
        went.recv().unwrap();
        // A protocol violation, so the client sends connection.close.
        server.send_method(1, 20, 11, &[0; 4]);
        went.recv().unwrap();
        let mut published = 0_usize;
        loop {
            let frame = server.next_frame();
            match (frame.channel, frame.method()) {
                (1, Some((60, 40))) => published += 1,
                (0, Some((10, 50))) => return published,
                _ => {}
            }
        }
    });
    let connection = Connection::open_with(at(address)).unwrap();
    let publisher = connection.open_channel().unwrap().publisher().unwrap();
    let flooding = connection.open_channel().unwrap();
    flooding.basic_publish("", "q", vec![0; 64 << 20]).unwrap();
    // The first messages may still be sent; by the last one, the socket has long been full.
    let confirms = (0..20).map(|_| {
        thread::sleep(Duration::from_millis(10));
        publisher.publish("", "q", "m").unwrap()
    });
    let confirms: Vec<_> = confirms.collect();
    go.send(()).unwrap();
    let unsent = confirms.iter().filter(|confirm| {
        let error = confirm.wait_timeout(SOON).unwrap_err();
        !error.may_have_been_sent()
    });
    let unsent = unsent.count();
    assert!(unsent > 0);
    go.send(()).unwrap();
    let published = server.join().unwrap();
    assert!(
        published + unsent <= confirms.len(),
        "{published} messages were sent and {unsent} reported as unsent"
    );
}

#[test]
fn failures_too_large_to_keep_are_counted() {
    let channel = channel();
    let options = PublisherOptions::default().window_bytes(100);
    let publisher = channel.publisher_with(options).unwrap();
    publisher
        .publish("", "nowhere", [1; 80].as_slice())
        .unwrap();
    let second = publisher
        .publish("", "nowhere", [2; 80].as_slice())
        .unwrap();
    second.wait().unwrap_err();
    let error = publisher.wait_for_confirms().unwrap_err();
    let failed = Vec::new();
    assert_eq!(
        *error.kind(),
        ErrorKind::PublishesFailed {
            failed,
            forgotten: 1
        }
    );
    publisher.wait_for_confirms().unwrap();
}

#[test]
fn mandatory_is_the_default_and_can_be_disabled() {
    let channel = channel();
    let lenient = PublisherOptions::default().mandatory(false);
    let lenient = channel.publisher_with(lenient).unwrap();
    let strict = channel.publisher().unwrap();
    strict
        .publish("", "nowhere", "m")
        .unwrap()
        .wait()
        .unwrap_err();
    lenient.publish("", "nowhere", "m").unwrap().wait().unwrap();
    let mandatory = Message::new("m").mandatory(true);
    lenient
        .publish("", "nowhere", mandatory)
        .unwrap()
        .wait()
        .unwrap_err();
}

#[test]
fn invalid_publisher_options_are_refused() {
    let channel = channel();
    for window in [0, 65_537] {
        let options = PublisherOptions::default().window(window);
        let error = channel.publisher_with(options).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("the window must be 1 to 65536 messages, not {window}")
        );
    }
    assert!(channel.is_open());
    channel.tx_select().unwrap();
    let error = channel.publisher().unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::PRECONDITION_FAILED));
}

#[test]
fn the_smallest_and_the_largest_window_work() {
    for window in [1, 65_536] {
        let channel = channel();
        let queue = exclusive_queue(&channel);
        let options = PublisherOptions::default().window(window);
        let publisher = channel.publisher_with(options).unwrap();
        for _ in 0..2_000 {
            publisher.publish("", queue.name(), "m").unwrap();
            assert!(publisher.unconfirmed() <= window as usize);
        }
        publisher.wait_for_confirms().unwrap();
        assert_eq!(ready(&channel, queue.name()), 2_000);
    }
}

#[test]
fn a_large_message_is_confirmed_or_returned_like_any_other() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    let publisher = channel.publisher().unwrap();
    let body = vec![7; 3 << 20];
    let confirmed = publisher.publish("", queue.name(), &body).unwrap();
    let returned = publisher.publish("", "nowhere", &body).unwrap();
    confirmed.wait().unwrap();
    let error = returned.wait().unwrap_err();
    assert!(error.returned_message().unwrap().body() == body);
}

#[test]
fn confirmations_can_be_read_as_they_arrive() {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.confirm_select().unwrap();
    let confirmations = channel.confirmations();
    for _ in 0..1000 {
        queue.publish("m").unwrap();
    }
    channel.wait_for_confirms().unwrap();
    let mut open: Vec<u64> = (1..=1000).collect();
    for answer in confirmations.try_iter() {
        assert!(!answer.nack);
        let number = answer.sequence_number;
        open.retain(|&it| {
            if answer.multiple {
                it > number
            } else {
                it != number
            }
        });
    }
    assert_eq!(open, [0_u64; 0]);
    channel.close().unwrap();
    eventually("the receiver is disconnected", || {
        confirmations.recv_timeout(Duration::ZERO).is_err()
            && channel.confirmations().recv().is_err()
    });
}

#[test]
fn a_million_messages_are_confirmed_and_consumed() -> Result<()> {
    const COUNT: u32 = 1_000_000;
    let connection = connect();
    let channel = connection.open_channel()?;
    // A lazy queue, so that the broker need not keep all messages in memory.
    let lazy = QueueDeclareOptions::default().argument("x-queue-mode", "lazy");
    let queue = channel.queue_declare(&unique("million"), lazy)?;
    let options = PublisherOptions::default().window(1000);
    let publisher = channel.publisher_with(options)?;
    let mut body = [b'.'; 1024];
    for number in 0..COUNT {
        body[..4].copy_from_slice(&number.to_be_bytes());
        publisher.publish("", queue.name(), Message::new(body).persistent(true))?;
    }
    publisher.wait_for_confirms()?;
    assert_eq!(ready(&channel, queue.name()), COUNT);

    let consuming = connection.open_channel()?;
    consuming.basic_qos(2000)?;
    let consumer = consuming.basic_consume(queue.name(), ConsumeOptions::default())?;
    for number in 0..COUNT {
        let delivery = consumer.recv_timeout(SOON)?.expect("all messages come");
        assert_eq!(delivery.body()[..4], number.to_be_bytes());
        assert_eq!(delivery.body().len(), 1024);
        if number % 500 == 499 {
            delivery.ack_multiple()?;
        }
    }
    queue.delete()?;
    Ok(())
}
