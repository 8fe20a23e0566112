//! Opens a connection: name look-up, TCP, TLS and the AMQP handshake, all on the caller's thread
//! and within one deadline.

use std::borrow::Cow;
use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};

use super::config::config_of;
use super::read_buffer::{Came, ReadBuffer};
use super::tcp::{remaining, uninterrupted, Socket};
use super::tls;
use super::transport::Transport;
use crate::error::{Error, ErrorKind as Kind, FailedEndpoint, Result};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::peer::Peer;
use crate::log_line::{log_line, Label};
use crate::options::backoff::random;
use crate::options::{ConnectionOptions, Endpoint};
use crate::proto::{self, Event, Mailboxes};

/// Limits the unsent bytes in the kernel's socket buffer. The kernel's own limit is 4 MiB, which is
/// a second of work for a broker with small messages, and every call would queue after them.
#[cfg(any(target_os = "linux", target_os = "android"))]
const MAX_UNSENT: u32 = 256 << 10;

/// A connection whose handshake is over.
pub(crate) struct Connected<M: Mailboxes> {
    pub(crate) transport: Transport,
    pub(crate) core: proto::Connection<M>,
    /// Holds the input after `open-ok`.
    pub(crate) read_buffer: ReadBuffer,
    pub(crate) endpoint: Endpoint,
    pub(crate) address: SocketAddr,
    /// How long the secret of this login is valid.
    pub(crate) secret_valid_for: Option<Duration>,
}

impl<M: Mailboxes> Connected<M> {
    pub(crate) fn peer(&self) -> Arc<Peer> {
        Peer::new(&self.core, self.address, self.endpoint.clone())
    }
}

/// Where the lost connection was.
#[derive(Debug, Clone)]
pub(crate) struct Last {
    pub(crate) endpoint: Endpoint,
    pub(crate) address: SocketAddr,
    /// The broker fell silent. Another attempt there may use up all of its time.
    pub(crate) is_silent: bool,
}

impl Last {
    /// Moves the one that worked last to the front, or to the end if it fell silent.
    fn place<T: PartialEq>(&self, last: &T, all: &mut Vec<T>) {
        let Some(index) = all.iter().position(|it| it == last) else {
            return;
        };
        let last = all.remove(index);
        let index = if self.is_silent { all.len() } else { 0 };
        all.insert(index, last);
    }
}

/// Minimum time for connecting, and again for the replay, in the last attempt: it gets this long
/// even if less is left of the time for all attempts.
pub(crate) const LAST_ATTEMPT: Duration = Duration::from_secs(1);

/// Connects as [`connect`] does, and retries for as long as `retry_open_for` says.
#[allow(clippy::disallowed_methods)] // No thread has the connection yet that could end the wait.
pub(crate) fn connect_patiently<M: Mailboxes>(options: &ConnectionOptions) -> Result<Connected<M>> {
    let until = Deadline::after(options.retry_open_for);
    let mut attempt = 0;
    loop {
        attempt += 1;
        let mut limited = Cow::Borrowed(options);
        if !options.retry_open_for.is_zero() {
            let left = until.remaining().max(LAST_ATTEMPT);
            limited.to_mut().connect_timeout = options.connect_timeout.min(left);
        }
        let error = match connect(&limited, None) {
            Ok(connected) => return Ok(connected),
            Err(error) => error,
        };
        if until.remaining().is_zero() || !can_pass(&error) {
            return Err(match attempt {
                1 => error,
                _ => error.doing(format!(
                    "after {attempt} attempts in {:.1?}",
                    until.elapsed()
                )),
            });
        }
        let next = options.recovery.delay(attempt, random());
        let next = next.min(until.remaining());
        let label = Label::new(&options.connection_name, options);
        log_line!(
            Warn,
            label,
            "attempt {attempt} to connect failed, retrying in {next:.1?}: {error}"
        );
        thread::sleep(next);
    }
}

