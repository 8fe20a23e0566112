//! The output of the core: bytes to send, and events for the driver.

use std::collections::VecDeque;

use super::buffers::Buffers;
use super::event::{Delivered, Event, Mailboxes, Published};
use crate::error::Error;
use crate::log_line::{log_line, Label};
use crate::wire::codec::WireResult;
use crate::wire::frame;
use crate::wire::method::{Encode, Method};

pub(super) struct Effects<M: Mailboxes> {
    pub(super) output: Vec<u8>,
    pub(super) events: VecDeque<Event<M>>,
    /// The messages of the [`Event::Deliveries`] in `events`, in the same order.
    pub(super) messages: Vec<Delivered>,
    /// For the contents of messages.
    pub(super) buffers: Buffers,
    /// The largest payload of a frame.
    pub(super) payload_limit: usize,
    /// Names the connection in the log.
    pub(super) label: Label,
}

impl<M: Mailboxes> Effects<M> {
    /// Begins with the protocol header.
    pub(super) fn new(payload_limit: usize, label: Label) -> Self {
        Self {
            output: frame::PROTOCOL_HEADER.to_vec(),
            events: VecDeque::new(),
            messages: Vec::new(),
            buffers: Buffers::default(),
            payload_limit,
            label,
        }
    }

    pub(super) fn event(&mut self, event: Event<M>) {
        self.events.push_back(event);
    }

    #[inline]
    pub(super) fn deliver(&mut self, consumer: &M::Consumer, message: Delivered) {
        self.messages.push(message);
        if let Some(Event::Deliveries {
            consumer: last,
            count,
        }) = self.events.back_mut()
        {
            if M::is_same(last, consumer) {
                *count += 1;
                return;
            }
        }
        self.event(Event::Deliveries {
            consumer: consumer.clone(),
            count: 1,
        });
    }

    pub(super) fn reply(
        &mut self,
        channel: Option<M::Channel>,
        last_tag: u64,
        call: Option<M::Call>,
        reply: Method<'_>,
    ) {
        if let Some(call) = call {
            let reply = Box::new(reply.into_owned());
            self.event(Event::Reply {
                channel,
                last_tag,
                call,
                reply,
            });
        }
    }

    pub(super) fn fail(&mut self, call: Option<M::Call>, error: &Error) {
        if let Some(call) = call {
            let error = error.clone();
            self.event(Event::Failed { call, error });
        }
    }

    pub(super) fn shrink(&mut self) {
        self.output.shrink_to_fit();
        self.events.shrink_to_fit();
        self.messages.shrink_to_fit();
        self.buffers = Buffers::default();
    }

    /// Reports that a published message will get no confirm.
    pub(super) fn lose(&mut self, published: Published<M>, cause: Error, may_have_been_sent: bool) {
        self.event(Event::Lost {
            published,
            cause,
            may_have_been_sent,
        });
    }

    /// Sends one of the core's own methods. They are small enough for any frame.
    pub(super) fn send(&mut self, channel: u16, method: &impl Encode) {
        let sent = self.try_send(channel, method);
        debug_assert!(sent.is_ok(), "{sent:?}");
    }

    pub(super) fn try_send<E: Encode>(&mut self, channel: u16, method: &E) -> WireResult<()> {
        log_line!(Trace, self.label, "channel {channel} → {}", E::ID);
        frame::write_method(&mut self.output, channel, method, self.payload_limit)
    }
}
