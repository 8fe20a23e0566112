//! Exchanges: names and kinds, and a handle for one exchange.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use crate::channel::{existence, Channel};
use crate::connection::Connection;
use crate::error::Result;
use crate::io_thread::deadline::Deadline;
use crate::message::Message;
use crate::options::{ExchangeDeclareOptions, ExchangeDeleteOptions};
use crate::wire::method::{ExchangeBind, ExchangeDeclare, ExchangeDelete, ExchangeUnbind};
use crate::wire::value::FieldTable;

/// How an exchange routes messages.
///
/// See <https://www.rabbitmq.com/docs/exchanges#types>.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ExchangeKind {
    /// Routes to queues bound with exactly the message's routing key.
    Direct,
    /// Routes to all bound queues.
    Fanout,
    /// Routes to queues bound with a matching pattern: words between dots, `*` for one word, `#`
    /// for any number.
    Topic,
    /// Routes to queues whose binding arguments match the message's headers; ignores the routing
    /// key.
    Headers,
    /// Routes to one of the bound queues, chosen by a hash of the routing key
    /// (`x-consistent-hash`). Binding or unbinding a queue moves few routing keys to another queue.
    ///
    /// Needs the plugin `rabbitmq_consistent_hash_exchange`, which comes with RabbitMQ. Each
    /// binding key is the queue's weight, a number of at least 1: `queue.bind(&exchange, "1")`.
    /// RabbitMQ refuses other binding keys (406). [`hash_header`] and [`hash_property`] hash
    /// something else instead. A routing key can move to another queue when a node restarts.
    ///
    /// [`hash_header`]: crate::ExchangeDeclareOptions::hash_header
    /// [`hash_property`]: crate::ExchangeDeclareOptions::hash_property
    ///
    /// See <https://www.rabbitmq.com/docs/plugins>.
    ConsistentHash,
    /// Routes to one of the bound queues: the hash of the routing key modulo the number of queues
    /// (`x-modulus-hash`). Binding or unbinding a queue moves most routing keys to another queue.
    /// Binding keys have no effect.
    ///
    /// Part of RabbitMQ since 4.3. Earlier versions need the plugin `rabbitmq_sharding`, which
    /// comes with them.
    ///
    /// See <https://www.rabbitmq.com/docs/modulus-hash-exchange>.
    ModulusHash,
    /// Routes to a random bound queue (`x-random`). Routing and binding keys have no effect.
    ///
    /// Needs the plugin `rabbitmq_random_exchange`, which comes with RabbitMQ.
    ///
    /// See <https://www.rabbitmq.com/docs/plugins>.
    Random,
    /// Routes to a random bound queue on the node that the publisher is connected to
    /// (`x-local-random`). Without such a queue, the message is unroutable.
    ///
    /// Part of RabbitMQ since 4.0. Only classic queues can be bound, and only with an empty binding
    /// key; RabbitMQ refuses other bindings (406). The routing key has no effect. Meant for RPC:
    /// each server consumes from its own exclusive queue.
    ///
    /// See <https://www.rabbitmq.com/docs/local-random-exchange>.
    LocalRandom,
    /// Routes to all bound queues, as [`Fanout`](Self::Fanout) does, and also sends the last 20
    /// messages to each newly bound queue (`x-recent-history`).
    ///
    /// Needs the plugin `rabbitmq_recent_history_exchange`, which comes with RabbitMQ.
    /// [`recent_history_length`](crate::ExchangeDeclareOptions::recent_history_length) changes the
    /// number of messages. Messages with the header `x-recent-history-no-store` set to `true` are
    /// not kept.
    ///
    /// See <https://www.rabbitmq.com/docs/plugins>.
    RecentHistory,
    /// Another type, provided by a plugin, such as `x-jms-topic`.
    Other(Cow<'static, str>),
}

impl ExchangeKind {
    /// Returns the AMQP name of the type.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Direct => "direct",
            Self::Fanout => "fanout",
            Self::Topic => "topic",
            Self::Headers => "headers",
            Self::ConsistentHash => "x-consistent-hash",
            Self::ModulusHash => "x-modulus-hash",
            Self::Random => "x-random",
            Self::LocalRandom => "x-local-random",
            Self::RecentHistory => "x-recent-history",
            Self::Other(name) => name,
        }
    }
}

