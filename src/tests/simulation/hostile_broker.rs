//! A broker that does everything RabbitMQ may do, in any order, and keeps its own account of what
//! the client may send.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::ledger::{Fate, Ledger};
use super::program::CONSUMER;
use super::rng::Rng;
use super::Broker;
use crate::wire::frame::{self, ContentHeader, Cut, Frame, FrameKind};
use crate::wire::method::{
    BasicAck, BasicCancel, BasicCancelOk, BasicConsumeOk, BasicDeliver, BasicGetEmpty, BasicGetOk,
    BasicNack, BasicPublish, BasicQosOk, BasicReturn, ChannelClose, ChannelCloseOk, ChannelFlow,
    ChannelOpenOk, ConfirmSelectOk, ConnectionBlocked, ConnectionClose, ConnectionCloseOk,
    ConnectionUnblocked, Encode, Method, QueueDeclareOk, QueueDeleteOk, TxCommitOk, TxRollbackOk,
    TxSelectOk,
};

/// A channel has at most this many messages that the client has not settled.
const PREFETCH: usize = 12;
/// A channel number has at most this many late frames of earlier lives.
const LATE: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running,
    /// The broker has closed the connection and waits for close-ok.
    Closing,
    /// The client has closed the connection.
    ClosedByClient,
    /// No frame may come.
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Free,
    /// Open, or about to be: open-ok can still be pending.
    Open,
    /// The client has closed the channel, and has no answer.
    ClosedByClient,
    /// The broker has closed the channel, and has no answer.
    Closing {
        has_crossed: bool,
    },
}

/// A reply that waits to be sent.
struct Pending {
    bytes: Vec<u8>,
    /// Later replies may be sent first.
    can_be_overtaken: bool,
    /// The consumer tag, of which all replies stay in order.
    about: String,
    then: Then,
}

/// What sending a reply changes.
#[derive(Debug, Clone, PartialEq)]
enum Then {
    Nothing,
    Opened,
    Closed,
    ConsumerStarted,
    ConsumerGone,
    /// Fetches a message from this queue, if there is one: the delivery tag is taken now.
    Get {
        queue: String,
        no_ack: bool,
    },
}

enum Late {
    Delivery {
        consumer_tag: String,
        delivery_tag: u64,
    },
    /// The answer to a close that has crossed the broker's.
    CloseOk,
}

struct Consumer {
    id: i64,
    no_ack: bool,
    is_started: bool,
    /// The client's cancel came.
    is_cancelled: bool,
    /// The broker has cancelled it, and the client has not.
    is_revoked: bool,
    /// The number of deliveries to it.
    sent: usize,
}

struct Unanswered {
    tag: u64,
    message: u64,
    is_returned: bool,
}

struct Incoming {
    method: BasicPublish<'static>,
    missing: Option<u64>,
    body: Vec<u8>,
}

struct Channel {
    phase: Phase,
    is_open: bool,
    pending: VecDeque<Pending>,
    consumers: BTreeMap<String, Consumer>,
    last_tag: u64,
    unsettled: Vec<u64>,
    confirms: bool,
    transactions: bool,
    published: u64,
    unanswered: Vec<Unanswered>,
    incoming: Option<Incoming>,
    is_flowing: bool,
    /// The client has agreed to stop publishing.
    is_stopped: bool,
    flows: usize,
    /// Close-oks that were sent after the channel was opened again. A client cannot tell such a one
    /// from the answer to its next close.
    late_close_oks: usize,
    /// What the writers of earlier lives have not sent.
    late: Vec<(Late, Vec<u8>)>,
}

impl Channel {
    fn new() -> Self {
        Self {
            phase: Phase::Free,
            is_open: false,
            pending: VecDeque::new(),
            consumers: BTreeMap::new(),
            last_tag: 0,
            unsettled: Vec::new(),
            confirms: false,
            transactions: false,
            published: 0,
            unanswered: Vec::new(),
            incoming: None,
            is_flowing: true,
            is_stopped: false,
            flows: 0,
            late_close_oks: 0,
            late: Vec::new(),
        }
    }

    /// A new life of the number.
    fn begin(&mut self) {
        let late = std::mem::take(&mut self.late);
        let late_close_oks = self.late_close_oks;
        *self = Self {
            phase: Phase::Open,
            late_close_oks,
            late,
            ..Self::new()
        };
    }
}

