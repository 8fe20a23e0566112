//! The IO thread answers a message while threads wait for its outcome, or no longer do.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use loom::thread;

use super::{at_any_moment, check, never};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::ConfirmMailbox;
use crate::log_line::Label;
use crate::proto::Outcome;
use crate::publisher::confirm::{ConfirmSlot, PublisherState, UnreportedFailures};
use crate::publisher::window::{Weight, Window};
use crate::sync::Mutex;

const NUMBER: u64 = 1;

/// A publisher with a window of one message, which a message has taken.
fn published() -> (Arc<PublisherState>, Arc<ConfirmSlot>) {
    let publisher = Arc::new(PublisherState {
        label: Box::new(|| Label::new("model", "nowhere")),
        window: Window::new(1, 100),
        failures: Mutex::new(UnreportedFailures::new(100)),
        outcomes: OnceLock::new(),
        confirm_timeout: Duration::MAX,
        recovers: true,
    });
    assert!(publisher.window.try_take(weight()));
    let slot = Arc::new(ConfirmSlot::new(Arc::clone(&publisher), weight()));
    (publisher, slot)
}

fn weight() -> Weight {
    Weight::of(7)
}

/// Waits for the outcome and drops the slot. Returns whether the message was confirmed.
fn waiter(slot: &Arc<ConfirmSlot>, deadline: Deadline) -> thread::JoinHandle<Option<bool>> {
    let slot = Arc::clone(slot);
    thread::spawn(move || {
        slot.wait(deadline);
        Some(slot.read(NUMBER)?.is_ok())
    })
}

/// The IO thread's clone of the slot is the last one, or not.
fn answer(slot: Arc<ConfirmSlot>, outcome: Outcome) {
    slot.answered(NUMBER, outcome);
}

#[test]
fn all_that_wait_hear_the_outcome_or_time_out() {
    check(3, || {
        let (publisher, slot) = published();
        let (patient, hasty) = (waiter(&slot, never()), waiter(&slot, at_any_moment()));
        answer(slot, Outcome::Nacked);
        assert_eq!(patient.join().unwrap(), Some(false));
        assert_ne!(hasty.join().unwrap(), Some(true));
        // Someone has read the failure.
        let failures = &mut publisher.failures.lock();
        let since = failures.wait();
        assert!(failures.report(since).is_ok());
        assert_eq!(publisher.window.taken(), (0, 0));
    });
}

#[test]
fn who_reads_an_outcome_finds_the_room_given_back() {
    check(3, || {
        let (publisher, slot) = published();
        let reader = {
            let (publisher, slot) = (Arc::clone(&publisher), Arc::clone(&slot));
            thread::spawn(move || {
                slot.wait(at_any_moment());
                if let Some(outcome) = slot.read(NUMBER) {
                    outcome.unwrap();
                    assert_eq!(publisher.window.taken(), (0, 0));
                }
            })
        };
        answer(slot, Outcome::Confirmed);
        reader.join().unwrap();
        assert_eq!(publisher.window.taken(), (0, 0));
    });
}

#[test]
fn an_answer_makes_room_for_the_next_message() {
    check(3, || {
        let (publisher, slot) = published();
        let next = {
            let publisher = Arc::clone(&publisher);
            thread::spawn(move || publisher.window.take(weight(), never(), || false))
        };
        let waiter = waiter(&slot, never());
        answer(slot, Outcome::Confirmed);
        assert_eq!(next.join().unwrap(), Ok(()));
        assert_eq!(waiter.join().unwrap(), Some(true));
        assert_eq!(publisher.window.taken(), (1, 7));
    });
}

/// As `Publisher::wait_for_confirms` reports after the end of a channel.
#[test]
fn a_failure_is_reported_once_the_window_is_empty() {
    check(3, || {
        let (publisher, slot) = published();
        let reporter = {
            let publisher = Arc::clone(&publisher);
            thread::spawn(move || {
                let since = publisher.failures.lock().wait();
                assert!(publisher.window.wait_empty(never()));
                publisher.failures.lock().report(since).is_err()
            })
        };
        answer(slot, Outcome::Nacked);
        assert!(reporter.join().unwrap());
    });
}