/// Compares the AMQP names.
impl PartialEq for ExchangeKind {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for ExchangeKind {}

impl Hash for ExchangeKind {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

/// Converts an AMQP name, for example from a configuration file.
impl From<String> for ExchangeKind {
    fn from(name: String) -> Self {
        name.as_str().into()
    }
}

/// Converts an AMQP name, for example from a configuration file.
impl From<&String> for ExchangeKind {
    fn from(name: &String) -> Self {
        name.as_str().into()
    }
}

/// Converts an AMQP name, for example from a configuration file. Never fails: another name can be
/// that of a plugin.
impl FromStr for ExchangeKind {
    type Err = Infallible;

    fn from_str(name: &str) -> Result<Self, Infallible> {
        Ok(name.into())
    }
}

/// Converts an AMQP name, for example from a configuration file.
impl From<&str> for ExchangeKind {
    fn from(name: &str) -> Self {
        match name {
            "direct" => Self::Direct,
            "fanout" => Self::Fanout,
            "topic" => Self::Topic,
            "headers" => Self::Headers,
            "x-consistent-hash" => Self::ConsistentHash,
            "x-modulus-hash" => Self::ModulusHash,
            "x-random" => Self::Random,
            "x-local-random" => Self::LocalRandom,
            "x-recent-history" => Self::RecentHistory,
            other => Self::Other(other.to_owned().into()),
        }
    }
}

impl fmt::Display for ExchangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A handle for one exchange: a name and a channel.
///
/// ```no_run
/// use leveret::{Connection, ExchangeDeclareOptions, ExchangeKind, Message, QueueDeclareOptions};
///
/// let channel = Connection::open_default()?.open_channel()?;
/// let options = ExchangeDeclareOptions::default();
/// let events = channel.exchange_declare("events", ExchangeKind::Topic, options)?;
/// let queue = channel.queue_declare("", QueueDeclareOptions::temporary())?;
/// queue.bind(&events, "order.*")?;
/// events.publish("order.paid", Message::new("{}").content_type("application/json"))?;
/// # Ok::<(), leveret::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Exchange {
    channel: Channel,
    name: Arc<str>,
}

/// The exchange's name.
impl AsRef<str> for Exchange {
    fn as_ref(&self) -> &str {
        &self.name
    }
}

impl Exchange {
    pub(crate) fn new(channel: Channel, name: &str) -> Self {
        let name = name.into();
        Self { channel, name }
    }

    /// Returns the exchange's name; empty for the default exchange.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns this handle's channel.
    #[must_use]
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Publishes a message to this exchange: see [`Channel::basic_publish`].
    ///
    /// # Errors
    /// Same as [`Channel::basic_publish`].
    pub fn publish<'m>(
        &self,
        routing_key: &str,
        message: impl Into<Message<'m>>,
    ) -> Result<Option<u64>> {
        self.channel.basic_publish(&self.name, routing_key, message)
    }

    /// Binds this exchange to `source`, an exchange or its name: it gets the messages that `source`
    /// routes with this routing key. See [`Channel::exchange_bind`].
    ///
    /// # Errors
    /// Same as [`Channel::exchange_bind`].
    pub fn bind(&self, source: impl AsRef<str>, routing_key: &str) -> Result<()> {
        self.bind_with(source, routing_key, FieldTable::new())
    }

    /// Binds this exchange to `source` with arguments, for example for a headers exchange.
    ///
    /// # Errors
    /// Same as [`Channel::exchange_bind`].
    pub fn bind_with(
        &self,
        source: impl AsRef<str>,
        routing_key: &str,
        arguments: impl Into<FieldTable>,
    ) -> Result<()> {
        let source = source.as_ref();
        self.channel
            .exchange_bind(&self.name, source, routing_key, arguments)
    }

    /// Removes a binding made by [`bind`](Self::bind).
    ///
    /// # Errors
    /// Same as [`Channel::exchange_unbind`].
    pub fn unbind(&self, source: impl AsRef<str>, routing_key: &str) -> Result<()> {
        self.unbind_with(source, routing_key, FieldTable::new())
    }

    /// Removes a binding made by [`bind_with`](Self::bind_with) with the same arguments.
    ///
    /// # Errors
    /// Same as [`Channel::exchange_unbind`].
    pub fn unbind_with(
        &self,
        source: impl AsRef<str>,
        routing_key: &str,
        arguments: impl Into<FieldTable>,
    ) -> Result<()> {
        let source = source.as_ref();
        self.channel
            .exchange_unbind(&self.name, source, routing_key, arguments)
    }

