//! The state machine of one connection.

use std::borrow::Cow;
use std::io;
use std::time::Instant;
use std::vec::Drain;

use super::buffers::Buffers;
use super::channel::Calls;
use super::channels::Channels;
use super::config::{Config, Tuning};
use super::content::Assembly;
use super::effects::Effects;
use super::event::{Command, Delivered, Event, Leftover, Mailboxes, Published};
use super::handshake::{self, LoginFrame, Step};
use super::heartbeat::{Heartbeat, HeartbeatDue};
use super::violation::{invalid, violation, Checked, Violation};
use crate::error::{CloseReason, Error, ErrorKind, OneLine, ReplyCode};
use crate::log_line::{log_line, Label};
use crate::wire::codec::WireError;
use crate::wire::fast_deliver::WholeDelivery;
use crate::wire::frame::{self, Cut, Frame, FrameKind, OVERHEAD};
use crate::wire::method::{
    ConnectionClose, ConnectionCloseOk, ConnectionSecure, ConnectionSecureOk, ConnectionStart,
    ConnectionStartOk, ConnectionTune, Encode, LongString, Method, MethodId,
};
use crate::wire::value::{FieldTable, FieldValue};

/// [`Connection::receive`] pauses at this many waiting events or messages. More of them would fall
/// out of the processor's cache, and their memory would stay allocated.
const AT_ONCE: usize = 128;

#[derive(Debug)]
enum State {
    Handshake(Step),
    Open,
    /// We have sent `connection.close` and wait for close-ok.
    Closing(CloseReason),
    Ended(Error),
}

/// A body frame whose beginning has been handled. Input goes on with its payload.
#[derive(Debug, Clone, Copy)]
struct Begun {
    channel: u16,
    missing: usize,
}

/// What the server says about itself in `connection.start` and `connection.tune`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Server {
    pub(crate) properties: FieldTable,
    pub(crate) mechanisms: String,
    pub(crate) locales: String,
    /// The limits that the server proposed.
    pub(crate) tune: ConnectionTune,
}

impl Server {
    /// Product and version, for the log.
    pub(crate) fn name(&self) -> String {
        format!("{} {}", self.property("product"), self.property("version"))
    }

    /// Whether `basic.qos` with `global` limits a channel. By default, RabbitMQ denies that feature
    /// since 4.3: it answers as before, but applies the prefetch to each consumer.
    pub(crate) fn limits_channels(&self) -> bool {
        self.rabbitmq_version() < Some((4, 3))
    }

    /// Major and minor version. `None` if the server is not RabbitMQ, or does not say.
    fn rabbitmq_version(&self) -> Option<(u32, u32)> {
        let version = self.property("version");
        let mut parts = version.split(|it: char| !it.is_ascii_digit());
        let (major, minor) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        (self.property("product") == "RabbitMQ").then_some((major, minor))
    }

    fn property(&self, name: &str) -> &str {
        let value = self.properties.get(name).and_then(FieldValue::as_str);
        value.unwrap_or_default()
    }
}

pub(crate) struct Connection<M: Mailboxes> {
    config: Config,
    state: State,
    server: Server,
    /// The last method that was sent to log in.
    login: Option<LoginFrame>,
    tuning: Tuning,
    heartbeat: Option<Heartbeat>,
    /// Calls on the connection itself.
    calls: Calls<M>,
    channels: Channels<M>,
    begun: Option<Begun>,
    effects: Effects<M>,
}

impl<M: Mailboxes> Connection<M> {
    /// Starts the handshake: the first output is the protocol header.
    pub(crate) fn new(config: Config, label: Label) -> Self {
        let tuning = Tuning::BEFORE;
        Self {
            state: State::Handshake(Step::Start),
            server: Server::default(),
            login: None,
            heartbeat: None,
            calls: Calls::new(),
            channels: Channels::new(config.max_message_size),
            begun: None,
            effects: Effects::new(tuning.payload_limit(), label),
            tuning,
            config,
        }
    }

