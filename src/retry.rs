//! The one retry policy of our HTTP APIs: what is worth another attempt, and when. The requests must be safe to repeat.
//!
//! - No answer: the connection may have died while it was idle, which shows only when it is used. Once at once, then after a
//!   pause. The pool keeps a single idle connection, so the second attempt is made on a new one.
//! - An answer that may pass, such as 429 and most 5xx: after a pause, and not before `Retry-After`.
//!
//! Never when no time is left for it. The `Retry-After` of a 429 holds for all requests under the same limit: [`Quiet`].

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderMap, Response, StatusCode, header::RETRY_AFTER};
use tokio::time::{Instant, sleep};
use tower::BoxError;

use crate::{
    cause, clock,
    deadline::Deadline,
    text::{chain, excerpt},
};

/// An attempt makes sense with this much time or more; it gets half of it.
pub const MIN_TIME_FOR_RETRY: Duration = Duration::from_millis(500);

/// The maximum of the first pause; each further one is up to twice as long.
pub const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The maximum of all pauses, unless the server asks for a longer one.
pub const MAX_PAUSE: Duration = Duration::from_secs(5);

/// A longer silence is kept by the request alone that is asked for it: else each event of the environment would fail until then.
const MAX_QUIET: Duration = Duration::from_secs(30);

/// Until when a server wants no request under one of its limits. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Quiet(Arc<Mutex<Option<Instant>>>);

impl Quiet {
    fn begin(&self, time: Duration) {
        if time <= MAX_QUIET {
            let mut end = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *end = (*end).max(Some(clock::monotonic() + time));
        }
    }

    fn left(&self) -> Option<Duration> {
        let end = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        end.and_then(|end| end.checked_duration_since(clock::monotonic())).filter(|left| !left.is_zero())
    }
}

/// A server takes requests again too late.
#[derive(Debug, thiserror::Error)]
#[error("it has answered 429 to another request, and wants none for {} s", .0.as_secs_f64().ceil())]
pub struct AsksForQuiet(Duration);

/// Marks an error that another attempt would meet again; the caller gets the error within.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Final(pub BoxError);

/// An API, as far as retries must know it.
pub struct Api<B> {
    /// For the log.
    pub name: &'static str,
    /// What one attempt may take.
    pub max_attempt: Duration,
    /// Whether an answer may pass: [`is_overload`], and what the API has beyond that.
    pub may_pass: fn(&Response<B>) -> bool,
    /// After this many answers 429 the next one is given back. A request that may be given back does not wait for what another was asked
    /// for: something else makes it later.
    pub max_rate_limited: Option<u32>,
}

/// Makes attempts until one succeeds, is refused for good, or no time is left; the answer of the last one. `attempt` gets the
/// time that it may take.
pub async fn send<B, Attempt>(
    api: &Api<B>,
    quiet: &Quiet,
    deadline: Deadline,
    mut attempt: impl FnMut(Duration) -> Attempt,
) -> Result<Response<B>, BoxError>
where
    Attempt: Future<Output = Result<Response<B>, BoxError>>,
{
    let mut pauses = Pauses::default();
    let mut broken = false;
    let mut rate_limited = 0;
    loop {
        while let Some(left) = quiet.left() {
            let is_given_back = api.max_rate_limited.is_some() && rate_limited == 0;
            if is_given_back || deadline.left() < left + MIN_TIME_FOR_RETRY {
                return Err(AsksForQuiet(left).into());
            }
            sleep(left + FIRST_PAUSE.mul_f64(clock::random())).await;
        }
        let result = attempt(deadline.attempt(api.max_attempt)).await;
        let pause = match &result {
            Ok(response) if (api.may_pass)(response) => {
                let retry_after = retry_after(response.headers());
                if response.status() == StatusCode::TOO_MANY_REQUESTS {
                    quiet.begin(retry_after);
                    if api.max_rate_limited == Some(rate_limited) {
                        return result;
                    }
                    rate_limited += 1;
                }
                pauses.next() + retry_after
            }
            Ok(_) => return result,
            Err(error) if error.is::<Final>() => {
                return result.map_err(|error| error.downcast::<Final>().map_or_else(|error| error, |error| error.0));
            }
            // A bad certificate will not change.
            Err(error) if matches!(cause(&**error), Some(rustls::Error::InvalidCertificate(_))) => return result,
            Err(_) if !mem::replace(&mut broken, true) => Duration::ZERO,
            Err(_) => pauses.next(),
        };
        if deadline.left() < pause + MIN_TIME_FOR_RETRY {
            return result;
        }
        let problem = match &result {
            Ok(response) => response.status().to_string(),
            Err(error) => chain(&**error),
        };
        let (problem, milliseconds) = (excerpt(&problem), pause.as_millis());
        if pause.is_zero() {
            tracing::debug!(%problem, "retry of a request to {} at once", api.name);
        } else {
            tracing::warn!(%problem, milliseconds, "retry of a request to {} after a pause", api.name);
        }
        sleep(pause).await;
    }
}

