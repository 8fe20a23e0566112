//! The state machine itself.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::channel::{Calls, Channel, Expected, Incoming, Pending, Slot, State as ChannelState};
use super::content::{Content, Delivered, Fetched, Misfit, Returned};
use super::handshake::{self, Login, Step};
use super::heartbeat::{Due, Heartbeat};
use crate::error::{CloseReason, ClosedBy, Error, ErrorKind, ReplyCode};
use crate::wire::codec::WireError;
use crate::wire::frame::{self, ContentHeader, Cut, Frame, FrameKind};
use crate::wire::method::{
    BasicCancelOk, ChannelClose, ChannelCloseOk, ChannelFlowOk, ChannelOpenOk, ConnectionClose,
    ConnectionCloseOk, ConnectionTune, Encode, Method, MethodId,
};
use crate::wire::value::FieldTable;

/// What the driver wants to get back in events. The core keeps these and never looks inside.
pub(crate) trait Mailboxes {
    /// One caller who waits for a reply.
    type Call;
    /// A channel's handle.
    type Channel: Clone;
    /// A consumer.
    type Consumer: Clone;
}

/// What the core has to know from the start.
#[derive(Debug, Clone)]
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

/// What the handles did. Where it says "was sent", the bytes are on their way by another road: the handles encode
/// their methods themselves, and the core only has to know what will come back.
pub(crate) enum Command<M: Mailboxes> {
    /// `channel.open` was sent.
    OpenChannel {
        channel: u16,
        mailbox: M::Channel,
        call: M::Call,
    },
    /// A method was sent that has a reply. Channel 0 is the connection.
    Call {
        channel: u16,
        expected: Expected,
        call: M::Call,
    },
    /// `basic.consume` was sent; without a call it was sent with no-wait.
    Consume {
        channel: u16,
        consumer_tag: Arc<str>,
        consumer: M::Consumer,
        call: Option<M::Call>,
    },
    /// `channel.close` was sent.
    CloseChannel {
        channel: u16,
        reason: CloseReason,
        call: Option<M::Call>,
    },
    /// `connection.close` was sent.
    CloseConnection { reason: CloseReason },
    /// Whoever closes has waited long enough.
    Abort,
}

/// What happened. Every mailbox that was handed over comes back in just one answer, whatever happens.
pub(crate) enum Event<M: Mailboxes> {
    /// The handshake is over.
    Opened,
    /// The reply to a call.
    Reply {
        call: M::Call,
        reply: Method<'static>,
    },
    /// The message that `basic.get` asked for.
    Fetched {
        call: M::Call,
        channel: M::Channel,
        no_ack: bool,
        message: Fetched,
    },
    /// A call that gets no reply any more.
    Failed { call: M::Call, error: Error },
    /// A message for a consumer.
    Delivery {
        consumer: M::Consumer,
        delivery: Delivered,
    },
    /// The broker has agreed to a consumer.
    ConsumerStarted { consumer: M::Consumer },
    /// A consumer gets nothing any more: cancelled by us, or with an error.
    ConsumerEnded {
        consumer: M::Consumer,
        error: Option<Error>,
    },
    /// A message came back as unroutable.
    Returned {
        channel: M::Channel,
        message: Returned,
    },
    /// The broker confirmed (or refused) messages.
    Confirm {
        channel: M::Channel,
        sequence_number: u64,
        multiple: bool,
        nack: bool,
    },
    /// The broker asks to stop (or go on) publishing on a channel.
    Flow { channel: M::Channel, active: bool },
    /// Nothing more can be sent on a channel, for this reason.
    ChannelEnded { channel: M::Channel, error: Error },
    /// The number can be used for a new channel.
    ChannelFreed { channel: u16 },
    /// The broker takes no messages for now.
    Blocked { reason: String },
    /// The broker takes messages again.
    Unblocked,
    /// It is over. What is left to send shall be sent, then the socket be closed.
    Ended { error: Error },
}

#[derive(Debug)]
enum State {
    Handshake(Step),
    Open,
    /// We have sent `connection.close` and wait for close-ok.
    Closing(CloseReason),
    Ended(Error),
}

/// What the server says about itself in `connection.start`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Server {
    pub(crate) properties: FieldTable,
    pub(crate) mechanisms: String,
    pub(crate) locales: String,
    /// What it proposed in `connection.tune`.
    pub(crate) tune: ConnectionTune,
}

