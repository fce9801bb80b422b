//! See [`fuzz::pod_definition`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::pod_definition::run(data));
