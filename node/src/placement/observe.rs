//! What the meta leader hears from the nodes: soft state, lost with the leadership, heard again within a second.
//!
//! How long nodes have been silent is not lost: the leader tells it with every answer to a report, and whoever leads next
//! goes on from what it was told, or from what others were, who say it in their reports: it may just have been started.

use std::collections::{BTreeMap, BTreeSet};
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

fn silence(node: NodeId, time: Duration) -> wire::Silence {
    wire::Silence { node: node.get(), ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX) }
}

/// The reports of one term of leadership.
#[derive(Debug, Clone)]
pub struct Observed {
    reports: BTreeMap<NodeId, (Instant, wire::NodeReport)>,
    /// The term in which this node leads the meta group.
    term: u64,
    /// For each shard, the nodes that report a replica of it, with its place in their reports.
    by_shard: BTreeMap<u32, BTreeMap<NodeId, usize>>,
    /// The node that last said it leads each shard, and when.
    led: BTreeMap<u32, (NodeId, Instant)>,
    /// For each shard, since when each node's reports have said that it does not lead it.
    denied: BTreeMap<u32, BTreeMap<NodeId, Instant>>,
    /// The last sign of life of nodes without a report in this term: what the leader before told, or when the node was
    /// first seen in the map.
    seen: BTreeMap<NodeId, Instant>,
    /// What was seen last was told by another leader.
    following: bool,
    /// Who was silent at the last tick.
    silences: Vec<wire::Silence>,
    /// Since when this node listens.
    since: Instant,
    now: Instant,
    suspect_after: Duration,
    down_after: Duration,
    /// Why a move (operation, position) waits.
    waits: BTreeMap<(u64, u32), String>,
    /// What running operations have in all; `None` before it was looked at in this term.
    outlook: Option<Outlook>,
}

impl Observed {
    pub fn new(suspect_after: Duration, down_after: Duration) -> Self {
        let now = Instant::now();
        Self {
            reports: BTreeMap::new(),
            term: 0,
            by_shard: BTreeMap::new(),
            led: BTreeMap::new(),
            denied: BTreeMap::new(),
            seen: BTreeMap::new(),
            following: false,
            silences: Vec::new(),
            since: now,
            now,
            suspect_after,
            down_after,
            waits: BTreeMap::new(),
            outlook: None,
        }
    }

    /// This node leads the meta group in `term`. Whoever asks or tells first in a term begins it: what was heard in an older
    /// one says nothing any more, but that nodes were silent then.
    pub fn lead(&mut self, term: u64) -> &mut Self {
        if self.term < term {
            self.term = term;
            self.begin(Instant::now());
        }
        self
    }

    /// The leader of `term`, another node, has taken a report and tells who is silent.
    pub fn hear_of(&mut self, term: u64, leader: NodeId, silences: &[wire::Silence]) {
        if term < self.term {
            return;
        }
        self.now = Instant::now();
        self.forget();
        let since = |silence: &wire::Silence| {
            let heard = self.now.checked_sub(Duration::from_millis(silence.ms)).unwrap_or(self.now);
            (NodeId(silence.node), heard)
        };
        self.seen = silences.iter().map(since).chain([(leader, self.now)]).collect();
        self.following = true;
    }

    /// The nodes that were not up at the last tick.
    pub fn silences(&self) -> &[wire::Silence] {
        &self.silences
    }

    /// The nodes that are silent as far as this node, which does not lead, was told: what it says in its reports.
    pub fn told(&self) -> Vec<wire::Silence> {
        if !self.following {
            return Vec::new();
        }
        let now = Instant::now();
        let since = self.seen.iter().map(|(node, heard)| (*node, now.saturating_duration_since(*heard)));
        since
            .filter(|(_, time)| *time >= self.suspect_after)
            .map(|(node, time)| silence(node, time))
            .collect()
    }

    fn forget(&mut self) {
        self.reports.clear();
        self.by_shard.clear();
        self.led.clear();
        self.denied.clear();
        self.waits.clear();
        self.outlook = None;
        self.silences.clear();
    }

    /// A term of leadership begins: whoever was silent already still is, and so is whoever has been since the last sign of
    /// life that another leader told of.
    fn begin(&mut self, now: Instant) {
        let silent = self.reports.keys().copied().filter(|node| self.health(*node) != Health::Up);
        let silent: Vec<_> = silent.map(|node| (node, self.heard(node))).collect();
        self.seen.retain(|node, _| !self.reports.contains_key(node));
        self.seen.extend(silent);
        self.listen(now);
    }

    /// This node was paused and has heard nobody: only whoever was silent already still is.
    fn resume(&mut self, now: Instant) {
        let known = self.seen.keys().chain(self.reports.keys()).copied();
        let silent = known.filter(|node| self.health(*node) != Health::Up);
        self.seen = silent.map(|node| (node, self.heard(node))).collect();
        self.listen(now);
    }

    fn listen(&mut self, now: Instant) {
        self.forget();
        self.following = false;
        self.since = now;
        self.now = now;
    }

    /// Time passes.
    fn pass(&mut self) {
        let now = Instant::now();
        if now.saturating_duration_since(self.now) >= self.suspect_after {
            self.resume(now);
        }
        self.now = now;
    }

