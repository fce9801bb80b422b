use axum::{body::Body, http::Request};
use tower::ServiceExt;

use super::*;

struct Scene {
    api: Arc<RuntimeApi>,
    events: mpsc::UnboundedSender<Invocation>,
}

impl Scene {
    fn new() -> Self {
        let (events, queue) = mpsc::unbounded_channel();
        let api = Arc::new(RuntimeApi {
            timeline: Timeline::start(),
            trace_id: None,
            start: watch::Sender::new(Start::Pending),
            events: AsyncMutex::new(queue),
            in_work: Mutex::default(),
        });
        Self { api, events }
    }

    async fn send(&self, request: Request<Body>) -> Response {
        Arc::clone(&self.api).routes().oneshot(request).await.unwrap()
    }

    async fn post(&self, path: &str, body: &'static str) -> StatusCode {
        let request = Request::post(format!("/2018-06-01/runtime/{path}")).body(Body::from(body)).unwrap();
        self.send(request).await.status()
    }

    /// Queues an event and takes it; returns its id, and where the answer will arrive.
    async fn next(&self) -> (String, oneshot::Receiver<Answer>) {
        let (handed, _) = oneshot::channel();
        let (answer, answered) = oneshot::channel();
        self.events
            .send(Invocation { event: "{}".to_owned(), timeout: Duration::from_mins(1), handed, answer })
            .unwrap_or_else(|_| unreachable!());
        let request = Request::get("/2018-06-01/runtime/invocation/next").body(Body::empty()).unwrap();
        let response = self.send(request).await;
        let header = |name| response.headers()[name].to_str().unwrap().to_owned();
        assert!(header("lambda-runtime-trace-id").starts_with("Root=1-"));
        assert!(header("lambda-runtime-invoked-function-arn").ends_with(":function:agent-scheduler"));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        let left = header("lambda-runtime-deadline-ms").parse::<u128>().unwrap() - now;
        assert!(left <= 60_000, "{left} ms are left");
        (header("lambda-runtime-aws-request-id"), answered)
    }
}

#[tokio::test]
async fn an_event_ends_with_a_response_or_an_error() {
    let scene = Scene::new();
    let (id, answer) = scene.next().await;
    assert_eq!(*scene.api.start.borrow(), Start::Done);
    assert_eq!(scene.post(&format!("invocation/{id}/response"), r#"{"outcome":"created"}"#).await, 202);
    assert_eq!(answer.await, Ok(Answer::Success(json!({"outcome": "created"}))));
    assert_eq!(scene.post(&format!("invocation/{id}/response"), "{}").await, 400, "it was answered before");

    let (id, answer) = scene.next().await;
    let error = r#"{"errorType":"Forbidden","errorMessage":"cannot create Job"}"#;
    assert_eq!(scene.post(&format!("invocation/{id}/error"), error).await, 202);
    let error = Answer::Error { error_type: "Forbidden".to_owned(), error_message: "cannot create Job".to_owned() };
    assert_eq!(answer.await, Ok(error));
}

#[tokio::test]
async fn a_failed_start_is_known() {
    let scene = Scene::new();
    let error = r#"{"errorType":"InvalidConfig","errorMessage":"BUILDKITE_QUEUE"}"#;
    assert_eq!(scene.post("init/error", error).await, 202);
    let error =
        Answer::InitError { error_type: "InvalidConfig".to_owned(), error_message: "BUILDKITE_QUEUE".to_owned() };
    assert_eq!(*scene.api.start.borrow(), Start::Failed(error));
}
