//! Options for connections.

use std::borrow::Cow;
use std::fmt;
use std::iter;
use std::mem::discriminant;
use std::sync::Arc;
use std::time::Duration;

use super::by_identity::{is_same, ByIdentity};
use super::credentials::{Credentials, Provider};
use super::tls;
use super::{RecoveryOptions, TlsOptions};
use crate::error::{Error, Result};
use crate::sasl::SaslMechanism;
use crate::stats::Metrics;
use crate::wire::codec::Writer;
use crate::wire::frame::MIN_SIZE;
use crate::wire::short_string::ShortString;
use crate::wire::value::{FieldTable, FieldValue};

/// Linux accepts at most this many seconds (`TCP_KEEPIDLE`).
const MAX_TCP_KEEPALIVE: Duration = Duration::from_secs(32_767);

/// The system takes the milliseconds as a signed 32-bit number.
const MAX_TCP_USER_TIMEOUT: Duration = Duration::from_millis(i32::MAX as u64);

/// Compares these fields, which must be all others.
macro_rules! compare {
    ($one:ident, $other:ident, ignoring $ignored:ident, $($field:ident),*) => {{
        let ConnectionOptions { $ignored: _, $($field),* } = $one;
        true $(&& *$field == $other.$field)*
    }};
}

impl PartialEq for ConnectionOptions {
    fn eq(&self, other: &Self) -> bool {
        // The default port can be set or left out.
        self.get_port() == other.get_port()
            && compare!(
                self,
                other,
                ignoring port,
                host, more_endpoints, shuffle_endpoints, tls, tcp_keepalive, tcp_user_timeout, vhost, username, password, credentials, login_method, connect_timeout, retry_open_for, request_timeout, publish_timeout, heartbeat, channel_max, frame_max, max_message_size, max_unread_bytes, metrics, recovery, connection_name, client_properties
            )
    }
}

