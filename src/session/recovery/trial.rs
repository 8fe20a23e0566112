//! Trials: requests what is missing on a separate connection, since that can hang or cost the
//! connection.

use std::io;
use std::sync::Arc;
use std::time::Duration;
use std::vec::Drain;

use super::requester::{named_by_broker, send_declaration, Failure, Requester};
use super::unrecovered::{is_close_by_broker, is_named, Key, Trouble};
use crate::error::{Error, ErrorKind, ReplyCode, Result};
use crate::events::Entity;
use crate::io_thread::deadline::Deadline;
use crate::io_thread::mailbox::{Command, ConsumerMailbox, Mailboxes, Reply};
use crate::io_thread::socket::connect::{connect, Last};
use crate::io_thread::Recover;
use crate::io_thread::{self, Shared};
use crate::options::ConnectionOptions;
use crate::proto::{Delivered, RecordedEntity, Settling};
use crate::wire::method::{BasicConsume, BasicQos, Method, QueueBind, QueueDeclare};
use crate::wire::value::FieldTable;

/// How long one round of trials may take. RabbitMQ 4.3 closes the connection after 30 seconds if it
/// cannot answer a request.
const MAX_TIME: Duration = Duration::from_secs(20);
/// How many connections one round may cost.
const MAX_CONNECTIONS: u32 = 3;
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// What to try.
pub(super) enum Trial {
    /// Declare the entity.
    Declare(RecordedEntity),
    /// Only the program's own connection can declare the entity. Try an exclusive queue like it, or
    /// a binding that gets no messages.
    StandIn(RecordedEntity),
    /// Check whether the queue exists.
    Queue(String),
    /// Check whether the queue exists and whether consuming from it does harm.
    Consume(BasicConsume<'static>),
}

/// The result of a trial.
pub(super) enum Verdict {
    /// The entity exists now.
    Declared(Reply),
    /// The stand-in did no harm.
    Harmless,
    /// The number of consumers of the queue, if it exists.
    Queue(Option<u32>),
    Failed(Trouble, Error),
    /// Not tried, for lack of time.
    OutOfTime,
    /// Not tried, for lack of a connection.
    NotTried(Error),
}

pub(super) struct TrialConnection {
    options: ConnectionOptions,
    /// The broker of the program's connection.
    broker: Last,
    until: Deadline,
    connected: Option<Connected>,
    connections: u32,
    /// Errors of bindings whose exchange or queue does not exist.
    not_found: Vec<Error>,
}

struct Connected {
    shared: Arc<Shared>,
    requester: Requester,
}

impl Drop for Connected {
    fn drop(&mut self) {
        let text = "trials of missing entities are over";
        // This fails only if the connection has ended.
        let _ = self.shared.close(ReplyCode::SUCCESS, text, CLOSE_PATIENCE);
    }
}

impl TrialConnection {
    pub(super) fn new(mut options: ConnectionOptions, broker: Last) -> Self {
        options.connection_name.push_str(" (recovery)");
        options.recovery.enabled = false;
        options.metrics = None;
        Self {
            options,
            broker,
            until: Deadline::after(MAX_TIME),
            connected: None,
            connections: 0,
            not_found: Vec::new(),
        }
    }

    pub(super) fn run(&mut self, key: &Key, trial: &Trial) -> Verdict {
        if self.until.remaining().is_zero() {
            return Verdict::OutOfTime;
        }
        if let Some(error) = self.known_refusal(key) {
            return Verdict::Failed(Trouble::Refused, error);
        }
        let timeout = self.options.recovery.entity_timeout;
        let requester = match self.requester() {
            Ok(requester) => requester,
            Err(error) => return Verdict::NotTried(error),
        };
        let verdict = match trial {
            Trial::Declare(entity) => declare(requester, entity, timeout),
            Trial::StandIn(entity) => stand_in(requester, entity, timeout),
            Trial::Queue(name) => queue_exists(requester, name, timeout).map(Verdict::Queue),
            Trial::Consume(consume) => try_consume(requester, consume, timeout),
        };
        verdict.unwrap_or_else(|failure| self.failed(key, failure))
    }

