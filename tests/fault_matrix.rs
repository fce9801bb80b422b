//! Every failure mode at every call of the function, once, twice and for ever, on a cold and on a warm function: the real binary
//! against the lab, a process and a lab for each cell, printed as a table.
//!
//! Each cell checks the same. The event succeeds, or fails with the right error type, and there is a Job exactly if there should be.
//! The fault was met. No request arrived after the deadline. No secret is in what was printed, answered or made. And the next
//! delivery, without the fault, ends in one Job of ours and a Secret with the right token.
//!
//! The expectation follows from a few rules: [`Cell::exists`], [`FailureMode::retries`] and [`Cell::error_type`].
//!
//! Cold: the fault exists before the process. The start-up makes all calls but the last, so that it may meet the fault; the event
//! then asks again. Warm: the function has handled an event, and its connections are kept. [`Cell::warm_up`] leaves the call of the
//! cell to the next event.
//!
//! `FAULT_MATRIX=503 cargo test --test fault_matrix` runs the rows whose name contains that, and says so.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod common;

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    env, fs,
    io::{Write, stdout},
    process,
    time::{Duration, Instant},
};

use agent_scheduler::kept;
use base64::{Engine, prelude::BASE64_STANDARD};
use lab::{
    Answer, Certificate, Entry, Event, Fault, Function, Kind, Lab, When, buildkite::CLUSTER, fault::ErrorAnswer,
};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};

use common::{FUNCTION, leaks};

const OTHER_QUEUE: &str = include_str!("../events/job-other-queue.json");
const UUID: &str = "11111111-2222-4333-8444-555555555501";
const EARLIER_UUID: &str = "11111111-2222-4333-8444-555555555500";
const JOB: &str = "buildkite-11111111-2222-4333-8444-555555555501";
const UUID_LABEL: &str = "buildkite.com/job-uuid";

/// Most cells wait most of the time.
const CELLS_AT_ONCE: usize = 24;

/// The time limit of the start-up.
const START_UP: Duration = Duration::from_secs(5);

/// What the function keeps of the time that Lambda gives it.
const RESERVE: Duration = Duration::from_secs(2);

/// What a busy machine may need to deliver a request that was sent in time, and to record it.
const TRANSIT: Duration = Duration::from_millis(500);

/// Past every deadline here.
const LONG: Duration = Duration::from_mins(1);

const FOR_EVER: usize = usize::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FailureMode {
    Refused,
    CutHandshake,
    ExpiredCertificate,
    ResetBefore,
    ResetAfter,
    CutWithin,
    Slow,
    TooSlow,
    TooSlowAfter,
    Garbage,
    Empty,
    Code(u16),
    RetryAfter,
    RetryAfterDeadline,
    /// A Job of that name that is not ours.
    NameTaken,
}

use FailureMode::{
    Code, CutHandshake, CutWithin, Empty, ExpiredCertificate, Garbage, NameTaken, Refused, ResetAfter, ResetBefore,
    RetryAfter, RetryAfterDeadline, Slow, TooSlow, TooSlowAfter,
};

/// The rows.
const MODES: [(&str, FailureMode); 24] = [
    ("refused", Refused),
    ("TLS handshake cut", CutHandshake),
    ("expired certificate", ExpiredCertificate),
    ("reset, nothing done", ResetBefore),
    ("reset, all done", ResetAfter),
    ("TLS cut in answer", CutWithin),
    ("slow", Slow),
    ("too slow, not done", TooSlow),
    ("too slow, all done", TooSlowAfter),
    ("garbage body", Garbage),
    ("empty body", Empty),
    ("401", Code(401)),
    ("403", Code(403)),
    ("404", Code(404)),
    ("409 conflict", Code(409)),
    ("409 another's", NameTaken),
    ("422", Code(422)),
    ("429", Code(429)),
    ("429 Retry-After", RetryAfter),
    ("429 after deadline", RetryAfterDeadline),
    ("500", Code(500)),
    ("502", Code(502)),
    ("503", Code(503)),
    ("504", Code(504)),
];

