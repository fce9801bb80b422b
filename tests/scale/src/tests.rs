//! What must hold in every simulated day, and what pencil and paper say of the simple ones.
use std::{fs, path::Path};

use crate::{
    agenda::{SECOND, in_seconds},
    constants::{Constant, Constants, Origin},
    day::Day,
    function, page, runs, stack, tables,
};

/// Some jobs, all in one burst at noon.
fn burst(jobs: f64) -> Constants {
    Constants { jobs_per_day: jobs, burst: jobs, bursts: 1.0, burst_seconds: 0.001, ..Constants::default() }
}

fn small() -> Constants {
    Constants { jobs_per_day: 20_000.0, burst: 2_000.0, bursts: 3.0, ..Constants::default() }
}

/// Seconds from the first job to the last Job.
fn takes(day: &Day, seen: &function::Seen) -> f64 {
    in_seconds(seen.created.iter().flatten().max().unwrap() - day.arrivals[0])
}

#[test]
fn every_job_ends_in_a_job_or_in_the_failure_queue() {
    let troubles = [
        small(),
        Constants { concurrency: 2.0, ..small() },
        Constants { api_rate: 20.0, event_age: 60.0, ..small() },
        Constants { ssm_rate: 0.5, ssm_burst: 1.0, ..small() },
        Constants { api_rate: 3.0, api_queue: 1.0, api_inflight: 10.0, deadline: 5.0, ..small() },
    ];
    let mut failed = 0;
    for constants in troubles {
        let day = Day::new(&constants, 3);
        let seen = function::run(&constants, &day, 3);
        let mut given_up = vec![false; 20_000];
        for job in &seen.failed {
            assert!(!std::mem::replace(&mut given_up[*job], true), "job {job} is twice in the failure queue");
        }
        // Both, if the event was given up before the API server had its turn to make the Job.
        assert!((0..20_000).all(|job| given_up[job] || seen.created[job].is_some()), "a job is lost");
        assert_eq!((seen.waiting.now(), seen.starting.now()), (0, 0));
        failed += seen.failed.len();
    }
    assert!(failed > 0, "one of these days was meant to fail some");
}

#[test]
fn no_job_has_its_job_before_it_is_scheduled() {
    let day = Day::new(&small(), 3);
    let seen = function::run(&small(), &day, 3);
    assert!(day.arrivals.iter().zip(&seen.created).all(|(at, made)| made.unwrap() > *at));
}

#[test]
fn limits_hold_in_every_second() {
    let constants = Constants { concurrency: 150.0, ..small() };
    let day = Day::new(&constants, 3);
    let seen = function::run(&constants, &day, 3);
    assert_eq!(seen.environments.most(), 150);
    for second in 0..90_000 {
        // A full bucket, and what flows in meanwhile.
        assert!(seen.ssm.at(second) - seen.ssm_throttled.at(second) <= 80.0, "second {second}");
    }
    let per_second = seen.created.iter().flatten().fold(vec![0; 100_000], |mut counts, at| {
        counts[usize::try_from(at / SECOND).unwrap()] += 1;
        counts
    });
    let most = f64::from(per_second.into_iter().max().unwrap());
    assert!(most <= constants.api_rate + 1.0, "more Jobs than the API server finishes: {most}");
}

#[test]
fn a_burst_of_starts_takes_their_requests_at_the_rate_of_the_api_server() {
    let constants = Constants { ssm_rate: 10_000.0, ..burst(200.0) };
    let day = Day::new(&constants, 1);
    let seen = function::run(&constants, &day, 1);
    // A list, a Secret and a Job for each of 200; and some 0.3 s of delivery and start before that.
    assert_eq!((seen.starts, seen.incomplete, seen.given_up.total()), (200, 0, 0));
    let takes = takes(&day, &seen) - 600.0 / constants.api_rate;
    assert!((0.0..0.5).contains(&takes), "{takes}");
}

#[test]
fn a_burst_of_starts_waits_for_ssm() {
    let constants = Constants { api_rate: 100_000.0, ..burst(400.0) };
    let day = Day::new(&constants, 1);
    let seen = function::run(&constants, &day, 1);
    assert_eq!(seen.ssm.total() - seen.ssm_throttled.total(), seen.starts, "a start reads the token once");
    assert!(seen.starts > 390, "a few of the throttled find an environment that is warm by now");
    // 40 at once, and 40 a second in the five seconds that a start has.
    assert!((seen.starts - 240..=seen.starts - 200).contains(&seen.incomplete), "{}", seen.incomplete);
    // 40 at once, and 360 at 40 a second; what the random waits leave unused comes on top.
    let takes = takes(&day, &seen);
    assert!((9.0..25.0).contains(&takes), "{takes}");
}

