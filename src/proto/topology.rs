//! Records what the program declares on a connection, so that recovery can declare it again.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::wire::codec::Writer;
use crate::wire::method::{ExchangeBind, ExchangeDeclare, Method, QueueBind, QueueDeclare};
use crate::wire::value::{FieldTable, FieldValue};

/// The recorded exchanges, queues and bindings, by key.
#[derive(Debug, Default)]
pub(crate) struct Topology {
    exchanges: BTreeMap<String, ExchangeDeclare<'static>>,
    queues: BTreeMap<String, Queue>,
    bindings: BTreeMap<BindingKey, FieldTable>,
}

#[derive(Debug)]
struct Queue {
    declare: QueueDeclare<'static>,
    /// The broker chose the name, and will choose another one when the queue is declared again.
    named_by_server: bool,
    /// How many consumers this connection has on the queue.
    consumers: usize,
}

/// The destination of a binding.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Destination {
    Exchange(String),
    Queue(String),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct BindingKey {
    source: String,
    destination: Destination,
    routing_key: String,
    /// From [`encoded`].
    arguments: Vec<u8>,
}

impl BindingKey {
    fn new(source: &str, destination: Destination, key: &str, arguments: &FieldTable) -> Self {
        Self {
            source: source.to_owned(),
            destination,
            routing_key: key.to_owned(),
            arguments: encoded(arguments),
        }
    }
}

/// Encodes the arguments of a binding for use in a key: [`FieldTable`] itself has no order.
pub(crate) fn encoded(arguments: &FieldTable) -> Vec<u8> {
    let mut encoded = Vec::new();
    // Arguments that cannot be encoded were never sent.
    let _ = Writer::new(&mut encoded).table(arguments, "arguments");
    encoded
}

