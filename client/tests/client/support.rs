//! A router that answers from a script and keeps what it was sent.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use borough_client::{Client, Outcome, Problem, ProblemType};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Deadline of [`Scripted::client`]'s calls, unless they name their own.
pub const CLIENT_DEADLINE: Duration = Duration::from_secs(10);

/// What to do with a request.
pub enum Step {
    Answer(Box<Response>),
    /// Break the connection after the request was read.
    Cut,
    /// Break the connection within the answer.
    CutBody,
    /// Never answer.
    Silence,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: Method,
    /// Path and query, still encoded.
    pub target: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub fn key(&self) -> &str {
        self.header("idempotency-key").expect("the write has a key")
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

#[derive(Default)]
struct Script {
    steps: Mutex<VecDeque<Step>>,
    seen: Mutex<Vec<Seen>>,
}

/// Stops when dropped.
pub struct Scripted {
    pub addr: SocketAddr,
    script: Arc<Script>,
    _tasks: JoinSet<()>,
}

impl Scripted {
    pub async fn start(steps: impl IntoIterator<Item = Step>) -> Self {
        let script =
            Arc::new(Script { steps: Mutex::new(steps.into_iter().collect()), ..Default::default() });
        let app = axum::Router::new().fallback(answer).with_state(Arc::clone(&script));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { addr, script, _tasks: tasks }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub fn client(&self) -> Client {
        Client::builder().router(self.url()).deadline(CLIENT_DEADLINE).build().unwrap()
    }

    /// Requests so far, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.script.seen.lock().unwrap().clone()
    }

    /// The only request.
    pub fn only(&self) -> Seen {
        let mut seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen.remove(0)
    }
}

async fn answer(State(script): State<Arc<Script>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let target = parts.uri.path_and_query().unwrap().to_string();
    script.seen.lock().unwrap().push(Seen { method: parts.method, target, headers: parts.headers, body });
    let step = script.steps.lock().unwrap().pop_front();
    match step {
        Some(Step::Answer(response)) => *response,
        // Unwinds the connection's task, which drops the connection; no panic message is printed.
        Some(Step::Cut) => std::panic::resume_unwind(Box::new("cut")),
        Some(Step::CutBody) => {
            let parts = [Ok("{\"na"), Err(std::io::Error::other("cut"))];
            Body::from_stream(futures::stream::iter(parts)).into_response()
        }
        Some(Step::Silence) => std::future::pending().await,
        None => (StatusCode::IM_A_TEAPOT, "the script has ended").into_response(),
    }
}

/// A success with an entity tag.
pub fn ok(status: u16, etag: &str, body: &str) -> Step {
    with(status, &[("etag", etag)], body)
}

pub fn with(status: u16, headers: &[(&str, &str)], body: &str) -> Step {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    Step::Answer(Box::new(response.body(Body::from(body.to_owned())).unwrap()))
}

/// A problem document.
pub fn problem(kind: ProblemType, outcome: Outcome) -> Step {
    problem_with(kind, outcome, &[])
}

pub fn problem_with(kind: ProblemType, outcome: Outcome, headers: &[(&str, &str)]) -> Step {
    let problem = Problem::new(kind, "so says the script").with_outcome(outcome);
    with(kind.status(), headers, &serde_json::to_string(&problem).unwrap())
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub name: String,
}

pub fn ann() -> User {
    User { name: "Ann".into() }
}

pub const ANN: &str = r#"{"id":"1","name":"Ann"}"#;
