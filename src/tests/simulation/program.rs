//! A program with handles: everything that the real handles do under the outbox's lock and on the
//! IO thread, without their waiting.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;
use std::vec::Drain;

use crossbeam_channel::{Receiver, TryRecvError};

use super::ledger::Ledger;
use super::rng::Rng;
use crate::consumer::deliveries::Deliveries;
use crate::consumer::mailbox::Mailbox;
use crate::error::{CloseReason, Error, ErrorKind, ReplyCode, Result};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::lost_publishes::LostPublish;
use crate::io_thread::mailbox::{Call, Command, ConfirmMailbox, ConsumerMailbox, Reply};
use crate::io_thread::outbox::channel::{Channel, Mode};
use crate::io_thread::outbox::{Admission, Frames};
use crate::io_thread::Shared;
use crate::options::ConsumeOptions;
use crate::proto::{Delivered, Expected, Fingerprint, Outcome, Settling};
use crate::session::channel::frames::is_kept;
use crate::session::channel::{ChannelState, Purpose};
use crate::session::subscription::{ReadsFrom, Subscription};
use crate::wire::method::{
    BasicAck, BasicConsume, BasicGet, BasicNack, BasicPublish, BasicQos, BasicReject,
    ConfirmSelect, Encode, Method, QueueDeclare, QueueDelete, Request, TxCommit, TxRollback,
    TxSelect,
};
use crate::wire::value::FieldTable;

const NOW: Duration = Duration::ZERO;
/// The argument that carries the number of a consumer, for a broker that reads it.
pub(super) const CONSUMER: &str = "x-consumer";
/// A program has at most this many handles of channels.
const HANDLES: usize = 5;

/// What a reply must say.
#[derive(Debug, Clone, PartialEq)]
enum Asked {
    Anything,
    Open,
    Consume,
    Declare(String),
    Delete(u32),
    Get { queue: String, no_ack: bool },
}

struct Waiting {
    handle: u64,
    asked: Asked,
    reply: Receiver<Result<Reply>>,
    /// The consumer that the call begins or cancels.
    consumer: u64,
}

struct Consumer {
    id: u64,
    subscription: Arc<Subscription>,
    deliveries: Arc<Deliveries>,
    last_read: u64,
}

/// A message that was read and is not settled.
struct Unsettled {
    delivery_tag: u64,
    subscription: Option<Arc<Subscription>>,
}

struct Handle {
    id: u64,
    state: Arc<ChannelState>,
    is_open: bool,
    consumers: Vec<Consumer>,
    unsettled: Vec<Unsettled>,
    seen: BTreeSet<u64>,
    /// Messages that were published in confirm mode and without a confirm, by sequence number.
    plain: Vec<(u64, u64)>,
    has_transactions: bool,
}

/// Records what a consumer gets, and hands it on to the real mailbox.
struct Watched {
    inner: Mailbox,
    id: u64,
    ledger: Ledger,
}

impl ConsumerMailbox for Watched {
    fn settling(&self) -> Settling {
        self.inner.settling()
    }

    fn started(&self) {
        self.inner.started();
    }

    fn wake(&self) {
        self.inner.wake();
    }

    fn deliver(&self, messages: Drain<'_, Delivered>) -> u64 {
        let mut messages: Vec<_> = messages.collect();
        for message in &messages {
            let body = String::from_utf8_lossy(message.content.body()).into_owned();
            let (id, tag) = (self.id, message.delivery_tag);
            self.ledger
                .trace(|| format!("  program: consumer {id} gets {tag}: {body}"));
            self.ledger.note_got(id);
            if let Some(to) = body.strip_prefix("to ") {
                let state = &self.inner.state;
                let broker_tag = state.look(|it| it.delivery_tags.broker_tag(tag));
                let tag = broker_tag.unwrap_or_default();
                self.ledger.check(to == format!("{id}:{tag}"), || {
                    format!("consumer {id} got as {tag} what was sent to {to}")
                });
            }
        }
        self.inner.deliver(messages.drain(..))
    }

    fn unread(&self) -> u64 {
        self.inner.unread()
    }

    fn ended(&self, error: Option<Error>) {
        let id = self.id;
        self.ledger
            .trace(|| format!("  program: consumer {id} ended: {error:?}"));
        self.inner.ended(error);
    }

    fn outlives(&self, error: &Error) -> bool {
        self.inner.outlives(error)
    }

    fn interrupted(&self, error: &Error) {
        self.inner.interrupted(error);
    }

    fn restart(&self, arguments: &mut FieldTable) -> bool {
        self.ledger.restarts(self.id);
        self.inner.restart(arguments)
    }
}

struct Confirm {
    message: u64,
    is_published_again: bool,
    ledger: Ledger,
}