/// The columns: whether the function is warm, and how often it meets the fault.
const COLUMNS: [(&str, bool, usize); 6] = [
    ("cold once", false, 1),
    ("cold twice", false, 2),
    ("cold ever", false, FOR_EVER),
    ("warm once", true, 1),
    ("warm twice", true, 2),
    ("warm ever", true, FOR_EVER),
];

/// How often a request is retried before its answer is final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retries {
    /// The answer is a success.
    Success,
    /// The next answer would be the same.
    None,
    /// The EKS token, or the registration at Buildkite, may be at fault: once, with a new one.
    Once,
    /// The failure may pass: until the deadline.
    UntilDeadline,
}

impl FailureMode {
    fn retries(self, call: Call) -> Retries {
        match self {
            Slow => Retries::Success,
            // Of the answer to a write, only the status counts.
            Garbage | Empty if call.is_write() => Retries::Success,
            Code(404) if call == Call::Reserve => Retries::Once,
            Code(401) if !call.is_of_aws() && !call.is_of_buildkite() => Retries::Once,
            Code(401 | 403 | 404 | 422) | NameTaken | Garbage | Empty | ExpiredCertificate | RetryAfterDeadline => {
                Retries::None
            }
            _ => Retries::UntilDeadline,
        }
    }

    /// The server does what the request asks, and the answer is late, broken or lost.
    fn is_carried_out(self) -> bool {
        matches!(self, ResetAfter | CutWithin | TooSlowAfter | Garbage | Empty)
    }

    fn is_of_connections(self) -> bool {
        matches!(self, Refused | CutHandshake | ExpiredCertificate)
    }

    fn fault(self, call: Call) -> Fault {
        let answer = |code, reason, message: &str| {
            Fault::Status(ErrorAnswer { code, reason, message: Some(message.to_owned()), retry_after: None })
        };
        match self {
            Refused => Fault::Refuse,
            CutHandshake => Fault::CutHandshake,
            ExpiredCertificate => Fault::Show(Certificate::Expired),
            ResetBefore => Fault::ResetBefore,
            ResetAfter => Fault::ResetAfter,
            CutWithin => Fault::CutWithin,
            Slow => Fault::Delay(Duration::from_millis(700)),
            TooSlow => Fault::Delay(LONG),
            TooSlowAfter => Fault::DelayAfter(LONG),
            Garbage => Fault::Garbage,
            Empty => Fault::Empty,
            RetryAfter => Fault::throttled(Duration::from_secs(1)),
            RetryAfterDeadline => Fault::throttled(LONG),
            NameTaken => unreachable!("a Job that exists is not a fault of the server"),
            // SSM and EKS have their own error types.
            Code(401) if call.is_of_aws() => answer(
                400,
                Some("UnrecognizedClientException"),
                "The security token included in the request is invalid.",
            ),
            Code(403) if call.is_of_aws() => Fault::access_denied(),
            Code(429) if call.is_of_aws() => Fault::throttling(),
            Code(503) if call.is_of_aws() => answer(503, Some("ServiceUnavailable"), "Please try again later."),
            // As RBAC writes it.
            Code(403) => {
                let user = lab::kubernetes::USER;
                answer(
                    403,
                    None,
                    &format!("it is forbidden: User \"{user}\" cannot do it in the namespace \"buildkite\""),
                )
            }
            // Of a quota that many requests change at once.
            Code(409) => answer(
                409,
                Some("Conflict"),
                "Operation cannot be fulfilled on resourcequotas \"builds\": the object has been modified; please apply your \
                 changes to the latest version and try again",
            ),
            Code(code) => Fault::status(code),
        }
    }
}

/// The function's calls, in their order; the first two run side by side. A job that can never start makes Buildkite's, and a failure
/// that may pass the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Ssm,
    DescribeCluster,
    PodTemplates,
    Secret,
    Job,
    Register,
    Reserve,
    Finish,
    Notify,
}

