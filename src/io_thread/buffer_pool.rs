//! Memory of messages that the program has dropped, to be filled again.

use parking_lot::Mutex;

/// What is kept at most, in bytes.
const LIMIT: usize = 64 << 10;
/// Larger buffers are not worth it.
const LARGEST: usize = 1 << 10;

/// Buffers on their way back from the threads that drop messages to the IO thread, which makes them. To allocate on one
/// thread what another one frees costs more than all else that is done for a small message.
///
/// Nobody waits here: who does not get in at once, does without.
#[derive(Debug, Default)]
pub(crate) struct BufferPool {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

impl BufferPool {
    #[inline]
    pub(crate) fn give_back(&self, mut buffer: Vec<u8>) {
        if !(1..=LARGEST).contains(&buffer.capacity()) {
            return;
        }
        let Some(mut kept) = self.kept.try_lock() else {
            return;
        };
        if kept.bytes < LIMIT {
            buffer.clear();
            kept.bytes += buffer.capacity();
            kept.buffers.push(buffer);
        }
    }

    /// Takes all there are.
    pub(crate) fn take(&self, into: &mut Vec<Vec<u8>>) {
        if let Some(mut kept) = self.kept.try_lock() {
            into.append(&mut kept.buffers);
            kept.bytes = 0;
        }
    }
}
