//! What the IO thread and the handles of one connection share.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use mio::Waker;
use parking_lot::{Condvar, Mutex};

use super::buffer_pool::BufferPool;
use super::channel_numbers::ChannelNumbers;
use super::counters::Counters;
use super::deadline::Deadline;
use super::lost_publishes::LostPublish;
use super::mailbox::{Command, Mailboxes};
use super::notifier::Notifier;
use super::outbox::{Admission, Gate, Outbox};
use super::socket::connect::{Connected, Last};
use super::waiters::Waiters;
use crate::error::{CloseReason, ClosedBy, Error, ErrorKind as Kind, ReplyCode, Result};
use crate::events::ConnectionEvent;
use crate::log_line::{log_line, Label};
use crate::options::{ConnectionOptions, Endpoint};
use crate::proto::{Server, Topology, Tuning};
use crate::wire::method::ConnectionClose;

/// How many events are kept for a program that does not read them.
const EVENTS_LIMIT: usize = 64;

/// Who is at the other end, and what was agreed on with it.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) server: Server,
    pub(crate) tuning: Tuning,
    pub(crate) address: SocketAddr,
    endpoint: Endpoint,
    label: Label,
}

impl Peer {
    fn of(connected: &Connected<Mailboxes>) -> Arc<Self> {
        Arc::new(Self {
            server: connected.core.server().clone(),
            tuning: connected.core.tuning().clone(),
            address: connected.peer,
            endpoint: connected.endpoint.clone(),
            label: connected.core.label().clone(),
        })
    }
}

/// What follows a connection that was lost.
pub(crate) enum Next {
    Connected(Box<Connected<Mailboxes>>),
    /// Nothing: it has ended for this reason.
    GivenUp(Error),
}

/// What the IO thread and the handles of one connection share. It outlasts the socket.
pub(crate) struct Shared {
    pub(crate) outbox: Outbox,
    pub(crate) channel_numbers: ChannelNumbers,
    pub(crate) events: Notifier<ConnectionEvent>,
    /// Threads that wait for confirms.
    pub(crate) waiters: Waiters,
    pub(crate) counters: Counters,
    pub(crate) buffer_pool: BufferPool,
    pub(crate) topology: Mutex<Topology>,
    /// In the order in which each channel has published them.
    pub(crate) lost_publishes: Mutex<Vec<LostPublish>>,
    /// Where connections come in that follow a lost one.
    pub(crate) next: Sender<Next>,
    peer: Mutex<Arc<Peer>>,
    finished: Mutex<bool>,
    on_finished: Condvar,
}

impl Shared {
    /// With it comes the place where the IO thread gets the connections that follow a lost one.
    pub(super) fn new(
        waker: Waker,
        connected: &Connected<Mailboxes>,
        options: &ConnectionOptions,
    ) -> (Arc<Self>, Receiver<Next>) {
        let (next, connections) = crossbeam_channel::unbounded();
        let tuning = connected.core.tuning();
        let fails_fast = options.recovery.fail_fast;
        let label = connected.core.label().clone();
        let shared = Arc::new(Self {
            outbox: Outbox::new(waker, tuning.payload_limit(), fails_fast, label),
            channel_numbers: ChannelNumbers::new(tuning.highest_channel()),
            events: Notifier::new(EVENTS_LIMIT),
            waiters: Waiters::default(),
            buffer_pool: BufferPool::default(),
            counters: Counters::new(options.metrics.clone()),
            topology: Mutex::new(Topology::default()),
            lost_publishes: Mutex::new(Vec::new()),
            next,
            peer: Mutex::new(Peer::of(connected)),
            finished: Mutex::new(false),
            on_finished: Condvar::new(),
        });
        (shared, connections)
    }

    /// Begins with the connection that follows a lost one. Returns why not, if all has ended.
    pub(super) fn begin(&self, connected: &Connected<Mailboxes>) -> Result<()> {
        // Before the replay is let in: it has to know how many channels there can be.
        let peer = Peer::of(connected);
        let tuning = &peer.tuning;
        let (highest, payload_limit) = (tuning.highest_channel(), tuning.payload_limit());
        let label = peer.label.clone();
        self.channel_numbers.begin(highest);
        *self.peer.lock() = peer;
        self.outbox.begin(payload_limit, label)
    }

    /// Tells everyone who waits that the thread is gone.
    pub(super) fn finish(&self) {
        *self.finished.lock() = true;
        self.on_finished.notify_all();
    }

