//! Recycles the memory of messages that the program has dropped.

use std::mem::size_of;

use parking_lot::Mutex;

use crate::proto::Buffers;

/// Once the pool holds this many bytes, it frees the buffers that come back. Less than what is on
/// its way to a reader that keeps up, and the allocator returns memory to the system all the time.
const LIMIT: usize = 1 << 20;
/// What a buffer takes beside its capacity, in bytes: its entry here, and the allocator's.
const OVERHEAD: usize = size_of::<Vec<u8>>() + 16;
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
    small_bytes: usize,
    large: Vec<Vec<u8>>,
    large_bytes: usize,
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
        if kept.small_bytes + kept.large_bytes >= LIMIT {
            return;
        }
        match Buffers::is_small(capacity) {
            true => {
                buffer.clear();
                kept.small_bytes += capacity + OVERHEAD;
                kept.small.push(buffer);
            }
            false => {
                kept.large_bytes += capacity + OVERHEAD;
                kept.large.push(buffer);
            }
        }
    }

    /// Frees all memory, unless the lock is taken.
    pub(crate) fn shrink(&self) {
        if let Some(mut kept) = self.kept.try_lock() {
            *kept = Kept::default();
        }
    }

    /// Moves the buffers of each kind that `into` has none of, or nothing if the lock is taken. So
    /// `into` never has more than the pool may have.
    pub(crate) fn take(&self, into: &mut Buffers) {
        let Some(mut kept) = self.kept.try_lock() else {
            return;
        };
        if into.small.is_empty() {
            into.small.append(&mut kept.small);
            kept.small_bytes = 0;
        }
        if into.large.is_empty() {
            into.large.append(&mut kept.large);
            kept.large_bytes = 0;
        }
        into.wants_large = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_up_to_the_limit() {
        let pool = BufferPool::default();
        let sizes = |buffers: &Buffers| (buffers.small.len(), buffers.large.len());
        let mut taken = Buffers::default();
        pool.give_back(vec![1; 100]);
        pool.give_back(vec![2; 100 << 10]);
        pool.give_back(Vec::new());
        pool.give_back(vec![3; LARGEST + 1]);
        pool.take(&mut taken);
        assert_eq!(sizes(&taken), (1, 1));
        // Only small ones are cleared.
        assert_eq!((taken.small[0].len(), taken.large[0].len()), (0, 100 << 10));

        for _ in 0..10 {
            pool.give_back(vec![2; LARGEST]);
        }
        pool.give_back(vec![1; 100]);
        let mut taken = Buffers::default();
        pool.take(&mut taken);
        assert_eq!(sizes(&taken), (0, 2));
        // What is not used is not added to.
        for _ in 0..10 {
            pool.give_back(vec![1; 100]);
            pool.give_back(vec![2; LARGEST]);
            pool.take(&mut taken);
        }
        assert_eq!(sizes(&taken), (1, 2));
    }
}
