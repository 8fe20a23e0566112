//! One channel of a connection: its consumers, unsettled deliveries and incoming message.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::message::{Entry, Message};
use super::queue::QueueId;
use super::refusal::Refusal;
use crate::wire::method::BasicPublish;
use crate::wire::properties::Properties;

/// Maximum number of messages that a consumer gets after the broker has closed its channel. In
/// RabbitMQ, a classic queue has up to this many messages on their way to a channel (credit flow).
const MAX_LATE: usize = 200;

/// A delivered message that is not settled.
#[derive(Debug)]
pub(super) struct Unacknowledged {
    pub(super) queue: QueueId,
    /// `None` if its consumer has timed out: the queue has the message back, and the client may
    /// still settle the delivery tag.
    pub(super) entry: Option<Entry>,
    /// The consumer's number. `None` for a message of `basic.get`, which no prefetch limit counts.
    pub(super) consumer: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Consumer {
    /// Unique on this channel, unlike the tag, which a later consumer can reuse.
    pub(super) number: u64,
    pub(super) queue: QueueId,
    pub(super) no_ack: bool,
    /// Maximum number of unacknowledged messages; 0 means no limit.
    pub(super) prefetch: u16,
    pub(super) unacknowledged: usize,
    /// The consumer has timed out and gets no messages.
    is_timed_out: bool,
    /// Number of messages that the consumer lost when it timed out and that the client has not
    /// settled since.
    lost: usize,
    /// How many more messages the consumer gets; `None` unless the broker has closed the channel.
    late: Option<usize>,
}

/// A published message whose header or body has not arrived completely.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) method: BasicPublish<'static>,
    /// Properties and body size in bytes, once the header has arrived.
    pub(super) header: Option<(Properties, u64)>,
    pub(super) body: Vec<u8>,
}

impl Incoming {
    pub(super) fn is_whole(&self) -> bool {
        matches!(self.header, Some((_, size)) if self.body.len() as u64 >= size)
    }
}

/// A publish or a settlement that waits for `tx.commit`.
#[derive(Debug)]
pub(super) enum Staged {
    Publish {
        message: Arc<Message>,
        mandatory: bool,
    },
    Settle(Settle),
}

/// Messages to settle, by delivery tag, and how.
#[derive(Debug)]
pub(super) struct Settle {
    pub(super) messages: Vec<(u64, Unacknowledged)>,
    pub(super) how: How,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Acknowledge,
    Requeue,
    Reject,
}

#[derive(Debug, Default)]
pub(super) enum Mode {
    #[default]
    Plain,
    Confirms(Confirms),
    Transactions(Vec<Staged>),
}

/// Counts of the messages that were published in confirm mode.
#[derive(Debug, Default)]
pub(super) struct Confirms {
    pub(super) published: u64,
    /// All messages up to this number were confirmed or nacked.
    pub(super) answered: u64,
}

#[derive(Debug, Default)]
pub(super) struct Channel {
    pub(super) mode: Mode,
    pub(super) consumers: BTreeMap<String, Consumer>,
    unacknowledged: BTreeMap<u64, Unacknowledged>,
    last_delivery_tag: u64,
    last_consumer: u64,
    /// Limit for each consumer that starts from now on.
    pub(super) prefetch: u16,
    /// Limit for all consumers together.
    pub(super) shared_prefetch: u16,
    /// The queue declared last, which an empty name refers to.
    pub(super) last_queue: Option<String>,
    pub(super) incoming: Option<Incoming>,
    /// The consumer of `amq.rabbitmq.reply-to`: its tag, and the routing key of its replies.
    pub(super) reply_to: Option<(String, String)>,
}

impl Channel {
    /// Whether this consumer may get another message.
    pub(super) fn takes(&self, consumer_tag: &str) -> bool {
        let Some(consumer) = self.consumers.get(consumer_tag) else {
            return false;
        };
        let is_below = |count: usize, limit: u16| limit == 0 || count < limit.into();
        // The shared limit also applies to consumers with `no_ack`.
        !consumer.is_timed_out
            && consumer.late != Some(0)
            && is_below(self.unacknowledged_of_consumers(), self.shared_prefetch)
            && (consumer.no_ack || is_below(consumer.unacknowledged, consumer.prefetch))
    }

    pub(super) fn has_timed_out(&self, consumer_tag: &str) -> bool {
        let consumer = self.consumers.get(consumer_tag);
        consumer.is_some_and(|it| it.is_timed_out)
    }

    fn unacknowledged_of_consumers(&self) -> usize {
        match self.shared_prefetch {
            0 => 0,
            _ => self.consumers.values().map(|it| it.unacknowledged).sum(),
        }
    }

    pub(super) fn subscribe(&mut self, consumer_tag: String, queue: QueueId, no_ack: bool) {
        self.last_consumer += 1;
        let consumer = Consumer {
            number: self.last_consumer,
            queue,
            no_ack,
            prefetch: self.prefetch,
            unacknowledged: 0,
            is_timed_out: false,
            lost: 0,
            late: None,
        };
        self.consumers.insert(consumer_tag, consumer);
    }

