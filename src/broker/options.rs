use std::time::Duration;

/// Options of a [`Broker`](super::Broker): port, users, virtual hosts and limits.
///
/// ```
/// use leveret::broker::{Broker, BrokerOptions};
///
/// let options = BrokerOptions::default().vhost("orders").user("bob", "secret");
/// let broker = Broker::start_with(options)?;
/// let uri = format!("amqp://bob:secret@{}/orders", broker.address());
/// leveret::Connection::open(&uri)?.close()
/// # ; Ok::<(), leveret::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokerOptions {
    pub(super) port: u16,
    pub(super) users: Vec<(String, String)>,
    pub(super) vhosts: Vec<String>,
    pub(super) heartbeat: Duration,
    pub(super) channel_max: u16,
    pub(super) frame_max: u32,
    pub(super) published_limit: usize,
}

impl Default for BrokerOptions {
    fn default() -> Self {
        Self {
            port: 0,
            users: vec![("guest".to_owned(), "guest".to_owned())],
            vhosts: vec!["/".to_owned()],
            heartbeat: Duration::from_secs(60),
            channel_max: 2047,
            frame_max: 131_072,
            published_limit: 10_000,
        }
    }
}

impl BrokerOptions {
    /// The port on the loopback interface. Default: zero, which means any free port.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Adds a user. Every user may do everything in every virtual host. Default: `guest` with the
    /// password `guest`.
    #[must_use]
    pub fn user(mut self, name: impl Into<String>, password: impl Into<String>) -> Self {
        self.users.push((name.into(), password.into()));
        self
    }

    /// Adds a virtual host. Default: `/`.
    #[must_use]
    pub fn vhost(mut self, name: impl Into<String>) -> Self {
        self.vhosts.push(name.into());
        self
    }

    /// The heartbeat interval that the broker proposes to clients, in whole seconds. Zero proposes
    /// no heartbeats, but a client that asks for heartbeats still gets them. Default: 60 seconds.
    #[must_use]
    pub fn heartbeat(mut self, heartbeat: Duration) -> Self {
        self.heartbeat = heartbeat;
        self
    }

    /// Maximum number of channels of a connection. Default: 2047.
    #[must_use]
    pub fn channel_max(mut self, channel_max: u16) -> Self {
        self.channel_max = channel_max;
        self
    }

    /// Maximum size of a frame in bytes. A value below 4096 counts as 4096. Default: 131,072.
    #[must_use]
    pub fn frame_max(mut self, frame_max: u32) -> Self {
        self.frame_max = frame_max;
        self
    }

    /// Raises limits that no client could agree to.
    pub(super) fn possible(mut self) -> Self {
        self.channel_max = self.channel_max.max(1);
        self.frame_max = self.frame_max.max(crate::wire::frame::MIN_SIZE);
        self
    }

    /// How many of the newest messages [`Broker::published`](super::Broker::published) returns. The
    /// broker forgets older messages. Default: 10,000.
    #[must_use]
    pub fn published_limit(mut self, published_limit: usize) -> Self {
        self.published_limit = published_limit;
        self
    }
}

/// Does not show passwords.
impl std::fmt::Debug for BrokerOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let users: Vec<_> = self.users.iter().map(|(name, _)| name).collect();
        f.debug_struct("BrokerOptions")
            .field("port", &self.port)
            .field("users", &users)
            .field("vhosts", &self.vhosts)
            .field("heartbeat", &self.heartbeat)
            .field("channel_max", &self.channel_max)
            .field("frame_max", &self.frame_max)
            .field("published_limit", &self.published_limit)
            .finish()
    }
}