/// Getters of what the setters of the same name have set.
macro_rules! getters {
    ($($(#[$doc:meta])* $name:ident($setter:ident) -> $type:ty: |$it:ident| $value:expr;)*) => {
        impl ConnectionOptions {
            $(
                #[doc = concat!("Returns what [`", stringify!($setter), "`](Self::", stringify!($setter), ")")]
                #[doc = "has set, or the default."]
                $(#[$doc])*
                pub fn $name(&self) -> $type {
                    let $it = self;
                    $value
                }
            )*
        }
    };
}

fn check_at_most(most: Duration, option: &str, value: Duration) -> Result<()> {
    if value <= most {
        return Ok(());
    }
    let text = format!("{option} must be at most {most:?}, not {value:?} (zero disables it)");
    Err(Error::invalid(text))
}

/// How to log in: the SASL mechanism.
///
/// Two custom mechanisms are equal only if they are clones of one `Arc`.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum LoginMethod {
    /// SASL PLAIN: user name and password. Every RabbitMQ offers it. For OAuth 2, the token is the
    /// password.
    #[default]
    Plain,
    /// AMQPLAIN: user name and password in a field table. An older mechanism than PLAIN.
    AmqPlain,
    /// SASL EXTERNAL: the client's certificate ([`TlsOptions`]). User name and password are not
    /// sent. RabbitMQ needs the plugin `rabbitmq_auth_mechanism_ssl`.
    External,
    /// A mechanism that the program implements.
    Sasl(Arc<dyn SaslMechanism>),
}

impl PartialEq for LoginMethod {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Sasl(one), Self::Sasl(other)) => is_same(one, other),
            _ => discriminant(self) == discriminant(other),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// Formats the endpoint as in a URI: IPv6 addresses in brackets.
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
/// The default connects to RabbitMQ on this machine: user `guest` with password `guest`,
/// `localhost:5672`, virtual host `/`.
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
///
/// Two options are equal if they mean the same. With functions of the program
/// ([`credentials`](Self::credentials), metrics, a recovery filter), they are equal only if one is
/// a clone of the other.
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
    pub(crate) metrics: Option<ByIdentity<dyn Metrics>>,
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

getters! {
    get_host(host) -> &str: |it| &it.host;
    /// The default port if none is set.
    get_port(port) -> u16: |it| it.port.unwrap_or_else(|| it.default_port());
    get_shuffle_endpoints(shuffle_endpoints) -> bool: |it| it.shuffle_endpoints;
    get_tls(tls) -> Option<&TlsOptions>: |it| it.tls.as_ref();
    get_tcp_keepalive(tcp_keepalive) -> Duration: |it| it.tcp_keepalive;
    get_tcp_user_timeout(tcp_user_timeout) -> Duration: |it| it.tcp_user_timeout;
    get_vhost(vhost) -> &str: |it| &it.vhost;
    get_username(username) -> &str: |it| &it.username;
    /// Do not show or log this.
    get_password(password) -> &str: |it| &it.password;
    get_login_method(login_method) -> &LoginMethod: |it| &it.login_method;
    get_connect_timeout(connect_timeout) -> Duration: |it| it.connect_timeout;
    get_retry_open_for(retry_open_for) -> Duration: |it| it.retry_open_for;
    get_request_timeout(request_timeout) -> Duration: |it| it.request_timeout;
    get_publish_timeout(publish_timeout) -> Duration: |it| it.publish_timeout;
    get_heartbeat(heartbeat) -> Duration: |it| it.heartbeat;
    get_channel_max(channel_max) -> u16: |it| it.channel_max;
    get_frame_max(frame_max) -> u32: |it| it.frame_max;
    get_max_message_size(max_message_size) -> u64: |it| it.max_message_size;
    get_max_unread_bytes(max_unread_bytes) -> u64: |it| it.max_unread_bytes;
    get_metrics(metrics) -> Option<&Arc<dyn Metrics>>: |it| it.metrics.as_ref().map(|it| &it.0);
    get_recovery(recovery) -> &RecoveryOptions: |it| &it.recovery;
    get_connection_name(connection_name) -> &str: |it| &it.connection_name;
    get_client_properties(client_properties) -> &FieldTable: |it| &it.client_properties;
}

impl ConnectionOptions {
    /// Returns all endpoints, host and port, in the order in which they were set: first
    /// [`host`](Self::host) and [`port`](Self::port), then each [`endpoint`](Self::endpoint).
    pub fn get_endpoints(&self) -> impl Iterator<Item = (&str, u16)> {
        let others = self.more_endpoints.iter();
        let others = others.map(|it| (it.host.as_str(), it.port));
        iter::once((self.get_host(), self.get_port())).chain(others)
    }
}

/// Omits the password.
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
        /// Host name or IP address of the broker (IPv6 without brackets). Default: `localhost`.
        host: impl Into<String>;
        /// Port of the broker. Default: 5672, or 5671 with TLS.
        port: u16;
        /// Connects with TLS, using these options. Default: no TLS.
        tls: TlsOptions;
        /// Idle time after which the system probes whether the peer still exists (TCP keep-alive),
        /// in whole seconds, rounded up, at most 32,767. Zero turns the probes off. Heartbeats do
        /// the same job and are negotiated with the broker. Default: 60 seconds.
        tcp_keepalive: Duration;
        /// How long sent data may stay unacknowledged before the system ends the connection
        /// (`TCP_USER_TIMEOUT`, Linux only). In whole milliseconds, rounded up, at most
        /// 2,147,483,647 (24 days). Default: zero, which leaves the timeout to the system, often
        /// about 15 minutes.
        ///
        /// The peer's system sends the acknowledgements, so this timeout also ends a connection
        /// whose broker reads nothing for that long, as RabbitMQ does while it blocks the
        /// connection.
        tcp_user_timeout: Duration;
        /// Virtual host. Default: `/`.
        vhost: impl Into<String>;
        /// User name. Default: `guest`.
        username: impl Into<String>;
        /// Password. Never shown in errors, logs or `Debug`. Default: `guest`.
        password: impl Into<String>;
        /// How to log in. Default: [`LoginMethod::Plain`].
        login_method: LoginMethod;
        /// How long opening the connection may take, from the DNS look-up to AMQP's `open-ok`.
        /// Several endpoints share this time. Default: 30 seconds.
        connect_timeout: Duration;
        /// How long to retry opening the connection while the broker cannot be reached, with the
        /// growing delays of [`RecoveryOptions`]. For containers, which often start before their
        /// broker. Each attempt has its own `connect_timeout`, but the last attempt ends with this
        /// time. Default: zero, which means one attempt.
        ///
        /// Errors that a retry cannot change end the retries at once: a login that the broker
        /// explicitly refuses, a virtual host that is missing or forbidden, a TLS certificate that
        /// is not trusted, a login mechanism or protocol version that the broker does not support,
        /// and invalid options.
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
        /// How long a publish waits while the outbox is full, the broker has blocked the
        /// connection, or the connection is recovering. Acknowledgements also wait this long for
        /// room in the outbox. Default: 30 seconds.
        publish_timeout: Duration;
        /// Heartbeat interval. The connection is lost after two intervals without a byte from the
        /// broker.
        ///
        /// The shorter of this interval and the broker's proposal applies, or this one if the
        /// broker proposes none. Zero turns heartbeats off, whatever the broker proposes. In whole
        /// seconds, rounded up. Default: 60 seconds.
        ///
        /// See <https://www.rabbitmq.com/docs/heartbeats>.
        heartbeat: Duration;
        /// Maximum number of open channels. The broker may allow fewer. Zero means as many as the
        /// broker allows. Default: 2047.
        channel_max: u16;
        /// Maximum frame size in bytes, at least 4096. Larger messages are split into several
        /// frames. Zero means the broker's limit. Default: 131,072.
        ///
        /// Since 4.1, RabbitMQ refuses less than 8192: it resets the connection without a reason.
        /// The error then names this cause.
        frame_max: u32;
        /// Maximum size in bytes of a message body, sent or received. Publishing a larger message
        /// fails, and nothing is sent. Default: 128 MiB, which is RabbitMQ's own limit before 4.0.
        ///
        /// Since RabbitMQ 4.0 the broker's limit is 16 MiB, unless its `max_message_size` says
        /// otherwise. The broker closes the channel for a larger message (406). Set this option to
        /// the broker's limit: [`publish`](crate::Publisher::publish) then fails with
        /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument), and the channel stays
        /// open.
        max_message_size: u64;
        /// How many bytes of received messages may wait in all consumers of the connection
        /// together. `u64::MAX` means no limit. Default: 64 MiB.
        ///
        /// This limit is for consumers with `no_ack` or without a prefetch, to which the broker
        /// sends whole queues. With acknowledgements and [`basic_qos`](crate::Channel::basic_qos),
        /// the prefetch limits what the broker sends.
        ///
        /// At half the limit, the connection stops reading until the consumers catch up, unless a
        /// thread is waiting for the broker's reply. Above the limit, it also reads slowly for such
        /// a thread: about 3 MB a second. In the meantime, the connection sends heartbeats and
        /// tolerates missing heartbeats from the broker.
        max_unread_bytes: u64;
        /// Whether and how a lost connection recovers. Default: it recovers.
        recovery: RecoveryOptions;
        /// Connection name, shown in RabbitMQ's management UI and `rabbitmqctl list_connections`.
        /// Default: the program's name and process id.
        connection_name: impl Into<String>;
        /// Client properties to send to the broker at login. They override the properties that this
        /// crate sends (product, version, capabilities, …).
        client_properties: impl Into<FieldTable>;
        /// Whether to try the endpoints in random order, so that many programs do not all connect
        /// to the same endpoint. Recovery shuffles the endpoints again, but begins with the one
        /// that worked last: see [`endpoint`](Self::endpoint). Default: false.
        shuffle_endpoints: bool;
    }

    /// Adds one of the [`client_properties`](Self::client_properties).
    #[must_use]
    pub fn client_property(
        mut self,
        name: impl Into<ShortString>,
        value: impl Into<FieldValue>,
    ) -> Self {
        self.client_properties.insert(name, value);
        self
    }

    /// Receives metrics as they happen. Default: none.
    #[must_use]
    pub fn metrics(mut self, metrics: Arc<dyn Metrics>) -> Self {
        self.metrics = Some(ByIdentity(metrics));
        self
    }

    /// Calls `ask` at every connect to get the user name, the secret and how long the secret is
    /// valid. For OAuth 2 tokens and passwords that change.
    ///
    /// The result replaces `username` and `password`. Before the secret expires, the connection
    /// calls the function again and sends the new secret to the broker.
    ///
    /// The function runs on the thread that opens the connection, and later on threads of this
    /// crate. The function may block, but recovery waits for it; its time does not count towards
    /// `connect_timeout`. If the function returns an error, opening the connection fails with
    /// [`CredentialsUnavailable`](crate::ErrorKind::CredentialsUnavailable); during recovery, the
    /// attempt fails. The function's result has no effect with [`LoginMethod::External`] and
    /// [`LoginMethod::Sasl`].
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

    /// These options with the login that the program's function returns, and how long its secret is
    /// valid.
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

    /// Adds an endpoint, usually another node of the same cluster, to try if `host` and the
    /// endpoints before it fail. Every endpoint, and every address of its host name, gets a share
    /// of `connect_timeout`.
    ///
    /// Recovery first tries the endpoint and address of the lost connection, then the others in
    /// order. So an endpoint that accepts connections but never answers uses up its share once, not
    /// after every loss. Recovery tries an endpoint that fell silent (missed heartbeats, a TCP
    /// timeout) last.
    ///
    /// ```
    /// use leveret::ConnectionOptions;
    ///
    /// let options = ConnectionOptions::default()
    ///     .host("rabbit-1.example.com")
    ///     .endpoint("rabbit-2.example.com", 5672)
    ///     .shuffle_endpoints(true);
    /// let uri = "amqp://guest@rabbit-1.example.com:5672,rabbit-2.example.com:5672/%2F";
    /// assert_eq!(options.to_string(), uri);
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
            port: self.get_port(),
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

    /// Rejects values that no broker accepts.
    pub(crate) fn check(&self) -> Result<()> {
        if self.tls.is_some() && !tls::IS_BUILT {
            return Err(tls::no_tls());
        }
        if self.frame_max != 0 && self.frame_max < MIN_SIZE {
            return Err(Error::invalid(format!(
                "frame_max must be at least {MIN_SIZE}, not {} (0 means the broker's limit)",
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
                "vhost is longer than 255 bytes ({} bytes)",
                self.vhost.len()
            )));
        }
        let written =
            Writer::new(&mut Vec::new()).table(&self.client_properties, "client_properties");
        written.map_err(|error| Error::invalid(format!("client_properties: {error}")))?;
        self.check_login()
    }

    fn check_login(&self) -> Result<()> {
        // PLAIN separates the user name and the password with a NUL.
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
