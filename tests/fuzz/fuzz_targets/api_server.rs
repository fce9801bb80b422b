//! See [`fuzz::api_server`].

#![no_main]

libfuzzer_sys::fuzz_target!(init: fuzz::write_seeds(fuzz::api_server::seeds), |data: &[u8]| fuzz::api_server::run(data));
