//! Every rule as a property over random clusters, against a slow reference where there is an optimum to reach.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;

fn node(id: u64, zone: &str, standing: Standing) -> Node {
    Node { id: NodeId(id), zone: zone.into(), standing }
}

fn open_nodes(count: u64) -> Vec<Node> {
    (1..=count).map(|id| node(id, "", Standing::Open)).collect()
}

fn group(id: u32, bytes: u64, replicas: &[u64]) -> Group {
    let replicas: Vec<NodeId> = replicas.iter().copied().map(NodeId).collect();
    Group { id: GroupId(id), bytes, load: 1.0, leader: replicas.first().copied(), replicas }
}

/// Carries out the plan step by step; a step that can't be done, or that leaves too few replicas, is an error.
fn apply(cluster: &Cluster, plan: &Plan) -> Result<Cluster, String> {
    let mut after = cluster.clone();
    for group in &mut after.groups {
        let mut seen = BTreeSet::new();
        group.replicas.retain(|id| seen.insert(*id));
    }
    let open: BTreeSet<NodeId> =
        cluster.nodes.iter().filter(|n| n.standing == Standing::Open).map(|n| n.id).collect();
    for of in &plan.moves {
        let group = after.groups.iter_mut().find(|g| g.id == of.group).ok_or("no such group")?;
        let before = group.replicas.len();
        if let Some(from) = of.from {
            let at = group.replicas.iter().position(|id| *id == from).ok_or(format!("not there: {of:?}"))?;
            group.replicas.remove(at);
        }
        if let Some(to) = of.to {
            if group.replicas.contains(&to) || !open.contains(&to) || of.from == Some(to) {
                return Err(format!("cannot go there: {of:?}"));
            }
            group.replicas.push(to);
        }
        if of.from.is_none() && of.to.is_none() {
            return Err(format!("says nothing: {of:?}"));
        }
        if group.replicas.len() < before && group.replicas.len() < cluster.replication_factor.max(1) {
            return Err(format!("too few left: {of:?}"));
        }
        let bytes = if of.to.is_some() { group.bytes } else { 0 };
        if of.bytes != bytes {
            return Err(format!("wrong size: {of:?}"));
        }
    }
    let mut done = BTreeSet::new();
    for of in &plan.transfers {
        let group = after.groups.iter_mut().find(|g| g.id == of.group).ok_or("no such group")?;
        if group.leader != Some(of.from) || !group.replicas.contains(&of.to) || of.from == of.to {
            return Err(format!("cannot lead: {of:?}"));
        }
        if !done.insert(of.group) {
            return Err(format!("twice: {of:?}"));
        }
        group.leader = Some(of.to);
    }
    Ok(after)
}

fn standing(cluster: &Cluster, id: NodeId) -> Standing {
    cluster.nodes.iter().find(|n| n.id == id).map_or(Standing::Leaving, |n| n.standing)
}

fn zone(cluster: &Cluster, id: NodeId) -> &str {
    cluster.nodes.iter().find(|n| n.id == id).map_or("", |n| &n.zone)
}

fn of_standing(cluster: &Cluster, wanted: Standing) -> Vec<NodeId> {
    cluster.nodes.iter().filter(|n| n.standing == wanted).map(|n| n.id).collect()
}

/// Zones with a node that stays.
fn zones(cluster: &Cluster) -> BTreeSet<&str> {
    cluster.nodes.iter().filter(|n| n.standing != Standing::Leaving).map(|n| &n.zone[..]).collect()
}

fn replicas_on(cluster: &Cluster, id: NodeId) -> usize {
    cluster.groups.iter().filter(|g| g.replicas.contains(&id)).count()
}

fn leaders_on(cluster: &Cluster, id: NodeId) -> usize {
    cluster.groups.iter().filter(|g| g.leader == Some(id) && g.replicas.contains(&id)).count()
}

fn range(counts: impl Iterator<Item = usize>) -> usize {
    let counts: Vec<usize> = counts.collect();
    counts.iter().max().unwrap_or(&0) - counts.iter().min().unwrap_or(&0)
}

