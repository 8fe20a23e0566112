//! Renews a secret that expires, before it does.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::io_thread::deadline::Deadline;
use crate::io_thread::outbox::Admission;
use crate::io_thread::Shared;
use crate::log_line::log_line;
use crate::options::ConnectionOptions;
use crate::session::call;
use crate::wire::method::{ConnectionUpdateSecret, LongString};

/// The shortest delay before a renewal, and the longest one after a failed renewal.
const MIN_DELAY: Duration = Duration::from_secs(1);
const MAX_DELAY: Duration = Duration::from_secs(15);

/// When to renew the secret.
#[derive(Debug, Clone, Copy)]
pub(super) struct Renewal {
    expires: Deadline,
    /// The epoch of the connection that uses the secret. The renewal waits for no later connection,
    /// since only this thread can bring one back.
    epoch: u64,
    pub(super) next: Deadline,
}

impl Renewal {
    pub(super) fn of(valid_for: Duration, epoch: u64) -> Self {
        let next = valid_for.mul_f64(0.75).max(MIN_DELAY);
        Self {
            expires: Deadline::after(valid_for),
            epoch,
            next: Deadline::after(next),
        }
    }

    fn failed(self) -> Self {
        let delay = (self.expires.remaining() / 4).clamp(MIN_DELAY, MAX_DELAY);
        let next = Deadline::after(delay);
        Self { next, ..self }
    }
}

impl Renewal {
    /// Asks the program for new credentials and sends the secret. Returns the next renewal, if any.
    pub(super) fn run(self, options: &ConnectionOptions, shared: &Arc<Shared>) -> Option<Self> {
        let epoch = self.epoch;
        match send_secret(options, shared, epoch) {
            Ok(valid_for) => valid_for.map(|it| Self::of(it, epoch)),
            // The next connection logs in with new credentials.
            Err(_) if shared.outbox.cause().is_some() => None,
            Err(error) => {
                let renewal = self.failed();
                let (left, next) = (renewal.expires.remaining(), renewal.next.remaining());
                log_line!(
                    Warn,
                    shared.label(),
                    "renewing the secret failed; it expires in {left:.0?}, \
                     the next attempt follows in {next:.0?}: {error}"
                );
                Some(renewal)
            }
        }
    }
}

fn send_secret(
    options: &ConnectionOptions,
    shared: &Arc<Shared>,
    epoch: u64,
) -> Result<Option<Duration>> {
    let Some(provider) = &options.credentials else {
        return Ok(None);
    };
    let credentials = provider.ask()?;
    let update = ConnectionUpdateSecret {
        new_secret: LongString(Cow::Borrowed(credentials.secret.as_bytes())),
        reason: "the secret expires".into(),
    };
    let admission = Admission::Recovery { epoch };
    let deadline = Deadline::after(options.request_timeout);
    call::on_connection(shared, admission, deadline, &update)?;
    log_line!(Info, shared.label(), "the secret was renewed");
    Ok(credentials.valid_for)
}
