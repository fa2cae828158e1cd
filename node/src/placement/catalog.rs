//! The catalog: nodes, collections and the cluster map, replicated by the meta group.
//!
//! Pure (I5): `apply` is a function of the catalog and the command. Epochs only grow (I6), ids are given out once.

use borough_proto::http_api::valid_collection_name;
use borough_proto::{GroupId, ShardId, key, limits, wire};
use wire::catalog_command::Change;

/// The collection that exists from the start.
const FIRST_COLLECTION: &str = "users";

/// Applies `command`; an unknown one of a newer build changes nothing.
pub fn apply(catalog: &mut wire::Catalog, command: wire::CatalogCommand) -> wire::CatalogReply {
    let reply = match command.change {
        Some(Change::Init(init)) => initialize(catalog, init),
        Some(Change::Join(join)) => join_node(catalog, &join),
        Some(Change::PutCollection(put)) => put_collection(catalog, put.collection.unwrap_or_default()),
        Some(Change::DeleteCollection(delete)) => delete_collection(catalog, &delete.name),
        Some(Change::AddReplica(add)) => add_replica(catalog, &add),
        Some(Change::PromoteReplica(promote)) => promote_replica(catalog, &promote),
        None => refuse("the command is not known to this build"),
    };
    let epoch = catalog.map.as_ref().map_or(0, |map| map.epoch);
    wire::CatalogReply { epoch, ..reply }
}

fn refuse(reason: impl Into<String>) -> wire::CatalogReply {
    wire::CatalogReply { refused: reason.into(), ..Default::default() }
}

fn changed() -> wire::CatalogReply {
    wire::CatalogReply { changed: true, ..Default::default() }
}

fn initialize(catalog: &mut wire::Catalog, init: wire::InitCatalog) -> wire::CatalogReply {
    if catalog.map.is_some() {
        return refuse("the cluster is initialised already");
    }
    let join = init.node.unwrap_or_default();
    let node = 1;
    let voter = |id| wire::ReplicaInfo { id, node, role: wire::ReplicaRole::Voter.into() };
    let mut next_replica = init.meta_replica + 1;
    let shards = key::ranges(init.shards.clamp(1, limits::SHARDS_MAX))
        .into_iter()
        .zip(0..)
        .map(|((first, last), id)| {
            let replica = voter(next_replica);
            next_replica += 1;
            wire::ShardInfo { id, first, last, epoch: 1, replicas: vec![replica] }
        })
        .collect();
    let meta =
        wire::ShardInfo { id: 0, first: 0, last: 0, epoch: 1, replicas: vec![voter(init.meta_replica)] };
    let users = wire::CollectionInfo { id: 1, name: FIRST_COLLECTION.to_owned(), ..Default::default() };
    catalog.incarnations.insert(join.incarnation.clone(), node);
    catalog.next_node = node + 1;
    catalog.next_replica = next_replica;
    catalog.map = Some(wire::ClusterMap {
        cluster_id: init.cluster_id,
        epoch: 1,
        replication_factor: init.replicas.clamp(1, limits::REPLICAS_MAX),
        nodes: vec![node_info(node, &join)],
        shards,
        collections: vec![users],
        meta: Some(meta),
        next_collection: 2,
    });
    wire::CatalogReply { node, ..changed() }
}

fn node_info(id: u64, join: &wire::JoinRequest) -> wire::NodeInfo {
    wire::NodeInfo {
        id,
        addr: join.addr.clone(),
        admin_addr: join.admin_addr.clone(),
        zone: join.zone.clone(),
        version: join.version.clone(),
        state: wire::NodeState::Member.into(),
    }
}

fn join_node(catalog: &mut wire::Catalog, join: &wire::JoinRequest) -> wire::CatalogReply {
    let Some(map) = catalog.map.as_mut() else { return refuse("the cluster is not initialised") };
    if !join.cluster_id.is_empty() && join.cluster_id != map.cluster_id {
        return refuse(format!(
            "the node belongs to cluster {}, this is {}",
            join.cluster_id, map.cluster_id
        ));
    }
    let known = catalog.incarnations.get(&join.incarnation).copied();
    let id = match (known, join.node) {
        (Some(known), claimed) if claimed != 0 && claimed != known => {
            return refuse(format!("the data directory was given node id {known}, not {claimed}"));
        }
        (Some(known), _) => known,
        (None, 0) => {
            let id = catalog.next_node;
            catalog.next_node += 1;
            catalog.incarnations.insert(join.incarnation.clone(), id);
            id
        }
        (None, claimed) => return refuse(format!("node {claimed} is not known to this cluster")),
    };
    let info = node_info(id, join);
    let changed = match map.nodes.iter_mut().find(|node| node.id == id) {
        Some(node) if node.state() == wire::NodeState::Removed => {
            return refuse(format!(
                "node {id} was removed from the cluster; start it with an empty data directory"
            ));
        }
        Some(node) => {
            let info = wire::NodeInfo { state: node.state, ..info };
            let changed = *node != info;
            *node = info;
            changed
        }
        None => {
            map.nodes.push(info);
            true
        }
    };
    if changed {
        map.epoch += 1;
    }
    wire::CatalogReply { node: id, changed, ..Default::default() }
}

