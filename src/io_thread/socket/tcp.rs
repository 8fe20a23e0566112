//! A TCP socket. It blocks until the connection is open, and is polled afterwards.

use std::io::{self, ErrorKind, IoSliceMut, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, OnceLock};

use crate::io_thread::deadline::Deadline;

/// A TCP socket.
#[derive(Debug)]
pub(crate) struct Socket {
    mode: Mode,
    /// The peer has closed its side.
    ended: bool,
    first_words: FirstWords,
}

/// Whether the peer's first bytes are AMQP. Outlives the socket: a failed TLS handshake drops it.
#[derive(Debug, Clone, Default)]
pub(crate) struct FirstWords(Arc<OnceLock<bool>>);

impl FirstWords {
    /// An AMQP server answers like this if the client does not speak AMQP.
    pub(crate) fn are_amqp(&self) -> bool {
        self.0.get() == Some(&true)
    }
}

#[derive(Debug)]
enum Mode {
    /// Reads and writes fail after the deadline.
    Blocking(TcpStream, Deadline),
    Polled(mio::net::TcpStream),
}

impl Socket {
    pub(crate) fn blocking(socket: TcpStream, deadline: Deadline) -> Self {
        Self {
            mode: Mode::Blocking(socket, deadline),
            ended: false,
            first_words: FirstWords::default(),
        }
    }

    /// Whether the peer has closed its side.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    pub(crate) fn first_words(&self) -> FirstWords {
        self.first_words.clone()
    }

    pub(super) fn poll_from_now_on(&mut self) -> io::Result<()> {
        if let Mode::Blocking(socket, _) = &self.mode {
            socket.set_read_timeout(None)?;
            socket.set_write_timeout(None)?;
            socket.set_nonblocking(true)?;
            let polled = mio::net::TcpStream::from_std(socket.try_clone()?);
            self.mode = Mode::Polled(polled);
        }
        Ok(())
    }

    pub(super) fn shutdown_write(&self) -> io::Result<()> {
        match &self.mode {
            Mode::Blocking(socket, _) => socket.shutdown(Shutdown::Write),
            Mode::Polled(socket) => socket.shutdown(Shutdown::Write),
        }
    }

    pub(super) fn polled(&mut self) -> io::Result<&mut mio::net::TcpStream> {
        match &mut self.mode {
            Mode::Polled(socket) => Ok(socket),
            Mode::Blocking(..) => Err(ErrorKind::InvalidInput.into()),
        }
    }
}

/// The time left until the deadline, as a timeout for a socket. Fails if none is left: zero is not
/// a valid timeout.
pub(crate) fn remaining(deadline: Deadline) -> io::Result<std::time::Duration> {
    let remaining = deadline.remaining();
    if remaining.is_zero() {
        return Err(ErrorKind::TimedOut.into());
    }
    Ok(remaining)
}

/// Retries an operation that a signal interrupts. Every signal handler interrupts a socket with a
/// timeout, even with `SA_RESTART`, and TLS libraries take that for a failure of the connection.
pub(crate) fn uninterrupted<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match attempt() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = uninterrupted(|| match &mut self.mode {
            Mode::Polled(socket) => socket.read(buffer),
            Mode::Blocking(socket, deadline) => {
                socket.set_read_timeout(Some(remaining(*deadline)?))?;
                socket.read(buffer)
            }
        })?;
        self.ended |= count == 0;
        if let Mode::Blocking(..) = self.mode {
            let words = &self.first_words.0;
            words.get_or_init(|| buffer.starts_with(b"AMQP"));
        }
        Ok(count)
    }

    fn read_vectored(&mut self, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let count = uninterrupted(|| self.polled()?.read_vectored(parts))?;
        self.ended |= count == 0;
        Ok(count)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        uninterrupted(|| match &mut self.mode {
            Mode::Polled(socket) => socket.write(bytes),
            Mode::Blocking(socket, deadline) => {
                socket.set_write_timeout(Some(remaining(*deadline)?))?;
                socket.write(bytes)
            }
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::uninterrupted;
    use std::io::{Error, ErrorKind};

    #[test]
    fn only_an_operation_interrupted_by_a_signal_is_retried() {
        let mut left = [
            ErrorKind::Interrupted,
            ErrorKind::Interrupted,
            ErrorKind::TimedOut,
        ]
        .into_iter();
        let failed = uninterrupted(|| left.next().map_or(Ok(7), |kind| Err(Error::from(kind))));
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::TimedOut);
        let mut left = [ErrorKind::Interrupted].into_iter();
        let done = uninterrupted(|| left.next().map_or(Ok(7), |kind| Err(Error::from(kind))));
        assert_eq!(done.unwrap(), 7);
    }
}