pub(super) struct HostileBroker {
    ledger: Ledger,
    stage: Stage,
    now: Instant,
    last_output: Instant,
    heartbeat: Duration,
    input: Vec<u8>,
    output: Vec<u8>,
    channels: BTreeMap<u16, Channel>,
    close_pending: bool,
    is_blocked: bool,
    /// It neither reads nor writes any more.
    is_silent: bool,
    closes_socket: bool,
    /// How often it closes, cancels and stops, from 0 (never) to 2.
    temper: usize,
}

fn framed(channel: u16, method: &impl Encode) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::write_method(&mut bytes, channel, method, usize::MAX).unwrap();
    bytes
}

fn with_content(channel: u16, method: &impl Encode, body: &str, rng: &mut Rng) -> Vec<u8> {
    let mut bytes = framed(channel, method);
    let limit = rng.pick(&[14, 15, 4096]);
    frame::write_content(&mut bytes, channel, None, body.as_bytes(), limit).unwrap();
    bytes
}

impl HostileBroker {
    pub(super) fn new(heartbeat: Duration, now: Instant, ledger: Ledger, temper: usize) -> Self {
        Self {
            ledger,
            stage: Stage::Running,
            now,
            last_output: now,
            heartbeat,
            input: Vec::new(),
            output: Vec::new(),
            channels: BTreeMap::new(),
            close_pending: false,
            is_blocked: false,
            is_silent: false,
            closes_socket: false,
            temper,
        }
    }

    fn send(&mut self, number: u16, method: &impl Encode) {
        let id = <_ as EncodeId>::name(method);
        self.ledger.trace(|| format!("broker: {number} → {id}"));
        frame::write_method(&mut self.output, number, method, usize::MAX).unwrap();
    }

    fn illegal(&self, number: u16, what: &str, state: impl std::fmt::Debug) {
        self.ledger
            .fault(format!("{what} on channel {number}, which is {state:?}"));
    }

    // ---- frames of the client ----

    fn read(&mut self) {
        let input = std::mem::take(&mut self.input);
        let mut rest = input.as_slice();
        loop {
            match frame::cut(rest, 1 << 20) {
                Ok(Cut::Frame(frame, length)) => {
                    self.frame(&frame);
                    rest = &rest[length..];
                }
                Ok(Cut::Incomplete) => break,
                Err(error) => return self.ledger.fault(format!("the client sent {error}")),
            }
        }
        self.input = rest.to_vec();
    }

    fn frame(&mut self, frame: &Frame<'_>) {
        let method = match frame.kind {
            FrameKind::Method => match Method::decode(frame.payload) {
                Ok(method) => Some(method.into_owned()),
                Err(error) => return self.ledger.fault(format!("the client sent {error}")),
            },
            _ => None,
        };
        let number = frame.channel;
        self.ledger.trace(|| {
            let shown = method
                .as_ref()
                .map_or_else(|| format!("{:?}", frame.kind), |it| format!("{it:?}"));
            format!("broker: {number} ← {shown}")
        });
        if frame.kind == FrameKind::Heartbeat {
            return;
        }
        match (self.stage, &method) {
            (Stage::Running, Some(Method::ConnectionClose(_))) => {
                self.stage = Stage::ClosedByClient;
                self.close_pending = true;
            }
            (Stage::Closing, Some(Method::ConnectionClose(_))) => {
                self.send(0, &ConnectionCloseOk {});
            }
            (Stage::Closing, Some(Method::ConnectionCloseOk(_))) => self.stage = Stage::Over,
            (Stage::Closing, _) => {}
            (Stage::ClosedByClient | Stage::Over, _) => {
                let id = method.map(|it| it.id().to_string()).unwrap_or_default();
                self.ledger
                    .fault(format!("{id} on channel {number} after connection.close"));
            }
            (Stage::Running, _) if number == 0 => self.illegal(0, "a frame", self.stage),
            (Stage::Running, _) => self.channel_frame(number, method, frame),
        }
    }

