//! The thread over all sockets of one connection.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::thread;

use crossbeam_channel::Receiver;
use mio::{Poll, Token, Waker};

use super::driver::{Driver, End};
use super::lost_publishes::LostPublish;
use super::mailbox::Mailboxes;
use super::panics;
use super::shared::{Next, Recover, Shared};
use super::socket::connect::Connected;
use crate::error::{Error, ErrorKind as Kind, Result};
use crate::options::ConnectionOptions;

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
    let (shared, connections) = Shared::new(waker, &connected, options);
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

/// What outlasts a socket.
struct IoThread {
    poll: Poll,
    connections: Receiver<Next>,
    shared: Arc<Shared>,
    recovery: Arc<dyn Recover>,
    max_unread_bytes: u64,
}

/// Tells everyone that the thread is gone, whatever happens.
struct Finish(Arc<Shared>);

impl Drop for Finish {
    fn drop(&mut self) {
        self.0.finish();
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

    /// Drives one socket after the other, and returns why there is no other.
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
        let mut driver = Driver::new(
            &mut self.poll,
            &self.shared,
            connected,
            self.recovery.is_on(),
            self.max_unread_bytes,
        );
        let mut driven = panics::catch(|| driver.drive());
        // A fault of this crate, or of the program's logger or metrics, which run here, too. No
        // thread may wait for ever: what is told next may panic again, so this goes on to the last
        // event.
        while let Err(message) = driven {
            driver.recovers = false;
            let thread = "IO thread";
            let error = Error::new(Kind::Panicked { thread, message });
            driven = panics::catch(|| driver.end_with(error.clone()));
            if !driver.core.has_events() {
                break;
            }
        }
        // What was not written is dropped.
        driver.shared.counters.writing(0);
        let lost_publishes = std::mem::take(&mut driver.lost_publishes);
        let end = driver.end.take().unwrap_or_else(|| {
            let error = Error::new(Kind::SocketClosed {
                kind: ErrorKind::Other,
            });
            self.shared.end(&error);
            End::Final(error)
        });
        lost_publishes.iter().for_each(LostPublish::keep);
        self.shared.lost_publishes.lock().extend(lost_publishes);
        end
    }

    /// Waits for the connection that follows a lost one, or for the reason why there will be none.
    fn next(&self, cause: Error) -> Result<Connected<Mailboxes>> {
        if !Arc::clone(&self.recovery).lost(&self.shared, &cause) {
            // Who would recover it may have said why not.
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
