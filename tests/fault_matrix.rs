//! Every fault of the lab, at every call that the function makes, once, twice and for ever, on a cold and on a warm function:
//! the real binary against the lab, a process and a lab of its own for each cell, printed as a table.
//!
//! Each cell asks the same things. Is it a success, or an error of the right type, and is there a Job exactly if it should be?
//! Was the fault met? Did no request arrive when the time was up? Is the agent token in nothing that was printed, answered or
//! made? And, when the fault is gone, does the same event end in one Job of ours, and a Secret with the right token?
//!
//! What is expected follows from a few rules: [`Cell::can_exist`], [`Trouble::tries`] and [`Cell::error_type`].
//!
//! Cold: the fault is there before the process is. The start-up makes all calls but the last, and so may be the one that meets
//! the fault; the event then asks again. Warm: the function has served an event, and its connections are kept. What it would ask
//! again only after minutes is then still to be asked: [`Cell::warm_up`].
//!
//! `FAULT_MATRIX=503 cargo test --test fault_matrix` runs the rows whose name contains that, and says so.

#![expect(clippy::unwrap_used, reason = "a test says so by ending")]

use std::{
    collections::BTreeMap,
    env, fmt, fs,
    io::{Write, stdout},
    path::PathBuf,
    time::{Duration, Instant},
};

use agent_scheduler::refresh;
use base64::{Engine, prelude::BASE64_STANDARD};
use lab::{Answer, Certificate, Entry, Fault, Function, Kind, Lab, When, fault::ErrorAnswer};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};

const FUNCTION: &str = env!("CARGO_BIN_EXE_agent-scheduler");
const SCHEDULED: &str = include_str!("../events/job-scheduled.json");
const OTHER_QUEUE: &str = include_str!("../events/job-other-queue.json");
const UUID: &str = "11111111-2222-4333-8444-555555555501";
const EARLIER_UUID: &str = "11111111-2222-4333-8444-555555555500";
const JOB: &str = "buildkite-11111111-2222-4333-8444-555555555501";
const UUID_LABEL: &str = "buildkite.com/job-uuid";

/// Cells at a time. Most of them wait.
const SIDE_BY_SIDE: usize = 24;

/// How long the start-up may take.
const START_UP: Duration = Duration::from_secs(5);

/// What the function keeps of the time that Lambda gives it.
const RESERVE: Duration = Duration::from_secs(2);

/// What a busy machine may need to bring a request that was sent in time, and to note it.
const ON_THE_WAY: Duration = Duration::from_millis(500);

/// Past every deadline here.
const FOREVER: Duration = Duration::from_mins(1);

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
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
    RetryTooLate,
    /// A Job of that name that somebody else made.
    NameTaken,
}

use Trouble::{
    Code, CutHandshake, CutWithin, Empty, ExpiredCertificate, Garbage, NameTaken, Refused, ResetAfter, ResetBefore,
    RetryAfter, RetryTooLate, Slow, TooSlow, TooSlowAfter,
};

const TROUBLES: [Trouble; 23] = [
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
    Code(401),
    Code(403),
    Code(409),
    NameTaken,
    Code(422),
    Code(429),
    RetryAfter,
    RetryTooLate,
    Code(500),
    Code(502),
    Code(503),
    Code(504),
];

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refused => "refused",
            CutHandshake => "TLS handshake cut",
            ExpiredCertificate => "expired certificate",
            ResetBefore => "reset, nothing done",
            ResetAfter => "reset, all done",
            CutWithin => "TLS cut in answer",
            Slow => "slow",
            TooSlow => "too slow, not done",
            TooSlowAfter => "too slow, all done",
            Garbage => "garbage body",
            Empty => "empty body",
            Code(409) => "409 conflict",
            NameTaken => "409 another's",
            Code(code) => return write!(f, "{code}"),
            RetryAfter => "429 Retry-After",
            RetryTooLate => "429 after deadline",
        })
    }
}

/// How often the same request is tried before the function takes the answer for what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tries {
    /// There is nothing wrong with it.
    Harmless,
    /// It would be the same again.
    One,
    /// It may be our token: once more, with a new one.
    Two,
    /// It may pass: until the deadline.
    Many,
}

