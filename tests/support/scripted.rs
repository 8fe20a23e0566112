//! Servers that do what no RabbitMQ does.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use leveret::{ConnectionOptions, RecoveryOptions};

const FRAME_MAX: u32 = 128 << 10;

/// One side of a connection, written down byte by byte: the server's, or, over a socket of its own, the client's.
pub(crate) struct Script<S = TcpStream> {
    socket: S,
}

/// A server on a free port that takes one connection and follows the script.
pub(crate) fn scripted_server<T: Send + 'static>(
    script: impl FnOnce(&mut Script) -> T + Send + 'static,
) -> (SocketAddr, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || script(&mut accept(&listener)));
    (address, thread)
}

/// A server that takes so many connections, one after the other, and follows the script for each, counted from 0. A
/// connection ends with its script.
pub(crate) fn scripted_connections(
    count: usize,
    mut script: impl FnMut(usize, &mut Script) + Send + 'static,
) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        for connection in 0..count {
            script(connection, &mut accept(&listener));
        }
    });
    (address, thread)
}

fn accept(listener: &TcpListener) -> Script {
    let (socket, _) = listener.accept().unwrap();
    let patience = Some(Duration::from_secs(20));
    socket.set_read_timeout(patience).unwrap();
    Script { socket }
}

/// How to connect to a scripted server, once.
pub(crate) fn at(address: SocketAddr) -> ConnectionOptions {
    ConnectionOptions::default()
        .host(address.ip().to_string())
        .port(address.port())
        .recovery(RecoveryOptions::none())
}

/// A frame from the client.
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) channel: u16,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// Class and method, if it is one.
    pub(crate) fn method(&self) -> Option<(u16, u16)> {
        let id = |at| u16::from_be_bytes([self.payload[at], self.payload[at + 1]]);
        (self.kind == 1).then(|| (id(0), id(2)))
    }
}

/// A frame around a payload.
pub(crate) fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&channel.to_be_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes.push(0xce);
    bytes
}

pub(crate) fn method_frame(channel: u16, class: u16, method: u16, arguments: &[u8]) -> Vec<u8> {
    let ids = [class.to_be_bytes(), method.to_be_bytes()].concat();
    frame(1, channel, &[&ids, arguments].concat())
}

/// A header without properties and a body, in frames as small as the handshake's `frame_max` wants them.
pub(crate) fn content_frames(channel: u16, body: &[u8]) -> Vec<u8> {
    let size = (body.len() as u64).to_be_bytes();
    let header = [&[0, 60, 0, 0], &size[..], &[0, 0]].concat();
    let mut frames = frame(2, channel, &header);
    for piece in body.chunks(FRAME_MAX as usize - 8) {
        frames.extend(frame(3, channel, piece));
    }
    frames
}

/// A short string.
pub(crate) fn short(text: &str) -> Vec<u8> {
    [&[text.len() as u8], text.as_bytes()].concat()
}

impl Script<TcpStream> {
    /// The same connection, for another thread.
    pub(crate) fn another(&self) -> Self {
        let socket = self.socket.try_clone().unwrap();
        Self { socket }
    }

