//! The same seed gives the same output, byte for byte.
#![expect(clippy::unwrap_used, reason = "a broken expectation ends a test")]

use std::{fs, path::Path, process::Command};

/// The pictures, and what the program prints.
fn output(run: &str, seed: &str) -> Vec<(&'static str, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("scale-{run}"));
    let options = ["--seed", seed, "--jobs-per-day", "3000", "--burst", "500", "--bursts", "2", "--quick", "--out"];
    let printed = Command::new(env!("CARGO_BIN_EXE_scale")).args(options).arg(&folder).output().unwrap();
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let pictures = ["agent-stack-k8s.svg", "burst.svg", "cluster.svg", "settings.svg", "time-to-job.svg"];
    let mut all = pictures.map(|name| (name, fs::read(folder.join(name)).unwrap())).to_vec();
    assert!(all.iter().all(|(_, picture)| picture.starts_with(b"<svg")));
    fs::remove_dir_all(&folder).unwrap();
    all.push(("tables", printed.stdout));
    all
}

#[test]
fn the_same_seed_gives_the_same_tables_and_pictures_and_another_seed_others() {
    let [first, again, other] = [("first", "5"), ("again", "5"), ("other", "6")].map(|(run, seed)| output(run, seed));
    assert!(first == again);
    for ((name, one), (_, another)) in first.iter().zip(&other) {
        assert!(one != another, "{name} does not depend on the seed");
    }
}
