//! The pictures of docs/scale.md, as SVG.

use kuva::{
    prelude::{LegendPosition, LinePlot, Palette},
    render::{layout::Layout, plots::Plot},
};

use crate::{Outcome, Waits, in_bursts, percentile, sorted};

/// The name of a file, and the SVG.
type Picture = (&'static str, String);

/// Share of the bursts' jobs that have their Job after a time.
pub fn bursts(outcomes: &[Outcome], peers: &[(&str, Waits)]) -> Picture {
    let ours = outcomes.iter().map(|outcome| (outcome.name, &outcome.waits));
    let of = |waits: &Waits| {
        let waits = sorted(in_bursts(waits));
        let point = |share: u16| Some((percentile(&waits, (share * 5).into())?.as_secs_f64(), f64::from(share) / 2.0));
        (0..=200).filter_map(point).collect()
    };
    let all = ours.chain(peers.iter().map(|(name, waits)| (*name, waits)));
    let plots: Vec<_> = all.enumerate().map(|(place, (name, waits))| line(of(waits), place, name)).collect();
    let layout = layout(&plots, "seconds to the Job (log)", "% of the jobs in bursts").with_log_x();
    ("bursts.svg", kuva::render_to_svg(plots, layout.with_y_axis_min(0.0).with_y_axis_max(100.0)))
}

/// Time to the Job by percentile, of the jobs of each minute.
pub fn day(outcome: &Outcome) -> Picture {
    let of = |share: usize| {
        let of_minute = |minute: u16| {
            let waits = sorted(outcome.waits.iter().filter(|(at, _)| at.as_secs() / 60 == u64::from(minute)));
            Some((f64::from(minute) / 60.0, percentile(&waits, share)?.as_secs_f64()))
        };
        (0..24 * 60).filter_map(of_minute).collect()
    };
    let plots = vec![line(of(990), 1, "p99"), line(of(500), 0, "p50")];
    let layout = layout(&plots, "hour of the day", "seconds to the Job (log)").with_log_y();
    ("day.svg", kuva::render_to_svg(plots, layout.with_x_axis_min(0.0).with_x_axis_max(24.0).with_x_tick_step(3.0)))
}

fn line(points: Vec<(f64, f64)>, place: usize, name: &str) -> Plot {
    // Distinct for colour-blind people, too, and without the yellow, which does not show on white.
    let colours = [4, 5, 2, 6, 0, 1, 7];
    let colour = Palette::okabe_ito()[colours[place % colours.len()]].to_owned();
    let name = name.replace('`', "");
    let line = LinePlot::new().with_data(points).with_color(colour).with_stroke_width(1.6).with_legend(name);
    // Dashes help where colours do not.
    match place % 3 {
        1 => line.with_dashed(),
        2 => line.with_dotted(),
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
        .with_width(1_080.0)
        .with_height(420.0)
}