    /// Deletes the exchange: see [`Channel::exchange_delete`].
    ///
    /// # Errors
    /// Same as [`Channel::exchange_delete`].
    pub fn delete(&self) -> Result<()> {
        self.delete_with(ExchangeDeleteOptions::default())
    }

    /// Deletes the exchange only if the options permit it.
    ///
    /// # Errors
    /// Same as [`Channel::exchange_delete`].
    pub fn delete_with(&self, options: ExchangeDeleteOptions) -> Result<()> {
        self.channel.exchange_delete(&self.name, options)
    }
}

impl Channel {
    /// Declares an exchange: creates it, or checks that it exists with these options.
    ///
    /// ```no_run
    /// use leveret::{Connection, ExchangeDeclareOptions, ExchangeKind};
    ///
    /// let channel = Connection::open_default()?.open_channel()?;
    /// let options = ExchangeDeclareOptions::default();
    /// let logs = channel.exchange_declare("logs", ExchangeKind::Fanout, options)?;
    /// logs.publish("", "to everyone")?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// 406 if the exchange exists with other options; 404 if a passive declaration finds no
    /// exchange; 403 without permission; 406 for an unknown kind (before RabbitMQ 4.0, 503, which
    /// closes the connection).
    pub fn exchange_declare(
        &self,
        name: &str,
        kind: impl Into<ExchangeKind>,
        options: ExchangeDeclareOptions,
    ) -> Result<Exchange> {
        self.declare_exchange(name, &kind.into(), &options, false)
    }

    /// Checks that an exchange exists. [`Connection::exchange_exists`] asks the same without risk
    /// to a channel.
    ///
    /// # Errors
    /// 404 if the exchange does not exist: the broker then closes the channel. 403 without
    /// permission.
    pub fn exchange_declare_passive(&self, name: &str) -> Result<Exchange> {
        // A passive declaration ignores the kind.
        let options = ExchangeDeclareOptions::default().passive(true);
        self.exchange_declare(name, ExchangeKind::Direct, options)
    }

    /// [`exchange_declare`](Self::exchange_declare) without waiting for the broker.
    ///
    /// # Errors
    /// If the broker refuses, it closes the channel, and the next call on the channel fails.
    pub fn exchange_declare_no_wait(
        &self,
        name: &str,
        kind: impl Into<ExchangeKind>,
        options: ExchangeDeclareOptions,
    ) -> Result<Exchange> {
        self.declare_exchange(name, &kind.into(), &options, true)
    }

    fn declare_exchange(
        &self,
        name: &str,
        kind: &ExchangeKind,
        options: &ExchangeDeclareOptions,
        no_wait: bool,
    ) -> Result<Exchange> {
        let declare = ExchangeDeclare {
            ticket: 0,
            exchange: name.into(),
            kind: kind.as_str().into(),
            passive: options.passive,
            durable: options.durable,
            auto_delete: options.auto_delete,
            internal: options.internal,
            no_wait,
            arguments: Cow::Borrowed(&options.arguments),
        };
        self.call_recorded(no_wait, name, || declare)?;
        Ok(self.exchange(name))
    }

    /// Returns a handle for an existing exchange without asking the broker. The default exchange
    /// has the name `""`.
    #[must_use]
    pub fn exchange(&self, name: &str) -> Exchange {
        Exchange::new(self.clone(), name)
    }

    /// Deletes an exchange. A missing exchange is not an error.
    ///
    /// # Errors
    /// 406 if the options demand an unused exchange and it is in use; 403 for a predeclared
    /// exchange.
    pub fn exchange_delete(&self, name: &str, options: ExchangeDeleteOptions) -> Result<()> {
        self.delete_exchange(name, &options, false)
    }

    /// [`exchange_delete`](Self::exchange_delete) without waiting for the broker.
    ///
    /// # Errors
    /// If the broker refuses, it closes the channel, and the next call on the channel fails.
    pub fn exchange_delete_no_wait(
        &self,
        name: &str,
        options: ExchangeDeleteOptions,
    ) -> Result<()> {
        self.delete_exchange(name, &options, true)
    }

