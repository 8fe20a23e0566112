//! A driver of the core: it passes bytes, commands and times, and checks what comes out.

use std::io::ErrorKind as IoErrorKind;
use std::time::{Duration, Instant};

use stats_alloc::INSTRUMENTED_SYSTEM;

use super::broker;
use super::handles::{Handles, Names, CHANNELS, TAGS};
use super::script::Settings;
use crate::error::Error;
use crate::log_line::Label;
use crate::proto::{Buffers, Config, Connection, Delivered, Event, Login};
use crate::wire::frame::{self, Cut, FrameKind, OVERHEAD};
use crate::wire::method::{ConnectionClose, ConnectionCloseOk, Encode, Method, MethodId};
use crate::wire::value::FieldTable;

/// Must never be logged or shown.
pub(super) const PASSWORD: &str = "Xq7Zw";
/// How much of a body the core reserves before it arrives.
const RESERVE: usize = 1 << 20;

pub(super) struct Driver {
    core: Connection<Names>,
    pub(super) handles: Handles,
    now: Instant,
    /// Input that the core has not consumed.
    unread: Vec<u8>,
    /// Output of the core that is not a whole frame, before the protocol header is out.
    output: Vec<u8>,
    is_closed: bool,
    /// The input arrives in pieces of this size.
    piece: usize,
    has_fixed_piece: bool,
    held_before: usize,
    received: usize,
}

fn config(settings: Settings) -> Config {
    let mut responses = vec![b"\0guest\0".to_vec(), PASSWORD.into()];
    let login = match settings.answers_challenges() {
        true => Login::new(
            "PLAIN",
            "guest",
            Box::new(move |_| {
                responses
                    .pop()
                    .ok_or_else(|| "no more\nresponses".to_owned())
            }),
        ),
        false => Login::plain("guest", PASSWORD),
    };
    Config {
        login,
        vhost: "/".to_owned(),
        client_properties: FieldTable::new().with("product", "fuzz"),
        channel_max: 2047,
        frame_max: 131_072,
        heartbeat: if settings.has_heartbeats() { 60 } else { 0 },
        max_message_size: if settings.has_large_messages() {
            u64::MAX
        } else {
            1 << 15
        },
        piecemeal: 4,
    }
}

/// Times are only compared with each other.
#[allow(clippy::disallowed_methods)]
fn some_time() -> Instant {
    Instant::now()
}

fn held() -> usize {
    let stats = INSTRUMENTED_SYSTEM.stats();
    stats.bytes_allocated.wrapping_sub(stats.bytes_deallocated)
}

impl Driver {
    pub(super) fn new(settings: Settings, piece: Option<usize>) -> Self {
        let held_before = held();
        Self {
            core: Connection::new(config(settings), Label::new("fuzz", "nowhere")),
            handles: Handles::new(settings.is_compared()),
            now: some_time(),
            unread: Vec::new(),
            output: Vec::new(),
            is_closed: false,
            piece: piece.unwrap_or(usize::MAX),
            has_fixed_piece: piece.is_some(),
            held_before,
            received: 0,
        }
    }

    /// Two channels, a consumer on each, confirms that are awaited, and calls.
    pub(super) fn open_everything(&mut self) {
        for channel in [1, 2] {
            self.handles.open(channel);
            self.take_commands();
            self.receive(&broker::open_ok(channel.into()));
            self.handles.consume(channel, 0);
            self.take_commands();
            self.receive(&broker::consume_ok(channel.into(), TAGS[0]));
            for kind in 0..4 {
                self.handles.publish(channel, kind);
            }
        }
        self.handles.call(1, 0);
        self.handles.call(2, 1);
        self.handles.call(0, 0);
        self.take_commands();
    }

    pub(super) fn set_piece(&mut self, piece: u8) {
        if !self.has_fixed_piece {
            self.piece = match piece {
                0 => usize::MAX,
                piece => piece.into(),
            };
        }
    }

    /// Commands wait for the end of the handshake, or of the connection.
    pub(super) fn take_commands(&mut self) {
        if self.core.handshake_step().is_some() {
            return;
        }
        while let Some(command) = self.handles.commands.pop_front() {
            self.core.handle(command);
        }
        self.settle();
    }

    pub(super) fn receive(&mut self, bytes: &[u8]) {
        self.received += bytes.len();
        for piece in bytes.chunks(self.piece) {
            let of_body = self.read_into_body(piece);
            self.unread
                .extend_from_slice(piece.get(of_body..).unwrap_or_default());
            self.read();
        }
        self.handles.react();
    }

