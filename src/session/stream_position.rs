//! The offset at which a consumer of a stream continues after a lost connection.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::OnceLock;
use std::time::Duration;

use crate::io_thread::deadline::Deadline;
use crate::options::{before_now, StreamOffset};
use crate::wire::content::Content;
use crate::wire::value::FieldTable;

/// The argument of a consumer, and the header of a message.
pub(crate) const STREAM_OFFSET: &str = "x-stream-offset";

/// The offset at which a consumer of a stream continues on the next connection.
pub(crate) struct StreamPosition(AtomicI64);

impl StreamPosition {
    /// No message has arrived yet.
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

    /// Continues at offset 0, because the stream is gone. A new stream counts from 0. At a higher
    /// offset the broker would send nothing until the new stream is as long as the old one was.
    pub(crate) fn begin_at_first(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    pub(crate) fn write_to(&self, arguments: &mut FieldTable, start: Option<&StreamStart>) {
        let next = self.0.load(Ordering::Relaxed);
        if next >= 0 {
            arguments.insert(STREAM_OFFSET, next);
        } else if let Some(start) = start {
            arguments.insert(STREAM_OFFSET, start.offset());
        }
    }
}

/// The time from which a consumer reads its stream.
///
/// The broker resolves the offset "next" anew for each `basic.consume`. A consumer that restarts
/// before its first message arrives would miss all messages published in between; with a filter,
/// the first message can take long. So only the first `basic.consume` says "next". A restart asks
/// for an interval instead: the time since the first request, which the broker subtracts from its
/// own clock.
#[derive(Debug, Clone)]
pub(crate) struct StreamStart {
    /// How far before the first request the consumer reads.
    before: Duration,
    /// Measures the time since the first request.
    first_request: OnceLock<Deadline>,
}

impl StreamStart {
    /// Extra time that the interval covers. The broker may take longer to read the next request
    /// than the first one, and each node of a stream has its own clock.
    const MARGIN: Duration = Duration::from_secs(5);

    /// Returns `None` if the arguments mean the same message whenever they are sent.
    pub(crate) fn of(arguments: &FieldTable) -> Option<Self> {
        let before = before_now(arguments)?;
        let first_request = OnceLock::new();
        Some(Self {
            before,
            first_request,
        })
    }

    /// Notes the time of the first request. Later requests change nothing.
    pub(crate) fn requested(&self) {
        self.first_request
            .get_or_init(|| Deadline::after(Duration::MAX));
    }

    pub(crate) fn offset(&self) -> StreamOffset {
        let first_request = self.first_request.get();
        let ago = first_request.map(Deadline::elapsed).unwrap_or_default();
        let before = self.before.saturating_add(ago).saturating_add(Self::MARGIN);
        StreamOffset::Interval(before)
    }
}

/// The offset of a message in its stream, from the header that the broker adds.
pub(crate) fn stream_offset(content: &Content) -> Option<i64> {
    let headers = content.properties().ok()?.headers?;
    headers.get(STREAM_OFFSET)?.as_i64()
}
