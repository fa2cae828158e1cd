//! What a run must have shown: every answer was one that the promises allow, and the replicas are the same.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use borough_node::store::Engine;
use borough_proto::{ClusterMap, wire};
use bytes::Bytes;
use jepsen_tests::checker::linearizable::{self, Bounds};
use jepsen_tests::checker::{Report, Verdict, idempotent};
use jepsen_tests::record::Call;

use crate::caller::LISTS;
use crate::network::{self, HostId};

/// What the search may cost for each key.
const BOUNDS: Bounds = Bounds { configurations_max: 300_000, memory_max_bytes: 256 << 20 };

/// Violations of the history, and whether any key was too hard to decide.
pub fn of_history(mut calls: Vec<Call>) -> (Vec<String>, bool) {
    calls.sort_by_key(|call| call.start_ns);
    let (lists, registers): (Vec<Call>, Vec<Call>) =
        calls.into_iter().partition(|call| LISTS.contains(&call.key.as_str()));
    let reports = [linearizable::check(&registers, BOUNDS), idempotent::check(&lists)];
    let violations = reports.iter().flat_map(violations).collect();
    (violations, reports.iter().any(|report| matches!(report.verdict, Verdict::Unknown(_))))
}

fn violations(report: &Report) -> Vec<String> {
    match &report.verdict {
        Verdict::Invalid(found) => found.iter().map(ToString::to_string).collect(),
        Verdict::Valid | Verdict::Unknown(_) => Vec::new(),
    }
}

type Pairs = BTreeMap<Bytes, Bytes>;

/// Replicas of one shard that do not hold the same bytes.
pub fn of_replicas(map: &ClusterMap, engines: &BTreeMap<HostId, Arc<dyn Engine>>) -> Vec<String> {
    let mut unlike = Vec::new();
    for shard in map.shards() {
        let mut first: Option<(HostId, Pairs)> = None;
        for replica in &shard.replicas {
            match (held(map, replica, engines), &first) {
                (Err(why), _) => unlike.push(format!("shard {}: {why}", shard.id)),
                (Ok(found), None) => first = Some(found),
                (Ok((host, pairs)), Some((other, theirs))) if pairs != *theirs => {
                    let (name, of) = (shard.id, difference(theirs, &pairs));
                    unlike.push(format!("shard {name}: h{other} and h{host} hold other bytes: {of}"));
                }
                (Ok(_), Some(_)) => {}
            }
        }
    }
    unlike
}

/// What a replica holds, in the newest of its spaces.
fn held(
    map: &ClusterMap,
    replica: &wire::ReplicaInfo,
    engines: &BTreeMap<HostId, Arc<dyn Engine>>,
) -> Result<(HostId, Pairs), String> {
    let node = map.nodes().iter().find(|node| node.id == replica.node);
    let host = node.and_then(|node| network::host_at(&node.addr)).ok_or("a node without a host")?;
    let engine = engines.get(&host).ok_or("a host without an engine")?;
    let spaces = engine.spaces().map_err(|error| error.to_string())?;
    let newest = spaces.into_iter().filter(|space| space.replica.get() == replica.id).max();
    let newest = newest.ok_or_else(|| format!("h{host} has no space of replica {}", replica.id))?;
    let space = engine.open_space(newest).map_err(|error| error.to_string())?;
    let pairs: Result<Pairs, _> = space.scan((Bound::Unbounded, Bound::Unbounded), false).collect();
    Ok((host, pairs.map_err(|error| error.to_string())?))
}

fn difference(ours: &Pairs, theirs: &Pairs) -> String {
    let keys = ours.keys().chain(theirs.keys());
    let unlike = keys.filter(|key| ours.get(*key) != theirs.get(*key));
    let text = |pairs: &Pairs, key: &Bytes| {
        pairs.get(key).map_or("nothing".to_owned(), |value| format!("{value:?}"))
    };
    let shown = unlike.take(3).map(|key| format!("{key:?}: {} and {}", text(ours, key), text(theirs, key)));
    shown.collect::<Vec<_>>().join("; ")
}
