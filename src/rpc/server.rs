//! Serves requests and publishes the replies.

use std::time::Duration;

use crate::connection::Connection;
use crate::delivery::Delivery;
use crate::error::{ErrorKind, Result};
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
/// channel.queue_declare("rpc_queue", QueueDeclareOptions::default())?;
/// let server = RpcServer::new(&connection);
/// server.serve("rpc_queue", |request| request.body().to_ascii_uppercase())?;
/// server.join()?;
/// # Ok::<(), leveret::Error>(())
/// ```
///
/// The server consists of [`Workers`]. It does what they do when a handler panics (the request is
/// retried once, then rejected, and its caller gets no reply), when the broker ends a thread's
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
    /// acknowledges the request.
    ///
    /// A request without `reply_to` is handled, and its reply is dropped.
    ///
    /// # Errors
    /// Same as [`Workers::consume_with`].
    pub fn serve<A: Into<Message<'static>>>(
        &self,
        queue: &str,
        handler: impl Fn(&Delivery) -> A + Send + Sync + 'static,
    ) -> Result<()> {
        self.serve_with(queue, WorkerOptions::default(), handler)
    }

    /// Serves a queue with other [`WorkerOptions`], such as more threads or a larger prefetch.
    ///
    /// # Errors
    /// Same as [`Workers::consume_with`].
    pub fn serve_with<A: Into<Message<'static>>>(
        &self,
        queue: &str,
        options: WorkerOptions,
        handler: impl Fn(&Delivery) -> A + Send + Sync + 'static,
    ) -> Result<()> {
        self.workers.consume_with(queue, options, move |request| {
            answer(request, handler(request).into())
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

fn answer(request: &Delivery, mut answer: Message<'_>) -> Settlement {
    let Some(reply_to) = request.reply_to() else {
        let label = request.channel().connection().shared().label();
        log_line!(
            Debug,
            label,
            "the reply to a request without a reply_to that is text is dropped: {request:?}"
        );
        return Settlement::Ack;
    };
    // Kept as it is, even if it is no text.
    let properties = request.properties().ok();
    if let Some(correlation_id) = properties.and_then(|it| it.correlation_id.as_ref()) {
        answer = answer.correlation_id(correlation_id);
    }
    let Err(error) = request.channel().basic_publish("", reply_to, answer) else {
        return Settlement::Ack;
    };
    let label = request.channel().connection().shared().label();
    log_line!(
        Error,
        label,
        "the reply to {request:?} was not sent: {error}"
    );
    match error.kind() {
        // A retry would fail, too.
        ErrorKind::InvalidArgument(_) => Settlement::Reject,
        _ => Settlement::Requeue,
    }
}