    /// Judges silence from now on by the present time, of the nodes of `map`.
    pub fn tick(&mut self, map: &wire::ClusterMap) {
        self.pass();
        let present: BTreeSet<NodeId> = map.nodes.iter().map(|info| NodeId(info.id)).collect();
        self.seen.retain(|id, _| present.contains(id));
        self.reports.retain(|id, _| present.contains(id));
        for &node in &present {
            self.seen.entry(node).or_insert(self.now);
        }
        // Every answer to a report has them: not looked for at each of those.
        let members = map.nodes.iter().filter(|info| info.state() != wire::NodeState::Removed);
        let silent = members.map(|info| NodeId(info.id)).filter(|node| self.health(*node) != Health::Up);
        self.silences = silent.map(|node| silence(node, self.silence(node))).collect();
    }

    /// Takes a node's report.
    pub fn report(&mut self, report: wire::NodeReport) {
        self.pass();
        for silence in &report.silences {
            // Whoever has reported in this term is not silent, whatever others were told.
            let node = NodeId(silence.node);
            if let Some(heard) = self.now.checked_sub(Duration::from_millis(silence.ms))
                && !self.reports.contains_key(&node)
            {
                let seen = self.seen.entry(node).or_insert(heard);
                *seen = heard.min(*seen);
            }
        }
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
            let denied = self.denied.entry(replica.shard).or_default();
            if replica.leader {
                self.led.insert(replica.shard, (node, heard));
                denied.remove(&node);
            } else {
                denied.entry(node).or_insert(heard);
            }
        }
        for replica in self.reports.get(&node).iter().flat_map(|(_, old)| &old.replicas) {
            let held = self.by_shard.get(&replica.shard).is_some_and(|nodes| nodes.contains_key(&node));
            if !held && let Some(nodes) = self.denied.get_mut(&replica.shard) {
                nodes.remove(&node);
            }
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
        self.outlook = Some(outlook);
    }

    /// What running operations have in all, as of the last plan of this term.
    pub fn outlook(&self) -> Option<&Outlook> {
        self.outlook.as_ref()
    }

    /// Forgets why moves of an operation waited.
    pub fn forget_waits(&mut self, operation: u64) {
        self.waits.retain(|(of, _), _| *of != operation);
    }

    /// Why a move of an operation waits, if it does.
    pub fn waiting(&self, operation: u64, position: u32) -> Option<&str> {
        self.waits.get(&(operation, position)).map(String::as_str)
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

    /// When there was a last sign of life of the node.
    fn heard(&self, node: NodeId) -> Instant {
        let report = self.reports.get(&node).map(|(at, _)| *at);
        report.or_else(|| self.seen.get(&node).copied()).unwrap_or(self.since)
    }

    fn silence(&self, node: NodeId) -> Duration {
        self.now.saturating_duration_since(self.heard(node))
    }

    pub fn health(&self, node: NodeId) -> Health {
        let silence = self.silence(node);
        if silence >= self.down_after {
            Health::Down
        } else if silence >= self.suspect_after {
            Health::Suspect
        } else {
            Health::Up
        }
    }

    /// Whether the node reported in this term and is not silent.
    pub fn is_up(&self, node: NodeId) -> bool {
        self.reports.contains_key(&node) && self.health(node) == Health::Up
    }

    /// Whether every node of the map has reported in this term or could have: before, plans would be made of less than is so.
    pub fn knows_all(&self, map: &wire::ClusterMap) -> bool {
        self.has_heard_all(map) || self.listens_for() >= self.suspect_after
    }

    /// Whether every node of the map has reported in this term.
    pub fn has_heard_all(&self, map: &wire::ClusterMap) -> bool {
        let mut nodes = map.nodes.iter().filter(|info| info.state() != wire::NodeState::Removed);
        nodes.all(|info| self.reports.contains_key(&NodeId(info.id)))
    }

    /// How long this node has listened.
    pub fn listens_for(&self) -> Duration {
        self.now.saturating_duration_since(self.since)
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

    /// The node that leads `shard` or led it a moment ago: where the leadership moves, its reports come one after the other.
    pub fn last_leader(&self, shard: ShardId) -> Option<NodeId> {
        let recent = |(node, at): &(NodeId, Instant)| {
            self.now.saturating_duration_since(*at) < self.suspect_after && self.health(*node) == Health::Up
        };
        let before = || self.led.get(&shard.get()).copied().filter(recent).map(|(node, _)| node);
        self.leader(shard).or_else(before)
    }

    /// Whether every node with a replica of `shard` that is heard has said, for longer than an election takes, that it does
    /// not lead it, and none has said in that time that it does. What counts is the time between its reports: that they come late says nothing.
    pub fn is_leaderless(&self, shard: ShardId) -> bool {
        let denied = self.denied.get(&shard.get());
        let said = |node: NodeId| {
            let (last, _) = self.reports.get(&node)?;
            let first = denied?.get(&node)?;
            Some(last.saturating_duration_since(*first) >= self.suspect_after)
        };
        // Who led may have handed over and gone, before its successor reports.
        let led = self.led.get(&shard.get());
        let led = led.is_some_and(|(_, at)| self.now.saturating_duration_since(*at) < self.suspect_after);
        self.leader(shard).is_none()
            && !led
            && self
                .replicas(shard)
                .filter(|(node, _)| self.health(*node) == Health::Up)
                .all(|(node, _)| said(node) == Some(true))
            && self.listens_for() >= self.suspect_after
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

#[cfg(test)]
mod tests;
