//! What the crate writes to the log.

use std::sync::{Mutex, Once};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// Logging this text panics.
pub(crate) const PANIC: &str = "the logger panics";

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Debug
    }

    fn log(&self, record: &Record<'_>) {
        let text = record.args().to_string();
        assert!(!text.contains(PANIC), "the test wanted it");
        if self.enabled(record.metadata()) {
            LINES.lock().unwrap().push(text);
        }
    }

    fn flush(&self) {}
}

/// From now on all is kept but the frames, that of all tests.
pub(crate) fn begin() {
    static BEGIN: Once = Once::new();
    BEGIN.call_once(|| {
        log::set_logger(&Logger).unwrap();
        log::set_max_level(LevelFilter::Debug);
    });
}

/// Whether such a line was written.
pub(crate) fn has(is_it: impl Fn(&str) -> bool) -> bool {
    count(is_it) > 0
}

/// How many such lines were written.
pub(crate) fn count(is_it: impl Fn(&str) -> bool) -> usize {
    let lines = LINES.lock().unwrap();
    lines.iter().filter(|it| is_it(it)).count()
}