#[test]
fn an_event_that_fails_three_times_is_in_the_failure_queue_after_its_two_waits() {
    let constants = Constants { ssm_rate: 1e-9, ssm_burst: 0.0, ..burst(50.0) };
    let day = Day::new(&constants, 1);
    let seen = function::run(&constants, &day, 1);
    assert_eq!((seen.failed.len(), seen.errors), (50, 150));
    assert!(seen.created.iter().all(Option::is_none));
    // A start and three runs, with a minute and then two between them.
    let wait: Vec<_> = (0..90_000).map(|second| seen.waiting.at(second) > 49.5).collect();
    let waits: Vec<_> = wait.chunk_by(|one, next| one == next).map(|same| (same[0], same.len())).collect();
    let [_, (true, first), (false, run), (true, second), _] = waits[..] else { panic!("{waits:?}") };
    assert!(first.abs_diff(60) <= 1 && run.abs_diff(58) <= 2 && second.abs_diff(120) <= 1, "{waits:?}");
}

/// The way of a single job, and what it took from the start of its environment on.
fn one(changes: &Constants) -> (function::Seen, f64) {
    let at_once = Constants {
        environment_start: 0.0,
        cpu_start: 0.0,
        eventbridge_p90: 1e-3,
        eventbridge_p99: 1e-3,
        ..changes.clone()
    };
    let day = Day::new(&at_once, 1);
    let seen = function::run(&at_once, &day, 1);
    let takes = takes(&day, &seen) - 1e-3;
    (seen, takes)
}

#[test]
fn a_start_lists_the_definitions_while_it_waits_for_ssm() {
    let (seen, takes) = one(&Constants { ssm_latency: 1.0, network: 1.0, api_rate: 1e5, ..burst(1.0) });
    assert_eq!((seen.requests.total(), seen.incomplete), (3, 0));
    // Both of that, the Secret, and the Job on its way.
    assert!((takes - 2.5).abs() < 0.01, "{takes}");
}

#[test]
fn after_a_secret_that_failed_ssm_is_read_again_by_the_first_event() {
    let (seen, takes) = one(&Constants { ssm_latency: 0.0, network: 2.0, api_rate: 1e5, ..burst(1.0) });
    assert_eq!((seen.ssm.total(), seen.incomplete, seen.given_up.total()), (2, 1, 3));
    // The list takes 2 s of the start's 5, and the tries of the Secret half of 3, half of 1.5, and, after a pause of up to 0.1 s, half of
    // the rest; there is no time for a fourth. Then the Secret once more, and the Job on its way.
    let without_pause = 2.0 + 1.5 + 0.75 + 0.375 + 2.0 + 1.0;
    assert!((without_pause..without_pause + 0.051).contains(&takes), "{takes}");
}

#[test]
fn what_the_function_gives_up_is_done_by_the_api_server_all_the_same() {
    let (seen, takes) = one(&Constants { network: 0.0, api_rate: 1.0 / 3.0, ..burst(1.0) });
    assert_eq!((seen.incomplete, seen.given_up.total(), seen.requests.total()), (1, 4, 7));
    // Three lists of the start, the first event's, two Secrets, and the Job: each took its turn of 3 s.
    assert!((takes - 21.0).abs() < 0.01, "{takes}");
}

#[test]
fn a_warm_event_in_a_quiet_hour_takes_what_delivery_and_one_request_take() {
    let constants = Constants { jobs_per_day: 40_000.0, bursts: 1.0, burst: 0.0, ..Constants::default() };
    let day = Day::new(&constants, 1);
    let seen = function::run(&constants, &day, 1);
    let p50 = in_seconds(runs::times(&day, &seen.created, |_| true)[0]);
    // EventBridge's median, the CPU, half a round trip, and one create.
    let (mean, _) = constants.eventbridge_log();
    let expected = mean.exp() + constants.cpu_event / constants.core_share() + 0.001 + 1.0 / constants.api_rate;
    assert!((p50 / expected - 1.0).abs() < 0.05, "{p50} and not {expected}");
}

#[test]
fn agent_stack_k8s_makes_ten_jobs_a_second_and_keeps_25_in_flight() {
    let unlimited = Constants { stack_in_flight: 0.0, ..burst(1_020.0) };
    let day = Day::new(&unlimited, 1);
    let seen = stack::run(&unlimited, &day);
    let last = in_seconds(seen.created.iter().flatten().max().unwrap() - day.arrivals[0]);
    // 20 at once and 1,000 at ten a second, from the next look on.
    assert!((100.0..101.2).contains(&last), "{last}");

    let as_it_comes = burst(1_020.0);
    let seen = stack::run(&as_it_comes, &day);
    assert_eq!(seen.cluster.pods.most(), 25);
    let made = seen.created.iter().flatten().count() as u64;
    assert!(made - seen.cluster.ended <= 25);
}

#[test]
fn agent_stack_k8s_waits_for_the_api_server_as_the_function_does() {
    let constants = Constants { stack_in_flight: 0.0, stack_qps: 1e5, stack_burst: 1e5, ..burst(2_000.0) };
    let day = Day::new(&constants, 1);
    let seen = stack::run(&constants, &day);
    let last = in_seconds(seen.created.iter().flatten().max().unwrap() - day.arrivals[0]);
    // Those that found no place come again after a second, when others are done.
    assert!((0.0..2.0).contains(&(last - 2_000.0 / constants.api_rate)), "{last}");
    let seats = constants.of_stack().api_places();
    assert!((seats - 2.0 * (245.0 + 300.0)).abs() < f64::EPSILON, "{seats}");
}