const CALLS: [Call; 9] = [
    Call::Ssm,
    Call::DescribeCluster,
    Call::PodTemplates,
    Call::Secret,
    Call::Job,
    Call::Register,
    Call::Reserve,
    Call::Finish,
    Call::Notify,
];

impl Call {
    fn is_of_aws(self) -> bool {
        matches!(self, Self::Ssm | Self::DescribeCluster)
    }

    fn is_of_buildkite(self) -> bool {
        matches!(self, Self::Register | Self::Reserve | Self::Finish | Self::Notify)
    }

    /// Nothing of its answer but the status is read.
    fn is_write(self) -> bool {
        matches!(self, Self::Job | Self::Secret | Self::Register | Self::Finish | Self::Notify)
    }

    fn requests(self) -> When {
        match self {
            Self::Ssm => When::action("GetParameter"),
            Self::DescribeCluster => When::action("DescribeCluster"),
            Self::PodTemplates => When::request("GET", "/podtemplates"),
            Self::Secret => When::request("PATCH", "/secrets"),
            Self::Job => When::request("POST", "/jobs"),
            Self::Register => When::request("POST", "/register"),
            Self::Reserve => When::request("PUT", "/batch-reserve"),
            Self::Finish => When::request("POST", "/finish"),
            Self::Notify => When::request("POST", "/notifications"),
        }
    }

