//! Declaring, binding and deleting exchanges.

use std::borrow::Cow;

use super::Channel;
use crate::error::Result;
use crate::exchange::{Exchange, ExchangeKind};
use crate::options::{BindOptions, ExchangeDeclareOptions, ExchangeDeleteOptions};
use crate::wire::method::{ExchangeBind, ExchangeDeclare, ExchangeDelete, ExchangeUnbind};

impl Channel {
    /// Declares an exchange: makes it, or checks that it is as described.
    ///
    /// ```no_run
    /// use leveret::{Connection, ExchangeDeclareOptions, ExchangeKind};
    ///
    /// let channel = Connection::open_default()?.open_channel()?;
    /// let logs = channel.exchange_declare("logs", ExchangeKind::Fanout, ExchangeDeclareOptions::durable())?;
    /// logs.publish("", "to everyone")?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// 406 if it exists otherwise, 404 if asked for passively and missing, 403 without permission. For a kind that the
    /// broker does not know 406; before RabbitMQ 4.0 503, which closes the connection.
    pub fn exchange_declare(
        &self,
        name: &str,
        kind: ExchangeKind,
        options: ExchangeDeclareOptions,
    ) -> Result<Exchange> {
        let declare = ExchangeDeclare {
            ticket: 0,
            exchange: name.into(),
            kind: kind.as_str().into(),
            passive: options.passive,
            durable: options.durable,
            auto_delete: options.auto_delete,
            internal: options.internal,
            no_wait: options.no_wait,
            arguments: Cow::Borrowed(&options.arguments),
        };
        self.call_recorded(options.no_wait, name, || declare)?;
        Ok(self.exchange(name))
    }

    /// A handle of an exchange that exists, without asking the broker. The default exchange has the name `""`.
    pub fn exchange(&self, name: &str) -> Exchange {
        Exchange::new(self.clone(), name)
    }

    /// Deletes an exchange. It is no error if there is none.
    ///
    /// # Errors
    /// 406 if asked for only if unused, and it is used; 403 for the predeclared ones.
    pub fn exchange_delete(&self, name: &str, options: ExchangeDeleteOptions) -> Result<()> {
        let delete = ExchangeDelete {
            ticket: 0,
            exchange: name.into(),
            if_unused: options.if_unused,
            no_wait: options.no_wait,
        };
        self.call_recorded(options.no_wait, name, || delete)?;
        Ok(())
    }

    /// Binds one exchange to another: what is published to `source` with that routing key goes to `destination` too.
    /// An extension of RabbitMQ.
    ///
    /// # Errors
    /// 404 if one of them is missing.
    ///
    /// See <https://www.rabbitmq.com/docs/e2e>.
    pub fn exchange_bind(
        &self,
        destination: &str,
        source: &str,
        routing_key: &str,
        options: BindOptions,
    ) -> Result<()> {
        let bind = ExchangeBind {
            ticket: 0,
            destination: destination.into(),
            source: source.into(),
            routing_key: routing_key.into(),
            no_wait: options.no_wait,
            arguments: Cow::Borrowed(&options.arguments),
        };
        self.call_recorded(options.no_wait, destination, || bind)?;
        Ok(())
    }

    /// Undoes [`exchange_bind`](Self::exchange_bind) with the same routing key and arguments.
    pub fn exchange_unbind(
        &self,
        destination: &str,
        source: &str,
        routing_key: &str,
        options: BindOptions,
    ) -> Result<()> {
        let unbind = ExchangeUnbind {
            ticket: 0,
            destination: destination.into(),
            source: source.into(),
            routing_key: routing_key.into(),
            no_wait: options.no_wait,
            arguments: Cow::Borrowed(&options.arguments),
        };
        self.call_recorded(options.no_wait, destination, || unbind)?;
        Ok(())
    }
}
