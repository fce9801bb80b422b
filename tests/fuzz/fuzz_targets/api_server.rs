//! See [`fuzz::api_server`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::api_server::run(data));