impl Trouble {
    fn tries(self, call: Call) -> Tries {
        match self {
            Slow => Tries::Harmless,
            // Of the answer to a request that makes something, only the status counts.
            Garbage | Empty if matches!(call, Call::Job | Call::Secret) => Tries::Harmless,
            Code(401) if !call.is_of_aws() => Tries::Two,
            Code(401 | 403 | 409 | 422) | NameTaken | Garbage | Empty | ExpiredCertificate | RetryTooLate => Tries::One,
            _ => Tries::Many,
        }
    }

    /// The server does what it is asked; it is the answer that does not come, or not as it should.
    fn is_carried_out(self) -> bool {
        matches!(self, ResetAfter | CutWithin | TooSlowAfter | Garbage | Empty)
    }

    fn is_of_connections(self) -> bool {
        matches!(self, Refused | CutHandshake | ExpiredCertificate)
    }

    fn fault(self, call: Call) -> Fault {
        let status = |code, reason, message: Option<&str>| {
            Fault::Status(ErrorAnswer { code, reason, message: message.map(str::to_owned), retry_after: None })
        };
        match self {
            Refused => Fault::Refuse,
            CutHandshake => Fault::CutHandshake,
            ExpiredCertificate => Fault::Show(Certificate::Expired),
            ResetBefore => Fault::ResetBefore,
            ResetAfter => Fault::ResetAfter,
            CutWithin => Fault::CutWithin,
            Slow => Fault::Delay(Duration::from_millis(700)),
            TooSlow => Fault::Delay(FOREVER),
            TooSlowAfter => Fault::DelayAfter(FOREVER),
            Garbage => Fault::Garbage,
            Empty => Fault::Empty,
            RetryAfter => Fault::throttled(Duration::from_secs(1)),
            RetryTooLate => Fault::throttled(FOREVER),
            NameTaken => unreachable!("a Job that is there is no fault of the server"),
            // SSM and EKS have words of their own for who may not.
            Code(401) if call.is_of_aws() => status(
                400,
                Some("UnrecognizedClientException"),
                Some("The security token included in the request is invalid."),
            ),
            Code(403) if call.is_of_aws() => Fault::access_denied(),
            Code(429) if call.is_of_aws() => Fault::throttling(),
            Code(503) if call.is_of_aws() => status(503, Some("ServiceUnavailable"), Some("Please try again later.")),
            Code(403) => {
                let (verb, resource) = call.permission();
                let message = format!(
                    "{resource} is forbidden: User \"{user}\" cannot {verb} resource \"{resource}\" in API group \"\" in the namespace \
                     \"buildkite\"",
                    user = lab::kubernetes::USER
                );
                status(403, None, Some(&message))
            }
            // As of a quota that many change at once; and as of a Secret that another stack applies.
            Code(409) if call == Call::Job => status(
                409,
                Some("Conflict"),
                Some(
                    "Operation cannot be fulfilled on resourcequotas \"builds\": the object has been modified; please apply your \
                     changes to the latest version and try again",
                ),
            ),
            Code(409) => status(
                409,
                Some("Conflict"),
                Some("Apply failed with 1 conflict: conflict with \"another-stack\": .data.token"),
            ),
            Code(code) => Fault::status(code),
        }
    }
}

/// What the function asks for, in this order; the first two side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Ssm,
    DescribeCluster,
    PodTemplates,
    Secret,
    Job,
}

const CALLS: [Call; 5] = [Call::Ssm, Call::DescribeCluster, Call::PodTemplates, Call::Secret, Call::Job];

impl Call {
    fn is_of_aws(self) -> bool {
        matches!(self, Self::Ssm | Self::DescribeCluster)
    }

    fn requests(self) -> When {
        match self {
            Self::Ssm => When::action("GetParameter"),
            Self::DescribeCluster => When::action("DescribeCluster"),
            Self::PodTemplates => When::request("GET", "/podtemplates"),
            Self::Secret => When::request("PATCH", "/secrets"),
            Self::Job => When::request("POST", "/jobs"),
        }
    }

