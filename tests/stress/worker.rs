//! One thread of the stress test: what it does, and what it holds.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use leveret::{
    AckMode, Channel, Confirm, ConsumeOptions, Consumer, Delivery, Error, ErrorKind, NackOptions,
    PublisherOptions, QueueDeclareOptions, Requeue, Result,
};

use super::accounts::{Destination, Id, Outcome, Sent, BUSY, MISSING_QUEUE};
use super::{Mixture, Random, Stress, Tracked, MARGIN, SHARED, TIMEOUT, UNKNOWN_TAG};

/// What a thread does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Publish,
    /// Publishes without a `Publisher`.
    PublishPlainly,
    /// Publishes to a queue with consumers.
    PublishToBusy,
    WaitForConfirms,
    Consume,
    Receive,
    Cancel,
    CancelTwice,
    DropConsumer,
    Get,
    Settle,
    Purge,
    Qos,
    Close,
    /// Drops the handles of a channel.
    Leave,
    // The broker closes the channel for these:
    DeclareMissing,
    DeclareOtherwise,
    ConsumeMissing,
    ConsumeMissingNoWait,
    GetMissing,
    PublishMissing,
    SettleUnknown,
    SelectTransactions,
}

const PROPER: [(usize, Operation); 15] = [
    (12, Operation::Publish),
    (4, Operation::PublishPlainly),
    (10, Operation::PublishToBusy),
    (6, Operation::WaitForConfirms),
    (9, Operation::Consume),
    (14, Operation::Receive),
    (3, Operation::Cancel),
    (4, Operation::CancelTwice),
    (3, Operation::DropConsumer),
    (5, Operation::Get),
    (10, Operation::Settle),
    (1, Operation::Purge),
    (2, Operation::Qos),
    (2, Operation::Close),
    (2, Operation::Leave),
];

const ERRORS: [(usize, Operation); 8] = [
    (4, Operation::DeclareMissing),
    (1, Operation::DeclareOtherwise),
    (2, Operation::ConsumeMissing),
    (1, Operation::ConsumeMissingNoWait),
    (2, Operation::GetMissing),
    (4, Operation::PublishMissing),
    (3, Operation::SettleUnknown),
    (1, Operation::SelectTransactions),
];

const DESTINATIONS: [(usize, Destination); 4] = [
    (12, Destination::Open),
    (6, Destination::Full),
    (2, Destination::Unroutable),
    (1, Destination::Nowhere),
];

/// Lengths of messages, with their weights. Messages of the longest kind go out in a lane of their
/// own.
const SIZES: [(usize, usize); 3] = [(980, 0), (19, 10_000), (1, 300_000)];

/// A thread that holds more than this releases some.
const CONSUMERS: usize = 5;
const DELIVERIES: usize = 40;
const UNCONFIRMED: usize = 200;

/// Whether a call waits for the broker's reply.
#[derive(Clone, Copy)]
enum Wait {
    Yes,
    No,
}

struct Consuming<'a> {
    consumer: Consumer,
    on: Arc<Tracked>,
    queue: &'a str,
    no_ack: bool,
}

struct Received {
    delivery: Delivery,
    on: Arc<Tracked>,
}

struct Unconfirmed {
    id: Id,
    destination: Destination,
    confirm: Confirm,
    on: Arc<Tracked>,
}

struct Worker<'a> {
    stress: &'a Stress,
    number: usize,
    random: Random,
    operations: Vec<(usize, Operation)>,
    own: Option<Arc<Tracked>>,
    consumers: Vec<Consuming<'a>>,
    received: Vec<Received>,
    unconfirmed: Vec<Unconfirmed>,
    published: u32,
    sent: Vec<Sent>,
}

/// Runs a thread of the test. Returns the outcomes of its messages.
pub(super) fn run(stress: &Stress, number: usize) -> Vec<Sent> {
    let mut operations = PROPER.to_vec();
    if stress.mixture != Mixture::WithoutErrors {
        operations.extend(ERRORS);
    }
    if stress.mixture == Mixture::WithoutConsumers {
        let begins = [Operation::Consume, Operation::ConsumeMissingNoWait];
        operations.retain(|(_, it)| !begins.contains(it));
    }
    let mut worker = Worker {
        stress,
        number,
        random: Random::of(stress.seed, number),
        operations,
        own: None,
        consumers: Vec::new(),
        received: Vec::new(),
        unconfirmed: Vec::new(),
        published: 0,
        sent: Vec::new(),
    };
    while stress.goes_on() {
        worker.step();
    }
    worker.end()
}

