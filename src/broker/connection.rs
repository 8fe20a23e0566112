//! A connection's handshake and close, and the opening and closing of its channels.

use super::core::{confirm_all, tell_blocked, Core};
use super::options::BrokerOptions;
use super::refusal::Refusal;
use super::session::{method_id, Session, Slot, Stage};
use super::SessionId;
use crate::error::ReplyCode;
use crate::wire::codec::{Reader, WireError};
use crate::wire::frame::{Frame, FrameKind, MIN_SIZE, PROTOCOL_HEADER};
use crate::wire::method::{
    ChannelCloseOk, ChannelOpenOk, ConnectionCloseOk, ConnectionOpen, ConnectionOpenOk,
    ConnectionStart, ConnectionStartOk, ConnectionTune, ConnectionTuneOk, ConnectionUpdateSecretOk,
    LongString, Method, MethodId,
};
use crate::wire::value::{self, FieldTable};

const CAPABILITIES: &[&str] = &[
    "publisher_confirms",
    "exchange_exchange_bindings",
    "basic.nack",
    "consumer_cancel_notify",
    "connection.blocked",
    "consumer_priorities",
    "authentication_failure_close",
    "per_consumer_qos",
    "direct_reply_to",
];

pub(super) fn decode<'a>(frame: &Frame<'a>) -> Result<Method<'a>, Refusal> {
    let method = Method::decode(frame.payload).map_err(|error| match error {
        WireError::UnknownMethod { .. } => {
            Refusal::of_connection(ReplyCode::COMMAND_INVALID, "unimplemented method")
        }
        error => Refusal::of_connection(ReplyCode::FRAME_ERROR, error.to_string()),
    })?;
    match method.is_finite() {
        true => Ok(method),
        false => Err(not_finite()),
    }
}

/// RabbitMQ fails to read such a float: it closes the connection with 541 if the float is in a
/// header, and closes only the socket if it is in an argument.
pub(super) fn not_finite() -> Refusal {
    let text = "a float in a field table is not finite";
    Refusal::of_connection(ReplyCode::INTERNAL_ERROR, text)
}

pub(super) fn unexpected_frame(text: &str) -> Refusal {
    Refusal::of_connection(ReplyCode::UNEXPECTED_FRAME, text)
}

impl Session {
    /// Handles the protocol header, and returns the number of bytes consumed.
    pub(super) fn begin(&mut self, input: &[u8]) -> usize {
        let Some(header) = input.get(..PROTOCOL_HEADER.len()) else {
            return 0;
        };
        if header != PROTOCOL_HEADER {
            self.output.extend_from_slice(&PROTOCOL_HEADER);
            self.stage = Stage::Over;
            return header.len();
        }
        let capabilities = CAPABILITIES.iter();
        let capabilities = capabilities.fold(FieldTable::new(), |table, it| table.with(*it, true));
        let server_properties = FieldTable::new()
            .with("capabilities", capabilities)
            .with("product", env!("CARGO_PKG_NAME"))
            .with("version", env!("CARGO_PKG_VERSION"));
        let start = ConnectionStart {
            version_major: 0,
            version_minor: 9,
            server_properties: std::borrow::Cow::Owned(server_properties),
            mechanisms: LongString(b"PLAIN AMQPLAIN"[..].into()),
            locales: LongString(b"en_US"[..].into()),
        };
        self.send(0, &start);
        self.stage = Stage::StartOk;
        header.len()
    }

    fn log_in(
        &mut self,
        method: ConnectionStartOk<'_>,
        options: &BrokerOptions,
    ) -> Result<(), Refusal> {
        self.client_properties = method.client_properties.into_owned();
        let login = match method.mechanism.as_ref() {
            "PLAIN" => plain(&method.response.0),
            "AMQPLAIN" => amqplain(&method.response.0),
            _ => None,
        };
        let Some((user, password)) = login else {
            self.stage = Stage::Over;
            return Ok(());
        };
        if options.users.contains(&(user.clone(), password)) {
            self.user = user;
            let tune = ConnectionTune {
                channel_max: options.channel_max,
                frame_max: options.frame_max,
                heartbeat: u16::try_from(options.heartbeat.as_secs()).unwrap_or(u16::MAX),
            };
            self.send(0, &tune);
            self.stage = Stage::TuneOk;
            return Ok(());
        }
        if !self.can("authentication_failure_close") {
            self.stage = Stage::Over;
            return Ok(());
        }
        let mechanism = method.mechanism;
        let text = format!(
            "Login was refused using authentication mechanism {mechanism}. For details see the broker logfile."
        );
        let refusal = Refusal::of_connection(ReplyCode::ACCESS_REFUSED, text);
        self.close_connection(&refusal, None);
        Ok(())
    }

    fn tune(&mut self, method: &ConnectionTuneOk, options: &BrokerOptions) -> Result<(), Refusal> {
        let not_allowed = |text| Err(Refusal::of_connection(ReplyCode::NOT_ALLOWED, text));
        let (frame_max, highest) = (method.frame_max, options.frame_max);
        if frame_max == 0 || frame_max > highest {
            return not_allowed(format!(
                "negotiated frame_max = {frame_max} is higher than the maximum allowed value ({highest})"
            ));
        }
        if frame_max < MIN_SIZE {
            return not_allowed(format!(
                "negotiated frame_max = {frame_max} is lower than the minimum allowed value ({MIN_SIZE})"
            ));
        }
        let (channel_max, highest) = (method.channel_max, options.channel_max);
        if channel_max == 0 || channel_max > highest {
            return not_allowed(format!(
                "negotiated channel_max = {channel_max} is higher than the maximum allowed value ({highest})"
            ));
        }
        self.frame_max = frame_max;
        self.channel_max = channel_max;
        self.heartbeat = std::time::Duration::from_secs(method.heartbeat.into());
        self.stage = Stage::Open;
        Ok(())
    }
}