    /// Reads the beginning of a piece into the memory of a large body, if that is next, as the
    /// driver does. Returns how much that is.
    fn read_into_body(&mut self, piece: &[u8]) -> usize {
        if !self.unread.is_empty() {
            return 0;
        }
        let Some(room) = self.core.body_room(piece.len()) else {
            return 0;
        };
        let count = room.len();
        assert!(count <= piece.len(), "more room than asked for");
        room.copy_from_slice(&piece[..count]);
        self.core.body_came(count);
        count
    }

    /// Passes the unread input, as the driver must.
    fn read(&mut self) {
        loop {
            let consumed = self.core.receive(&self.unread, self.now);
            assert!(consumed <= self.unread.len(), "more than there is");
            self.unread.drain(..consumed);
            let has_events = self.core.has_events();
            self.settle();
            if !has_events {
                break;
            }
        }
        let limit = self.core.tuning().payload_limit() + OVERHEAD;
        assert!(self.unread.len() < limit, "a whole frame is not consumed");
        assert!(!self.handles.has_ended() || self.unread.is_empty());
    }

    /// Takes all events, and all output.
    fn settle(&mut self) {
        while let Some(event) = self.core.next_event() {
            if let Event::Deliveries { consumer, count } = event {
                let messages: Vec<_> = self.core.take_messages(count).collect();
                assert_eq!(messages.len(), count);
                for message in messages {
                    self.handles.delivered(consumer, &message);
                    self.reuse(message);
                }
            } else {
                self.handles.event(event);
            }
        }
        assert_eq!(
            self.core.take_messages(usize::MAX).len(),
            0,
            "without an event"
        );
        self.core.take_output(&mut self.output);
        self.check_output();
        self.core.wrote(self.now);
    }

    /// Lets the core use a message's memory again, as the buffer pool does.
    fn reuse(&mut self, message: Delivered) {
        let mut buffer = message.content.into_bytes();
        let buffers = self.core.buffers();
        let of = match Buffers::is_small(buffer.capacity()) {
            true => {
                buffer.clear();
                &mut buffers.small
            }
            false => &mut buffers.large,
        };
        of.truncate(8);
        of.push(buffer);
    }

    /// The core sends the protocol header, then whole frames, and nothing after its last.
    fn check_output(&mut self) {
        let output = std::mem::take(&mut self.output);
        let mut rest = output
            .strip_prefix(&frame::PROTOCOL_HEADER)
            .unwrap_or(&output);
        while !rest.is_empty() {
            assert!(!self.is_closed, "output after the last frame");
            let Ok(Cut::Frame(frame, length)) = frame::cut(rest, 1 << 20) else {
                panic!("the core sends half a frame");
            };
            assert_eq!(frame.channel, 0, "only handles write to other channels");
            if frame.kind == FrameKind::Method {
                let id = Method::decode(frame.payload).expect("our own method").id();
                const LAST: [MethodId; 2] = [ConnectionClose::ID, ConnectionCloseOk::ID];
                self.is_closed = LAST.contains(&id);
            }
            rest = &rest[length..];
        }
    }

    pub(super) fn pass(&mut self, seconds: u8) {
        self.now += Duration::from_secs(seconds.into());
        if self
            .core
            .deadline()
            .is_some_and(|deadline| deadline <= self.now)
        {
            self.core.handle_timeout(self.now);
            self.settle();
            let next = self.core.deadline();
            assert!(
                next.map_or(true, |it| it > self.now),
                "the same deadline again"
            );
        }
    }

    pub(super) fn abort(&mut self) {
        self.core.abort();
        self.settle();
    }

    pub(super) fn end_with_an_error(&mut self) {
        self.core.end_with(Error::invalid("made up"));
        self.settle();
    }

    pub(super) fn socket_closed(&mut self) {
        self.core.socket_closed(IoErrorKind::UnexpectedEof);
        self.settle();
    }

    pub(super) fn shrink(&mut self) {
        self.core.shrink();
    }

    /// A connection holds memory for what it was sent, not for what a peer claims to send.
    pub(super) fn check_memory(&self, script: usize) {
        let held = held().wrapping_sub(self.held_before);
        let begun = usize::from(CHANNELS) * RESERVE;
        // A value of one byte takes 64 in an array that has just grown. The handles are a part.
        let most = begun + (256 << 10) + 128 * (self.received + script);
        assert!(held <= most, "{held} bytes are held, more than {most}");
    }

    /// Ends the connection, and returns what the program saw.
    pub(super) fn finish(mut self) -> Option<Vec<String>> {
        self.socket_closed();
        // Commands that were on their way when the connection ended.
        self.take_commands();
        assert!(!self.core.awaits_reply());
        assert_eq!(self.core.consumers().count(), 0);
        assert_eq!(self.core.deadline(), None);
        self.handles.finish()
    }
}
