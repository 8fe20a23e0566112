//! Channels: where nearly everything is asked of the broker.

mod acks;
mod confirm_mode;
mod publishing;
mod transactions;

use std::fmt;
use std::sync::Arc;

pub(crate) use acks::Answered;

use crate::connection::Connection;
use crate::error::{CloseReason, ClosedBy, Error, ErrorKind, ReplyCode, Result};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::{Call, Command, Reply};
use crate::io_thread::outbox::{Admission, Frames, Gate};
use crate::proto::Expected;
use crate::session::call::{self, Operation};
use crate::session::channel::ChannelState;
use crate::wire::method::{
    AccessRequest, ChannelClose, ChannelFlow, ChannelOpen, Encode, Method, Request,
};

/// A channel of a [`Connection`]: declares, binds, publishes, consumes.
///
/// Cheap to clone and made to be shared: any number of threads can use one channel at the same time. What they share
/// is the order of the channel: one slow reply is waited for by the calls behind it, and an error of one closes it
/// for all. Programs mostly take one channel for each thread.
///
/// Every call waits for the broker's reply, at most the connection's `request_timeout`; publishing and acknowledging
/// do not wait at all unless the outbox is full. The methods have AMQP's own names.
///
/// # Errors
/// Every call can fail with a timeout, or with the end of the channel or the connection, which names who closed it
/// and why. A value that cannot be sent is [`ErrorKind::InvalidArgument`], before anything is sent. Whatever the
/// broker refuses, such as a queue that does not exist, closes the channel, as AMQP demands; other channels go on.
///
/// Dropping the last clone, when no [`Consumer`](crate::Consumer) or [`Delivery`](crate::Delivery) of the channel is left, closes it without waiting.
///
/// See <https://www.rabbitmq.com/docs/channels>.
#[derive(Clone)]
pub struct Channel {
    inner: Arc<Inner>,
}

/// What all handles of a channel share; the channel is closed when it goes.
pub(crate) struct Inner {
    state: Arc<ChannelState>,
    connection: Connection,
}

/// Closes the channel when its last handle goes, without waiting: this may be the IO thread itself.
impl Drop for Inner {
    fn drop(&mut self) {
        self.state.dropped();
    }
}