fn node_range(cluster: &Cluster) -> usize {
    range(of_standing(cluster, Standing::Open).into_iter().map(|id| replicas_on(cluster, id)))
}

/// Replicas a group must have in the end on nodes that stay, and those of them on closed nodes with one zone.
fn wanted(cluster: &Cluster, group: &Group) -> (usize, usize) {
    let present: BTreeSet<NodeId> = group.replicas.iter().copied().collect();
    let on = |s: Standing| present.iter().filter(|id| standing(cluster, **id) == s).count();
    let factor = cluster.replication_factor.max(1);
    let staying = cluster.nodes.iter().filter(|n| n.standing != Standing::Leaving).count();
    let aim = present.len().max(factor.min(staying)).min(factor);
    let closed = on(Standing::Closed);
    let wanted = aim.min(of_standing(cluster, Standing::Open).len() + closed);
    let above = (on(Standing::Open) + closed).saturating_sub(wanted);
    (wanted, closed - closed.min(above))
}

/// Smallest-cost flow by shortest paths, one unit at a time: slow and simple.
#[derive(Default)]
struct Flow {
    edges: Vec<(usize, usize, i64, i128)>,
    from: BTreeMap<usize, Vec<usize>>,
}

impl Flow {
    fn edge(&mut self, from: usize, to: usize, room: i64, cost: i128) {
        for (from, to, room, cost) in [(from, to, room, cost), (to, from, 0, -cost)] {
            self.from.entry(from).or_default().push(self.edges.len());
            self.edges.push((from, to, room, cost));
        }
    }

    fn run(&mut self, source: usize, sink: usize) -> (i64, i128) {
        let (mut amount, mut total) = (0, 0);
        loop {
            let mut cost: BTreeMap<usize, (i128, usize)> = BTreeMap::from([(source, (0, usize::MAX))]);
            let mut queue = VecDeque::from([source]);
            while let Some(at) = queue.pop_front() {
                let here = cost[&at].0;
                for edge in self.from.get(&at).into_iter().flatten() {
                    let (_, to, room, more) = self.edges[*edge];
                    if room > 0 && cost.get(&to).is_none_or(|(old, _)| here + more < *old) {
                        cost.insert(to, (here + more, *edge));
                        if !queue.contains(&to) {
                            queue.push_back(to);
                        }
                    }
                }
            }
            let Some((price, _)) = cost.get(&sink) else { return (amount, total) };
            total += price;
            amount += 1;
            let mut at = sink;
            while at != source {
                let edge = cost[&at].1;
                self.edges[edge].2 -= 1;
                self.edges[edge ^ 1].2 += 1;
                at = self.edges[edge].0;
            }
        }
    }
}

/// A new replica, a step of evenness of nodes, one of zones: each more than all there can be of those before.
const NEW: i128 = 1 << 20;
const STEP: i128 = 1 << 40;
const ZONE: i128 = 1 << 80;

/// What a plan costs: zones (sum over groups of 1+2+..), nodes (sum of 1+2+..), new replicas, their bytes.
type Cost = (i128, i128, i128, i128);

/// What an optimal plan costs.
fn best_replicas(cluster: &Cluster) -> Cost {
    let mut flow = Flow::default();
    let (source, sink) = (0, 1);
    let open = of_standing(cluster, Standing::Open);
    let node_at = |at: usize| 2 + at;
    let names: Vec<&str> = zones(cluster).into_iter().collect();
    for at in 0..open.len() {
        for unit in 1..=cluster.groups.len() as i128 {
            flow.edge(node_at(at), sink, 1, unit * STEP);
        }
    }
    let mut all = 0;
    for (g, group) in cluster.groups.iter().enumerate() {
        let (wanted, closed) = wanted(cluster, group);
        let base = 100 + g * 20;
        flow.edge(source, base, (wanted - closed) as i64, 0);
        all += (wanted - closed) as i64;
        for (z, name) in names.iter().enumerate() {
            for unit in 1..=open.len() as i128 {
                let cost = if names.len() > 1 { unit * ZONE } else { 0 };
                flow.edge(base, base + 1 + z, 1, cost);
            }
            for (at, id) in open.iter().enumerate().filter(|(_, id)| zone(cluster, **id) == *name) {
                let new = if group.replicas.contains(id) { 0 } else { NEW + i128::from(group.bytes) };
                flow.edge(base + 1 + z, node_at(at), 1, new);
            }
        }
    }
    let (amount, cost) = flow.run(source, sink);
    assert_eq!(amount, all);
    (cost / ZONE, cost % ZONE / STEP, cost % STEP / NEW, cost % NEW)
}

