//! Writes the seeds of a target into a folder, as libFuzzer takes them: `seeds TARGET FOLDER`.

use std::{env, fs, path::Path};

use fuzz::TARGETS;

fn main() -> std::io::Result<()> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [name, folder] = &arguments[..] else { panic!("seeds TARGET FOLDER") };
    let target = TARGETS.iter().find(|target| target.name == name).expect("there is a target of that name");
    fs::create_dir_all(folder)?;
    for (number, seed) in (target.seeds)().iter().enumerate() {
        fs::write(Path::new(folder).join(format!("{number}")), seed)?;
    }
    Ok(())
}
