//! Compares what was published, what the program was told, and what the queues contain.

use std::collections::{HashMap, HashSet};

use leveret::{Channel, ConsumeOptions, ErrorKind, Overflow, QueueDeclareOptions, Result};

use super::Stress;
use crate::support::{connect, unique, SOON};

/// Number of queues with consumers.
pub(super) const BUSY: usize = 2;
pub(super) const MISSING_QUEUE: &str = "stress-missing-queue";
const MISSING_EXCHANGE: &str = "stress-missing-exchange";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Destination {
    /// A queue that takes every message.
    Open,
    /// A full queue that nacks every message.
    Full,
    /// A routing key without a queue.
    Unroutable,
    /// An exchange that does not exist. Publishing to it costs the channel.
    Nowhere,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Confirmed,
    Refused,
    NotSent,
    /// The program did not ask, or the channel ended before the confirm came.
    Unknown,
}

/// Identifies a message by its thread, its channel, and its number within the thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Id {
    pub(super) thread: u32,
    pub(super) channel: u32,
    pub(super) number: u32,
}

/// A message, and what the program was told of it.
pub(super) struct Sent(pub(super) Id, pub(super) Destination, pub(super) Outcome);

/// The message that fills the full queue.
const FILLING: Id = Id {
    thread: u32::MAX,
    channel: 0,
    number: 0,
};

impl Id {
    /// A body of at least this length, which contains the message's id and the body's length.
    pub(super) fn body(self, size: usize) -> Vec<u8> {
        let Self {
            thread,
            channel,
            number,
        } = self;
        let head = format!("{thread} {channel} {number} ");
        let size = size.max(head.len() + 8);
        let mut body = format!("{head}{size} ").into_bytes();
        body.resize(size, b'.');
        body
    }

    /// The id in a body. None if the body is not whole.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(body).ok()?;
        let mut numbers = text.split(' ').map_while(|it| it.parse().ok());
        let id = Self {
            thread: numbers.next()?,
            channel: numbers.next()?,
            number: numbers.next()?,
        };
        (numbers.next()? as usize == body.len()).then_some(id)
    }
}

/// The queues, and a channel on a connection of its own, which the faults do not affect.
pub(super) struct Queues {
    observer: Channel,
    pub(super) open: String,
    pub(super) full: String,
    /// All threads publish to these queues and consume from them.
    pub(super) busy: [String; BUSY],
}

impl Queues {
    pub(super) fn declare() -> Self {
        let queues = Self {
            observer: connect().open_channel().unwrap(),
            open: unique("stress-open"),
            full: unique("stress-full"),
            busy: [(); BUSY].map(|()| unique("stress-busy")),
        };
        let declare = |name: &str, options| queues.observer.queue_declare(name, options).unwrap();
        let temporary = QueueDeclareOptions::temporary;
        declare(&queues.open, temporary());
        let full = temporary().max_length(1).overflow(Overflow::RejectPublish);
        declare(&queues.full, full);
        for busy in &queues.busy {
            let options = QueueDeclareOptions::default().max_length(2000);
            declare(busy, options.expires(3 * SOON));
        }
        let publisher = queues.observer.publisher().unwrap();
        let filling = publisher.publish("", &queues.full, FILLING.body(0));
        filling.unwrap().wait().unwrap();
        queues
    }

    /// The exchange and the routing key.
    pub(super) fn address(&self, destination: Destination) -> (&str, &str) {
        match destination {
            Destination::Open => ("", &self.open),
            Destination::Full => ("", &self.full),
            Destination::Unroutable => ("", MISSING_QUEUE),
            Destination::Nowhere => (MISSING_EXCHANGE, "key"),
        }
    }

    /// Takes all messages of a queue without consumers.
    fn take_all(&self, queue: &str) -> Vec<Option<Id>> {
        let queue = self.observer.queue_declare_passive(queue).unwrap();
        let consumer = queue
            .consume_with(ConsumeOptions::default().no_ack(true))
            .unwrap();
        let take = |_| {
            let delivery = consumer.recv_timeout(SOON).unwrap();
            Id::read(delivery.expect("the broker counted this message").body())
        };
        (0..queue.message_count().unwrap()).map(take).collect()
    }
}

impl Stress {
    /// Compares an outcome with what the broker can have done. Returns what the program knows now.
    pub(super) fn outcome(&self, id: Id, to: Destination, answer: &Result<()>) -> Outcome {
        let Err(error) = answer else {
            if to != Destination::Open {
                self.fault(format!("a message to {to:?} was confirmed"));
            }
            return Outcome::Confirmed;
        };
        match error.kind() {
            ErrorKind::Nacked { .. } if to == Destination::Full => Outcome::Refused,
            ErrorKind::Returned(message) if to == Destination::Unroutable => {
                if Id::read(message.body()) != Some(id) {
                    self.fault("a message was returned with the body of another");
                }
                Outcome::Refused
            }
            ErrorKind::Nacked { .. } | ErrorKind::Returned(_) => {
                self.fault(format!("a message to {to:?}: {error}"));
                Outcome::Refused
            }
            _ => {
                self.check("Confirm::wait", error);
                match error.may_have_been_sent() {
                    true => Outcome::Unknown,
                    false => Outcome::NotSent,
                }
            }
        }
    }

    /// Compares what the program was told with what the queues contain.
    pub(super) fn check_messages(&self, sent: Vec<Sent>) {
        for told in [Outcome::Confirmed, Outcome::Refused] {
            if !sent.iter().any(|Sent(_, _, outcome)| *outcome == told) {
                self.fault(format!("no message at all was {told:?}"));
            }
        }
        if self.queues.take_all(&self.queues.full) != [Some(FILLING)] {
            self.fault("the full queue took a message");
        }
        let stored = self.queues.take_all(&self.queues.open);
        if stored.contains(&None) {
            self.fault("a stored message has changed");
        }
        // A message that is not republished keeps no order: RabbitMQ can read it from the lost
        // connection after newer messages.
        let is_unknown = |it: &&Sent| it.2 == Outcome::Unknown;
        let unordered: HashSet<_> = sent.iter().filter(is_unknown).map(|it| it.0).collect();
        let mut copies = HashMap::<_, u64>::new();
        let mut last = HashMap::new();
        for id in stored.into_iter().flatten() {
            let copies = copies.entry(id).or_default();
            *copies += 1;
            if unordered.contains(&id) {
                continue;
            }
            // Republished messages come in order, starting with the first unconfirmed one.
            let last = last.entry((id.thread, id.channel)).or_insert(id.number);
            if *copies == 1 && id.number < *last {
                self.fault("a message was overtaken by a later one of its thread");
            }
            *last = id.number.max(*last);
        }
        // Each loss can add one copy.
        let most = self.connection.loss_count() + 1;
        for Sent(id, to, told) in sent {
            let copies = copies.remove(&id).unwrap_or_default();
            let is_right = match (to, told) {
                (Destination::Open, Outcome::Confirmed) => copies >= 1 && copies <= most,
                (Destination::Open, Outcome::Unknown) => copies <= most,
                _ => copies == 0,
            };
            if !is_right {
                self.fault(format!(
                    "a message to {to:?} is {told:?} and was found {copies} times"
                ));
            }
        }
        if !copies.is_empty() {
            self.fault("a stored message was never published");
        }
    }
}