/// Whether another attempt to connect may succeed.
fn can_pass(error: &Error) -> bool {
    match error.kind() {
        Kind::LoginRefused { text, .. } => text.is_empty(),
        Kind::EndpointsFailed(failed) => failed.iter().any(|it| can_pass(&it.error)),
        Kind::ConnectFailed { .. }
        | Kind::ConnectionClosed(_)
        | Kind::SocketClosed { .. }
        | Kind::HeartbeatMissed { .. }
        | Kind::TimedOut { .. }
        | Kind::CredentialsUnavailable { .. } => true,
        _ => false,
    }
}

/// Tries the endpoints in order, each with its share of the remaining time.
pub(crate) fn connect<M: Mailboxes>(
    options: &ConnectionOptions,
    last: Option<Last>,
) -> Result<Connected<M>> {
    let (options, secret_valid_for) = options.with_credentials()?;
    let deadline = Deadline::after(options.connect_timeout);
    let endpoints = in_order(&options, last.as_ref());
    let mut failed = Vec::new();
    for (endpoint, left) in endpoints.iter().zip((1..=endpoints.len()).rev()) {
        match connect_to(endpoint, &options, last.as_ref(), deadline.share(left)) {
            Ok(connected) => {
                return Ok(Connected {
                    secret_valid_for,
                    ..connected
                })
            }
            Err(error) => failed.push(FailedEndpoint {
                endpoint: endpoint.to_string(),
                error,
            }),
        }
    }
    match <[FailedEndpoint; 1]>::try_from(failed) {
        Ok([FailedEndpoint { error, .. }]) => Err(error),
        Err(failed) => Err(Error::new(Kind::EndpointsFailed(failed))),
    }
}

/// The endpoints in the order in which they are tried.
fn in_order(options: &ConnectionOptions, last: Option<&Last>) -> Vec<Endpoint> {
    let mut endpoints = options.endpoints();
    if options.shuffle_endpoints {
        shuffle(&mut endpoints);
    }
    if let Some(last) = last {
        last.place(&last.endpoint, &mut endpoints);
    }
    endpoints
}

/// Shuffles uniformly: each order is equally likely.
fn shuffle(endpoints: &mut [Endpoint]) {
    for end in (2..=endpoints.len()).rev() {
        let chosen = usize::try_from(random() % end as u64).unwrap_or_default();
        endpoints.swap(chosen, end - 1);
    }
}

fn connect_to<M: Mailboxes>(
    endpoint: &Endpoint,
    options: &ConnectionOptions,
    last: Option<&Last>,
    deadline: Deadline,
) -> Result<Connected<M>> {
    let mut addresses = look_up(endpoint, deadline).map_err(|error| failed(endpoint, &error))?;
    if let Some(last) = last {
        last.place(&last.address, &mut addresses);
    }
    connect_to_any(&addresses, endpoint, options, deadline)
}

/// Tries the addresses of a name until a server answers.
fn connect_to_any<M: Mailboxes>(
    addresses: &[SocketAddr],
    endpoint: &Endpoint,
    options: &ConnectionOptions,
    deadline: Deadline,
) -> Result<Connected<M>> {
    let mut unreachable = Vec::new();
    let mut last_error = None;
    for (address, left) in addresses.iter().zip((1..=addresses.len()).rev()) {
        let deadline = deadline.share(left);
        let socket = match open_socket(*address, options, deadline) {
            Ok(socket) => Socket::blocking(socket, deadline),
            Err(error) => {
                unreachable.push((address, error));
                continue;
            }
        };
        match open(socket, *address, endpoint, options, deadline) {
            Ok(connected) => return Ok(connected),
            // No broker, or not a healthy one: another address may have one.
            Err(error) if error.is_timeout() || error.is_connection_end() => {
                last_error = Some(error)
            }
            Err(error) => return Err(error),
        }
    }
    Err(last_error.unwrap_or_else(|| all_failed(endpoint, &unreachable)))
}

