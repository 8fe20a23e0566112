//! The settings of a channel that the next connection must restore: prefetch, transactions, last
//! queue.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::Error;
use crate::session::queue_names::{Name, QueueName};
use crate::wire::method::{BasicQos, Method};

/// The transaction of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum TxState {
    /// The channel has no transactions.
    Off,
    /// The current transaction is empty.
    Empty,
    /// The current transaction has publishes or acknowledgements.
    Begun,
    /// A part of the current transaction was lost.
    Torn,
}

/// Why a part of a transaction is lost.
#[derive(Debug, Default)]
struct TornBy {
    /// The last loss of the connection, or the last end of the channel.
    loss: Option<Error>,
    /// Another reason, of the current transaction only.
    other: Option<Error>,
}

#[derive(Debug)]
pub(crate) struct Settings {
    qos: Mutex<Qos>,
    /// The warning about a prefetch for the whole channel was logged.
    has_warned: AtomicBool,
    /// Changes under the outbox's lock only.
    transaction: AtomicU8,
    torn_by: Mutex<TornBy>,
    /// The queue that the channel declared last, which the empty name means.
    last_queue: Mutex<Option<Arc<Name>>>,
}

/// The prefetch that the program set on a channel.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Qos {
    /// For each new consumer.
    pub(crate) each: Option<BasicQos>,
    /// For the whole channel. The program set this after `each`.
    pub(crate) global: Option<BasicQos>,
}

impl Qos {
    fn set(&mut self, qos: BasicQos) {
        if qos.global {
            self.global = Some(qos);
        } else {
            // RabbitMQ then drops the limit of the whole channel.
            *self = Self {
                each: Some(qos),
                global: None,
            };
        }
    }

    /// What to send on a new channel. The order matters: a broker without a limit for the whole
    /// channel applies the last value to each consumer.
    pub(crate) fn methods(&self) -> impl Iterator<Item = &BasicQos> {
        [&self.each, &self.global].into_iter().flatten()
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            qos: Mutex::default(),
            has_warned: AtomicBool::new(false),
            transaction: AtomicU8::new(TxState::Off as u8),
            torn_by: Mutex::default(),
            last_queue: Mutex::default(),
        }
    }
}

impl Settings {
    /// The broker has carried out this method. Called under the outbox's lock.
    pub(crate) fn done(&self, method: &Method<'_>) {
        match method {
            Method::BasicQos(qos) => self.qos.lock().set(qos.clone()),
            Method::TxSelect(_) => self.change(&[TxState::Off], TxState::Empty),
            _ => {}
        }
    }

    pub(crate) fn qos(&self) -> Qos {
        self.qos.lock().clone()
    }

    /// Returns true once: the caller then logs the warning about a prefetch for the whole channel.
    pub(crate) fn take_warning(&self) -> bool {
        !self.has_warned.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn set_last_queue(&self, name: Arc<Name>) {
        *self.last_queue.lock() = Some(name);
    }

    /// The name to send. Called under the outbox's lock.
    pub(crate) fn resolve<'a>(&self, queue: QueueName<'a>) -> Cow<'a, str> {
        if let Some(name) = queue.known() {
            return name.into();
        }
        let last = self.last_queue.lock();
        last.as_ref()
            .map_or(String::new(), |it| it.current().to_owned())
            .into()
    }

    // ---- transactions ----

    fn change(&self, from: &[TxState], to: TxState) {
        if from.iter().any(|it| self.is_in(*it)) {
            self.transaction.store(to as u8, Ordering::Release);
        }
    }

    fn is_in(&self, state: TxState) -> bool {
        self.transaction.load(Ordering::Acquire) == state as u8
    }

    pub(crate) fn has_transactions(&self) -> bool {
        !self.is_in(TxState::Off)
    }

    /// A message is published or acknowledged.
    #[inline]
    pub(crate) fn used(&self) {
        if self.transaction.load(Ordering::Relaxed) == TxState::Empty as u8 {
            self.transaction
                .store(TxState::Begun as u8, Ordering::Relaxed);
        }
    }

    pub(crate) fn interrupted(&self, cause: &Error) {
        self.torn_by.lock().loss = Some(cause.clone());
        self.change(&[TxState::Begun], TxState::Torn);
    }

    /// An acknowledgement was not sent: for this reason, or because of the last lost connection.
    pub(crate) fn answer_lost(&self, reason: Option<Error>) {
        if self.is_in(TxState::Empty) || self.is_in(TxState::Begun) {
            self.torn_by.lock().other = reason;
        }
        self.change(&[TxState::Empty, TxState::Begun], TxState::Torn);
    }

    /// Ends the transaction. If a part of it was lost, returns the cause.
    pub(crate) fn end_transaction(&self) -> Option<Error> {
        let is_torn = self.is_in(TxState::Torn);
        self.change(&[TxState::Begun, TxState::Torn], TxState::Empty);
        let mut torn_by = self.torn_by.lock();
        let reason = torn_by.other.take().or_else(|| torn_by.loss.clone());
        reason.filter(|_| is_torn)
    }
}
