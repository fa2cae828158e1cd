//! Makes a placement the cheapest there is: as even over zones and nodes as before, with the fewest moves, and of those
//! with the fewest bytes.
//!
//! The placement is a flow: from each group through its zones to nodes. Where some change of it lowers the cost there is
//! a circle of changes that does (each takes one replica from a node or a zone and gives it to the next), and where no
//! circle does, none can be cheaper (Klein 1967, "A primal method for minimal cost flows"). The circles are found by
//! Bellman and Ford's algorithm.

/// Order of what counts: a zone with one more of a group, a node with one more, a move; below them are bytes.
const ZONE: i128 = 1 << 100;
const NODE: i128 = 1 << 80;
const MOVE: i128 = 1 << 60;
/// Elementary steps that may be spent, some hundredths of a second: what is larger is placed well, not always best.
const STEPS_MAX: usize = 10_000_000;

/// A group: nodes are numbered.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    /// Bytes of a replica.
    pub size: u64,
    /// Where it has been.
    pub start: Vec<usize>,
    /// Where it is to be.
    pub here: Vec<usize>,
    /// Zones of replicas that stay where they are, on nodes that are not counted here.
    pub kept: Vec<usize>,
}

/// One replica more at `to` and one fewer at `from`.
#[derive(Debug, Clone, Copy)]
struct Arc {
    from: usize,
    to: usize,
    cost: i128,
}

/// Vertices in this order: groups, each group's zones, nodes, and one behind all nodes.
struct Numbers {
    groups: usize,
    zones: usize,
    nodes: usize,
}

impl Numbers {
    fn zone(&self, group: usize, zone: usize) -> usize {
        self.groups + group * self.zones + zone
    }

    fn node(&self, node: usize) -> usize {
        self.groups * (1 + self.zones) + node
    }

    fn end(&self) -> usize {
        self.node(self.nodes)
    }

    fn group_of(&self, vertex: usize) -> Option<usize> {
        let zones = self.groups..self.node(0);
        zones.contains(&vertex).then(|| (vertex - self.groups) / self.zones)
    }

    fn node_of(&self, vertex: usize) -> Option<usize> {
        (self.node(0)..self.end()).contains(&vertex).then(|| vertex - self.node(0))
    }
}

/// Changes `placed`, on nodes whose zones are given, as long as that makes it cheaper.
pub(super) fn cheapen(placed: &mut [Placed], zone_of: &[usize]) {
    let zones = zone_of.iter().max().map_or(0, |last| last + 1);
    let numbers = Numbers { groups: placed.len(), zones, nodes: zone_of.len() };
    let mut steps = 0;
    // At least a few rounds, or there is no sense in beginning.
    while placed.len() * zone_of.len() < STEPS_MAX / 8 {
        let arcs = arcs(placed, zone_of, &numbers);
        steps += arcs.len();
        let Some(circle) = cheaper(numbers.end() + 1, &arcs, STEPS_MAX, &mut steps) else { return };
        for arc in circle {
            if let (Some(group), Some(node)) = (numbers.group_of(arc.from), numbers.node_of(arc.to))
                && let Some(group) = placed.get_mut(group)
            {
                group.here.push(node);
            }
            if let (Some(node), Some(group)) = (numbers.node_of(arc.from), numbers.group_of(arc.to))
                && let Some(group) = placed.get_mut(group)
            {
                group.here.retain(|here| *here != node);
            }
        }
    }
}

/// All changes by one, with what they cost.
fn arcs(placed: &[Placed], zone_of: &[usize], numbers: &Numbers) -> Vec<Arc> {
    let mut arcs = Vec::with_capacity(placed.len() * (zone_of.len() + numbers.zones * 2) + zone_of.len() * 2);
    let mut push = |from: usize, to: usize, cost: i128| arcs.push(Arc { from, to, cost });
    let mut counts = vec![0_i128; zone_of.len()];
    for (at, group) in placed.iter().enumerate() {
        let mut held = vec![(0_i128, 0_i128); numbers.zones];
        for zone in group.here.iter().filter_map(|node| zone_of.get(*node)) {
            held.get_mut(*zone).into_iter().for_each(|(open, _)| *open += 1);
        }
        for zone in &group.kept {
            held.get_mut(*zone).into_iter().for_each(|(_, kept)| *kept += 1);
        }
        // One zone is no choice.
        let price = if numbers.zones > 1 { ZONE } else { 0 };
        for (zone, (open, kept)) in held.into_iter().enumerate() {
            push(at, numbers.zone(at, zone), (open + kept + 1) * price);
            if open > 0 {
                push(numbers.zone(at, zone), at, -(open + kept) * price);
            }
        }
        for (node, zone) in zone_of.iter().enumerate() {
            let new = if group.start.contains(&node) { 0 } else { MOVE + i128::from(group.size) };
            let zone = numbers.zone(at, *zone);
            if group.here.contains(&node) {
                push(numbers.node(node), zone, -new);
                counts.get_mut(node).into_iter().for_each(|count| *count += 1);
            } else {
                push(zone, numbers.node(node), new);
            }
        }
    }
    for (node, count) in counts.into_iter().enumerate() {
        push(numbers.node(node), numbers.end(), (count + 1) * NODE);
        if count > 0 {
            push(numbers.end(), numbers.node(node), -count * NODE);
        }
    }
    arcs
}

/// A circle of arcs that cost less than nothing together; `None` when there is none or the steps are used up.
fn cheaper(vertices: usize, arcs: &[Arc], steps_max: usize, steps: &mut usize) -> Option<Vec<Arc>> {
    let mut distance = vec![0_i128; vertices];
    let mut arrived: Vec<Option<Arc>> = vec![None; vertices];
    loop {
        *steps += arcs.len();
        if *steps > steps_max {
            return None;
        }
        let mut changed = false;
        for arc in arcs {
            let through = distance.get(arc.from)? + arc.cost;
            let known = distance.get_mut(arc.to)?;
            if through < *known {
                *known = through;
                *arrived.get_mut(arc.to)? = Some(*arc);
                changed = true;
            }
        }
        if !changed {
            return None;
        }
        // Where the ways by which the vertices were reached close, the circle is one that costs less than nothing.
        if let Some(circle) = circle(&arrived) {
            return Some(circle);
        }
    }
}

/// A circle among the arcs by which vertices were reached.
fn circle(arrived: &[Option<Arc>]) -> Option<Vec<Arc>> {
    let mut seen = vec![usize::MAX; arrived.len()];
    for start in 0..arrived.len() {
        let mut at = start;
        while seen.get(at) == Some(&usize::MAX) {
            *seen.get_mut(at)? = start;
            let Some(arc) = arrived.get(at).copied().flatten() else { break };
            at = arc.from;
        }
        let arc = arrived.get(at).copied().flatten();
        if seen.get(at) == Some(&start) && arc.is_some() {
            let first = at;
            let mut circle = Vec::new();
            loop {
                let arc = arrived.get(at).copied().flatten()?;
                circle.push(arc);
                at = arc.from;
                if at == first {
                    return Some(circle);
                }
            }
        }
    }
    None
}
