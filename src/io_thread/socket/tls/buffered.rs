//! The socket under a TLS library, with buffers.

use std::io::{self, Read, Write};

use crate::io_thread::socket::read_buffer::ReadBuffer;
use crate::io_thread::socket::tcp::Socket;

/// Once this many encrypted bytes wait for the socket, no more are encrypted.
const FULL: usize = 256 << 10;

/// Joins the small reads and writes of a TLS library, which takes records of at most 16 KiB one by
/// one, into few system calls.
#[derive(Debug)]
pub(crate) struct Buffered {
    socket: Socket,
    input: ReadBuffer,
    output: Vec<u8>,
    /// How much of the output the socket has taken.
    sent: usize,
    /// Why no more can be read, after what has been read.
    failure: Option<io::Error>,
}

impl Buffered {
    pub(super) fn new(socket: Socket) -> Self {
        Self {
            socket,
            input: ReadBuffer::default(),
            output: Vec::new(),
            sent: 0,
            failure: None,
        }
    }

    pub(crate) fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// Keeps an error for the next read.
    pub(super) fn keep_failure(&mut self, error: io::Error) {
        if error.kind() != io::ErrorKind::WouldBlock {
            self.failure = Some(error);
        }
    }

    pub(super) fn take_failure(&mut self) -> Option<io::Error> {
        self.failure.take()
    }

    /// Whether encrypted bytes wait for the library.
    pub(super) fn has_input(&self) -> bool {
        !self.input.bytes().is_empty()
    }

    /// How many encrypted bytes wait for the socket.
    pub(crate) fn unsent(&self) -> usize {
        self.output.len() - self.sent
    }

    pub(super) fn is_full(&self) -> bool {
        self.unsent() >= FULL
    }

    pub(crate) fn shrink(&mut self) {
        self.input.shrink();
        if self.output.is_empty() {
            self.output = Vec::new();
        }
    }
}

impl Read for Buffered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.input.bytes().is_empty() {
            // Not every library flushes before it waits for the answer. If this fails, the input
            // tells why.
            let _ = self.flush();
            self.input.read_from(&mut self.socket)?;
        }
        let count = self.input.bytes().read(buffer)?;
        self.input.consume(count);
        Ok(count)
    }
}

impl Write for Buffered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    /// Fails with `WouldBlock` if the socket does not take all of the output.
    fn flush(&mut self) -> io::Result<()> {
        while let Some(rest @ [_, ..]) = self.output.get(self.sent..) {
            match self.socket.write(rest)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => self.sent += count,
            }
        }
        self.output.clear();
        self.sent = 0;
        Ok(())
    }
}
