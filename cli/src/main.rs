//! `render` and `check-definitions`, for an author of pod definitions.

use std::{fs, path::PathBuf, process::ExitCode};

use agent_scheduler_cli::{
    definitions::Definitions,
    render::{self, Settings},
};
use agent_scheduler_core::stack::Tag;
use clap::{Args, Parser};

/// What is wrong with pod definitions, and the Job that a step gets; without AWS, cluster or network.
#[derive(Parser)]
#[command(name = "agent-scheduler-cli")]
enum Command {
    /// Prints the Job that a step gets. Exits with 1 if it gets none, and says why.
    Render(Render),
    /// Prints all that is wrong with pod definitions, and exits with 1 if anything is.
    CheckDefinitions {
        /// Files, and folders with `NAME.yaml` or `NAME/pod-template.yaml`.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
}

#[derive(Args)]
struct Render {
    /// The step's `agents:` as `key=value`, with spaces between them.
    #[arg(long, value_name = "RULES", required_unless_present = "event", conflicts_with = "event")]
    step: Option<String>,
    /// A whole event, as EventBridge delivers it.
    #[arg(long, value_name = "FILE")]
    event: Option<PathBuf>,
    /// The slug of the step's pipeline.
    #[arg(long, value_name = "SLUG", requires = "step")]
    pipeline: Option<String>,
    /// Files or folders with definitions that are not compiled in; they win over those that are.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    definition: Vec<PathBuf>,
    /// The folder of the definitions that are compiled in.
    #[arg(long, value_name = "FOLDER", default_value = "pod-definitions")]
    compiled: PathBuf,
    /// The stack's `BuildkiteQueue`; without it, the stack has the step's queue.
    #[arg(long, value_name = "QUEUES", value_delimiter = ',')]
    queue: Vec<String>,
    /// The stack's `BuildkiteAgentTags`.
    #[arg(long, value_name = "TAGS", value_delimiter = ',', value_parser = tag)]
    tags: Vec<Tag>,
    /// The stack's `KubernetesNamespace`.
    #[arg(long)]
    namespace: Option<String>,
}

fn main() -> ExitCode {
    let ended = match Command::parse() {
        Command::Render(render) => render.run(),
        Command::CheckDefinitions { paths } => {
            read(&paths).map(|read| format!("{} pod definitions, and nothing is wrong with them\n", read.valid.len()))
        }
    };
    match ended {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

impl Render {
    fn run(self) -> Result<String, String> {
        let job = match (self.step, self.event) {
            (_, Some(file)) => {
                let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
                render::job_of_event(&text).map_err(|problem| format!("{}: {problem}", file.display()))?
            }
            (step, None) => render::job_of_step(&step.unwrap_or_default(), self.pipeline),
        };
        let mut definitions = read(&[self.compiled])?.valid;
        definitions.extend(read(&self.definition)?.valid);
        let settings = Settings { queues: self.queue, tags: self.tags, namespace: self.namespace };
        render::render(&job, &definitions, &settings).map_err(|problem| problem.to_string())
    }
}

/// Definitions that have no problem.
fn read(paths: &[PathBuf]) -> Result<Definitions, String> {
    let read = Definitions::read(paths);
    read.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    if read.problems.is_empty() { Ok(read) } else { Err(read.problems.join("\n")) }
}

fn tag(text: &str) -> Result<Tag, &'static str> {
    let (key, value) = text.split_once('=').ok_or("expected key=value, several separated by commas")?;
    Ok(Tag { key: key.to_owned(), value: value.to_owned() })
}
