//! Options of connections, declarations and calls: structs with defaults and chained setters.

use std::fmt;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::proto::{Config, Login};
use crate::uri;
use crate::wire::frame::MIN_SIZE;
use crate::wire::value::{FieldTable, FieldValue};

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $type:ty;)*) => {
        $(
            $(#[$doc])*
            #[must_use]
            pub fn $name(mut self, $name: $type) -> Self {
                self.$name = $name.into();
                self
            }
        )*
    };
}

/// A table of arguments can be given at once or one by one.
macro_rules! arguments {
    ($(#[$doc:meta])*) => {
        $(#[$doc])*
        #[must_use]
        pub fn arguments(mut self, arguments: FieldTable) -> Self {
            self.arguments = arguments;
            self
        }

        /// One more argument.
        #[must_use]
        pub fn argument(mut self, name: impl Into<String>, value: impl Into<FieldValue>) -> Self {
            self.arguments.insert(name, value);
            self
        }
    };
}

macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $(
            $(#[$doc])*
            #[must_use]
            pub fn $name(mut self) -> Self {
                self.$name = true;
                self
            }
        )*
    };
}

/// How user name and password are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum LoginMethod {
    /// As SASL PLAIN. Every RabbitMQ offers it.
    #[default]
    Plain,
    /// As a field table; an older way to say the same.
    AmqPlain,
}

/// Where and how to connect.
///
/// The default is RabbitMQ on this machine: `guest` with password `guest` on `localhost:5672`, virtual host `/`.
///
/// ```no_run
/// use leveret::{Connection, ConnectionOptions};
/// use std::time::Duration;
///
/// let options = ConnectionOptions::from_uri("amqp://guest:guest@localhost/%2f")?
///     .connection_name("billing worker")
///     .heartbeat(Duration::from_secs(10));
/// let connection = Connection::open_with(&options)?;
/// # Ok::<(), leveret::Error>(())
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct ConnectionOptions {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) vhost: String,
    pub(crate) username: String,
    pub(crate) password: String,
    pub(crate) login_method: LoginMethod,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) publish_timeout: Duration,
    pub(crate) heartbeat: Duration,
    pub(crate) channel_max: u16,
    pub(crate) frame_max: u32,
    pub(crate) max_message_size: u64,
    pub(crate) connection_name: String,
    pub(crate) client_properties: FieldTable,
}

impl Default for ConnectionOptions {
    fn default() -> Self {
        Self {
            host: "localhost".to_owned(),
            port: 5672,
            vhost: "/".to_owned(),
            username: "guest".to_owned(),
            password: "guest".to_owned(),
            login_method: LoginMethod::default(),
            connect_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(30),
            publish_timeout: Duration::from_secs(30),
            heartbeat: Duration::from_secs(60),
            channel_max: 2047,
            frame_max: 128 << 10,
            max_message_size: 128 << 20,
            connection_name: default_name(),
            client_properties: FieldTable::new(),
        }
    }
}

/// Without the password.
impl fmt::Debug for ConnectionOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionOptions")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("vhost", &self.vhost)
            .field("username", &self.username)
            .field("login_method", &self.login_method)
            .field("connect_timeout", &self.connect_timeout)
            .field("request_timeout", &self.request_timeout)
            .field("publish_timeout", &self.publish_timeout)
            .field("heartbeat", &self.heartbeat)
            .field("channel_max", &self.channel_max)
            .field("frame_max", &self.frame_max)
            .field("max_message_size", &self.max_message_size)
            .field("connection_name", &self.connection_name)
            .field("client_properties", &self.client_properties)
            .finish()
    }
}

/// As a URI, without the password.
impl fmt::Display for ConnectionOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uri::write(self, f)
    }
}

impl ConnectionOptions {
    /// What the URI says, and the defaults for what it does not say.
    ///
    /// The query can set `heartbeat` (seconds), `connection_timeout` (milliseconds), `channel_max` and `frame_max`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidUri`](crate::ErrorKind::InvalidUri) names the part that is wrong, never the password.
    ///
    /// See <https://www.rabbitmq.com/docs/uri-spec>.
    pub fn from_uri(uri: &str) -> Result<Self> {
        uri::parse(uri)
    }