/// Full jitter: a random share of a maximum that doubles. With equal pauses all functions of a burst would come back at once.
#[derive(Default)]
struct Pauses(u32);

impl Pauses {
    fn next(&mut self) -> Duration {
        let max = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(self.0)).min(MAX_PAUSE);
        self.0 += 1;
        max.mul_f64(clock::random())
    }
}

/// 429, or a 5xx that is not for good.
pub fn is_overload(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// `Retry-After`, else Buildkite's `RateLimit-Reset`, in whole seconds.
fn retry_after(headers: &HeaderMap) -> Duration {
    let header = headers.get(RETRY_AFTER).or_else(|| headers.get("ratelimit-reset"));
    let seconds = header.and_then(|value| value.to_str().ok()?.parse::<u32>().ok());
    Duration::from_secs(seconds.unwrap_or_default().into())
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use http::response;

    use super::*;

    type Answer = Result<response::Builder, BoxError>;

    const API: Api<()> = Api {
        name: "the server",
        max_attempt: Duration::from_secs(10),
        may_pass: |response| is_overload(response.status()),
        max_rate_limited: None,
    };

    /// What comes of a request that meets these answers, the last of them every time after, and when it was sent.
    async fn ask(answers: &[fn() -> Answer]) -> (Result<StatusCode, BoxError>, Vec<Duration>) {
        ask_under(&Quiet::default(), answers).await
    }

    async fn ask_under(quiet: &Quiet, answers: &[fn() -> Answer]) -> (Result<StatusCode, BoxError>, Vec<Duration>) {
        ask_by(&API, quiet, answers).await
    }

    async fn ask_by(
        api: &Api<()>,
        quiet: &Quiet,
        answers: &[fn() -> Answer],
    ) -> (Result<StatusCode, BoxError>, Vec<Duration>) {
        let (began, mut sent) = (clock::monotonic(), Vec::new());
        let answer = send(api, quiet, Deadline::after(Duration::from_secs(30)), |_| {
            let answer = answers[sent.len().min(answers.len() - 1)]();
            sent.push(began.elapsed());
            ready(answer.map(|answer| answer.body(()).unwrap()))
        });
        let answer = answer.await.map(|answer| answer.status());
        (answer, sent)
    }

    fn status(code: u16) -> response::Builder {
        Response::builder().status(code)
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_and_end_in_time() {
        let (answer, sent) = ask(&[|| Ok(status(503))]).await;
        assert_eq!(answer.unwrap(), 503);
        assert!(*sent.last().unwrap() < Duration::from_secs(30), "{sent:?}");
        let pauses: Vec<_> = sent.windows(2).map(|sent| sent[1].saturating_sub(sent[0])).collect();
        assert!(pauses.len() >= 8, "{pauses:?}");
        for (n, pause) in (0..).zip(&pauses) {
            let max = (FIRST_PAUSE * 2_u32.pow(n)).min(MAX_PAUSE);
            assert!(*pause <= max + Duration::from_millis(1), "pause {n} of {pauses:?}");
        }
        assert!(pauses.iter().any(|pause| *pause > FIRST_PAUSE), "{pauses:?}");
    }

    #[test]
    fn no_two_requests_have_the_same_pauses_however_long_those_are() {
        let long = || {
            let mut pauses = Pauses::default();
            (0..20).map(|_| pauses.next()).skip(10).collect::<Vec<_>>()
        };
        let (one, other) = (long(), long());
        assert_ne!(one, other);
        assert!(one.windows(2).all(|pauses| pauses[0] != pauses[1]), "{one:?}");
        assert!(one.iter().all(|pause| *pause <= MAX_PAUSE), "{one:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_may_pass_is_followed_by_another_attempt() {
        let answers: [fn() -> Answer; 6] = [
            || Ok(status(429)),
            || Ok(status(500)),
            || Ok(status(502)),
            || Ok(status(503)),
            || Ok(status(504)),
            || Err("reset".into()),
        ];
        for answer in answers {
            let (answer, sent) = ask(&[answer, || Ok(status(201))]).await;
            assert_eq!((answer.unwrap().as_u16(), sent.len()), (201, 2));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn retry_after_is_kept() {
        let (answer, sent) = ask(&[|| Ok(status(429).header(RETRY_AFTER, "7")), || Ok(status(201))]).await;
        assert_eq!(answer.unwrap(), 201);
        assert!((Duration::from_secs(7)..Duration::from_millis(7_102)).contains(&sent[1]), "{sent:?}");

        let (answer, sent) = ask(&[|| Ok(status(429).header(RETRY_AFTER, "4294967295"))]).await;
        assert_eq!((answer.unwrap().as_u16(), sent.len()), (429, 1), "there is no time for that");
    }

    #[tokio::test(start_paused = true)]
    async fn retry_after_is_kept_by_all_requests_under_one_limit() {
        let quiet = Quiet::default();
        let asks: [fn() -> Answer; 2] = [|| Ok(status(429).header(RETRY_AFTER, "7")), || Ok(status(201))];
        let later = async {
            sleep(Duration::from_secs(2)).await;
            ask_under(&quiet, &[|| Ok(status(201))]).await.1
        };
        let (_, sent) = tokio::join!(ask_under(&quiet, &asks), later);
        assert!((Duration::from_secs(5)..Duration::from_millis(5_102)).contains(&sent[0]), "{sent:?}");

        ask_under(&quiet, &[|| Ok(status(429).header(RETRY_AFTER, "31"))]).await.0.unwrap();
        assert_eq!(
            ask_under(&quiet, &[|| Ok(status(201))]).await.1.len(),
            1,
            "a silence of that length is kept by one request"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_without_time_for_the_silence_is_not_made() {
        let quiet = Quiet::default();
        quiet.begin(MAX_QUIET);
        let (answer, sent) = ask_under(&quiet, &[|| Ok(status(201))]).await;
        assert_eq!(answer.unwrap_err().to_string(), "it has answered 429 to another request, and wants none for 30 s");
        assert!(sent.is_empty(), "{sent:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_something_else_makes_later_waits_once_and_not_for_another() {
        let (api, quiet) = (Api { max_rate_limited: Some(1), ..API }, Quiet::default());
        let limited: [fn() -> Answer; 1] = [|| Ok(status(429).header(RETRY_AFTER, "2"))];
        let (answer, sent) = ask_by(&api, &quiet, &limited).await;
        assert_eq!((answer.unwrap().as_u16(), sent.len()), (429, 2));
        let (answer, sent) = ask_by(&api, &quiet, &limited).await;
        assert_eq!(answer.unwrap_err().to_string(), "it has answered 429 to another request, and wants none for 2 s");
        assert!(sent.is_empty(), "{sent:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_connection_is_replaced_at_once() {
        let (answer, sent) = ask(&[|| Err("reset".into()), || Ok(status(201))]).await;
        assert_eq!(answer.unwrap(), 201);
        assert!(sent[1].saturating_sub(sent[0]) <= Duration::from_millis(1), "{sent:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_final() {
        for refusal in [
            || Ok(status(400)),
            || Ok(status(401)),
            || Ok(status(403)),
            || Ok(status(404)),
            || Ok(status(409)),
            || Ok(status(422)),
            || Err(rustls::Error::InvalidCertificate(rustls::CertificateError::Expired).into()),
            || Err(Final("no key".into()).into()),
        ] {
            let (_, sent) = ask(&[refusal]).await;
            assert_eq!(sent.len(), 1);
        }
    }
}
