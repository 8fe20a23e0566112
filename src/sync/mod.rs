//! What threads wait for and wake each other with: locks, condition variables, atomics, and the
//! waker of the IO thread.
//!
//! With `--cfg loom`, unit tests get the types of `modelled` under the same names, so the models
//! in `src/models` run the code that the program runs.

#[cfg(all(loom, test))]
pub(crate) mod modelled;

#[cfg(all(loom, test))]
pub(crate) use modelled::{AtomicBool, AtomicU64, AtomicUsize, Condvar, Mutex, MutexGuard, Waker};

#[cfg(not(all(loom, test)))]
pub(crate) use {
    mio::Waker,
    parking_lot::{Condvar, Mutex, MutexGuard},
    std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize},
};
