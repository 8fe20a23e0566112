//! Credentials that a function returns, and opening a connection with retries.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{mpsc, Arc};
use std::time::{Duration, Instant};

use leveret::{Connection, ConnectionEvent, ConnectionOptions, Credentials, ErrorKind};

use crate::recovery::recovered;
use crate::support::proxy::quick;
use crate::support::{at, scripted_connections, SOON};

/// How long a secret is valid. The client renews it earlier. The test cuts the connection before
/// the next renewal.
const SHORT: Duration = Duration::from_secs(4);

/// Returns numbered secrets, counted from 1.
fn counted(options: ConnectionOptions) -> (Arc<AtomicU32>, ConnectionOptions) {
    let count = Arc::new(AtomicU32::new(0));
    let asked = Arc::clone(&count);
    let options = options.credentials(move || match asked.fetch_add(1, Ordering::SeqCst) + 1 {
        3 => Err("the token server is down".into()),
        number => Ok(Credentials::new("worker", format!("token {number}")).valid_for(SHORT)),
    });
    (count, options)
}

fn has(payload: &[u8], text: &str) -> bool {
    payload.windows(text.len()).any(|it| it == text.as_bytes())
}

#[test]
fn credentials_are_requested_per_connection_and_before_they_expire() {
    let (cut, is_cut) = mpsc::channel();
    let (address, server) = scripted_connections(2, move |connection, server| {
        let login = server.expect_login();
        let secret = ["\0worker\0token 1", "\0worker\0token 4"][connection];
        assert!(has(&login, secret), "{login:?}");
        server.accept_login(10, 0);
        if connection == 0 {
            let update = server.next_frame();
            assert_eq!(update.method(), Some((10, 70)));
            assert!(has(&update.payload, "token 2"), "{:?}", update.payload);
            server.send_method(0, 10, 71, &[]);
        }
        is_cut.recv().unwrap();
    });
    let (asked, options) = counted(at(address).recovery(quick()));
    let text = format!("{options:?}");
    assert!(!text.contains("token"), "{text}");
    let connection = Connection::open_with(&options).unwrap();
    let events = connection.events();
    crate::support::eventually("the secret is renewed", || {
        asked.load(Ordering::SeqCst) >= 2
    });
    cut.send(()).unwrap();
    // The function fails the third time, so one attempt fails.
    let told = recovered(&events);
    let failed = told.iter().find_map(|event| match event {
        ConnectionEvent::RecoveryFailed { error, .. } => Some(error),
        _ => None,
    });
    let failed = failed.unwrap();
    let text = "the token server is down".to_owned();
    assert_eq!(*failed.kind(), ErrorKind::CredentialsUnavailable { text });
    cut.send(()).unwrap();
    server.join().unwrap();
}

#[test]
fn opening_retries_until_the_broker_answers() {
    let (cut, is_cut) = mpsc::channel();
    let (address, server) = scripted_connections(3, move |connection, server| match connection {
        0 => {}
        1 => server.expect_header(),
        _ => {
            server.handshake(0);
            is_cut.recv().unwrap();
        }
    });
    let options = at(address).recovery(quick()).retry_open_for(SOON);
    let connection = Connection::open_with(&options).unwrap();
    cut.send(()).unwrap();
    drop(connection);
    server.join().unwrap();
}

#[test]
fn opening_fails_at_once_on_a_refused_login_and_otherwise_after_its_time() {
    let (address, server) = scripted_connections(1, |_, server| {
        server.expect_login();
        server.refuse_login("wrong password");
    });
    let begin = Instant::now();
    let options = at(address).recovery(quick()).retry_open_for(2 * SOON);
    let error = Connection::open_with(&options).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::LoginRefused { .. }),
        "{error}"
    );
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    server.join().unwrap();

    // The server is gone now.
    let begin = Instant::now();
    let error = Connection::open_with(options.retry_open_for(SHORT)).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::ConnectFailed { .. }),
        "{error}"
    );
    assert!(error.to_string().contains(" attempts in "), "{error}");
    let elapsed = begin.elapsed();
    assert!(elapsed >= SHORT && elapsed < SOON, "{elapsed:?}");
}
