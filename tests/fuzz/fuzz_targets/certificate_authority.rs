//! See [`fuzz::certificate_authority`].

#![no_main]

libfuzzer_sys::fuzz_target!(init: fuzz::write_seeds(fuzz::certificate_authority::seeds), |data: &[u8]| fuzz::certificate_authority::run(data));
