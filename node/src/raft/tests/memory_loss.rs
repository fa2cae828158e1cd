//! A replica is never opened without the memory it had: lost logs, maps from the past, gaps in what a peer sends.

use std::path::Path;

use borough_proto::{ClusterMap, NodeId};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::raft_frame::Body;

use super::growth::{Running, boxed, config, generations, until};
use super::*;
use crate::Environment;
use crate::config::Config;
use crate::identity::{DataDir, Identity};
use crate::lifecycle;
use crate::loops::taken_over;
use crate::node::{Advertised, Node};
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
    let node = lifecycle::build(config, DataDir::open(dir).unwrap(), Environment::default()).await.unwrap();
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
        cluster.init(wire::InitRequest { shards: 1, replicas: 1, ..Default::default() }).await.unwrap();
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

#[test]
fn of_two_that_create_a_cluster_at_once_one_does() {
    runtime().block_on(boxed(async {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        // Another loopback address has the ports free that these hold.
        let held = [0; 2].map(|port| std::net::TcpListener::bind(("127.0.0.1", port)).unwrap());
        let listen = held
            .each_ref()
            .map(|held| std::net::SocketAddr::from(([127, 0, 0, 3], held.local_addr().unwrap().port())));
        let seeds = listen.map(|addr| addr.to_string());
        let tasks = TaskTracker::new();
        let start = |dir: &tempfile::TempDir, listen| {
            Running::start(&tasks, Config { listen, ..config(dir.path(), EngineKind::Sled, &seeds) })
        };
        let nodes = [start(&dirs[0], listen[0]), start(&dirs[1], listen[1])];
        let client = async |node: &Running| {
            let channel = borough_proto::exchange::channel::ChannelSettings::default();
            borough_proto::exchange::channel::cluster_client(channel.lazy(&node.address().await).unwrap())
        };
        let (mut first, mut second) = (client(&nodes[0]).await, client(&nodes[1]).await);
        let request = || wire::InitRequest { shards: 1, replicas: 1, ..Default::default() };
        let (one, two) = tokio::join!(first.init(request()), second.init(request()));
        let created = [&one, &two].into_iter().filter(|done| done.is_ok()).count();
        assert_eq!(created, 1, "{one:?} {two:?}");
        let refused = one.err().or(two.err()).unwrap();
        assert_eq!(refused.code(), tonic::Code::AlreadyExists, "{refused}");
        until("both belong to one cluster", async || {
            let identity = |dir: &tempfile::TempDir| {
                let text = std::fs::read(dir.path().join("identity.json")).unwrap_or_default();
                serde_json::from_slice::<serde_json::Value>(&text).unwrap_or_default()
            };
            let [one, two] = dirs.each_ref().map(identity);
            !one["clusterId"].is_null() && one["clusterId"] == two["clusterId"] && one["node"] != two["node"]
        })
        .await;
        drop((first, second));
        let [one, two] = nodes;
        two.stop().await;
        one.stop().await;
    }));
}

#[test]
fn a_node_whose_place_another_process_takes_does_not_go_on() {
    runtime().block_on(boxed(async {
        let dir = tempfile::tempdir().unwrap();
        let node = node(dir.path()).await;
        let own = Advertised { addr: "10.0.0.1:7070".to_owned(), admin: String::new() };
        node.advertised.set(own).unwrap_or_else(|_| unreachable!());
        let offer = |epoch, addr: &str| {
            let info = wire::NodeInfo { id: 1, addr: addr.to_owned(), ..Default::default() };
            let map = wire::ClusterMap { nodes: vec![info], ..map(epoch, None).wire().clone() };
            assert!(node.map.offer(Arc::new(ClusterMap::try_from(map).unwrap())));
        };
        let mut registered = false;
        // Where it was before it moved.
        offer(1, "10.0.0.9:7070");
        taken_over(&node, &mut registered).unwrap();
        offer(2, "10.0.0.1:7070");
        taken_over(&node, &mut registered).unwrap();
        offer(3, "10.0.0.2:7070");
        let error = taken_over(&node, &mut registered).unwrap_err();
        assert!(error.contains("another process has joined at 10.0.0.2:7070 as node 1"), "{error}");
        end(&node).await;
    }));
}