fn triangle(count: usize) -> i128 {
    (count * (count + 1) / 2) as i128
}

fn cost_of(before: &Cluster, after: &Cluster) -> Cost {
    let open = of_standing(before, Standing::Open);
    let names = zones(before);
    let mut zone_cost = 0;
    for group in &after.groups {
        for name in names.iter().filter(|_| names.len() > 1) {
            let here = group.replicas.iter().filter(|id| open.contains(id) && zone(before, **id) == *name);
            zone_cost += triangle(here.count());
        }
    }
    let new = before.groups.iter().zip(&after.groups).map(|(old, new)| {
        let new = new.replicas.iter().filter(|id| open.contains(id) && !old.replicas.contains(id));
        (new.count() as i128, i128::from(old.bytes))
    });
    let (new, bytes) = new.fold((0, 0), |all, (new, bytes)| (all.0 + new, all.1 + new * bytes));
    (zone_cost, open.iter().map(|id| triangle(replicas_on(after, *id))).sum(), new, bytes)
}

/// Groups whose leader the planner places, with the open nodes that may lead.
fn led(after: &Cluster) -> Vec<(&Group, Vec<NodeId>)> {
    let can = |g: &Group| -> Vec<NodeId> {
        g.replicas.iter().copied().filter(|id| standing(after, *id) == Standing::Open).collect()
    };
    after
        .groups
        .iter()
        .filter(|g| g.leader.is_some_and(|l| g.replicas.contains(&l)))
        .filter(|g| g.leader.is_none_or(|l| standing(after, l) != Standing::Closed))
        .map(|g| (g, can(g)))
        .filter(|(_, can)| !can.is_empty())
        .collect()
}

/// What optimal leaders cost for the replicas of `cluster`: evenness, transfers.
fn best_leaders(cluster: &Cluster) -> (i128, i128) {
    let mut flow = Flow::default();
    let open = of_standing(cluster, Standing::Open);
    for at in 0..open.len() {
        for unit in 1..=cluster.groups.len() as i128 {
            flow.edge(2 + at, 1, 1, unit * STEP);
        }
    }
    let led = led(cluster);
    for (g, (group, can)) in led.iter().enumerate() {
        flow.edge(0, 100 + g, 1, 0);
        for (at, id) in open.iter().enumerate().filter(|(_, id)| can.contains(id)) {
            flow.edge(100 + g, 2 + at, 1, i128::from(group.leader != Some(*id)));
        }
    }
    let (amount, cost) = flow.run(0, 1);
    assert_eq!(amount, led.len() as i64);
    (cost / STEP, cost % STEP)
}

fn leader_cost(cluster: &Cluster) -> i128 {
    of_standing(cluster, Standing::Open).iter().map(|id| triangle(leaders_on(cluster, *id))).sum()
}

