//! The broker's state, without sockets, threads or clocks: bytes and times go in, bytes come out.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::channel::{Mode, Unacknowledged};
use super::message::{Message, Reason};
use super::options::BrokerOptions;
use super::queue::{QueueId, Subscriber};
use super::refusal::Refusal;
use super::session::{method_id, short, Session, Slot, Stage};
use super::state::PublishedMessage;
use super::vhost::Vhost;
use super::SessionId;
use crate::error::ReplyCode;
use crate::wire::frame::{self, Cut, Frame, FrameKind};
use crate::wire::method::{
    BasicAck, BasicDeliver, BasicPublish, ConnectionBlocked, ConnectionUnblocked, Encode, MethodId,
};

/// Faults that a test has injected.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// How many of the next messages the broker nacks.
    pub(super) nacks: u64,
    /// The reason why publishers are blocked; `None` if they are not.
    pub(super) blocked: Option<String>,
    pub(super) no_heartbeats: bool,
}

/// A published message, and the number of queues that took it.
#[derive(Debug)]
pub(super) struct Noted {
    pub(super) vhost: Arc<str>,
    pub(super) message: Arc<Message>,
    pub(super) queues: usize,
}

impl Noted {
    pub(super) fn state(&self) -> PublishedMessage {
        let message = &*self.message;
        PublishedMessage {
            vhost: self.vhost.as_ref().to_owned(),
            exchange: message.exchange.clone(),
            routing_key: message.routing_key.clone(),
            properties: message.properties.clone(),
            body: message.body.clone(),
            queues: self.queues,
        }
    }
}

#[derive(Debug)]
pub(super) struct Core {
    pub(super) options: BrokerOptions,
    pub(super) now: Instant,
    pub(super) sessions: BTreeMap<SessionId, Box<Session>>,
    pub(super) vhosts: BTreeMap<String, Vhost>,
    pub(super) faults: Faults,
    /// Session and channel that receive direct replies, by routing key.
    pub(super) replies: HashMap<String, (SessionId, u16)>,
    /// Newest last.
    pub(super) published: VecDeque<Noted>,
    last_session: u64,
}

impl Core {
    pub(super) fn new(options: BrokerOptions, now: Instant) -> Self {
        let vhosts = options.vhosts.iter();
        Self {
            vhosts: vhosts
                .map(|name| (name.clone(), Vhost::new(name)))
                .collect(),
            options,
            now,
            sessions: BTreeMap::new(),
            faults: Faults::default(),
            replies: HashMap::new(),
            published: VecDeque::new(),
            last_session: 0,
        }
    }

    // ---- connections ----

    pub(super) fn connected(&mut self, peer: SocketAddr) -> SessionId {
        self.last_session += 1;
        let id = SessionId(self.last_session);
        self.sessions
            .insert(id, Box::new(Session::new(peer, self.now)));
        id
    }

    /// Handles input, and returns the number of bytes consumed.
    pub(super) fn receive(&mut self, id: SessionId, input: &[u8]) -> usize {
        let mut consumed = 0;
        // The session is out of the map while its frames are handled, and back when `pump`
        // delivers.
        while let Some(mut session) = self.sessions.remove(&id) {
            let is_all = loop {
                let rest = input.get(consumed..).unwrap_or_default();
                let length = self.step(id, &mut session, rest);
                consumed += length;
                if length == 0 || self.vhosts.values().any(Vhost::has_changed) {
                    break length == 0;
                }
            };
            if is_all {
                confirm_all(&mut session);
            }
            self.sessions.insert(id, session);
            self.pump();
            if is_all {
                break;
            }
        }
        consumed
    }

    /// Handles one frame and returns its length, or 0 if no whole frame can be handled.
    fn step(&mut self, id: SessionId, session: &mut Session, input: &[u8]) -> usize {
        if session.is_held || session.stage == Stage::Over {
            return 0;
        }
        if session.stage == Stage::Header {
            return session.begin(input);
        }
        match frame::cut(input, session.payload_limit()) {
            Ok(Cut::Incomplete) => 0,
            Ok(Cut::Frame(frame, length)) => {
                self.frame(id, session, &frame);
                length
            }
            Err(error) => {
                let refusal = Refusal::of_connection(ReplyCode::FRAME_ERROR, error.to_string());
                self.close(id, session, &refusal, None);
                session.stage = Stage::Over;
                0
            }
        }
    }

