//! Runs the target `properties` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| leveret_fuzz::run("properties", input));