/// Combines the errors of all addresses into one.
fn all_failed(endpoint: &Endpoint, unreachable: &[(&SocketAddr, io::Error)]) -> Error {
    match unreachable {
        [] => failed(endpoint, &ErrorKind::AddrNotAvailable.into()),
        [(_, error)] => failed(endpoint, error),
        [.., (_, last)] => {
            let texts: Vec<_> = unreachable
                .iter()
                .map(|(address, error)| format!("{}: {error}", address.ip()))
                .collect();
            failed(endpoint, &io::Error::new(last.kind(), texts.join("; ")))
        }
    }
}

fn failed(endpoint: &Endpoint, error: &io::Error) -> Error {
    let kind = error.kind();
    let text = error.to_string();
    Error::new(Kind::ConnectFailed {
        address: endpoint.to_string(),
        kind,
        text,
    })
}

/// Looks up the addresses of a name. The system's look-up has no timeout, so it runs on a separate
/// thread, which is left to end on its own if it takes too long.
fn look_up(endpoint: &Endpoint, deadline: Deadline) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = endpoint.host.parse() {
        return Ok(vec![SocketAddr::new(address, endpoint.port)]);
    }
    let name = (endpoint.host.clone(), endpoint.port);
    let (sender, receiver) = crossbeam_channel::bounded(1);
    thread::Builder::new()
        .name("leveret look-up".to_owned())
        .spawn(move || {
            let addresses = uninterrupted(|| name.to_socket_addrs());
            sender.send(addresses.map(Vec::from_iter))
        })?;
    match receiver.recv_timeout(deadline.remaining()) {
        Ok(addresses) => addresses,
        Err(_) => Err(ErrorKind::TimedOut.into()),
    }
}

