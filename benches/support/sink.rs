//! A server that speaks just enough AMQP to measure clients: it discards published messages, makes
//! up deliveries, confirms, and answers calls. Each connection has one thread and no locks or
//! queues, so that the sink is faster than the clients.
//!
//! A queue `gen-SIZE-COUNT` has COUNT messages of SIZE bytes for each consumer.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::thread;

use mio::{Events, Interest, Poll, Token};

use crate::frames::{self, Frame, Head, MethodId};

const INPUT: usize = 256 << 10;
const OUTPUT: usize = 128 << 10;
const CHANNEL_MAX: u16 = 2047;

pub(crate) struct Sink {
    scheme: &'static str,
    address: SocketAddr,
}

impl Sink {
    /// Starts a sink that accepts connections until the process ends.
    pub(crate) fn start() -> io::Result<Self> {
        Self::start_with("amqp", Ok)
    }

    /// Starts a sink. `accept` turns each TCP connection into the stream of its session.
    pub(crate) fn start_with<S: Stream>(
        scheme: &'static str,
        accept: impl Fn(TcpStream) -> io::Result<S> + Clone + Send + 'static,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let accept = accept.clone();
                thread::spawn(move || {
                    stream.set_nodelay(true)?;
                    Session::new(accept(stream)?).serve()
                });
            }
        });
        Ok(Self { scheme, address })
    }

    pub(crate) fn uri(&self) -> String {
        format!("{}://guest:guest@{}/%2f", self.scheme, self.address)
    }
}

/// The stream of a session: TCP, or TLS on top of it.
pub(crate) trait Stream: Read + Write {
    fn tcp(&self) -> &TcpStream;
}

impl Stream for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

#[derive(Default)]
struct Channel {
    confirms: bool,
    published: u64,
    confirmed: u64,
    /// Bytes of the current message that have not arrived.
    missing: u64,
    /// The limit of unacknowledged deliveries; 0 for none.
    prefetch: u64,
    delivered: u64,
    acknowledged: u64,
    source: Option<Source>,
}

/// The messages for a consumer.
struct Source {
    message: Vec<u8>,
    delivery_tag_at: Range<usize>,
    left: u64,
    no_ack: bool,
}

impl Channel {
    /// How many messages the prefetch allows to deliver now.
    fn deliverable(&self) -> u64 {
        let Some(source) = &self.source else {
            return 0;
        };
        if source.no_ack || self.prefetch == 0 {
            return source.left;
        }
        let unacknowledged = self.delivered - self.acknowledged;
        source.left.min(self.prefetch - unacknowledged)
    }

    fn deliver(&mut self, output: &mut Vec<u8>) {
        let count = self.deliverable();
        let Some(source) = &mut self.source else {
            return;
        };
        let room = (OUTPUT - output.len()) / source.message.len();
        let count = count.min(room.max(1) as u64);
        for _ in 0..count {
            self.delivered += 1;
            let at = output.len();
            output.extend_from_slice(&source.message);
            let tag = at + source.delivery_tag_at.start..at + source.delivery_tag_at.end;
            output[tag].copy_from_slice(&self.delivered.to_be_bytes());
        }
        source.left -= count;
    }
}

struct Session<S> {
    stream: S,
    input: Vec<u8>,
    start: usize,
    end: usize,
    /// How many bytes of the current body frame are still to be skipped.
    skip: usize,
    /// The channel of that frame, and the size of its payload.
    body: (u16, u64),
    output: Vec<u8>,
    written: usize,
    channels: Vec<Channel>,
    /// Channels with unconfirmed messages.
    unconfirmed: Vec<u16>,
    is_closed: bool,
}

impl<S: Stream> Session<S> {
    fn new(stream: S) -> Self {
        Self {
            stream,
            input: vec![0; INPUT],
            start: 0,
            end: 0,
            skip: 0,
            body: (0, 0),
            output: Vec::with_capacity(OUTPUT),
            written: 0,
            channels: vec![Channel::default()],
            unconfirmed: Vec::new(),
            is_closed: false,
        }
    }

