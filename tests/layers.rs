//! Which module may use which: every layer knows only those below it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::iter::Peekable;
use std::path::Path;

use proc_macro2::token_stream::IntoIter;
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Every module at the root of `src`, and the modules that it may use. A module may only use those
/// in the rows above its own, so that no import leads upwards.
const MAY_USE: &[(&str, &str)] = &[
    // What threads synchronize with.
    ("sync", ""),
    // Bytes.
    ("wire", ""),
    // Plain data.
    ("error", "wire"),
    ("log_line", "error"),
    ("events", "error"),
    ("message", "wire error"),
    ("sasl", ""),
    ("stats", ""),
    ("options", "wire error events sasl stats"),
    // The connection as a state machine.
    ("proto", "wire error log_line"),
    // The thread that owns the socket.
    (
        "io_thread",
        "sync wire error log_line events options stats proto",
    ),
    // One connection over many sockets.
    (
        "session",
        "wire error log_line events options proto io_thread",
    ),
    // What programs hold.
    (
        "connection",
        "wire error log_line events options stats io_thread session",
    ),
    (
        "channel",
        "wire error log_line events message options proto io_thread session connection",
    ),
    (
        "exchange",
        "wire error message options io_thread connection channel",
    ),
    (
        "delivery",
        "wire error log_line message options proto io_thread session channel",
    ),
    (
        "publisher",
        "sync wire error log_line message options stats proto io_thread session channel",
    ),
    (
        "consumer",
        "sync wire error options stats proto io_thread session channel delivery",
    ),
    (
        "queue",
        "wire error message options session connection channel delivery consumer",
    ),
    (
        "workers",
        "error log_line events message options proto io_thread session connection channel delivery \
         publisher consumer",
    ),
    (
        "rpc",
        "wire error log_line message options proto io_thread session connection channel delivery \
         publisher workers",
    ),
    // Beside the client.
    ("broker", "wire error"),
    (
        "models",
        "sync wire error log_line proto io_thread publisher consumer",
    ),
    (DOCUMENTATION, ""),
];

/// Pages without code. Their links use the names that programs use.
const DOCUMENTATION: &str = "docs";

/// What the layers without input and output must not use of other crates.
const MUST_NOT_USE: &[(&str, &[&str])] = &[("wire", IMPURE), ("proto", IMPURE)];

const IMPURE: &[&str] = &[
    "mio",
    "parking_lot",
    "crossbeam_channel",
    "std::net",
    "std::thread",
    "Instant::now",
];

type Name = Vec<String>;

/// A source file: the names that it uses, and those that it takes into its own scope.
struct Module {
    paths: Vec<Name>,
    scope: BTreeMap<String, Name>,
}

/// The source files by their modules: `io_thread::outbox`, and the root as an empty name.
struct Sources(BTreeMap<Name, Module>);

