//! Injected faults: which requests meet them, what happens to these requests, and how often.

use std::{sync::Arc, time::Duration};

use fastrand::Rng;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, futures::OwnedNotified},
    time::Instant,
};

use crate::{certificates::Certificate, timeline::Call};

/// What happens to a request, or, for the first three, to a connection.
///
/// The requests of a new connection are not known yet, so for these three [`When`] says when they begin: with [`When::any`] at
/// once, else when the next such request is answered, so that the fault meets what is asked after it. All older connections are
/// closed then, as those of a server that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A new connection is accepted and reset before a byte is read.
    Refuse,
    /// A new connection breaks off in the middle of the server's first TLS record. Only with TLS.
    CutHandshake,
    /// A new connection is shown this certificate in place of the server's own. Only with TLS.
    Show(Certificate),
    /// The request is carried out later; not at all if the client has left by then.
    Delay(Duration),
    /// The request is carried out at once, and answered later.
    DelayAfter(Duration),
    /// The request is answered with an error, and nothing else is done.
    Status(ErrorAnswer),
    /// The connection is closed instead of an answer, and nothing was done.
    CutBefore,
    /// The request is carried out, but the connection is closed instead of an answer.
    CutAfter,
    /// The request is carried out, but the connection is closed in the middle of the answer, and of its TLS record if there is TLS.
    CutWithin,
    /// The connection is reset instead of an answer, and nothing was done, as by a server that died before it read the request.
    ResetBefore,
    /// The request is carried out, but the connection is reset instead of an answer.
    ResetAfter,
    /// The request is carried out, but the answer's body is no JSON.
    Garbage,
    /// The request is carried out, but the answer has no body.
    Empty,
}

/// An error answer; the server fills in what is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorAnswer {
    /// HTTP status.
    pub code: u16,
    /// `reason` of a Kubernetes Status, or the type of an AWS error.
    pub reason: Option<&'static str>,
    /// What is wrong, for a person.
    pub message: Option<String>,
    /// `Retry-After`, in whole seconds.
    pub retry_after: Option<Duration>,
}

impl Fault {
    fn is_of_connections(&self) -> bool {
        matches!(self, Self::Refuse | Self::CutHandshake | Self::Show(_))
    }

    /// An error with nothing but a status, such as 500 or 503.
    pub fn status(code: u16) -> Self {
        Self::Status(ErrorAnswer { code, ..ErrorAnswer::default() })
    }

    /// Kubernetes: 429 with `Retry-After`.
    pub fn throttled(retry_after: Duration) -> Self {
        let retry_after = Some(retry_after);
        Self::Status(ErrorAnswer { code: 429, reason: Some("TooManyRequests"), message: None, retry_after })
    }

    /// Kubernetes: 422, the object is invalid.
    pub fn invalid(message: impl Into<String>) -> Self {
        let message = Some(message.into());
        Self::Status(ErrorAnswer { code: 422, reason: Some("Invalid"), message, retry_after: None })
    }

    /// AWS: the role lacks the permission.
    pub fn access_denied() -> Self {
        Self::Status(ErrorAnswer { code: 400, reason: Some("AccessDeniedException"), ..ErrorAnswer::default() })
    }

    /// AWS: too many requests in this account and region.
    pub fn throttling() -> Self {
        let message = Some("Rate exceeded".to_owned());
        Self::Status(ErrorAnswer { code: 400, reason: Some("ThrottlingException"), message, retry_after: None })
    }
}

/// Which requests a fault is meant for.
#[derive(Clone, Debug, Default)]
pub struct When {
    verb: Option<String>,
    part: Option<String>,
}

impl When {
    /// Every request.
    pub fn any() -> Self {
        Self::default()
    }

    /// Requests whose path contains this.
    pub fn path(part: impl Into<String>) -> Self {
        Self { verb: None, part: Some(part.into()) }
    }

    /// Requests of this method whose path contains this.
    pub fn request(method: impl Into<String>, part: impl Into<String>) -> Self {
        Self { verb: Some(method.into()), part: Some(part.into()) }
    }

