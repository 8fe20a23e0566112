//! The methods of an open channel, except publishing: declare, bind, consume, settle, commit.

use super::channel::{Channel, How, Mode, Settle, Staged, Unacknowledged};
use super::connection::{decode, unexpected_frame};
use super::core::Core;
use super::exchange::{Binding, Destination};
use super::queue::Subscriber;
use super::refusal::Refusal;
use super::session::Session;
use super::vhost::{made_up, queue_text, Routed, Vhost};
use super::SessionId;
use crate::error::ReplyCode;
use crate::wire::frame::{Frame, FrameKind};
use crate::wire::method::{
    AccessRequestOk, BasicCancelOk, BasicConsume, BasicConsumeOk, BasicGet, BasicGetEmpty,
    BasicGetOk, BasicQos, BasicQosOk, BasicRecoverOk, ChannelFlowOk, ConfirmSelectOk, Encode,
    ExchangeBindOk, ExchangeDeclareOk, ExchangeDeleteOk, ExchangeUnbindOk, Method, QueueBindOk,
    QueueDeclare, QueueDeclareOk, QueueDelete, QueueDeleteOk, QueuePurgeOk, QueueUnbindOk,
    ShortString, Table, TxCommitOk, TxRollbackOk, TxSelectOk,
};

/// Direct reply-to: a consumer of this name receives replies without a queue.
pub(super) const REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// The session and channel on which a frame arrived.
pub(super) struct Asked<'a> {
    pub(super) core: &'a mut Core,
    pub(super) id: SessionId,
    pub(super) session: &'a mut Session,
    pub(super) number: u16,
}

impl Core {
    /// Handles a frame on an open channel.
    pub(super) fn open_channel_frame(
        &mut self,
        id: SessionId,
        session: &mut Session,
        number: u16,
        frame: &Frame<'_>,
    ) -> Result<(), Refusal> {
        let mut asked = Asked {
            core: self,
            id,
            session,
            number,
        };
        let is_coming = asked.channel()?.incoming.is_some();
        match frame.kind {
            FrameKind::Header | FrameKind::Body => asked.content(frame),
            FrameKind::Method if is_coming => Err(unexpected_frame(
                "expected content header for class 60, got non content header frame instead",
            )),
            FrameKind::Method => asked.method(decode(frame)?),
            FrameKind::Heartbeat => Err(unexpected_frame("a heartbeat on a channel")),
        }
    }
}

fn or_last(name: &str, last: Option<&String>) -> Result<String, Refusal> {
    match (name, last) {
        ("", Some(last)) => Ok(last.clone()),
        ("", None) => {
            let text = "no previously declared queue";
            Err(Refusal::of_channel(ReplyCode::NOT_FOUND, text))
        }
        (name, _) => Ok(name.to_owned()),
    }
}