    /// The error for a binding that lacks the same exchange or queue as one that was refused
    /// before.
    fn known_refusal(&self, key: &Key) -> Option<Error> {
        let Entity::Binding {
            source,
            destination,
            ..
        } = &key.entity
        else {
            return None;
        };
        let names_it = |error: &&Error| is_named(error, source) || is_named(error, destination);
        self.not_found.iter().find(names_it).cloned()
    }

    fn requester(&mut self) -> Result<&mut Requester> {
        let is_open = |it: &Connected| it.shared.outbox.end_cause().is_none();
        if !self.connected.as_ref().is_some_and(is_open) {
            self.connected = None;
            if self.connections >= MAX_CONNECTIONS {
                let text = "earlier trials cost all connections for trials";
                return Err(Error::invalid(text));
            }
        }
        let connected = match self.connected.take() {
            Some(connected) => connected,
            None => {
                self.connections += 1;
                self.open()?
            }
        };
        Ok(&mut self.connected.insert(connected).requester)
    }

    fn open(&self) -> Result<Connected> {
        let connected = connect::<Mailboxes>(&self.options, Some(self.broker.clone()))?;
        let recovery = Arc::new(NoRecovery);
        let name = "leveret trial";
        let (shared, _) = io_thread::spawn(connected, &self.options, recovery, name)
            .map_err(|error| not_started(&error))?;
        let requester = Requester::new(&shared, 0, self.options.request_timeout, self.until);
        Ok(Connected { shared, requester })
    }