impl<'a> Worker<'a> {
    fn step(&mut self) {
        let Some(at) = self.take_channel() else {
            return;
        };
        // Now and then, use a closed channel: the call must fail with the cause.
        if !at.channel.is_open() && !self.random.one_in(10) && !self.revive(&at) {
            return;
        }
        let channel = &at.channel;
        match self.random.pick(&self.operations) {
            Operation::Publish => self.publish(&at),
            Operation::PublishPlainly => self.publish_plainly(&at),
            Operation::PublishToBusy => self.publish_to_busy(&at),
            Operation::WaitForConfirms => self.wait_for_confirms(&at),
            Operation::Consume => self.consume(&at),
            Operation::Receive => self.receive(),
            Operation::Cancel => self.cancel(),
            Operation::CancelTwice => self.cancel_twice(),
            Operation::DropConsumer => self.drop_consumer(),
            Operation::Get => self.get(&at),
            Operation::Settle => self.settle_some(),
            Operation::Purge => {
                let queue = self.busy();
                self.call("queue.purge", || channel.queue_purge(queue)).ok();
            }
            Operation::Qos => {
                let count = self.random.below(20) as u16;
                self.call("basic.qos", || channel.basic_qos(count)).ok();
            }
            Operation::Close => self.close(&at),
            Operation::Leave => self.leave(&at),
            Operation::DeclareMissing => self.refused("a passive queue.declare", || {
                channel.queue_declare_passive(MISSING_QUEUE)
            }),
            Operation::DeclareOtherwise => {
                let options = QueueDeclareOptions::default().max_length(1);
                let queue = self.busy();
                self.refused("queue.declare", || channel.queue_declare(queue, options));
            }
            Operation::ConsumeMissing => self.refused("basic.consume", || {
                channel.basic_consume(MISSING_QUEUE, ConsumeOptions::default())
            }),
            Operation::ConsumeMissingNoWait => {
                self.consume_from(&at, MISSING_QUEUE, ConsumeOptions::default(), Wait::No);
            }
            Operation::GetMissing => {
                self.refused("basic.get", || {
                    channel.basic_get(MISSING_QUEUE, AckMode::Automatic)
                });
            }
            Operation::PublishMissing => self.publish_to(&at, Destination::Nowhere),
            Operation::SettleUnknown => self.settle_unknown(channel),
            // This is an error only in confirm mode.
            Operation::SelectTransactions if at.publisher.is_none() => {}
            Operation::SelectTransactions => self.refused("tx.select", || channel.tx_select()),
        }
    }

    /// Drops all handles and waits for the last confirms.
    fn end(mut self) -> Vec<Sent> {
        let handles = (self.own.take(), self.consumers, self.received);
        self.consumers = Vec::new();
        self.received = Vec::new();
        self.timed("dropping all handles", TIMEOUT, || drop(handles));
        // A delay of one confirm delays the others, too, so they share one timeout.
        let deadline = Instant::now() + TIMEOUT;
        for it in std::mem::take(&mut self.unconfirmed) {
            self.conclude(it, deadline.saturating_duration_since(Instant::now()));
        }
        self.sent
    }

    /// Makes a call, checks that it returns in time, and records an error that no thread has
    /// provoked.
    fn call<T>(&self, what: &'static str, call: impl FnOnce() -> Result<T>) -> Result<T> {
        let result = self.timed(what, TIMEOUT, call);
        if let Err(error) = &result {
            self.stress.check(what, error);
        }
        result
    }

    /// Makes a call that must fail.
    fn refused<T>(&self, what: &'static str, call: impl FnOnce() -> Result<T>) {
        if self.call(what, call).is_ok() {
            self.stress.fault(format!("{what} was not refused"));
        }
    }

    fn timed<T>(&self, what: &'static str, timeout: Duration, call: impl FnOnce() -> T) -> T {
        let begin = Instant::now();
        *self.stress.doing[self.number].lock().unwrap() = (what, begin);
        let result = call();
        let took = begin.elapsed();
        if took > timeout + MARGIN {
            self.stress.fault(format!("{what} took {took:.1?}"));
        }
        result
    }

    // ---- channels ----

