//! Tests of the core against a scripted broker, with a clock that the test advances.

mod channels;
mod confirms;
mod content;
mod endings;
mod handshake;
mod heartbeats;
mod violations;

use std::io::ErrorKind as IoErrorKind;
use std::time::{Duration, Instant};

use super::config::Config;
use super::connection::Connection;
use super::event::{
    Answer, Command, Delivered, Event, Expected, Mailboxes, Outcome, Published, SendHistory,
    Settling,
};
use super::fingerprint::Fingerprint;
use super::login::Login;
use crate::error::{CloseReason, Error};
use crate::log_line::Label;
use crate::wire::content::Content;
use crate::wire::frame::{self, Cut, FrameKind};
use crate::wire::method::{
    BasicDeliver, BasicGetOk, BasicReturn, ChannelOpenOk, ConnectionOpenOk, ConnectionStart,
    ConnectionTune, Encode, LongString, Method, Request,
};
use crate::wire::value::FieldTable;

/// Mailboxes that are only names.
#[derive(Debug)]
struct Names;

impl Mailboxes for Names {
    type Call = u32;
    type Channel = u16;
    type Consumer = &'static str;
    type Confirm = u32;

    fn is_same(consumer: &&'static str, other: &&'static str) -> bool {
        consumer == other
    }
}

/// The core, its output and events, and the time.
struct Scenario {
    core: Connection<Names>,
    now: Instant,
    unread: Vec<u8>,
    /// Events that were taken from the core and not checked yet.
    events: Vec<String>,
    /// The last number of a call. Each call and each awaited publish gets the next one.
    calls: u32,
    reads_into_bodies: bool,
}

fn config() -> Config {
    Config {
        login: Login::plain("guest", "s3cret"),
        vhost: "/".to_owned(),
        client_properties: FieldTable::new(),
        channel_max: 2047,
        frame_max: 131_072,
        heartbeat: 60,
        max_message_size: 1 << 20,
        piecemeal: 4,
    }
}

fn start() -> ConnectionStart<'static> {
    ConnectionStart {
        version_major: 0,
        version_minor: 9,
        mechanisms: LongString(b"PLAIN AMQPLAIN".as_slice().into()),
        locales: LongString(b"en_US".as_slice().into()),
        ..ConnectionStart::default()
    }
}

fn tune(channel_max: u16, frame_max: u32, heartbeat: u16) -> ConnectionTune {
    ConnectionTune {
        channel_max,
        frame_max,
        heartbeat,
    }
}

fn framed(channel: u16, method: &impl Encode) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::write_method(&mut bytes, channel, method, usize::MAX).unwrap();
    bytes
}

fn content(channel: u16, body: &[u8], piece: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::write_content(&mut bytes, channel, None, body, piece.max(14)).unwrap();
    bytes
}

#[allow(clippy::disallowed_methods)]
fn some_time() -> Instant {
    Instant::now()
}

impl Scenario {
    /// A connection that has sent only the protocol header.
    fn begun(config: Config) -> Self {
        let mut scenario = Self {
            core: Connection::new(config, Label::new("test", "nowhere")),
            now: some_time(),
            unread: Vec::new(),
            events: Vec::new(),
            calls: 0,
            reads_into_bodies: false,
        };
        let mut header = Vec::new();
        scenario.core.take_output(&mut header);
        assert_eq!(header, b"AMQP\0\0\x09\x01");
        scenario
    }

    /// A connection after the handshake.
    fn opened_with(config: Config, tune: &ConnectionTune) -> Self {
        let mut scenario = Self::begun(config);
        scenario.receive(0, &start());
        scenario.receive(0, tune);
        scenario.receive(0, &ConnectionOpenOk::default());
        assert_eq!(scenario.events(), ["opened"]);
        scenario.sent();
        scenario
    }

    fn opened() -> Self {
        Self::opened_with(config(), &tune(2047, 131_072, 60))
    }

    /// A connection with open channels.
    fn with_channels(channels: impl IntoIterator<Item = u16>) -> Self {
        let mut scenario = Self::opened();
        for channel in channels {
            scenario.open_channel(channel);
        }
        scenario.events();
        scenario
    }

    fn next_call(&mut self) -> u32 {
        self.calls += 1;
        self.calls
    }

    fn open_channel(&mut self, channel: u16) {
        self.begin_channel(channel);
        self.receive(channel, &ChannelOpenOk::default());
    }

    /// Opens a channel, without the broker's answer.
    fn begin_channel(&mut self, channel: u16) -> u32 {
        let call = self.next_call();
        self.core.handle(Command::OpenChannel {
            channel,
            mailbox: channel,
            last_tag: 0,
            call,
        });
        call
    }

    /// Announces a method with a reply that a handle has sent.
    fn call<R: Request>(&mut self, channel: u16) -> u32 {
        self.expect(channel, Expected::Method(R::REPLY))
    }

    fn get(&mut self, channel: u16) -> u32 {
        self.expect(channel, Expected::Message { no_ack: false })
    }

