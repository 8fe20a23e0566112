//! How to connect.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::credentials::{Credentials, Provider};
use super::tls;
use super::{RecoveryOptions, TlsOptions};
use crate::error::{Error, Result};
use crate::sasl::SaslMechanism;
use crate::stats::Metrics;
use crate::wire::codec::Writer;
use crate::wire::frame::MIN_SIZE;
use crate::wire::value::FieldTable;

/// Linux takes no more seconds (`TCP_KEEPIDLE`).
const MAX_TCP_KEEPALIVE: Duration = Duration::from_secs(32_767);

/// The system takes the milliseconds as a signed number of 32 bits.
const MAX_TCP_USER_TIMEOUT: Duration = Duration::from_millis(i32::MAX as u64);

fn check_at_most(most: Duration, option: &str, value: Duration) -> Result<()> {
    if value <= most {
        return Ok(());
    }
    let text = format!("{option} is {value:?}, at most {most:?} are possible (zero for none)");
    Err(Error::invalid(text))
}

/// How to log in: the SASL mechanism.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum LoginMethod {
    /// With user name and password, as SASL PLAIN. Every RabbitMQ offers it. OAuth 2 tokens go in the place of the password.
    #[default]
    Plain,
    /// With user name and password, as a field table; an older way to say the same.
    AmqPlain,
    /// With the client's certificate ([`TlsOptions`]); user name and password are not sent. RabbitMQ needs the plugin
    /// `rabbitmq_auth_mechanism_ssl`.
    External,
    /// In a way of one's own.
    Sasl(Arc<dyn SaslMechanism>),
}

/// A place to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// As it stands in a URI.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        match host.contains(':') {
            true => write!(f, "[{host}]:{port}"),
            false => write!(f, "{host}:{port}"),
        }
    }
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
    pub(crate) port: Option<u16>,
    pub(crate) more_endpoints: Vec<Endpoint>,
    pub(crate) shuffle_endpoints: bool,
    pub(crate) tls: Option<TlsOptions>,
    pub(crate) tcp_keepalive: Duration,
    pub(crate) tcp_user_timeout: Duration,
    pub(crate) vhost: String,
    pub(crate) username: String,
    pub(crate) password: String,
    pub(crate) credentials: Option<Provider>,
    pub(crate) login_method: LoginMethod,
    pub(crate) connect_timeout: Duration,
    pub(crate) retry_open_for: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) publish_timeout: Duration,
    pub(crate) heartbeat: Duration,
    pub(crate) channel_max: u16,
    pub(crate) frame_max: u32,
    pub(crate) max_message_size: u64,
    pub(crate) max_unread_bytes: u64,
    pub(crate) metrics: Option<Arc<dyn Metrics>>,
    pub(crate) recovery: RecoveryOptions,
    pub(crate) connection_name: String,
    pub(crate) client_properties: FieldTable,
}

