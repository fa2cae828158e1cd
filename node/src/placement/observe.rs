//! What the meta leader hears from the nodes: soft state, lost with the leadership, heard again within a second.

use std::collections::BTreeMap;
use std::time::Duration;

use borough_proto::{NodeId, ShardId, wire};
use tokio::time::Instant;

/// How a node looks from the meta leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    Up,
    /// Silent past `suspect-after`.
    Suspect,
    /// Silent past `down-after`.
    Down,
}

impl Health {
    /// The name in the status document.
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Suspect => "suspect",
            Self::Down => "down",
        }
    }
}

/// The reports of one term of leadership.
#[derive(Debug, Clone)]
pub struct Observed {
    reports: BTreeMap<NodeId, (Instant, wire::NodeReport)>,
    /// Since when this node listens: nobody is called silent for longer than that.
    since: Instant,
    now: Instant,
    suspect_after: Duration,
    down_after: Duration,
}

impl Observed {
    pub fn new(suspect_after: Duration, down_after: Duration) -> Self {
        let now = Instant::now();
        Self { reports: BTreeMap::new(), since: now, now, suspect_after, down_after }
    }

    /// Forgets all: another term of leadership begins.
    pub fn restart(&mut self) {
        self.reports.clear();
        self.since = Instant::now();
        self.now = self.since;
    }

    /// Takes a node's report.
    pub fn report(&mut self, report: wire::NodeReport) {
        self.now = Instant::now();
        self.reports.insert(NodeId(report.node), (self.now, report));
    }

    /// Judges silence from now on by the present time.
    pub fn tick(&mut self) {
        self.now = Instant::now();
    }

    pub fn latest(&self, node: NodeId) -> Option<&wire::NodeReport> {
        self.reports.get(&node).map(|(_, report)| report)
    }

    pub fn health(&self, node: NodeId) -> Health {
        let heard = self.reports.get(&node).map_or(self.since, |(at, _)| *at);
        let silent = self.now.saturating_duration_since(heard);
        if silent >= self.down_after {
            Health::Down
        } else if silent >= self.suspect_after {
            Health::Suspect
        } else {
            Health::Up
        }
    }

    /// Whether the node reported in this term and is not silent.
    pub fn is_up(&self, node: NodeId) -> bool {
        self.reports.contains_key(&node) && self.health(node) == Health::Up
    }

    /// Whether the node said that it is going down.
    pub fn is_leaving(&self, node: NodeId) -> bool {
        self.latest(node).is_some_and(|report| report.leaving)
    }

    /// The node that leads `shard`: of those that say so, the one of the highest term.
    pub fn leader(&self, shard: ShardId) -> Option<NodeId> {
        self.replicas(shard)
            .filter(|(node, replica)| replica.leader && self.health(*node) == Health::Up)
            .max_by_key(|(_, replica)| replica.term)
            .map(|(node, _)| node)
    }

    /// What nodes say of their replicas of `shard`.
    pub fn replicas(&self, shard: ShardId) -> impl Iterator<Item = (NodeId, &wire::ReplicaReport)> {
        self.reports.iter().flat_map(move |(&node, (_, report))| {
            let of_shard =
                move |replica: &&wire::ReplicaReport| !replica.meta && replica.shard == shard.get();
            report.replicas.iter().filter(of_shard).map(move |replica| (node, replica))
        })
    }
}
