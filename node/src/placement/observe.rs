//! What the meta leader hears from the nodes: soft state, lost with the leadership, heard again within a second.

use std::collections::BTreeMap;
use std::time::Duration;

use borough_proto::{NodeId, ShardId, wire};
use tokio::time::Instant;

use super::plan::Outlook;

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
    /// The term in which this node leads the meta group.
    term: u64,
    /// For each shard, the nodes that report a replica of it, with its place in their reports.
    by_shard: BTreeMap<u32, BTreeMap<NodeId, usize>>,
    /// Since when this node listens: nobody is called silent for longer than that.
    since: Instant,
    now: Instant,
    suspect_after: Duration,
    down_after: Duration,
    /// Why a move (operation, position) waits.
    waits: BTreeMap<(u64, u32), String>,
    /// What running operations have in all.
    outlook: Outlook,
}

impl Observed {
    pub fn new(suspect_after: Duration, down_after: Duration) -> Self {
        let now = Instant::now();
        Self {
            reports: BTreeMap::new(),
            term: 0,
            by_shard: BTreeMap::new(),
            since: now,
            now,
            suspect_after,
            down_after,
            waits: BTreeMap::new(),
            outlook: Outlook::default(),
        }
    }

    /// This node leads the meta group in `term`. Whoever asks or tells first in a term begins it: what was heard before, or
    /// long not heard, says nothing, and a node that has not reported yet is not down for that.
    pub fn lead(&mut self, term: u64) -> &mut Self {
        if self.term != term {
            self.term = term;
            self.restart();
        }
        self
    }

    /// Forgets all: another term of leadership begins.
    pub fn restart(&mut self) {
        self.reports.clear();
        self.by_shard.clear();
        self.waits.clear();
        self.outlook = Outlook::default();
        self.since = Instant::now();
        self.now = self.since;
    }

    /// Takes a node's report.
    pub fn report(&mut self, report: wire::NodeReport) {
        self.now = Instant::now();
        self.take(self.now, report);
    }

    fn take(&mut self, heard: Instant, report: wire::NodeReport) {
        let node = NodeId(report.node);
        if let Some((_, old)) = self.reports.get(&node) {
            for replica in old.replicas.iter().filter(|replica| !replica.meta) {
                if let Some(nodes) = self.by_shard.get_mut(&replica.shard) {
                    nodes.remove(&node);
                }
            }
        }
        for (place, replica) in report.replicas.iter().enumerate().filter(|(_, replica)| !replica.meta) {
            self.by_shard.entry(replica.shard).or_default().insert(node, place);
        }
        self.reports.insert(node, (heard, report));
    }

    /// Keeps why a move of an operation waits, or that it does not.
    pub fn waits(&mut self, operation: u64, position: u32, why: Option<String>) {
        match why {
            Some(why) => self.waits.insert((operation, position), why),
            None => self.waits.remove(&(operation, position)),
        };
    }

    /// Keeps what running operations have in all.
    pub fn expects(&mut self, outlook: Outlook) {
        self.outlook = outlook;
    }

    /// What running operations have in all, as of the last plan.
    pub fn outlook(&self) -> &Outlook {
        &self.outlook
    }

    /// Forgets why moves of an operation waited.
    pub fn forget_waits(&mut self, operation: u64) {
        self.waits.retain(|(of, _), _| *of != operation);
    }

    /// Why a move of an operation waits, if it does.
    pub fn waiting(&self, operation: u64, position: u32) -> Option<&str> {
        self.waits.get(&(operation, position)).map(String::as_str)
    }

    /// Judges silence from now on by the present time.
    pub fn tick(&mut self) {
        self.now = Instant::now();
    }

    /// Makes a node one that has been silent for long enough to be down.
    #[cfg(test)]
    pub fn lose(&mut self, node: NodeId) {
        let long_ago = self.now.checked_sub(self.down_after).unwrap_or(self.now);
        self.take(long_ago, wire::NodeReport { node: node.get(), ..Default::default() });
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

    /// Whether every node of the map has reported in this term or is silent: before, plans would be made of less than is so.
    pub fn knows_all(&self, map: &wire::ClusterMap) -> bool {
        map.nodes.iter().filter(|info| info.state() != wire::NodeState::Removed).all(|info| {
            let node = NodeId(info.id);
            self.reports.contains_key(&node) || self.health(node) != Health::Up
        })
    }

    /// Whether the node has given the replica up although the map gives it to it.
    pub fn has_lost(&self, node: NodeId, replica: u64) -> bool {
        self.latest(node).is_some_and(|report| report.lost.contains(&replica))
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
        let nodes = self.by_shard.get(&shard.get()).into_iter().flatten();
        nodes.filter_map(|(&node, &place)| Some((node, self.reports.get(&node)?.1.replicas.get(place)?)))
    }

    /// What placement depends on besides the catalog, of each node.
    pub fn standings(&self, map: &wire::ClusterMap) -> Vec<Standing> {
        let standing = |info: &wire::NodeInfo| {
            let node = NodeId(info.id);
            Standing {
                node,
                state: info.state,
                health: self.health(node),
                heard: self.reports.contains_key(&node),
                leaving: self.is_leaving(node),
                lost: self.latest(node).map(|report| report.lost.clone()).unwrap_or_default(),
            }
        };
        map.nodes.iter().map(standing).collect()
    }
}

/// How a node stands, as far as placement asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    node: NodeId,
    state: i32,
    health: Health,
    heard: bool,
    leaving: bool,
    lost: Vec<u64>,
}