fn put_collection(catalog: &mut wire::Catalog, wanted: wire::CollectionInfo) -> wire::CatalogReply {
    let Some(map) = catalog.map.as_mut() else { return refuse("the cluster is not initialised") };
    if !valid_collection_name(&wanted.name) {
        return refuse(format!("{:?} is not a collection name", wanted.name));
    }
    if let Some(info) = map.collections.iter_mut().find(|info| info.name == wanted.name) {
        if info.sort_key != wanted.sort_key {
            return refuse("sortKey: cannot be changed after the collection was created");
        }
        let wanted = wire::CollectionInfo { id: info.id, ..wanted };
        if *info != wanted {
            *info = wanted.clone();
            map.epoch += 1;
        }
        return wire::CatalogReply { collection: Some(wanted), ..Default::default() };
    }
    if map.collections.len() >= limits::COLLECTIONS_MAX {
        return refuse(format!(
            "the cluster has {} collections, the most there can be",
            limits::COLLECTIONS_MAX
        ));
    }
    let info = wire::CollectionInfo { id: map.next_collection, ..wanted };
    map.next_collection += 1;
    map.collections.push(info.clone());
    map.epoch += 1;
    wire::CatalogReply { collection: Some(info), ..changed() }
}

fn delete_collection(catalog: &mut wire::Catalog, name: &str) -> wire::CatalogReply {
    let Some(map) = catalog.map.as_mut() else { return refuse("the cluster is not initialised") };
    let before = map.collections.len();
    map.collections.retain(|info| info.name != name);
    if map.collections.len() == before {
        return wire::CatalogReply::default();
    }
    map.epoch += 1;
    changed()
}

/// The map's entry of a group.
fn group_mut(map: &mut wire::ClusterMap, group: u32) -> Option<&mut wire::ShardInfo> {
    match GroupId(group).shard() {
        Some(ShardId(shard)) => map.shards.iter_mut().find(|info| info.id == shard),
        None => map.meta.as_mut(),
    }
}

fn add_replica(catalog: &mut wire::Catalog, add: &wire::AddReplica) -> wire::CatalogReply {
    let id = catalog.next_replica;
    let Some(map) = catalog.map.as_mut() else { return refuse("the cluster is not initialised") };
    if !map.nodes.iter().any(|node| node.id == add.node) {
        return refuse(format!("there is no node {}", add.node));
    }
    let Some(group) = group_mut(map, add.group) else {
        return refuse(format!("there is no group {}", add.group));
    };
    if group.epoch != add.epoch || group.replicas.iter().any(|replica| replica.node == add.node) {
        return wire::CatalogReply::default();
    }
    group.replicas.push(wire::ReplicaInfo { id, node: add.node, role: wire::ReplicaRole::Learner.into() });
    group.epoch += 1;
    map.epoch += 1;
    catalog.next_replica += 1;
    changed()
}

