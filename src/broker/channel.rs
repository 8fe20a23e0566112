//! One channel of a connection: what was delivered on it and is not settled, who consumes on it, what is coming in.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::message::{Entry, Message};
use super::queue::QueueId;
use super::refusal::Refusal;
use crate::wire::method::BasicPublish;
use crate::wire::properties::Properties;

/// How many messages a consumer gets at most after the broker has closed its channel. RabbitMQ's
/// classic queues have up to as many on their way to a channel (credit flow).
const MAX_LATE: usize = 200;

/// A delivered message that is not acknowledged.
#[derive(Debug)]
pub(super) struct Unacknowledged {
    pub(super) queue: QueueId,
    /// `None` if its consumer has timed out: the queue has the message back, and the client may still
    /// settle the delivery tag.
    pub(super) entry: Option<Entry>,
    /// None for a message of `basic.get`, which no prefetch counts.
    pub(super) consumer: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Consumer {
    /// Its tag can be that of one that was cancelled before; this is its own.
    pub(super) number: u64,
    pub(super) queue: QueueId,
    pub(super) no_ack: bool,
    /// At most so many of its messages are not acknowledged; 0 for any number.
    pub(super) prefetch: u16,
    pub(super) unacknowledged: usize,
    /// It has timed out and gets no messages.
    is_timed_out: bool,
    /// Number of messages that it lost when it timed out and that the client has not settled since.
    lost: usize,
    /// How many more messages it gets; `None` unless the broker has closed the channel.
    late: Option<usize>,
}

/// A message whose header or body has not come yet.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) method: BasicPublish<'static>,
    /// With the header the properties and how many bytes the body has.
    pub(super) header: Option<(Properties, u64)>,
    pub(super) body: Vec<u8>,
}

impl Incoming {
    pub(super) fn is_whole(&self) -> bool {
        matches!(self.header, Some((_, size)) if self.body.len() as u64 >= size)
    }
}

/// What waits for `tx.commit`.
#[derive(Debug)]
pub(super) enum Staged {
    Publish {
        message: Arc<Message>,
        mandatory: bool,
    },
    Settle(Settle),
}

/// Messages that are settled, and how.
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

/// What was published in confirm mode.
#[derive(Debug, Default)]
pub(super) struct Confirms {
    pub(super) published: u64,
    /// All up to here were answered.
    pub(super) answered: u64,
}

#[derive(Debug, Default)]
pub(super) struct Channel {
    pub(super) mode: Mode,
    pub(super) consumers: BTreeMap<String, Consumer>,
    unacknowledged: BTreeMap<u64, Unacknowledged>,
    last_delivery_tag: u64,
    last_consumer: u64,
    /// Of consumers that begin from now on.
    pub(super) prefetch: u16,
    /// Of all consumers together.
    pub(super) shared_prefetch: u16,
    /// The queue that an empty name means.
    pub(super) last_queue: Option<String>,
    pub(super) incoming: Option<Incoming>,
    /// Who takes what is sent to `amq.rabbitmq.reply-to`, and the key that leads there.
    pub(super) reply_to: Option<(String, String)>,
}

impl Channel {
    /// Whether this consumer may get another message.
    pub(super) fn takes(&self, consumer_tag: &str) -> bool {
        let Some(consumer) = self.consumers.get(consumer_tag) else {
            return false;
        };
        let is_below = |count: usize, limit: u16| limit == 0 || count < limit.into();
        // The limit for all holds up also those that acknowledge nothing.
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

    /// The delivery tag of what is delivered now.
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

    /// What is delivered with the last tag has to be acknowledged.
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

    /// Takes what an acknowledgement is for, with its delivery tags. The tag 0 stands for all that there is.
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

    /// Lets consumers get other messages for those that are settled now.
    ///
    /// A consumer that has timed out revives when the client has settled all messages that it lost.
    /// Returns the numbers of those consumers. As in RabbitMQ 4.3.6, a consumer does not revive if the
    /// client asks to requeue the last of these messages.
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

    /// Takes all messages of a consumer and delivers nothing more to it.
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

    /// Ends all but the consumers: they go on until the client has answered the close.
    pub(super) fn begin_close(&mut self) {
        self.incoming = None;
        if let Mode::Transactions(staged) = std::mem::take(&mut self.mode) {
            self.roll_back(staged);
        }
        for consumer in self.consumers.values_mut() {
            consumer.late = Some(MAX_LATE);
        }
    }

    /// What a transaction has settled is not settled after all.
    pub(super) fn roll_back(&mut self, staged: Vec<Staged>) {
        for staged in staged {
            if let Staged::Settle(settle) = staged {
                self.unacknowledged.extend(settle.messages);
            }
        }
    }

    /// All that is not settled, also by a transaction.
    pub(super) fn take_unacknowledged(&mut self) -> Vec<Unacknowledged> {
        let taken = std::mem::take(&mut self.unacknowledged);
        let taken: Vec<_> = taken.into_iter().collect();
        self.settled(&taken, How::Requeue);
        taken.into_iter().map(|(_, message)| message).collect()
    }
}
