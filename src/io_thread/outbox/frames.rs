//! The frames and commands that a caller appends while it holds the outbox's lock.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::channel::Channel;
use super::channel_numbers::ChannelNumbers;
use super::channels::ChannelId;
use super::state::{Phase, State};
use crate::error::{Error, Result};
use crate::io_thread::mailbox::{Call, Command};
use crate::log_line::log_line;
use crate::proto::Expected;
use crate::wire::codec::{WireError, WireResult};
use crate::wire::fast_publish::write_plain;
use crate::wire::frame;
use crate::wire::method::{BasicPublish, Encode, MethodId, Request};
use crate::wire::properties::Properties;

/// Copies of messages share a block of this size, in bytes.
const KEPT_TOGETHER: usize = 32 << 10;

/// A large message, encoded into frames.
pub(crate) struct Large {
    pub(super) frames: Vec<u8>,
    /// Where the encoded properties are in `frames`.
    pub(super) properties: Range<usize>,
    /// The limit that its frames keep.
    pub(super) payload_limit: usize,
}

impl Large {
    pub(crate) fn properties(&self) -> &[u8] {
        self.frames.get(self.properties.clone()).unwrap_or_default()
    }

    /// Copies its frames.
    pub(crate) fn keep(&self) -> Bytes {
        Bytes::copy_from_slice(&self.frames)
    }
}

/// Appends frames and commands of one channel to the outbox, under its lock.
pub(crate) struct Frames<'a> {
    pub(super) state: &'a mut State,
    pub(super) id: ChannelId,
    pub(super) wake_all: bool,
    /// Where the message that was appended last begins.
    pub(super) start: usize,
}