#[test]
fn every_module_uses_only_those_below_it() {
    let mut files = Vec::new();
    read_folder(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut files,
    );
    let faults = faults(&files);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn faults(files: &[(String, String)]) -> Vec<String> {
    let sources = Sources::parse(files);
    let mut faults = sources.rows_that_do_not_fit();
    faults.extend(sources.forbidden_uses());
    faults.extend(sources.circles());
    faults
}

/// Appends the path below `src` and the text of every source file but those of unit tests.
fn read_folder(folder: &Path, files: &mut Vec<(String, String)>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let entries = fs::read_dir(folder).unwrap().map(|it| it.unwrap().path());
    for path in entries.filter(|it| !it.ends_with("tests")) {
        if path.is_dir() {
            read_folder(&path, files);
        } else {
            let name = path.strip_prefix(&root).unwrap();
            let text = fs::read_to_string(&path).unwrap();
            files.push((name.to_str().unwrap().to_owned(), text));
        }
    }
}

fn name(path: &str) -> Name {
    path.split("::").map(str::to_owned).collect()
}

/// `outbox/mod.rs` is the module `outbox`, `lib.rs` the root.
fn module_of(file: &str) -> Name {
    let path = file.trim_end_matches(".rs");
    let mut module: Name = path.split('/').map(str::to_owned).collect();
    if matches!(module.last().map(String::as_str), Some("mod" | "lib")) {
        module.pop();
    }
    module
}

impl Sources {
    fn parse(files: &[(String, String)]) -> Self {
        let parse = |(file, text): &(String, String)| {
            let tokens: TokenStream = text
                .parse()
                .unwrap_or_else(|error| panic!("{file}: {error}"));
            let (paths, scope) = (Vec::new(), BTreeMap::new());
            let mut module = Module { paths, scope };
            module.read(tokens);
            (module_of(file), module)
        };
        Self(files.iter().map(parse).collect())
    }

    /// The module that a path in `module` leads to, and the rest of the path. `None` for a path of
    /// another crate.
    fn target(&self, module: &[String], path: &[String]) -> Option<(Name, Name)> {
        let mut full: Name = match path.first()?.as_str() {
            "crate" => Vec::new(),
            "self" | "super" => module.to_vec(),
            first => {
                let child = [module, &[first.to_owned()]].concat();
                let is_child = self.0.contains_key(&child);
                return is_child.then(|| self.split([module, path].concat()));
            }
        };
        for part in path {
            match part.as_str() {
                "crate" | "self" => {}
                "super" => drop(full.pop()),
                part => full.push(part.to_owned()),
            }
        }
        Some(self.split(full))
    }

    /// Splits a full path after its last module.
    fn split(&self, full: Name) -> (Name, Name) {
        let lengths = (0..=full.len()).rev();
        let is_module = |length: &usize| self.0.contains_key(&full[..*length]);
        let length = { lengths }.find(is_module).unwrap_or_default();
        (full[..length].to_vec(), full[length..].to_vec())
    }

    /// Follows names that a module only passes on to the module that has them.
    fn origin(&self, mut module: Name, mut rest: Name) -> Name {
        while let Some(passed) = rest
            .first()
            .and_then(|it| self.0.get(&module)?.scope.get(it))
        {
            let Some((next, left)) = self.target(&module, passed) else {
                break;
            };
            (module, rest) = (next, left);
        }
        module
    }

    /// Every use of another module of the crate: who, whom, and by which path.
    fn uses(&self) -> impl Iterator<Item = (&Name, Name, &Name)> {
        self.0.iter().flat_map(move |(user, module)| {
            module.paths.iter().filter_map(move |path| {
                let (target, rest) = self.target(user, path)?;
                Some((user, self.origin(target, rest), path))
            })
        })
    }

    fn rows_that_do_not_fit(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut above = BTreeSet::new();
        for (row, may_use) in MAY_USE {
            let unknown = may_use.split_whitespace().filter(|it| !above.contains(it));
            faults.extend(unknown.map(|it| format!("{it} is not above {row} in the table")));
            above.insert(*row);
        }
        let is_root = |it: &&Name| it.len() == 1;
        let modules: BTreeSet<&str> = self.0.keys().filter(is_root).map(|it| &*it[0]).collect();
        let without_row = modules.difference(&above);
        faults.extend(without_row.map(|it| format!("the module {it} has no row in the table")));
        faults
    }

    fn forbidden_uses(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (user, target, path) in self.uses() {
            let (Some(user_root), shown) = (user.first(), path.join("::")) else {
                continue;
            };
            if user_root == DOCUMENTATION {
                continue;
            }
            let by_root = path.first().is_some_and(|it| it == "crate");
            let is_of_module = |it: &String| self.0.contains_key(std::slice::from_ref(it));
            if by_root && !path.get(1).is_some_and(is_of_module) {
                let shown = format!("{}: {shown} is a name of lib.rs", user.join("::"));
                faults.push(shown);
                continue;
            }
            let row = MAY_USE.iter().find(|(row, _)| row == user_root);
            let may_use = row.map_or("", |(_, may_use)| may_use);
            let is_allowed =
                |it: &String| it == user_root || may_use.split(' ').any(|may| may == it);
            if !target.first().is_some_and(is_allowed) {
                faults.push(format!("{} must not use {shown}", user.join("::")));
            }
        }
        for (user, module) in &self.0 {
            let row = MUST_NOT_USE
                .iter()
                .find(|(row, _)| user.first().is_some_and(|it| it == row));
            for forbidden in row.map_or(&[][..], |(_, forbidden)| forbidden) {
                let forbidden = name(forbidden);
                let is_in = |path: &&Name| path.windows(forbidden.len()).any(|it| it == forbidden);
                let used = module.paths.iter().filter(is_in);
                let fault =
                    |path: &Name| format!("{} must not use {}", user.join("::"), path.join("::"));
                faults.extend(used.map(fault));
            }
        }
        faults
    }

    /// Files that use each other in a circle. A folder's `mod.rs` and the files of that folder may:
    /// they are one module.
    fn circles(&self) -> Vec<String> {
        let mut uses: BTreeMap<&Name, BTreeSet<Name>> = BTreeMap::new();
        for (user, target, _) in self.uses() {
            let is_within = user.starts_with(&target) || target.starts_with(user);
            if !is_within {
                uses.entry(user).or_default().insert(target);
            }
        }
        let reaches = |from: &Name, to: &Name| {
            let (mut left, mut seen) = (vec![from], BTreeSet::new());
            while let Some(next) = left.pop() {
                let targets = uses.get(next).into_iter().flatten();
                let new: Vec<_> = targets.filter(|it| seen.insert(*it)).collect();
                left.extend(new);
            }
            seen.contains(to)
        };
        let is_in_circle = |it: &&&Name| reaches(it, it);
        let in_circles: Vec<_> = uses.keys().filter(is_in_circle).collect();
        let shown = |it: &&&Name| format!("{} uses itself in a circle", it.join("::"));
        in_circles.iter().map(shown).collect()
    }
}

impl Module {
    /// Collects the paths of all tokens but those of unit tests.
    fn read(&mut self, tokens: TokenStream) {
        let mut tokens = tokens.into_iter().peekable();
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Punct(mark) if mark.as_char() == '#' => {
                    let Some(TokenTree::Group(attribute)) = tokens.peek() else {
                        continue;
                    };
                    if attribute.stream().to_string().replace(' ', "") == "cfg(test)" {
                        skip_item(&mut tokens);
                    }
                }
                TokenTree::Ident(word) if word == "use" => self.read_use(&mut tokens, &[]),
                TokenTree::Ident(word) => {
                    let path = read_path(word.to_string(), &mut tokens);
                    if path.len() > 1 {
                        self.paths.push(path);
                    }
                }
                TokenTree::Group(group) => self.read(group.stream()),
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
        }
    }

    /// Reads `a::{b, c as d};` up to its end.
    fn read_use(&mut self, tokens: &mut Peekable<IntoIter>, prefix: &[String]) {
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Ident(word) => {
                    let path = read_path(word.to_string(), tokens);
                    let path = [prefix, &path].concat();
                    if let Some(TokenTree::Group(group)) = tokens.peek() {
                        let mut group = group.stream().into_iter().peekable();
                        tokens.next();
                        self.read_use(&mut group, &path);
                    } else {
                        self.take_into_scope(path, tokens);
                    }
                }
                TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                    let mut group = group.stream().into_iter().peekable();
                    self.read_use(&mut group, prefix);
                }
                TokenTree::Punct(mark) if mark.as_char() == ';' => return,
                _ => {}
            }
        }
    }

    fn take_into_scope(&mut self, mut path: Name, tokens: &mut Peekable<IntoIter>) {
        if path.last().is_some_and(|it| it == "self") && path.len() > 1 {
            path.pop();
        }
        let mut name = path.last().cloned();
        if matches!(tokens.peek(), Some(TokenTree::Ident(word)) if word == "as") {
            tokens.next();
            name = tokens.next().map(|it| it.to_string());
        }
        self.scope.extend(name.map(|name| (name, path.clone())));
        self.paths.push(path);
    }
}