    fn channel_frame(&mut self, number: u16, method: Option<Method<'static>>, frame: &Frame<'_>) {
        self.finish_opening(number);
        let channel = self.channels.entry(number).or_insert_with(Channel::new);
        let name = match &method {
            Some(method) => method.id().to_string(),
            None => "content".to_owned(),
        };
        match (channel.phase, method) {
            (Phase::Free, Some(Method::ChannelOpen(_))) => self.opened(number),
            (Phase::ClosedByClient, Some(Method::ChannelOpen(_))) if channel.late_close_oks > 0 => {
                self.opened(number);
            }
            (Phase::Closing { .. }, Some(Method::ChannelCloseOk(_))) => {
                channel.phase = Phase::Free;
            }
            (Phase::Closing { has_crossed: false }, Some(Method::ChannelClose(_))) => {
                channel.phase = Phase::Closing { has_crossed: true };
                // Whether it is answered, and when, is decided later.
                let answer = framed(number, &ChannelCloseOk {});
                channel.late.push((Late::CloseOk, answer));
            }
            (phase @ Phase::Closing { .. }, Some(Method::ChannelOpen(_))) => {
                self.illegal(number, "channel.open", phase);
            }
            (Phase::Closing { has_crossed: false }, _) => {}
            (Phase::Open, Some(Method::ChannelClose(_))) => {
                channel.phase = Phase::ClosedByClient;
                channel.incoming = None;
                channel.pending.push_back(Pending {
                    bytes: framed(number, &ChannelCloseOk {}),
                    can_be_overtaken: false,
                    about: String::new(),
                    then: Then::Closed,
                });
            }
            (Phase::Open, Some(Method::ChannelOpen(_) | Method::ChannelCloseOk(_))) => {
                self.illegal(number, &name, Phase::Open);
            }
            (Phase::Open, Some(method)) => self.method(number, method),
            (Phase::Open, None) => self.content(number, frame),
            (phase, _) => self.illegal(number, &name, phase),
        }
    }

    fn opened(&mut self, number: u16) {
        let channel = self.channels.entry(number).or_insert_with(Channel::new);
        channel.begin();
        channel.reply(number, &ChannelOpenOk::default(), Then::Opened);
    }

    /// Nothing else of this life is sent before open-ok.
    fn finish_opening(&mut self, number: u16) {
        let Some(channel) = self.channels.get_mut(&number) else {
            return;
        };
        if channel
            .pending
            .front()
            .is_some_and(|it| it.then == Then::Opened)
        {
            let opened = channel.pending.pop_front();
            channel.is_open = true;
            self.ledger
                .trace(|| format!("broker: {number} → channel.open-ok"));
            self.output
                .extend(opened.map(|it| it.bytes).unwrap_or_default());
        }
    }

    fn method(&mut self, number: u16, method: Method<'static>) {
        let ledger = self.ledger.clone();
        let Some(channel) = self.channels.get_mut(&number) else {
            return;
        };
        if channel.incoming.is_some() {
            return self.illegal(number, "a method", "in the middle of a message");
        }
        match method {
            Method::QueueDeclare(declare) => {
                let ok = QueueDeclareOk {
                    queue: declare.queue,
                    ..QueueDeclareOk::default()
                };
                channel.reply(number, &ok, Then::Nothing);
            }
            Method::QueueDelete(delete) => {
                let count = delete.queue.strip_prefix("delete ");
                let message_count = count.and_then(|it| it.parse().ok()).unwrap_or_default();
                channel.reply(number, &QueueDeleteOk { message_count }, Then::Nothing);
            }
            Method::BasicQos(_) => channel.reply(number, &BasicQosOk {}, Then::Nothing),
            Method::ConfirmSelect(_) | Method::TxSelect(_)
                if channel.transactions != matches!(method, Method::TxSelect(_))
                    && (channel.transactions || channel.confirms) =>
            {
                let id = method.id();
                self.close_channel(number, 406, (id.class, id.method));
            }
            Method::ConfirmSelect(select) => {
                channel.confirms = true;
                if !select.no_wait {
                    channel.reply(number, &ConfirmSelectOk {}, Then::Nothing);
                }
            }
            Method::TxSelect(_) => {
                channel.transactions = true;
                channel.reply(number, &TxSelectOk {}, Then::Nothing);
            }
            Method::TxCommit(_) | Method::TxRollback(_) if !channel.transactions => {
                self.illegal(number, "tx.commit", "without transactions");
            }
            Method::TxCommit(_) => channel.reply_late(number, &TxCommitOk {}, "", Then::Nothing),
            Method::TxRollback(_) => channel.reply(number, &TxRollbackOk {}, Then::Nothing),
            Method::BasicGet(get) => {
                let queue = get.queue.into_owned();
                let no_ack = get.no_ack;
                let get = Then::Get { queue, no_ack };
                channel.reply(number, &BasicGetEmpty::default(), get);
            }
            Method::BasicConsume(consume) => {
                let id = consume.arguments.get(CONSUMER).and_then(|it| it.as_i64());
                let tag = consume.consumer_tag.clone().into_owned();
                let consumer = Consumer {
                    id: id.unwrap_or_default(),
                    no_ack: consume.no_ack,
                    is_started: consume.no_wait,
                    is_cancelled: false,
                    is_revoked: false,
                    sent: 0,
                };
                let before = channel.consumers.insert(tag.clone(), consumer);
                let is_used = before.is_some_and(|it| !it.is_cancelled);
                ledger.check(!is_used, || {
                    format!("consumer tag {tag:?} is used twice on channel {number}")
                });
                if !consume.no_wait {
                    let ok = BasicConsumeOk {
                        consumer_tag: tag.clone().into(),
                    };
                    channel.reply_late(number, &ok, &tag, Then::ConsumerStarted);
                }
            }
            Method::BasicCancel(cancel) => {
                let tag = cancel.consumer_tag.clone().into_owned();
                if let Some(consumer) = channel.consumers.get_mut(&tag) {
                    // The second one would be answered first, and messages would follow.
                    ledger.check(!consumer.is_cancelled || consumer.is_revoked, || {
                        format!("consumer {tag:?} on channel {number} is cancelled twice")
                    });
                    ledger.check(consumer.is_started, || {
                        format!("basic.cancel for {tag:?} on channel {number} before consume-ok")
                    });
                    consumer.is_cancelled = true;
                }
                let ok = BasicCancelOk {
                    consumer_tag: tag.clone().into(),
                };
                channel.reply_late(number, &ok, &tag, Then::ConsumerGone);
            }
            Method::BasicCancelOk(_) => {}
            Method::ChannelFlowOk(flow) => {
                channel.flows = channel.flows.saturating_sub(1);
                channel.is_stopped = !flow.active;
            }
            Method::BasicPublish(method) => {
                ledger.check(!channel.is_stopped || channel.is_flowing, || {
                    format!("basic.publish on channel {number} after channel.flow-ok")
                });
                channel.incoming = Some(Incoming {
                    method,
                    missing: None,
                    body: Vec::new(),
                });
            }
            Method::BasicAck(ack) => self.settled(number, ack.delivery_tag, ack.multiple),
            Method::BasicNack(nack) => self.settled(number, nack.delivery_tag, nack.multiple),
            Method::BasicReject(reject) => self.settled(number, reject.delivery_tag, false),
            other => self.illegal(number, &other.id().to_string(), "not expecting it"),
        }
    }