    fn frame(&mut self, id: SessionId, session: &mut Session, frame: &Frame<'_>) {
        let method = match frame.kind {
            FrameKind::Header | FrameKind::Body => Some(BasicPublish::ID),
            FrameKind::Method | FrameKind::Heartbeat => method_id(frame),
        };
        let handled = match (session.stage, frame.channel) {
            (Stage::Running, number @ 1..) => self.channel_frame(id, session, number, frame),
            _ => self.connection_frame(id, session, frame),
        };
        let Err(refusal) = handled else {
            return;
        };
        confirm_all(session);
        if refusal.costs_connection || frame.channel == 0 {
            return self.close(id, session, &refusal, method);
        }
        self.close_channel(session, frame.channel, &refusal, method);
    }

    /// Closes a connection on behalf of the broker.
    pub(super) fn close(
        &mut self,
        id: SessionId,
        session: &mut Session,
        refusal: &Refusal,
        because_of: Option<MethodId>,
    ) {
        self.leave(id, session);
        session.close_connection(refusal, because_of);
    }

    /// Requeues the unacknowledged messages of a connection, and removes its consumers and
    /// exclusive queues.
    pub(super) fn leave(&mut self, id: SessionId, session: &mut Session) {
        let numbers: Vec<_> = session.channels.keys().copied().collect();
        for number in numbers {
            self.end_channel(id, session, number);
        }
        session.channels.clear();
        if let Some(vhost) = self.vhosts.get_mut(&session.vhost) {
            vhost.session_ended(id);
        }
    }

    /// Ends a session whose socket is closed or must be closed.
    pub(super) fn disconnected(&mut self, id: SessionId) {
        if let Some(mut session) = self.sessions.remove(&id) {
            self.leave(id, &mut session);
            self.pump();
        }
    }

    pub(super) fn disconnect_all(&mut self) {
        // All sessions end before the first requeued message is delivered.
        for (id, mut session) in std::mem::take(&mut self.sessions) {
            self.leave(id, &mut session);
        }
        self.pump();
    }

    /// The client has read enough output to get further messages.
    pub(super) fn drained(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(&id) else {
            return;
        };
        let Some(vhost) = self.vhosts.get_mut(&session.vhost) else {
            return;
        };
        for slot in session.channels.values() {
            let consumers = slot.channel().consumers.values();
            consumers.for_each(|it| vhost.changed(it.queue));
        }
        self.pump();
    }

    pub(super) fn restart(&mut self) {
        self.disconnect_all();
        self.vhosts.values_mut().for_each(Vhost::restart);
        self.faults = Faults::default();
    }

    // ---- channels ----

    /// Closes a channel. Its messages are requeued when the client answers.
    pub(super) fn close_channel(
        &mut self,
        session: &mut Session,
        number: u16,
        refusal: &Refusal,
        because_of: Option<MethodId>,
    ) {
        let Some(channel) = session.channel(number) else {
            return;
        };
        if let Some((_, key)) = channel.reply_to.take() {
            self.replies.remove(&key);
        }
        channel.begin_close();
        session.close_channel(number, refusal, because_of);
    }

    /// Requeues the unacknowledged messages of a channel, and removes its consumers.
    pub(super) fn end_channel(&mut self, id: SessionId, session: &mut Session, number: u16) {
        let Some(slot) = session.channels.remove(&number) else {
            return;
        };
        let mut channel = slot.into_channel();
        if let Some((_, key)) = channel.reply_to.take() {
            self.replies.remove(&key);
        }
        if let Mode::Transactions(staged) = std::mem::take(&mut channel.mode) {
            channel.roll_back(staged);
        }
        let unacknowledged = channel.take_unacknowledged();
        self.requeue(&session.vhost, unacknowledged);
        let Some(vhost) = self.vhosts.get_mut(&session.vhost) else {
            return;
        };
        for (consumer_tag, consumer) in &channel.consumers {
            let is_it = |it: &Subscriber| it.is(id, number, consumer_tag);
            vhost.unsubscribe(consumer.queue, is_it, self.now);
        }
    }