impl Default for ConnectionOptions {
    fn default() -> Self {
        Self {
            host: "localhost".to_owned(),
            port: None,
            more_endpoints: Vec::new(),
            shuffle_endpoints: false,
            tls: None,
            tcp_keepalive: Duration::from_secs(60),
            tcp_user_timeout: Duration::ZERO,
            vhost: "/".to_owned(),
            username: "guest".to_owned(),
            password: "guest".to_owned(),
            credentials: None,
            login_method: LoginMethod::default(),
            connect_timeout: Duration::from_secs(30),
            retry_open_for: Duration::ZERO,
            request_timeout: Duration::from_secs(30),
            publish_timeout: Duration::from_secs(30),
            heartbeat: Duration::from_secs(60),
            channel_max: 2047,
            frame_max: 128 << 10,
            max_message_size: 128 << 20,
            max_unread_bytes: 64 << 20,
            metrics: None,
            recovery: RecoveryOptions::default(),
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
            .field("more_endpoints", &self.more_endpoints)
            .field("shuffle_endpoints", &self.shuffle_endpoints)
            .field("tls", &self.tls)
            .field("tcp_keepalive", &self.tcp_keepalive)
            .field("tcp_user_timeout", &self.tcp_user_timeout)
            .field("vhost", &self.vhost)
            .field("username", &self.username)
            .field("credentials", &self.credentials)
            .field("login_method", &self.login_method)
            .field("connect_timeout", &self.connect_timeout)
            .field("retry_open_for", &self.retry_open_for)
            .field("request_timeout", &self.request_timeout)
            .field("publish_timeout", &self.publish_timeout)
            .field("heartbeat", &self.heartbeat)
            .field("channel_max", &self.channel_max)
            .field("frame_max", &self.frame_max)
            .field("max_message_size", &self.max_message_size)
            .field("max_unread_bytes", &self.max_unread_bytes)
            .field("metrics", &self.metrics)
            .field("recovery", &self.recovery)
            .field("connection_name", &self.connection_name)
            .field("client_properties", &self.client_properties)
            .finish()
    }
}

impl ConnectionOptions {
    setters! {
        /// A name or an address, IPv6 without brackets. Default: `localhost`.
        host: impl Into<String>;
        /// Default: 5672, or 5671 with TLS.
        port: u16;
        /// TLS, with these options. Default: none.
        tls: TlsOptions;
        /// After so long without a byte either way, the system asks whether the peer is still there. Zero: never.
        /// Heartbeats do the same, and are told to the broker. Whole seconds, at most 32767: a part of a second is rounded up.
        /// Default: 60 seconds.
        tcp_keepalive: Duration;
        /// The system gives the connection up when what was sent is not acknowledged by the peer's system for so long
        /// (`TCP_USER_TIMEOUT`, on Linux). It also does so when the broker reads nothing for so long, as RabbitMQ does when
        /// it has blocked the connection. Whole milliseconds, at most 2147483647 (24 days): a part of a millisecond is
        /// rounded up. Default: zero, which leaves it to the system, often some 15 minutes.
        tcp_user_timeout: Duration;
        /// The virtual host. Default: `/`.
        vhost: impl Into<String>;
        /// Default: `guest`.
        username: impl Into<String>;
        /// Default: `guest`. Never shown in errors, logs or `Debug`.
        password: impl Into<String>;
        /// How to log in. Default: PLAIN.
        login_method: LoginMethod;
        /// How long opening may take in all, from the look-up of the name over TCP and TLS to AMQP's `open-ok`, and with
        /// several endpoints for all of them. Default: 30 seconds.
        connect_timeout: Duration;
        /// For how long opening is tried again, with the growing delays of
        /// [`RecoveryOptions`], when the broker cannot be reached: a container often starts before
        /// its broker. Each attempt has its own `connect_timeout`, but the last one ends with this
        /// time. Zero: one attempt. Default: zero.
        ///
        /// What waiting does not change ends it at once: a login that is refused in so many words,
        /// a virtual host that is missing or forbidden, a TLS certificate that is not trusted, a
        /// login mechanism or a protocol version that the broker does not speak, and options that
        /// are invalid.
        ///
        /// ```
        /// use leveret::ConnectionOptions;
        /// use std::time::Duration;
        ///
        /// let options = ConnectionOptions::default().retry_open_for(Duration::from_secs(120));
        /// ```
        retry_open_for: Duration;
        /// How long a call waits for the broker's reply. Default: 30 seconds.
        request_timeout: Duration;
        /// How long a publish waits while the socket takes nothing or the broker has blocked the connection.
        /// Default: 30 seconds.
        publish_timeout: Duration;
        /// The interval of heartbeats: the connection is lost after two intervals without a byte from the broker. The
        /// shorter of this interval and the one that the broker proposes counts. If the broker proposes none, this one
        /// counts. Zero turns heartbeats off, whatever the broker proposes. Whole seconds: a part of a second is rounded
        /// up. Default: 60 seconds.
        ///
        /// See <https://www.rabbitmq.com/docs/heartbeats>.
        heartbeat: Duration;
        /// How many channels can be open at once. Zero: as many as the broker allows. The broker may allow fewer.
        /// Default: 2047.
        channel_max: u16;
        /// The size of the largest frame, in bytes; messages are cut into as many frames as they need. Zero: as the
        /// broker wants it. At least 4096. RabbitMQ accepts no less than 8192 since 4.1, and resets the connection without
        /// a word; the error says so. Default: 131072.
        frame_max: u32;
        /// The largest message body that is sent or taken, in bytes. A larger one is not sent. Default: 128 MiB, which is
        /// RabbitMQ's own limit up to 3.x.
        ///
        /// Since RabbitMQ 4.0 the broker's limit is 16 MiB, unless its `max_message_size` says otherwise. It closes the
        /// channel for a larger message (406). Set this to the broker's limit: then [`publish`](crate::Publisher::publish)
        /// fails with [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument), and the channel stays open.
        max_message_size: u64;
        /// How many bytes of messages may wait in this program for its consumers to take them, all consumers of the
        /// connection together. With acknowledgements the broker waits by itself, as [`basic_qos`](crate::Channel::basic_qos)
        /// says; this is for consumers with `no_ack`, or without `basic_qos`, to which it sends all it has. At half of
        /// this the connection reads no more until they have caught up, but for a thread that waits for an answer of
        /// the broker; beyond it also for that one only slowly, some 3 MB a second. Heartbeats are sent meanwhile, and
        /// missing ones are not counted. `u64::MAX`: no limit. Default: 64 MiB.
        max_unread_bytes: u64;
        /// Told what the connection does while it does it. Default: nobody.
        metrics: Arc<dyn Metrics>;
        /// Whether and how the connection comes back when it was lost. Default: it does.
        recovery: RecoveryOptions;
        /// Shown in RabbitMQ's management pages and `rabbitmqctl list_connections`. Default: the program's name and
        /// process id.
        connection_name: impl Into<String>;
        /// Told to the broker at login, over those that this crate tells itself (product, version, capabilities, …).
        client_properties: FieldTable;
    }

