//! Cluster maps as routers and nodes get them: one that is taken finds a shard for every hash, and an update of it leads
//! to the map that it was made of.

use borough_proto::key::hash_id;
use borough_proto::{ClusterMap, wire};
use bytes::Bytes;
use prost::Message as _;

use super::{MESSAGES_MAX, delimited};

pub fn run(bytes: &[u8]) {
    let mut rest = Bytes::copy_from_slice(bytes);
    let Ok(first) = wire::ClusterMap::decode_length_delimited(&mut rest) else { return };
    let Ok(mut map) = ClusterMap::try_from(first) else { return };
    whole(&map);
    let updates: Vec<wire::MapUpdate> = delimited(&rest);
    for update in updates.into_iter().take(MESSAGES_MAX) {
        let Ok(next) = map.updated(update) else { continue };
        whole(&next);
        // Holders keep what they have when it is newer: that is their business, not the map's.
        if next.epoch() < map.epoch() {
            continue;
        }
        map = next;
    }
}

fn whole(map: &ClusterMap) {
    for hash in [0, 1, u64::MAX / 2, u64::MAX, hash_id("a"), hash_id("b")] {
        match map.shard_of_hash(hash) {
            Some(shard) => assert!((shard.first..=shard.last).contains(&hash), "{hash:#x} in {shard:?}"),
            None => assert!(map.shards().is_empty(), "no shard holds {hash:#x}"),
        }
    }
    let full = map.update_since(&ClusterMap::default());
    let again = ClusterMap::default().updated(full);
    assert_eq!(again.map(|again| again.wire().clone()), Ok(map.wire().clone()));
}
