//! Messages that were still unanswered when their connection was lost.

use super::mailbox::Published;
use crate::error::Error;
use crate::proto::{Outcome, SendHistory};
use crate::wire::frame::{self, Cut};
use crate::wire::method::Method;

pub(crate) struct LostPublish {
    pub(crate) published: Published,
    pub(crate) cause: Error,
    /// Whether it may have been sent on the connection that was lost last.
    was_sent: bool,
}

impl LostPublish {
    pub(crate) fn new(mut published: Published, cause: Error, may_have_been_sent: bool) -> Self {
        if may_have_been_sent {
            published.send_history = published.send_history.max(SendHistory::Sent);
        }
        Self {
            published,
            cause,
            was_sent: may_have_been_sent,
        }
    }

    /// Whether it can be published again.
    pub(crate) fn can_be_kept(&self) -> bool {
        self.published.kept.is_some()
    }

    /// Its channel and sequence number.
    pub(crate) fn id(&self) -> (u16, u64) {
        (self.published.channel, self.published.sequence_number)
    }

    /// Its id if it may have been sent on the last connection. Clears the mark: the next loss is
    /// not its fault unless it is published again.
    pub(crate) fn take_sent(&mut self) -> Option<(u16, u64)> {
        std::mem::take(&mut self.was_sent).then(|| self.id())
    }

    /// Whether the broker has closed a connection twice while this message was unanswered.
    pub(crate) fn is_suspect(&self) -> bool {
        self.published.send_history == SendHistory::Suspect
    }

    pub(crate) fn is_immediate(&self) -> bool {
        let kept = self.published.kept.as_deref().unwrap_or_default();
        let Ok(Cut::Frame(publish, _)) = frame::cut(kept, usize::MAX) else {
            return false;
        };
        let method = Method::decode(publish.payload);
        matches!(method, Ok(Method::BasicPublish(it)) if it.immediate)
    }

    /// Notifies the waiter that the message is published again when the connection is back.
    pub(crate) fn keep(&self) {
        if let Some(confirm) = &self.published.confirm {
            confirm.is_kept();
        }
    }

    /// Notifies the waiter that the message is lost: it is not published again.
    pub(crate) fn lose(self) {
        let may_have_been_sent = self.published.send_history > SendHistory::Nothing;
        let outcome = Outcome::lost(self.cause, may_have_been_sent);
        if let Some(confirm) = self.published.confirm {
            confirm.answered(self.published.sequence_number, outcome);
        }
    }
}