impl ConfirmMailbox for Confirm {
    fn answered(&self, _sequence_number: u64, outcome: Outcome) {
        self.ledger.told(self.message, &outcome);
    }

    fn is_published_again(&self) -> bool {
        self.is_published_again
    }

    fn is_kept(&self) {
        let message = self.message;
        self.ledger
            .trace(|| format!("  program: message {message} is kept"));
        self.ledger.keep(message);
    }
}

pub(super) struct Program {
    shared: Arc<Shared>,
    ledger: Ledger,
    handles: Vec<Handle>,
    calls: Vec<Waiting>,
    /// Numbers handles, consumers, messages and queues.
    count: u64,
    /// Whether each declared queue has a name of its own. Otherwise there are few names.
    unique_names: bool,
    recovers: bool,
    /// The epoch of the replay, and the replies that it waits for.
    replay: Option<(u64, Vec<Receiver<Result<Reply>>>)>,
    /// Consumers whose handle was dropped, until they have ended.
    dropped: Vec<(u64, Arc<Deliveries>)>,
    /// Channels whose last handle was dropped.
    dropped_channels: Vec<Arc<ChannelState>>,
    has_closed: bool,
}

impl Program {
    pub(super) fn new(
        shared: Arc<Shared>,
        ledger: Ledger,
        unique_names: bool,
        recovers: bool,
    ) -> Self {
        Self {
            shared,
            ledger,
            handles: Vec::new(),
            calls: Vec::new(),
            count: 0,
            unique_names,
            recovers,
            replay: None,
            dropped: Vec::new(),
            dropped_channels: Vec::new(),
            has_closed: false,
        }
    }

