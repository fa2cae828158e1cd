//! How long plans take and how close they come to the fewest moves: joins, drains and failures of nodes, one after
//! the other, over 1,000 nodes and 30,000 shards.

#![expect(clippy::indexing_slicing, reason = "a benchmark may end with a panic")]

use std::collections::BTreeMap;
use std::time::Instant;

use borough_node::placement::balance::{
    Cluster, Group, Node, Plan, Standing, moves_lower_bound, plan, spread_leaders,
};
use borough_proto::{GroupId, NodeId};

const NODES: u64 = 1_000;
const SHARDS: u32 = 30_000;

/// The splitmix64 generator.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

fn apply(cluster: &mut Cluster, plan: &Plan) {
    let places: BTreeMap<GroupId, usize> =
        cluster.groups.iter().enumerate().map(|(at, g)| (g.id, at)).collect();
    for of in &plan.moves {
        let group = &mut cluster.groups[places[&of.group]];
        group.replicas.retain(|id| Some(*id) != of.from);
        group.replicas.extend(of.to);
    }
    for of in &plan.transfers {
        cluster.groups[places[&of.group]].leader = Some(of.to);
    }
}

struct Run {
    cluster: Cluster,
    zones: u64,
    next: u64,
    random: Random,
}

impl Run {
    fn join(&mut self, count: u64) {
        for id in self.next..self.next + count {
            let zone = if self.zones < 2 { String::new() } else { format!("zone-{}", id % self.zones) };
            self.cluster.nodes.push(Node { id: NodeId(id), zone, standing: Standing::Open });
        }
        self.next += count;
    }

    fn stand(&mut self, count: usize, standing: Standing) {
        for _ in 0..count {
            let open: Vec<usize> = (0..self.cluster.nodes.len())
                .filter(|at| self.cluster.nodes[*at].standing == Standing::Open)
                .collect();
            let at = open[self.random.next() as usize % open.len()];
            self.cluster.nodes[at].standing = standing;
        }
    }

    fn event(&mut self, name: &str, after: impl FnOnce(&mut Cluster)) {
        let mut times = Vec::new();
        let mut planned = Plan::default();
        for _ in 0..5 {
            let start = Instant::now();
            planned = plan(&self.cluster);
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        let bound = moves_lower_bound(&self.cluster);
        let bytes: u64 = planned.moves.iter().map(|of| of.bytes).sum();
        apply(&mut self.cluster, &planned);
        let again = plan(&self.cluster);
        assert!(again.moves.is_empty() && again.transfers.is_empty(), "a second plan has something to do");
        assert!(spread_leaders(&self.cluster).is_empty());
        self.cluster.nodes.retain(|node| node.standing != Standing::Leaving);
        println!(
            "{name:<28} {:>7} {bound:>7} {:>9.1} {:>9} {:>7.1}",
            planned.moves.len(),
            bytes as f64 / f64::from(1 << 30),
            planned.transfers.len(),
            times[2]
        );
        after(&mut self.cluster);
    }
}

fn run(zones: u64, factor: usize) {
    println!();
    println!("{NODES} nodes, {SHARDS} shards, {factor} replicas, {zones} zone(s)");
    println!("event                          moves   bound       GiB transfers      ms");
    let mut random = Random(7);
    let groups = (0..SHARDS)
        .map(|id| Group {
            id: GroupId(id),
            bytes: (16 << 20) + random.next() % (96 << 20),
            load: (random.next() % 1_000) as f64,
            replicas: Vec::new(),
            leader: None,
        })
        .collect();
    let cluster = Cluster { replication_factor: factor, nodes: Vec::new(), groups };
    let mut run = Run { cluster, zones, next: 0, random };
    run.join(NODES);
    let elect = |cluster: &mut Cluster| {
        for group in &mut cluster.groups {
            group.leader = group.replicas.first().copied();
        }
    };
    run.event("first placement", elect);
    run.event("first leaders", |_| ());
    run.join(1);
    run.event("join 1", |_| ());
    run.stand(1, Standing::Leaving);
    run.event("drain 1", |_| ());
    run.stand(10, Standing::Closed);
    run.event("10 silent", |_| ());
    run.cluster.nodes.iter_mut().filter(|n| n.standing == Standing::Closed).for_each(|n| {
        n.standing = Standing::Leaving;
    });
    run.event("the 10 fail", |_| ());
    run.join(10);
    run.event("join 10", |_| ());
    run.stand(100, Standing::Leaving);
    run.event("drain 100", |_| ());
    run.join(100);
    run.event("join 100", |_| ());
    run.stand(1, Standing::Leaving);
    run.join(1);
    run.event("replace 1", |_| ());
    run.cluster.replication_factor = factor + 2;
    run.event("two more replicas", |_| ());
    run.cluster.replication_factor = factor;
    run.event("two fewer replicas", |_| ());
    run.stand(500, Standing::Leaving);
    run.event("drain 500", |_| ());
    run.join(500);
    run.event("join 500", |_| ());
}

fn main() {
    run(1, 3);
    run(3, 3);
    run(2, 3);
    run(NODES, 3);
}
