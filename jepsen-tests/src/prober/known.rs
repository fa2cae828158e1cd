//! The newest that any node has told: the map, and of each shard the epoch.

use std::sync::Arc;

use borough_proto::{ClusterMap, ShardId, wire};

use super::watch;

/// What the prober knows; it only grows.
#[derive(Debug)]
pub struct Known {
    map: watch::Sender<Arc<ClusterMap>>,
    targets: Vec<Target>,
}

/// A shard that is asked for.
#[derive(Debug)]
pub struct Target {
    pub shard: u32,
    /// Of a document there.
    pub id: String,
    epoch: watch::Sender<u64>,
}

impl Target {
    /// Its newest epoch, and every later one.
    pub fn epochs(&self) -> watch::Receiver<u64> {
        self.epoch.subscribe()
    }
}

impl Known {
    /// Knows of each shard the id of a document, and no map.
    pub fn new(targets: impl Iterator<Item = (u32, String)>) -> Self {
        let target = |(shard, id)| Target { shard, id, epoch: watch::Sender::new(0) };
        Self { map: watch::Sender::new(Arc::default()), targets: targets.map(target).collect() }
    }

    /// The newest map, and every later one.
    pub fn maps(&self) -> watch::Receiver<Arc<ClusterMap>> {
        self.map.subscribe()
    }

    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.targets.iter()
    }

    /// The collection's id.
    pub fn collection(&self, name: &str) -> Option<u32> {
        self.map.borrow().collection(name).map(|collection| collection.id)
    }

    /// Takes up what is newer in `map`.
    pub fn learn_map(&self, map: &ClusterMap) {
        // The map before the epochs: whoever is woken by an epoch finds at least its map.
        self.map.send_if_modified(|held| {
            let newer = map.epoch() > held.epoch();
            if newer {
                *held = Arc::new(map.clone());
            }
            newer
        });
        for target in &self.targets {
            let Some(info) = map.shard(ShardId(target.shard)) else { continue };
            target.epoch.send_if_modified(|held| {
                let newer = info.epoch > *held;
                *held = (*held).max(info.epoch);
                newer
            });
        }
    }

    /// Whether the node at `address` was taken out of the cluster for good.
    pub fn is_removed(&self, address: &str) -> bool {
        let map = self.map.borrow();
        let mut here = map.nodes().iter().filter(|node| node.addr == address).peekable();
        here.peek().is_some() && here.all(|node| node.state() == wire::NodeState::Removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A map of one shard and of one node for each state.
    fn map(epoch: u64, shard_epoch: u64, states: &[wire::NodeState]) -> ClusterMap {
        let shard = wire::ShardInfo { last: u64::MAX, epoch: shard_epoch, ..Default::default() };
        let node = |(id, state): (usize, &wire::NodeState)| wire::NodeInfo {
            id: id as u64,
            addr: "127.0.0.1:1".to_owned(),
            state: (*state).into(),
            ..Default::default()
        };
        let nodes = states.iter().enumerate().map(node).collect();
        ClusterMap::try_from(wire::ClusterMap { epoch, shards: vec![shard], nodes, ..Default::default() })
            .unwrap()
    }

    #[test]
    fn what_is_known_only_grows() {
        let known = Known::new([(0, "a".to_owned())].into_iter());
        let mut epochs = known.targets().next().unwrap().epochs();
        known.learn_map(&map(7, 3, &[]));
        assert!(epochs.has_changed().unwrap());
        assert_eq!((*epochs.borrow_and_update(), known.maps().borrow().epoch()), (3, 7));
        known.learn_map(&map(6, 2, &[]));
        assert!(!epochs.has_changed().unwrap(), "nobody is woken by what is old");
        assert_eq!((*epochs.borrow_and_update(), known.maps().borrow().epoch()), (3, 7));
        known.learn_map(&map(8, 4, &[]));
        assert_eq!((*epochs.borrow_and_update(), known.maps().borrow().epoch()), (4, 8));
    }

    #[test]
    fn a_place_is_left_when_all_who_were_there_are_removed() {
        use wire::NodeState::{Member, Removed};
        for (states, removed) in
            [(&[][..], false), (&[Member], false), (&[Removed], true), (&[Removed, Member], false)]
        {
            let known = Known::new(std::iter::empty());
            known.learn_map(&map(1, 1, states));
            assert_eq!(known.is_removed("127.0.0.1:1"), removed, "{states:?}");
            assert!(!known.is_removed("127.0.0.1:2"));
        }
    }
}
