//! One execution environment of Lambda: the real binary as a child process, with a Runtime API of its own.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    fmt,
    future::pending,
    io, mem,
    net::Ipv4Addr,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    net::TcpListener,
    process::{Child, Command},
    sync::{Mutex as AsyncMutex, mpsc, oneshot, watch},
    task::JoinSet,
    time::timeout,
};

use crate::{
    runtime_api::{Invocation, RuntimeApi, Start, trace_id},
    server::{Server, Service},
    timeline::{Actor, Kind, Timeline},
};

/// How long a function may take to end after SIGTERM; Lambda waits less.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// A function that is not started yet.
pub struct Builder {
    /// The program that runs the binary, if there is one.
    wrapper: Vec<String>,
    binary: PathBuf,
    variables: BTreeMap<String, String>,
    timeout: Duration,
    trace_id: Option<String>,
    timeline: Timeline,
}

/// A running function. Dropping it kills the process.
pub struct Function {
    pid: u32,
    timeout: Duration,
    events: mpsc::UnboundedSender<Invocation>,
    start: watch::Receiver<Start>,
    ended: watch::Receiver<Option<ExitStatus>>,
    output: Arc<Mutex<String>>,
    timeline: Timeline,
    _runtime_api: Server,
    /// Holds the child, which is killed with it.
    _process: JoinSet<()>,
}

/// What came of an event.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The function's result.
    Success(Value),
    /// The function reported an error.
    Error {
        /// Stable name of the error.
        error_type: String,
        /// What went wrong, for a person.
        error_message: String,
    },
    /// The function reported that it cannot start.
    InitError {
        /// Stable name of the error.
        error_type: String,
        /// What went wrong, for a person.
        error_message: String,
    },
    /// The process ended without an answer.
    Exited(Output),
    /// The deadline passed; the process was killed, as Lambda does.
    TimedOut,
}

/// How a process ended, and what it printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output and standard error, in the order of their arrival.
    pub text: String,
}

impl Output {
    /// The printed lines that are JSON, parsed.
    pub fn lines(&self) -> Vec<Value> {
        json_lines(&self.text)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success(value) => write!(f, "{value}"),
            Self::Error { error_type, error_message } | Self::InitError { error_type, error_message } => {
                write!(f, "{error_type}: {error_message}")
            }
            Self::Exited(output) => write!(f, "the function ended without an answer ({})", output.status),
            Self::TimedOut => f.write_str("the function did not answer in time and was killed"),
        }
    }
}

impl Builder {
    pub(crate) fn new(binary: PathBuf, variables: BTreeMap<String, String>, timeline: Timeline) -> Self {
        Self { wrapper: Vec::new(), binary, variables, timeout: Duration::from_mins(1), trace_id: None, timeline }
    }

    /// Sets a variable, in place of the lab's own value if there is one.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    /// Leaves a variable of the lab out.
    #[must_use]
    pub fn env_remove(mut self, name: &str) -> Self {
        self.variables.remove(name);
        self
    }

    /// How long the function may work on one event; a minute by default.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Gives all events the same trace id, where Lambda gives each its own.
    #[must_use]
    pub fn same_trace(mut self) -> Self {
        self.trace_id = Some(trace_id());
        self
    }

    /// Runs the binary under another program, such as `valgrind`, with that program's arguments.
    #[must_use]
    pub fn under(mut self, wrapper: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.wrapper = wrapper.into_iter().map(Into::into).collect();
        self
    }

    /// Like [`Self::try_start`], for a binary that is known to run.
    pub fn start(self) -> Function {
        let binary = self.binary.clone();
        self.try_start().unwrap_or_else(|error| panic!("cannot start {}: {error}", binary.display()))
    }

    /// Starts the process; must be called within a Tokio runtime. Fails if the binary is missing or cannot be run.
    pub fn try_start(self) -> io::Result<Function> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let (events, queue) = mpsc::unbounded_channel();
        let (start_sender, start) = watch::channel(Start::Pending);
        let api = Arc::new(RuntimeApi {
            timeline: self.timeline.clone(),
            trace_id: self.trace_id,
            start: start_sender,
            events: AsyncMutex::new(queue),
            in_work: Mutex::new(HashMap::new()),
        });
        let service = Service::new(Actor::Lambda, api.routes(), &self.timeline);
        let runtime_api = Server::serve(TcpListener::from_std(listener)?, None, service);

        // A bare name is a file, and not searched for in PATH.
        let binary = self.binary.canonicalize()?;
        let mut words = self.wrapper.iter().map(OsStr::new).chain([binary.as_os_str()]);
        let program = words.next().unwrap_or_default();
        let child = Command::new(program)
            .args(words)
            .env_clear()
            .envs(&self.variables)
            .env("AWS_LAMBDA_RUNTIME_API", runtime_api.authority())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        self.timeline.record(Actor::Lambda, Kind::Started);
        let pid = child.id().expect("a running child has an id");
        let output = Arc::default();
        let (ended_sender, ended) = watch::channel(None);
        let mut process = JoinSet::new();
        process.spawn(record(child, Arc::clone(&output), self.timeline.clone(), ended_sender));
        Ok(Function {
            pid,
            timeout: self.timeout,
            events,
            start,
            ended,
            output,
            timeline: self.timeline,
            _runtime_api: runtime_api,
            _process: process,
        })
    }
}

