//! The settings of a connection, and the limits that both sides agree on.

use std::time::Duration;

use super::login::Login;
use crate::wire::frame::OVERHEAD;
use crate::wire::value::FieldTable;

/// The settings that the core needs from the start.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) login: Login,
    pub(crate) vhost: String,
    pub(crate) client_properties: FieldTable,
    /// The limit that the client asks for. Zero: no limit.
    pub(crate) channel_max: u16,
    /// The limit that the client asks for. Zero: no limit.
    pub(crate) frame_max: u32,
    /// The interval that the client asks for, in seconds. Zero: no heartbeats.
    pub(crate) heartbeat: u16,
    /// A larger message from the broker ends its channel.
    pub(crate) max_message_size: u64,
    /// A body frame of this size, in bytes, is handled as it arrives. A smaller one waits until all
    /// of it has come.
    pub(crate) piecemeal: usize,
}

/// The limits that both sides agreed on in `connection.tune` and tune-ok.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tuning {
    /// Zero: no limit.
    pub(crate) channel_max: u16,
    /// Zero: no limit.
    pub(crate) frame_max: u32,
    /// Zero: no heartbeats.
    pub(crate) heartbeat: Duration,
}

impl Tuning {
    /// The limits before tuning. They allow any server's `connection.start`.
    pub(crate) const BEFORE: Self = Self {
        channel_max: 0,
        frame_max: 128 << 10,
        heartbeat: Duration::ZERO,
    };

    /// Names the agreed limits, and the one that the broker may refuse.
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

    /// The largest payload of a frame. Frames are bounded even if neither side sets a limit, so
    /// neither side has to buffer gigabytes.
    pub(crate) fn payload_limit(&self) -> usize {
        // The peer may send a message of RabbitMQ's maximum size, 128 MiB, in one frame.
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

/// The largest payload that RabbitMQ accepts before the login, since 4.1. It is also the smallest
/// `frame_max` that those versions accept.
pub(super) const MAX_LOGIN_SINCE_4_1: usize = 8192;
