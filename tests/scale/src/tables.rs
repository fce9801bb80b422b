//! The tables of docs/scale.md, in Markdown.

use std::fmt::Write;

use crate::{
    agenda::{Time, in_seconds},
    cluster,
    constants::{Constants, Origin},
    cost::Cost,
    day::Day,
    runs::{End, Outcome, Sensitivity, in_burst, named, times},
    series::{Level, percentile},
    stack,
};

/// A time in the unit that a person expects.
pub fn duration(time: Time) -> String {
    let s = in_seconds(time);
    match s {
        ..1.0 => format!("{:.0} ms", s * 1e3),
        ..120.0 => format!("{s:.1} s"),
        ..7_200.0 => format!("{:.1} min", s / 60.0),
        _ => format!("{:.1} h", s / 3_600.0),
    }
}

/// A whole number with a comma before each three digits.
pub fn whole(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Without trailing zeros.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "only what has no fraction")]
fn number(value: f64) -> String {
    if value.fract() == 0.0 && value >= 1_000.0 { whole(value as u64) } else { format!("{value}") }
}

/// Head and rows as `a | b | c`.
fn table(head: &str, rows: impl IntoIterator<Item = String>) -> String {
    let numbers = " ---: |".repeat(head.matches(" | ").count());
    // A table begins below the name of its place.
    let mut text = format!("\n| {head} |\n| --- |{numbers}\n");
    for row in rows {
        let _ = writeln!(text, "| {row} |");
    }
    text
}

fn counts<const N: usize>(counts: [u64; N]) -> String {
    counts.map(whole).join(" | ")
}

/// What follows from the numbers alone, each with its place in the page.
pub fn of_constants(constants: &Constants, day: &Day) -> Vec<(String, String)> {
    let burst = crate::agenda::seconds(constants.burst / constants.api_rate);
    [
        ("limits", limits(constants, day)),
        ("constants", self::constants(&mut constants.clone())),
        ("api rate", number(constants.api_rate)),
        ("burst at the api rate", duration(burst)),
    ]
    .map(|(name, made)| (name.to_owned(), made))
    .into()
}

/// Values for the text of the page, each with its place.
pub fn values(as_deployed: &Outcome) -> Vec<(String, String)> {
    let [p50, .., longest] = as_deployed.all.map(duration);
    let [burst_p50, ..] = as_deployed.burst.map(duration);
    [("p50", p50), ("burst p50", burst_p50), ("longest", longest)].map(|(name, value)| (name.to_owned(), value)).into()
}

/// The settings that the answer compares.
pub fn answer(outcomes: &[Outcome]) -> String {
    let chosen = ["as deployed", "`ReservedConcurrency` 50", "`ReservedConcurrency` 10", "SSM with higher throughput"];
    let rows = named(outcomes, &chosen).into_iter().map(|Outcome { name, seen, burst, cost, .. }| {
        let [p50, _, p99, _] = burst.map(duration);
        let counts = counts([seen.ssm_throttled.total(), seen.refused.total(), seen.given_up.total(), seen.incomplete]);
        format!("{name} | {p50} | {p99} | {counts} | {:.2}", cost.total())
    });
    let head = "setting | burst p50 | burst p99 | throttled by SSM | 429 | given up | starts incomplete | USD a day";
    table(head, rows)
}

fn constants(constants: &mut Constants) -> String {
    let rows = Constants::ALL.iter().map(|constant| {
        let value = *(constant.field)(constants);
        let origin = match constant.origin {
            Origin::Measured(source) => format!("measured: {source}"),
            Origin::Cited(source) | Origin::Ours(source) => source.to_owned(),
            Origin::Input => "the question".to_owned(),
            Origin::Assumed(why) => format!("**assumed**: {why}"),
        };
        let option = constant.name.replace('_', "-");
        format!("| {} | {} {} | `--{option}` | {origin} |\n", constant.what, number(value), constant.unit)
    });
    format!("\n| what | value | option | from |\n| --- | ---: | --- | --- |\n{}", rows.collect::<String>())
}

/// The highest rate of each stage, beside what the day requires.
fn limits(constants: &Constants, day: &Day) -> String {
    let c = constants;
    let mean = c.jobs_per_day / 86_400.0;
    let event = c.cpu_event / c.core_share() + c.network + 1.0 / c.api_rate;
    let runs: f64 = day.runs.iter().map(|run| in_seconds(*run)).sum();
    let run = c.pod_start + runs / c.jobs_per_day;
    let stages = [
        ("EventBridge, deliveries", c.eventbridge_rate),
        ("Lambda, all environments warm", c.concurrency / event),
        ("API server, creates", c.api_rate),
        ("Job controller", c.controller_qps / (c.requests_to_pod + c.requests_to_end)),
        ("TTL controller", c.controller_qps / c.requests_to_delete),
        ("garbage collector", c.controller_qps * c.collector_factor / c.requests_to_collect),
        ("agent-stack-k8s, its client", c.stack_qps / c.stack_requests),
        ("agent-stack-k8s, its jobs in flight", c.stack_in_flight / run),
    ];
    let rows = stages.map(|(name, rate)| {
        let digits = if rate < 20.0 { 2 } else { 0 };
        let takes = duration(crate::agenda::seconds(c.burst / rate));
        format!("{name} | {rate:.digits$} | {:.2} | {takes}", rate / mean)
    });
    table("stage | Jobs/s | times the day's mean | a burst takes", rows)
}