    fn settled(&mut self, number: u16, tag: u64, multiple: bool) {
        let Some(channel) = self.channels.get_mut(&number) else {
            return;
        };
        if multiple && tag == 0 {
            return channel.unsettled.clear();
        }
        let is_known = channel.unsettled.contains(&tag);
        channel
            .unsettled
            .retain(|it| *it != tag && (!multiple || *it > tag));
        self.ledger.check(is_known, || {
            format!("delivery tag {tag} is settled on channel {number}, but is not open")
        });
    }

    fn content(&mut self, number: u16, frame: &Frame<'_>) {
        let Some(channel) = self.channels.get_mut(&number) else {
            return;
        };
        let Some(incoming) = &mut channel.incoming else {
            return self.illegal(number, "content", "without a method");
        };
        match (frame.kind, incoming.missing) {
            (FrameKind::Header, None) => {
                let header = ContentHeader::decode(frame.payload).unwrap();
                incoming.missing = Some(header.body_size);
            }
            (FrameKind::Body, Some(missing)) if frame.payload.len() as u64 <= missing => {
                incoming.body.extend_from_slice(frame.payload);
                incoming.missing = Some(missing - frame.payload.len() as u64);
            }
            _ => return self.illegal(number, "content", "not expecting it"),
        }
        if incoming.missing == Some(0) {
            self.published(number);
        }
    }

    fn published(&mut self, number: u16) {
        let Some(channel) = self.channels.get_mut(&number) else {
            return;
        };
        let Some(incoming) = channel.incoming.take() else {
            return;
        };
        let body = String::from_utf8_lossy(&incoming.body).into_owned();
        let message = body.strip_prefix('m').and_then(|it| it.parse().ok());
        let Some(message) = message else {
            return self
                .ledger
                .fault(format!("a message with the body {body:?}"));
        };
        self.ledger.received(message, Fate::Received);
        let is_returned = incoming.method.mandatory && incoming.method.routing_key == "no queue";
        if channel.confirms {
            channel.published += 1;
            channel.unanswered.push(Unanswered {
                tag: channel.published,
                message,
                is_returned,
            });
        }
        if is_returned {
            self.ledger.set_fate(message, Fate::Returned);
            let method = BasicReturn {
                reply_code: 312,
                reply_text: "NO_ROUTE".into(),
                exchange: "".into(),
                routing_key: incoming.method.routing_key,
            };
            self.ledger
                .trace(|| format!("broker: {number} → basic.return {message}"));
            self.output.extend(framed(number, &method));
            frame::write_content(&mut self.output, number, None, &incoming.body, 4096).unwrap();
        }
    }

