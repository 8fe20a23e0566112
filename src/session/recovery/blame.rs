//! The search for a message that costs the connection.

use std::collections::HashSet;

use super::unrecovered::is_close_by_broker;
use crate::error::Error;
use crate::io_thread::lost_publishes::LostPublish;
use crate::io_thread::Shared;
use crate::log_line::log_line;
use crate::wire::method::{BasicPublish, Encode};

/// The message with this sequence number on this channel.
pub(super) type Id = (u16, u64);

/// Which messages may be to blame for a loss.
#[derive(Debug, Default)]
pub(super) struct Blame {
    /// The one that was published alone, and has no answer.
    pub(super) alone: Option<Id>,
    /// The connection was lost once while this one was alone.
    pub(super) accused: Option<Id>,
    /// They were published alone, and the connection went on for a while.
    pub(super) cleared: HashSet<Id>,
    /// How often all of them were cleared, and the connection was lost all the same: some message
    /// takes longer to cost it.
    pub(super) doubts: u32,
}

impl Blame {
    /// The connection was lost for this reason. The broker may have closed it because of a message:
    /// the one that was published alone is to blame, and is not published again. Others that were
    /// there twice are suspects from now on. Says whether one was found.
    pub(super) fn judge(&mut self, cause: &Error, shared: &Shared) -> bool {
        let alone = self.alone.take();
        let mut unanswered = shared.lost_publishes.lock();
        // What was in flight may have come back after what was not sent.
        unanswered.sort_by_key(LostPublish::id);
        let sent: HashSet<_> = unanswered
            .iter_mut()
            .filter_map(LostPublish::take_sent)
            .collect();
        let method = cause.close_reason().and_then(|it| it.method);
        let is_for_publishing = method == BasicPublish::ID.name();
        if !is_close_by_broker(cause) || (method.is_some() && !is_for_publishing) {
            return false;
        }
        // RabbitMQ takes no such messages.
        let is_immediate =
            |it: &LostPublish| is_for_publishing && sent.contains(&it.id()) && it.is_immediate();
        let any_immediate = unanswered.iter().any(is_immediate);
        let is_accused = alone.is_some() && self.accused == alone;
        self.accused = alone;
        let is_guilty = |it: &LostPublish| match any_immediate {
            true => is_immediate(it),
            false => is_accused && alone == Some(it.id()),
        };
        let all = std::mem::take(&mut *unanswered).into_iter();
        let (guilty, others): (Vec<_>, Vec<_>) = all.partition(is_guilty);
        *unanswered = others;
        if guilty.is_empty() {
            self.cleared
                .retain(|it| sent.contains(it) || unanswered.iter().any(|left| left.id() == *it));
            if alone.is_none() && !sent.is_empty() && sent.is_subset(&self.cleared) {
                self.cleared.clear();
                self.doubts += 1;
            }
            let may_be_guilty = |it: Id| sent.contains(&it) && !self.cleared.contains(&it);
            let suspects = unanswered.iter_mut().filter(|it| may_be_guilty(it.id()));
            suspects.for_each(|it| it.published.send_history = it.published.send_history.blamed());
        }
        drop(unanswered);
        let is_found = !guilty.is_empty();
        for mut message in guilty {
            let (channel, number) = message.id();
            log_line!(
                Error,
                shared.label(),
                "message {number} of channel {channel} is not published again: the broker closes \
                 the connection for it: {cause}"
            );
            message.cause = cause.clone();
            message.lose();
        }
        is_found
    }
}