    /// Returns the delivery tag of the next delivery.
    pub(super) fn next_delivery_tag(&mut self) -> u64 {
        self.last_delivery_tag += 1;
        self.last_delivery_tag
    }

    /// Counts a delivery if it follows the close of the channel.
    pub(super) fn count_late(&mut self, consumer_tag: &str) {
        let consumer = self.consumers.get_mut(consumer_tag);
        if let Some(late) = consumer.and_then(|it| it.late.as_mut()) {
            *late = late.saturating_sub(1);
        }
    }

    /// Records the delivery with the last tag as unacknowledged.
    pub(super) fn deliver(&mut self, delivered: Unacknowledged) {
        if let Some(consumer) = self.consumer_of(&delivered) {
            consumer.unacknowledged += 1;
        }
        self.unacknowledged
            .insert(self.last_delivery_tag, delivered);
    }

    fn consumer_of(&mut self, delivered: &Unacknowledged) -> Option<&mut Consumer> {
        let number = delivered.consumer?;
        self.consumers.values_mut().find(|it| it.number == number)
    }

    pub(super) fn unacknowledged(&self) -> usize {
        self.unacknowledged.len()
    }

    /// Takes the messages that an acknowledgement covers, with their delivery tags. With
    /// `multiple`, tag 0 covers all unacknowledged messages.
    pub(super) fn settle(
        &mut self,
        delivery_tag: u64,
        multiple: bool,
    ) -> Result<Vec<(u64, Unacknowledged)>, Refusal> {
        let is_all = multiple && delivery_tag == 0;
        if !is_all && !self.unacknowledged.contains_key(&delivery_tag) {
            return Err(Refusal::failed(format!(
                "unknown delivery tag {delivery_tag}"
            )));
        }
        let settled = match (multiple, delivery_tag) {
            (true, 0) => std::mem::take(&mut self.unacknowledged),
            (true, last) => {
                let rest = self.unacknowledged.split_off(&(last + 1));
                std::mem::replace(&mut self.unacknowledged, rest)
            }
            (false, tag) => self.unacknowledged.remove_entry(&tag).into_iter().collect(),
        };
        Ok(settled.into_iter().collect())
    }

    /// Stops counting settled messages against the limits of their consumers.
    ///
    /// A consumer that has timed out revives when the client has settled all messages that the
    /// consumer lost. Returns the numbers of the revived consumers. As in RabbitMQ 4.3.6, a
    /// consumer does not revive if the client asks to requeue the last of these messages.
    pub(super) fn settled(&mut self, messages: &[(u64, Unacknowledged)], how: How) -> Vec<u64> {
        let mut revived = Vec::new();
        for (_, message) in messages {
            let Some(consumer) = self.consumer_of(message) else {
                continue;
            };
            if message.entry.is_some() {
                consumer.unacknowledged -= 1;
                continue;
            }
            consumer.lost -= 1;
            if consumer.lost == 0 && how != How::Requeue {
                consumer.is_timed_out = false;
                revived.push(consumer.number);
            }
        }
        revived
    }

    /// Takes all unacknowledged messages of a consumer. If there are any, the consumer times out
    /// and gets no more messages.
    pub(super) fn time_out(&mut self, consumer_tag: &str) -> Vec<Unacknowledged> {
        let Some(consumer) = self.consumers.get_mut(consumer_tag) else {
            return Vec::new();
        };
        let number = Some(consumer.number);
        let its_own = self.unacknowledged.values_mut();
        let its_own = its_own.filter(|it| it.consumer == number);
        let take = |message: &mut Unacknowledged| {
            let entry = message.entry.take()?;
            Some(Unacknowledged {
                queue: message.queue,
                entry: Some(entry),
                consumer: number,
            })
        };
        let taken: Vec<_> = its_own.filter_map(take).collect();
        consumer.unacknowledged -= taken.len();
        consumer.lost += taken.len();
        consumer.is_timed_out |= !taken.is_empty();
        taken
    }

    /// Ends everything except the consumers, which go on until the client answers the close.
    pub(super) fn begin_close(&mut self) {
        self.incoming = None;
        if let Mode::Transactions(staged) = std::mem::take(&mut self.mode) {
            self.roll_back(staged);
        }
        for consumer in self.consumers.values_mut() {
            consumer.late = Some(MAX_LATE);
        }
    }

    /// Makes the messages that a transaction has settled unacknowledged again.
    pub(super) fn roll_back(&mut self, staged: Vec<Staged>) {
        for staged in staged {
            if let Staged::Settle(settle) = staged {
                self.unacknowledged.extend(settle.messages);
            }
        }
    }

    /// Takes all unacknowledged messages, except those that an open transaction has settled.
    pub(super) fn take_unacknowledged(&mut self) -> Vec<Unacknowledged> {
        let taken = std::mem::take(&mut self.unacknowledged);
        let taken: Vec<_> = taken.into_iter().collect();
        self.settled(&taken, How::Requeue);
        taken.into_iter().map(|(_, message)| message).collect()
    }
}