    pub(super) fn requeue(&mut self, vhost: &str, messages: Vec<Unacknowledged>) {
        let Some(vhost) = self.vhosts.get_mut(vhost) else {
            return;
        };
        for message in messages {
            let Some(queue) = vhost.queue_mut(message.queue) else {
                continue;
            };
            let Some(entry) = message.entry else {
                continue;
            };
            queue.unacknowledged -= 1;
            let surplus = queue.requeue(entry);
            vhost.changed(message.queue);
            if let Some(entry) = surplus {
                vhost.bury(message.queue, &entry, Reason::DeliveryLimit, self.now);
            }
        }
    }

    // ---- queues ----

    /// Delivers, expires and drops messages in all queues that have changed.
    pub(super) fn pump(&mut self) {
        let now = self.now;
        for vhost in self.vhosts.values_mut() {
            while let Some(queue) = vhost.pop_changed() {
                vhost.bury_expired(queue, now, false);
                while deliver_one(vhost, queue, &mut self.sessions) {}
                vhost.bury_expired(queue, now, true);
                vhost.bury_surplus(queue, now);
            }
            for orphan in vhost.take_orphans() {
                cancel(&mut self.sessions, &orphan);
            }
        }
    }

    /// Cancels the consumers of a queue, and returns their number.
    pub(super) fn cancel_consumers(&mut self, vhost: &str, queue: &str) -> usize {
        let Some(vhost) = self.vhosts.get_mut(vhost) else {
            return 0;
        };
        let id = vhost.find_queue(queue).map(|(id, _)| id);
        let Some(queue) = id.and_then(|id| vhost.queue_mut(id)) else {
            return 0;
        };
        queue.used(self.now);
        let subscribers = queue.take_subscribers();
        subscribers
            .iter()
            .for_each(|it| cancel(&mut self.sessions, it));
        subscribers.len()
    }

    /// Times out the consumers of a queue that have not acknowledged all their messages, and
    /// returns their number.
    pub(super) fn time_out_consumers(&mut self, vhost: &str, queue: &str) -> usize {
        let found = self.vhosts.get(vhost).and_then(|it| it.find_queue(queue));
        let Some((queue, _)) = found else {
            return 0;
        };
        let mut count = 0;
        self.for_each_session(|core, _, session| {
            if session.vhost != vhost {
                return;
            }
            let consumers = session.channels.iter().flat_map(|(number, slot)| {
                let consumers = slot.channel().consumers.iter();
                let of_queue = consumers.filter(|(_, it)| it.queue == queue);
                of_queue.map(|(consumer_tag, _)| (*number, consumer_tag.clone()))
            });
            let consumers: Vec<_> = consumers.collect();
            for (number, consumer_tag) in consumers {
                let timed_out = core.time_out_consumer(session, number, &consumer_tag);
                count += usize::from(timed_out);
            }
        });
        count
    }

    /// Returns false if the consumer has no unacknowledged message.
    fn time_out_consumer(
        &mut self,
        session: &mut Session,
        number: u16,
        consumer_tag: &str,
    ) -> bool {
        let Some(channel) = session.channel_with_consumers(number) else {
            return false;
        };
        let messages = channel.time_out(consumer_tag);
        if messages.is_empty() {
            return false;
        }
        self.requeue(&session.vhost, messages);
        let is_open = session.channel(number).is_some();
        if is_open && !session.send_cancel(number, consumer_tag) {
            // RabbitMQ also says -1: its channel does not know the queue's timeout.
            let text = format!(
                "delivery acknowledgement on channel {number} timed out. Timeout value used: -1 ms. This timeout value can be \
                 configured, see consumers doc guide to learn more"
            );
            self.close_channel(session, number, &Refusal::failed(text), None);
        }
        true
    }