/// Random clusters. The zones are unnamed (one), or up to four.
fn clusters(zones: std::ops::Range<usize>, closed: u32) -> impl Strategy<Value = Cluster> {
    (1..=12usize, zones).prop_flat_map(move |(count, zones)| {
        let standing = prop_oneof![
            7 => Just(Standing::Open),
            closed => Just(Standing::Closed),
            1 => Just(Standing::Leaving)
        ];
        let nodes = proptest::collection::vec((0..zones.max(1), standing), count);
        // Some groups are new, some have too many replicas, some are on nodes nobody knows.
        let replicas = proptest::collection::vec(prop_oneof![60 => 0..count, 1 => Just(99)], 0..=6);
        let group = (replicas, any::<prop::sample::Index>(), 0..5u8, 1..50u64, 0..100u32);
        // Shifting all to the first nodes makes clusters that are far from even.
        let groups = proptest::collection::vec(group, 1..=40);
        (1..=5usize, nodes, groups, 1..=count, any::<bool>()).prop_map(
            move |(factor, nodes, groups, narrow, tidy)| {
                let id = |at: usize| NodeId(at as u64 * 7 % 97 + 1);
                let nodes = nodes.into_iter().enumerate().map(|(at, (zone, standing))| {
                    let zone = if zones == 0 { String::new() } else { format!("z{zone}") };
                    Node { id: id(at), zone, standing }
                });
                let groups = groups.into_iter().enumerate().map(|(at, (on, leader, leads, bytes, load))| {
                    let mut replicas: Vec<NodeId> =
                        on.iter().map(|n| if *n == 99 { NodeId(999) } else { id(*n % narrow) }).collect();
                    if tidy {
                        let mut seen = BTreeSet::new();
                        replicas.retain(|id| seen.insert(*id) && seen.len() <= factor);
                    }
                    let leader = (leads > 0 && !replicas.is_empty()).then(|| *leader.get(&replicas));
                    let id = GroupId(at as u32 * 13 % 101);
                    Group { id, bytes, load: f64::from(load), replicas, leader }
                });
                Cluster { replication_factor: factor, nodes: nodes.collect(), groups: groups.collect() }
            },
        )
    })
}

fn planned(cluster: &Cluster) -> (Plan, Cluster) {
    let plan = plan(cluster);
    let after = apply(cluster, &plan).unwrap_or_else(|error| panic!("{error}\n{cluster:?}\n{plan:?}"));
    (plan, after)
}

