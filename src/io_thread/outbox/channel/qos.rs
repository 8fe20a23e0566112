//! The prefetch that the program set on a channel.

use crate::wire::method::BasicQos;

#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Qos {
    /// For each new consumer.
    pub(crate) each: Option<BasicQos>,
    /// For the whole channel. The program set this after `each`.
    pub(crate) global: Option<BasicQos>,
}

impl Qos {
    pub(super) fn set(&mut self, qos: BasicQos) {
        if qos.global {
            self.global = Some(qos);
        } else {
            // RabbitMQ then drops the limit of the whole channel.
            *self = Self {
                each: Some(qos),
                global: None,
            };
        }
    }

    /// What to send on a new channel. The order matters: a broker without a limit for the whole
    /// channel applies the last value to each consumer.
    pub(crate) fn methods(&self) -> impl Iterator<Item = &BasicQos> {
        [&self.each, &self.global].into_iter().flatten()
    }
}
