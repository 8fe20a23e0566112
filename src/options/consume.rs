//! Options for consuming, prefetch and nacks.

use std::time::{Duration, SystemTime};

use super::{milliseconds, number, seconds};
use crate::wire::short_string::ShortString;
use crate::wire::value::{FieldTable, FieldValue};

/// Where to begin reading a stream.
///
/// See <https://www.rabbitmq.com/docs/streams#consuming>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StreamOffset {
    /// The oldest message that the stream still keeps.
    First,
    /// The last chunk of messages that the broker has written.
    Last,
    /// The next message that is published.
    Next,
    /// The message with this offset. Offsets start at 0 and increase, with gaps.
    Offset(u64),
    /// The chunk of messages that was written at this time.
    Time(SystemTime),
    /// The first chunk of messages that was written less than this long ago, by the broker's clock.
    /// In whole seconds, rounded up, at least one.
    ///
    /// The broker sends whole chunks, so the first messages can be older.
    Interval(Duration),
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
            StreamOffset::Interval(before_now) => {
                // The broker refuses zero.
                Self::from(format!("{}s", seconds(before_now).max(1)))
            }
        }
    }
}

/// How long before the consume request the broker begins to read a stream. `None`: the arguments
/// name the same message whenever the request is made.
pub(crate) fn before_now(arguments: &FieldTable) -> Option<Duration> {
    let Some(offset) = arguments.get("x-stream-offset") else {
        return Some(Duration::ZERO);
    };
    match offset.as_str()? {
        "next" => Some(Duration::ZERO),
        // Without a filter, messages come at once.
        "last" => arguments
            .get("x-stream-filter")
            .is_some()
            .then_some(Duration::ZERO),
        text => from_interval(text),
    }
}

/// Reads an interval as RabbitMQ does: a year has 365 days, a month has 30.
fn from_interval(text: &str) -> Option<Duration> {
    const DAY: u64 = 24 * 3600;
    let unit = text.find(|it: char| !it.is_ascii_digit())?;
    let (count, unit) = text.split_at(unit);
    let seconds: u64 = match unit {
        "Y" => 365 * DAY,
        "M" => 30 * DAY,
        "D" => DAY,
        "h" => 3600,
        "m" => 60,
        "s" => 1,
        _ => return None,
    };
    let count: u64 = count.parse().ok()?;
    Some(Duration::from_secs(count.saturating_mul(seconds)))
}

/// How to consume. By default the program acknowledges each message, and this crate chooses the
/// consumer tag.
///
/// See <https://www.rabbitmq.com/docs/consumers>.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct ConsumeOptions {
    pub(crate) consumer_tag: String,
    pub(crate) no_local: bool,
    pub(crate) no_ack: bool,
    pub(crate) exclusive: bool,
    pub(crate) arguments: FieldTable,
}

impl ConsumeOptions {
    setters! {
        /// Whether to exclude messages that were published on the same connection. RabbitMQ ignores
        /// this option. Default: false.
        no_local: bool;
        /// Whether to consume without acknowledgements: the broker forgets a message as soon as it
        /// has sent it ([`AckMode::Automatic`]). Default: false.
        ///
        /// If the program dies, messages that it has not handled are lost. The broker sends as fast
        /// as it can; [`max_unread_bytes`](crate::ConnectionOptions::max_unread_bytes) limits what
        /// waits in the program.
        no_ack: bool;
        /// Whether this is the only consumer of the queue. Default: false.
        exclusive: bool;
        /// The consumer's name on its channel. Default: chosen by this crate.
        consumer_tag: impl Into<String>;
    }

    typed_arguments! {
        /// The consumer's priority (`x-priority`). Consumers of a higher priority get messages
        /// first, as long as they can take them. Default: 0.
        priority(priority: i32) => "x-priority": priority;
        /// Where to begin reading a stream (`x-stream-offset`). Default: [`StreamOffset::Next`].
        ///
        /// Set this for a stream that another connection has declared, if only to
        /// [`StreamOffset::Next`]. The argument marks the consumer as one of a stream: messages are
        /// not requeued, and after a recovery the consumer continues where it left off.
        ///
        /// A consumer of a stream needs a prefetch ([`basic_qos`](crate::Channel::basic_qos)), or
        /// the broker refuses it (406), and cannot have [`no_ack`](Self::no_ack) (540).
        stream_offset(offset: StreamOffset) => "x-stream-offset": offset;
        /// How long this consumer may take to acknowledge a message (`x-consumer-timeout`), in
        /// whole milliseconds, rounded up. Default: the queue's
        /// [`consumer_timeout`](crate::QueueDeclareOptions::consumer_timeout).
        ///
        /// For quorum queues of RabbitMQ 4.3 and later, which refuse this argument for consumers of
        /// other types of queue (406). Earlier versions ignore it.
        ///
        /// See <https://www.rabbitmq.com/docs/quorum-queues#consumer-timeout>.
        consumer_timeout(timeout: Duration) => "x-consumer-timeout": milliseconds(timeout);
    }

