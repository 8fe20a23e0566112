//! The search for a poison message: one that makes the broker close the connection.

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
    /// The message that is published alone and has no answer yet.
    pub(super) alone: Option<Id>,
    /// The message that was alone when the connection was lost the last time.
    pub(super) alone_at_last_loss: Option<Id>,
    /// Messages that were published alone without harm: the connection stayed up for a while.
    pub(super) cleared: HashSet<Id>,
    /// Number of searches that cleared all messages although the connection was lost again. Some
    /// message takes longer to cost the connection, so each such search doubles the time for each
    /// message.
    pub(super) failed_searches: u32,
}

impl Blame {
    /// Decides which message cost the connection, after a loss with this cause. If the broker
    /// closed the connection, perhaps because of a message:
    ///
    /// - If the broker names `basic.publish` and `immediate` messages were sent, these are to
    ///   blame.
    /// - Otherwise, a message that was alone at two losses in a row is to blame.
    /// - If no message is to blame, those that were unanswered at two such losses become suspects.
    ///
    /// A message that is to blame fails and is not published again. Returns whether there was one.
    pub(super) fn find_poison(&mut self, cause: &Error, shared: &Shared) -> bool {
        let alone = self.alone.take();
        let mut to_replay = shared.to_replay.lock();
        let lost = &mut to_replay.lost_publishes;
        // Messages in flight may have been added after messages that were not sent.
        lost.sort_by_key(LostPublish::id);
        let sent: HashSet<_> = lost.iter_mut().filter_map(LostPublish::take_sent).collect();
        let method = cause.close_reason().and_then(|it| it.method);
        let is_for_publishing = method == BasicPublish::ID.name();
        if !is_close_by_broker(cause) || (method.is_some() && !is_for_publishing) {
            return false;
        }
        // RabbitMQ does not support `immediate`.
        let is_immediate =
            |it: &LostPublish| is_for_publishing && sent.contains(&it.id()) && it.is_immediate();
        let any_immediate = lost.iter().any(is_immediate);
        let is_alone_again = alone.is_some() && self.alone_at_last_loss == alone;
        self.alone_at_last_loss = alone;
        let is_poison = |it: &LostPublish| match any_immediate {
            true => is_immediate(it),
            false => is_alone_again && alone == Some(it.id()),
        };
        let all = std::mem::take(lost).into_iter();
        let (poison, others): (Vec<_>, Vec<_>) = all.partition(is_poison);
        *lost = others;
        if poison.is_empty() {
            self.cleared
                .retain(|it| sent.contains(it) || lost.iter().any(|left| left.id() == *it));
            if alone.is_none() && !sent.is_empty() && sent.is_subset(&self.cleared) {
                self.cleared.clear();
                self.failed_searches += 1;
            }
            let may_be_poison = |it: Id| sent.contains(&it) && !self.cleared.contains(&it);
            let suspects = lost.iter_mut().filter(|it| may_be_poison(it.id()));
            suspects.for_each(|it| it.published.send_history = it.published.send_history.blamed());
        }
        drop(to_replay);
        let is_found = !poison.is_empty();
        for mut message in poison {
            let (channel, number) = message.id();
            log_line!(
                Error,
                shared.label(),
                "message {number} of channel {channel} is not published again: the broker closes \
                 the connection because of it: {cause}"
            );
            message.cause = cause.clone();
            message.lose();
        }
        is_found
    }
}
