//! Misbehaviour on demand: which requests meet it, what happens to them, and how often.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

/// What befalls a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The next new connection is accepted and reset before a byte is read. It is not known yet what would be asked, so [`When`]
    /// does not count. Connections that idle are closed as soon as this is planned: a server that is gone keeps none.
    Refuse,
    /// The request is served, but later.
    Delay(Duration),
    /// The request is answered with an error, and nothing else is done.
    Status(ErrorAnswer),
    /// The connection is closed instead of an answer, and nothing was done.
    CutBefore,
    /// The request is carried out, but the connection is closed instead of an answer.
    CutAfter,
    /// The request is carried out, but the answer's body is no JSON.
    Garbage,
}

/// An error in the words of the server that gives it; whatever is absent, that server fills in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorAnswer {
    /// HTTP status.
    pub code: u16,
    /// `reason` of a Kubernetes Status, or the type of an AWS error.
    pub reason: Option<&'static str>,
    /// What is wrong, for a person.
    pub message: Option<String>,
    /// When to come again; sent in whole seconds.
    pub retry_after: Option<Duration>,
}

impl Fault {
    /// An error with nothing but a status, such as 500 or 503.
    pub fn status(code: u16) -> Self {
        Self::Status(ErrorAnswer { code, reason: None, message: None, retry_after: None })
    }

    /// Kubernetes: 429 with `Retry-After`.
    pub fn throttled(retry_after: Duration) -> Self {
        Self::Status(ErrorAnswer {
            code: 429,
            reason: Some("TooManyRequests"),
            message: None,
            retry_after: Some(retry_after),
        })
    }

    /// Kubernetes: 422, the object was judged and found wanting.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::Status(ErrorAnswer {
            code: 422,
            reason: Some("Invalid"),
            message: Some(message.into()),
            retry_after: None,
        })
    }

    /// AWS: the role lacks the permission for what was asked.
    pub fn access_denied() -> Self {
        Self::Status(ErrorAnswer { code: 400, reason: Some("AccessDeniedException"), message: None, retry_after: None })
    }

    /// AWS: too many requests in this account and region.
    pub fn throttling() -> Self {
        Self::Status(ErrorAnswer {
            code: 400,
            reason: Some("ThrottlingException"),
            message: Some("Rate exceeded".to_owned()),
            retry_after: None,
        })
    }
}

/// Which requests a fault is meant for.
#[derive(Clone, Debug, Default)]
pub struct When {
    method: Option<String>,
    part: Option<String>,
}

impl When {
    /// Every request.
    pub fn any() -> Self {
        Self::default()
    }

    /// Requests whose path contains this.
    pub fn path(part: impl Into<String>) -> Self {
        Self { method: None, part: Some(part.into()) }
    }

    /// Requests of this method whose path contains this.
    pub fn request(method: impl Into<String>, part: impl Into<String>) -> Self {
        Self { method: Some(method.into()), part: Some(part.into()) }
    }

    /// AWS requests for this action, such as `GetParameter` or `DescribeCluster`.
    pub fn action(name: impl Into<String>) -> Self {
        Self::path(name)
    }

    fn matches(&self, method: &str, path: &str, subject: &str) -> bool {
        self.method.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(method))
            && self.part.as_ref().is_none_or(|part| path.contains(part) || subject.contains(part))
    }
}

/// The faults that one server still has to commit, first planned first. Clones share one plan.
#[derive(Clone, Default)]
pub(crate) struct Faults {
    planned: Arc<Mutex<Vec<Planned>>>,
    hang_up: Arc<Notify>,
}

struct Planned {
    when: When,
    fault: Fault,
    left: usize,
}

impl Faults {
    pub(crate) fn plan(&self, when: When, fault: Fault, times: usize) {
        let refuse = fault == Fault::Refuse;
        self.planned.lock().push(Planned { when, fault, left: times });
        if refuse {
            self.hang_up();
        }
    }

    pub(crate) fn clear(&self) {
        self.planned.lock().clear();
    }

    pub(crate) fn hang_up(&self) {
        self.hang_up.notify_waiters();
    }

    /// Resolves when connections shall end, if that is said after this call.
    pub(crate) fn hung_up(&self) -> OwnedNotified {
        Arc::clone(&self.hang_up).notified_owned()
    }

    /// The fault for a request that has come, if one is due.
    pub(crate) fn take(&self, method: &str, path: &str, subject: &str) -> Option<Fault> {
        self.take_first(|planned| planned.fault != Fault::Refuse && planned.when.matches(method, path, subject))
    }

    /// Whether a connection that has come is to be reset.
    pub(crate) fn take_refusal(&self) -> bool {
        self.take_first(|planned| planned.fault == Fault::Refuse).is_some()
    }

    fn take_first(&self, wanted: impl Fn(&Planned) -> bool) -> Option<Fault> {
        let mut planned = self.planned.lock();
        let due = planned.iter_mut().find(|planned| planned.left > 0 && wanted(planned))?;
        due.left -= 1;
        Some(due.fault.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_meets_the_requests_it_is_meant_for_and_no_more() {
        let faults = Faults::default();
        faults.plan(When::request("POST", "/jobs"), Fault::status(503), 2);
        assert_eq!(faults.take("GET", "/jobs", ""), None, "another method");
        assert_eq!(faults.take("POST", "/secrets", ""), None, "another path");
        assert_eq!(faults.take("POST", "/jobs", ""), Some(Fault::status(503)));
        assert_eq!(faults.take("POST", "/jobs", ""), Some(Fault::status(503)));
        assert_eq!(faults.take("POST", "/jobs", ""), None, "a third time");
    }

    #[test]
    fn faults_come_in_the_order_they_were_planned() {
        let faults = Faults::default();
        faults.plan(When::any(), Fault::CutAfter, 1);
        faults.plan(When::action("GetParameter"), Fault::throttling(), 1);
        assert_eq!(faults.take("POST", "/", "GetParameter /x"), Some(Fault::CutAfter));
        assert_eq!(faults.take("POST", "/", "GetParameter /x"), Some(Fault::throttling()));
    }

    #[test]
    fn a_refusal_is_for_connections_and_not_for_requests() {
        let faults = Faults::default();
        faults.plan(When::any(), Fault::Refuse, 1);
        assert_eq!(faults.take("GET", "/", ""), None);
        assert!(faults.take_refusal());
        assert!(!faults.take_refusal());
    }
}
