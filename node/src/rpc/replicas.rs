//! `GET /debug/replicas`: where this node's replicas stand and, with `hash=true`, a hash of what they hold.
//!
//! A hash reads all of a replica. So one request at a time makes hashes, others are told to come again; it is made on a
//! thread of its own kind, in chunks, and given up when whoever asked has gone.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use borough_proto::replicas::{ContentHash, ReplicaList, ReplicaReport, Role};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::node::Node;
use crate::raft::{ContentHashError, Group};

#[derive(Clone)]
struct Replicas {
    node: Arc<Node>,
    /// Held by the request that hashes.
    hashing: Arc<Semaphore>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    #[serde(default)]
    hash: bool,
    /// Only the replica of this id.
    replica: Option<u64>,
}

/// The route and what it needs.
pub fn routes(node: Arc<Node>) -> Router {
    let replicas = Replicas { node, hashing: Arc::new(Semaphore::new(1)) };
    Router::new().route("/debug/replicas", get(list)).with_state(replicas)
}

async fn list(State(replicas): State<Replicas>, Query(wanted): Query<Wanted>) -> Response {
    let mut groups = replicas.node.groups.all();
    if let Some(replica) = wanted.replica {
        groups.retain(|group| group.replica.get() == replica);
        if groups.is_empty() {
            return (StatusCode::NOT_FOUND, format!("replica {replica} is not here\n")).into_response();
        }
    }
    let contents = if wanted.hash {
        match hashes(&replicas, groups.clone()).await {
            Ok(contents) => contents.into_iter().map(Some).collect(),
            Err(reason) => return come_again(&reason),
        }
    } else {
        vec![None; groups.len()]
    };
    let reports = groups.iter().zip(contents).map(|(group, content)| report(group, content));
    Json(ReplicaList { node: replicas.node.node_id().get(), replicas: reports.collect() }).into_response()
}

fn report(group: &Group, content: Option<ContentHash>) -> ReplicaReport {
    let view = group.view();
    let role = if view.voters.contains(&group.replica) {
        Role::Voter
    } else if view.learners.contains(&group.replica) {
        Role::Learner
    } else {
        Role::None
    };
    let (applied_term, applied_index) = group.applied().unwrap_or_default();
    ReplicaReport {
        shard: group.group.shard().map(|shard| shard.0),
        replica: group.replica.get(),
        role,
        leader: view.is_leader,
        applied_index,
        applied_term,
        content,
    }
}

/// Hashes of all `groups`, one after the other.
async fn hashes(replicas: &Replicas, groups: Vec<Arc<Group>>) -> Result<Vec<ContentHash>, String> {
    let turn = Arc::clone(&replicas.hashing).try_acquire_owned();
    let turn = turn.map_err(|_| "another request is hashing replicas".to_owned())?;
    // Cancelled when this future is dropped, which it is when whoever asked hangs up; and when the node ends.
    let stop = CancellationToken::new();
    let _gone = stop.clone().drop_guard();
    let ends = replicas.node.stop.clone();
    let hashing = move || {
        let _turn = turn;
        let wanted = || !stop.is_cancelled() && !ends.is_cancelled();
        let hashed = groups.iter().map(|group| group.state.content_hash(wanted));
        hashed.collect::<Result<Vec<_>, ContentHashError>>()
    };
    match tokio::task::spawn_blocking(hashing).await {
        Ok(hashed) => hashed.map_err(|error| error.to_string()),
        Err(error) => Err(format!("hash of replicas: {error}")),
    }
}

fn come_again(reason: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], format!("{reason}; ask again\n"))
        .into_response()
}