    pub(crate) fn peer(&self) -> Arc<Peer> {
        Arc::clone(&self.peer.lock())
    }

    /// Names the connection in the log, as it is connected now.
    pub(crate) fn label(&self) -> Label {
        self.peer.lock().label.clone()
    }

    /// Where the connection is.
    pub(crate) fn here(&self) -> Last {
        let peer = self.peer();
        Last {
            endpoint: peer.endpoint.clone(),
            address: peer.address,
            is_silent: false,
        }
    }

    /// Where the lost connection was, if that tells where to look for the next one: first where it
    /// worked, last where the broker fell silent.
    pub(crate) fn last(&self) -> Option<Last> {
        let (cause, was_open) = self.outbox.last_loss()?;
        let is_silent = matches!(
            cause.kind(),
            Kind::HeartbeatMissed { .. }
                | Kind::SocketClosed {
                    kind: ErrorKind::TimedOut
                }
        );
        (is_silent || was_open).then(|| Last {
            is_silent,
            ..self.here()
        })
    }

    pub(crate) fn tell(&self, event: ConnectionEvent) {
        // What the program does not read has been logged.
        self.events.send(event, drop);
    }

    /// This is the end, for good.
    pub(super) fn end(&self, error: &Error) {
        self.outbox.set_end(error.clone());
        self.tell(ConnectionEvent::Closed {
            cause: error.clone(),
        });
        self.events.end();
        self.channel_numbers.end();
        // The last, since the program's logger can panic.
        match error.kind() {
            Kind::ConnectionClosed(reason) if reason.by == ClosedBy::Program => {
                log_line!(Info, self.label(), "{error}");
            }
            _ => log_line!(Warn, self.label(), "{error}"),
        }
    }

    /// The program has closed the connection for this reason. Should it be lost just now, nothing else would wake the IO
    /// thread.
    pub(crate) fn closed(&self, error: Error) {
        let _ = self.next.send(Next::GivenUp(error));
    }

    /// Closes the connection, and waits until that is done.
    pub(crate) fn close(&self, code: ReplyCode, text: &str, timeout: Duration) -> Result<()> {
        let deadline = Deadline::after(timeout);
        self.begin_close(code, text)?;
        if self.wait_finished(deadline.remaining()) {
            return Ok(());
        }
        let error = self.outbox.explained(Error::timed_out(timeout));
        self.outbox.abort();
        self.wait_finished(ABORT_PATIENCE);
        Err(error)
    }

    pub(crate) fn begin_close(&self, code: ReplyCode, text: &str) -> Result<()> {
        let close = ConnectionClose {
            reply_code: code.0,
            reply_text: text.into(),
            ..ConnectionClose::default()
        };
        let reason = CloseReason {
            code,
            ..CloseReason::program(text)
        };
        let closed = Error::new(Kind::ConnectionClosed(reason.clone()));
        let gate = || Ok(Gate::Open);
        self.outbox
            .write(0, Admission::Always, Duration::ZERO, gate, |frames| {
                frames.last_method(&close)?;
                frames.command(Command::CloseConnection { reason });
                frames.end(closed.clone());
                Ok(())
            })?;
        self.closed(closed);
        Ok(())
    }

    /// Tells those who wait for messages that were to be published again that this does not happen.
    pub(crate) fn lose_publishes(&self) {
        let lost_publishes = std::mem::take(&mut *self.lost_publishes.lock());
        lost_publishes.into_iter().for_each(LostPublish::lose);
    }

    /// Waits until the socket is closed and the thread has nothing left to do. False if that takes longer.
    pub(crate) fn wait_finished(&self, timeout: Duration) -> bool {
        let deadline = Deadline::after(timeout);
        let mut finished = self.finished.lock();
        while !*finished {
            let result = self.on_finished.wait_until(&mut finished, deadline.at());
            if result.timed_out() {
                return *finished;
            }
        }
        true
    }
}

/// What the IO thread tells the one who brings connections back.
pub(crate) trait Recover: Send + Sync {
    /// Whether connections are brought back at all.
    fn is_on(&self) -> bool;
    /// The connection was lost. False if nobody brings it back.
    fn lost(self: Arc<Self>, shared: &Arc<Shared>, cause: &Error) -> bool;
    /// It has ended for good.
    fn ended(&self, cause: &Error);
}

/// After its time to close a connection, a caller waits this long for the IO thread to cut the socket.
const ABORT_PATIENCE: Duration = Duration::from_secs(5);