proptest! {
    #[test]
    fn replicas_are_as_many_as_wanted(cluster in clusters(0..5, 1)) {
        let (plan, after) = planned(&cluster);
        let open = of_standing(&cluster, Standing::Open);
        for (before, group) in cluster.groups.iter().zip(&after.groups) {
            let distinct: BTreeSet<NodeId> = group.replicas.iter().copied().collect();
            prop_assert_eq!(distinct.len(), group.replicas.len());
            let had: BTreeSet<NodeId> = before.replicas.iter().copied().collect();
            prop_assert!(distinct.len() >= had.len().min(cluster.replication_factor));
            prop_assert!(distinct.len() <= cluster.replication_factor);
            let staying = cluster.nodes.iter().filter(|n| n.standing != Standing::Leaving).count();
            let leaving = distinct.iter().any(|id| standing(&cluster, *id) == Standing::Leaving);
            let few = distinct.len() < cluster.replication_factor.min(staying);
            prop_assert_eq!(plan.short.contains(&group.id), leaving || few);
            if leaving || few {
                prop_assert!(open.iter().all(|id| distinct.contains(id)));
            }
        }
    }

    #[test]
    fn zones_are_filled_evenly(cluster in clusters(2..5, 1)) {
        let (_, after) = planned(&cluster);
        let names = zones(&cluster);
        for group in &after.groups {
            let count = |name: &str| group.replicas.iter().filter(|id| {
                standing(&cluster, **id) != Standing::Leaving && zone(&cluster, **id) == name
            }).count();
            for (low, high) in names.iter().flat_map(|l| names.iter().map(move |h| (*l, *h))) {
                let full = of_standing(&cluster, Standing::Open).into_iter().all(|id| {
                    zone(&cluster, id) != low || group.replicas.contains(&id)
                });
                prop_assert!(full || count(high) <= count(low) + 1, "{:?} {} {}", group, low, high);
            }
        }
    }

    #[test]
    fn nodes_of_a_zone_are_within_one(cluster in clusters(0..5, 1)) {
        let (_, after) = planned(&cluster);
        for name in zones(&cluster) {
            let open = of_standing(&cluster, Standing::Open).into_iter().filter(|id| zone(&cluster, *id) == name);
            prop_assert!(range(open.map(|id| replicas_on(&after, id))) <= 1);
        }
    }

    #[test]
    fn without_zones_the_moves_and_their_bytes_are_the_fewest(cluster in clusters(0..1, 1)) {
        let (plan, after) = planned(&cluster);
        prop_assert!(node_range(&after) <= 1);
        let best = best_replicas(&cluster);
        let dropped = plan.moves.iter().filter(|m| m.to.is_none()).count();
        prop_assert_eq!(cost_of(&cluster, &after), best);
        let bound = moves_lower_bound(&cluster);
        prop_assert_eq!(plan.moves.len() - dropped, best.2 as usize);
        prop_assert_eq!(plan.moves.iter().map(|m| i128::from(m.bytes)).sum::<i128>(), best.3);
        prop_assert!(bound <= plan.moves.len());
        // Only a group that has to find a new place, or to drop a replica, can stand in the way.
        let placed = cluster.groups.iter().any(|group| {
            let (wanted, closed) = wanted(&cluster, group);
            let open: BTreeSet<&NodeId> =
                group.replicas.iter().filter(|id| standing(&cluster, **id) == Standing::Open).collect();
            wanted - closed != open.len()
        });
        prop_assert!(bound == plan.moves.len() || placed);
    }

    /// Nothing is missing, nothing leaves: the bound is always met.
    #[test]
    fn evening_out_meets_the_bound(cluster in clusters(0..1, 0)) {
        let mut cluster = planned(&cluster).1;
        for node in &mut cluster.nodes {
            node.standing = Standing::Open;
        }
        cluster.groups.retain(|g| g.replicas.iter().all(|id| *id != NodeId(999)));
        let factor = cluster.groups.iter().map(|g| g.replicas.len()).min().unwrap_or(1).max(1);
        cluster.groups.iter_mut().for_each(|g| g.replicas.truncate(factor));
        cluster.replication_factor = factor;
        let (plan, after) = planned(&cluster);
        prop_assert!(node_range(&after) <= 1);
        prop_assert_eq!(plan.moves.len(), moves_lower_bound(&cluster));
    }

    #[test]
    fn with_zones_too_no_plan_is_cheaper(cluster in clusters(2..5, 0)) {
        let (plan, after) = planned(&cluster);
        let (cost, best) = (cost_of(&cluster, &after), best_replicas(&cluster));
        prop_assert_eq!(cost, best);
        prop_assert!(moves_lower_bound(&cluster) <= plan.moves.len());
    }

    #[test]
    fn a_second_plan_is_empty(cluster in clusters(0..5, 1)) {
        let (first, after) = planned(&cluster);
        let second = plan(&after);
        prop_assert_eq!(second, Plan { short: first.short, ..Plan::default() });
        prop_assert_eq!(moves_lower_bound(&after), 0);
        prop_assert_eq!(spread_leaders(&after), vec![]);
    }

    #[test]
    fn order_does_not_matter(
        (cluster, shuffled) in clusters(0..5, 1).prop_flat_map(|cluster| {
            let nodes = Just(cluster.nodes.clone()).prop_shuffle();
            let groups = Just(cluster.groups.clone()).prop_shuffle();
            let factor = cluster.replication_factor;
            (Just(cluster), (nodes, groups).prop_map(move |(nodes, groups)| {
                Cluster { replication_factor: factor, nodes, groups }
            }))
        })
    ) {
        prop_assert_eq!(plan(&cluster), plan(&shuffled));
        prop_assert_eq!(spread_leaders(&cluster), spread_leaders(&shuffled));
        prop_assert_eq!(moves_lower_bound(&cluster), moves_lower_bound(&shuffled));
    }

    #[test]
    fn leaders_are_even_with_the_fewest_transfers(cluster in clusters(0..5, 1)) {
        let transfers = spread_leaders(&cluster);
        let count = transfers.len() as i128;
        let after = apply(&cluster, &Plan { transfers, ..Plan::default() });
        let after = after.unwrap_or_else(|error| panic!("{error}"));
        let mut cluster = cluster;
        cluster.groups.iter_mut().zip(&after.groups).for_each(|(g, a)| g.replicas.clone_from(&a.replicas));
        prop_assert_eq!((leader_cost(&after), count), best_leaders(&cluster));
    }

    #[test]
    fn leaders_follow_the_rules_after_the_moves(cluster in clusters(0..5, 1)) {
        let (plan, after) = planned(&cluster);
        for (before, group) in cluster.groups.iter().zip(&after.groups) {
            prop_assert_eq!(before.leader.is_some(), group.leader.is_some());
            let Some(leader) = group.leader else { continue };
            prop_assert!(group.replicas.contains(&leader));
            let open = group.replicas.iter().any(|id| standing(&cluster, *id) == Standing::Open);
            match standing(&cluster, leader) {
                Standing::Open => {}
                Standing::Closed => prop_assert!(before.leader == group.leader || !open),
                Standing::Leaving => prop_assert!(!open),
            }
        }
        // The transfers are those of spread_leaders for the replicas after the moves, but for leaders that moved.
        prop_assert_eq!(leader_cost(&after), best_leaders(&after).0);
        let moved = |g: &Group| plan.moves.iter().any(|m| m.group == g.id && m.from == g.leader);
        if !cluster.groups.iter().any(moved) {
            let mut replicas = after.clone();
            replicas.groups.iter_mut().zip(&cluster.groups).for_each(|(a, b)| a.leader = b.leader);
            prop_assert_eq!(plan.transfers.len() as i128, best_leaders(&replicas).1);
        }
    }

    #[test]
    fn who_can_leave_does(cluster in clusters(0..5, 1), at in any::<prop::sample::Index>()) {
        let leaving = at.get(&cluster.nodes).id;
        let mut without = cluster.clone();
        without.nodes.iter_mut().filter(|n| n.id == leaving).for_each(|n| n.standing = Standing::Leaving);
        let (_, after) = planned(&without);
        let staying = without.nodes.iter().filter(|n| n.standing != Standing::Leaving).count();
        let left = |id: &NodeId| standing(&without, *id) == Standing::Leaving;
        let stays = after.groups.iter().any(|g| g.replicas.iter().any(left));
        match cannot_leave(&cluster, leaving) {
            None => prop_assert!(replicas_on(&after, leaving) == 0 && staying >= cluster.replication_factor),
            Some(_) if staying < cluster.replication_factor => {}
            Some(_) => prop_assert!(stays),
        }
    }
}