/// A recorded declaration or binding.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum RecordedEntity {
    Exchange(ExchangeDeclare<'static>),
    Queue {
        declare: QueueDeclare<'static>,
        named_by_server: bool,
    },
    BindExchange(ExchangeBind<'static>),
    BindQueue(QueueBind<'static>),
}

pub(crate) fn is_stream(declare: &QueueDeclare<'_>) -> bool {
    let queue_type = declare.arguments.get("x-queue-type");
    queue_type.and_then(FieldValue::as_str) == Some("stream")
}

impl RecordedEntity {
    pub(crate) fn is_binding(&self) -> bool {
        matches!(self, Self::BindExchange(_) | Self::BindQueue(_))
    }
}

impl Topology {
    /// Records a method that the broker has carried out. `reply` is `None` if no-wait was set.
    pub(crate) fn done(&mut self, asked: Method<'static>, reply: Option<&Method<'_>>) {
        match asked {
            Method::ExchangeDeclare(declare) => self.exchange_declared(declare),
            Method::ExchangeDelete(delete) => self.forget_exchange(&delete.exchange),
            Method::ExchangeBind(bind) => {
                let destination = Destination::Exchange(bind.destination.into_owned());
                let key = BindingKey::new(
                    &bind.source,
                    destination,
                    &bind.routing_key,
                    &bind.arguments,
                );
                self.bindings.insert(key, bind.arguments.into_owned());
            }
            Method::ExchangeUnbind(unbind) => {
                let destination = Destination::Exchange(unbind.destination.into_owned());
                let key = &unbind.routing_key;
                self.unbound(&BindingKey::new(
                    &unbind.source,
                    destination,
                    key,
                    &unbind.arguments,
                ));
            }
            Method::QueueDeclare(declare) => self.queue_declared(declare, reply),
            Method::QueueDelete(delete) => self.forget_queue(&delete.queue),
            Method::QueueBind(bind) => {
                let destination = Destination::Queue(bind.queue.into_owned());
                let key = BindingKey::new(
                    &bind.exchange,
                    destination,
                    &bind.routing_key,
                    &bind.arguments,
                );
                self.bindings.insert(key, bind.arguments.into_owned());
            }
            Method::QueueUnbind(unbind) => {
                let destination = Destination::Queue(unbind.queue.into_owned());
                let key = &unbind.routing_key;
                self.unbound(&BindingKey::new(
                    &unbind.exchange,
                    destination,
                    key,
                    &unbind.arguments,
                ));
            }
            _ => {}
        }
    }

    fn exchange_declared(&mut self, declare: ExchangeDeclare<'static>) {
        // Predeclared exchanges always exist.
        let predeclared = declare.exchange.is_empty() || declare.exchange.starts_with("amq.");
        if declare.passive || predeclared {
            return;
        }
        self.exchanges.insert(declare.exchange.to_string(), declare);
    }

    fn queue_declared(&mut self, mut declare: QueueDeclare<'static>, reply: Option<&Method<'_>>) {
        if declare.passive {
            return;
        }
        let named_by_server = declare.queue.is_empty();
        if let (true, Some(Method::QueueDeclareOk(ok))) = (named_by_server, reply) {
            declare.queue = Cow::Owned(ok.queue.clone().into_owned());
        }
        let name = declare.queue.to_string();
        let before = self.queues.get(&name);
        let queue = Queue {
            // A queue that the broker named stays so when it is declared again by that name.
            named_by_server: named_by_server || before.is_some_and(|it| it.named_by_server),
            consumers: before.map_or(0, |it| it.consumers),
            declare,
        };
        self.queues.insert(name, queue);
    }

    fn forget_queue(&mut self, name: &str) {
        self.queues.remove(name);
        self.unbind_all(|key| matches!(&key.destination, Destination::Queue(it) if it == name));
    }

    fn forget_exchange(&mut self, name: &str) {
        self.exchanges.remove(name);
        self.bindings.retain(|key, _| key.source != name);
        self.unbind_all(|key| matches!(&key.destination, Destination::Exchange(it) if it == name));
    }

    fn unbound(&mut self, key: &BindingKey) {
        self.bindings.remove(key);
        self.forget_unused(&key.source);
    }

    fn unbind_all(&mut self, is_gone: impl Fn(&BindingKey) -> bool) {
        let gone = self.bindings.keys().filter(|key| is_gone(key));
        let mut sources: Vec<_> = gone.map(|key| key.source.clone()).collect();
        self.bindings.retain(|key, _| !is_gone(key));
        sources.dedup();
        for source in sources {
            self.forget_unused(&source);
        }
    }

    /// Forgets an auto-delete exchange that has lost its last binding, as the broker deletes it.
    fn forget_unused(&mut self, source: &str) {
        let auto_delete = self.exchanges.get(source).is_some_and(|it| it.auto_delete);
        if auto_delete && self.bindings.keys().all(|key| key.source != source) {
            self.forget_exchange(source);
        }
    }

    /// Whether the entity is still recorded.
    pub(crate) fn contains(&self, entity: &RecordedEntity) -> bool {
        match entity {
            RecordedEntity::Exchange(declare) => self.exchanges.contains_key(&*declare.exchange),
            RecordedEntity::Queue { declare, .. } => self.queues.contains_key(&*declare.queue),
            RecordedEntity::BindQueue(bind) => {
                let destination = Destination::Queue(bind.queue.clone().into_owned());
                let (source, key) = (&bind.exchange, &bind.routing_key);
                let key = BindingKey::new(source, destination, key, &bind.arguments);
                self.bindings.contains_key(&key)
            }
            RecordedEntity::BindExchange(bind) => {
                let destination = Destination::Exchange(bind.destination.clone().into_owned());
                let (source, key) = (&bind.source, &bind.routing_key);
                let key = BindingKey::new(source, destination, key, &bind.arguments);
                self.bindings.contains_key(&key)
            }
        }
    }

    /// The recorded declaration of a queue.
    pub(crate) fn declared_queue(&self, name: &str) -> Option<&QueueDeclare<'static>> {
        self.queues.get(name).map(|it| &it.declare)
    }

    /// Whether the queue is recorded as a stream.
    pub(crate) fn is_stream(&self, queue: &str) -> bool {
        let queue = self.queues.get(queue);
        queue.is_some_and(|it| is_stream(&it.declare))
    }

    pub(crate) fn consumer_started(&mut self, queue: &str) {
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.consumers += 1;
        }
    }

    /// Forgets an auto-delete queue that has lost its last consumer, as the broker deletes it.
    pub(crate) fn consumer_ended(&mut self, name: &str) {
        let Some(queue) = self.queues.get_mut(name) else {
            return;
        };
        queue.consumers = queue.consumers.saturating_sub(1);
        if queue.declare.auto_delete && queue.consumers == 0 {
            self.forget_queue(name);
        }
    }

    /// Renames a queue that the broker named, and now has named differently, also in its bindings.
    pub(crate) fn queue_renamed(&mut self, old: &str, new: &str) {
        if let Some(mut queue) = self.queues.remove(old) {
            queue.declare.queue = Cow::Owned(new.to_owned());
            self.queues.insert(new.to_owned(), queue);
        }
        let bindings = std::mem::take(&mut self.bindings);
        self.bindings = bindings
            .into_iter()
            .map(|(mut key, arguments)| {
                if matches!(&key.destination, Destination::Queue(it) if it == old) {
                    key.destination = Destination::Queue(new.to_owned());
                }
                (key, arguments)
            })
            .collect();
    }

    /// Lists all exchanges and queues, then the bindings, which need both.
    pub(crate) fn entities(&self) -> Vec<RecordedEntity> {
        let exchanges = self.exchanges.values().map(|declare| {
            let no_wait = false;
            RecordedEntity::Exchange(ExchangeDeclare {
                no_wait,
                ..declare.clone()
            })
        });
        let queues = self.queues.values().map(|queue| RecordedEntity::Queue {
            declare: QueueDeclare {
                no_wait: false,
                ..queue.declare.clone()
            },
            named_by_server: queue.named_by_server,
        });
        exchanges
            .chain(queues)
            .chain(self.recorded_bindings())
            .collect()
    }

    fn recorded_bindings(&self) -> impl Iterator<Item = RecordedEntity> + '_ {
        self.bindings.iter().map(|(key, arguments)| {
            let routing_key = Cow::Owned(key.routing_key.clone());
            let source = Cow::Owned(key.source.clone());
            let arguments = Cow::Owned(arguments.clone());
            match key.destination.clone() {
                Destination::Queue(queue) => RecordedEntity::BindQueue(QueueBind {
                    ticket: 0,
                    queue: queue.into(),
                    exchange: source,
                    routing_key,
                    no_wait: false,
                    arguments,
                }),
                Destination::Exchange(destination) => RecordedEntity::BindExchange(ExchangeBind {
                    ticket: 0,
                    destination: destination.into(),
                    source,
                    routing_key,
                    no_wait: false,
                    arguments,
                }),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::method::{
        ExchangeDelete, ExchangeUnbind, QueueDeclareOk, QueueDelete, QueueUnbind,
    };

    impl Topology {
        fn exchange(&mut self, name: &'static str, auto_delete: bool) {
            let declare = ExchangeDeclare {
                exchange: name.into(),
                auto_delete,
                no_wait: true,
                ..ExchangeDeclare::default()
            };
            self.done(Method::ExchangeDeclare(declare), None);
        }

        fn queue(&mut self, name: &'static str, broker_name: &'static str, auto_delete: bool) {
            let declare = QueueDeclare {
                queue: name.into(),
                auto_delete,
                ..QueueDeclare::default()
            };
            let ok = QueueDeclareOk {
                queue: broker_name.into(),
                ..QueueDeclareOk::default()
            };
            let reply = Method::QueueDeclareOk(ok);
            self.done(Method::QueueDeclare(declare), Some(&reply));
        }

        fn bind_queue(&mut self, queue: &'static str, exchange: &'static str, key: &'static str) {
            let bind = QueueBind {
                queue: queue.into(),
                exchange: exchange.into(),
                routing_key: key.into(),
                ..QueueBind::default()
            };
            self.done(Method::QueueBind(bind), None);
        }

        fn bind_exchange(&mut self, destination: &'static str, source: &'static str) {
            let bind = ExchangeBind {
                destination: destination.into(),
                source: source.into(),
                ..ExchangeBind::default()
            };
            self.done(Method::ExchangeBind(bind), None);
        }

        fn words(&self) -> Vec<String> {
            let words = self.entities().into_iter().map(|it| match it {
                RecordedEntity::Exchange(declare) => declare.exchange.into_owned(),
                RecordedEntity::Queue {
                    declare,
                    named_by_server: true,
                } => format!("{} (server)", declare.queue),
                RecordedEntity::Queue { declare, .. } => declare.queue.into_owned(),
                RecordedEntity::BindQueue(bind) => {
                    format!("{} -{}-> {}", bind.exchange, bind.routing_key, bind.queue)
                }
                RecordedEntity::BindExchange(bind) => {
                    format!("{} --> {}", bind.source, bind.destination)
                }
            });
            words.collect()
        }
    }

    #[test]
    fn entities_are_listed_before_the_bindings_that_need_them() {
        let mut topology = Topology::default();
        topology.exchange("x", false);
        topology.exchange("amq.topic", false);
        topology.bind_queue("q", "x", "a");
        topology.bind_queue("q", "x", "b");
        topology.bind_queue("q", "x", "a");
        topology.queue("q", "q", false);
        topology.queue("", "amq.gen-1", false);
        topology.bind_queue("amq.gen-1", "x", "c");
        topology.exchange("y", false);
        topology.bind_exchange("y", "x");
        let passive = QueueDeclare {
            queue: "other".into(),
            passive: true,
            ..QueueDeclare::default()
        };
        topology.done(Method::QueueDeclare(passive), None);
        let bindings = ["x --> y", "x -c-> amq.gen-1", "x -a-> q", "x -b-> q"];
        let all = [&["x", "y", "amq.gen-1 (server)", "q"][..], &bindings].concat();
        assert_eq!(topology.words(), all);
        let again = topology.entities();
        let waits = |it: &RecordedEntity| !matches!(it, RecordedEntity::Exchange(it) if it.no_wait);
        assert!(again.iter().all(waits));

        // Declared again by the name that the broker chose.
        topology.queue("amq.gen-1", "amq.gen-1", false);
        topology.queue_renamed("amq.gen-1", "amq.gen-2");
        let words = topology.words();
        assert!(
            words.contains(&"amq.gen-2 (server)".to_owned()),
            "{words:?}"
        );
        assert!(words.contains(&"x -c-> amq.gen-2".to_owned()), "{words:?}");
    }

    #[test]
    fn deleting_an_entity_forgets_its_bindings_and_unused_exchanges() {
        let mut topology = Topology::default();
        topology.exchange("x", true);
        topology.exchange("y", true);
        topology.exchange("z", false);
        topology.bind_exchange("x", "y");
        topology.bind_exchange("y", "z");
        topology.queue("q", "q", false);
        topology.bind_queue("q", "x", "a");
        topology.bind_queue("q", "x", "b");
        let unbind = |key: &'static str| {
            Method::QueueUnbind(QueueUnbind {
                queue: "q".into(),
                exchange: "x".into(),
                routing_key: key.into(),
                ..QueueUnbind::default()
            })
        };
        topology.done(unbind("a"), None);
        assert_eq!(topology.words().len(), 7);
        // The last binding of x: x is deleted, and with its binding, y.
        topology.done(unbind("b"), None);
        assert_eq!(topology.words(), ["z", "q"]);

        topology.bind_queue("q", "z", "a");
        topology.exchange("w", false);
        topology.bind_exchange("z", "w");
        let delete = ExchangeDelete {
            exchange: "z".into(),
            ..ExchangeDelete::default()
        };
        topology.done(Method::ExchangeDelete(delete), None);
        assert_eq!(topology.words(), ["w", "q"]);
        topology.bind_queue("q", "w", "a");
        topology.bind_exchange("v", "w");
        let unbind = ExchangeUnbind {
            destination: "v".into(),
            source: "w".into(),
            ..ExchangeUnbind::default()
        };
        topology.done(Method::ExchangeUnbind(unbind), None);
        let delete = QueueDelete {
            queue: "q".into(),
            ..QueueDelete::default()
        };
        topology.done(Method::QueueDelete(delete), None);
        assert_eq!(topology.words(), ["w"]);
    }

    #[test]
    fn an_auto_delete_queue_is_forgotten_with_its_last_consumer() {
        let mut topology = Topology::default();
        topology.queue("q", "q", true);
        topology.queue("kept", "kept", false);
        topology.exchange("x", true);
        topology.bind_queue("q", "x", "a");
        for queue in ["q", "q", "kept", "unknown"] {
            topology.consumer_started(queue);
        }
        topology.consumer_ended("q");
        assert_eq!(topology.words(), ["x", "kept", "q", "x -a-> q"]);
        for queue in ["q", "kept", "unknown"] {
            topology.consumer_ended(queue);
        }
        assert_eq!(topology.words(), ["kept"]);
    }

    #[test]
    fn streams_are_known_by_their_declaration() {
        let declare = |name: &'static str, queue_type: &str| QueueDeclare {
            queue: name.into(),
            arguments: Cow::Owned(FieldTable::new().with("x-queue-type", queue_type)),
            ..QueueDeclare::default()
        };
        let mut topology = Topology::default();
        for (name, queue_type) in [("log", "stream"), ("tasks", "quorum")] {
            topology.done(Method::QueueDeclare(declare(name, queue_type)), None);
        }
        topology.queue("plain", "plain", false);
        let streams = ["log", "tasks", "plain", "unknown"].map(|it| topology.is_stream(it));
        assert_eq!(streams, [true, false, false, false]);
        let declared = topology.declared_queue("tasks");
        assert_eq!(declared, Some(&declare("tasks", "quorum")));
        assert_eq!(topology.declared_queue("unknown"), None);
    }

    #[test]
    fn what_is_listed_is_contained_until_it_is_forgotten() {
        let mut topology = Topology::default();
        topology.exchange("x", false);
        topology.exchange("y", false);
        topology.queue("q", "q", false);
        topology.bind_queue("q", "x", "a");
        topology.bind_exchange("y", "x");
        let entities = topology.entities();
        let bindings = entities.iter().filter(|it| it.is_binding()).count();
        assert_eq!((entities.len(), bindings), (5, 2));
        assert!(entities.iter().all(|it| topology.contains(it)));
        assert!(!entities.iter().any(|it| Topology::default().contains(it)));
    }

    #[test]
    fn bindings_that_differ_only_in_their_arguments_are_two() {
        let mut topology = Topology::default();
        let bind = |format: &str| {
            Method::QueueBind(QueueBind {
                queue: "q".into(),
                exchange: "x".into(),
                arguments: Cow::Owned(FieldTable::new().with("format", format)),
                ..QueueBind::default()
            })
        };
        for format in ["pdf", "html", "pdf"] {
            topology.done(bind(format), None);
        }
        assert_eq!(topology.entities().len(), 2);
    }

    #[test]
    fn what_was_declared_with_no_wait_is_declared_again_with_a_reply() {
        let mut topology = Topology::default();
        let no_wait = true;
        let queue = QueueDeclare {
            queue: "q".into(),
            no_wait,
            ..QueueDeclare::default()
        };
        let exchange = ExchangeDeclare {
            exchange: "x".into(),
            no_wait,
            ..ExchangeDeclare::default()
        };
        topology.done(Method::QueueDeclare(queue), None);
        topology.done(Method::ExchangeDeclare(exchange), None);
        let no_waits = topology.entities().into_iter().map(|it| match it {
            RecordedEntity::Exchange(declare) => declare.no_wait,
            RecordedEntity::Queue { declare, .. } => declare.no_wait,
            RecordedEntity::BindExchange(_) | RecordedEntity::BindQueue(_) => true,
        });
        assert_eq!(no_waits.collect::<Vec<_>>(), [false, false]);
    }
}
