//! Publishing on a channel: from frames to queues, and the confirms and returns to the client.

use std::sync::Arc;

use super::arguments::{type_name, LONGEST};
use super::channel::{Incoming, Mode, Staged};
use super::connection::{not_finite, unexpected_frame};
use super::core::{confirm_all, Noted};
use super::message::Message;
use super::methods::{Asked, REPLY_TO};
use super::refusal::Refusal;
use super::vhost::Routed;
use crate::error::ReplyCode;
use crate::wire::frame::{ContentHeader, Frame, FrameKind};
use crate::wire::method::{BasicNack, BasicPublish, BasicReturn};
use crate::wire::properties::Properties;
use crate::wire::value::{FieldTable, FieldValue};

/// In bytes. This is RabbitMQ 4's default; older versions accept 128 MiB.
const MAX_MESSAGE_SIZE: usize = 16 << 20;

impl Asked<'_> {
    pub(super) fn publish_begins(&mut self, method: BasicPublish<'static>) -> Result<(), Refusal> {
        self.session.is_held = self.core.faults.blocked.is_some();
        let incoming = Incoming {
            method,
            header: None,
            body: Vec::new(),
        };
        self.channel()?.incoming = Some(incoming);
        Ok(())
    }

    /// Handles a content header or a body frame.
    pub(super) fn content(&mut self, frame: &Frame<'_>) -> Result<(), Refusal> {
        let channel = self.channel()?;
        let Some(incoming) = &mut channel.incoming else {
            return Err(unexpected_frame(
                "expected method frame, got non method frame instead",
            ));
        };
        match (frame.kind, &incoming.header) {
            (FrameKind::Header, None) => {
                let header = ContentHeader::decode(frame.payload);
                let header = header.map_err(|error| unexpected_frame(&error.to_string()))?;
                let properties = Properties::decode(header.properties);
                let properties =
                    properties.map_err(|error| unexpected_frame(&error.to_string()))?;
                let headers = properties.headers.as_ref();
                if headers.is_some_and(|headers| !headers.is_finite()) {
                    return Err(not_finite());
                }
                incoming.header = Some((properties, header.body_size));
            }
            (FrameKind::Body, Some(_)) => incoming.body.extend_from_slice(frame.payload),
            (FrameKind::Header, Some(_)) => {
                let text = "expected content body, got non content body frame instead";
                return Err(unexpected_frame(text));
            }
            _ => {
                let text =
                    "expected content header for class 60, got non content header frame instead";
                return Err(unexpected_frame(text));
            }
        }
        if incoming.body.len() > MAX_MESSAGE_SIZE {
            let size = incoming.body.len();
            let text = format!(
                "message size {size} is larger than configured max size {MAX_MESSAGE_SIZE}"
            );
            return Err(Refusal::failed(text));
        }
        match channel.incoming.take_if(|it| it.is_whole()) {
            Some(whole) => self.publish(whole),
            None => Ok(()),
        }
    }

    fn publish(&mut self, incoming: Incoming) -> Result<(), Refusal> {
        let Some((properties, _)) = incoming.header else {
            return Ok(());
        };
        let BasicPublish {
            exchange,
            routing_key,
            mandatory,
            immediate,
            ..
        } = incoming.method;
        if immediate {
            return Err(Refusal::of_connection(
                ReplyCode::NOT_IMPLEMENTED,
                "immediate=true",
            ));
        }
        self.vhost()?.assert_publishable(&exchange)?;
        let mut message = Message {
            exchange: exchange.into_owned(),
            routing_key: routing_key.into_owned(),
            hidden_keys: Vec::new(),
            properties,
            body: incoming.body,
        };
        self.assert_acceptable(&mut message)?;
        let message = Arc::new(message);
        let shall_refuse = self.core.faults.nacks > 0;
        match &mut self.channel()?.mode {
            Mode::Transactions(staged) => staged.push(Staged::Publish { message, mandatory }),
            Mode::Plain => drop(self.publish_now(message, mandatory)?),
            Mode::Confirms(_) if shall_refuse => {
                self.core.faults.nacks -= 1;
                self.refuse()?;
            }
            Mode::Confirms(_) => match self.publish_now(message, mandatory)? {
                Routed::Rejected => self.refuse()?,
                routed => {
                    self.count()?;
                    if mandatory && routed == Routed::To(0) {
                        confirm_all(self.session);
                    }
                }
            },
        }
        Ok(())
    }

    /// Returns the sequence number of a message in confirm mode. The broker confirms the message
    /// when it has handled all input.
    fn count(&mut self) -> Result<u64, Refusal> {
        let Mode::Confirms(confirms) = &mut self.channel()?.mode else {
            return Ok(0);
        };
        confirms.published += 1;
        Ok(confirms.published)
    }

    fn refuse(&mut self) -> Result<(), Refusal> {
        confirm_all(self.session);
        let delivery_tag = self.count()?;
        if let Mode::Confirms(confirms) = &mut self.channel()?.mode {
            confirms.answered = delivery_tag;
        }
        let nack = BasicNack {
            delivery_tag,
            multiple: false,
            requeue: true,
        };
        self.session.send(self.number, &nack);
        Ok(())
    }

    /// Checks the properties as RabbitMQ does. Puts the routing key of direct replies into
    /// `reply_to`, and takes out the header BCC.
    fn assert_acceptable(&mut self, message: &mut Message) -> Result<(), Refusal> {
        let properties = &mut message.properties;
        if properties
            .reply_to
            .as_ref()
            .is_some_and(|it| it == REPLY_TO)
        {
            let reply_key = self.channel()?.reply_to.clone().map(|(_, key)| key);
            let gone = || Refusal::failed("fast reply consumer does not exist");
            properties.reply_to = Some(reply_key.ok_or_else(gone)?.into());
        }
        let user = &self.session.user;
        if let Some(other) = properties.user_id.as_ref().filter(|it| *it != user) {
            let text =
                format!("user_id property set to '{other}' but authenticated user was '{user}'");
            return Err(Refusal::failed(text));
        }
        if let Some(expiration) = &properties.expiration {
            assert_expiration(&expiration.to_string())?;
        }
        if let Some(mode) = properties.delivery_mode.filter(|it| !(1..=2).contains(it)) {
            let text = format!("invalid message: {{delivery_mode_unknown,{mode}}}");
            return Err(Refusal::failed(text));
        }
        let Some(headers) = &mut properties.headers else {
            return Ok(());
        };
        keys_in("CC", headers)?;
        message.hidden_keys = keys_in("BCC", headers)?;
        headers.remove("BCC");
        Ok(())
    }

    /// Routes a message to its queues, or returns it to the client.
    pub(super) fn publish_now(
        &mut self,
        message: Arc<Message>,
        mandatory: bool,
    ) -> Result<Routed, Refusal> {
        let now = self.core.now;
        let is_reply = message.exchange.is_empty() && message.routing_key.starts_with(REPLY_TO);
        let routed = if is_reply {
            self.core.deliver_reply(self.session, &message);
            Routed::To(0)
        } else {
            self.vhost()?.publish(Arc::clone(&message), now)
        };
        let queues = match routed {
            Routed::To(count) => count,
            Routed::Rejected => 0,
        };
        let vhost = Arc::clone(&self.vhost()?.name);
        self.core.note(Noted {
            vhost,
            message: Arc::clone(&message),
            queues,
        });
        if mandatory && routed == Routed::To(0) {
            let method = BasicReturn {
                reply_code: ReplyCode::NO_ROUTE.0,
                reply_text: "NO_ROUTE".into(),
                exchange: message.exchange.as_str().into(),
                routing_key: message.routing_key.as_str().into(),
            };
            // Confirm the earlier messages first, so that the client knows which message came back.
            confirm_all(self.session);
            let (properties, body) = (&message.properties, &message.body);
            self.session
                .send_content(self.number, &method, properties, body);
        }
        Ok(routed)
    }
}

