//! What the core has to know from the start, and what both sides then agreed on.

use std::time::Duration;

use super::login::Login;
use crate::wire::frame::OVERHEAD;
use crate::wire::value::FieldTable;

/// What the core has to know from the start.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) login: Login,
    pub(crate) vhost: String,
    pub(crate) client_properties: FieldTable,
    /// The limits we ask for; zero means none.
    pub(crate) channel_max: u16,
    pub(crate) frame_max: u32,
    /// In seconds.
    pub(crate) heartbeat: u16,
    /// A larger message from the broker ends its channel.
    pub(crate) max_message_size: u64,
}

/// What both sides agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tuning {
    /// Zero: no limit.
    pub(crate) channel_max: u16,
    /// Zero: no limit.
    pub(crate) frame_max: u32,
    /// Zero: none.
    pub(crate) heartbeat: Duration,
}

impl Tuning {
    /// Before anything is agreed: enough for any server's `connection.start`.
    pub(crate) const BEFORE: Self = Self {
        channel_max: 0,
        frame_max: 128 << 10,
        heartbeat: Duration::ZERO,
    };

    /// What was agreed, and what of that a broker may not accept.
    pub(super) fn note(&self) -> String {
        let Self {
            channel_max,
            frame_max,
            heartbeat,
        } = self;
        let mut note = format!(
            "both sides had agreed on frame_max {frame_max}, channel_max {channel_max}, heartbeat {heartbeat:?}"
        );
        if (1..MAX_LOGIN_SINCE_4_1 as u32).contains(frame_max) {
            note.push_str(", but RabbitMQ 4.1 and later accept no frame_max below 8192");
        }
        note
    }

    /// The largest payload of a frame. Without a limit of either side, frames are still bounded, so that neither side
    /// has to take gigabytes at once.
    pub(crate) fn payload_limit(&self) -> usize {
        // A peer may send a message of RabbitMQ's own limit, 128 MiB, in one frame.
        const UNLIMITED: u32 = 129 << 20;
        let frame_max = match self.frame_max {
            0 => UNLIMITED,
            limit => limit,
        };
        frame_max as usize - OVERHEAD
    }

    /// The highest channel number.
    pub(crate) fn highest_channel(&self) -> u16 {
        match self.channel_max {
            0 => u16::MAX,
            limit => limit,
        }
    }
}

/// What RabbitMQ accepts before the login since 4.1, and the least `frame_max` that it accepts since then.
pub(super) const MAX_LOGIN_SINCE_4_1: usize = 8192;
