//! The tables of docs/scale.md, in Markdown.

use std::time::Duration;

use simulation::{day, plan::Server};

use crate::{Outcome, Waits, in_bursts, percentile, sorted};

/// List prices of Lambda in us-east-1: a million requests, and a GB-second on x86.
const REQUESTS_USD: f64 = 0.20;
const GB_SECOND_USD: f64 = 0.000_016_666_7;

/// `MemorySize` in GB.
const MEMORY: f64 = 0.25;

/// From the schedule of a job to its Kubernetes Job.
pub fn to_the_job(outcomes: &[Outcome], peers: &[(&str, Waits)]) -> String {
    let ours = outcomes.iter().map(|outcome| (outcome.name, &outcome.waits));
    let rows = ours.chain(peers.iter().map(|(name, waits)| (*name, waits))).map(|(name, waits)| {
        let (all, bursts) = (sorted(waits), sorted(in_bursts(waits)));
        let by_midnight =
            |(at, wait): &&(Duration, Option<Duration>)| wait.is_some_and(|wait| *at + wait <= day::LENGTH);
        let late = whole(waits.len() - waits.iter().filter(by_midnight).count());
        let p50 = time(&all, 500);
        let [b50, b90, b99] = [500, 900, 990].map(|share| time(&bursts, share));
        let longest = time(&all, 1_000);
        format!("{name} | {p50} | {b50} | {b90} | {b99} | {longest} | {late}")
    });
    table("scheduler | all p50 | burst p50 | burst p90 | burst p99 | longest | without Job at midnight", rows)
}

/// What the function had to do, and what it met.
pub fn in_the_way(outcomes: &[Outcome]) -> String {
    let rows = outcomes.iter().map(|Outcome { name, seen, .. }| {
        let of = |server, is: fn(u16) -> bool| {
            let answers = seen.answers.iter().filter(|((of, status), _)| *of == server && is(*status));
            answers.map(|(_, count)| count).sum::<usize>()
        };
        let counts = [
            seen.invocations,
            seen.starts,
            seen.most_environments,
            of(Server::Aws, |_| true),
            of(Server::Aws, |status| status == 400),
            of(Server::Kubernetes, |_| true),
            of(Server::Kubernetes, |status| status == 429),
            of(Server::Buildkite, |_| true),
            of(Server::Buildkite, |status| status == 429),
        ];
        let requests = f64::from(u32::try_from(seen.invocations).unwrap_or(u32::MAX));
        let usd = requests / 1e6 * REQUESTS_USD + seen.worked.as_secs_f64() * MEMORY * GB_SECOND_USD;
        format!("{name} | {} | {usd:.2}", counts.map(whole).join(" | "))
    });
    let head = "setting | invocations | starts | environments, most | SSM | throttled | API server | 429 | Buildkite | 429 | \
                Lambda, USD";
    table(head, rows)
}

/// What becomes of the Jobs.
pub fn in_the_cluster(outcomes: &[Outcome]) -> String {
    let rows = outcomes.iter().map(|Outcome { name, seen, .. }| {
        let mut waits = seen.pod_waits.clone();
        waits.sort_unstable();
        let [p50, p99, longest] = [500, 990, 1_000].map(|share| time(&waits, share));
        format!("{name} | {} | {p50} | {p99} | {longest} | {}", whole(seen.most_jobs), whole(seen.finished))
    });
    table("setting | Jobs, most | Job to pod p50 | p99 | longest | finished by the sweep", rows)
}

/// Puts a table into its place in a page.
pub fn put(page: &mut String, name: &str, table: &str) {
    let begin = format!("<!-- {name} -->\n");
    let place = page.find(&begin).unwrap_or_else(|| panic!("the page has no {begin}")) + begin.len();
    let length = page[place..].find("<!-- end -->").expect("a place has an end");
    page.replace_range(place..place + length, table);
}

/// The time that so many thousandths do not exceed, for people.
fn time(sorted: &[Duration], thousandths: usize) -> String {
    match percentile(sorted, thousandths).map(|time| time.as_secs_f64()) {
        None => "-".to_owned(),
        Some(seconds) if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        Some(seconds) if seconds < 120.0 => format!("{seconds:.1} s"),
        Some(seconds) if seconds < 7_200.0 => format!("{:.1} min", seconds / 60.0),
        Some(seconds) if seconds < 1e9 => format!("{:.1} h", seconds / 3_600.0),
        Some(_) => "never".to_owned(),
    }
}

/// With a comma before each three digits.
fn whole(number: usize) -> String {
    let digits = number.to_string();
    let places =
        digits.char_indices().map(|(place, digit)| (place > 0 && (digits.len() - place).is_multiple_of(3), digit));
    places.flat_map(|(has_comma, digit)| has_comma.then_some(',').into_iter().chain([digit])).collect()
}

/// Head and rows as `a | b | c`.
fn table(head: &str, rows: impl Iterator<Item = String>) -> String {
    let numbers = " ---: |".repeat(head.matches(" | ").count());
    let rows: Vec<_> = rows.collect();
    format!("| {head} |\n| --- |{numbers}\n| {} |\n", rows.join(" |\n| "))
}
