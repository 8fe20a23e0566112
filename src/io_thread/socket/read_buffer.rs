//! The bytes that were read and not yet decoded.

use std::io::{self, IoSliceMut, Read};

/// The most bytes that one read takes, even if the buffer has more room.
/// [`ReadThrottle`](crate::io_thread::read_throttle::ReadThrottle) relies on this limit.
pub(crate) const CHUNK: usize = 64 << 10;
/// The most bytes that a read takes after a large body: the beginning of the next message, whose
/// body is not to come here.
const AFTER: usize = 4 << 10;

/// What one read has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Came {
    /// The number of bytes. 0 means that the peer has closed its side.
    pub(crate) count: usize,
    /// Whether there was room for no more.
    pub(crate) fills_room: bool,
}

/// A buffer that keeps the beginning of a frame until the rest of it has come. It grows with what
/// arrives, not with the size that a frame claims, and shrinks again after a large frame.
#[derive(Debug, Default)]
pub(crate) struct ReadBuffer {
    /// All of it is initialized memory, as `Read` needs. The content is at `start..end`.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl ReadBuffer {
    /// Reads once.
    pub(crate) fn read_from(&mut self, transport: &mut impl Read) -> io::Result<Came> {
        self.make_room();
        let room_end = self.buffer.len().min(self.end + CHUNK);
        let room = self.buffer.get_mut(self.end..room_end).unwrap_or_default();
        let count = transport.read(room)?;
        let fills_room = count == room.len();
        self.end += count;
        Ok(Came { count, fills_room })
    }

    /// Reads once, first into `room` and then into the buffer, which has to be empty. Also returns
    /// how many bytes came into the room.
    pub(crate) fn read_after(
        &mut self,
        room: &mut [u8],
        transport: &mut impl Read,
    ) -> io::Result<(usize, Came)> {
        self.make_room();
        let then = self.buffer.get_mut(..AFTER).unwrap_or_default();
        let (first, most) = (room.len(), room.len() + then.len());
        let parts = &mut [IoSliceMut::new(room), IoSliceMut::new(then)];
        let count = transport.read_vectored(parts)?;
        self.end = count.saturating_sub(first);
        let fills_room = count == most;
        Ok((count.min(first), Came { count, fills_room }))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    pub(crate) fn consume(&mut self, count: usize) {
        self.start += count;
        if self.start >= self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    pub(crate) fn shrink(&mut self) {
        if self.start == self.end {
            *self = Self::default();
        }
    }

    fn make_room(&mut self) {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.buffer.len() - self.end < CHUNK / 2 {
            // Double the size, so that a large frame is not copied for each chunk of it.
            self.buffer.resize((2 * self.buffer.len()).max(CHUNK), 0);
        } else if self.end == 0 && self.buffer.len() > 4 * CHUNK {
            self.buffer = vec![0; CHUNK];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ReadBuffer, AFTER, CHUNK};

    #[test]
    fn what_follows_a_body_comes_into_the_buffer() {
        let sent: Vec<u8> = (0..CHUNK).map(|at| at as u8).collect();
        let mut source = sent.as_slice();
        let mut read_buffer = ReadBuffer::default();
        let mut room = [0; 10];
        let (of_body, came) = read_buffer.read_after(&mut room, &mut source).unwrap();
        assert_eq!((of_body, came.count), (10, 10 + AFTER));
        assert!(came.fills_room);
        assert_eq!(room, sent[..10]);
        assert_eq!(read_buffer.bytes(), &sent[10..10 + AFTER]);
        read_buffer.consume(AFTER);
        let mut source = &sent[..4];
        let (of_body, came) = read_buffer.read_after(&mut room, &mut source).unwrap();
        assert_eq!((of_body, came.count, came.fills_room), (4, 4, false));
        assert!(read_buffer.bytes().is_empty());
        let (_, came) = read_buffer.read_after(&mut room, &mut source).unwrap();
        assert_eq!(came.count, 0);
    }

    #[test]
    fn keeps_the_rest_of_a_frame_and_frees_memory() {
        let sent: Vec<u8> = (0..10 * CHUNK).map(|at| at as u8).collect();
        let mut source = sent.as_slice();
        let mut read_buffer = ReadBuffer::default();
        while read_buffer.read_from(&mut source).unwrap().count > 0 {}
        assert_eq!(read_buffer.bytes(), sent);

        read_buffer.consume(3);
        let mut more: &[u8] = b"more";
        read_buffer.read_from(&mut more).unwrap();
        assert_eq!(read_buffer.bytes(), [&sent[3..], b"more"].concat());

        read_buffer.consume(read_buffer.bytes().len());
        read_buffer.read_from(&mut more).unwrap();
        assert_eq!(read_buffer.buffer.len(), CHUNK);

        let mut more: &[u8] = b"more";
        read_buffer.read_from(&mut more).unwrap();
        read_buffer.shrink();
        assert_eq!(read_buffer.bytes(), b"more");
        read_buffer.consume(4);
        read_buffer.shrink();
        assert_eq!(read_buffer.buffer.capacity(), 0);
    }
}