    /// What a cold function has asked the same server before, if anything.
    fn before(self) -> When {
        match self {
            Self::Ssm | Self::DescribeCluster | Self::PodTemplates => When::any(),
            Self::Secret => Self::PodTemplates.requests(),
            Self::Job => Self::Secret.requests(),
        }
    }

    fn permission(self) -> (&'static str, &'static str) {
        match self {
            Self::PodTemplates => ("list", "podtemplates"),
            Self::Secret => ("patch", "secrets"),
            _ => ("create", "jobs"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Times {
    Once,
    Twice,
    Ever,
}

impl Times {
    fn count(self) -> usize {
        match self {
            Self::Once => 1,
            Self::Twice => 2,
            Self::Ever => usize::MAX,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Cold,
    Warm,
}

const COLUMNS: [(State, Times); 6] = [
    (State::Cold, Times::Once),
    (State::Cold, Times::Twice),
    (State::Cold, Times::Ever),
    (State::Warm, Times::Once),
    (State::Warm, Times::Twice),
    (State::Warm, Times::Ever),
];

#[derive(Clone, Copy, Debug)]
struct Cell {
    trouble: Trouble,
    call: Call,
    state: State,
    times: Times,
}

/// What came of a cell.
struct Verdict {
    /// For the table.
    text: String,
    problems: Vec<String>,
}

impl Cell {
    fn can_exist(self) -> bool {
        match self.trouble {
            // A Job is there or it is not; that is no matter of times.
            NameTaken => self.call == Call::Job && self.times == Times::Ever,
            // Nothing is written, so nothing conflicts, and nothing is judged.
            Code(409 | 422) => matches!(self.call, Call::Secret | Call::Job),
            // The services of AWS do not say when to come again, and have no 502 and 504 of their own.
            RetryAfter | RetryTooLate | Code(502 | 504) => !self.call.is_of_aws(),
            _ => true,
        }
    }

    /// The start-up makes all calls but the last.
    fn askings(self) -> usize {
        if self.state == State::Cold && self.call != Call::Job { 2 } else { 1 }
    }

    fn succeeds(self) -> bool {
        let times = self.times.count();
        match self.trouble.tries(self.call) {
            Tries::Harmless => true,
            Tries::One => times < self.askings(),
            Tries::Two => times < 2 * self.askings(),
            Tries::Many => self.times != Times::Ever,
        }
    }

    /// As README has them.
    fn error_type(self) -> &'static str {
        match (self.call, self.trouble) {
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
        let made_unheard =
            self.call == Call::Job && self.trouble.is_carried_out() && self.trouble.tries(self.call) == Tries::Many;
        match self.succeeds() {
            true if made_unheard => "already-exists",
            true => "created",
            false => self.error_type(),
        }
    }

    /// Whether the Job is there, ours and before the event is delivered once more.
    fn makes_job(self) -> bool {
        self.succeeds() || (self.call == Call::Job && self.trouble.is_carried_out())
    }

    /// Two seconds of it are kept.
    fn timeout(self) -> Duration {
        match self.trouble {
            // A try takes up to half of the time, with SSM and EKS each of them; the third must have enough left.
            TooSlow | TooSlowAfter => Duration::from_secs(16),
            _ => Duration::from_secs(10),
        }
    }

    /// How long until the same process may ask once more, after it has failed.
    fn again(self) -> Duration {
        match (self.call, self.state) {
            // Not every event of a burst with an unknown name shall list them.
            (Call::PodTemplates, State::Warm) => refresh::AGAIN + Duration::from_secs(1),
            _ => Duration::ZERO,
        }
    }

    fn event(self) -> String {
        match (self.call, self.state) {
            // Unknown until now, so it is looked for at once.
            (Call::PodTemplates, State::Warm) => event(UUID, "added"),
            _ => event(UUID, "default"),
        }
    }

    /// Serves an event, after which the call of this cell is still to be made by the next one.
    async fn warm_up(self, lab: &Lab, function: &Function) -> Vec<Answer> {
        let answer = match self.call {
            // The pod of this one needs no token of ours, so that neither SSM nor the Secret has to be there.
            Call::Ssm | Call::Secret => function.invoke(event(EARLIER_UUID, "own")).await,
            // And this one needs no cluster.
            Call::DescribeCluster => function.invoke(OTHER_QUEUE).await,
            Call::PodTemplates | Call::Job => function.invoke(event(EARLIER_UUID, "default")).await,
        };
        lab.aws.clear_faults();
        lab.kubernetes.put_pod_template(definition("added", &json!([])));
        vec![answer]
    }

    /// What has to fail at first, so that a function can be warm and not have asked.
    fn keep_from_asking(self, lab: &Lab) {
        if matches!(self.call, Call::Ssm | Call::Secret) {
            lab.aws.inject(Call::Ssm.requests(), Fault::access_denied(), usize::MAX);
        }
        if self.call == Call::DescribeCluster {
            lab.aws.inject(self.call.requests(), Fault::access_denied(), usize::MAX);
        }
    }

    /// Returns how many faults are planned.
    fn plan(self, lab: &Lab) -> usize {
        let Self { trouble, call, state, times } = self;
        if trouble == NameTaken {
            lab.kubernetes.put_job(json!({"metadata": {"name": JOB, "labels": {UUID_LABEL: "another"}}}));
            return 0;
        }
        let (when, count) = match (trouble.is_of_connections(), state) {
            (false, _) => (call.requests(), times.count()),
            // SSM and EKS are one server in the lab, and are asked side by side: each has to meet as many.
            (true, State::Cold) if call == Call::DescribeCluster => (When::any(), times.count().saturating_mul(2)),
            (true, State::Cold) => (call.before(), times.count()),
            (true, State::Warm) => (When::any(), times.count()),
        };
        if call.is_of_aws() {
            lab.aws.inject(when, trouble.fault(call), count);
        } else {
            lab.kubernetes.inject(when, trouble.fault(call), count);
        }
        count
    }

    fn take_away(self, lab: &Lab) {
        lab.aws.clear_faults();
        lab.kubernetes.clear_faults();
        if self.trouble == NameTaken {
            lab.kubernetes.remove_job(JOB);
        }
    }

    async fn run(self, roots: Roots) -> Verdict {
        let lab = Lab::start().await;
        lab.kubernetes.put_pod_template(definition(
            "own",
            &json!([{"name": "BUILDKITE_AGENT_TOKEN", "value": "file:///var/run/token"}]),
        ));
        let mut planned = match self.state {
            State::Cold => self.plan(&lab),
            State::Warm => {
                self.keep_from_asking(&lab);
                0
            }
        };
        let mut builder = lab.function(FUNCTION).timeout(self.timeout()).env("AWS_LAMBDA_LOG_LEVEL", "TRACE");
        if self.call.is_of_aws() {
            fs::write(&roots.0, lab.certificates.ca_pem()).unwrap();
            builder = builder.env("AWS_ENDPOINT_URL", lab.aws.https_url());
            builder = builder.env("AWS_CA_BUNDLE", roots.0.display().to_string());
        }
        if self.call == Call::DescribeCluster {
            builder = builder.env_remove("KUBERNETES_API_SERVER_ENDPOINT");
            builder = builder.env_remove("KUBERNETES_CERTIFICATE_AUTHORITY_DATA");
        }
        let function = builder.start();
        let mut answers = Vec::new();
        let mut problems = Vec::new();
        let mut met_before = 0;
        if self.state == State::Warm {
            answers = self.warm_up(&lab, &function).await;
            if !matches!(answers[0], Answer::Success(_)) {
                problems.push(format!("the event before: {}", answers[0]));
            }
            met_before = met(&lab);
            planned = self.plan(&lab);
        }

        let answer = function.invoke(self.event()).await;
        let text = outcome(&answer);
        if text != self.expected() {
            problems.push(format!("{answer} instead of {}", self.expected()));
        }
        let jobs = ours(&lab);
        if jobs != usize::from(self.makes_job()) {
            problems.push(format!("{jobs} Jobs of ours"));
        }
        let met = met(&lab) - met_before;
        if self.trouble != NameTaken && (met == 0 || met < planned && self.must_meet_all()) {
            problems.push(format!("{met} faults met of {planned}"));
        }
        answers.push(answer);

        if text == self.error_type() {
            sleep(self.again()).await;
        }
        if self.times == Times::Ever && self.trouble.tries(self.call) == Tries::Many {
            // A try that outlived its event would show now.
            sleep(Duration::from_secs(1)).await;
        }
        self.take_away(&lab);
        let answer = function.invoke(self.event()).await;
        if !matches!(answer, Answer::Success(_)) {
            problems.push(format!("the next delivery, without the fault: {answer}"));
        }
        answers.push(answer);
        let jobs: Vec<_> = lab.kubernetes.jobs().into_iter().filter(|job| job["metadata"]["name"] == JOB).collect();
        if (jobs.len(), ours(&lab)) != (1, 1) {
            problems.push(format!("the next delivery, without the fault: {} Jobs, {} of ours", jobs.len(), ours(&lab)));
        }
        let token = BASE64_STANDARD.encode(lab.agent_token());
        let secret = lab.kubernetes.secret("buildkite", "buildkite-agent-token");
        if secret.is_none_or(|secret| secret["data"]["token"] != token) {
            problems.push("the Secret is not there, or has another token".to_owned());
        }

        problems.extend(too_late(&lab, self.timeout()));
        let printed = function.stop().await.text;
        for text in [&printed, &format!("{answers:?}"), &format!("{:?}", lab.kubernetes.jobs())] {
            if text.contains(lab.agent_token()) || text.contains(&token) || text.contains("k8s-aws-v1.") {
                problems.push(format!("a token is in: {text}"));
            }
        }
        if !problems.is_empty() {
            problems.push(lab.timeline.to_string());
        }
        Verdict { text, problems }
    }

    /// A success may come before all that was planned if each of them is harmless.
    fn must_meet_all(self) -> bool {
        self.succeeds() && self.trouble.tries(self.call) != Tries::Harmless
    }
}

/// The file of a lab's authority, gone with this.
struct Roots(PathBuf);

impl Drop for Roots {
    fn drop(&mut self) {
        // Most cells need none.
        let _ = fs::remove_file(&self.0);
    }
}

fn event(uuid: &str, definition: &str) -> String {
    let mut event: Value = serde_json::from_str(SCHEDULED).unwrap();
    event["detail"]["job"]["uuid"] = json!(uuid);
    event["detail"]["job"]["agent_query_rules"] = json!(["queue=default", format!("pod-definition={definition}")]);
    event.to_string()
}

fn definition(name: &str, env: &Value) -> Value {
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "agent", "image": "agent:4", "env": env}]});
    json!({"metadata": {"name": name}, "template": {"spec": spec}})
}

fn met(lab: &Lab) -> usize {
    lab.aws.faults_met() + lab.kubernetes.faults_met()
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

fn ours(lab: &Lab) -> usize {
    let is_ours = |job: &Value| job["metadata"]["labels"][UUID_LABEL] == UUID;
    lab.kubernetes.jobs().iter().filter(|job| is_ours(job)).count()
}

/// The requests and connections that came when the time was up of the start-up or the event that they belong to, or when that
/// had its answer.
fn too_late(lab: &Lab, timeout: Duration) -> Vec<String> {
    let entries = lab.timeline.entries();
    let ends = entries.iter().filter_map(|Entry { at, kind, .. }| {
        let end = match kind {
            Kind::Started => *at + START_UP,
            Kind::Invoked { .. } => *at + timeout.saturating_sub(RESERVE),
            Kind::Answered(Answer::Success(_) | Answer::Error { .. }) => *at,
            _ => return None,
        };
        Some((*at, end + ON_THE_WAY))
    });
    let ends: Vec<_> = ends.collect();
    let is_late = |at: Duration| ends.iter().rfind(|(begin, _)| *begin <= at).is_some_and(|(_, end)| at > *end);
    let requests = lab.aws.requests().into_iter().chain(lab.kubernetes.requests());
    let requests = requests.map(|request| (request.at, format!("{} {}", request.method, request.path)));
    let connections = entries.iter().filter(|entry| matches!(entry.kind, Kind::Connected));
    let connections = connections.map(|entry| (entry.at, entry.to_string()));
    let late = requests.chain(connections).filter(|(at, _)| is_late(*at));
    late.map(|(at, what)| format!("when the time was up, at {:.3}: {what}", at.as_secs_f64())).collect()
}

/// As it stands in the table.
fn short(outcome: &str) -> &str {
    match outcome {
        "already-exists" => "exists",
        "AgentTokenUnavailable" => "NoToken",
        "ClusterUnavailable" => "Unavailable",
        "RejectedByApiServer" => "Rejected",
        other => other,
    }
}

fn table(troubles: &[Trouble], verdicts: &BTreeMap<(usize, usize, usize), Verdict>) -> String {
    let columns = COLUMNS.map(|(state, times)| format!("{state:?} {times:?}").to_lowercase());
    let mut lines = vec![line("fault", "call", &columns)];
    for (row, trouble) in troubles.iter().enumerate() {
        for (number, call) in CALLS.iter().enumerate() {
            let cells = [0, 1, 2, 3, 4, 5].map(|column| match verdicts.get(&(row, number, column)) {
                None => "-".to_owned(),
                Some(Verdict { text, problems }) if problems.is_empty() => short(text).to_owned(),
                Some(Verdict { text, .. }) => format!("{} !", short(text)),
            });
            let name = if number == 0 { trouble.to_string() } else { String::new() };
            lines.push(line(&name, &format!("{call:?}"), &cells));
        }
    }
    lines.join("\n")
}

fn line(fault: &str, call: &str, cells: &[String; COLUMNS.len()]) -> String {
    let cells: String = cells.iter().map(|cell| format!("{cell:14}")).collect::<Vec<_>>().concat();
    format!("{fault:20}{call:17}{cells}").trim_end().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_at_every_call_ends_in_one_job_or_in_the_right_error() {
    let started = Instant::now();
    let wanted = env::var("FAULT_MATRIX").ok();
    let is_wanted = |trouble: &Trouble| wanted.as_ref().is_none_or(|wanted| trouble.to_string().contains(wanted));
    let troubles: Vec<_> = TROUBLES.into_iter().filter(is_wanted).collect();
    let mut cells = Vec::new();
    for (row, trouble) in troubles.iter().enumerate() {
        for (line, call) in CALLS.iter().enumerate() {
            for (column, (state, times)) in COLUMNS.iter().enumerate() {
                let cell = Cell { trouble: *trouble, call: *call, state: *state, times: *times };
                cells.push(((row, line, column), cell));
            }
        }
    }
    let all = cells.len();
    cells.retain(|(_, cell)| cell.can_exist());
    let impossible = all - cells.len();
    // Those that wait longest come first.
    cells.sort_by_key(|(_, cell)| std::cmp::Reverse((cell.again(), cell.timeout(), cell.times == Times::Ever)));

    let mut verdicts = BTreeMap::new();
    let mut running = JoinSet::new();
    for (place, cell) in cells {
        if running.len() >= SIDE_BY_SIDE {
            let (place, verdict) = running.join_next().await.unwrap().unwrap();
            verdicts.insert(place, verdict);
        }
        let (row, line, column) = place;
        let roots = format!("agent-scheduler-fault-matrix-{}-{row}-{line}-{column}.pem", std::process::id());
        let roots = Roots(env::temp_dir().join(roots));
        running.spawn(async move { (place, cell.run(roots).await) });
    }
    verdicts.extend(running.join_all().await);

    // Past libtest, which would show it only of a failure.
    let (table, seconds) = (table(&troubles, &verdicts), started.elapsed().as_secs());
    let only = wanted.map(|wanted| format!("only the faults whose name contains {wanted:?}: ")).unwrap_or_default();
    let sum = format!("{only}{} cells, {impossible} that cannot be (-), {seconds} s", verdicts.len());
    stdout().write_all(format!("\n{table}\n{sum}\n").as_bytes()).unwrap();

    let bad = verdicts.iter().filter(|(_, verdict)| !verdict.problems.is_empty());
    let bad: Vec<_> = bad
        .map(|((row, line, column), verdict)| {
            let (state, times) = COLUMNS[*column];
            format!("{}, {:?}, {state:?} {times:?}: {}", troubles[*row], CALLS[*line], verdict.problems.join("\n"))
        })
        .collect();
    assert!(
        !verdicts.is_empty() && bad.is_empty(),
        "{} cells are not as they should be\n{}",
        bad.len(),
        bad.join("\n\n")
    );
}
