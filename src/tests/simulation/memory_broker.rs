//! The in-memory broker, with faults at random.

use std::time::{Duration, Instant};

use super::ledger::{Fate, Ledger};
use super::rng::Rng;
use super::Broker;
use crate::broker::stepped::SteppedBroker;
use crate::error::ReplyCode;
use crate::wire::frame::{self, Cut, FrameKind};
use crate::wire::method::Method;

pub(super) struct MemoryBroker {
    ledger: Ledger,
    broker: SteppedBroker,
    /// Bytes that the broker has not read.
    input: Vec<u8>,
    is_blocked: bool,
    temper: usize,
}

/// The code of the closes that the simulation orders.
const ORDERED: ReplyCode = ReplyCode(320);

impl MemoryBroker {
    pub(super) fn new(
        channel_max: u16,
        heartbeat: Duration,
        now: Instant,
        ledger: Ledger,
        temper: usize,
    ) -> Self {
        ledger.hide_nacks();
        Self {
            ledger,
            broker: SteppedBroker::new(channel_max, heartbeat, now),
            input: Vec::new(),
            is_blocked: false,
            temper,
        }
    }

    fn read(&mut self) {
        self.broker.receive(&std::mem::take(&mut self.input));
        self.note_published();
    }

    fn note_published(&mut self) {
        for got in self.broker.take_published() {
            let body = String::from_utf8_lossy(&got.body).into_owned();
            let message = body.strip_prefix('m').and_then(|it| it.parse().ok());
            if let Some(message) = message {
                self.ledger.received(message, Fate::Taken);
            }
        }
    }

    fn misbehave(&mut self, rng: &mut Rng) {
        let queue = rng.pick(&["q0", "q1", "q2"]);
        match rng.below(12) {
            0 | 1 => self.broker.close_channels(ORDERED),
            2 | 3 => drop(self.broker.cancel_consumers(queue)),
            4 | 5 => drop(self.broker.time_out_consumers(queue)),
            6 if self.temper > 1 => self.broker.close_connections(ORDERED),
            7 | 8 => self.broker.nack(rng.below(4) as u64),
            9 | 10 => {
                self.is_blocked = !self.is_blocked;
                self.broker.block(self.is_blocked);
            }
            _ => {}
        }
        self.note_published();
    }

    /// A close by the broker that is the client's fault.
    fn check_output(&self, output: &[u8]) {
        for (number, bytes) in frame::whole(output) {
            let Ok(Cut::Frame(frame, _)) = frame::cut(bytes, usize::MAX) else {
                return;
            };
            if frame.kind != FrameKind::Method {
                self.ledger.trace(|| format!("broker: {number} → content"));
                continue;
            }
            let Ok(method) = Method::decode(frame.payload) else {
                return;
            };
            self.ledger
                .trace(|| format!("broker: {number} → {method:?}"));
            match method {
                Method::ConnectionClose(close) => {
                    self.ledger.check(close.reply_code == ORDERED.0, || {
                        format!("the broker closed the connection: {close:?}")
                    });
                }
                Method::ChannelClose(close) => {
                    let text = &close.reply_text;
                    let is_ours = text.contains("unknown delivery tag");
                    self.ledger.check(!is_ours, || {
                        format!("the broker closed channel {number}: {text}")
                    });
                }
                _ => {}
            }
        }
    }
}

impl Broker for MemoryBroker {
    fn receive(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    fn step(&mut self, rng: &mut Rng) {
        if rng.one_in(60) && self.temper > 0 {
            return self.misbehave(rng);
        }
        self.read();
    }

    fn settle(&mut self, _rng: &mut Rng) -> bool {
        if std::mem::take(&mut self.is_blocked) {
            self.broker.block(false);
        }
        self.read();
        false
    }

    fn take_output(&mut self) -> Vec<u8> {
        let output = self.broker.take_output();
        self.check_output(&output);
        output
    }

    fn pass(&mut self, now: Instant) {
        self.broker.pass(now);
    }

    fn closes_socket(&self) -> bool {
        self.broker.is_over()
    }

    fn is_silent(&self) -> bool {
        false
    }

    fn check_quiet(&self) {}
}
