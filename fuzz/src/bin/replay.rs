//! Runs the targets without a fuzzer: on the committed inputs, then on changed ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::indexing_slicing)]

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use leveret_fuzz::{Target, TARGETS};

const USAGE: &str = "\
usage: replay [--executions N] [--seed N] [TARGET [FILE ...]]

Runs each target on its committed inputs, then on N inputs made from them. Without N, that takes
some seconds. With files, runs the target on them only.";

struct Options {
    executions: Option<u64>,
    seed: u64,
    target: Option<String>,
    files: Vec<PathBuf>,
}

fn options() -> Option<Options> {
    let mut options = Options {
        executions: None,
        seed: 1,
        target: None,
        files: Vec::new(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--executions" => options.executions = Some(arguments.next()?.parse().ok()?),
            "--seed" => options.seed = arguments.next()?.parse().ok()?,
            name if options.target.is_none() => {
                TARGETS.iter().find(|target| target.name == name)?;
                options.target = Some(argument);
            }
            _ => options.files.push(argument.into()),
        }
    }
    Some(options)
}

fn main() -> ExitCode {
    let Some(options) = options() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let chosen = |target: &&Target| {
        options
            .target
            .as_deref()
            .map_or(true, |it| it == target.name)
    };
    let is_right = TARGETS.iter().filter(chosen).all(|target| {
        if options.files.is_empty() {
            return with_changed_inputs(target, &options);
        }
        let mut inputs = options
            .files
            .iter()
            .map(|file| fs::read(file).expect("a file"));
        inputs.all(|input| holds(target, &input))
    });
    ExitCode::from(u8::from(!is_right))
}

fn with_changed_inputs(target: &Target, options: &Options) -> bool {
    let Target { name, .. } = target;
    let executions = options.executions.unwrap_or(target.executions);
    let corpus = corpus(name);
    let mut random = Random(options.seed);
    let changed = (0..executions).map(|_| random.changed(&corpus));
    let mut inputs = corpus.iter().cloned().chain(changed);
    let is_right = inputs.all(|input| holds(target, &input));
    if is_right {
        println!("{name}: {} inputs, {executions} changed ones", corpus.len());
    }
    is_right
}

/// The inputs of a target, always in the same order.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let mut files = Vec::new();
    for folder in ["corpus", "regressions"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(folder)
            .join(target);
        let entries = fs::read_dir(folder).into_iter().flatten();
        files.extend(entries.map(|entry| entry.unwrap().path()));
    }
    assert!(!files.is_empty(), "{target} has no corpus");
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// Runs a target on one input. If it panics, keeps the input, and says how to run it again.
fn holds(Target { name, run, .. }: &Target, input: &[u8]) -> bool {
    if catch_unwind(|| run(input)).is_ok() {
        return true;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("artifacts")
        .join(name);
    let file = folder.join(format!("replay-{:016x}", checksum(input)));
    fs::create_dir_all(&folder).unwrap();
    fs::write(&file, input).unwrap();
    eprintln!(
        "again: cargo run -p leveret-fuzz -- {name} {}",
        file.display()
    );
    false
}

fn checksum(bytes: &[u8]) -> u64 {
    let mix = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix)
}

/// Numbers that only look random (splitmix64): the same seed makes the same inputs.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        start..start + self.below((length - start).min(32) + 1)
    }

    /// An input of the corpus after one to four changes.
    fn changed(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut input = corpus[self.below(corpus.len())].clone();
        for _ in 0..=self.below(4) {
            let other = &corpus[self.below(corpus.len())];
            self.change(&mut input, other);
        }
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        let at = self.below(input.len());
        match self.below(7) {
            0 => self.set(input, at),
            1 => input.truncate(at),
            2 => drop(input.drain(self.range(input.len()))),
            3 => {
                let copy = input[self.range(input.len())].to_vec();
                input.splice(at..at, copy);
            }
            4 => {
                let foreign = other[self.range(other.len())].to_vec();
                input.splice(at..at, foreign);
            }
            5 => {
                let byte = self.next() as u8;
                input.insert(at, byte);
            }
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << self.below(8);
                }
            }
        }
    }

    /// Overwrites a byte with one that ends ranges.
    fn set(&mut self, input: &mut [u8], at: usize) {
        const ENDS: [u8; 8] = [0, 1, 0x7f, 0x80, 0xfe, 0xff, 0xce, b'%'];
        let end = ENDS[self.below(ENDS.len())];
        if let Some(byte) = input.get_mut(at) {
            *byte = end;
        }
    }
}