    /// The thread's own channel, or one of those that all threads share.
    fn take_channel(&mut self) -> Option<Arc<Tracked>> {
        if !self.random.one_in(4) {
            if self.own.is_none() {
                self.own = self.open(false);
            }
            return self.own.clone();
        }
        let shared = &self.stress.shared[self.random.below(SHARED)];
        let at = shared.lock().unwrap().clone();
        at.or_else(|| {
            let opened = self.open(true)?;
            *shared.lock().unwrap() = Some(Arc::clone(&opened));
            Some(opened)
        })
    }

    fn open(&mut self, is_shared: bool) -> Option<Arc<Tracked>> {
        let connection = &self.stress.connection;
        let channel = self.call("channel.open", || connection.open_channel());
        let channel = channel.ok()?;
        let mut publisher = None;
        if !self.random.one_in(4) {
            let options = PublisherOptions::default().window(50);
            let options = options.confirm_timeout(TIMEOUT);
            let select = || channel.publisher_with(options);
            publisher = Some(self.call("confirm.select", select).ok()?);
        }
        Some(Arc::new(Tracked {
            id: self.stress.next_id.fetch_add(1, Ordering::Relaxed),
            channel,
            publisher,
            is_shared,
            delivery_tags: Default::default(),
            settled_to: Default::default(),
            published: Default::default(),
        }))
    }

    /// Reopens a channel. Returns whether that has worked.
    fn revive(&mut self, at: &Arc<Tracked>) -> bool {
        let gives_up = self.random.one_in(10);
        let reopen = || at.channel.reopen();
        if gives_up || self.call("channel.open, again", reopen).is_err() {
            self.leave(at);
            return false;
        }
        // Frames from before the reopen can still be in flight.
        match self.random.below(3) {
            0 => self.publish(at),
            1 => self.consume(at),
            _ => {}
        }
        true
    }

    fn close(&mut self, at: &Arc<Tracked>) {
        let closed = self.call("channel.close", || at.channel.close());
        if closed.is_ok() && at.channel.is_open() {
            self.stress.fault("a channel is open after its close");
        }
        self.leave(at);
    }

    /// Makes the thread take another channel the next time. Usually drops all handles of this one.
    fn leave(&mut self, at: &Arc<Tracked>) {
        for shared in &self.stress.shared {
            let mut shared = shared.lock().unwrap();
            shared.take_if(|it| Arc::ptr_eq(it, at));
        }
        self.own.take_if(|it| Arc::ptr_eq(it, at));
        if self.random.one_in(4) {
            return;
        }
        let unconfirmed = take_on(at, &mut self.unconfirmed, |it| &it.on);
        self.conclude_or_drop(unconfirmed);
        let consumers = take_on(at, &mut self.consumers, |it| &it.on);
        let received = take_on(at, &mut self.received, |it| &it.on);
        let drop_all = || drop((consumers, received));
        self.timed("dropping handles", TIMEOUT, drop_all);
    }

    // ---- publishing ----

    fn next_message(&mut self, at: &Tracked) -> (Id, Vec<u8>) {
        self.published += 1;
        let id = Id {
            thread: self.number as u32,
            channel: at.id,
            number: self.published,
        };
        (id, id.body(self.random.pick(&SIZES)))
    }

    fn destination(&mut self) -> Destination {
        match self.random.pick(&DESTINATIONS) {
            Destination::Nowhere if self.stress.mixture == Mixture::WithoutErrors => {
                Destination::Open
            }
            other => other,
        }
    }

    fn publish_failed(&mut self, id: Id, destination: Destination, error: &Error) {
        if error.may_have_been_sent() {
            let text = format!("a failed publish may have been sent: {error}");
            self.stress.fault(text);
        }
        self.sent.push(Sent(id, destination, Outcome::NotSent));
    }

    fn publish(&mut self, at: &Arc<Tracked>) {
        for _ in 0..=self.random.below(8) {
            let destination = self.destination();
            self.publish_to(at, destination);
        }
        if self.unconfirmed.len() > UNCONFIRMED {
            let oldest = self.unconfirmed.drain(..UNCONFIRMED / 2).collect();
            self.conclude_or_drop(oldest);
        }
    }

