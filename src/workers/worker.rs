//! One thread that handles messages.

use std::sync::Arc;
use std::thread;

use crossbeam_channel::{select, Receiver};

use super::answers::Answers;
use super::crew::Crew;
use super::{Handler, Settlement};
use crate::channel::{Answered, Channel};
use crate::delivery::Delivery;
use crate::error::{ErrorKind, ReplyCode, Result};
use crate::panics;

/// One thread's work.
pub(super) struct Worker {
    pub(super) channel: Channel,
    pub(super) deliveries: Receiver<Result<Delivery>>,
    pub(super) handler: Arc<Handler>,
    pub(super) queue: Arc<str>,
    pub(super) crew: Arc<Crew>,
    pub(super) answers: Answers,
    /// The log tells that this stream takes nothing back.
    pub(super) has_warned: bool,
}

/// Also for a thread that could not be started.
impl Drop for Worker {
    fn drop(&mut self) {
        let mut state = self.crew.state.lock();
        let own = state.running.iter().position(|it| *it == self.queue);
        own.map(|place| state.running.swap_remove(place));
        state.threads.remove(&thread::current().id());
        drop(state);
        self.crew.ended.notify_all();
    }
}

impl Worker {
    pub(super) fn run(mut self) {
        let id = thread::current().id();
        self.crew.state.lock().threads.insert(id);
        let ended = self.handle_all().and_then(|()| self.finish());
        if let Err(error) = ended {
            let error = error.doing(format!("worker of queue {:?}", self.queue));
            log::error!("{error}");
            self.crew.fail(error);
        }
    }

    fn handle_all(&mut self) -> Result<()> {
        while !self.crew.is_stopped() {
            let Some(delivery) = self.next()? else {
                let open_in = self.channel.state().opened_in();
                if open_in.is_some_and(|epoch| epoch != self.answers.epoch) {
                    self.answers.forget();
                }
                return Ok(());
            };
            let settlement = self.handle(&delivery);
            let answered = match self.settle(&delivery, settlement) {
                // The handler has done it itself.
                Err(error) if matches!(error.kind(), ErrorKind::AlreadySettled { .. }) => {
                    self.channel.answered(delivery.delivery_tag())
                }
                settled => settled?,
            };
            self.answers.note(answered);
        }
        Ok(())
    }

    /// Only when the channel is closed the broker has read every acknowledgement.
    fn finish(&self) -> Result<()> {
        let confirmed_in = self.channel.close_confirmed(ReplyCode::SUCCESS, "")?;
        let (not_sent, unconfirmed) = self.answers.lost(confirmed_in);
        if not_sent + unconfirmed > 0 {
            self.crew.lose(not_sent, unconfirmed, &self.queue);
        }
        Ok(())
    }

    /// `None` when it is time to stop.
    fn next(&self) -> Result<Option<Delivery>> {
        let stopped = &self.crew.stopped;
        let delivery = select! {
            recv(stopped) -> _ => return Ok(None),
            recv(self.deliveries) -> delivery => delivery,
        };
        // Without a sender the consumer was cancelled by this program.
        delivery.ok().transpose()
    }

    fn handle(&self, delivery: &Delivery) -> Settlement {
        panics::catch(|| (self.handler)(delivery)).unwrap_or_else(|message| {
            let (settlement, outcome) = if delivery.is_from_stream() {
                (Settlement::Ack, "acknowledged, since a stream takes nothing back")
            } else if delivery.redelivered() {
                (Settlement::Reject, "rejected")
            } else {
                (Settlement::Requeue, "requeued")
            };
            let properties = delivery.properties().unwrap_or_default();
            log::error!(
                "the handler of queue {:?} panicked: {}; delivery tag {}, message id {:?}, correlation id {:?}: {}",
                self.queue,
                message,
                delivery.delivery_tag(),
                properties.message_id.unwrap_or_default(),
                properties.correlation_id.unwrap_or_default(),
                outcome
            );
            settlement
        })
    }

    fn settle(&mut self, delivery: &Delivery, settlement: Settlement) -> Result<Answered> {
        let is_from_stream = delivery.is_from_stream();
        if is_from_stream && settlement == Settlement::Requeue && !self.has_warned {
            self.has_warned = true;
            log::warn!(
                "the handler of stream {:?} requeues a message, but a stream takes nothing back: the message is \
                 acknowledged, and so are all others that this thread's handler requeues",
                self.queue
            );
        }
        match settlement {
            Settlement::Ack => delivery.answer_ack(),
            Settlement::Requeue | Settlement::Reject if is_from_stream => delivery.answer_ack(),
            // Since RabbitMQ 4.3 a nack does not count towards the queue's delivery limit.
            Settlement::Requeue => delivery.answer_reject(true),
            Settlement::Reject => delivery.answer_reject(false),
        }
    }
}