    /// Reads only those chunks of a stream that have a message with one of these filter values
    /// (`x-stream-filter`). Publishers set the value with
    /// [`Message::stream_filter_value`](crate::Message::stream_filter_value).
    ///
    /// **The broker filters whole chunks**: messages that it has written to disk together. The
    /// consumer also receives the other messages of a matching chunk, and some chunks without a
    /// match, because the broker's filter is a Bloom filter. So the program has to check each
    /// message, and acknowledge those that it does not want. Messages without a filter value do not
    /// match; see [`stream_match_unfiltered`](Self::stream_match_unfiltered).
    ///
    /// Marks the consumer as one of a stream, as [`stream_offset`](Self::stream_offset) does.
    /// Without values, there is no filter.
    ///
    /// For streams since RabbitMQ 3.13. Earlier versions ignore the filter and send all messages.
    /// RabbitMQ 4.0 and later refuse this argument for consumers of other types of queue (406).
    ///
    /// ```no_run
    /// use leveret::{Connection, ConsumeOptions, Message, QueueDeclareOptions, StreamOffset};
    ///
    /// let channel = Connection::open_default()?.open_channel()?;
    /// let orders = channel.queue_declare("orders", QueueDeclareOptions::stream())?;
    /// orders.publish(Message::new("paid").stream_filter_value("fr"))?;
    ///
    /// channel.basic_qos(100)?;
    /// let options = ConsumeOptions::default()
    ///     .stream_offset(StreamOffset::First)
    ///     .stream_filter(["fr", "be"]);
    /// for delivery in orders.consume_with(options)? {
    ///     let delivery = delivery?;
    ///     if let Some("fr" | "be") = delivery.stream_filter_value().as_deref() {
    ///         println!("{:?}", delivery.body());
    ///     }
    ///     delivery.ack()?;
    /// }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// See <https://www.rabbitmq.com/docs/stream-filtering>.
    #[must_use]
    pub fn stream_filter<V: Into<String>>(mut self, values: impl IntoIterator<Item = V>) -> Self {
        let values = values.into_iter().map(|it| FieldValue::from(it.into()));
        let values: Vec<_> = values.collect();
        if values.is_empty() {
            // RabbitMQ closes the connection for an empty filter.
            self.arguments.remove("x-stream-filter");
            return self;
        }
        self.argument("x-stream-filter", FieldValue::Array(values))
    }

    argument_switches! {
        /// Whether to also read chunks that have a message without a filter value
        /// (`x-stream-match-unfiltered`). No effect without a
        /// [`stream_filter`](Self::stream_filter). Default: false.
        stream_match_unfiltered => "x-stream-match-unfiltered";
    }

    arguments! {
        /// Sets all arguments. Replaces arguments that were set before.
    }
}

/// The prefetch: how many unacknowledged messages the broker may send ahead.
///
/// See <https://www.rabbitmq.com/docs/consumer-prefetch>.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QosOptions {
    pub(crate) prefetch_count: u16,
    pub(crate) prefetch_size: u32,
    pub(crate) global: bool,
}

impl QosOptions {
    setters! {
        /// Whether the prefetch applies to all consumers of the channel together, instead of to
        /// each consumer that starts from now on. Default: false.
        ///
        /// This option is deprecated in RabbitMQ. Instead, divide the prefetch among the consumers,
        /// or let several threads read from one consumer.
        ///
        /// By default, RabbitMQ 4.3 has no channel-wide prefetch. It replies as if it had one, but
        /// applies the prefetch to each consumer that starts from now on. Three consumers with a
        /// prefetch of 5 then get 15 messages instead of 5, and zero removes the limit that
        /// [`basic_qos`](crate::Channel::basic_qos) has set. This crate logs a warning once for
        /// each channel, also after a recovery to such a broker.
        ///
        /// The broker's configuration can change this, and clients cannot see it. With
        /// `deprecated_features.permit.global_qos = true`, 4.3 has a channel-wide prefetch, but
        /// this crate still logs the warning. With `false`, 4.0 behaves like 4.3, without a
        /// warning.
        ///
        /// A broker with a channel-wide prefetch refuses the channel's consumers of quorum queues
        /// and streams (540, which closes the connection, or 406). A later prefetch for each
        /// consumer ends the channel-wide prefetch. A consumer of a quorum queue or stream that
        /// started before the channel-wide prefetch does not recover: use another channel for it.
        global: bool;
        /// Prefetch in messages. Zero: no limit.
        prefetch_count: u16;
        /// Prefetch in bytes. RabbitMQ refuses any value but zero (540).
        prefetch_size: u32;
    }
}

