//! TLS over a TCP socket, with one of two libraries.
//!
//! - this file: the handshake, and the connector that is kept for the next one
//! - `material`: certificates and keys as they are now
//! - `native`, `rustls`: the two libraries; `absent`: a build with neither
//! - `buffered`: the socket under a library

#![cfg_attr(not(any(feature = "native-tls", feature = "rustls")), allow(dead_code))]

#[cfg(not(any(feature = "native-tls", feature = "rustls")))]
mod absent;
mod buffered;
mod material;
#[cfg(all(feature = "native-tls", not(feature = "rustls")))]
mod native;
#[cfg(feature = "rustls")]
mod rustls;

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

#[cfg(not(any(feature = "native-tls", feature = "rustls")))]
use self::absent as library;
use self::buffered::Buffered;
use self::material::Material;
#[cfg(all(feature = "native-tls", not(feature = "rustls")))]
use self::native as library;
#[cfg(feature = "rustls")]
use self::rustls as library;
use super::tcp::Socket;
use crate::error::{Error, Result};
use crate::io_thread::deadline::Deadline;
use crate::options::TlsOptions;

/// How long a connector is used: it knows the system's certificates of the time when it was made.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// A TLS connection of one of the libraries.
pub(crate) trait Session: Read + Write + fmt::Debug + Send {
    fn buffered(&mut self) -> &mut Buffered;
    /// Puts the last record into the buffer.
    fn close_notify(&mut self);
    /// The words of the TLS library if that made a read fail.
    fn failure(&self, error: &io::Error) -> Option<String>;
}

/// Why there is no session.
enum Refused {
    TimedOut,
    Failed(String),
}

/// What the options, the files and the system's certificates have become. Making it takes 0.1 s.
struct Prepared {
    material: Material,
    until: Deadline,
    connector: library::Connector,
}

impl Prepared {
    /// Takes the connector of an earlier connection if it still fits.
    fn of(options: &TlsOptions) -> Result<Arc<Self>> {
        let material = Material::read(options)?;
        if let Some(kept) = options.prepared.get::<Self>() {
            if kept.material == material && !kept.until.remaining().is_zero() {
                return Ok(kept);
            }
        }
        let prepared = Arc::new(Self {
            connector: library::Connector::new(&material)?,
            material,
            until: Deadline::after(MAX_AGE),
        });
        options.prepared.set(Arc::clone(&prepared));
        Ok(prepared)
    }
}

/// Does the TLS handshake on a blocking socket. The peer's certificate must be for `host`, unless
/// the options say otherwise.
pub(crate) fn handshake(
    socket: Socket,
    options: &TlsOptions,
    host: &str,
    deadline: Deadline,
) -> Result<Box<dyn Session>> {
    let prepared = Prepared::of(options)?;
    let name = options.server_name.as_deref().unwrap_or(host);
    let first_words = socket.first_words();
    let refused = match prepared.connector.connect(name, Buffered::new(socket)) {
        Ok(session) => return Ok(session),
        Err(refused) => refused,
    };
    let timed_out = Error::timed_out(deadline.duration()).doing("waiting for the TLS handshake");
    Err(match refused {
        _ if deadline.remaining().is_zero() => timed_out,
        _ if first_words.are_amqp() => {
            Error::tls("the server speaks AMQP without TLS at this port")
        }
        Refused::TimedOut => timed_out,
        Refused::Failed(words) => {
            // The system may trust another authority by now.
            options.prepared.clear();
            Error::tls(words)
        }
    })
}

/// Decrypts as many records as have come and fit, at least one.
pub(super) fn read(session: &mut dyn Session, buffer: &mut [u8]) -> io::Result<usize> {
    if let Some(failure) = session.buffered().take_failure() {
        return Err(failure);
    }
    let mut count = 0;
    loop {
        let room = buffer.get_mut(count..).unwrap_or_default();
        match session.read(room) {
            // The next read tells it again.
            Ok(0) => return Ok(count),
            Ok(more) => count += more,
            Err(error) if count > 0 => {
                // A library tells a failure only once.
                session.buffered().keep_failure(error);
                return Ok(count);
            }
            Err(error) => return Err(error),
        }
        if count == buffer.len() || !session.buffered().has_input() {
            return Ok(count);
        }
    }
}

/// Encrypts as much as the buffer takes, and sends it.
pub(super) fn write(session: &mut dyn Session, bytes: &[u8]) -> io::Result<usize> {
    let mut taken = 0;
    let sent = loop {
        let rest = bytes.get(taken..).unwrap_or_default();
        if rest.is_empty() || session.buffered().is_full() {
            break session.buffered().flush();
        }
        match session.write(rest) {
            Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => taken += count,
            Err(error) => break Err(error),
        }
    };
    match sent {
        Err(error) if taken == 0 || error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(taken),
    }
}

#[cfg(all(test, any(feature = "native-tls", feature = "rustls")))]
mod tests {
    use super::*;

    #[test]
    fn a_connector_is_kept_for_the_same_options_only() {
        let options = TlsOptions::default();
        let of = |options: &TlsOptions| Prepared::of(options).unwrap();
        let first = of(&options);
        let (clone, other) = (options.clone(), options.clone());
        assert!(Arc::ptr_eq(&first, &of(&clone)));
        let other = other.danger_accept_invalid_hostnames(true);
        assert!(!Arc::ptr_eq(&first, &of(&other)));
        let first = of(&options);
        options.prepared.clear();
        assert!(!Arc::ptr_eq(&first, &of(&options)));
    }
}