pub(crate) struct Connection<M: Mailboxes> {
    config: Config,
    state: State,
    server: Server,
    tuning: Tuning,
    heartbeat: Option<Heartbeat>,
    /// Calls on the connection itself.
    calls: Calls<M>,
    /// By channel number.
    channels: Vec<Slot<M>>,
    output: Vec<u8>,
    events: VecDeque<Event<M>>,
}

/// A peer that breaks the protocol, and the code that it is told.
#[derive(Debug)]
struct Violation {
    code: ReplyCode,
    text: String,
    method: Option<MethodId>,
}

fn violation(code: ReplyCode, text: impl Into<String>) -> Violation {
    Violation {
        code,
        text: text.into(),
        method: None,
    }
}

/// A method that is not possible here.
fn invalid(text: impl Into<String>) -> Violation {
    violation(ReplyCode::COMMAND_INVALID, text)
}

impl From<WireError> for Violation {
    fn from(error: WireError) -> Self {
        let code = match error {
            WireError::UnknownMethod { .. } => ReplyCode::COMMAND_INVALID,
            WireError::UnknownFrameType(_)
            | WireError::FrameTooLarge { .. }
            | WireError::WrongFrameEnd(_) => ReplyCode::FRAME_ERROR,
            WireError::UnknownContentClass(_) => ReplyCode::UNEXPECTED_FRAME,
            _ => ReplyCode::SYNTAX_ERROR,
        };
        violation(code, error.to_string())
    }
}

type Checked<T> = Result<T, Violation>;

impl<M: Mailboxes> Connection<M> {
    /// A connection that begins with the protocol header.
    pub(crate) fn new(config: Config) -> Self {
        Self {
            config,
            state: State::Handshake(Step::Start),
            server: Server::default(),
            tuning: Tuning::BEFORE,
            heartbeat: None,
            calls: Calls::new(),
            channels: Vec::new(),
            output: frame::PROTOCOL_HEADER.to_vec(),
            events: VecDeque::new(),
        }
    }

