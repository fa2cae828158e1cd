//! The forwarder against scripted nodes.

use std::collections::HashSet;
use std::time::Duration;

use super::*;
use crate::error::Outcome;
use crate::exchange::scripted::{Act, Cluster};
use crate::wire::{Fault, FaultCode, data_reply, data_request};

const SHARD: ShardId = ShardId(0);

fn written() -> Act {
    let units = vec![wire::UnitReply::default()];
    Act::Answer(data_reply::Result::Write(wire::CommandReply { units, stale_duplicate: false }))
}

fn read_reply() -> Act {
    Act::Answer(data_reply::Result::Read(wire::ReadReply { items: vec![wire::ReadItem::default()] }))
}

fn fault(fault: Fault) -> Act {
    Act::Answer(data_reply::Result::Fault(fault))
}

fn within(millis: u64) -> Instant {
    Instant::now() + Duration::from_millis(millis)
}

fn units() -> Vec<wire::Unit> {
    vec![wire::Unit::default()]
}

fn session(request: &wire::DataRequest) -> wire::Session {
    match &request.op {
        Some(data_request::Op::Write(write)) => write.command.as_ref().unwrap().session.unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_hint_is_followed_and_remembered() {
    let leader = |node, _: &wire::DataRequest| {
        if node == 2 { written() } else { fault(Fault::not_leader(Some(NodeId(2)))) }
    };
    let cluster = Cluster::start(3, leader).await;
    for _ in 0..5 {
        let answer = cluster.forwarder.write(SHARD, units(), within(5000)).await.unwrap();
        assert_eq!((answer.node, answer.index), (NodeId(2), 77));
    }
    let seen = cluster.seen.lock();
    assert!(seen.len() <= 6, "at most the first request was sent twice: {}", seen.len());
    assert!(seen.iter().all(|(_, request)| request.epoch == 4 && request.timeout_ms > 4000));
}

#[tokio::test]
async fn a_lost_write_is_resent_under_the_same_session_and_sequence() {
    let mut sent = 0;
    let cluster = Cluster::start(2, move |_, _| {
        sent += 1;
        if sent == 1 { Act::Break } else { written() }
    })
    .await;
    let answer = cluster.forwarder.write(SHARD, units(), within(5000)).await.unwrap();
    assert_eq!(answer.attempts, 2);
    cluster.forwarder.write(SHARD, units(), within(5000)).await.unwrap();
    let seen = cluster.seen.lock();
    let sessions: Vec<_> = seen.iter().map(|(_, request)| session(request)).collect();
    assert_eq!(sessions[0].id, sessions[1].id);
    assert_eq!(sessions.iter().map(|s| s.sequence).collect::<Vec<_>>(), [1, 1, 2]);
    assert_eq!(sessions.iter().map(|s| s.acknowledged).collect::<Vec<_>>(), [0, 0, 1]);
    assert_ne!(seen[0].0, seen[1].0, "the other node is asked");
}

#[tokio::test]
async fn a_write_that_was_lost_and_never_answered_is_unknown() {
    let cluster = Cluster::start(2, |_, _| Act::Break).await;
    let error = cluster.forwarder.write(SHARD, units(), within(300)).await.unwrap_err();
    assert_eq!((error.outcome, error.why), (Outcome::Unknown, Why::DeadlineExceeded));
}

#[tokio::test]
async fn a_write_that_no_node_took_is_not_applied() {
    let cluster = Cluster::start(3, |_, _| fault(Fault::not_leader(None))).await;
    let error = cluster.forwarder.write(SHARD, units(), within(300)).await.unwrap_err();
    assert_eq!((error.outcome, error.why), (Outcome::NotApplied, Why::Unavailable));
    assert!(error.retry_after.is_some());
    let asked: HashSet<u64> = cluster.seen.lock().iter().map(|(node, _)| *node).collect();
    assert_eq!(asked.len(), 3, "every replica was asked");
}

#[tokio::test]
async fn a_refusal_after_a_lost_attempt_is_still_unknown() {
    let mut sent = 0;
    let cluster = Cluster::start(2, move |_, _| {
        sent += 1;
        if sent == 1 { Act::Break } else { fault(Fault::new(FaultCode::DiskFull, "full")) }
    })
    .await;
    let error = cluster.forwarder.write(SHARD, units(), within(5000)).await.unwrap_err();
    assert_eq!((error.outcome, error.why), (Outcome::Unknown, Why::DiskFull));
    let cluster = Cluster::start(1, |_, _| fault(Fault::new(FaultCode::DiskFull, "full"))).await;
    let error = cluster.forwarder.write(SHARD, units(), within(5000)).await.unwrap_err();
    assert_eq!((error.outcome, error.why), (Outcome::NotApplied, Why::DiskFull));
}

#[tokio::test]
async fn an_unknown_outcome_is_resolved_by_resending() {
    let mut sent = 0;
    let cluster = Cluster::start(1, move |_, _| {
        sent += 1;
        if sent == 1 { fault(Fault::new(FaultCode::OutcomeUnknown, "lost leadership")) } else { written() }
    })
    .await;
    cluster.forwarder.write(SHARD, units(), within(5000)).await.unwrap();
    let seen = cluster.seen.lock();
    assert_eq!(session(&seen[0].1).sequence, session(&seen[1].1).sequence);
}

#[tokio::test]
async fn a_forgotten_sequence_is_unknown() {
    let stale = || wire::CommandReply { units: Vec::new(), stale_duplicate: true };
    let cluster = Cluster::start(1, move |_, _| Act::Answer(data_reply::Result::Write(stale()))).await;
    let error = cluster.forwarder.write(SHARD, units(), within(5000)).await.unwrap_err();
    assert_eq!((error.outcome, error.why), (Outcome::Unknown, Why::Forgotten));
}

#[tokio::test]
async fn a_silent_node_is_left_for_another() {
    let cluster = Cluster::start(3, |node, _| if node == 1 { Act::Silence } else { read_reply() }).await;
    cluster.forwarder.watch().topology().set_leader(SHARD, NodeId(1));
    let answer = cluster.forwarder.read(SHARD, wire::Read::default(), within(5000)).await.unwrap();
    assert_eq!(answer.attempts, 2);
    assert_ne!(answer.node, NodeId(1));
}

#[tokio::test]
async fn a_busy_node_is_not_asked_for_ever() {
    let cluster = Cluster::start(1, |_, _| fault(Fault::new(FaultCode::Busy, "queue is full"))).await;
    let error = cluster.forwarder.write(SHARD, units(), within(5000)).await.unwrap_err();
    assert_eq!((error.outcome, error.why), (Outcome::NotApplied, Why::Overloaded));
    assert!(cluster.seen.lock().len() <= 3);
}

#[tokio::test]
async fn a_stale_replica_hands_over_to_the_leader() {
    let cluster = Cluster::start(3, |node, _| {
        if node == 3 { read_reply() } else { fault(Fault::new(FaultCode::NotFresh, "behind")) }
    })
    .await;
    cluster.forwarder.watch().topology().set_leader(SHARD, NodeId(3));
    let freshness = Some(wire::Freshness { max_stale_ms: None, min_index: Some(9) });
    for _ in 0..10 {
        let read = wire::Read { freshness, ..Default::default() };
        let answer = cluster.forwarder.read(SHARD, read, within(5000)).await.unwrap();
        assert_eq!(answer.node, NodeId(3));
        assert!(answer.attempts <= 2);
    }
}

#[tokio::test]
async fn a_wrong_epoch_waits_for_the_new_map() {
    let cluster = Cluster::start(1, |_, request| {
        if request.epoch >= 5 { read_reply() } else { fault(Fault::new(FaultCode::WrongEpoch, "older")) }
    })
    .await;
    let mut newer = cluster.map.borrow().clone();
    newer.epoch = 2;
    newer.shards[0].epoch = 5;
    let reading = cluster.forwarder.read(SHARD, wire::Read::default(), within(5000));
    let (answer, ()) = tokio::join!(reading, async {
        while cluster.seen.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        cluster.map.send_replace(newer);
    });
    assert!(answer.unwrap().attempts >= 2);
}

#[tokio::test]
async fn dead_nodes_cost_no_time_once_known() {
    let cluster = Cluster::start(1, |_, _| read_reply()).await;
    let mut map = cluster.map.borrow().clone();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    map.nodes.push(wire::NodeInfo {
        id: 2,
        addr: listener.local_addr().unwrap().to_string(),
        state: wire::NodeState::Member.into(),
        ..Default::default()
    });
    drop(listener);
    map.epoch = 2;
    map.shards[0].replicas.push(wire::ReplicaInfo { id: 20, node: 2, role: wire::ReplicaRole::Voter.into() });
    cluster.map.send_replace(map);
    assert!(cluster.forwarder.watch().reached(2, within(5000)).await);
    for _ in 0..50 {
        cluster.forwarder.watch().topology().set_leader(SHARD, NodeId(2));
        let answer = cluster.forwarder.read(SHARD, wire::Read::default(), within(5000)).await.unwrap();
        assert_eq!(answer.node, NodeId(1));
    }
    let pool = cluster.forwarder.pool();
    assert_eq!(pool.connected(), 1);
}

#[tokio::test]
async fn a_node_that_leaves_the_map_is_let_go() {
    let cluster = Cluster::start(1, |_, _| read_reply()).await;
    cluster.forwarder.read(SHARD, wire::Read::default(), within(5000)).await.unwrap();
    assert_eq!(cluster.forwarder.pool().connected(), 1);
    let tasks = cluster.tasks.len();
    let mut map = cluster.map.borrow().clone();
    map.epoch = 2;
    map.nodes[0].state = wire::NodeState::Removed.into();
    cluster.map.send_replace(map);
    assert!(cluster.forwarder.watch().reached(2, within(5000)).await);
    assert_eq!(cluster.forwarder.pool().connected(), 0);
    while cluster.tasks.len() >= tasks {
        tokio::task::yield_now().await;
    }
    let error = cluster.forwarder.read(SHARD, wire::Read::default(), within(100)).await.unwrap_err();
    assert_eq!(error.why, Why::Unavailable);
}

#[tokio::test]
async fn the_forwarders_tasks_end_with_their_token() {
    let cluster = Cluster::start(2, |_, _| read_reply()).await;
    cluster.forwarder.read(SHARD, wire::Read::default(), within(5000)).await.unwrap();
    cluster.stop.cancel();
    cluster.tasks.close();
    tokio::time::timeout(Duration::from_secs(10), cluster.tasks.wait()).await.unwrap();
}
