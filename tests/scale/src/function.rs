//! The day through EventBridge, Lambda and the function, up to the Jobs.
//!
//! The function sends the requests of `src/scheduler.rs`. Its start lists the pod definitions and reads the token side by side, and
//! applies the Secret when it has both; each event after that refreshes what is missing or stale, and then makes its Job.

use std::{collections::VecDeque, mem};

use crate::{
    agenda::{Agenda, Time, in_seconds, seconds},
    api_server::{Answer, ApiServer},
    bucket::Bucket,
    constants::Constants,
    day::{Chance, Day},
    series::{Count, Level},
};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// When the Job of each Buildkite job was made, if it was.
    pub created: Vec<Option<Time>>,
    /// Jobs whose event is in the failure queue.
    pub failed: Vec<usize>,
    /// Events that Lambda keeps.
    pub waiting: Level,
    pub environments: Level,
    pub starting: Level,
    /// Events that found no environment.
    pub throttled: Count,
    pub ssm: Count,
    pub ssm_throttled: Count,
    pub requests: Count,
    /// Those of them that were answered with 429.
    pub refused: Count,
    /// Those of them that timed out.
    pub given_up: Count,
    pub runs: u64,
    pub starts: u64,
    /// Starts that were over before all was there.
    pub incomplete: u64,
    pub errors: u64,
    pub billed: f64,
}

enum Due {
    /// An event is in Lambda's queue, and its turn has come.
    Event(usize),
    /// An environment has had its CPU, and begins to ask.
    Ready(usize),
    /// What an environment asks goes on, unless it asks for something else by now.
    Asked { environment: usize, lane: usize, turn: u32, then: Then },
    /// Its run is over; with a Job or without.
    Over(usize, bool),
}

#[derive(Clone, Copy)]
enum Then {
    Send,
    Answered,
    Failed,
}

#[derive(Clone, Copy, PartialEq)]
enum Request {
    /// The token, of SSM.
    Read,
    /// The Secret that carries it.
    Apply,
    List,
    Post,
    /// The Job that is there already: is it ours?
    Look,
}

/// A request until its answer, or until it is given up.
#[derive(Clone, Copy)]
struct Ask {
    request: Request,
    until: Time,
    /// Tries that were followed by a pause.
    pauses: i32,
    /// The first try that times out is retried at once.
    silent: bool,
}

/// What an environment asks side by side: the definitions and then the Job in one lane, the token in the other.
const DEFINITIONS: usize = 0;
const TOKEN: usize = 1;

/// As the states of `src/agent_token.rs`.
#[derive(Clone, Copy, Default)]
enum Token {
    #[default]
    Unknown,
    Read,
    /// It is in the cluster, and due to be brought there again at that time.
    Delivered(Time),
}

/// An environment, and what it knows.
#[derive(Default)]
struct Environment {
    token: Token,
    definitions_due: Option<Time>,
    idle_since: Time,
    run: Option<Run>,
    lanes: [Option<Ask>; 2],
    /// What was asked in an earlier turn is not waited for.
    turn: u32,
}

struct Run {
    job: usize,
    begun: Time,
    /// While it is new, its event waits for the start.
    starting: bool,
    /// The end of that, or of the run.
    until: Time,
    /// There is no token, and so will be no Job, but it is not over yet.
    doomed: bool,
    /// An earlier try has made the Job, and its answer was lost.
    exists: bool,
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
            Due::Ready(environment) => model.prepare(environment, now),
            Due::Asked { environment, lane, turn, then } if model.environments[environment].turn == turn => {
                match then {
                    Then::Send => model.send(environment, lane, now),
                    Then::Answered => model.answered(environment, lane, now),
                    Then::Failed => model.failed(environment, lane, now),
                }
            }
            Due::Asked { .. } => {}
            Due::Over(environment, well) => model.over(environment, well, now),
        }
    }
    model.seen
}

