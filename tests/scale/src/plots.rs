//! The pictures of docs/scale.md, as SVG.

use std::sync::Arc;

use kuva::{
    backend::svg::SvgBackend,
    prelude::{LegendPosition, LinePlot, Palette, TickFormat},
    render::{figure::Figure, layout::Layout, plots::Plot},
};

use crate::{
    agenda::{SECOND, Time, in_seconds},
    cluster,
    constants::Constants,
    day::{Day, LENGTH},
    runs::{Outcome, in_burst, named},
    series::{Level, percentile},
    stack,
};

/// A picture: the name of its file, and the SVG.
pub type Picture = (&'static str, String);

/// Distinct for colour-blind people, too, and without the yellow, which does not show on white.
fn colour(place: usize) -> String {
    // Blue, vermilion, green, purple, orange.
    let order = [4, 5, 2, 6, 0];
    Palette::okabe_ito()[order[place % order.len()]].to_owned()
}

fn line(points: impl IntoIterator<Item = (f64, f64)>, place: usize, name: &str) -> Plot {
    let line = LinePlot::new().with_data(points).with_color(colour(place)).with_stroke_width(1.6).with_legend(name);
    // Dashes help where colours do not.
    match place {
        1 => line.with_dashed(),
        2 => line.with_dotted(),
        3 => line.with_dashdot(),
        _ => line,
    }
    .into()
}

fn layout(plots: &[Plot], x: &str, y: &str) -> Layout {
    Layout::auto_from_plots(plots)
        .with_x_label(x)
        .with_y_label(y)
        .with_font_family("DejaVu Sans, Verdana, sans-serif")
        .with_legend_position(LegendPosition::OutsideRightTop)
        .with_y_tick_format(TickFormat::Custom(Arc::new(amount)))
}

/// 1,000,000 as 1M.
fn amount(value: f64) -> String {
    let (value, unit) = match value.abs() {
        1e6.. => (value / 1e6, "M"),
        1e3.. => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = format!("{value:.2}");
    format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

fn draw(plots: Vec<Plot>, layout: Layout) -> String {
    kuva::render_to_svg(plots, layout)
}

fn hours(layout: Layout) -> Layout {
    layout.with_x_axis_min(0.0).with_x_axis_max(24.0).with_x_tick_step(3.0).with_width(1_080.0).with_height(420.0)
}

#[expect(clippy::cast_precision_loss, reason = "minutes of a day")]
fn hour(minute: usize) -> f64 {
    minute as f64 / 60.0
}

const MINUTES: usize = (LENGTH / (60 * SECOND)) as usize;

/// Time to the Job by percentile, of the jobs of each minute.
pub fn time_to_job(day: &Day, outcome: &Outcome) -> Picture {
    let mut minutes: Vec<Vec<Time>> = vec![Vec::new(); MINUTES];
    for (at, made) in day.arrivals.iter().zip(&outcome.seen.created) {
        if let (Some(minute), Some(made)) = (minutes.get_mut((at / (60 * SECOND)) as usize), made) {
            minute.push(made - at);
        }
    }
    let mut of = |share: f64| -> Vec<(f64, f64)> {
        let of_minute =
            |(minute, waits): (usize, &mut Vec<Time>)| Some((hour(minute), in_seconds(percentile(waits, share)?)));
        minutes.iter_mut().enumerate().filter_map(of_minute).collect()
    };
    let plots = vec![line(of(0.99), 1, "p99"), line(of(0.9), 2, "p90"), line(of(0.5), 0, "p50")];
    let layout =
        hours(layout(&plots, "hour of the day at which the job is scheduled", "seconds to the Job (log)").with_log_y());
    ("time-to-job.svg", draw(plots, layout))
}

#[expect(clippy::cast_precision_loss, reason = "seconds of a day")]
pub fn burst(day: &Day, outcome: &Outcome) -> Picture {
    let seen = &outcome.seen;
    let begin = day.bursts.get(day.bursts.len() / 2).map_or(0, |at| (at / SECOND) as usize);
    let (from, to) = (begin.saturating_sub(10), begin + 150);
    let mut made = vec![0.0; to - from];
    for at in seen.created.iter().flatten() {
        if let Some(count) = ((at / SECOND) as usize).checked_sub(from).and_then(|second| made.get_mut(second)) {
            *count += 1.0;
        }
    }
    let of = |value: &dyn Fn(usize) -> f64| -> Vec<(f64, f64)> {
        (from..to).map(|second| (second as f64 - begin as f64, value(second))).collect()
    };
    let panels = [
        (
            vec![
                line(of(&|s| made[s - from]), 0, "Jobs made"),
                line(of(&|s| seen.refused.at(s)), 1, "429"),
                line(of(&|s| seen.given_up.at(s)), 2, "given up"),
            ],
            "per second",
        ),
        (vec![line(of(&|s| seen.waiting.at(s)), 0, "in Lambda's queue")], "events"),
        (
            vec![line(of(&|s| seen.environments.at(s)), 0, "all"), line(of(&|s| seen.starting.at(s)), 1, "starting")],
            "environments",
        ),
        (
            vec![
                line(of(&|s| seen.ssm.at(s)), 0, "SSM calls"),
                line(of(&|s| seen.ssm_throttled.at(s)), 1, "throttled"),
            ],
            "per second",
        ),
    ];
    let x = "seconds after the burst begins";
    let layouts = panels.iter().map(|(plots, y)| {
        layout(plots, x, y)
            .with_legend_position(LegendPosition::InsideTopRight)
            .with_x_axis_min(-10.0)
            .with_x_axis_max(150.0)
            .with_x_tick_step(30.0)
    });
    let layouts: Vec<_> = layouts.collect();
    let figure = Figure::new(2, 2)
        .with_plots(panels.into_iter().map(|(plots, _)| plots).collect())
        .with_layouts(layouts)
        .with_cell_size(430.0, 290.0);
    ("burst.svg", SvgBackend::new().render_scene(&figure.render()))
}

/// Share of the bursts' jobs that have their Job after a time, by setting.
pub fn settings(day: &Day, outcomes: &[Outcome]) -> Picture {
    let shown = [
        "as deployed",
        "`ReservedConcurrency` 50",
        "1,000 writes/s",
        "1,000 writes/s, `ReservedConcurrency` 50",
        "1,000 writes/s, SSM with higher throughput",
    ];
    let plots: Vec<_> = named(outcomes, &shown)
        .into_iter()
        .enumerate()
        .map(|(place, outcome)| {
            let counts = in_burst(day, &outcome.constants);
            let jobs = day.arrivals.iter().zip(&outcome.seen.created).filter(|(at, _)| counts(**at));
            let mut waits: Vec<Time> = jobs.filter_map(|(at, made)| Some((*made)? - at)).collect();
            let points = (0..=200).map(|part| {
                let share = f64::from(part) / 200.0;
                (in_seconds(percentile(&mut waits, share).unwrap_or_default()), share * 100.0)
            });
            line(points, place, &outcome.name.replace('`', ""))
        })
        .collect();
    let layout = layout(&plots, "seconds to the Job (log)", "% of the jobs in bursts")
        .with_log_x()
        .with_y_axis_min(0.0)
        .with_y_axis_max(100.0)
        .with_x_axis_min(0.01)
        .with_x_axis_max(200.0)
        .with_x_tick_format(TickFormat::Custom(Arc::new(amount)))
        .with_width(1_080.0)
        .with_height(420.0);
    ("settings.svg", draw(plots, layout))
}

pub fn cluster(seen: &[(&'static str, Constants, cluster::Seen)]) -> Picture {
    let shown = [
        (0, "controllers at 20 requests/s"),
        (2, "100 requests/s"),
        (3, "500 requests/s"),
        (4, "500 requests/s, JobTtlSeconds 60"),
    ];
    let plots: Vec<_> = shown
        .iter()
        .enumerate()
        .map(|(place, (which, name))| {
            let (.., seen) = &seen[*which];
            line((0..MINUTES).map(|minute| (hour(minute), seen.jobs.at(minute * 60).max(1.0))), place, name)
        })
        .collect();
    let layout = hours(layout(&plots, "hour of the day", "Jobs in the cluster (log)").with_log_y());
    ("cluster.svg", draw(plots, layout))
}

/// Jobs that wait for their Job, from their schedule on, ours and of agent-stack-k8s.
pub fn stacks(day: &Day, ours: &Outcome, stacks: &[(&'static str, stack::Seen)]) -> Picture {
    let waiting = |created: &[Option<Time>], place: usize, name: &str| {
        let level = Level::of(&day.arrivals, created);
        let most = |minute: usize| (minute * 60..minute * 60 + 60).map(|second| level.at(second)).fold(1.0, f64::max);
        line((0..MINUTES).map(|minute| (hour(minute), most(minute))), place, name)
    };
    let mut plots = vec![waiting(&ours.seen.created, 0, "agent-scheduler as deployed")];
    for (place, (name, seen)) in stacks.iter().enumerate() {
        let name = name.replace('`', "").replace('…', "agent-stack-k8s");
        plots.push(waiting(&seen.created, place + 1, &name));
    }
    let layout = hours(layout(&plots, "hour of the day", "jobs that wait for their Job (log)").with_log_y());
    ("agent-stack-k8s.svg", draw(plots, layout))
}