    // ---- what the broker does ----

    /// A channel that has something to send, if there is one.
    fn any_busy(&self, rng: &mut Rng, is_busy: impl Fn(&Channel) -> bool) -> Option<u16> {
        let busy = self.channels.iter().filter(|(_, it)| is_busy(it));
        let numbers: Vec<_> = busy.map(|(number, _)| *number).collect();
        (!numbers.is_empty()).then(|| rng.pick(&numbers))
    }

    fn act(&mut self, rng: &mut Rng) {
        if self.stage == Stage::ClosedByClient {
            return self.answer_close(rng);
        }
        if self.stage != Stage::Running {
            return;
        }
        let mischief = self.temper;
        let weights = [
            30,
            30,
            20,
            6,
            mischief,
            2 * mischief,
            2 * mischief,
            mischief,
            usize::from(mischief > 0 && rng.one_in(10)),
            usize::from(mischief > 1 && rng.one_in(20)),
        ];
        let what = rng.weighted(&weights);
        if what == 7 {
            return self.block(!self.is_blocked);
        }
        if what == 8 {
            return self.close_connection(rng);
        }
        if what == 9 {
            self.ledger.trace(|| "broker: falls silent".to_owned());
            self.is_silent = true;
            return;
        }
        let number = match what {
            0 => self.any_busy(rng, |it| !it.pending.is_empty()),
            1 => self.any_busy(rng, |it| {
                !it.consumers.is_empty() && it.phase != Phase::Free
            }),
            2 => self.any_busy(rng, |it| !it.unanswered.is_empty()),
            3 => {
                // Mostly once the next life has consumers.
                let waits = !rng.one_in(6);
                let is_next = |it: &Channel| !waits || !it.consumers.is_empty();
                self.any_busy(rng, |it| !it.late.is_empty() && is_next(it))
            }
            5 => self.any_busy(rng, |it| !it.consumers.is_empty()),
            _ => self.any_busy(rng, |_| true),
        };
        let Some(number) = number else { return };
        match what {
            0 => drop(self.reply(number, rng)),
            1 => self.deliver(number, rng),
            2 => drop(self.confirm(number, rng)),
            3 => drop(self.send_late(number, rng)),
            4 => {
                let is_open = self.channels.get(&number).is_some_and(|it| it.is_open);
                if is_open || rng.one_in(4) {
                    let code = rng.pick(&[404, 406, 541]);
                    let methods = [(0, 0), (50, 10), (60, 20), (60, 40), (85, 10)];
                    let cause = rng.pick(&methods);
                    self.close_channel(number, code, cause);
                    self.hold_deliveries(number, rng);
                }
            }
            5 => self.cancel(number, rng),
            _ => self.flow(number),
        }
    }

    fn answer_close(&mut self, rng: &mut Rng) {
        if std::mem::take(&mut self.close_pending) {
            // The closes cross.
            if rng.one_in(4) {
                let close = ConnectionClose {
                    reply_code: 320,
                    ..ConnectionClose::default()
                };
                self.send(0, &close);
                self.stage = Stage::Closing;
                return;
            }
            self.send(0, &ConnectionCloseOk {});
            self.stage = Stage::Over;
            self.closes_socket = true;
        }
    }

    fn close_connection(&mut self, rng: &mut Rng) {
        let close = ConnectionClose {
            reply_code: rng.pick(&[320, 541]),
            ..ConnectionClose::default()
        };
        self.send(0, &close);
        self.stage = Stage::Closing;
    }

    fn block(&mut self, is_blocked: bool) {
        self.is_blocked = is_blocked;
        match is_blocked {
            true => self.send(
                0,
                &ConnectionBlocked {
                    reason: "simulated".into(),
                },
            ),
            false => self.send(0, &ConnectionUnblocked {}),
        }
    }

