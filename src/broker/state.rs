//! What a look inside shows.

use std::net::SocketAddr;

use crate::wire::properties::Properties;

/// A queue, as [`Broker::queue`](super::Broker::queue) sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueState {
    /// Its name.
    pub name: String,
    /// Messages that wait for a consumer.
    pub ready: usize,
    /// Messages that were delivered and are not acknowledged.
    pub unacknowledged: usize,
    /// Consumers.
    pub consumers: usize,
}

/// A connection, as [`Broker::connections`](super::Broker::connections) sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionState {
    /// The address of the client.
    pub peer: SocketAddr,
    /// What the client calls itself (`connection_name`), if it does.
    pub name: Option<String>,
    /// Who has logged in.
    pub user: String,
    /// The virtual host.
    pub vhost: String,
    /// Open channels.
    pub channels: usize,
    /// Messages that were delivered and are not acknowledged.
    pub unacknowledged: usize,
}

/// A message that came, as [`Broker::published`](super::Broker::published) tells of it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PublishedMessage {
    /// The virtual host.
    pub vhost: String,
    /// The exchange it was published to.
    pub exchange: String,
    /// Its routing key.
    pub routing_key: String,
    /// Its properties.
    pub properties: Properties,
    /// Its body.
    pub body: Vec<u8>,
    /// Into how many queues it went.
    pub queues: usize,
}
