//! Sends requests and waits for the replies.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::line::Line;
use super::ERROR_HEADER;
use crate::connection::Connection;
use crate::delivery::Delivery;
use crate::error::{Error, ErrorKind, ReplyCode, Result};
use crate::io_thread::deadline::Deadline;
use crate::message::Message;

/// Sends requests to other programs and waits for their replies.
///
/// Any number of threads can make calls at the same time: they share one channel, and each thread
/// gets the reply to its own request. Replies use RabbitMQ's direct reply-to, which needs no reply
/// queue. The server, such as an [`RpcServer`](crate::RpcServer) or a program in another language,
/// publishes its reply to the default exchange with the request's `reply_to` as the routing key,
/// and copies the `correlation_id`. If the server cannot answer, it can say why in the header
/// `x-rpc-error` of its reply: [`call`](Self::call) then fails with [`ErrorKind::RpcFailed`].
///
/// ```no_run
/// use leveret::{Connection, ErrorKind, RpcClient};
/// use std::time::Duration;
///
/// let client = RpcClient::new(&Connection::open_default()?)?;
/// match client.call("", "rpc_queue", "30", Duration::from_secs(5)) {
///     Ok(reply) => println!("{}", String::from_utf8_lossy(reply.body())),
///     Err(error) => match error.kind() {
///         ErrorKind::RpcFailed { text } => println!("the server says: {text}"),
///         _ => return Err(error),
///     },
/// }
/// # Ok::<(), leveret::Error>(())
/// ```
///
/// When the connection is lost, waiting calls fail, because their replies cannot reach the client
/// any more. Later calls wait for recovery.
///
/// When the broker closes the client's channel, waiting calls fail with the cause, and the next
/// call opens another channel. The broker does so if a message has a wrong `user_id` (406), or if
/// its exchange is internal (403) or was deleted (404). So that the wrong name of an exchange fails
/// only its own call, the client asks the broker whether an exchange exists before it first uses
/// the exchange.
///
/// A client is cheap to clone. Dropping the last clone closes its channel.
///
/// See <https://www.rabbitmq.com/docs/direct-reply-to>.
#[derive(Clone)]
pub struct RpcClient {
    shared: Arc<Shared>,
}

struct Shared {
    connection: Connection,
    /// Held by the thread that opens another line. All others wait for it.
    line: Mutex<Arc<Line>>,
    /// The exchanges that exist, as far as is known.
    exchanges: Mutex<BTreeSet<String>>,
}

impl RpcClient {
    /// Creates a client with its own channel on this connection.
    ///
    /// # Errors
    /// Same as [`Connection::open_channel`]; 404 from a broker without direct reply-to.
    pub fn new(connection: &Connection) -> Result<Self> {
        let deadline = Deadline::after(connection.request_timeout());
        let line = Line::open(connection, deadline)?;
        let shared = Shared {
            connection: connection.clone(),
            line: Mutex::new(Arc::new(line)),
            exchanges: Mutex::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Returns the client's connection.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.shared.connection
    }

    /// Publishes a request and waits up to `timeout` for the reply. Sets the request's
    /// `correlation_id` and `reply_to`.
    ///
    /// The request expires in its queue when the call times out, so that no server works on a
    /// reply without a reader. An earlier [`expiration`](Message::expiration) of the program
    /// stays. A request with a `timeout` above 49 days does not expire.
    ///
    /// # Errors
    /// - [`ErrorKind::RpcFailed`] if the server replies that its handler failed.
    /// - [`ErrorKind::Returned`], without waiting for the timeout, if the request reaches no queue.
    /// - [`ErrorKind::Nacked`] if a queue refused the request.
    /// - 404, with nothing sent, if the exchange does not exist.
    /// - A timeout. A late reply is dropped.
    /// - The end of the channel or the connection: [`Error::may_have_been_sent`] says whether the
    ///   server may have handled the request.
    ///
    /// If no server consumes from the queue, the call times out, since the queue accepts requests
    /// without a consumer.
    pub fn call<'m>(
        &self,
        exchange: &str,
        routing_key: &str,
        request: impl Into<Message<'m>>,
        timeout: Duration,
    ) -> Result<Delivery> {
        let deadline = Deadline::after(timeout);
        let reply = self.ask(exchange, routing_key, request.into(), deadline);
        let answer = reply.and_then(answer_of);
        answer.map_err(|error| error.doing(format!("rpc to {exchange:?} with {routing_key:?}")))
    }

    fn ask(
        &self,
        exchange: &str,
        routing_key: &str,
        request: Message<'_>,
        deadline: Deadline,
    ) -> Result<Delivery> {
        self.find(exchange, deadline)?;
        loop {
            let line = self.line(deadline)?;
            match line.ask(exchange, routing_key, &request, deadline) {
                // The channel has ended, perhaps because of another thread's request.
                Err(error) if !error.may_have_been_sent() && line.has_ended() => {}
                Err(error) if error.is_missing() => {
                    self.shared.exchanges.lock().remove(exchange);
                    return Err(error);
                }
                answer => return answer,
            }
        }
    }

    /// Fails if the exchange does not exist. A request to it would end the calls of all threads.
    fn find(&self, exchange: &str, deadline: Deadline) -> Result<()> {
        let Shared {
            connection,
            exchanges,
            ..
        } = &*self.shared;
        if exchange.is_empty() || exchanges.lock().contains(exchange) {
            return Ok(());
        }
        match connection.find_exchange(exchange, deadline) {
            Err(error) if error.is_missing() || error.is_timeout() => return Err(error.unsent()),
            // The user may not ask, but may be allowed to publish.
            Err(error) if error.reply_code() != Some(ReplyCode::ACCESS_REFUSED) => return Ok(()),
            _ => {}
        }
        exchanges.lock().insert(exchange.to_owned());
        Ok(())
    }

    /// Returns the line, or opens another one after its end. Other threads wait for that.
    fn line(&self, deadline: Deadline) -> Result<Arc<Line>> {
        let connection = &self.shared.connection;
        let Some(mut line) = self.shared.line.try_lock_until(deadline.at()) else {
            let error = Error::timed_out(deadline.duration());
            return Err(connection.shared().outbox.explained(error).unsent());
        };
        if !line.has_ended() {
            return Ok(Arc::clone(&line));
        }
        let opened = Line::open(connection, deadline).map_err(Error::unsent)?;
        let opened = Arc::new(opened);
        let former = std::mem::replace(&mut *line, Arc::clone(&opened));
        drop(line);
        drop(former);
        Ok(opened)
    }
}

impl fmt::Debug for RpcClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.shared.line.try_lock();
        f.debug_struct("RpcClient")
            .field("connection", &self.shared.connection)
            .field("waiting", &line.map(|it| it.waiting()))
            .finish_non_exhaustive()
    }
}

fn answer_of(reply: Delivery) -> Result<Delivery> {
    let Some(error) = reply.header(ERROR_HEADER) else {
        return Ok(reply);
    };
    let text = error.as_bytes().map(String::from_utf8_lossy);
    let text = text.unwrap_or_default().into_owned();
    Err(Error::new(ErrorKind::RpcFailed { text }))
}
