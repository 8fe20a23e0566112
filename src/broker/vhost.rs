//! A virtual host: its exchanges, queues and bindings, and how it routes messages.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Instant;

use super::arguments::{
    assert_same, assert_same_exchange, assert_same_queue, exchange_in, type_and_value, Arguments,
    Overflow,
};
use super::exchange::{Binding, Destination, Exchange, Kind};
use super::message::{dead_letter, goes_in_circles, Entry, Message, Reason};
use super::queue::{Queue, QueueId, Subscriber};
use super::refusal::Refusal;
use super::SessionId;
use crate::error::ReplyCode;
use crate::wire::method::{ExchangeDeclare, QueueDeclare};
use crate::wire::properties::Properties;
use crate::wire::value::{FieldTable, FieldValue};

const PREDECLARED: &[(&str, Kind)] = &[
    ("amq.direct", Kind::Direct),
    ("amq.fanout", Kind::Fanout),
    ("amq.headers", Kind::Headers),
    ("amq.match", Kind::Headers),
    ("amq.topic", Kind::Topic),
    ("amq.rabbitmq.trace", Kind::Topic),
];

/// The outcome of routing a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Routed {
    /// The number of queues that the message was routed to.
    To(usize),
    /// A queue was full and refused the message.
    Rejected,
}

#[derive(Debug)]
pub(super) struct Vhost {
    pub(super) name: Arc<str>,
    exchanges: BTreeMap<String, Exchange>,
    queues: BTreeMap<QueueId, Queue>,
    ids: HashMap<String, QueueId>,
    last_id: u64,
    /// Queues that may have messages to deliver, expire or drop.
    changed: BTreeSet<QueueId>,
    /// Consumers of deleted queues.
    orphans: Vec<Subscriber>,
}

/// Makes up a unique name.
pub(super) fn made_up(prefix: &str) -> String {
    let number = || RandomState::new().build_hasher().finish();
    format!("{prefix}{:016x}{:06x}", number(), number() >> 40)
}

fn exchange_text(name: &str, vhost: &str) -> String {
    format!("exchange '{name}' in vhost '{vhost}'")
}

pub(super) fn queue_text(name: &str, vhost: &str) -> String {
    format!("queue '{name}' in vhost '{vhost}'")
}

impl Vhost {
    pub(super) fn new(name: &str) -> Self {
        let predeclared = |(name, kind): &(&str, Kind)| {
            let exchange = Exchange {
                kind: *kind,
                durable: true,
                auto_delete: false,
                internal: *name == "amq.rabbitmq.trace",
                arguments: FieldTable::new(),
                bindings: Vec::new(),
            };
            ((*name).to_owned(), exchange)
        };
        Self {
            name: name.into(),
            exchanges: PREDECLARED.iter().map(predeclared).collect(),
            queues: BTreeMap::new(),
            ids: HashMap::new(),
            last_id: 0,
            changed: BTreeSet::new(),
            orphans: Vec::new(),
        }
    }

    // ---- exchanges ----

    fn exchange(&self, name: &str) -> Result<&Exchange, Refusal> {
        let found = self.exchanges.get(name);
        found.ok_or_else(|| Refusal::not_found("exchange", name, &self.name))
    }

    pub(super) fn declare_exchange(&mut self, method: &ExchangeDeclare<'_>) -> Result<(), Refusal> {
        let name = method.exchange.as_ref();
        let resource = exchange_text(name, &self.name);
        let kind = Kind::of(&method.kind);
        if kind.is_none() && !method.passive {
            let text = format!("unknown exchange type '{}'", method.kind);
            return Err(Refusal::of_connection(ReplyCode::COMMAND_INVALID, text));
        }
        assert_not_default(name)?;
        let Some(kind) = kind.filter(|_| !method.passive) else {
            return self.exchange(name).map(drop);
        };
        if let Some(current) = self.exchanges.get(name) {
            assert_same("type", &resource, &kind.name(), &current.kind.name())?;
            assert_same("durable", &resource, &method.durable, &current.durable)?;
            assert_same(
                "auto_delete",
                &resource,
                &method.auto_delete,
                &current.auto_delete,
            )?;
            assert_same("internal", &resource, &method.internal, &current.internal)?;
            return assert_same_exchange(&resource, &method.arguments, &current.arguments);
        }
        assert_not_reserved("exchange", name)?;
        exchange_in(&method.arguments, "alternate-exchange", &resource)?;
        let exchange = Exchange {
            kind,
            durable: method.durable,
            auto_delete: method.auto_delete,
            internal: method.internal,
            arguments: method.arguments.clone().into_owned(),
            bindings: Vec::new(),
        };
        self.exchanges.insert(name.to_owned(), exchange);
        Ok(())
    }

