//! The day through EventBridge, Lambda and the function, up to the Jobs.

use std::collections::VecDeque;

use crate::{
    agenda::{Agenda, Time, in_seconds, seconds},
    api_server::{ApiServer, Fate},
    bucket::Bucket,
    constants::Constants,
    day::{Chance, Day},
    series::{Count, Level},
};

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// When the Job of each Buildkite job was made, if it was.
    pub created: Vec<Option<Time>>,
    /// Jobs whose event is in the failure queue.
    pub failed: Vec<usize>,
    /// Events that Lambda keeps.
    pub waiting: Level,
    /// Environments of the function.
    pub environments: Level,
    /// Those of them that start.
    pub starting: Level,
    /// Events that found no environment.
    pub throttled: Count,
    /// Calls of SSM.
    pub ssm: Count,
    /// Those of them that were throttled.
    pub ssm_throttled: Count,
    /// Requests to the API server.
    pub requests: Count,
    /// Those of them that were answered with 429.
    pub refused: Count,
    /// Runs of the function, and its starts.
    pub runs: u64,
    /// Environments that were started.
    pub starts: u64,
    /// Runs that ended in an error.
    pub errors: u64,
    /// Seconds that Lambda bills.
    pub billed: f64,
}

enum Due {
    /// An event is in Lambda's queue, and its turn has come.
    Event(usize),
    /// An environment runs the function.
    Started(usize),
    /// An environment does what comes next.
    Next(usize),
    /// Its run is over; with a Job or without.
    Over(usize, bool),
}

#[derive(Clone, Copy, PartialEq)]
enum Step {
    Token,
    Secret,
    Definitions,
    Job,
}

/// An environment. While it is new it reads the token, applies the Secret and lists the pod definitions; later it does so only
/// when what it has is too old.
#[derive(Default)]
struct Environment {
    token_due: Option<Time>,
    definitions_due: Option<Time>,
    idle_since: Time,
    run: Option<Run>,
}

struct Run {
    job: usize,
    begun: Time,
    /// Of the start-up, as long as that lasts.
    startup_ends: Option<Time>,
    ends: Time,
    step: Step,
    /// When this step began, and its tries so far.
    since: Time,
    tries: i32,
}

struct Model<'a> {
    constants: &'a Constants,
    chance: Chance,
    agenda: Agenda<Due>,
    ssm: Bucket,
    api_server: ApiServer,
    scaling: Bucket,
    environments: Vec<Environment>,
    idle: VecDeque<usize>,
    /// Of each job: when its event came to Lambda, how often it found no environment since, and how often it failed.
    events: Vec<(Time, i32, u8)>,
    seen: Seen,
}

/// Runs the day to its end, and on until each job has its Job or is given up.
pub fn run(constants: &Constants, day: &Day, seed: u64) -> Seen {
    let jobs = day.arrivals.len();
    let mut model = Model {
        constants,
        chance: Chance::new(seed, 3),
        agenda: Agenda::default(),
        ssm: Bucket::new(constants.ssm_rate, constants.ssm_burst.max(constants.ssm_rate)),
        api_server: ApiServer::new(constants),
        scaling: Bucket::new(constants.scale_step / 10.0, constants.scale_step),
        environments: Vec::new(),
        idle: VecDeque::new(),
        events: vec![(0, 0, 0); jobs],
        seen: Seen { created: vec![None; jobs], ..Seen::default() },
    };
    model.deliver(day);
    while let Some((now, due)) = model.agenda.take() {
        match due {
            Due::Event(job) => model.event(job, now),
            Due::Started(environment) => model.started(environment, now),
            Due::Next(environment) => model.next(environment, now),
            Due::Over(environment, well) => model.over(environment, well, now),
        }
    }
    model.seen
}

