//! See [`fuzz::query_rules`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::query_rules::run(data));
