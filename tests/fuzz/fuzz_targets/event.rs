//! See [`fuzz::event`].

#![no_main]

libfuzzer_sys::fuzz_target!(init: fuzz::write_seeds(fuzz::event::seeds), |data: &[u8]| fuzz::event::run(data));