    /// Sends `bytes` repeatedly until the client takes nothing for `patience`, or `limit` bytes are
    /// sent. Returns how many were.
    pub(crate) fn send_until_stuck(&self, bytes: &[u8], limit: usize, patience: Duration) -> usize {
        self.socket.set_write_timeout(Some(patience)).unwrap();
        let mut sent = 0;
        while sent < limit {
            match (&self.socket).write(&bytes[sent % bytes.len()..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        self.socket.set_write_timeout(None).unwrap();
        sent
    }

    /// Reading fails if nothing comes for so long.
    pub(crate) fn set_patience(&self, patience: Duration) {
        self.socket.set_read_timeout(Some(patience)).unwrap();
    }
}

impl<S: Read + Write> Script<S> {
    pub(crate) fn over(socket: S) -> Self {
        Self { socket }
    }

    #[cfg(feature = "native-tls")]
    pub(crate) fn into_socket(self) -> S {
        self.socket
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    /// Whether the client is still there.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.socket.write_all(bytes).is_ok()
    }

    pub(crate) fn send_method(&mut self, channel: u16, class: u16, method: u16, arguments: &[u8]) {
        self.send(&method_frame(channel, class, method, arguments));
    }

    pub(crate) fn send_content(&mut self, channel: u16, body: &[u8]) {
        self.send(&content_frames(channel, body));
    }

    pub(crate) fn expect_header(&mut self) {
        let mut header = [0; 8];
        self.socket.read_exact(&mut header).unwrap();
        assert_eq!(&header, b"AMQP\0\0\x09\x01");
    }

    pub(crate) fn next_frame(&mut self) -> Frame {
        let mut head = [0; 7];
        self.socket.read_exact(&mut head).unwrap();
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let mut payload = vec![0; size + 1];
        self.socket.read_exact(&mut payload).unwrap();
        assert_eq!(payload.pop(), Some(0xce));
        Frame {
            kind: head[0],
            channel: u16::from_be_bytes([head[1], head[2]]),
            payload,
        }
    }

    /// The ids of the next method; all else is passed over.
    pub(crate) fn next_method(&mut self) -> (u16, u16) {
        loop {
            if let Some(ids) = self.next_frame().method() {
                return ids;
            }
        }
    }

    #[track_caller]
    pub(crate) fn expect(&mut self, class: u16, method: u16) {
        assert_eq!(self.next_method(), (class, method));
    }

    pub(crate) fn send_start(&mut self) {
        self.send_start_with(&[]);
    }

    fn send_start_with(&mut self, properties: &[(&str, &str)]) {
        let long = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes(), bytes].concat();
        let property = |(name, value): &(&str, &str)| {
            [short(name), b"S".to_vec(), long(value.as_bytes())].concat()
        };
        let table: Vec<_> = properties.iter().flat_map(property).collect();
        let arguments = [&[0, 9], &*long(&table), &long(b"PLAIN"), &long(b"en_US")];
        self.send_method(0, 10, 10, &arguments.concat());
    }

    /// The whole handshake of a RabbitMQ of this version, without heartbeats.
    pub(crate) fn handshake_of_rabbitmq(&mut self, version: &str) {
        self.expect_header();
        self.send_start_with(&[("product", "RabbitMQ"), ("version", version)]);
        self.expect(10, 11);
        self.accept_login(10, 0);
    }

    /// The whole handshake, with this heartbeat in seconds.
    pub(crate) fn handshake(&mut self, heartbeat: u8) {
        self.handshake_with(10, heartbeat);
    }

    pub(crate) fn handshake_with(&mut self, channel_max: u16, heartbeat: u8) {
        self.expect_login();
        self.accept_login(channel_max, heartbeat);
    }

    /// Asks who it is, and returns the answer.
    pub(crate) fn expect_login(&mut self) -> Vec<u8> {
        self.expect_header();
        self.send_start();
        let start_ok = self.next_frame();
        assert_eq!(start_ok.method(), Some((10, 11)));
        start_ok.payload
    }

    /// The rest of the handshake.
    pub(crate) fn accept_login(&mut self, channel_max: u16, heartbeat: u8) {
        let tune = [
            &channel_max.to_be_bytes()[..],
            &FRAME_MAX.to_be_bytes(),
            &[0, heartbeat],
        ];
        self.send_method(0, 10, 30, &tune.concat());
        self.expect(10, 31);
        self.expect(10, 40);
        self.send_method(0, 10, 41, b"\0");
    }

    /// Returns its number.
    pub(crate) fn open_channel(&mut self) -> u16 {
        let open = self.next_frame();
        assert_eq!(open.method(), Some((20, 10)));
        self.send_method(open.channel, 20, 11, b"\0\0\0\0");
        open.channel
    }

    pub(crate) fn refuse_login(&mut self, text: &str) {
        let refused = [&403_u16.to_be_bytes()[..], &short(text), &[0; 4]];
        self.send_method(0, 10, 50, &refused.concat());
        self.expect(10, 51);
    }

    /// Waits until the client has ended, reading what it still says.
    pub(crate) fn wait_for_end(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let _ = self.socket.read_to_end(&mut rest);
        rest
    }
}
