//! The status document: the map together with what the nodes report.

use std::collections::BTreeMap;

use borough_proto::http_api::{CacheStatus, ClusterStatus, NodeStatus, OperationStatus, ShardStatus};
use borough_proto::{NodeId, ShardId, wire};

use super::catalog::operations::is_open;
use super::observe::{Health, Observed};
use super::operate;

/// Ended operations in the status document.
const ENDED_SHOWN: usize = 10;

/// The document of `GET /admin/v1/cluster`.
pub fn document(catalog: &wire::Catalog, observed: &Observed) -> ClusterStatus {
    let empty = wire::ClusterMap::default();
    let map = catalog.map.as_ref().unwrap_or(&empty);
    let mut replicas: BTreeMap<u64, u32> = BTreeMap::new();
    let mut leaders: BTreeMap<u64, u32> = BTreeMap::new();
    for info in &map.shards {
        for replica in &info.replicas {
            *replicas.entry(replica.node).or_default() += 1;
        }
        if let Some(leader) = leader(info, observed) {
            *leaders.entry(leader.get()).or_default() += 1;
        }
    }
    let nodes = map.nodes.iter().map(|info| {
        node_status(
            info,
            observed,
            replicas.get(&info.id).copied().unwrap_or(0),
            leaders.get(&info.id).copied().unwrap_or(0),
        )
    });
    let members = map.nodes.iter().filter(|node| node.state() == wire::NodeState::Member).count();
    let target = (map.replication_factor as usize).min(members);
    ClusterStatus {
        cluster_id: map.cluster_id.clone(),
        epoch: map.epoch,
        replication_factor: map.replication_factor,
        nodes: nodes.collect(),
        shards: map.shards.iter().map(|info| shard_status(info, target, observed)).collect(),
        operations: operations(catalog, observed),
    }
}

/// Those under way, and the last that have ended; the newest first.
fn operations(catalog: &wire::Catalog, observed: &Observed) -> Vec<OperationStatus> {
    let mut ended = 0;
    let shown = catalog.operations.iter().rev().filter(|operation| {
        ended += usize::from(!is_open(operation));
        is_open(operation) || ended <= ENDED_SHOWN
    });
    shown.map(|operation| operate::status(catalog, operation, observed, false)).collect()
}

/// The node that leads the shard or did a moment ago, if it still is to have a replica.
fn leader(info: &wire::ShardInfo, observed: &Observed) -> Option<NodeId> {
    let holds = |node: &NodeId| info.replicas.iter().any(|replica| replica.node == node.get());
    observed.last_leader(ShardId(info.id)).filter(holds)
}

fn node_status(info: &wire::NodeInfo, observed: &Observed, replicas: u32, leaders: u32) -> NodeStatus {
    let id = NodeId(info.id);
    let report = observed.latest(id).cloned().unwrap_or_default();
    let state = match (info.state(), observed.health(id)) {
        (wire::NodeState::Removed, _) => "removed",
        // Its operation tells that it is drained; that it is gone, nothing else does.
        (wire::NodeState::Draining, Health::Up) => "draining",
        (_, health) => health.name(),
    };
    let data = report.replicas.iter().filter(|replica| !replica.meta);
    NodeStatus {
        id: info.id,
        addr: info.addr.clone(),
        admin_addr: info.admin_addr.clone(),
        zone: info.zone.clone(),
        version: info.version.clone(),
        state: state.to_owned(),
        replicas,
        leaders,
        bytes: data.clone().map(|replica| replica.bytes).sum(),
        keys: data.map(|replica| replica.keys).sum(),
        disk_free_bytes: report.disk_free_bytes,
        cache: CacheStatus { bytes: report.cache_bytes, hit_ratio: report.cache_hit_ratio },
    }
}

/// `target`: how many replicas a shard is to have.
fn shard_status(info: &wire::ShardInfo, target: usize, observed: &Observed) -> ShardStatus {
    let with_role = |role: wire::ReplicaRole| {
        let replicas = info.replicas.iter().filter(move |replica| replica.role() == role);
        replicas.map(|replica| replica.node).collect::<Vec<_>>()
    };
    // One that leaves votes until its successor does.
    let leaving = with_role(wire::ReplicaRole::Leaving);
    let voters = [with_role(wire::ReplicaRole::Voter), leaving.clone()].concat();
    let learners = with_role(wire::ReplicaRole::Learner);
    let shard = ShardId(info.id);
    let leader = leader(info, observed);
    let live = voters.iter().filter(|&&node| observed.health(NodeId(node)) == Health::Up).count();
    let state = if observed.is_leaderless(shard) || live * 2 <= voters.len() {
        "unavailable"
    } else if !learners.is_empty() || !leaving.is_empty() {
        "moving"
    } else if live < target {
        "underReplicated"
    } else {
        "healthy"
    };
    // The leader's figures; without one, those of the replica that is furthest.
    let report = observed
        .replicas(shard)
        .max_by_key(|(node, replica)| (Some(*node) == leader, replica.applied_index))
        .map(|(_, replica)| replica.clone())
        .unwrap_or_default();
    ShardStatus {
        id: info.id,
        range: [format!("{:#018x}", info.first), format!("{:#018x}", info.last)],
        epoch: info.epoch,
        leader: leader.map(NodeId::get),
        replicas: voters,
        learners,
        state: state.to_owned(),
        keys: report.keys,
        bytes: report.bytes,
        applied_index: report.applied_index,
        reads_per_second: report.reads_per_second,
        writes_per_second: report.writes_per_second,
    }
}
