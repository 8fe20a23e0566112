//! Published messages across losses of the connection.

use std::thread;
use std::time::Duration;

use leveret::{AckMode, ConnectionEvent, ErrorKind, Message, PublisherOptions, ReplyCode};

use super::{lasting_queue, recovered, Lossy};
use crate::support::proxy::Direction;
use crate::support::{channel, eventually, exclusive_queue, ready, unique, SOON};

fn drain(queue: &leveret::Queue) -> Vec<String> {
    let messages = drain_with_ids(queue).into_iter();
    messages.map(|(body, _)| body).collect()
}

fn drain_with_ids(queue: &leveret::Queue) -> Vec<(String, Option<String>)> {
    let fetch = || queue.get_with(AckMode::Automatic).unwrap();
    std::iter::from_fn(fetch)
        .map(|message| {
            let body = String::from_utf8(message.body().to_vec()).unwrap();
            let id = message.message_id().map(str::to_owned);
            (body, id)
        })
        .collect()
}

#[test]
fn unconfirmed_messages_are_republished_in_order_before_newer_ones() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let queue = lasting_queue(&channel);
    let publisher = channel.publisher().unwrap();
    publisher
        .publish("", queue.name(), "0")
        .unwrap()
        .wait()
        .unwrap();
    // The broker gets the next messages, but the client does not get the confirms.
    let watching = self::channel();
    lossy.proxy.drop_all(Direction::ToClient);
    let mut confirms: Vec<_> = (1..=5)
        .map(|number: u32| {
            let message = Message::new(number.to_string()).message_id(number.to_string());
            publisher.publish("", queue.name(), message).unwrap()
        })
        .collect();
    eventually("the messages are in the queue", || {
        ready(&watching, queue.name()) == 6
    });
    // The broker never gets these messages.
    lossy.proxy.drop_all(Direction::ToBroker);
    confirms.extend((6..=8).map(|number: u32| {
        publisher
            .publish("", queue.name(), number.to_string())
            .unwrap()
    }));
    // A message of many frames.
    let large = vec![b'9'; 1 << 20];
    confirms.push(publisher.publish("", queue.name(), &large).unwrap());
    lossy.proxy.refuse(true);
    lossy.proxy.cut();
    super::lost(&lossy.events);
    assert!(confirms
        .iter()
        .all(|confirm| matches!(confirm.try_wait(), Ok(None))));
    assert_eq!(publisher.unconfirmed(), 9);
    // Published while the connection is lost.
    let later = thread::spawn({
        let (publisher, queue) = (publisher.clone(), queue.name().to_owned());
        move || publisher.publish("", &queue, "10").unwrap()
    });
    lossy.proxy.refuse(false);
    recovered(&lossy.events);
    confirms.push(later.join().unwrap());
    for (place, confirm) in confirms.iter().enumerate() {
        confirm.wait_timeout(SOON).unwrap();
        assert_eq!(confirm.sequence_number() as usize, place + 2);
    }
    publisher.wait_for_confirms().unwrap();
    let (mut bodies, ids): (Vec<_>, Vec<_>) = drain_with_ids(&queue).into_iter().unzip();
    assert_eq!(bodies.remove(14).len(), large.len());
    // A message that came twice can be recognised by its id.
    for (body, id) in bodies.iter().zip(&ids) {
        let has_one = matches!(body.as_str(), "1" | "2" | "3" | "4" | "5");
        let expected = has_one.then_some(body);
        assert_eq!(id.as_ref(), expected);
    }
    let order: [&[&str]; 3] = [
        &["0", "1", "2", "3", "4", "5"],
        &["1", "2", "3", "4", "5", "6", "7", "8"],
        &["10"],
    ];
    assert_eq!(bodies, order.concat());
}

#[test]
fn publishing_continues_across_many_losses() {
    const MESSAGES: usize = 20_000;
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let queue = lasting_queue(&channel);
    let publisher = channel
        .publisher_with(PublisherOptions::default().window(100))
        .unwrap();
    let publishing = thread::spawn({
        let queue = queue.name().to_owned();
        move || {
            let publish = |number: usize| publisher.publish("", &queue, number.to_string());
            let confirms: Vec<_> = (0..MESSAGES).map(|it| publish(it).unwrap()).collect();
            for confirm in confirms {
                confirm.wait_timeout(SOON).unwrap();
            }
        }
    });
    let mut losses = 0;
    while !publishing.is_finished() {
        thread::sleep(Duration::from_millis(10));
        lossy.lose();
        losses += 1;
    }
    publishing.join().unwrap();
    assert!(losses > 3, "{losses}");
    // Every message is there, and the first copies are in order.
    let mut next = 0;
    for body in drain(&queue) {
        let number: usize = body.parse().unwrap();
        assert!(number <= next, "{number} came before {next}");
        next = next.max(number + 1);
    }
    assert_eq!(next, MESSAGES);
    let stats = lossy.connection.stats();
    assert_eq!(stats.messages_published as usize, MESSAGES);
}

#[test]
fn republished_messages_can_be_returned() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let publisher = channel.publisher().unwrap();
    lossy.proxy.drop_all(Direction::ToBroker);
    let nowhere = publisher.publish("", &unique("none"), "m").unwrap();
    lossy.lose();
    let error = nowhere.wait_timeout(SOON).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Returned(_)), "{error}");

    // The exchange does not exist, so the broker closes the channel.
    let exchange = unique("x");
    lossy.proxy.drop_all(Direction::ToBroker);
    let lost = publisher.publish(&exchange, "", "m").unwrap();
    lossy.lose();
    let error = lost.wait_timeout(SOON).unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NOT_FOUND), "{error}");
    assert!(error.may_have_been_sent());
    let closed = channel.basic_qos(1).unwrap_err();
    assert_eq!(closed.reply_code(), Some(ReplyCode::NOT_FOUND));
}

