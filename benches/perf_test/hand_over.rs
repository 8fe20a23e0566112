//! The limit of a call for a client with an IO thread: the caller hands prepared bytes to the
//! thread that owns the socket, and that thread hands the reply back. Nothing is validated, kept or
//! counted.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::thread;

use crossbeam_channel::{Receiver, Sender};
use mio::{Events, Interest, Poll, Token, Waker};

const SOCKET: Token = Token(0);
const WAKER: Token = Token(1);

pub(crate) struct HandOver {
    output: Arc<Mutex<Vec<u8>>>,
    waker: Waker,
    answers: Receiver<()>,
}

/// The state of the IO thread.
struct Socket {
    poll: Poll,
    stream: mio::net::TcpStream,
    output: Arc<Mutex<Vec<u8>>>,
    answered: Sender<()>,
}

impl HandOver {
    /// Starts the IO thread on an open connection. The thread ends with the process.
    pub(crate) fn start(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let mut stream = mio::net::TcpStream::from_std(stream);
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut stream, SOCKET, interest)?;
        let output = Arc::default();
        let (answered, answers) = crossbeam_channel::bounded(1);
        let socket = Socket {
            poll,
            stream,
            output: Arc::clone(&output),
            answered,
        };
        thread::spawn(|| socket.serve());
        Ok(Self {
            output,
            waker,
            answers,
        })
    }

    /// Sends a call and waits until something is read, which counts as the reply.
    pub(crate) fn call(&self, bytes: &[u8]) -> io::Result<()> {
        self.output.lock().unwrap().extend_from_slice(bytes);
        self.waker.wake()?;
        self.answers.recv().map_err(io::Error::other)
    }
}

impl Socket {
    fn serve(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(4);
        let (mut input, mut output) = (vec![0; 64 << 10], Vec::new());
        loop {
            self.poll.poll(&mut events, None)?;
            if events.iter().any(|event| event.token() == SOCKET) {
                self.read(&mut input)?;
            }
            std::mem::swap(&mut output, &mut self.output.lock().unwrap());
            if !output.is_empty() {
                self.stream.write_all(&output)?;
                output.clear();
            }
        }
    }

    fn read(&mut self, input: &mut [u8]) -> io::Result<()> {
        loop {
            match self.stream.read(input) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => drop(self.answered.send(())),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}
