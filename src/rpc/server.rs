//! Serves requests and publishes the replies.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use super::caller::Callers;
use super::output::RpcOutput;
use super::ERROR_HEADER;
use crate::connection::Connection;
use crate::delivery::Delivery;
use crate::error::{chain, shortened, Error, ErrorKind, Result};
use crate::io_thread::deadline::Deadline;
use crate::io_thread::panics;
use crate::log_line::log_line;
use crate::message::Message;
use crate::options::WorkerOptions;
use crate::workers::{Settlement, Workers, WorkersStatus};

/// Serves the requests of an [`RpcClient`](crate::RpcClient), or of any program that sets
/// `reply_to`.
///
/// ```no_run
/// use leveret::{Connection, QueueDeclareOptions, RpcServer};
///
/// let connection = Connection::open_default()?;
/// let channel = connection.open_channel()?;
/// channel.queue_declare("upper_case", QueueDeclareOptions::default())?;
/// channel.queue_declare("square", QueueDeclareOptions::default())?;
/// let server = RpcServer::new(&connection);
/// server.serve("upper_case", |request| request.body().to_ascii_uppercase())?;
/// server.serve("square", |request| {
///     let number: i32 = std::str::from_utf8(request.body())?.parse()?;
///     let square = number.checked_mul(number).ok_or("the number is too large")?;
///     Ok::<_, Box<dyn std::error::Error>>(square.to_string())
/// })?;
/// server.join()?;
/// # Ok::<(), leveret::Error>(())
/// ```
///
/// # When a handler fails
/// If a handler returns an error or panics, the server tells the client at once, and acknowledges
/// the request. It publishes a reply with an empty body and the header `x-rpc-error`. The header
/// has the text of the error and its sources, at most 1,024 bytes. After a panic, it only says that
/// the handler panicked. [`RpcClient::call`](crate::RpcClient::call) then fails with
/// [`ErrorKind::RpcFailed`]. The server logs the error, or the panic's message, at `error`.
///
/// If the server cannot tell the client, because the request has no `reply_to` or the reply cannot
/// be sent, [`WorkerOptions::on_error`] and [`on_panic`](WorkerOptions::on_panic) say what happens
/// to the request.
///
/// # Requests without a client
/// A request of an `RpcClient` expires in its queue when its call times out. A client that ends
/// leaves its requests in the queue. For direct reply-to, the broker tells whether the client still
/// exists. If not, the server drops the request without running the handler. The question is a
/// round trip to the broker. The server asks if the handler takes at least ten times as long as
/// that, and for each redelivered request. Each thread asks on a second channel of its own.
///
/// The server consists of [`Workers`]. It does what they do when the broker ends a thread's
/// consumer, and when the last clone is dropped.
#[derive(Clone, Debug)]
#[must_use = "dropping the last handle stops the server"]
pub struct RpcServer {
    workers: Workers,
}

impl RpcServer {
    /// Creates a server without threads. Start them with [`serve`](Self::serve).
    pub fn new(connection: &Connection) -> Self {
        Self {
            workers: Workers::new(connection),
        }
    }

    /// Starts a thread that handles the requests of a queue one by one. The server publishes the
    /// handler's return value to the request's `reply_to` with the request's `correlation_id`, then
    /// acknowledges the request. [`RpcOutput`] says what a handler can return.
    ///
    /// A request without `reply_to` is handled, and its reply is dropped.
    ///
    /// # Errors
    /// Same as [`Workers::consume_with`].
    pub fn serve<R: RpcOutput<E>, E>(
        &self,
        queue: &str,
        handler: impl Fn(&Delivery) -> R + Send + Sync + 'static,
    ) -> Result<()> {
        self.serve_with(queue, WorkerOptions::default(), handler)
    }

    /// Serves a queue with other [`WorkerOptions`], such as more threads or a larger prefetch. All
    /// threads of the queue call the same handler.
    ///
    /// # Errors
    /// Same as [`Workers::consume_with`].
    pub fn serve_with<R: RpcOutput<E>, E>(
        &self,
        queue: &str,
        options: WorkerOptions,
        handler: impl Fn(&Delivery) -> R + Send + Sync + 'static,
    ) -> Result<()> {
        let handler = Arc::new(handler);
        self.serve_per_thread(queue, options, move || {
            let handler = Arc::clone(&handler);
            Ok::<_, Infallible>(move |request: &Delivery| handler(request))
        })
    }