fn open_socket(
    address: SocketAddr,
    options: &ConnectionOptions,
    deadline: Deadline,
) -> io::Result<TcpStream> {
    let socket = uninterrupted(|| TcpStream::connect_timeout(&address, remaining(deadline)?))?;
    socket.set_nodelay(true)?;
    let settings = SockRef::from(&socket);
    if !options.tcp_keepalive.is_zero() {
        let time = rounded_up(options.tcp_keepalive, Duration::from_secs(1));
        settings.set_tcp_keepalive(&TcpKeepalive::new().with_time(time))?;
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if !options.tcp_user_timeout.is_zero() {
        let timeout = rounded_up(options.tcp_user_timeout, Duration::from_millis(1));
        settings.set_tcp_user_timeout(Some(timeout))?;
    }
    // Optional: not every kernel that calls itself Linux supports it.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let _ = settings.set_tcp_notsent_lowat(MAX_UNSENT);
    Ok(socket)
}

/// Rounds up to whole units. The system takes no fractions, and rounding down could yield zero.
fn rounded_up(value: Duration, unit: Duration) -> Duration {
    let rest = value.as_nanos() % unit.as_nanos();
    match u64::try_from(rest) {
        Ok(rest @ 1..) => value.saturating_add(unit.saturating_sub(Duration::from_nanos(rest))),
        _ => value,
    }
}

/// Does the TLS handshake, if the options ask for TLS, and the AMQP handshake.
fn open<M: Mailboxes>(
    socket: Socket,
    address: SocketAddr,
    endpoint: &Endpoint,
    options: &ConnectionOptions,
    deadline: Deadline,
) -> Result<Connected<M>> {
    let mut transport = match &options.tls {
        Some(tls) => Transport::Tls(tls::handshake(socket, tls, &endpoint.host, deadline)?),
        None => Transport::Tcp(socket),
    };
    let label = Label::new(&options.connection_name, address);
    let mut core = proto::Connection::new(config_of(options), label);
    let mut read_buffer = ReadBuffer::default();
    handshake(&mut transport, &mut core, &mut read_buffer, deadline)?;
    transport
        .poll_from_now_on()
        .map_err(|error| failed(endpoint, &error))?;
    Ok(Connected {
        transport,
        core,
        read_buffer,
        endpoint: endpoint.clone(),
        address,
        secret_valid_for: None,
    })
}

/// Drives the core over the blocking transport until the connection is open.
fn handshake<M: Mailboxes>(
    transport: &mut Transport,
    core: &mut proto::Connection<M>,
    read_buffer: &mut ReadBuffer,
    deadline: Deadline,
) -> Result<()> {
    let mut output = Vec::new();
    loop {
        core.take_output(&mut output);
        let written = transport
            .write_all(&output)
            .and_then(|()| transport.flush());
        output.clear();
        match opened(core) {
            Some(Ok(())) => return Ok(()),
            Some(Err(error)) => return Err(error),
            None => {}
        }
        // Even after a failed write, read what the peer has sent: that says why.
        let read = match written {
            Err(error) if is_timeout(&error) => Err(error),
            _ => read_buffer.read_from(transport),
        };
        match read {
            Ok(Came { count: 0, .. }) => core.socket_closed(ErrorKind::UnexpectedEof),
            Ok(_) => {
                let consumed = core.receive(read_buffer.bytes(), now());
                read_buffer.consume(consumed);
            }
            Err(error) if is_timeout(&error) => return Err(timed_out(core, deadline)),
            Err(error) => match transport.tls_failure(&error) {
                Some(failure) => return Err(failure),
                None => core.socket_closed(error.kind()),
            },
        }
    }
}

/// The result of the handshake, once the core has one.
fn opened<M: Mailboxes>(core: &mut proto::Connection<M>) -> Option<Result<()>> {
    match core.next_event()? {
        Event::Ended { error } => Some(Err(error)),
        _ => Some(Ok(())),
    }
}

/// On Unix, a read that times out fails with `WouldBlock`.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

fn timed_out<M: Mailboxes>(core: &proto::Connection<M>, deadline: Deadline) -> Error {
    let step = core.handshake_step().unwrap_or("the socket");
    let error = Error::timed_out(deadline.duration()).doing(format!("waiting for {step}"));
    match core.handshake_note() {
        Some(note) => error.noting(note),
        None => error,
    }
}

#[allow(clippy::disallowed_methods)] // The core has no clock, and the IO thread does not run yet.
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;
    use std::time::Duration;

    use super::*;
    use crate::io_thread::mailbox;

    fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// The error of connecting to a name that has these addresses.
    fn error_of(addresses: &[SocketAddr]) -> Error {
        let endpoint = Endpoint {
            host: "rabbit".to_owned(),
            port: 5672,
        };
        let deadline = Deadline::after(Duration::from_secs(2));
        let options = ConnectionOptions::default();
        let connected =
            connect_to_any::<mailbox::Mailboxes>(addresses, &endpoint, &options, deadline);
        connected.err().unwrap()
    }

    #[test]
    fn every_address_of_a_name_is_tried_until_a_server_answers() {
        let closed = listener().1;
        // The system accepts connections for this listener, which never sends anything.
        let (_silent, silent) = listener();
        let (answers, answering) = listener();
        let server = thread::spawn(move || {
            let (mut socket, _) = answers.accept().unwrap();
            socket.read_exact(&mut [0; 8]).unwrap();
            socket.write_all(b"AMQP\0\x01\0\0").unwrap();
        });
        let error = error_of(&[closed, silent, answering, closed]);
        assert!(
            matches!(error.kind(), Kind::ProtocolVersionMismatch { .. }),
            "{error}"
        );
        server.join().unwrap();
        // The error of a server that was reached says more than that of one that was not.
        let error = error_of(&[silent, closed]);
        assert!(error.is_timeout(), "{error}");
    }

    #[test]
    fn the_error_says_what_happened_at_each_address() {
        let (one, other) = (listener().1, listener().1);
        let error = error_of(&[one, other]);
        let Kind::ConnectFailed {
            address,
            kind,
            text,
        } = error.kind()
        else {
            panic!("{error}");
        };
        assert_eq!(
            (address.as_str(), *kind),
            ("rabbit:5672", ErrorKind::ConnectionRefused)
        );
        assert!(
            text.starts_with("127.0.0.1: ") && text.contains("; 127.0.0.1: "),
            "{text}"
        );
    }

    #[test]
    fn the_socket_gets_the_settings_of_the_options() {
        let (_listener, address) = listener();
        let deadline = Deadline::after(Duration::from_secs(5));
        let options = ConnectionOptions::default()
            .tcp_keepalive(Duration::from_secs(7))
            .tcp_user_timeout(Duration::from_secs(8));
        let socket = open_socket(address, &options, deadline).unwrap();
        let settings = SockRef::from(&socket);
        assert!(settings.keepalive().unwrap() && socket.nodelay().unwrap());
        #[cfg(target_os = "linux")]
        {
            assert_eq!(
                settings.tcp_keepalive_time().unwrap(),
                Duration::from_secs(7)
            );
            let timeout = settings.tcp_user_timeout().unwrap();
            assert_eq!(timeout, Some(Duration::from_secs(8)));
            assert_eq!(settings.tcp_notsent_lowat().unwrap(), MAX_UNSENT);
        }
        for (asked, keepalive, timeout) in [
            (Duration::from_nanos(1), 1, 1),
            (Duration::from_micros(1_000_001), 2, 1001),
            (Duration::from_secs(2), 2, 2000),
            (Duration::from_secs(32_767), 32_767, 32_767_000),
        ] {
            let options = options.clone().tcp_keepalive(asked).tcp_user_timeout(asked);
            options.check().unwrap();
            let socket = open_socket(address, &options, deadline).unwrap();
            #[cfg(target_os = "linux")]
            {
                let settings = SockRef::from(&socket);
                let time = settings.tcp_keepalive_time().unwrap();
                assert_eq!(time, Duration::from_secs(keepalive));
                let time = settings.tcp_user_timeout().unwrap();
                assert_eq!(time, Some(Duration::from_millis(timeout)));
            }
            let _ = (socket, keepalive, timeout);
        }
        let longest = options.tcp_user_timeout(Duration::from_millis(i32::MAX as u64));
        longest.check().unwrap();
        open_socket(address, &longest, deadline).unwrap();
        let options = ConnectionOptions::default().tcp_keepalive(Duration::ZERO);
        let socket = open_socket(address, &options, deadline).unwrap();
        assert!(!SockRef::from(&socket).keepalive().unwrap());
    }

    fn last(options: &ConnectionOptions, at: usize, is_silent: bool) -> Last {
        Last {
            endpoint: options.endpoints()[at].clone(),
            address: listener().1,
            is_silent,
        }
    }

    #[test]
    fn the_endpoint_that_worked_is_tried_first_and_a_silent_one_last() {
        let options = ConnectionOptions::default().host("0").port(0);
        let options = options.endpoint("1", 1).endpoint("2", 2);
        let ports = |options: &ConnectionOptions, last: Option<&Last>| {
            let endpoints = in_order(options, last).into_iter();
            endpoints.map(|it| it.port).collect::<Vec<_>>()
        };
        assert_eq!(ports(&options, None), [0, 1, 2]);
        let worked = last(&options, 1, false);
        assert_eq!(ports(&options, Some(&worked)), [1, 0, 2]);
        let silent = last(&options, 1, true);
        assert_eq!(ports(&options, Some(&silent)), [0, 2, 1]);
        // The order of the others does not matter.
        let shuffled = options.shuffle_endpoints(true);
        for _ in 0..20 {
            assert_eq!(ports(&shuffled, Some(&worked))[0], 1);
            assert_eq!(ports(&shuffled, Some(&silent))[2], 1);
        }
        // The name may have other addresses by now.
        let mut addresses = vec![listener().1];
        let same = addresses.clone();
        worked.place(&worked.address, &mut addresses);
        assert_eq!(addresses, same);
        addresses.push(worked.address);
        worked.place(&worked.address, &mut addresses);
        assert_eq!(addresses, [worked.address, same[0]]);
    }
}