impl Channel {
    pub(crate) fn open(connection: &Connection) -> Result<Self> {
        let shared = connection.shared();
        let asked = Operation::about(ChannelOpen::ID, "");
        let deadline = Deadline::after(connection.request_timeout());
        let Some(number) = shared.channel_numbers.take(deadline) else {
            let channel_max = shared.channel_numbers.highest();
            let exhausted = || Error::new(ErrorKind::ChannelsExhausted { channel_max });
            return Err(asked.failed(shared.outbox.end_cause().unwrap_or_else(exhausted)));
        };
        let state = Arc::new(ChannelState::new(number, Arc::clone(shared)));
        let mut sent = false;
        let reply = call::call(
            shared,
            number,
            deadline,
            Admission::Room,
            || Ok(Gate::Open),
            |frames, call| {
                // Another connection may have another limit than the one that the number was taken from.
                let channel_max = shared.channel_numbers.highest();
                if number > channel_max {
                    return Err(Error::new(ErrorKind::ChannelsExhausted { channel_max }));
                }
                state.append_open(frames, call)?;
                // Before it can be lost.
                connection.recovery().enlist(&state);
                sent = true;
                Ok(())
            },
        );
        if let (Err(error), false) = (&reply, sent) {
            shared.channel_numbers.release(number);
            return Err(asked.failed(error.clone()));
        }
        // After a timeout, the number stays in use until the broker has answered the close that dropping sends.
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

    /// The connection of this channel.
    pub fn connection(&self) -> &Connection {
        &self.inner.connection
    }

    /// The channel's number, from 1 to `channel_max`. It is used again when the program has closed the channel, or has
    /// dropped its last handle.
    pub fn number(&self) -> u16 {
        self.inner.state.number
    }

    /// Whether calls are possible: neither side has closed the channel.
    pub fn is_open(&self) -> bool {
        self.close_cause().is_none()
    }

    /// Why no calls are possible any more: the first cause, which every later call fails with.
    pub fn close_cause(&self) -> Option<Error> {
        let ended = self.inner.state.end.cause();
        ended.or_else(|| self.inner.state.shared.outbox.end_cause())
    }

    // ---- how all calls are made ----

    pub(crate) fn write<T>(
        &self,
        asked: Operation<'_>,
        append: impl FnOnce(&mut Frames<'_>) -> Result<T>,
    ) -> Result<T> {
        let state = self.state();
        let outbox = &state.shared.outbox;
        let patience = self.connection().publish_timeout();
        let written = outbox.write(
            state.number,
            Admission::Room,
            patience,
            || state.gate(),
            append,
        );
        written.map_err(|error| asked.failed(error))
    }

    /// Sends a method and waits for what `append` told the core to expect.
    pub(crate) fn call_with(
        &self,
        asked: Operation<'_>,
        append: impl FnOnce(&mut Frames<'_>, Call) -> Result<()>,
    ) -> Result<Reply> {
        let state = self.state();
        let deadline = Deadline::after(self.connection().request_timeout());
        let room = Admission::Room;
        let gate = || state.gate();
        let reply = call::call(&state.shared, state.number, deadline, room, gate, append);
        reply.map_err(|error| asked.failed(error))
    }

    /// Sends a method, which is made when it is admitted, and waits for its reply.
    pub(crate) fn call<R: Request>(
        &self,
        subject: &str,
        method: impl FnOnce() -> R,
    ) -> Result<R::Reply> {
        let asked = Operation::about(R::ID, subject);
        let channel = self.number();
        let reply = self.call_with(asked, |frames, call| {
            call::append(frames, channel, &method(), call)
        })?;
        call::reply_of::<R>(asked, reply)
    }

    /// Sends a method that changes what has to be there on the next connection, and waits for its
    /// reply unless `no_wait`. It is made when it is admitted.
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
                let mut topology = self.state().shared.topology.lock();
                topology.done(method.into(), None);
                Ok(())
            })?;
            return Ok(None);
        }
        let channel = self.number();
        let reply = self.call_with(asked, |frames, call| {
            let method = method();
            frames.method(&method)?;
            frames.command(Command::Call {
                channel,
                expected: Expected::Method(R::REPLY),
                call: call.recording(Some(method.into())),
            });
            Ok(())
        })?;
        call::reply_of::<R>(asked, reply).map(Some)
    }

    // ---- channel ----

    /// Closes the channel and waits until the broker has agreed. Calls of other threads that still wait for a reply
    /// end with an error; consumers end.
    ///
    /// # Errors
    /// If the channel is already closed: by whom and why.
    pub fn close(&self) -> Result<()> {
        self.close_with(ReplyCode::SUCCESS, "")
    }

    /// [`close`](Self::close) with a reason of one's own, which RabbitMQ writes to its log.
    ///
    /// # Errors
    /// As [`close`](Self::close).
    pub fn close_with(&self, code: ReplyCode, text: &str) -> Result<()> {
        self.close_confirmed(code, text).map(drop)
    }

    /// As [`close_with`](Self::close_with). Returns the epoch of the connection on which the broker
    /// has confirmed the close, and so has read all that was sent before; `None` if the channel went
    /// with a connection that was lost.
    pub(crate) fn close_confirmed(&self, code: ReplyCode, text: &str) -> Result<Option<u64>> {
        let state = self.state();
        let reason = CloseReason {
            by: ClosedBy::Program,
            code,
            text: text.to_owned(),
            method: None,
        };
        let asked = Operation::about(ChannelClose::ID, "");
        let timeout = Deadline::after(self.connection().request_timeout());
        let always = Admission::Always;
        let gate = || state.gate();
        let mut sent_in = None;
        let closed = call::call(
            &state.shared,
            state.number,
            timeout,
            always,
            gate,
            |frames, call| {
                sent_in = Some(frames.epoch()).filter(|epoch| state.is_open_in(*epoch));
                state.append_close(frames, reason, Some(call))
            },
        );
        state.end_if_detached();
        match closed {
            // With the connection the channel is gone, too.
            Err(error) if error.is_connection_end() && self.connection().is_open() => Ok(None),
            closed => closed.map(|_| sent_in).map_err(|error| asked.failed(error)),
        }
    }

    /// Opens the channel again after the broker has closed it because of an error, with the mode and the prefetch that it
    /// had. All its handles can be used again, and messages are numbered on; nothing is done if it is open. What has ended
    /// with it stays so: consumers, receivers, unanswered messages.
    ///
    /// ```no_run
    /// use leveret::{Connection, QueueDeclareOptions};
    ///
    /// let channel = Connection::open_default()?.open_channel()?;
    /// if channel.queue_declare("tasks", QueueDeclareOptions::passive()).is_err() {
    ///     channel.reopen()?;
    ///     channel.queue_declare("tasks", QueueDeclareOptions::durable())?;
    /// }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if this program has closed the channel; the connection's end; a timeout.
    pub fn reopen(&self) -> Result<()> {
        let state = self.state();
        let asked = Operation::about(ChannelOpen::ID, "");
        let timeout = Deadline::after(self.connection().request_timeout());
        let room = Admission::Room;
        let gate = || state.reopening_gate();
        let opened = call::call(
            &state.shared,
            state.number,
            timeout,
            room,
            gate,
            |frames, call| state.append_reopen(frames, call),
        );
        opened.map_err(|error| asked.failed(error))?;
        state.warn_of_global_qos();
        Ok(())
    }

    /// Asks the broker to stop or go on sending messages to this channel's consumers, and returns what it does.
    /// RabbitMQ refuses to stop (540, which closes the connection): use prefetch.
    pub fn channel_flow(&self, active: bool) -> Result<bool> {
        Ok(self.call("", || ChannelFlow { active })?.active)
    }

    /// Asks for an access ticket, which AMQP 0-9-1 has no use for; RabbitMQ grants 1 to everybody.
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
    /// Opens a channel.
    ///
    /// # Errors
    /// [`ErrorKind::ChannelsExhausted`] beyond [`channel_max`](Self::channel_max); a timeout; the connection's end.
    pub fn open_channel(&self) -> Result<Channel> {
        Channel::open(self)
    }

    /// A channel that may be refused what it asks for.
    pub(crate) fn open_question(&self) -> Result<Channel> {
        let channel = self.open_channel()?;
        channel.state().ask_existence();
        Ok(channel)
    }
}

pub(crate) fn existence<T>(asked: Result<T>) -> Result<bool> {
    match asked {
        Ok(_) => Ok(true),
        Err(error) => match error.reply_code() {
            _ if error.is_missing() => Ok(false),
            // It is there, and another connection's own.
            Some(ReplyCode::RESOURCE_LOCKED) => Ok(true),
            _ => Err(error),
        },
    }
}