    /// AWS requests for this action, such as `GetParameter` or `DescribeCluster`.
    pub fn action(name: impl Into<String>) -> Self {
        Self { verb: Some(name.into()), part: None }
    }

    fn is_any(&self) -> bool {
        self.verb.is_none() && self.part.is_none()
    }

    /// Whether this request is one of them.
    pub fn matches(&self, call: &Call) -> bool {
        self.verb.as_ref().is_none_or(|verb| *verb == call.verb)
            && self.part.as_ref().is_none_or(|part| call.target.contains(part))
    }
}

/// The faults that one server still has to inject, in the order of their plan. Clones share one plan.
#[derive(Clone, Default)]
pub(crate) struct Faults {
    planned: Arc<Mutex<Vec<Planned>>>,
    met: Arc<Mutex<usize>>,
    close: Arc<Notify>,
}

struct Planned {
    when: When,
    fault: Fault,
    due: Due,
    /// Whether the request that a fault of connections waits for was answered.
    begun: bool,
}

/// Which of the requests that match meet the fault.
pub(crate) enum Due {
    /// This many from now on.
    Next(usize),
    /// Each with this probability.
    Share(f64, Rng),
    /// Those that come faster than this; a second's worth may come at once.
    Beyond { per_second: f64, left: f64, since: Instant },
}

impl Due {
    pub(crate) fn share(share: f64, seed: u64) -> Self {
        Self::Share(share, Rng::with_seed(seed))
    }

    pub(crate) fn beyond(per_second: u32) -> Self {
        let per_second = f64::from(per_second);
        Self::Beyond { per_second, left: per_second, since: Instant::now() }
    }

    fn now(&mut self) -> bool {
        match self {
            Self::Next(left) => {
                let due = *left > 0;
                *left -= usize::from(due);
                due
            }
            Self::Share(share, dice) => dice.f64() < *share,
            Self::Beyond { per_second, left, since } => {
                let refill = since.elapsed().as_secs_f64() * *per_second;
                *since = Instant::now();
                *left = (*left + refill).min(*per_second);
                let due = *left < 1.0;
                *left -= f64::from(u8::from(!due));
                due
            }
        }
    }
}

impl Faults {
    pub(crate) fn plan(&self, when: When, fault: Fault, due: Due) {
        let of_connections = fault.is_of_connections();
        let begun = !of_connections || when.is_any();
        self.planned.lock().push(Planned { when, fault, due, begun });
        if of_connections && begun {
            self.close();
        }
    }

    pub(crate) fn clear(&self) {
        self.planned.lock().clear();
    }

    /// How many faults were injected so far.
    pub(crate) fn met(&self) -> usize {
        *self.met.lock()
    }

    pub(crate) fn close(&self) {
        self.close.notify_waiters();
    }

    /// Resolves at the next [`Self::close`].
    pub(crate) fn closed(&self) -> OwnedNotified {
        Arc::clone(&self.close).notified_owned()
    }

    /// The fault for a request that has come, if one is due.
    pub(crate) fn take(&self, call: &Call) -> Option<Fault> {
        self.take_first(|planned| !planned.fault.is_of_connections() && planned.when.matches(call))
    }

    /// Notes that a request is answered, and returns whether its connection has to end.
    pub(crate) fn answered(&self, call: &Call) -> bool {
        let mut begins = false;
        for planned in self.planned.lock().iter_mut() {
            if !planned.begun && planned.when.matches(call) {
                planned.begun = true;
                begins = true;
            }
        }
        if begins {
            self.close();
        }
        begins
    }

    /// The fault for a connection that has come, if one is due.
    pub(crate) fn take_of_connection(&self, tls: bool) -> Option<Fault> {
        self.take_first(|planned| {
            planned.begun && planned.fault.is_of_connections() && (tls || planned.fault == Fault::Refuse)
        })
    }

