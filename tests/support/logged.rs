//! What the crate writes to the log.

use std::sync::{Mutex, Once};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// Logging this text panics.
pub(crate) const PANIC: &str = "the logger panics";

static LINES: Mutex<Vec<Line>> = Mutex::new(Vec::new());

#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) level: Level,
    /// The module that has written it.
    pub(crate) target: String,
    pub(crate) text: String,
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        let text = record.args().to_string();
        assert!(!text.contains(PANIC), "the test logger panics");
        if self.enabled(record.metadata()) {
            LINES.lock().unwrap().push(Line {
                level: record.level(),
                target: record.target().to_owned(),
                text,
            });
        }
    }

    fn flush(&self) {}
}

/// From now on all is kept but the frames, that of all tests.
pub(crate) fn begin() {
    begin_at(LevelFilter::Debug);
}

/// From now on all up to this level is kept, if it is the first test that wants that.
pub(crate) fn begin_at(level: LevelFilter) {
    static BEGIN: Once = Once::new();
    BEGIN.call_once(|| {
        log::set_logger(&Logger).unwrap();
        log::set_max_level(level);
    });
}

/// All that was written so far.
pub(crate) fn lines() -> Vec<Line> {
    LINES.lock().unwrap().clone()
}

/// Whether such a line was written.
pub(crate) fn has(is_it: impl Fn(&str) -> bool) -> bool {
    count(is_it) > 0
}

/// How many such lines were written.
pub(crate) fn count(is_it: impl Fn(&str) -> bool) -> usize {
    let lines = LINES.lock().unwrap();
    lines.iter().filter(|it| is_it(&it.text)).count()
}