pub fn to_the_job(outcomes: &[Outcome]) -> String {
    let rows = outcomes.iter().map(|Outcome { name, all, burst, seen, cost, .. }| {
        let [p50, .., most] = all.map(duration);
        let [burst_p50, burst_p90, burst_p99, _] = burst.map(duration);
        let (failed, usd) = (seen.failed.len(), cost.total());
        format!("{name} | {p50} | {burst_p50} | {burst_p90} | {burst_p99} | {most} | {failed} | {usd:.2}")
    });
    let head = "setting | all p50 | burst p50 | burst p90 | burst p99 | longest | failure queue | USD a day";
    table(head, rows)
}

pub fn in_the_way(outcomes: &[Outcome]) -> String {
    let rows = outcomes.iter().map(|Outcome { name, seen, .. }| {
        let counts = counts([
            seen.starts,
            seen.environments.most().into(),
            seen.waiting.most().into(),
            seen.throttled.total(),
            seen.ssm.total(),
            seen.ssm_throttled.total(),
            seen.refused.total(),
            seen.given_up.total(),
            seen.incomplete,
        ]);
        format!("{name} | {counts}")
    });
    let head = "setting | starts | environments, most | in Lambda's queue, most | throttles | SSM calls | throttled | \
                429 | given up | starts incomplete";
    table(head, rows)
}

pub fn costs(outcomes: &[Outcome]) -> String {
    let rows = outcomes.iter().map(|Outcome { name, cost, .. }| {
        let &Cost { requests, compute, ssm, logs } = cost;
        format!("{name} | {requests:.2} | {compute:.2} | {ssm:.2} | {logs:.2} | {:.2}", cost.total())
    });
    table("setting, USD a day | Lambda requests | Lambda GB-seconds | SSM | logs | in all", rows)
}

pub fn cluster(seen: &mut [(&'static str, Constants, cluster::Seen)]) -> String {
    let rows = seen.iter_mut().map(|(name, constants, seen)| {
        let gigabytes = seen.most_gigabytes(constants);
        let [p50, p99] =
            [0.5, 0.99].map(|share| percentile(&mut seen.pod_waits, share).map_or("-".to_owned(), duration));
        let counts = counts([
            seen.without_pod.now().into(),
            seen.pods.most().into(),
            seen.jobs.most().into(),
            seen.jobs.now().into(),
            seen.events.most().into(),
        ]);
        format!("{name} | {p50} | {p99} | {counts} | {gigabytes:.2}")
    });
    let head = "setting | Job to pod p50 | p99 | Jobs without pod at midnight | pods, most | Jobs, most | \
                Jobs at midnight | Events, most | GB in etcd, most";
    table(head, rows)
}

pub fn stacks(constants: &Constants, day: &Day, ours: &[&Outcome], stacks: &[(&'static str, stack::Seen)]) -> String {
    let row = |name: &str, created: &[Option<Time>]| {
        let most = Level::of(&day.arrivals, created).most();
        let made = created.iter().flatten().filter(|at| **at <= crate::day::LENGTH).count();
        let counts = counts([made, created.len() - made, most as usize].map(|count| count as u64));
        let [p50, ..] = times(day, created, |_| true).map(duration);
        let [burst_p50, burst_p90, burst_p99, _] = times(day, created, in_burst(day, constants)).map(duration);
        format!("{name} | {counts} | {p50} | {burst_p50} | {burst_p90} | {burst_p99}")
    };
    let ours = ours.iter().map(|ours| row(&format!("agent-scheduler, {}", ours.name), &ours.seen.created));
    let rows = ours.chain(stacks.iter().map(|(name, seen)| row(name, &seen.created)));
    table(
        "scheduler | Jobs by midnight | waiting then | waiting, most | all p50 | burst p50 | burst p90 | burst p99",
        rows,
    )
}

pub fn sensitivity(base: &End, all: &[Sensitivity]) -> String {
    let row = |name: &str, value: &str, end: &End| {
        let &End { p50, p99, failed, pod_p50, gigabytes } = end;
        let [p50, p99, pod] = [p50, p99, pod_p50].map(duration);
        format!("{name} | {value} | {p50} | {p99} | {failed} | {pod} | {gigabytes:.2}")
    };
    let mut rows = vec![row("the day as it is", "", base)];
    let mut idle = Vec::new();
    for Sensitivity { constant, ends } in all {
        let name = format!("`{}`", constant.name);
        for (factor, end) in [0.5, 2.0].into_iter().zip(ends).filter(|(_, end)| *end != base) {
            rows.push(row(&name, &format!("{} {}", number(constant.value * factor), constant.unit), end));
        }
        if ends.iter().all(|end| end == base) {
            idle.push(name);
        }
    }
    let mut text = table("number | value | burst p50 | burst p99 | failure queue | Job to pod p50 | GB in etcd", rows);
    if !idle.is_empty() {
        let _ = writeln!(text, "\nNothing of this changes with {}.", idle.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agenda::seconds;

    #[test]
    fn times_and_numbers_read_well() {
        assert_eq!(
            [0.0558, 57.6, 300.0, 86_400.0].map(|s| duration(seconds(s))),
            ["56 ms", "57.6 s", "5.0 min", "24.0 h"]
        );
        assert_eq!([0, 999, 1_000, 1_234_567].map(whole), ["0", "999", "1,000", "1,234,567"]);
    }
}