    pub(super) fn delete_exchange(&mut self, name: &str, if_unused: bool) -> Result<(), Refusal> {
        assert_not_default(name)?;
        if name.starts_with("amq.") {
            let exchange = exchange_text(name, &self.name);
            let text = format!("deletion of system {exchange} not allowed");
            return Err(Refusal::access(text));
        }
        let Some(exchange) = self.exchanges.get(name) else {
            return Ok(());
        };
        if if_unused && !exchange.bindings.is_empty() {
            let text = format!("{} in use", exchange_text(name, &self.name));
            return Err(Refusal::failed(text));
        }
        self.exchanges.remove(name);
        self.unbind_all(&Destination::Exchange(name.to_owned()));
        Ok(())
    }

    // ---- bindings ----

    pub(super) fn bind(
        &mut self,
        source: &str,
        binding: Binding,
        session: SessionId,
    ) -> Result<(), Refusal> {
        self.assert_bindable(source, &binding.destination)?;
        let kind = self.exchange(source)?.kind;
        match &binding.destination {
            Destination::Exchange(name) => self.exchange(name).map(drop)?,
            Destination::Queue(name) => self.queue_for(name, session).map(drop)?,
        }
        if kind == Kind::Headers {
            assert_match(&binding.arguments)?;
        }
        let exchange = self.exchanges.get_mut(source);
        if let Some(exchange) = exchange.filter(|it| !it.bindings.contains(&binding)) {
            exchange.bindings.push(binding);
        }
        Ok(())
    }

    pub(super) fn unbind(&mut self, source: &str, binding: &Binding) -> Result<(), Refusal> {
        self.assert_bindable(source, &binding.destination)?;
        let Some(exchange) = self.exchanges.get_mut(source) else {
            return Ok(());
        };
        let before = exchange.bindings.len();
        exchange.bindings.retain(|it| it != binding);
        if exchange.bindings.len() < before {
            self.delete_if_unbound(source);
        }
        Ok(())
    }

    fn assert_bindable(&self, source: &str, to: &Destination) -> Result<(), Refusal> {
        assert_not_default(source)?;
        match to {
            Destination::Exchange(name) => assert_not_default(name),
            Destination::Queue(_) => Ok(()),
        }
    }

    fn unbind_all(&mut self, destination: &Destination) {
        let mut unbound = Vec::new();
        for (name, exchange) in &mut self.exchanges {
            let before = exchange.bindings.len();
            exchange
                .bindings
                .retain(|it| it.destination != *destination);
            if exchange.bindings.len() < before {
                unbound.push(name.clone());
            }
        }
        unbound.iter().for_each(|name| self.delete_if_unbound(name));
    }

    /// Deletes an auto-delete exchange that has lost its last binding.
    fn delete_if_unbound(&mut self, name: &str) {
        let exchange = self.exchanges.get(name);
        if exchange.is_some_and(|it| it.auto_delete && it.bindings.is_empty()) {
            self.exchanges.remove(name);
            self.unbind_all(&Destination::Exchange(name.to_owned()));
        }
    }

    // ---- queues ----

    pub(super) fn queues(&self) -> impl Iterator<Item = &Queue> {
        self.queues.values()
    }

    pub(super) fn queue_mut(&mut self, id: QueueId) -> Option<&mut Queue> {
        self.queues.get_mut(&id)
    }

    pub(super) fn find_queue(&self, name: &str) -> Option<(QueueId, &Queue)> {
        let id = self.ids.get(name)?;
        Some((*id, self.queues.get(id)?))
    }

    /// The queue, if this connection may use it.
    pub(super) fn queue_for(
        &mut self,
        name: &str,
        session: SessionId,
    ) -> Result<(QueueId, &mut Queue), Refusal> {
        let id = self.ids.get(name).copied();
        let found = id.and_then(|id| Some((id, self.queues.get_mut(&id)?)));
        let (id, queue) = found.ok_or_else(|| Refusal::not_found("queue", name, &self.name))?;
        match queue.owner {
            Some(owner) if owner != session => Err(locked(&queue_text(name, &self.name))),
            _ => Ok((id, queue)),
        }
    }

