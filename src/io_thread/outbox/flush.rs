//! Waiting until what was appended is written to the socket.

use super::channel::Plain;
use super::channels::{ChannelId, CONNECTION};
use super::send_queue::Mark;
use super::state::{Phase, State};
use super::Outbox;
use crate::error::{ClosedBy, Error, Result};
use crate::io_thread::deadline::Deadline;

/// What was appended until a flush began.
struct Appended {
    epoch: u64,
    mark: Mark,
}

impl Outbox {
    /// Waits until the deadline until all that was appended on a channel so far is written to the
    /// socket; for [`CONNECTION`], on all channels. Fails with the cause if it may be lost.
    pub(crate) fn flush(&self, id: ChannelId, deadline: Deadline) -> Result<()> {
        let mut state = self.state.lock();
        self.check_process_of(&mut state)?;
        let channel = state.channels.get_mut(id);
        let unflushed = channel.take_unflushed();
        if let Some(cause) = channel
            .end_cause()
            .filter(|it| it.closed_by() != Some(ClosedBy::Program))
        {
            return Err(cause.clone());
        }
        match (unflushed, &state.phase) {
            (Plain::Lost(cause), _) => return Err(cause),
            // The channel hears of the loss a little later.
            (Plain::Unflushed, Phase::Lost { cause, .. }) => return Err(cause.clone()),
            // What is appended while the connection is lost is no message.
            (Plain::Nothing, Phase::Lost { .. }) => return Ok(()),
            (_, Phase::Open | Phase::Ended(_)) => {}
        }
        let only = (id != CONNECTION).then_some(id.number);
        let appended = Appended {
            epoch: state.epoch,
            mark: state.send_queue.mark(only),
        };
        while !is_written(&state, &appended)? {
            let waited = self.changed.wait_until(&mut state, deadline.at());
            if waited.timed_out() && !is_written(&state, &appended)? {
                state.channels.get_mut(id).flush_timed_out();
                return Err(Error::timed_out(deadline.duration()));
            }
        }
        Ok(())
    }
}

fn is_written(state: &State, appended: &Appended) -> Result<bool> {
    if let Phase::Ended(cause) = &state.phase {
        return Err(cause.clone());
    }
    match &state.last_loss {
        Some(cause) if state.epoch != appended.epoch => Err(cause.clone()),
        _ => {
            let is_idle = state.asleep && state.send_queue.len() == 0;
            Ok(is_idle || state.send_queue.has_written(&appended.mark))
        }
    }
}
