//! The account of one run: what each party knows, and the faults that follow from it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::proto::Outcome;

/// What the broker did with a published message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It has the message, and has not answered.
    Received,
    /// It has the message, and may have answered in any way: this broker does not tell.
    Taken,
    Confirmed,
    Nacked,
    Returned,
}

/// What the program was told about a message with a confirm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Fate(Fate),
    Lost { may_have_been_sent: bool },
}

#[derive(Default)]
struct Account {
    faults: Vec<String>,
    /// `None` unless the run is traced.
    trace: Option<Vec<String>>,
    fates: BTreeMap<u64, Fate>,
    /// The broker does not tell which messages it has nacked.
    hides_nacks: bool,
    confirms: BTreeMap<u64, Told>,
    /// Messages that are published again after a loss.
    kept: BTreeSet<u64>,
    /// How many messages each consumer got on this connection.
    got: BTreeMap<i64, usize>,
}

#[derive(Clone, Default)]
pub(super) struct Ledger(Arc<Mutex<Account>>);

impl Ledger {
    pub(super) fn traced() -> Self {
        let ledger = Self::default();
        ledger.0.lock().trace = Some(Vec::new());
        ledger
    }

    /// Adds a line to the trace, if there is one.
    pub(super) fn trace(&self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.0.lock().trace {
            trace.push(line());
        }
    }

    pub(super) fn fault(&self, fault: impl fmt::Display) {
        self.trace(|| format!("FAULT: {fault}"));
        self.0.lock().faults.push(fault.to_string());
    }

    pub(super) fn check(&self, holds: bool, fault: impl FnOnce() -> String) {
        if !holds {
            self.fault(fault());
        }
    }

    pub(super) fn has_faults(&self) -> bool {
        !self.0.lock().faults.is_empty()
    }

    pub(super) fn take_faults(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().faults)
    }

    pub(super) fn take_trace(&self) -> Vec<String> {
        self.0.lock().trace.take().unwrap_or_default()
    }

    pub(super) fn note_got(&self, consumer: u64) {
        let consumer = consumer as i64;
        *self.0.lock().got.entry(consumer).or_default() += 1;
    }

    pub(super) fn restarts(&self, consumer: u64) {
        self.0.lock().got.remove(&(consumer as i64));
    }

    pub(super) fn got(&self, consumer: i64) -> usize {
        self.0
            .lock()
            .got
            .get(&consumer)
            .copied()
            .unwrap_or_default()
    }

    // ---- messages ----

    pub(super) fn fate(&self, message: u64) -> Option<Fate> {
        self.0.lock().fates.get(&message).copied()
    }

    pub(super) fn keep(&self, message: u64) {
        self.0.lock().kept.insert(message);
    }

    /// The broker has got a message.
    pub(super) fn received(&self, message: u64, fate: Fate) {
        // The broker of the lost connection may have got it, too, and only now.
        let is_again = self.0.lock().kept.contains(&message);
        let before = self.fate(message);
        self.check(before.is_none() || is_again, || {
            format!("message {message} was published twice")
        });
        self.set_fate(message, fate);
    }

    pub(super) fn set_fate(&self, message: u64, fate: Fate) {
        self.0.lock().fates.insert(message, fate);
    }

    pub(super) fn hide_nacks(&self) {
        self.0.lock().hides_nacks = true;
    }

    pub(super) fn awaits(&self, message: u64) {
        self.0.lock().confirms.insert(message, Told::Nothing);
    }

    /// The message was not published after all.
    pub(super) fn awaits_no_more(&self, message: u64) {
        self.0.lock().confirms.remove(&message);
    }

    /// The program was told the outcome of a message.
    pub(super) fn told(&self, message: u64, outcome: &Outcome) {
        let told = match outcome {
            Outcome::Confirmed => Told::Fate(Fate::Confirmed),
            Outcome::Nacked => Told::Fate(Fate::Nacked),
            Outcome::Returned(returned) => {
                let body = String::from_utf8_lossy(returned.content.body()).into_owned();
                self.check(body == format!("m{message}"), || {
                    format!("message {message} was returned with the body {body:?}")
                });
                Told::Fate(Fate::Returned)
            }
            Outcome::Lost {
                may_have_been_sent, ..
            } => Told::Lost {
                may_have_been_sent: *may_have_been_sent,
            },
        };
        self.trace(|| format!("  program: message {message}: {told:?}"));
        let before = self.0.lock().confirms.insert(message, told);
        self.check(before == Some(Told::Nothing), || {
            format!("the confirm of message {message} has two answers: {before:?} and {told:?}")
        });
        if let Told::Fate(told) = told {
            let fate = self.fate(message);
            let is_hidden = told == Fate::Nacked && self.0.lock().hides_nacks;
            self.check(is_hidden || is_true(told, fate), || {
                format!("message {message} counts as {told:?}, but the broker says {fate:?}")
            });
        }
    }

    /// The program was told that a message without a confirm was nacked, or was not.
    pub(super) fn told_plainly(&self, message: u64, is_nacked: bool) {
        let fate = self.fate(message);
        let holds = match is_nacked {
            true => is_true(Fate::Nacked, fate) || self.0.lock().hides_nacks,
            false => is_true(Fate::Confirmed, fate) || is_true(Fate::Returned, fate),
        };
        self.check(holds, || {
            format!("message {message}: nacked {is_nacked}, but the broker says {fate:?}")
        });
    }

    /// Called when everything has ended.
    pub(super) fn check_end(&self) {
        let confirms = self.0.lock().confirms.clone();
        for (message, told) in confirms {
            self.check(told != Told::Nothing, || {
                format!("the confirm of message {message} has no answer")
            });
            let is_unsent = told
                == Told::Lost {
                    may_have_been_sent: false,
                };
            let fate = self.fate(message);
            self.check(!is_unsent || fate.is_none(), || {
                format!("message {message} counts as unsent, but the broker says {fate:?}")
            });
        }
    }

    pub(super) fn unanswered(&self) -> usize {
        let account = self.0.lock();
        let unanswered = account.confirms.values();
        unanswered.filter(|it| **it == Told::Nothing).count()
    }
}

/// Whether the program may be told so.
fn is_true(told: Fate, fate: Option<Fate>) -> bool {
    match fate {
        Some(Fate::Taken) => true,
        fate => fate == Some(told),
    }
}
