//! Simulates the day, prints its tables and draws its pictures.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use scale::{Constants, cluster::Cluster, day::Day, page, plots, runs, tables};

/// The place that stays as it is with `--quick`.
const SENSITIVITY: &str = "sensitivity";

/// A day of a million jobs, on paper: what breaks first, which setting answers it, and what it costs.
///
/// The same options give the same output, byte for byte.
#[derive(Parser)]
#[command(name = "scale")]
struct Command {
    /// Chance, from here on.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A folder for the pictures; none are drawn without it.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// A page to put tables and values into, each between its `<!-- NAME -->` and `<!-- end -->`.
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
    /// Leaves out the sensitivity table, which takes most of the time.
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    constants: Constants,
}

fn main() -> ExitCode {
    match run(&Command::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("scale: {problem}");
            ExitCode::from(2)
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("cannot read or write {file}: {source}")]
    File { file: PathBuf, source: io::Error },
    #[error("{file} has no place for the table {name}: it needs <!-- {name} --> and <!-- end -->")]
    NoPlace { file: PathBuf, name: String },
    #[error("{file} has a place <!-- {name} -->, and nothing goes there")]
    Unknown { file: PathBuf, name: String },
}

fn run(command: &Command) -> Result<(), Problem> {
    let (constants, seed) = (&command.constants, command.seed);
    let day = Day::new(constants, seed);
    let outcomes =
        runs::parallel(runs::TO_THE_JOB, |setting| runs::outcome(setting.name, setting.on(constants), &day, seed));
    let ours = &outcomes[0];
    let mut clusters = runs::parallel(runs::IN_THE_CLUSTER, |setting| {
        let constants = setting.on(constants);
        let cluster = Cluster::day(&constants, &day, &ours.seen.created);
        (setting.name, constants, cluster)
    });
    let stacks = runs::stacks(constants, &day);
    let beside = runs::named(&outcomes, runs::BESIDE_THE_STACK);

    let mut made = tables::of_constants(constants, &day);
    let mut table = |name: &str, table: String| made.push((name.to_owned(), table));
    table("answer", tables::answer(&outcomes));
    table("to-the-job", tables::to_the_job(&outcomes));
    table("in-the-way", tables::in_the_way(&outcomes));
    table("costs", tables::costs(&outcomes));
    table("cluster", tables::cluster(&mut clusters));
    table("agent-stack-k8s", tables::stacks(constants, &day, &beside, &stacks));
    if !command.quick {
        let base = runs::end(constants, &day, seed);
        table(SENSITIVITY, tables::sensitivity(&base, &runs::sensitivity(constants, &day, seed)));
    }
    for (name, made) in &made {
        println!("{name}\n{made}");
    }
    if let Some(page) = &command.page {
        made.extend(tables::values(ours));
        fill(page, &made)?;
    }
    if let Some(folder) = &command.out {
        let shown = [
            "as deployed",
            "`ReservedConcurrency` 50",
            "1,000 writes/s",
            "1,000 writes/s, `ReservedConcurrency` 50",
            "1,000 writes/s, SSM with higher throughput",
        ];
        let pictures = [
            plots::time_to_job(&day, ours),
            plots::burst(&day, ours),
            plots::settings(&day, &outcomes, &shown),
            plots::cluster(
                &clusters,
                &[
                    (0, "controllers at 20 requests/s"),
                    (2, "100 requests/s"),
                    (3, "500 requests/s"),
                    (4, "500 requests/s, JobTtlSeconds 60"),
                ],
            ),
            plots::stacks(&day, ours, &stacks),
        ];
        let write = |file: &Path, text: &str| {
            fs::write(file, text).map_err(|source| Problem::File { file: file.to_owned(), source })
        };
        fs::create_dir_all(folder).map_err(|source| Problem::File { file: folder.clone(), source })?;
        for (name, svg) in pictures {
            write(&folder.join(name), &svg)?;
        }
    }
    Ok(())
}

/// Fills each place of the page.
fn fill(path: &Path, made: &[(String, String)]) -> Result<(), Problem> {
    let at_file = |source| Problem::File { file: path.to_owned(), source };
    let mut text = fs::read_to_string(path).map_err(at_file)?;
    let known = |name: &str| name == SENSITIVITY || made.iter().any(|(known, _)| known == name);
    if let Some(unknown) = page::names(&text).find(|name| !known(name)) {
        return Err(Problem::Unknown { file: path.to_owned(), name: unknown.to_owned() });
    }
    for (name, made) in made {
        // A table without a place was forgotten; of the values the text takes what it needs.
        if !page::put(&mut text, name, made) && made.contains('\n') {
            return Err(Problem::NoPlace { file: path.to_owned(), name: name.clone() });
        }
    }
    fs::write(path, text).map_err(at_file)
}