impl Frames<'_> {
    #[inline]
    fn trace(&self, id: MethodId) {
        log_line!(
            Trace,
            self.state.peer.label,
            "channel {} → {id}",
            self.id.number
        );
    }

    #[inline]
    pub(crate) fn method<M: Encode>(&mut self, method: &M) -> Result<()> {
        self.trace(M::ID);
        let limit = self.state.payload_limit;
        let target = self.state.send_queue.target(self.id.number);
        let written = frame::write_method(target, self.id.number, method, limit);
        written.map_err(unsendable)?;
        self.state.count(M::ID);
        Ok(())
    }

    /// Appends an answer to the broker, which is small enough for any frame.
    pub(crate) fn answer(&mut self, method: &impl Encode) {
        let written = self.method(method);
        debug_assert!(written.is_ok(), "{written:?}");
    }

    /// Appends a message. Returns its encoded properties.
    #[inline]
    pub(crate) fn message(
        &mut self,
        publish: &BasicPublish<'_>,
        properties: Option<&Properties>,
        body: &[u8],
    ) -> Result<&[u8]> {
        self.trace(BasicPublish::ID);
        let limit = self.state.payload_limit;
        let target = self.state.send_queue.target(self.id.number);
        self.start = target.len();
        let written = write_message(target, self.id.number, publish, properties, body, limit);
        let properties = written.map_err(unsendable)?;
        self.state.messages += 1;
        Ok(target.get(properties).unwrap_or_default())
    }

    /// Notes that a message was appended: see [`Channel::published`].
    #[inline]
    pub(crate) fn published(&mut self, has_confirm: bool) -> Option<u64> {
        let number = self.state.messages;
        self.channel().published(has_confirm, number)
    }

    /// Copies the message that was appended last.
    pub(crate) fn keep(&mut self) -> Bytes {
        let State {
            send_queue,
            keeping,
            ..
        } = &mut *self.state;
        let appended = send_queue.target(self.id.number).get(self.start..);
        let appended = appended.unwrap_or_default();
        if keeping.capacity() < appended.len() {
            // Growth on demand fits just this message, so each message would get its own block.
            *keeping = BytesMut::with_capacity(KEPT_TOGETHER.max(appended.len()));
        }
        keeping.extend_from_slice(appended);
        keeping.split().freeze()
    }

    /// Appends a large message, which goes into a lane.
    pub(crate) fn large(&mut self, large: Large) -> Result<()> {
        self.trace(BasicPublish::ID);
        let limit = self.state.payload_limit;
        let frames = if limit < large.payload_limit {
            frame::cut_smaller(&large.frames, limit).map_err(unsendable)?
        } else {
            large.frames
        };
        self.state.messages += 1;
        self.state.send_queue.push_large(self.id.number, frames);
        Ok(())
    }

    /// Appends a message that was published on an earlier connection.
    pub(crate) fn again(&mut self, kept: &[u8]) -> Result<()> {
        self.trace(BasicPublish::ID);
        let limit = self.state.payload_limit;
        let target = self.state.send_queue.target(self.id.number);
        if frame::fits(kept, limit) {
            target.extend_from_slice(kept);
        } else {
            target.extend(frame::cut_smaller(kept, limit).map_err(unsendable)?);
        }
        Ok(())
    }

    /// How many times the connection was lost.
    #[inline]
    pub(crate) fn epoch(&self) -> u64 {
        self.state.epoch
    }

    /// Appends the last method of the connection. All frames appended before are sent first.
    pub(crate) fn last_method<M: Encode>(&mut self, method: &M) -> Result<()> {
        self.trace(M::ID);
        let limit = self.state.payload_limit;
        let target = self.state.send_queue.last_target();
        let written = frame::write_method(target, self.id.number, method, limit);
        written.map_err(unsendable)
    }

    /// The state of the channel.
    #[inline]
    pub(crate) fn channel(&mut self) -> &mut Channel {
        self.state.channels.get_mut(self.id)
    }

    /// An acknowledgement is not sent: for this reason, or because of the last loss, which the
    /// channel may not have heard of yet.
    pub(crate) fn answer_not_sent(&mut self, reason: Option<&Error>) {
        let loss = match &self.state.phase {
            Phase::Lost { cause, .. } => Some(cause.clone()),
            Phase::Open | Phase::Ended(_) => None,
        };
        self.channel().answer_not_sent(reason.or(loss.as_ref()));
    }

    /// Whether the channel is open on this connection.
    pub(crate) fn is_open(&self) -> bool {
        let channel = self.state.channels.get(self.id);
        channel.is_open_in(self.state.epoch)
    }

    pub(crate) fn channel_numbers(&mut self) -> &mut ChannelNumbers {
        &mut self.state.channel_numbers
    }

    /// The broker is done with the channel's number.
    pub(crate) fn broker_is_done(&mut self) {
        if self.channel().broker_is_done() {
            self.release_number();
        }
    }

    /// The handles are done with the channel's number.
    pub(crate) fn handles_are_done(&mut self) {
        if self.channel().handles_are_done() {
            self.release_number();
        }
    }

    fn release_number(&mut self) {
        self.state.channel_numbers.release(self.id.number);
        self.wake_all();
    }

    /// Appends a method and tells the core which reply to expect.
    pub(crate) fn call<R: Request>(&mut self, method: &R, call: Call) -> Result<()> {
        self.method(method)?;
        self.expect(Expected::Method(R::REPLY), call);
        Ok(())
    }

    /// Tells the core which reply the method appended last gets.
    pub(crate) fn expect(&mut self, expected: Expected, call: Call) {
        let channel = self.id.number;
        self.command(Command::Call {
            channel,
            expected,
            call,
        });
    }

    /// Appends a command for the core. The core gets it when the IO thread takes its frames: before
    /// a reply can come, and in the order in which the frames were appended.
    #[inline]
    pub(crate) fn command(&mut self, mut command: Command) {
        if let Some(call) = command.call_mut() {
            self.state.calls += 1;
            call.number = self.state.calls;
        }
        self.state.commands.push(command);
    }

    /// The number of the call that was appended last.
    pub(crate) fn last_call(&self) -> u64 {
        self.state.calls
    }

    /// Ends the connection: no caller can append any more.
    pub(crate) fn end(&mut self, error: Error) {
        if !matches!(self.state.phase, Phase::Ended(_)) {
            self.state.end(error);
        }
        self.wake_all();
    }

    /// Wakes all waiting callers to check again.
    pub(crate) fn wake_all(&mut self) {
        self.wake_all = true;
    }
}

/// Appends a message. Returns where its encoded properties are. On failure, the method's frame can
/// be left at the end of the buffer.
#[inline]
pub(super) fn write_message(
    buffer: &mut Vec<u8>,
    channel: u16,
    publish: &BasicPublish<'_>,
    properties: Option<&Properties>,
    body: &[u8],
    limit: usize,
) -> WireResult<Range<usize>> {
    if properties.is_none() {
        if let Some(properties) = write_plain(buffer, channel, publish, body, limit) {
            return Ok(properties);
        }
    }
    frame::write_method(buffer, channel, publish, limit)?;
    frame::write_content(buffer, channel, properties, body, limit)
}

pub(super) fn unsendable(error: WireError) -> Error {
    let text = match &error {
        WireError::FrameTooLarge { size, limit } => format!(
            "{size} bytes of arguments or headers do not fit into one frame of at most {limit} \
             (frame_max)"
        ),
        other => other.to_string(),
    };
    Error::invalid(text)
}
