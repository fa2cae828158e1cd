//! Finds contradictions: shortest cycles in the order of transactions.
#![expect(
    clippy::indexing_slicing,
    reason = "every index is the number of a node of the graph or of a place in a path"
)]

use std::collections::VecDeque;

use super::super::{Findings, describe};
use super::graph::{Graph, RT, RW, Reason, WR, WW};
use super::observe::{ElementId, Observed};

/// In this order, so that each contradiction is told by the strongest name it deserves.
const KINDS: [u8; 5] = [WW, WW | WR, WW | WR | RW, WW | WR | RT, WW | WR | RW | RT];
/// Edges looked at for the shortest cycle of one component; what was found by then is told.
const WORK_MAX: usize = 5_000_000;

type Edge = (usize, usize, Reason);

/// Tells one cycle for each knot of transactions that have one.
pub fn report(key: &str, observed: &Observed<'_>, graph: &Graph, findings: &mut Findings) {
    let mut told = vec![false; graph.after.len()];
    for kinds in KINDS {
        for component in components(graph, kinds) {
            if component.iter().any(|&node| told[node]) {
                continue;
            }
            for &node in &component {
                told[node] = true;
            }
            if findings.is_full() {
                // Only counted any more: the search for each would take long.
                findings.add("cycle", key, String::new);
                continue;
            }
            let cycle = shortest(graph, kinds, &component);
            findings.add(name(&cycle), key, || describe_cycle(observed, &cycle));
        }
    }
}

fn edges(graph: &Graph, node: usize, kinds: u8) -> impl Iterator<Item = (usize, Reason)> {
    graph.after[node].iter().copied().filter(move |(_, reason)| reason.bit() & kinds != 0)
}

/// The strongly connected components of more than one node (Tarjan, "Depth-first search and linear graph algorithms",
/// 1972), without recursion.
fn components(graph: &Graph, kinds: u8) -> Vec<Vec<usize>> {
    const NEW: usize = usize::MAX;
    let count = graph.after.len();
    let (mut number, mut low) = (vec![NEW; count], vec![NEW; count]);
    let mut open = vec![false; count];
    let (mut stack, mut path): (Vec<usize>, Vec<(usize, usize)>) = (Vec::new(), Vec::new());
    let (mut next, mut found) = (0, Vec::new());
    for root in 0..count {
        if number[root] != NEW {
            continue;
        }
        path.push((root, 0));
        while let Some((node, at)) = path.pop() {
            if at == 0 {
                (number[node], low[node]) = (next, next);
                next += 1;
                stack.push(node);
                open[node] = true;
            }
            let Some(&(to, reason)) = graph.after[node].get(at) else {
                if let Some(&(parent, _)) = path.last() {
                    low[parent] = low[parent].min(low[node]);
                }
                if low[node] == number[node] {
                    let from = stack.iter().rposition(|&on| on == node).unwrap_or_default();
                    let component = stack.split_off(from);
                    for &member in &component {
                        open[member] = false;
                    }
                    if component.len() > 1 {
                        found.push(component);
                    }
                }
                continue;
            };
            path.push((node, at + 1));
            if reason.bit() & kinds == 0 {
                continue;
            }
            if number[to] == NEW {
                path.push((to, 0));
            } else if open[to] {
                low[node] = low[node].min(number[to]);
            }
        }
    }
    found
}

/// A shortest cycle of a component, where real-time edges in a row count as one, as they are transitive.
fn shortest(graph: &Graph, kinds: u8, component: &[usize]) -> Vec<Edge> {
    let mut inside = vec![false; graph.after.len()];
    for &node in component {
        inside[node] = true;
    }
    let mut best: Vec<Edge> = Vec::new();
    let mut work = 0;
    let mut search = Search { came: vec![None; graph.after.len() * 2], touched: Vec::new() };
    for &start in component {
        let cycle = merged(search.cycle_from(graph, kinds, &inside, start, &mut work));
        if best.is_empty() || (!cycle.is_empty() && cycle.len() < best.len()) {
            best = cycle;
        }
        if best.len() == 2 || (work > WORK_MAX && !best.is_empty()) {
            break;
        }
    }
    best
}

/// A breadth-first search over nodes, each twice: reached by a real-time edge (odd) or another (even).
struct Search {
    /// From which state and edge each state was first reached at its distance.
    came: Vec<Option<(usize, Reason, usize)>>,
    touched: Vec<usize>,
}

