//! How many requests a service takes.

use std::time::Duration;

use tokio::time::Instant;

/// So many requests in a second.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// In the long run.
    pub per_second: f64,
    /// How many at once, after a pause.
    pub at_once: f64,
}

/// The rates of those whom all environments of a function share. `None` is no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    /// `GetParameter`, beyond which it throttles.
    pub ssm: Option<Rate>,
    /// All requests of the function; those at once wait for each other, and one more is a 429.
    pub api_server: Option<Rate>,
    /// Requests of the Job controller, which wait.
    pub job_controller: Option<Rate>,
}

/// What a service with a rate has to do yet.
#[derive(Default)]
pub struct Backlog(Option<Instant>);

/// The backlogs of the services.
#[derive(Default)]
#[expect(missing_docs, reason = "they are those of the rates")]
pub struct Backlogs {
    pub ssm: Backlog,
    pub api_server: Backlog,
    pub job_controller: Backlog,
}

impl Backlog {
    /// How long a request waits behind those before it. `None` if there are too many.
    pub fn enter(&mut self, rate: Rate) -> Option<Duration> {
        let wait = self.0.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
        (wait.as_secs_f64() * rate.per_second < rate.at_once).then(|| self.wait(rate, 1.0))
    }

    /// How long requests wait that do not mind.
    pub fn wait(&mut self, rate: Rate, requests: f64) -> Duration {
        let now = Instant::now();
        let until = self.0.map_or(now, |until| until.max(now));
        self.0 = Some(until + Duration::from_secs_f64(requests / rate.per_second));
        until - now
    }
}