/// `\0user\0password`.
fn plain(response: &[u8]) -> Option<(String, String)> {
    let text = std::str::from_utf8(response).ok()?;
    let (_, login) = text.split_once('\0')?;
    let (user, password) = login.split_once('\0')?;
    Some((user.to_owned(), password.to_owned()))
}

/// A field table without its length prefix.
fn amqplain(response: &[u8]) -> Option<(String, String)> {
    let mut framed = u32::try_from(response.len()).ok()?.to_be_bytes().to_vec();
    framed.extend_from_slice(response);
    let table = value::read_table(&mut Reader::new(&framed), 0).ok()?;
    let text = |name| Some(table.get(name)?.as_str()?.to_owned());
    Some((text("LOGIN")?, text("PASSWORD")?))
}

impl Core {
    /// Handles a frame on channel 0, or on any channel if the connection is not running.
    pub(super) fn connection_frame(
        &mut self,
        id: SessionId,
        session: &mut Session,
        frame: &Frame<'_>,
    ) -> Result<(), Refusal> {
        if frame.kind == FrameKind::Heartbeat {
            return Ok(());
        }
        if session.stage == Stage::Closing {
            match method_id(frame).and_then(MethodId::name) {
                Some("connection.close-ok") => session.stage = Stage::Over,
                Some("connection.close") => {
                    session.send(0, &ConnectionCloseOk {});
                    session.stage = Stage::Over;
                }
                _ => {}
            }
            return Ok(());
        }
        if frame.kind != FrameKind::Method || frame.channel != 0 {
            return Err(unexpected_frame("expected a method of a connection"));
        }
        match (session.stage, decode(frame)?) {
            (Stage::StartOk, Method::ConnectionStartOk(method)) => {
                session.log_in(method, &self.options)
            }
            (Stage::TuneOk, Method::ConnectionTuneOk(method)) => {
                session.tune(&method, &self.options)
            }
            (Stage::Open, Method::ConnectionOpen(method)) => self.open(session, &method),
            (_, Method::ConnectionClose(_)) => {
                self.leave(id, session);
                session.send(0, &ConnectionCloseOk {});
                session.stage = Stage::Over;
                Ok(())
            }
            (Stage::Running, Method::ConnectionUpdateSecret(_)) => {
                session.send(0, &ConnectionUpdateSecretOk {});
                Ok(())
            }
            (stage, _) => {
                let state = match stage {
                    Stage::Running => "running",
                    Stage::Open => "opening",
                    Stage::TuneOk => "tuning",
                    _ => "starting",
                };
                let text = format!("unexpected method in connection state {state}");
                Err(Refusal::of_connection(ReplyCode::CHANNEL_ERROR, text))
            }
        }
    }

    fn open(&self, session: &mut Session, method: &ConnectionOpen<'_>) -> Result<(), Refusal> {
        let vhost = method.virtual_host.as_ref();
        if !self.vhosts.contains_key(vhost) {
            let text = format!("vhost {vhost} not found");
            return Err(Refusal::of_connection(ReplyCode::NOT_ALLOWED, text));
        }
        session.vhost = vhost.to_owned();
        session.stage = Stage::Running;
        session.send(0, &ConnectionOpenOk::default());
        tell_blocked(session, self.faults.blocked.as_deref());
        Ok(())
    }

    /// Handles a frame on a channel other than 0.
    pub(super) fn channel_frame(
        &mut self,
        id: SessionId,
        session: &mut Session,
        number: u16,
        frame: &Frame<'_>,
    ) -> Result<(), Refusal> {
        let name = method_id(frame).and_then(MethodId::name);
        match (session.channels.get(&number), name) {
            (None, Some("channel.open")) => open_channel(session, number),
            // Two closes have crossed, and the channel is already gone.
            (None, Some("channel.close-ok")) => Ok(()),
            (None, _) => Err(channel_error("expected 'channel.open'")),
            (Some(Slot::Closing(_)), Some("channel.close-ok")) => {
                self.end_channel(id, session, number);
                Ok(())
            }
            // The broker still waits for the answer to its own close.
            (Some(Slot::Closing(_)), Some("channel.close")) => {
                session.send(number, &ChannelCloseOk {});
                Ok(())
            }
            (Some(Slot::Closing(_)), _) => Ok(()),
            (Some(Slot::Open(_)), Some("channel.open")) => {
                Err(channel_error("second 'channel.open' seen"))
            }
            (Some(Slot::Open(_)), Some("channel.close")) => {
                confirm_all(session);
                self.end_channel(id, session, number);
                session.send(number, &ChannelCloseOk {});
                Ok(())
            }
            (Some(Slot::Open(_)), _) => self.open_channel_frame(id, session, number, frame),
        }
    }
}

fn open_channel(session: &mut Session, number: u16) -> Result<(), Refusal> {
    let (count, highest) = (session.channels.len(), session.channel_max);
    if count >= highest.into() {
        let text = format!(
            "number of channels opened ({count}) has reached the negotiated channel_max ({highest})"
        );
        return Err(Refusal::of_connection(ReplyCode::NOT_ALLOWED, text));
    }
    session.channels.insert(number, Slot::Open(Box::default()));
    session.send(number, &ChannelOpenOk::default());
    Ok(())
}

fn channel_error(text: &str) -> Refusal {
    Refusal::of_connection(ReplyCode::CHANNEL_ERROR, text)
}
