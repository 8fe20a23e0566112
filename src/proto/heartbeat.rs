//! Decides when to send a heartbeat, and when the peer counts as dead.

use std::time::{Duration, Instant};

/// The heartbeat action that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeartbeatDue {
    Nothing,
    /// Half an interval passed without output.
    Send,
    /// Two intervals passed without a byte from the peer.
    PeerIsDead,
}

#[derive(Debug)]
pub(crate) struct Heartbeat {
    interval: Duration,
    last_output: Instant,
    last_input: Instant,
}

impl Heartbeat {
    /// `None` if the interval is zero, which means no heartbeats.
    pub(crate) fn new(interval: Duration, now: Instant) -> Option<Self> {
        (!interval.is_zero()).then_some(Self {
            interval,
            last_output: now,
            last_input: now,
        })
    }

    pub(crate) fn interval(&self) -> Duration {
        self.interval
    }

    pub(crate) fn output(&mut self, now: Instant) {
        self.last_output = now;
    }

    pub(crate) fn input(&mut self, now: Instant) {
        self.last_input = now;
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.send_at().min(self.dead_at())
    }

    pub(crate) fn due(&self, now: Instant) -> HeartbeatDue {
        if now >= self.dead_at() {
            HeartbeatDue::PeerIsDead
        } else if now >= self.send_at() {
            HeartbeatDue::Send
        } else {
            HeartbeatDue::Nothing
        }
    }

    fn send_at(&self) -> Instant {
        self.last_output + self.interval / 2
    }

    fn dead_at(&self) -> Instant {
        self.last_input + self.interval * 2
    }
}