    fn expect(&mut self, channel: u16, expected: Expected) -> u32 {
        let call = self.next_call();
        self.core.handle(Command::Call {
            channel,
            expected,
            call,
        });
        call
    }

    fn consume(&mut self, channel: u16, consumer: &'static str) -> u32 {
        let call = self.next_call();
        self.core.handle(Command::Consume {
            channel,
            consumer_tag: consumer.into(),
            consumer,
            settling: Settling::Requeue,
            call: Some(call),
        });
        call
    }

    fn cancel(&mut self, channel: u16, consumer_tag: &str) -> u32 {
        self.expect(channel, Expected::CancelOk(consumer_tag.into()))
    }

    fn close_channel(&mut self, channel: u16) -> u32 {
        let call = self.next_call();
        self.core.handle(Command::CloseChannel {
            channel,
            reason: CloseReason::program("done"),
            call: Some(call),
        });
        call
    }

    fn close(&mut self) {
        let reason = CloseReason::program("done");
        self.core.handle(Command::CloseConnection { reason });
    }

    fn receive(&mut self, channel: u16, method: &impl Encode) {
        self.receive_bytes(&framed(channel, method));
    }

    /// Passes input as the driver does. Every other large body is read into its place.
    fn receive_bytes(&mut self, mut bytes: &[u8]) {
        self.reads_into_bodies = !self.reads_into_bodies;
        if self.reads_into_bodies {
            bytes = self.read_into_body(bytes);
        }
        loop {
            let consumed = self.core.receive(bytes, self.now);
            bytes = &bytes[consumed..];
            if bytes.is_empty() {
                return;
            }
            assert!(self.core.has_events(), "{} bytes are left", bytes.len());
            self.take_events();
        }
    }

    /// Returns the bytes that are no part of a body.
    fn read_into_body<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let Some(room) = self.core.body_room(bytes.len()) else {
            return bytes;
        };
        let (of_body, rest) = bytes.split_at(room.len());
        room.copy_from_slice(of_body);
        self.core.body_came(of_body.len());
        rest
    }

    fn receive_content(&mut self, channel: u16, body: &[u8]) {
        self.receive_bytes(&content(channel, body, 100));
    }

    fn deliver(&mut self, channel: u16, consumer_tag: &str, delivery_tag: u64) {
        self.receive(channel, &deliver(consumer_tag, delivery_tag));
    }

    /// Announces a message in confirm mode whose outcome a caller waits for.
    fn publish(&mut self, channel: u16, sequence_number: u64) -> u32 {
        let confirm = self.next_call();
        self.core.handle(Command::Publish(Published {
            channel,
            sequence_number,
            confirm: Some(confirm),
            fingerprint: Some(Fingerprint::new("x", "key", b"").with_properties(&[0, 0])),
            send_history: SendHistory::Nothing,
            kept: None,
        }));
        confirm
    }

    fn socket_closed(&mut self) {
        self.core.socket_closed(IoErrorKind::UnexpectedEof);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.core.handle_timeout(self.now);
    }

    /// The frames that the core has sent since the last call, one text each.
    fn sent(&mut self) -> Vec<String> {
        self.core.take_output(&mut self.unread);
        let bytes = std::mem::take(&mut self.unread);
        let mut rest = bytes.as_slice();
        let mut sent = Vec::new();
        while let Cut::Frame(frame, length) = frame::cut(rest, usize::MAX).unwrap() {
            let channel = frame.channel;
            sent.push(match frame.kind {
                FrameKind::Method => {
                    format!(
                        "{channel} {}",
                        shown(&Method::decode(frame.payload).unwrap())
                    )
                }
                kind => format!("{channel} {kind:?}"),
            });
            rest = &rest[length..];
        }
        assert!(rest.is_empty(), "the core sent half a frame");
        sent
    }

    /// The events since the last call, one text each.
    fn events(&mut self) -> Vec<String> {
        self.take_events();
        std::mem::take(&mut self.events)
    }

    fn take_events(&mut self) {
        while let Some(event) = self.core.next_event() {
            match event {
                Event::Deliveries { consumer, count } => {
                    let messages = self.core.take_messages(count);
                    assert_eq!(messages.len(), count);
                    let described = messages.map(|it| delivered(consumer, &it));
                    self.events.extend(described);
                }
                other => self.events.push(described(other)),
            }
        }
    }

    fn end(&mut self) -> Error {
        let mut end = None;
        while let Some(event) = self.core.next_event() {
            if let Event::Ended { error } = event {
                assert!(end.is_none(), "ended twice");
                end = Some(error);
            }
        }
        end.expect("the connection has not ended")
    }
}

fn deliver(consumer_tag: &str, delivery_tag: u64) -> BasicDeliver<'_> {
    BasicDeliver {
        consumer_tag: consumer_tag.into(),
        delivery_tag,
        redelivered: false,
        exchange: "x".into(),
        routing_key: "key".into(),
    }
}