    fn failed(&mut self, key: &Key, failure: Failure) -> Verdict {
        match failure {
            Failure::Refused(error) => {
                let is_binding = matches!(key.entity, Entity::Binding { .. });
                if is_binding && error.reply_code() == Some(ReplyCode::NOT_FOUND) {
                    self.not_found.push(error.clone());
                }
                Verdict::Failed(Trouble::Refused, error)
            }
            Failure::NoAnswer(error) => {
                let doing = format!("waiting for the broker's reply for {}", key.entity);
                Verdict::Failed(Trouble::Silent, error.doing(doing))
            }
            Failure::Connection(error) => match is_close_by_broker(&error) {
                true => Verdict::Failed(Trouble::Harmful, error),
                false => Verdict::NotTried(error),
            },
            Failure::ChannelGone | Failure::NotAsked => {
                Verdict::NotTried(Error::invalid("its channel ended"))
            }
        }
    }
}

fn declare(
    requester: &mut Requester,
    entity: &RecordedEntity,
    timeout: Duration,
) -> Result<Verdict, Failure> {
    let is_named_by_broker = named_by_broker(entity).is_some();
    let declared = declare_alone(requester, entity, !is_named_by_broker, timeout);
    let declared = match declared {
        Err(Failure::Refused(_)) if is_named_by_broker => {
            declare_alone(requester, entity, true, timeout)
        }
        declared => declared,
    };
    declared.map(Verdict::Declared)
}

/// Declares an exclusive queue without a name. In place of a binding, binds such a queue to
/// `amq.direct` by its name, so that it gets no messages.
fn stand_in(
    requester: &mut Requester,
    entity: &RecordedEntity,
    timeout: Duration,
) -> Result<Verdict, Failure> {
    let declare = match entity {
        RecordedEntity::Queue { declare, .. } => declare.clone(),
        _ => QueueDeclare {
            exclusive: true,
            ..QueueDeclare::default()
        },
    };
    let queue = RecordedEntity::Queue {
        declare,
        named_by_server: true,
    };
    let reply = declare_alone(requester, &queue, true, timeout)?;
    if let (true, Reply::Method(Method::QueueDeclareOk(ok))) = (entity.is_binding(), reply) {
        let bind = QueueBind {
            routing_key: ok.queue.clone(),
            queue: ok.queue,
            exchange: "amq.direct".into(),
            ..QueueBind::default()
        };
        declare_alone(requester, &RecordedEntity::BindQueue(bind), true, timeout)?;
    }
    Ok(Verdict::Harmless)
}

/// Declares one entity and waits for the reply.
fn declare_alone(
    requester: &mut Requester,
    entity: &RecordedEntity,
    is_gone: bool,
    timeout: Duration,
) -> Result<Reply, Failure> {
    let channel = requester.scratch_channel(0).map_err(Failure::Connection)?;
    let pending = send_declaration(requester, &channel, entity, is_gone);
    requester.reply_or_abandon(&channel, &pending, timeout)
}

/// Returns the number of consumers of a queue, if the queue exists and this connection may use it.
fn queue_exists(
    requester: &mut Requester,
    name: &str,
    timeout: Duration,
) -> Result<Option<u32>, Failure> {
    let channel = requester.scratch_channel(0).map_err(Failure::Connection)?;
    let declare = QueueDeclare {
        queue: name.into(),
        passive: true,
        ..QueueDeclare::default()
    };
    let pending = requester.send_method(&channel, &declare);
    match requester.reply_or_abandon(&channel, &pending, timeout) {
        Ok(Reply::Method(Method::QueueDeclareOk(ok))) => Ok(Some(ok.consumer_count)),
        Ok(_) | Err(Failure::Refused(_)) => Ok(None),
        Err(Failure::ChannelGone | Failure::NotAsked) => queue_exists(requester, name, timeout),
        Err(failure) => Err(failure),
    }
}

/// Consumes for a moment. A message that arrives meanwhile goes back to its queue when the channel
/// closes.
fn try_consume(
    requester: &mut Requester,
    consume: &BasicConsume<'static>,
    timeout: Duration,
) -> Result<Verdict, Failure> {
    let count = queue_exists(requester, &consume.queue, timeout)?;
    if count.is_none() {
        return Ok(Verdict::Queue(count));
    }
    let channel = requester.scratch_channel(0).map_err(Failure::Connection)?;
    let qos = BasicQos {
        prefetch_count: 1,
        ..BasicQos::default()
    };
    let pending = requester.send_method(&channel, &qos);
    requester.wait_reply(&channel, &pending, requester.within(timeout))?;
    let consume = BasicConsume {
        no_ack: false,
        ..consume.clone()
    };
    let number = channel.number;
    let pending = requester.send(&channel, |frames, call| {
        frames.method(&consume)?;
        frames.command(Command::Consume {
            channel: number,
            consumer_tag: consume.consumer_tag.as_ref().into(),
            consumer: Arc::new(Discard),
            settling: Settling::NoAck,
            call: Some(call),
        });
        Ok(())
    });
    let reply = requester.wait_reply(&channel, &pending, requester.within(timeout));
    requester.abandon(&channel);
    reply.map(|_| Verdict::Queue(count))
}

fn not_started(error: &io::Error) -> Error {
    let kind = error.kind();
    Error::new(ErrorKind::ThreadNotStarted { kind })
}

/// A lost connection for trials is not recovered.
struct NoRecovery;

impl Recover for NoRecovery {
    fn is_on(&self) -> bool {
        false
    }

    fn lost(self: Arc<Self>, _shared: &Arc<Shared>, _cause: &Error) -> bool {
        false
    }

    fn ended(&self, _cause: &Error) {}
}

/// A consumer that drops its messages.
struct Discard;

impl ConsumerMailbox for Discard {
    fn settling(&self) -> Settling {
        Settling::NoAck
    }

    fn started(&self) {}

    fn deliver(&self, messages: Drain<'_, Delivered>) -> u64 {
        drop(messages);
        0
    }

    fn unread(&self) -> u64 {
        0
    }

    fn ended(&self, _error: Option<Error>) {}

    fn outlives(&self, _error: &Error) -> bool {
        false
    }

    fn interrupted(&self, _error: &Error) {}

    fn restart(&self, _arguments: &mut FieldTable) -> bool {
        false
    }
}
