//! One placement plan, as the meta leader makes it every round, for 100 nodes and 3,000 shards of three replicas:
//! at rest, with uneven leaders, and with a third replica to be placed for every shard.

use std::time::Duration;

use borough_node::placement::observe::Observed;
use borough_node::placement::plan::plan;
use borough_proto::wire;
use divan::{Bencher, black_box};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const NODES: u64 = 100;
const SHARDS: u32 = 3_000;

fn main() {
    divan::main();
}

/// Shards with `replicas` each, spread evenly over the nodes.
fn map(replicas: u64) -> wire::ClusterMap {
    let nodes = (1..=NODES).map(|id| wire::NodeInfo {
        id,
        zone: format!("zone-{}", id % 3),
        state: wire::NodeState::Member.into(),
        ..wire::NodeInfo::default()
    });
    let info = |id: u32, count: u64| wire::ShardInfo {
        id,
        epoch: 1,
        replicas: (0..count)
            .map(|position| wire::ReplicaInfo {
                id: u64::from(id) * 10 + position + 1,
                node: (u64::from(id) + position) % NODES + 1,
                role: wire::ReplicaRole::Voter.into(),
            })
            .collect(),
        ..wire::ShardInfo::default()
    };
    wire::ClusterMap {
        replication_factor: 3,
        nodes: nodes.collect(),
        shards: (0..SHARDS).map(|id| info(id, replicas)).collect(),
        meta: Some(info(SHARDS, 5)),
        ..wire::ClusterMap::default()
    }
}

/// All nodes report; each shard is led by its first replica, or all by the lowest of its nodes.
fn observed(map: &wire::ClusterMap, even: bool) -> Observed {
    let mut observed = Observed::new(Duration::from_secs(3_600), Duration::from_secs(7_200));
    let leader = |shard: &wire::ShardInfo| {
        let mut nodes = shard.replicas.iter().map(|replica| replica.node);
        if even { nodes.next() } else { nodes.min() }
    };
    for node in 1..=NODES {
        let held =
            map.shards.iter().filter(|shard| shard.replicas.iter().any(|replica| replica.node == node));
        let replicas = held.map(|shard| wire::ReplicaReport {
            shard: shard.id,
            term: 1,
            leader: leader(shard) == Some(node),
            ..wire::ReplicaReport::default()
        });
        observed.report(wire::NodeReport {
            node,
            replicas: replicas.collect(),
            ..wire::NodeReport::default()
        });
    }
    observed
}

fn run(bencher: Bencher, map: &wire::ClusterMap, even: bool, rests: bool) {
    let observed = observed(map, even);
    assert_eq!(plan(map, &observed).is_empty(), rests);
    bencher.bench_local(|| plan(black_box(map), black_box(&observed)));
}

#[divan::bench]
fn at_rest(bencher: Bencher) {
    run(bencher, &map(3), true, true);
}

#[divan::bench]
fn leaders_uneven(bencher: Bencher) {
    run(bencher, &map(3), false, false);
}

#[divan::bench]
fn a_replica_missing_everywhere(bencher: Bencher) {
    run(bencher, &map(2), true, false);
}
