//! Starting the threads of `Workers`.

use std::sync::Arc;
use std::thread;

use crossbeam_channel::{bounded, Receiver, Sender};

use super::handler::{make, Factory};
use super::worker::{Shift, Worker};
use crate::error::{Error, ErrorKind, Result};

/// A thread that makes its handler and then waits for its task. Without one, it ends.
pub(super) struct Recruit {
    ready: Receiver<Result<()>>,
    pub(super) begin: Sender<(Worker, Shift)>,
}

impl Recruit {
    pub(super) fn spawn(queue: &str, factory: &Arc<Factory>) -> Result<Self> {
        let ((is_ready, ready), (begin, begun)) = (bounded(1), bounded::<(Worker, Shift)>(1));
        let factory = Arc::clone(factory);
        // Linux shows the first 15 bytes. A thread name cannot contain a NUL.
        spawn(&queue.replace('\0', ""), move || {
            let (handler, made) = match make(&factory) {
                Ok(handler) => (Some(handler), Ok(())),
                Err(error) => (None, Err(error)),
            };
            let _ = is_ready.send(made);
            if let (Some(handler), Ok((worker, shift))) = (handler, begun.recv()) {
                worker.run(handler, shift);
            }
        })?;
        Ok(Self { ready, begin })
    }

    pub(super) fn wait_ready(&self) -> Result<()> {
        let made = self.ready.recv();
        // The thread always sends before it ends.
        made.unwrap_or(Ok(()))
    }
}

pub(super) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(run);
    spawned.map(drop).map_err(|error| {
        let kind = error.kind();
        Error::new(ErrorKind::ThreadNotStarted { kind }).caused_by(error)
    })
}