    /// The call before it to the same server, if the function is cold.
    fn previous(self) -> When {
        match self {
            Self::Ssm | Self::DescribeCluster | Self::PodTemplates | Self::Register => When::any(),
            Self::Secret => Self::PodTemplates.requests(),
            Self::Job => Self::Secret.requests(),
            Self::Reserve | Self::Notify => Self::Register.requests(),
            Self::Finish => Self::Reserve.requests(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    mode: FailureMode,
    call: Call,
    warm: bool,
    times: usize,
}

/// The result of a cell.
struct Verdict {
    /// For the table.
    outcome: String,
    problems: Vec<String>,
}

impl Cell {
    fn exists(self) -> bool {
        if self.call.is_of_buildkite() {
            // A warm function is registered.
            let is_made = self.call != Call::Register || !self.warm;
            return is_made && self.times != 2 && !matches!(self.mode, Code(409) | NameTaken);
        }
        match self.mode {
            // Of a missing object, which is not a fault of the server.
            Code(404) => false,
            // A Job is there or not, regardless of the number of requests.
            NameTaken => self.call == Call::Job && self.times == FOR_EVER,
            // A read has no conflict, and nothing to validate.
            Code(409 | 422) => matches!(self.call, Call::Secret | Call::Job),
            // AWS services send no Retry-After, and no 502 or 504 of their own.
            RetryAfter | RetryAfterDeadline | Code(502 | 504) => !self.call.is_of_aws(),
            _ => true,
        }
    }

    fn succeeds(self) -> bool {
        // The start-up makes all calls but the last.
        let is_of_start_up = self.call != Call::Job && !self.call.is_of_buildkite();
        let asked = if !self.warm && is_of_start_up { 2 } else { 1 };
        match self.mode.retries(self.call) {
            Retries::Success => true,
            Retries::None => self.times < asked,
            Retries::Once => self.times < 2 * asked,
            Retries::UntilDeadline => self.times != FOR_EVER,
        }
    }

    /// As in README's table.
    fn error_type(self) -> &'static str {
        match (self.call, self.mode) {
            (Call::Notify, _) => "Forbidden",
            // As without the Stacks API.
            (Call::Register, Code(401 | 403 | 404)) | (Call::Reserve | Call::Finish, Code(401 | 403)) => {
                "InvalidAgentQueryRule"
            }
            (Call::Register | Call::Reserve | Call::Finish, _) => "BuildkiteUnavailable",
            (Call::Ssm, _) => "AgentTokenUnavailable",
            (Call::DescribeCluster, _) => "ClusterUnavailable",
            (_, TooSlow | TooSlowAfter) => "Timeout",
            (_, Code(401)) => "Unauthorized",
            (_, Code(403)) => "Forbidden",
            (_, Code(409 | 422) | NameTaken) => "RejectedByApiServer",
            _ => "ClusterUnavailable",
        }
    }

    fn expected(self) -> &'static str {
        let is_retried = self.mode.retries(self.call) == Retries::UntilDeadline;
        match self.succeeds() {
            _ if self.call == Call::Notify => "Forbidden",
            // Buildkite refuses it: an agent has the job by now, or an attempt before has finished it.
            false if self.call == Call::Finish && matches!(self.mode, Code(404 | 422)) => "ignored",
            true if self.call == Call::Finish && self.mode.is_carried_out() && is_retried => "ignored",
            true if self.call.is_of_buildkite() => "refused",
            true if self.call == Call::Job && self.mode.is_carried_out() && is_retried => "already-exists",
            true => "created",
            false => self.error_type(),
        }
    }

    /// Whether our Job exists after the first delivery.
    fn makes_job(self) -> bool {
        !self.call.is_of_buildkite() && (self.succeeds() || (self.call == Call::Job && self.mode.is_carried_out()))
    }

    /// A refusal of the registration is kept for ten minutes.
    fn outlives_the_fault(self) -> bool {
        self.call == Call::Register && self.error_type() == "InvalidAgentQueryRule"
    }

    fn timeout(self) -> Duration {
        match self.mode {
            // A try takes up to half of the time that is left. The third one must have enough.
            TooSlow | TooSlowAfter => Duration::from_secs(16),
            _ => Duration::from_secs(10),
        }
    }

    /// How long the same process waits after a failure before it asks again.
    fn pause(self) -> Duration {
        match (self.call, self.warm) {
            // Not every event of a burst with an unknown name lists the definitions.
            (Call::PodTemplates, true) => kept::REFRESH_PAUSE + Duration::from_secs(1),
            _ => Duration::ZERO,
        }
    }

    fn event(self) -> Event {
        self.event_of(UUID)
    }

    fn event_of(self, uuid: &str) -> Event {
        if matches!(self.call, Call::Register | Call::Reserve | Call::Finish) {
            return Event::scheduled().uuid(uuid).rules(["queue=kubernetes", "cpu=many"]);
        }
        // A name that the warm function does not know makes it list the definitions at once.
        event(uuid, if self.call == Call::PodTemplates && self.warm { "added" } else { "default" })
    }

    /// Handles an event that leaves the call of the cell to the next one.
    async fn warm_up(self, lab: &Lab, function: &Function) {
        match self.call {
            // The definition sets the token, so that neither SSM nor the Secret is needed.
            Call::Ssm | Call::Secret => function.succeed(event(EARLIER_UUID, "own")).await,
            // An ignored event needs no cluster.
            Call::DescribeCluster => function.succeed(OTHER_QUEUE).await,
            Call::PodTemplates | Call::Job => function.succeed(event(EARLIER_UUID, "default")).await,
            Call::Register | Call::Reserve | Call::Finish => function.succeed(self.event_of(EARLIER_UUID)).await,
            Call::Notify => {
                let answer = function.invoke(self.event_of(EARLIER_UUID)).await;
                assert!(matches!(answer, Answer::Error { .. }), "{answer}");
                Value::Null
            }
        };
        lab.aws.clear_faults();
        lab.kubernetes.put_pod_template(definition("added", &json!([])));
    }

    /// Makes the call of the start-up fail, so that it is left to the event.
    fn fail_start_up(self, lab: &Lab) {
        let call = match self.call {
            Call::Secret => Call::Ssm,
            call => call,
        };
        if call.is_of_aws() {
            lab.aws.inject(call.requests(), Fault::access_denied(), FOR_EVER);
        }
    }

    /// Returns how many faults are planned.
    fn inject(self, lab: &Lab) -> usize {
        let Self { mode, call, warm, times } = self;
        if mode == NameTaken {
            lab.kubernetes.put_job(json!({"metadata": {"name": JOB, "labels": {UUID_LABEL: "another"}}}));
            return 0;
        }
        let (when, times) = match (mode.is_of_connections(), warm) {
            (false, _) => (call.requests(), times),
            // SSM and EKS are one server in the lab, and are asked side by side: each has to meet as many.
            (true, false) if call == Call::DescribeCluster => (When::any(), times.saturating_mul(2)),
            (true, false) => (call.previous(), times),
            (true, true) => (When::any(), times),
        };
        if call.is_of_aws() {
            lab.aws.inject(when, mode.fault(call), times);
        } else if call.is_of_buildkite() {
            lab.buildkite.inject(when, mode.fault(call), times);
        } else {
            lab.kubernetes.inject(when, mode.fault(call), times);
        }
        times
    }

    /// `roots` is a file of this cell.
    async fn run(self, roots: String) -> Verdict {
        let lab = Lab::start().await;
        let token = json!([{"name": "BUILDKITE_AGENT_TOKEN", "value": "file:///var/run/token"}]);
        lab.kubernetes.put_pod_template(definition("own", &token));
        let mut function = lab.function(FUNCTION).timeout(self.timeout()).env("AWS_LAMBDA_LOG_LEVEL", "TRACE");
        if self.call.is_of_aws() {
            fs::write(&roots, lab.certificates.ca_pem()).unwrap();
            function = function.env("AWS_ENDPOINT_URL", lab.aws.https_url()).env("AWS_CA_BUNDLE", &roots);
        }
        if self.call.is_of_buildkite() {
            fs::write(&roots, lab.certificates.ca_pem()).unwrap();
            let endpoint = lab.buildkite.https_url();
            function = function.env("BUILDKITE_STACKS_ENDPOINT", endpoint).env("AWS_CA_BUNDLE", &roots);
        }
        for uuid in [EARLIER_UUID, UUID] {
            lab.buildkite.lock().schedule(&self.event_of(uuid), CLUSTER);
        }
        if self.call == Call::Notify {
            lab.kubernetes.forbid("create", "jobs");
        }
        if self.call == Call::DescribeCluster {
            function = function.env_remove("KUBERNETES_API_SERVER_ENDPOINT");
            function = function.env_remove("KUBERNETES_CERTIFICATE_AUTHORITY_DATA");
        }
        let (function, planned, met_before) = if self.warm {
            self.fail_start_up(&lab);
            let function = function.start();
            self.warm_up(&lab, &function).await;
            let met_before = met(&lab);
            (function, self.inject(&lab), met_before)
        } else {
            let planned = self.inject(&lab);
            (function.start(), planned, 0)
        };

        let mut problems = Vec::new();
        let mut check = |holds: bool, problem: String| problems.extend((!holds).then_some(problem));
        let answer = function.invoke(self.event()).await;
        let outcome = outcome(&answer);
        check(outcome == self.expected(), format!("{answer} instead of {}", self.expected()));
        let jobs = our_jobs(&lab);
        check(jobs == usize::from(self.makes_job()), format!("{jobs} Jobs of ours"));
        let met = met(&lab) - met_before;
        let is_retried = self.mode.retries(self.call) != Retries::Success;
        let required = if self.succeeds() && is_retried { planned } else { planned.min(1) };
        check(met >= required, format!("{met} faults met of {planned}"));

        if outcome == self.error_type() {
            sleep(self.pause()).await;
        }
        if self.times == FOR_EVER && self.mode.retries(self.call) == Retries::UntilDeadline {
            // A retry after the answer would arrive now.
            sleep(Duration::from_secs(1)).await;
        }
        lab.aws.clear_faults();
        lab.kubernetes.clear_faults();
        lab.buildkite.clear_faults();
        if self.mode == NameTaken {
            lab.kubernetes.remove_job(JOB);
        }
        lab.kubernetes.allow("create", "jobs");
        let answer = function.invoke(self.event()).await;
        let is_right = matches!(answer, Answer::Success(_)) != self.outlives_the_fault();
        check(is_right, format!("the next delivery, without the fault: {answer}"));
        let is_refused = self.call.is_of_buildkite() && self.call != Call::Notify;
        let jobs = our_jobs(&lab);
        check(jobs == usize::from(!is_refused), format!("{jobs} Jobs of ours after the next delivery"));
        let is_finished = lab.buildkite.lock().jobs[UUID].state == "finished";
        let must_be = is_refused && !self.outlives_the_fault();
        check(is_finished == must_be, format!("is it finished at Buildkite: {is_finished}"));
        let token = BASE64_STANDARD.encode(lab.agent_token());
        let secret = lab.kubernetes.secret("buildkite", "buildkite-agent-token");
        let is_right = secret.is_some_and(|secret| secret["data"]["token"] == token);
        check(is_right, "the Secret is absent or has another token".to_owned());

        function.stop().await;
        problems.extend(late_requests(&lab, self.timeout()));
        problems.extend(leaks(&lab).into_iter().map(|text| format!("a secret is in: {text}")));
        if !problems.is_empty() {
            problems.push(lab.timeline.to_string());
        }
        if self.call.is_of_aws() || self.call.is_of_buildkite() {
            fs::remove_file(roots).unwrap();
        }
        Verdict { outcome, problems }
    }
}

fn event(uuid: &str, definition: &str) -> Event {
    Event::scheduled().uuid(uuid).rules(["queue=kubernetes", &format!("pod-definition={definition}")])
}

fn definition(name: &str, env: &Value) -> Value {
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "agent", "image": "agent:4", "env": env}]});
    json!({"metadata": {"name": name}, "template": {"spec": spec}})
}