    flags! {
        /// Tries the endpoints in random order, so that many programs do not all connect to the same one. A recovery
        /// shuffles them anew, but begins with the endpoint that worked last: see [`endpoint`](Self::endpoint).
        shuffle_endpoints;
    }

    /// Asks this function at every connect for the user, the secret and how long it is valid, in the
    /// place of `username` and `password`: for OAuth 2 tokens and passwords that change. Before the
    /// secret expires, the connection asks again and sends the new secret to the broker.
    ///
    /// The function is called on the thread that opens the connection, then on threads of this
    /// crate. It may block, but recovery waits for it; its time is not part of `connect_timeout`. An
    /// error of it is [`CredentialsUnavailable`](crate::ErrorKind::CredentialsUnavailable); in a
    /// recovery it counts as one more failed attempt. With
    /// [`LoginMethod::External`] and a mechanism of your own it has no effect.
    ///
    /// ```no_run
    /// use leveret::{Connection, ConnectionOptions, Credentials};
    /// use std::time::Duration;
    ///
    /// let options = ConnectionOptions::default().credentials(|| {
    ///     let token = std::fs::read_to_string("/run/secrets/token")?;
    ///     Ok(Credentials::new("worker", token.trim()).valid_for(Duration::from_secs(3600)))
    /// });
    /// let connection = Connection::open_with(&options)?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// See <https://www.rabbitmq.com/docs/oauth2>.
    #[must_use]
    pub fn credentials(
        mut self,
        ask: impl Fn() -> std::result::Result<Credentials, Box<dyn std::error::Error + Send + Sync>>
            + Send
            + Sync
            + 'static,
    ) -> Self {
        self.credentials = Some(Provider::new(ask));
        self
    }