/// 32 groups on these nodes, placed by the planner.
fn shards(nodes: Vec<Node>, factor: usize) -> Cluster {
    let groups = (0..32).map(|id| group(id, 100 + u64::from(id), &[])).collect();
    let cluster = Cluster { replication_factor: factor, nodes, groups };
    let mut after = planned(&cluster).1;
    after.groups.iter_mut().for_each(|g| g.leader = g.replicas.first().copied());
    planned(&after).1
}

fn counts(cluster: &Cluster) -> Vec<usize> {
    cluster.nodes.iter().map(|n| replicas_on(cluster, n.id)).collect()
}

fn lead(cluster: &Cluster) -> Vec<usize> {
    cluster.nodes.iter().map(|n| leaders_on(cluster, n.id)).collect()
}

#[test]
fn three_four_six_three() {
    let mut cluster = shards(open_nodes(3), 3);
    assert_eq!(counts(&cluster), [32; 3]);
    assert_eq!(range(lead(&cluster).into_iter()), 1);

    cluster.nodes = open_nodes(4);
    let (first, mut cluster) = planned(&cluster);
    assert_eq!((first.moves.len(), moves_lower_bound(&cluster)), (24, 0));
    assert_eq!((counts(&cluster), lead(&cluster)), (vec![24; 4], vec![8; 4]));

    cluster.nodes = open_nodes(6);
    let (second, mut cluster) = planned(&cluster);
    assert_eq!(second.moves.len(), 32);
    assert_eq!(counts(&cluster), [16; 6]);
    assert_eq!(range(lead(&cluster).into_iter()), 1);

    cluster.nodes.iter_mut().take(3).for_each(|n| n.standing = Standing::Leaving);
    let (third, cluster) = planned(&cluster);
    assert_eq!(third.moves.len(), 48);
    assert_eq!(third.short, []);
    assert_eq!(counts(&cluster), [0, 0, 0, 32, 32, 32]);
    assert_eq!(range(lead(&cluster).into_iter().skip(3)), 1);
}