    #[cfg(test)]
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    pub(crate) fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// Which method the handshake waits for.
    pub(crate) fn handshake_step(&self) -> Option<&'static str> {
        match self.state {
            State::Handshake(step) => Some(step.name()),
            _ => None,
        }
    }

    pub(crate) fn next_event(&mut self) -> Option<Event<M>> {
        self.events.pop_front()
    }

    /// Moves what the core itself wants to send to the end of `buffer`.
    pub(crate) fn take_output(&mut self, buffer: &mut Vec<u8>) {
        buffer.append(&mut self.output);
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Bytes were written to the socket.
    pub(crate) fn wrote(&mut self, now: Instant) {
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.output(now);
        }
    }

    /// When [`Self::handle_timeout`] has something to do, unless other things happen before.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Ended(_) => None,
            _ => self.heartbeat.as_ref().map(Heartbeat::deadline),
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if matches!(self.state, State::Ended(_)) {
            return;
        }
        let Some(heartbeat) = &mut self.heartbeat else {
            return;
        };
        match heartbeat.due(now) {
            Due::Nothing => {}
            Due::Send => {
                // Whether the socket takes it or not: one heartbeat in half an interval is enough.
                heartbeat.output(now);
                log::trace!("channel 0 → heartbeat");
                frame::write_heartbeat(&mut self.output);
            }
            Due::PeerIsDead => {
                let interval = heartbeat.interval();
                self.end(Error::new(ErrorKind::HeartbeatMissed { interval }));
            }
        }
    }

    /// The socket has ended, or cannot be used.
    pub(crate) fn socket_closed(&mut self, kind: io::ErrorKind) {
        let error = match &self.state {
            State::Ended(_) => return,
            State::Handshake(step) => step.socket_closed(&self.config, kind),
            State::Closing(reason) => Error::new(ErrorKind::ConnectionClosed(reason.clone())),
            State::Open => Error::new(ErrorKind::SocketClosed { kind }),
        };
        self.end(error);
    }

    /// Takes in all whole frames at the front of `input` and returns how many bytes they were. What is left is the
    /// beginning of a frame and must be handed over again, with more behind it.
    pub(crate) fn receive(&mut self, input: &[u8], now: Instant) -> usize {
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.input(now);
        }
        let mut consumed = 0;
        while !matches!(self.state, State::Ended(_)) {
            let rest = input.get(consumed..).unwrap_or_default();
            match self.receive_frame(rest, now) {
                Ok(0) => return consumed,
                Ok(length) => consumed += length,
                Err(violation) => self.violated(violation),
            }
        }
        // Nothing that a connection says after its end means anything.
        input.len()
    }

    fn receive_frame(&mut self, input: &[u8], now: Instant) -> Checked<usize> {
        if matches!(self.state, State::Handshake(Step::Start)) && input.starts_with(b"A") {
            return self.receive_header(input);
        }
        match frame::cut(input, self.tuning.payload_limit())? {
            Cut::Incomplete => Ok(0),
            Cut::Frame(frame, length) => {
                self.handle_frame(frame, now)?;
                Ok(length)
            }
        }
    }

    fn receive_header(&mut self, input: &[u8]) -> Checked<usize> {
        if let Some(error) = handshake::version_mismatch(input) {
            self.end(error);
            return Ok(input.len());
        }
        if input.len() >= 4 && !input.starts_with(b"AMQP") {
            return Err(violation(ReplyCode::FRAME_ERROR, "this is not AMQP"));
        }
        Ok(0)
    }

    fn handle_frame(&mut self, frame: Frame<'_>, now: Instant) -> Checked<()> {
        match (frame.kind, frame.channel) {
            (FrameKind::Heartbeat, 0) => {
                log::trace!("channel 0 ← heartbeat");
                Ok(())
            }
            (FrameKind::Heartbeat, channel) => Err(violation(
                ReplyCode::FRAME_ERROR,
                format!("a heartbeat on channel {channel}"),
            )),
            (FrameKind::Method, channel) => {
                let method = Method::decode(frame.payload)?;
                let id = method.id();
                log::trace!("channel {channel} ← {id}");
                let handled = match channel {
                    0 => self.connection_method(method, now),
                    _ => self.channel_method(channel, method),
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
            (FrameKind::Header | FrameKind::Body, channel) => self.content_frame(channel, frame),
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
                self.server = Server {
                    mechanisms: String::from_utf8_lossy(&start.mechanisms.0).into_owned(),
                    locales: String::from_utf8_lossy(&start.locales.0).into_owned(),
                    properties: start.server_properties.clone().into_owned(),
                    tune: ConnectionTune::default(),
                };
                let config = self.config.clone();
                match handshake::start_ok(&config, &start) {
                    Ok(start_ok) => self.handshake_reply(Step::Tune, &start_ok),
                    Err(error) => self.end(error),
                }
                Ok(())
            }
            (State::Handshake(Step::Tune), Method::ConnectionSecure(_)) => {
                let mechanism = &self.config.login.mechanism;
                Err(invalid(format!(
                    "connection.secure, but {mechanism} has no challenges"
                )))
            }
            (State::Handshake(Step::Tune), Method::ConnectionTune(tune)) => self.tuned(tune, now),
            (State::Handshake(Step::OpenOk), Method::ConnectionOpenOk(_)) => {
                self.state = State::Open;
                self.events.push_back(Event::Opened);
                Ok(())
            }
            (State::Open | State::Closing(_), Method::ConnectionBlocked(blocked)) => {
                let reason = blocked.reason.into_owned();
                self.events.push_back(Event::Blocked { reason });
                Ok(())
            }
            (State::Open | State::Closing(_), Method::ConnectionUnblocked(_)) => {
                self.events.push_back(Event::Unblocked);
                Ok(())
            }
            (State::Closing(reason), Method::ConnectionCloseOk(_)) => {
                let reason = reason.clone();
                self.end(Error::new(ErrorKind::ConnectionClosed(reason)));
                Ok(())
            }
            (State::Open | State::Closing(_), reply) => {
                let pending = self.calls.answered_by(&reply).map_err(invalid)?;
                self.reply(pending.call, reply);
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

    fn handshake_reply(&mut self, next: Step, method: &impl Encode) {
        self.state = State::Handshake(next);
        self.send(0, method);
    }

    fn tuned(&mut self, tune: ConnectionTune, now: Instant) -> Checked<()> {
        let tuning = handshake::tune(&self.config, &tune)
            .map_err(|text| violation(ReplyCode::SYNTAX_ERROR, text))?;
        self.server.tune = tune;
        self.heartbeat = Heartbeat::new(tuning.heartbeat, now);
        self.send(0, &handshake::tune_ok(&tuning));
        self.tuning = tuning;
        let config = self.config.clone();
        self.handshake_reply(Step::OpenOk, &handshake::open(&config));
        Ok(())
    }

    fn closed_by_broker(&mut self, close: &ConnectionClose<'_>) {
        self.send(0, &ConnectionCloseOk {});
        let reason = broker_reason(
            close.reply_code,
            &close.reply_text,
            close.class_id,
            close.method_id,
        );
        let error = match &self.state {
            State::Handshake(step) => step.closed(&self.config, reason),
            // Both sides closed at once; we were first to say why.
            State::Closing(ours) => Error::new(ErrorKind::ConnectionClosed(ours.clone())),
            State::Open | State::Ended(_) => Error::new(ErrorKind::ConnectionClosed(reason)),
        };
        self.end(error);
    }

    fn violated(&mut self, violation: Violation) {
        let Violation { code, text, method } = violation;
        let id = method.unwrap_or(MethodId {
            class: 0,
            method: 0,
        });
        let mut reply_text = text.clone();
        truncate(&mut reply_text, 255);
        self.send(
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

    /// The one end of a connection: everyone who waits is told.
    fn end(&mut self, error: Error) {
        for slot in std::mem::take(&mut self.channels) {
            if let Slot::InUse(channel) = slot {
                self.end_channel(*channel, &error);
            }
        }
        for call in std::mem::replace(&mut self.calls, Calls::new()).into_all() {
            self.fail(Some(call), &error);
        }
        self.state = State::Ended(error.clone());
        self.events.push_back(Event::Ended { error });
    }

    // ---- channels ----

    fn channel(&mut self, number: u16) -> Checked<&mut Channel<M>> {
        match self.channels.get_mut(usize::from(number)) {
            Some(Slot::InUse(channel)) => Ok(channel),
            _ => Err(violation(
                ReplyCode::CHANNEL_ERROR,
                format!("a frame on channel {number}, which is not open"),
            )),
        }
    }

    fn channel_method(&mut self, number: u16, method: Method<'_>) -> Checked<()> {
        if self.is_leaving(number) {
            self.leave(number, &method);
            return Ok(());
        }
        let channel = self.channel(number)?;
        match (&channel.state, method) {
            (_, Method::ChannelClose(close)) => {
                self.channel_closed_by_broker(number, &close);
                Ok(())
            }
            (ChannelState::Closing { .. }, Method::ChannelCloseOk(_)) => {
                self.channel_close_ok(number);
                Ok(())
            }
            // After channel.close all else is to be discarded.
            (ChannelState::Closing { .. }, _) => Ok(()),
            (ChannelState::Open, method) if !channel.assembly.is_idle() => Err(violation(
                ReplyCode::UNEXPECTED_FRAME,
                format!("{} in the middle of a message", method.id()),
            )),
            (
                ChannelState::Open,
                method @ (Method::BasicDeliver(_) | Method::BasicGetOk(_) | Method::BasicReturn(_)),
            ) => channel.begin_message(method).map_err(invalid),
            (ChannelState::Open, method) => self.open_channel_method(number, method),
        }
    }

    fn open_channel_method(&mut self, number: u16, method: Method<'_>) -> Checked<()> {
        let channel = self.channel(number)?;
        let mailbox = channel.mailbox.clone();
        let event = match method {
            Method::BasicAck(ack) => Event::Confirm {
                channel: mailbox,
                sequence_number: ack.delivery_tag,
                multiple: ack.multiple,
                nack: false,
            },
            Method::BasicNack(nack) => Event::Confirm {
                channel: mailbox,
                sequence_number: nack.delivery_tag,
                multiple: nack.multiple,
                nack: true,
            },
            Method::ChannelFlow(flow) => {
                let active = flow.active;
                self.send(number, &ChannelFlowOk { active });
                Event::Flow {
                    channel: mailbox,
                    active,
                }
            }
            Method::BasicCancel(cancel) => {
                let consumer_tag = cancel.consumer_tag.into_owned();
                let consumer = channel.consumers.remove(consumer_tag.as_str());
                if !cancel.no_wait {
                    let consumer_tag = consumer_tag.as_str().into();
                    self.send(number, &BasicCancelOk { consumer_tag });
                }
                let Some(consumer) = consumer else {
                    return Ok(());
                };
                let error = Error::new(ErrorKind::ConsumerCancelled { consumer_tag });
                Event::ConsumerEnded {
                    consumer,
                    error: Some(error),
                }
            }
            reply => return self.channel_reply(number, reply),
        };
        self.events.push_back(event);
        Ok(())
    }

    fn channel_reply(&mut self, number: u16, reply: Method<'_>) -> Checked<()> {
        let channel = self.channel(number)?;
        let pending = channel.calls.answered_by(&reply).map_err(invalid)?;
        let consumers = &mut channel.consumers;
        let event = match &pending.expected {
            Expected::ConsumeOk(consumer_tag) => {
                let consumer = consumers.get(consumer_tag).cloned();
                consumer.map(|consumer| Event::ConsumerStarted { consumer })
            }
            Expected::CancelOk(consumer_tag) => {
                let (consumer, error) = (consumers.remove(consumer_tag), None);
                consumer.map(|consumer| Event::ConsumerEnded { consumer, error })
            }
            Expected::Method(_) | Expected::Message { .. } => None,
        };
        self.events.extend(event);
        self.reply(pending.call, reply);
        Ok(())
    }

    fn content_frame(&mut self, number: u16, frame: Frame<'_>) -> Checked<()> {
        if self.is_leaving(number) {
            return Ok(());
        }
        let max_size = self.config.max_message_size;
        let channel = self.channel(number)?;
        if let ChannelState::Closing { .. } = channel.state {
            return Ok(());
        }
        let outcome = match frame.kind {
            FrameKind::Body => channel.assembly.body(frame.payload),
            _ => {
                let header = ContentHeader::decode(frame.payload)?;
                channel.assembly.header(&channel.names, header, max_size)
            }
        };
        match outcome {
            Ok(None) => Ok(()),
            Ok(Some((incoming, content))) => self.message(number, incoming, content),
            Err(Misfit::UnexpectedHeader) => Err(violation(
                ReplyCode::UNEXPECTED_FRAME,
                "a content header without its method",
            )),
            Err(Misfit::UnexpectedBody) => Err(violation(
                ReplyCode::UNEXPECTED_FRAME,
                "a body without its header",
            )),
            Err(Misfit::BodyTooLong { excess }) => Err(violation(
                ReplyCode::UNEXPECTED_FRAME,
                format!("a body {excess} bytes longer than its header said"),
            )),
            Err(Misfit::MessageTooLarge { size }) => {
                self.close_channel(
                    number,
                    ReplyCode::CONTENT_TOO_LARGE,
                    &format!("a message of {size} bytes, at most {max_size} are taken"),
                );
                Ok(())
            }
        }
    }

    fn message(&mut self, number: u16, incoming: Incoming<M>, content: Content) -> Checked<()> {
        let event = match incoming {
            Incoming::Delivery {
                consumer,
                delivery_tag,
                redelivered,
            } => Event::Delivery {
                consumer,
                delivery: Delivered {
                    delivery_tag,
                    redelivered,
                    content,
                },
            },
            Incoming::Fetch {
                pending: Pending { expected, call },
                delivery_tag,
                redelivered,
                message_count,
            } => {
                let (Some(call), Expected::Message { no_ack }) = (call, expected) else {
                    return Ok(());
                };
                Event::Fetched {
                    call,
                    channel: self.channel(number)?.mailbox.clone(),
                    no_ack,
                    message: Fetched {
                        delivery_tag,
                        redelivered,
                        message_count,
                        content,
                    },
                }
            }
            Incoming::Return { code, text } => Event::Returned {
                channel: self.channel(number)?.mailbox.clone(),
                message: Returned {
                    code,
                    text,
                    content,
                },
            },
        };
        self.events.push_back(event);
        Ok(())
    }

    fn channel_closed_by_broker(&mut self, number: u16, close: &ChannelClose<'_>) {
        self.send(number, &ChannelCloseOk {});
        let reason = broker_reason(
            close.reply_code,
            &close.reply_text,
            close.class_id,
            close.method_id,
        );
        let error = channel_closed(number, reason);
        let Ok(channel) = self.channel(number) else {
            return;
        };
        if let ChannelState::Closing { .. } = channel.state {
            // Both sides closed at once. The broker's reason is what those who wait want to know; the number is
            // free only after the answer to our own close.
            channel.state = ChannelState::Closing { cause: error };
            return;
        }
        self.free_channel(number, error);
    }

    fn channel_close_ok(&mut self, number: u16) {
        let Ok(channel) = self.channel(number) else {
            return;
        };
        let ChannelState::Closing { cause } = &channel.state else {
            return;
        };
        let cause = cause.clone();
        // Its reply is this close-ok; the calls before it get none any more.
        let closer = channel.calls.take_closer();
        self.free_channel(number, cause);
        if let Some(closer) = closer {
            self.reply(closer.call, Method::ChannelCloseOk(ChannelCloseOk {}));
        }
    }

    /// Closes a channel on our own account.
    fn close_channel(&mut self, number: u16, code: ReplyCode, text: &str) {
        let close = ChannelClose {
            reply_code: code.0,
            reply_text: text.into(),
            ..ChannelClose::default()
        };
        self.send(number, &close);
        let cause = channel_closed(
            number,
            CloseReason {
                by: ClosedBy::Program,
                code,
                text: text.to_owned(),
                method: None,
            },
        );
        self.replace_channel(number, Slot::Leaving(cause.clone()), &cause);
    }

    fn is_leaving(&self, number: u16) -> bool {
        let slot = self.channels.get(usize::from(number));
        matches!(slot, Some(Slot::Leaving(_)))
    }

    /// Of what comes on a channel that the core has closed, only the closes matter.
    fn leave(&mut self, number: u16, method: &Method<'_>) {
        match method {
            Method::ChannelClose(_) => self.send(number, &ChannelCloseOk {}),
            Method::ChannelCloseOk(_) => {
                if let Some(Slot::Leaving(error)) = self.channels.get(usize::from(number)) {
                    let error = error.clone();
                    self.free_channel(number, error);
                }
            }
            _ => {}
        }
    }

    fn free_channel(&mut self, number: u16, error: Error) {
        self.replace_channel(number, Slot::Closed(error.clone()), &error);
        self.events
            .push_back(Event::ChannelFreed { channel: number });
    }

    /// Ends what is in the slot, if anything, and leaves `rest` there.
    fn replace_channel(&mut self, number: u16, rest: Slot<M>, error: &Error) {
        let Some(slot) = self.channels.get_mut(usize::from(number)) else {
            return;
        };
        if let Slot::InUse(channel) = std::mem::replace(slot, rest) {
            self.end_channel(*channel, error);
        }
    }

    /// The one end of a channel: its handle, its callers and its consumers are told.
    fn end_channel(&mut self, channel: Channel<M>, error: &Error) {
        let Channel {
            mailbox,
            calls,
            consumers,
            assembly,
            ..
        } = channel;
        self.events.push_back(Event::ChannelEnded {
            channel: mailbox,
            error: error.clone(),
        });
        for (_, consumer) in consumers {
            let error = Some(error.clone());
            self.events
                .push_back(Event::ConsumerEnded { consumer, error });
        }
        if let Some(Incoming::Fetch { pending, .. }) = assembly.into_kind() {
            self.fail(pending.call, error);
        }
        for call in calls.into_all() {
            self.fail(Some(call), error);
        }
    }

    // ---- commands ----

    pub(crate) fn handle(&mut self, command: Command<M>) {
        match command {
            Command::OpenChannel {
                channel,
                mailbox,
                call,
            } => self.open_channel(channel, mailbox, call),
            Command::Call {
                channel,
                expected,
                call,
            } => self.expect(channel, expected, Some(call)),
            Command::Consume {
                channel,
                consumer_tag,
                consumer,
                call,
            } => self.consume(channel, consumer_tag, consumer, call),
            Command::CloseChannel {
                channel,
                reason,
                call,
            } => {
                self.expect(channel, Expected::Method(ChannelCloseOk::ID), call);
                if let Ok(open) = self.channel(channel) {
                    let cause = channel_closed(channel, reason);
                    open.state = ChannelState::Closing { cause };
                }
            }
            Command::CloseConnection { reason } => {
                if let State::Open = self.state {
                    self.state = State::Closing(reason);
                }
            }
            Command::Abort => match &self.state {
                State::Ended(_) => {}
                State::Closing(reason) => {
                    let error = Error::new(ErrorKind::ConnectionClosed(reason.clone()));
                    self.end(error);
                }
                State::Handshake(_) | State::Open => {
                    let reason = CloseReason::program("aborted");
                    self.end(Error::new(ErrorKind::ConnectionClosed(reason)));
                }
            },
        }
    }

    fn open_channel(&mut self, number: u16, mailbox: M::Channel, call: M::Call) {
        if let State::Ended(error) = &self.state {
            let error = error.clone();
            let channel = mailbox;
            self.events.push_back(Event::ChannelEnded {
                channel,
                error: error.clone(),
            });
            return self.fail(Some(call), &error);
        }
        let index = usize::from(number);
        if self.channels.len() <= index {
            self.channels.resize_with(index + 1, || Slot::Unused);
        }
        if let Some(slot) = self.channels.get_mut(index) {
            *slot = Slot::InUse(Box::new(Channel::new(mailbox)));
        }
        self.expect(number, Expected::Method(ChannelOpenOk::ID), Some(call));
    }

    fn consume(
        &mut self,
        number: u16,
        consumer_tag: Arc<str>,
        consumer: M::Consumer,
        call: Option<M::Call>,
    ) {
        match self.sendable(number) {
            Ok(channel) => {
                let consumer_tag = Arc::clone(&consumer_tag);
                channel.consumers.insert(consumer_tag, consumer);
            }
            Err(error) => {
                let error = Some(error);
                self.events
                    .push_back(Event::ConsumerEnded { consumer, error });
            }
        }
        if call.is_some() {
            self.expect(number, Expected::ConsumeOk(consumer_tag), call);
        }
    }

    fn expect(&mut self, number: u16, expected: Expected, call: Option<M::Call>) {
        let calls = match (number, &self.state) {
            (0, State::Ended(error)) => Err(error.clone()),
            (0, _) => Ok(&mut self.calls),
            _ => self.sendable(number).map(|channel| &mut channel.calls),
        };
        match calls {
            Ok(calls) => calls.push(expected, call),
            Err(error) => self.fail(call, &error),
        }
    }

    /// The channel, unless it has ended since the command was given.
    fn sendable(&mut self, number: u16) -> Result<&mut Channel<M>, Error> {
        if let State::Ended(error) = &self.state {
            return Err(error.clone());
        }
        match self.channels.get_mut(usize::from(number)) {
            Some(Slot::InUse(channel)) => match &channel.state {
                ChannelState::Open => Ok(channel),
                ChannelState::Closing { cause } => Err(cause.clone()),
            },
            Some(Slot::Leaving(error) | Slot::Closed(error)) => Err(error.clone()),
            Some(Slot::Unused) | None => {
                Err(Error::invalid(format!("channel {number} was never opened")))
            }
        }
    }

    // ---- answers ----

    fn reply(&mut self, call: Option<M::Call>, reply: Method<'_>) {
        if let Some(call) = call {
            let reply = reply.into_owned();
            self.events.push_back(Event::Reply { call, reply });
        }
    }

    fn fail(&mut self, call: Option<M::Call>, error: &Error) {
        if let Some(call) = call {
            let error = error.clone();
            self.events.push_back(Event::Failed { call, error });
        }
    }

    fn send(&mut self, channel: u16, method: &impl Encode) {
        let limit = self.tuning.payload_limit();
        if let Err(error) = frame::write_method(&mut self.output, channel, method, limit) {
            // Only start-ok can be too large, by client properties beyond 128 KiB.
            self.end(Error::invalid(error.to_string()));
        }
    }
}

fn broker_reason(code: u16, text: &str, class: u16, method: u16) -> CloseReason {
    CloseReason {
        by: ClosedBy::Broker,
        code: ReplyCode(code),
        text: text.to_owned(),
        method: MethodId { class, method }.name(),
    }
}

fn channel_closed(channel: u16, reason: CloseReason) -> Error {
    Error::new(ErrorKind::ChannelClosed { channel, reason })
}

/// Cuts a text to at most `limit` bytes, between two characters.
fn truncate(text: &mut String, limit: usize) {
    if text.len() > limit {
        let end = (0..=limit)
            .rev()
            .find(|&at| text.is_char_boundary(at))
            .unwrap_or(0);
        text.truncate(end);
    }
}
