//! Messages take room in a window and give it back.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use loom::thread;

use super::{at_any_moment, check, never};
use crate::io_thread::deadline::Deadline;
use crate::publisher::window::{NoRoom, Weight, Window};
use crate::sync::Mutex;

/// A window of one message, and how many threads are inside.
struct Room {
    window: Window,
    inside: AtomicU32,
}

impl Room {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            window: Window::new(1, u64::MAX),
            inside: AtomicU32::new(0),
        })
    }

    /// Tries without the lock first, as a publisher does.
    fn enter(&self, deadline: Deadline) -> Result<(), NoRoom> {
        let taken = match self.window.try_take(weight()) {
            true => Ok(()),
            false => self.window.take(weight(), deadline, || false),
        };
        if taken.is_ok() {
            assert_eq!(self.inside.fetch_add(1, Ordering::Relaxed), 0);
        }
        taken
    }

    /// Waits until the window is empty.
    fn is_left(&self) {
        assert!(self.window.wait_empty(never()));
    }

    fn pass(&self) {
        self.enter(never()).unwrap();
        self.leave();
    }

    fn leave(&self) {
        self.inside.fetch_sub(1, Ordering::Relaxed);
        self.window.give_back(weight());
    }
}

fn weight() -> Weight {
    Weight::of(7)
}

#[test]
fn every_thread_gets_room_and_never_two_at_once() {
    check(3, || {
        let room = Room::new();
        let threads = [(); 2].map(|()| {
            let room = Arc::clone(&room);
            thread::spawn(move || room.pass())
        });
        room.pass();
        threads.into_iter().for_each(|it| it.join().unwrap());
        assert_eq!(room.window.taken(), (0, 0));
    });
}

#[test]
fn a_thread_that_gives_up_takes_nothing_and_costs_no_other_its_turn() {
    check(3, || {
        let room = Room::new();
        room.enter(never()).unwrap();
        let [hasty, patient] = [at_any_moment(), never()].map(|deadline| {
            let room = Arc::clone(&room);
            thread::spawn(move || {
                let taken = room.enter(deadline);
                if taken.is_ok() {
                    room.leave();
                }
                taken
            })
        });
        room.leave();
        assert_ne!(hasty.join().unwrap(), Err(NoRoom::UselessToWait));
        assert_eq!(patient.join().unwrap(), Ok(()));
        assert_eq!(room.window.taken(), (0, 0));
    });
}

#[test]
fn who_waits_for_the_last_message_is_woken_by_it() {
    check(None, || {
        let room = Room::new();
        room.enter(never()).unwrap();
        let waits = {
            let room = Arc::clone(&room);
            thread::spawn(move || room.window.wait_empty(never()))
        };
        room.leave();
        assert!(waits.join().unwrap());
    });
}

#[test]
fn an_empty_window_wakes_who_waits_for_it_and_who_waits_for_room() {
    check(3, || {
        let room = Room::new();
        room.enter(never()).unwrap();
        let [empty, next] = [Room::is_left, Room::pass].map(|wait: fn(&Room)| {
            let room = Arc::clone(&room);
            thread::spawn(move || wait(&room))
        });
        room.leave();
        empty.join().unwrap();
        next.join().unwrap();
    });
}

#[test]
fn who_waits_in_vain_is_told() {
    check(None, || {
        let room = Room::new();
        room.enter(never()).unwrap();
        let is_useless = Arc::new(Mutex::new(false));
        let waits = {
            let (room, is_useless) = (Arc::clone(&room), Arc::clone(&is_useless));
            thread::spawn(move || {
                let is_useless = || *is_useless.lock();
                room.window.take(weight(), never(), is_useless)
            })
        };
        *is_useless.lock() = true;
        room.window.look_again();
        assert_eq!(waits.join().unwrap(), Err(NoRoom::UselessToWait));
    });
}