    fn publish_to(&mut self, at: &Arc<Tracked>, destination: Destination) {
        let Some(publisher) = &at.publisher else {
            return;
        };
        let (exchange, key) = self.stress.queues.address(destination);
        let (id, body) = self.next_message(at);
        let publish = || publisher.publish(exchange, key, body);
        // A publish may wait for room in the window, and then in the outbox.
        let published = self.timed("Publisher::publish", 2 * TIMEOUT, publish);
        let confirm = match published {
            Ok(confirm) => confirm,
            Err(error) => {
                self.stress.check("Publisher::publish", &error);
                return self.publish_failed(id, destination, &error);
            }
        };
        let number = confirm.sequence_number();
        let last = at.published.swap(number, Ordering::Relaxed);
        if number <= last && !at.is_shared {
            self.stress.fault("sequence numbers do not increase");
        }
        let on = Arc::clone(at);
        self.unconfirmed.push(Unconfirmed {
            id,
            destination,
            confirm,
            on,
        });
    }

    /// Publishes without a `Publisher`, and waits for the confirms on the channel.
    fn publish_plainly(&mut self, at: &Arc<Tracked>) {
        // On a shared channel, another thread can take the result, or reopen the channel.
        if at.is_shared || at.publisher.is_none() {
            return;
        }
        let mut batch = Vec::new();
        for _ in 0..=self.random.below(4) {
            let destination = match self.destination() {
                // The broker would confirm this message, since it is not mandatory.
                Destination::Unroutable => Destination::Full,
                other => other,
            };
            let (exchange, key) = self.stress.queues.address(destination);
            let (id, body) = self.next_message(at);
            let publish = || at.channel.basic_publish(exchange, key, body);
            match self.call("basic.publish", publish) {
                Ok(Some(number)) => batch.push((id, destination, number)),
                Ok(None) => self.stress.fault("the channel is not in confirm mode"),
                Err(error) => self.publish_failed(id, destination, &error),
            }
        }
        let wait = || at.channel.wait_for_confirms();
        let answer = self.timed("Channel::wait_for_confirms", TIMEOUT, wait);
        let refused: &[u64] = match answer.as_ref().map_err(Error::kind) {
            Ok(()) => &[],
            Err(ErrorKind::Nacked { sequence_numbers }) => sequence_numbers,
            Err(_) => {
                let unknown = |(id, to, _)| Sent(id, to, Outcome::Unknown);
                self.sent.extend(batch.into_iter().map(unknown));
                self.call("Channel::wait_for_confirms", || answer).ok();
                return;
            }
        };
        for (id, destination, number) in batch {
            let outcome = match refused.contains(&number) {
                true => self.stress.outcome(id, destination, &answer),
                false => self.stress.outcome(id, destination, &Ok(())),
            };
            self.sent.push(Sent(id, destination, outcome));
        }
    }

    fn publish_to_busy(&mut self, at: &Tracked) {
        let queue = self.busy();
        for _ in 0..10 {
            let (_, body) = self.next_message(at);
            let publish = || at.channel.basic_publish("", queue, body);
            if self.call("basic.publish", publish).is_err() {
                return;
            }
        }
    }

    fn wait_for_confirms(&mut self, at: &Arc<Tracked>) {
        let publisher = at.publisher.as_ref().filter(|_| !at.is_shared);
        let Some(publisher) = publisher.filter(|_| self.random.one_in(2)) else {
            let count = self.random.below(20).min(self.unconfirmed.len());
            for it in self.unconfirmed.drain(..count).collect::<Vec<_>>() {
                self.conclude(it, TIMEOUT);
            }
            return;
        };
        let wait = || publisher.wait_for_confirms();
        match self.timed("Publisher::wait_for_confirms", TIMEOUT, wait) {
            Err(error) if error.failed_publishes().is_empty() => {
                self.stress.check("Publisher::wait_for_confirms", &error);
            }
            // Failed messages are checked where their `Confirm` is waited for.
            _ => {
                let mut theirs = self.unconfirmed.iter();
                let lacks_answer = |it: &Unconfirmed| {
                    Arc::ptr_eq(&it.on, at) && matches!(it.confirm.try_wait(), Ok(None))
                };
                if theirs.any(lacks_answer) {
                    let text = "Publisher::wait_for_confirms ended before the answers came";
                    self.stress.fault(text);
                }
            }
        }
    }

    fn conclude(&mut self, it: Unconfirmed, timeout: Duration) {
        let wait = || it.confirm.wait_timeout(timeout);
        let answer = self.timed("Confirm::wait", timeout, wait);
        let outcome = self.stress.outcome(it.id, it.destination, &answer);
        self.sent.push(Sent(it.id, it.destination, outcome));
    }

