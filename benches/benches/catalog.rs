//! What the meta group has to do as the cluster grows: the size of the catalog, of the map and of its changes, and how long
//! its leader takes for a step of a move, a node's report, a look for the next steps and the status document.

#![expect(clippy::expect_used, clippy::indexing_slicing, reason = "a benchmark may end with a panic")]

use std::time::{Duration, Instant};

use borough_node::placement::observe::Observed;
use borough_node::placement::plan::{self, Allowed};
use borough_node::placement::{catalog, status};
use borough_proto::wire::catalog_command::Change;
use borough_proto::{ClusterMap, wire};
use prost::Message as _;

/// Nodes and shards.
const SIZES: [(u64, u32); 4] = [(10, 320), (100, 3_200), (300, 9_600), (1_000, 16_384)];
const REPLICAS: u32 = 3;
const TIMES: usize = 15;

/// A cluster in which each node has what is even.
fn cluster(nodes: u64, shards: u32) -> wire::Catalog {
    let mut catalog = wire::Catalog::default();
    let mut apply = |change| {
        let reply = catalog::apply(&mut catalog, wire::CatalogCommand { change: Some(change) });
        assert_eq!(reply.refused, "");
    };
    let join = |node: u64| wire::JoinRequest {
        incarnation: format!("incarnation-{node}"),
        addr: format!("10.{}.{}.1:7070", node / 250, node % 250),
        admin_addr: format!("10.{}.{}.1:7071", node / 250, node % 250),
        zone: format!("zone-{}", node % 3),
        ..Default::default()
    };
    apply(Change::Init(wire::InitCatalog {
        cluster_id: "a cluster that is measured".to_owned(),
        shards,
        replicas: REPLICAS,
        node: Some(join(1)),
        meta_replica: 1,
    }));
    for node in 2..=nodes {
        apply(Change::Join(join(node)));
    }
    let map = catalog.map.as_mut().expect("it was initialised");
    for info in &mut map.shards {
        let place = |replica: u64| wire::ReplicaInfo {
            id: u64::from(info.id) * 10 + replica + 100,
            node: (u64::from(info.id) * 7 + replica * 331) % nodes + 1,
            role: wire::ReplicaRole::Voter.into(),
        };
        info.replicas = (0..u64::from(REPLICAS)).map(place).collect();
    }
    catalog.next_replica = 1_000_000;
    catalog
}

fn reports(map: &wire::ClusterMap) -> Vec<wire::NodeReport> {
    let replica = |info: &wire::ShardInfo, replica: &wire::ReplicaInfo| wire::ReplicaReport {
        shard: info.id,
        replica: replica.id,
        leader: info.replicas.first().is_some_and(|first| first.id == replica.id),
        term: 17,
        applied_index: 123_456_789,
        keys: 61_035,
        bytes: 18_310_546,
        reads_per_second: 812.5,
        writes_per_second: 40.25,
        voters: info.replicas.iter().map(|replica| replica.id).collect(),
        learners: Vec::new(),
        meta: false,
    };
    let mut reports: Vec<wire::NodeReport> =
        map.nodes.iter().map(|node| wire::NodeReport { node: node.id, ..Default::default() }).collect();
    for info in &map.shards {
        for held in &info.replicas {
            let at = usize::try_from(held.node - 1).unwrap_or_default();
            if let Some(report) = reports.get_mut(at) {
                report.replicas.push(replica(info, held));
            }
        }
    }
    reports
}

/// The median time of `work`, in milliseconds.
fn median<T>(mut work: impl FnMut() -> T) -> f64 {
    let mut times: Vec<f64> = (0..TIMES)
        .map(|_| {
            let begin = Instant::now();
            std::hint::black_box(work());
            begin.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times.get(TIMES / 2).copied().unwrap_or_default()
}

fn main() {
    println!(
        "nodes shards | bytes: catalog, map, one change of it, a report, status | ms: a step, a report, a look, status"
    );
    for (nodes, shards) in SIZES {
        let mut catalog = cluster(nodes, shards);
        let map = catalog.map.clone().unwrap_or_default();
        let reports = reports(&map);
        let mut observed = Observed::new(Duration::from_secs(60), Duration::from_secs(120));
        observed.lead(1);
        for report in &reports {
            observed.report(report.clone());
        }
        // A move under way, as there is whenever something changes.
        let (from, to) = (map.shards[0].replicas[0].node, 1 + map.shards[0].replicas[2].node % nodes);
        let moves = vec![wire::Move { group: 1, from, to, bytes: 18_310_546, ..Default::default() }];
        let start = wire::StartOperation { asked: true, kind: 1, moves, ..Default::default() };
        catalog::apply(&mut catalog, wire::CatalogCommand { change: Some(Change::StartOperation(start)) });
        let begin = wire::BeginMove { operation: 1, r#move: 0, epoch: map.shards[0].epoch };
        let command = wire::CatalogCommand { change: Some(Change::BeginMove(begin)) };
        let before = ClusterMap::try_from(map.clone()).expect("a map");
        // What a member of the meta group does for one entry: a copy, the change, the record, the map for all.
        let step = || {
            let mut next = catalog.clone();
            catalog::apply(&mut next, command.clone());
            let record = next.encode_to_vec();
            let map = ClusterMap::try_from(next.map.clone().unwrap_or_default());
            (next, record, map)
        };
        let (next, record, after) = step();
        let after = after.expect("a map");
        assert!(after.epoch() > before.epoch(), "the step changed nothing");
        let change = after.update_since(&before).encoded_len();
        let report = reports.first().cloned().unwrap_or_default();
        let told = median(|| observed.report(report.clone()));
        let document = || serde_json::to_string(&status::document(&next, &observed)).expect("a document");
        let document_bytes = document().len();
        let look = Allowed { judge: true, plan: false, rebalance: true, leaders: false, moves_max: 4 };
        println!(
            "{nodes:>5} {shards:>6} | {:>9} {:>9} {change:>6} {:>7} {document_bytes:>9} | {:>7.2} {:>7.3} {:>7.2} {:>7.2}",
            record.len(),
            map.encoded_len(),
            report.encoded_len(),
            median(step),
            told,
            median(|| plan::next(&catalog.clone(), &observed, look)),
            median(document),
        );
    }
}
