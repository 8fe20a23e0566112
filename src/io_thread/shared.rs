//! The state that the IO thread, the recovery thread and the handles of one connection share.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;

use super::buffer_pool::BufferPool;
use super::counters::Counters;
use super::deadline::Deadline;
use super::lost_publishes::LostPublish;
use super::mailbox::{Command, Mailboxes};
use super::notifier::Notifier;
use super::outbox::{Admission, Outbox, CONNECTION};
use super::peer::Peer;
use super::socket::connect::{Connected, Last};
use super::to_replay::ToReplay;
use super::waiters::Waiters;
use crate::error::{CloseReason, ClosedBy, Error, ErrorKind as Kind, ReplyCode, Result};
use crate::events::ConnectionEvent;
use crate::log_line::{log_line, Label};
use crate::options::ConnectionOptions;
use crate::sync::Waker;
use crate::wire::method::ConnectionClose;

/// How many unread events are kept for the program.
const EVENTS_LIMIT: usize = 256;

/// How long `close` waits, after its timeout, for the IO thread to cut the socket.
const ABORT_TIMEOUT: Duration = Duration::from_secs(5);

/// What follows a connection that was lost.
pub(crate) enum Next {
    Connected(Box<Connected<Mailboxes>>),
    /// No connection follows, for this reason.
    GivenUp(Error),
}

/// The shared state of one connection, over all its sockets.
pub(crate) struct Shared {
    pub(crate) outbox: Outbox,
    pub(crate) events: Notifier<ConnectionEvent>,
    /// Threads that wait for confirms or RPC replies.
    pub(crate) waiters: Waiters,
    pub(crate) counters: Counters,
    pub(crate) buffer_pool: BufferPool,
    pub(crate) to_replay: Mutex<ToReplay>,
    /// Sends the IO thread the connection that follows a lost one.
    pub(crate) next: Sender<Next>,
}

impl Shared {
    /// Also returns the receiver of the connections that follow a lost one.
    pub(crate) fn new(
        waker: Waker,
        peer: Arc<Peer>,
        options: &ConnectionOptions,
    ) -> (Arc<Self>, Receiver<Next>) {
        let (next, connections) = crossbeam_channel::unbounded();
        let fails_fast = options.recovery.fail_fast;
        let shared = Arc::new(Self {
            outbox: Outbox::new(waker, peer, fails_fast),
            events: Notifier::new(EVENTS_LIMIT),
            waiters: Waiters::default(),
            buffer_pool: BufferPool::default(),
            counters: Counters::new(options.get_metrics().cloned()),
            to_replay: Mutex::default(),
            next,
        });
        (shared, connections)
    }

    /// Adopts the connection that follows a lost one. Fails with the cause if the connection has
    /// ended for good.
    pub(super) fn begin(&self, connected: &Connected<Mailboxes>) -> Result<()> {
        self.outbox.begin(connected.peer())
    }

    pub(crate) fn peer(&self) -> Arc<Peer> {
        self.outbox.peer()
    }

    /// Names the connection and its current peer in the log.
    pub(crate) fn label(&self) -> Label {
        self.peer().label.clone()
    }

    /// The endpoint and the address of the current connection.
    pub(crate) fn here(&self) -> Last {
        let peer = self.peer();
        Last {
            endpoint: peer.endpoint.clone(),
            address: peer.address,
            is_silent: false,
        }
    }

    /// Where the lost connection was, if that tells the order in which to try the endpoints: first
    /// the one that worked, or last the one where the broker fell silent.
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
        // Unread events can be dropped: the log has them.
        self.events.send(event, drop);
    }

    /// Ends the connection for good.
    pub(crate) fn end(&self, error: &Error) {
        self.outbox.set_end(error.clone());
        self.tell(ConnectionEvent::Closed {
            cause: error.clone(),
        });
        self.events.end();
        // Log last, since the program's logger can panic.
        match error.kind() {
            Kind::ConnectionClosed(reason) if reason.by == ClosedBy::Program => {
                log_line!(Info, self.label(), "{error}");
            }
            _ => log_line!(Warn, self.label(), "{error}"),
        }
    }

    /// Notifies the IO thread that the connection has ended for this reason. If the connection is
    /// lost just now, nothing else would wake the IO thread, which waits for the next one.
    pub(crate) fn closed(&self, error: Error) {
        let _ = self.next.send(Next::GivenUp(error));
    }

    /// Closes the connection and waits up to `timeout` until the IO thread is done. On timeout,
    /// cuts the socket.
    pub(crate) fn close(&self, code: ReplyCode, text: &str, timeout: Duration) -> Result<()> {
        let deadline = Deadline::after(timeout);
        self.begin_close(code, text)?;
        if self.outbox.wait_finished(deadline.remaining()) {
            return Ok(());
        }
        let error = self.outbox.explained(Error::timed_out(timeout));
        self.outbox.abort();
        self.outbox.wait_finished(ABORT_TIMEOUT);
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
        self.outbox
            .write(CONNECTION, Admission::Always, Duration::ZERO, |frames| {
                frames.last_method(&close)?;
                frames.command(Command::CloseConnection { reason });
                frames.end(closed.clone());
                Ok(())
            })?;
        self.closed(closed);
        Ok(())
    }

    /// Keeps messages that a lost connection did not confirm, to be published again.
    pub(crate) fn keep_publishes(&self, lost_publishes: Vec<LostPublish>) {
        lost_publishes.iter().for_each(LostPublish::keep);
        self.to_replay.lock().lost_publishes.extend(lost_publishes);
    }

    /// Fails the messages that were to be published again.
    pub(crate) fn lose_publishes(&self) {
        let lost_publishes = std::mem::take(&mut self.to_replay.lock().lost_publishes);
        lost_publishes.into_iter().for_each(LostPublish::lose);
    }
}

/// Notifies the recovery of a connection. Its methods run on the IO thread.
pub(crate) trait Recover: Send + Sync {
    /// Whether lost connections are recovered.
    fn is_on(&self) -> bool;
    /// The connection was lost. Returns false if it will not be recovered.
    fn lost(self: Arc<Self>, shared: &Arc<Shared>, cause: &Error) -> bool;
    /// The connection has ended for good.
    fn ended(&self, cause: &Error);
}
