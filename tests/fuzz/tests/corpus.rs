//! The targets of `make fuzz` on their seeds and on earlier findings.

use std::{fs, panic, path::Path};

use fuzz::{TARGETS, files};

#[test]
fn everything_holds_on_the_seeds() {
    for target in &TARGETS {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{} has no seeds", target.name);
        for seed in seeds {
            (target.run)(&seed);
        }
    }
}

#[test]
fn everything_holds_on_earlier_findings() {
    for target in &TARGETS {
        for file in files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("findings").join(target.name)) {
            let found = fs::read(&file).expect("it can be read");
            let held = panic::catch_unwind(|| (target.run)(&found));
            assert!(held.is_ok(), "{} breaks {}", file.display(), target.name);
        }
    }
}
