//! Runs the day and prints it.
use scale::{Constants, agenda::in_seconds, cluster::Cluster, day::Day, function, series::percentile, stack};
fn main() {
    let c = Constants::default();
    let day = Day::new(&c, 1);
    let t = std::time::Instant::now();
    let seen = function::run(&c, &day, 1);
    eprintln!("{:?}", t.elapsed());
    let mut w: Vec<_> = seen.created.iter().zip(&day.arrivals).filter_map(|(c, a)| Some((*c)? - a)).collect();
    for p in [0.5, 0.9, 0.95, 0.99, 0.999, 1.0] {
        println!("{p} {:?}", percentile(&mut w, p).map(in_seconds));
    }
    println!(
        "failed {} starts {} errors {} runs {} throttled {} ssm {} thr {} 429 {} waiting {} env {} billed {}",
        seen.failed.len(),
        seen.starts,
        seen.errors,
        seen.runs,
        seen.throttled.total(),
        seen.ssm.total(),
        seen.ssm_throttled.total(),
        seen.refused.total(),
        seen.waiting.most(),
        seen.environments.most(),
        seen.billed
    );
    let t = std::time::Instant::now();
    let cl = Cluster::day(&c, &day, &seen.created);
    eprintln!(
        "{:?} jobs {} nopod {} pods {} ev {} ended {} gone {} gb {}",
        t.elapsed(),
        cl.jobs.most(),
        cl.without_pod.most(),
        cl.pods.most(),
        cl.events.most(),
        cl.ended,
        cl.gone,
        cl.most_gigabytes(&c)
    );
    let t = std::time::Instant::now();
    let st = stack::run(&c, &day);
    eprintln!("{:?} created {} waiting {}", t.elapsed(), st.created.iter().flatten().count(), st.waiting.most());
}
