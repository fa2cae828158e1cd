//! The cluster map: which shard holds a hash, where its replicas are, which collections exist.
//!
//! Immutable once built; a new version replaces it as a whole. Epochs only grow (I6): an update
//! that does not fit what is held is refused, and the holder asks for the whole map again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::id::{CollectionId, NodeId, ShardId};
use crate::key::hash_id;
use crate::wire;

/// A validated map with indexes for the lookups that requests need.
#[derive(Debug, Clone, Default)]
pub struct ClusterMap {
    wire: wire::ClusterMap,
    /// Index into `wire.shards` by shard.
    shards: HashMap<ShardId, usize>,
    nodes: BTreeMap<NodeId, usize>,
    collections: HashMap<String, Arc<wire::CollectionInfo>>,
    collection_ids: HashMap<CollectionId, Arc<wire::CollectionInfo>>,
}

/// Why a map or an update cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    #[error("shard ranges have a gap or overlap at {at:#018x}")]
    Ranges { at: u64 },
    #[error("update from epoch {since} does not fit epoch {held}")]
    Gap { since: u64, held: u64 },
    #[error("the map belongs to cluster {found}, not {held}")]
    OtherCluster { found: String, held: String },
}

impl TryFrom<wire::ClusterMap> for ClusterMap {
    type Error = MapError;

    fn try_from(mut wire: wire::ClusterMap) -> Result<Self, MapError> {
        wire.shards.sort_by_key(|shard| shard.first);
        let mut next = Some(0_u64);
        for shard in &wire.shards {
            if next != Some(shard.first) || shard.last < shard.first {
                return Err(MapError::Ranges { at: shard.first });
            }
            next = shard.last.checked_add(1);
        }
        if let (Some(at), false) = (next, wire.shards.is_empty()) {
            return Err(MapError::Ranges { at });
        }
        let shards =
            wire.shards.iter().enumerate().map(|(index, shard)| (ShardId(shard.id), index)).collect();
        let nodes = wire.nodes.iter().enumerate().map(|(index, node)| (NodeId(node.id), index)).collect();
        let all: Vec<_> = wire.collections.iter().cloned().map(Arc::new).collect();
        let collections = all.iter().map(|info| (info.name.clone(), Arc::clone(info))).collect();
        let collection_ids = all.into_iter().map(|info| (CollectionId(info.id), info)).collect();
        Ok(Self { wire, shards, nodes, collections, collection_ids })
    }
}

impl ClusterMap {
    /// The map's version; 0 for the empty map.
    pub fn epoch(&self) -> u64 {
        self.wire.epoch
    }

    pub fn cluster_id(&self) -> &str {
        &self.wire.cluster_id
    }

    pub fn wire(&self) -> &wire::ClusterMap {
        &self.wire
    }

    /// Shards in range order.
    pub fn shards(&self) -> &[wire::ShardInfo] {
        &self.wire.shards
    }

    pub fn nodes(&self) -> &[wire::NodeInfo] {
        &self.wire.nodes
    }

    pub fn meta(&self) -> Option<&wire::ShardInfo> {
        self.wire.meta.as_ref()
    }

    pub fn shard(&self, shard: ShardId) -> Option<&wire::ShardInfo> {
        self.wire.shards.get(*self.shards.get(&shard)?)
    }

    pub fn node(&self, node: NodeId) -> Option<&wire::NodeInfo> {
        self.wire.nodes.get(*self.nodes.get(&node)?)
    }

    /// The collection of that name, if it exists.
    pub fn collection(&self, name: &str) -> Option<&Arc<wire::CollectionInfo>> {
        self.collections.get(name)
    }

    pub fn collection_by_id(&self, id: CollectionId) -> Option<&Arc<wire::CollectionInfo>> {
        self.collection_ids.get(&id)
    }

    /// The shard whose range holds `hash`; `None` only for a map without shards.
    pub fn shard_of_hash(&self, hash: u64) -> Option<&wire::ShardInfo> {
        self.wire.shards.get(self.position_of_hash(hash)?)
    }

    /// The shard of a document's id.
    pub fn shard_of_id(&self, id: &str) -> Option<&wire::ShardInfo> {
        self.shard_of_hash(hash_id(id))
    }

    /// Whether the collection existed once and was deleted: ids are never reused.
    pub fn collection_deleted(&self, id: CollectionId) -> bool {
        id.get() < self.wire.next_collection && !self.collection_ids.contains_key(&id)
    }

    /// Position in [`Self::shards`] of the shard that holds `hash`.
    pub fn position_of_hash(&self, hash: u64) -> Option<usize> {
        self.wire.shards.partition_point(|shard| shard.first <= hash).checked_sub(1)
    }

