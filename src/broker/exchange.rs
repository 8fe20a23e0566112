//! Exchanges, and how they choose the bindings for a message.

use crate::wire::properties::Properties;
use crate::wire::short_string::ShortString;
use crate::wire::value::{FieldTable, FieldValue};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Direct,
    Fanout,
    Topic,
    Headers,
}

impl Kind {
    pub(super) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "direct" => Self::Direct,
            "fanout" => Self::Fanout,
            "topic" => Self::Topic,
            "headers" => Self::Headers,
            _ => return None,
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Fanout => "fanout",
            Self::Topic => "topic",
            Self::Headers => "headers",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Destination {
    Queue(String),
    Exchange(String),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Binding {
    pub(super) destination: Destination,
    pub(super) routing_key: String,
    pub(super) arguments: FieldTable,
}

#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) kind: Kind,
    pub(super) durable: bool,
    pub(super) auto_delete: bool,
    pub(super) internal: bool,
    pub(super) arguments: FieldTable,
    pub(super) bindings: Vec<Binding>,
}

impl Exchange {
    pub(super) fn alternate(&self) -> Option<&str> {
        self.arguments.get("alternate-exchange")?.as_str()
    }

    /// Returns the destinations of a message. A destination can occur several times.
    pub(super) fn route<'a>(
        &'a self,
        routing_key: &'a str,
        properties: &'a Properties,
    ) -> impl Iterator<Item = &'a Destination> {
        let headers = properties.headers.as_ref();
        let matches = move |binding: &&Binding| match self.kind {
            Kind::Direct => binding.routing_key == routing_key,
            Kind::Fanout => true,
            Kind::Topic => matches_topic(&binding.routing_key, routing_key),
            Kind::Headers => matches_headers(&binding.arguments, headers),
        };
        let bindings = self.bindings.iter().filter(matches);
        bindings.map(|binding| &binding.destination)
    }
}

/// Words are separated by dots. `*` stands for one word, `#` for any number of words.
fn matches_topic(pattern: &str, key: &str) -> bool {
    fn words(text: &str) -> Vec<&str> {
        match text {
            "" => Vec::new(),
            text => text.split('.').collect(),
        }
    }
    let key = words(key);
    // `reached[n]`: the pattern so far matches the first n words of the key.
    let mut reached = vec![false; key.len() + 1];
    if let Some(nothing) = reached.first_mut() {
        *nothing = true;
    }
    for word in words(pattern) {
        let before = std::mem::replace(&mut reached, vec![false; key.len() + 1]);
        let mut any = false;
        for (at, now) in reached.iter_mut().enumerate() {
            let from_last = at.checked_sub(1).and_then(|last| {
                let fits = word == "*" || key.get(last) == Some(&word);
                before.get(last).filter(|_| fits).copied()
            });
            any |= before.get(at).copied().unwrap_or_default();
            *now = match word {
                "#" => any,
                _ => from_last.unwrap_or_default(),
            };
        }
    }
    reached.last().copied().unwrap_or_default()
}

/// Compares a binding's arguments with a message's headers. Without `-with-x`, arguments that begin
/// with `x-` are ignored.
fn matches_headers(wanted: &FieldTable, headers: Option<&FieldTable>) -> bool {
    let how = wanted.get("x-match").and_then(FieldValue::as_str);
    let with_x = how.is_some_and(|how| how.ends_with("-with-x"));
    let mut asked = wanted
        .iter()
        .filter(|(name, _)| *name != "x-match" && (with_x || !name.as_bytes().starts_with(b"x-")));
    let fits = |(name, wanted): (&ShortString, &FieldValue)| {
        let found = headers.and_then(|headers| headers.get(name));
        // A void argument matches any value of the header.
        found.is_some_and(|found| *wanted == FieldValue::Void || is_equal(wanted, found))
    };
    match how {
        Some("any" | "any-with-x") => asked.any(fits),
        _ => asked.all(fits),
    }
}

/// Returns the value of an integer or a timestamp.
pub(super) fn integer(value: &FieldValue) -> Option<i128> {
    let time = value.as_timestamp().map(i128::from);
    time.or_else(|| value.as_i64().map(i128::from))
}

fn float(value: &FieldValue) -> Option<f64> {
    let is_integer = integer(value).is_some();
    value.as_f64().filter(|_| !is_integer)
}

/// Compares integers and floats regardless of their width, and long strings with byte arrays.
pub(super) fn is_same(one: &FieldValue, other: &FieldValue) -> bool {
    fn is_both<'a, T: PartialEq>(
        [one, other]: [&'a FieldValue; 2],
        read: impl Fn(&'a FieldValue) -> Option<T>,
    ) -> bool {
        read(one).is_some_and(|it| read(other) == Some(it))
    }
    let both = [one, other];
    one == other
        || is_both(both, integer)
        || is_both(both, float)
        || is_both(both, FieldValue::as_bytes)
}

/// In headers, a float can also equal an integer.
fn is_equal(one: &FieldValue, other: &FieldValue) -> bool {
    let number = |it: &FieldValue| it.as_f64().or_else(|| integer(it).map(|it| it as f64));
    is_same(one, other) || number(one).is_some_and(|it| number(other) == Some(it))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_patterns_match_words() {
        let fits = [
            ("a.b", "a.b"),
            ("a.*", "a.b"),
            ("a.*", "a."),
            ("#", ""),
            ("#", "a.b.c"),
            ("a.#", "a"),
            ("a.#", "a.b.c"),
            ("#.c", "a.b.c"),
            ("a.#.c", "a.c"),
            ("a.#.c", "a.b.b.c"),
            ("*.#.*", "a.b"),
            ("", ""),
        ];
        for (pattern, key) in fits {
            assert!(matches_topic(pattern, key), "{pattern:?} {key:?}");
        }
        let not = [
            ("a.b", "a"),
            ("a", "a.b"),
            ("*", ""),
            ("*", "a.b"),
            ("a.*", "a"),
            ("a.*.c", "a.c"),
            ("#.c", "a.b"),
            ("*.#.*", "a"),
            ("", "a"),
        ];
        for (pattern, key) in not {
            assert!(!matches_topic(pattern, key), "{pattern:?} {key:?}");
        }
    }

    #[test]
    fn headers_match_all_or_any() {
        let table = FieldTable::new;
        let headers = table().with("a", 1_i64).with("b", "two").with("x-c", true);
        let fits = |wanted: FieldTable| matches_headers(&wanted, Some(&headers));
        assert!(fits(table()));
        assert!(fits(table().with("a", 1_i32).with("b", "two")));
        assert!(fits(table().with("a", FieldValue::Void)));
        assert!(!fits(table().with("a", 1_i32).with("b", "three")));
        assert!(!fits(table().with("d", FieldValue::Void)));
        let any = || table().with("x-match", "any");
        assert!(fits(any().with("a", 2_i32).with("b", "two")));
        assert!(!fits(any().with("a", 2_i32)));
        assert!(!fits(any()));
        assert!(!fits(any().with("x-c", true)));
        assert!(fits(table().with("x-c", false)), "x-c is ignored");
        assert!(fits(
            table().with("x-match", "any-with-x").with("x-c", true)
        ));
        let all_with_x = table().with("x-match", "all-with-x");
        assert!(!fits(all_with_x.with("x-c", false)));
        assert!(!matches_headers(&table().with("a", 1_i32), None));
    }
}