    /// Delivers a direct reply, if its consumer still exists.
    pub(super) fn deliver_reply(&mut self, session: &mut Session, message: &Message) {
        let Some(&(id, number)) = self.replies.get(&message.routing_key) else {
            return;
        };
        let receiver = match self.sessions.get_mut(&id) {
            Some(receiver) => receiver,
            // A session that replies to itself is out of the map at the moment.
            None => session,
        };
        let Some(channel) = receiver.channel(number) else {
            return;
        };
        let Some((consumer_tag, _)) = channel.reply_to.clone() else {
            return;
        };
        let delivery_tag = channel.next_delivery_tag();
        let method = basic_deliver(message, &consumer_tag, delivery_tag, false);
        receiver.send_content(number, &method, &message.properties, &message.body);
    }

    // ---- time ----

    /// The next time at which a message or queue expires or a heartbeat is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let queues = self.vhosts.values().filter_map(Vhost::next_expiration);
        let sessions = self.sessions.values().filter(|it| !it.heartbeat.is_zero());
        let heartbeats = sessions.flat_map(|it| {
            let silent = (!it.is_held).then(|| it.last_input + 2 * it.heartbeat);
            [silent, Some(it.last_output + it.heartbeat / 2)]
        });
        queues.chain(heartbeats.flatten()).min()
    }

    pub(super) fn handle_time(&mut self) {
        let now = self.now;
        self.vhosts.values_mut().for_each(|it| it.handle_time(now));
        self.pump();
        let mut silent = Vec::new();
        for (id, session) in &mut self.sessions {
            if session.heartbeat.is_zero() {
                continue;
            }
            if now >= session.last_output + session.heartbeat / 2 {
                session.last_output = now;
                if !self.faults.no_heartbeats {
                    session.send_heartbeat();
                }
            }
            // The socket of a held session is not read, so the client may not be silent.
            if now >= session.last_input + 2 * session.heartbeat && !session.is_held {
                silent.push(*id);
            }
        }
        silent.into_iter().for_each(|id| self.disconnected(id));
    }

    // ---- faults ----

    /// Blocks publishers and notifies all clients. Without a reason, it ends the block.
    pub(super) fn block(&mut self, reason: Option<String>) {
        if reason.is_none() {
            self.heard_of_all();
        }
        for session in self.sessions.values_mut() {
            session.is_held &= reason.is_some();
            tell_blocked(session, reason.as_deref());
        }
        self.faults.blocked = reason;
    }

    /// Restarts the heartbeat timeouts: the broker did not read, so it cannot tell which clients
    /// were silent.
    pub(super) fn heard_of_all(&mut self) {
        let now = self.now;
        self.sessions
            .values_mut()
            .for_each(|it| it.last_input = now);
    }

    pub(super) fn close_channels(&mut self, code: ReplyCode, text: &str) {
        let refusal = Refusal::of_channel(code, text);
        let is_open =
            |(number, slot): (&u16, &Slot)| matches!(slot, Slot::Open(_)).then_some(*number);
        self.for_each_session(|core, _, session| {
            let open: Vec<_> = session.channels.iter().filter_map(is_open).collect();
            for number in open {
                core.close_channel(session, number, &refusal, None);
            }
        });
    }

    pub(super) fn close_connections(&mut self, code: ReplyCode, text: &str) {
        let refusal = Refusal::of_connection(code, text);
        self.for_each_session(|core, id, session| {
            if matches!(session.stage, Stage::Open | Stage::Running) {
                core.close(id, session, &refusal, None);
            }
        });
    }

    /// Calls `act` for each session. Requeued messages are delivered only after the last call.
    fn for_each_session(&mut self, mut act: impl FnMut(&mut Self, SessionId, &mut Session)) {
        let mut sessions = std::mem::take(&mut self.sessions);
        for (id, session) in &mut sessions {
            act(self, *id, session);
        }
        self.sessions = sessions;
        self.pump();
    }

    pub(super) fn note(&mut self, message: Noted) {
        if self.published.len() >= self.options.published_limit {
            self.published.pop_front();
        }
        if self.options.published_limit > 0 {
            self.published.push_back(message);
        }
    }
}

