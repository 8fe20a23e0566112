//! Channels: where nearly everything is asked of the broker.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;

use crate::confirm::Confirms;
use crate::connection::Connection;
use crate::consumer::Consumer;
use crate::deadline::Deadline;
use crate::delivery::{Delivery, GetResponse};
use crate::error::{CloseReason, ClosedBy, Error, ErrorKind, ReplyCode, Result};
use crate::exchange::{Exchange, ExchangeKind};
use crate::io_thread::Link;
use crate::mailbox::{Call, ChannelMailbox, Command, Reply};
use crate::message::{Message, ReturnedMessage};
use crate::options::{
    BindOptions, ConsumeOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, NackOptions,
    QosOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use crate::outbox::{Admission, Frames, Gate};
use crate::proto::{Expected, Returned};
use crate::queue::Queue;
use crate::request::{self, Asked};
use crate::wire::method::{
    AccessRequest, BasicAck, BasicCancel, BasicConsume, BasicGet, BasicNack, BasicPublish,
    BasicQos, BasicRecover, BasicRecoverAsync, BasicReject, ChannelClose, ChannelFlow, ChannelOpen,
    ConfirmSelect, Encode, ExchangeBind, ExchangeDeclare, ExchangeDelete, ExchangeUnbind,
    QueueBind, QueueDeclare, QueueDelete, QueuePurge, QueueUnbind, Request, TxCommit, TxRollback,
    TxSelect,
};

/// How many returned messages wait for [`Channel::returned_messages`]; beyond it the oldest is dropped, since nothing
/// that a program forgets to read may hold up the connection.
const RETURNED_LIMIT: usize = 1024;

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
/// Dropping the last clone, when no [`Consumer`] or [`Delivery`] of the channel is left, closes it without waiting.
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

/// What the handles share with the IO thread.
pub(crate) struct ChannelState {
    number: u16,
    link: Arc<Link>,
    /// Why nothing can be sent any more. Set under the outbox's lock, like everything that decides what may follow
    /// what on the channel.
    end: OnceLock<Error>,
    /// The broker asked to stop publishing with `channel.flow`.
    flow_stopped: AtomicBool,
    confirms: Confirms,
    returned: Mutex<Option<ReturnedQueue>>,
    pub(crate) consumer_tags: Mutex<HashSet<Arc<str>>>,
    /// For making up consumer tags.
    consumers: AtomicU64,
}

#[derive(Clone)]
struct ReturnedQueue {
    sender: Sender<ReturnedMessage>,
    receiver: Receiver<ReturnedMessage>,
}

impl ChannelMailbox for ChannelState {
    fn ended(&self, error: &Error) {
        match error.close_reason() {
            Some(reason) if reason.by == ClosedBy::Broker => log::warn!("{error}"),
            _ => log::debug!("{error}"),
        }
        self.link.outbox.change(|| {
            // Not set if this program closed it first.
            let _ = self.end.set(error.clone());
        });
        self.confirms.end(error);
        *self.returned.lock() = None;
    }

    fn flow(&self, active: bool) {
        self.link
            .outbox
            .change(|| self.flow_stopped.store(!active, Ordering::Release));
    }

    fn confirm(&self, sequence_number: u64, multiple: bool, nack: bool) {
        self.confirms.settle(sequence_number, multiple, nack);
    }

    fn returned(&self, returned: Returned) {
        let message = ReturnedMessage::new(returned);
        let returned = self.returned.lock();
        let Some(queue) = &*returned else {
            log::warn!("channel {}: nobody reads {message:?}", self.number);
            return;
        };
        if let Err(full) = queue.sender.try_send(message) {
            let oldest = queue.receiver.try_recv();
            log::warn!("channel {}: dropped unread {oldest:?}", self.number);
            let _ = queue.sender.try_send(full.into_inner());
        }
    }

    fn requeue(&self, delivery_tag: u64) {
        let nack = BasicNack {
            delivery_tag,
            multiple: false,
            requeue: true,
        };
        // It fails only if the channel has ended: then the broker requeues by itself.
        let _ = self.write_now(|frames| frames.method(self.number, &nack));
    }
}

impl ChannelState {
    fn gate(&self) -> Result<Gate> {
        match self.end.get() {
            Some(error) => Err(error.clone()),
            None => Ok(Gate::Open),
        }
    }

    fn publish_gate(&self) -> Result<Gate> {
        match self.gate()? {
            Gate::Open if self.flow_stopped.load(Ordering::Acquire) => Ok(Gate::Shut),
            gate => Ok(gate),
        }
    }

    /// Sends without waiting for room: little, and from places that must not wait.
    fn write_now(&self, append: impl FnOnce(&mut Frames<'_>) -> Result<()>) -> Result<()> {
        let outbox = &self.link.outbox;
        outbox.write(Admission::Always, Duration::ZERO, || self.gate(), append)
    }

    pub(crate) fn requeue_unread(&self, delivery: &Delivery) {
        if delivery.is_unsettled() {
            self.requeue(delivery.delivery_tag());
        }
    }

    pub(crate) fn cancel_in_background(&self, consumer_tag: &Arc<str>) {
        let (call, _nobody) = crossbeam_channel::bounded(1);
        // It fails only if the channel has ended, and with it the consumer.
        let _ = self.write_now(|frames| self.append_cancel(frames, consumer_tag, call));
    }

    /// Always with a reply, so that the IO thread knows when the last message has come.
    fn append_cancel(
        &self,
        frames: &mut Frames<'_>,
        consumer_tag: &Arc<str>,
        call: Call,
    ) -> Result<()> {
        let cancel = BasicCancel {
            consumer_tag: Cow::Borrowed(consumer_tag),
            no_wait: false,
        };
        frames.method(self.number, &cancel)?;
        frames.command(Command::Call {
            channel: self.number,
            expected: Expected::CancelOk(Arc::clone(consumer_tag)),
            call,
        });
        Ok(())
    }

    /// The last thing that is sent on the channel.
    fn append_close(
        &self,
        frames: &mut Frames<'_>,
        reason: CloseReason,
        call: Option<Call>,
    ) -> Result<()> {
        let close = ChannelClose {
            reply_code: reason.code.0,
            reply_text: reason.text.as_str().into(),
            ..ChannelClose::default()
        };
        frames.method(self.number, &close)?;
        let channel = self.number;
        let kind = ErrorKind::ChannelClosed {
            channel,
            reason: reason.clone(),
        };
        let _ = self.end.set(Error::new(kind));
        frames.command(Command::CloseChannel {
            channel,
            reason,
            call,
        });
        Ok(())
    }
}

/// Closes the channel when its last handle goes, without waiting: this may be the IO thread itself.
impl Drop for Inner {
    fn drop(&mut self) {
        let state = &self.state;
        let reason = CloseReason::program("its last handle was dropped");
        // It fails only if the channel has ended.
        let _ = state.write_now(|frames| state.append_close(frames, reason, None));
    }
}

impl Channel {
    pub(crate) fn open(connection: &Connection) -> Result<Self> {
        let link = connection.link();
        let mut numbers = link.channel_numbers.lock();
        let channel_max = numbers.highest();
        let number = numbers.take();
        drop(numbers);
        let Some(number) = number else {
            return Err(link
                .outbox
                .end_cause()
                .unwrap_or_else(|| Error::new(ErrorKind::ChannelsExhausted { channel_max })));
        };
        let state = Arc::new(ChannelState {
            number,
            link: Arc::clone(link),
            end: OnceLock::new(),
            flow_stopped: AtomicBool::new(false),
            confirms: Confirms::default(),
            returned: Mutex::new(None),
            consumer_tags: Mutex::new(HashSet::new()),
            consumers: AtomicU64::new(0),
        });
        let asked = Asked::about(ChannelOpen::ID, "");
        let reply = request::call(
            link,
            connection.request_timeout(),
            || Ok(Gate::Open),
            |frames, call| {
                frames.method(number, &ChannelOpen::default())?;
                frames.command(Command::OpenChannel {
                    channel: number,
                    mailbox: Arc::<ChannelState>::clone(&state),
                    call,
                });
                Ok(())
            },
        );
        // After a timeout, the number stays in use until the broker has answered the close that dropping sends.
        let channel = Self {
            inner: Arc::new(Inner {
                state,
                connection: connection.clone(),
            }),
        };
        match reply {
            Ok(_) => Ok(channel),
            Err(error) => Err(asked.failed(error)),
        }
    }

    pub(crate) fn from_inner(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    pub(crate) fn downgrade(&self) -> Weak<Inner> {
        Arc::downgrade(&self.inner)
    }

    pub(crate) fn state(&self) -> &Arc<ChannelState> {
        &self.inner.state
    }

    /// The connection of this channel.
    pub fn connection(&self) -> &Connection {
        &self.inner.connection
    }

    /// The channel's number, from 1 to `channel_max`. It is used again after both sides have closed the channel.
    pub fn number(&self) -> u16 {
        self.inner.state.number
    }

    /// Whether calls are possible: neither side has closed the channel.
    pub fn is_open(&self) -> bool {
        self.close_cause().is_none()
    }

    /// Why no calls are possible any more: the first cause, which every later call fails with.
    pub fn close_cause(&self) -> Option<Error> {
        let ended = self.inner.state.end.get().cloned();
        ended.or_else(|| self.inner.state.link.outbox.end_cause())
    }

    // ---- how all calls are made ----

    fn write<T>(
        &self,
        asked: Asked<'_>,
        append: impl FnOnce(&mut Frames<'_>) -> Result<T>,
    ) -> Result<T> {
        let state = self.state();
        let outbox = &state.link.outbox;
        let patience = self.connection().publish_timeout();
        let written = outbox.write(Admission::Room, patience, || state.gate(), append);
        written.map_err(|error| asked.failed(error))
    }

    /// Sends a method and waits for what `append` told the core to expect.
    fn call_with(
        &self,
        asked: Asked<'_>,
        append: impl FnOnce(&mut Frames<'_>, Call) -> Result<()>,
    ) -> Result<Reply> {
        let state = self.state();
        let timeout = self.connection().request_timeout();
        let reply = request::call(&state.link, timeout, || state.gate(), append);
        reply.map_err(|error| asked.failed(error))
    }

    fn call<R: Request>(&self, subject: &str, method: &R) -> Result<R::Reply> {
        let asked = Asked::about(R::ID, subject);
        let channel = self.number();
        let reply = self.call_with(asked, |frames, call| {
            request::append(frames, channel, method, call)
        })?;
        request::reply_of::<R>(asked, reply)
    }

    /// Sends a method that has a reply, and waits for it unless `no_wait`.
    fn call_unless<R: Request>(
        &self,
        no_wait: bool,
        subject: &str,
        method: &R,
    ) -> Result<Option<R::Reply>> {
        if no_wait {
            self.send(subject, method)?;
            return Ok(None);
        }
        self.call(subject, method).map(Some)
    }

    fn send<M: Encode>(&self, subject: &str, method: &M) -> Result<()> {
        let channel = self.number();
        self.write(Asked::about(M::ID, subject), |frames| {
            frames.method(channel, method)
        })
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
        let state = self.state();
        let reason = CloseReason {
            by: ClosedBy::Program,
            code,
            text: text.to_owned(),
            method: None,
        };
        let asked = Asked::about(ChannelClose::ID, "");
        self.call_with(asked, |frames, call| {
            state.append_close(frames, reason, Some(call))
        })?;
        Ok(())
    }

    /// Asks the broker to stop or go on sending messages to this channel's consumers, and returns what it does.
    /// RabbitMQ refuses to stop (540, which closes the connection): use prefetch.
    pub fn channel_flow(&self, active: bool) -> Result<bool> {
        Ok(self.call("", &ChannelFlow { active })?.active)
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
        Ok(self.call(realm, &request)?.ticket)
    }

    // ---- exchanges ----

    /// Declares an exchange: makes it, or checks that it is as described.
    ///
    /// ```no_run
    /// use leveret::{Connection, ExchangeDeclareOptions, ExchangeKind};
    ///
    /// let channel = Connection::open_default()?.open_channel()?;
    /// let logs = channel.exchange_declare("logs", ExchangeKind::Fanout, ExchangeDeclareOptions::durable())?;
    /// logs.publish("", "to everyone")?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// 406 if it exists otherwise, 404 if asked for passively and missing, 403 without permission, 530 (which closes
    /// the connection) for a kind that the broker does not know.
    pub fn exchange_declare(
        &self,
        name: &str,
        kind: ExchangeKind,
        options: ExchangeDeclareOptions,
    ) -> Result<Exchange> {
        let declare = ExchangeDeclare {
            ticket: 0,
            exchange: name.into(),
            kind: kind.as_str().into(),
            passive: options.passive,
            durable: options.durable,
            auto_delete: options.auto_delete,
            internal: options.internal,
            no_wait: options.no_wait,
            arguments: Cow::Borrowed(&options.arguments),
        };
        self.call_unless(options.no_wait, name, &declare)?;
        Ok(self.exchange(name))
    }

    /// A handle of an exchange that exists, without asking the broker. The default exchange has the name `""`.
    pub fn exchange(&self, name: &str) -> Exchange {
        Exchange::new(self.clone(), name)
    }

    /// Deletes an exchange. It is no error if there is none.
    ///
    /// # Errors
    /// 406 if asked for only if unused, and it is used; 403 for the predeclared ones.
    pub fn exchange_delete(&self, name: &str, options: ExchangeDeleteOptions) -> Result<()> {
        let delete = ExchangeDelete {
            ticket: 0,
            exchange: name.into(),
            if_unused: options.if_unused,
            no_wait: options.no_wait,
        };
        self.call_unless(options.no_wait, name, &delete)?;
        Ok(())
    }

    /// Binds one exchange to another: what is published to `source` with that routing key goes to `destination` too.
    /// An extension of RabbitMQ.
    ///
    /// # Errors
    /// 404 if one of them is missing.
    ///
    /// See <https://www.rabbitmq.com/docs/e2e>.
    pub fn exchange_bind(
        &self,
        destination: &str,
        source: &str,
        routing_key: &str,
        options: BindOptions,
    ) -> Result<()> {
        let bind = ExchangeBind {
            ticket: 0,
            destination: destination.into(),
            source: source.into(),
            routing_key: routing_key.into(),
            no_wait: options.no_wait,
            arguments: Cow::Borrowed(&options.arguments),
        };
        self.call_unless(options.no_wait, destination, &bind)?;
        Ok(())
    }

    /// Undoes [`exchange_bind`](Self::exchange_bind) with the same routing key and arguments.
    pub fn exchange_unbind(
        &self,
        destination: &str,
        source: &str,
        routing_key: &str,
        options: BindOptions,
    ) -> Result<()> {
        let unbind = ExchangeUnbind {
            ticket: 0,
            destination: destination.into(),
            source: source.into(),
            routing_key: routing_key.into(),
            no_wait: options.no_wait,
            arguments: Cow::Borrowed(&options.arguments),
        };
        self.call_unless(options.no_wait, destination, &unbind)?;
        Ok(())
    }

    // ---- queues ----

    /// Declares a queue: makes it, or checks that it is as described. With the name `""` the broker makes one up:
    /// see [`Queue::name`].
    ///
    /// ```no_run
    /// use leveret::{Connection, QueueDeclareOptions};
    ///
    /// let channel = Connection::open_default()?.open_channel()?;
    /// let queue = channel.queue_declare("tasks", QueueDeclareOptions::durable())?;
    /// println!("{} messages, {} consumers", queue.message_count(), queue.consumer_count());
    /// queue.publish("work")?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// 406 if it exists otherwise, 405 if it is exclusive to another connection, 404 if asked for passively and
    /// missing, 403 without permission.
    pub fn queue_declare(&self, name: &str, options: QueueDeclareOptions) -> Result<Queue> {
        if options.no_wait && name.is_empty() {
            let asked = Asked::about(QueueDeclare::ID, name);
            return Err(asked.failed(Error::invalid(
                "with no_wait the name that the broker makes up would stay unknown",
            )));
        }
        let declare = QueueDeclare {
            ticket: 0,
            queue: name.into(),
            passive: options.passive,
            durable: options.durable,
            exclusive: options.exclusive,
            auto_delete: options.auto_delete,
            no_wait: options.no_wait,
            arguments: Cow::Borrowed(&options.arguments),
        };
        let channel = self.clone();
        Ok(match self.call_unless(options.no_wait, name, &declare)? {
            Some(ok) => Queue::new(channel, &ok.queue, ok.message_count, ok.consumer_count),
            None => Queue::new(channel, name, 0, 0),
        })
    }

    /// A handle of a queue that exists, without asking the broker; its counts are not known.
    pub fn queue(&self, name: &str) -> Queue {
        Queue::new(self.clone(), name, 0, 0)
    }

    /// Binds a queue to an exchange: what is published there with a matching routing key goes into the queue.
    ///
    /// ```no_run
    /// use leveret::{BindOptions, Connection, QueueDeclareOptions};
    ///
    /// let channel = Connection::open_default()?.open_channel()?;
    /// let queue = channel.queue_declare("", QueueDeclareOptions::exclusive())?;
    /// channel.queue_bind(queue.name(), "amq.topic", "sensors.#", BindOptions::default())?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// 404 if one of them is missing.
    pub fn queue_bind(
        &self,
        queue: &str,
        exchange: &str,
        routing_key: &str,
        options: BindOptions,
    ) -> Result<()> {
        let bind = QueueBind {
            ticket: 0,
            queue: queue.into(),
            exchange: exchange.into(),
            routing_key: routing_key.into(),
            no_wait: options.no_wait,
            arguments: Cow::Borrowed(&options.arguments),
        };
        self.call_unless(options.no_wait, queue, &bind)?;
        Ok(())
    }

    /// Undoes [`queue_bind`](Self::queue_bind) with the same routing key and arguments.
    pub fn queue_unbind(
        &self,
        queue: &str,
        exchange: &str,
        routing_key: &str,
        options: BindOptions,
    ) -> Result<()> {
        let unbind = QueueUnbind {
            ticket: 0,
            queue: queue.into(),
            exchange: exchange.into(),
            routing_key: routing_key.into(),
            arguments: Cow::Borrowed(&options.arguments),
        };
        self.call(queue, &unbind)?;
        Ok(())
    }

    /// Drops all messages of a queue that are ready, and returns how many. Unacknowledged ones stay.
    pub fn queue_purge(&self, name: &str) -> Result<u32> {
        let purge = QueuePurge {
            ticket: 0,
            queue: name.into(),
            no_wait: false,
        };
        Ok(self.call(name, &purge)?.message_count)
    }

    /// [`queue_purge`](Self::queue_purge) without waiting for the broker.
    pub fn queue_purge_no_wait(&self, name: &str) -> Result<()> {
        let purge = QueuePurge {
            ticket: 0,
            queue: name.into(),
            no_wait: true,
        };
        self.send(name, &purge)
    }

    /// Deletes a queue and returns how many messages went with it. It is no error if there is none.
    ///
    /// # Errors
    /// 406 if asked for only if unused or empty, and it is not; 405 if it is exclusive to another connection.
    pub fn queue_delete(&self, name: &str, options: QueueDeleteOptions) -> Result<u32> {
        let delete = QueueDelete {
            ticket: 0,
            queue: name.into(),
            if_unused: options.if_unused,
            if_empty: options.if_empty,
            no_wait: options.no_wait,
        };
        let ok = self.call_unless(options.no_wait, name, &delete)?;
        Ok(ok.map_or(0, |ok| ok.message_count))
    }

    // ---- messages ----

    /// Publishes a message. It is handed over to the connection's thread, and the call returns; whether the broker
    /// has it, only a confirm tells. In confirm mode (see [`confirm_select`](Self::confirm_select)) the result is
    /// the message's sequence number.
    ///
    /// Messages that one thread publishes on one channel keep their order; messages of several threads never mix.
    ///
    /// ```no_run
    /// use leveret::{Connection, Message};
    ///
    /// let channel = Connection::open_default()?.open_channel()?;
    /// channel.basic_publish("amq.direct", "key", b"the plain AMQP call")?;
    /// channel.basic_publish("", "tasks", Message::new("by the queue's name").persistent())?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a message larger than `max_message_size`, a name of more than 255 bytes, or
    /// headers that do not fit into one frame. A timeout (`publish_timeout`) if the outbox stays full, and
    /// [`ErrorKind::ConnectionBlocked`] if the broker has blocked the connection. In all these cases nothing was sent.
    ///
    /// An exchange that does not exist is told later: the broker closes the channel (404).
    pub fn basic_publish<'m>(
        &self,
        exchange: &str,
        routing_key: &str,
        message: impl Into<Message<'m>>,
    ) -> Result<Option<u64>> {
        let message = message.into();
        let published = self.publish(exchange, routing_key, &message);
        published.map_err(|error| Asked::about(BasicPublish::ID, exchange).failed(error))
    }

    fn publish(
        &self,
        exchange: &str,
        routing_key: &str,
        message: &Message<'_>,
    ) -> Result<Option<u64>> {
        let size = message.body().len() as u64;
        let limit = self.connection().max_message_size();
        if size > limit {
            return Err(Error::invalid(format!(
                "the body has {size} bytes, at most {limit} are allowed (max_message_size)"
            )));
        }
        let state = self.state();
        let method = BasicPublish {
            ticket: 0,
            exchange: Cow::Borrowed(exchange),
            routing_key: Cow::Borrowed(routing_key),
            mandatory: message.is_mandatory(),
            immediate: message.is_immediate(),
        };
        state.link.outbox.write(
            Admission::Publish,
            self.connection().publish_timeout(),
            || state.publish_gate(),
            |frames| {
                frames.method(state.number, &method)?;
                frames.content(state.number, message.properties(), message.body())?;
                Ok(state.confirms.next())
            },
        )
    }

    /// Messages that this channel published as mandatory and that came back as unroutable, from now on. The receiver
    /// keeps the newest 1024; all receivers of a channel share them. It is disconnected when the channel ends.
    ///
    /// In confirm mode a message is returned before it is confirmed.
    ///
    /// ```no_run
    /// use leveret::{Connection, Message};
    /// use std::time::Duration;
    ///
    /// let channel = Connection::open_default()?.open_channel()?;
    /// let returned = channel.returned_messages();
    /// channel.basic_publish("", "no such queue", Message::new("lost?").mandatory())?;
    /// if let Ok(message) = returned.recv_timeout(Duration::from_secs(1)) {
    ///     println!("{}: {}", message.reply_code(), message.reply_text());
    /// }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn returned_messages(&self) -> Receiver<ReturnedMessage> {
        let mut returned = self.state().returned.lock();
        let queue = returned.get_or_insert_with(|| {
            let (sender, receiver) = crossbeam_channel::bounded(RETURNED_LIMIT);
            ReturnedQueue { sender, receiver }
        });
        let receiver = queue.receiver.clone();
        if !self.is_open() {
            *returned = None;
        }
        receiver
    }

    /// How many unacknowledged messages the broker may send ahead to each consumer that begins from now on. Without
    /// it, it sends the whole queue.
    pub fn basic_qos(&self, prefetch_count: u16) -> Result<()> {
        self.basic_qos_with(QosOptions::default().prefetch_count(prefetch_count))
    }

    /// [`basic_qos`](Self::basic_qos) with all its parameters.
    ///
    /// # Errors
    /// 540, which closes the connection, for a `prefetch_size`: RabbitMQ has none.
    pub fn basic_qos_with(&self, options: QosOptions) -> Result<()> {
        let qos = BasicQos {
            prefetch_size: options.prefetch_size,
            prefetch_count: options.prefetch_count,
            global: options.global,
        };
        self.call("", &qos)?;
        Ok(())
    }

    /// Begins to consume from a queue. See [`Consumer`] for an example.
    ///
    /// # Errors
    /// 404 if there is no such queue, 403 if another consumer has it exclusively or without permission.
    /// [`ErrorKind::InvalidArgument`] if the consumer tag is in use on this channel: the broker would close the
    /// whole connection for it.
    pub fn basic_consume(&self, queue: &str, options: ConsumeOptions) -> Result<Consumer> {
        let asked = Asked::about(BasicConsume::ID, queue);
        let consumer_tag = self
            .take_consumer_tag(&options.consumer_tag)
            .map_err(|error| asked.failed(error))?;
        let channel = self.number();
        let (consumer, mailbox) = Consumer::new(self.clone(), Arc::clone(&consumer_tag), &options);
        let consume = BasicConsume {
            ticket: 0,
            queue: queue.into(),
            consumer_tag: Cow::Borrowed(&consumer_tag),
            no_local: options.no_local,
            no_ack: options.no_ack,
            exclusive: options.exclusive,
            no_wait: options.no_wait,
            arguments: Cow::Borrowed(&options.arguments),
        };
        let append = |frames: &mut Frames<'_>, call| {
            frames.method(channel, &consume)?;
            frames.command(Command::Consume {
                channel,
                consumer_tag: Arc::clone(&consumer_tag),
                consumer: Arc::new(mailbox),
                call,
            });
            Ok(())
        };
        let asked_for = if options.no_wait {
            self.write(asked, |frames| append(frames, None))
        } else {
            self.call_with(asked, |frames, call| append(frames, Some(call)))
                .map(drop)
        };
        // On an error the consumer is dropped and with it cancelled, if or when the broker has agreed.
        asked_for.map(|()| consumer)
    }

    /// The tag that was asked for, or one that is made up; each only once.
    fn take_consumer_tag(&self, wanted: &str) -> Result<Arc<str>> {
        let state = self.state();
        let mut taken = state.consumer_tags.lock();
        let consumer_tag: Arc<str> = if wanted.is_empty() {
            std::iter::repeat_with(|| {
                let count = state.consumers.fetch_add(1, Ordering::Relaxed) + 1;
                format!("leveret-{}.{count}", state.number)
            })
            .find(|made_up| !taken.contains(made_up.as_str()))
            .unwrap_or_default()
            .into()
        } else {
            wanted.into()
        };
        if !taken.insert(Arc::clone(&consumer_tag)) {
            return Err(Error::invalid(format!(
                "consumer tag {consumer_tag:?} is in use on channel {}",
                state.number
            )));
        }
        Ok(consumer_tag)
    }

    /// Cancels a consumer by its tag and waits until the broker has agreed; an unknown tag is no error. What has come
    /// until then can still be read.
    pub fn basic_cancel(&self, consumer_tag: &str) -> Result<()> {
        let asked = Asked::about(BasicCancel::ID, consumer_tag);
        let consumer_tag = consumer_tag.into();
        self.call_with(asked, |frames, call| {
            self.state().append_cancel(frames, &consumer_tag, call)
        })?;
        Ok(())
    }

    /// [`basic_cancel`](Self::basic_cancel) without waiting for the broker.
    pub fn basic_cancel_no_wait(&self, consumer_tag: &str) -> Result<()> {
        let asked = Asked::about(BasicCancel::ID, consumer_tag);
        let consumer_tag = consumer_tag.into();
        let (call, _nobody) = crossbeam_channel::bounded(1);
        self.write(asked, |frames| {
            self.state().append_cancel(frames, &consumer_tag, call)
        })
    }

    /// Fetches one message, or `None` if the queue is empty. With `no_ack` it is not to be acknowledged. A program
    /// that wants many messages is better off with a [`Consumer`].
    ///
    /// ```no_run
    /// # let channel = leveret::Connection::open_default()?.open_channel()?;
    /// while let Some(message) = channel.basic_get("tasks", false)? {
    ///     println!("{:?}, {} left", message.body(), message.message_count());
    ///     message.ack()?;
    /// }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// 404 if there is no such queue.
    pub fn basic_get(&self, queue: &str, no_ack: bool) -> Result<Option<GetResponse>> {
        let channel = self.number();
        let get = BasicGet {
            ticket: 0,
            queue: queue.into(),
            no_ack,
        };
        let reply = self.call_with(Asked::about(BasicGet::ID, queue), |frames, call| {
            frames.method(channel, &get)?;
            frames.command(Command::Call {
                channel,
                expected: Expected::Message { no_ack },
                call,
            });
            Ok(())
        })?;
        let fetched = match reply {
            Reply::Message(message) => message.claim(),
            Reply::Method(_) => None,
        };
        Ok(fetched.map(|fetched| GetResponse::new(self.clone(), no_ack, fetched)))
    }

    /// Acknowledges a message by its delivery tag; [`Delivery::ack`] does so for its own.
    ///
    /// # Errors
    /// An unknown tag, or one that was acknowledged before, makes the broker close the channel (406): the next call
    /// says so.
    pub fn basic_ack(&self, delivery_tag: u64) -> Result<()> {
        self.ack(delivery_tag, false)
    }

    /// Acknowledges a message and all earlier ones of the channel; 0 means all.
    ///
    /// # Errors
    /// As [`basic_ack`](Self::basic_ack).
    pub fn basic_ack_multiple(&self, delivery_tag: u64) -> Result<()> {
        self.ack(delivery_tag, true)
    }

    fn ack(&self, delivery_tag: u64, multiple: bool) -> Result<()> {
        let ack = BasicAck {
            delivery_tag,
            multiple,
        };
        self.send("", &ack)
    }

    /// Gives messages back: to their queue, or to be dropped or dead-lettered. An extension of RabbitMQ.
    ///
    /// # Errors
    /// As [`basic_ack`](Self::basic_ack).
    pub fn basic_nack(&self, delivery_tag: u64, options: NackOptions) -> Result<()> {
        let nack = BasicNack {
            delivery_tag,
            multiple: options.multiple,
            requeue: options.requeue,
        };
        self.send("", &nack)
    }

    /// Gives one message back: to its queue if `requeue`, or to be dropped or dead-lettered.
    ///
    /// # Errors
    /// As [`basic_ack`](Self::basic_ack).
    pub fn basic_reject(&self, delivery_tag: u64, requeue: bool) -> Result<()> {
        let reject = BasicReject {
            delivery_tag,
            requeue,
        };
        self.send("", &reject)
    }

    /// Gives all unacknowledged messages of the channel back to their queues and waits until that is done.
    ///
    /// # Errors
    /// 540, which closes the connection, without `requeue`: RabbitMQ does not implement it.
    pub fn basic_recover(&self, requeue: bool) -> Result<()> {
        self.call("", &BasicRecover { requeue })?;
        Ok(())
    }

    /// [`basic_recover`](Self::basic_recover) without a reply. Deprecated in AMQP.
    pub fn basic_recover_async(&self, requeue: bool) -> Result<()> {
        self.send("", &BasicRecoverAsync { requeue })
    }

    // ---- confirms ----

    /// Puts the channel into confirm mode: from now on the broker answers for every message. Doing it again changes
    /// nothing.
    ///
    /// ```no_run
    /// # let channel = leveret::Connection::open_default()?.open_channel()?;
    /// channel.confirm_select()?;
    /// for number in 0..100 {
    ///     channel.basic_publish("", "tasks", format!("task {number}"))?;
    /// }
    /// channel.wait_for_confirms()?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// 406 on a channel with transactions.
    ///
    /// See <https://www.rabbitmq.com/docs/confirms#publisher-confirms>.
    pub fn confirm_select(&self) -> Result<()> {
        let state = self.state();
        let select = ConfirmSelect { no_wait: false };
        let asked = Asked::about(ConfirmSelect::ID, "");
        self.call_with(asked, |frames, call| {
            request::append(frames, state.number, &select, call)?;
            // The broker counts what it reads behind this frame.
            state.confirms.select();
            Ok(())
        })?;
        Ok(())
    }

    /// [`confirm_select`](Self::confirm_select) without waiting for the broker.
    pub fn confirm_select_no_wait(&self) -> Result<()> {
        let state = self.state();
        self.write(Asked::about(ConfirmSelect::ID, ""), |frames| {
            frames.method(state.number, &ConfirmSelect { no_wait: true })?;
            state.confirms.select();
            Ok(())
        })
    }

    /// Waits until the broker has answered for all messages published on this channel so far, at most the
    /// connection's `request_timeout`. A timeout changes nothing: it can be called again.
    ///
    /// # Errors
    /// [`ErrorKind::Nacked`] with the sequence numbers that the broker refused since the last call; the channel's or
    /// the connection's end, if answers are missing; [`ErrorKind::InvalidArgument`] without
    /// [`confirm_select`](Self::confirm_select).
    pub fn wait_for_confirms(&self) -> Result<()> {
        self.wait_for_confirms_timeout(self.connection().request_timeout())
    }

    /// [`wait_for_confirms`](Self::wait_for_confirms), at most so long.
    ///
    /// # Errors
    /// As [`wait_for_confirms`](Self::wait_for_confirms).
    pub fn wait_for_confirms_timeout(&self, timeout: Duration) -> Result<()> {
        const DOING: &str = "waiting for confirms";
        let confirms = &self.state().confirms;
        if !confirms.is_selected() {
            let error = Error::invalid("the channel is not in confirm mode (confirm_select)");
            return Err(error.doing(DOING));
        }
        let answered = confirms.wait(Deadline::after(timeout));
        answered.map_err(|error| error.doing(DOING))
    }

    // ---- transactions ----

    /// Begins transactions on this channel: what is published and acknowledged takes effect at
    /// [`tx_commit`](Self::tx_commit). Confirms are faster.
    ///
    /// ```no_run
    /// # let channel = leveret::Connection::open_default()?.open_channel()?;
    /// channel.tx_select()?;
    /// channel.basic_publish("", "tasks", "both")?;
    /// channel.basic_publish("", "tasks", "or none")?;
    /// channel.tx_commit()?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// 406 on a channel in confirm mode.
    ///
    /// See <https://www.rabbitmq.com/docs/semantics#tx>.
    pub fn tx_select(&self) -> Result<()> {
        self.call("", &TxSelect {})?;
        Ok(())
    }

    /// Makes what was done since the last commit take effect.
    ///
    /// # Errors
    /// 406 on a channel without [`tx_select`](Self::tx_select).
    pub fn tx_commit(&self) -> Result<()> {
        self.call("", &TxCommit {})?;
        Ok(())
    }

    /// Undoes what was done since the last commit.
    ///
    /// # Errors
    /// 406 on a channel without [`tx_select`](Self::tx_select).
    pub fn tx_rollback(&self) -> Result<()> {
        self.call("", &TxRollback {})?;
        Ok(())
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
