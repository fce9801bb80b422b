//! The client of the API server: TLS by the cluster's own CA alone, our token on every request, and more tries where that can help.

use std::{
    error::Error,
    mem,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_smithy_types::{DateTime, date_time::Format};
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Uri,
    header::{AUTHORIZATION, DATE, RETRY_AFTER, USER_AGENT},
};
use http_body_util::BodyExt;
use hyper_util::client::legacy::connect::capture_connection;
use kube::client::{Body, middleware::BaseUriLayer};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tower::{
    BoxError, Service, ServiceBuilder, ServiceExt,
    retry::{
        Policy,
        backoff::{Backoff, ExponentialBackoff, ExponentialBackoffMaker, MakeBackoff},
    },
    service_fn,
    util::rng::{HasherRng, Rng},
};

use super::token::Signer;
use crate::{
    cause, chain,
    config::CertificateAuthority,
    deadline::Deadline,
    https::{self, Plain},
};

/// Who asks, for the cluster's audit log.
const AGENT: &str = concat!("agent-scheduler/", env!("CARGO_PKG_VERSION"));

/// One try, from the connection to the end of the answer.
const TRY: Duration = Duration::from_secs(10);

/// What must be left for another try to make sense; the try has half of it.
const LEAST: Duration = Duration::from_millis(500);

/// The pause before the third try is at most so long, the next at most twice that, and so on.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause between two tries, unless the API server asks for a longer one.
const PAUSE: Duration = Duration::from_secs(5);

/// A clock that is so wrong is told; a token is good for a quarter of an hour.
const SKEW: i64 = 60;

/// No answer, though there was a connection.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {} ms", .0.as_millis())]
pub(super) struct Silence(Duration);

/// No connection.
#[derive(Debug, thiserror::Error)]
#[error("no connection within {} ms", .0.as_millis())]
struct NoConnection(Duration);

/// A redirection, which no API server answers, and which must not pass for a success.
#[derive(Debug, thiserror::Error)]
#[error("{0}, which no API server answers")]
struct Redirected(StatusCode);

/// What came of a try that was followed by another.
#[derive(Debug, thiserror::Error)]
#[error("asked again")]
struct AskedAgain;

