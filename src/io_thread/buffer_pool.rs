//! Recycles the memory of messages that the program has dropped.

use parking_lot::Mutex;

use crate::proto::Buffers;

/// Once the pool holds this many bytes, it frees the buffers that come back. Less than what is on its
/// way to a reader that keeps up, and the allocator returns memory to the system all the time.
const LIMIT: usize = 1 << 20;
/// Larger buffers, in bytes, are not worth keeping.
const LARGEST: usize = LIMIT / 2;

/// Carries buffers from the threads that drop messages back to the IO thread, which fills them
/// again. Allocating on one thread and freeing on another costs more than everything else that is
/// done for a small message, and fresh memory for a large one costs more than reading it.
///
/// Never blocks: if the lock is taken, the buffer is freed instead of pooled.
#[derive(Debug, Default)]
pub(crate) struct BufferPool {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    small: Vec<Vec<u8>>,
    large: Vec<Vec<u8>>,
    bytes: usize,
}

impl BufferPool {
    #[inline]
    pub(crate) fn give_back(&self, mut buffer: Vec<u8>) {
        let capacity = buffer.capacity();
        if !(1..=LARGEST).contains(&capacity) {
            return;
        }
        let Some(mut kept) = self.kept.try_lock() else {
            return;
        };
        if kept.bytes >= LIMIT {
            return;
        }
        kept.bytes += capacity;
        match Buffers::is_small(capacity) {
            true => {
                buffer.clear();
                kept.small.push(buffer);
            }
            false => kept.large.push(buffer),
        }
    }

    /// Moves all buffers into `into`, or none if the lock is taken.
    pub(crate) fn take(&self, into: &mut Buffers) {
        if let Some(mut kept) = self.kept.try_lock() {
            into.small.append(&mut kept.small);
            into.large.append(&mut kept.large);
            kept.bytes = 0;
            into.were_added();
        }
    }
}
