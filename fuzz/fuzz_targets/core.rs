//! Runs the target `core` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| leveret_fuzz::run("core", input));
