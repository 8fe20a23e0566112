//! Where a consumer of a stream goes on after a loss.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::OnceLock;
use std::time::Duration;

use crate::io_thread::deadline::Deadline;
use crate::options::{before_now, StreamOffset};
use crate::wire::content::Content;
use crate::wire::value::FieldTable;

/// The offset at which a consumer of a stream goes on, on the next connection.
pub(crate) struct StreamPosition(AtomicI64);

impl StreamPosition {
    /// Nothing has come.
    const UNKNOWN: i64 = -1;

    pub(crate) fn new() -> Self {
        Self(AtomicI64::new(Self::UNKNOWN))
    }

    pub(crate) fn came(&self, content: &Content) {
        if let Some(offset) = stream_offset(content) {
            let next = offset.saturating_add(1);
            self.0.store(next, Ordering::Relaxed);
        }
    }

    /// A stream that is declared anew counts from 0. At a higher offset the broker would send
    /// nothing until the new stream is as long as the old one was.
    pub(crate) fn begin_at_first(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    pub(crate) fn write_to(&self, arguments: &mut FieldTable, since: Option<&StreamStart>) {
        let next = self.0.load(Ordering::Relaxed);
        if next >= 0 {
            arguments.insert("x-stream-offset", next);
        } else if let Some(since) = since {
            arguments.insert("x-stream-offset", since.offset());
        }
    }
}

/// The time from which a consumer reads its stream.
///
/// The broker finds out what "next" means each time it is asked. A consumer that begins again
/// before its first message has come would miss what was published in between, and with a filter
/// the first message can take long. So it says "next" for the first time only, and then how long
/// ago that was, by the broker's own clock.
#[derive(Debug, Clone)]
pub(crate) struct StreamStart {
    before: Duration,
    asked: OnceLock<Deadline>,
}

impl StreamStart {
    /// How much earlier it begins than the clocks say: the broker may take longer to read the next
    /// question than it took for the first one, and a stream's nodes have clocks of their own.
    const MARGIN: Duration = Duration::from_secs(5);

    /// `None` if the arguments name the same message at any time.
    pub(crate) fn of(arguments: &FieldTable) -> Option<Self> {
        let before = before_now(arguments)?;
        let asked = OnceLock::new();
        Some(Self { before, asked })
    }

    /// The broker is asked, now or before.
    pub(crate) fn asked(&self) {
        self.asked.get_or_init(|| Deadline::after(Duration::MAX));
    }

    pub(crate) fn offset(&self) -> StreamOffset {
        let ago = self.asked.get().map(Deadline::elapsed).unwrap_or_default();
        let before = self.before.saturating_add(ago).saturating_add(Self::MARGIN);
        StreamOffset::Interval(before)
    }
}

/// The place of a stream's message in its stream, as the broker writes it into the headers.
pub(crate) fn stream_offset(content: &Content) -> Option<i64> {
    let headers = content.properties().ok()?.headers?;
    headers.get("x-stream-offset")?.as_i64()
}
