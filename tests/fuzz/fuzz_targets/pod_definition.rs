//! See [`fuzz::pod_definition`].

#![no_main]

libfuzzer_sys::fuzz_target!(init: fuzz::write_seeds(fuzz::pod_definition::seeds), |data: &[u8]| fuzz::pod_definition::run(data));
