//! Connections with several endpoints.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use leveret::broker::Broker;
use leveret::{Connection, ConnectionEvent, ConnectionOptions, ErrorKind};

use crate::recovery::recovered;
use crate::support::proxy::quick;
use crate::support::{address_of, options, scripted_server, url};

/// Each endpoint's share of the connect timeout. A silent endpoint costs all of its share. An
/// endpoint that answers needs far less, even on a busy machine.
const SHARE: Duration = Duration::from_secs(4);
const TIMEOUT: Duration = SHARE.saturating_mul(2);

/// An address without a listener.
fn closed() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

fn to(address: SocketAddr) -> ConnectionOptions {
    let host = address.ip().to_string();
    ConnectionOptions::default().host(host).port(address.port())
}

#[test]
fn the_first_endpoint_that_works_is_used_and_a_silent_one_costs_its_share() {
    let (silent, server) = scripted_server(|server| {
        server.wait_for_end();
    });
    let broker = Connection::open_with(options()).unwrap().peer_addr();
    let ip = |address: SocketAddr| address.ip().to_string();
    let several = to(closed())
        .endpoint(ip(silent), silent.port())
        .endpoint(ip(broker), broker.port())
        .connect_timeout(TIMEOUT);
    let begin = Instant::now();
    let connection = Connection::open_with(&several).unwrap();
    // The silent endpoint has half of the time that the closed one has left.
    let elapsed = begin.elapsed();
    assert!(elapsed >= SHARE - SHARE / 10, "{elapsed:?}");
    assert!(elapsed < TIMEOUT, "{elapsed:?}");
    assert_eq!(connection.peer_addr(), broker);
    connection.close().unwrap();
    server.join().unwrap();
}

#[test]
fn the_error_lists_the_error_of_each_endpoint() {
    let (hangs_up, server) = scripted_server(|server| server.expect_header());
    let (closed, broker) = (closed(), address_of(&url()).to_string());
    let uri = format!("amqp://guest:wr0ng@{closed},{hangs_up},{broker}");
    let error = Connection::open(&uri).unwrap_err();
    let ErrorKind::EndpointsFailed(failed) = error.kind() else {
        panic!("{error}");
    };
    let endpoints: Vec<_> = failed.iter().map(|it| it.endpoint.clone()).collect();
    let expected = [closed.to_string(), hangs_up.to_string(), broker];
    assert_eq!(endpoints, expected);
    let kinds = failed.iter().map(|it| it.error.kind()).collect::<Vec<_>>();
    assert!(
        matches!(
            kinds[..],
            [
                ErrorKind::ConnectFailed { .. },
                ErrorKind::SocketClosed { .. },
                ErrorKind::LoginRefused { .. }
            ]
        ),
        "{error}"
    );
    let text = error.to_string();
    let parts = ["refused", "waiting for connection.start"];
    for part in expected.iter().map(String::as_str).chain(parts) {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains("wr0ng"), "{text}");
    server.join().unwrap();
}

#[test]
fn endpoints_are_tried_in_order_unless_shuffled() {
    const TRIES: usize = 24;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let addresses = [0, 1].map(|number| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, heard) = (listener.local_addr().unwrap(), Arc::clone(&heard));
        thread::spawn(move || {
            for _ in 0..2 * TRIES {
                // Count the connection, then close it.
                let _socket = listener.accept().unwrap();
                heard.lock().unwrap().push(number);
            }
        });
        address
    });
    let [first, second] = addresses;
    let in_order = to(first).endpoint(second.ip().to_string(), second.port());
    let shuffled = in_order.clone().shuffle_endpoints(true);
    let first_heard = |options: &ConnectionOptions| {
        let error = Connection::open_with(options).unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::EndpointsFailed(_)),
            "{error}"
        );
        let heard = std::mem::take(&mut *heard.lock().unwrap());
        assert_eq!(heard.len(), 2);
        heard[0]
    };
    for _ in 0..TRIES {
        assert_eq!(first_heard(&in_order), 0);
    }
    // The chance that all orders are equal is one in eight million.
    let shuffled: Vec<_> = (0..TRIES).map(|_| first_heard(&shuffled)).collect();
    assert!(
        shuffled.contains(&0) && shuffled.contains(&1),
        "{shuffled:?}"
    );
}

/// Waits until the connection is back, and returns how long that took.
#[track_caller]
fn back_after(events: &Receiver<ConnectionEvent>) -> Duration {
    match recovered(events).pop() {
        Some(ConnectionEvent::Recovered { attempts: 1, after }) => after,
        last => panic!("{last:?}"),
    }
}

#[test]
fn a_recovery_starts_with_the_endpoint_that_worked_last() {
    // The system accepts connections for this listener, which never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let broker = Broker::start().unwrap();
    let address = broker.address();
    let options = to(silent.local_addr().unwrap())
        .endpoint(address.ip().to_string(), address.port())
        .connect_timeout(TIMEOUT)
        .recovery(quick());
    let begin = Instant::now();
    let connection = Connection::open_with(&options).unwrap();
    assert!(begin.elapsed() >= SHARE, "{:?}", begin.elapsed());
    let events = connection.events();
    for _ in 0..2 {
        broker.drop_connections();
        let after = back_after(&events);
        assert!(after < SHARE, "{after:?}");
    }
    connection.close().unwrap();
}

#[test]
fn a_recovery_tries_the_silent_endpoint_last() {
    let [first, second] = [(); 2].map(|()| Broker::start().unwrap());
    let address = second.address();
    let options = to(first.address())
        .endpoint(address.ip().to_string(), address.port())
        .heartbeat(Duration::from_secs(1))
        .connect_timeout(TIMEOUT)
        .recovery(quick());
    let connection = Connection::open_with(&options).unwrap();
    let events = connection.events();
    assert_eq!(connection.peer_addr(), first.address());
    first.stop_answering(true);
    let after = back_after(&events);
    assert!(after < SHARE, "{after:?}");
    assert_eq!(connection.peer_addr(), second.address());
    connection.close().unwrap();
}