#[test]
fn draining_moves_what_the_node_holds_and_no_more() {
    let mut cluster = shards(open_nodes(6), 3);
    cluster.nodes[2].standing = Standing::Leaving;
    assert_eq!(cannot_leave(&cluster, NodeId(3)), None);
    let (drain, after) = planned(&cluster);
    assert_eq!((drain.moves.len(), moves_lower_bound(&cluster)), (16, 16));
    assert!(drain.moves.iter().all(|m| m.from == Some(NodeId(3)) && m.to.is_some()));
    assert_eq!(leaders_on(&after, NodeId(3)), 0);
    assert_eq!(range(counts(&after).into_iter().filter(|count| *count > 0)), 1);
}

#[test]
fn a_dead_node_with_no_room_leaves_groups_short() {
    let mut cluster = shards(open_nodes(3), 3);
    cluster.nodes[0].standing = Standing::Leaving;
    let (dead, after) = planned(&cluster);
    assert_eq!(dead.moves, []);
    assert_eq!(dead.short.len(), 32);
    assert_eq!(counts(&after), [32; 3]);
    assert_eq!(lead(&after), [0, 16, 16]);
    let reason = cannot_leave(&cluster, NodeId(2)).unwrap();
    assert_eq!(reason, "Without node 2 too few nodes are left: 1 (3), for 3 replicas of each group.");
    cluster.nodes[0].standing = Standing::Closed;
    cluster.nodes.push(node(4, "", Standing::Closed));
    let reason = cannot_leave(&cluster, NodeId(2)).unwrap();
    // The test's first group is the one with that id.
    let told = "The meta group has a replica on node 2 and no other node can take it: those that may all hold it already \
                (it is on 1, 3). The same goes for 31 more.";
    assert_eq!(reason, told);
    assert_eq!(cannot_leave(&cluster, NodeId(77)), None);
}

#[test]
fn people_are_told_of_some_nodes_and_how_many_more() {
    let nodes: Vec<NodeId> = (1..=14).map(NodeId).collect();
    assert_eq!(list(&nodes[..2]), "1, 2");
    assert_eq!(list(&nodes), "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 2 more");
    assert_eq!(list(&[]), "none");
}

#[test]
fn a_silent_node_keeps_what_it_has() {
    let mut cluster = shards(open_nodes(4), 3);
    cluster.nodes[1].standing = Standing::Closed;
    cluster.nodes.push(node(5, "", Standing::Open));
    let (plan, after) = planned(&cluster);
    assert_eq!((counts(&after), plan.moves.len()), (vec![18, 24, 18, 18, 18], 18));
    assert_eq!(leaders_on(&after, NodeId(2)), leaders_on(&cluster, NodeId(2)));
}

#[test]
fn zones_of_unequal_size() {
    let zone_of = |id: u64| {
        if id == 1 {
            "a"
        } else if id < 4 {
            "b"
        } else {
            "c"
        }
    };
    let nodes: Vec<Node> = (1..=6).map(|id| node(id, zone_of(id), Standing::Open)).collect();
    let count = counts(&shards(nodes.clone(), 3));
    assert_eq!((&count[..3], count[3..].iter().sum()), (&[32, 16, 16][..], 32));
    assert_eq!(range(count[3..].iter().copied()), 1);
    // The fourth replica: one in a, it has one node; the other four even out what b and c carry.
    let count = counts(&shards(nodes, 4));
    assert_eq!((count[0], count[1..].iter().sum()), (32, 96));
    assert_eq!(range(count[1..].iter().copied()), 1);
}

#[test]
fn a_zone_with_two_of_three_gives_one_up() {
    let nodes = vec![
        node(1, "a", Standing::Open),
        node(2, "a", Standing::Open),
        node(3, "b", Standing::Open),
        node(4, "c", Standing::Open),
    ];
    let groups = vec![group(1, 5, &[1, 2, 3])];
    let (plan, after) = planned(&Cluster { replication_factor: 3, nodes, groups });
    assert_eq!(plan.moves.len(), 1);
    assert_eq!(plan.moves[0].to, Some(NodeId(4)));
    assert!(after.groups[0].replicas.contains(&NodeId(3)));
}

