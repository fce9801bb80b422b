//! The target of [`fuzz::TARGETS`] that the variable `TARGET` names.

#![no_main]

use std::{env, sync::LazyLock};

use fuzz::{TARGETS, Target};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = env::var("TARGET").expect("TARGET names a target");
    TARGETS.iter().find(|target| target.name == name).expect("TARGET is one of fuzz::TARGETS")
});

libfuzzer_sys::fuzz_target!(init: fuzz::write_seeds(&TARGET), |data: &[u8]| (TARGET.run)(data));
