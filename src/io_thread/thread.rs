//! The IO thread itself: it drives one socket after another.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::thread;

use crossbeam_channel::Receiver;
use mio::{Poll, Token};

use super::driver::Driver;
use super::engine::{End, Engine};
use super::mailbox::Mailboxes;
use super::panics;
use super::shared::{Next, Recover, Shared};
use super::socket::connect::Connected;
use crate::error::{Error, ErrorKind as Kind, Result};
use crate::options::ConnectionOptions;
use crate::sync::Waker;

const WAKER: Token = Token(1);

/// Starts the thread for a connection whose handshake is over.
pub(crate) fn spawn(
    connected: Connected<Mailboxes>,
    options: &ConnectionOptions,
    recovery: Arc<dyn Recover>,
    name: &str,
) -> io::Result<(Arc<Shared>, thread::ThreadId)> {
    let poll = Poll::new()?;
    let waker = Waker::new(poll.registry(), WAKER)?;
    let (shared, connections) = Shared::new(waker, connected.peer(), options);
    let io_thread = IoThread {
        poll,
        connections,
        shared: Arc::clone(&shared),
        recovery,
        max_unread_bytes: options.max_unread_bytes,
    };
    let handle = thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || io_thread.run(connected))?;
    Ok((shared, handle.thread().id()))
}

/// What the thread keeps from one socket to the next.
struct IoThread {
    poll: Poll,
    connections: Receiver<Next>,
    shared: Arc<Shared>,
    recovery: Arc<dyn Recover>,
    max_unread_bytes: u64,
}

/// Notifies the callers of `Outbox::wait_finished` when the thread ends, even if it panics.
struct Finish(Arc<Shared>);

impl Drop for Finish {
    fn drop(&mut self) {
        self.0.outbox.finish();
    }
}

impl IoThread {
    fn run(mut self, first: Connected<Mailboxes>) {
        let finish = Finish(Arc::clone(&self.shared));
        let cause = self.drive_all(first);
        self.recovery.ended(&cause);
        self.shared.lose_publishes();
        drop(self);
        drop(finish);
    }

    /// Drives sockets until the connection has ended for good, and returns the cause.
    fn drive_all(&mut self, first: Connected<Mailboxes>) -> Error {
        let mut connected = first;
        loop {
            let cause = match self.drive(connected) {
                End::Final(cause) => return cause,
                End::Lost(cause) => cause,
            };
            connected = match self.next(cause) {
                Ok(connected) => connected,
                Err(cause) => {
                    self.shared.end(&cause);
                    return cause;
                }
            }
        }
    }

    /// Drives a socket until it is closed.
    fn drive(&mut self, connected: Connected<Mailboxes>) -> End {
        let Connected {
            transport,
            core,
            read_buffer,
            ..
        } = connected;
        let recovers = self.recovery.is_on();
        let engine = Engine::new(&self.shared, core, recovers, self.max_unread_bytes);
        let mut driver = Driver::new(&mut self.poll, engine, transport, read_buffer);
        let mut driven = panics::catch(|| driver.drive());
        // A fault of this crate, or of the program's logger or metrics, which run here, too. No
        // caller may wait forever, so every event is dispatched, even if dispatching panics again.
        while let Err(message) = driven {
            let engine = &mut driver.engine;
            engine.recovers = false;
            let thread = "IO thread";
            let error = Error::new(Kind::Panicked { thread, message });
            driven = panics::catch(|| engine.end_with(error.clone()));
            if !engine.core.has_events() {
                break;
            }
        }
        let mut engine = driver.engine;
        // Unwritten frames are dropped.
        self.shared.counters.writing(0);
        let lost_publishes = std::mem::take(&mut engine.lost_publishes);
        let end = engine.end.take().unwrap_or_else(|| {
            let error = Error::new(Kind::SocketClosed {
                kind: ErrorKind::Other,
            });
            self.shared.end(&error);
            End::Final(error)
        });
        self.shared.keep_publishes(lost_publishes);
        end
    }

    /// Waits for the connection that follows a lost one. Fails with the reason why none follows.
    fn next(&self, cause: Error) -> Result<Connected<Mailboxes>> {
        if !Arc::clone(&self.recovery).lost(&self.shared, &cause) {
            // The recovery thread, or the caller of `close`, may have left the reason.
            return Err(match self.connections.try_recv() {
                Ok(Next::GivenUp(error)) => error,
                Ok(Next::Connected(_)) | Err(_) => cause,
            });
        }
        match self.connections.recv() {
            Ok(Next::Connected(connected)) => self.shared.begin(&connected).map(|()| *connected),
            Ok(Next::GivenUp(error)) => Err(error),
            Err(_) => Err(cause),
        }
    }
}
