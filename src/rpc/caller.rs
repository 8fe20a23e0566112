//! Finds out whether the client of a request still exists.

use std::time::Duration;

use crate::channel::Channel;
use crate::delivery::Delivery;
use crate::error::{ReplyCode, Result};
use crate::io_thread::deadline::Deadline;
use crate::log_line::log_line;

/// How RabbitMQ begins the name that a client of direct reply-to gets. While the client exists, the
/// broker declares a queue of this name passively.
const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to.";

/// The server asks if the handler takes at least this many times as long as a question. On RabbitMQ
/// 4.3, a question for each request costs an idle server half as much as the call, and a busy
/// server three quarters of its throughput.
const WORTH: u32 = 10;

/// Asks the broker whether clients exist, for one thread. A question is one round trip.
pub(super) struct Callers {
    channel: Option<Channel>,
    /// How long the last question took, less 1 % for each request without one: a question that took
    /// long once must not be the last.
    asked: Duration,
    /// The longest of the handler's last runs, of which each earlier one counts half as much.
    /// `None`: unknown, or the last client was gone, and its other requests may follow.
    handled: Option<Duration>,
    /// Whether the broker refuses to answer, because the user has no permission.
    is_refused: bool,
}

impl Callers {
    pub(super) fn new() -> Self {
        Self {
            channel: None,
            asked: Duration::ZERO,
            handled: None,
            is_refused: false,
        }
    }

    /// Notes how long the handler took.
    pub(super) fn handled(&mut self, took: Duration) {
        let earlier = self.handled.unwrap_or_default() / 2;
        self.handled = Some(took.max(earlier));
    }

    /// Returns true if the client does not exist any more. Without an answer from the broker,
    /// returns false.
    pub(super) fn is_gone(&mut self, request: &Delivery) -> bool {
        let reply_to = request.reply_to().unwrap_or_default();
        let is_asked = !self.is_refused
            && reply_to.starts_with(DIRECT_REPLY_TO)
            && (request.redelivered() || self.is_worth_it());
        if !is_asked {
            return false;
        }
        match self.find(request, reply_to) {
            Ok(()) => false,
            Err(error) if error.is_missing() => {
                self.handled = None;
                true
            }
            Err(error) => {
                self.is_refused = error.reply_code() == Some(ReplyCode::ACCESS_REFUSED);
                let label = request.channel().connection().shared().label();
                log_line!(Debug, label, "whether a client still exists: {error}");
                false
            }
        }
    }

    fn is_worth_it(&mut self) -> bool {
        let Some(handled) = self.handled else {
            return true;
        };
        let is_long = handled / WORTH >= self.asked;
        if !is_long {
            self.asked -= self.asked / 100;
        }
        is_long
    }

    fn find(&mut self, request: &Delivery, reply_to: &str) -> Result<()> {
        let channel = match self.channel.take() {
            Some(channel) => channel,
            None => request.channel().connection().open_question()?,
        };
        let stopwatch = Deadline::after(Duration::MAX);
        let found = channel.find_queue(reply_to);
        self.asked = stopwatch.elapsed();
        found?;
        // The broker has closed the channel of a question that failed.
        self.channel = Some(channel);
        Ok(())
    }
}
