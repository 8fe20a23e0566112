//! A proxy that inspects each frame of the client. It can answer for the broker, or keep the broker
//! from answering.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use leveret::ConnectionOptions;

use super::{address_of, method_frame, options, short, url, Frame};
use crate::support::proxy::quick;

/// What happens to a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    /// The broker gets the frame with the second text instead of the first, which is as long.
    Alter(&'static str, &'static str),
    /// The broker gets nothing more on this channel.
    Hang,
    /// The client gets a connection.close with this code, which names no method.
    Close(u16),
}

type Judge = dyn Fn(usize, &Frame) -> Verdict + Send + Sync;

/// Accepts connections until the test process ends.
pub(crate) struct Interceptor {
    address: SocketAddr,
    clients: Arc<Mutex<Vec<TcpStream>>>,
    /// How long the broker takes to notice that a client is gone.
    linger: Arc<Mutex<Duration>>,
}

impl Interceptor {
    /// `judge` gets the number of the frame's connection, counted from 0.
    pub(crate) fn start(judge: impl Fn(usize, &Frame) -> Verdict + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let clients = Arc::new(Mutex::new(Vec::new()));
        let linger = Arc::new(Mutex::new(Duration::ZERO));
        let judge: Arc<Judge> = Arc::new(judge);
        let (all, lingers) = (Arc::clone(&clients), Arc::clone(&linger));
        // The thread ends with the process.
        thread::spawn(move || {
            for (number, client) in listener.incoming().enumerate() {
                let (client, judge) = (client.unwrap(), Arc::clone(&judge));
                let linger = Arc::clone(&lingers);
                let broker = TcpStream::connect(address_of(&url())).unwrap();
                client.set_nodelay(true).unwrap();
                broker.set_nodelay(true).unwrap();
                let (from, mut to) = (broker.try_clone().unwrap(), client.try_clone().unwrap());
                thread::spawn(move || {
                    let _ = io::copy(&mut { from }, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
                all.lock().unwrap().push(client.try_clone().unwrap());
                thread::spawn(move || {
                    let _ = intercept(client, &broker, number, &*judge);
                    let linger = *linger.lock().unwrap();
                    thread::sleep(linger);
                    let _ = broker.shutdown(Shutdown::Both);
                });
            }
        });
        Self {
            address,
            clients,
            linger,
        }
    }

    pub(crate) fn options(&self) -> ConnectionOptions {
        let options = options().host(self.address.ip().to_string());
        options.port(self.address.port()).recovery(quick())
    }

    /// How many connections there have been.
    pub(crate) fn connections(&self) -> usize {
        self.clients.lock().unwrap().len()
    }

    /// Cuts the clients' connections; the broker notices only after `linger`.
    pub(crate) fn cut(&self, linger: Duration) {
        *self.linger.lock().unwrap() = linger;
        for client in &*self.clients.lock().unwrap() {
            let _ = client.shutdown(Shutdown::Both);
        }
    }
}

fn intercept(
    mut client: TcpStream,
    mut broker: &TcpStream,
    number: usize,
    judge: &Judge,
) -> io::Result<()> {
    let mut header = [0; 8];
    client.read_exact(&mut header)?;
    broker.write_all(&header)?;
    let mut stuck = HashSet::new();
    loop {
        let mut head = [0; 7];
        client.read_exact(&mut head)?;
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let mut payload = vec![0; size + 1];
        client.read_exact(&mut payload)?;
        let mut bytes = [&head[..], &payload].concat();
        payload.pop();
        let frame = Frame {
            kind: head[0],
            channel: u16::from_be_bytes([head[1], head[2]]),
            payload,
        };
        match judge(number, &frame) {
            Verdict::Pass => {}
            Verdict::Alter(from, to) => {
                assert_eq!(from.len(), to.len());
                let mut windows = bytes.windows(from.len());
                if let Some(at) = windows.position(|it| it == from.as_bytes()) {
                    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
                }
            }
            Verdict::Hang => drop(stuck.insert(frame.channel)),
            Verdict::Close(code) => {
                let reason = [&code.to_be_bytes()[..], &short("INTERNAL_ERROR"), &[0; 4]];
                client.write_all(&method_frame(0, 10, 50, &reason.concat()))?;
                // The client may still be writing.
                let _ = io::copy(&mut client, &mut io::sink());
                return Ok(());
            }
        }
        if !stuck.contains(&frame.channel) {
            broker.write_all(&bytes)?;
        }
    }
}
