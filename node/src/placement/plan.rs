//! What the meta leader does next, decided purely from the map and what nodes report.
//!
//! Replication grows to its target as nodes join, and leaders are spread evenly. Every step makes
//! the cluster strictly better by its measure, so that repeating the plan comes to rest.

use std::collections::BTreeMap;

use borough_proto::{GroupId, NodeId, ReplicaId, ShardId, wire};

use super::observe::Observed;

/// Most members of the meta group.
const META_REPLICAS_MAX: u32 = 5;
/// Replicas being caught up at once, over the whole cluster.
pub const LEARNERS_MAX: usize = 8;

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Give the group a new replica on that node.
    AddReplica { group: GroupId, epoch: u64, node: NodeId },
    /// Bring the group's members to these, then record that the learner is a voter.
    Promote { group: GroupId, epoch: u64, learner: ReplicaId, voters: BTreeMap<ReplicaId, NodeId> },
    /// Move the leadership.
    Transfer { group: GroupId, to: ReplicaId },
}

/// The next steps, at most [`LEARNERS_MAX`] replicas on their way at once.
pub fn plan(map: &wire::ClusterMap, observed: &Observed) -> Vec<Step> {
    let live: Vec<&wire::NodeInfo> = map
        .nodes
        .iter()
        .filter(|node| node.state() == wire::NodeState::Member && observed.is_up(NodeId(node.id)))
        .collect();
    let mut load: BTreeMap<u64, usize> = live.iter().map(|node| (node.id, 0)).collect();
    let groups = || {
        let meta = map.meta.iter().map(|info| (GroupId::META, info));
        meta.chain(map.shards.iter().map(|info| (GroupId::from(ShardId(info.id)), info)))
    };
    for replica in groups().flat_map(|(_, info)| &info.replicas) {
        if let Some(count) = load.get_mut(&replica.node) {
            *count += 1;
        }
    }
    let mut steps = Vec::new();
    let mut learners = 0;
    for (group, info) in groups() {
        if let Some(learner) =
            info.replicas.iter().find(|replica| replica.role() == wire::ReplicaRole::Learner)
        {
            learners += 1;
            steps.push(promote(group, info, learner));
        }
    }
    for (group, info) in groups() {
        let growing = info.replicas.iter().any(|replica| replica.role() == wire::ReplicaRole::Learner);
        if growing || learners >= LEARNERS_MAX {
            continue;
        }
        let target = if group == GroupId::META { meta_target(live.len()) } else { map.replication_factor };
        if info.replicas.len() >= target as usize {
            continue;
        }
        if let Some(node) = best_node(map, info, &live, &load) {
            *load.entry(node.get()).or_default() += 1;
            learners += 1;
            steps.push(Step::AddReplica { group, epoch: info.epoch, node });
        }
    }
    // Leaders move only when replicas do not: every new replica changes what is even.
    if steps.is_empty() {
        steps.extend(spread_leaders(map, observed));
    }
    steps
}

fn promote(group: GroupId, info: &wire::ShardInfo, learner: &wire::ReplicaInfo) -> Step {
    let voters = info
        .replicas
        .iter()
        .filter(|replica| replica.role() == wire::ReplicaRole::Voter || replica.id == learner.id)
        .map(|replica| (ReplicaId(replica.id), NodeId(replica.node)))
        .collect();
    Step::Promote { group, epoch: info.epoch, learner: ReplicaId(learner.id), voters }
}

/// Members that the meta group should have: an even number above two only adds a node that can fail.
fn meta_target(live: usize) -> u32 {
    match u32::try_from(live).unwrap_or(u32::MAX).min(META_REPLICAS_MAX) {
        4 => 3,
        count => count,
    }
}

/// A node without a replica of the group: of a zone that has none if possible, then the least loaded.
fn best_node(
    map: &wire::ClusterMap,
    info: &wire::ShardInfo,
    live: &[&wire::NodeInfo],
    load: &BTreeMap<u64, usize>,
) -> Option<NodeId> {
    let holds = |node: u64| info.replicas.iter().any(|replica| replica.node == node);
    let zone_of = |node: u64| map.nodes.iter().find(|info| info.id == node).map(|info| info.zone.as_str());
    let in_zone =
        |zone: &str| info.replicas.iter().filter(|replica| zone_of(replica.node) == Some(zone)).count();
    live.iter()
        .filter(|node| !holds(node.id))
        .min_by_key(|node| (in_zone(&node.zone), load.get(&node.id).copied().unwrap_or(0), node.id))
        .map(|node| NodeId(node.id))
}

/// Transfers that bring the leaders per node within one of even, as far as replicas allow.
fn spread_leaders(map: &wire::ClusterMap, observed: &Observed) -> Vec<Step> {
    let may_lead = |node: NodeId| observed.is_up(node) && !observed.is_leaving(node);
    let mut leaders: BTreeMap<NodeId, usize> = map
        .nodes
        .iter()
        .map(|node| NodeId(node.id))
        .filter(|&node| may_lead(node))
        .map(|node| (node, 0))
        .collect();
    let mut led: Vec<(&wire::ShardInfo, NodeId)> = Vec::new();
    for info in &map.shards {
        if let Some(node) = observed.leader(ShardId(info.id)) {
            *leaders.entry(node).or_default() += 1;
            led.push((info, node));
        }
    }
    let mut steps = Vec::new();
    for (info, from) in led {
        let from_count = leaders.get(&from).copied().unwrap_or(0);
        let to = info
            .replicas
            .iter()
            .filter(|replica| replica.role() == wire::ReplicaRole::Voter && may_lead(NodeId(replica.node)))
            .min_by_key(|replica| (leaders.get(&NodeId(replica.node)).copied().unwrap_or(0), replica.id));
        let Some(to) = to else { continue };
        let to_node = NodeId(to.node);
        let to_count = leaders.get(&to_node).copied().unwrap_or(0);
        // A transfer between counts that differ by one would only swap them.
        if to_node != from && from_count > to_count + 1 {
            leaders.insert(from, from_count - 1);
            leaders.insert(to_node, to_count + 1);
            steps.push(Step::Transfer { group: GroupId::from(ShardId(info.id)), to: ReplicaId(to.id) });
        }
    }
    steps
}

#[cfg(test)]
mod tests;
