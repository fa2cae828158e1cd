//! Which node to ask next. Pure: it decides from the map, the hints and what was tried, and sends nothing.

use super::topology::Topology;
use crate::id::{NodeId, ShardId};
use crate::wire;

/// What one request has tried in this round. A round ends when no replica is left.
#[derive(Debug)]
pub(super) struct Route {
    /// Any replica may answer, not only the leader.
    anyone: bool,
    /// Named by the last fault.
    hint: Option<NodeId>,
    failed: Vec<NodeId>,
    /// Hints followed in a row.
    redirects: u32,
}

/// Hints followed at once; after that replicas disagree about the leader and need a moment.
const REDIRECTS_MAX: u32 = 2;

impl Route {
    pub(super) fn new(anyone: bool) -> Self {
        Self { anyone, hint: None, failed: Vec::new(), redirects: 0 }
    }

    pub(super) fn anyone(&self) -> bool {
        self.anyone
    }

    /// The next node, and the shard's epoch to name. `load` is how busy a node is, `None` when it cannot be called.
    /// `None` ends the round: all replicas may be tried again after a pause.
    pub(super) fn next(
        &mut self,
        topology: &Topology,
        shard: ShardId,
        load: impl Fn(NodeId) -> Option<usize>,
    ) -> Option<(NodeId, u64)> {
        let info = topology.map().shard(shard)?;
        let picked = self.pick(topology, info, load);
        if picked.is_none() {
            self.failed.clear();
            self.redirects = 0;
        }
        picked.map(|node| (node, info.epoch))
    }

    fn pick(
        &mut self,
        topology: &Topology,
        info: &wire::ShardInfo,
        load: impl Fn(NodeId) -> Option<usize>,
    ) -> Option<NodeId> {
        if let Some(hint) = self.hint.take().filter(|hint| !self.failed.contains(hint)) {
            return Some(hint);
        }
        let leader = || topology.leader(ShardId(info.id)).filter(|leader| !self.failed.contains(leader));
        if !self.anyone
            && let Some(leader) = leader()
        {
            return Some(leader);
        }
        let untried = |role| {
            let replicas = info.replicas.iter().filter(move |replica| replica.role() == role);
            replicas.map(|replica| NodeId(replica.node)).filter(|node| !self.failed.contains(node))
        };
        let voters: Vec<NodeId> = untried(wire::ReplicaRole::Voter).collect();
        if self.anyone {
            if !voters.is_empty() {
                return less_busy(&voters, load);
            }
            if let Some(leader) = leader() {
                return Some(leader);
            }
        }
        // One on its way out may still lead.
        any_of(&voters).or_else(|| untried(wire::ReplicaRole::Leaving).next())
    }

    /// `node` could not answer: not again in this round.
    pub(super) fn fail(&mut self, node: NodeId) {
        if !self.failed.contains(&node) {
            self.failed.push(node);
        }
    }

    /// Only the leader will do from now on.
    pub(super) fn leader_only(&mut self) {
        self.anyone = false;
    }

    /// `from` named `leader`. Answers whether to go there at once.
    pub(super) fn redirect(&mut self, from: NodeId, leader: NodeId) -> bool {
        self.anyone = false;
        self.redirects += 1;
        let follow = leader != from && !self.failed.contains(&leader) && self.redirects <= REDIRECTS_MAX;
        if follow {
            self.hint = Some(leader);
        } else {
            self.failed.clear();
            self.redirects = 0;
        }
        follow
    }
}

fn any_of(nodes: &[NodeId]) -> Option<NodeId> {
    if nodes.is_empty() {
        return None;
    }
    nodes.get(rand::random_range(0..nodes.len())).copied()
}

/// The less busy of two taken at random: nearly as even as the least busy of all, without a stampede to it.
fn less_busy(nodes: &[NodeId], load: impl Fn(NodeId) -> Option<usize>) -> Option<NodeId> {
    let first = any_of(nodes)?;
    let others: Vec<NodeId> = nodes.iter().copied().filter(|&node| node != first).collect();
    let Some(second) = any_of(&others) else { return Some(first) };
    let busy = |node| load(node).unwrap_or(usize::MAX);
    Some(if busy(second) < busy(first) { second } else { first })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cluster_map::ClusterMap;

    fn topology(voters: &[u64]) -> Topology {
        let replica = |&node| wire::ReplicaInfo { id: node, node, role: wire::ReplicaRole::Voter.into() };
        let replicas = voters.iter().map(replica).collect();
        let map = wire::ClusterMap {
            epoch: 1,
            shards: vec![wire::ShardInfo { id: 0, first: 0, last: u64::MAX, epoch: 9, replicas }],
            ..Default::default()
        };
        Topology::new(Arc::new(ClusterMap::try_from(map).unwrap()), &Topology::default())
    }

    const SHARD: ShardId = ShardId(0);

    #[test]
    fn the_leader_is_asked_first_and_every_replica_once_a_round() {
        let topology = topology(&[1, 2, 3]);
        topology.set_leader(SHARD, NodeId(2));
        let mut route = Route::new(false);
        let mut asked = Vec::new();
        while let Some((node, epoch)) = route.next(&topology, SHARD, |_| None) {
            assert_eq!(epoch, 9);
            asked.push(node);
            route.fail(node);
        }
        assert_eq!(asked[0], NodeId(2));
        asked.sort_unstable();
        assert_eq!(asked, [NodeId(1), NodeId(2), NodeId(3)]);
        assert_eq!(route.next(&topology, SHARD, |_| None).unwrap().0, NodeId(2), "a new round");
    }

    #[test]
    fn hints_are_followed_but_not_in_circles() {
        let topology = topology(&[1, 2]);
        let mut route = Route::new(false);
        assert!(route.redirect(NodeId(1), NodeId(2)));
        assert_eq!(route.next(&topology, SHARD, |_| None).unwrap().0, NodeId(2));
        assert!(route.redirect(NodeId(2), NodeId(1)));
        assert!(!route.redirect(NodeId(1), NodeId(2)), "a pause first");
        route.fail(NodeId(1));
        assert!(!route.redirect(NodeId(2), NodeId(1)), "it just failed");
    }

    #[test]
    fn reads_that_anyone_may_answer_go_to_the_less_busy() {
        let topology = topology(&[1, 2]);
        topology.set_leader(SHARD, NodeId(1));
        for _ in 0..20 {
            let mut route = Route::new(true);
            let load = |node| if node == NodeId(1) { Some(5) } else { Some(1) };
            assert_eq!(route.next(&topology, SHARD, load).unwrap().0, NodeId(2));
            route.leader_only();
            assert_eq!(route.next(&topology, SHARD, load).unwrap().0, NodeId(1));
        }
    }

    #[test]
    fn a_map_without_replicas_names_nobody() {
        assert!(Route::new(false).next(&topology(&[]), SHARD, |_| None).is_none());
        assert!(Route::new(true).next(&Topology::default(), SHARD, |_| None).is_none());
    }
}
