//! The catalog: nodes, collections and the cluster map, replicated by the meta group.
//!
//! Pure (I5): `apply` is a function of the catalog and the command. Epochs only grow (I6), ids are given out once.

use borough_proto::http_api::valid_collection_name;
use borough_proto::{GroupId, ShardId, key, limits, wire};
use wire::catalog_command::Change;

pub mod operations;

/// The collection that exists from the start.
const FIRST_COLLECTION: &str = "users";

/// Largest id of a cluster's first replica.
const FIRST_REPLICA_MAX: u64 = u64::MAX / 2;

/// Applies `command`; an unknown one of a newer build changes nothing.
pub fn apply(catalog: &mut wire::Catalog, command: wire::CatalogCommand) -> wire::CatalogReply {
    let reply = match command.change {
        Some(Change::Init(init)) => initialize(catalog, init),
        Some(Change::Join(join)) => join_node(catalog, &join),
        Some(Change::PutCollection(put)) => put_collection(catalog, put.collection.unwrap_or_default()),
        Some(Change::DeleteCollection(delete)) => delete_collection(catalog, &delete.name),
        Some(Change::StartOperation(start)) => operations::start(catalog, start),
        Some(Change::BeginMove(begin)) => operations::begin_move(catalog, &begin),
        Some(Change::FinishMove(finish)) => operations::finish_move(catalog, &finish),
        Some(Change::UndoMove(undo)) => operations::undo_move(catalog, &undo),
        Some(Change::ControlOperation(control)) => operations::control(catalog, &control),
        Some(Change::EndOperation(end)) => operations::end(catalog, &end),
        Some(Change::Undrain(undrain)) => operations::undrain(catalog, undrain.node),
        Some(Change::RemoveNode(remove)) => operations::remove_node(catalog, remove.node),
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
    // Ids are counted up from there: a log that was written by something else must not bring them to their end (I10).
    if init.meta_replica > FIRST_REPLICA_MAX {
        return refuse(format!("replica id {} leaves none to give out", init.meta_replica));
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
            // A rebalance that was cancelled was one of other nodes.
            catalog.balance_held = false;
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

#[cfg(test)]
mod tests;
