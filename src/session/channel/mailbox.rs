//! What the IO thread tells a channel.

use std::sync::atomic::Ordering;

use super::{ChannelState, BROKER};
use crate::error::ReturnedMessage;
use crate::error::{CloseReason, Error, ReplyCode};
use crate::events::Confirmation;
use crate::io_thread::mailbox::ChannelMailbox;
use crate::log_line::log_line;
use crate::proto::{Answer, Leftover, Returned, Settling};
use crate::wire::method::{BasicAck, BasicCancelOk, BasicNack, ChannelFlowOk, Method};

impl ChannelMailbox for ChannelState {
    fn ended(&self, error: &Error, owes_close_ok: bool) {
        // All under one lock: whoever brings the channel back finds it open, interrupted, or ended.
        let outlives = self.shared.outbox.answer(self.number, |frames| {
            if owes_close_ok {
                self.append_close_ok(frames);
            }
            let outlives = self.outlives(error);
            match outlives {
                // Nothing was published on it since the last loss.
                true => self.interrupt(error),
                // When closes cross, this is what those who wait are told; so everyone is told it from now on.
                false => {
                    self.end.set(error.clone());
                    self.confirms.closed(error);
                }
            }
            outlives
        });
        if outlives {
            return;
        }
        if self.is_closed_by_broker(error) {
            self.shared.counters.channel_closed_by_broker();
        }
        self.confirms.end(error);
        self.returned.end();
        self.confirmations.end();
        // Those that the core knows have ended; left are those that were waiting for the next connection.
        let left = self.consumers.lock().recorded();
        for consumer in left {
            consumer.mailbox.ended(Some(error.clone()));
        }
        // The last, since the program's logger can panic.
        let (label, channel) = (self.shared.label(), self.number);
        match self.is_closed_by_broker(error) {
            true => log_line!(Warn, label, "{error}"),
            false => log_line!(Debug, label, "channel {channel} has ended: {error}"),
        }
    }

    fn interrupted(&self, error: &Error, left: Leftover) {
        self.shared.outbox.change(|| {
            self.lose_unawaited(error, left);
            self.interrupt(error);
            self.let_go_of_number(BROKER);
        });
        // The program has closed it, and now it is closed.
        self.end_if_detached();
    }

    fn freed(&self) {
        // Now it can be opened again.
        self.shared.outbox.change(|| self.let_go_of_number(BROKER));
    }

    fn flow(&self, active: bool) {
        self.shared.outbox.answer(self.number, |frames| {
            self.flow_stopped.store(!active, Ordering::Release);
            if self.may_answer() {
                frames.answer(&ChannelFlowOk { active });
            }
        });
    }

    fn consumer_cancelled(&self, consumer_tag: &str, is_known: bool, no_wait: bool) {
        self.shared.outbox.answer(self.number, |frames| {
            if !self.may_answer() {
                return;
            }
            if !no_wait {
                let consumer_tag = consumer_tag.into();
                frames.answer(&BasicCancelOk { consumer_tag });
            }
            if is_known {
                self.append_cancel_after_broker(frames, consumer_tag);
            }
        });
    }

    fn unwanted(&self, delivery_tag: u64, settling: Settling) {
        let delivery_tag = self.delivery_tags.received(delivery_tag);
        self.give_back(delivery_tag, settling);
    }

    fn confirm(&self, answer: Answer, sequence_number: u64, answered_to: u64) {
        let Answer { multiple, nack, .. } = answer;
        let confirmation = Confirmation {
            sequence_number,
            multiple,
            nack,
            lost: false,
        };
        // Most programs do not read these.
        self.confirmations.send(confirmation, drop);
        self.confirms.answered_to(answered_to);
    }

    fn nacked(&self, sequence_number: u64) {
        self.confirms.nacked(sequence_number);
    }

    fn returned(&self, returned: Returned, sequence_number: Option<u64>) {
        let Returned {
            code,
            text,
            content,
        } = returned;
        let message = ReturnedMessage::new(code, text, sequence_number, content);
        self.returned.send(message, |unread| {
            let (label, channel) = (self.shared.label(), self.number);
            log_line!(
                Warn,
                label,
                "channel {channel}: {unread:?} was dropped unread"
            );
        });
    }

    fn message_too_large(&self, size: u64) {
        let text = format!("a message of {size} bytes is more than max_message_size");
        let reason = CloseReason {
            code: ReplyCode::CONTENT_TOO_LARGE,
            ..CloseReason::program(&text)
        };
        // It fails only if the channel has ended.
        let _ = self.write_now(|frames| self.append_close(frames, reason, None));
    }

    fn give_back(&self, delivery_tag: u64, settling: Settling) {
        // It fails only if the channel has ended: then the broker requeues by itself.
        let _ = self.write_now(|frames| {
            let broker_tag = self.delivery_tags.broker_tag(delivery_tag);
            let is_open = self.is_open_in(frames.epoch());
            let unanswered =
                broker_tag.filter(|_| is_open && !self.delivery_tags.contains(delivery_tag));
            let Some(delivery_tag) = unanswered else {
                return Ok(());
            };
            let multiple = false;
            match settling {
                Settling::NoAck => Ok(()),
                // A stream takes nothing back. Without an answer the broker closes the channel in the end.
                Settling::Stream => frames.method(&BasicAck {
                    delivery_tag,
                    multiple,
                }),
                // Not a reject: no handler has failed, so it must not count as a failed delivery.
                Settling::Requeue => frames.method(&BasicNack {
                    delivery_tag,
                    multiple,
                    requeue: true,
                }),
            }
        });
    }

    fn broker_replied(&self, asked: Option<&Method<'_>>) {
        self.delivery_tags.broker_replied();
        if let Some(asked @ (Method::TxSelect(_) | Method::BasicQos(_))) = asked {
            self.shared.outbox.change(|| self.settings.done(asked));
        }
    }

    fn received(&self, broker_tag: u64) -> u64 {
        self.delivery_tags.received(broker_tag)
    }
}
