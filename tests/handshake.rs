//! Servers that stop in the middle of the handshake or never finish it.

use std::thread;
use std::time::{Duration, Instant};

use leveret::{Connection, Error, ErrorKind};

use crate::support::{at, method_frame, scripted_server, Script, SOON};

/// The server's side of a handshake: the frames that it sends.
struct Recorded {
    parts: [Vec<u8>; 3],
}

/// Within this timeout, the client must read what the server sends, even on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(2);

const STEPS: [&str; 3] = ["connection.start", "connection.tune", "connection.open-ok"];

impl Recorded {
    fn new() -> Self {
        let start = b"\0\x09\0\0\0\0\0\0\0\x05PLAIN\0\0\0\x05en_US";
        let tune = [0, 10, 0, 0, 32, 0, 0, 0];
        let parts = [
            method_frame(0, 10, 10, start),
            method_frame(0, 10, 30, &tune),
            method_frame(0, 10, 41, b"\0"),
        ];
        Self { parts }
    }

    fn length(&self) -> usize {
        self.parts.iter().map(Vec::len).sum()
    }

    /// Sends this many bytes of the handshake. Returns the frame that the client waits for then.
    fn say(&self, server: &mut Script, mut bytes: usize) -> &'static str {
        server.expect_header();
        for (part, step) in self.parts.iter().zip(STEPS) {
            server.send(&part[..bytes.min(part.len())]);
            if bytes < part.len() {
                return step;
            }
            bytes -= part.len();
            match step {
                "connection.start" => server.expect(10, 11),
                _ => server.expect(10, 31),
            }
            if step == "connection.tune" {
                server.expect(10, 40);
            }
        }
        unreachable!("the handshake is over")
    }
}

/// Opens a connection to a server that sends only this many bytes. Returns the error and the step.
fn open_cut(bytes: usize, then: fn(&mut Script)) -> (Error, &'static str) {
    let (address, server) = scripted_server(move |server| {
        let step = Recorded::new().say(server, bytes);
        then(server);
        step
    });
    let options = at(address).connect_timeout(TIMEOUT);
    let begin = Instant::now();
    let error = Connection::open_with(&options).unwrap_err();
    // The timeout is not the default of half a minute.
    assert!(begin.elapsed() < SOON, "{error}");
    (error, server.join().unwrap())
}

fn for_every_cut(check: fn(usize)) {
    let cuts: Vec<_> = (0..Recorded::new().length())
        .map(|bytes| thread::spawn(move || check(bytes)))
        .collect();
    assert!(cuts.len() > 60);
    for cut in cuts {
        cut.join().unwrap();
    }
}

#[test]
fn silence_after_any_byte_times_out_and_names_the_step() {
    for_every_cut(|bytes| {
        let silent = |server: &mut Script| drop(server.wait_for_end());
        let (error, step) = open_cut(bytes, silent);
        assert!(error.is_timeout(), "after {bytes} bytes: {error}");
        let expected = format!("waiting for {step}: timed out after 2s");
        assert!(
            error.to_string().contains(&expected),
            "after {bytes} bytes: {error}"
        );
    });
}

#[test]
fn a_close_after_any_byte_fails_at_once() {
    for_every_cut(|bytes| {
        let (error, step) = open_cut(bytes, |_| ());
        let is_expected = match step {
            // A broker that refuses a login without a reason also closes the socket here.
            "connection.tune" => matches!(error.kind(), ErrorKind::LoginRefused { .. }),
            _ => matches!(error.kind(), ErrorKind::SocketClosed { .. }),
        };
        assert!(is_expected, "after {bytes} bytes: {error}");
        assert!(
            error.to_string().contains(step),
            "after {bytes} bytes: {error}"
        );
    });
}

/// Opens a connection to a server that sends these bytes instead of `connection.start`.
fn open_to(said: Vec<u8>) -> Error {
    let (address, server) = scripted_server(move |server| {
        server.expect_header();
        server.send(&said);
        server.wait_for_end();
    });
    let options = at(address).connect_timeout(2 * SOON);
    let begin = Instant::now();
    let error = Connection::open_with(&options).unwrap_err();
    assert!(begin.elapsed() < SOON, "{error}");
    server.join().unwrap();
    error
}

#[test]
fn false_sizes_are_refused_before_memory_is_allocated() {
    let start = |properties: &[u8]| {
        let arguments = [b"\0\x09", properties, b"\0\0\0\x05PLAIN\0\0\0\x05en_US"].concat();
        method_frame(0, 10, 10, &arguments)
    };
    let lies = [
        // A frame of four gigabytes.
        b"\x01\0\0\xff\xff\xff\xff".to_vec(),
        // Server properties of four gigabytes; and, in a table of ten bytes, a text of two
        // gigabytes.
        start(b"\xff\xff\xff\xff"),
        start(b"\0\0\0\x0a\x01kS\x7f\xff\xff\xffxyz"),
        // A frame without its end byte.
        [&start(b"\0\0\0\0")[..20], b"\0\0\0"]
            .concat()
            .repeat(10_000),
    ];
    for said in lies {
        let shown = said[..said.len().min(30)].to_vec();
        let error = open_to(said);
        assert!(
            matches!(error.kind(), ErrorKind::ProtocolViolation { .. }),
            "{shown:?}: {error}"
        );
    }
}

#[test]
fn an_endless_handshake_ends_at_the_connect_timeout() {
    let (address, server) = scripted_server(|server| {
        server.expect_header();
        // A connection.start of 100,000 bytes, sent one byte at a time.
        let begun = [&[1, 0, 0, 0, 1, 0x86, 0xa0][..], &[0, 10, 0, 10]].concat();
        server.send(&begun);
        while server.try_send(b"\0") {
            thread::sleep(Duration::from_millis(5));
        }
    });
    let timeout = Duration::from_millis(500);
    let begin = Instant::now();
    let error = Connection::open_with(at(address).connect_timeout(timeout)).unwrap_err();
    let elapsed = begin.elapsed();
    assert!(error.is_timeout(), "{error}");
    // The whole frame would take minutes.
    assert!(elapsed >= timeout && elapsed < SOON, "{elapsed:?}");
    server.join().unwrap();
}
