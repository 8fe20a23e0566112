//! The broker's thread: owns the sockets and the clock, and moves bytes between sockets and core.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token, Waker};
use parking_lot::{Condvar, Mutex};

use super::core::Core;
use super::session::Stage;
use super::SessionId;

const LISTENER: Token = Token(0);
const WAKER: Token = Token(1);
/// The token of the first connection.
const FIRST: usize = 2;

/// How many bytes are read from one socket before the next one has its turn.
const PIECE: usize = 64 << 10;

/// Delay after a failed accept, for example for lack of file descriptors.
const ACCEPTS_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// State that the thread and the handle share.
pub(super) struct Shared {
    pub(super) control: Mutex<Control>,
    /// Notified after each turn of the thread.
    pub(super) changed: Condvar,
    pub(super) waker: Waker,
}

pub(super) struct Control {
    pub(super) core: Core,
    /// New connections are closed at once.
    pub(super) refuses: bool,
    /// Nothing is read, written or accepted.
    pub(super) is_stopped: bool,
    /// How long all output is held back.
    pub(super) delay: Duration,
    pub(super) is_over: bool,
}

struct Socket {
    stream: mio::net::TcpStream,
    readable: bool,
    writable: bool,
    input: Vec<u8>,
    /// Pieces of output, each with the earliest time to write it.
    output: VecDeque<(Instant, Vec<u8>)>,
    /// How many bytes of the first piece are written.
    written: usize,
    is_broken: bool,
}

pub(super) struct Server {
    poll: Poll,
    listener: mio::net::TcpListener,
    shared: Arc<Shared>,
    sockets: HashMap<SessionId, Socket>,
    accepts: bool,
    /// The read buffer of all sockets.
    piece: Vec<u8>,
}

impl Server {
    /// Starts to listen. Connections are answered once the server runs.
    pub(super) fn bind(core: Core, address: SocketAddr) -> io::Result<(Self, SocketAddr)> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let mut listener = mio::net::TcpListener::from_std(listener);
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        poll.registry()
            .register(&mut listener, LISTENER, Interest::READABLE)?;
        let control = Control {
            core,
            refuses: false,
            is_stopped: false,
            delay: Duration::ZERO,
            is_over: false,
        };
        let shared = Arc::new(Shared {
            control: Mutex::new(control),
            changed: Condvar::new(),
            waker,
        });
        let server = Self {
            poll,
            listener,
            shared,
            sockets: HashMap::new(),
            accepts: false,
            piece: vec![0; PIECE],
        };
        Ok((server, address))
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(64);
        let shared = self.shared();
        let mut timeout = None;
        loop {
            if let Err(error) = self.poll.poll(&mut events, timeout) {
                if error.kind() != ErrorKind::Interrupted {
                    log::error!(
                        "the broker's thread ends: it cannot wait for its sockets: {error}"
                    );
                    return;
                }
            }
            self.note(&events);
            let mut control = shared.control.lock();
            if control.is_over {
                return;
            }
            timeout = self.turn(&mut control);
            drop(control);
            shared.changed.notify_all();
        }
    }

    fn note(&mut self, events: &Events) {
        for event in events {
            match event.token() {
                LISTENER => self.accepts = true,
                WAKER => {}
                Token(token) => {
                    let id = SessionId((token - FIRST) as u64);
                    if let Some(socket) = self.sockets.get_mut(&id) {
                        socket.readable |= event.is_readable() || event.is_read_closed();
                        socket.readable |= event.is_error();
                        socket.writable |= event.is_writable();
                    }
                }
            }
        }
    }

    /// Does all work that is due, and returns how long to sleep afterwards.
    fn turn(&mut self, control: &mut Control) -> Option<Duration> {
        let now = now();
        control.core.now = now;
        if control.is_stopped {
            self.close(&mut control.core);
            return None;
        }
        if std::mem::take(&mut self.accepts) {
            self.accept(control);
        }
        control.core.handle_time();
        let mut has_more = false;
        for (id, socket) in &mut self.sockets {
            has_more |= socket.read(*id, &mut control.core, &mut self.piece);
        }
        for (id, socket) in &mut self.sockets {
            socket.write(*id, &mut control.core, now, control.delay);
        }
        self.close(&mut control.core);
        // Reading or closing one socket can produce output for another whose turn is already over.
        let can_go = |(id, socket): (&SessionId, &Socket)| {
            let session = control.core.sessions.get(id);
            socket.output.is_empty() && session.is_some_and(|it| !it.output.is_empty())
        };
        has_more |= self.sockets.iter().any(can_go);
        let delayed = self.sockets.values().filter_map(|it| it.goes_on_at(now));
        let accepts_at = self.accepts.then(|| now + ACCEPTS_AGAIN_AFTER);
        let next = delayed
            .chain(accepts_at)
            .chain(control.core.deadline())
            .min();
        match has_more {
            true => Some(Duration::ZERO),
            false => next.map(|it| it.saturating_duration_since(now)),
        }
    }

    fn accept(&mut self, control: &mut Control) {
        loop {
            match self.listener.accept() {
                Ok(_) if control.refuses => {}
                Ok((stream, peer)) => self.take(stream, peer, &mut control.core),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    self.accepts = true;
                    return log::warn!("the broker could not accept a connection: {error}");
                }
            }
        }
    }

    fn take(&mut self, mut stream: mio::net::TcpStream, peer: SocketAddr, core: &mut Core) {
        let id = core.connected(peer);
        let token = Token(id.0 as usize + FIRST);
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registered = self.poll.registry().register(&mut stream, token, interest);
        if let Err(error) = registered.and_then(|()| stream.set_nodelay(true)) {
            log::warn!("the broker could not take a connection: {error}");
            return core.disconnected(id);
        }
        let socket = Socket {
            stream,
            readable: true,
            writable: true,
            input: Vec::new(),
            output: VecDeque::new(),
            written: 0,
            is_broken: false,
        };
        self.sockets.insert(id, socket);
    }

    /// Closes the sockets of sessions that are over, and ends the sessions of broken sockets.
    fn close(&mut self, core: &mut Core) {
        self.sockets.retain(|id, socket| {
            let Some(session) = core.sessions.get(id) else {
                return false;
            };
            let has_said_all = session.output.is_empty() && socket.output.is_empty();
            if socket.is_broken || (session.stage == Stage::Over && has_said_all) {
                core.disconnected(*id);
                return false;
            }
            true
        });
    }
}

