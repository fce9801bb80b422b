//! See [`fuzz::certificate_authority`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::certificate_authority::run(data));
