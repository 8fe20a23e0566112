//! One call: sends a request, waits for the reply, and adds context to the error.

use std::fmt;

use crossbeam_channel::RecvTimeoutError;

use crate::error::{CloseReason, Error, ErrorKind, Result};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::{Call, Reply};
use crate::io_thread::outbox::channels::ChannelId;
use crate::io_thread::outbox::{Admission, Frames, CONNECTION};
use crate::io_thread::Shared;
use crate::wire::method::{MethodId, Request};

/// Longest name in an error text, in characters.
const MAX_SHOWN: usize = 80;

/// The request that an error is about: `queue.declare "tasks"`.
#[derive(Clone, Copy)]
pub(crate) struct Operation<'a> {
    method: MethodId,
    subject: &'a str,
}

impl<'a> Operation<'a> {
    pub(crate) fn about(method: MethodId, subject: &'a str) -> Self {
        Self { method, subject }
    }

    pub(crate) fn failed(&self, error: Error) -> Error {
        error.doing(self.to_string())
    }
}

impl fmt::Display for Operation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.subject {
            "" => self.method.fmt(f),
            subject if subject.chars().count() > MAX_SHOWN => {
                let shown: String = subject.chars().take(MAX_SHOWN).collect();
                write!(f, "{} {shown:?}…", self.method)
            }
            subject => write!(f, "{} {subject:?}", self.method),
        }
    }
}

/// Sends a method of the connection itself, and waits until the deadline for its reply.
pub(crate) fn on_connection<R: Request>(
    shared: &Shared,
    admission: Admission,
    deadline: Deadline,
    method: &R,
) -> Result<Reply> {
    send(shared, CONNECTION, admission, deadline, |frames, call| {
        frames.call(method, call)
    })
}

/// Sends what `append` writes, and waits until the deadline for the reply.
pub(super) fn send(
    shared: &Shared,
    channel: ChannelId,
    admission: Admission,
    deadline: Deadline,
    append: impl FnOnce(&mut Frames<'_>, Call) -> Result<()>,
) -> Result<Reply> {
    shared.outbox.check_process().map_err(Error::unsent)?;
    let (call, reply) = Call::new();
    let written = shared
        .outbox
        .write(channel, admission, deadline, |frames| append(frames, call));
    written.map_err(|error| shared.outbox.explained(error))?;
    match reply.recv_timeout(deadline.remaining()) {
        Ok(reply) => {
            if reply.is_ok() {
                shared.counters.call_answered(deadline.elapsed());
            }
            reply
        }
        Err(RecvTimeoutError::Timeout) => {
            let error = Error::timed_out(deadline.duration());
            Err(shared.outbox.explained(error))
        }
        // The IO thread has panicked.
        Err(RecvTimeoutError::Disconnected) => Err(shared.outbox.cause().unwrap_or_else(|| {
            Error::new(ErrorKind::ConnectionClosed(CloseReason::program(
                "no IO thread",
            )))
        })),
    }
}

/// Converts the reply to its type. The core has already checked that the type matches.
pub(crate) fn reply_of<R: Request>(operation: Operation<'_>, reply: Reply) -> Result<R::Reply> {
    let unexpected = || operation.failed(Error::invalid("the reply is of another kind"));
    match reply {
        Reply::Method(method) => R::Reply::try_from(method).map_err(|_| unexpected()),
        Reply::Message(_) => Err(unexpected()),
    }
}