    /// Sends one of the pending replies. Returns false if there is none.
    fn reply(&mut self, number: u16, rng: &mut Rng) -> bool {
        let Some(channel) = self.channels.get_mut(&number) else {
            return false;
        };
        // A reply can go if all before it can be overtaken, and none of them has the same tag.
        let mut places = Vec::new();
        for (place, pending) in channel.pending.iter().enumerate() {
            let mut before = channel.pending.iter().take(place);
            if !before.any(|it| !it.about.is_empty() && it.about == pending.about) {
                places.push(place);
            }
            if !pending.can_be_overtaken {
                break;
            }
        }
        if places.is_empty() {
            return false;
        }
        let place = rng.pick(&places);
        let Some(Pending {
            bytes, about, then, ..
        }) = channel.pending.remove(place)
        else {
            return false;
        };
        self.ledger
            .trace(|| format!("broker: {number} → a reply, {then:?} {about:?}"));
        let mut bytes = bytes;
        match then {
            Then::Nothing => {}
            Then::Opened => channel.is_open = true,
            Then::Closed => {
                // Replies that were pending never come.
                channel.pending.clear();
                channel.phase = Phase::Free;
                channel.is_open = false;
            }
            Then::ConsumerStarted => {
                if let Some(consumer) = channel.consumers.get_mut(&about) {
                    consumer.is_started = true;
                }
            }
            Then::ConsumerGone => {
                if channel
                    .consumers
                    .get(&about)
                    .is_some_and(|it| it.is_cancelled)
                {
                    channel.consumers.remove(&about);
                }
            }
            Then::Get { queue, no_ack } => {
                if !rng.one_in(3) {
                    channel.last_tag += 1;
                    let method = BasicGetOk {
                        delivery_tag: channel.last_tag,
                        redelivered: false,
                        exchange: "".into(),
                        routing_key: queue.into(),
                        message_count: 0,
                    };
                    if !no_ack {
                        channel.unsettled.push(channel.last_tag);
                    }
                    bytes = with_content(number, &method, "fetched", rng);
                }
            }
        }
        self.output.append(&mut bytes);
        true
    }

    fn deliver(&mut self, number: u16, rng: &mut Rng) {
        let Some(channel) = self.channels.get_mut(&number) else {
            return;
        };
        // After its close, the broker goes on to deliver until it reads the client's answer. After
        // the client's close it delivers until it answers.
        if channel.phase == Phase::Free || channel.unsettled.len() >= PREFETCH {
            return;
        }
        let ready = channel.consumers.iter();
        let ready = ready.filter(|(_, it)| it.is_started && (!it.is_revoked || rng.one_in(3)));
        let ready: Vec<_> = ready.map(|(tag, _)| tag.clone()).collect();
        if ready.is_empty() {
            return;
        }
        let tag = ready[rng.below(ready.len())].clone();
        let is_closing = matches!(channel.phase, Phase::Closing { .. });
        if is_closing && rng.one_in(2) {
            return self.hold_delivery(number, &tag, rng);
        }
        let (id, delivery_tag, mut bytes) = channel.delivery(number, &tag, rng);
        self.ledger
            .trace(|| format!("broker: {number} → basic.deliver {delivery_tag} to {id} {tag:?}"));
        self.output.append(&mut bytes);
    }

    /// Delivers a message, but the writer of this life is slow.
    fn hold_delivery(&mut self, number: u16, tag: &str, rng: &mut Rng) {
        let Some(channel) = self.channels.get_mut(&number) else {
            return;
        };
        let is_closing = matches!(channel.phase, Phase::Closing { .. });
        if !is_closing || channel.late.len() >= LATE {
            return;
        }
        let (_, delivery_tag, bytes) = channel.delivery(number, tag, rng);
        let consumer_tag = tag.to_owned();
        let late = Late::Delivery {
            consumer_tag,
            delivery_tag,
        };
        channel.late.push((late, bytes));
    }

    fn hold_deliveries(&mut self, number: u16, rng: &mut Rng) {
        let consumers = self.channels.get(&number).map(|it| &it.consumers);
        let started = consumers.into_iter().flatten();
        let started = started.filter(|(_, it)| it.is_started);
        let tags: Vec<_> = started.map(|(tag, _)| tag.clone()).collect();
        for tag in tags {
            self.hold_delivery(number, &tag, rng);
        }
    }