    pub(super) fn declare_queue(
        &mut self,
        method: &QueueDeclare<'_>,
        session: SessionId,
        now: Instant,
    ) -> Result<&Queue, Refusal> {
        let name = method.queue.as_ref();
        let resource = queue_text(name, &self.name);
        if !method.passive {
            assert_not_reserved("queue", name)?;
        }
        if method.passive || self.ids.contains_key(name) {
            let (_, queue) = self.queue_for(name, session)?;
            queue.used(now);
            if !method.passive {
                assert_same_declaration(method, queue, &resource)?;
            }
            return Ok(queue);
        }
        let name = match name {
            "" => made_up("amq.gen-"),
            name => name.to_owned(),
        };
        let resource = queue_text(&name, &self.name);
        let arguments = Arguments::read(&method.arguments, &resource)?;
        if arguments.is_quorum {
            assert_quorum(method, &resource)?;
        }
        let durable = method.durable && !method.exclusive;
        let mut queue = Queue::new(name.clone(), durable, arguments, now);
        queue.auto_delete = method.auto_delete;
        queue.owner = method.exclusive.then_some(session);
        self.last_id += 1;
        let id = QueueId(self.last_id);
        self.ids.insert(name, id);
        Ok(self.queues.entry(id).or_insert(queue))
    }

    /// Deletes a queue, and returns the number of its ready messages.
    pub(super) fn delete_queue(
        &mut self,
        name: &str,
        session: SessionId,
        if_unused: bool,
        if_empty: bool,
    ) -> Result<usize, Refusal> {
        if !self.ids.contains_key(name) {
            return Ok(0);
        }
        let resource = queue_text(name, &self.name);
        let (id, queue) = self.queue_for(name, session)?;
        if if_empty && queue.ready() > 0 {
            return Err(Refusal::failed(format!("{resource} not empty")));
        }
        if if_unused && !queue.subscribers().is_empty() {
            return Err(Refusal::failed(format!("{resource} in use")));
        }
        let count = queue.ready();
        self.remove_queue(id);
        Ok(count)
    }

    pub(super) fn remove_queue(&mut self, id: QueueId) {
        let Some(mut queue) = self.queues.remove(&id) else {
            return;
        };
        self.ids.remove(&queue.name);
        self.changed.remove(&id);
        self.orphans.extend(queue.take_subscribers());
        self.unbind_all(&Destination::Queue(queue.name));
    }

    /// Deletes the exclusive queues of a connection, whose channels have already ended.
    pub(super) fn session_ended(&mut self, session: SessionId) {
        let is_its_own = |(id, queue): (&QueueId, &Queue)| {
            let own = queue.owner == Some(session);
            own.then_some(*id)
        };
        let own: Vec<_> = self.queues.iter().filter_map(is_its_own).collect();
        own.into_iter().for_each(|id| self.remove_queue(id));
    }

    /// Removes a consumer. An auto-delete queue is deleted with its last consumer.
    pub(super) fn unsubscribe(
        &mut self,
        id: QueueId,
        is_it: impl Fn(&Subscriber) -> bool,
        now: Instant,
    ) {
        let Some(queue) = self.queues.get_mut(&id) else {
            return;
        };
        if !queue.unsubscribe(is_it, now) {
            return;
        }
        if queue.auto_delete && queue.subscribers().is_empty() {
            self.remove_queue(id);
        } else {
            self.changed(id);
        }
    }

    /// Drops everything that is not durable.
    pub(super) fn restart(&mut self) {
        let lost = |(id, it): (&QueueId, &Queue)| (!it.durable).then_some(*id);
        let lost: Vec<_> = self.queues.iter().filter_map(lost).collect();
        lost.into_iter().for_each(|id| self.remove_queue(id));
        let lost = |(name, it): (&String, &Exchange)| (!it.durable).then(|| name.clone());
        let lost: Vec<_> = self.exchanges.iter().filter_map(lost).collect();
        for name in lost {
            self.exchanges.remove(&name);
            self.unbind_all(&Destination::Exchange(name));
        }
        self.queues.values_mut().for_each(Queue::keep_persistent);
        self.orphans.clear();
    }