/// How to nack messages (`basic.nack`).
///
/// See <https://www.rabbitmq.com/docs/nack>.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NackOptions {
    pub(crate) multiple: bool,
    pub(crate) requeue: Requeue,
}

impl NackOptions {
    /// Requeues the message. Since RabbitMQ 4.3, this does not count towards the delivery limit of
    /// a quorum queue: see [`Delivery::nack`](crate::Delivery::nack).
    #[must_use]
    pub fn requeue() -> Self {
        Requeue::Yes.into()
    }

    /// Drops the message, or dead-letters it if its queue has a dead-letter exchange.
    #[must_use]
    pub fn discard() -> Self {
        Requeue::No.into()
    }

    setters! {
        /// Whether to include all earlier unacknowledged messages of the channel. Default: false.
        multiple: bool;
    }
}

impl From<Requeue> for NackOptions {
    fn from(requeue: Requeue) -> Self {
        Self {
            multiple: false,
            requeue,
        }
    }
}

/// What the broker does with a message that the program did not handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Requeue {
    /// The broker requeues the message and redelivers it, to any consumer.
    Yes,
    /// The broker drops the message, or dead-letters it if its queue has a dead-letter exchange.
    No,
}

/// `true` means [`Requeue::Yes`].
impl From<bool> for Requeue {
    fn from(requeue: bool) -> Self {
        match requeue {
            true => Self::Yes,
            false => Self::No,
        }
    }
}

impl Requeue {
    pub(crate) fn is_yes(self) -> bool {
        self == Self::Yes
    }
}

/// Who acknowledges a message.
///
/// See <https://www.rabbitmq.com/docs/confirms#acknowledgement-modes>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AckMode {
    /// The program acknowledges each message. Otherwise the broker redelivers the message.
    Manual,
    /// The broker forgets a message as soon as it has sent it (`no_ack`), and the program must not
    /// acknowledge it. If the program dies, messages that it has not handled are lost.
    Automatic,
}

impl AckMode {
    pub(crate) fn is_no_ack(self) -> bool {
        self == Self::Automatic
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_whole_seconds_and_never_zero() {
        let cases = [
            (Duration::ZERO, "1s"),
            (Duration::from_millis(1), "1s"),
            (Duration::from_millis(1001), "2s"),
            (Duration::from_secs(3600), "3600s"),
            (Duration::MAX, "18446744073709551615s"),
        ];
        for (interval, expected) in cases {
            let value = FieldValue::from(StreamOffset::Interval(interval));
            assert_eq!(value.as_str(), Some(expected));
        }
    }

    #[test]
    fn only_some_offsets_depend_on_when_the_broker_is_asked() {
        let before = |options: &ConsumeOptions| before_now(&options.arguments);
        let at = |offset| ConsumeOptions::default().stream_offset(offset);
        let seconds = |count| Some(Duration::from_secs(count));
        assert_eq!(before(&ConsumeOptions::default()), seconds(0));
        assert_eq!(before(&at(StreamOffset::Next)), seconds(0));
        assert_eq!(before(&at(StreamOffset::Last)), None);
        let filtered = at(StreamOffset::Last).stream_filter(["fr"]);
        assert_eq!(before(&filtered), seconds(0));
        let now = SystemTime::now();
        for offset in [
            StreamOffset::First,
            StreamOffset::Offset(7),
            StreamOffset::Time(now),
        ] {
            assert_eq!(before(&at(offset)), None, "{offset:?}");
        }
        let interval = StreamOffset::Interval(Duration::from_secs(90));
        assert_eq!(before(&at(interval)), seconds(90));
        let texts = [
            ("2Y", seconds(2 * 365 * 86_400)),
            ("1M", seconds(30 * 86_400)),
            ("3D", seconds(3 * 86_400)),
            ("1h", seconds(3600)),
            ("5m", seconds(300)),
            ("7s", seconds(7)),
            ("99999999999999Y", seconds(u64::MAX)),
            ("", None),
            ("5", None),
            ("h", None),
            ("5d", None),
            ("-1s", None),
        ];
        for (text, expected) in texts {
            let options = ConsumeOptions::default().argument("x-stream-offset", text);
            assert_eq!(before(&options), expected, "{text:?}");
        }
    }
}
