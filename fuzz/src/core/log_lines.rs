//! Checks what the core logs.

use std::sync::Once;

use log::{LevelFilter, Log, Metadata, Record};

use super::driver::PASSWORD;

struct Checker;

impl Log for Checker {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = record.args().to_string();
        assert!(
            !line.contains(char::is_control),
            "a line is forged: {line:?}"
        );
        assert!(!line.contains(PASSWORD), "the password is logged: {line:?}");
    }

    fn flush(&self) {}
}

/// Checks all lines, or writes none.
pub(super) fn check(is_logged: bool) {
    static SET: Once = Once::new();
    SET.call_once(|| log::set_logger(&Checker).expect("the only logger"));
    log::set_max_level(match is_logged {
        true => LevelFilter::Trace,
        false => LevelFilter::Off,
    });
}
