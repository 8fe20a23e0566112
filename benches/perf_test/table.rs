//! The figures of a comparison as a Markdown table.

use serde_json::Value;

use crate::bench::Mode;
use crate::clients::{Client, Part};
use crate::rows::Row;

/// The cell without a figure.
const NONE: &str = "-";

/// The head of the table.
pub(crate) fn head(clients: &[Client<'_>]) -> String {
    let first = clients.first().map_or(NONE, |client| client.name);
    let mut titles = ["mode", "size", "threads"].map(str::to_owned).to_vec();
    for client in clients {
        let parts = client.parts.iter();
        titles.extend(parts.map(|part| title(*part, client.name, first)));
    }
    let line = "| --- ".repeat(titles.len());
    format!("| {} |\n{line}|", titles.join(" | "))
}

fn title(part: Part, name: &str, first: &str) -> String {
    match part {
        Part::Median => name.to_owned(),
        Part::Cpu => "CPU".to_owned(),
        Part::Spread => "spread".to_owned(),
        Part::OfFirst => format!("{first}/{name}"),
    }
}

/// A row with the figures of each client.
pub(crate) fn line(row: &Row, clients: &[Client<'_>], figures: &[Figures]) -> String {
    let mut line = format!("| {} | {} | {} |", row.name(), row.size(), row.threads);
    for (client, own) in clients.iter().zip(figures) {
        for part in client.parts {
            let cell = cell(row.mode, *part, own, figures.first());
            line += &format!(" {} |", cell.as_deref().unwrap_or(NONE));
        }
    }
    line
}

fn cell(mode: Mode, part: Part, own: &Figures, first: Option<&Figures>) -> Option<String> {
    let key = key(mode);
    let median = own.median(key)?;
    Some(match part {
        Part::Median => match mode {
            _ if mode.keeps_all() => {
                let each = own.median("rss_bytes_each");
                let each = each.map(|it| format!(", {it:.0} B each"));
                format!("{} s{}", digits(median), each.unwrap_or_default())
            }
            _ if mode.counts_latency() => {
                let p99 = own.median("p99_us");
                let p99 = p99.map(|it| format!(", p99 {} µs", digits(it)));
                format!("{} µs{}", digits(median), p99.unwrap_or_default())
            }
            _ => rate(median),
        },
        Part::Cpu => format!("{} µs", digits(own.median("cpu_us_per_msg")?)),
        Part::Spread => {
            let [lowest, highest] = own.range(key)?.map(|it| it / median * 100.0);
            format!("{lowest:.0}–{highest:.0} %")
        }
        Part::OfFirst => format!("{:.2}", first?.median(key)? / median),
    })
}

/// The JSON key of a row's figure.
pub(crate) fn key(mode: Mode) -> &'static str {
    match mode {
        _ if mode.keeps_all() => "wall_s",
        _ if mode.counts_latency() => "p50_us",
        _ => "msgs_per_s",
    }
}

fn rate(per_second: f64) -> String {
    match per_second {
        it if it >= 1e6 => format!("{} M/s", digits(it / 1e6)),
        it if it >= 1e3 => format!("{} k/s", digits(it / 1e3)),
        it => format!("{} /s", digits(it)),
    }
}

/// Formats a number with three significant digits.
fn digits(number: f64) -> String {
    match number {
        it if it >= 99.95 => format!("{it:.0}"),
        it if it >= 9.995 => format!("{it:.1}"),
        it if it >= 0.9995 => format!("{it:.2}"),
        it => format!("{it:.3}"),
    }
}

/// The lines that a client printed for one row, one for each round. A client that has failed has no
/// figures.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    lines: Vec<Value>,
    pub(crate) has_failed: bool,
}

impl Figures {
    pub(crate) fn push(&mut self, line: Value) {
        self.lines.push(line);
    }

    /// The sorted values of a key; `None` if a line lacks it.
    fn sorted(&self, key: &str) -> Option<Vec<f64>> {
        if self.has_failed {
            return None;
        }
        let numbers = self.lines.iter().map(|line| line.get(key)?.as_f64());
        let mut numbers: Vec<_> = numbers.collect::<Option<_>>()?;
        numbers.sort_by(f64::total_cmp);
        Some(numbers)
    }

    fn median(&self, key: &str) -> Option<f64> {
        let sorted = self.sorted(key)?;
        let (lower, upper) = (sorted.len().checked_sub(1)? / 2, sorted.len() / 2);
        Some((sorted[lower] + sorted[upper]) / 2.0)
    }

    fn range(&self, key: &str) -> Option<[f64; 2]> {
        let sorted = self.sorted(key)?;
        Some([*sorted.first()?, *sorted.last()?])
    }
}
