//! The types of `parking_lot`, `std` and `mio`, made of those of `loom`.
//!
//! `loom` runs a model in every order of its threads' steps. A step is an access to one of these
//! types.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use loom::sync as inner;
use loom::thread::{self, Thread};

/// A deadline further away than this never passes in a model.
const FAR: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Default)]
pub(crate) struct Mutex<T> {
    inner: inner::Mutex<T>,
}

pub(crate) struct MutexGuard<'a, T> {
    mutex: &'a inner::Mutex<T>,
    /// `None` only while a thread waits for a notice.
    locked: Option<inner::MutexGuard<'a, T>>,
}

fn lock<T>(mutex: &inner::Mutex<T>) -> inner::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        let inner = inner::Mutex::new(value);
        Self { inner }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard {
            mutex: &self.inner,
            locked: Some(lock(&self.inner)),
        }
    }
}

impl<T> MutexGuard<'_, T> {
    fn unlocked<R>(&mut self, run: impl FnOnce() -> R) -> R {
        self.locked = None;
        let result = run();
        self.locked = Some(lock(self.mutex));
        result
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.locked.as_ref().unwrap()
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.locked.as_mut().unwrap()
    }
}

/// Has no spurious wake-ups, as that of `parking_lot`: they could hide a lost notice.
#[derive(Debug, Default)]
pub(crate) struct Condvar {
    /// Each change of the queue is a step.
    steps: inner::atomic::AtomicUsize,
    /// In the order in which they began to wait. Never locked across a step.
    queue: std::sync::Mutex<VecDeque<Arc<Waiting>>>,
}

#[derive(Debug)]
struct Waiting {
    thread: Thread,
    /// Read and written only between two steps, so this need not be modelled.
    notified: std::sync::atomic::AtomicBool,
}

pub(crate) struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    pub(crate) fn timed_out(&self) -> bool {
        self.0
    }
}

impl Waiting {
    fn notify(&self) {
        self.notified.store(true, Ordering::Release);
        self.thread.unpark();
    }

    fn wait(&self) {
        while !self.notified.load(Ordering::Acquire) {
            thread::park();
        }
    }
}

impl Condvar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn step<R>(&self, change: impl FnOnce(&mut VecDeque<Arc<Waiting>>) -> R) -> R {
        self.steps.fetch_add(1, Ordering::Relaxed);
        change(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn enqueue(&self) -> Arc<Waiting> {
        let waiting = Arc::new(Waiting {
            thread: thread::current(),
            notified: std::sync::atomic::AtomicBool::new(false),
        });
        self.step(|queue| queue.push_back(Arc::clone(&waiting)));
        waiting
    }

    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let waiting = self.enqueue();
        guard.unlocked(|| waiting.wait());
    }

    /// The deadline never passes if it is [`FAR`] away. Otherwise it passes before the notice in
    /// some runs and after it in others.
    #[allow(clippy::disallowed_methods)] // Only to tell the two kinds of deadlines apart.
    pub(crate) fn wait_until<T>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        deadline: Instant,
    ) -> WaitTimeoutResult {
        let waiting = self.enqueue();
        guard.unlocked(|| {
            let mut timed_out = false;
            if deadline < Instant::now() + FAR {
                timed_out = self.step(|queue| {
                    let before = queue.len();
                    queue.retain(|it| !Arc::ptr_eq(it, &waiting));
                    queue.len() < before
                });
            }
            if !timed_out {
                waiting.wait();
            }
            WaitTimeoutResult(timed_out)
        })
    }

    pub(crate) fn notify_one(&self) {
        let first = self.step(VecDeque::pop_front);
        first.iter().for_each(|it| it.notify());
    }

    pub(crate) fn notify_all(&self) {
        let all = self.step(std::mem::take);
        all.iter().for_each(|it| it.notify());
    }
}

loom::thread_local! {
    /// Whether the thread's last access to an atomic was `SeqCst`.
    static WAS_SEQ_CST: Cell<bool> = Cell::new(false);
}

/// Runs an access. `loom` takes `SeqCst` for `AcqRel`. A fence between two such accesses restores
/// their order; next to a weaker access there is none, so that a model finds an order that is too
/// weak.
fn fenced<R>(order: Ordering, access: impl FnOnce() -> R) -> R {
    let is_seq_cst = order == Ordering::SeqCst;
    if WAS_SEQ_CST.with(|it| it.replace(is_seq_cst)) && is_seq_cst {
        inner::atomic::fence(order);
    }
    access()
}

macro_rules! atomic {
    ($name:ident, $value:ty) => {
        #[derive(Debug, Default)]
        pub(crate) struct $name(inner::atomic::$name);

        #[allow(dead_code)] // Each type has more methods than the program calls.
        impl $name {
            pub(crate) fn new(value: $value) -> Self {
                Self(inner::atomic::$name::new(value))
            }

            pub(crate) fn load(&self, order: Ordering) -> $value {
                fenced(order, || self.0.load(order))
            }

            pub(crate) fn store(&self, value: $value, order: Ordering) {
                fenced(order, || self.0.store(value, order));
            }

            pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
                fenced(order, || self.0.swap(value, order))
            }

            pub(crate) fn fetch_update(
                &self,
                set_order: Ordering,
                fetch_order: Ordering,
                mut update: impl FnMut($value) -> Option<$value>,
            ) -> Result<$value, $value> {
                let mut current = self.load(fetch_order);
                while let Some(next) = update(current) {
                    let exchange =
                        || { &self.0 }.compare_exchange(current, next, set_order, fetch_order);
                    match fenced(set_order, exchange) {
                        Ok(previous) => return Ok(previous),
                        Err(changed) => current = changed,
                    }
                }
                Err(current)
            }
        }
    };
}

macro_rules! number {
    ($name:ident, $value:ty) => {
        atomic!($name, $value);

        #[allow(dead_code)]
        impl $name {
            pub(crate) fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                fenced(order, || self.0.fetch_add(value, order))
            }

            pub(crate) fn fetch_sub(&self, value: $value, order: Ordering) -> $value {
                fenced(order, || self.0.fetch_sub(value, order))
            }
        }
    };
}

atomic!(AtomicBool, bool);
number!(AtomicU64, u64);
number!(AtomicUsize, usize);

/// Wakes the poll of the IO thread, or a model's [`Sleeper`].
pub(crate) enum Waker {
    Poll(mio::Waker),
    Sleeper(Arc<Signal>),
}

#[derive(Default)]
pub(crate) struct Signal {
    is_set: Mutex<bool>,
    changed: Condvar,
}

/// Sleeps as a poll does: a wake-up that comes before is kept, and several are one.
pub(crate) struct Sleeper(Arc<Signal>);

impl Waker {
    pub(crate) fn new(registry: &mio::Registry, token: mio::Token) -> io::Result<Self> {
        mio::Waker::new(registry, token).map(Self::Poll)
    }

    pub(crate) fn of_model() -> (Self, Sleeper) {
        let signal = Arc::new(Signal::default());
        (Self::Sleeper(Arc::clone(&signal)), Sleeper(signal))
    }

    pub(crate) fn wake(&self) -> io::Result<()> {
        match self {
            Self::Poll(waker) => waker.wake(),
            Self::Sleeper(signal) => {
                *signal.is_set.lock() = true;
                signal.changed.notify_one();
                Ok(())
            }
        }
    }
}

impl Sleeper {
    pub(crate) fn sleep(&self) {
        let mut is_set = self.0.is_set.lock();
        while !std::mem::take(&mut *is_set) {
            self.0.changed.wait(&mut is_set);
        }
    }
}