/// Notifies a client that the connection is blocked or unblocked, unless the client already knows
/// or does not support the notification.
pub(super) fn tell_blocked(session: &mut Session, reason: Option<&str>) {
    if session.stage != Stage::Running || session.is_blocked == reason.is_some() {
        return;
    }
    session.is_blocked = reason.is_some();
    if !session.can("connection.blocked") {
        return;
    }
    match reason {
        Some(reason) => session.send(
            0,
            &ConnectionBlocked {
                reason: short(reason).into(),
            },
        ),
        None => session.send(0, &ConnectionUnblocked {}),
    }
}

/// Confirms all published messages that have no answer.
pub(super) fn confirm_all(session: &mut Session) {
    let mut acks = Vec::new();
    for (number, slot) in &mut session.channels {
        let Slot::Open(channel) = slot else {
            continue;
        };
        if let Mode::Confirms(confirms) = &mut channel.mode {
            let count = confirms.published - confirms.answered;
            confirms.answered = confirms.published;
            if count > 0 {
                acks.push((*number, confirms.published, count > 1));
            }
        }
    }
    for (number, delivery_tag, multiple) in acks {
        let ack = BasicAck {
            delivery_tag,
            multiple,
        };
        session.send(number, &ack);
    }
}

/// Removes a consumer, and notifies its client.
fn cancel(sessions: &mut BTreeMap<SessionId, Box<Session>>, orphan: &Subscriber) {
    let Some(session) = sessions.get_mut(&orphan.session) else {
        return;
    };
    let Some(channel) = session.channel_with_consumers(orphan.channel) else {
        return;
    };
    channel.consumers.remove(&orphan.consumer_tag);
    if session.channel(orphan.channel).is_some() {
        session.send_cancel(orphan.channel, &orphan.consumer_tag);
    }
}

fn basic_deliver<'a>(
    message: &'a Message,
    consumer_tag: &'a str,
    delivery_tag: u64,
    redelivered: bool,
) -> BasicDeliver<'a> {
    BasicDeliver {
        consumer_tag: consumer_tag.into(),
        delivery_tag,
        redelivered,
        exchange: message.exchange.as_str().into(),
        routing_key: message.routing_key.as_str().into(),
    }
}

/// Delivers the first message of a queue. Returns false if there is no message, or no consumer
/// takes it.
fn deliver_one(
    vhost: &mut Vhost,
    id: QueueId,
    sessions: &mut BTreeMap<SessionId, Box<Session>>,
) -> bool {
    let Some(queue) = vhost.queue_mut(id).filter(|it| it.ready() > 0) else {
        return false;
    };
    let takes = |it: &Subscriber| {
        let session = sessions.get(&it.session);
        session.is_some_and(|session| session.takes(it.channel, &it.consumer_tag))
    };
    let has_timed_out = |it: &Subscriber| {
        let session = sessions.get(&it.session);
        session.is_some_and(|session| session.has_timed_out(it.channel, &it.consumer_tag))
    };
    let Some(at) = queue.next_subscriber(takes, has_timed_out) else {
        return false;
    };
    let Some(subscriber) = queue.subscribers().get(at).cloned() else {
        return false;
    };
    let Some(session) = sessions.get_mut(&subscriber.session) else {
        return false;
    };
    let Some(channel) = session.channel_with_consumers(subscriber.channel) else {
        return false;
    };
    let Some(entry) = queue.pop() else {
        return false;
    };
    queue.rotate(at);
    let (message, returns) = (Arc::clone(&entry.message), entry.returns);
    let consumer = channel.consumers.get(&subscriber.consumer_tag);
    let no_ack = consumer.is_some_and(|it| it.no_ack);
    let consumer_number = consumer.map(|it| it.number);
    channel.count_late(&subscriber.consumer_tag);
    let delivery_tag = channel.next_delivery_tag();
    let method = basic_deliver(
        &message,
        &subscriber.consumer_tag,
        delivery_tag,
        entry.redelivered,
    );
    let properties = message.properties_after(returns);
    if !no_ack {
        queue.unacknowledged += 1;
        channel.deliver(Unacknowledged {
            queue: id,
            entry: Some(entry),
            consumer: consumer_number,
        });
    }
    session.send_content(subscriber.channel, &method, &properties, &message.body);
    true
}