#[test]
fn growing_from_one_node_to_three() {
    let mut cluster = shards(open_nodes(1), 3);
    assert_eq!(counts(&cluster), [32]);
    cluster.nodes = open_nodes(3);
    let (plan, after) = planned(&cluster);
    assert_eq!((plan.moves.len(), moves_lower_bound(&cluster)), (64, 64));
    assert!(plan.moves.iter().all(|m| m.from.is_none() && m.bytes > 0));
    assert_eq!(counts(&after), [32; 3]);
    assert_eq!(range(lead(&after).into_iter()), 1);
}

#[test]
fn a_smaller_factor_drops_replicas() {
    let mut cluster = shards(open_nodes(6), 5);
    cluster.replication_factor = 3;
    let (plan, after) = planned(&cluster);
    assert_eq!((plan.moves.len(), counts(&after)), (64, vec![16; 6]));
    assert!(plan.moves.iter().all(|m| m.to.is_none() && m.bytes == 0));
}

#[test]
fn the_silent_replica_is_the_one_to_drop() {
    let mut nodes = open_nodes(4);
    nodes[1].standing = Standing::Closed;
    let groups = vec![group(1, 5, &[1, 2, 3, 4])];
    let plan = plan(&Cluster { replication_factor: 3, nodes, groups });
    let drop = Move { group: GroupId(1), from: Some(NodeId(2)), to: None, bytes: 0 };
    assert_eq!(plan.moves, [drop]);
}

#[test]
fn small_groups_move_first() {
    let groups = (0..8).map(|id| group(id, 1_000 - u64::from(id), &[1, 2])).collect();
    let cluster = Cluster { replication_factor: 2, nodes: open_nodes(4), groups };
    let (plan, after) = planned(&cluster);
    assert_eq!(counts(&after), [4; 4]);
    let moved: BTreeSet<u32> = plan.moves.iter().map(|m| m.group.get()).collect();
    assert_eq!((plan.moves.len(), moved), (8, BTreeSet::from([4, 5, 6, 7])));
}

/// Node 4 has room, but every group that must move is there: one more move makes room elsewhere.
#[test]
fn a_chain_of_moves_where_no_direct_one_is_possible() {
    let mut nodes = open_nodes(4);
    nodes.push(node(9, "", Standing::Leaving));
    let groups = vec![
        group(1, 1, &[9, 3, 4]),
        group(2, 1, &[1, 2, 3]),
        group(3, 1, &[1, 2, 3]),
        group(4, 1, &[1, 2, 4]),
    ];
    let (plan, after) = planned(&Cluster { replication_factor: 3, nodes, groups });
    assert_eq!(counts(&after), [3, 3, 3, 3, 0]);
    assert_eq!(plan.moves.len(), 2);
}

#[test]
fn leaders_go_where_the_load_is_low() {
    let mut groups: Vec<Group> = (0..3).map(|id| group(id, 1, &[1, 2, 3])).collect();
    groups.extend([group(3, 1, &[2, 1, 3]), group(4, 1, &[3, 1, 2])]);
    groups[3].load = 50.0;
    // Node 1 leads three of five, 2 and 3 lead one each; either may get one more, node 3 carries less.
    let cluster = Cluster { replication_factor: 3, nodes: open_nodes(3), groups };
    assert_eq!(range(lead(&cluster).into_iter()), 2);
    let transfers = spread_leaders(&cluster);
    assert_eq!(transfers.len(), 1);
    assert_eq!((transfers[0].from, transfers[0].to), (NodeId(1), NodeId(3)));
}

#[test]
fn odd_input_is_survived() {
    let empty = Cluster { replication_factor: 0, nodes: vec![], groups: vec![] };
    assert_eq!(plan(&empty), Plan::default());
    assert_eq!((moves_lower_bound(&empty), cannot_leave(&empty, NodeId(1))), (0, None));
    let mut groups = vec![group(1, 1, &[5, 5, 6]), group(2, 1, &[])];
    groups[0].load = f64::NAN;
    let nobody = Cluster { replication_factor: 3, nodes: vec![], groups };
    assert_eq!(plan(&nobody), Plan { short: vec![GroupId(1)], ..Plan::default() });
}
