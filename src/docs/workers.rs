//! How to write a worker process: threads, failures, retries, shutdown, health.
//!
//! [`Workers`] consume from queues in their own threads and call your handler for each message.
//! This page follows a message through them, and says which option to set for what. In the
//! repository, the example `orders` is a whole application with tests, and `comparison` is one
//! worker in Rust, Python (pika) and Ruby (bunny), side by side.
//!
//! ```no_run
//! use leveret::{Connection, Delivery, QueueDeclareOptions, Retry, WorkerOptions, Workers};
//! use std::time::Duration;
//!
//! # struct Database; impl Database { fn connect() -> std::io::Result<Self> { Ok(Self) }
//! # fn add(&mut self, _: &[u8]) -> std::io::Result<()> { Ok(()) } }
//! fn main() -> leveret::Result<()> {
//!     let connection = Connection::open_default()?;
//!     let channel = connection.open_channel()?;
//!     channel.queue_declare("orders", QueueDeclareOptions::quorum())?;
//!
//!     let workers = Workers::new(&connection);
//!     let retry = Retry::after([1, 10, 60].map(Duration::from_secs));
//!     let options = WorkerOptions::default().threads(4).prefetch(10).retry(retry);
//!     workers.consume_per_thread("orders", options, || {
//!         let mut database = Database::connect()?; // one for each thread
//!         Ok::<_, std::io::Error>(move |order: &Delivery| database.add(order.body()))
//!     })?;
//!     workers.join()
//! }
//! ```
//!
//! # Handlers
//!
//! A handler gets a [`Delivery`]. What it returns decides what happens to the message:
//!
//! | returned | the message |
//! | --- | --- |
//! | `()`, [`Settlement::Ack`] | is acknowledged |
//! | [`Settlement::Reject`] | is dead-lettered, or dropped if its queue has no dead-letter exchange |
//! | [`Settlement::Requeue`] | goes back to its queue and comes again at once |
//! | [`Settlement::Retry`] | comes again later, see [below](#retries) |
//! | `Err(…)`, a panic | what [`on_error`] and [`on_panic`] say |
//!
//! So a handler can use `?` for any error. An error is logged once, at `error`, with its sources,
//! the queue, and the message's ids. Without [`retry`], a message that fails is requeued once, then
//! rejected: give the queue a dead-letter exchange, or such messages are dropped.
//!
//! Which method to call:
//!
//! - [`consume`] and [`consume_with`]: all threads share one handler.
//! - [`consume_per_thread`]: each thread makes its own handler, with a database client, a buffer,
//!   or other state. The handler is `FnMut` and never leaves its thread. After a panic, the thread
//!   makes a new one.
//! - [`consume_batches`] and [`consume_batches_per_thread`]: a handler gets many messages at once
//!   and settles all of them, or each one separately.
//!
//! # At least once
//!
//! The broker redelivers a message until it has an acknowledgement. So a handler can see a message
//! twice: if the connection is lost after the handler has returned and before the broker has read
//! the acknowledgement, or if the process ends. Such a message has
//! [`redelivered`](crate::Delivery::redelivered) set. Make handlers idempotent, for example with a
//! unique [`message_id`](crate::Delivery::message_id) in the database.
//!
//! # Retries
//!
//! With [`retry`], nothing is lost, messages can be handled twice, and their order is not kept. A
//! failed message waits in a retry queue, and comes back after its delay. When all attempts have
//! failed, it is parked in a queue of its own, for a person or a program to look at. [`Retry`]
//! describes the queues and headers.
//!
//! - The handler sees the exchange and the routing key of the first message, and
//!   [`attempts`](crate::Delivery::attempts).
//! - The delay belongs to the queue, not to the message: a message with a long delay never holds up
//!   one with a short delay.
//! - A message goes to the next queue as a copy. The original is acknowledged after the broker has
//!   confirmed the copy. A connection that is lost between the two leaves both: a duplicate without
//!   the mark of a redelivery.
//! - While a copy cannot be published, its thread keeps the original and handles nothing.
//!   [`status`] shows that ([`blocked`](crate::QueueWorkers::blocked)).
//! - The user needs the permissions "configure" and "write" for the queues, and "write" for the
//!   default exchange (`amq.default`). Without "configure", let an operator declare the queues, and
//!   use [`Retry::declare(false)`](crate::Retry::declare).
//! - [`unpark`] moves parked messages back, for example after a repair.
//!
//! On RabbitMQ 4.3, a quorum queue can delay its messages itself: [`Retry::by_broker`].
//!
//! A message that ends its process (out of memory, a stack overflow) never fails in a handler. Use
//! a quorum queue: its [`delivery_limit`](crate::QueueDeclareOptions::delivery_limit) ends such a
//! message.
//!
//! # When everything fails
//!
//! If a database is down, each message fails, and retries only move them around.
//! [`circuit_breaker`] pauses the queue after some failures in a row, and tries again after a
//! delay. [`pause`] and [`resume`] do the same by hand, such as for maintenance. A paused queue
//! keeps its threads, and its prefetched messages go back to the broker.
//!
//! # Slow handlers
//!
//! A handler may take hours as far as the connection is concerned: heartbeats have their own
//! thread. But the broker waits for an acknowledgement for 30 minutes only (`consumer_timeout`),
//! and then redelivers the message. At 80 % of that, a line at `warn` names the message, and
//! [`status`] shows it ([`late`](crate::QueueWorkers::late)). The broker's clock starts when it
//! sends the message, so the time in the prefetch counts: with a prefetch of 10 and handlers of 5
//! minutes, the tenth message is late. Use a prefetch of 1 for slow handlers.
//!
//! # Threads and prefetch
//!
//! Each thread has its own channel and prefetch. With a [`prefetch`] of 1, the default, no message
//! waits for a slow one while another thread is idle, but each message costs a round trip. For
//! handlers that take less than a few milliseconds, 50 to 300 is faster.
//!
//! # Shutdown
//!
//! [`shutdown`] lets running handlers finish and settle their messages, gives all other messages
//! back, and waits until the broker has read the acknowledgements. Set up the signal handler
//! *before* the first `consume`, or an early signal ends the process at once:
//!
//! ```no_run
//! # use leveret::{Connection, Workers};
//! # use std::time::Duration;
//! # fn on_sigterm(_: impl FnMut() + Send + 'static) {} // the crates ctrlc and signal-hook do this
//! # let connection = Connection::open_default()?;
//! let workers = Workers::new(&connection);
//! let stopping = workers.clone();
//! on_sigterm(move || drop(stopping.shutdown(Duration::from_secs(30))));
//! workers.consume("mails", |mail| println!("{mail:?}"))?;
//! workers.join()?; // returns after the shutdown
//! connection.close()?;
//! # Ok::<(), leveret::Error>(())
//! ```
//!
//! # Health and metrics
//!
//! [`status`] answers without asking the broker: which threads consume, what they did (handled,
//! failed, panicked, retried, parked), how long their handlers took, and the last error. The
//! example `metrics` in the repository serves this to Prometheus, and answers `/health` from
//! [`is_healthy`](crate::WorkersStatus::is_healthy). [`Connection::events`] tells when a consumer
//! is interrupted and resumes.
//!
//! [`Connection::events`]: crate::Connection::events
//! [`Delivery`]: crate::Delivery
//! [`Retry`]: crate::Retry
//! [`Retry::by_broker`]: crate::Retry::by_broker
//! [`Settlement::Ack`]: crate::Settlement::Ack
//! [`Settlement::Reject`]: crate::Settlement::Reject
//! [`Settlement::Requeue`]: crate::Settlement::Requeue
//! [`Settlement::Retry`]: crate::Settlement::Retry
//! [`Workers`]: crate::Workers
//! [`circuit_breaker`]: crate::WorkerOptions::circuit_breaker
//! [`consume`]: crate::Workers::consume
//! [`consume_batches`]: crate::Workers::consume_batches
//! [`consume_batches_per_thread`]: crate::Workers::consume_batches_per_thread
//! [`consume_per_thread`]: crate::Workers::consume_per_thread
//! [`consume_with`]: crate::Workers::consume_with
//! [`on_error`]: crate::WorkerOptions::on_error
//! [`on_panic`]: crate::WorkerOptions::on_panic
//! [`pause`]: crate::Workers::pause
//! [`prefetch`]: crate::WorkerOptions::prefetch
//! [`resume`]: crate::Workers::resume
//! [`retry`]: crate::WorkerOptions::retry
//! [`shutdown`]: crate::Workers::shutdown
//! [`status`]: crate::Workers::status
//! [`unpark`]: crate::Workers::unpark
