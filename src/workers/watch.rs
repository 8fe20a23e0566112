//! The thread that warns of handlers near the broker's acknowledgement timeout, and takes consumers
//! away from handlers that hold up a pause or a shutdown.

use std::sync::Arc;

use parking_lot::Mutex;

use super::crew::Crew;
use super::recruit::spawn;
use super::say;
use super::status::LateHandler;
use crate::error::Result;
use crate::io_thread::Shared;
use crate::log_line::{log_line, Label};

/// Whether the thread runs.
#[derive(Default)]
pub(super) struct Watch {
    runs: Mutex<bool>,
}

impl Watch {
    /// Starts the thread, if it does not run yet. It ends with the crew.
    pub(super) fn start(&self, crew: &Arc<Crew>, shared: &Arc<Shared>) -> Result<()> {
        let mut runs = self.runs.lock();
        if *runs {
            return Ok(());
        }
        let (crew, shared) = (Arc::clone(crew), Arc::clone(shared));
        spawn("slow handlers", move || {
            while let Some(overdue) = crew.watch() {
                for (queue, late) in &overdue.late {
                    say(|| warn_of_late(&shared.label(), queue, late));
                }
            }
        })?;
        *runs = true;
        Ok(())
    }
}

fn warn_of_late(label: &Label, queue: &str, late: &LateHandler) {
    log_line!(
        Warn,
        label,
        "the handler of queue {queue:?} has run for {:.1?}, and the broker's acknowledgement timeout is near; \
         delivery tag {}, message id {:?}: raise the timeout, or handle less at once",
        late.running_for,
        late.delivery_tag,
        late.message_id.as_deref().unwrap_or_default()
    );
}
