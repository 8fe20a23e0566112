//! The broker's core with one connection and neither thread nor clock, for the simulation of the
//! client.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::core::Core;
use super::session::Stage;
use super::{BrokerOptions, SessionId};
use crate::error::ReplyCode;

pub(crate) struct SteppedBroker {
    core: Core,
    session: SessionId,
    input: Vec<u8>,
}

/// A message that the broker has got.
pub(crate) struct Got {
    pub(crate) body: Vec<u8>,
}

impl SteppedBroker {
    pub(crate) fn new(channel_max: u16, heartbeat: Duration, now: Instant) -> Self {
        let options = BrokerOptions {
            channel_max,
            heartbeat,
            ..BrokerOptions::default()
        };
        let mut core = Core::new(options, now);
        let session = core.connected(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
        Self {
            core,
            session,
            input: Vec::new(),
        }
    }

    /// Takes input from the client. Handles it unless the broker does not read at the moment.
    pub(crate) fn receive(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        if let Some(session) = self.core.sessions.get_mut(&self.session) {
            session.last_input = self.core.now;
        }
        let consumed = self.core.receive(self.session, &self.input);
        self.input.drain(..consumed);
    }

    /// The broker's output since the last call.
    pub(crate) fn take_output(&mut self) -> Vec<u8> {
        let Some(session) = self.core.sessions.get_mut(&self.session) else {
            return Vec::new();
        };
        let output = std::mem::take(&mut session.output);
        if !output.is_empty() {
            session.last_output = self.core.now;
        }
        self.core.drained(self.session);
        output
    }

    pub(crate) fn take_published(&mut self) -> Vec<Got> {
        let published = self.core.published.drain(..);
        let published = published.map(|it| Got {
            body: it.message.body.clone(),
        });
        published.collect()
    }

    /// Whether the broker closes the socket once its output is written.
    pub(crate) fn is_over(&self) -> bool {
        let session = self.core.sessions.get(&self.session);
        session.map_or(true, |it| it.stage == Stage::Over)
    }

    pub(crate) fn pass(&mut self, now: Instant) {
        self.core.now = now;
        self.core.handle_time();
    }

    pub(crate) fn close_channels(&mut self, code: ReplyCode) {
        self.core.close_channels(code, "a fault of the simulation");
    }

    pub(crate) fn close_connections(&mut self, code: ReplyCode) {
        self.core
            .close_connections(code, "a fault of the simulation");
    }

    pub(crate) fn cancel_consumers(&mut self, queue: &str) -> usize {
        self.core.cancel_consumers("/", queue)
    }

    pub(crate) fn time_out_consumers(&mut self, queue: &str) -> usize {
        self.core.time_out_consumers("/", queue)
    }

    pub(crate) fn block(&mut self, is_blocked: bool) {
        self.core.block(is_blocked.then(|| "simulated".to_owned()));
        // What was sent meanwhile is read now.
        self.receive(&[]);
    }

    pub(crate) fn nack(&mut self, messages: u64) {
        self.core.faults.nacks = messages;
    }
}