/// There is no token to show.
#[derive(Debug, thiserror::Error)]
#[error("the EKS token cannot be signed")]
pub(super) struct Unsigned(#[source] BoxError);

/// 401, and our clock is wrong: by so many seconds it is behind the API server's.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the function's clock is {} s {} that of the API server", .0.unsigned_abs(), if *.0 < 0 { "ahead of" } else { "behind" })]
pub(super) struct WrongClock(i64);

/// A client for one API server. Its requests carry their [`Deadline`] as an extension.
pub fn connect(endpoint: &Uri, authority: CertificateAuthority, signer: Signer) -> Result<kube::Client, BoxError> {
    over(https::client(authority, Plain::Refused)?, endpoint, signer)
}

/// The same over anything that takes requests, such as a test.
pub fn over<H, B>(http: H, endpoint: &Uri, signer: Signer) -> Result<kube::Client, BoxError>
where
    H: Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
    B: http_body::Body<Error: Into<BoxError>> + Send,
    B::Data: Send,
{
    let signer = Arc::new(signer);
    let tries = Tries::new(Arc::clone(&signer))?;
    let service = ServiceBuilder::new()
        .layer(BaseUriLayer::new(endpoint.clone()))
        .retry(tries)
        .service(service_fn(move |request| once(http.clone(), Arc::clone(&signer), request)));
    // Every request says its namespace itself.
    Ok(kube::Client::new(service, ""))
}

/// One try. The answer is read to its end here, since it may break off anywhere.
async fn once<H, B>(http: H, signer: Arc<Signer>, mut request: Request<Body>) -> Result<Response<Body>, BoxError>
where
    H: Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>>,
    B: http_body::Body<Error: Into<BoxError>>,
{
    request.headers_mut().insert(AUTHORIZATION, signer.authorization(SystemTime::now()).map_err(Unsigned)?);
    request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
    let time = deadline(&request).map_or(TRY, |deadline| deadline.one_try(TRY));
    let connection = capture_connection(&mut request);
    let answer = async {
        let (parts, body) = http.oneshot(request).await.map_err(Into::into)?.into_parts();
        if parts.status.is_redirection() {
            return Err(Redirected(parts.status).into());
        }
        Ok(Response::from_parts(parts, body.collect().await.map_err(Into::into)?.to_bytes().into()))
    };
    match timeout(time, answer).await {
        Ok(answer) => answer,
        Err(_) if connection.connection_metadata().is_none() => Err(NoConnection(time).into()),
        Err(_) => Err(Silence(time).into()),
    }
}

fn deadline(request: &Request<Body>) -> Option<Deadline> {
    request.extensions().get().copied()
}

/// What is worth another try, and when. To repeat is safe: a Job has its name, and a Secret is applied.
///
/// - No answer: the connection may have died while nobody used it, which shows only in its use. Once at once, then after a
///   pause. The pool keeps a single idle connection, so the second try is made on a new one.
/// - 429 and those 5xx that may pass: after a pause, and not before `Retry-After`.
/// - 401: the API server may have forgotten our token, or its clock be ahead of ours. Once, with a new token.
///
/// Never when there is no time left for it. A last try that was short of time says nothing: then what came before it is told.
struct Tries {
    signer: Arc<Signer>,
    pauses: ExponentialBackoff,
    chance: HasherRng,
    refused: bool,
    broken: bool,
    before: Option<Result<Response<Body>, BoxError>>,
}

impl Tries {
    fn new(signer: Arc<Signer>) -> Result<Self, BoxError> {
        let chance = HasherRng::new();
        let pauses = ExponentialBackoffMaker::new(FIRST_PAUSE, PAUSE, 0.0, chance.clone())?.make_backoff();
        Ok(Self { signer, pauses, chance, refused: false, broken: false, before: None })
    }

    /// A random share of the next pause: with those of one length all functions of a burst would come back at once. tower's own
    /// jitter comes on top of its pauses, and is nothing once they are at their longest.
    fn pause(&mut self) -> Duration {
        let until = self.pauses.next_backoff().deadline();
        until.saturating_duration_since(Instant::now()).mul_f64(self.chance.next_f64())
    }
}

/// For the next request: what came of this one is not its business, and its pauses are others.
impl Clone for Tries {
    fn clone(&self) -> Self {
        Self {
            signer: Arc::clone(&self.signer),
            pauses: self.pauses.clone(),
            chance: HasherRng::new(),
            refused: false,
            broken: false,
            before: None,
        }
    }
}

impl Policy<Request<Body>, Response<Body>, BoxError> for Tries {
    type Future = Sleep;

    fn retry(&mut self, request: &mut Request<Body>, result: &mut Result<Response<Body>, BoxError>) -> Option<Sleep> {
        let cut_short = result.as_ref().is_err_and(|error| is_cut_short(&**error));
        let pause = match result {
            Ok(response) => match response.status() {
                StatusCode::UNAUTHORIZED if !mem::replace(&mut self.refused, true) => {
                    self.signer.expire();
                    Duration::ZERO
                }
                StatusCode::UNAUTHORIZED => {
                    if let Some(wrong) = wrong_clock(response.headers(), SystemTime::now()) {
                        *result = Err(wrong.into());
                    }
                    return None;
                }
                StatusCode::TOO_MANY_REQUESTS
                | StatusCode::INTERNAL_SERVER_ERROR
                | StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT => self.pause() + retry_after(response.headers()),
                _ => return None,
            },
            Err(error) if is_final(&**error) => return None,
            Err(_) if !mem::replace(&mut self.broken, true) => Duration::ZERO,
            Err(_) => self.pause(),
        };
        if deadline(request).is_some_and(|deadline| deadline.left() < pause + LEAST) {
            if let Some(before) = self.before.take_if(|_| cut_short) {
                *result = before;
            }
            return None;
        }
        let problem = match result {
            Ok(response) => response.status().to_string(),
            Err(error) => chain(&**error),
        };
        let milliseconds = pause.as_millis();
        if pause.is_zero() {
            tracing::debug!(problem, "the API server is asked again at once");
        } else {
            tracing::warn!(problem, milliseconds, "the API server is asked again after a pause");
        }
        // A 401 tells of a token that is not shown again.
        if !cut_short && !result.as_ref().is_ok_and(|response| response.status() == StatusCode::UNAUTHORIZED) {
            self.before = Some(mem::replace(result, Err(AskedAgain.into())));
        }
        Some(sleep(pause))
    }

    fn clone_request(&mut self, request: &Request<Body>) -> Option<Request<Body>> {
        let mut copy = Request::new(request.body().try_clone()?);
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.headers_mut() = request.headers().clone();
        *copy.extensions_mut() = request.extensions().clone();
        Some(copy)
    }
}

/// Whoever shows that certificate will show it again, and keys that sign nothing never will.
fn is_final(error: &(dyn Error + 'static)) -> bool {
    matches!(cause(error), Some(rustls::Error::InvalidCertificate(_))) || cause::<Unsigned>(error).is_some()
}

/// With less time than a try may take.
fn is_cut_short(error: &(dyn Error + 'static)) -> bool {
    matches!(cause(error), Some(Silence(time)) if *time < TRY)
        || matches!(cause(error), Some(NoConnection(time)) if *time < TRY)
}

/// The API server gives whole seconds.
fn retry_after(headers: &HeaderMap) -> Duration {
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse::<u32>().ok());
    Duration::from_secs(seconds.unwrap_or_default().into())
}

fn wrong_clock(headers: &HeaderMap, now: SystemTime) -> Option<WrongClock> {
    let theirs = DateTime::from_str(headers.get(DATE)?.to_str().ok()?, Format::HttpDate).ok()?.secs();
    let behind = theirs.saturating_sub(DateTime::from(now).secs());
    (behind.abs() >= SKEW).then_some(WrongClock(behind))
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use aws_credential_types::Credentials;
    use http::response;

    use super::*;

    type Answer = Result<response::Builder, BoxError>;

    /// What comes of a request that meets these answers, the last of them for ever, and when it was sent.
    async fn ask(deadline: Deadline, answers: Vec<fn() -> Answer>) -> (Result<StatusCode, BoxError>, Vec<Duration>) {
        let (started, sent) = (Instant::now(), Arc::new(Mutex::new(Vec::new())));
        let log = Arc::clone(&sent);
        let server = service_fn(move |_: Request<Body>| {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            let answer = answers[log.len().min(answers.len() - 1)];
            log.push(started.elapsed());
            async move { answer().map(|answer| answer.body(Body::empty()).unwrap()) }
        });
        let tries = ServiceBuilder::new().retry(Tries::new(signer()).unwrap()).service(server);
        let request = Request::get("/").extension(deadline).body(Body::empty()).unwrap();
        let answer = tries.oneshot(request).await;
        let sent = sent.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (answer.map(|answer| answer.status()), sent)
    }

    fn signer() -> Arc<Signer> {
        let credentials = Credentials::new("AKIDEXAMPLE", "secret", None, None, "test");
        Arc::new(Signer::new(credentials, "us-east-1", "example-cluster"))
    }

    fn status(code: u16) -> response::Builder {
        Response::builder().status(code)
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_and_end_in_time() {
        let (answer, sent) = ask(Deadline::after(Duration::from_secs(30)), vec![|| Ok(status(503))]).await;
        assert_eq!(answer.unwrap(), 503);
        assert!(*sent.last().unwrap() < Duration::from_secs(30), "{sent:?}");
        let pauses: Vec<_> = sent.windows(2).map(|sent| sent[1].saturating_sub(sent[0])).collect();
        assert!(pauses.len() >= 8, "{pauses:?}");
        for (n, pause) in (0..).zip(&pauses) {
            let longest = (FIRST_PAUSE * 2_u32.pow(n)).min(PAUSE);
            assert!(*pause <= longest + Duration::from_millis(1), "pause {n} of {pauses:?}");
        }
        assert!(pauses.iter().any(|pause| *pause > FIRST_PAUSE), "{pauses:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn no_two_requests_have_the_same_pauses_however_long_those_are() {
        let tries = Tries::new(signer()).unwrap();
        let longest = |mut tries: Tries| -> Vec<_> { (0..20).map(|_| tries.pause()).skip(10).collect() };
        let (one, other) = (longest(tries.clone()), longest(tries.clone()));
        assert_ne!(one, other);
        assert!(one.windows(2).all(|pauses| pauses[0] != pauses[1]), "{one:?}");
        assert!(one.iter().all(|pause| *pause <= PAUSE), "{one:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_pass_is_asked_for_again() {
        let troubles: [fn() -> Answer; 6] = [
            || Ok(status(429)),
            || Ok(status(500)),
            || Ok(status(502)),
            || Ok(status(503)),
            || Ok(status(504)),
            || Err(Redirected(StatusCode::FOUND).into()),
        ];
        for trouble in troubles {
            let deadline = Deadline::after(Duration::from_secs(30));
            let (answer, sent) = ask(deadline, vec![trouble, || Ok(status(201))]).await;
            assert_eq!((answer.unwrap().as_u16(), sent.len()), (201, 2));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_comes_back_before_retry_after() {
        let deadline = Deadline::after(Duration::from_secs(30));
        let (answer, sent) = ask(deadline, vec![|| Ok(status(429).header(RETRY_AFTER, "7")), || Ok(status(201))]).await;
        assert_eq!(answer.unwrap(), 201);
        assert!((Duration::from_secs(7)..Duration::from_millis(7_102)).contains(&sent[1]), "{sent:?}");

        let (answer, sent) = ask(deadline, vec![|| Ok(status(429).header(RETRY_AFTER, "4294967295"))]).await;
        assert_eq!((answer.unwrap().as_u16(), sent.len()), (429, 1), "that is no use in the time there is");
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_connection_is_replaced_at_once() {
        let deadline = Deadline::after(Duration::from_secs(30));
        let (answer, sent) = ask(deadline, vec![|| Err("reset".into()), || Ok(status(201))]).await;
        assert_eq!(answer.unwrap(), 201);
        assert!(sent[1].saturating_sub(sent[0]) <= Duration::from_millis(1), "{sent:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_last_try_without_time_tells_what_came_before() {
        let deadline = || Deadline::after(Duration::from_secs(2));
        let (answer, sent) = ask(deadline(), vec![|| Ok(status(503)), || Err(Silence(TRY / 10).into())]).await;
        assert_eq!(answer.unwrap(), 503);
        assert!(sent.len() > 2, "{sent:?}");

        let (answer, _) = ask(deadline(), vec![|| Ok(status(503)), || Err(Silence(TRY).into())]).await;
        assert!(answer.unwrap_err().is::<Silence>(), "that one had time");

        let (answer, _) = ask(deadline(), vec![|| Ok(status(401)), || Err(Silence(TRY / 10).into())]).await;
        assert!(answer.unwrap_err().is::<Silence>(), "nobody has judged the new token");
    }

    #[tokio::test(start_paused = true)]
    async fn what_would_be_refused_again_is_not_repeated() {
        for refusal in [
            || Ok(status(400)),
            || Ok(status(403)),
            || Ok(status(404)),
            || Ok(status(409)),
            || Ok(status(422)),
            || Err(rustls::Error::InvalidCertificate(rustls::CertificateError::Expired).into()),
            || Err(Unsigned("no key".into()).into()),
        ] {
            let (_, sent) = ask(Deadline::after(Duration::from_secs(30)), vec![refusal]).await;
            assert_eq!(sent.len(), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_401_tells_of_a_wrong_clock() {
        let deadline = Deadline::after(Duration::from_secs(30));
        let (answer, sent) =
            ask(deadline, vec![|| Ok(status(401).header(DATE, "Thu, 01 Jan 2026 00:00:00 GMT"))]).await;
        assert_eq!(sent.len(), 2, "once with a new token");
        let text = answer.unwrap_err().to_string();
        assert!(
            text.starts_with("the function's clock is ") && text.ends_with(" s ahead of that of the API server"),
            "{text}"
        );

        for date in [|| Ok(status(401)), || Ok(status(401).header(DATE, "yesterday"))] {
            assert_eq!(ask(deadline, vec![date]).await.0.unwrap(), 401);
        }
    }
}
