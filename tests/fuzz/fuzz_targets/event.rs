//! See [`fuzz::event`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::event::run(data));
