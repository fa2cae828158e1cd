//! Epochs only grow, and a node answers at the epoch that is named or newer (I6).
//!
//! What is judged is what any caller with a map relies on. A caller that names the epoch of the newest map that it has seen
//! is answered from no older one, and by nobody who is no replica by the map of the epoch that the answer says: else it
//! could be from members that the shard has left. What a node answers for a shard on one stream, and the maps that it tells
//! on one, never go back. Two maps of one epoch of a shard are the same.
//!
//! A node that was started anew knows the map that it had kept, which may be older than the last that it had: on another
//! stream it may know less.
//!
//! A refusal is always right here: that those who should answer do, others judge.

use std::collections::{BTreeMap, BTreeSet};

use super::{Findings, Report, describe, ok_end};
use crate::record::{Call, Kind, NEMESIS, Record};

/// The function of a question: `{"stream": 7, "named": 3, …}` → `{"node": 1, "epoch": 3, …}`. The key is the shard.
pub const FENCE: &str = "fence";
/// The function of news of a shard in a map that a node told: `{"epoch": 3, "replicas": [1, 2, 3]}`. One process, one stream.
pub const MAP: &str = "map";

/// How much was asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Probed {
    pub asked: usize,
    pub answered: usize,
    /// Changes of a shard's epoch that maps told, each once.
    pub grown: usize,
}

/// The epochs by shard that maps told, and the nodes that have a replica then.
type Members = BTreeMap<(String, u64), BTreeSet<u64>>;

/// A function, a shard and a stream.
type Source<'a> = (&'a str, &'a str, u64);

/// The calls of the workload, and those that are for this checker.
pub fn split(calls: Vec<Call>) -> (Vec<Call>, Vec<Call>) {
    calls.into_iter().partition(|call| call.f != FENCE && call.f != MAP)
}

/// Whether a node gave replicas to others: then epochs must have grown.
pub fn membership_changed(records: &[Record]) -> bool {
    records.iter().any(|record| {
        let gave = record.value.pointer("/met/gave").and_then(serde_json::Value::as_u64);
        record.process == NEMESIS && record.f == "membership" && gave.is_some_and(|replicas| replicas > 0)
    })
}

/// How much the calls have asked.
pub fn probed(calls: &[Call]) -> Probed {
    let fences = calls.iter().filter(|call| call.f == FENCE);
    let told: BTreeSet<(&str, u64)> = calls.iter().filter_map(epoch_told).collect();
    let shards: BTreeSet<&str> = told.iter().map(|(shard, _)| *shard).collect();
    Probed {
        asked: fences.clone().count(),
        answered: fences.filter(|call| call.end == Kind::Ok).count(),
        grown: told.len() - shards.len(),
    }
}

/// Checks calls [`FENCE`] and [`MAP`]; `changed`: replicas went from node to node meanwhile.
pub fn check(calls: &[Call], changed: bool) -> Report {
    let mut findings = Findings::default();
    for call in calls.iter().filter(|call| !is_understood(call)) {
        findings.not_understood(call);
    }
    let members = members(calls, &mut findings);
    for call in calls.iter().filter(|call| call.f == FENCE && ok_end(call).is_some()) {
        answered(call, &members, &mut findings);
    }
    never_back(calls, &mut findings);
    enough(calls, &members, changed, &mut findings);
    findings.report("epoch", calls)
}

fn number(value: &serde_json::Value, field: &str) -> Option<u64> {
    value.get(field)?.as_u64()
}

fn is_understood(call: &Call) -> bool {
    match (call.f.as_str(), ok_end(call)) {
        (FENCE | MAP, None) => true,
        (FENCE, Some(_)) => {
            let said = number(&call.output, "node").zip(number(&call.output, "epoch"));
            number(&call.input, "named").zip(number(&call.input, "stream")).zip(said).is_some()
        }
        (MAP, Some(_)) => number(&call.output, "epoch").zip(replicas(call)).is_some(),
        _ => false,
    }
}

fn replicas(call: &Call) -> Option<BTreeSet<u64>> {
    call.output.get("replicas")?.as_array()?.iter().map(serde_json::Value::as_u64).collect()
}

