//! Writes log lines that name their connection.

use std::fmt;
use std::sync::Arc;

use crate::error::OneLine;

/// The name of a connection and the peer of its socket: `worker 4711 at 10.0.0.1:5672`.
#[derive(Debug, Clone)]
pub(crate) struct Label(Arc<str>);

impl Label {
    pub(crate) fn new(connection_name: &str, peer: impl fmt::Display) -> Self {
        Self(format!("{} at {peer}", OneLine(connection_name)).into())
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Writes a log line that begins with the [`Label`] of its connection:
/// `log_line!(Warn, shared.label(), "channel {number}: {error}")`.
///
/// The label and the text are evaluated only if the program logs this level. `clippy.toml` forbids
/// the macros of the `log` crate, so that every line names its connection.
macro_rules! log_line {
    ($level:ident, $label:expr, $($text:tt)+) => {
        log::log!(log::Level::$level, "[{}] {}", $label, format_args!($($text)+))
    };
}

pub(crate) use log_line;