    fn take_first(&self, wanted: impl Fn(&Planned) -> bool) -> Option<Fault> {
        let mut planned = self.planned.lock();
        let mut due = planned.iter_mut();
        let fault = due.find_map(|planned| (wanted(planned) && planned.due.now()).then(|| planned.fault.clone()))?;
        planned.retain(|planned| !matches!(planned.due, Due::Next(0)));
        *self.met.lock() += 1;
        Some(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_meets_the_requests_it_is_meant_for_and_no_more() {
        let faults = Faults::default();
        faults.plan(When::request("POST", "/jobs"), Fault::status(503), Due::Next(2));
        assert_eq!(faults.take(&Call::new("GET", "/jobs")), None, "another method");
        assert_eq!(faults.take(&Call::new("POST", "/secrets")), None, "another path");
        assert_eq!(faults.take(&Call::new("POST", "/jobs")), Some(Fault::status(503)));
        assert_eq!(faults.take(&Call::new("POST", "/jobs")), Some(Fault::status(503)));
        assert_eq!(faults.take(&Call::new("POST", "/jobs")), None, "a third time");
    }

    #[test]
    fn faults_come_in_the_order_they_were_planned() {
        let faults = Faults::default();
        faults.plan(When::any(), Fault::CutAfter, Due::Next(1));
        faults.plan(When::action("GetParameter"), Fault::throttling(), Due::Next(1));
        assert_eq!(faults.take(&Call::new("GetParameter", "/x")), Some(Fault::CutAfter));
        assert_eq!(faults.take(&Call::new("GetParameter", "/x")), Some(Fault::throttling()));
    }

    #[test]
    fn a_refusal_is_for_connections_and_not_for_requests() {
        let faults = Faults::default();
        faults.plan(When::any(), Fault::Refuse, Due::Next(1));
        assert_eq!(faults.take(&Call::new("GET", "/")), None);
        assert_eq!(faults.take_of_connection(false), Some(Fault::Refuse));
        assert_eq!(faults.take_of_connection(false), None);
        assert_eq!(faults.met(), 1);
    }

    #[test]
    fn a_fault_of_connections_begins_when_the_request_before_is_answered() {
        let faults = Faults::default();
        faults.plan(When::request("GET", "/podtemplates"), Fault::CutHandshake, Due::Next(2));
        assert_eq!(faults.take_of_connection(true), None);
        assert!(!faults.answered(&Call::new("PATCH", "/secrets")), "another request");
        assert_eq!(faults.take_of_connection(true), None);
        assert!(faults.answered(&Call::new("GET", "/podtemplates")));
        assert!(!faults.answered(&Call::new("GET", "/podtemplates")), "it has begun");
        assert_eq!(faults.take_of_connection(true), Some(Fault::CutHandshake));
        assert_eq!(faults.take_of_connection(false), None, "there is no TLS to break off");
        assert_eq!(faults.take_of_connection(true), Some(Fault::CutHandshake));
        assert_eq!(faults.take_of_connection(true), None, "a third time");
    }

    #[test]
    fn a_share_of_the_requests_meets_a_fault_and_the_same_ones_each_time() {
        let met = |seed| {
            let faults = Faults::default();
            faults.plan(When::path("/jobs"), Fault::CutAfter, Due::share(0.05, seed));
            assert_eq!(faults.take(&Call::new("POST", "/secrets")), None, "another path");
            (0..10_000).map(|_| faults.take(&Call::new("POST", "/jobs")).is_some()).collect::<Vec<_>>()
        };
        let first = met(1);
        let times = first.iter().filter(|met| **met).count();
        assert!((400..=600).contains(&times), "{times}");
        assert_eq!(met(1), first);
        assert_ne!(met(2), first);
    }

    #[test]
    fn what_comes_faster_than_a_limit_meets_a_fault() {
        let faults = Faults::default();
        faults.plan(When::action("GetParameter"), Fault::throttling(), Due::beyond(1));
        assert_eq!(faults.take(&Call::new("GetParameter", "/x")), None);
        assert_eq!(faults.take(&Call::new("GetParameter", "/x")), Some(Fault::throttling()));
        assert_eq!(faults.take(&Call::new("DescribeCluster", "x")), None, "another action");
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(faults.take(&Call::new("GetParameter", "/x")), None, "a second later");
    }
}