    /// Sends a delivery or a close-ok of an earlier life of the number.
    fn send_late(&mut self, number: u16, rng: &mut Rng) -> bool {
        let Some(channel) = self.channels.get_mut(&number) else {
            return false;
        };
        if channel.late.is_empty() {
            return false;
        }
        let (about, mut bytes) = channel.late.remove(0);
        let is_used = channel.phase == Phase::Open || channel.phase == Phase::ClosedByClient;
        match about {
            Late::Delivery {
                consumer_tag,
                delivery_tag,
            } => {
                // Only the delivery tag tells the lives apart: this one could be of either.
                let is_reused = !consumer_tag.starts_with("leveret-");
                if is_used && is_reused && delivery_tag == channel.last_tag + 1 {
                    return true;
                }
                self.ledger.trace(|| {
                    format!(
                        "broker: {number} → late basic.deliver {delivery_tag} to {consumer_tag:?}"
                    )
                });
            }
            // RabbitMQ may answer a close that crossed its own or not.
            Late::CloseOk if rng.one_in(3) => return true,
            Late::CloseOk => {
                self.ledger
                    .trace(|| format!("broker: {number} → late channel.close-ok"));
                channel.late_close_oks += usize::from(is_used);
            }
        }
        self.output.append(&mut bytes);
        true
    }

    /// Confirms or nacks some messages. Returns false if there is none to answer.
    fn confirm(&mut self, number: u16, rng: &mut Rng) -> bool {
        let Some(channel) = self.channels.get_mut(&number) else {
            return false;
        };
        // No confirm follows the close-ok of either side.
        if channel.phase == Phase::Free || channel.unanswered.is_empty() {
            return false;
        }
        let place = rng.below(channel.unanswered.len());
        let multiple = rng.one_in(2);
        let first = if multiple { 0 } else { place };
        let any_returned = channel.unanswered[first..=place].iter();
        // An unroutable message is always confirmed.
        let nack = !any_returned.clone().any(|it| it.is_returned) && rng.one_in(4);
        let answered: Vec<_> = channel.unanswered.drain(first..=place).collect();
        let fate = if nack { Fate::Nacked } else { Fate::Confirmed };
        let Some(delivery_tag) = answered.last().map(|it| it.tag) else {
            return false;
        };
        for it in answered.iter().filter(|it| !it.is_returned) {
            self.ledger.set_fate(it.message, fate);
        }
        self.ledger.trace(|| {
            format!("broker: {number} → answers {delivery_tag}, multiple {multiple}: {fate:?}")
        });
        let bytes = match nack {
            true => framed(
                number,
                &BasicNack {
                    delivery_tag,
                    multiple,
                    requeue: false,
                },
            ),
            false => framed(
                number,
                &BasicAck {
                    delivery_tag,
                    multiple,
                },
            ),
        };
        self.output.extend(bytes);
        true
    }

    fn close_channel(&mut self, number: u16, reply_code: u16, (class_id, method_id): (u16, u16)) {
        let Some(channel) = self.channels.get_mut(&number) else {
            return;
        };
        let has_crossed = match channel.phase {
            Phase::Open => false,
            // The client's close is never answered.
            Phase::ClosedByClient => true,
            Phase::Free | Phase::Closing { .. } => return,
        };
        if channel.late_close_oks > 0 {
            // A client that took the late one for the answer to its next close would not answer
            // this close, and wait for ever. No client can know better.
            return;
        }
        channel.phase = Phase::Closing { has_crossed };
        channel.is_open = false;
        channel.pending.clear();
        channel.incoming = None;
        let close = ChannelClose {
            reply_code,
            reply_text: "simulated".into(),
            class_id,
            method_id,
        };
        self.send(number, &close);
    }

    fn cancel(&mut self, number: u16, rng: &mut Rng) {
        let Some(channel) = self.channels.get_mut(&number) else {
            return;
        };
        if channel.phase != Phase::Open {
            return;
        }
        let started = channel.consumers.iter_mut();
        let mut started: Vec<_> = started.filter(|(_, it)| it.is_started).collect();
        if started.is_empty() {
            return;
        }
        let place = rng.below(started.len());
        let (tag, consumer) = &mut started[place];
        // 4.3 can cancel a consumer twice.
        if consumer.is_cancelled || (consumer.is_revoked && !rng.one_in(3)) {
            return;
        }
        consumer.is_revoked = true;
        let cancel = BasicCancel {
            consumer_tag: tag.as_str().to_owned().into(),
            no_wait: !rng.one_in(3),
        };
        self.send(number, &cancel);
    }

    fn flow(&mut self, number: u16) {
        let Some(channel) = self.channels.get_mut(&number) else {
            return;
        };
        if channel.phase != Phase::Open || !channel.is_open {
            return;
        }
        channel.is_flowing = !channel.is_flowing;
        channel.flows += 1;
        let active = channel.is_flowing;
        self.send(number, &ChannelFlow { active });
    }
}