impl Search {
    fn cycle_from(
        &mut self,
        graph: &Graph,
        kinds: u8,
        inside: &[bool],
        start: usize,
        work: &mut usize,
    ) -> Vec<Edge> {
        for state in self.touched.drain(..) {
            self.came[state] = None;
        }
        let mut queue = VecDeque::from([(0_usize, start * 2)]);
        while let Some((distance, state)) = queue.pop_front() {
            if distance > 0 && self.came[state].is_some_and(|(_, _, least)| least < distance) {
                continue;
            }
            if distance > 0 && state / 2 == start {
                return self.path(state, start);
            }
            for (to, reason) in edges(graph, state / 2, kinds) {
                *work += 1;
                if !inside[to] {
                    continue;
                }
                let by_time = usize::from(reason == Reason::RealTime);
                // Going on in real time costs nothing.
                let cost = usize::from(by_time == 0 || state % 2 == 0);
                let (next, far) = (to * 2 + by_time, distance + cost);
                if self.came[next].is_none_or(|(_, _, least)| far < least) {
                    self.came[next] = Some((state, reason, far));
                    self.touched.push(next);
                    if cost == 0 { queue.push_front((far, next)) } else { queue.push_back((far, next)) }
                }
            }
        }
        Vec::new()
    }

    fn path(&self, end: usize, start: usize) -> Vec<Edge> {
        let mut path = Vec::new();
        let mut state = end;
        while let Some((from, reason, _)) = self.came[state] {
            path.push((from / 2, state / 2, reason));
            state = from;
            if state / 2 == start {
                break;
            }
        }
        path.reverse();
        path
    }
}

fn merged(path: Vec<Edge>) -> Vec<Edge> {
    let mut merged: Vec<Edge> = Vec::new();
    for edge in path {
        match merged.last_mut() {
            Some(last) if last.2 == Reason::RealTime && edge.2 == Reason::RealTime => last.1 = edge.1,
            _ => merged.push(edge),
        }
    }
    // The cycle may have been entered within a row of real-time edges.
    if let [first, .., last] = merged.as_mut_slice()
        && first.2 == Reason::RealTime
        && last.2 == Reason::RealTime
    {
        first.0 = last.0;
        merged.pop();
    }
    merged
}

fn name(cycle: &[Edge]) -> &'static str {
    let count = |bit: u8| cycle.iter().filter(|(_, _, reason)| reason.bit() == bit).count();
    match (count(RW), count(WR), count(RT) > 0) {
        (0, 0, false) => "G0: write cycle",
        (0, _, false) => "G1c: circular information flow",
        (1, _, false) => "G-single: read skew",
        (_, _, false) => "G2: anti-dependency cycle",
        (0, 0, true) => "G0-realtime: writes against real time",
        (0, _, true) => "G1c-realtime: read against real time",
        (1, _, true) => "G-single-realtime: stale read",
        (_, _, true) => "G2-realtime: anti-dependency cycle against real time",
    }
}

fn describe_cycle(observed: &Observed<'_>, cycle: &[Edge]) -> String {
    let element = |id: ElementId| {
        let element = &observed.elements[id];
        (element.value.to_string(), observed.lists[element.list].name.as_str())
    };
    let mut text = format!("a cycle of {} transactions", cycle.len());
    for (at, &(node, ..)) in cycle.iter().enumerate() {
        text.push_str(&format!("\n  T{} = {}", at + 1, describe(observed.calls[node])));
    }
    for (at, (_, _, reason)) in cycle.iter().enumerate() {
        let (from, to) = (at + 1, (at + 1) % cycle.len() + 1);
        let why = match *reason {
            Reason::WriteWrite(one, next) => {
                let ((one, list), (next, _)) = (element(one), element(next));
                format!("ww: T{to} appended {next} to {list} after {one} of T{from}")
            }
            Reason::WriteRead(last) => {
                let (last, list) = element(last);
                format!("wr: T{to} read {list} up to {last}, which T{from} appended")
            }
            Reason::ReadWrite(next) => {
                let (next, list) = element(next);
                format!("rw: T{from} read {list} without {next}, which T{to} appended next")
            }
            Reason::RealTime => format!("rt: T{from} ended before T{to} began"),
        };
        text.push_str(&format!("\n  T{from} before T{to}, {why}"));
    }
    text
}
