//! One client connection, as the broker sees it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::channel::Channel;
use super::refusal::Refusal;
use crate::wire::codec::Reader;
use crate::wire::frame::{self, Cut, Frame, FrameKind};
use crate::wire::method::{
    BasicAck, BasicCancel, BasicDeliver, BasicNack, BasicReturn, ChannelClose, ConnectionClose,
    Encode, MethodId,
};
use crate::wire::properties::Properties;
use crate::wire::value::{FieldTable, FieldValue};

/// A client with more bytes of unread output than this gets no further messages.
const MAX_OUTPUT: usize = 1 << 20;

/// The state of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The broker waits for the protocol header.
    Header,
    StartOk,
    TuneOk,
    Open,
    Running,
    /// The broker has closed the connection, and ignores everything except the answer.
    Closing,
    /// The socket is closed once all output is written.
    Over,
}

/// A channel number that is in use.
#[derive(Debug)]
pub(super) enum Slot {
    Open(Box<Channel>),
    /// The broker has closed the channel and waits for the client's close-ok. It ignores other
    /// frames from the client, and still delivers to the consumers.
    Closing(Box<Channel>),
}

impl Slot {
    pub(super) fn channel(&self) -> &Channel {
        match self {
            Self::Open(channel) | Self::Closing(channel) => channel,
        }
    }

    pub(super) fn into_channel(self) -> Box<Channel> {
        match self {
            Self::Open(channel) | Self::Closing(channel) => channel,
        }
    }
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) peer: SocketAddr,
    pub(super) stage: Stage,
    pub(super) user: String,
    pub(super) vhost: String,
    pub(super) client_properties: FieldTable,
    pub(super) channels: BTreeMap<u16, Slot>,
    pub(super) channel_max: u16,
    pub(super) frame_max: u32,
    /// Zero means no heartbeats.
    pub(super) heartbeat: Duration,
    pub(super) last_input: Instant,
    pub(super) last_output: Instant,
    pub(super) output: Vec<u8>,
    /// The connection is blocked, and its client has been notified if it supports that.
    pub(super) is_blocked: bool,
    /// The broker reads no input from this client until it accepts publishes again.
    pub(super) is_held: bool,
}

impl Session {
    pub(super) fn new(peer: SocketAddr, now: Instant) -> Self {
        Self {
            peer,
            stage: Stage::Header,
            user: String::new(),
            vhost: String::new(),
            client_properties: FieldTable::new(),
            channels: BTreeMap::new(),
            channel_max: 0,
            frame_max: frame::MIN_SIZE,
            heartbeat: Duration::ZERO,
            last_input: now,
            last_output: now,
            output: Vec::new(),
            is_blocked: false,
            is_held: false,
        }
    }

    pub(super) fn payload_limit(&self) -> usize {
        self.frame_max as usize - frame::OVERHEAD
    }

    /// Whether the client has declared a capability.
    pub(super) fn can(&self, capability: &str) -> bool {
        let table = self.client_properties.get("capabilities");
        let can = table.and_then(|table| table.as_table()?.get(capability)?.as_bool());
        can.unwrap_or_default()
    }

    pub(super) fn channel(&mut self, number: u16) -> Option<&mut Channel> {
        match self.channels.get_mut(&number)? {
            Slot::Open(channel) => Some(channel),
            Slot::Closing(_) => None,
        }
    }

    /// The channel, even if the broker has closed it and waits for close-ok.
    pub(super) fn channel_with_consumers(&mut self, number: u16) -> Option<&mut Channel> {
        match self.channels.get_mut(&number)? {
            Slot::Open(channel) | Slot::Closing(channel) => Some(channel),
        }
    }

    /// Whether this consumer may get another message now.
    pub(super) fn takes(&self, number: u16, consumer_tag: &str) -> bool {
        let slot = self.channels.get(&number);
        !self.is_full() && slot.is_some_and(|it| it.channel().takes(consumer_tag))
    }

    pub(super) fn has_timed_out(&self, number: u16, consumer_tag: &str) -> bool {
        let slot = self.channels.get(&number);
        slot.is_some_and(|it| it.channel().has_timed_out(consumer_tag))
    }

    pub(super) fn is_full(&self) -> bool {
        self.output.len() > MAX_OUTPUT
    }

    // ---- output ----

    pub(super) fn send(&mut self, channel: u16, method: &impl Encode) {
        self.try_send(channel, method);
    }

    /// Returns false and sends nothing for a name above 255 bytes: a dead-letter routing key can be
    /// longer, and so can a name in which invalid UTF-8 was replaced.
    fn try_send(&mut self, channel: u16, method: &impl Encode) -> bool {
        let limit = self.payload_limit();
        frame::write_method(&mut self.output, channel, method, limit).is_ok()
    }

