//! `lab run`: one event, from the file to the Job.

use std::{fs, io, path::PathBuf, process::ExitCode};

use clap::Args;
use lab::{Answer, Entry, Lab};
use serde_json::Value;
use textwrap::{Options, WordSplitter};

/// What fits into a terminal beside an editor.
const COLUMNS: usize = 100;

/// What to run, and on what.
#[derive(Args)]
pub struct Run {
    /// The function's binary.
    #[arg(long, value_name = "PATH")]
    function: PathBuf,
    /// The event: a JSON document, as EventBridge delivers it.
    #[arg(long, value_name = "FILE")]
    event: PathBuf,
    /// A variable for the function, in place of the lab's own; may be given several times.
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("cannot read the event {}: {source}\nGive --event a file such as events/job-scheduled.json.", path.display())]
    EventUnreadable { path: PathBuf, source: io::Error },
    #[error(
        "the event {} is no JSON: {source}\nGive --event one whole document, as events/job-scheduled.json is.",
        path.display()
    )]
    EventGarbled { path: PathBuf, source: serde_json::Error },
    #[error("cannot run the function {}: {source}\nBuild it with `cargo build` first, and give --function its path.", path.display())]
    FunctionUnusable { path: PathBuf, source: io::Error },
    #[error("cannot show the Job as YAML: {0}")]
    Yaml(#[from] serde_saphyr::ser::Error),
}

impl Run {
    /// Returns what the process shall end with: success if the function answered, failure if it did not.
    pub async fn run(self) -> Result<ExitCode, Problem> {
        let event = self.read_event()?;
        let lab = Lab::start().await;
        let mut function = lab.function(&self.function).env("AWS_LAMBDA_LOG_LEVEL", "DEBUG");
        for (name, value) in self.env {
            function = function.env(name, value);
        }
        let function =
            function.try_start().map_err(|source| Problem::FunctionUnusable { path: self.function, source })?;
        let answer = function.invoke(event).await;
        function.stop().await;

        print_timeline(&lab);
        match answer {
            Answer::Success(answer) => {
                println!("\n{}", outcome(&answer));
                for job in lab.kubernetes.jobs() {
                    print!("\n{}", serde_saphyr::to_string(&job)?);
                }
                Ok(ExitCode::SUCCESS)
            }
            failure => {
                println!("\nThe function failed.\n{failure}");
                Ok(ExitCode::FAILURE)
            }
        }
    }

    fn read_event(&self) -> Result<String, Problem> {
        let path = &self.event;
        let unreadable = |source| Problem::EventUnreadable { path: path.clone(), source };
        let event = fs::read_to_string(path).map_err(unreadable)?;
        match serde_json::from_str::<Value>(&event) {
            Ok(_) => Ok(event),
            Err(source) => Err(Problem::EventGarbled { path: path.clone(), source }),
        }
    }
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not of the form NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Each thing that happened with the milliseconds aligned: `    12.3 ms  kubernetes  POST … -> 201`. Long ones go on below.
fn print_timeline(lab: &Lab) {
    for Entry { at, actor, what } in lab.timeline.entries() {
        let head = format!("{:>9.1} ms  {actor:<10}  ", at.as_secs_f64() * 1000.0);
        let indent = " ".repeat(head.len() + 2);
        let options = Options::new(COLUMNS).initial_indent(&head).subsequent_indent(&indent);
        // Names are full of hyphens, and are copied more often than read.
        let options = options.word_splitter(WordSplitter::NoHyphenation).break_words(false);
        println!("{}", textwrap::fill(&what, options));
    }
}

fn outcome(answer: &Value) -> String {
    let text = |field: &str| answer[field].as_str().unwrap_or_default().to_owned();
    match answer["outcome"].as_str() {
        Some("ignored") => format!("The event was ignored: {}. No Job was made.", text("reason")),
        Some(outcome) => format!("Job {} in namespace {}: {outcome}.", text("job"), text("namespace")),
        None => format!("The function answered {answer}."),
    }
}