impl Model<'_> {
    /// EventBridge: each event takes its time, and no more go out than so many a second.
    fn deliver(&mut self, day: &Day) {
        let (mean, sigma) = self.constants.eventbridge_log();
        let mut out: Vec<_> = (day.arrivals.iter().enumerate())
            .map(|(job, at)| (at + seconds(self.chance.log_normal(mean, sigma)), job))
            .collect();
        out.sort_unstable();
        let mut limit = Bucket::new(self.constants.eventbridge_rate, self.constants.eventbridge_rate);
        for (at, job) in out {
            let at = limit.wait(at, 1.0);
            self.events[job].0 = at;
            self.agenda.note(at, Due::Event(job));
        }
    }

    fn event(&mut self, job: usize, now: Time) {
        let (came, throttles, failures) = self.events[job];
        let new = throttles == 0 && failures == 0;
        if !new {
            self.seen.waiting.down(now);
        }
        if now - came > seconds(self.constants.event_age) {
            self.seen.failed.push(job);
            return;
        }
        self.retire(now);
        if let Some(environment) = self.idle.pop_back() {
            let cpu = seconds(self.constants.cpu_event / self.constants.core_share());
            self.begin(environment, job, now, None);
            self.agenda.note(now + cpu, Due::Next(environment));
        } else if f64::from(self.seen.environments.now()) < self.constants.concurrency && self.scaling.take(now) {
            self.seen.environments.up(now);
            self.seen.starting.up(now);
            self.seen.starts += 1;
            let environment = self.environments.len();
            self.environments.push(Environment::default());
            let begun = now + seconds(self.constants.environment_start);
            self.begin(environment, job, begun, Some(begun + seconds(self.constants.startup)));
            self.agenda.note(begun, Due::Started(environment));
        } else {
            self.seen.throttled.add(now);
            self.seen.waiting.up(now);
            self.events[job].1 += 1;
            let wait = (self.constants.throttle_first * 2_f64.powi(throttles)).min(self.constants.throttle_most);
            let wait = wait * (0.5 + self.chance.share() / 2.0);
            self.agenda.note(now + seconds(wait), Due::Event(job));
        }
    }

    /// Environments that nobody needed for long are gone. The last that was used is the first to be used again.
    fn retire(&mut self, now: Time) {
        let idle = seconds(self.constants.environment_idle);
        while let Some(oldest) = self.idle.front() {
            let gone = self.environments[*oldest].idle_since + idle;
            if gone > now {
                break;
            }
            self.seen.environments.down(now);
            self.idle.pop_front();
        }
    }

    fn begin(&mut self, environment: usize, job: usize, begun: Time, startup_ends: Option<Time>) {
        self.seen.runs += 1;
        self.environments[environment].run = Some(Run {
            job,
            begun,
            startup_ends,
            ends: begun + seconds(self.constants.deadline),
            step: Step::Token,
            since: begun,
            tries: 0,
        });
    }

    fn started(&mut self, environment: usize, now: Time) {
        let cpu = seconds(self.constants.cpu_start / self.constants.core_share());
        self.agenda.note(now + cpu, Due::Next(environment));
    }

    /// One request, or none where nothing is too old.
    fn next(&mut self, environment: usize, now: Time) {
        let this = &mut self.environments[environment];
        let Some(run) = &mut this.run else { return };
        if run.startup_ends.is_some_and(|ends| now >= ends) || (run.step == Step::Job && run.startup_ends.is_some()) {
            // The start-up is over; the event that waited for it has a whole run before it.
            run.startup_ends = None;
            run.ends = now + seconds(self.constants.deadline);
            run.tries = 0;
            self.seen.starting.down(now);
        }
        match run.step {
            Step::Token if this.token_due.is_some_and(|due| due > now) => {
                self.go_on(environment, Step::Definitions, now);
            }
            Step::Token => {
                self.seen.ssm.add(now);
                let answer = now + seconds(self.constants.ssm_latency);
                if self.ssm.take(now) {
                    // The Secret belongs to the same wait.
                    run.step = Step::Secret;
                    run.tries = 0;
                    self.agenda.note(answer, Due::Next(environment));
                } else {
                    self.seen.ssm_throttled.add(now);
                    let wait = self.constants.ssm_backoff * 2_f64.powi(run.tries);
                    let wait = wait.min(self.constants.ssm_backoff_most) * self.chance.share();
                    run.tries += 1;
                    self.again(environment, answer + seconds(wait));
                }
            }
            Step::Definitions if this.definitions_due.is_some_and(|due| due > now) => {
                self.go_on(environment, Step::Job, now);
            }
            Step::Secret | Step::Definitions | Step::Job => self.request(environment, now),
        }
    }

    fn go_on(&mut self, environment: usize, step: Step, now: Time) {
        if let Some(run) = &mut self.environments[environment].run {
            run.step = step;
            run.since = now;
            run.tries = 0;
        }
        self.next(environment, now);
    }

    fn request(&mut self, environment: usize, now: Time) {
        let half = seconds(self.constants.network / 2.0);
        self.seen.requests.add(now);
        match self.api_server.request(now + half) {
            Fate::Refused(at) => {
                self.seen.refused.add(at);
                let wait = self.constants.retry_after + self.chance.share() * self.constants.retry_jitter;
                self.again(environment, at + half + seconds(wait));
            }
            Fate::Done(at) => self.answered(environment, at, at + half),
        }
    }

    /// The API server has done it; the answer is here at `now`.
    fn answered(&mut self, environment: usize, done: Time, now: Time) {
        let this = &mut self.environments[environment];
        let Some(run) = &mut this.run else { return };
        match run.step {
            Step::Token => {}
            Step::Secret => {
                this.token_due = Some(now + seconds(self.constants.token_age));
                run.step = Step::Definitions;
                run.since = now;
                run.tries = 0;
            }
            Step::Definitions => {
                this.definitions_due = Some(now + seconds(self.constants.definitions_age));
                run.step = Step::Job;
                run.since = now;
                run.tries = 0;
            }
            Step::Job => {
                self.seen.created[run.job].get_or_insert(done);
                self.agenda.note(now, Due::Over(environment, true));
                return;
            }
        }
        self.agenda.note(now, Due::Next(environment));
    }

    /// Another try at that time, if the run has so long; a look at what may be old has two seconds, and is given up after that.
    fn again(&mut self, environment: usize, at: Time) {
        let this = &mut self.environments[environment];
        let Some(run) = &mut this.run else { return };
        let given_up = run.since + seconds(self.constants.refresh);
        let old_copy = match run.step {
            Step::Token | Step::Secret => &mut this.token_due,
            Step::Definitions => &mut this.definitions_due,
            Step::Job => &mut None,
        };
        if let Some(due) = old_copy
            && at > given_up
        {
            *due = given_up + seconds(self.constants.refresh_again);
            run.step = if run.step == Step::Definitions { Step::Job } else { Step::Definitions };
            run.since = given_up;
            run.tries = 0;
            self.agenda.note(given_up, Due::Next(environment));
        } else if let Some(ends) = run.startup_ends
            && at > ends
        {
            self.agenda.note(ends, Due::Next(environment));
        } else if at > run.ends {
            self.agenda.note(run.ends, Due::Over(environment, false));
        } else {
            self.agenda.note(at, Due::Next(environment));
        }
    }

    fn over(&mut self, environment: usize, well: bool, now: Time) {
        let Some(run) = self.environments[environment].run.take() else { return };
        self.environments[environment].idle_since = now;
        self.idle.push_back(environment);
        self.seen.billed += (in_seconds(now - run.begun) * 1e3).ceil() / 1e3;
        if well {
            return;
        }
        self.seen.errors += 1;
        let (_, throttles, failures) = &mut self.events[run.job];
        *throttles = 0;
        *failures += 1;
        let wait = match failures {
            1 => self.constants.retry_first,
            2 => self.constants.retry_second,
            _ => {
                self.seen.failed.push(run.job);
                return;
            }
        };
        self.seen.waiting.up(now);
        self.agenda.note(now + seconds(wait), Due::Event(run.job));
    }
}