/// Reads the rest of a path whose first word was read. A last `::` is read, too.
fn read_path(first: String, tokens: &mut Peekable<IntoIter>) -> Name {
    let mut path = vec![first];
    let is_colon = |it: Option<&TokenTree>| matches!(it, Some(TokenTree::Punct(mark)) if mark.as_char() == ':');
    loop {
        let mut ahead = tokens.clone();
        if !is_colon(ahead.next().as_ref()) || !is_colon(ahead.next().as_ref()) {
            return path;
        }
        *tokens = ahead;
        let Some(TokenTree::Ident(word)) = tokens.peek() else {
            return path;
        };
        path.push(word.to_string());
        tokens.next();
    }
}

/// Skips an item: up to its body in braces, or its semicolon.
fn skip_item(tokens: &mut Peekable<IntoIter>) {
    for token in tokens.by_ref() {
        match token {
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => return,
            TokenTree::Punct(mark) if mark.as_char() == ';' => return,
            _ => {}
        }
    }
}

/// What the check finds in a small crate of these files.
fn found(files: &[(&str, &str)]) -> String {
    let mut all = vec![
        ("lib.rs".to_owned(), String::new()),
        ("error/mod.rs".to_owned(), "pub struct Error;".to_owned()),
        ("wire/mod.rs".to_owned(), String::new()),
    ];
    let planted = files
        .iter()
        .map(|(file, text)| ((*file).to_owned(), (*text).to_owned()));
    all.extend(planted);
    faults(&all).join("\n")
}

