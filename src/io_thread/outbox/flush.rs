//! Waiting until what was appended is written to the socket.

use super::channels::{ChannelId, CONNECTION};
use super::send_queue::Mark;
use super::state::{Phase, State};
use super::Outbox;
use crate::error::{ClosedBy, Error, Result};
use crate::io_thread::deadline::Deadline;

/// What was appended on one channel, or on all, until a flush began.
pub(crate) struct Flush {
    id: ChannelId,
    epoch: u64,
    mark: Mark,
    /// The number of messages of the connection.
    messages: u64,
}

impl Outbox {
    /// Begins to flush a channel; for [`CONNECTION`], all channels. Fails if the broker has closed
    /// the channel.
    pub(crate) fn begin_flush(&self, id: ChannelId) -> Result<Flush> {
        self.check_process()?;
        let state = self.state.lock();
        match state.channels.get(id).end_cause() {
            // What was sent before a close of the program is read before the close.
            Some(cause) if cause.closed_by() != Some(ClosedBy::Program) => Err(cause.clone()),
            _ => Ok(Flush {
                id,
                epoch: state.epoch,
                mark: state
                    .send_queue
                    .mark((id != CONNECTION).then_some(id.number)),
                messages: state.messages,
            }),
        }
    }

    /// Waits until the deadline until all of it is written to the socket. Fails with the cause,
    /// once, if messages without confirms may be lost that no flush has waited for.
    pub(crate) fn flush(&self, flush: &Flush, deadline: Deadline) -> Result<()> {
        let mut state = self.state.lock();
        while !is_over(&state, flush)? {
            let waited = self.changed.wait_until(&mut state, deadline.at());
            if waited.timed_out() && !is_over(&state, flush)? {
                return Err(Error::timed_out(deadline.duration()));
            }
        }
        let lost_with = match flush.id {
            CONNECTION => state.channels.flushed(flush.messages),
            id => state.channels.get_mut(id).unflushed.flushed(flush.messages),
        };
        lost_with.map_or(Ok(()), Err)
    }
}

/// Whether there is nothing more to wait for: all is written, or discarded with a lost connection.
fn is_over(state: &State, flush: &Flush) -> Result<bool> {
    match &state.phase {
        Phase::Ended(cause) => Err(cause.clone()),
        Phase::Lost { .. } => Ok(true),
        Phase::Open => {
            let is_idle = state.asleep && state.send_queue.len() == 0;
            let is_lost = state.epoch != flush.epoch;
            Ok(is_idle || is_lost || state.send_queue.has_written(&flush.mark))
        }
    }
}