impl Socket {
    /// Reads one piece. Returns true if the socket may have more.
    fn read(&mut self, id: SessionId, core: &mut Core, piece: &mut [u8]) -> bool {
        let now = core.now;
        let Some(session) = core.sessions.get_mut(&id).filter(|it| !it.is_held) else {
            return false;
        };
        if self.readable && self.fill(piece) > 0 {
            session.last_input = now;
        }
        if session.stage == Stage::Over {
            self.input.clear();
        }
        if !self.input.is_empty() {
            let consumed = core.receive(id, &self.input);
            self.input.drain(..consumed);
        }
        self.readable && !self.is_broken
    }

    /// Reads one piece into the input, and returns its length in bytes.
    fn fill(&mut self, piece: &mut [u8]) -> usize {
        let read = self.stream.read(piece);
        let count = *read.as_ref().unwrap_or(&0);
        self.input
            .extend_from_slice(piece.get(..count).unwrap_or_default());
        match read {
            Ok(0) => self.is_broken = true,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => self.is_broken = true,
        }
        count
    }

    fn write(&mut self, id: SessionId, core: &mut Core, now: Instant, delay: Duration) {
        loop {
            let Some(session) = core.sessions.get_mut(&id) else {
                return;
            };
            let was_full = session.is_full();
            // Without a delay, output that the socket does not take stays where the core sees it,
            // which is the back-pressure.
            let takes = self.output.is_empty() || !delay.is_zero();
            if takes && !session.output.is_empty() {
                session.last_output = now;
                let output = std::mem::take(&mut session.output);
                self.output.push_back((now + delay, output));
            }
            if was_full {
                core.drained(id);
            }
            if !self.write_what_may_go(now) {
                return;
            }
        }
    }

    /// Writes the pieces that are due. Returns true if a whole piece was written, so that there is
    /// room for more.
    fn write_what_may_go(&mut self, now: Instant) -> bool {
        let mut has_written = false;
        while let Some((at, piece)) = self.output.front() {
            if *at > now || !self.writable || self.is_broken {
                return false;
            }
            match self
                .stream
                .write(piece.get(self.written..).unwrap_or_default())
            {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.is_broken = true,
            }
            if self.written >= piece.len() {
                self.output.pop_front();
                self.written = 0;
                has_written = true;
            }
        }
        has_written
    }

    /// When the first delayed piece is due.
    fn goes_on_at(&self, now: Instant) -> Option<Instant> {
        let (at, _) = self.output.front()?;
        (*at > now).then_some(*at)
    }
}

#[allow(clippy::disallowed_methods)] // The core's only source of time.
pub(super) fn now() -> Instant {
    Instant::now()
}
