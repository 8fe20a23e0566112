//! What a channel was set to, so that the next connection has it the same.

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
    /// Nothing is in the current transaction.
    Empty,
    /// Something is in the current transaction.
    Begun,
    /// A part of the current transaction was lost.
    Torn,
}

#[derive(Debug)]
pub(crate) struct Settings {
    qos: Mutex<Qos>,
    /// The log says that the broker has no limit for a whole channel.
    has_warned: AtomicBool,
    /// Changes under the outbox's lock only.
    transaction: AtomicU8,
    /// With what the last loss came.
    lost_with: Mutex<Option<Error>>,
    /// The queue that was declared last, which the empty name stands for.
    last_queue: Mutex<Option<Arc<Name>>>,
}

/// The prefetch that a channel has asked for.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Qos {
    /// For consumers that begin from now on.
    pub(crate) each: Option<BasicQos>,
    /// For the whole channel. The program has asked for it after `each`.
    pub(crate) global: Option<BasicQos>,
}

impl Qos {
    fn set(&mut self, qos: BasicQos) {
        if qos.global {
            self.global = Some(qos);
        } else {
            // RabbitMQ then drops the limit for the channel.
            *self = Self {
                each: Some(qos),
                global: None,
            };
        }
    }

    /// What to ask for on a new channel, in this order: a broker that knows no limit for a whole
    /// channel takes the last one for each consumer.
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
            lost_with: Mutex::default(),
            last_queue: Mutex::default(),
        }
    }
}

impl Settings {
    /// The broker has done this. Under the outbox's lock.
    pub(crate) fn done(&self, asked: &Method<'_>) {
        match asked {
            Method::BasicQos(qos) => self.qos.lock().set(qos.clone()),
            Method::TxSelect(_) => self.change(&[TxState::Off], TxState::Empty),
            _ => {}
        }
    }

    pub(crate) fn qos(&self) -> Qos {
        self.qos.lock().clone()
    }

    /// Whether the log is to say now that the broker has no limit for a whole channel.
    pub(crate) fn is_to_warn(&self) -> bool {
        !self.has_warned.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn set_last_queue(&self, name: Arc<Name>) {
        *self.last_queue.lock() = Some(name);
    }

    /// The name to be sent. Under the outbox's lock.
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

    /// Something is published or acknowledged.
    #[inline]
    pub(crate) fn used(&self) {
        if self.transaction.load(Ordering::Relaxed) == TxState::Empty as u8 {
            self.transaction
                .store(TxState::Begun as u8, Ordering::Relaxed);
        }
    }

    pub(crate) fn interrupted(&self, cause: &Error) {
        *self.lost_with.lock() = Some(cause.clone());
        self.change(&[TxState::Begun], TxState::Torn);
    }

    /// An answer was not sent, since its message went with the connection.
    pub(crate) fn answer_lost(&self) {
        self.change(&[TxState::Empty, TxState::Begun], TxState::Torn);
    }

    /// The transaction ends. Returns with what a part of it was lost, if so.
    pub(crate) fn end_transaction(&self) -> Option<Error> {
        let is_torn = self.is_in(TxState::Torn);
        self.change(&[TxState::Begun, TxState::Torn], TxState::Empty);
        self.lost_with.lock().clone().filter(|_| is_torn)
    }
}
