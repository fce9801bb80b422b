//! See [`fuzz::query_rules`].

#![no_main]

libfuzzer_sys::fuzz_target!(init: fuzz::write_seeds(fuzz::query_rules::seeds), |data: &[u8]| fuzz::query_rules::run(data));
