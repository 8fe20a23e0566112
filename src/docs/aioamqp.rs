//! A guide for porting programs from Python's aioamqp.
//!
//! # What differs
//!
//! - **Calls block.** Each call returns the broker's reply, as `await` does. There is no event
//!   loop: to do several things at once, use threads. Threads can share handles such as
//!   [`Connection`] and [`Channel`].
//! - **The IO thread sends heartbeats.** The connection survives a handler that takes an hour.
//! - **Calls have timeouts.** The default is 30 seconds:
//!   [`request_timeout`](ConnectionOptions::request_timeout).
//! - **Errors are values.** A call returns [`Error`] instead of raising an exception.
//!   [`Error::kind`] replaces the exception's class.
//! - **A consumer is an iterator.** [`Consumer`] yields messages, and the error that ends it.
//!   [`Workers`] call a function for each message.
//! - **Lost connections recover.** See [`docs::recovery`](super::recovery).
//!
//! Some names and defaults differ in meaning:
//!
//! - [`Channel::queue`] and [`Channel::exchange`] return a handle without asking the broker. In
//!   aioamqp they are aliases of `queue_declare` and `exchange_declare`.
//! - [`QueueDeclareOptions::default`] and [`ExchangeDeclareOptions::default`] are durable. Use
//!   [`durable(false)`](QueueDeclareOptions::durable) for a queue that is not.
//! - [`NackOptions::requeue`] and [`NackOptions::discard`] say what happens to a nacked message.
//! - A URI is percent-decoded. `amqp://host` and `amqp://host/%2f` name the virtual host `/`, and
//!   `amqp://host/` names the virtual host with the empty name.
//! - [`ConnectionOptions::heartbeat`], [`channel_max`](ConnectionOptions::channel_max) and
//!   [`frame_max`](ConnectionOptions::frame_max) are limits: the lower value of the two sides
//!   applies. In aioamqp, the program's value replaces the broker's. In both, zero turns heartbeats
//!   off.
//!
//! # Side by side
//!
//! A program that publishes a message with a confirm, then consumes. In Python:
//!
//! ```python
//! import asyncio
//! import aioamqp
//!
//! async def handle(channel, body, envelope, properties):
//!     print(envelope.routing_key, body)
//!     await channel.basic_client_ack(envelope.delivery_tag)
//!
//! async def main():
//!     transport, protocol = await aioamqp.connect("rabbit-1", login="me", password="secret")
//!     channel = await protocol.channel()
//!     await channel.queue_declare("tasks", durable=True)
//!     await channel.confirm_select()
//!     await channel.publish(b"work", "", "tasks")
//!     await channel.basic_qos(prefetch_count=10)
//!     await channel.basic_consume(handle, "tasks")
//!     await protocol.wait_closed()
//!
//! asyncio.run(main())
//! ```
//!
//! In Rust:
//!
//! ```no_run
//! use leveret::{Connection, ConnectionOptions, QueueDeclareOptions, Result};
//!
//! fn main() -> Result<()> {
//!     let options = ConnectionOptions::default().host("rabbit-1");
//!     let options = options.username("me").password("secret");
//!     let connection = Connection::open_with(&options)?;
//!     let channel = connection.open_channel()?;
//!     let queue = channel.queue_declare("tasks", QueueDeclareOptions::default())?;
//!     channel.publisher()?.publish("", "tasks", b"work")?.wait()?;
//!     channel.basic_qos(10)?;
//!     for delivery in queue.consume()? {
//!         let delivery = delivery?;
//!         println!("{} {:?}", delivery.routing_key(), delivery.body());
//!         delivery.ack()?;
//!     }
//!     Ok(())
//! }
//! ```
//!
//! To keep the callback, use [`Workers`]:
//!
//! ```no_run
//! use leveret::{Connection, Settlement, WorkerOptions, Workers};
//!
//! let workers = Workers::new(&Connection::open_default()?);
//! workers.consume_with("tasks", WorkerOptions::default().prefetch(10), |delivery| {
//!     println!("{} {:?}", delivery.routing_key(), delivery.body());
//!     Settlement::Ack
//! })?;
//! workers.join()?;
//! # Ok::<(), leveret::Error>(())
//! ```
//!
//! # Connecting
//!
//! | aioamqp | here |
//! | --- | --- |
//! | `connect` | [`Connection::open_with`], [`Connection::open_default`] |
//! | `from_url` | [`Connection::open`], [`ConnectionOptions::from_uri`] |
//! | `host`, `port` | [`ConnectionOptions::host`], [`port`](ConnectionOptions::port) |
//! | `login` | [`ConnectionOptions::username`] |
//! | `password` | [`ConnectionOptions::password`] |
//! | `virtualhost` | [`ConnectionOptions::vhost`] |
//! | `login_method` | [`ConnectionOptions::login_method`], [`LoginMethod`] |
//! | `ssl`, `amqps` | [`ConnectionOptions::tls`], [`TlsOptions`] |
//! | `verify_ssl` | [`TlsOptions::danger_accept_invalid_certs`] |
//! | `insist` | none: AMQP 0-9-1 has no such field |
//! | `loop` | none |
//! | `protocol_factory` | none: a program does not subclass the connection |
//! | `channel_max` | [`ConnectionOptions::channel_max`] |
//! | `frame_max` | [`ConnectionOptions::frame_max`] |
//! | `heartbeat` | [`ConnectionOptions::heartbeat`] |
//! | `client_properties` | [`ConnectionOptions::client_properties`] |
//! | `on_error` | [`Connection::events`]; each call, iterator and receiver gets the error |
//!
//! # `AmqpProtocol` is [`Connection`]
//!
//! | aioamqp | here |
//! | --- | --- |
//! | `channel()` | [`Connection::open_channel`] |
//! | `channel(return_callback=…)` | [`Channel::returned_messages`] |
//! | `close()` | [`Connection::close`] |
//! | `close(timeout=…)` | [`Connection::close_timeout`] |
//! | `close(no_wait=True)` | none: closing waits up to its timeout |
//! | `wait_closed(timeout)` | [`Connection::wait_closed`] |
//! | `ensure_open()` | [`Connection::is_open`]; each call fails if the connection has ended |
//! | `state` | [`Connection::is_open`], [`Connection::close_cause`] |
//! | `connection_closed` (event) | [`Connection::wait_closed`], [`ConnectionEvent::Closed`] |
//! | `send_heartbeat()`, `heartbeat()` | none: the IO thread sends heartbeats |
//! | `server_properties` | [`Connection::server_properties`] |
//! | `server_mechanisms` | [`Connection::server_mechanisms`] |
//! | `server_locales` | [`Connection::server_locales`] |
//! | `server_heartbeat` | [`Connection::server_heartbeat`]; agreed: [`Connection::heartbeat`] |
//! | `server_channel_max` | agreed: [`Connection::channel_max`] |
//! | `server_frame_max` | agreed: [`Connection::frame_max`] |
//! | `version_major`, `version_minor` | 0 and 9; else [`ErrorKind::ProtocolVersionMismatch`] |
//! | `channels_ids_count` | [`ConnectionStats::channels`] |
//! | `channels` | none: the program keeps its [`Channel`]s |
//! | `CHANNEL_FACTORY` | none |
//! | `connection_lost(exc)` | [`ConnectionEvent::Lost`], [`ConnectionEvent::Closed`] |
//! | `start_connection`, `run`, `get_frame`, `dispatch_frame` | none: internal |
//! | `start`, `start_ok`, `tune`, `tune_ok`, `secure_ok` | none: internal; [`SaslMechanism`] |
//! | `open`, `open_ok`, `close_ok`, `server_close` | none: internal |
//!
//! # `Channel` is [`Channel`]
//!
//! | aioamqp | here |
//! | --- | --- |
//! | `open()` | [`Connection::open_channel`]; after an error [`Channel::reopen`] |
//! | `close()` | [`Channel::close`] |
//! | `close(reply_code, reply_text)` | [`Channel::close_with`] |
//! | `is_open` | [`Channel::is_open`], [`Channel::close_cause`] |
//! | `close_event` | [`Channel::wait_closed`], [`ConnectionEvent::ChannelClosed`] |
//! | `connection_closed(…)` | none: each waiting call gets the error |
//! | `channel_id` | [`Channel::number`] |
//! | `flow(active)` | [`Channel::channel_flow`] |
//! | `return_callback` | [`Channel::returned_messages`], [`ErrorKind::Returned`] |
//! | `add_cancellation_callback` | the [`Consumer`] yields [`ErrorKind::ConsumerCancelled`] |
//! | `cancelled_consumers` | [`Consumer::has_ended`] |
//! | `last_consumer_tag` | [`Consumer::consumer_tag`] |
//! | `publisher_confirms` | [`Channel::basic_publish`] returns a sequence number |
//!
//! ## Exchanges
//!
//! | aioamqp | here |
//! | --- | --- |
//! | `exchange_declare`, `exchange` | [`Channel::exchange_declare`] |
//! | `type_name` | [`ExchangeKind`] |
//! | `passive` | [`Channel::exchange_declare_passive`]; also [`Connection::exchange_exists`] |
//! | `durable` | [`ExchangeDeclareOptions::durable`] |
//! | `auto_delete` | [`ExchangeDeclareOptions::auto_delete`] |
//! | `no_wait` | [`Channel::exchange_declare_no_wait`], and so on |
//! | `arguments` | [`ExchangeDeclareOptions::argument`] and typed setters |
//! | `exchange_delete` | [`Channel::exchange_delete`], [`Exchange::delete`] |
//! | `if_unused` | [`ExchangeDeleteOptions::if_unused`] |
//! | `exchange_bind` | [`Channel::exchange_bind`], [`Exchange::bind`] |
//! | `exchange_unbind` | [`Channel::exchange_unbind`], [`Exchange::unbind`] |
//!
//! ## Queues
//!
//! | aioamqp | here |
//! | --- | --- |
//! | `queue_declare`, `queue` | [`Channel::queue_declare`] |
//! | an empty `queue_name` | the broker chooses a name: [`Queue::name`] |
//! | `passive` | [`Channel::queue_declare_passive`]; also [`Connection::queue_exists`] |
//! | `durable` | [`QueueDeclareOptions::durable`] |
//! | `exclusive` | [`QueueDeclareOptions::exclusive`] |
//! | `auto_delete` | [`QueueDeclareOptions::auto_delete`] |
//! | `no_wait` | [`Channel::queue_declare_no_wait`], and so on |
//! | `arguments` | [`QueueDeclareOptions::argument`] and typed setters |
//! | `['queue']` | [`Queue::name`] |
//! | `['message_count']` | [`Queue::message_count`] |
//! | `['consumer_count']` | [`Queue::consumer_count`] |
//! | `queue_delete` | [`Channel::queue_delete`], [`Queue::delete`] |
//! | `if_unused`, `if_empty` | [`QueueDeleteOptions`] |
//! | `queue_bind` | [`Channel::queue_bind`], [`Queue::bind`] |
//! | `queue_bind(arguments=…)` | a [`FieldTable`] |
//! | `queue_unbind` | [`Channel::queue_unbind`], [`Queue::unbind`] |
//! | `queue_purge` | [`Channel::queue_purge`], [`Queue::purge`] |
//! | `queue_purge(no_wait=True)` | [`Channel::queue_purge_no_wait`] |
//!
//! ## Publishing
//!
//! | aioamqp | here |
//! | --- | --- |
//! | `basic_publish` | [`Channel::basic_publish`], [`Queue::publish`], [`Exchange::publish`] |
//! | `payload`, `properties` | [`Message`]; text and bytes convert into one |
//! | `mandatory`, `immediate` | [`Message::mandatory`], [`Message::immediate`] |
//! | `publish` | [`Publisher::publish`], then [`Confirm::wait`] |
//! | `confirm_select` | [`Channel::confirm_select`]; [`Channel::publisher`] calls it |
//! | `confirm_select(no_wait=True)` | [`Channel::confirm_select_no_wait`] |
//!
//! After [`Channel::confirm_select`], [`Channel::wait_for_confirms`] waits for all messages, and
//! [`Channel::confirmations`] reports each of the broker's confirms and nacks.
//!
//! ## Consuming
//!
//! | aioamqp | here |
//! | --- | --- |
//! | `basic_qos` | [`Channel::basic_qos`] |
//! | `prefetch_size`, `connection_global` | [`Channel::basic_qos_with`], [`QosOptions`] |
//! | `basic_consume` | [`Channel::basic_consume`], [`Queue::consume`] |
//! | `callback` | [`Consumer`] is an iterator; [`Workers`] take a function |
//! | `consumer_tag` | [`ConsumeOptions::consumer_tag`] |
//! | `no_local`, `no_ack` | [`ConsumeOptions::no_local`], [`no_ack`](ConsumeOptions::no_ack) |
//! | `exclusive` | [`ConsumeOptions::exclusive`] |
//! | `no_wait` | [`Channel::basic_consume_no_wait`] |
//! | `arguments` | [`ConsumeOptions::argument`] and typed setters |
//! | `['consumer_tag']` | [`Consumer::consumer_tag`] |
//! | `basic_cancel` | [`Consumer::cancel`], [`Channel::basic_cancel`] |
//! | `basic_cancel(no_wait=True)` | [`Channel::basic_cancel_no_wait`] |
//! | `basic_get` | [`Channel::basic_get`], [`Queue::get`] |
//! | `basic_client_ack` | [`Delivery::ack`], [`Channel::basic_ack`] |
//! | `basic_client_ack(…, True)` | [`Delivery::ack_multiple`], [`Channel::basic_ack_multiple`] |
//! | `basic_client_nack` | [`Delivery::nack`], [`Channel::basic_nack`] |
//! | `basic_reject` | [`Delivery::reject`], [`Channel::basic_reject`] |
//! | `basic_recover` | [`Channel::basic_recover`] |
//! | `basic_recover_async` | [`Channel::basic_recover_async`] |
//!
//! # Values
//!
//! | aioamqp | here |
//! | --- | --- |
//! | `Envelope` | [`Delivery`] |
//! | `consumer_tag`, `delivery_tag` | [`Delivery::consumer_tag`], [`Delivery::delivery_tag`] |
//! | `exchange_name`, `routing_key` | [`Delivery::exchange`], [`Delivery::routing_key`] |
//! | `is_redeliver` | [`Delivery::redelivered`] |
//! | `body`, `properties` | [`Delivery::body`], [`Delivery::properties`] |
//! | the result of `basic_get` | [`Delivery`] |
//! | `['message_count']` | [`Delivery::message_count`] |
//! | `ReturnEnvelope` | [`ReturnedMessage`] |
//! | `reply_code` | [`ReturnedMessage::reply_code`] |
//! | `reply_text` | [`ReturnedMessage::reply_text`] |
//! | `exchange_name` | [`ReturnedMessage::exchange`] |
//! | `routing_key` | [`ReturnedMessage::routing_key`] |
//! | `Properties` | [`Properties`], with the same field names |
//! | `timestamp` | [`Properties::timestamp`] in seconds, [`Properties::sent_at`] |
//! | `constants` | [`ReplyCode`]; the rest is internal |
//!
//! # Exceptions
//!
//! | aioamqp | here |
//! | --- | --- |
//! | `AioamqpException` | [`Error`] |
//! | `AmqpClosedConnection` | [`ErrorKind::ConnectionClosed`], [`Error::is_connection_end`] |
//! | `ChannelClosed` | [`ErrorKind::ChannelClosed`] |
//! | `ChannelClosed.code`, `.message` | [`Error::reply_code`], [`Error::close_reason`] |
//! | `EmptyQueue` | [`Channel::basic_get`] returns `None` |
//! | `NoChannelAvailable` | [`ErrorKind::ChannelsExhausted`] |
//! | `PublishFailed(delivery_tag)` | [`ErrorKind::Nacked`] |
//! | `SynchronizationError` | none: any number of calls can wait at the same time |
//! | `DuplicateConsumerTag` | [`ErrorKind::InvalidArgument`], before anything is sent |
//! | `ConsumerCancelled` | [`ErrorKind::ConsumerCancelled`] |
//! | `TimeoutError` | [`ErrorKind::TimedOut`], [`Error::is_timeout`] |
//! | `ValueError` | [`ErrorKind::InvalidUri`], [`ErrorKind::InvalidArgument`] |
//!
//! # Examples
//!
//! | aioamqp | here |
//! | --- | --- |
//! | send, receive | `tutorial_1_send`, `tutorial_1_receive` |
//! | new_task, worker | `tutorial_2_new_task`, `tutorial_2_worker` |
//! | emit_log, receive_log | `tutorial_3_emit_log`, `tutorial_3_receive_logs` |
//! | … with a direct exchange | `tutorial_4_emit_log_direct`, `tutorial_4_receive_logs_direct` |
//! | … with a topic exchange | `tutorial_5_emit_log_topic`, `tutorial_5_receive_logs_topic` |
//! | rpc_client, rpc_server | `tutorial_6_rpc_client`, `tutorial_6_rpc_server` |
//! | send_with_return | `send_with_return` |

#[cfg(doc)]
use crate::{
    Channel, Confirm, Connection, ConnectionEvent, ConnectionOptions, ConnectionStats,
    ConsumeOptions, Consumer, Delivery, Error, ErrorKind, Exchange, ExchangeDeclareOptions,
    ExchangeDeleteOptions, ExchangeKind, FieldTable, LoginMethod, Message, NackOptions, Properties,
    Publisher, QosOptions, Queue, QueueDeclareOptions, QueueDeleteOptions, ReplyCode,
    ReturnedMessage, SaslMechanism, TlsOptions, Workers,
};
