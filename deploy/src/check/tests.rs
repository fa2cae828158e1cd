use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use borough_proto::http_api::ShardStatus;
use borough_proto::replicas::ReplicaReport;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use super::*;
use crate::cli::Target;

fn hash(index: u64, text: &str) -> ContentHash {
    ContentHash { hash: text.to_owned(), applied_index: index, applied_term: 1, ..ContentHash::default() }
}

fn judged(answers: Vec<(u64, Result<ContentHash>)>) -> Verdict {
    judge(answers, &mut BTreeMap::new())
}

#[test]
fn only_hashes_of_one_index_are_compared() {
    assert_eq!(judged(vec![(1, Ok(hash(5, "a"))), (2, Ok(hash(5, "a")))]), Verdict::Same);
    assert_eq!(judged(vec![(1, Ok(hash(5, "a"))), (2, Ok(hash(5, "b")))]), Verdict::Different);
    assert!(matches!(judged(vec![(1, Ok(hash(5, "a"))), (2, Ok(hash(6, "b")))]), Verdict::NotCompared(_)));
    let third = vec![(1, Ok(hash(5, "a"))), (2, Ok(hash(6, "b"))), (3, Ok(hash(5, "b")))];
    assert_eq!(judged(third), Verdict::Different, "two of them stand at one index");
    let away = vec![(1, Ok(hash(5, "a"))), (2, Ok(hash(5, "a"))), (3, Err(anyhow::anyhow!("away")))];
    assert!(matches!(judged(away), Verdict::NotCompared(reason) if reason.contains("node 3: away")));
}

#[test]
fn another_term_at_the_same_index_is_a_difference() {
    let other = ContentHash { applied_term: 2, ..hash(5, "a") };
    assert_eq!(judged(vec![(1, Ok(hash(5, "a"))), (2, Ok(other))]), Verdict::Different);
}

#[test]
fn a_node_that_listens_everywhere_is_asked_where_it_is() {
    let node = |addr: &str, admin: &str| NodeStatus {
        addr: addr.to_owned(),
        admin_addr: admin.to_owned(),
        ..NodeStatus::default()
    };
    assert_eq!(admin_address(&node("a:7070", "10.0.0.1:7071")).unwrap(), "10.0.0.1:7071");
    assert_eq!(admin_address(&node("a:7070", "0.0.0.0:7071")).unwrap(), "a:7071");
    assert_eq!(admin_address(&node("[fd00::1]:7070", "[::]:7071")).unwrap(), "[fd00::1]:7071");
    assert!(admin_address(&node("a:7070", "")).is_err());
}

/// What a node answers, one after the other; the last again and again.
type Script = Arc<Mutex<Vec<ContentHash>>>;

async fn replicas_page(State(script): State<Script>) -> Json<ReplicaList> {
    let mut script = script.lock().unwrap();
    let content = if script.len() > 1 { script.remove(0) } else { script[0].clone() };
    let report = ReplicaReport {
        shard: Some(4),
        role: Role::Voter,
        content: Some(content),
        ..ReplicaReport::default()
    };
    Json(ReplicaList { node: 0, replicas: vec![report] })
}

async fn serve(app: Router, tasks: &TaskTracker) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tasks.spawn(async move { axum::serve(listener, app).await });
    address
}

/// Runs the command against nodes that answer so; the first answer of each tells where its replicas stand.
async fn checked(scripts: Vec<Vec<ContentHash>>, wait_seconds: u64) -> Result<()> {
    let tasks = TaskTracker::new();
    let mut status = ClusterStatus {
        shards: vec![ShardStatus { id: 4, ..ShardStatus::default() }],
        ..ClusterStatus::default()
    };
    for (number, script) in (1..).zip(scripts) {
        let state: Script = Arc::new(Mutex::new(script));
        let node = Router::new().route("/debug/replicas", get(replicas_page)).with_state(state);
        let admin_addr = serve(node, &tasks).await;
        status.nodes.push(NodeStatus {
            id: number,
            admin_addr,
            state: "up".to_owned(),
            ..NodeStatus::default()
        });
    }
    let router = Router::new().route("/admin/v1/cluster", get(move || async move { Json(status) }));
    let target = Target { router: format!("http://{}", serve(router, &tasks).await), token: None };
    check(CheckArgs { target, wait_seconds }).await
}

#[tokio::test]
async fn replicas_are_asked_again_until_they_stand_at_one_index() {
    let (one, other) = (vec![hash(5, "a"), hash(5, "a"), hash(6, "b")], vec![hash(6, "b")]);
    checked(vec![one, other], 60).await.unwrap();
}

#[tokio::test]
async fn a_difference_and_a_replica_that_never_gets_there_fail_the_command() {
    let error =
        checked(vec![vec![hash(5, "a")], vec![hash(5, "a")], vec![hash(5, "b")]], 0).await.unwrap_err();
    assert!(error.to_string().contains("replicas differ that should be the same: 4"), "{error}");
    let error = checked(vec![vec![hash(5, "a")], vec![hash(6, "a")]], 0).await.unwrap_err();
    assert!(error.to_string().contains("not compared: 4"), "{error}");
    let error = checked(vec![], 0).await.unwrap_err();
    assert!(error.to_string().contains("not compared: 4"), "{error}");
}
