//! Channels, through which a program sends most requests to the broker.

mod acks;
mod confirm_mode;
mod publishing;
mod transactions;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use acks::Answered;

use crate::connection::Connection;
use crate::error::{CloseReason, ClosedBy, Error, ErrorKind, ReplyCode, Result};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::{Call, Reply};
use crate::io_thread::outbox::{Admission, Frames};
use crate::proto::Expected;
use crate::session::call::{self, Operation};
use crate::session::channel::{ChannelState, Purpose};
use crate::wire::method::{
    AccessRequest, ChannelClose, ChannelFlow, ChannelOpen, Encode, Method, Request,
};

/// A channel of a [`Connection`]: declares, binds, publishes and consumes.
///
/// A channel is cheap to clone, and any number of threads can use it at the same time. But the
/// broker handles a channel's requests one after the other, so a slow call delays the later calls
/// of all threads, and an error in one thread's call closes the channel for all. Most programs open
/// one channel for each thread.
///
/// Every call waits for the broker's reply, up to the connection's `request_timeout`. Publishing
/// and acknowledging do not wait for the broker; they block only while the outbox is full.
/// Publishing also blocks while the broker has blocked the connection or the connection is
/// recovering. The methods have AMQP's own names.
///
/// Dropping the last clone closes the channel without waiting, once no
/// [`Consumer`](crate::Consumer) or [`Delivery`](crate::Delivery) of the channel is left.
///
/// # Errors
/// Every call can fail with a timeout, or because the channel or the connection has ended; the
/// error then says which side closed it, and why. A call with a value that cannot be sent fails
/// with [`ErrorKind::InvalidArgument`] and sends nothing. If the broker refuses a request, for
/// example because a queue does not exist, it closes the channel, as AMQP demands. Other channels
/// stay open.
///
/// See <https://www.rabbitmq.com/docs/channels>.
#[derive(Clone)]
pub struct Channel {
    inner: Arc<Inner>,
}

/// Shared by all handles of a channel. Dropping it closes the channel.
pub(crate) struct Inner {
    state: Arc<ChannelState>,
    connection: Connection,
}

/// Does not wait: the last handle can be dropped on the IO thread.
impl Drop for Inner {
    fn drop(&mut self) {
        self.state.dropped();
    }
}

impl Channel {
    fn open(connection: &Connection, purpose: Purpose, deadline: Deadline) -> Result<Self> {
        let shared = connection.shared();
        let asked = Operation::about(ChannelOpen::ID, "");
        let Some(owned) = shared.outbox.add_channel(deadline) else {
            let channel_max = shared.outbox.highest_channel();
            let exhausted = || Error::new(ErrorKind::ChannelsExhausted { channel_max });
            return Err(asked.failed(shared.outbox.end_cause().unwrap_or_else(exhausted)));
        };
        let state = Arc::new(ChannelState::new(owned, purpose, Arc::clone(shared)));
        let mut sent = false;
        let reply = state.call(Admission::Room, deadline, |frames, call| {
            state.append_open(frames, call)?;
            // Under the outbox's lock: the connection cannot be lost before the channel is
            // enlisted.
            connection.recovery().enlist(&state);
            sent = true;
            Ok(())
        });
        if let (Err(error), false) = (&reply, sent) {
            state.change(|frames| frames.handles_are_done());
            return Err(asked.failed(error.clone()));
        }
        // After a timeout, dropping this handle closes the channel. The number stays in use until
        // the broker has replied to the close.
        let channel = Self {
            inner: Arc::new(Inner {
                state,
                connection: connection.clone(),
            }),
        };
        reply.map_err(|error| asked.failed(error))?;
        Ok(channel)
    }

    pub(crate) fn state(&self) -> &Arc<ChannelState> {
        &self.inner.state
    }

