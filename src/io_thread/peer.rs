//! The broker at the other end of the socket, and what was negotiated with it.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::log_line::Label;
use crate::options::Endpoint;
use crate::proto::{self, Mailboxes, Server, Tuning};

#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) server: Server,
    pub(crate) tuning: Tuning,
    pub(crate) address: SocketAddr,
    pub(super) endpoint: Endpoint,
    pub(super) label: Label,
}

impl Peer {
    pub(crate) fn new<M: Mailboxes>(
        core: &proto::Connection<M>,
        address: SocketAddr,
        endpoint: Endpoint,
    ) -> Arc<Self> {
        Arc::new(Self {
            server: core.server().clone(),
            tuning: core.tuning().clone(),
            address,
            endpoint,
            label: core.label().clone(),
        })
    }

    /// A peer that says nothing about itself.
    #[cfg(test)]
    pub(crate) fn nameless(tuning: Tuning) -> Arc<Self> {
        let (host, port) = ("nowhere".to_owned(), 0);
        Arc::new(Self {
            server: Server::default(),
            tuning,
            address: ([127, 0, 0, 1], port).into(),
            label: Label::new("test", &host),
            endpoint: Endpoint { host, port },
        })
    }
}