fn met(lab: &Lab) -> usize {
    lab.aws.faults_met() + lab.kubernetes.faults_met() + lab.buildkite.faults_met()
}

/// `created`, `already-exists`, or the type of an error.
fn outcome(answer: &Answer) -> String {
    match answer {
        Answer::Success(answer) => answer["outcome"].as_str().unwrap_or("?").to_owned(),
        Answer::Error { error_type, .. } | Answer::InitError { error_type, .. } => error_type.clone(),
        Answer::Exited(_) => "exited".to_owned(),
        Answer::TimedOut => "killed".to_owned(),
    }
}

fn our_jobs(lab: &Lab) -> usize {
    lab.kubernetes.jobs().iter().filter(|job| job["metadata"]["labels"][UUID_LABEL] == UUID).count()
}

/// The requests and connections that arrived after the deadline of their start-up or event, or after its answer.
fn late_requests(lab: &Lab, timeout: Duration) -> Vec<String> {
    let entries = lab.timeline.entries();
    let ends = entries.iter().filter_map(|Entry { at, kind, .. }| {
        let end = match kind {
            Kind::Started => *at + START_UP,
            Kind::Invoked { .. } => *at + timeout.saturating_sub(RESERVE),
            Kind::Answered(Answer::Success(_) | Answer::Error { .. }) => *at,
            _ => return None,
        };
        Some((*at, end + TRANSIT))
    });
    let ends: Vec<_> = ends.collect();
    let is_late = |at: Duration| ends.iter().rfind(|(begin, _)| *begin <= at).is_some_and(|(_, end)| at > *end);
    let requests = lab.aws.requests().into_iter().chain(lab.kubernetes.requests()).chain(lab.buildkite.requests());
    let requests = requests.map(|request| (request.at, format!("{} {}", request.method, request.path)));
    let connections = entries.iter().filter(|entry| matches!(entry.kind, Kind::Connected));
    let connections = connections.map(|entry| (entry.at, entry.to_string()));
    let late = requests.chain(connections).filter(|(at, _)| is_late(*at));
    late.map(|(at, what)| format!("after the deadline, at {:.3}: {what}", at.as_secs_f64())).collect()
}