    /// [`serve_with`](Self::serve_with), but each thread makes its own handler, which can have
    /// state such as a database client or a buffer. The handler stays on its thread, so it needs
    /// neither `Send` nor `Sync`. [`Workers::consume_per_thread`] says when `make` runs, and what
    /// happens if it fails.
    ///
    /// ```no_run
    /// use leveret::{Connection, Delivery, RpcServer, WorkerOptions};
    /// use std::fs::File;
    /// use std::io::{self, Read, Seek, SeekFrom};
    ///
    /// let server = RpcServer::new(&Connection::open_default()?);
    /// let options = WorkerOptions::default().threads(4);
    /// server.serve_per_thread("pages", options, || {
    ///     let mut book = File::open("book.txt")?;
    ///     Ok::<_, io::Error>(move |request: &Delivery| {
    ///         let mut page = vec![0; 4096];
    ///         let number: u32 = std::str::from_utf8(request.body())?.parse()?;
    ///         book.seek(SeekFrom::Start(u64::from(number) * 4096))?;
    ///         book.read_exact(&mut page)?;
    ///         Ok::<_, Box<dyn std::error::Error>>(page)
    ///     })
    /// })?;
    /// server.join()?;
    /// # Ok::<(), leveret::Error>(())
    /// ```
    ///
    /// # Errors
    /// Same as [`Workers::consume_per_thread`].
    pub fn serve_per_thread<H, R, E, F>(
        &self,
        queue: &str,
        options: WorkerOptions,
        make: impl Fn() -> std::result::Result<H, F> + Send + Sync + 'static,
    ) -> Result<()>
    where
        H: FnMut(&Delivery) -> R + 'static,
        R: RpcOutput<E>,
        F: Into<Box<dyn StdError + Send + Sync>>,
    {
        self.workers.consume_per_thread(queue, options, move || {
            let mut handler = make()?;
            let mut callers = Callers::new();
            Ok::<_, F>(move |request: &Delivery| {
                handle(request, &mut callers, || handler(request).into_reply())
            })
        })
    }

    /// Returns the current state of the threads: see [`Workers::status`].
    #[must_use]
    pub fn status(&self) -> WorkersStatus {
        self.workers.status()
    }

    /// Stops the server gracefully, and waits up to `timeout`: see [`Workers::shutdown`].
    ///
    /// # Errors
    /// Same as [`Workers::shutdown`].
    pub fn shutdown(&self, timeout: Duration) -> Result<()> {
        self.workers.shutdown(timeout)
    }

    /// Waits until the server has stopped, without a timeout: see [`Workers::join`].
    ///
    /// # Errors
    /// Same as [`Workers::join`].
    pub fn join(&self) -> Result<()> {
        self.workers.join()
    }
}

/// Handles a request. An error or a panic that its client has not been told about is left to the
/// worker, as is the log line.
fn handle(
    request: &Delivery,
    callers: &mut Callers,
    handler: impl FnOnce() -> Result<Message<'static>, Box<dyn StdError>>,
) -> Result<Settlement, Box<dyn StdError>> {
    if callers.is_gone(request) {
        let label = request.channel().connection().shared().label();
        log_line!(
            Debug,
            label,
            "a request whose client is gone is dropped: {request:?}"
        );
        return Ok(Settlement::Ack);
    }
    let stopwatch = Deadline::after(Duration::MAX);
    let handled = panics::catch(handler);
    callers.handled(stopwatch.elapsed());
    match handled {
        Ok(Ok(reply)) => Ok(answer(request, reply)),
        Ok(Err(error)) => {
            tell(request, &chain(&*error));
            Err(error)
        }
        Err(panic) => {
            // The panic's message is for the log only: it can show what clients must not see.
            tell(request, "the handler panicked");
            resume_unwind(Box::new(panic))
        }
    }
}

fn answer(request: &Delivery, reply: Message<'_>) -> Settlement {
    match send(request, reply) {
        Ok(Sent::Yes) => Settlement::Ack,
        Ok(Sent::Nowhere) => {
            let label = request.channel().connection().shared().label();
            log_line!(
                Debug,
                label,
                "the reply to a request without a reply_to that is text is dropped: {request:?}"
            );
            Settlement::Ack
        }
        Err(error) => {
            log_unsent(request, &error);
            match error.kind() {
                // A retry would fail, too.
                ErrorKind::InvalidArgument(_) => Settlement::Reject,
                _ => Settlement::Requeue,
            }
        }
    }
}

/// Tells the client why its request failed. Then a retry is useless, so the request is
/// acknowledged.
fn tell(request: &Delivery, error: &str) {
    let reply = Message::new("").header(ERROR_HEADER, shortened(error));
    match send(request, reply) {
        // This fails only if the channel has ended. The broker then redelivers the request.
        Ok(Sent::Yes) => drop(request.ack()),
        Ok(Sent::Nowhere) => {}
        Err(error) => log_unsent(request, &error),
    }
}

/// Whether a reply had somewhere to go.
enum Sent {
    Yes,
    Nowhere,
}

fn send(request: &Delivery, mut reply: Message<'_>) -> Result<Sent> {
    let Some(reply_to) = request.reply_to() else {
        return Ok(Sent::Nowhere);
    };
    // Kept as it is, even if it is no text.
    let properties = request.properties().ok();
    if let Some(correlation_id) = properties.and_then(|it| it.correlation_id.as_ref()) {
        reply = reply.correlation_id(correlation_id);
    }
    request.channel().basic_publish("", reply_to, reply)?;
    Ok(Sent::Yes)
}

fn log_unsent(request: &Delivery, error: &Error) {
    let label = request.channel().connection().shared().label();
    log_line!(
        Error,
        label,
        "the reply to {request:?} was not sent: {error}"
    );
}
