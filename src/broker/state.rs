//! Snapshots of the broker's state, for tests.

use std::net::SocketAddr;

use crate::wire::properties::Properties;

/// The state of a queue, as returned by [`Broker::queue`](super::Broker::queue).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueState {
    /// The name of the queue.
    pub name: String,
    /// Number of messages that are ready for delivery.
    pub ready: usize,
    /// Number of messages that were delivered but not acknowledged.
    pub unacknowledged: usize,
    /// Number of consumers.
    pub consumers: usize,
}

/// The state of a connection, as returned by [`Broker::connections`](super::Broker::connections).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionState {
    /// The address of the client.
    pub peer: SocketAddr,
    /// The name that the client gave the connection (`connection_name`), if any.
    pub name: Option<String>,
    /// The user. Empty before the login.
    pub user: String,
    /// The virtual host.
    pub vhost: String,
    /// Number of open channels.
    pub channels: usize,
    /// Number of messages that were delivered but not acknowledged.
    pub unacknowledged: usize,
}

/// A published message, as returned by [`Broker::published`](super::Broker::published).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PublishedMessage {
    /// The virtual host.
    pub vhost: String,
    /// The exchange to which the message was published.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
    /// The properties.
    pub properties: Properties,
    /// The body.
    pub body: Vec<u8>,
    /// Number of queues that took the message. Zero if one of its queues was full and refused it.
    pub queues: usize,
}