    fn serve(mut self) -> io::Result<()> {
        let mut header = [0; 8];
        self.stream.read_exact(&mut header)?;
        assert_eq!(&header, frames::PROTOCOL_HEADER);
        let mechanisms = frames::long_string("PLAIN");
        let locales = frames::long_string("en_US");
        let arguments: [&[u8]; 4] = [&[0, 9], &[0; 4], &mechanisms, &locales];
        self.reply(0, frames::CONNECTION_START, &arguments);
        while !self.is_closed {
            self.stream.write_all(&self.output)?;
            self.output.clear();
            self.read()?;
            if self.has_deliveries() {
                self.deliver()?;
            }
        }
        self.stream.write_all(&self.output)
    }

    fn has_deliveries(&self) -> bool {
        let left = |channel: &Channel| channel.source.as_ref().is_some_and(|it| it.left > 0);
        self.written < self.output.len() || self.channels.iter().any(left)
    }

    /// Reads and writes without blocking until all messages are delivered.
    fn deliver(&mut self) -> io::Result<()> {
        self.stream.tcp().set_nonblocking(true)?;
        let mut polled = mio::net::TcpStream::from_std(self.stream.tcp().try_clone()?);
        let mut poll = Poll::new()?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut polled, Token(0), interest)?;
        let mut events = Events::with_capacity(4);
        while self.has_deliveries() && !self.is_closed {
            let has_read = did(self.read())?;
            if self.written == self.output.len() {
                self.fill();
            }
            let has_written = did(self.write())?;
            if !has_read && !has_written {
                poll.poll(&mut events, None)?;
            }
        }
        self.stream.tcp().set_nonblocking(false)
    }

    fn fill(&mut self) {
        self.output.clear();
        self.written = 0;
        for channel in &mut self.channels {
            if channel.source.is_some() && self.output.len() < OUTPUT {
                channel.deliver(&mut self.output);
            }
        }
    }

    fn write(&mut self) -> io::Result<()> {
        let rest = &self.output[self.written..];
        if rest.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.written += self.stream.write(rest)?;
        if self.written == self.output.len() {
            self.output.clear();
            self.written = 0;
        }
        Ok(())
    }

    fn read(&mut self) -> io::Result<()> {
        if self.end == self.input.len() {
            self.input.copy_within(self.start.., 0);
            self.end -= self.start;
            self.start = 0;
        }
        let count = self.stream.read(&mut self.input[self.end..])?;
        self.is_closed = count == 0;
        self.end += count;
        self.take_frames();
        self.confirm();
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        Ok(())
    }

    fn take_frames(&mut self) {
        let input = std::mem::take(&mut self.input);
        loop {
            if self.skip > 0 {
                let skipped = self.skip.min(self.end - self.start);
                self.start += skipped;
                self.skip -= skipped;
                if self.skip > 0 {
                    break;
                }
                self.published(self.body.0, self.body.1);
            }
            let rest = &input[self.start..self.end];
            match Head::read(rest) {
                Some(head) if head.kind == frames::BODY => {
                    self.skip = head.frame_length();
                    self.body = (head.channel, self.skip as u64 - 8);
                }
                _ => match Frame::read(rest) {
                    Some(frame) => {
                        self.start += frame.length;
                        self.frame(frame);
                    }
                    None => break,
                },
            }
        }
        self.input = input;
    }

    /// Counts bytes of a body, and the message if they complete it.
    fn published(&mut self, number: u16, bytes: u64) {
        let channel = &mut self.channels[usize::from(number)];
        channel.missing -= bytes;
        if channel.missing > 0 {
            return;
        }
        if channel.confirms && channel.published == channel.confirmed {
            self.unconfirmed.push(number);
        }
        channel.published += 1;
    }

    /// Confirms all messages that have arrived, with one ack for each channel.
    fn confirm(&mut self) {
        for number in std::mem::take(&mut self.unconfirmed) {
            let channel = &mut self.channels[usize::from(number)];
            let multiple = u8::from(channel.published - channel.confirmed > 1);
            channel.confirmed = channel.published;
            let tag = channel.published.to_be_bytes();
            self.reply(number, frames::BASIC_ACK, &[&tag, &[multiple]]);
        }
    }

    fn reply(&mut self, channel: u16, id: MethodId, arguments: &[&[u8]]) {
        frames::write_method(&mut self.output, channel, id, arguments);
    }

    fn frame(&mut self, frame: Frame<'_>) {
        match frame.kind {
            frames::METHOD => self.method(frame),
            frames::HEADER => {
                let size = frame.body_size();
                self.channels[usize::from(frame.channel)].missing = size;
                if size == 0 {
                    self.published(frame.channel, 0);
                }
            }
            _ => {}
        }
    }

    fn method(&mut self, frame: Frame<'_>) {
        let number = frame.channel;
        if self.channels.len() <= number.into() {
            let open = usize::from(number) + 1;
            self.channels.resize_with(open, Channel::default);
        }
        let channel = &mut self.channels[usize::from(number)];
        let mut arguments = frame.arguments();
        let id @ (class, method) = frame.method();
        match id {
            frames::BASIC_PUBLISH | frames::CONNECTION_TUNE_OK | frames::CONNECTION_CLOSE_OK => {}
            frames::BASIC_ACK => {
                let (delivery_tag, multiple) = (arguments.u64(), arguments.u8() & 1 == 1);
                channel.acknowledged = match multiple {
                    true => delivery_tag,
                    false => channel.acknowledged + 1,
                };
            }
            frames::CONNECTION_START_OK => {
                let frame_max = frames::FRAME_MAX.to_be_bytes();
                let arguments: [&[u8]; 3] = [&CHANNEL_MAX.to_be_bytes(), &frame_max, &[0, 60]];
                self.reply(0, frames::CONNECTION_TUNE, &arguments);
            }
            frames::CONNECTION_CLOSE => {
                self.is_closed = true;
                self.reply(0, frames::CONNECTION_CLOSE_OK, &[]);
            }
            frames::CHANNEL_OPEN => {
                *channel = Channel::default();
                self.reply(number, (20, 11), &[&[0; 4]]);
            }
            frames::QUEUE_DECLARE => {
                let _ticket = arguments.u16();
                let name = frames::short_string(arguments.short_string());
                self.reply(number, frames::QUEUE_DECLARE_OK, &[&name, &[0; 8]]);
            }
            frames::BASIC_QOS => {
                let _prefetch_size = arguments.bytes(4);
                channel.prefetch = arguments.u16().into();
                self.reply(number, (60, 11), &[]);
            }
            frames::BASIC_CONSUME => {
                let _ticket = arguments.u16();
                let queue = arguments.short_string();
                let consumer_tag = frames::short_string(arguments.short_string());
                let no_ack = arguments.u8() & 2 != 0;
                channel.source = source(number, queue, &consumer_tag, no_ack);
                self.reply(number, (60, 21), &[&consumer_tag]);
            }
            frames::BASIC_GET => self.reply(number, (60, 72), &[&[0]]),
            frames::CONFIRM_SELECT => {
                channel.confirms = true;
                (channel.published, channel.confirmed) = (0, 0);
                self.reply(number, (85, 11), &[]);
            }
            // basic.cancel.
            (60, 30) => {
                channel.source = None;
                let consumer_tag = frames::short_string(arguments.short_string());
                self.reply(number, (60, 31), &[&consumer_tag]);
            }
            frames::CONNECTION_OPEN => self.reply(0, frames::CONNECTION_OPEN_OK, &[&[0]]),
            // queue.purge and queue.delete.
            (50, 30 | 40) => self.reply(number, (class, method + 1), &[&[0; 4]]),
            _ => self.reply(number, (class, method + 1), &[]),
        }
    }
}

/// Whether the socket read or wrote anything.
fn did(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

fn source(channel: u16, queue: &str, consumer_tag: &[u8], no_ack: bool) -> Option<Source> {
    let (size, count) = queue.strip_prefix("gen-")?.split_once('-')?;
    let (size, count) = (size.parse().ok()?, count.parse().ok()?);
    let mut message = Vec::new();
    let routing_key = frames::short_string(queue);
    // Delivery tag, redelivered, exchange, routing key.
    let arguments: [&[u8]; 4] = [consumer_tag, &[0; 8], &[0, 0], &routing_key];
    frames::write_method(&mut message, channel, frames::BASIC_DELIVER, &arguments);
    let delivery_tag_at = 7 + 4 + consumer_tag.len();
    frames::write_content(&mut message, channel, &vec![b'x'; size]);
    Some(Source {
        message,
        delivery_tag_at: delivery_tag_at..delivery_tag_at + 8,
        left: count,
        no_ack,
    })
}
