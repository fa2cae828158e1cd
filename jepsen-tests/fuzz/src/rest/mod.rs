//! Requests through everything that a router serves, with one node behind it that keeps documents by the real state
//! machine. Every answer is one that the API documents, errors are problems, the node is asked for nothing that it would
//! have to refuse, and what was written is found again where it was written.
//!
//! An input is text: up to `REQUESTS_MAX` requests, each as `request` reads it. They are sent one after the other.

mod check;
mod node;
mod request;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::Router;
use borough_proto::exchange::{ForwardSettings, Forwarder};
use borough_proto::http_api::headers as names;
use borough_router::Config;
use borough_router::fuzzing::{Target, escape, service};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use node::Node;
use request::Request;

/// Most requests of one input.
const REQUESTS_MAX: usize = 6;
/// What stands between requests.
const BETWEEN: &[u8] = b"\n~~~\n";
/// Deadline of requests that name none. Short: a name that no collection has is asked after only so often.
const TIMEOUT: Duration = Duration::from_millis(50);
/// For what must come about on any machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A router and its node, made once: the description that the router serves takes longer than a request.
struct World {
    runtime: Runtime,
    router: Router,
    node: Node,
}

static WORLD: LazyLock<Mutex<World>> = LazyLock::new(|| Mutex::new(World::new()));

/// What came back.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    /// Not in time: nothing follows from it.
    fn is_late(&self) -> bool {
        matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
    }
}

/// # Panics
/// When an answer breaks a promise.
pub fn run(bytes: &[u8]) {
    answers(bytes);
}

/// The statuses that an input's requests are answered with.
pub fn answers(bytes: &[u8]) -> Vec<u16> {
    let world = WORLD.lock();
    let requests = request::split(bytes, BETWEEN).take(REQUESTS_MAX).filter_map(Request::parse).collect();
    world.runtime.block_on(world.run(requests))
}

impl World {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.unwrap_or_else(|error| panic!("start a runtime: {error}"));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let (router, node) = runtime.block_on(async {
            let (node, addr) = Node::start(&tasks).await;
            let config = Config { nodes: vec![addr.clone()], request_timeout: TIMEOUT, ..Config::default() };
            let settings = ForwardSettings { attempt: PATIENCE, ..ForwardSettings::default() };
            let forwarder = Forwarder::start(vec![addr], settings, &tasks, &stop);
            assert!(forwarder.watch().reached(1, Instant::now() + PATIENCE).await, "no map");
            (service(config, Arc::clone(&forwarder)), node)
        });
        Self { runtime, router, node }
    }

    async fn run(&self, requests: Vec<Request>) -> Vec<u16> {
        self.node.reset();
        let mut statuses = Vec::new();
        let mut late = false;
        for request in requests {
            let answer = self.send(&request).await;
            late |= answer.is_late();
            statuses.push(answer.status.as_u16());
            if let Some(read) = read_back(&request, &answer) {
                let found = self.send(&read).await;
                late |= found.is_late();
                check::read_back(&request, &answer, &found);
            }
        }
        if late {
            // What is still on its way must not meet the next input: it is answered before this is.
            self.send(&Request::get("/v1/users/last").header(names::TIMEOUT, "60000")).await;
        }
        assert_eq!(self.node.complaint(), None, "the node was asked for what it refuses");
        statuses
    }

    async fn send(&self, request: &Request) -> Answer {
        let response = self.router.clone().oneshot(request.build()).await;
        let (head, body) = response.unwrap_or_else(|never| match never {}).into_parts();
        let body = body.collect().await.unwrap_or_else(|error| panic!("{request:?}: {error}")).to_bytes();
        let answer = Answer { status: head.status, headers: head.headers, body };
        check::answer(request, &answer);
        answer
    }
}

/// Asks for what was written, by the path that names it canonically. A replayed answer is one of earlier times.
fn read_back(request: &Request, answer: &Answer) -> Option<Request> {
    let plain = request.method == Method::PUT && !request.headers.contains_key(names::IDEMPOTENCY_KEY);
    if !plain || !answer.status.is_success() {
        return None;
    }
    let path = match Target::parse(request.uri.path()).ok()? {
        Target::Document { collection, id } => format!("/v1/{collection}/{}", escape(&id)),
        Target::Item { collection, id, sort } => {
            format!("/v1/{collection}/{}/{}", escape(&id), escape(&sort))
        }
        _ => return None,
    };
    Some(Request::get(&path))
}