    fn delete_exchange(
        &self,
        name: &str,
        options: &ExchangeDeleteOptions,
        no_wait: bool,
    ) -> Result<()> {
        let delete = ExchangeDelete {
            ticket: 0,
            exchange: name.into(),
            if_unused: options.if_unused,
            no_wait,
        };
        self.call_recorded(no_wait, name, || delete)?;
        Ok(())
    }

    /// Binds one exchange to another: messages that `source` receives with a matching routing key
    /// also go to `destination`. A RabbitMQ extension.
    ///
    /// # Errors
    /// 404 if one of the exchanges does not exist.
    ///
    /// See <https://www.rabbitmq.com/docs/e2e>.
    pub fn exchange_bind(
        &self,
        destination: &str,
        source: &str,
        routing_key: &str,
        arguments: impl Into<FieldTable>,
    ) -> Result<()> {
        self.bind_exchange(destination, source, routing_key, &arguments.into(), false)
    }

    /// [`exchange_bind`](Self::exchange_bind) without waiting for the broker.
    ///
    /// # Errors
    /// If the broker refuses, it closes the channel, and the next call on the channel fails.
    pub fn exchange_bind_no_wait(
        &self,
        destination: &str,
        source: &str,
        routing_key: &str,
        arguments: impl Into<FieldTable>,
    ) -> Result<()> {
        self.bind_exchange(destination, source, routing_key, &arguments.into(), true)
    }

    fn bind_exchange(
        &self,
        destination: &str,
        source: &str,
        routing_key: &str,
        arguments: &FieldTable,
        no_wait: bool,
    ) -> Result<()> {
        let bind = ExchangeBind {
            ticket: 0,
            destination: destination.into(),
            source: source.into(),
            routing_key: routing_key.into(),
            no_wait,
            arguments: Cow::Borrowed(arguments),
        };
        self.call_recorded(no_wait, destination, || bind)?;
        Ok(())
    }

    /// Removes the binding that [`exchange_bind`](Self::exchange_bind) made with the same routing
    /// key and arguments. A missing binding is not an error.
    ///
    /// # Errors
    /// 403 without permission, and for the default exchange.
    pub fn exchange_unbind(
        &self,
        destination: &str,
        source: &str,
        routing_key: &str,
        arguments: impl Into<FieldTable>,
    ) -> Result<()> {
        self.unbind_exchange(destination, source, routing_key, &arguments.into(), false)
    }

    /// [`exchange_unbind`](Self::exchange_unbind) without waiting for the broker.
    ///
    /// # Errors
    /// If the broker refuses, it closes the channel, and the next call on the channel fails.
    pub fn exchange_unbind_no_wait(
        &self,
        destination: &str,
        source: &str,
        routing_key: &str,
        arguments: impl Into<FieldTable>,
    ) -> Result<()> {
        self.unbind_exchange(destination, source, routing_key, &arguments.into(), true)
    }

    fn unbind_exchange(
        &self,
        destination: &str,
        source: &str,
        routing_key: &str,
        arguments: &FieldTable,
        no_wait: bool,
    ) -> Result<()> {
        let unbind = ExchangeUnbind {
            ticket: 0,
            destination: destination.into(),
            source: source.into(),
            routing_key: routing_key.into(),
            no_wait,
            arguments: Cow::Borrowed(arguments),
        };
        self.call_recorded(no_wait, destination, || unbind)?;
        Ok(())
    }
}

impl Connection {
    /// Returns true if the exchange exists. Asks on a separate channel, so that a "no" from the
    /// broker closes none of the program's channels. The user needs the same permission as for
    /// [`queue_exists`](Self::queue_exists).
    ///
    /// # Errors
    /// 403 without permission, whether the exchange exists or not. Also the errors of
    /// [`open_channel`](Self::open_channel).
    pub fn exchange_exists(&self, name: &str) -> Result<bool> {
        existence(self.find_exchange(name, Deadline::after(self.request_timeout())))
    }

    /// Fails with 404 if the exchange does not exist.
    pub(crate) fn find_exchange(&self, name: &str, deadline: Deadline) -> Result<()> {
        let channel = self.open_question_until(deadline)?;
        let declare = ExchangeDeclare {
            exchange: name.into(),
            // A passive declaration ignores the kind.
            kind: "direct".into(),
            passive: true,
            ..ExchangeDeclare::default()
        };
        channel.call_by(deadline, name, || declare).map(drop)
    }
}
