//! The cluster map together with who leads which shard, as far as this process has heard.
//!
//! Hints only save a round: the node asked decides whether it leads (I6).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cluster_map::ClusterMap;
use crate::id::{NodeId, ShardId};

/// A map and its leader hints. Replaced as a whole when the map changes; hints change in place.
#[derive(Debug, Default)]
pub struct Topology {
    map: Arc<ClusterMap>,
    /// 0 while nobody is known to lead.
    leaders: HashMap<ShardId, AtomicU64>,
}

impl Topology {
    /// `map` with the hints of `old` that still make sense.
    pub fn new(map: Arc<ClusterMap>, old: &Self) -> Self {
        let leaders = map.shards().iter().map(|shard| {
            let id = ShardId(shard.id);
            let hint =
                old.leader(id).filter(|node| shard.replicas.iter().any(|replica| replica.node == node.get()));
            (id, AtomicU64::new(hint.map_or(0, NodeId::get)))
        });
        let leaders = leaders.collect();
        Self { map, leaders }
    }

    pub fn map(&self) -> &Arc<ClusterMap> {
        &self.map
    }

    /// Who probably leads `shard`.
    pub fn leader(&self, shard: ShardId) -> Option<NodeId> {
        let node = self.leaders.get(&shard)?.load(Ordering::Relaxed);
        if node == 0 { None } else { Some(NodeId(node)) }
    }

    /// `node` answered as the leader of `shard`, or was named as it.
    pub fn set_leader(&self, shard: ShardId, node: NodeId) {
        if let Some(hint) = self.leaders.get(&shard)
            && hint.load(Ordering::Relaxed) != node.get()
        {
            hint.store(node.get(), Ordering::Relaxed);
        }
    }

    /// `node` does not lead `shard` after all, or does not answer.
    pub fn forget_leader(&self, shard: ShardId, node: NodeId) {
        if let Some(hint) = self.leaders.get(&shard) {
            // Another caller may have learned better meanwhile.
            let _ = hint.compare_exchange(node.get(), 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}