/// Reads additional routing keys from a header.
fn keys_in(name: &str, headers: &FieldTable) -> Result<Vec<String>, Refusal> {
    let keys = match headers.get(name) {
        None => &[][..],
        Some(FieldValue::Array(keys)) => keys,
        Some(other) => {
            let kind = type_name(other);
            let text =
                format!("invalid message: {{unacceptable_type_in_header,\"{name}\",{kind}}}");
            return Err(Refusal::failed(text));
        }
    };
    let texts = keys.iter().filter_map(FieldValue::as_str);
    Ok(texts.map(str::to_owned).collect())
}

/// Checks that a text is a valid number of milliseconds.
fn assert_expiration(text: &str) -> Result<(), Refusal> {
    let invalid = |why: String| {
        Err(Refusal::failed(format!(
            "invalid expiration '{text}': {why}"
        )))
    };
    let sign = text.len() - text.trim_start_matches(['+', '-']).len();
    let digits = text
        .chars()
        .skip(sign)
        .take_while(char::is_ascii_digit)
        .count();
    let (number, rest) = text.split_at(sign + digits);
    match number.parse::<i128>() {
        Err(_) => invalid("no_integer".to_owned()),
        Ok(_) if !rest.is_empty() => invalid(format!("{{leftover_string,\"{rest}\"}}")),
        Ok(number) if number < 0 => invalid(format!("{{value_negative,{number}}}")),
        Ok(number) if number > LONGEST.into() => invalid(format!("{{value_too_large,{number}}}")),
        Ok(_) => Ok(()),
    }
}
