use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::placement::catalog;

fn observed(nodes: &[u64], leaders: &[(u32, u64)]) -> Observed {
    let mut observed = Observed::new(Duration::from_secs(3), Duration::from_secs(60));
    for &node in nodes {
        let replicas = leaders
            .iter()
            .filter(|(_, leader)| *leader == node)
            .map(|&(shard, _)| wire::ReplicaReport { shard, leader: true, term: 1, ..Default::default() })
            .collect();
        observed.report(wire::NodeReport { node, replicas, ..Default::default() });
    }
    observed
}

fn cluster(nodes: u64, shards: u32) -> wire::Catalog {
    let mut catalog = wire::Catalog::default();
    let join = |node: u64| wire::JoinRequest { incarnation: format!("i{node}"), ..Default::default() };
    let init = wire::InitCatalog {
        cluster_id: "c".to_owned(),
        shards,
        replicas: 3,
        node: Some(join(1)),
        meta_replica: 1,
    };
    let mut apply = |change| catalog::apply(&mut catalog, wire::CatalogCommand { change: Some(change) });
    apply(wire::catalog_command::Change::Init(init));
    for node in 2..=nodes {
        apply(wire::catalog_command::Change::Join(join(node)));
    }
    catalog
}

/// Carries the steps out as the driver does, until nothing is left.
fn run(catalog: &mut wire::Catalog, observed: &Observed) -> usize {
    for round in 0..10_000 {
        let steps = plan(catalog.map.as_ref().unwrap(), observed);
        if steps.is_empty() {
            return round;
        }
        for step in steps {
            let change = match step {
                Step::AddReplica { group, epoch, node } => {
                    wire::catalog_command::Change::AddReplica(wire::AddReplica {
                        group: group.get(),
                        epoch,
                        node: node.get(),
                    })
                }
                Step::Promote { group, epoch, learner, .. } => {
                    wire::catalog_command::Change::PromoteReplica(wire::PromoteReplica {
                        group: group.get(),
                        epoch,
                        replica: learner.get(),
                    })
                }
                Step::Transfer { .. } => return round,
            };
            assert!(catalog::apply(catalog, wire::CatalogCommand { change: Some(change) }).changed);
        }
    }
    panic!("the plan does not come to rest");
}

proptest! {
    #[test]
    fn replication_grows_to_its_target_one_replica_a_node(nodes in 1_u64..8, shards in 1_u32..40) {
        let mut catalog = cluster(nodes, shards);
        run(&mut catalog, &observed(&(1..=nodes).collect::<Vec<_>>(), &[]));
        let map = catalog.map.unwrap();
        for info in &map.shards {
            prop_assert_eq!(info.replicas.len() as u64, nodes.min(3));
            let mut on: Vec<_> = info.replicas.iter().map(|replica| replica.node).collect();
            on.sort_unstable();
            on.dedup();
            prop_assert_eq!(on.len(), info.replicas.len());
            prop_assert!(info.replicas.iter().all(|replica| replica.role() == wire::ReplicaRole::Voter));
        }
        let meta = map.meta.unwrap().replicas.len() as u64;
        prop_assert_eq!(meta, match nodes { 1..=3 => nodes, 4 => 3, _ => 5 });
    }

    #[test]
    fn leaders_come_within_one_of_even(nodes in 1_u64..4, owners in proptest::collection::vec(0_u64..3, 1..40)) {
        let mut catalog = cluster(nodes, owners.len() as u32);
        let all: Vec<_> = (1..=nodes).collect();
        run(&mut catalog, &observed(&all, &[]));
        let mut leaders: Vec<(u32, u64)> = owners.iter().zip(0..).map(|(owner, shard)| (shard, owner % nodes + 1)).collect();
        let map = catalog.map.unwrap();
        let mut moves = 0;
        loop {
            let steps = plan(&map, &observed(&all, &leaders));
            if steps.is_empty() { break; }
            for step in steps {
                let Step::Transfer { group, to } = step else { panic!("{step:?}") };
                let shard = group.shard().unwrap().get();
                let node = map.shards[shard as usize].replicas.iter().find(|replica| replica.id == to.get()).unwrap().node;
                leaders[shard as usize].1 = node;
                moves += 1;
            }
            prop_assert!(moves <= owners.len(), "leaders wander");
        }
        let count = |node: u64| leaders.iter().filter(|(_, leader)| *leader == node).count();
        let (least, most) = (all.iter().map(|&node| count(node)).min().unwrap(), all.iter().map(|&node| count(node)).max().unwrap());
        prop_assert!(most - least <= 1, "{least}..{most}");
    }
}

#[test]
fn a_zone_without_a_replica_goes_first() {
    let mut catalog = cluster(4, 8);
    for (node, zone) in catalog.map.as_mut().unwrap().nodes.iter_mut().zip(["a", "a", "b", "c"]) {
        node.zone = zone.to_owned();
    }
    run(&mut catalog, &observed(&[1, 2, 3, 4], &[]));
    for info in &catalog.map.unwrap().shards {
        let nodes: Vec<_> = info.replicas.iter().map(|replica| replica.node).collect();
        assert!(nodes.contains(&3) && nodes.contains(&4), "{nodes:?}");
    }
}

#[test]
fn silent_and_leaving_nodes_get_nothing() {
    let catalog = cluster(3, 4);
    let steps = plan(catalog.map.as_ref().unwrap(), &observed(&[1], &[]));
    assert_eq!(steps, Vec::new());
    let mut catalog = cluster(2, 4);
    run(&mut catalog, &observed(&[1, 2], &[]));
    let mut leaving = observed(&[1, 2], &[(0, 1), (1, 1), (2, 1), (3, 1)]);
    leaving.report(wire::NodeReport { node: 2, leaving: true, ..Default::default() });
    assert_eq!(plan(catalog.map.as_ref().unwrap(), &leaving), Vec::new());
}