    fn conclude_or_drop(&mut self, all: Vec<Unconfirmed>) {
        let drops = self.random.one_in(2);
        for it in all {
            if drops {
                let unknown = Sent(it.id, it.destination, Outcome::Unknown);
                self.sent.push(unknown);
            } else {
                self.conclude(it, TIMEOUT);
            }
        }
    }

    // ---- consuming ----

    fn busy(&mut self) -> &'a str {
        &self.stress.queues.busy[self.random.below(BUSY)]
    }

    fn consume(&mut self, at: &Arc<Tracked>) {
        // Threads use the same tags, even on shared channels.
        let tags = ["", "tag-a", "tag-b", "tag-c"];
        let tag = tags[self.random.below(tags.len())];
        let no_ack = self.random.one_in(4);
        let options = ConsumeOptions::default().consumer_tag(tag).no_ack(no_ack);
        let wait = match self.random.one_in(5) {
            true => Wait::No,
            false => Wait::Yes,
        };
        let queue = self.busy();
        if let Some(consuming) = self.consume_from(at, queue, options, wait) {
            consuming.no_ack = no_ack;
        }
    }

    fn consume_from(
        &mut self,
        at: &Arc<Tracked>,
        queue: &'a str,
        options: ConsumeOptions,
        wait: Wait,
    ) -> Option<&mut Consuming<'a>> {
        if self.consumers.len() >= CONSUMERS {
            self.drop_consumer();
        }
        let consume = || match wait {
            Wait::Yes => at.channel.basic_consume(queue, options),
            Wait::No => at.channel.basic_consume_no_wait(queue, options),
        };
        let consumer = self.call("basic.consume", consume).ok()?;
        self.consumers.push(Consuming {
            consumer,
            on: Arc::clone(at),
            queue,
            no_ack: false,
        });
        self.consumers.last_mut()
    }

    fn take_consumer(&mut self) -> Option<Consuming<'a>> {
        let count = self.consumers.len();
        (count > 0).then(|| self.consumers.swap_remove(self.random.below(count)))
    }

    fn receive(&mut self) {
        let Some(consuming) = self.take_consumer() else {
            return;
        };
        for _ in 0..=self.random.below(10) {
            let soon = Duration::from_millis(5);
            let receive = || consuming.consumer.recv_timeout(soon);
            match self.timed("Consumer::recv", soon, receive) {
                Ok(Some(delivery)) => self.received_by(&consuming, delivery),
                Ok(None) if consuming.consumer.has_ended() => return,
                Ok(None) => break,
                Err(error) => return self.stress.check("Consumer::recv", &error),
            }
        }
        self.consumers.push(consuming);
    }

    fn received_by(&mut self, by: &Consuming<'_>, delivery: Delivery) {
        if delivery.routing_key() != by.queue {
            self.stress
                .fault("a consumer got a message of another queue");
        }
        self.received(&by.on, delivery, by.no_ack);
    }

    fn received(&mut self, on: &Arc<Tracked>, delivery: Delivery, no_ack: bool) {
        if Id::read(delivery.body()).is_none() {
            self.stress.fault("a delivered message has changed");
        }
        let tag = delivery.delivery_tag();
        if !on.delivery_tags.lock().unwrap().insert(tag) {
            self.stress.fault("a delivery tag came twice");
        }
        if !no_ack {
            let on = Arc::clone(on);
            self.received.push(Received { delivery, on });
        }
        if self.received.len() > DELIVERIES {
            // They stay unacknowledged until their channel closes.
            self.received.drain(..DELIVERIES / 2);
        }
    }

    fn cancel(&mut self) {
        let Some(consuming) = self.take_consumer() else {
            return;
        };
        let cancelled = match self.random.one_in(2) {
            true => self.cancel_and_wait(&consuming),
            false => self.cancel_no_wait(&consuming),
        };
        if cancelled.is_ok() {
            self.read_to_the_end(&consuming);
        }
    }

    fn cancel_twice(&mut self) {
        let Some(it) = self.take_consumer() else {
            return;
        };
        let cancelled = match self.random.below(4) {
            0 => [self.cancel_no_wait(&it), self.cancel_and_wait(&it)],
            1 => [self.cancel_and_wait(&it), self.cancel_and_wait(&it)],
            2 => [self.cancel_no_wait(&it), self.cancel_no_wait(&it)],
            _ => thread::scope(|scope| {
                let other = scope.spawn(|| it.consumer.cancel());
                let first = self.cancel_and_wait(&it);
                let second = || other.join().unwrap();
                [first, self.call("basic.cancel, concurrent", second)]
            }),
        };
        if cancelled.iter().any(Result::is_ok) {
            self.read_to_the_end(&it);
        }
    }

    fn cancel_and_wait(&self, it: &Consuming<'_>) -> Result<()> {
        self.call("basic.cancel", || it.consumer.cancel())
    }

    fn cancel_no_wait(&self, it: &Consuming<'_>) -> Result<()> {
        let tag = it.consumer.consumer_tag();
        let cancel = || it.on.channel.basic_cancel_no_wait(tag);
        self.call("basic.cancel, no_wait", cancel)
    }

    /// Reads until the consumer ends, which it must do after a cancel.
    fn read_to_the_end(&mut self, consuming: &Consuming<'_>) {
        loop {
            let receive = || consuming.consumer.recv_timeout(TIMEOUT);
            match self.timed("Consumer::recv after a cancel", TIMEOUT, receive) {
                Ok(Some(delivery)) => self.received_by(consuming, delivery),
                Ok(None) if consuming.consumer.has_ended() => return,
                Ok(None) => return self.stress.fault("a cancelled consumer does not end"),
                Err(error) => return self.stress.check("Consumer::recv", &error),
            }
        }
    }

    fn drop_consumer(&mut self) {
        let consuming = self.take_consumer();
        self.timed("dropping a consumer", TIMEOUT, || drop(consuming));
    }

    fn get(&mut self, at: &Arc<Tracked>) {
        let queue = self.busy();
        let ack_mode = match self.random.one_in(3) {
            true => AckMode::Automatic,
            false => AckMode::Manual,
        };
        let got = self.call("basic.get", || at.channel.basic_get(queue, ack_mode));
        let Ok(Some(got)) = got else { return };
        if got.routing_key() != queue {
            self.stress
                .fault("basic.get got a message of another queue");
        }
        self.received(at, got, ack_mode == AckMode::Automatic);
    }

    fn settle_some(&mut self) {
        for _ in 0..=self.random.below(8) {
            if self.received.is_empty() {
                return;
            }
            let place = self.random.below(self.received.len());
            let it = self.received.swap_remove(place);
            self.settle(&it);
        }
    }

    fn settle(&mut self, it: &Received) {
        let Received { delivery, on } = it;
        let tag = delivery.delivery_tag();
        if tag <= on.settled_to.load(Ordering::Relaxed) {
            return;
        }
        let settled = match self.random.below(8) {
            0 => self.call("basic.nack", || delivery.nack(NackOptions::requeue())),
            1 => self.call("basic.nack", || delivery.nack(NackOptions::discard())),
            2 => self.call("basic.reject", || delivery.reject(Requeue::Yes)),
            3 => self.call("basic.reject", || delivery.reject(Requeue::No)),
            // On a shared channel, other threads would acknowledge the same messages again.
            4 if !on.is_shared => {
                on.settled_to.store(tag, Ordering::Relaxed);
                self.call("basic.ack, multiple", || delivery.ack_multiple())
            }
            _ => self.call("basic.ack", || delivery.ack()),
        };
        if settled.is_ok() && self.random.one_in(4) {
            let again = delivery.ack().err();
            let kind = again.as_ref().map(Error::kind);
            if !matches!(kind, Some(ErrorKind::AlreadySettled { .. })) {
                self.stress.fault(format!("a second ack: {again:?}"));
            }
        }
    }

    fn settle_unknown(&mut self, channel: &Channel) {
        let options = NackOptions::requeue().multiple(true);
        // A later call on the channel gets the error.
        let sent = match self.random.below(3) {
            0 => self.call("basic.ack", || channel.basic_ack(UNKNOWN_TAG)),
            1 => self.call("basic.nack", || channel.basic_nack(UNKNOWN_TAG, options)),
            _ => self.call("basic.reject", || {
                channel.basic_reject(UNKNOWN_TAG, Requeue::Yes)
            }),
        };
        sent.ok();
    }
}

/// Takes the items that belong to this channel.
fn take_on<T>(at: &Arc<Tracked>, from: &mut Vec<T>, on: impl Fn(&T) -> &Arc<Tracked>) -> Vec<T> {
    let all = std::mem::take(from).into_iter();
    let (taken, left) = all.partition(|it| Arc::ptr_eq(on(it), at));
    *from = left;
    taken
}
