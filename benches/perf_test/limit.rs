//! The limit for any client: one thread writes and reads prepared frames. It keeps nothing, and
//! trusts what it reads.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use parking_lot::{Mutex, MutexGuard};

use crate::bench::{Latencies, Mode, Run};
use crate::frames::{self, Frame, MethodId};
use crate::hand_over::HandOver;
use crate::sink::Stream;

/// How many bytes are written at once.
const PIECE: usize = 256 << 10;
const WINDOW: u64 = 256;
const CHANNEL: u16 = 1;

pub(crate) struct Limit {
    stream: Box<dyn Stream>,
    input: Vec<u8>,
    start: usize,
    end: usize,
}

/// `host:port` of an AMQP URI.
fn address(uri: &str) -> &str {
    let rest = uri.rsplit_once('@').map_or(uri, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

fn connect(uri: &str) -> io::Result<Box<dyn Stream>> {
    let stream = TcpStream::connect(address(uri))?;
    stream.set_nodelay(true)?;
    match uri.starts_with("amqps:") {
        #[cfg(feature = "native-tls")]
        true => crate::tls::connect(stream),
        #[cfg(not(feature = "native-tls"))]
        true => Err(io::ErrorKind::Unsupported.into()),
        false => Ok(Box::new(stream)),
    }
}

/// Encoded messages, as many as fit into a piece.
struct Prepared {
    bytes: Vec<u8>,
    message_length: usize,
    count: u64,
}

impl Prepared {
    fn new(size: usize) -> Self {
        let mut message = Vec::new();
        let routing_key = frames::short_string("q");
        let arguments: [&[u8]; 4] = [&[0, 0], &[0], &routing_key, &[0]];
        frames::write_method(&mut message, CHANNEL, frames::BASIC_PUBLISH, &arguments);
        frames::write_content(&mut message, CHANNEL, &vec![b'x'; size]);
        let count = (PIECE / message.len()).max(1);
        Self {
            bytes: message.repeat(count),
            message_length: message.len(),
            count: count as u64,
        }
    }

    /// The bytes of up to `count` messages, and how many they are.
    fn take(&self, count: u64) -> (&[u8], u64) {
        let count = count.min(self.count);
        let bytes = &self.bytes[..count as usize * self.message_length];
        (bytes, count)
    }
}

fn passive_declaration() -> Vec<u8> {
    // Queue "q", passive, no arguments.
    let arguments = [0, 0, 1, b'q', 1, 0, 0, 0, 0];
    let mut call = Vec::new();
    frames::write_method(&mut call, CHANNEL, frames::QUEUE_DECLARE, &[&arguments]);
    call
}

impl Limit {
    fn open(uri: &str) -> io::Result<Self> {
        let mut stream = connect(uri)?;
        stream.write_all(frames::PROTOCOL_HEADER)?;
        let mut limit = Self {
            stream,
            input: vec![0; PIECE],
            start: 0,
            end: 0,
        };
        limit.wait_for(frames::CONNECTION_START)?;
        let login = frames::long_string("\0guest\0guest");
        let (plain, locale) = (frames::short_string("PLAIN"), frames::short_string("en_US"));
        let arguments: [&[u8]; 4] = [&[0; 4], &plain, &login, &locale];
        limit.write(0, frames::CONNECTION_START_OK, &arguments)?;
        limit.wait_for(frames::CONNECTION_TUNE)?;
        let frame_max = frames::FRAME_MAX.to_be_bytes();
        limit.write(
            0,
            frames::CONNECTION_TUNE_OK,
            &[&[7, 255], &frame_max, &[0, 0]],
        )?;
        limit.write(0, frames::CONNECTION_OPEN, &[&[1, b'/', 0, 0]])?;
        limit.wait_for(frames::CONNECTION_OPEN_OK)?;
        Ok(limit)
    }

    fn open_channel(&mut self) -> io::Result<()> {
        self.call(CHANNEL, frames::CHANNEL_OPEN, &[&[0]])
    }

    /// Opens channels until `count` are open.
    fn open_channels(&mut self, count: u64) -> io::Result<()> {
        let number = |it| u16::try_from(it).map_err(io::Error::other);
        (CHANNEL.into()..count)
            .try_for_each(|it| self.call(number(it + 1)?, frames::CHANNEL_OPEN, &[&[0]]))
    }

    fn close(mut self) -> io::Result<()> {
        let ok: [&[u8]; 2] = [&[0, 200, 0], &[0; 4]];
        self.call(0, frames::CONNECTION_CLOSE, &ok)
    }

    fn write(&mut self, channel: u16, id: MethodId, arguments: &[&[u8]]) -> io::Result<()> {
        let mut out = Vec::new();
        frames::write_method(&mut out, channel, id, arguments);
        self.stream.write_all(&out)
    }

    fn call(&mut self, channel: u16, id: MethodId, arguments: &[&[u8]]) -> io::Result<()> {
        self.write(channel, id, arguments)?;
        self.wait_for((id.0, id.1 + 1))
    }

    fn declare_passively(&mut self) -> io::Result<()> {
        self.stream.write_all(&passive_declaration())?;
        self.wait_for(frames::QUEUE_DECLARE_OK)
    }

    /// Passes complete frames to `take` until it returns false; reads once if there are none.
    /// Returns false if `take` did.
    fn read(&mut self, mut take: impl FnMut(Frame<'_>) -> bool) -> io::Result<bool> {
        let mut has_taken = false;
        while let Some(frame) = Frame::read(&self.input[self.start..self.end]) {
            self.start += frame.length;
            has_taken = true;
            if !take(frame) {
                return Ok(false);
            }
        }
        if has_taken {
            return Ok(true);
        }
        if self.start > 0 {
            self.input.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let count = self.stream.read(&mut self.input[self.end..])?;
        self.end += count;
        match count {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(true),
        }
    }

    fn wait_for(&mut self, id: MethodId) -> io::Result<()> {
        while self.read(|frame| frame.kind != frames::METHOD || frame.method() != id)? {}
        Ok(())
    }

    /// Waits for a confirm, and returns its delivery tag.
    fn confirmed(&mut self) -> io::Result<u64> {
        let mut confirmed = 0;
        while self.read(|frame| {
            if frame.kind == frames::METHOD && frame.method() == frames::BASIC_ACK {
                confirmed = frame.arguments().u64();
            }
            confirmed == 0
        })? {}
        Ok(confirmed)
    }

    fn publish(&mut self, run: &Run) -> io::Result<()> {
        let prepared = Prepared::new(run.size);
        let mut left = run.count;
        while left > 0 {
            let (bytes, count) = prepared.take(left);
            self.stream.write_all(bytes)?;
            left -= count;
        }
        self.declare_passively()
    }

    /// Makes calls while another thread publishes as fast as it can. After each piece that thread
    /// hands the socket over to the caller, if the caller waits for it.
    fn call_beside_publisher(&mut self, run: &Run, latencies: &mut Latencies) -> io::Result<()> {
        let prepared = Prepared::new(run.size);
        let call = passive_declaration();
        let output = Mutex::new(self.stream.tcp().try_clone()?);
        let is_over = AtomicBool::new(false);
        let publish = || -> io::Result<()> {
            while !is_over.load(Ordering::Relaxed) {
                let mut turn = output.lock();
                turn.write_all(&prepared.bytes)?;
                MutexGuard::unlock_fair(turn);
            }
            Ok(())
        };
        let mut call_once = || {
            output.lock().write_all(&call)?;
            self.wait_for(frames::QUEUE_DECLARE_OK)
        };
        thread::scope(|scope| {
            let publishes = scope.spawn(publish);
            let called = (0..run.count).try_for_each(|_| latencies.time(&mut call_once));
            is_over.store(true, Ordering::Relaxed);
            publishes.join().expect("the publisher panicked")?;
            called
        })
    }

    fn call_often(&mut self, run: &Run, latencies: &mut Latencies) -> io::Result<()> {
        (0..run.count).try_for_each(|_| latencies.time(|| self.declare_passively()))
    }

    fn call_from_another_thread(self, run: &Run, latencies: &mut Latencies) -> io::Result<()> {
        let call = passive_declaration();
        let calls = HandOver::start(self.stream.tcp().try_clone()?)?;
        (0..run.count).try_for_each(|_| latencies.time(|| calls.call(&call)))
    }

    fn publish_confirmed(&mut self, run: &Run) -> io::Result<()> {
        let prepared = Prepared::new(run.size);
        self.call(CHANNEL, frames::CONFIRM_SELECT, &[&[0]])?;
        let (mut published, mut confirmed) = (0, 0);
        while confirmed < run.count {
            let room = WINDOW - (published - confirmed);
            let (bytes, count) = prepared.take(room.min(run.count - published));
            self.stream.write_all(bytes)?;
            published += count;
            confirmed = self.confirmed()?;
        }
        Ok(())
    }

    fn confirm_each(&mut self, run: &Run, latencies: &mut Latencies) -> io::Result<()> {
        let prepared = Prepared::new(run.size);
        self.call(CHANNEL, frames::CONFIRM_SELECT, &[&[0]])?;
        for _ in 0..run.count {
            latencies.time(|| {
                self.stream.write_all(prepared.take(1).0)?;
                self.confirmed().map(drop)
            })?;
        }
        Ok(())
    }

    fn consume(&mut self, run: &Run, acknowledges: bool) -> io::Result<()> {
        if acknowledges {
            // A prefetch of 200.
            self.call(CHANNEL, frames::BASIC_QOS, &[&[0, 0, 0, 0, 0, 200, 0]])?;
        }
        let queue = frames::short_string(&run.queue());
        let no_ack = if acknowledges { 0 } else { 2 };
        let arguments: [&[u8]; 5] = [&[0, 0], &queue, &[1, b'c'], &[no_ack], &[0; 4]];
        self.call(CHANNEL, frames::BASIC_CONSUME, &arguments)?;
        let (mut delivered, mut missing, mut acks) = (0, 0, Vec::new());
        while delivered < run.count {
            acks.clear();
            self.read(|frame| {
                match frame.kind {
                    frames::METHOD if acknowledges => {
                        let mut arguments = frame.arguments();
                        let _consumer_tag = arguments.short_string();
                        let tag = arguments.u64().to_be_bytes();
                        frames::write_method(&mut acks, CHANNEL, frames::BASIC_ACK, &[&tag, &[0]]);
                    }
                    frames::HEADER => missing = frame.body_size(),
                    frames::BODY => missing -= frame.payload.len() as u64,
                    _ => {}
                }
                delivered += u64::from(missing == 0 && frame.kind != frames::METHOD);
                delivered < run.count
            })?;
            self.stream.write_all(&acks)?;
        }
        Ok(())
    }
}

pub(crate) fn run(run: &Run, latencies: &mut Latencies) -> io::Result<()> {
    if run.mode == Mode::Connect {
        return (0..run.count).try_for_each(|_| latencies.time(|| Limit::open(&run.uri)?.close()));
    }
    let mut limit = Limit::open(&run.uri)?;
    limit.open_channel()?;
    match run.mode {
        Mode::Publish | Mode::PublishInTurn => limit.publish(run)?,
        Mode::Confirm | Mode::Publisher => limit.publish_confirmed(run)?,
        Mode::Confirm1 => limit.confirm_each(run, latencies)?,
        Mode::Consume => limit.consume(run, false)?,
        Mode::ConsumeAck | Mode::ConsumeSlow => limit.consume(run, true)?,
        Mode::Rpc => limit.call_often(run, latencies)?,
        Mode::RpcHandOver => return limit.call_from_another_thread(run, latencies),
        Mode::RpcBusy => limit.call_beside_publisher(run, latencies)?,
        Mode::Channels => limit.open_channels(run.count)?,
        Mode::Connect | Mode::Connections => {}
    }
    limit.close()
}