    fn next(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn queue(&mut self, rng: &mut Rng) -> String {
        match self.unique_names {
            true => format!("q{}", self.next()),
            false => format!("q{}", rng.below(3)),
        }
    }

    /// One step of one handle.
    pub(super) fn act(&mut self, rng: &mut Rng) {
        self.poll();
        if self.handles.is_empty() || (self.handles.len() < HANDLES && rng.one_in(6)) {
            return self.open();
        }
        let open = self.handles.iter().enumerate().filter(|(_, it)| it.is_open);
        let open: Vec<_> = open.map(|(at, _)| at).collect();
        if open.is_empty() {
            return;
        }
        let at = rng.pick(&open);
        match rng.weighted(&[16, 40, 16, 8, 30, 40, 12, 2, 1, 6, 5, 4, 3, 2, 4, 1]) {
            0 => self.declare(at, rng),
            1 => self.publish(at, rng),
            2 => self.consume(at, rng),
            3 => self.cancel(at, rng),
            4 => self.read(at, rng),
            5 => self.settle(at, rng),
            6 => self.get(at, rng),
            7 => self.close(at, rng),
            8 => self.drop_handle(at),
            9 => self.reopen(at),
            10 => self.select(at, rng),
            11 => self.commit(at, rng),
            12 => self.drop_consumer(at, rng),
            13 => self.give_up(rng),
            14 => self.wait_for_confirms(at),
            _ if rng.one_in(4) => self.close_connection(),
            _ => {}
        }
    }

    // ---- calls ----

    fn open(&mut self) {
        let outbox = &self.shared.outbox;
        let Some(owned) = outbox.add_channel(Deadline::after(NOW)) else {
            return;
        };
        let state = Arc::new(ChannelState::new(
            owned,
            Purpose::Any,
            Arc::clone(&self.shared),
        ));
        let (call, reply) = Call::new();
        let outbox = &self.shared.outbox;
        let opened = outbox.write(state.id(), Admission::Room, NOW, |frames| {
            state.append_open(frames, call)
        });
        if opened.is_err() {
            return state.change(|frames| frames.handles_are_done());
        }
        let id = self.next();
        self.ledger
            .trace(|| format!("program: handle {id} opens channel {}", state.number));
        self.handles.push(Handle {
            id,
            state,
            is_open: false,
            consumers: Vec::new(),
            unsettled: Vec::new(),
            seen: BTreeSet::new(),
            plain: Vec::new(),
            has_transactions: false,
        });
        self.wait(id, Asked::Open, reply, 0);
    }

    fn wait(&mut self, handle: u64, asked: Asked, reply: Receiver<Result<Reply>>, consumer: u64) {
        self.calls.push(Waiting {
            handle,
            asked,
            reply,
            consumer,
        });
    }

    /// Sends a request if it is admitted now.
    fn call(
        &mut self,
        at: usize,
        admission: Admission,
        asked: Asked,
        append: impl FnOnce(&Arc<ChannelState>, &mut Frames<'_>, Call) -> Result<()>,
    ) -> bool {
        let handle = &self.handles[at];
        if !handle.is_open {
            // Its thread waits in `Connection::open_channel`.
            return false;
        }
        let (id, state) = (handle.id, Arc::clone(&handle.state));
        let (call, reply) = Call::new();
        let outbox = &self.shared.outbox;
        let written = outbox.write(state.id(), admission, NOW, |frames| {
            append(&state, frames, call)
        });
        let number = state.number;
        self.ledger.trace(|| {
            let refused = written.as_ref().err().map(ToString::to_string);
            format!("program: handle {id} on channel {number}: {asked:?} {refused:?}")
        });
        if written.is_ok() {
            self.wait(id, asked, reply, 0);
        }
        written.is_ok()
    }

    fn request<R: Request>(&mut self, at: usize, asked: Asked, method: &R) -> bool {
        self.call(at, Admission::Room, asked, |_, frames, call| {
            frames.call(method, call)
        })
    }

    fn record<R: Request + Clone + Into<Method<'static>>>(&mut self, at: usize, method: &R) {
        self.call(
            at,
            Admission::Room,
            Asked::Anything,
            |state, frames, call| {
                frames.method(method)?;
                frames.command(Command::Call {
                    channel: state.number,
                    expected: Expected::Method(R::REPLY),
                    call: call.recording(Some(method.clone().into())),
                });
                Ok(())
            },
        );
    }

    fn declare(&mut self, at: usize, rng: &mut Rng) {
        let name = self.queue(rng);
        let declare = QueueDeclare {
            queue: name.clone().into(),
            ..QueueDeclare::default()
        };
        match rng.below(8) {
            0 => {
                // A later part of the request cannot be encoded: nothing of it may be sent.
                let failed = self.call(at, Admission::Room, Asked::Anything, |_, frames, call| {
                    frames.call(&declare, call)?;
                    Err(Error::invalid("simulated"))
                });
                self.ledger
                    .check(!failed, || "a failed append was admitted".to_owned());
            }
            1 if self.unique_names => {
                let count = self.next() as u32;
                let delete = QueueDelete {
                    queue: format!("delete {count}").into(),
                    ..QueueDelete::default()
                };
                self.request(at, Asked::Delete(count), &delete);
            }
            2 => {
                let prefetch_count = rng.below(4) as u16;
                let qos = BasicQos {
                    prefetch_count,
                    ..BasicQos::default()
                };
                self.record(at, &qos);
            }
            _ => {
                self.request(at, Asked::Declare(name), &declare);
            }
        }
    }

    fn get(&mut self, at: usize, rng: &mut Rng) {
        let (queue, no_ack) = (self.queue(rng), rng.one_in(4));
        let get = BasicGet {
            ticket: 0,
            queue: queue.clone().into(),
            no_ack,
        };
        let asked = Asked::Get { queue, no_ack };
        self.call(at, Admission::Room, asked, |state, frames, call| {
            frames.method(&get)?;
            frames.command(Command::Call {
                channel: state.number,
                expected: Expected::Message { no_ack },
                call,
            });
            Ok(())
        });
    }

    fn select(&mut self, at: usize, rng: &mut Rng) {
        let handle = &mut self.handles[at];
        let has_confirms = handle.state.last_published().is_some();
        if handle.has_transactions || (rng.one_in(4) && !has_confirms) {
            handle.has_transactions = true;
            return self.record(at, &TxSelect {});
        }
        self.select_confirms(at, rng.one_in(2));
    }

    fn select_confirms(&mut self, at: usize, no_wait: bool) {
        if !no_wait {
            self.call(at, Admission::Room, Asked::Anything, |_, frames, call| {
                frames.call(&ConfirmSelect { no_wait: false }, call)?;
                frames.channel().select_confirms();
                Ok(())
            });
            return;
        }
        let id = self.handles[at].state.id();
        let outbox = &self.shared.outbox;
        let _ = outbox.write(id, Admission::Room, NOW, |frames| {
            frames.method(&ConfirmSelect { no_wait: true })?;
            frames.channel().select_confirms();
            Ok(())
        });
    }

    fn commit(&mut self, at: usize, rng: &mut Rng) {
        let is_transaction = |channel: &mut Channel| matches!(channel.mode(), Mode::Transaction(_));
        if !self.handles[at].state.look(is_transaction) {
            return;
        }
        let commits = !rng.one_in(3);
        self.call(at, Admission::Room, Asked::Anything, |_, frames, call| {
            let torn = frames.channel().end_transaction();
            match commits && torn.is_none() {
                true => frames.call(&TxCommit {}, call),
                false => frames.call(&TxRollback {}, call),
            }
        });
    }

    fn close(&mut self, at: usize, rng: &mut Rng) {
        let reason = CloseReason::program("simulated");
        let state = Arc::clone(&self.handles[at].state);
        let mut closed = None;
        self.call(
            at,
            Admission::Always,
            Asked::Anything,
            |state, frames, call| {
                closed = Some(state.append_close(frames, reason, Some(call))?);
                Ok(())
            },
        );
        closed.map(|closed| state.closed(closed));
        if rng.one_in(2) {
            self.drop_handle(at);
        }
    }

    fn reopen(&mut self, at: usize) {
        let handle = &self.handles[at];
        if !handle.is_open || handle.state.end_cause().is_none() {
            return;
        }
        let (id, state) = (handle.id, Arc::clone(&handle.state));
        let (call, reply) = Call::new();
        let outbox = &self.shared.outbox;
        let written = outbox.write(state.id(), Admission::Reopen, NOW, |frames| {
            state.append_reopen(frames, call)
        });
        if written.is_ok() {
            let number = state.number;
            self.ledger
                .trace(|| format!("program: handle {id} reopens channel {number}"));
            let handle = &mut self.handles[at];
            handle.plain.clear();
            self.wait(id, Asked::Anything, reply, 0);
        }
    }

    /// The last handle of a channel is dropped, with its consumers.
    fn drop_handle(&mut self, at: usize) {
        while !self.handles[at].consumers.is_empty() {
            self.drop_consumer_at(at, 0);
        }
        let handle = self.handles.remove(at);
        let (id, number) = (handle.id, handle.state.number);
        self.ledger
            .trace(|| format!("program: handle {id} of channel {number} is dropped"));
        self.calls.retain(|it| it.handle != handle.id);
        handle.state.dropped();
        self.dropped_channels.push(handle.state);
    }

    // ---- publishing ----

    fn publish(&mut self, at: usize, rng: &mut Rng) {
        let (message, handle) = (self.next(), &self.handles[at]);
        if !handle.is_open {
            return;
        }
        let state = Arc::clone(&handle.state);
        let (is_large, mandatory) = (rng.one_in(8), rng.one_in(3));
        let routing_key = match rng.below(5) {
            0 => "no queue".to_owned(),
            // Cannot be encoded.
            1 if rng.one_in(8) => "k".repeat(300),
            _ => format!("q{}", rng.below(3)),
        };
        let method = BasicPublish {
            routing_key: Cow::Borrowed(&routing_key),
            mandatory,
            ..BasicPublish::default()
        };
        let body = format!("m{message}");
        let is_confirmed = state.last_published().is_some();
        let has_confirm = is_confirmed && rng.one_in(2);
        let confirm = has_confirm.then(|| {
            self.ledger.awaits(message);
            Arc::new(Confirm {
                message,
                is_published_again: self.recovers && message % 3 > 0,
                ledger: self.ledger.clone(),
            })
        });
        let fingerprint = (mandatory && is_confirmed)
            .then(|| Fingerprint::new("", &routing_key, body.as_bytes()));
        let outbox = &self.shared.outbox;
        let admission = match is_large {
            true => Admission::PublishLarge,
            false => Admission::Publish,
        };
        let published = if is_large {
            let large = outbox.encode_large(state.number, &method, None, body.as_bytes());
            large.and_then(|large| {
                let kept = is_kept(confirm.as_ref()).then(|| large.keep());
                outbox.write(state.id(), admission, NOW, |frames| {
                    let fingerprint = fingerprint.map(|it| it.with_properties(large.properties()));
                    frames.large(large)?;
                    let keep = |_: &mut Frames<'_>| kept.unwrap_or_default();
                    Ok(state.published(frames, fingerprint, confirm.as_ref(), keep))
                })
            })
        } else {
            outbox.write(state.id(), admission, NOW, |frames| {
                let properties = frames.message(&method, None, body.as_bytes())?;
                let fingerprint = fingerprint.map(|it| it.with_properties(properties));
                Ok(state.published(frames, fingerprint, confirm.as_ref(), |it| it.keep()))
            })
        };
        let (id, number) = (handle.id, state.number);
        self.ledger.trace(|| {
            let result = published.as_ref().map_err(ToString::to_string);
            format!("program: handle {id} on channel {number}: message {message} {result:?}")
        });
        match published {
            Ok(Some(sequence_number)) if !has_confirm => {
                self.handles[at].plain.push((sequence_number, message));
            }
            Ok(_) => {}
            Err(_) => self.ledger.awaits_no_more(message),
        }
    }

    /// Asks whether all messages that were published without a confirm are answered.
    fn wait_for_confirms(&mut self, at: usize) {
        let handle = &mut self.handles[at];
        let published = handle.state.look(|it| it.sequence_numbers.last());
        let confirms = &handle.state.confirms;
        let mut nacked = Vec::new();
        match confirms.wait_and_report(published, Deadline::after(NOW)) {
            Ok(()) => {}
            Err(error) => match error.kind() {
                ErrorKind::Nacked { sequence_numbers } => nacked.clone_from(sequence_numbers),
                ErrorKind::TimedOut { .. } => return,
                _ => return handle.plain.clear(),
            },
        }
        for (sequence_number, message) in handle.plain.drain(..) {
            let is_nacked = nacked.contains(&sequence_number);
            self.ledger.told_plainly(message, is_nacked);
        }
    }

    // ---- consuming ----

    fn consume(&mut self, at: usize, rng: &mut Rng) {
        let (no_wait, no_ack) = (rng.one_in(4), rng.one_in(4));
        let queue = match self.unique_names {
            true => "q0".to_owned(),
            false => format!("q{}", rng.below(3)),
        };
        let id = self.next();
        // With no-wait or no_ack, nothing tells messages of two consumers with the same tag apart.
        let wanted = match no_wait || no_ack {
            true => "",
            false => rng.pick(&["", "a", "b"]),
        };
        let handle = &self.handles[at];
        if !handle.is_open {
            return;
        }
        let (handle_id, state) = (handle.id, Arc::clone(&handle.state));
        let taken = state.consumers.lock().take_tag(wanted, state.number);
        let Some(consumer_tag) = taken else { return };
        let options = ConsumeOptions {
            no_ack,
            ..ConsumeOptions::default()
        };
        let subscription = Arc::new(Subscription::new(
            Arc::clone(&consumer_tag),
            &options,
            ReadsFrom::Queue,
        ));
        state.consumers.lock().register(&subscription);
        let deliveries = Arc::new(Deliveries::new(Weak::new()));
        let mailbox = Arc::new(Watched {
            inner: Mailbox {
                deliveries: Arc::clone(&deliveries),
                state: Arc::clone(&state),
                recovers: self.recovers,
                subscription: Arc::clone(&subscription),
                position: None,
            },
            id,
            ledger: self.ledger.clone(),
        });
        let consume = BasicConsume {
            ticket: 0,
            queue: queue.into(),
            consumer_tag: Cow::Borrowed(&consumer_tag),
            no_local: false,
            no_ack,
            exclusive: false,
            no_wait,
            arguments: Cow::Owned(FieldTable::new().with(CONSUMER, id as i64)),
        };
        let (call, reply) = Call::new();
        let written = self
            .shared
            .outbox
            .write(state.id(), Admission::Room, NOW, |frames| {
                frames.method(&consume)?;
                subscription.asked(no_wait);
                let again = BasicConsume {
                    no_wait: false,
                    ..consume.clone().into_owned()
                };
                let qos = frames.channel().qos().clone();
                let mailbox = Arc::<Watched>::clone(&mailbox);
                let mut consumers = state.consumers.lock();
                consumers.record(Arc::<Watched>::clone(&mailbox), again, qos);
                drop(consumers);
                frames.command(Command::Consume {
                    channel: state.number,
                    consumer_tag: Arc::clone(&consumer_tag),
                    settling: mailbox.settling(),
                    consumer: mailbox,
                    call: (!no_wait).then_some(call),
                });
                Ok(())
            });
        drop(mailbox);
        if written.is_err() {
            state.consumers.lock().remove(&consumer_tag);
            return;
        }
        let number = state.number;
        self.ledger.trace(|| {
            format!("program: handle {handle_id} on channel {number}: consumer {id} {consumer_tag:?}, no_wait {no_wait}, no_ack {no_ack}")
        });
        if no_wait {
            state.consumer_started(&consumer_tag);
        } else {
            self.wait(handle_id, Asked::Consume, reply, id);
        }
        self.handles[at].consumers.push(Consumer {
            id,
            subscription,
            deliveries,
            last_read: 0,
        });
    }

    fn cancel(&mut self, at: usize, rng: &mut Rng) {
        let handle = &self.handles[at];
        if handle.consumers.is_empty() {
            return;
        }
        let consumer = &handle.consumers[rng.below(handle.consumers.len())];
        let subscription = Arc::clone(&consumer.subscription);
        let (tag, by_tag) = (Arc::clone(&subscription.consumer_tag), rng.one_in(3));
        self.call(
            at,
            Admission::Attached,
            Asked::Anything,
            |state, frames, call| {
                let only = (!by_tag).then_some(&*subscription);
                state.append_cancel(frames, &tag, only, call)
            },
        );
    }

    fn drop_consumer(&mut self, at: usize, rng: &mut Rng) {
        let count = self.handles[at].consumers.len();
        if count > 0 {
            self.drop_consumer_at(at, rng.below(count));
        }
    }

    fn drop_consumer_at(&mut self, at: usize, index: usize) {
        let handle = &mut self.handles[at];
        let consumer = handle.consumers.remove(index);
        let (id, state) = (consumer.id, &handle.state);
        self.ledger
            .trace(|| format!("program: consumer {id} is dropped"));
        self.calls
            .retain(|it| it.consumer != id || it.asked != Asked::Consume);
        if consumer.subscription.abandon() {
            state.cancel_in_background(&consumer.subscription);
        }
        consumer
            .deliveries
            .discard(|tag| state.give_back_unread(&consumer.subscription, tag));
        self.dropped.push((id, consumer.deliveries));
    }

    /// Reads all messages of one consumer.
    fn read(&mut self, at: usize, rng: &mut Rng) {
        let count = self.handles[at].consumers.len();
        if count > 0 {
            let index = rng.below(count);
            self.read_at(at, index);
        }
    }

    fn read_at(&mut self, at: usize, index: usize) {
        let handle = &mut self.handles[at];
        let consumer = &mut handle.consumers[index];
        let mut tags = Vec::new();
        consumer.deliveries.discard(|tag| tags.push(tag));
        for delivery_tag in tags {
            let last_read = std::mem::replace(&mut consumer.last_read, delivery_tag);
            self.ledger.check(last_read < delivery_tag, || {
                format!("delivery tag {delivery_tag} follows {last_read}")
            });
            self.ledger.check(handle.seen.insert(delivery_tag), || {
                format!("delivery tag {delivery_tag} came twice")
            });
            if !consumer.subscription.no_ack {
                handle.unsettled.push(Unsettled {
                    delivery_tag,
                    subscription: Some(Arc::clone(&consumer.subscription)),
                });
            }
        }
    }

    fn settle(&mut self, at: usize, rng: &mut Rng) {
        let handle = &mut self.handles[at];
        if handle.unsettled.is_empty() {
            return;
        }
        let place = rng.below(handle.unsettled.len());
        let Unsettled {
            delivery_tag,
            subscription,
        } = handle.unsettled.swap_remove(place);
        let state = Arc::clone(&handle.state);
        // A `multiple` acknowledgement of the program may have covered it.
        let is_covered = state.look(|channel| {
            let tags = &channel.delivery_tags;
            tags.broker_tag(delivery_tag).is_some() && tags.is_settled(delivery_tag)
        });
        if is_covered {
            return;
        }
        let how = rng.below(20);
        let multiple = how < 3;
        if let Some(subscription) = subscription.filter(|it| it.is_revoked() && !multiple) {
            return state.give_back_unread(&subscription, delivery_tag);
        }
        let id = handle.id;
        self.ledger.trace(|| {
            format!("program: handle {id} settles {delivery_tag}, multiple {multiple}, {how}")
        });
        let delivery_tag = if how == 0 { 0 } else { delivery_tag };
        let requeue = how % 2 == 0;
        match how {
            0 | 1 | 3..=12 => {
                Self::answer(&state, delivery_tag, multiple, |delivery_tag| BasicAck {
                    delivery_tag,
                    multiple,
                })
            }
            2 | 13..=16 => Self::answer(&state, delivery_tag, multiple, |delivery_tag| BasicNack {
                delivery_tag,
                multiple,
                requeue,
            }),
            _ => Self::answer(&state, delivery_tag, multiple, |delivery_tag| BasicReject {
                delivery_tag,
                requeue,
            }),
        }
    }

    /// Sends an answer to one delivery, or to all up to it.
    fn answer<M: Encode>(
        state: &ChannelState,
        delivery_tag: u64,
        multiple: bool,
        answer: impl FnOnce(u64) -> M,
    ) {
        let _ = state.answer(delivery_tag, multiple, NOW, answer);
    }

    // ---- replies ----

    /// A caller's deadline passes.
    fn give_up(&mut self, rng: &mut Rng) {
        if self.calls.is_empty() {
            return;
        }
        let call = self.calls.swap_remove(rng.below(self.calls.len()));
        let handle = call.handle;
        self.ledger
            .trace(|| format!("program: handle {handle} gives up {:?}", call.asked));
        let Some(at) = self.handles.iter().position(|it| it.id == call.handle) else {
            return;
        };
        match call.asked {
            Asked::Open => self.drop_handle(at),
            Asked::Consume => {
                let consumers = &self.handles[at].consumers;
                if let Some(index) = consumers.iter().position(|it| it.id == call.consumer) {
                    self.drop_consumer_at(at, index);
                }
            }
            _ => {}
        }
    }

    /// Takes all replies that have come. Returns whether there was one.
    pub(super) fn poll(&mut self) -> bool {
        let mut answered = Vec::new();
        let mut left = Vec::new();
        for call in self.calls.drain(..) {
            match call.reply.try_recv() {
                Ok(reply) => answered.push((call, reply)),
                Err(TryRecvError::Empty) => left.push(call),
                Err(TryRecvError::Disconnected) => {
                    let asked = &call.asked;
                    self.ledger
                        .fault(format!("a call was dropped without an answer: {asked:?}"));
                }
            }
        }
        self.calls = left;
        let any = !answered.is_empty();
        for (call, reply) in answered {
            self.answered(&call, reply);
        }
        any
    }

    fn answered(&mut self, call: &Waiting, reply: Result<Reply>) {
        let (asked, handle) = (&call.asked, call.handle);
        self.ledger.trace(|| {
            let reply = match &reply {
                Ok(Reply::Method(method)) => format!("{method:?}"),
                Ok(Reply::Message(_)) => "a message".to_owned(),
                Err(error) => error.to_string(),
            };
            format!("  program: handle {handle}: {asked:?}: {reply}")
        });
        let Some(at) = self.handles.iter().position(|it| it.id == handle) else {
            return;
        };
        match (asked, reply) {
            (Asked::Open, Ok(_)) => {
                self.handles[at].is_open = true;
                // Every other channel is in confirm mode from the start.
                if handle % 2 == 0 {
                    self.select_confirms(at, handle % 4 == 0);
                }
            }
            (Asked::Open, Err(_)) => self.drop_handle(at),
            (Asked::Consume, Err(_)) => {
                let consumers = &self.handles[at].consumers;
                if let Some(index) = consumers.iter().position(|it| it.id == call.consumer) {
                    self.drop_consumer_at(at, index);
                }
            }
            (Asked::Declare(name), Ok(Reply::Method(Method::QueueDeclareOk(ok)))) => {
                self.ledger.check(*name == ok.queue, || {
                    format!("the reply for {name:?} is about {:?}", ok.queue)
                });
            }
            (Asked::Delete(count), Ok(Reply::Method(Method::QueueDeleteOk(ok)))) => {
                self.ledger.check(*count == ok.message_count, || {
                    format!("the reply for {count} is about {}", ok.message_count)
                });
            }
            (Asked::Get { queue, no_ack }, Ok(Reply::Message(message))) => {
                let Some(message) = message.claim() else {
                    return self.ledger.fault("a fetched message is claimed already");
                };
                let key = message.content.routing_key();
                self.ledger.check(queue == key, || {
                    format!("basic.get for {queue:?} fetched a message of {key:?}")
                });
                let handle = &mut self.handles[at];
                let delivery_tag = message.delivery_tag;
                self.ledger.check(handle.seen.insert(delivery_tag), || {
                    format!("delivery tag {delivery_tag} came twice")
                });
                if !no_ack {
                    handle.unsettled.push(Unsettled {
                        delivery_tag,
                        subscription: None,
                    });
                }
            }
            (Asked::Declare(_) | Asked::Delete(_), Ok(_)) => {
                self.ledger.fault(format!("another reply than {asked:?}"));
            }
            _ => {}
        }
    }

    // ---- recovery ----

    /// Begins what the recovery thread does on a new connection: opens the channels and starts the
    /// consumers. A channel that the broker refuses is given up.
    pub(super) fn begin_replay(&mut self) {
        let epoch = self.shared.outbox.epoch();
        let mut replies = Vec::new();
        for handle in &self.handles {
            let state = &handle.state;
            if state.end_cause().is_some() || state.is_open_in(epoch) {
                continue;
            }
            let (call, reply) = Call::new();
            let opening = Admission::RecoveryOpen { epoch };
            if self.replay_on(state, opening, |frames| state.append_open(frames, call)) {
                replies.push(reply);
            }
            let recorded = state.consumers.lock().recorded();
            for recorded in recorded {
                let (call, reply) = Call::new();
                let mut consume = recorded.consume.clone();
                let mailbox = &recorded.mailbox;
                let sent = self.replay_on(state, Admission::Recovery { epoch }, |frames| {
                    if !mailbox.restart(consume.arguments.to_mut()) {
                        call.answer(Err(Error::invalid("the consumer is gone")));
                        return Ok(());
                    }
                    frames.method(&consume)?;
                    frames.command(Command::Consume {
                        channel: state.number,
                        consumer_tag: consume.consumer_tag.as_ref().into(),
                        consumer: Arc::clone(mailbox),
                        settling: mailbox.settling(),
                        call: Some(call),
                    });
                    Ok(())
                });
                if sent {
                    replies.push(reply);
                }
            }
        }
        self.replay = Some((epoch, replies));
    }

    fn replay_on(
        &self,
        state: &ChannelState,
        admission: Admission,
        append: impl FnOnce(&mut Frames<'_>) -> Result<()>,
    ) -> bool {
        let outbox = &self.shared.outbox;
        let written = outbox.write(state.id(), admission, NOW, append);
        let number = state.number;
        self.ledger.trace(|| {
            let refused = written.as_ref().err().map(ToString::to_string);
            format!("program: replay on channel {number} {refused:?}")
        });
        written.is_ok()
    }

    /// Ends the replay once all replies have come: publishes what was lost, and admits the others.
    pub(super) fn go_on_with_replay(&mut self) {
        let Some((epoch, replies)) = &mut self.replay else {
            return;
        };
        let epoch = *epoch;
        if self.shared.outbox.epoch() != epoch {
            self.replay = None;
            return;
        }
        replies.retain(|it| matches!(it.try_recv(), Err(TryRecvError::Empty)));
        let is_stopped = |it: &Handle| it.state.look(|channel| channel.is_flow_stopped);
        if !replies.is_empty() || self.handles.iter().any(is_stopped) {
            return;
        }
        self.replay = None;
        let lost = std::mem::take(&mut self.shared.to_replay.lock().lost_publishes);
        let mut lost: Vec<_> = lost.into_iter().map(Some).collect();
        for handle in &self.handles {
            let state = &handle.state;
            if state.end_cause().is_some() {
                continue;
            }
            let mut range: Option<(u64, u64)> = None;
            let its_own = |it: &Option<LostPublish>| {
                it.as_ref()
                    .is_some_and(|it| it.published.channel == state.number)
            };
            let messages: Vec<_> = lost.iter_mut().filter(|it| its_own(it)).collect();
            self.replay_on(state, Admission::Recovery { epoch }, |frames| {
                for message in messages.into_iter().filter_map(Option::take) {
                    frames.again(message.published.kept.as_deref().unwrap_or_default())?;
                    let number = message.published.sequence_number;
                    range = Some((range.map_or(number, |(first, _)| first), number));
                    frames.command(Command::Publish(message.published));
                }
                let published = frames.channel().sequence_numbers.last();
                state.confirms.resume(published, range);
                Ok(())
            });
        }
        lost.into_iter().flatten().for_each(LostPublish::lose);
        let is_recovered = self.shared.outbox.recovered(epoch, || {});
        self.ledger
            .trace(|| format!("program: the replay ends, recovered {is_recovered}"));
    }

    /// The connection was lost during the replay, or has ended.
    pub(super) fn end_replay(&mut self) {
        self.replay = None;
    }

    /// Ends what nothing else ends after a loss for good.
    pub(super) fn end_all(&self, cause: &Error) {
        let states = self.handles.iter().map(|it| &it.state);
        for state in states.chain(&self.dropped_channels) {
            if state.end_cause().is_none() {
                state.end(cause);
            }
        }
        self.shared.lose_publishes();
    }

    // ---- the end ----

    pub(super) fn waiting_calls(&self) -> Vec<String> {
        let calls = self.calls.iter();
        calls.map(|it| format!("{:?}", it.asked)).collect()
    }

    /// Reads everything that has come.
    pub(super) fn read_all(&mut self) {
        for at in 0..self.handles.len() {
            for index in 0..self.handles[at].consumers.len() {
                self.read_at(at, index);
            }
        }
    }

    /// Checks that the messages published without a confirm are answered.
    pub(super) fn check_plain(&mut self) {
        for at in 0..self.handles.len() {
            if self.handles[at].state.end_cause().is_some() {
                continue;
            }
            self.wait_for_confirms(at);
            let left = self.handles[at].plain.len();
            self.ledger.check(left == 0, || {
                format!("{left} messages without a confirm wait for an answer")
            });
        }
    }

    pub(super) fn close_connection(&mut self) {
        if !self.has_closed {
            self.has_closed = true;
            self.ledger
                .trace(|| "program: closes the connection".to_owned());
            let _ = self
                .shared
                .begin_close(ReplyCode::SUCCESS, "the simulation ends");
        }
    }

    /// Everything must have ended with the connection.
    pub(super) fn check_end(&mut self) {
        self.poll();
        self.read_all();
        let waiting = self.waiting_calls();
        self.ledger.check(waiting.is_empty(), || {
            format!("calls wait after the end of the connection: {waiting:?}")
        });
        let consumers = self.handles.iter().flat_map(|it| &it.consumers);
        let consumers = consumers.map(|it| (it.id, &it.deliveries));
        let dropped = self
            .dropped
            .iter()
            .map(|(id, deliveries)| (*id, deliveries));
        for (id, deliveries) in consumers.chain(dropped) {
            // An error at the end is left: discarding skips it.
            let has_ended = deliveries.is_over();
            self.ledger.check(has_ended, || {
                format!("consumer {id} has not ended with the connection")
            });
        }
        for handle in &self.handles {
            let (id, has_ended) = (handle.id, handle.state.end_cause().is_some());
            self.ledger.check(has_ended, || {
                format!("handle {id} has not ended with the connection")
            });
        }
    }

    /// Drops all handles.
    pub(super) fn drop_all(&mut self) {
        while !self.handles.is_empty() {
            self.drop_handle(0);
        }
    }
}
