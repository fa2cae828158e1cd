//! The REST API against a node that keeps documents in memory.

mod auth;
mod batches;
mod description;
mod documents;
mod fake;
mod headers;
mod lists;
mod process;
mod refusals;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use borough_proto::exchange::{ForwardSettings, Forwarder};
use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::app::App;
use crate::config::Config;
use crate::serve::service;
use fake::FakeNode;

/// A router and its node. Both end with the test's runtime.
struct World {
    app: Arc<App>,
    node: FakeNode,
}

/// What came back.
#[derive(Debug)]
struct Reply {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Reply {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }
}

impl World {
    async fn new() -> Self {
        Self::with(Config::default()).await
    }

    async fn with(mut config: Config) -> Self {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let (node, addr) = FakeNode::start(&tasks).await;
        config.nodes = vec![addr.clone()];
        config.request_timeout = Duration::from_secs(5);
        let settings = ForwardSettings { attempt: Duration::from_millis(500), ..ForwardSettings::default() };
        let forwarder = Forwarder::start(vec![addr], settings, &tasks, &stop);
        Self { app: Arc::new(App::new(config, forwarder)), node }
    }

    /// Waits until the router has the map of `epoch`.
    async fn see_epoch(&self, epoch: u64) {
        let seen = async {
            while self.app.forwarder.watch().map().epoch() < epoch {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), seen).await.expect("the map did not arrive");
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Reply {
        let mut request = Request::builder().method(method).uri(path).header("host", "x");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = service(&self.app).oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let reply = Reply { status: head.status.as_u16(), headers: head.headers, body };
        for name in ["x-request-id", "borough-shard", "borough-node"] {
            assert!(!reply.header(name).is_empty(), "{method} {path}: no {name}: {reply:?}");
        }
        if reply.status >= 400 && method != "HEAD" {
            assert_eq!(reply.header("content-type"), "application/problem+json", "{reply:?}");
            let problem = reply.json();
            assert_eq!(problem["status"], reply.status);
            assert!(problem["outcome"].is_string() && problem["detail"].is_string());
        }
        reply
    }

    async fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], "").await
    }

    async fn put(&self, path: &str, body: &'static str) -> Reply {
        self.send("PUT", path, &[], body).await
    }
}