/// By row, call and column.
type Verdicts = BTreeMap<(usize, usize, usize), Verdict>;

fn table(verdicts: &Verdicts) -> String {
    let mut lines = vec![line("fault", "call", &COLUMNS.map(|(column, ..)| column.to_owned()))];
    let is_run = |row: &usize| verdicts.keys().any(|(run, ..)| run == row);
    for (row, (mode, _)) in MODES.iter().enumerate().filter(|(row, _)| is_run(row)) {
        for (number, call) in CALLS.iter().enumerate() {
            let cells = [0, 1, 2, 3, 4, 5].map(|column| match verdicts.get(&(row, number, column)) {
                None => "-".to_owned(),
                Some(Verdict { outcome, problems }) => {
                    let short = match outcome.as_str() {
                        "already-exists" => "exists",
                        "AgentTokenUnavailable" => "NoToken",
                        "ClusterUnavailable" => "Unavailable",
                        "RejectedByApiServer" => "Rejected",
                        "InvalidAgentQueryRule" => "InvalidRule",
                        "BuildkiteUnavailable" => "NoBuildkite",
                        other => other,
                    };
                    format!("{short}{}", if problems.is_empty() { "" } else { " !" })
                }
            });
            lines.push(line(if number == 0 { mode } else { "" }, &format!("{call:?}"), &cells));
        }
    }
    lines.join("\n")
}

