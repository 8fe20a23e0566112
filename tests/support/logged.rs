//! Keeps what the crate logs.

use std::sync::{Mutex, Once};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// A log line that contains this text makes the logger panic.
pub(crate) const PANIC: &str = "the logger panics";

static LINES: Mutex<Vec<Line>> = Mutex::new(Vec::new());

#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) level: Level,
    /// The module that logged the line.
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

/// Keeps the log of all tests from now on, except for the frames.
pub(crate) fn begin() {
    begin_at(LevelFilter::Debug);
}

/// Keeps all lines up to this level from now on. Only the first call in a process sets the level.
pub(crate) fn begin_at(level: LevelFilter) {
    static BEGIN: Once = Once::new();
    BEGIN.call_once(|| {
        log::set_logger(&Logger).unwrap();
        log::set_max_level(level);
    });
}

/// All lines so far.
pub(crate) fn lines() -> Vec<Line> {
    LINES.lock().unwrap().clone()
}

/// Whether there is such a line.
pub(crate) fn has(is_it: impl Fn(&str) -> bool) -> bool {
    count(is_it) > 0
}

/// How many such lines there are.
pub(crate) fn count(is_it: impl Fn(&str) -> bool) -> usize {
    let lines = LINES.lock().unwrap();
    lines.iter().filter(|it| is_it(&it.text)).count()
}
