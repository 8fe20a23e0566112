//! Runs the target `frames` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| leveret_fuzz::run("frames", input));