fn get_ok() -> BasicGetOk<'static> {
    BasicGetOk {
        delivery_tag: 7,
        redelivered: true,
        exchange: "x".into(),
        routing_key: "key".into(),
        message_count: 3,
    }
}

fn returned() -> BasicReturn<'static> {
    BasicReturn {
        reply_code: 312,
        reply_text: "NO_ROUTE".into(),
        exchange: "x".into(),
        routing_key: "key".into(),
    }
}

/// A close with its code, any other method by its name.
fn shown(method: &Method<'_>) -> String {
    match method {
        Method::ConnectionClose(close) => format!("connection.close {}", close.reply_code),
        Method::ChannelClose(close) => format!("channel.close {}", close.reply_code),
        other => other.id().to_string(),
    }
}

fn text(content: &Content) -> String {
    let (exchange, key) = (content.exchange(), content.routing_key());
    format!(
        "{exchange}/{key} {}",
        String::from_utf8_lossy(content.body())
    )
}

fn delivered(consumer: &str, message: &Delivered) -> String {
    let again = if message.redelivered { "again " } else { "" };
    // Two bytes of flags mean that there are no properties.
    let properties = match message.content.encoded_properties().len() {
        2 => String::new(),
        length => format!(", with {length} bytes of properties"),
    };
    format!(
        "delivery {consumer} {} {again}{}{properties}",
        message.delivery_tag,
        text(&message.content)
    )
}

fn described(event: Event<Names>) -> String {
    match event {
        Event::Opened => "opened".to_owned(),
        Event::Reply { call, reply, .. } => format!("reply {call} {}", shown(&reply)),
        Event::Fetched { call, message, .. } => format!(
            "fetched {call} {} left {}",
            text(&message.content),
            message.message_count
        ),
        Event::Failed { call, error } => format!("failed {call} {error}"),
        Event::Deliveries { consumer, count } => format!("{count} for {consumer}"),
        Event::ConsumerStarted { consumer } => format!("consumer {consumer} started"),
        Event::ConsumerCancelled {
            channel,
            consumer_tag,
            consumer,
            no_wait,
        } => {
            let known = consumer.map_or("unknown ", |_| "");
            let answer = if no_wait { "" } else { ", answer expected" };
            format!("cancelled on {channel} {known}{consumer_tag}{answer}")
        }
        Event::Unwanted {
            channel,
            delivery_tag,
            settling: Settling::Requeue,
        } => format!("unwanted on {channel} {delivery_tag}"),
        Event::Unwanted { settling, .. } => format!("unwanted, {settling:?}"),
        Event::ConsumerEnded {
            consumer,
            error: None,
        } => format!("consumer {consumer} ended"),
        Event::ConsumerEnded {
            consumer,
            error: Some(error),
        } => {
            format!("consumer {consumer} ended {error}")
        }
        Event::Returned {
            channel,
            sequence_number,
            message,
        } => {
            let number = sequence_number.map_or(String::new(), |number| format!(" as {number}"));
            format!(
                "returned on {channel}{number} {} {}",
                message.code,
                text(&message.content)
            )
        }
        Event::Answered {
            confirm, outcome, ..
        } => match outcome {
            Outcome::Confirmed => format!("{confirm} confirmed"),
            Outcome::Nacked => format!("{confirm} nacked"),
            Outcome::Returned(message) => format!("{confirm} returned {}", text(&message.content)),
            Outcome::Lost {
                cause,
                may_have_been_sent,
            } => format!("{confirm} lost sent={may_have_been_sent} {cause}"),
        },
        Event::Lost {
            published,
            cause,
            may_have_been_sent,
        } => match published.confirm {
            Some(confirm) => format!("{confirm} lost sent={may_have_been_sent} {cause}"),
            None => format!("message {} lost", published.sequence_number),
        },
        Event::Nacked {
            channel,
            sequence_number,
        } => format!("nacked on {channel} {sequence_number}"),
        Event::Confirm {
            channel,
            answer,
            sequence_number,
            answered_to,
            ..
        } => {
            let Answer { multiple, nack, .. } = answer;
            let answer = if nack { "nack" } else { "ack" };
            let multiple = if multiple { " multiple" } else { "" };
            format!("{answer} on {channel} {sequence_number}{multiple}, answered to {answered_to}")
        }
        Event::MessageTooLarge { channel, size } => format!("too large on {channel} {size}"),
        Event::Flow { channel, active } => format!("flow on {channel} {active}"),
        Event::ChannelEnded {
            channel,
            error,
            owes_close_ok,
            ..
        } => {
            let answer = if owes_close_ok { "close-ok, " } else { "" };
            format!("{answer}channel {channel} ended {error}")
        }
        Event::ChannelFreed { number, .. } => format!("channel {number} freed"),
        Event::Blocked { reason } => format!("blocked {reason}"),
        Event::Unblocked => "unblocked".to_owned(),
        Event::Ended { error } => format!("ended {error}"),
    }
}