impl Model<'_> {
    /// EventBridge: each event has its latency, and the rate of deliveries is limited.
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
            self.begin(environment, job, now, false);
        } else if f64::from(self.seen.environments.now()) < self.constants.concurrency && self.scaling.take(now) {
            self.seen.environments.up(now);
            self.seen.starting.up(now);
            self.seen.starts += 1;
            self.environments.push(Environment::default());
            let begun = now + seconds(self.constants.environment_start);
            self.begin(self.environments.len() - 1, job, begun, true);
        } else {
            self.seen.throttled.add(now);
            self.seen.waiting.up(now);
            self.events[job].1 += 1;
            let wait = (self.constants.throttle_first * 2_f64.powi(throttles)).min(self.constants.throttle_most);
            let least = self.constants.throttle_share;
            let wait = wait * (least + self.chance.share() * (1.0 - least));
            self.agenda.note(now + seconds(wait), Due::Event(job));
        }
    }

    /// Removes environments that were idle for long. The last that was used is used again first.
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

    fn begin(&mut self, environment: usize, job: usize, begun: Time, starting: bool) {
        let c = self.constants;
        let (cpu, time) = if starting { (c.cpu_start, c.startup) } else { (c.cpu_event, c.deadline) };
        let until = begun + seconds(time);
        self.seen.runs += 1;
        self.environments[environment].run = Some(Run { job, begun, starting, until, doomed: false, exists: false });
        self.agenda.note(begun + seconds(cpu / c.core_share()), Due::Ready(environment));
    }

    /// Requests what is missing or stale. A refresh has two seconds, and then the stale value stays in use.
    fn prepare(&mut self, environment: usize, now: Time) {
        let this = &mut self.environments[environment];
        let Some(run) = &this.run else { return };
        let refresh = run.until.min(now + seconds(self.constants.refresh));
        let list = match this.definitions_due {
            Some(due) if due > now => None,
            Some(_) => Some(refresh),
            None => Some(run.until),
        };
        let token = match this.token {
            Token::Delivered(due) if due > now => None,
            Token::Delivered(_) => Some((Request::Read, refresh)),
            Token::Read => {
                // If this fails, the token is read again.
                this.token = Token::Unknown;
                Some((Request::Apply, run.until))
            }
            Token::Unknown => Some((Request::Read, run.until)),
        };
        this.lanes[DEFINITIONS] = list.map(|until| Ask::new(Request::List, until));
        this.lanes[TOKEN] = token.map(|(request, until)| Ask::new(request, until));
        if this.lanes.iter().all(Option::is_none) {
            return self.prepared(environment, now);
        }
        for lane in [DEFINITIONS, TOKEN] {
            self.send(environment, lane, now);
        }
    }

    /// All answers are there, or the stale values stay in use.
    fn prepared(&mut self, environment: usize, now: Time) {
        let this = &mut self.environments[environment];
        let Some(run) = &this.run else { return };
        match (run.starting, this.token) {
            (true, Token::Read) => {
                this.token = Token::Unknown;
                this.lanes[TOKEN] = Some(Ask::new(Request::Apply, run.until));
                self.send(environment, TOKEN, now);
            }
            (true, _) => self.started(environment, now),
            (false, _) if run.doomed => self.end(environment, false, now),
            (false, _) => {
                this.lanes[DEFINITIONS] = Some(Ask::new(Request::Post, run.until));
                self.send(environment, DEFINITIONS, now);
            }
        }
    }

    /// The start-up is over, well or not; the event that waited for it has a whole run before it.
    fn started(&mut self, environment: usize, now: Time) {
        let until = now + seconds(self.constants.deadline);
        let this = self.forget(environment);
        let Some(run) = &mut this.run else { return };
        (run.starting, run.until) = (false, until);
        self.seen.starting.down(now);
        self.prepare(environment, now);
    }

    /// Later answers to earlier requests do not count.
    fn forget(&mut self, environment: usize) -> &mut Environment {
        let this = &mut self.environments[environment];
        this.turn += 1;
        this.lanes = [None, None];
        this
    }

    fn end(&mut self, environment: usize, well: bool, now: Time) {
        self.forget(environment);
        self.agenda.note(now, Due::Over(environment, well));
    }

    fn send(&mut self, environment: usize, lane: usize, now: Time) {
        let Some(mut ask) = self.environments[environment].lanes[lane] else { return };
        let (at, then) = match ask.request {
            Request::Read => self.send_to_ssm(&mut ask, now),
            _ => self.send_to_api_server(environment, &mut ask, now),
        };
        let this = &mut self.environments[environment];
        this.lanes[lane] = Some(ask);
        self.agenda.note(at, Due::Asked { environment, lane, turn: this.turn, then });
    }

    /// The SDK repeats what SSM throttled until the time is over.
    fn send_to_ssm(&mut self, ask: &mut Ask, now: Time) -> (Time, Then) {
        self.seen.ssm.add(now);
        let answer = now + seconds(self.constants.ssm_latency);
        let (at, then) = if self.ssm.take(now) {
            (answer, Then::Answered)
        } else {
            self.seen.ssm_throttled.add(now);
            let longest = self.constants.ssm_backoff * 2_f64.powi(ask.pauses);
            let pause = longest.min(self.constants.ssm_backoff_most) * self.chance.share();
            ask.pauses += 1;
            (answer + seconds(pause), Then::Send)
        };
        if at > ask.until { (ask.until, Then::Failed) } else { (at, then) }
    }

    /// A try has its own limit. What the function gives up is done all the same: Go's HTTP/1.1 server does not see that a client
    /// went before it has read the request's body, which it does when the request's turn has come.
    fn send_to_api_server(&mut self, environment: usize, ask: &mut Ask, now: Time) -> (Time, Then) {
        let c = self.constants;
        let half = seconds(c.network / 2.0);
        let limit = now + seconds(c.api_try).min(ask.until.saturating_sub(now) / 2);
        self.seen.requests.add(now);
        let answer = self.api_server.request(now + half);
        if let (Request::Post, Some(run)) = (ask.request, &mut self.environments[environment].run) {
            let made = &mut self.seen.created[run.job];
            run.exists = made.is_some();
            if let (Answer::Done(at), None) = (answer, &made) {
                *made = Some(at);
            }
        }
        let (heard, pause) = match answer {
            Answer::Done(at) if at + half <= limit => return (at + half, Then::Answered),
            Answer::Refused(at) if at + half <= limit => {
                self.seen.refused.add(at);
                (at + half, seconds(c.retry_after) + self.pause(ask))
            }
            Answer::Done(_) | Answer::Refused(_) => {
                self.seen.given_up.add(limit);
                let first = !mem::replace(&mut ask.silent, true);
                (limit, if first { 0 } else { self.pause(ask) })
            }
        };
        // Not at the very moment that would do: the clock goes on while the function looks at it.
        if heard + pause + seconds(c.api_try_least) >= ask.until {
            (heard, Then::Failed)
        } else {
            (heard + pause, Then::Send)
        }
    }

    fn pause(&mut self, ask: &mut Ask) -> Time {
        let longest = (self.constants.api_backoff * 2_f64.powi(ask.pauses)).min(self.constants.api_backoff_most);
        ask.pauses += 1;
        seconds(longest * self.chance.share())
    }

    fn answered(&mut self, environment: usize, lane: usize, now: Time) {
        let this = &mut self.environments[environment];
        let (Some(run), Some(ask)) = (&mut this.run, this.lanes[lane].take()) else { return };
        match ask.request {
            Request::Read if run.starting => this.token = Token::Read,
            Request::Read => {
                this.lanes[lane] = Some(Ask::new(Request::Apply, ask.until));
                return self.send(environment, lane, now);
            }
            Request::Apply => this.token = Token::Delivered(now + seconds(self.constants.token_age)),
            Request::List => this.definitions_due = Some(now + seconds(self.constants.definitions_age)),
            Request::Post if run.exists => {
                this.lanes[lane] = Some(Ask::new(Request::Look, run.until));
                return self.send(environment, lane, now);
            }
            Request::Post | Request::Look => return self.end(environment, true, now),
        }
        if this.lanes.iter().all(Option::is_none) {
            self.prepared(environment, now);
        }
    }

    fn failed(&mut self, environment: usize, lane: usize, now: Time) {
        let this = &mut self.environments[environment];
        let (Some(run), Some(ask)) = (&mut this.run, this.lanes[lane].take()) else { return };
        if run.starting {
            self.seen.incomplete += 1;
            return self.started(environment, now);
        }
        let again = now + seconds(self.constants.refresh_again);
        match (ask.request, &mut this.token, &mut this.definitions_due) {
            (Request::Read | Request::Apply, Token::Delivered(due), _) | (Request::List, _, Some(due)) => *due = again,
            (Request::Read | Request::Apply, ..) => run.doomed = true,
            (Request::List | Request::Post | Request::Look, ..) => return self.end(environment, false, now),
        }
        if this.lanes.iter().all(Option::is_none) {
            self.prepared(environment, now);
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

impl Ask {
    fn new(request: Request, until: Time) -> Self {
        Self { request, until, pauses: 0, silent: false }
    }
}
