//! Commands of the catalog, as the meta group's log may hold them: a cluster that was made keeps a map that can be used,
//! epochs only grow (I6), and no node id or replica id is given out twice.

use std::collections::BTreeSet;

use borough_node::placement::catalog::apply;
use borough_proto::ClusterMap;
use borough_proto::wire::{self, catalog_command::Change};

pub fn run(commands: &[wire::CatalogCommand]) {
    let mut catalog = wire::Catalog::default();
    // A log begins with the cluster; scripts that do not spend most of their commands on nothing.
    if !matches!(commands.first(), Some(wire::CatalogCommand { change: Some(Change::Init(_)) })) {
        apply(&mut catalog, init());
    }
    for command in commands {
        let before = catalog.clone();
        let reply = apply(&mut catalog, command.clone());
        let (was, is) = (epoch(&before), epoch(&catalog));
        assert!(is >= was, "epoch {was} became {is}");
        assert_eq!(reply.epoch, is);
        if before.map != catalog.map {
            assert!(is > was, "the map changed within epoch {is} by {command:?}");
        }
        if !reply.refused.is_empty() {
            assert_eq!(before, catalog, "refused, and changed: {}", reply.refused);
        }
        assert!(catalog.next_node >= before.next_node && catalog.next_replica >= before.next_replica);
        if let Some(map) = &catalog.map {
            usable(map, &catalog);
        }
    }
}

/// What starts a cluster of one node.
pub fn init() -> wire::CatalogCommand {
    let node = wire::JoinRequest {
        incarnation: "one".to_owned(),
        addr: "127.0.0.1:1".to_owned(),
        ..Default::default()
    };
    let init = wire::InitCatalog {
        cluster_id: "fuzz".to_owned(),
        shards: 2,
        replicas: 3,
        node: Some(node),
        meta_replica: 1,
    };
    wire::CatalogCommand { change: Some(Change::Init(init)) }
}

fn epoch(catalog: &wire::Catalog) -> u64 {
    catalog.map.as_ref().map_or(0, |map| map.epoch)
}

fn usable(map: &wire::ClusterMap, catalog: &wire::Catalog) {
    if let Err(error) = ClusterMap::try_from(map.clone()) {
        panic!("the catalog holds a map that cannot be used: {error}");
    }
    let (mut nodes, mut replicas) = (BTreeSet::new(), BTreeSet::new());
    for node in &map.nodes {
        assert!(
            node.id < catalog.next_node && nodes.insert(node.id),
            "node {} twice, or yet to come",
            node.id
        );
    }
    for replica in map.shards.iter().chain(&map.meta).flat_map(|group| &group.replicas) {
        let fresh = replica.id < catalog.next_replica && replicas.insert(replica.id);
        assert!(fresh, "replica {} twice, or yet to come", replica.id);
    }
}