fn line(mode: &str, call: &str, cells: &[String; COLUMNS.len()]) -> String {
    let cells: String = cells.iter().map(|cell| format!("{cell:14}")).collect::<Vec<_>>().concat();
    format!("{mode:20}{call:17}{cells}").trim_end().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_at_every_call_ends_in_one_job_or_in_the_right_error() {
    let started = Instant::now();
    let wanted = env::var("FAULT_MATRIX").ok();
    let mut cells = Vec::new();
    for (row, (name, mode)) in MODES.into_iter().enumerate() {
        for (line, call) in CALLS.into_iter().enumerate() {
            for (column, (_, warm, times)) in COLUMNS.into_iter().enumerate() {
                let cell = Cell { mode, call, warm, times };
                if cell.exists() && wanted.as_ref().is_none_or(|wanted| name.contains(wanted)) {
                    cells.push(((row, line, column), cell));
                }
            }
        }
    }
    // The longest first.
    cells.sort_by_key(|(_, cell)| Reverse((cell.pause(), cell.timeout(), cell.times)));

    let mut verdicts = Verdicts::new();
    let mut running = JoinSet::new();
    for (place, cell) in cells {
        if running.len() >= CELLS_AT_ONCE {
            let (place, verdict) = running.join_next().await.unwrap().unwrap();
            verdicts.insert(place, verdict);
        }
        let roots = env::temp_dir().join(format!("agent-scheduler-fault-matrix-{}-{place:?}.pem", process::id()));
        running.spawn(async move { (place, cell.run(roots.display().to_string()).await) });
    }
    verdicts.extend(running.join_all().await);

    // libtest shows its own output only for a failure.
    let only = wanted.map(|wanted| format!("only the faults whose name contains {wanted:?}: ")).unwrap_or_default();
    let sum = format!("{only}{} cells, {} s; - cannot occur", verdicts.len(), started.elapsed().as_secs());
    stdout().write_all(format!("\n{}\n{sum}\n", table(&verdicts)).as_bytes()).unwrap();

    let bad = verdicts.iter().filter(|(_, verdict)| !verdict.problems.is_empty());
    let bad: Vec<_> = bad
        .map(|((row, line, column), verdict)| {
            format!("{}, {:?}, {}: {}", MODES[*row].0, CALLS[*line], COLUMNS[*column].0, verdict.problems.join("\n"))
        })
        .collect();
    assert!(!verdicts.is_empty() && bad.is_empty(), "{} cells are wrong\n{}", bad.len(), bad.join("\n\n"));
}