impl Channel {
    /// The next delivery to a consumer: the consumer's number, the delivery tag and the frames.
    fn delivery(&mut self, number: u16, tag: &str, rng: &mut Rng) -> (i64, u64, Vec<u8>) {
        self.last_tag += 1;
        let delivery_tag = self.last_tag;
        let method = BasicDeliver {
            consumer_tag: tag.into(),
            delivery_tag,
            redelivered: rng.one_in(5),
            exchange: "".into(),
            routing_key: "q".into(),
        };
        let Some(consumer) = self.consumers.get_mut(tag) else {
            return (0, 0, Vec::new());
        };
        consumer.sent += 1;
        let id = consumer.id;
        if !consumer.no_ack {
            self.unsettled.push(delivery_tag);
        }
        let bytes = with_content(number, &method, &format!("to {id}:{delivery_tag}"), rng);
        (id, delivery_tag, bytes)
    }

    fn reply(&mut self, number: u16, method: &impl Encode, then: Then) {
        self.pending.push_back(Pending {
            bytes: framed(number, method),
            can_be_overtaken: false,
            about: String::new(),
            then,
        });
    }

    /// A reply that comes once the queues have agreed.
    fn reply_late(&mut self, number: u16, method: &impl Encode, about: &str, then: Then) {
        self.pending.push_back(Pending {
            bytes: framed(number, method),
            can_be_overtaken: true,
            about: about.to_owned(),
            then,
        });
    }
}

/// The name of a method, for the trace.
trait EncodeId {
    fn name(&self) -> String;
}

impl<M: Encode> EncodeId for M {
    fn name(&self) -> String {
        M::ID.to_string()
    }
}

impl Broker for HostileBroker {
    fn receive(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    fn step(&mut self, rng: &mut Rng) {
        if self.is_silent {
            return;
        }
        if rng.one_in(3) {
            self.read();
        }
        for _ in 0..rng.below(4) {
            self.act(rng);
        }
    }

    fn settle(&mut self, rng: &mut Rng) -> bool {
        if self.is_silent {
            return false;
        }
        self.read();
        if self.stage == Stage::ClosedByClient {
            self.answer_close(rng);
        }
        if self.stage != Stage::Running {
            return false;
        }
        if self.is_blocked {
            self.block(false);
        }
        let numbers: Vec<_> = self.channels.keys().copied().collect();
        let mut did = false;
        for number in numbers {
            let is_stopped = self.channels.get(&number).is_some_and(|it| !it.is_flowing);
            if is_stopped {
                self.flow(number);
            }
            while self.reply(number, rng) {
                did = true;
            }
            while self.confirm(number, rng) {
                did = true;
            }
            while self.send_late(number, rng) {
                did = true;
            }
        }
        did
    }

    fn take_output(&mut self) -> Vec<u8> {
        if self.is_silent {
            return Vec::new();
        }
        if !self.output.is_empty() {
            self.last_output = self.now;
        }
        std::mem::take(&mut self.output)
    }

    fn pass(&mut self, now: Instant) {
        self.now = now;
        let is_due = now >= self.last_output + self.heartbeat / 2;
        if is_due && !self.is_silent && self.stage != Stage::Over {
            frame::write_heartbeat(&mut self.output);
        }
    }

    fn closes_socket(&self) -> bool {
        self.closes_socket || self.stage == Stage::Over
    }

    fn is_silent(&self) -> bool {
        self.is_silent
    }

    fn check_quiet(&self) {
        if self.stage != Stage::Running || self.is_silent {
            return;
        }
        for (number, channel) in &self.channels {
            let flows = channel.flows;
            let is_open = channel.phase == Phase::Open;
            self.ledger.check(!is_open || flows == 0, || {
                format!("{flows} channel.flow-ok are missing on channel {number}")
            });
            for consumer in channel.consumers.values().filter(|_| is_open) {
                let Consumer { id, sent, .. } = consumer;
                let got = self.ledger.got(*id);
                let is_live = consumer.is_started && !consumer.is_cancelled && !consumer.is_revoked;
                self.ledger.check(!is_live || got == *sent, || {
                    format!("consumer {id} got {got} of {sent} messages")
                });
            }
            let is_settled = matches!(channel.phase, Phase::Free | Phase::Open);
            let phase = channel.phase;
            self.ledger.check(is_settled, || {
                format!("channel {number} is {phase:?} although all is quiet")
            });
        }
    }
}
