//! How to consume, and to give messages back.

use std::time::SystemTime;

use super::number;
use crate::wire::value::{FieldTable, FieldValue};

/// Where reading a stream begins.
///
/// See <https://www.rabbitmq.com/docs/streams#consuming>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StreamOffset {
    /// With the oldest message that is kept.
    First,
    /// With the last chunk of messages that was written.
    Last,
    /// With what comes from now on.
    Next,
    /// With this message, counted from 0.
    Offset(u64),
    /// With the chunk of messages that was written at this time.
    Time(SystemTime),
}

impl From<StreamOffset> for FieldValue {
    fn from(offset: StreamOffset) -> Self {
        match offset {
            StreamOffset::First => Self::from("first"),
            StreamOffset::Last => Self::from("last"),
            StreamOffset::Next => Self::from("next"),
            StreamOffset::Offset(offset) => Self::from(number(offset)),
            StreamOffset::Time(time) => {
                let since = time.duration_since(SystemTime::UNIX_EPOCH);
                Self::Timestamp(since.map_or(0, |since| since.as_secs()))
            }
        }
    }
}

/// How to consume. The default leaves it to the program to acknowledge each message, and the tag to this crate.
///
/// See <https://www.rabbitmq.com/docs/consumers>.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ConsumeOptions {
    pub(crate) consumer_tag: String,
    pub(crate) no_local: bool,
    pub(crate) no_ack: bool,
    pub(crate) exclusive: bool,
    pub(crate) no_wait: bool,
    pub(crate) arguments: FieldTable,
}

impl ConsumeOptions {
    flags! {
        /// Not to be sent what was published on the same connection. RabbitMQ ignores it.
        no_local;
        /// The broker forgets a message as soon as it has sent it: nothing is to be acknowledged, and what this
        /// program has not yet handled is lost when it dies. The broker sends as fast as it can; what the program does
        /// not keep up with is limited by [`max_unread_bytes`](crate::ConnectionOptions::max_unread_bytes).
        no_ack;
        /// Nobody else may consume from the queue.
        exclusive;
        /// Does not wait for the broker. If it refuses, the consumer yields the channel's error.
        no_wait;
    }

    setters! {
        /// The consumer's name on its channel. Default: made up.
        consumer_tag: impl Into<String>;
    }

    typed_arguments! {
        /// Consumers of a higher priority get messages as long as they can take them (`x-priority`). Default: 0.
        priority(priority: i32) => "x-priority": priority;
        /// Where reading a stream begins (`x-stream-offset`). Default: next.
        ///
        /// Set it, if only to [`StreamOffset::Next`], for a stream that another connection has
        /// declared. It marks the consumer as one of a stream: messages are not given back, and
        /// after a lost connection the consumer goes on where it was.
        ///
        /// A consumer of a stream needs a prefetch ([`basic_qos`](crate::Channel::basic_qos)), or
        /// the broker refuses it (406), and cannot have [`no_ack`](Self::no_ack) (540).
        stream_offset(offset: StreamOffset) => "x-stream-offset": offset;
    }

    arguments! {
        /// All arguments at once, instead of those that were set before.
    }
}

/// How many unacknowledged messages the broker may send ahead.
///
/// See <https://www.rabbitmq.com/docs/consumer-prefetch>.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct QosOptions {
    pub(crate) prefetch_count: u16,
    pub(crate) prefetch_size: u32,
    pub(crate) global: bool,
}

impl QosOptions {
    flags! {
        /// Limits all consumers of the channel together, instead of each one that begins from now on. RabbitMQ has deprecated
        /// it: divide the prefetch among the consumers instead, or let several threads read from one consumer.
        ///
        /// RabbitMQ 4.3 does not limit channels by default. It answers as if it did, and applies the prefetch to each consumer
        /// that begins from now on. Three consumers with a prefetch of 5 then get 15 messages instead of 5, and zero removes
        /// the limit that [`basic_qos`](crate::Channel::basic_qos) has set. This crate logs a warning, one for each channel,
        /// also when a recovery connects to such a broker.
        ///
        /// The broker's configuration decides, and no client can see it. With
        /// `deprecated_features.permit.global_qos = true`, 4.3 limits channels; the warning comes all the same. With
        /// `false`, 4.0 acts as 4.3 does, without a warning.
        ///
        /// Where the broker limits channels, a consumer of a quorum queue is refused (540, which closes the connection), and
        /// a later prefetch for each consumer ends the limit.
        global;
    }

    setters! {
        /// In messages. Zero: no limit.
        prefetch_count: u16;
        /// In bytes. RabbitMQ refuses any but zero (540).
        prefetch_size: u32;
    }
}

/// What happens to messages that are given back with `basic.nack`.
///
/// See <https://www.rabbitmq.com/docs/nack>.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct NackOptions {
    pub(crate) multiple: bool,
    pub(crate) requeue: bool,
}

impl NackOptions {
    /// The message goes back to its queue. Since RabbitMQ 4.3 this does not count towards the
    /// delivery limit of a quorum queue: see [`Delivery::nack`](crate::Delivery::nack).
    pub fn requeue() -> Self {
        Self {
            requeue: true,
            ..Self::default()
        }
    }

    /// The message is dropped, or dead-lettered if its queue is declared so.
    pub fn discard() -> Self {
        Self::default()
    }

    flags! {
        /// Also all earlier messages of the channel that are not yet acknowledged.
        multiple;
    }
}