impl Function {
    /// Sends an event and waits for its answer. Events wait in a queue, as a function works on one at a time.
    pub async fn invoke(&self, event: impl Into<String>) -> Answer {
        self.invoke_within(self.timeout, event).await
    }

    /// The same with a timeout of its own.
    pub async fn invoke_within(&self, timeout: Duration, event: impl Into<String>) -> Answer {
        let (handed_sender, handed) = oneshot::channel();
        let (answer, answered) = oneshot::channel();
        let invocation = Invocation { event: event.into(), timeout, handed: handed_sender, answer };
        // If this fails, the process has ended, which is the answer below.
        let _ = self.events.send(invocation);

        tokio::select! {
            biased;
            Ok(_) = handed => {}
            answer = self.failure() => return answer,
        }
        tokio::select! {
            biased;
            Ok(answer) = answered => answer,
            answer = self.failure() => answer,
            () = tokio::time::sleep(timeout) => {
                self.timeline.record(Actor::Lambda, Kind::Answered(Answer::TimedOut));
                self.signal(Signal::SIGKILL);
                Answer::TimedOut
            }
        }
    }

    /// Sends an event that must succeed, and returns the answer; panics with what the function printed.
    pub async fn succeed(&self, event: impl Into<String>) -> Value {
        match self.invoke(event).await {
            Answer::Success(answer) => answer,
            other => panic!("{other:?}\n{}", self.output()),
        }
    }

    /// Sends an event that must fail, and returns the type and the message of the error.
    pub async fn fail(&self, event: impl Into<String>) -> (String, String) {
        match self.invoke(event).await {
            Answer::Error { error_type, error_message } => (error_type, error_message),
            other => panic!("{other:?}\n{}", self.output()),
        }
    }

    /// Waits until the function asks for its first event, or returns why it does not.
    pub async fn initialised(&self) -> Result<(), Answer> {
        let mut start = self.start.clone();
        tokio::select! {
            biased;
            Ok(_) = start.wait_for(|start| *start == Start::Done) => Ok(()),
            answer = self.failure() => Err(answer),
        }
    }

    /// Resolves with the reason when the function cannot answer any more; an error of the start comes before the exit after it.
    async fn failure(&self) -> Answer {
        let failed = async |mut start: watch::Receiver<Start>| {
            let start = start.wait_for(|start| matches!(start, Start::Failed(_))).await.map(|start| start.clone());
            match start {
                Ok(Start::Failed(answer)) => answer,
                _ => pending().await,
            }
        };
        tokio::select! {
            biased;
            answer = failed(self.start.clone()) => answer,
            output = self.exit() => Answer::Exited(output),
        }
    }

    /// Waits for the end of the process and of its output.
    pub async fn exit(&self) -> Output {
        let mut ended = self.ended.clone();
        let status = ended.wait_for(Option::is_some).await.ok().and_then(|status| *status);
        let status = status.expect("the task of the process lives as long as the function");
        Output { status, text: self.output() }
    }

    /// Everything printed so far.
    pub fn output(&self) -> String {
        self.output.lock().clone()
    }

    /// The printed lines that are JSON, parsed.
    pub fn lines(&self) -> Vec<Value> {
        json_lines(&self.output())
    }

    /// The same, and clears the output.
    pub fn take_lines(&self) -> Vec<Value> {
        json_lines(&mem::take(&mut *self.output.lock()))
    }

    /// Kills the process, as Lambda does at a timeout.
    pub async fn kill(self) -> Output {
        self.signal(Signal::SIGKILL);
        self.exit().await
    }

    /// The id of the process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Ends the process, with SIGTERM first.
    pub async fn stop(self) -> Output {
        self.signal(Signal::SIGTERM);
        if let Ok(output) = timeout(STOP_TIMEOUT, self.exit()).await {
            return output;
        }
        self.signal(Signal::SIGKILL);
        self.exit().await
    }

    fn signal(&self, signal: Signal) {
        // The id of a process that has ended may be reused.
        if self.ended.borrow().is_none() {
            let pid = i32::try_from(self.pid).expect("process ids are small");
            // It may have just ended.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Records what a process prints, and then how it ended.
async fn record(
    mut child: Child,
    output: Arc<Mutex<String>>,
    timeline: Timeline,
    ended: watch::Sender<Option<ExitStatus>>,
) {
    let stdout = child.stdout.take().expect("standard output is piped");
    let stderr = child.stderr.take().expect("standard error is piped");
    tokio::join!(keep(stdout, &output, &timeline), keep(stderr, &output, &timeline));
    let status = child.wait().await.expect("only this task waits for the child");
    timeline.record(Actor::Lambda, Kind::Ended(status));
    ended.send_replace(Some(status));
}

/// How a process ended, for a person.
pub(crate) fn ending(status: ExitStatus) -> String {
    match status.signal().and_then(|signal| Signal::try_from(signal).ok()) {
        Some(Signal::SIGTERM) => "process stopped".to_owned(),
        Some(Signal::SIGKILL) => "process killed".to_owned(),
        _ => format!("process ended ({status})"),
    }
}

async fn keep(pipe: impl AsyncRead + Unpin, output: &Mutex<String>, timeline: &Timeline) {
    let mut lines = BufReader::new(pipe).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = String::from_utf8_lossy(&line);
        timeline.record(Actor::Function, Kind::Printed(line.to_string()));
        let mut output = output.lock();
        output.push_str(&line);
        output.push('\n');
    }
}

#[cfg(test)]
mod tests;
