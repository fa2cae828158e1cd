//! A replica is never opened without the memory it had: lost logs, maps from the past, gaps in what a peer sends.

use std::path::Path;

use borough_proto::{ClusterMap, NodeId};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::raft_frame::Body;

use super::growth::{Running, boxed, config, generations, until};
use super::*;
use crate::identity::{DataDir, Identity};
use crate::lifecycle;
use crate::node::Node;
use crate::raft::types::encode_payload;
use crate::registry::Standing;

const REPLICA: ReplicaId = ReplicaId(5);

/// A map of `epoch` with one shard whose replica, if any, is on node 1.
fn map(epoch: u64, replica: Option<ReplicaId>) -> ClusterMap {
    let replicas = replica.map(|replica| wire::ReplicaInfo {
        id: replica.get(),
        node: 1,
        role: wire::ReplicaRole::Voter.into(),
    });
    let shard = wire::ShardInfo {
        id: 0,
        first: 0,
        last: u64::MAX,
        epoch: 1,
        replicas: replicas.into_iter().collect(),
    };
    let map = wire::ClusterMap {
        cluster_id: "c".to_owned(),
        epoch,
        replication_factor: 1,
        shards: vec![shard],
        ..Default::default()
    };
    ClusterMap::try_from(map).unwrap()
}

async fn node(dir: &Path) -> Arc<Node> {
    let config = config(dir, EngineKind::Sled, &[]);
    let node = lifecycle::build(config, DataDir::open(dir).unwrap()).await.unwrap();
    node.identity.set(Identity { cluster_id: "c".to_owned(), node: NodeId(1) }).unwrap();
    node
}

async fn end(node: &Node) {
    node.stop.cancel();
    node.groups.shutdown().await;
    node.tasks.close();
    node.tasks.wait().await;
    node.wal.close();
}

#[test]
fn a_node_whose_log_is_gone_is_refused() {
    runtime().block_on(boxed(async {
        let dir = tempfile::tempdir().unwrap();
        let tasks = TaskTracker::new();
        let running = Running::start(&tasks, config(dir.path(), EngineKind::Sled, &[]));
        let channel = borough_proto::exchange::channel::ChannelSettings::default();
        let channel = channel.lazy(&running.address().await).unwrap();
        let mut cluster = borough_proto::exchange::channel::cluster_client(channel);
        cluster.init(wire::InitRequest { shards: 1, replicas: 1 }).await.unwrap();
        until("the replicas are kept", async || dir.path().join("replicas.json").exists()).await;
        drop(cluster);
        running.stop().await;
        // As an unmounted volume leaves it: the directory is there and empty.
        std::fs::remove_dir_all(dir.path().join("log")).unwrap();
        std::fs::create_dir(dir.path().join("log")).unwrap();
        // Nor does the map have to be there for the loss to be noticed.
        std::fs::remove_file(dir.path().join("map.bin")).unwrap();
        let config = config(dir.path(), EngineKind::Sled, &[]);
        let ended = Box::pin(lifecycle::run(config, CancellationToken::new())).await;
        let error = ended.unwrap_err();
        assert!(matches!(error, lifecycle::RunError::DataDir(_)), "{error}");
        assert!(error.to_string().contains("log lacks replicas"), "{error}");
    }));
}

#[test]
fn a_replica_is_given_up_only_for_a_newer_map_and_then_for_good() {
    runtime().block_on(boxed(async {
        let dir = tempfile::tempdir().unwrap();
        let node = node(dir.path()).await;
        node.reconcile(&map(5, Some(REPLICA))).await.unwrap();
        let held = || node.groups.replica(REPLICA).is_some();
        assert!(held());
        // What a catalog that is behind says after a restart.
        node.reconcile(&map(4, None)).await.unwrap();
        node.reconcile(&map(5, None)).await.unwrap();
        assert!(held(), "an older map says nothing about the replica");
        assert_eq!(node.registry.standing(REPLICA), Standing::Held { epoch: 5 });
        node.reconcile(&map(6, None)).await.unwrap();
        assert!(!held());
        node.reconcile(&map(5, Some(REPLICA))).await.unwrap();
        assert!(!held(), "a replica that was removed comes back empty");
        end(&node).await;
    }));
}

#[test]
fn a_removal_that_was_interrupted_is_finished_by_the_next_start() {
    runtime().block_on(boxed(async {
        let dir = tempfile::tempdir().unwrap();
        let first = node(dir.path()).await;
        first.reconcile(&map(5, Some(REPLICA))).await.unwrap();
        first.registry.removed(&first.dir, REPLICA).unwrap();
        end(&first).await;
        drop(first);
        let again = node(dir.path()).await;
        lifecycle::open_stored(&again).await.unwrap();
        assert!(again.groups.replica(REPLICA).is_none());
        assert_eq!(again.wal.groups(), []);
        assert_eq!(generations(dir.path()), [""; 0], "its space is gone");
        end(&again).await;
    }));
}

#[test]
fn entries_that_do_not_follow_each_other_are_refused() {
    runtime().block_on(boxed(async {
        let dir = tempfile::tempdir().unwrap();
        let node = node(dir.path()).await;
        // Not the first of its group: it waits for a leader.
        node.open(GROUP, REPLICA, None, 1).await.unwrap();
        let group = node.groups.replica(REPLICA).unwrap();
        let payload = encode_payload(&EntryPayload::Blank);
        let log_entry = |index| wire::LogEntry { term: 1, index, payload: payload.clone() };
        let position = |index| wire::LogId { term: 1, index };
        for (previous, indexes) in [
            (None, vec![3]),
            (None, vec![0, 2]),
            (Some(7), vec![9]),
            (Some(7), vec![8, 8]),
            (Some(7), vec![7]),
            (Some(u64::MAX), vec![0]),
            (Some(u64::MAX - 1), vec![u64::MAX, 0]),
        ] {
            let append = wire::AppendRequest {
                vote: Some(wire::Vote { term: 1, voted_for: 9, committed: true }),
                previous: previous.map(position),
                entries: indexes.iter().copied().map(log_entry).collect(),
                commit: None,
            };
            let frame = wire::RaftFrame { body: Some(Body::Append(append)), ..Default::default() };
            let answer = group.handle(frame).await;
            assert!(
                matches!(&answer, Body::Refused(reason) if reason.contains("follow")),
                "{previous:?} {indexes:?}: {answer:?}"
            );
        }
        end(&node).await;
    }));
}
