//! The node's admin pages: liveness, readiness, metrics, and what its replicas hold.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;

use super::replicas;
use crate::node::Node;

#[derive(Clone)]
struct Admin {
    node: Arc<Node>,
    metrics: PrometheusHandle,
}

/// `/livez` never depends on others; `/readyz` is true only while the node can serve.
pub fn routes(node: Arc<Node>, metrics: PrometheusHandle) -> Router {
    Router::new()
        .route("/livez", get(|| async { "live\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render))
        .with_state(Admin { node: Arc::clone(&node), metrics })
        .merge(replicas::routes(node))
}

async fn readyz(State(admin): State<Admin>) -> (StatusCode, String) {
    let node = &admin.node;
    let reason = if node.leaving.load(Ordering::Relaxed) {
        "the node is leaving"
    } else if node.identity.get().is_none() {
        "the node has not joined a cluster: run `borough cluster init`, or start it with --join"
    } else if !node.ready.load(Ordering::Relaxed) {
        "the node is starting"
    } else {
        return (StatusCode::OK, "ready\n".to_owned());
    };
    (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n"))
}

async fn render(State(admin): State<Admin>) -> String {
    admin.metrics.run_upkeep();
    admin.metrics.render()
}