impl Asked<'_> {
    /// The channel, which was open when the frame arrived.
    pub(super) fn channel(&mut self) -> Result<&mut Channel, Refusal> {
        let number = self.number;
        let gone = || Refusal::of_connection(ReplyCode::CHANNEL_ERROR, "expected 'channel.open'");
        self.session.channel(number).ok_or_else(gone)
    }

    pub(super) fn vhost(&mut self) -> Result<&mut Vhost, Refusal> {
        let name = &self.session.vhost;
        let gone =
            || Refusal::of_connection(ReplyCode::NOT_ALLOWED, format!("vhost {name} not found"));
        self.core.vhosts.get_mut(name).ok_or_else(gone)
    }

    fn reply(&mut self, no_wait: bool, method: &impl Encode) {
        if !no_wait {
            self.session.send(self.number, method);
        }
    }

    /// Resolves a queue name. An empty name means the queue declared last.
    fn queue_name(&mut self, name: &str) -> Result<String, Refusal> {
        or_last(name, self.channel()?.last_queue.as_ref())
    }

    fn method(&mut self, method: Method<'_>) -> Result<(), Refusal> {
        match method {
            Method::BasicPublish(method) => self.publish_begins(method.into_owned()),
            Method::BasicAck(it) => self.settle(it.delivery_tag, it.multiple, How::Acknowledge),
            Method::BasicNack(it) => self.settle(it.delivery_tag, it.multiple, how(it.requeue)),
            Method::BasicReject(it) => self.settle(it.delivery_tag, false, how(it.requeue)),
            Method::BasicRecover(it) => {
                self.recover(it.requeue)?;
                self.reply(false, &BasicRecoverOk {});
                Ok(())
            }
            Method::BasicRecoverAsync(it) => self.recover(it.requeue),
            Method::BasicQos(method) => self.qos(&method),
            Method::BasicConsume(method) => self.consume(&method),
            Method::BasicCancel(method) => self.cancel(&method.consumer_tag, method.no_wait),
            // The answer to the broker's cancel. RabbitMQ also ends the consumer.
            Method::BasicCancelOk(method) => self.cancel(&method.consumer_tag, true),
            Method::BasicGet(method) => self.get(&method),
            Method::ExchangeDeclare(method) => {
                self.vhost()?.declare_exchange(&method)?;
                self.reply(method.no_wait, &ExchangeDeclareOk {});
                Ok(())
            }
            Method::ExchangeDelete(method) => {
                self.vhost()?
                    .delete_exchange(&method.exchange, method.if_unused)?;
                self.reply(method.no_wait, &ExchangeDeleteOk {});
                Ok(())
            }
            Method::QueueDeclare(method) => self.declare_queue(&method),
            Method::QueueDelete(method) => self.delete_queue(&method),
            Method::QueuePurge(method) => {
                let (name, id) = (self.queue_name(&method.queue)?, self.id);
                let (_, queue) = self.vhost()?.queue_for(&name, id)?;
                let message_count = queue.purge() as u32;
                self.reply(method.no_wait, &QueuePurgeOk { message_count });
                Ok(())
            }
            Method::ChannelFlow(method) if method.active => {
                self.reply(false, &ChannelFlowOk { active: true });
                Ok(())
            }
            Method::ChannelFlow(_) => Err(Refusal::of_connection(
                ReplyCode::NOT_IMPLEMENTED,
                "active=false",
            )),
            Method::AccessRequest(_) => {
                self.reply(false, &AccessRequestOk { ticket: 1 });
                Ok(())
            }
            method => self.bind_or_select(method),
        }
    }

    fn bind_or_select(&mut self, method: Method<'_>) -> Result<(), Refusal> {
        let id = self.id;
        match method {
            Method::QueueBind(it) => {
                let queue = self.queue_name(&it.queue)?;
                let binding = of_queue(queue, &it.queue, &it.routing_key, it.arguments);
                self.vhost()?.bind(&it.exchange, binding, id)?;
                self.reply(it.no_wait, &QueueBindOk {});
            }
            Method::QueueUnbind(it) => {
                let queue = self.queue_name(&it.queue)?;
                let binding = of_queue(queue, &it.queue, &it.routing_key, it.arguments);
                self.vhost()?.unbind(&it.exchange, &binding)?;
                self.reply(false, &QueueUnbindOk {});
            }
            Method::ExchangeBind(it) => {
                let binding = of_exchange(it.destination, it.routing_key, it.arguments);
                self.vhost()?.bind(&it.source, binding, id)?;
                self.reply(it.no_wait, &ExchangeBindOk {});
            }
            Method::ExchangeUnbind(it) => {
                let binding = of_exchange(it.destination, it.routing_key, it.arguments);
                self.vhost()?.unbind(&it.source, &binding)?;
                self.reply(it.no_wait, &ExchangeUnbindOk {});
            }
            Method::ConfirmSelect(it) => {
                let mode = &mut self.channel()?.mode;
                match mode {
                    Mode::Transactions(_) => {
                        return Err(Refusal::failed("cannot switch from tx to confirm mode"));
                    }
                    Mode::Confirms(_) => {}
                    Mode::Plain => *mode = Mode::Confirms(Default::default()),
                }
                self.reply(it.no_wait, &ConfirmSelectOk {});
            }
            Method::TxSelect(_) => {
                let mode = &mut self.channel()?.mode;
                match mode {
                    Mode::Confirms(_) => {
                        return Err(Refusal::failed("cannot switch from confirm to tx mode"));
                    }
                    Mode::Transactions(_) => {}
                    Mode::Plain => *mode = Mode::Transactions(Vec::new()),
                }
                self.reply(false, &TxSelectOk {});
            }
            Method::TxCommit(_) => {
                let mut is_whole = true;
                for staged in self.take_staged()? {
                    is_whole &= self.commit(staged)? != Routed::Rejected;
                }
                if !is_whole {
                    return Err(Refusal::failed("partial tx completion"));
                }
                self.reply(false, &TxCommitOk {});
            }
            Method::TxRollback(_) => {
                let staged = self.take_staged()?;
                self.channel()?.roll_back(staged);
                self.reply(false, &TxRollbackOk {});
            }
            _ => {
                let text = "unimplemented method";
                return Err(Refusal::of_connection(ReplyCode::COMMAND_INVALID, text));
            }
        }
        Ok(())
    }

    // ---- queues ----

    fn declare_queue(&mut self, method: &QueueDeclare<'_>) -> Result<(), Refusal> {
        if method.queue.starts_with(REPLY_TO) {
            return self.declare_reply_to(method);
        }
        let (id, now) = (self.id, self.core.now);
        let queue = self.vhost()?.declare_queue(method, id, now)?;
        let name = queue.name.clone();
        let declared = QueueDeclareOk {
            queue: name.clone().into(),
            message_count: queue.ready() as u32,
            consumer_count: queue.subscribers().len() as u32,
        };
        self.channel()?.last_queue = Some(name);
        self.reply(method.no_wait, &declared);
        Ok(())
    }

    fn declare_reply_to(&mut self, method: &QueueDeclare<'_>) -> Result<(), Refusal> {
        let name = method.queue.as_ref();
        if name != REPLY_TO && !self.core.replies.contains_key(name) {
            return Err(Refusal::not_found("queue", name, &self.session.vhost));
        }
        self.channel()?.last_queue = Some(name.to_owned());
        let declared = QueueDeclareOk {
            queue: name.into(),
            message_count: 0,
            consumer_count: 1,
        };
        self.reply(method.no_wait, &declared);
        Ok(())
    }

    fn delete_queue(&mut self, method: &QueueDelete<'_>) -> Result<(), Refusal> {
        let (name, id) = (self.queue_name(&method.queue)?, self.id);
        let vhost = self.vhost()?;
        let count = vhost.delete_queue(&name, id, method.if_unused, method.if_empty)?;
        let message_count = count as u32;
        self.reply(method.no_wait, &QueueDeleteOk { message_count });
        Ok(())
    }

    // ---- consuming ----

    fn qos(&mut self, method: &BasicQos) -> Result<(), Refusal> {
        if method.prefetch_size != 0 {
            let text = format!("prefetch_size!=0 ({})", method.prefetch_size);
            return Err(Refusal::of_connection(ReplyCode::NOT_IMPLEMENTED, text));
        }
        let channel = self.channel()?;
        channel.shared_prefetch = 0;
        match method.global {
            true => channel.shared_prefetch = method.prefetch_count,
            false => channel.prefetch = method.prefetch_count,
        }
        self.consumers_changed()?;
        self.reply(false, &BasicQosOk {});
        Ok(())
    }

    /// Marks the queues of this channel's consumers: they may be able to deliver more messages.
    fn consumers_changed(&mut self) -> Result<(), Refusal> {
        let consumers = self.channel()?.consumers.values();
        let queues: Vec<_> = consumers.map(|it| it.queue).collect();
        let vhost = self.vhost()?;
        queues.into_iter().for_each(|it| vhost.changed(it));
        Ok(())
    }

    fn consume(&mut self, method: &BasicConsume<'_>) -> Result<(), Refusal> {
        let (id, number) = (self.id, self.number);
        let consumer_tag = match method.consumer_tag.as_ref() {
            "" => made_up("amq.ctag-"),
            tag => tag.to_owned(),
        };
        if self.channel()?.consumers.contains_key(&consumer_tag) {
            let text = format!("attempt to reuse consumer tag '{consumer_tag}'");
            return Err(Refusal::of_connection(ReplyCode::NOT_ALLOWED, text));
        }
        let name = self.queue_name(&method.queue)?;
        if name == REPLY_TO {
            return self.consume_replies(method, consumer_tag);
        }
        let vhost = self.vhost()?;
        let resource = queue_text(&name, &vhost.name);
        let (queue_id, queue) = vhost.queue_for(&name, id)?;
        let priority = super::arguments::consumer_priority(&method.arguments, &resource)?;
        let others = queue.subscribers();
        let is_in_use = others.iter().any(|it| it.exclusive)
            || (method.exclusive && (!others.is_empty() || queue.arguments.single_active));
        if is_in_use {
            return Err(Refusal::access(format!("{resource} in exclusive use")));
        }
        queue.subscribe(Subscriber {
            session: id,
            channel: number,
            consumer_tag: consumer_tag.clone(),
            priority,
            exclusive: method.exclusive,
        });
        vhost.changed(queue_id);
        let channel = self.channel()?;
        channel.subscribe(consumer_tag.clone(), queue_id, method.no_ack);
        let consumer_tag = consumer_tag.into();
        self.reply(method.no_wait, &BasicConsumeOk { consumer_tag });
        Ok(())
    }

    fn consume_replies(
        &mut self,
        method: &BasicConsume<'_>,
        consumer_tag: String,
    ) -> Result<(), Refusal> {
        if !method.no_ack {
            return Err(Refusal::failed("reply consumer cannot acknowledge"));
        }
        let channel = self.channel()?;
        if channel.reply_to.is_some() {
            return Err(Refusal::failed("reply consumer already set"));
        }
        let key = made_up(&format!("{REPLY_TO}."));
        channel.reply_to = Some((consumer_tag.clone(), key.clone()));
        self.core.replies.insert(key, (self.id, self.number));
        let consumer_tag = consumer_tag.into();
        self.reply(method.no_wait, &BasicConsumeOk { consumer_tag });
        Ok(())
    }

    fn cancel(&mut self, consumer_tag: &str, no_wait: bool) -> Result<(), Refusal> {
        let (id, number, now) = (self.id, self.number, self.core.now);
        let channel = self.channel()?;
        if let Some((_, key)) = channel.reply_to.take_if(|(tag, _)| tag == consumer_tag) {
            self.core.replies.remove(&key);
        } else if let Some(consumer) = channel.consumers.remove(consumer_tag) {
            let is_it = |it: &Subscriber| it.is(id, number, consumer_tag);
            self.vhost()?.unsubscribe(consumer.queue, is_it, now);
        }
        let consumer_tag = consumer_tag.into();
        self.reply(no_wait, &BasicCancelOk { consumer_tag });
        Ok(())
    }

    fn get(&mut self, method: &BasicGet<'_>) -> Result<(), Refusal> {
        let (name, id, now) = (self.queue_name(&method.queue)?, self.id, self.core.now);
        let vhost = self.vhost()?;
        let (queue_id, queue) = vhost.queue_for(&name, id)?;
        queue.used(now);
        vhost.bury_expired(queue_id, now, true);
        let Some(queue) = vhost.queue_mut(queue_id) else {
            return Ok(());
        };
        let Some(entry) = queue.pop() else {
            self.reply(false, &BasicGetEmpty::default());
            return Ok(());
        };
        queue.unacknowledged += usize::from(!method.no_ack);
        let message_count = queue.ready() as u32;
        let message = std::sync::Arc::clone(&entry.message);
        let properties = message.properties_after(entry.returns);
        let channel = self.channel()?;
        let found = BasicGetOk {
            delivery_tag: channel.next_delivery_tag(),
            redelivered: entry.redelivered,
            exchange: message.exchange.as_str().into(),
            routing_key: message.routing_key.as_str().into(),
            message_count,
        };
        if !method.no_ack {
            channel.deliver(Unacknowledged {
                queue: queue_id,
                entry: Some(entry),
                consumer: None,
            });
        }
        self.session
            .send_content(self.number, &found, &properties, &message.body);
        Ok(())
    }

    // ---- settling ----

    fn settle(&mut self, delivery_tag: u64, multiple: bool, how: How) -> Result<(), Refusal> {
        let channel = self.channel()?;
        let messages = channel.settle(delivery_tag, multiple)?;
        let settle = Settle { messages, how };
        match &mut channel.mode {
            Mode::Transactions(staged) => staged.push(Staged::Settle(settle)),
            _ => self.settle_now(settle)?,
        }
        Ok(())
    }

    pub(super) fn settle_now(&mut self, settle: Settle) -> Result<(), Refusal> {
        let now = self.core.now;
        let channel = self.channel()?;
        let revived = channel.settled(&settle.messages, settle.how);
        for number in revived {
            self.revived(number)?;
        }
        let channel = self.channel()?;
        // With a shared limit, other consumers may continue, too.
        if channel.shared_prefetch > 0 {
            self.consumers_changed()?;
        }
        if settle.how == How::Requeue {
            let vhost = self.session.vhost.clone();
            let messages = settle.messages.into_iter().map(|(_, it)| it);
            self.core.requeue(&vhost, messages.collect());
            return Ok(());
        }
        let vhost = self.vhost()?;
        for (_, message) in settle.messages {
            let Some(queue) = vhost.queue_mut(message.queue) else {
                continue;
            };
            let Some(entry) = message.entry else {
                continue;
            };
            queue.unacknowledged -= 1;
            vhost.changed(message.queue);
            if settle.how == How::Reject {
                let reason = super::message::Reason::Rejected;
                vhost.bury(message.queue, &entry, reason, now);
            }
        }
        Ok(())
    }

    /// Lets a consumer that had timed out get messages again.
    fn revived(&mut self, consumer: u64) -> Result<(), Refusal> {
        let (id, number) = (self.id, self.number);
        let mut consumers = self.channel()?.consumers.iter();
        let Some((consumer_tag, consumer)) = consumers.find(|(_, it)| it.number == consumer) else {
            return Ok(());
        };
        let (consumer_tag, queue) = (consumer_tag.clone(), consumer.queue);
        let vhost = self.vhost()?;
        if let Some(queue) = vhost.queue_mut(queue) {
            queue.stand_back(|it| it.is(id, number, &consumer_tag));
        }
        vhost.changed(queue);
        Ok(())
    }

    fn recover(&mut self, requeue: bool) -> Result<(), Refusal> {
        if !requeue {
            return Err(Refusal::of_connection(
                ReplyCode::NOT_IMPLEMENTED,
                "requeue=false",
            ));
        }
        let messages = self.channel()?.take_unacknowledged();
        let vhost = self.session.vhost.clone();
        self.core.requeue(&vhost, messages);
        self.consumers_changed()
    }

    // ---- transactions ----

    fn take_staged(&mut self) -> Result<Vec<Staged>, Refusal> {
        match &mut self.channel()?.mode {
            Mode::Transactions(staged) => Ok(std::mem::take(staged)),
            _ => Err(Refusal::failed("channel is not transactional")),
        }
    }

    fn commit(&mut self, staged: Staged) -> Result<Routed, Refusal> {
        match staged {
            Staged::Settle(settle) => self.settle_now(settle).map(|()| Routed::To(0)),
            Staged::Publish { message, mandatory } => self.publish_now(message, mandatory),
        }
    }
}

fn of_exchange(
    destination: ShortString<'_>,
    routing_key: ShortString<'_>,
    arguments: Table<'_>,
) -> Binding {
    Binding {
        destination: Destination::Exchange(destination.into_owned()),
        routing_key: routing_key.into_owned(),
        arguments: arguments.into_owned(),
    }
}

/// If neither queue nor routing key is given, both are the queue declared last.
fn of_queue(queue: String, given: &str, routing_key: &str, arguments: Table<'_>) -> Binding {
    let is_empty = given.is_empty() && routing_key.is_empty();
    let key = if is_empty { &queue } else { routing_key };
    Binding {
        routing_key: key.to_owned(),
        destination: Destination::Queue(queue),
        arguments: arguments.into_owned(),
    }
}

fn how(requeue: bool) -> How {
    match requeue {
        true => How::Requeue,
        false => How::Reject,
    }
}