#[test]
fn a_message_that_closes_the_connection_is_not_republished() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let publisher = channel.publisher().unwrap();
    let immediate = Message::new("m").immediate(true);
    let confirm = publisher.publish("", "q", immediate).unwrap();
    let error = confirm.wait_timeout(SOON).unwrap_err();
    assert_eq!(
        error.reply_code(),
        Some(ReplyCode::NOT_IMPLEMENTED),
        "{error}"
    );
    let told = recovered(&lossy.events);
    assert_eq!(told.len(), 2, "{told:?}");
    let queue = exclusive_queue(&channel);
    publisher
        .publish("", queue.name(), "m")
        .unwrap()
        .wait()
        .unwrap();
}

#[test]
fn lost_messages_without_a_confirm_are_reported_once() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    channel.confirm_select().unwrap();
    channel.basic_publish("", "nowhere", "confirmed").unwrap();
    channel.wait_for_confirms().unwrap();
    lossy.lose();
    channel.wait_for_confirms().unwrap();

    lossy.proxy.drop_all(Direction::ToBroker);
    let number = channel.basic_publish("", "nowhere", "lost").unwrap();
    assert_eq!(number, Some(2));
    let waiting = thread::spawn({
        let channel = channel.clone();
        move || channel.wait_for_confirms()
    });
    thread::sleep(Duration::from_millis(50));
    lossy.lose();
    let error = waiting.join().unwrap().unwrap_err();
    assert!(error.is_connection_end(), "{error}");
    channel.wait_for_confirms().unwrap();
    // A loss is also reported if no thread waits at that moment.
    lossy.proxy.drop_all(Direction::ToBroker);
    channel.basic_publish("", "nowhere", "lost").unwrap();
    lossy.lose();
    assert_eq!(channel.basic_publish("", "nowhere", "m").unwrap(), Some(4));
    let error = channel.wait_for_confirms().unwrap_err();
    assert!(error.is_connection_end(), "{error}");
    channel.wait_for_confirms().unwrap();
}

#[test]
fn confirmations_report_losses_before_newer_messages() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let queue = lasting_queue(&channel);
    let publisher = channel.publisher().unwrap();
    let confirmations = channel.confirmations();
    queue.publish("confirmed").unwrap();
    channel.wait_for_confirms().unwrap();
    lossy.lose();
    lossy.proxy.drop_all(Direction::ToBroker);
    // Messages 2 and 4 have no `Confirm`.
    queue.publish("lost").unwrap();
    let first = publisher.publish("", queue.name(), "again").unwrap();
    queue.publish("lost").unwrap();
    let last = publisher.publish("", queue.name(), "again").unwrap();
    lossy.lose();
    queue.publish("later").unwrap();
    for confirm in [first, last] {
        confirm.wait_timeout(SOON).unwrap();
    }
    // The publisher does not report the lost messages, which are not its own.
    publisher.wait_for_confirms().unwrap();
    lossy.lose();
    queue.publish("later").unwrap();
    let mut lost = Vec::new();
    let mut answered_to = 0;
    while answered_to < 7 {
        let answer = confirmations.recv_timeout(SOON).unwrap();
        assert_eq!(answer.lost, answer.nack);
        if answer.lost {
            assert!(answer.multiple && answered_to == 1, "{answer:?}");
            lost.push(answer.sequence_number);
        }
        answered_to = answer.sequence_number;
    }
    assert_eq!(lost, [4]);
    assert!(channel.wait_for_confirms().is_err());
    channel.wait_for_confirms().unwrap();
}

#[test]
fn wait_for_confirms_ignores_lost_messages_without_a_confirm() {
    let lossy = Lossy::new();
    let channel = lossy.connection.open_channel().unwrap();
    let queue = lasting_queue(&channel);
    let publisher = channel.publisher().unwrap();
    lossy.proxy.drop_all(Direction::ToBroker);
    publisher.publish("", queue.name(), "again").unwrap();
    queue.publish("lost").unwrap();
    lossy.lose();
    publisher.wait_for_confirms_timeout(SOON).unwrap();
    assert_eq!(drain(&queue), ["again"]);
}

#[test]
fn closing_a_channel_during_an_outage_fails_its_unconfirmed_messages() {
    let lossy = Lossy::new();
    let channels: Vec<_> = (0..2)
        .map(|_| lossy.connection.open_channel().unwrap())
        .collect();
    let publishers: Vec<_> = channels.iter().map(|it| it.publisher().unwrap()).collect();
    lossy.proxy.drop_all(Direction::ToBroker);
    let confirms: Vec<_> = publishers
        .iter()
        .map(|it| it.publish("", "nowhere", "m").unwrap())
        .collect();
    lossy.proxy.refuse(true);
    lossy.proxy.cut();
    super::lost(&lossy.events);
    channels[0].close().unwrap();
    lossy.proxy.refuse(false);
    recovered(&lossy.events);
    let error = confirms[0].wait_timeout(SOON).unwrap_err();
    assert!(error.is_connection_end(), "{error}");
    let error = confirms[1].wait_timeout(SOON).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Returned(_)), "{error}");

    // Closing the connection fails them, too.
    lossy.proxy.drop_all(Direction::ToBroker);
    let confirm = publishers[1].publish("", "nowhere", "m").unwrap();
    lossy.proxy.refuse(true);
    lossy.proxy.cut();
    super::lost(&lossy.events);
    lossy.connection.close().unwrap();
    let error = confirm.wait_timeout(SOON).unwrap_err();
    assert!(error.is_connection_end(), "{error}");
    let last = lossy.events.iter().last();
    assert!(matches!(last, Some(ConnectionEvent::Closed { .. })));
}
