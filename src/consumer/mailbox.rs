//! The IO thread's side of a consumer.

use std::sync::Arc;
use std::vec::Drain;

use super::deliveries::Deliveries;
use crate::error::{ClosedBy, Error, ErrorKind};
use crate::io_thread::mailbox::{Call, ConsumerMailbox};
use crate::proto::{Delivered, Settling};
use crate::session::channel::ChannelState;
use crate::session::stream_position::StreamPosition;
use crate::session::subscription::{Started, Subscription};
use crate::wire::method::{BasicConsume, Encode};
use crate::wire::value::FieldTable;

/// The IO thread's side of a consumer. It does not keep the channel open. Dropping it ends the
/// consumer's messages.
pub(crate) struct Mailbox {
    pub(crate) deliveries: Arc<Deliveries>,
    pub(crate) state: Arc<ChannelState>,
    pub(crate) recovers: bool,
    pub(crate) subscription: Arc<Subscription>,
    /// For streams only.
    pub(crate) position: Option<StreamPosition>,
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        self.deliveries.end(None);
    }
}

impl ConsumerMailbox for Mailbox {
    fn deliver(&self, messages: Drain<'_, Delivered>) -> u64 {
        self.subscription.delivered();
        if let Some(position) = &self.position {
            let messages = messages.as_slice().iter();
            messages.for_each(|it| position.came(&it.content));
        }
        if !self.subscription.is_abandoned() {
            return self.deliveries.push(messages);
        }
        for message in messages {
            self.give_back(message.delivery_tag);
        }
        0
    }

    fn wake(&self) {
        self.deliveries.wake();
    }

    fn settling(&self) -> Settling {
        self.subscription.settling()
    }

    fn unread(&self) -> u64 {
        self.deliveries.unread()
    }

    fn started(&self) {
        let Some(Started { mut cancels, again }) = self.subscription.start() else {
            return;
        };
        let consumer_tag = &self.subscription.consumer_tag;
        if !again {
            self.state.consumer_started(consumer_tag);
        }
        if self.subscription.is_abandoned() {
            cancels.push(Call::unawaited());
        }
        for call in cancels {
            self.state.cancel_for(&self.subscription, call);
        }
    }

    fn ended(&self, error: Option<Error>) {
        let Some(end) = self.subscription.end() else {
            return;
        };
        let tag = &self.subscription.consumer_tag;
        if error.as_ref().is_some_and(is_cancelled_by_broker) {
            self.revoke();
        }
        let is_refused =
            error.as_ref().is_some_and(is_consume_refused) && self.subscription.is_assumed();
        self.deliveries.end(error.clone());
        // A message can come just when the consumer is dropped.
        if self.subscription.is_abandoned() {
            self.deliveries.discard(|delivery_tag| {
                // Messages of a lost connection cannot be given back, and a cancel that finds the
                // consumer interrupted holds the outbox's lock, which `give_back` takes.
                if !end.was_interrupted {
                    self.give_back(delivery_tag);
                }
            });
        }
        // If the broker has cancelled the consumer, callers that wanted to cancel it have
        // succeeded.
        let error = error.filter(|it| !is_cancelled_by_broker(it));
        for call in end.cancels {
            let cancelled = || Ok(self.subscription.cancelled());
            call.answer(error.clone().map_or_else(cancelled, Err));
        }
        self.state.consumer_ended(tag, end.was_live && !is_refused);
    }

    fn outlives(&self, error: &Error) -> bool {
        self.state.has_outlived(error)
    }

    fn interrupted(&self, error: &Error) {
        // The broker delivers unacknowledged messages again. A stream does not: its consumer
        // continues after the last message that came, and unread messages can still be read. With
        // `no_ack` they can be read, too: the broker has forgotten them.
        if self.subscription.settling() == Settling::Requeue {
            self.deliveries.discard(|_| {});
        }
        if !self.recovers {
            self.ended(Some(error.clone()));
        } else if !self.subscription.interrupt() {
            self.ended(None);
        }
    }

    fn is_without_queue(&self) {
        if let Some(position) = &self.position {
            position.begin_at_first();
        }
    }

    fn restart(&self, arguments: &mut FieldTable) -> bool {
        if let Some(position) = &self.position {
            position.write_to(arguments, self.subscription.since());
        }
        self.subscription.restart()
    }
}

impl Mailbox {
    /// Gives unread messages back after the broker has cancelled the consumer. Otherwise RabbitMQ
    /// 4.3 closes the channel (406) if they time out later.
    fn revoke(&self) {
        if self.subscription.no_ack {
            return;
        }
        self.subscription.revoke();
        self.deliveries
            .discard(|delivery_tag| self.give_back(delivery_tag));
    }

    fn give_back(&self, delivery_tag: u64) {
        self.state
            .give_back_unread(&self.subscription, delivery_tag);
    }
}

fn is_cancelled_by_broker(error: &Error) -> bool {
    let by_broker = ClosedBy::Broker;
    matches!(error.kind(), ErrorKind::ConsumerCancelled { by, .. } if *by == by_broker)
}

/// Whether a channel was closed because a consumer was refused.
fn is_consume_refused(error: &Error) -> bool {
    let reason = error.close_reason();
    reason.is_some_and(|it| it.method == BasicConsume::ID.name())
}