    // ---- messages ----

    /// Returns the queues for a message, each once.
    fn route(&self, message: &Message) -> BTreeSet<QueueId> {
        let mut queues = BTreeSet::new();
        for key in message.routing_keys() {
            self.route_by(&message.exchange, key, &message.properties, &mut queues);
        }
        queues
    }

    fn route_by(
        &self,
        exchange: &str,
        key: &str,
        properties: &Properties,
        queues: &mut BTreeSet<QueueId>,
    ) {
        if exchange.is_empty() {
            return queues.extend(self.ids.get(key));
        }
        let mut seen = BTreeSet::new();
        let mut left = VecDeque::from([exchange]);
        while let Some(name) = left.pop_front() {
            let found = self.exchanges.get(name).filter(|_| seen.insert(name));
            let Some(exchange) = found else {
                continue;
            };
            let mut is_routed = false;
            for destination in exchange.route(key, properties) {
                is_routed = true;
                match destination {
                    Destination::Queue(name) => queues.extend(self.ids.get(name)),
                    Destination::Exchange(name) => left.push_back(name),
                }
            }
            if !is_routed {
                left.extend(exchange.alternate());
            }
        }
    }

    pub(super) fn assert_publishable(&self, exchange: &str) -> Result<(), Refusal> {
        if exchange.is_empty() || !self.exchange(exchange)?.internal {
            return Ok(());
        }
        let text = format!(
            "cannot publish to internal {}",
            exchange_text(exchange, &self.name)
        );
        Err(Refusal::access(text))
    }

    pub(super) fn publish(&mut self, message: Arc<Message>, now: Instant) -> Routed {
        let queues = self.route(&message);
        let count = queues.len();
        let mut is_rejected = false;
        for id in queues {
            let Some(queue) = self.queues.get_mut(&id) else {
                continue;
            };
            if !queue.rejects(&message) {
                queue.push(Arc::clone(&message), now);
                self.changed.insert(id);
                continue;
            }
            is_rejected = true;
            if queue.arguments.overflow == Overflow::RejectPublishDeadLetter {
                let letters = letter_of(queue, &message, Reason::MaxLength);
                self.publish_dead_letter(letters, now);
            }
        }
        match is_rejected {
            true => Routed::Rejected,
            false => Routed::To(count),
        }
    }

    /// Publishes a message that has left its queue to the dead-letter exchange, if the queue has
    /// one.
    pub(super) fn bury(&mut self, id: QueueId, entry: &Entry, reason: Reason, now: Instant) {
        let queue = self.queues.get(&id);
        let letter = queue.and_then(|queue| letter_of(queue, &entry.message, reason));
        self.publish_dead_letter(letter, now);
    }

    fn publish_dead_letter(&mut self, letter: Option<Message>, now: Instant) {
        let Some(letter) = letter else {
            return;
        };
        let queues = self.route(&letter);
        let letter = Arc::new(letter);
        for id in queues {
            let Some(queue) = self.queues.get_mut(&id) else {
                continue;
            };
            if !goes_in_circles(&letter, &queue.name) {
                queue.push(Arc::clone(&letter), now);
                self.changed.insert(id);
            }
        }
    }

    // ---- changes and expiry ----

    pub(super) fn changed(&mut self, id: QueueId) {
        if self.queues.contains_key(&id) {
            self.changed.insert(id);
        }
    }

    pub(super) fn has_changed(&self) -> bool {
        !self.changed.is_empty() || !self.orphans.is_empty()
    }

    pub(super) fn pop_changed(&mut self) -> Option<QueueId> {
        self.changed.pop_first()
    }

    pub(super) fn take_orphans(&mut self) -> Vec<Subscriber> {
        std::mem::take(&mut self.orphans)
    }

    /// Removes and dead-letters the expired messages at the front of a queue.
    pub(super) fn bury_expired(&mut self, id: QueueId, now: Instant, also_now: bool) {
        while let Some(entry) = self
            .queues
            .get_mut(&id)
            .and_then(|it| it.pop_expired(now, also_now))
        {
            self.bury(id, &entry, Reason::Expired, now);
        }
    }