    /// What changed from `old` to `self`, as a message for a holder of `old`.
    pub fn update_since(&self, old: &Self) -> wire::MapUpdate {
        if old.epoch() == 0 || old.cluster_id() != self.cluster_id() || old.epoch() > self.epoch() {
            return wire::MapUpdate {
                full: Some(self.wire.clone()),
                epoch: self.epoch(),
                ..Default::default()
            };
        }
        let nodes =
            self.nodes().iter().filter(|node| old.node(NodeId(node.id)) != Some(node)).cloned().collect();
        let shards = self
            .shards()
            .iter()
            .filter(|shard| old.shard(ShardId(shard.id)) != Some(shard))
            .cloned()
            .collect();
        let collections = self
            .wire
            .collections
            .iter()
            .filter(|info| old.collection_by_id(CollectionId(info.id)).map(|old| &**old) != Some(info))
            .cloned()
            .collect();
        let removed_nodes =
            old.nodes().iter().map(|node| node.id).filter(|&id| self.node(NodeId(id)).is_none()).collect();
        let removed_collections = old
            .wire
            .collections
            .iter()
            .map(|info| info.id)
            .filter(|&id| self.collection_by_id(CollectionId(id)).is_none())
            .collect();
        wire::MapUpdate {
            full: None,
            since: old.epoch(),
            epoch: self.epoch(),
            nodes,
            shards,
            collections,
            removed_nodes,
            removed_collections,
            meta: self.wire.meta.clone(),
            next_collection: self.wire.next_collection,
            leaders: Default::default(),
        }
    }

    /// This map with `update` applied.
    ///
    /// # Errors
    /// [`MapError`]; the holder then asks for the whole map.
    pub fn updated(&self, update: wire::MapUpdate) -> Result<Self, MapError> {
        if let Some(full) = update.full {
            if self.epoch() > 0 && full.cluster_id != self.cluster_id() {
                return Err(MapError::OtherCluster {
                    found: full.cluster_id,
                    held: self.cluster_id().to_owned(),
                });
            }
            return Self::try_from(full);
        }
        // I6: epochs only grow, so a change that ends before it begins is none.
        if update.since != self.epoch() || update.epoch < update.since {
            return Err(MapError::Gap { since: update.since, held: self.epoch() });
        }
        let mut wire = self.wire.clone();
        wire.epoch = update.epoch;
        wire.nodes.retain(|node| !update.removed_nodes.contains(&node.id));
        replace(&mut wire.nodes, update.nodes, |node| node.id);
        replace(&mut wire.shards, update.shards, |shard| u64::from(shard.id));
        wire.collections.retain(|info| !update.removed_collections.contains(&info.id));
        replace(&mut wire.collections, update.collections, |info| u64::from(info.id));
        wire.meta = update.meta;
        wire.next_collection = update.next_collection;
        Self::try_from(wire)
    }
}

/// Puts `new` items over those with the same id and adds the rest.
fn replace<T>(items: &mut Vec<T>, new: Vec<T>, id: impl Fn(&T) -> u64) {
    for item in new {
        match items.iter_mut().find(|old| id(old) == id(&item)) {
            Some(old) => *old = item,
            None => items.push(item),
        }
    }
    items.sort_by_key(id);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::ranges;

    fn map(epoch: u64, shards: u32) -> ClusterMap {
        let shards = ranges(shards)
            .into_iter()
            .enumerate()
            .map(|(id, (first, last))| wire::ShardInfo {
                id: id as u32,
                first,
                last,
                epoch: 1,
                replicas: Vec::new(),
            })
            .collect();
        let node = |id| wire::NodeInfo { id, addr: format!("127.0.0.1:{id}"), ..Default::default() };
        let users = wire::CollectionInfo { id: 1, name: "users".to_owned(), ..Default::default() };
        ClusterMap::try_from(wire::ClusterMap {
            cluster_id: "c".to_owned(),
            epoch,
            replication_factor: 3,
            nodes: vec![node(1), node(2)],
            shards,
            collections: vec![users],
            meta: None,
            next_collection: 2,
        })
        .unwrap()
    }

    #[test]
    fn every_hash_has_its_shard() {
        let map = map(1, 32);
        for (index, (first, last)) in ranges(32).into_iter().enumerate() {
            for hash in [first, first + 1, last] {
                assert_eq!(map.shard_of_hash(hash).unwrap().id, index as u32);
            }
        }
        assert!(ClusterMap::default().shard_of_id("x").is_none());
    }

    #[test]
    fn gaps_between_ranges_are_refused() {
        let mut wire = map(1, 4).wire().clone();
        wire.shards.remove(2);
        assert!(matches!(ClusterMap::try_from(wire), Err(MapError::Ranges { .. })));
        let mut wire = map(1, 4).wire().clone();
        wire.shards.pop();
        assert!(matches!(ClusterMap::try_from(wire), Err(MapError::Ranges { .. })));
    }

    #[test]
    fn updates_lead_to_the_same_map_and_gaps_are_refused() {
        let old = map(5, 4);
        let mut wire = old.wire().clone();
        wire.epoch = 8;
        wire.shards[2].epoch = 7;
        wire.nodes.remove(0);
        wire.nodes.push(wire::NodeInfo { id: 3, ..Default::default() });
        wire.collections =
            vec![wire::CollectionInfo { id: 2, name: "posts".to_owned(), ..Default::default() }];
        let new = ClusterMap::try_from(wire).unwrap();
        let update = new.update_since(&old);
        assert!(update.full.is_none());
        assert_eq!(update.shards.len(), 1);
        assert_eq!(old.updated(update.clone()).unwrap().wire(), new.wire());
        assert!(matches!(map(6, 4).updated(update.clone()), Err(MapError::Gap { since: 5, held: 6 })));
        let backwards = wire::MapUpdate { epoch: 4, ..update };
        assert!(matches!(old.updated(backwards), Err(MapError::Gap { since: 5, held: 5 })));
        let full = new.update_since(&ClusterMap::default());
        assert_eq!(ClusterMap::default().updated(full).unwrap().wire(), new.wire());
    }
}