    pub(super) fn send_content(
        &mut self,
        channel: u16,
        method: &impl Encode,
        properties: &Properties,
        body: &[u8],
    ) {
        if !self.try_send(channel, method) {
            // Content without its method would cost the connection.
            return;
        }
        let limit = self.payload_limit();
        let written =
            frame::write_content(&mut self.output, channel, Some(properties), body, limit);
        if written.is_err() {
            // The headers have grown too large for this client's frames: deliver the body alone.
            let none = Properties::default();
            let _ = frame::write_content(&mut self.output, channel, Some(&none), body, limit);
        }
    }

    /// Tells the client that the broker has cancelled a consumer. Returns false if the client has
    /// not declared that it understands this.
    pub(super) fn send_cancel(&mut self, number: u16, consumer_tag: &str) -> bool {
        let can = self.can("consumer_cancel_notify");
        if can {
            let method = BasicCancel {
                consumer_tag: consumer_tag.into(),
                no_wait: true,
            };
            self.send(number, &method);
        }
        can
    }

    pub(super) fn send_heartbeat(&mut self) {
        frame::write_heartbeat(&mut self.output);
    }

    pub(super) fn close_connection(&mut self, refusal: &Refusal, because_of: Option<MethodId>) {
        let because_of = because_of.unwrap_or(NO_METHOD);
        self.send(
            0,
            &ConnectionClose {
                reply_code: refusal.code.0,
                reply_text: short(&refusal.text).into(),
                class_id: because_of.class,
                method_id: because_of.method,
            },
        );
        self.stage = Stage::Closing;
        // The broker must read the answer.
        self.is_held = false;
    }

    /// Closes a channel. The close overtakes deliveries in the output: in RabbitMQ each queue is a
    /// separate process, and the deliveries that it has sent to the channel follow the close. The
    /// caller handles the consumers and messages of the channel.
    pub(super) fn close_channel(
        &mut self,
        number: u16,
        refusal: &Refusal,
        because_of: Option<MethodId>,
    ) {
        let Some(slot) = self.channels.remove(&number) else {
            return;
        };
        self.channels
            .insert(number, Slot::Closing(slot.into_channel()));
        let because_of = because_of.unwrap_or(NO_METHOD);
        let mut late = self.take_deliveries(number);
        self.send(
            number,
            &ChannelClose {
                reply_code: refusal.code.0,
                reply_text: short(&refusal.text).into(),
                class_id: because_of.class,
                method_id: because_of.method,
            },
        );
        self.output.append(&mut late);
    }

    /// Takes the last deliveries on this channel out of the output. Deliveries before a reply stay:
    /// `basic.cancel-ok`, for example, must not overtake them.
    fn take_deliveries(&mut self, number: u16) -> Vec<u8> {
        let output = std::mem::take(&mut self.output);
        let mut deliveries = Vec::new();
        let mut is_delivery = false;
        for (channel, bytes) in frame::whole(&output) {
            if channel != number {
                self.output.extend_from_slice(bytes);
                continue;
            }
            // A header or a body belongs to the last method.
            if let Some(method) = written_method(bytes) {
                is_delivery = method == BasicDeliver::ID;
                let is_reply = ![
                    BasicDeliver::ID,
                    BasicReturn::ID,
                    BasicAck::ID,
                    BasicNack::ID,
                ]
                .contains(&method);
                if is_reply {
                    self.output.append(&mut deliveries);
                }
            }
            match is_delivery {
                true => deliveries.extend_from_slice(bytes),
                false => self.output.extend_from_slice(bytes),
            }
        }
        deliveries
    }

    pub(super) fn name(&self) -> Option<&str> {
        self.client_properties
            .get("connection_name")
            .and_then(FieldValue::as_str)
    }
}

/// The method of a frame in the output, if it is a method frame.
fn written_method(bytes: &[u8]) -> Option<MethodId> {
    match frame::cut(bytes, usize::MAX) {
        Ok(Cut::Frame(frame, _)) => method_id(&frame),
        _ => None,
    }
}

/// The method id in a close that no method has caused.
const NO_METHOD: MethodId = MethodId {
    class: 0,
    method: 0,
};

/// Shortens a text to the 255 bytes of a short string.
pub(super) fn short(text: &str) -> String {
    const LONGEST: usize = 255;
    if text.len() <= LONGEST {
        return text.to_owned();
    }
    let mut end = LONGEST - 3;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...", text.get(..end).unwrap_or_default())
}

/// The method that a frame carries. `None` if the frame is not a method frame.
pub(super) fn method_id(frame: &Frame<'_>) -> Option<MethodId> {
    if frame.kind != FrameKind::Method {
        return None;
    }
    let mut reader = Reader::new(frame.payload);
    let class = reader.u16("a method").ok()?;
    let method = reader.u16("a method").ok()?;
    Some(MethodId { class, method })
}
