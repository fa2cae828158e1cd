//! Replicas that have applied the same commands hold the same data: all hashes of a shard are equal.

use std::collections::BTreeMap;

use super::{Counts, Findings, Report};

/// Checks the hashes of each shard by replica. A shard with fewer than two proves nothing.
pub fn check(shards: &BTreeMap<String, BTreeMap<String, String>>) -> Report {
    let mut findings = Findings::default();
    for (shard, replicas) in shards {
        if replicas.len() < 2 {
            findings.unknown(|| format!("shard {shard} has {} hashes: nothing to compare", replicas.len()));
        }
        let mut by_hash: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (replica, hash) in replicas {
            by_hash.entry(hash).or_default().push(replica);
        }
        if by_hash.len() > 1 {
            let groups = by_hash.iter().map(|(hash, replicas)| format!("{hash} on {}", replicas.join(", ")));
            let detail = || groups.collect::<Vec<_>>().join("; ");
            findings.add("replicas differ", shard, detail);
        }
    }
    if shards.is_empty() {
        findings.unknown(|| "no shard".to_owned());
    }
    let report = findings.report("equality", &[]);
    Report { counts: Counts { ok: shards.values().map(BTreeMap::len).sum(), ..Counts::default() }, ..report }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{assert_invalid, assert_unknown, assert_valid};
    use super::*;

    fn shard(hashes: &[&str]) -> BTreeMap<String, String> {
        hashes.iter().enumerate().map(|(node, &hash)| (format!("node {node}"), hash.to_owned())).collect()
    }

    #[test]
    fn equal_hashes_pass_and_others_do_not() {
        let good = ("1".to_owned(), shard(&["a", "a", "a"]));
        assert_valid(&check(&BTreeMap::from([good.clone(), ("2".to_owned(), shard(&["b", "b"]))])));
        let report = check(&BTreeMap::from([good, ("2".to_owned(), shard(&["b", "c", "b"]))]));
        assert_invalid(&report, &["replicas differ"]);
        assert!(report.to_string().contains("b on node 0, node 2; c on node 1"), "{report}");
        assert_eq!(report.counts.ok, 6);
    }

    #[test]
    fn one_replica_alone_proves_nothing() {
        assert_unknown(&check(&BTreeMap::new()));
        assert_unknown(&check(&BTreeMap::from([("1".to_owned(), shard(&["a"]))])));
        assert_unknown(&check(&BTreeMap::from([("1".to_owned(), BTreeMap::new())])));
    }
}
