//! The handshake, from the protocol header to `connection.open-ok`.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use super::config::MAX_LOGIN_SINCE_4_1;
use super::config::{Config, Tuning};
use crate::error::{CloseReason, Error, ErrorKind, ReplyCode};
use crate::wire::codec::WireError;
use crate::wire::frame::MIN_SIZE;
use crate::wire::method::{
    ConnectionOpen, ConnectionStart, ConnectionStartOk, ConnectionTune, ConnectionTuneOk, Encode,
    LongString, MethodId,
};

/// The largest payload that RabbitMQ up to 4.0 accepts before the login.
const MAX_LOGIN: usize = 4096;

/// A login method that was sent, and the size of its payload in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LoginFrame {
    pub(crate) method: MethodId,
    pub(crate) size: usize,
}

impl fmt::Display for LoginFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, size } = self;
        write!(
            f,
            "{method} has {size} bytes, and RabbitMQ accepts at most {MAX_LOGIN} before the login \
             ({MAX_LOGIN_SINCE_4_1} since 4.1): use a shorter password or token, or fewer client properties"
        )
    }
}

/// The error for a login method that does not fit into a frame or cannot be encoded.
pub(crate) fn unsendable(method: MethodId, error: &WireError) -> Error {
    Error::invalid(match error {
        WireError::FrameTooLarge { size, .. } => {
            let size = usize::try_from(*size).unwrap_or(usize::MAX);
            LoginFrame { method, size }.to_string()
        }
        error => format!("{method}: {error}"),
    })
}

/// The method that the handshake waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Start,
    Tune,
    OpenOk,
}

impl Step {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Start => "connection.start",
            Self::Tune => "connection.tune",
            Self::OpenOk => "connection.open-ok",
        }
    }

    /// The error for a socket that closed at this step. While the login waits for its answer, that
    /// means a refused login, unless `note` gives another cause.
    pub(crate) fn socket_closed(
        self,
        config: &Config,
        kind: std::io::ErrorKind,
        note: Option<String>,
    ) -> Error {
        let error = match (self, &note) {
            (Self::Tune, None) => config.login.failed(""),
            _ => Error::new(ErrorKind::SocketClosed { kind }),
        };
        let error = error.doing(format!("waiting for {}", self.name()));
        match note {
            Some(note) => error.noting(note),
            None => error,
        }
    }

    /// Why the broker may close the socket at this step without a reason. RabbitMQ does so if a
    /// login frame is too large. Since 4.1, it also does so three seconds after it refuses tune-ok.
    pub(crate) fn note(self, login: Option<LoginFrame>, tuning: &Tuning) -> Option<String> {
        match self {
            Self::Start => None,
            Self::Tune => login
                .filter(|it| it.size > MAX_LOGIN)
                .map(|it| it.to_string()),
            Self::OpenOk => Some(tuning.note()),
        }
    }

    /// The error for a `connection.close` at this step.
    pub(crate) fn closed(self, config: &Config, reason: CloseReason) -> Error {
        if reason.code == ReplyCode::ACCESS_REFUSED {
            return config.login.failed(&reason.text);
        }
        if self == Self::OpenOk && is_about_vhost(&reason) {
            let vhost = config.vhost.clone();
            return Error::new(ErrorKind::VhostRefused { vhost, reason });
        }
        let error = Error::new(ErrorKind::ConnectionClosed(reason));
        error.doing(format!("waiting for {}", self.name()))
    }
}

/// Whether the broker closed the connection because of the virtual host. RabbitMQ uses the same
/// code if the virtual host, the user or the node has reached a connection limit, or if it refuses
/// a value in tune-ok.
fn is_about_vhost(reason: &CloseReason) -> bool {
    let text = reason.text.as_str();
    // The name of a virtual host can contain any text. But RabbitMQ never starts its text with a
    // name, and closes the quotes around names: both ends of the text are RabbitMQ's own words.
    let is_limit =
        text.starts_with("NOT_ALLOWED - connection refused") || text.ends_with(" is reached");
    let is_for_open = reason
        .method
        .map_or(true, |it| Some(it) == ConnectionOpen::ID.name());
    match reason.code {
        ReplyCode::INVALID_PATH => true,
        ReplyCode::NOT_ALLOWED => is_for_open && !is_limit,
        _ => false,
    }
}

