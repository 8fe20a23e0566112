//! Messages that were published on a connection that was lost, and have no answer.

use crate::error::Error;
use crate::mailbox::Published;
use crate::proto::{Earlier, Outcome};
use crate::wire::frame::{self, Cut};
use crate::wire::method::{BasicPublish, Encode, Method};

pub(crate) struct Unanswered {
    pub(crate) published: Published,
    pub(crate) cause: Error,
    /// The broker may have closed the connection because of it.
    is_suspect: bool,
}

impl Unanswered {
    pub(crate) fn new(mut published: Published, cause: Error, may_have_been_sent: bool) -> Self {
        if may_have_been_sent {
            published.earlier = published.earlier.max(Earlier::Sent);
        }
        let reason = cause.close_reason();
        let is_for_publishing = reason.is_some_and(|it| it.method == BasicPublish::ID.name());
        Self {
            published,
            is_suspect: may_have_been_sent && is_for_publishing,
            cause,
        }
    }

    /// Whether it can be published again.
    pub(crate) fn can_be_kept(&self) -> bool {
        self.published.kept.is_some()
    }

    /// Whether it is a suspect of the kind that RabbitMQ does not take.
    fn is_immediate(&self) -> bool {
        let kept = self.published.kept.as_deref().unwrap_or_default();
        let Ok(Cut::Frame(publish, _)) = frame::cut(kept, usize::MAX) else {
            return false;
        };
        let method = Method::decode(publish.payload);
        self.is_suspect && matches!(method, Ok(Method::BasicPublish(it)) if it.immediate)
    }

    /// It is not published again.
    pub(crate) fn lose(self) {
        let may_have_been_sent = self.published.earlier > Earlier::Nothing;
        let outcome = Outcome::lost(self.cause, may_have_been_sent);
        if let Some(confirm) = self.published.confirm {
            confirm.answered(self.published.sequence_number, outcome);
        }
    }
}

/// Those that are published again: all, but for the one because of which the broker has closed the connection. It would do
/// so again and again.
pub(crate) fn without_the_guilty(all: Vec<Unanswered>) -> Vec<Unanswered> {
    let is_found = all.iter().any(Unanswered::is_immediate);
    let is_guilty = |it: &mut Unanswered| match it.is_suspect {
        true if is_found => it.is_immediate(),
        true => std::mem::replace(&mut it.published.earlier, Earlier::Blamed) == Earlier::Blamed,
        false => false,
    };
    let mut kept = Vec::with_capacity(all.len());
    for mut message in all {
        if is_guilty(&mut message) {
            message.lose();
            continue;
        }
        if let Some(confirm) = &message.published.confirm {
            confirm.is_kept();
        }
        kept.push(message);
    }
    kept
}
