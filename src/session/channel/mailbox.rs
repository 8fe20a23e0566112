//! What the IO thread reports to a channel.

use super::ChannelState;
use crate::error::{CloseReason, Error, ErrorKind, ReplyCode, ReturnedMessage};
use crate::events::Confirmation;
use crate::io_thread::mailbox::ChannelMailbox;
use crate::io_thread::outbox::Frames;
use crate::log_line::log_line;
use crate::proto::{Answer, Leftover, Returned, Settling};
use crate::wire::method::{
    BasicAck, BasicCancelOk, BasicConsume, BasicNack, ChannelFlowOk, Encode, ExchangeBind,
    ExchangeDeclare, Method, MethodId, QueueBind, QueueDeclare,
};

/// Whether the broker closed the channel because of a method that the recovery sends.
fn is_replayed(error: &Error) -> bool {
    const REPLAYED: [MethodId; 5] = [
        ExchangeDeclare::ID,
        ExchangeBind::ID,
        QueueDeclare::ID,
        QueueBind::ID,
        BasicConsume::ID,
    ];
    let ErrorKind::ChannelClosed { reason, .. } = error.kind() else {
        return false;
    };
    REPLAYED.iter().any(|id| reason.method == id.name())
}

/// Whether frames may still answer the broker. No frame may follow our close, which the core may
/// not know of yet.
fn may_answer(frames: &mut Frames<'_>) -> bool {
    frames.channel().end_cause().is_none()
}

impl ChannelMailbox for ChannelState {
    fn ended(&self, error: &Error, leftover: Leftover, owes_close_ok: bool) {
        // All under one lock, so that the recovery finds the channel either open, interrupted or
        // ended.
        let outlives = self.change(|frames| {
            if owes_close_ok {
                self.append_close_ok(frames);
            }
            let channel = frames.channel();
            // The program can send acks meanwhile. If one of them costs the channel, the channel
            // ends.
            let outlives = is_replayed(error) && channel.is_recovering();
            match outlives {
                // No message was published on the channel since the last loss.
                true => drop(channel.interrupt(error, leftover)),
                false => channel.end(error, leftover),
            }
            outlives
        });
        if !outlives {
            self.report_end(error);
        }
    }

    fn interrupted(&self, error: &Error, leftover: Leftover) {
        let closed = self.change(|frames| {
            let sequence_numbers = &mut frames.channel().sequence_numbers;
            if let Some(unawaited) = sequence_numbers.take_unawaited(leftover) {
                self.lose_unawaited(unawaited, error);
                frames.channel().unflushed.lose(error);
            }
            let closed = frames.channel().interrupt(error, leftover);
            frames.broker_is_done();
            closed
        });
        // If the program has closed the channel, the loss completes the close.
        if let Some(cause) = closed {
            self.report_end(&cause);
        }
    }

    fn freed(&self) {
        // From now on the channel can be opened again.
        self.change(|frames| frames.broker_is_done());
    }

    fn flow(&self, active: bool) {
        self.change(|frames| {
            frames.channel().is_flow_stopped = !active;
            if may_answer(frames) {
                frames.answer(&ChannelFlowOk { active });
            }
        });
    }

    fn consumer_cancelled(&self, consumer_tag: &str, is_known: bool, no_wait: bool) {
        self.change(|frames| {
            if !may_answer(frames) {
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
        let mut dropped = Vec::new();
        self.returned.send(message, |unread| dropped.push(unread));
        // Not under the lock of the queue: the label needs the outbox's.
        for unread in dropped {
            let (label, channel) = (self.shared.label(), self.number);
            log_line!(
                Warn,
                label,
                "channel {channel}: {unread:?} was dropped unread"
            );
        }
    }

    fn message_too_large(&self, size: u64) {
        let text = format!("a message of {size} bytes exceeds max_message_size");
        let reason = CloseReason {
            code: ReplyCode::CONTENT_TOO_LARGE,
            ..CloseReason::program(&text)
        };
        self.close_in_background(reason);
    }

    fn give_back(&self, delivery_tag: u64, settling: Settling) {
        // This fails only if the channel has ended. The broker then requeues the message.
        let _ = self.write_now(|frames| {
            let is_open = frames.is_open();
            let unsettled = frames.channel().delivery_tags.unsettled(delivery_tag);
            let Some(delivery_tag) = unsettled.filter(|_| is_open) else {
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
        self.look(|channel| {
            channel.delivery_tags.broker_replied(call_number, last_tag);
            if let Some(method) = method {
                channel.done(method);
            }
        });
    }
}