    setters! {
        /// A name or an address, IPv6 without brackets. Default: `localhost`.
        host: impl Into<String>;
        /// Default: 5672.
        port: u16;
        /// The virtual host. Default: `/`.
        vhost: impl Into<String>;
        /// Default: `guest`.
        username: impl Into<String>;
        /// Default: `guest`. Never shown in errors, logs or `Debug`.
        password: impl Into<String>;
        /// How to log in. Default: PLAIN.
        login_method: LoginMethod;
        /// How long opening may take in all: TCP and the AMQP handshake. Default: 30 seconds.
        connect_timeout: Duration;
        /// How long a call waits for the broker's reply. Default: 30 seconds.
        request_timeout: Duration;
        /// How long a publish waits while the socket takes nothing or the broker has blocked the connection.
        /// Default: 30 seconds.
        publish_timeout: Duration;
        /// After two intervals without a byte from the broker the connection is given up. Whole seconds; zero turns
        /// heartbeats off. The broker may ask for less. Default: 60 seconds.
        ///
        /// See <https://www.rabbitmq.com/docs/heartbeats>.
        heartbeat: Duration;
        /// How many channels can be open at once. Zero: as many as the broker allows. The broker may allow fewer.
        /// Default: 2047.
        channel_max: u16;
        /// The size of the largest frame, in bytes; messages are cut into as many frames as they need. Zero: as the
        /// broker wants it. At least 4096; RabbitMQ 4 wants at least 8192. Default: 131072.
        frame_max: u32;
        /// The largest message body that is sent or taken, in bytes. Default: 128 MiB, which is RabbitMQ's own limit
        /// up to 3.x; RabbitMQ 4 allows 16 MiB unless configured.
        max_message_size: u64;
        /// Shown in RabbitMQ's management pages and `rabbitmqctl list_connections`. Default: the program's name and
        /// process id.
        connection_name: impl Into<String>;
        /// Told to the broker at login, over those that this crate tells itself (product, version, capabilities, …).
        client_properties: FieldTable;
    }

    /// Refuses what no server would take.
    pub(crate) fn check(&self) -> Result<()> {
        if self.frame_max != 0 && self.frame_max < MIN_SIZE {
            return Err(Error::invalid(format!(
                "frame_max is {}, the least is {MIN_SIZE} (or 0 for no limit)",
                self.frame_max
            )));
        }
        if self.vhost.len() > 255 {
            return Err(Error::invalid(format!(
                "vhost has {} bytes, at most 255 are possible",
                self.vhost.len()
            )));
        }
        // The broker takes user name and password apart at the NUL between them.
        if self.login_method == LoginMethod::Plain
            && (self.username.contains('\0') || self.password.contains('\0'))
        {
            return Err(Error::invalid(
                "user name and password must not contain a NUL character",
            ));
        }
        Ok(())
    }

    pub(crate) fn config(&self) -> Config {
        let login = match self.login_method {
            LoginMethod::Plain => Login::plain(&self.username, &self.password),
            LoginMethod::AmqPlain => Login::amqplain(&self.username, &self.password),
        };
        // A part of a second is rounded up: nobody who asks for heartbeats means none.
        let partial = u64::from(self.heartbeat.subsec_nanos() > 0);
        let heartbeat = self.heartbeat.as_secs().saturating_add(partial);
        Config {
            login,
            vhost: self.vhost.clone(),
            client_properties: self.all_client_properties(),
            channel_max: self.channel_max,
            frame_max: self.frame_max,
            heartbeat: heartbeat.try_into().unwrap_or(u16::MAX),
            max_message_size: self.max_message_size,
        }
    }

    fn all_client_properties(&self) -> FieldTable {
        let capabilities = [
            "authentication_failure_close",
            "basic.nack",
            "connection.blocked",
            "consumer_cancel_notify",
            "exchange_exchange_bindings",
            "publisher_confirms",
        ];
        let mut properties = FieldTable::new()
            .with("product", "leveret")
            .with("version", env!("CARGO_PKG_VERSION"))
            .with("platform", "Rust")
            .with("connection_name", self.connection_name.as_str())
            .with(
                "capabilities",
                FieldTable::from_iter(capabilities.map(|it| (it, true))),
            );
        for (name, value) in self.client_properties.clone() {
            properties.insert(name, value);
        }
        properties
    }
}

fn default_name() -> String {
    let program = std::env::current_exe().ok();
    let program = program.as_deref().and_then(|path| path.file_name());
    let program = program.map_or_else(|| "leveret".into(), |name| name.to_string_lossy());
    format!("{program} {}", std::process::id())
}