fn epoch_told(call: &Call) -> Option<(&str, u64)> {
    let epoch = number(&call.output, "epoch").filter(|_| call.f == MAP && call.end == Kind::Ok)?;
    Some((call.key.as_str(), epoch))
}

fn members(calls: &[Call], findings: &mut Findings) -> Members {
    let mut members = Members::new();
    for call in calls {
        let (Some((shard, epoch)), Some(nodes)) = (epoch_told(call), replicas(call)) else { continue };
        let known = members.entry((shard.to_owned(), epoch)).or_insert_with(|| nodes.clone());
        if *known != nodes {
            findings.add("two maps of one epoch", shard, || {
                format!("{}: others told of replicas on {known:?}", describe(call))
            });
        }
    }
    members
}

fn answered(call: &Call, members: &Members, findings: &mut Findings) {
    let said = number(&call.output, "node").zip(number(&call.output, "epoch"));
    let (Some(named), Some((node, epoch))) = (number(&call.input, "named"), said) else { return };
    if epoch < named {
        findings.add("answer at an older epoch", &call.key, || describe(call));
    }
    // That nobody told of an epoch, as it did not last, proves nothing.
    if let Some(nodes) = members.get(&(call.key.clone(), epoch))
        && !nodes.contains(&node)
    {
        findings.add("answer of no replica", &call.key, || {
            format!("{}: the replicas are on {nodes:?}", describe(call))
        });
    }
}

/// By shard and stream.
fn never_back(calls: &[Call], findings: &mut Findings) {
    let mut sources: BTreeMap<Source<'_>, Vec<(&Call, u64)>> = BTreeMap::new();
    for call in calls.iter().filter(|call| ok_end(call).is_some()) {
        let source = if call.f == FENCE { number(&call.input, "stream") } else { Some(call.process) };
        if let Some((source, epoch)) = source.zip(number(&call.output, "epoch")) {
            sources.entry((&call.f, &call.key, source)).or_default().push((call, epoch));
        }
    }
    for ((_, shard, _), mut later) in sources {
        let mut earlier = later.clone();
        later.sort_by_key(|(call, _)| call.start_ns);
        earlier.sort_by_key(|(call, _)| call.end_ns);
        let mut earlier = earlier.into_iter().peekable();
        let mut newest: Option<(&Call, u64)> = None;
        for (call, epoch) in later {
            while let Some((ended, at)) = earlier.next_if(|(ended, _)| ended.end_ns < Some(call.start_ns)) {
                if newest.is_none_or(|(_, before)| before < at) {
                    newest = Some((ended, at));
                }
            }
            if let Some((before, _)) = newest.filter(|(_, before)| *before > epoch) {
                findings.add("epoch went back", shard, || {
                    format!("{}\n  after {}", describe(call), describe(before))
                });
            }
        }
    }
}

/// A history in which no node could have been wrong shows nothing.
fn enough(calls: &[Call], members: &Members, changed: bool, findings: &mut Findings) {
    let named = |call: &Call| (call.key.clone(), number(&call.input, "named").unwrap_or_default());
    let answered: BTreeSet<(String, u64)> =
        calls.iter().filter(|call| call.f == FENCE && ok_end(call).is_some()).map(named).collect();
    if !answered.iter().any(|(_, epoch)| *epoch > 0) {
        findings.unknown(|| "no node answered a question that named an epoch".to_owned());
    }
    // All but each shard's first.
    let shards: BTreeMap<&str, u64> =
        members.keys().rev().map(|(shard, epoch)| (shard.as_str(), *epoch)).collect();
    let mut grown =
        members.keys().filter(|(shard, epoch)| shards.get(shard.as_str()) != Some(epoch)).peekable();
    if changed && grown.peek().is_none() {
        findings.unknown(|| "nodes gave replicas to others, and no epoch was seen to grow".to_owned());
    }
    if grown.peek().is_some() && !grown.any(|of| answered.contains(of)) {
        findings.unknown(|| "epochs grew, and no question that named one of these was answered".to_owned());
    }
}

#[cfg(test)]
#[path = "epoch_tests.rs"]
mod tests;