    pub(super) fn bury_surplus(&mut self, id: QueueId, now: Instant) {
        while let Some(entry) = self.queues.get_mut(&id).and_then(Queue::pop_surplus) {
            self.bury(id, &entry, Reason::MaxLength, now);
        }
    }

    /// When a message or a queue expires next.
    pub(super) fn next_expiration(&self) -> Option<Instant> {
        let of = |queue: &Queue| {
            queue
                .next_expiration()
                .into_iter()
                .chain(queue.expires_at())
                .min()
        };
        self.queues.values().filter_map(of).min()
    }

    pub(super) fn handle_time(&mut self, now: Instant) {
        let is_over = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let over = |(id, queue): (&QueueId, &Queue)| is_over(queue.expires_at()).then_some(*id);
        let over: Vec<_> = self.queues.iter().filter_map(over).collect();
        over.into_iter().for_each(|id| self.remove_queue(id));
        let over =
            |(id, queue): (&QueueId, &Queue)| is_over(queue.next_expiration()).then_some(*id);
        self.changed.extend(self.queues.iter().filter_map(over));
    }
}

/// Makes a dead letter of a message, if the queue has a dead-letter exchange.
fn letter_of(queue: &Queue, message: &Message, reason: Reason) -> Option<Message> {
    let exchange = queue.arguments.dead_letter_exchange.as_ref()?;
    let key = queue.arguments.dead_letter_routing_key.as_deref();
    Some(dead_letter(message, &queue.name, reason, exchange, key))
}

fn assert_not_default(exchange: &str) -> Result<(), Refusal> {
    match exchange {
        "" => Err(Refusal::access(
            "operation not permitted on the default exchange",
        )),
        _ => Ok(()),
    }
}

fn assert_not_reserved(what: &str, name: &str) -> Result<(), Refusal> {
    if !name.starts_with("amq.") {
        return Ok(());
    }
    let text = format!("{what} name '{name}' contains reserved prefix 'amq.*'");
    Err(Refusal::access(text))
}

/// Checks the value of `x-match` for a headers exchange.
fn assert_match(arguments: &FieldTable) -> Result<(), Refusal> {
    let how = arguments.get("x-match");
    match how.map(FieldValue::as_str) {
        None | Some(Some("all" | "any" | "all-with-x" | "any-with-x")) => Ok(()),
        Some(Some(other)) => Err(Refusal::failed(format!(
            "Invalid x-match field value <<\"{other}\">>; expected all, any, all-with-x, or any-with-x"
        ))),
        Some(None) => Err(Refusal::failed(format!(
            "Invalid x-match field type {}; expected longstr",
            how.map(type_and_value).unwrap_or_default()
        ))),
    }
}

/// Refuses properties that only classic queues can have.
fn assert_quorum(method: &QueueDeclare<'_>, resource: &str) -> Result<(), Refusal> {
    if method.queue.is_empty() {
        let text = "Cannot declare a server-named queue for type rabbit_quorum_queue";
        return Err(Refusal::failed(text));
    }
    let property = match method {
        QueueDeclare {
            auto_delete: true, ..
        } => "auto-delete",
        QueueDeclare {
            exclusive: true, ..
        } => "exclusive-owner",
        QueueDeclare { durable: false, .. } => "non-durable",
        _ => return Ok(()),
    };
    let text = format!("invalid property '{property}' for {resource}");
    Err(Refusal::failed(text))
}

/// Refuses a declaration that differs from the existing queue.
fn assert_same_declaration(
    method: &QueueDeclare<'_>,
    queue: &Queue,
    resource: &str,
) -> Result<(), Refusal> {
    if method.exclusive != queue.owner.is_some() {
        return Err(locked(resource));
    }
    let durable = method.durable && !method.exclusive;
    assert_same("durable", resource, &durable, &queue.durable)?;
    let auto_delete = &method.auto_delete;
    assert_same("auto_delete", resource, auto_delete, &queue.auto_delete)?;
    assert_same_queue(resource, &method.arguments, &queue.arguments.table)
}

fn locked(resource: &str) -> Refusal {
    let text = format!(
        "cannot obtain exclusive access to locked {resource}. It could be originally declared on another connection or the \
         exclusive property value does not match that of the original declaration."
    );
    Refusal::of_channel(ReplyCode::RESOURCE_LOCKED, text)
}