/// The error for a server that does not answer with a frame. A server with another version of AMQP
/// answers with its own protocol header. `None` if more input is needed to tell.
pub(crate) fn version_mismatch(input: &[u8]) -> Option<Error> {
    const HEADER: usize = 8;
    let server = match input {
        [b'A', b'M', b'Q', b'P', 0, major, minor, revision, ..] => {
            format!("AMQP {major}-{minor}-{revision}")
        }
        [b'A', b'M', b'Q', b'P', 3, major, minor, revision, ..] => {
            format!("SASL and AMQP {major}.{minor}.{revision}")
        }
        [b'A', b'M', b'Q', b'P', a, b, c, d, ..] => format!("AMQP {a}.{b}.{c}.{d}"),
        // A TLS record: an alert or a handshake.
        [0x15 | 0x16, 3, ..] => "TLS (amqps)".to_owned(),
        [0x15 | 0x16] => return None,
        // The rest of the header may still come.
        begun if begun.len() < HEADER && begun.iter().zip(b"AMQP").all(|(a, b)| a == b) => {
            return None
        }
        _ => "another protocol".to_owned(),
    };
    Some(Error::new(ErrorKind::ProtocolVersionMismatch { server }))
}

/// Builds the answer to `connection.start`, or the error if the login cannot go on.
pub(crate) fn start_ok<'a>(
    config: &'a mut Config,
    start: &ConnectionStart<'_>,
) -> Result<ConnectionStartOk<'a>, Error> {
    let offered = String::from_utf8_lossy(&start.mechanisms.0).into_owned();
    let mechanism = &config.login.mechanism;
    if !offered.split_ascii_whitespace().any(|it| it == mechanism) {
        let mechanism = mechanism.clone();
        return Err(Error::new(ErrorKind::MechanismNotOffered {
            mechanism,
            offered,
        }));
    }
    let response = config.login.respond(b"")?;
    Ok(ConnectionStartOk {
        client_properties: Cow::Borrowed(&config.client_properties),
        mechanism: config.login.mechanism.as_str().into(),
        response: LongString(Cow::Owned(response)),
        locale: "en_US".into(),
    })
}

/// Takes the lower of both sides' limits; zero means no limit. Heartbeats follow the same rule, but
/// a program that asks for none gets none. A broker that proposes none still sends heartbeats if
/// tune-ok asks for them. So a program can use them against a proxy that cuts idle connections,
/// even if the broker does not know of the proxy.
pub(crate) fn tune(config: &Config, server: &ConnectionTune) -> Result<Tuning, String> {
    if server.frame_max != 0 && server.frame_max < MIN_SIZE {
        return Err(format!(
            "frame_max {} is below the minimum of {MIN_SIZE}",
            server.frame_max
        ));
    }
    let seconds = match config.heartbeat {
        0 => 0,
        ours => lower_limit(ours.into(), server.heartbeat.into()),
    };
    Ok(Tuning {
        channel_max: lower_limit(config.channel_max.into(), server.channel_max.into()) as u16,
        frame_max: lower_limit(config.frame_max, server.frame_max),
        heartbeat: Duration::from_secs(seconds.into()),
    })
}

fn lower_limit(ours: u32, theirs: u32) -> u32 {
    match (ours, theirs) {
        (0, limit) | (limit, 0) => limit,
        (ours, theirs) => ours.min(theirs),
    }
}

pub(crate) fn tune_ok(tuning: &Tuning) -> ConnectionTuneOk {
    ConnectionTuneOk {
        channel_max: tuning.channel_max,
        frame_max: tuning.frame_max,
        // Fits: `tune` made it from a u16.
        heartbeat: tuning.heartbeat.as_secs() as u16,
    }
}

pub(crate) fn open(config: &Config) -> ConnectionOpen<'_> {
    ConnectionOpen {
        virtual_host: config.vhost.as_str().into(),
        ..ConnectionOpen::default()
    }
}
