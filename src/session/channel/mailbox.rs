//! What the IO thread reports to a channel.

use std::sync::atomic::Ordering;

use super::{ChannelState, BROKER};
use crate::error::{CloseReason, Error, ReplyCode, ReturnedMessage};
use crate::events::Confirmation;
use crate::io_thread::mailbox::ChannelMailbox;
use crate::log_line::log_line;
use crate::proto::{Answer, Leftover, Returned, Settling};
use crate::wire::method::{BasicAck, BasicCancelOk, BasicNack, ChannelFlowOk, Method};

impl ChannelMailbox for ChannelState {
    fn ended(&self, error: &Error, leftover: Leftover, owes_close_ok: bool) {
        // All under one lock, so that the recovery finds the channel either open, interrupted or
        // ended.
        let outlives = self.change(|frames| {
            self.delivery_tags.set_last(leftover.last_tag);
            if owes_close_ok {
                self.append_close_ok(frames);
            }
            let outlives = self.outlives(error);
            match outlives {
                // No message was published on the channel since the last loss.
                true => self.interrupt(error),
                // If closes cross, waiting callers get this error. Set it here, so that later
                // callers get the same one.
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
        // Consumers that the core knows have ended already. These waited for the next connection.
        let left = self.consumers.lock().recorded();
        for consumer in left {
            consumer.mailbox.ended(Some(error.clone()));
        }
        // This comes last, since the program's logger can panic.
        let (label, channel) = (self.shared.label(), self.number);
        match self.is_closed_by_broker(error) {
            true => log_line!(Warn, label, "{error}"),
            false => log_line!(Debug, label, "channel {channel} ended: {error}"),
        }
    }

    fn interrupted(&self, error: &Error, leftover: Leftover) {
        self.change(|frames| {
            self.delivery_tags.set_last(leftover.last_tag);
            self.lose_unawaited(error, leftover);
            self.interrupt(error);
            self.release_number(frames, BROKER);
        });
        // If the program has closed the channel, the loss completes the close.
        self.end_if_detached();
    }

    fn freed(&self) {
        // From now on the channel can be opened again.
        self.change(|frames| self.release_number(frames, BROKER));
    }

    fn flow(&self, active: bool) {
        self.change(|frames| {
            self.flow_stopped.store(!active, Ordering::Release);
            if self.may_answer() {
                frames.answer(&ChannelFlowOk { active });
            }
        });
    }

    fn consumer_cancelled(&self, consumer_tag: &str, is_known: bool, no_wait: bool) {
        self.change(|frames| {
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
        // Most programs do not read confirmations: drop the oldest without a log line.
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
        let text = format!("a message of {size} bytes exceeds max_message_size");
        let reason = CloseReason {
            code: ReplyCode::CONTENT_TOO_LARGE,
            ..CloseReason::program(&text)
        };
        // This fails only if the channel has ended.
        let _ = self.write_now(|frames| self.append_close(frames, reason, None));
    }

    fn give_back(&self, delivery_tag: u64, settling: Settling) {
        // This fails only if the channel has ended. The broker then requeues the message.
        let _ = self.write_now(|frames| {
            let broker_tag = self.delivery_tags.broker_tag(delivery_tag);
            let is_open = self.is_open_in(frames.epoch());
            let unsettled =
                broker_tag.filter(|_| is_open && !self.delivery_tags.is_settled(delivery_tag));
            let Some(delivery_tag) = unsettled else {
                return Ok(());
            };
            let multiple = false;
            match settling {
                Settling::NoAck => Ok(()),
                // A stream takes no message back. Without an ack the broker closes the channel
                // after `consumer_timeout`.
                Settling::Stream => frames.method(&BasicAck {
                    delivery_tag,
                    multiple,
                }),
                // Not `basic.reject`: no handler has failed, so RabbitMQ must not count a failed
                // delivery.
                Settling::Requeue => frames.method(&BasicNack {
                    delivery_tag,
                    multiple,
                    requeue: true,
                }),
            }
        });
    }

    fn broker_replied(&self, call_number: u64, last_tag: u64, method: Option<&Method<'_>>) {
        let delivery_tags = &self.delivery_tags;
        if delivery_tags.is_made_certain_by(call_number) {
            self.change(|_| delivery_tags.broker_replied(call_number, last_tag));
        }
        if let Some(method @ (Method::TxSelect(_) | Method::BasicQos(_))) = method {
            self.change(|_| self.settings.done(method));
        }
    }
}
