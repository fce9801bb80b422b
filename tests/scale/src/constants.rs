//! The numbers of the model and their sources. Each is an option of the program.

/// Where a number comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Published documentation, source or measurement: an address, or a file of a public repository.
    Cited(&'static str),
    /// Our own measurement: the command, or the page that shows it.
    Measured(&'static str),
    /// This project's own code or template.
    Ours(&'static str),
    /// The day itself: the question, not the answer.
    Input,
    /// No source. The sensitivity table shows half and double of it.
    Assumed(&'static str),
}

pub struct Constant {
    /// As the field of [`Constants`], and with dashes as the option.
    pub name: &'static str,
    pub what: &'static str,
    pub unit: &'static str,
    pub value: f64,
    pub origin: Origin,
    pub field: fn(&mut Constants) -> &mut f64,
}

macro_rules! constants {
    ($($what:literal, $name:ident = $value:literal, $unit:literal, $origin:expr;)+) => {
        #[derive(Clone, Debug, PartialEq, clap::Args)]
        pub struct Constants {
            $(
                #[doc = $what]
                #[arg(long, value_name = $unit, default_value_t = $value)]
                pub $name: f64,
            )+
        }

        impl Default for Constants {
            fn default() -> Self {
                Self { $($name: $value),+ }
            }
        }

        impl Constants {
            /// Their list, in the order of a job's way.
            pub const ALL: &[Constant] = &[$(Constant {
                name: stringify!($name),
                what: $what,
                unit: $unit,
                value: $value,
                origin: $origin,
                field: |constants| &mut constants.$name,
            }),+];
        }
    };
}

use Origin::{Assumed, Cited, Input, Measured, Ours};

const ASYNC_ERRORS: Origin = Cited("https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-error-handling.html");
const SCALING: Origin = Cited("https://docs.aws.amazon.com/lambda/latest/dg/scaling-behavior.html");
const SSM_RETRIES: Origin =
    Ours("`src/aws.rs`; the SDK waits a random share of it, by `RetryConfig` of aws-smithy-types 1.9.3");
const SHARES: Origin = Cited(
    "kubernetes `staging/src/k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap/default.go`: `global-default` has 20 of 245 shares",
);
const CONTROLLER_QPS: Origin = Cited(
    "https://kubernetes.io/docs/reference/command-line-tools-reference/kube-controller-manager/; EKS does not publish its own",
);
const PER_JOB: Origin = Measured("`tests/scale/requests-per-job <tests/fixtures/job.json`");
const STACK: Origin = Cited("buildkite/agent-stack-k8s `cmd/controller/flags.go`");
const FLOW_CONTROL: Origin = Cited("https://kubernetes.io/docs/concepts/cluster-administration/flow-control");

constants! {
    "Jobs of the day", jobs_per_day = 1_000_000.0, "jobs", Input;
    "Jobs of one burst", burst = 10_000.0, "jobs", Input;
    "Bursts of the day, evenly spread; the first half an interval after midnight", bursts = 12.0, "bursts", Input;
    "Length of a burst", burst_seconds = 5.0, "s", Input;
    "How far the other jobs' rate swings around its mean, highest at 14:00", swing = 0.8, "of the mean", Input;
    "Median run of a job", job_median = 180.0, "s", Input;
    "Spread of the runs: sigma of their log-normal distribution", job_sigma = 1.15, "ln s", Input;
    "Longest run of a job", job_longest = 21_600.0, "s", Ours("`template.yml`, JobActiveDeadlineSeconds");
    "Until a pod that was made runs: node, image, start", pod_start = 30.0, "s", Assumed("a node with room and the image on it");

    "EventBridge, from event to target, p90", eventbridge_p90 = 0.080, "s", Cited("AWS architecture blog, by way of https://earezki.com/ai-news/2026-02-04-mastering-millisecond-latency-and-millions-of-events-the-event-driven-architecture-behind-the-amazon-key-suite/");
    "The same, p99", eventbridge_p99 = 0.129, "s", Assumed("we remember it from a notice of AWS, and did not find that again");
    "EventBridge's invocations; more are delayed", eventbridge_rate = 18_750.0, "1/s", Cited("https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-quota.html (us-east-1, us-west-2, eu-west-1; elsewhere 750 to 4,500)");

    "Environments of the function: the account's quota, or `ReservedConcurrency`", concurrency = 1_000.0, "environments", Cited("https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html");
    "Environments that Lambda adds within ten seconds", scale_step = 1_000.0, "environments", SCALING;
    "Until a new environment runs the function", environment_start = 0.1, "s", Assumed("published figures begin with the init");
    "An idle environment is kept", environment_idle = 600.0, "s", Assumed("AWS does not say");
    "Wait after the first failed run", retry_first = 60.0, "s", ASYNC_ERRORS;
    "Wait after the second", retry_second = 120.0, "s", ASYNC_ERRORS;
    "First wait of an event that finds no environment; doubles", throttle_first = 1.0, "s", ASYNC_ERRORS;
    "Longest such wait", throttle_most = 300.0, "s", ASYNC_ERRORS;
    "Shortest share of such a wait; the longest is all of it", throttle_share = 0.5, "of the wait", Assumed("AWS names no jitter; without any, all events of a burst would come back at once");
    "Oldest event that Lambda still runs", event_age = 21_600.0, "s", Ours("`template.yml`, MaximumEventAgeInSeconds");
    "Memory of the function", memory = 256.0, "MB", Ours("`template.yml`, MemorySize");
    "Memory that comes with one whole core", core_memory = 1_769.0, "MB", Cited("https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html");
    "What a run has for its requests: the timeout of 60 s less 2", deadline = 58.0, "s", Ours("`template.yml`, Timeout, less RESERVE of `src/deadline.rs`");
    "What the start-up has", startup = 5.0, "s", Ours("`src/main.rs`, START_TIMEOUT");

    "CPU of a start, on a whole core", cpu_start = 0.003_2, "s", Measured("docs/performance.md, `make bench`");
    "CPU of a warm event, on a whole core", cpu_event = 0.000_164, "s", Measured("docs/performance.md, `make bench`");
    "Age at which the token is read anew", token_age = 300.0, "s", Ours("`src/agent_token.rs`, AGE");
    "Age at which the pod definitions are listed anew", definitions_age = 60.0, "s", Ours("`src/library.rs`, AGE");
    "How long an event waits for either", refresh = 2.0, "s", Ours("`src/refresh.rs`, TIMEOUT");
    "When to look again after that failed", refresh_again = 30.0, "s", Ours("`src/refresh.rs`, AGAIN");

    "`GetParameter`, of all callers of the account and region", ssm_rate = 40.0, "1/s", Cited("https://docs.aws.amazon.com/general/latest/gr/ssm.html, by way of a 2022 article (dev.classmethod.jp)");
    "How many SSM takes at once after a pause", ssm_burst = 40.0, "requests", Assumed("one second of its rate");
    "An answer of SSM", ssm_latency = 0.015, "s", Assumed("within a region, KMS included");
    "First wait after SSM's throttling; doubles", ssm_backoff = 0.1, "s", SSM_RETRIES;
    "Longest such wait", ssm_backoff_most = 5.0, "s", SSM_RETRIES;

    "Writes that the API server of the cluster finishes; a read counts as one", api_rate = 470.0, "1/s", Measured("`make load`: a bare client, 32 connections, everything on two cores");
    "API servers", api_servers = 2.0, "servers", Cited("https://docs.aws.amazon.com/eks/latest/userguide/eks-architecture.html: at least two");
    "Requests that one API server runs at once", api_inflight = 600.0, "requests", Cited("https://kubernetes.io/docs/reference/command-line-tools-reference/kube-apiserver/: 400, and 200 that change something; EKS may give more");
    "Share of them that our requests get", api_shares = 20.0, "shares", SHARES;
    "Shares in all", api_shares_all = 245.0, "shares", SHARES;
    "Requests of one user that wait at one API server: six queues of 50", api_queue = 300.0, "requests", SHARES;
    "Longest wait there", api_queue_wait = 15.0, "s", Cited("kubernetes `staging/src/k8s.io/apiserver/pkg/server/config.go`: a quarter of the request timeout of 60 s");
    "`Retry-After` of a 429", retry_after = 1.0, "s", FLOW_CONTROL;
    "What the first pause of the function is a random share of, on top of that; doubles", api_backoff = 0.1, "s", Ours("`src/eks/api_server.rs`, FIRST_PAUSE");
    "Longest such pause", api_backoff_most = 5.0, "s", Ours("`src/eks/api_server.rs`, PAUSE");
    "Longest try of the function, and never more than half of what is left", api_try = 10.0, "s", Ours("`src/eks/api_server.rs`, TRY");
    "What must be left for another try, which has half of it", api_try_least = 0.5, "s", Ours("`src/eks/api_server.rs`, LEAST");
    "To the API server and back", network = 0.002, "s", Assumed("within a region, TLS kept open");

    "Requests of the Job controller, and of the TTL controller", controller_qps = 20.0, "1/s", CONTROLLER_QPS;
    "How many of them at once after a pause", controller_burst = 30.0, "requests", CONTROLLER_QPS;
    "Requests of the Job controller while a pod is made and starts: pod, Event, two updates of the status", requests_to_pod = 4.0, "requests", PER_JOB;
    "Its requests at the end of a Job: pod, Event, two updates of the status", requests_to_end = 4.0, "requests", PER_JOB;
    "Requests of the TTL controller for one Job", requests_to_delete = 2.0, "requests", PER_JOB;
    "Requests of the garbage collector for one Job and its pod", requests_to_collect = 7.15, "requests", PER_JOB;
    "What the garbage collector may ask, times the controllers' rate", collector_factor = 2.0, "times", Cited("kubernetes `cmd/kube-controller-manager/app/core.go`: `config.QPS *= 2`");
    "A finished Job is kept", job_ttl = 600.0, "s", Ours("`template.yml`, JobTtlSeconds");
    "A Job in etcd", job_bytes = 4_432.0, "bytes", PER_JOB;
    "A pod in etcd, without what a kubelet adds", pod_bytes = 3_785.0, "bytes", PER_JOB;
    "An Event in etcd", event_bytes = 766.0, "bytes", PER_JOB;
    "Events of one Job: 2 of the Job controller, the rest of scheduler and kubelet", events_per_job = 8.0, "Events", Assumed("scheduled, and pulled, created, started for two containers, less one");
    "An Event is kept", event_ttl = 3_600.0, "s", Cited("https://kubernetes.io/docs/reference/command-line-tools-reference/kube-apiserver/, `--event-ttl`");
    "Size of etcd's database at which writes end", etcd_quota = 8.0, "GB", Cited("https://docs.aws.amazon.com/eks/latest/userguide/clusters.html");

    "agent-stack-k8s asks Buildkite every", stack_poll = 1.0, "s", STACK;
    "Jobs that one question brings: two pages of 1,000", stack_page = 2_000.0, "jobs", STACK;
    "Its jobs in flight at most; 0 for no limit", stack_in_flight = 25.0, "jobs", STACK;
    "Its requests to the API server", stack_qps = 10.0, "1/s", STACK;
    "How many of them at once after a pause", stack_burst = 20.0, "requests", STACK;
    "Share of the API server that its service account gets", stack_shares = 100.0, "shares", Cited("kubernetes `staging/src/k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap/default.go`: `workload-low` has 100 of 245 shares, and queues as long");
    "Requests for one Job", stack_requests = 1.0, "requests", Cited("buildkite/agent-stack-k8s `internal/controller/scheduler/scheduler.go`; watches come on top");

    "One million requests of Lambda", price_requests = 0.20, "USD", Cited("https://docs.aws.amazon.com/whitepapers/latest/how-aws-pricing-works/lambda.html, list price");
    "One GB-second of Lambda on x86, init included", price_gb_second = 0.000_016_666_7, "USD", Cited("https://aws.amazon.com/lambda/pricing/, list price; init: https://aws.amazon.com/blogs/compute/aws-lambda-standardizes-billing-for-init-phase");
    "10,000 calls of SSM with higher throughput; none without", price_ssm = 0.05, "USD", Cited("https://aws.amazon.com/systems-manager/pricing/, list price, by way of summaries of 2026");
    "One GB into CloudWatch Logs", price_logs = 0.50, "USD", Cited("https://aws.amazon.com/cloudwatch/pricing/, list price us-east-1, by way of summaries of 2026");
    "Log of one event: our line, the metrics, Lambda's own START, END and REPORT", log_bytes = 1_800.0, "bytes", Assumed("the log of one event of `make run`, and some 500 bytes of Lambda's own");
}

impl Constants {
    /// The share of a core that the memory comes with.
    pub fn core_share(&self) -> f64 {
        (self.memory / self.core_memory).min(1.0)
    }

    /// Requests of one user that all API servers together run or keep waiting.
    pub fn api_places(&self) -> f64 {
        self.api_servers * (self.api_seats() + self.api_queue)
    }

    /// Requests of our priority level that one API server runs at once.
    pub fn api_seats(&self) -> f64 {
        (self.api_inflight * self.api_shares / self.api_shares_all).ceil()
    }

    /// As agent-stack-k8s meets them: with its share of the API server.
    #[must_use]
    pub fn of_stack(&self) -> Self {
        Self { api_shares: self.stack_shares, ..self.clone() }
    }

    /// Until an event of EventBridge reaches Lambda: mean and sigma of the logarithm, from the two percentiles.
    pub fn eventbridge_log(&self) -> (f64, f64) {
        // The quantiles of the normal distribution at 0.90 and 0.99.
        let (z90, z99) = (1.281_552, 2.326_348);
        let (p90, p99) = (self.eventbridge_p90.ln(), self.eventbridge_p99.ln());
        // A p99 below the p90 is impossible.
        let sigma = ((p99 - p90) / (z99 - z90)).max(0.0);
        (p90 - z90 * sigma, sigma)
    }

    /// Whether SSM's higher throughput is on, which is what costs.
    pub fn pays_for_ssm(&self) -> bool {
        self.ssm_rate > 40.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_to_its_own_field() {
        for constant in Constants::ALL {
            let mut constants = Constants::default();
            *(constant.field)(&mut constants) = -1.0;
            let text = format!("{constants:?}");
            assert!(text.contains(&format!(" {}: -1.0", constant.name)), "{}: {text}", constant.name);
        }
    }

    #[test]
    fn the_two_percentiles_of_eventbridge_come_out_again() {
        let (mean, sigma) = Constants::default().eventbridge_log();
        assert!(((mean + 1.281_552 * sigma).exp() - 0.080).abs() < 1e-9);
        assert!(((mean + 2.326_348 * sigma).exp() - 0.129).abs() < 1e-9);
    }

    #[test]
    fn our_priority_level_has_49_seats_of_600() {
        assert!((Constants::default().api_seats() - 49.0).abs() < f64::EPSILON);
    }
}
