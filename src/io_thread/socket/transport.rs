//! The byte stream to the broker, over TCP or TLS.

use std::io::{self, ErrorKind, IoSliceMut, Read, Write};

use mio::event::Source;
use mio::{Interest, Registry, Token};

use super::tcp::Socket;
use super::tls;
use crate::error::Error;

/// A stream of bytes to the broker and back.
#[derive(Debug)]
pub(crate) enum Transport {
    Tcp(Socket),
    Tls(Box<dyn tls::Session>),
}

impl Transport {
    /// Makes the socket non-blocking, to be polled from now on.
    pub(crate) fn poll_from_now_on(&mut self) -> io::Result<()> {
        self.socket().poll_from_now_on()
    }

    pub(crate) fn is_tls(&self) -> bool {
        !matches!(self, Self::Tcp(_))
    }

    fn socket(&mut self) -> &mut Socket {
        match self {
            Self::Tcp(socket) => socket,
            Self::Tls(session) => session.buffered().socket(),
        }
    }

    /// The TLS error that made a read fail, if one did. A peer can refuse our certificate after the
    /// handshake has ended on our side.
    pub(crate) fn tls_failure(&self, error: &io::Error) -> Option<Error> {
        match self {
            Self::Tcp(_) => None,
            Self::Tls(session) => session.failure(error).map(Error::tls),
        }
    }

    /// How many encrypted bytes wait for the socket. A write of nothing sends them.
    pub(crate) fn unsent(&mut self) -> usize {
        match self {
            Self::Tcp(_) => 0,
            Self::Tls(session) => session.buffered().unsent(),
        }
    }

    /// Frees the memory that a burst has left.
    pub(crate) fn shrink(&mut self) {
        if let Self::Tls(session) = self {
            session.buffered().shrink();
        }
    }

    /// Closes our side: nothing more will be written.
    pub(crate) fn shutdown_write(&mut self) -> io::Result<()> {
        if let Self::Tls(session) = self {
            // If the socket does not take it, the peer does not read.
            session.close_notify();
            let _ = session.buffered().flush();
        }
        self.socket().shutdown_write()
    }
}

impl Read for Transport {
    /// `Ok(0)` means that the peer has closed its side cleanly. A TLS stream that ends without
    /// close_notify was cut off, on the way or by the peer's death: that is an error of kind
    /// `ConnectionAborted`.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.read(buffer),
            Self::Tls(session) => {
                let result = tls::read(&mut **session, buffer);
                if !matches!(result, Ok(1..)) && session.buffered().socket().has_ended() {
                    return Err(ErrorKind::ConnectionAborted.into());
                }
                result
            }
        }
    }

    fn read_vectored(&mut self, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.read_vectored(parts),
            Self::Tls(_) => match parts.iter_mut().find(|it| !it.is_empty()) {
                Some(part) => self.read(part),
                None => Ok(0),
            },
        }
    }
}

impl Write for Transport {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.write(bytes),
            Self::Tls(session) => tls::write(&mut **session, bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(_) => Ok(()),
            Self::Tls(session) => session.buffered().flush(),
        }
    }
}

impl Source for Transport {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        self.socket().polled()?.register(registry, token, interests)
    }

    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        let socket = self.socket().polled()?;
        socket.reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.socket().polled()?.deregister(registry)
    }
}