/// How to declare a queue.
///
/// The default is [`durable`](Self::durable): a queue that survives a restart of the broker.
/// [`quorum`](Self::quorum) and [`exclusive`](Self::exclusive) are what programs want else.
///
/// ```
/// use leveret::QueueDeclareOptions;
///
/// let options = QueueDeclareOptions::durable().argument("x-message-ttl", 60_000);
/// ```
///
/// See <https://www.rabbitmq.com/docs/queues#properties>.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct QueueDeclareOptions {
    pub(crate) passive: bool,
    pub(crate) durable: bool,
    pub(crate) exclusive: bool,
    pub(crate) auto_delete: bool,
    pub(crate) no_wait: bool,
    pub(crate) arguments: FieldTable,
}

impl Default for QueueDeclareOptions {
    fn default() -> Self {
        Self::durable()
    }
}

impl QueueDeclareOptions {
    /// A classic queue that survives a restart of the broker.
    pub fn durable() -> Self {
        Self {
            passive: false,
            durable: true,
            exclusive: false,
            auto_delete: false,
            no_wait: false,
            arguments: FieldTable::new(),
        }
    }

    /// A replicated, durable queue (`x-queue-type: quorum`).
    pub fn quorum() -> Self {
        Self::durable().argument("x-queue-type", "quorum")
    }

    /// A replicated, durable log that can be read many times (`x-queue-type: stream`).
    pub fn stream() -> Self {
        Self::durable().argument("x-queue-type", "stream")
    }

    /// A queue for this connection alone; it is deleted with the connection.
    pub fn exclusive() -> Self {
        Self::durable().transient().and_exclusive()
    }

    /// Declares nothing: the call fails, and the channel is closed, if there is no such queue. If there is, it tells
    /// the counts.
    pub fn passive() -> Self {
        Self {
            passive: true,
            ..Self::default()
        }
    }

    /// Gone after a restart of the broker. RabbitMQ 4 advises against queues that are neither durable nor exclusive.
    #[must_use]
    pub fn transient(mut self) -> Self {
        self.durable = false;
        self
    }

    /// For this connection alone, on top of what else it is.
    #[must_use]
    pub fn and_exclusive(mut self) -> Self {
        self.exclusive = true;
        self
    }

    flags! {
        /// The queue is deleted when its last consumer is gone.
        auto_delete;
        /// Does not wait for the broker. If it refuses, the channel is closed, as the next call on it says; the
        /// counts are not known.
        no_wait;
    }

    arguments! {
        /// All arguments at once, such as `x-message-ttl`.
    }
}

/// How to declare an exchange.
///
/// The default is an exchange that is gone after a restart of the broker.
///
/// See <https://www.rabbitmq.com/docs/exchanges>.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ExchangeDeclareOptions {
    pub(crate) passive: bool,
    pub(crate) durable: bool,
    pub(crate) auto_delete: bool,
    pub(crate) internal: bool,
    pub(crate) no_wait: bool,
    pub(crate) arguments: FieldTable,
}

impl ExchangeDeclareOptions {
    /// An exchange that survives a restart of the broker.
    pub fn durable() -> Self {
        Self {
            durable: true,
            ..Self::default()
        }
    }

    /// Declares nothing: the call fails if there is no such exchange.
    pub fn passive() -> Self {
        Self {
            passive: true,
            ..Self::default()
        }
    }

    flags! {
        /// The exchange is deleted when its last binding is gone.
        auto_delete;
        /// Nobody can publish to it but other exchanges that are bound to it.
        internal;
        /// Does not wait for the broker. If it refuses, the channel is closed, as the next call on it says.
        no_wait;
    }

    arguments! {
        /// All arguments at once, such as `alternate-exchange`.
    }
}

/// How to delete a queue. The default deletes it with all its messages and consumers.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct QueueDeleteOptions {
    pub(crate) if_unused: bool,
    pub(crate) if_empty: bool,
    pub(crate) no_wait: bool,
}

impl QueueDeleteOptions {
    flags! {
        /// Refused (406) while the queue has consumers.
        if_unused;
        /// Refused (406) while the queue has messages.
        if_empty;
        /// Does not wait for the broker; the count is then 0.
        no_wait;
    }
}

/// How to delete an exchange. The default deletes it with all its bindings.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ExchangeDeleteOptions {
    pub(crate) if_unused: bool,
    pub(crate) no_wait: bool,
}

impl ExchangeDeleteOptions {
    flags! {
        /// Refused (406) while something is bound to the exchange.
        if_unused;
        /// Does not wait for the broker.
        no_wait;
    }
}

