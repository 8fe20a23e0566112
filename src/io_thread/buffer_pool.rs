//! Recycles the memory of messages that the program has dropped.

use parking_lot::Mutex;

/// Once the pool holds this much, in bytes, it frees the buffers that come back.
const LIMIT: usize = 64 << 10;
/// Larger buffers, in bytes, are not worth keeping.
const LARGEST: usize = 1 << 10;

/// Carries buffers from the threads that drop messages back to the IO thread, which fills them
/// again. Allocating on one thread and freeing on another costs more than everything else that is
/// done for a small message.
///
/// Never blocks: if the lock is taken, the buffer is freed instead of pooled.
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

    /// Moves all buffers into `into`, or none if the lock is taken.
    pub(crate) fn take(&self, into: &mut Vec<Vec<u8>>) {
        if let Some(mut kept) = self.kept.try_lock() {
            into.append(&mut kept.buffers);
            kept.bytes = 0;
        }
    }
}