fn file(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn every_number_has_a_source() {
    let makefile = file("Makefile");
    for Constant { name, origin, .. } in Constants::ALL {
        let quoted =
            |text: &'static str| text.split('`').nth(1).unwrap_or_else(|| panic!("{name} quotes nothing: {text}"));
        match origin {
            Origin::Cited(source) => {
                assert!(source.contains("https://") || quoted(source).contains(".go"), "{name}: {source}");
            }
            // A target of the Makefile, or a program of this project.
            Origin::Measured(source) => match quoted(source).strip_prefix("make ") {
                Some(target) => assert!(makefile.contains(&format!("\n{target}:")), "{name}: {source}"),
                None => assert!(!file(quoted(source).split(' ').next().unwrap()).is_empty()),
            },
            Origin::Ours(source) => assert!(!file(quoted(source)).is_empty()),
            Origin::Assumed(why) => assert!(why.split(' ').count() > 2, "{name} is assumed for no reason"),
            Origin::Input => {}
        }
    }
}

/// The number right behind a text that is there once.
fn behind(text: &str, before: &str) -> f64 {
    let [_, after] = text.split(before).collect::<Vec<_>>()[..] else { panic!("not there once: {before}") };
    let digits = after.split(|other: char| !other.is_ascii_digit() && other != '.').next().unwrap();
    digits.parse().unwrap_or_else(|_| panic!("no number behind {before}"))
}

/// Seconds of a `Duration` in a file of the function, behind a text that is there once.
fn duration(path: &str, before: &str) -> f64 {
    let text = file(path);
    let units = [("secs", 1.0), ("millis", 1e-3), ("mins", 60.0)];
    let before = units.map(|(unit, seconds)| (format!("{before}Duration::from_{unit}("), seconds));
    let found = before.iter().find(|(before, _)| text.contains(before));
    let (before, seconds) = found.unwrap_or_else(|| panic!("{path} has no {}", before[0].0));
    behind(&text, before) * seconds
}

#[test]
fn what_is_ours_is_what_the_function_and_its_template_say() {
    let constant = |path: &str, name: &str| duration(path, &format!("const {name}: Duration = "));
    let template = file("template.yml");
    let parameter = |name: &str| {
        let [_, after] = template.split(&format!("\n  {name}:\n")).collect::<Vec<_>>()[..] else { panic!("{name}") };
        behind(after.split("\n\n").next().unwrap(), "Default: ")
    };
    let (aws, api_server) = ("src/aws.rs", "src/eks/api_server.rs");
    assert_eq!(template.matches("MaximumEventAgeInSeconds: 21600\n").count(), 2);
    let timeout = behind(&template, "\n      Timeout: ");
    let ours = [
        ("job_longest", parameter("JobActiveDeadlineSeconds")),
        ("event_age", 21_600.0),
        ("memory", behind(&template, "MemorySize: ")),
        ("deadline", timeout - constant("src/deadline.rs", "RESERVE")),
        ("startup", constant("src/main.rs", "START_TIMEOUT")),
        ("token_age", constant("src/agent_token.rs", "AGE")),
        ("definitions_age", constant("src/library.rs", "AGE")),
        ("refresh", constant("src/refresh.rs", "TIMEOUT")),
        ("refresh_again", constant("src/refresh.rs", "AGAIN")),
        ("ssm_backoff", duration(aws, "with_initial_backoff(")),
        ("ssm_backoff_most", constant(aws, "PAUSE")),
        ("api_backoff", constant(api_server, "FIRST_PAUSE")),
        ("api_backoff_most", constant(api_server, "PAUSE")),
        ("api_try", constant(api_server, "TRY")),
        ("api_try_least", constant(api_server, "LEAST")),
        ("job_ttl", parameter("JobTtlSeconds")),
    ];
    let all = Constants::ALL.iter().filter(|constant| matches!(constant.origin, Origin::Ours(_)));
    for constant in all {
        let said = ours.iter().find(|(name, _)| *name == constant.name);
        let (name, said) = said.unwrap_or_else(|| panic!("no comparison of {}", constant.name));
        assert!((constant.value - said).abs() < 1e-9, "{name} is {said}, and not {}", constant.value);
    }
}

#[test]
fn the_page_says_what_the_numbers_are() {
    let page = file("docs/scale.md");
    let constants = Constants::default();
    for (name, made) in tables::of_constants(&constants, &Day::new(&constants, 1)) {
        let mut now = page.clone();
        assert!(page::put(&mut now, &name, &made), "docs/scale.md has no place for {name}");
        assert!(now == page, "docs/scale.md has another {name}: `make scale` brings it up to date");
    }
}
