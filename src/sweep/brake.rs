//! The brake: if the jobs of several builds cannot start and no agent takes a job, then the cluster, the registry or the network is
//! at fault, and not the jobs. The sweep finishes none of them. Nor does it finish the last one when the others run again.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use uuid::Uuid;

use super::{detail, finding::Found, seen::Seen};

/// Why no job is finished.
pub(super) struct Brake {
    /// How many builds have jobs that cannot start.
    pub builds: usize,
    /// When the first of the Jobs at fault was created.
    pub since: Timestamp,
    /// What most of them report.
    pub reason: String,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Build {
    Number(Option<String>, u64),
    /// The build is not known.
    OfJob(Uuid),
}

/// Whether no job may be finished, of those whose attempts have met a cluster at work if there was one until then.
///
/// They may be finished after an agent took the job of a Job that was created since the first Job at fault, if that agent started before
/// the last attempt of each of them ended: those attempts failed in a cluster that worked. One that started later is no proof of that.
/// Perhaps the cluster works again, and the next attempt succeeds.
pub(super) fn brake(all: &[Found], taken: &Taken, until: Timestamp, now: Timestamp, seen: &Seen) -> Option<Brake> {
    let faults: Vec<_> = all.iter().filter(|found| found.shows_a_fault(now)).collect();
    let since = faults.iter().map(|found| found.created).min()?;
    let builds = faults.iter().map(|found| build(found)).collect::<BTreeSet<_>>().len();
    if builds < 2 || taken.since(since).is_some_and(|started| started <= until) {
        return None;
    }
    let mut reasons = BTreeMap::<_, usize>::new();
    for found in faults.iter().filter(|found| found.ended_in_vain().is_some() || found.obstacle.is_some()) {
        *reasons.entry(detail::cause(found, seen)).or_default() += 1;
    }
    let reason = reasons.into_iter().max_by_key(|(_, count)| *count).map(|(reason, _)| reason).unwrap_or_default();
    Some(Brake { builds, since, reason })
}

/// The Jobs whose jobs agents took, which shows that the cluster worked: when each was created, and when the first agent of it and of
/// the later ones started.
pub(super) struct Taken(Vec<(Timestamp, Timestamp)>);

impl Taken {
    pub(super) fn of(all: &[Found]) -> Self {
        let taken = all.iter().filter(|found| found.was_taken());
        let mut taken: Vec<_> = taken.map(|found| (found.created, found.started_at())).collect();
        taken.sort_unstable();
        let mut first = Timestamp::MAX;
        for (_, started) in taken.iter_mut().rev() {
            first = first.min(*started);
            *started = first;
        }
        Self(taken)
    }

    /// When the first agent started that took the job of a Job created since then.
    fn since(&self, time: Timestamp) -> Option<Timestamp> {
        let place = self.0.partition_point(|(created, _)| *created < time);
        self.0.get(place).map(|(_, started)| *started)
    }

    /// Whether agents take jobs again, and took none while the last attempt of this job lasted: the next attempt shows whether its own
    /// cause is left.
    pub(super) fn only_after(&self, found: &Found, end: Timestamp) -> bool {
        self.since(found.created).is_some_and(|started| started > end)
    }
}

fn build(found: &Found) -> Build {
    let job = found.scheduled_job();
    let number = job.and_then(|job| Some((job.pipeline, job.build_number?)));
    number.map_or(Build::OfJob(found.uuid), |(pipeline, number)| Build::Number(pipeline, number))
}
