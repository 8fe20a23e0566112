//! Servers and clients that follow a script, frame by frame, to do what RabbitMQ does not do on
//! demand.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use leveret::{ConnectionOptions, RecoveryOptions};
#[cfg(target_os = "linux")]
use socket2::SockRef;

const FRAME_MAX: u32 = 128 << 10;

/// One side of a connection that follows a script: the server's, or, with a connected socket, the
/// client's.
pub(crate) struct Script<S = TcpStream> {
    socket: S,
}

/// Starts a server on a free port that accepts one connection and follows the script.
pub(crate) fn scripted_server<T: Send + 'static>(
    script: impl FnOnce(&mut Script) -> T + Send + 'static,
) -> (SocketAddr, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || script(&mut accept(&listener)));
    (address, thread)
}

/// Starts a server that accepts this many connections in turn and follows the script for each,
/// counted from 0. A connection ends with its script.
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

/// Options that connect to a scripted server, without recovery.
pub(crate) fn at(address: SocketAddr) -> ConnectionOptions {
    ConnectionOptions::default()
        .host(address.ip().to_string())
        .port(address.port())
        .recovery(RecoveryOptions::none())
}

/// A frame of the peer.
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) channel: u16,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The ids of the class and the method, if this is a method frame.
    pub(crate) fn method(&self) -> Option<(u16, u16)> {
        let id = |at| u16::from_be_bytes([self.payload[at], self.payload[at + 1]]);
        (self.kind == 1).then(|| (id(0), id(2)))
    }
}

/// Encodes a frame.
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

/// Encodes a header without properties and a body, in frames up to the handshake's `frame_max`.
pub(crate) fn content_frames(channel: u16, body: &[u8]) -> Vec<u8> {
    let size = (body.len() as u64).to_be_bytes();
    let header = [&[0, 60, 0, 0], &size[..], &[0, 0]].concat();
    let mut frames = frame(2, channel, &header);
    for piece in body.chunks(FRAME_MAX as usize - 8) {
        frames.extend(frame(3, channel, piece));
    }
    frames
}

/// Encodes a short string.
pub(crate) fn short(text: &str) -> Vec<u8> {
    [&[text.len() as u8], text.as_bytes()].concat()
}

impl Script<TcpStream> {
    /// A second handle for the same connection.
    pub(crate) fn another(&self) -> Self {
        let socket = self.socket.try_clone().unwrap();
        Self { socket }
    }

    /// Sends `bytes` repeatedly until the client takes nothing for `patience`, or until `limit`
    /// bytes are sent. Returns how many bytes were sent.
    pub(crate) fn send_until_stuck(&self, bytes: &[u8], limit: usize, patience: Duration) -> usize {
        self.socket.set_write_timeout(Some(patience)).unwrap();
        let mut sent = 0;
        while sent < limit {
            match (&self.socket).write(&bytes[sent % bytes.len()..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        self.socket.set_write_timeout(None).unwrap();
        sent
    }

    /// Sends a byte out of band.
    #[cfg(target_os = "linux")]
    pub(crate) fn send_urgent(&self, byte: u8) {
        let socket = SockRef::from(&self.socket);
        assert_eq!(socket.send_out_of_band(&[byte]).unwrap(), 1);
    }

    /// Makes reads fail if nothing comes for this long.
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

    /// Sends the bytes. Returns whether the client is still there.
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
        self.try_next_frame().unwrap()
    }

    /// Fails if the client has closed the connection.
    pub(crate) fn try_next_frame(&mut self) -> io::Result<Frame> {
        let mut head = [0; 7];
        self.socket.read_exact(&mut head)?;
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let mut payload = vec![0; size + 1];
        self.socket.read_exact(&mut payload)?;
        assert_eq!(payload.pop(), Some(0xce));
        Ok(Frame {
            kind: head[0],
            channel: u16::from_be_bytes([head[1], head[2]]),
            payload,
        })
    }

    /// Reads up to the next method frame, and returns its ids.
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

    /// Performs the handshake like a RabbitMQ of this version, without heartbeats.
    pub(crate) fn handshake_of_rabbitmq(&mut self, version: &str) {
        self.expect_header();
        self.send_start_with(&[("product", "RabbitMQ"), ("version", version)]);
        self.expect(10, 11);
        self.accept_login(10, 0);
    }

    /// Performs the handshake, with this heartbeat in seconds.
    pub(crate) fn handshake(&mut self, heartbeat: u8) {
        self.handshake_with(10, heartbeat);
    }

    pub(crate) fn handshake_with(&mut self, channel_max: u16, heartbeat: u8) {
        self.expect_login();
        self.accept_login(channel_max, heartbeat);
    }

    /// Sends connection.start, and returns the client's answer.
    pub(crate) fn expect_login(&mut self) -> Vec<u8> {
        self.expect_header();
        self.send_start();
        let start_ok = self.next_frame();
        assert_eq!(start_ok.method(), Some((10, 11)));
        start_ok.payload
    }

    /// Performs the rest of the handshake.
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

    /// Opens a channel for the client, and returns the channel's number.
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

    /// Reads until the client has closed the connection, and returns the bytes.
    pub(crate) fn wait_for_end(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let _ = self.socket.read_to_end(&mut rest);
        rest
    }
}