    #[cfg(test)]
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Names the connection in the log.
    pub(crate) fn label(&self) -> &Label {
        &self.effects.label
    }

    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    pub(crate) fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// The method that the handshake waits for.
    pub(crate) fn handshake_step(&self) -> Option<&'static str> {
        match self.state {
            State::Handshake(step) => Some(step.name()),
            _ => None,
        }
    }

    /// Why the broker may leave the handshake without an answer.
    pub(crate) fn handshake_note(&self) -> Option<String> {
        match self.state {
            State::Handshake(step) => step.note(self.login, &self.tuning),
            _ => None,
        }
    }

    pub(crate) fn has_events(&self) -> bool {
        !self.effects.events.is_empty()
    }

    pub(crate) fn next_event(&mut self) -> Option<Event<M>> {
        self.effects.events.pop_front()
    }

    /// Takes the messages of [`Event::Deliveries`].
    pub(crate) fn take_messages(&mut self, count: usize) -> Drain<'_, Delivered> {
        let all = self.effects.messages.len();
        self.effects.messages.drain(..count.min(all))
    }

    /// Buffers for the core to fill with the contents of messages.
    pub(crate) fn buffers(&mut self) -> &mut Buffers {
        &mut self.effects.buffers
    }

    /// Appends the core's own output to `buffer`.
    pub(crate) fn take_output(&mut self, buffer: &mut Vec<u8>) {
        buffer.append(&mut self.effects.output);
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.effects.output.is_empty()
    }

    /// Notes that bytes were written to the socket.
    pub(crate) fn wrote(&mut self, now: Instant) {
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.output(now);
        }
    }

    /// When [`Self::handle_timeout`] is due, unless input or output moves the deadline.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Ended(_) => None,
            _ => self.heartbeat.as_ref().map(Heartbeat::deadline),
        }
    }

    /// Sends the heartbeat that is due, or ends the connection if the peer has been silent for too
    /// long. Returns what was due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> HeartbeatDue {
        if matches!(self.state, State::Ended(_)) {
            return HeartbeatDue::Nothing;
        }
        let Some(heartbeat) = &mut self.heartbeat else {
            return HeartbeatDue::Nothing;
        };
        let due = heartbeat.due(now);
        match due {
            HeartbeatDue::Nothing => {}
            HeartbeatDue::Send => {
                // Counted before the socket takes it: one heartbeat per half interval is enough.
                heartbeat.output(now);
                log_line!(Trace, self.effects.label, "channel 0 → heartbeat");
                frame::write_heartbeat(&mut self.effects.output);
            }
            HeartbeatDue::PeerIsDead => {
                let interval = heartbeat.interval();
                self.end(Error::new(ErrorKind::HeartbeatMissed { interval }));
            }
        }
        due
    }

    /// Frees the memory left from a burst.
    pub(crate) fn shrink(&mut self) {
        self.effects.shrink();
        self.channels.shrink();
    }

    /// Notes that unread input waits: the peer is not silent, however much time has passed.
    pub(crate) fn input_waits(&mut self, now: Instant) {
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.input(now);
        }
    }

    /// Whether the broker still owes a reply, even if its caller has given up waiting.
    pub(crate) fn awaits_reply(&self) -> bool {
        let closing = matches!(self.state, State::Closing(_));
        closing || !self.calls.is_empty() || self.channels.await_reply()
    }

    /// All consumers that messages can arrive for.
    pub(crate) fn consumers(&self) -> impl Iterator<Item = &M::Consumer> {
        self.channels.consumers()
    }

    /// Ends the connection because the socket is closed or unusable.
    pub(crate) fn socket_closed(&mut self, kind: io::ErrorKind) {
        let error = match &self.state {
            State::Ended(_) => return,
            State::Handshake(step) => step.socket_closed(&self.config, kind, self.handshake_note()),
            State::Closing(reason) => Error::new(ErrorKind::ConnectionClosed(reason.clone())),
            State::Open => Error::new(ErrorKind::SocketClosed { kind }),
        };
        self.end(error);
    }

    /// Handles the whole frames at the front of `input`, and returns their length in bytes.
    ///
    /// The driver must pass the remaining bytes again. If there are events, it takes the events and
    /// calls this again at once, since this stops at [`AT_ONCE`] of them. Otherwise the remaining
    /// bytes are the start of a frame, and the driver waits for more input.
    pub(crate) fn receive(&mut self, input: &[u8], now: Instant) -> usize {
        self.input_waits(now);
        let mut consumed = 0;
        while !matches!(self.state, State::Ended(_)) {
            let Effects {
                events, messages, ..
            } = &self.effects;
            if events.len() >= AT_ONCE || messages.len() >= AT_ONCE {
                return consumed;
            }
            let rest = input.get(consumed..).unwrap_or_default();
            match self.receive_frame(rest, now) {
                Ok(0) => return consumed,
                Ok(length) => consumed += length,
                Err(violation) => self.violated(violation),
            }
        }
        // Input after the end of the connection has no meaning.
        input.len()
    }

    /// The place of the next input, if that is a part of a large body, and at most this many bytes.
    /// The driver can read into it instead of passing the bytes to [`receive`](Self::receive), and
    /// then calls [`body_came`](Self::body_came).
    pub(crate) fn body_room(&mut self, most: usize) -> Option<&mut [u8]> {
        // Less is not worth a read of its own.
        let least = self.config.piecemeal / 4;
        let begun = self.begun.filter(|it| it.missing >= least)?;
        let content = self.channels.arriving(begun.channel)?.arriving()?;
        Some(content.room(most.min(begun.missing)))
    }

    /// Notes that bytes were read into the [`body_room`](Self::body_room).
    pub(crate) fn body_came(&mut self, count: usize) {
        let Some(begun) = &mut self.begun else {
            return;
        };
        begun.missing -= count;
        let assembly = self.channels.arriving(begun.channel);
        if let Some(content) = assembly.and_then(Assembly::arriving) {
            content.arrived(count);
        }
    }

    /// Handles the beginning of a large body frame. Returns how much of the input that is.
    fn receive_beginning(&mut self, input: &[u8]) -> usize {
        let begun = frame::begun_body(input);
        let Some(begun) = begun.filter(|it| it.size >= self.config.piecemeal) else {
            return 0;
        };
        if !self.channels.fits_body(begun.channel, begun.size) {
            // Once all of it has come, it is a violation.
            return 0;
        }
        if let Some(assembly) = self.channels.arriving(begun.channel) {
            assembly.piece(begun.payload);
        }
        self.begun = Some(Begun {
            channel: begun.channel,
            missing: begun.size - begun.payload.len(),
        });
        input.len()
    }

    /// Handles more of a body frame. Returns how much of the input that is.
    fn receive_rest(&mut self, begun: Begun, input: &[u8]) -> Checked<usize> {
        let count = begun.missing.min(input.len());
        let (piece, end) = input.split_at(count);
        if let Some(assembly) = self.channels.arriving(begun.channel) {
            assembly.piece(piece);
        }
        match end.first() {
            None => {
                let missing = begun.missing - count;
                self.begun = Some(Begun { missing, ..begun });
                Ok(count)
            }
            Some(&frame::END) => {
                self.begun = None;
                self.channels.body_ends(begun.channel, &mut self.effects);
                Ok(count + 1)
            }
            Some(&other) => Err(WireError::WrongFrameEnd(other).into()),
        }
    }

    fn receive_frame(&mut self, input: &[u8], now: Instant) -> Checked<usize> {
        if let Some(begun) = self.begun {
            return self.receive_rest(begun, input);
        }
        let is_frame = input.first().map_or(true, |&kind| kind == frame::METHOD);
        if matches!(self.state, State::Handshake(Step::Start)) && !is_frame {
            let Some(error) = handshake::version_mismatch(input) else {
                return Ok(0);
            };
            self.end(error);
            return Ok(input.len());
        }
        let limit = self.effects.payload_limit;
        if let Some(message) = WholeDelivery::cut(input, limit) {
            if self.channels.deliver(&message, &mut self.effects) {
                return Ok(message.length);
            }
        }
        match frame::cut(input, limit)? {
            Cut::Incomplete => Ok(self.receive_beginning(input)),
            Cut::Frame(frame, length) => {
                self.handle_frame(frame, now)?;
                Ok(length)
            }
        }
    }

    fn handle_frame(&mut self, frame: Frame<'_>, now: Instant) -> Checked<()> {
        match (frame.kind, frame.channel) {
            (FrameKind::Heartbeat, 0) => {
                log_line!(Trace, self.label(), "channel 0 ← heartbeat");
                Ok(())
            }
            (FrameKind::Heartbeat, channel) => Err(violation(
                ReplyCode::FRAME_ERROR,
                format!("a heartbeat on channel {channel}"),
            )),
            (FrameKind::Method, channel) => {
                let method = Method::decode(frame.payload)?;
                let id = method.id();
                log_line!(Trace, self.label(), "channel {channel} ← {id}");
                let handled = match channel {
                    0 => self.connection_method(method, now),
                    _ => self.channels.method(channel, method, &mut self.effects),
                };
                handled.map_err(|violation| Violation {
                    method: Some(id),
                    ..violation
                })
            }
            (FrameKind::Header | FrameKind::Body, 0) => Err(violation(
                ReplyCode::CHANNEL_ERROR,
                "content on channel 0".to_owned(),
            )),
            (FrameKind::Header | FrameKind::Body, channel) => {
                self.channels.content(channel, frame, &mut self.effects)
            }
        }
    }

    // ---- the connection itself ----

    fn connection_method(&mut self, method: Method<'_>, now: Instant) -> Checked<()> {
        match (&self.state, method) {
            (_, Method::ConnectionClose(close)) => {
                self.closed_by_broker(&close);
                Ok(())
            }
            (State::Handshake(Step::Start), Method::ConnectionStart(start)) => {
                self.started(start);
                Ok(())
            }
            (State::Handshake(Step::Tune), Method::ConnectionSecure(secure)) => {
                self.challenged(&secure);
                Ok(())
            }
            (State::Handshake(Step::Tune), Method::ConnectionTune(tune)) => self.tuned(tune, now),
            (State::Handshake(Step::OpenOk), Method::ConnectionOpenOk(_)) => {
                self.state = State::Open;
                self.effects.event(Event::Opened);
                Ok(())
            }
            (State::Open | State::Closing(_), Method::ConnectionBlocked(blocked)) => {
                let reason = blocked.reason.into_owned();
                self.effects.event(Event::Blocked { reason });
                Ok(())
            }
            (State::Open | State::Closing(_), Method::ConnectionUnblocked(_)) => {
                self.effects.event(Event::Unblocked);
                Ok(())
            }
            (State::Closing(reason), Method::ConnectionCloseOk(_)) => {
                let reason = reason.clone();
                self.end(Error::new(ErrorKind::ConnectionClosed(reason)));
                Ok(())
            }
            (State::Open | State::Closing(_), reply) => {
                let pending = self.calls.answered_by(&reply).map_err(invalid)?;
                self.effects.reply(None, 0, pending.call, reply);
                Ok(())
            }
            (State::Handshake(step), other) => Err(invalid(format!(
                "{} where {} was expected",
                other.id(),
                step.name()
            ))),
            (State::Ended(_), _) => Ok(()),
        }
    }

    fn started(&mut self, start: ConnectionStart<'_>) {
        let before = self.effects.output.len();
        // The program sets the client properties and the password, which may not fit into a frame.
        let answered = handshake::start_ok(&mut self.config, &start).and_then(|start_ok| {
            let sent = self.effects.try_send(0, &start_ok);
            sent.map_err(|error| handshake::unsendable(ConnectionStartOk::ID, &error))
        });
        match answered {
            Ok(()) => {
                self.logging_in(ConnectionStartOk::ID, before);
                self.state = State::Handshake(Step::Tune);
            }
            Err(error) => self.end(error),
        }
        self.server = Server {
            mechanisms: String::from_utf8_lossy(&start.mechanisms.0).into_owned(),
            locales: String::from_utf8_lossy(&start.locales.0).into_owned(),
            properties: start.server_properties.into_owned(),
            tune: ConnectionTune::default(),
        };
    }

    fn challenged(&mut self, secure: &ConnectionSecure<'_>) {
        let before = self.effects.output.len();
        let answered = self.config.login.respond(&secure.challenge.0);
        let sent = answered.and_then(|response| {
            let response = LongString(Cow::Owned(response));
            let sent = self.effects.try_send(0, &ConnectionSecureOk { response });
            sent.map_err(|error| handshake::unsendable(ConnectionSecureOk::ID, &error))
        });
        match sent {
            Ok(()) => self.logging_in(ConnectionSecureOk::ID, before),
            Err(error) => self.end(error),
        }
    }

    /// Notes the size of a login method that was just appended to `before` bytes of output.
    fn logging_in(&mut self, method: MethodId, before: usize) {
        let size = (self.effects.output.len() - before).saturating_sub(OVERHEAD);
        self.login = Some(LoginFrame { method, size });
    }

    fn tuned(&mut self, tune: ConnectionTune, now: Instant) -> Checked<()> {
        let tuning = handshake::tune(&self.config, &tune)
            .map_err(|text| violation(ReplyCode::SYNTAX_ERROR, text))?;
        self.server.tune = tune;
        self.heartbeat = Heartbeat::new(tuning.heartbeat, now);
        self.effects.send(0, &handshake::tune_ok(&tuning));
        self.effects.payload_limit = tuning.payload_limit();
        self.tuning = tuning;
        self.effects.send(0, &handshake::open(&self.config));
        self.state = State::Handshake(Step::OpenOk);
        Ok(())
    }

    fn closed_by_broker(&mut self, close: &ConnectionClose<'_>) {
        self.effects.send(0, &ConnectionCloseOk {});
        let (class, method) = (close.class_id, close.method_id);
        let reason = CloseReason::broker(close.reply_code, &close.reply_text, class, method);
        let error = match &self.state {
            State::Handshake(step) => step.closed(&self.config, reason),
            // Both sides closed at the same time. The first reason, ours, wins.
            State::Closing(ours) => Error::new(ErrorKind::ConnectionClosed(ours.clone())),
            State::Open | State::Ended(_) => Error::new(ErrorKind::ConnectionClosed(reason)),
        };
        self.end(error);
    }

    fn violated(&mut self, violation: Violation) {
        let Violation { code, text, method } = violation;
        if let State::Closing(reason) = &self.state {
            // After our connection.close, only close and close-ok count. Invalid input ends the
            // connection anyway.
            let (label, text) = (self.label(), OneLine(&text));
            log_line!(Debug, label, "after connection.close: {code} - {text}");
            let reason = reason.clone();
            return self.end(Error::new(ErrorKind::ConnectionClosed(reason)));
        }
        let id = method.unwrap_or(MethodId {
            class: 0,
            method: 0,
        });
        let mut reply_text = text.clone();
        truncate(&mut reply_text, 255);
        self.effects.send(
            0,
            &ConnectionClose {
                reply_code: code.0,
                reply_text: reply_text.into(),
                class_id: id.class,
                method_id: id.method,
            },
        );
        self.end(Error::new(ErrorKind::ProtocolViolation { code, text }));
    }

    /// The only place where a connection ends: notifies every waiting caller. [`Event::Ended`]
    /// comes first, so code that just got an error from a call or channel can query the connection.
    fn end(&mut self, error: Error) {
        self.state = State::Ended(error.clone());
        let ended = Event::Ended {
            error: error.clone(),
        };
        self.effects.event(ended);
        self.channels.end_all(&error, &mut self.effects);
        for call in std::mem::replace(&mut self.calls, Calls::new()).into_all() {
            self.effects.fail(Some(call), &error);
        }
    }

    // ---- commands from the handles and the driver ----

    /// Ends the connection because the driver cannot go on.
    pub(crate) fn end_with(&mut self, error: Error) {
        if !matches!(self.state, State::Ended(_)) {
            self.end(error);
        }
    }

    /// Ends the connection without a clean close, after the wait for the close has timed out.
    pub(crate) fn abort(&mut self) {
        let reason = match &self.state {
            State::Ended(_) => return,
            State::Closing(reason) => reason.clone(),
            _ => CloseReason::program("aborted"),
        };
        self.end(Error::new(ErrorKind::ConnectionClosed(reason)));
    }

    /// Handles a command. The driver must pass commands in the order of their frames, each before
    /// its frame is written.
    #[inline]
    pub(crate) fn handle(&mut self, command: Command<M>) {
        match command {
            // Handled apart from the others, since every message has one.
            Command::Publish(published) => self.published(published),
            command => self.handle_call(command),
        }
    }

    fn published(&mut self, published: Published<M>) {
        match &self.state {
            // This message was never written to this connection. An earlier one may have sent it.
            State::Ended(cause) => self.effects.lose(published, cause.clone(), false),
            _ => self.channels.published(published, &mut self.effects),
        }
    }

    fn handle_call(&mut self, command: Command<M>) {
        if let State::Ended(cause) = &self.state {
            let cause = cause.clone().unsent();
            return self.refuse(command, &cause);
        }
        let Self {
            channels, effects, ..
        } = self;
        match command {
            Command::OpenChannel {
                channel,
                mailbox,
                last_tag,
                call,
            } => channels.opening(channel, mailbox, last_tag, call, effects),
            Command::Call {
                channel: 0,
                expected,
                call,
            } => self.calls.push(expected, Some(call)),
            Command::Call {
                channel,
                expected,
                call,
            } => channels.calling(channel, expected, Some(call), effects),
            Command::Consume {
                channel,
                consumer_tag,
                consumer,
                settling,
                call,
            } => channels.consuming(channel, consumer_tag, consumer, settling, call, effects),
            Command::Publish(published) => self.published(published),
            Command::CloseChannel {
                channel,
                reason,
                call,
            } => channels.closing(channel, reason, call, effects),
            Command::CloseConnection { reason } => self.state = State::Closing(reason),
        }
    }

    /// Refuses a command that arrived after the end: its frame was never sent.
    fn refuse(&mut self, command: Command<M>, cause: &Error) {
        let effects = &mut self.effects;
        let error = cause.clone();
        match command {
            Command::OpenChannel {
                mailbox: channel,
                call,
                ..
            } => {
                effects.event(Event::ChannelEnded {
                    channel,
                    error,
                    leftover: Leftover::default(),
                    owes_close_ok: false,
                });
                effects.fail(Some(call), cause);
            }
            Command::Consume { consumer, call, .. } => {
                let error = Some(error);
                effects.event(Event::ConsumerEnded { consumer, error });
                effects.fail(call, cause);
            }
            Command::Call { call, .. } => effects.fail(Some(call), cause),
            Command::CloseChannel { call, .. } => effects.fail(call, cause),
            Command::Publish(published) => self.published(published),
            Command::CloseConnection { .. } => {}
        }
    }
}

/// Cuts a text to at most `limit` bytes, at a character boundary.
fn truncate(text: &mut String, limit: usize) {
    if text.len() > limit {
        let end = (0..=limit)
            .rev()
            .find(|&at| text.is_char_boundary(at))
            .unwrap_or(0);
        text.truncate(end);
    }
}
