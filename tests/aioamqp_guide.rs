//! The example programs of aioamqp's guide, translated.
use leveret::{
    ClosedBy, Connection, ConsumeOptions, ErrorKind, ExchangeDeclareOptions, ExchangeKind,
    QueueDeclareOptions,
};

use crate::support::{connect, options, unique, SOON};

#[test]
fn connecting_with_defaults() {
    // The broker under test has another port; everything else is the default.
    let defaults = leveret::ConnectionOptions::default();
    assert_eq!(defaults.to_string(), "amqp://guest@localhost:5672/%2F");
    let uri = crate::support::url();
    let port = options()
        .to_string()
        .rsplit_once(':')
        .unwrap()
        .1
        .split_once('/')
        .unwrap()
        .0
        .parse()
        .unwrap();
    let connection = Connection::open_with(defaults.port(port)).unwrap();
    assert!(connection.is_open());
    Connection::open(&uri).unwrap();
}

#[test]
fn publishing_through_a_queue_handle_and_consuming() {
    let connection = connect();
    let channel = connection.open_channel().unwrap();
    let queue = channel
        .queue_declare(&unique("queue"), QueueDeclareOptions::temporary())
        .unwrap();
    queue.publish("aioamqp hello").unwrap();

    let consumer = queue.consume().unwrap();
    let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
    let taken = (
        delivery.consumer_tag(),
        delivery.delivery_tag(),
        delivery.body(),
    );
    assert_eq!(taken, (consumer.consumer_tag(), 1, &b"aioamqp hello"[..]));
    delivery.ack().unwrap();
}

#[test]
fn a_fanout_exchange_bound_to_a_queue() {
    let connection = connect();
    let channel = connection.open_channel().unwrap();
    let options = ExchangeDeclareOptions::default().auto_delete(true);
    let exchange = channel
        .exchange_declare(&unique("logs"), ExchangeKind::Fanout, options)
        .unwrap();
    let queue = channel
        .queue_declare("", QueueDeclareOptions::temporary())
        .unwrap();
    queue.bind(&exchange, "").unwrap();
    let consumer = queue
        .consume_with(ConsumeOptions::default().no_ack(true))
        .unwrap();
    exchange.publish("", "to everyone").unwrap();
    let delivery = consumer.recv_timeout(SOON).unwrap().unwrap();
    assert_eq!(
        (delivery.exchange(), delivery.body()),
        (exchange.name(), &b"to everyone"[..])
    );
}

#[test]
fn closing_and_waiting_until_closed_with_a_timeout() {
    let connection = connect();
    let channel = connection.open_channel().unwrap();
    connection.close().unwrap();
    connection.wait_closed(SOON).unwrap();
    // aioamqp raises an exception type of its own for a closed connection.
    let error = channel
        .queue_declare("q", QueueDeclareOptions::default())
        .unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::ConnectionClosed(reason) if reason.by == ClosedBy::Program)
    );
}
