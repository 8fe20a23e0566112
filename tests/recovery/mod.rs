//! Connections that are lost and recover.

mod calls;
mod consuming;
mod isolation;
mod network_faults;
mod nodes;
mod publishing;
mod refused;
mod scripted;
mod topology;

use std::time::Duration;

use crossbeam_channel::Receiver;
use leveret::{
    Channel, Connection, ConnectionEvent, ConnectionOptions, Queue, QueueDeclareOptions,
};

use crate::support::proxy::Proxy;
use crate::support::{unique, url, SOON};

/// Declares a queue that survives connections and expires a minute after its last use.
pub(crate) fn lasting_queue(channel: &Channel) -> Queue {
    let options = QueueDeclareOptions::default().expires(Duration::from_secs(60));
    channel.queue_declare(&unique("q"), options).unwrap()
}

/// A connection through a proxy to the broker that all tests share.
pub(crate) struct Lossy {
    proxy: Proxy,
    pub(crate) connection: Connection,
    events: Receiver<ConnectionEvent>,
}

impl Lossy {
    pub(crate) fn new() -> Self {
        Self::with(|options| options)
    }

    fn with(options: impl FnOnce(ConnectionOptions) -> ConnectionOptions) -> Self {
        let proxy = Proxy::start(&url());
        let connection = Connection::open_with(options(proxy.options())).unwrap();
        let events = connection.events();
        Self {
            proxy,
            connection,
            events,
        }
    }

    /// Cuts the connection, waits until it is back, and returns the events in between.
    #[track_caller]
    pub(crate) fn lose(&self) -> Vec<ConnectionEvent> {
        self.proxy.cut();
        recovered(&self.events)
    }
}

/// Waits until a connection is back, and returns the events up to then.
#[track_caller]
pub(crate) fn recovered(events: &Receiver<ConnectionEvent>) -> Vec<ConnectionEvent> {
    let mut told = Vec::new();
    loop {
        let event = events.recv_timeout(SOON);
        let event = event.unwrap_or_else(|error| panic!("{error} after {told:?}"));
        told.push(event);
        match told.last() {
            Some(ConnectionEvent::Recovered { .. }) => return told,
            Some(ConnectionEvent::Closed { cause }) => panic!("{cause} after {told:?}"),
            _ => {}
        }
    }
}

/// Waits until a connection is lost.
#[track_caller]
fn lost(events: &Receiver<ConnectionEvent>) {
    loop {
        if let ConnectionEvent::Lost { .. } = events.recv_timeout(SOON).unwrap() {
            return;
        }
    }
}