fn promote_replica(catalog: &mut wire::Catalog, promote: &wire::PromoteReplica) -> wire::CatalogReply {
    let Some(map) = catalog.map.as_mut() else { return refuse("the cluster is not initialised") };
    let Some(group) = group_mut(map, promote.group) else {
        return refuse(format!("there is no group {}", promote.group));
    };
    if group.epoch != promote.epoch {
        return wire::CatalogReply::default();
    }
    let learner = group
        .replicas
        .iter_mut()
        .find(|replica| replica.id == promote.replica && replica.role() == wire::ReplicaRole::Learner);
    let Some(learner) = learner else { return wire::CatalogReply::default() };
    learner.role = wire::ReplicaRole::Voter.into();
    group.epoch += 1;
    map.epoch += 1;
    changed()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn join(incarnation: &str, node: u64) -> wire::JoinRequest {
        wire::JoinRequest {
            node,
            addr: format!("127.0.0.1:{}", incarnation.len()),
            incarnation: incarnation.to_owned(),
            ..Default::default()
        }
    }

    fn command(change: Change) -> wire::CatalogCommand {
        wire::CatalogCommand { change: Some(change) }
    }

    fn initialized() -> wire::Catalog {
        let mut catalog = wire::Catalog::default();
        let init = wire::InitCatalog {
            cluster_id: "c".to_owned(),
            shards: 4,
            replicas: 3,
            node: Some(join("first", 0)),
            meta_replica: 1,
        };
        assert!(apply(&mut catalog, command(Change::Init(init.clone()))).changed);
        let again = apply(&mut catalog, command(Change::Init(init)));
        assert!(!again.refused.is_empty(), "a second init must be refused");
        catalog
    }

    #[test]
    fn a_resent_join_gets_the_same_id_and_a_foreign_id_is_refused() {
        let mut catalog = initialized();
        let first = apply(&mut catalog, command(Change::Join(join("second", 0))));
        let again = apply(&mut catalog, command(Change::Join(join("second", 0))));
        assert_eq!((first.node, again.node, again.changed), (2, 2, false));
        assert_eq!(first.epoch, again.epoch);
        let moved = wire::JoinRequest { addr: "127.0.0.1:99".to_owned(), ..join("second", 2) };
        assert!(apply(&mut catalog, command(Change::Join(moved))).changed);
        for bad in [join("second", 3), join("unknown", 2)] {
            assert!(!apply(&mut catalog, command(Change::Join(bad))).refused.is_empty());
        }
        let other = wire::JoinRequest { cluster_id: "d".to_owned(), ..join("third", 0) };
        assert!(!apply(&mut catalog, command(Change::Join(other))).refused.is_empty());
    }

    #[test]
    fn collections_keep_their_ids_and_sort_key() {
        let mut catalog = initialized();
        let put = |catalog: &mut wire::Catalog, name: &str, sort_key| {
            let collection = wire::CollectionInfo { name: name.to_owned(), sort_key, ..Default::default() };
            apply(
                catalog,
                command(Change::PutCollection(wire::PutCollectionRequest { collection: Some(collection) })),
            )
        };
        let posts = put(&mut catalog, "posts", true).collection.unwrap().id;
        assert!(!put(&mut catalog, "posts", false).refused.is_empty());
        assert!(!put(&mut catalog, "Posts", false).refused.is_empty());
        let delete = wire::DeleteCollectionRequest { name: "posts".to_owned() };
        assert!(apply(&mut catalog, command(Change::DeleteCollection(delete.clone()))).changed);
        assert!(!apply(&mut catalog, command(Change::DeleteCollection(delete))).changed);
        assert!(put(&mut catalog, "posts", true).collection.unwrap().id > posts);
    }

    #[test]
    fn a_replica_is_added_once_and_promoted_once() {
        let mut catalog = initialized();
        apply(&mut catalog, command(Change::Join(join("second", 0))));
        let add = wire::AddReplica { group: 2, epoch: 1, node: 2 };
        assert!(apply(&mut catalog, command(Change::AddReplica(add))).changed);
        assert!(!apply(&mut catalog, command(Change::AddReplica(add))).changed);
        let shard = catalog.map.as_ref().unwrap().shards[1].clone();
        assert_eq!((shard.epoch, shard.replicas.len()), (2, 2));
        let promote = wire::PromoteReplica { group: 2, epoch: 2, replica: shard.replicas[1].id };
        assert!(apply(&mut catalog, command(Change::PromoteReplica(promote))).changed);
        assert!(!apply(&mut catalog, command(Change::PromoteReplica(promote))).changed);
    }

    proptest! {
        /// I6, and ids are never given out twice.
        #[test]
        fn epochs_only_grow_and_replica_ids_are_unique(steps in proptest::collection::vec((0_u8..4, 0_u64..6, 0_u32..6, 0_u64..6), 0..60)) {
            let mut catalog = initialized();
            for (kind, node, group, epoch) in steps {
                let change = match kind {
                    0 => Change::Join(join(&format!("n{node}"), 0)),
                    1 => Change::AddReplica(wire::AddReplica { group, epoch, node }),
                    2 => Change::PromoteReplica(wire::PromoteReplica { group, epoch, replica: node }),
                    _ => Change::DeleteCollection(wire::DeleteCollectionRequest { name: "users".to_owned() }),
                };
                let before = catalog.clone();
                let reply = apply(&mut catalog, command(change));
                let (old, new) = (before.map.unwrap(), catalog.map.clone().unwrap());
                prop_assert!(new.epoch >= old.epoch);
                prop_assert_eq!(reply.changed, new != old);
                for (old, new) in old.shards.iter().zip(&new.shards) {
                    prop_assert!(new.epoch >= old.epoch && (new.epoch > old.epoch) == (new != old));
                }
                let mut ids: Vec<_> = new.shards.iter().chain(&new.meta).flat_map(|shard| &shard.replicas).map(|replica| replica.id).collect();
                let all = ids.len();
                ids.sort_unstable();
                ids.dedup();
                prop_assert_eq!(ids.len(), all);
            }
        }
    }
}