    /// These options with what the program's function returns, and how long that is valid.
    pub(crate) fn with_credentials(&self) -> Result<(Cow<'_, Self>, Option<Duration>)> {
        let Some(provider) = &self.credentials else {
            return Ok((Cow::Borrowed(self), None));
        };
        let credentials = provider.ask()?;
        let options = Self {
            username: credentials.username,
            password: credentials.secret,
            ..self.clone()
        };
        options.check_login()?;
        Ok((Cow::Owned(options), credentials.valid_for))
    }

    /// One more place to connect to, if `host` and the endpoints before cannot be used: a node of the same cluster. Every
    /// endpoint, and every address behind its name, has its share of `connect_timeout`.
    ///
    /// When a lost connection is recovered, the endpoint and the address that it was open to are tried first, then the others
    /// in their order: an endpoint that accepts connections and never answers costs its share once, and not at every loss. But
    /// an endpoint from which nothing came any more (missed heartbeats, a timeout of TCP) is tried last.
    ///
    /// ```
    /// use leveret::ConnectionOptions;
    ///
    /// let options = ConnectionOptions::default()
    ///     .host("rabbit-1.example.com")
    ///     .endpoint("rabbit-2.example.com", 5672)
    ///     .shuffle_endpoints();
    /// assert_eq!(options.to_string(), "amqp://guest@rabbit-1.example.com:5672,rabbit-2.example.com:5672/%2F");
    /// ```
    #[must_use]
    pub fn endpoint(mut self, host: impl Into<String>, port: u16) -> Self {
        let host = host.into();
        self.more_endpoints.push(Endpoint { host, port });
        self
    }

    pub(crate) fn endpoints(&self) -> Vec<Endpoint> {
        let first = Endpoint {
            host: self.host.clone(),
            port: self.port.unwrap_or_else(|| self.default_port()),
        };
        let mut endpoints = vec![first];
        endpoints.extend(self.more_endpoints.iter().cloned());
        endpoints
    }

    pub(crate) fn default_port(&self) -> u16 {
        match self.tls {
            Some(_) => 5671,
            None => 5672,
        }
    }

    /// Refuses what no server would take.
    pub(crate) fn check(&self) -> Result<()> {
        if self.tls.is_some() {
            tls::check_tls()?;
        }
        if self.frame_max != 0 && self.frame_max < MIN_SIZE {
            return Err(Error::invalid(format!(
                "frame_max is {}, the least is {MIN_SIZE} (or 0 for no limit)",
                self.frame_max
            )));
        }
        check_at_most(MAX_TCP_KEEPALIVE, "tcp_keepalive", self.tcp_keepalive)?;
        check_at_most(
            MAX_TCP_USER_TIMEOUT,
            "tcp_user_timeout",
            self.tcp_user_timeout,
        )?;
        if self.vhost.len() > 255 {
            return Err(Error::invalid(format!(
                "vhost has {} bytes, at most 255 are possible",
                self.vhost.len()
            )));
        }
        let written =
            Writer::new(&mut Vec::new()).table(&self.client_properties, "client_properties");
        written.map_err(|error| Error::invalid(format!("client_properties: {error}")))?;
        self.check_login()
    }

    fn check_login(&self) -> Result<()> {
        // The broker takes user name and password apart at the NUL between them.
        if matches!(self.login_method, LoginMethod::Plain)
            && (self.username.contains('\0') || self.password.contains('\0'))
        {
            return Err(Error::invalid(
                "user name and password must not contain a NUL character",
            ));
        }
        Ok(())
    }
}

fn default_name() -> String {
    let program = std::env::current_exe().ok();
    let program = program.as_deref().and_then(|path| path.file_name());
    let program = program.map_or_else(|| "leveret".into(), |name| name.to_string_lossy());
    format!("{program} {}", std::process::id())
}
