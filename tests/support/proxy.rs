//! A proxy in front of the broker, which breaks connections in the ways that a network can.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use leveret::{ConnectionOptions, RecoveryOptions};

use super::address_of;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    ToBroker,
    ToClient,
}

/// What happens to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Both sockets are closed.
    Cut,
    /// No more bytes pass in either direction.
    Stall,
    /// The receiver sees the end of the stream; the other direction continues.
    HalfClose,
    /// No more bytes pass in this direction.
    Drop,
    /// One bit is flipped.
    Corrupt,
    /// Everything waits for half a second.
    Delay,
}

/// A fault that happens after this many bytes in this direction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) fault: Fault,
    pub(crate) direction: Direction,
    pub(crate) after: usize,
}

/// A running proxy. Dropping it closes all its connections.
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    broker: SocketAddr,
    /// Faults for the next connections, one each.
    plans: Mutex<VecDeque<Plan>>,
    links: Mutex<Vec<Arc<Link>>>,
    accepted: AtomicUsize,
    /// How many bytes came from the broker.
    to_client: Arc<AtomicUsize>,
    refuses: AtomicBool,
    ends: AtomicBool,
}

struct Link {
    client: TcpStream,
    broker: TcpStream,
    to_broker_drops: AtomicBool,
    to_client_drops: AtomicBool,
    /// [`Shared::to_client`].
    to_client: Arc<AtomicUsize>,
}

impl Link {
    fn drops(&self, direction: Direction) -> &AtomicBool {
        match direction {
            Direction::ToBroker => &self.to_broker_drops,
            Direction::ToClient => &self.to_client_drops,
        }
    }

    fn cut(&self) {
        for socket in [&self.client, &self.broker] {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn pump(&self, direction: Direction, mut plan: Option<Plan>) {
        let (mut from, mut to) = match direction {
            Direction::ToBroker => (&self.client, &self.broker),
            Direction::ToClient => (&self.broker, &self.client),
        };
        let mut buffer = [0; 16 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if direction == Direction::ToClient {
                self.to_client.fetch_add(count, Ordering::SeqCst);
            }
            let bytes = &mut buffer[..count];
            let mut written = 0;
            match &mut plan {
                Some(it) if it.after < count => {
                    written = it.after;
                    let fault = it.fault;
                    plan = None;
                    if !self.forward(direction, &mut to, &bytes[..written]) {
                        break;
                    }
                    self.apply(fault, direction, &mut bytes[written]);
                }
                Some(it) => it.after -= count,
                None => {}
            }
            if !self.forward(direction, &mut to, &bytes[written..]) {
                break;
            }
        }
        // A half-closed connection continues in the other direction.
        if !self.drops(direction).load(Ordering::SeqCst) {
            self.cut();
        }
    }

    fn forward(&self, direction: Direction, to: &mut &TcpStream, bytes: &[u8]) -> bool {
        self.drops(direction).load(Ordering::SeqCst) || to.write_all(bytes).is_ok()
    }

    fn apply(&self, fault: Fault, direction: Direction, byte: &mut u8) {
        match fault {
            Fault::Cut => self.cut(),
            Fault::Stall => {
                self.drops(Direction::ToBroker)
                    .store(true, Ordering::SeqCst);
                self.drops(Direction::ToClient)
                    .store(true, Ordering::SeqCst);
            }
            Fault::HalfClose => {
                self.drops(direction).store(true, Ordering::SeqCst);
                let to = match direction {
                    Direction::ToBroker => &self.broker,
                    Direction::ToClient => &self.client,
                };
                let _ = to.shutdown(Shutdown::Write);
            }
            Fault::Drop => self.drops(direction).store(true, Ordering::SeqCst),
            Fault::Corrupt => *byte ^= 0x10,
            Fault::Delay => thread::sleep(Duration::from_millis(500)),
        }
    }
}

impl Proxy {
    /// Starts a proxy in front of the broker at this URI.
    pub(crate) fn start(uri: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            broker: address_of(uri),
            plans: Mutex::default(),
            links: Mutex::default(),
            accepted: AtomicUsize::new(0),
            to_client: Arc::default(),
            refuses: AtomicBool::new(false),
            ends: AtomicBool::new(false),
        });
        let accepting = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept_all(&listener)
        });
        Self {
            address,
            shared,
            accepting: Some(accepting),
        }
    }

    /// The port on 127.0.0.1 that the proxy listens on.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Options that connect through the proxy and recover with short delays.
    pub(crate) fn options(&self) -> ConnectionOptions {
        ConnectionOptions::default()
            .host(self.address.ip().to_string())
            .port(self.address.port())
            .recovery(quick())
    }

    /// Plans a fault for the next connection that has none.
    pub(crate) fn plan(&self, plan: Plan) {
        self.shared.plans.lock().unwrap().push_back(plan);
    }

    /// Sets whether new connections are closed at once.
    pub(crate) fn refuse(&self, refuses: bool) {
        self.shared.refuses.store(refuses, Ordering::SeqCst);
    }

    /// Drops all further bytes in this direction on the connections that are open.
    pub(crate) fn drop_all(&self, direction: Direction) {
        for link in &*self.shared.links.lock().unwrap() {
            link.drops(direction).store(true, Ordering::SeqCst);
        }
    }

    /// Cuts all connections.
    pub(crate) fn cut(&self) {
        for link in self.shared.links.lock().unwrap().drain(..) {
            link.cut();
        }
    }

    /// How many bytes the broker has sent so far.
    pub(crate) fn bytes_to_client(&self) -> usize {
        self.shared.to_client.load(Ordering::SeqCst)
    }

    /// How many connections there have been.
    pub(crate) fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }
}

/// Recovery with short delays.
pub(crate) fn quick() -> RecoveryOptions {
    RecoveryOptions::default()
        .first_delay(Duration::from_millis(10))
        .max_delay(Duration::from_millis(100))
}

impl Shared {
    fn accept_all(&self, listener: &TcpListener) {
        thread::scope(|scope| {
            for client in listener.incoming().map_while(Result::ok) {
                if self.ends.load(Ordering::SeqCst) {
                    return;
                }
                self.accepted.fetch_add(1, Ordering::SeqCst);
                let refuses = self.refuses.load(Ordering::SeqCst);
                let Some(broker) = (!refuses)
                    .then(|| TcpStream::connect(self.broker).ok())
                    .flatten()
                else {
                    continue;
                };
                for socket in [&client, &broker] {
                    socket.set_nodelay(true).unwrap();
                }
                let link = Arc::new(Link {
                    client,
                    broker,
                    to_broker_drops: AtomicBool::new(false),
                    to_client_drops: AtomicBool::new(false),
                    to_client: Arc::clone(&self.to_client),
                });
                self.links.lock().unwrap().push(Arc::clone(&link));
                let plan = self.plans.lock().unwrap().pop_front();
                for direction in [Direction::ToBroker, Direction::ToClient] {
                    let link = Arc::clone(&link);
                    let plan = plan.filter(|it| it.direction == direction);
                    scope.spawn(move || link.pump(direction, plan));
                }
            }
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        self.cut();
        // This connection wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
        self.cut();
        let _ = self.accepting.take().map(JoinHandle::join);
    }
}