/// How to bind or unbind. The default has no arguments and waits for the broker.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct BindOptions {
    pub(crate) no_wait: bool,
    pub(crate) arguments: FieldTable,
}

impl BindOptions {
    flags! {
        /// Does not wait for the broker (without effect on `queue.unbind`, which knows no such thing).
        no_wait;
    }

    arguments! {
        /// All arguments at once, such as the headers that a headers exchange matches.
    }
}

/// How to consume. The default leaves it to the program to acknowledge each message, and the tag to this crate.
///
/// See <https://www.rabbitmq.com/docs/consumers>.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ConsumeOptions {
    pub(crate) consumer_tag: String,
    pub(crate) no_local: bool,
    pub(crate) no_ack: bool,
    pub(crate) exclusive: bool,
    pub(crate) no_wait: bool,
    pub(crate) arguments: FieldTable,
}

impl ConsumeOptions {
    flags! {
        /// Not to be sent what was published on the same connection. RabbitMQ ignores it.
        no_local;
        /// The broker forgets a message as soon as it has sent it: nothing is to be acknowledged, and what this
        /// program has not yet handled is lost when it dies.
        no_ack;
        /// Nobody else may consume from the queue.
        exclusive;
        /// Does not wait for the broker. If it refuses, the consumer yields the channel's error.
        no_wait;
    }

    setters! {
        /// The consumer's name on its channel. Default: made up.
        consumer_tag: impl Into<String>;
    }

    arguments! {
        /// All arguments at once, such as `x-priority` or `x-stream-offset`.
    }
}

/// How many unacknowledged messages the broker may send ahead.
///
/// See <https://www.rabbitmq.com/docs/consumer-prefetch>.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct QosOptions {
    pub(crate) prefetch_count: u16,
    pub(crate) prefetch_size: u32,
    pub(crate) global: bool,
}

impl QosOptions {
    flags! {
        /// The limit is for all consumers of the channel together. Quorum queues and RabbitMQ 4 refuse it.
        global;
    }

    setters! {
        /// In messages. Zero: no limit.
        prefetch_count: u16;
        /// In bytes. RabbitMQ refuses any but zero (540).
        prefetch_size: u32;
    }
}

/// What happens to messages that are given back with `basic.nack`.
///
/// See <https://www.rabbitmq.com/docs/nack>.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct NackOptions {
    pub(crate) multiple: bool,
    pub(crate) requeue: bool,
}

impl NackOptions {
    /// The message goes back to its queue.
    pub fn requeue() -> Self {
        Self {
            requeue: true,
            ..Self::default()
        }
    }

    /// The message is dropped, or dead-lettered if its queue is declared so.
    pub fn discard() -> Self {
        Self::default()
    }

    flags! {
        /// Also all earlier messages of the channel that are not yet acknowledged.
        multiple;
    }
}

/// How a [`Publisher`](crate::Publisher) publishes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PublisherOptions {
    pub(crate) window: u32,
    pub(crate) window_bytes: u64,
    pub(crate) mandatory: bool,
    pub(crate) confirm_timeout: Duration,
}

impl Default for PublisherOptions {
    fn default() -> Self {
        Self {
            window: 1000,
            window_bytes: 64 << 20,
            mandatory: true,
            confirm_timeout: Duration::from_secs(30),
        }
    }
}

impl PublisherOptions {
    /// The largest window, in messages.
    pub const MAX_WINDOW: u32 = 65_536;

    setters! {
        /// How many messages can be unconfirmed at once, from 1 to 65,536. With 1, every message waits for the answer
        /// to the one before. Default: 1000.
        window: u32;
        /// How many bytes of message bodies can be unconfirmed at once; a single message can be larger. Default:
        /// 64 MiB.
        window_bytes: u64;
        /// Whether every message is published as mandatory: one that no queue is bound for comes back and is a
        /// failure. Otherwise the broker drops and confirms it, unless [`Message::mandatory`](crate::Message::mandatory) says so for this one.
        /// Default: true.
        mandatory: bool;
        /// How long is waited at most for the broker's answer, and for room in the window. Default: 30 seconds.
        confirm_timeout: Duration;
    }

    /// Refuses a window that makes no sense.
    pub(crate) fn check(&self) -> Result<()> {
        if (1..=Self::MAX_WINDOW).contains(&self.window) {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the window is {} messages, possible are 1 to {}",
            self.window,
            Self::MAX_WINDOW
        )))
    }
}