#[test]
fn a_planted_import_of_each_kind_is_found() {
    let allowed = "use crate::error::{self, Error};\nuse std::time::Instant;";
    assert_eq!(found(&[("proto/mod.rs", allowed)]), "");
    let upwards = "use crate::{io_thread::Shared, error};";
    assert_eq!(
        found(&[("io_thread.rs", ""), ("proto/mod.rs", upwards)]),
        "proto must not use crate::io_thread::Shared"
    );
    let in_code = "fn f() { if true { let _ = vec![crate::channel::new()]; } }";
    assert_eq!(
        found(&[("channel.rs", ""), ("connection.rs", in_code)]),
        "connection must not use crate::channel::new"
    );
    let from_a_child = "use super::super::queue::Queue;";
    assert_eq!(
        found(&[
            ("queue.rs", ""),
            ("session/a.rs", from_a_child),
            ("session/mod.rs", "")
        ]),
        "session::a must not use super::super::queue::Queue"
    );
    assert_eq!(
        found(&[("proto/mod.rs", "fn f() { std::time::Instant::now(); }")]),
        "proto must not use std::time::Instant::now"
    );
    assert_eq!(
        found(&[("wire/value.rs", "use std::{fmt, thread};")]),
        "wire::value must not use std::thread"
    );
    assert_eq!(
        found(&[("events.rs", "use crate::Error;")]),
        "events: crate::Error is a name of lib.rs"
    );
    assert_eq!(
        found(&[("helpers.rs", "")]),
        "the module helpers has no row in the table"
    );
    let facade = ("session/mod.rs", "mod a;\nmod b;\npub(crate) use a::A;");
    let circle = [
        facade,
        ("session/a.rs", "use super::b::B;"),
        ("session/b.rs", "use super::A;"),
    ];
    assert_eq!(
        found(&circle),
        "session::a uses itself in a circle\nsession::b uses itself in a circle"
    );
    let of_tests = "#[cfg(test)]\nmod tests { use crate::channel::Channel; }";
    assert_eq!(found(&[("channel.rs", ""), ("wire/a.rs", of_tests)]), "");
}
