//! Shows a peer's text on one line of the log.

use std::fmt;

/// Writes text in one line. A broker's texts and names can contain anything: line breaks that forge
/// log lines, terminal escape sequences, marks that reverse the text direction.
pub(super) struct Escaping<'a, 'f>(pub(super) &'a mut fmt::Formatter<'f>);

impl fmt::Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let is_escaped = |it: char| {
            let is_direction = matches!(it, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            it.is_control() || is_direction || matches!(it, '\u{2028}' | '\u{2029}')
        };
        let mut escaped = text.matches(is_escaped);
        for piece in text.split(is_escaped) {
            self.0.write_str(piece)?;
            if let Some(escaped) = escaped.next() {
                write!(self.0, "{}", escaped.escape_default())?;
            }
        }
        Ok(())
    }
}

/// Shows text from outside this program in one line, for the log.
pub(crate) struct OneLine<T>(pub(crate) T);

impl<T: fmt::Display> fmt::Display for OneLine<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Write::write_fmt(&mut Escaping(f), format_args!("{}", self.0))
    }
}
