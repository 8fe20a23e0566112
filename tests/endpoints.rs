//! Several places to connect to.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use leveret::{Connection, ConnectionOptions, ErrorKind};

use crate::support::{options, scripted_server, url};

/// Where nobody listens.
fn closed() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

fn to(address: SocketAddr) -> ConnectionOptions {
    let host = address.ip().to_string();
    ConnectionOptions::default().host(host).port(address.port())
}

#[test]
fn the_first_endpoint_that_can_be_used_is_used_and_a_silent_one_costs_its_share() {
    let (silent, server) = scripted_server(|server| {
        server.wait_for_end();
    });
    let broker = Connection::open_with(&options()).unwrap().peer_addr();
    let ip = |address: SocketAddr| address.ip().to_string();
    let several = to(closed())
        .endpoint(ip(silent), silent.port())
        .endpoint(ip(broker), broker.port())
        .connect_timeout(Duration::from_secs(4));
    let begin = Instant::now();
    let connection = Connection::open_with(&several).unwrap();
    // Half of what the closed one has left.
    let elapsed = begin.elapsed();
    assert!(elapsed >= Duration::from_millis(1900), "{elapsed:?}");
    assert!(elapsed < Duration::from_millis(3900), "{elapsed:?}");
    assert_eq!(connection.peer_addr(), broker);
    connection.close().unwrap();
    server.join().unwrap();
}

#[test]
fn the_error_lists_what_each_endpoint_said() {
    let (hangs_up, server) = scripted_server(|server| server.expect_header());
    let (nobody, broker) = (closed(), url());
    let broker = broker.rsplit_once('@').unwrap().1;
    let broker = broker.split_once('/').unwrap().0;
    let uri = format!("amqp://guest:wr0ng@{nobody},{hangs_up},{broker}");
    let error = Connection::open(&uri).unwrap_err();
    let ErrorKind::EndpointsFailed(failed) = error.kind() else {
        panic!("{error}");
    };
    let endpoints: Vec<_> = failed.iter().map(|it| it.endpoint.clone()).collect();
    let expected = [&nobody.to_string(), &hangs_up.to_string(), broker];
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
    for part in [&expected[..], &["refused", "waiting for connection.start"]].concat() {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains("wr0ng"), "{text}");
    server.join().unwrap();
}

#[test]
fn shuffled_endpoints_are_tried_in_any_order_and_others_in_theirs() {
    const TRIES: usize = 24;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let addresses = [0, 1].map(|number| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, heard) = (listener.local_addr().unwrap(), Arc::clone(&heard));
        thread::spawn(move || {
            for _ in 0..2 * TRIES {
                // Heard and hung up on.
                let _socket = listener.accept().unwrap();
                heard.lock().unwrap().push(number);
            }
        });
        address
    });
    let [first, second] = addresses;
    let in_order = to(first).endpoint(second.ip().to_string(), second.port());
    let shuffled = in_order.clone().shuffle_endpoints();
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
    // That all of them are the same has a chance of one in eight million.
    let shuffled: Vec<_> = (0..TRIES).map(|_| first_heard(&shuffled)).collect();
    assert!(
        shuffled.contains(&0) && shuffled.contains(&1),
        "{shuffled:?}"
    );
}
