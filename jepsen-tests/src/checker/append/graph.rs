//! Which transaction must come before which, and why.

use super::super::Findings;
use super::is_acknowledged;
use super::observe::{ElementId, Observed};
use crate::record::Kind;

/// Why one transaction comes before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The later appended `1` right after `0`, which the earlier had appended.
    WriteWrite(ElementId, ElementId),
    /// The later read a list that ended with what the earlier had appended.
    WriteRead(ElementId),
    /// The earlier read a list without what the later appended next.
    ReadWrite(ElementId),
    /// The earlier ended before the later began.
    RealTime,
}

impl Reason {
    /// One bit for each kind.
    pub fn bit(self) -> u8 {
        match self {
            Self::WriteWrite(..) => WW,
            Self::WriteRead(_) => WR,
            Self::ReadWrite(_) => RW,
            Self::RealTime => RT,
        }
    }
}

pub const WW: u8 = 1;
pub const WR: u8 = 2;
pub const RW: u8 = 4;
pub const RT: u8 = 8;

/// For each transaction, those that come after it.
pub struct Graph {
    pub after: Vec<Vec<(usize, Reason)>>,
}

/// Reads of a list's end times appends that nobody read: more than this are too many to compare.
const UNREAD_EDGES_MAX: usize = 1_000_000;

pub fn build(key: &str, observed: &Observed<'_>, findings: &mut Findings) -> Graph {
    let mut graph = Graph { after: vec![Vec::new(); observed.calls.len()] };
    orders(observed, &mut graph);
    reads(key, observed, &mut graph, findings);
    real_time(observed, &mut graph);
    graph
}

impl Graph {
    fn add(&mut self, from: usize, to: usize, reason: Reason) {
        if from != to
            && let Some(after) = self.after.get_mut(from)
        {
            after.push((to, reason));
        }
    }
}

fn orders(observed: &Observed<'_>, graph: &mut Graph) {
    let txn = |id: ElementId| observed.elements.get(id).map(|element| element.txn);
    for list in &observed.lists {
        let pairs = list.order.iter().zip(list.order.iter().skip(1));
        let last =
            list.order.last().into_iter().flat_map(|last| list.unread.iter().map(move |next| (last, next)));
        for (&one, &next) in pairs.chain(last) {
            if let (Some(from), Some(to)) = (txn(one), txn(next)) {
                graph.add(from, to, Reason::WriteWrite(one, next));
            }
        }
    }
}

fn reads(key: &str, observed: &Observed<'_>, graph: &mut Graph, findings: &mut Findings) {
    let txn = |id: ElementId| observed.elements.get(id).map(|element| element.txn);
    let mut unread_edges = 0;
    for read in &observed.reads {
        if let Some((last, from)) = read.last.and_then(|last| Some((last, txn(last)?))) {
            graph.add(from, read.txn, Reason::WriteRead(last));
        }
        let Some(list) = observed.lists.get(read.list) else { continue };
        if let Some(&next) = list.order.get(read.count) {
            if let Some(to) = txn(next) {
                graph.add(read.txn, to, Reason::ReadWrite(next));
            }
            continue;
        }
        unread_edges += list.unread.len();
        if unread_edges > UNREAD_EDGES_MAX {
            findings.unknown(|| format!("{key}: too many appends that nobody read"));
            continue;
        }
        for &next in &list.unread {
            if let Some(to) = txn(next) {
                graph.add(read.txn, to, Reason::ReadWrite(next));
            }
        }
    }
}

/// Adds edges from which all of the real-time order follows: to each transaction from those that ended before it began,
/// unless another lies between.
fn real_time(observed: &Observed<'_>, graph: &mut Graph) {
    // At one time, begins come before ends: what touches overlaps.
    let mut events: Vec<(u64, bool, usize)> = Vec::new();
    for (txn, call) in observed.calls.iter().enumerate() {
        if call.end != Kind::Fail {
            events.push((call.start_ns, false, txn));
        }
        if is_acknowledged(call) {
            events.extend(call.end_ns.map(|end| (end, true, txn)));
        }
    }
    events.sort_unstable();
    let mut last: Vec<(usize, u64)> = Vec::new();
    for (time, is_end, txn) in events {
        if !is_end {
            for &(before, _) in &last {
                graph.add(before, txn, Reason::RealTime);
            }
            continue;
        }
        let Some(start) = observed.calls.get(txn).map(|call| call.start_ns) else { continue };
        last.retain(|&(_, end)| end >= start);
        last.push((txn, time));
    }
}