    /// Returns the channel's connection.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.inner.connection
    }

    /// Returns the channel's number, from 1 to `channel_max`. A later channel can get the same
    /// number after the program has closed this one or dropped its last handle.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.inner.state.number
    }

    /// Returns true unless one side has closed the channel or the connection has ended.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.close_cause().is_none()
    }

    /// Returns why the channel is closed, or `None` if it is open. Every later call fails with this
    /// first cause.
    #[must_use]
    pub fn close_cause(&self) -> Option<Error> {
        let ended = self.inner.state.end_cause();
        ended.or_else(|| self.inner.state.shared.outbox.end_cause())
    }

    /// Waits up to `timeout` until the channel has ended for any reason.
    /// [`close_cause`](Self::close_cause) tells why.
    /// [`ConnectionEvent::ChannelClosed`](crate::ConnectionEvent::ChannelClosed) reports the ends
    /// of all channels that the broker closes.
    ///
    /// # Errors
    /// A timeout.
    pub fn wait_closed(&self, timeout: Duration) -> Result<()> {
        if self.state().confirms.wait_end(Deadline::after(timeout)) {
            return Ok(());
        }
        Err(Error::timed_out(timeout).doing("waiting until the channel is closed"))
    }

    // ---- how calls are sent ----

    pub(crate) fn write<T>(
        &self,
        asked: Operation<'_>,
        append: impl FnOnce(&mut Frames<'_>) -> Result<T>,
    ) -> Result<T> {
        let state = self.state();
        let outbox = &state.shared.outbox;
        let patience = self.connection().publish_timeout();
        let written = outbox.write(state.id(), Admission::Room, patience, append);
        written.map_err(|error| asked.failed(error))
    }

    /// Sends a method and waits for the reply that `append` told the core to expect.
    pub(crate) fn call_with(
        &self,
        asked: Operation<'_>,
        append: impl FnOnce(&mut Frames<'_>, Call) -> Result<()>,
    ) -> Result<Reply> {
        let deadline = Deadline::after(self.connection().request_timeout());
        self.call_until(deadline, asked, append)
    }

    /// [`call_with`](Self::call_with) with another deadline.
    pub(crate) fn call_until(
        &self,
        deadline: Deadline,
        asked: Operation<'_>,
        append: impl FnOnce(&mut Frames<'_>, Call) -> Result<()>,
    ) -> Result<Reply> {
        let reply = self.state().call(Admission::Room, deadline, append);
        reply.map_err(|error| asked.failed(error))
    }

    /// Sends a method and waits for its reply. `method` runs when the call is admitted.
    pub(crate) fn call<R: Request>(
        &self,
        subject: &str,
        method: impl FnOnce() -> R,
    ) -> Result<R::Reply> {
        let deadline = Deadline::after(self.connection().request_timeout());
        self.call_by(deadline, subject, method)
    }

    /// [`call`](Self::call) with another deadline.
    pub(crate) fn call_by<R: Request>(
        &self,
        deadline: Deadline,
        subject: &str,
        method: impl FnOnce() -> R,
    ) -> Result<R::Reply> {
        let asked = Operation::about(R::ID, subject);
        let append = |frames: &mut Frames<'_>, call| frames.call(&method(), call);
        let reply = self.call_until(deadline, asked, append)?;
        call::reply_of::<R>(asked, reply)
    }

    /// Sends a method that changes what a recovery replays, and waits for its reply unless
    /// `no_wait` is set. `method` runs when the call is admitted.
    pub(crate) fn call_recorded<R: Request + Into<Method<'static>>>(
        &self,
        no_wait: bool,
        subject: &str,
        method: impl FnOnce() -> R,
    ) -> Result<Option<R::Reply>> {
        let asked = Operation::about(R::ID, subject);
        if no_wait {
            self.write(asked, |frames| {
                let method = method();
                frames.method(&method)?;
                let topology = &mut self.state().shared.to_replay.lock().topology;
                topology.done(method.into(), None);
                Ok(())
            })?;
            return Ok(None);
        }
        let reply = self.call_with(asked, |frames, call| {
            let method = method();
            frames.method(&method)?;
            frames.expect(
                Expected::Method(R::REPLY),
                call.recording(Some(method.into())),
            );
            Ok(())
        })?;
        call::reply_of::<R>(asked, reply).map(Some)
    }

    /// Closes the channel and waits until the broker has agreed. Other threads' calls that are
    /// waiting for a reply fail, and consumers end.
    ///
    /// RabbitMQ can forget acknowledgements for a quorum queue that come right before the close, if
    /// there are more than 32: see [`docs::rabbitmq`](crate::docs::rabbitmq).
    ///
    /// # Errors
    /// If the channel is already closed: which side closed it, and why.
    pub fn close(&self) -> Result<()> {
        self.close_with(ReplyCode::SUCCESS, "")
    }

    /// [`close`](Self::close) with a reply code and text, which RabbitMQ writes to its log.
    ///
    /// # Errors
    /// Same as [`close`](Self::close).
    pub fn close_with(&self, code: impl Into<ReplyCode>, text: &str) -> Result<()> {
        let code = code.into();
        self.close_confirmed(code, text).map(drop)
    }

    /// Closes the channel as [`close_with`](Self::close_with) does. Returns the epoch of the
    /// connection on which the broker has confirmed the close; it has read everything sent before
    /// the close. Returns `None` if the channel was lost with its connection.
    pub(crate) fn close_confirmed(&self, code: ReplyCode, text: &str) -> Result<Option<u64>> {
        let reason = CloseReason {
            by: ClosedBy::Program,
            code,
            text: text.to_owned(),
            method: None,
        };
        let asked = Operation::about(ChannelClose::ID, "");
        let timeout = Deadline::after(self.connection().request_timeout());
        match self.state().close(reason, timeout) {
            // The channel was lost with the connection.
            Err(error) if error.is_connection_end() && self.connection().is_open() => Ok(None),
            closed => closed.map_err(|error| asked.failed(error)),
        }
    }

    /// Opens the channel again after the broker has closed it because of an error. The channel
    /// keeps its mode, its prefetch and its sequence numbers, and all its handles work again. On an
    /// open channel, this does nothing.
    ///
    /// Consumers and receivers that ended with the channel stay ended, and messages without an
    /// answer stay lost.
    ///
    /// ```no_run
    /// use leveret::{Connection, QueueDeclareOptions};
    ///
    /// let channel = Connection::open_default()?.open_channel()?;
    /// if channel.queue_declare_passive("tasks").is_err() {
    ///     channel.reopen()?;
    ///     channel.queue_declare("tasks", QueueDeclareOptions::default())?;
    /// }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if this program has closed the channel;
    /// [`ErrorKind::ChannelsExhausted`] if its number is above the
    /// [`channel_max`](Connection::channel_max) of the broker that the connection has now; the
    /// connection's end; a timeout.
    pub fn reopen(&self) -> Result<()> {
        let state = self.state();
        let asked = Operation::about(ChannelOpen::ID, "");
        let timeout = Deadline::after(self.connection().request_timeout());
        let opened = state.call(Admission::Reopen, timeout, |frames, call| {
            state.append_reopen(frames, call)
        });
        opened.map_err(|error| asked.failed(error))?;
        state.warn_of_global_qos();
        Ok(())
    }

    /// Asks the broker to stop or resume deliveries to this channel's consumers, and returns the
    /// broker's new state.
    ///
    /// # Errors
    /// If asked to stop, RabbitMQ closes the connection (540): use a prefetch instead.
    pub fn channel_flow(&self, active: bool) -> Result<bool> {
        Ok(self.call("", || ChannelFlow { active })?.active)
    }

    /// Requests an access ticket. AMQP 0-9-1 does not use tickets; RabbitMQ always grants ticket 1.
    ///
    /// # Errors
    /// A timeout, or the end of the channel or the connection.
    pub fn access_request(&self, realm: &str) -> Result<u16> {
        let request = AccessRequest {
            realm: realm.into(),
            passive: true,
            active: true,
            write: true,
            read: true,
            ..AccessRequest::default()
        };
        Ok(self.call(realm, || request)?.ticket)
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("number", &self.number())
            .field("open", &self.is_open())
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Opens a channel. Waits up to `request_timeout`.
    ///
    /// # Errors
    /// [`ErrorKind::ChannelsExhausted`] if [`channel_max`](Self::channel_max) channels are open; a
    /// timeout; the connection's end.
    pub fn open_channel(&self) -> Result<Channel> {
        self.open_channel_until(Deadline::after(self.request_timeout()))
    }

    pub(crate) fn open_channel_until(&self, deadline: Deadline) -> Result<Channel> {
        Channel::open(self, Purpose::Any, deadline)
    }

    /// Opens a channel that asks whether something exists. On this channel, "not found" is an
    /// answer and not a fault.
    pub(crate) fn open_question(&self) -> Result<Channel> {
        self.open_question_until(Deadline::after(self.request_timeout()))
    }

    pub(crate) fn open_question_until(&self, deadline: Deadline) -> Result<Channel> {
        Channel::open(self, Purpose::ExistenceCheck, deadline)
    }
}

pub(crate) fn existence<T>(asked: Result<T>) -> Result<bool> {
    match asked {
        Ok(_) => Ok(true),
        Err(error) => match error.reply_code() {
            _ if error.is_missing() => Ok(false),
            // The queue exists, and is exclusive to another connection.
            Some(ReplyCode::RESOURCE_LOCKED) => Ok(true),
            _ => Err(error),
        },
    }
}
