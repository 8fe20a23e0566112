//! From options to an open connection: name look-up, TCP, handshake, all on the caller's thread and before one
//! deadline.

use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::Instant;

use crate::deadline::Deadline;
use crate::error::{Error, ErrorKind as Kind, Result};
use crate::inbox::Inbox;
use crate::options::ConnectionOptions;
use crate::proto::{self, Event, Mailboxes};
use crate::stream::Stream;

/// A connection whose handshake is over.
pub(crate) struct Connected<M: Mailboxes> {
    pub(crate) stream: Stream,
    pub(crate) core: proto::Connection<M>,
    /// What was read behind `open-ok`.
    pub(crate) inbox: Inbox,
    pub(crate) peer: SocketAddr,
}

pub(crate) fn connect<M: Mailboxes>(options: &ConnectionOptions) -> Result<Connected<M>> {
    let deadline = Deadline::after(options.connect_timeout);
    let (socket, peer) = open_socket(options, deadline)?;
    let mut core = proto::Connection::new(options.config());
    let mut inbox = Inbox::default();
    handshake(&socket, &mut core, &mut inbox, deadline)?;
    let stream = Stream::from_blocking(socket).map_err(|error| failed(options, &error))?;
    Ok(Connected {
        stream,
        core,
        inbox,
        peer,
    })
}

/// Tries the addresses behind the name one after the other, each with its share of the time that is left.
fn open_socket(options: &ConnectionOptions, deadline: Deadline) -> Result<(TcpStream, SocketAddr)> {
    let addresses = look_up(options, deadline).map_err(|error| failed(options, &error))?;
    let mut last_error = io::Error::from(ErrorKind::AddrNotAvailable);
    for (address, left) in addresses.iter().zip((1..=addresses.len()).rev()) {
        let share = deadline.remaining() / u32::try_from(left).unwrap_or(u32::MAX);
        if share.is_zero() {
            last_error = ErrorKind::TimedOut.into();
            break;
        }
        let connected = TcpStream::connect_timeout(address, share).and_then(|socket| {
            socket.set_nodelay(true)?;
            Ok(socket)
        });
        match connected {
            Ok(socket) => return Ok((socket, *address)),
            Err(error) => last_error = error,
        }
    }
    Err(failed(options, &last_error))
}

/// The addresses behind the name. The system's look-up has no time limit; so if it takes too long, it is left to end by
/// itself, in a thread of its own.
fn look_up(options: &ConnectionOptions, deadline: Deadline) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = options.host.parse() {
        return Ok(vec![SocketAddr::new(address, options.port)]);
    }
    let name = (options.host.clone(), options.port);
    let (sender, receiver) = crossbeam_channel::bounded(1);
    thread::Builder::new()
        .name("leveret look-up".to_owned())
        .spawn(move || sender.send(name.to_socket_addrs().map(Vec::from_iter)))?;
    match receiver.recv_timeout(deadline.remaining()) {
        Ok(addresses) => addresses,
        Err(_) => Err(ErrorKind::TimedOut.into()),
    }
}

fn failed(options: &ConnectionOptions, error: &io::Error) -> Error {
    let address = format!("{}:{}", options.host, options.port);
    let kind = error.kind();
    let text = error.to_string();
    let cause = io::Error::new(kind, text.clone());
    Error::new(Kind::ConnectFailed {
        address,
        kind,
        text,
    })
    .caused_by(cause)
}

/// Drives the core over the blocking socket until the connection is open.
fn handshake<M: Mailboxes>(
    mut socket: &TcpStream,
    core: &mut proto::Connection<M>,
    inbox: &mut Inbox,
    deadline: Deadline,
) -> Result<()> {
    let mut output = Vec::new();
    loop {
        core.take_output(&mut output);
        let written = write_before(socket, &output, deadline);
        output.clear();
        match opened(core) {
            Some(Ok(())) => return Ok(()),
            Some(Err(error)) => return Err(error),
            None => {}
        }
        let read = written.and_then(|()| {
            socket.set_read_timeout(Some(remaining(deadline)?))?;
            inbox.read_from(&mut socket)
        });
        match read {
            Ok(0) => core.socket_closed(ErrorKind::UnexpectedEof),
            Ok(_) => {
                let consumed = core.receive(inbox.bytes(), now());
                inbox.consume(consumed);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if is_timeout(&error) => return Err(timed_out(core, deadline)),
            Err(error) => core.socket_closed(error.kind()),
        }
    }
}

/// Whether the core has come to an end of the handshake, good or bad.
fn opened<M: Mailboxes>(core: &mut proto::Connection<M>) -> Option<Result<()>> {
    match core.next_event()? {
        Event::Ended { error } => Some(Err(error)),
        _ => Some(Ok(())),
    }
}

fn write_before(mut socket: &TcpStream, bytes: &[u8], deadline: Deadline) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    socket.set_write_timeout(Some(remaining(deadline)?))?;
    socket.write_all(bytes)
}

fn remaining(deadline: Deadline) -> io::Result<std::time::Duration> {
    let remaining = deadline.remaining();
    if remaining.is_zero() {
        return Err(ErrorKind::TimedOut.into());
    }
    Ok(remaining)
}

/// A read that times out says "would block" on Unix.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

fn timed_out<M: Mailboxes>(core: &proto::Connection<M>, deadline: Deadline) -> Error {
    let step = core.handshake_step().unwrap_or("the socket");
    Error::timed_out(deadline.duration()).doing(format!("waiting for {step}"))
}

#[allow(clippy::disallowed_methods)] // The core is driven here until the IO thread takes over.
fn now() -> Instant {
    Instant::now()
}
